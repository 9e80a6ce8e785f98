"""What is known of a fixed point: its speed, its index, its eigenvalues, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .distinct import SAME, alone, distinct, groups
from .fixed_point_equations import Equation
from .newton import CHUNK, late

CREEPING = 1e-12  # speed q below which other finders call a state fixed; FixedPointFinder's tolerance
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
        sign[solved] *= index_of(equation, rows_of(drive, solved), part[solved])
        first, member = groups(part[rows], SAME) if len(drive) == 1 else alone(rows)
        columns = slice(at, at + equation.state_size)
        found = _eigenvalues(equation, rows_of(drive, rows[first]), state[rows[first]], deadline)
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


def rows_of(drive: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a drive; the only one, where all share it."""
    return drive if len(drive) == 1 else drive[rows]


def numpy_of(values: Tensor) -> NDArray[Any]:
    """The same numbers for numpy."""
    found: NDArray[Any] = values.numpy()
    return found
