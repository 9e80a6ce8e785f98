"""States of many sequences at a few time steps: what probes need, and no more of it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cells import Cell
from ..rebuild import Trace, chunks, rerun, traces
from ..tape import Call, Tape

CHECKED = 32  # sequences of a call whose states are compared with the module's own


@final
@dataclass(frozen=True, eq=False)
class StateSamples:
    """One module's states at S chosen steps and, as one more column, at the step that each cell reads last.

    A site is what a state belongs to: ``l0/hidden``, ``l0/memory`` (an LSTM's cell state), ``input``; with reversed
    cells, whose last step is the first of the sequence, ``input_reverse`` has that one in its last column.
    """

    steps: NDArray[np.int64]  # (S,), from 0, as the user counts them
    states: dict[str, NDArray[np.float32]]  # by site, (N, S + 1, D)
    lengths: NDArray[np.int64]  # (N,), of the sequences
    rows: NDArray[np.int64]  # (N, 2), number of the batch and row in it
    rebuild_error: dict[str, float]  # by cell, largest difference of rebuilt and real hidden states, relative
    tolerance: float  # what rounding may explain of it

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether a sequence reaches a column's step, ``(N, S + 1)``."""
        reached = self.steps < self.lengths[:, None]
        return np.concatenate([reached, (self.lengths > 0)[:, None]], axis=1)

    def positions(self, *, reverse: bool) -> NDArray[np.int64]:
        """The time step of every column for every sequence, ``(N, S + 1)``."""
        end = np.zeros_like(self.lengths) if reverse else self.lengths - 1
        return np.concatenate([np.broadcast_to(self.steps, (len(end), len(self.steps))), end[:, None]], axis=1)


def is_reversed(site: str) -> bool:
    """Whether a site belongs to a cell that reads the sequence from its end."""
    return site.partition("/")[0].endswith("_reverse")


@final
class StateSampler:
    """Collects states of one module, call by call.

    Args:
        steps: how many steps, evenly spread from the first to the last of the first batch that is heard; or which,
            from 0, negative ones from that last.
        max_megabytes: where to stop, however many sequences are wanted.
    """

    def __init__(self, steps: int | Sequence[int], *, max_megabytes: float) -> None:
        self.max_megabytes = max_megabytes
        self.full = False  # whether the limit was reached
        self.longest = 0  # steps of the longest sequence heard
        self.steps: NDArray[np.int64] | None = None  # chosen
        self._wanted = steps
        self._processes = 1  # whose batches there are
        self.begin()

    @property
    def count(self) -> int:
        """Sequences taken in."""
        return len(self._rows)

    def begin(self) -> None:
        """Forget the states; the steps remain, so that all looks are at the same ones."""
        self.full = False
        self._bytes = 0
        self._parts: list[dict[str, Tensor]] = []
        self._lengths: list[Tensor] = []
        self._rows: list[tuple[int, int]] = []
        self._errors: dict[str, float] = {}
        self._tolerance = 0.0

    @torch.no_grad()
    def hear(self, tape: Tape, cells: Sequence[Cell] | None = None) -> None:
        """Take in the first call of each batch; later ones of a batch have no labels of their own.

        Args:
            tape: what was heard of the module.
            cells: instead of the module's own, to see what the same inputs would have become with other weights.
        """
        known = {batch for batch, _ in self._rows}
        for call in tape.calls:
            if call.batch in known or self.full:
                continue
            known.add(call.batch)
            longest = int(call.lengths.max())
            self.longest = max(self.longest, longest)
            if self.steps is None:
                self.steps = choose_steps(self._wanted, longest)
            with torch.autocast("cpu", enabled=False):
                self._take(call if cells is None else rerun(call, cells), self.steps, checked=cells is None)

    def _take(self, call: Call, steps: NDArray[np.int64], *, checked: bool) -> None:
        part: dict[str, Tensor] = {}
        for trace in traces(call):
            columns = _reading_order(trace, steps)
            place = trace.cell.name
            part[f"{place}/hidden"] = _pick(trace.hidden, columns)
            source = "input_reverse" if trace.cell.place.reverse else "input"
            if trace.cell.place.layer == 0:
                part[source] = _pick(trace.inputs, columns)
            first = not self._parts
            if trace.cell.memory_size:
                error, part[f"{place}/memory"] = _memory(trace, columns)
            elif first and checked:
                error, _ = _memory(_head(trace), columns[:CHECKED])
            else:
                error = 0.0
            if checked:
                self._errors[place] = max(self._errors.get(place, 0.0), error)
        self._tolerance = max(self._tolerance, call.tolerance)
        room = self.max_megabytes * 2**20 - self._bytes
        size = sum(states[0].nbytes for states in part.values())
        kept = min(len(call.lengths), max(int(room / max(size, 1)), 0 if self._parts else 2))
        self.full = kept < len(call.lengths)
        self._bytes += kept * size
        self._parts.append({site: states[:kept] for site, states in part.items()})
        self._lengths.append(call.lengths[:kept])
        self._rows += [(call.batch, row) for row in range(kept)]

    def fits(self, other: StateSampler) -> bool:
        """Whether both sample the same steps, or one has heard nothing."""
        return self.steps is None or other.steps is None or np.array_equal(self.steps, other.steps)

    def join(self, other: StateSampler, processes: int) -> None:
        """Take in what the sampler of another process heard.

        The n-th batch of process p has the number ``n * processes + p``. Sequences are put in the order in which they
        were dealt out, one to each process in turn.
        """
        self._processes = processes
        if other.steps is None:
            return
        self.steps = other.steps if self.steps is None else self.steps
        self.full |= other.full
        self.longest = max(self.longest, other.longest)
        self._parts += other._parts
        self._lengths += other._lengths
        self._rows += other._rows
        self._errors = {
            cell: max(error, other._errors.get(cell, 0.0)) for cell, error in {**other._errors, **self._errors}.items()
        }
        self._tolerance = max(self._tolerance, other._tolerance)

    def result(self) -> StateSamples | None:
        """Everything taken in; None if that is nothing."""
        if self.steps is None or not self._rows:
            return None
        rows = np.array(self._rows, dtype=np.int64)
        turn, process = np.divmod(rows[:, 0], self._processes)
        order = np.lexsort((process, rows[:, 1], turn))

        def arranged(parts: Sequence[Tensor]) -> NDArray[Any]:
            whole = torch.cat(list(parts)).numpy()
            return whole[order] if self._processes > 1 else whole

        return StateSamples(
            steps=self.steps,
            states={site: arranged([part[site] for part in self._parts]) for site in self._parts[0]},
            lengths=arranged(self._lengths),
            rows=arranged([torch.from_numpy(rows)]),
            rebuild_error=dict(self._errors),
            tolerance=self._tolerance,
        )


def choose_steps(wanted: int | Sequence[int], longest: int) -> NDArray[np.int64]:
    """Time steps in order, without repetition.

    Args:
        wanted: how many, evenly spread with the first and the last among them; or which, negative ones from the end.
        longest: steps of a sequence.
    """
    if isinstance(wanted, int):
        return np.unique(np.linspace(0, longest - 1, min(wanted, longest)).round().astype(np.int64))
    asked = np.array([step + longest if step < 0 else step for step in wanted], dtype=np.int64)
    return np.unique(np.clip(asked, 0, None))


def _reading_order(trace: Trace, steps: NDArray[np.int64]) -> Tensor:
    """Where in a cell's order of reading its columns lie, ``(B, S + 1)``; clipped for sequences that end before."""
    last = trace.lengths[:, None] - 1
    asked = torch.from_numpy(steps).expand(len(last), -1)
    order = (last - asked) if trace.cell.place.reverse else asked
    return torch.cat([order.clamp(min=0).minimum(last.clamp(min=0)), last.clamp(min=0)], dim=1)


def _pick(sequences: Tensor, columns: Tensor) -> Tensor:
    """``(B, S + 1, F)`` of ``(B, T, F)``, in single precision."""
    return sequences[torch.arange(len(columns))[:, None], columns].float()


def _head(trace: Trace) -> Trace:
    """The first sequences of a trace."""
    few = slice(CHECKED)
    previous = None if trace.previous is None else trace.previous[few]
    return Trace(
        trace.cell, trace.inputs[few], trace.hidden[few], trace.initial[few], trace.lengths[few], previous,
        None if trace.final is None else trace.final[few], trace.tolerance, trace.batch,
    )  # fmt: skip


def _memory(trace: Trace, columns: Tensor) -> tuple[float, Tensor]:
    """How far rebuilt hidden states are from the recorded ones, and the memory ``(B, S + 1, M)`` at these columns."""
    found = torch.zeros(*columns.shape, trace.cell.memory_size)
    worst = torch.zeros((), dtype=trace.hidden.dtype)
    for chunk in chunks(trace):
        scale = chunk.hidden.abs().amax().clamp(min=1.0)
        # A recorded state with NaN is not compared; the probe leaves it out too.
        difference = torch.where(chunk.hidden.isfinite(), (chunk.rebuilt - chunk.hidden).abs(), 0.0)
        worst = torch.maximum(worst, difference.nan_to_num(torch.inf).amax() / scale.nan_to_num(1.0))
        if not trace.cell.memory_size:
            continue
        read = trace.lengths[chunk.sequences] - 1 - chunk.times if trace.cell.place.reverse else chunk.times
        begin, end = int(read.min()), int(read.max()) + 1
        place = torch.full((len(columns), end - begin), -1)
        place[chunk.sequences, read - begin] = torch.arange(len(read))
        inside = (columns >= begin) & (columns < end)
        wanted = inside.nonzero(as_tuple=True)
        found[wanted] = chunk.memory[place[wanted[0], columns[inside] - begin]].float()
    return float(worst), found
