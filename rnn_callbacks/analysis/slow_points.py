"""Where a network's state moves slowly without resting: lines and planes of attraction, ghosts, and cycles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .distinct import SAME, distinct
from .fixed_point_result import FixedPoints
from .flow import Flow
from .newton import FINE, late, levenberg_marquardt

NEAR_ONE = 0.02  # |eigenvalue - 1|: a mode of 50 steps or more
SETTLE = 100  # steps after which faster modes have faded to 1/e^2 or less
STAY = 400  # further steps over which states on a continuum must stay apart; slow points draw together meanwhile
SLOW = 0.01  # of the visited states' spread per step
SPREAD = 0.1  # of the visited states' spread: a continuum is at least this wide
RELEASED = 128  # visited states that are let go
SAMPLED = 12  # settled states whose eigenvalues are looked at
GHOST_DISTANCE = 0.1  # of the spread: ghosts closer than that are one
CYCLE_STEPS = 400
CIRCLING = 32  # visited states that are let go for it
RETURN = 0.05  # of a cycle's width: how near a state must come back


@final
@dataclass(frozen=True, eq=False)
class Continuum:
    """A line, ring or plane along which the state hardly moves, and to which it returns from beside."""

    dimension: int  # modes along it: eigenvalues within 0.02 of 1, the median over it
    participation: float  # participation ratio of the states on it: 1 on a straight line, above where it bends
    centre: NDArray[np.float64]  # (D,)
    directions: NDArray[np.float64]  # (dimension, D), principal axes of the states on it, unit length
    extent: float  # root mean square distance of the states on it from the centre, in units of the visited spread
    speed: float  # median distance per step along it, in units of the visited spread
    states: NDArray[np.float64]  # (N, D), on it


@torch.no_grad()
def find_continuum(flow: Flow, visited: Tensor, spread: float, *, deadline: float | None = None) -> Continuum | None:
    """A line or plane of attraction, if visited states that are let go settle on one.

    Sussillo and Barak 2013, section 3.2; Maheswaranathan et al. 2019. A slow point attractor is none: the settled
    states must lie apart from each other, and stay so.

    Args:
        flow: the network under a held input.
        visited: ``(S, D)``.
        spread: of the visited hidden states.
        deadline: `time.perf_counter` from which nothing is found any more.
    """
    settled = flow.run(visited[:: max(1, len(visited) // RELEASED)], SETTLE)
    settled = settled[settled.isfinite().all(1)]
    hidden = flow.hidden(settled)
    moves = (flow.hidden(flow.step(settled)) - hidden).norm(dim=1)
    slow = moves <= SLOW * spread
    if slow.float().mean() < 0.5 or int(slow.sum()) < 8:
        return None
    settled, hidden, moves = settled[slow], hidden[slow], moves[slow]
    extent = float((hidden - hidden.mean(0)).square().sum(1).mean().sqrt()) / spread
    if extent < SPREAD or len(distinct(hidden, 0.02 * extent * spread)) < 8 or late(deadline):
        return None
    later = flow.hidden(flow.run(settled, STAY))
    width = float((later - later.mean(0)).square().sum(1).mean().sqrt()) / spread
    if not width >= extent / 2 or len(distinct(later, 0.02 * extent * spread)) < 8 or late(deadline):
        return None
    few = torch.linspace(0, len(settled) - 1, min(SAMPLED, len(settled))).long()
    eigenvalues = torch.linalg.eigvals(flow.jacobian(settled[few]))
    dimension = int(((eigenvalues - 1).abs() < NEAR_ONE).sum(1).median())
    if dimension == 0:
        return None
    centre = settled.mean(0)
    _, sizes, axes = torch.linalg.svd(settled - centre, full_matrices=False)
    variances = _variances(hidden)
    return Continuum(
        dimension=dimension,
        participation=float(variances.sum() ** 2 / variances.square().sum()),
        centre=centre.numpy(),
        directions=axes[: min(dimension, len(sizes))].numpy(),
        extent=extent,
        speed=float(moves.median()) / spread,
        states=settled.numpy(),
    )


def _variances(states: Tensor) -> Tensor:
    """Variance along each principal axis."""
    return torch.square(torch.linalg.svdvals(states - states.mean(0))) / len(states)


@final
@dataclass(frozen=True, eq=False)
class Ghosts:
    """Isolated minima of the speed that are no fixed points: what is left of, or announces, a pair of them."""

    states: NDArray[np.float64]  # (N, D), slowest first
    speed: NDArray[np.float64]  # (N,), q = |F(x, s) - s|^2 / 2
    eigenvalues: NDArray[np.complex128]  # (N, D), largest modulus first


@torch.no_grad()
def find_ghosts(
    flow: Flow, visited: Tensor, points: FixedPoints, spread: float, *, deadline: float | None = None
) -> Ghosts:
    """Slow points: minima of the speed above zero, from visited states (Sussillo and Barak 2013; Dinc et al. 2025).

    Args:
        flow: the network under a held input.
        visited: ``(S, D)``, starts.
        points: the fixed points, near which there is nothing to find.
        spread: of the visited hidden states.
        deadline: `time.perf_counter` at which to stop.
    """
    whole = _Speed(flow)
    nothing = visited.new_zeros(1, 0)
    ends = levenberg_marquardt(whole, nothing, visited, FINE, deadline=deadline).unknown
    length = whole.residual(nothing, ends).norm(dim=1)
    slow = (length <= SLOW * spread) & (length > 1e-9)
    ends, length = ends[slow], length[slow]
    flat = [_is_minimum(whole, end[None]) for end in ends if not late(deadline)]
    if late(deadline):  # a search that was cut short ends anywhere on the way
        flat = []
        ends, length = ends[:0], length[:0]
    ends, length = ends[flat], length[flat]
    order = length.argsort()
    ends, length = ends[order], length[order]
    hidden = flow.hidden(ends)
    if len(points) and len(ends):
        known = flow.hidden(torch.as_tensor(points.states))
        apart = torch.cdist(hidden, known).amin(1) > GHOST_DISTANCE * spread
        ends, length, hidden = ends[apart], length[apart], hidden[apart]
    kept = distinct(hidden, max(GHOST_DISTANCE * spread / hidden.shape[1] ** 0.5, SAME))
    ends, length = ends[kept], length[kept]
    spectra = [torch.linalg.eigvals(flow.jacobian(end[None])) for end in ends]
    eigenvalues = (torch.cat(spectra) if spectra else ends.to(torch.complex128)).numpy()
    largest = np.argsort(-np.abs(eigenvalues), axis=1)
    return Ghosts(ends.numpy(), (length.square() / 2).numpy(), np.take_along_axis(eigenvalues, largest, axis=1))


def _is_minimum(whole: _Speed, state: Tensor) -> bool:
    """Whether the speed has no slope at a state ``(1, D)``."""
    away, slope = whole.linearised(state.new_zeros(1, 0), state)
    return float((slope.mT @ away[:, :, None]).norm()) <= 1e-2 * float(away.norm())


class _Speed:
    """``F(x, s) - s`` of the whole state, for the solver."""

    limit: Tensor | None = None
    exact = True

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.unknowns = flow.state_size

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return self.flow.step(unknown) - unknown

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = self.flow.jacobian(unknown)
        jacobian.diagonal(dim1=1, dim2=2).sub_(1.0)
        return self.residual(drive, unknown), jacobian


@final
@dataclass(frozen=True)
class Motion:
    """What visited states do in the long run, where there is no point to rest at."""

    moving: float  # share that still moves after 400 steps, in [0, 1]
    diverging: float  # share that has left for infinity
    period: float  # time steps after which a moving state returns, the median; 0 where it does not within 200
    speed: float  # distance per step of the moving states, the median of their slowest moments


@torch.no_grad()
def find_cycle(flow: Flow, visited: Tensor, spread: float, *, deadline: float | None = None) -> Motion:
    """Whether states that are let go end on a cycle (or in chaos, or at infinity).

    Args:
        flow: the network under a held input.
        visited: ``(S, D)``.
        spread: of the visited hidden states.
        deadline: `time.perf_counter` at which to stop.
    """
    states, path = visited[:: max(1, len(visited) // CIRCLING)], []
    for step in range(CYCLE_STEPS):
        states = flow.step(states)
        if step >= CYCLE_STEPS // 2:
            path.append(flow.hidden(states))
        if late(deadline):
            break
    finite = states.isfinite().all(1) & (flow.hidden(states).norm(dim=1) < 1e3 * max(spread, 1.0))
    if len(path) > 2 and any(equation.limit is None for equation in flow.equations):
        sizes = torch.stack(path).norm(dim=2)
        finite &= ~(sizes[1:] > sizes[:-1]).all(0)  # slow growth, but without end
    if len(path) < 3:
        return Motion(0.0, float((~finite).double().mean()), 0.0, 0.0)
    line = torch.stack(path)[:, finite]  # (T, N, P)
    width = (line - line.mean(0)).square().sum(2).mean(0).sqrt()
    moves = (line[1:] - line[:-1]).norm(dim=2).amin(0)
    moving = moves > 1e-6 * max(spread, 1e-6)
    periods = []
    for row in moving.nonzero()[:, 0].tolist():
        gaps = (line[1:, row] - line[0, row]).norm(dim=1)
        periods.append(_first_return(gaps, RETURN * float(width[row]) + float(moves[row]) / 2))
    whole = len(finite)
    return Motion(
        moving=float(moving.sum()) / whole,
        diverging=float((~finite).sum()) / whole,
        period=float(np.median(periods)) if periods else 0.0,
        speed=float(moves[moving].median()) if periods else 0.0,
    )


def _first_return(gaps: Tensor, near: float) -> float:
    """Steps until a state is back for the first time after it has been away; 0 where it does not come back."""
    away = (gaps > near).nonzero()
    if not len(away):
        return 0.0
    back = (gaps[int(away[0]) :] <= near).nonzero()
    if not len(back):
        return 0.0
    begin = int(away[0]) + int(back[0])
    closest = begin + int(gaps[begin : begin + 3].argmin())  # the first approach may be a step early
    return float(closest + 1)
