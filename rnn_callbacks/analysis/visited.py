"""States that a recurrent module went through, as its cells' equations give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..cells import Cell
from ..rebuild import Trace, chunks

MOST_STATES = 512
MOST_TRAJECTORIES = 16  # in a picture


@final
@dataclass(frozen=True, eq=False)
class Visited:
    """States of all cells of one module, side by side, with padding left out. D and P are sums over the cells."""

    cells: tuple[Cell, ...]  # lowest layer first
    states: Tensor  # (S, D), evenly spread over sequences and steps: per cell the hidden state, then the memory
    ends: Tensor  # (B, D), each sequence's last state
    trajectories: tuple[Tensor, ...]  # (T, P) each: hidden states of some sequences, initial state first
    sequences: tuple[tuple[int, int], ...]  # of each trajectory: number of the batch, row of the sequence in it
    mean_input: Tensor  # (I,), of the lowest layer, over all steps
    rebuild_error: float  # largest difference of rebuilt and recorded hidden states, relative to max(1, |h|)
    tolerance: float  # what rounding may explain of it

    @property
    def per_cell(self) -> list[Tensor]:
        """The states of each cell on its own, ``(S, D)``."""
        return list(torch.split_with_sizes(self.states, [cell.state_size for cell in self.cells], dim=1))

    @property
    def spread(self) -> float:
        """Root mean square distance of the hidden states from their mean: the scale of this network's states."""
        hidden = hidden_part(self.cells, self.states)
        return max(float((hidden - hidden.mean(0)).square().sum(1).mean().sqrt()), 1e-12) if len(hidden) else 1.0


def hidden_part(cells: Sequence[Cell], states: Tensor) -> Tensor:
    """The hidden states ``(N, P)`` of all cells within whole states ``(N, D)``."""
    parts = torch.split_with_sizes(states, [cell.state_size for cell in cells], dim=1)
    return torch.cat([part[:, : cell.output_size] for cell, part in zip(cells, parts, strict=True)], dim=1)


@torch.no_grad()
def visit(traces: Mapping[str, Sequence[Trace]], *, most_states: int = MOST_STATES) -> Visited:
    """Collect the states of a module's cells.

    Args:
        traces: by cell, lowest layer first, from `rnn_callbacks.rebuild.traces_by_cell`.
        most_states: how many states to keep.

    Raises:
        ValueError: when no step was heard.
    """
    columns = [[_walk(trace) for trace in of_cell] for of_cell in traces.values()]
    first = next(iter(traces.values()))
    cells = tuple(of_cell[0].cell for of_cell in traces.values())
    states: list[Tensor] = []
    ends: list[Tensor] = []
    paths: list[Tensor] = []
    which: list[tuple[int, int]] = []
    for call, trace in enumerate(first):
        joint = torch.cat([column[call].states for column in columns], dim=2)  # (B, T + 1, D)
        steps = torch.arange(joint.shape[1])
        valid = (steps > 0) & (steps <= trace.lengths[:, None])
        states.append(joint[valid])
        heard = trace.lengths > 0
        ends.append(joint[torch.arange(len(joint)), trace.lengths][heard])
        whole = heard & (joint.isfinite().all(2) | (steps > trace.lengths[:, None])).all(1)
        for row in whole.nonzero()[:, 0].tolist()[: MOST_TRAJECTORIES - len(paths)]:
            paths.append(hidden_part(cells, joint[row, : int(trace.lengths[row]) + 1]).double())
            which.append((trace.batch, row))
    everything = torch.cat(states).double()
    everything = everything[everything.isfinite().all(1)]
    if not len(everything):
        raise ValueError("no finite state was heard")
    chosen = torch.linspace(0, len(everything) - 1, min(most_states, len(everything))).round().long()
    masks = [torch.arange(trace.inputs.shape[1]) < trace.lengths[:, None] for trace in first]
    inputs = torch.cat([trace.inputs[mask] for trace, mask in zip(first, masks, strict=True)]).double()
    last = torch.cat(ends).double()
    return Visited(
        cells=cells,
        states=everything[chosen],
        ends=last[last.isfinite().all(1)],
        trajectories=tuple(paths),
        sequences=tuple(which),
        mean_input=inputs[inputs.isfinite().all(1)].mean(0),
        rebuild_error=max(walk.error for column in columns for walk in column),
        tolerance=max(trace.tolerance for trace in first),
    )


@dataclass(frozen=True, eq=False)
class _Walk:
    states: Tensor  # (B, T + 1, D), the initial one first; anything after a sequence's end is zero
    error: float


def _walk(trace: Trace) -> _Walk:
    cell = trace.cell
    sequences, steps = trace.hidden.shape[:2]
    states = trace.hidden.new_zeros(sequences, steps + 1, cell.state_size)
    start = trace.initial if trace.previous is None else trace.previous[:, 0]
    states[:, 0] = start
    error = 0.0
    for chunk in chunks(trace):
        states[chunk.sequences, chunk.times + 1] = torch.cat([chunk.hidden, chunk.memory], dim=1)
        apart = (chunk.rebuilt - chunk.hidden).abs() / chunk.hidden.abs().clamp(min=1.0)
        apart = apart[apart.isfinite()]
        error = max(error, float(apart.max()) if len(apart) else 0.0)
    return _Walk(states, error)
