"""Which states flow to which attractor, whether attractors hold against a kick, and whether real runs get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fixed_point_result import FixedPoints
from .flow import Flow
from .newton import late

ARRIVED = 0.01  # of the visited states' spread: this close to an attractor, a state has arrived
LONGEST_RUN = 2000  # steps
KICKS = 8  # per attractor
KICK = 0.1  # of the distance to the nearest other fixed point, and at most of the spread


@final
@dataclass(frozen=True)
class Reach:
    """How far real runs are from where they would come to rest."""

    end_distance: float  # from a sequence's last state to the nearest attractor, median, in units of the spread
    end_speed: float  # distance the last state would move in one step of held input, median, in the same units


@torch.no_grad()
def measure_reach(flow: Flow, ends: Tensor, attractors: Tensor, spread: float) -> Reach:
    """Whether the points are where the network lives, or only the skeleton of what it would do with more time.

    Args:
        flow: the network under a held input.
        ends: ``(B, D)``, the last states of real sequences.
        attractors: ``(M, D)``, points and states of a continuum; may be none.
        spread: of the visited hidden states.
    """
    if not len(ends):
        return Reach(0.0, 0.0)
    hidden = flow.hidden(ends)
    speed = float((flow.hidden(flow.step(ends)) - hidden).norm(dim=1).median()) / spread
    if not len(attractors):
        return Reach(0.0, speed)
    return Reach(float(torch.cdist(hidden, flow.hidden(attractors)).amin(1).median()) / spread, speed)


@final
@dataclass(frozen=True, eq=False)
class Basins:
    """Where visited states end when the input is held."""

    attractor: NDArray[np.int64]  # (S,), row of the attractor each state flows to; -1 where none was reached in time
    shares: NDArray[np.float64]  # (A,), share of the states per attractor, in [0, 1]

    @property
    def unresolved(self) -> float:
        """Share of states that reached none in time."""
        return float((self.attractor < 0).mean()) if len(self.attractor) else 0.0

    @property
    def entropy(self) -> float:
        """How evenly the attractors are used, in bits: 3 for eight equal basins."""
        used = self.shares[self.shares > 0]
        used = used / used.sum()
        return abs(float(-(used * np.log2(used)).sum()))


@torch.no_grad()
def find_basins(
    flow: Flow, visited: Tensor, attractors: Tensor, spread: float, *, deadline: float | None = None
) -> Basins:
    """Let visited states go, and see where they end.

    Args:
        flow: the network under a held input.
        visited: ``(S, D)``.
        attractors: ``(A, D)``.
        spread: of the visited hidden states.
        deadline: `time.perf_counter` at which to stop.
    """
    found = torch.full((len(visited),), -1)
    active, states = torch.arange(len(visited)), visited
    goals = flow.hidden(attractors)
    for step in range(LONGEST_RUN if len(attractors) else 0):
        states = flow.step(states)
        if step % 10 == 9:
            distance, nearest = torch.cdist(flow.hidden(states), goals).min(1)
            there = distance <= ARRIVED * spread
            found[active[there]] = nearest[there]
            active, states = active[~there], states[~there]
            if not len(active) or late(deadline):
                break
    counts = np.bincount(found[found >= 0].numpy(), minlength=len(attractors))
    return Basins(found.numpy(), counts / max(len(visited), 1))


@torch.no_grad()
def return_rates(
    flow: Flow, points: FixedPoints, spread: float, *, seed: int = 0, deadline: float | None = None
) -> NDArray[np.float64]:
    """Share of small kicks after which the state comes back, for each attractor among the points, ``(A,)``.

    A kick goes in a random direction of the hidden state, a tenth of the way to the nearest other point. The state has
    three timescales of its slowest mode to come back, at most 2000 steps, and must then be closer than half a kick.

    Args:
        flow: the network under a held input.
        points: all fixed points.
        spread: of the visited hidden states.
        seed: of the directions.
        deadline: `time.perf_counter` at which to stop; NaN for attractors that were not tried by then.
    """
    states = torch.as_tensor(points.states)
    hidden = flow.hidden(states)
    apart = torch.cdist(hidden, hidden)
    apart.diagonal().fill_(torch.inf)
    nearest = apart.amin(1) if len(apart) else hidden.new_zeros(0)
    generator = torch.Generator().manual_seed(seed)
    rates = []
    for row in np.flatnonzero(points.kind == "attractor"):
        size = KICK * min(float(nearest[row]), spread)
        kicks = torch.randn(KICKS, hidden.shape[1], generator=generator, dtype=hidden.dtype)
        kicked = states[row] + _as_states(flow, size * kicks / kicks.norm(dim=1, keepdim=True))
        slowest = float(points.timescales[row].max())
        steps = int(min(LONGEST_RUN, 3 * slowest + 10)) if np.isfinite(slowest) else LONGEST_RUN
        for _ in range(steps):
            kicked = flow.step(kicked)
            if late(deadline):
                break
        if late(deadline):
            rates.append(np.nan)
            continue
        rates.append(float(((flow.hidden(kicked) - hidden[row]).norm(dim=1) <= size / 2).double().mean()))
    return np.array(rates)


def _as_states(flow: Flow, hidden: Tensor) -> Tensor:
    """Whole states ``(N, D)`` with these hidden parts and zeros elsewhere."""
    parts, at = [], 0
    for equation in flow.equations:
        parts.append(hidden[:, at : at + equation.output_size])
        parts.append(hidden.new_zeros(len(hidden), equation.state_size - equation.output_size))
        at += equation.output_size
    return torch.cat(parts, dim=1)
