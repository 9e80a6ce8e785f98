"""Roots of a cell's fixed-point equation, from many starts at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, final

import torch
from torch import Tensor

CHUNK = 3 * 2**20  # bytes of Jacobians at a time, so that they stay in the cache
LONGEST_STEP = 0.5  # of sqrt(K); a Newton step from far away may point anywhere
SHORTER_STEP = 0.2  # on a hard LSTM with 64 units 73 of 256 starts converge, with 0.5 only 22; elsewhere fewer do


class Solvable(Protocol):
    """K equations for K unknowns, N rows at a time; `drive` belongs to them and is passed through."""

    unknowns: int
    exact: bool  # whether float64 can be had
    limit: Tensor | None  # (K,), no root is larger; None where there is no bound

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        """``(N, K)``."""

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """Residual ``(N, K)`` and its Jacobian ``(N, K, K)``."""


@final
@dataclass(frozen=True)
class Precision:
    """When a root counts as found, in one floating-point type."""

    residual: float  # largest component of g, relative to the largest unknown where that is above 1
    step: float  # largest component of the last step: a small residual with a long step is no root
    iterations: int


STALLED = 0.9  # at a root, steps that do not shrink run along a line of roots
FINE = Precision(residual=1e-11, step=1e-7, iterations=60)
NEARBY = Precision(residual=1e-11, step=1e-7, iterations=10)  # from a root of almost the same equation
COARSE = Precision(residual=2e-5, step=1e-3, iterations=40)  # float32 rounds residuals to about 1e-6


@final
@dataclass(frozen=True, eq=False)
class Roots:
    """Where N starts ended."""

    unknown: Tensor  # (N, K)
    residual: Tensor  # (N,), largest component of g
    converged: Tensor  # (N,), bool
    singular: Tensor  # (N,), bool: given up because the step did not exist, or at a root whose step stays long
    iterations: int  # the most that any start took


def newton(
    equation: Solvable,
    drive: Tensor,
    starts: Tensor,
    precision: Precision = FINE,
    *,
    longest: float = LONGEST_STEP,
    deadline: float | None = None,
) -> Roots:
    """Newton's method with clipped steps; starts that have converged or left for infinity drop out of the batch.

    Args:
        equation: in the precision to compute in.
        drive: ``(1, .)`` or ``(N, .)``, from `Equation.drive_of`.
        starts: ``(N, K)``.
        precision: when to stop.
        longest: step, in units of sqrt(K).
        deadline: `time.perf_counter` at which to give up; what has not converged by then has not converged.
    """
    return _in_chunks(partial(_newton, longest=longest), equation, drive, starts, precision, deadline)


def levenberg_marquardt(
    equation: Solvable, drive: Tensor, starts: Tensor, precision: Precision = FINE, *, deadline: float | None = None
) -> Roots:
    """The same where the Jacobian is singular, as on a line of fixed points: least squares with a damped step.

    Levenberg 1944, Marquardt 1963. Slower than `newton`, and never lost: the residual of every row only falls.
    """
    return _in_chunks(_marquardt, equation, drive, starts, precision, deadline)


_Method = Callable[[Solvable, Tensor, Tensor, Precision, float | None], Roots]


def _in_chunks(
    method: _Method, equation: Solvable, drive: Tensor, starts: Tensor, precision: Precision, deadline: float | None
) -> Roots:
    if not equation.exact:
        precision = replace(
            precision,
            residual=max(precision.residual, COARSE.residual),
            step=max(precision.step, COARSE.step),
        )
    rows = max(1, CHUNK // (starts.element_size() * max(1, equation.unknowns) ** 2))
    if len(starts) <= rows:
        return method(equation, drive, starts, precision, deadline)
    parts = [
        method(
            equation, drive if len(drive) == 1 else drive[at : at + rows], starts[at : at + rows], precision, deadline
        )
        for at in range(0, len(starts), rows)
    ]
    return Roots(
        torch.cat([part.unknown for part in parts]),
        torch.cat([part.residual for part in parts]),
        torch.cat([part.converged for part in parts]),
        torch.cat([part.singular for part in parts]),
        max(part.iterations for part in parts),
    )


def _newton(
    equation: Solvable, drive: Tensor, starts: Tensor, precision: Precision, deadline: float | None, *, longest: float
) -> Roots:
    unknown = starts.clone()
    residual = starts.new_full((len(starts),), torch.inf)
    converged = torch.zeros(len(starts), dtype=torch.bool)
    singular = torch.zeros(len(starts), dtype=torch.bool)
    active = torch.arange(len(starts))
    longest *= equation.unknowns**0.5
    before = starts.new_full((len(starts),), torch.inf)  # length of the last step
    iteration = 0
    while len(active) and iteration < precision.iterations and not late(deadline):
        iteration += 1
        here, held = unknown[active], _of_rows(drive, active)
        away, slope = equation.linearised(held, here)
        step = -torch.linalg.solve_ex(slope, away)[0]
        length = step.norm(dim=1)
        size = _relative(away, here)
        step *= (longest / length.clamp(min=longest))[:, None]
        there = here + step
        if equation.limit is not None:
            there = torch.minimum(torch.maximum(there, -equation.limit), equation.limit)
        sound = length.isfinite()
        unknown[active[sound]] = there[sound]
        residual[active] = size
        rooted = size <= precision.residual
        done = sound & rooted & (step.abs().amax(1) <= precision.step)
        stalled = ~done & rooted & (length > STALLED * before[active])
        before[active] = torch.where(rooted, length, torch.inf)
        converged[active[done]] = True
        singular[active[(~sound & size.isfinite()) | stalled]] = True
        active = active[sound & ~done & ~stalled]
    singular |= ~converged & (residual <= precision.residual)
    return Roots(unknown, residual, converged, singular, iteration)


def _marquardt(
    equation: Solvable, drive: Tensor, starts: Tensor, precision: Precision, deadline: float | None
) -> Roots:
    unknown = starts.clone()
    damping = starts.new_full((len(starts),), 1e-3)
    residual = _relative(equation.residual(_of_rows(drive, torch.arange(len(starts))), starts), starts)
    converged = residual <= precision.residual
    active = torch.arange(len(starts))[~converged & residual.isfinite()]
    iteration = 0
    while len(active) and iteration < 2 * precision.iterations and not late(deadline):
        iteration += 1
        here, held = unknown[active], _of_rows(drive, active)
        away, slope = equation.linearised(held, here)
        normal = slope.mT @ slope
        normal.diagonal(dim1=1, dim2=2).add_(damping[active, None])
        step = -torch.linalg.solve_ex(normal, (slope.mT @ away[:, :, None])[:, :, 0])[0]
        there = here + step
        after = equation.residual(held, there)
        better = after.square().sum(1) < away.square().sum(1)
        unknown[active[better]] = there[better]
        residual[active[better]] = _relative(after[better], there[better])
        damping[active] *= torch.where(better, 0.1, 8.0).to(damping.dtype)
        converged[active] = residual[active] <= precision.residual
        stuck = damping[active] > 1e8  # a minimum of |g| that is no root
        active = active[~converged[active] & ~stuck]
    return Roots(unknown, residual, converged, ~converged, iteration)


def _relative(residual: Tensor, unknown: Tensor) -> Tensor:
    """Largest component, in units of the largest unknown where that is above 1."""
    return residual.abs().amax(1) / unknown.abs().amax(1).clamp(min=1.0)


def _of_rows(drive: Tensor, rows: Tensor) -> Tensor:
    return drive if len(drive) == 1 else drive[rows]


def late(deadline: float | None) -> bool:
    """Whether the moment has passed."""
    return deadline is not None and time.perf_counter() > deadline
