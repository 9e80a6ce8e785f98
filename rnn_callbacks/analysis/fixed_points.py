"""Fixed points of a recurrent cell under a held input: where its state can rest, and what happens around there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cells import Cell
from .fixed_point_cells import equation_of
from .fixed_point_equations import Equation
from .newton import CHUNK, COARSE, FINE, NEARBY, Roots, late, levenberg_marquardt, newton

SAME = 1e-5  # largest component of the distance between two roots that count as one
ROUNDED = 2e-4  # the same for roots found in float32
CREEPING = 1e-12  # speed q below which other finders call a state fixed; FixedPointFinder's tolerance
BLOCK = 512  # rows compared with each other at a time
ALONG = 1e-3  # relative move from a root to a root that is no improvement of it
MARGINAL = 1e-7  # a modulus this close to 1 is neither stable nor unstable
DEGENERATE = 1e-6  # an eigenvalue this close to 1: the point is not isolated, or about to be born or to die


@final
@dataclass(frozen=True, eq=False)
class FixedPoints:
    """N states, one for each start, and whether they rest. `unique` gives the distinct ones."""

    inputs: NDArray[np.float64]  # (I,), held
    states: NDArray[np.float64]  # (N, D): the hidden state, then an LSTM's memory; layer after layer in a stack
    converged: NDArray[np.bool_]  # (N,)
    phantom: NDArray[np.bool_]  # (N,), not converged though q is tiny: closed gates hold any state, without a root
    speed: NDArray[np.float64]  # (N,), q = |F(x, s) - s|^2 / 2
    index: NDArray[np.int64]  # (N,), sign det(I - J): 1 or -1; 0 where degenerate or not converged
    eigenvalues: NDArray[np.complex128]  # (N, D) of dF/ds, largest modulus first; NaN where not converged

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> FixedPoints:
        changes = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "inputs"}
        return replace(self, **changes)

    @property
    def unstable(self) -> NDArray[np.int64]:
        """Number of unstable directions, ``(N,)``: eigenvalues outside the unit circle."""
        found: NDArray[np.int64] = (np.abs(self.eigenvalues) > 1 + MARGINAL).sum(1)
        return found

    @property
    def kind(self) -> NDArray[np.str_]:
        """``attractor`` without an unstable direction, ``repeller`` with nothing else, ``saddle`` between; ``(N,)``."""
        names = np.where(
            self.unstable == 0, "attractor", np.where(self.unstable == self.states.shape[1], "repeller", "saddle")
        )
        return np.where(self.converged, names, "")

    @property
    def timescales(self) -> NDArray[np.float64]:
        """Time steps in which each mode falls to 1/e, -1 / ln|eigenvalue|, ``(N, D)``; negative where it grows."""
        with np.errstate(divide="ignore"):
            found: NDArray[np.float64] = 1.0 / (0.0 - np.log(np.abs(self.eigenvalues)))
        return found

    @property
    def periods(self) -> NDArray[np.float64]:
        """Time steps in which each mode turns once, 2 pi / |arg|, ``(N, D)``; infinite where it does not turn."""
        with np.errstate(divide="ignore"):
            found: NDArray[np.float64] = 2 * np.pi / np.abs(np.angle(self.eigenvalues))
        return found

    @property
    def degenerate(self) -> NDArray[np.bool_]:
        """Converged, but not isolated: part of a line or plane of fixed points, or where two points merge; ``(N,)``."""
        found: NDArray[np.bool_] = self.converged & (self.index == 0)
        return found

    def unique(self, tolerance: float = SAME) -> FixedPoints:
        """The distinct converged points, attractors first; two are one when no component differs by more."""
        kept = self[np.flatnonzero(self.converged)]
        order = np.argsort(kept.unstable, kind="stable")
        kept = kept[order]
        return kept[numpy_of(distinct(torch.as_tensor(kept.states), tolerance))]


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


def solve(equation: Equation, drive: Tensor, starts: Tensor, *, deadline: float | None = None) -> Roots:
    """Coarse, then fine, for every start; starts that agree after the coarse search are refined once."""
    coarse = _coarse(equation, drive, starts, deadline)
    unknown, residual = coarse.unknown.clone(), coarse.residual.clone()
    converged = torch.zeros_like(coarse.converged)
    hits = coarse.converged.nonzero()[:, 0]
    if len(hits):
        first, member = _groups(coarse.unknown[hits], ROUNDED) if len(drive) == 1 else _alone(hits)
        fine = newton(equation, _rows(drive, hits[first]), coarse.unknown[hits[first]], FINE, deadline=deadline)
        unknown[hits], residual[hits] = fine.unknown[member], fine.residual[member]
        converged[hits] = fine.converged[member]
    lost = (~converged).nonzero()[:, 0]
    if len(lost):
        slow = damped(equation, _rows(drive, lost), starts[lost], deadline=deadline)
        unknown[lost], residual[lost], converged[lost] = slow.unknown, slow.residual, slow.converged
    converged &= equation.resolved(drive, unknown)
    return Roots(unknown, residual, converged, ~converged, coarse.iterations)


def damped(equation: Equation, drive: Tensor, starts: Tensor, *, deadline: float | None = None) -> Roots:
    """Levenberg-Marquardt, and Newton's last step to full precision where there is one."""
    slow = levenberg_marquardt(equation, drive, starts, FINE, deadline=deadline)
    rows = slow.converged.nonzero()[:, 0]
    if len(rows):
        sharp = newton(equation, _rows(drive, rows), slow.unknown[rows], NEARBY, deadline=deadline)
        moved = (sharp.unknown - slow.unknown[rows]).norm(dim=1) / slow.unknown[rows].norm(dim=1).clamp(min=1.0)
        near = sharp.converged & (moved < ALONG)  # on a line of roots Newton's step leads along it
        slow.unknown[rows[near]] = sharp.unknown[near]
        slow.residual[rows[near]] = sharp.residual[near]
    return slow


def _coarse(equation: Equation, drive: Tensor, starts: Tensor, deadline: float | None) -> Roots:
    quick = equation.to(torch.float32)
    roots = newton(quick, drive.to(quick.dtype), starts.to(quick.dtype), COARSE, deadline=deadline)
    return replace(roots, unknown=roots.unknown.to(starts.dtype), residual=roots.residual.to(starts.dtype))


@final
@dataclass(frozen=True, eq=False)
class Spectra:
    """Eigenvalues of points that have not changed, so that the dearest part of a look need not be done again."""

    unknown: Tensor  # (M, K)
    eigenvalues: NDArray[np.complex128]  # (M, D)


def describe(
    equations: Sequence[Equation],
    inputs: Tensor,
    unknown: Tensor,
    converged: Tensor,
    *,
    spectra: Spectra | None = None,
    deadline: float | None = None,
) -> FixedPoints:
    """Speed, index and eigenvalues of the states that go with solved unknowns.

    Args:
        equations: of a cascade of layers, each held at the fixed point of the one below; of one cell mostly.
        inputs: ``(I,)``, of the lowest layer.
        unknown: ``(N, K)``, layer after layer.
        converged: ``(N,)``.
        spectra: of some of these points, where they are known already.
        deadline: points whose eigenvalues are not known by then count as not converged.
    """
    count = len(unknown)
    states, speed, sign = [], unknown.new_zeros(count), unknown.new_ones(count)
    eigenvalues = np.full((count, sum(equation.state_size for equation in equations)), np.nan + 0j)
    if spectra is not None and len(spectra.unknown):
        distance, match = torch.cdist(unknown, spectra.unknown, p=torch.inf).min(1)
        same = numpy_of(distance <= SAME)
        eigenvalues[same] = spectra.eigenvalues[numpy_of(match)[same]]
    wanted = converged & torch.as_tensor(np.isnan(eigenvalues).any(1))
    rows, solved, at = wanted.nonzero()[:, 0], converged.nonzero()[:, 0], 0
    for equation, drive, part in layers(equations, inputs, unknown):
        state = equation.state(drive, part)
        states.append(state)
        speed += (equation.step(drive, state) - state).square().sum(1) / 2
        sign[solved] *= index_of(equation, _rows(drive, solved), part[solved])
        first, member = _groups(part[rows], SAME) if len(drive) == 1 else _alone(rows)
        columns = slice(at, at + equation.state_size)
        found = _eigenvalues(equation, _rows(drive, rows[first]), state[rows[first]], deadline)
        eigenvalues[numpy_of(rows), columns] = found[numpy_of(member)]
        at = columns.stop
    order = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues, order, axis=1)
    accepted = numpy_of(converged) & ~np.isnan(eigenvalues).any(1)
    doubtful = torch.as_tensor(accepted & (np.abs(eigenvalues - 1).min(1, initial=np.inf) <= DEGENERATE))
    isolated = accepted & ~numpy_of(doubtful)
    if doubtful.any():  # a mode that is slow because its gate holds is no sign of other points nearby
        isolated |= numpy_of(doubtful & _regular(equations, inputs, unknown))
    return FixedPoints(
        inputs=numpy_of(inputs),
        states=numpy_of(torch.cat(states, dim=1)),
        converged=accepted,
        phantom=numpy_of(~converged & (speed <= CREEPING)),
        speed=numpy_of(speed),
        index=np.where(isolated, numpy_of(sign).astype(np.int64), 0),
        eigenvalues=np.where(accepted[:, None], eigenvalues, np.nan + 0j),
    )


def _regular(equations: Sequence[Equation], inputs: Tensor, unknown: Tensor) -> Tensor:
    """Whether the reduced Jacobian is far from singular in every layer, ``(N,)``."""
    found = torch.ones(len(unknown), dtype=torch.bool)
    for equation, drive, part in layers(equations, inputs, unknown):
        sizes = torch.linalg.svdvals(equation.linearised(drive, part)[1])
        found &= sizes[:, -1] > DEGENERATE
    return found


def _eigenvalues(equation: Equation, drive: Tensor, states: Tensor, deadline: float | None) -> NDArray[np.complex128]:
    """Of the full Jacobian at each state, ``(N, D)``, a few at a time; NaN from the deadline on."""
    found = np.full((len(states), equation.state_size), np.nan + 0j)
    few = max(1, CHUNK // (8 * equation.state_size**2))
    for at in range(0, len(states), few):
        if at and late(deadline):
            break
        rows = slice(at, at + few)
        jacobians = equation.jacobian(drive if len(drive) == 1 else drive[rows], states[rows])
        found[rows] = numpy_of(torch.linalg.eigvals(jacobians.double()))
    return found


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


def layers(equations: Sequence[Equation], inputs: Tensor, unknown: Tensor) -> list[tuple[Equation, Tensor, Tensor]]:
    """Equation, drive and unknowns of every layer of a cascade, each driven by the one below."""
    found, at = [], 0
    below = inputs[None]
    for equation in equations:
        part = unknown[:, at : at + equation.unknowns]
        found.append((equation, equation.drive_of(below), part))
        below, at = part[:, : equation.output_size], at + equation.unknowns
    return found


def index_of(equation: Equation, drive: Tensor, unknown: Tensor) -> Tensor:
    """Sign of det(I - J), ``(N,)``: of the reduced Jacobian, which has the same one."""
    if not len(unknown):
        return unknown.new_zeros(0)
    slope = equation.linearised(drive, unknown)[1]
    sign: Tensor = torch.linalg.slogdet(slope)[0] * (-1.0) ** equation.unknowns
    return sign


def distinct(unknown: Tensor, tolerance: float) -> Tensor:
    """Rows of ``(N, K)`` that no earlier row is equal to, within a tolerance for every component."""
    return _groups(unknown, tolerance)[0]


def _groups(unknown: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """First row of every group of equal rows, and for each row the number of its group."""
    if not len(unknown):
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    kept: list[Tensor] = []
    for at in range(0, len(unknown), BLOCK):
        rows = torch.arange(at, min(at + BLOCK, len(unknown)))
        if kept:
            rows = rows[torch.cdist(unknown[rows], unknown[torch.cat(kept)], p=torch.inf).amin(1) > tolerance]
        kept.append(rows[_leaders(unknown[rows], tolerance)])
    first = torch.cat(kept)
    member = [torch.cdist(part, unknown[first], p=torch.inf).argmin(1) for part in torch.split(unknown, BLOCK)]
    return first, torch.cat(member)


def _leaders(unknown: Tensor, tolerance: float) -> Tensor:
    """Rows of a block that no earlier kept row is equal to."""
    near = torch.cdist(unknown, unknown, p=torch.inf) <= tolerance
    near.diagonal().fill_(True)  # also of rows that are not finite
    kept = near.to(torch.uint8).argmax(1) == torch.arange(len(unknown))
    while len(left := (~near[:, kept].any(1)).nonzero()):  # near to rows only that are near to others
        kept[left[0]] = True
    return kept.nonzero()[:, 0]


def _alone(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Every row a group of its own, where each has an input of its own."""
    return torch.arange(len(rows)), torch.arange(len(rows))


def _rows(drive: Tensor, rows: Tensor) -> Tensor:
    return drive if len(drive) == 1 else drive[rows]


def numpy_of(values: Tensor) -> NDArray[Any]:
    """The same numbers for numpy."""
    found: NDArray[Any] = values.numpy()
    return found
