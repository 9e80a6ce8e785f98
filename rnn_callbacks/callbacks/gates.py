"""GateMonitor: are the gates of a recurrent network open, closed or stuck, and how long does it remember?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..analysis.gate_ablation import Hold, ablatable
from ..analysis.gate_flags import RULES, check_thresholds, find_flags
from ..analysis.gate_phases import GatePhases, PhaseSums
from ..analysis.gates import BINS, GateStatistics, gate_statistics
from ..cells import Cell, cells
from ..figures.gates import draw_gates
from ..rebuild import Trace
from ..report import Histogram, Report
from ..sinks import Layout
from .base import EpochCallback, Observe
from .gate_ablation import losses_without_gates
from .importing import function_of
from .look import Look
from .rehearsed_loss import HeardBatch, HeardBatches
from .summary import headline_cells

Phases = Callable[..., Any]


@final
class GateMonitor(EpochCallback):
    """Watches the gates of every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` (and their cells) while the model trains.

    Gates are rebuilt exactly from what goes into and comes out of the module during validation; nothing in the model
    changes, and no pass is run for it. GRU's ``update`` is the share of *new* content: near 0 the unit holds its state,
    near 1 it takes the candidate (torch's ``z`` is 1 minus that).

    Args:
        module: dotted name, or names, of the modules to watch; all recurrent modules by default.
        phases: a function from a batch to the task phase of every step, or its import path: integers ``(B,)`` or
            ``(B, T)``, negative where a step does not count.
        flags: thresholds of the built-in flags (null switches one off), and rules of your own as
            ``{"update_mean_below": 0.1}``.
        ablate: hold each gate in turn at its ``mean``, at ``zero`` or at ``one``, and report how much the model's own
            validation loss changes. Runs ``validation_step`` of a copy of the model once per gate.
        observe: ``validation`` or ``train``.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: how many sequences to analyse, the same first ones at every look; more for short sequences, whose
            few steps say little about a unit.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged, with ``{module}`` the module's name and ``{cell}`` one of ``l0``, ``l0_reverse``, ``l1``, ... or ``cell``:

    - `gates/{module}.{cell}/{gate}/mean`: mean opening over steps and units, in [0, 1].
    - `gates/{module}.{cell}/{gate}/std`: standard deviation over steps, mean over units, in [0, 0.5].
    - `gates/{module}.{cell}/{gate}/closed`: share of steps and units below 0.1, in [0, 1].
    - `gates/{module}.{cell}/{gate}/open`: share of steps and units above 0.9, in [0, 1].
    - `gates/{module}.{cell}/{gate}/phase_eta_squared`: share of the variance over steps that the phase explains, in
      [0, 1]; with `phases`.
    - `gates/{module}.{cell}/{gate}/ablation`: change of the validation loss with the gate held, in units of the loss;
      with `ablate`.
    - `gates/{module}.{cell}/{candidate}/mean_abs`: mean size of the new content, in [0, 1] (relu: from 0).
    - `gates/{module}.{cell}/{candidate}/near_zero`: share of steps and units with new content below 0.1 in size.
    - `gates/{module}.{cell}/{candidate}/saturated`: the same above 0.9; not for relu.
    - `gates/{module}.{cell}/{candidate}/phase_eta_squared`: as for gates; with `phases`.
    - `gates/{module}.{cell}/timescale/q50`: steps after which the median unit keeps 1/e of its state.
    - `gates/{module}.{cell}/timescale/q10`: the same of the fast units; 10 % forget faster.
    - `gates/{module}.{cell}/timescale/q90`: the same of the slow units; 10 % remember longer. At most a million.
    - `gates/{module}.{cell}/write_balance/q50`: LSTM, median over units of input / (1 - forget); 1 replaces what fades.
    - `gates/{module}.{cell}/memory/mean_abs`: LSTM, mean size of the cell state.
    - `gates/{module}.{cell}/memory/drift`: LSTM, growth of that size per step that the cell reads.
    - `gates/{module}.{cell}/memory/saturated`: LSTM, share of steps and units with |tanh(c)| above 0.9.
    - `gates/{module}.{cell}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `gates/{module}.{cell}/rebuild_error`: difference of rebuilt and real hidden states, relative; about 1e-6.
    - `gates/failed_looks`: looks whose analysis raised or that could not all be handed over, so far.
    - `gates/seconds`: what the numbers of this look took.
    - `gates/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "gates"

    def __init__(
        self,
        module: str | list[str] | None = None,
        phases: str | Phases | None = None,
        *,
        flags: dict[str, float | None] | None = None,
        ablate: Hold | None = None,
        observe: Observe = "validation",
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 64,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        super().__init__(
            module=module,
            observe=observe,
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            max_sequences=max_sequences,
            on_error=on_error,
            summary=summary,
        )
        self.phases = phases
        self.flags = flags
        self.ablate = ablate
        self._labels: dict[int, Tensor] = {}
        self._phase_fault: Exception | None = None
        self._batches = HeardBatches()

    def check(self, modules: dict[str, nn.Module]) -> None:
        if self.flags is not None and not isinstance(self.flags, dict):
            raise ValueError(f"flags must be a dict of thresholds by name, got {self.flags!r}")
        check_thresholds(self.flags or {}, [cell for module in modules.values() for cell in cells(module)])
        _resolve(self.phases)
        if self.ablate is not None:
            if self.ablate not in ("mean", "zero", "one"):
                raise ValueError(f"ablate must be 'mean', 'zero', 'one' or None, got {self.ablate!r}")
            if not any(map(ablatable, modules.values())):
                raise ValueError("ablate holds gates of nn.LSTM, nn.GRU and their cells; no watched module is one")

    def begin_hearing(self) -> None:
        self._labels.clear()
        self._batches.clear()
        self._phase_fault = None

    def heard(self) -> tuple[dict[int, Tensor], str | None]:
        labels = {number: labels.cpu() for number, labels in self._labels.items()}
        return labels, None if self._phase_fault is None else repr(self._phase_fault)

    def join(self, heard: Sequence[tuple[dict[int, Tensor], str | None]]) -> None:
        for labels, fault in heard:
            self._labels |= labels
            if fault is not None and self._phase_fault is None:
                self._phase_fault = RuntimeError(fault)

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        phases = _resolve(self.phases)
        if phases is not None and self._phase_fault is None:
            try:
                self._labels[number] = torch.as_tensor(phases(batch)).detach()
            except Exception as fault:  # said once at the look, not at every batch
                self._phase_fault = fault
        if self.ablate is not None:
            self._batches.list.append(HeardBatch(batch, batch_idx, dataloader_idx))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        with self._guard:
            self._batches.keep_model(trainer, pl_module)

    def analyse(self, look: Look) -> Report:
        scalars: dict[str, float] = {}
        arrays: dict[str, NDArray[Any]] = {}
        histograms: dict[str, Histogram] = {}
        texts: dict[str, str] = {}
        figures = {}
        for name in look.tapes:
            found: list[tuple[Cell, GateStatistics, GatePhases | None]] = []
            for traces in look.cells(name).values():
                statistics, phases = self._measure(traces)
                found.append((traces[0].cell, statistics, phases))
            trusted = self._trust(name, [statistics for _, statistics, _ in found])
            for cell, statistics, phases in found:
                where = f"gates/{name}.{cell.name}"
                scalars[f"{where}/rebuild_error"] = statistics.rebuild_error
                if not trusted:
                    continue
                scalars |= {f"{where}/{key}": value for key, value in statistics.scalars().items()}
                arrays |= {f"{where}/{key}": value for key, value in _arrays(statistics).items()}
                if phases is not None:
                    scalars |= {f"{where}/{key}": value for key, value in phases.scalars().items()}
                    arrays |= {f"{where}/phase_{key}": getattr(phases, key) for key in _PHASE_FIELDS}
                edges = np.linspace(0.0, 1.0, BINS + 1)
                for row, part in enumerate(statistics.parts):
                    histograms[f"{where}/{part}"] = Histogram(edges, statistics.histogram[row].sum(0))
                self._flag(where, statistics, scalars, texts)
            if trusted:
                drawn = [statistics for _, statistics, _ in found]
                by_phase = [phases for _, _, phases in found if phases is not None]
                by_phase = by_phase if len(by_phase) == len(found) else []  # the picture needs them for every cell
                figures[f"gates/{name}"] = partial(
                    draw_gates, name, drawn, phases=by_phase, title=f"epoch {look.epoch}"
                )
                if self.ablate is not None:
                    measured = [(cell, statistics) for cell, statistics, _ in found]
                    with self._guard:
                        changes = losses_without_gates(
                            self._batches.of(look), name, measured, self._batches.list, self.ablate
                        )
                        scalars |= {f"gates/{name}.{place}/ablation": change for place, change in changes.items()}
        self._batches.clear()  # with a copy of the model, which nobody needs while training goes on
        return Report(scalars, arrays, histograms, texts, figures)

    def _measure(self, traces: Sequence[Trace]) -> tuple[GateStatistics, GatePhases | None]:
        """Statistics of one cell, by phase too where phases are given; wrong phases cost only themselves."""
        if self.phases is not None:
            with self._guard:
                if self._phase_fault is not None:
                    raise ValueError("phases raised on a batch") from self._phase_fault
                sums = PhaseSums(traces[0].cell, self._labels)
                return gate_statistics(traces, phases=sums), sums.result()
        return gate_statistics(traces), None

    def _trust(self, name: str, statistics: Sequence[GateStatistics]) -> bool:
        """Whether the rebuilt states are those of the module; if not, nothing that rests on them is reported."""
        worst = max(statistics, key=lambda s: s.rebuild_error / s.tolerance)
        return self._guard.believes(name, f"cell {worst.cell}", worst.rebuild_error, worst.tolerance)

    def _flag(self, where: str, statistics: GateStatistics, scalars: dict[str, float], texts: dict[str, str]) -> None:
        place = where.removeprefix("gates/")
        for flag in find_flags(statistics, self.flags):
            scalars[f"{where}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                texts[f"{where}/flags/{flag.name}"] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                self._guard.say(f"{where} {flag.name}", f"{place}, flag {flag.name}: {flag.meaning}")

    def headlines(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for place, (called, cell) in headline_cells(self.watched).items():
            if cell.retention is not None:
                found[f"gates/{place}/timescale/q50"] = f"{called}: the median unit remembers {{value:.3g}} steps"
            else:
                words = f"{called}: the mean size of the new content is {{value:.2f}}"
                found[f"gates/{place}/{cell.candidate}/mean_abs"] = words
        return found

    def layout(self) -> Layout:
        def chart(pattern: str) -> list[Any]:
            return ["Multiline", [pattern]]

        return {
            "Gates": {
                "memory of the median unit, in time steps": chart(r"^gates/.*/timescale/q50$"),
                "how open (mean)": chart(r"^gates/.*/(input|forget|output|update|reset)/mean$"),
                "share of gates closed (below 0.1)": chart(r"^gates/.*/closed$"),
                "share of gates open (above 0.9)": chart(r"^gates/.*/open$"),
                "flags raised": chart(r"^gates/.*/flags/(" + "|".join(RULES) + r"|.*_below|.*_above)$"),
                "time spent looking, share of training": chart(r"^gates/overhead$"),
            }
        }


_FIELDS = ("histogram", "mean", "std", "closed", "open", "blown_up", "timescale", "write_balance", "times", "profile")
_STATE_FIELDS = ("unit_profile", "state_profile", "lengths")
_PHASE_FIELDS = ("counts", "mean", "eta_squared")


def _arrays(statistics: GateStatistics) -> dict[str, NDArray[Any]]:
    found = {name: np.asarray(getattr(statistics, name)) for name in (*_FIELDS, *_STATE_FIELDS)}
    return found | {"parts": np.array(statistics.parts)}


def _resolve(phases: str | Phases | None) -> Phases | None:
    return None if phases is None else function_of("phases", phases)
