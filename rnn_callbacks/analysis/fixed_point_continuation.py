"""Following fixed points from one set of weights to another, so that a point keeps its identity while it moves.

Matching by distance alone invents births and deaths while points move fast. Here the weights go from the old to the new
ones in steps, and a point is followed only as long as its step is small against the distance to its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from .arclength import follow_curve
from .distinct import SAME
from .fixed_point_equations import Equation
from .fixed_point_result import index_of, layers
from .newton import NEARBY, late, newton

NEAR = 0.35  # of the distance to the nearest other point: a longer move may have ended on that one
DEEPEST = 4  # halvings of the way from old to new weights, before a point is followed along its own curve


@final
@dataclass(frozen=True, eq=False)
class Followed:
    """Where M points went."""

    unknown: Tensor  # (M, K), under the new weights; where they were lost, as they were
    alive: Tensor  # (M,), bool
    index: Tensor  # (M,), under the new weights


def follow(
    old: Sequence[Equation],
    new: Sequence[Equation],
    old_inputs: Tensor,
    new_inputs: Tensor,
    unknown: Tensor,
    *,
    around_folds: bool = True,
    deadline: float | None = None,
) -> Followed:
    """Follow the fixed points of one cascade of equations to those of another.

    A point is lost where it merges with another one and both vanish. Where a branch splits in two (a pitchfork, in
    networks with a symmetry) the point goes on and its index turns. A point that jumps where its branch folds back and
    forth is the same point after the jump.

    Args:
        old: equations whose fixed points ``unknown`` are, and ``new`` those to follow them to.
        new: of the same kinds and sizes.
        old_inputs: ``(I,)``, held in the old ones; moved in step with the weights.
        new_inputs: ``(I,)``.
        unknown: ``(M, K)``.
        around_folds: follow points that were lost along their own curves, one by one.
        deadline: when to give up; points that have not arrived by then are lost.
    """
    way = _Way(old, new, old_inputs, new_inputs, deadline)
    if not len(unknown):
        return Followed(unknown, torch.ones(0, dtype=torch.bool), unknown.new_ones(0))
    start = _Stand(unknown, way.index_at(0.0, unknown))
    end, alive = way.advance(start, torch.full((len(unknown),), torch.inf, dtype=unknown.dtype), 0.0, 1.0, 0)
    arrived = torch.where(alive[:, None], end.unknown, unknown)
    if around_folds:
        _follow_lost(way, unknown, arrived, alive)
    return Followed(torch.where(alive[:, None], arrived, unknown), alive, way.index_at(1.0, arrived))


def _follow_lost(way: _Way, unknown: Tensor, arrived: Tensor, alive: Tensor) -> None:
    """Follow points along their curves; one that comes back has met its partner, which is then dead too."""
    dead = torch.zeros_like(alive)
    for row in (~alive).nonzero()[:, 0].tolist():
        if dead[row]:
            continue
        end = follow_curve(way.stage, unknown[row], deadline=way.deadline)
        if end is None:
            continue
        if end.share == 0.0:
            dead |= (unknown - end.unknown).abs().amax(1) <= SAME
        elif not ((arrived[alive] - end.unknown).abs().amax(1) <= SAME).any():
            arrived[row], alive[row] = end.unknown, True


@dataclass(eq=False)
class _Stand:
    """Points at one stage of the way."""

    unknown: Tensor  # (M, K)
    index: Tensor  # (M,)

    def rows(self, chosen: Tensor) -> _Stand:
        return _Stand(self.unknown[chosen], self.index[chosen])


@dataclass(eq=False)
class _Way:
    """From the old weights (0) to the new ones (1)."""

    old: Sequence[Equation]
    new: Sequence[Equation]
    old_inputs: Tensor
    new_inputs: Tensor
    deadline: float | None
    stages: dict[float, list[Equation]] = field(default_factory=dict)

    def advance(self, start: _Stand, reach: Tensor, begin: float, end: float, depth: int) -> tuple[_Stand, Tensor]:
        """Points at the end of a stretch, and which of them arrived; halves the stretch for those that did not.

        Args:
            start: points at its beginning.
            reach: ``(M,)``, how far each may move, from points that are not among these.
            begin: share of the way.
            end: share of the way.
            depth: how often the way was halved.
        """
        distances = torch.cdist(start.unknown, start.unknown)
        distances.diagonal().fill_(torch.inf)
        reach = torch.minimum(reach, NEAR * distances.amin(1))
        trial, solved = self._solve(end, start.unknown)
        index = self.index_at(end, trial)
        arrived = solved & ((trial - start.unknown).norm(dim=1) <= reach) & (index == start.index)
        here = _Stand(torch.where(arrived[:, None], trial, start.unknown), torch.where(arrived, index, start.index))
        left = (~arrived).nonzero()[:, 0]
        if len(left) and depth < DEEPEST and not late(self.deadline):
            middle, halfway = self.advance(start.rows(left), reach[left], begin, (begin + end) / 2, depth + 1)
            left, middle = left[halfway], middle.rows(halfway)
            if len(left):
                there, ended = self.advance(middle, reach[left], (begin + end) / 2, end, depth + 1)
                left, there = left[ended], there.rows(ended)
                here.unknown[left], here.index[left] = there.unknown, there.index
                arrived[left] = True
        return here, arrived

    def _solve(self, share: float, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Newton from where the points were, layer after layer, and which ones ended on a root."""
        below, at = self._inputs(share)[None], 0
        parts, solved = [], torch.ones(len(starts), dtype=torch.bool)
        for equation in self._equations(share):
            start = starts[:, at : at + equation.unknowns]
            roots = newton(equation, equation.drive_of(below), start, NEARBY, deadline=self.deadline)
            solved &= roots.converged
            parts.append(roots.unknown)
            below, at = roots.unknown[:, : equation.output_size], at + equation.unknowns
        return torch.cat(parts, dim=1), solved

    def index_at(self, share: float, unknown: Tensor) -> Tensor:
        found = unknown.new_ones(len(unknown))
        for equation, drive, part in layers(self._equations(share), self._inputs(share), unknown):
            found *= index_of(equation, drive, part)
        return found

    def stage(self, share: float) -> tuple[list[Equation], Tensor]:
        """Equations and held input at any share of the way."""
        pairs = zip(self.old, self.new, strict=True)
        return [a.between(b, share) for a, b in pairs], self._inputs(share)

    def _inputs(self, share: float) -> Tensor:
        return torch.lerp(self.old_inputs, self.new_inputs, share)

    def _equations(self, share: float) -> list[Equation]:
        if share not in self.stages:
            ends = {0.0: list(self.old), 1.0: list(self.new)}
            self.stages[share] = ends[share] if share in ends else self.stage(share)[0]
        return self.stages[share]
