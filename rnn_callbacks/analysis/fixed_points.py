"""Fixed points of a recurrent cell under a held input: where its state can rest, and what happens around there."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cells import Cell
from .distinct import ROUNDED, alone, groups
from .fixed_point_cells import equation_of
from .fixed_point_equations import Equation
from .fixed_point_result import FixedPoints as FixedPoints
from .fixed_point_result import describe, numpy_of, rows_of
from .newton import COARSE, FINE, NEARBY, Roots, levenberg_marquardt, newton

ALONG = 1e-3  # relative move from a root to a root that is no improvement of it


@torch.no_grad()
def find_fixed_points(
    cell: Cell, starts: Tensor, inputs: Tensor | None = None, *, max_seconds: float | None = None
) -> FixedPoints:
    """Where the state comes to rest while the input is held, by Newton's method from each start.

    Solves a reduced equation (see `fixed_point_equations`), in float32 first and then to 1e-11 in float64; by
    Levenberg-Marquardt where Newton's step does not exist, as on a line of fixed points. After Sussillo and Barak
    2013, who minimised the speed instead; Katz and Reggia 2018 for Newton's method and its certificates.

    Args:
        cell: one cell, from ``cells(module)``.
        starts: ``(N, D)`` states, or ``(N, P)`` hidden states; states that the network visits are good starts, and
            midpoints between them find saddles.
        inputs: ``(I,)``, held; zeros by default.
        max_seconds: when to give up; what has not converged by then is returned as such.

    Returns:
        One row for each start.

    Raises:
        ValueError: when the shapes are not those, there is no start, or weights, inputs or starts are not finite.
    """
    equation = equation_of(cell)
    held = check_inputs(cell, inputs)
    unknown = check_starts(cell, starts, equation)
    drive = equation.drive_of(held[None])
    require_finite(equation, drive, unknown)
    roots = solve(equation, drive, unknown, deadline=deadline_in(max_seconds))
    return describe([equation], held, roots.unknown, roots.converged)


@final
@dataclass(frozen=True, eq=False)
class Modes:
    """How the state moves around M points: a displacement d becomes ``sum_k right_k eigenvalue_k^t (left_k . d)``."""

    eigenvalues: NDArray[np.complex128]  # (M, D), largest modulus first
    right: NDArray[np.complex128]  # (M, D, D), columns of unit length: the direction of each mode
    left: NDArray[np.complex128]  # (M, D, D), rows: what of a displacement enters each mode; inverse of ``right``
    input_jacobian: NDArray[np.float64]  # (M, D, I), dF/dx: where a small change of the input pushes the state


@torch.no_grad()
def find_modes(cell: Cell, points: FixedPoints) -> Modes:
    """Eigenvectors of one cell's points, and how its input acts there (Maheswaranathan et al. 2019, equation 2).

    Args:
        cell: the cell whose fixed points these are.
        points: from `find_fixed_points` or `find_all_fixed_points`; all converged.

    Raises:
        ValueError: when a point has not converged, or the sizes are not the cell's.
    """
    equation = equation_of(cell)
    if points.states.shape[1] != cell.state_size or not points.converged.all():
        raise ValueError(
            f"points must be converged states (M, {cell.state_size}), got shape {points.states.shape} with "
            f"{int((~points.converged).sum())} not converged; take .unique() first"
        )
    drive, states = equation.drive_of(torch.as_tensor(points.inputs)[None]), torch.as_tensor(points.states)
    values, right = torch.linalg.eig(equation.jacobian(drive, states))
    order = values.abs().argsort(dim=1, descending=True)
    right = right.gather(2, order[:, None].expand_as(right))
    return Modes(
        numpy_of(values.gather(1, order)),
        numpy_of(right),
        numpy_of(torch.linalg.pinv(right)),
        numpy_of(equation.input_jacobian(drive, states)),
    )


def solve(equation: Equation, drive: Tensor, starts: Tensor, *, deadline: float | None = None) -> Roots:
    """Coarse, then fine, for every start; starts that agree after the coarse search are refined once."""
    coarse = _coarse(equation, drive, starts, deadline)
    unknown, residual = coarse.unknown.clone(), coarse.residual.clone()
    converged = torch.zeros_like(coarse.converged)
    hits = coarse.converged.nonzero()[:, 0]
    if len(hits):
        first, member = groups(coarse.unknown[hits], ROUNDED) if len(drive) == 1 else alone(hits)
        fine = newton(equation, rows_of(drive, hits[first]), coarse.unknown[hits[first]], FINE, deadline=deadline)
        unknown[hits], residual[hits] = fine.unknown[member], fine.residual[member]
        converged[hits] = fine.converged[member]
    lost = (~converged).nonzero()[:, 0]
    if len(lost):
        slow = damped(equation, rows_of(drive, lost), starts[lost], deadline=deadline)
        unknown[lost], residual[lost], converged[lost] = slow.unknown, slow.residual, slow.converged
    converged &= equation.resolved(drive, unknown)
    return Roots(unknown, residual, converged, ~converged, coarse.iterations)


def damped(equation: Equation, drive: Tensor, starts: Tensor, *, deadline: float | None = None) -> Roots:
    """Levenberg-Marquardt, and Newton's last step to full precision where there is one."""
    slow = levenberg_marquardt(equation, drive, starts, FINE, deadline=deadline)
    rows = slow.converged.nonzero()[:, 0]
    if len(rows):
        sharp = newton(equation, rows_of(drive, rows), slow.unknown[rows], NEARBY, deadline=deadline)
        moved = (sharp.unknown - slow.unknown[rows]).norm(dim=1) / slow.unknown[rows].norm(dim=1).clamp(min=1.0)
        near = sharp.converged & (moved < ALONG)  # on a line of roots Newton's step leads along it
        slow.unknown[rows[near]] = sharp.unknown[near]
        slow.residual[rows[near]] = sharp.residual[near]
    return slow


def _coarse(equation: Equation, drive: Tensor, starts: Tensor, deadline: float | None) -> Roots:
    quick = equation.to(torch.float32)
    roots = newton(quick, drive.to(quick.dtype), starts.to(quick.dtype), COARSE, deadline=deadline)
    return replace(roots, unknown=roots.unknown.to(starts.dtype), residual=roots.residual.to(starts.dtype))


def check_inputs(cell: Cell, inputs: Tensor | None) -> Tensor:
    """The held input ``(I,)`` in float64, zeros by default."""
    if inputs is None:
        return torch.zeros(cell.input_size, dtype=torch.float64)
    inputs = torch.as_tensor(inputs)
    if inputs.shape != (cell.input_size,):
        raise ValueError(f"inputs must be ({cell.input_size},), one held vector, got shape {tuple(inputs.shape)}")
    return inputs.detach().to("cpu", torch.float64)


def check_starts(cell: Cell, starts: Tensor, equation: Equation) -> Tensor:
    """The unknowns ``(N, K)`` in the precision of the equation."""
    sizes = (cell.state_size, cell.output_size)
    if starts.dim() != 2 or starts.shape[1] not in sizes or (starts.shape[1] < equation.unknowns):
        wanted = " or ".join(f"(N, {size})" for size in dict.fromkeys(sizes) if size >= equation.unknowns)
        raise ValueError(f"starts must be {wanted}, got shape {tuple(starts.shape)}")
    if not len(starts):
        raise ValueError("starts holds no state to start from; expected at least one row")
    return starts.detach()[:, : equation.unknowns].to("cpu", equation.dtype)


def require_finite(equation: Equation, drive: Tensor, starts: Tensor) -> None:
    """Refuse weights, inputs and starts from which nothing could be found."""
    for what, values in {"weights": [*equation.tensors.values(), drive], "starts": [starts]}.items():
        if not all(bool(value.isfinite().all()) for value in values):
            raise ValueError(f"{what} must be finite, got NaN or infinity")


def deadline_in(seconds: float | None) -> float | None:
    """The moment that many seconds from now."""
    return None if seconds is None else time.perf_counter() + seconds
