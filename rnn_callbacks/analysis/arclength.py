"""Following one fixed point along its curve, around folds, where stepping from weights to weights loses it.

Between old and new weights a fixed point moves on a curve in (state, share of the way). The curve may turn back: seen
from the weights, two points merge and vanish. Followed along its length it either reaches the new weights, and the
point lives, or comes back to the old ones at its partner, and both are dead. Keller 1977, pseudo-arclength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .fixed_point_equations import Equation
from .fixed_point_result import layers
from .newton import late

Stage = Callable[[float], tuple[Sequence[Equation], Tensor]]  # equations and held input at a share of the way

FIRST, LONGEST, SHORTEST = 0.02, 0.3, 1e-5  # steps along the curve
MOST_STEPS = 100
STRAIGHT = 0.85  # cosine between tangents of successive steps; a sharper turn may be another curve
DIFFERENCE = 1e-6
SOLVED = 1e-9  # distance of the last correction


class End(NamedTuple):
    """Where a curve left the stretch between old weights (0) and new ones (1)."""

    share: float
    unknown: Tensor  # (K,)


def follow_curve(stage: Stage, unknown: Tensor, *, begin: float = 0.0, deadline: float | None = None) -> End | None:
    """Follow the curve from a fixed point until it reaches old or new weights; None when it could not be followed.

    Args:
        stage: what the equations and the held input are at a share of the way.
        unknown: ``(K,)``, the fixed point.
        begin: where it is, 0 or 1; the curve sets off towards the other end.
        deadline: when to give up.
    """
    here = torch.cat([unknown, unknown.new_tensor([begin])])
    inward = torch.zeros_like(here)
    inward[-1] = 1.0 - 2.0 * begin
    tangent = _tangent(_slope(stage, here), inward)
    if tangent is None:
        return None
    length = FIRST
    for _ in range(MOST_STEPS):
        if late(deadline):
            return None
        found = _correct(stage, here + length * tangent, tangent)
        ahead = None if found is None else _tangent(_slope(stage, found[0]), tangent)
        if found is None or ahead is None or float(ahead @ tangent) < STRAIGHT:
            length /= 2
            if length < SHORTEST:
                return None
            continue
        there, corrections = found
        share = float(there[-1])
        if not 0.0 < share < 1.0:
            return _land(stage, here, there, float(share >= 1.0))
        here, tangent = there, ahead
        length = min(LONGEST, length * (1.6 if corrections <= 3 else 1.0))
    return None


def _land(stage: Stage, before: Tensor, after: Tensor, share: float) -> End | None:
    """The fixed point at the very end, from the two last steps around it."""
    part = (share - before[-1]) / (after[-1] - before[-1])
    guess = torch.lerp(before, after, part)
    guess[-1] = share
    upright = torch.zeros_like(guess)
    upright[-1] = 1.0
    found = _correct(stage, guess, upright)
    return None if found is None else End(share, found[0][:-1])


def _correct(stage: Stage, guess: Tensor, tangent: Tensor) -> tuple[Tensor, int] | None:
    """Newton's method back to the curve, within the plane through the guess; the point and how many steps it took."""
    here = guess.clone()
    for correction in range(1, 8):
        system = torch.cat([_slope(stage, here), tangent[None]])
        away = torch.cat([_residual(stage, here), ((here - guess) @ tangent)[None]])
        step, info = torch.linalg.solve_ex(system, away)
        if int(info) or not bool(step.isfinite().all()):
            return None
        here = here - step
        if float((here - guess).norm()) > LONGEST:
            return None
        if float(step.abs().max()) < SOLVED:
            return here, correction
    return None


def _tangent(slope: Tensor, previous: Tensor) -> Tensor | None:
    """Unit vector along the curve, in the sense of the previous one."""
    target = torch.zeros_like(previous)
    target[-1] = 1.0
    found, info = torch.linalg.solve_ex(torch.cat([slope, previous[None]]), target)
    if int(info) or not bool(found.isfinite().all()):
        return None
    unit: Tensor = found / found.norm()
    return unit


def _residual(stage: Stage, here: Tensor) -> Tensor:
    equations, inputs = stage(float(here[-1]))
    return torch.cat([e.residual(drive, part)[0] for e, drive, part in layers(equations, inputs, here[None, :-1])])


def _slope(stage: Stage, here: Tensor) -> Tensor:
    """Derivative of all residuals by all unknowns and by the share of the way, ``(K, K + 1)``."""
    share = float(here[-1])
    equations, inputs = stage(share)
    size = len(here) - 1
    found = here.new_zeros(size, size + 1)
    at, width = 0, 0
    for level, (equation, drive, part) in enumerate(layers(equations, inputs, here[None, :-1])):
        rows = slice(at, at + equation.unknowns)
        found[rows, rows] = equation.linearised(drive, part)[1][0]
        if level:  # by what the layer below shows
            below = here[at - width : at - width + equations[level - 1].output_size]
            around = below + DIFFERENCE * torch.eye(len(below), dtype=here.dtype)
            moved = equation.residual(equation.drive_of(around), part.expand(len(below), -1))
            found[rows, at - width : at - width + len(below)] = (
                (moved - equation.residual(drive, part)) / DIFFERENCE
            ).T
        at, width = at + equation.unknowns, equation.unknowns
    ahead, behind = here.clone(), here.clone()
    ahead[-1], behind[-1] = share + DIFFERENCE, share - DIFFERENCE
    found[:, -1] = (_residual(stage, ahead) - _residual(stage, behind)) / (2 * DIFFERENCE)
    return found
