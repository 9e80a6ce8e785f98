"""The picture's numbers: fixed points, unstable directions and real runs in the plane of the visited states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fixed_point_result import MARGINAL, FixedPoints
from .flow import Flow
from .slow_points import Continuum

MOST_DIRECTIONS = 3  # arrows at a point; a chaotic network has dozens
MOST_POINTS = 100


@final
@dataclass(frozen=True, eq=False)
class Plane:
    """The two directions in which the visited hidden states differ most."""

    centre: NDArray[np.float64]  # (P,)
    axes: NDArray[np.float64]  # (2, P), unit length; zeros where the states have fewer directions
    explained: NDArray[np.float64]  # (2,), share of the variance, in [0, 1]

    def project(self, hidden: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hidden states ``(..., P)`` to coordinates ``(..., 2)``."""
        found: NDArray[np.float64] = (hidden - self.centre) @ self.axes.T
        return found


@final
@dataclass(frozen=True, eq=False)
class Landscape:
    """Everything in the coordinates of one plane."""

    plane: Plane
    points: NDArray[np.float64]  # (M, 2)
    arrows: tuple[tuple[int, NDArray[np.float64]], ...]  # row of a saddle or repeller, and an unstable direction (2,)
    trajectories: tuple[NDArray[np.float64], ...]  # (T, 2) each
    continuum: NDArray[np.float64]  # (N, 2), states on a line or plane attractor


def principal_plane(hidden: Tensor, previous: Plane | None = None) -> Plane:
    """PCA of hidden states ``(S, P)``; turned so that axes keep their place and sign from look to look."""
    centre = hidden.mean(0)
    _, sizes, axes = torch.linalg.svd(hidden - centre, full_matrices=False)
    total = float(sizes.square().sum())
    found: NDArray[np.float64] = np.zeros((2, hidden.shape[1]))
    explained = np.zeros(2)
    count = min(2, len(sizes))
    found[:count] = axes[:count].numpy()
    explained[:count] = (sizes[:count].square() / total).numpy() if total > 0 else 0.0
    if previous is not None and previous.axes.shape == found.shape:
        alike = np.abs(previous.axes @ found.T)
        if alike[0, 1] + alike[1, 0] > alike[0, 0] + alike[1, 1]:  # two that were about equal have changed places
            found, explained = found[::-1].copy(), explained[::-1].copy()
    else:
        previous = None
    for row in range(count):
        reference = found[row] if previous is None else previous.axes[row]
        # Without a look before, the largest weight is made positive.
        sign = reference[np.abs(reference).argmax()] if previous is None else reference @ found[row]
        found[row] *= -1.0 if sign < 0 else 1.0
    return Plane(centre.numpy(), found, explained)


def _unstable_directions(flow: Flow, state: Tensor) -> list[Tensor]:
    """The fastest growing ones ``(D,)`` at a state ``(1, D)``, at most three; two for a pair that turns."""
    values, vectors = torch.linalg.eig(flow.jacobian(state)[0])
    found: list[Tensor] = []
    for column in values.abs().argsort(descending=True).tolist():
        if float(values[column].abs()) <= 1 + MARGINAL or len(found) >= MOST_DIRECTIONS:
            break
        if values[column].imag >= 0:  # the other one of a pair says the same
            turning = bool(values[column].imag > 0)
            found += [vectors[:, column].real, vectors[:, column].imag] if turning else [vectors[:, column].real]
    return found[:MOST_DIRECTIONS]


@torch.no_grad()
def lay_out(
    flow: Flow,
    points: FixedPoints,
    plane: Plane,
    trajectories: Sequence[Tensor],
    continuum: Continuum | None = None,
) -> Landscape:
    """Project everything; unstable directions are the real eigenvectors (or planes of turning) that grow.

    Args:
        flow: the network under a held input.
        points: its fixed points.
        plane: where to look from.
        trajectories: hidden states ``(T, P)`` of real sequences.
        continuum: a line or plane attractor, if there is one.
    """
    states = torch.as_tensor(points.states)
    arrows: list[tuple[int, NDArray[np.float64]]] = []
    for row in np.flatnonzero(points.unstable > 0)[:MOST_POINTS]:
        found = _unstable_directions(flow, states[row : row + 1])
        arrows += [(int(row), plane.axes @ flow.hidden(part[None])[0].numpy()) for part in found]
    return Landscape(
        plane=plane,
        points=plane.project(flow.hidden(states).numpy()),
        arrows=tuple(arrows),
        trajectories=tuple(plane.project(path.numpy()) for path in trajectories),
        continuum=plane.project(flow.hidden(torch.as_tensor(continuum.states)).numpy())
        if continuum is not None
        else np.empty((0, 2)),
    )
