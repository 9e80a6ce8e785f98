"""What the gates of a recurrent cell do over many sequences: how open, how stuck, how long the cell remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..cells import Cell
from ..rebuild import Chunk, Trace, chunks
from .gate_phases import PhaseSums

BINS = 20  # equal bins on [0, 1], so that 0.1 and 0.9 are edges
CLOSED, OPEN = 0.1, 0.9  # Karpathy, Johnson and Fei-Fei 2015, section 4.2: left- and right-saturated gates
BLOWN_UP = 12.0  # |pre-activation| at which a sigmoid's slope is 6e-6: no gradient comes through
LONGEST = 1e6  # time steps; a timescale beyond that is reported as this


@final
@dataclass(frozen=True, eq=False)
class GateStatistics:
    """Gates of one cell over N steps, N the sum of the sequences' lengths. ``parts`` are G gates and the candidate.

    A gate is measured as it is, in [0, 1]; the candidate, which lies in [-1, 1], by its absolute value.
    """

    cell: str
    parts: tuple[str, ...]
    steps: int  # N
    sequences: int
    nonfinite: float  # share of steps left out because something in them was NaN or infinite, in [0, 1]
    rebuild_error: float  # largest difference of rebuilt and recorded hidden state, relative to max(1, |h|)
    tolerance: float  # what rounding may explain of it
    lengths: NDArray[np.int64]  # (sequences,)
    histogram: NDArray[np.int64]  # (G + 1, H, BINS), steps per unit and bin
    mean: NDArray[np.float64]  # (G + 1, H), over steps
    std: NDArray[np.float64]  # (G + 1, H), over steps
    blown_up: NDArray[np.float64]  # (G,), share of pre-activations beyond 12, in [0, 1]
    retention: str | None  # the gate that says how much of the old state is kept ...
    retains_when_open: bool  # ... by being open or closed
    log_retention: NDArray[np.float64]  # (H,), mean over steps of log(share of the old state kept); empty without gates
    bounded: bool  # whether the candidate lies in [-1, 1]: not that of a relu network
    times: NDArray[np.int64]  # (T,), steps heard at each position of the sequence
    profile: NDArray[np.float64]  # (G + 1, T), mean over units and sequences at each position
    unit_profile: NDArray[np.float32]  # (G + 1, H, time bins), mean over sequences
    state_profile: NDArray[np.float64]  # (4, T): mean |h|, std of h, mean |c|, std of c; two rows without a memory
    memory_saturated: float  # share of |tanh(c)| > 0.9; 0 without a memory
    memory_drift: float  # slope of mean |c| along the reading of the sequence, per step (least squares); 0 without one

    @property
    def closed(self) -> NDArray[np.float64]:
        """Share of steps below 0.1, ``(G + 1, H)``, in [0, 1]."""
        return self._share(slice(0, round(CLOSED * BINS)))

    @property
    def open(self) -> NDArray[np.float64]:
        """Share of steps above 0.9, ``(G + 1, H)``, in [0, 1]."""
        return self._share(slice(round(OPEN * BINS), BINS))

    def _share(self, bins: slice) -> NDArray[np.float64]:
        share: NDArray[np.float64] = self.histogram[..., bins].sum(-1) / max(self.steps, 1)
        return share

    @property
    def timescale(self) -> NDArray[np.float64]:
        """Steps after which a unit keeps 1/e of its state, -1 / mean log retention, ``(H,)``; at most a million."""
        return 1.0 / np.maximum(-self.log_retention, 1.0 / LONGEST)

    @property
    def write_balance(self) -> NDArray[np.float64]:
        """LSTM: mean input / (1 - mean forget) per unit, ``(H,)``; 1 where writing replaces what is forgotten."""
        if not {"input", "forget"} <= set(self.parts[:-1]):
            return np.empty(0)
        write, keep = self.mean[self.parts.index("input")], self.mean[self.parts.index("forget")]
        balance: NDArray[np.float64] = write / np.maximum(1.0 - keep, 1e-12)
        return balance

    def scalars(self) -> dict[str, float]:
        """The headline, by ``part/quantity``; empty when no finite step was heard."""
        if self.steps == 0:
            return {}
        found: dict[str, float] = {}
        closed, opened = self.closed, self.open
        for row, part in enumerate(self.parts[:-1]):
            found[f"{part}/mean"] = float(self.mean[row].mean())
            found[f"{part}/std"] = float(self.std[row].mean())
            found[f"{part}/closed"] = float(closed[row].mean())
            found[f"{part}/open"] = float(opened[row].mean())
        candidate = self.parts[-1]
        found[f"{candidate}/mean_abs"] = float(self.mean[-1].mean())
        found[f"{candidate}/near_zero"] = float(closed[-1].mean())
        if self.bounded:
            found[f"{candidate}/saturated"] = float(opened[-1].mean())
        if len(self.log_retention):
            for name, value in zip(("q10", "q50", "q90"), np.quantile(self.timescale, [0.1, 0.5, 0.9]), strict=True):
                found[f"timescale/{name}"] = float(value)
        if len(self.write_balance):
            found["write_balance/q50"] = float(np.median(self.write_balance))
        if len(self.state_profile) == 4:
            found["memory/mean_abs"] = float((self.state_profile[2] * self.times).sum() / self.times.sum())
            found["memory/drift"] = self.memory_drift
            found["memory/saturated"] = self.memory_saturated
        return found


@torch.no_grad()
def gate_statistics(
    traces: Sequence[Trace], *, phases: PhaseSums | None = None, time_bins: int = 128
) -> GateStatistics:
    """What one cell's gates did over the sequences of its traces.

    Args:
        traces: the passages through one cell, from `rnn_callbacks.rebuild.traces`.
        phases: sums by phase of the task that are to be filled on the way.
        time_bins: into how many bins positions are grouped in ``unit_profile``; one per step up to that length.

    Raises:
        ValueError: when there is no trace or no time bin.
    """
    if not traces:
        raise ValueError("gate_statistics needs at least one trace, got none: was the module called?")
    if time_bins < 1:
        raise ValueError(f"time_bins must be at least 1, got {time_bins}")
    longest = max(trace.inputs.shape[1] for trace in traces)
    sums = _Sums(traces[0].cell, longest, min(time_bins, longest))
    with torch.autocast("cpu", enabled=False):  # half precision would round the rebuilt gates
        for trace in traces:
            for chunk in chunks(trace):
                rows = _finite_rows(chunk)
                levels = sums.add(chunk, rows, trace.lengths)
                if phases is not None:
                    phases.add(levels, trace.batch, chunk.sequences[rows], chunk.times[rows])
            sums.finish(trace)
    return sums.result(traces)


def _finite_rows(chunk: Chunk) -> Tensor | slice:
    """Steps in which gates, candidate and states are finite, in float32 for the sake of the sums of float64 models."""
    parts = [part.float() for part in (chunk.inside.values.flatten(1), chunk.hidden, chunk.rebuilt, chunk.memory)]
    if all(torch.isfinite(part.sum()) for part in parts):
        return slice(None)
    return torch.stack([torch.isfinite(part).all(1) for part in parts]).all(0).nonzero().squeeze(1)


class _Sums:
    """Sums over steps, in float64, from which the statistics follow."""

    def __init__(self, cell: Cell, steps: int, time_bins: int) -> None:
        parts, units = len(cell.parts), cell.units
        self.cell = cell
        self.steps = steps
        self.offsets = torch.arange(parts * units, dtype=torch.int32).view(parts, units) * BINS
        self.histogram = torch.zeros(parts * units * BINS, dtype=torch.int64)
        self.shift: Tensor | None = None  # first chunk's means: sums of squares are taken around them
        self.first = torch.zeros(parts, units, dtype=torch.float64)
        self.second = torch.zeros(parts, units, dtype=torch.float64)
        self.blown_up = torch.zeros(parts - 1, dtype=torch.float64)
        self.log_retention = torch.zeros(units, dtype=torch.float64)
        self.times = torch.zeros(steps, dtype=torch.int64)
        self.profile = torch.zeros(steps, parts, dtype=torch.float64)
        self.bin_of = torch.arange(steps) * time_bins // steps
        wide = torch.float32 if cell.bounded else torch.float64
        self.unit_profile = torch.zeros(time_bins, parts, units, dtype=wide)
        self.states = torch.zeros(steps, 6 if cell.memory_size else 3, dtype=torch.float64)
        self.memory_saturated = 0
        self.memory_read = torch.zeros(steps, 2, dtype=torch.float64)  # after as many steps: how often, sum of mean |c|
        self.seen = 0  # steps, non-finite ones included
        self.error = 0.0

    def add(self, chunk: Chunk, rows: Tensor | slice, lengths: Tensor) -> Tensor:
        """Take in the finite steps of a chunk; gives their gates and |candidate|, ``(n, G + 1, H)``."""
        cell, values, times = self.cell, chunk.inside.values[rows], chunk.times[rows]
        if not cell.bounded:
            values = values.double()  # a relu may reach 1e30, whose square float32 does not hold
        logits, candidate = values[:, :-1], values[:, -1]
        self.seen += len(chunk.times)
        self._check(chunk.rebuilt[rows], chunk.hidden[rows])
        if logits.numel() and max(map(abs, torch.aminmax(logits))) > BLOWN_UP:  # rare, and counting is dear
            self.blown_up += (logits.abs() > BLOWN_UP).double().sum((0, 2))
        if cell.retention is not None:
            kept = logits[:, cell.gates.index(cell.retention)]
            self.log_retention += F.logsigmoid(kept if cell.retains_when_open else -kept).sum(0, dtype=torch.float64)
        # Not in place: a cell's states may be views of its candidate, as a plain RNN's are.
        values = torch.empty_like(values)
        torch.sigmoid(logits, out=values[:, :-1])
        torch.abs(candidate, out=values[:, -1])
        where = (values * BINS).clamp_(max=BINS - 1).to(torch.int32).add_(self.offsets)
        self.histogram += torch.bincount(where.flatten(), minlength=len(self.histogram))
        if self.shift is None and len(values):
            self.shift = values.mean(0)
        if self.shift is not None:
            centred = values - self.shift
            self.first += centred.sum(0)
            self.second += centred.square_().sum(0)
        self.times += torch.bincount(times, minlength=self.steps)
        self.profile.index_add_(0, times, values.mean(2).double())
        self.unit_profile.index_add_(0, self.bin_of[times], values.to(self.unit_profile.dtype))
        states = [chunk.hidden[rows].double()] + ([chunk.memory[rows].double()] if cell.memory_size else [])
        moments = [moment for state in states for moment in (state.abs(), state, state.square())]
        self.states.index_add_(0, times, torch.stack([m.mean(1) for m in moments], dim=1))
        if cell.memory_size:
            read = lengths[chunk.sequences[rows]] - 1 - times if cell.place.reverse else times
            size = moments[3].mean(1)
            self.memory_read.index_add_(0, read, torch.stack([torch.ones_like(size), size], dim=1))
            self.memory_saturated += int((states[1].abs() > np.arctanh(OPEN)).sum())
        return values

    def _check(self, rebuilt: Tensor, truth: Tensor) -> None:
        if len(truth):
            scale = max(1.0, float(truth.abs().max()))
            self.error = max(self.error, float((rebuilt - truth).abs().max()) / scale)

    def finish(self, trace: Trace) -> None:
        """Compare the last hidden states of a trace with those that the module itself returned."""
        if trace.final is not None:
            last = trace.hidden[torch.arange(len(trace.lengths)), trace.lengths - 1]
            finite = torch.isfinite(last).all(1) & torch.isfinite(trace.final).all(1)
            self._check(last[finite], trace.final[finite])

    def result(self, traces: Sequence[Trace]) -> GateStatistics:
        """The statistics of everything taken in."""
        cell, steps = self.cell, int(self.times.sum())
        count = max(steps, 1)
        shift = torch.zeros_like(self.first) if self.shift is None else self.shift.double()
        first = self.first / count
        at = self.times.clamp(min=1)[:, None]
        bins = torch.zeros(len(self.unit_profile), dtype=torch.int64).index_add_(0, self.bin_of, self.times)
        moments = (self.states / at).T.reshape(-1, 3, self.steps)
        spread = (moments[:, 2] - moments[:, 1].square()).clamp(min=0).sqrt()
        return GateStatistics(
            cell=cell.name,
            parts=cell.parts,
            steps=steps,
            sequences=sum(len(trace.lengths) for trace in traces),
            nonfinite=1.0 - steps / self.seen if self.seen else 0.0,
            rebuild_error=self.error,
            tolerance=max(trace.tolerance for trace in traces),
            lengths=torch.cat([trace.lengths for trace in traces]).numpy(),
            histogram=self.histogram.view(*self.first.shape, BINS).numpy(),
            mean=(shift + first).numpy(),
            std=(self.second / count - first.square()).clamp(min=0).sqrt().numpy(),
            blown_up=(self.blown_up / (count * cell.units)).numpy(),
            retention=cell.retention,
            retains_when_open=cell.retains_when_open,
            log_retention=(self.log_retention / count).numpy() if cell.retention else np.empty(0),
            bounded=cell.bounded,
            times=self.times.numpy(),
            profile=(self.profile / at).T.numpy(),
            unit_profile=(self.unit_profile / bins.clamp(min=1)[:, None, None]).permute(1, 2, 0).float().numpy(),
            state_profile=torch.stack([moments[:, 0], spread], dim=1).flatten(0, 1).numpy(),
            memory_saturated=self.memory_saturated / (count * max(cell.memory_size, 1)),
            memory_drift=_slope(self.memory_read),
        )


def _slope(read: Tensor) -> float:
    """Least-squares slope over positions of a quantity given as ``(T, 2)``: count and sum at each position."""
    count, total = read.unbind(1)
    at = torch.arange(len(read), dtype=torch.float64)
    centred = at - (count * at).sum() / count.sum().clamp(min=1)
    return float((centred * total).sum() / (count * centred.square()).sum().clamp(min=0.5))
