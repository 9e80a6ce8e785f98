"""States taken batch by batch: of the network as it is, as it was before training, and with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

from ..analysis.state_samples import StateSampler, StateSamples
from ..cells import Cell
from ..tape import Tape
from .untrained import UntrainedNetwork

ALONE = (
    "sequences differ in length between processes, so the steps to look at do too, and only those that rank zero heard "
    "are looked at; write steps=[...] to look at those of all processes."
)


@final
class StateTaking:
    """Takes the states of each module from what is heard of every batch, at the same steps at every look.

    Args:
        steps: how many, or which; see `StateSampler`.
        max_megabytes: of states, per module.
        chosen: steps of each module, where an earlier look has chosen them.
        untrained: whose states are taken too, until it has been looked at.
    """

    def __init__(
        self,
        steps: int | Sequence[int],
        *,
        max_megabytes: float,
        chosen: Mapping[str, Sequence[int]],
        untrained: UntrainedNetwork,
    ) -> None:
        self.steps = steps
        self.max_megabytes = max_megabytes
        self.chosen = {name: list(of_module) for name, of_module in chosen.items()}
        self.untrained = untrained
        self.twin_cells: dict[str, list[tuple[Cell, ...]]] = {}  # random networks to run on the same inputs
        self.alone = False  # whether other processes sample other steps, so that this one keeps to its own sequences
        self.forget()

    def forget(self) -> None:
        """Nothing large is held while training goes on."""
        self.now: dict[str, StateSampler] = {}
        self.twins: dict[str, list[StateSampler]] = {}
        self._fault: Exception | None = None

    def begin(self) -> None:
        """Sequences of a new look are about to come."""
        self._fault = None
        for sampler in self._samplers():
            sampler.begin()

    def _samplers(self) -> Iterator[StateSampler]:
        yield from self.now.values()
        yield from self.untrained.rerun.values()
        for of_module in self.twins.values():
            yield from of_module

    @property
    def count(self) -> int:
        """Sequences taken in, of the module with most."""
        return max((sampler.count for sampler in self.now.values()), default=0)

    def take(self, tapes: Mapping[str, Tape], most: int, *, untrained: bool) -> None:
        """Take in what was heard of a batch, up to so many sequences; what goes wrong is raised by `check`."""
        if self._fault is not None:
            return
        try:
            for name, tape in tapes.items():
                if untrained:
                    self._sample(self.untrained.heard, name, tape, most)
                    continue
                self._sample(self.now, name, tape, most)
                if name in self.untrained.cells:
                    self._sample(self.untrained.rerun, name, tape, most, self.untrained.cells[name])
                    self._sample_twins(name, tape, most)
        except Exception as fault:  # said once at the look, not at every batch
            self._fault = fault

    def _sample(
        self,
        samplers: dict[str, StateSampler],
        name: str,
        tape: Tape,
        most: int,
        other: Sequence[Cell] | None = None,
    ) -> None:
        sampler = samplers.setdefault(name, self._sampler(name))
        sampler.hear(tape.head(most - sampler.count), other)
        if name not in self.chosen and sampler.steps is not None:
            self.chosen[name] = sampler.steps.tolist()

    def _sample_twins(self, name: str, tape: Tape, most: int) -> None:
        cells = self.twin_cells.get(name, [])
        for sampler, twin in zip(self.twins.setdefault(name, [self._sampler(name) for _ in cells]), cells, strict=True):
            sampler.hear(tape.head(most - sampler.count), twin)

    def _sampler(self, name: str) -> StateSampler:
        return StateSampler(self.chosen.get(name, self.steps), max_megabytes=self.max_megabytes)

    def check(self) -> None:
        """Raise what went wrong."""
        if self._fault is not None:
            raise RuntimeError("taking samples of the states failed") from self._fault

    def of(self, name: str) -> StateSamples | None:
        """States of a module as it is; None where nothing was heard of it."""
        return self.now[name].result() if name in self.now else None

    # ---- several processes -----------------------------------------------------------------------------------------

    def heard(self) -> dict[str, dict[str, list[StateSampler]]]:
        """All samplers, to be sent to rank zero; raises what went wrong."""
        self.check()
        return {
            "now": {name: [sampler] for name, sampler in self.now.items()},
            "untrained": {name: [sampler] for name, sampler in self.untrained.heard.items()},
            "rerun": {name: [sampler] for name, sampler in self.untrained.rerun.items()},
            "twins": self.twins,
        }

    def join(self, heard: Sequence[dict[str, dict[str, list[StateSampler]]]], processes: int) -> bool:
        """Take in what other processes `heard`; all of it or, where one of them sampled other steps, nothing."""
        own = self.heard()
        pairs = [
            (mine, theirs)
            for other in heard
            for kind, by_module in own.items()
            for name, samplers in by_module.items()
            for mine, theirs in zip(samplers, other[kind].get(name, []), strict=False)
        ]
        self.alone |= not all(mine.fits(theirs) for mine, theirs in pairs)
        if not self.alone:
            for mine, theirs in pairs:
                mine.join(theirs, processes)
        return not self.alone
