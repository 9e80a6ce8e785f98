"""The plane of a path's first two principal components, as directions in weight space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from .weight_trajectory import WeightTrajectory

MARGIN = 0.3  # of the path's extent, on each side


class NoPlaneError(ValueError):
    """There is no plane around a path, or no loss to draw on it."""


@final
@dataclass(frozen=True, eq=False)
class LossPlane:
    """Loss on a grid around a path, in the coordinates of its first two principal components.

    The plane goes through the last snapshot, so the loss there is the network's own; earlier snapshots lie beside the
    plane and had another loss than what is beneath them.
    """

    x: NDArray[np.float64]  # (K,), along the first component
    y: NDArray[np.float64]  # (K,), along the second
    losses: NDArray[np.float64]  # (K, K), rows along y; not finite where the loss was none
    path: NDArray[np.float64]  # (n, 2), the drawn snapshots


def plane_grid(path: WeightTrajectory, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where to compute losses, ``(K,)`` along each component: the path with a margin, and the last snapshot itself.

    Args:
        path: with at least two components.
        points: K.

    Raises:
        NoPlaneError: when the path has no plane.
    """
    scores = path.components.scores
    if scores.shape[1] < 2 or not path.components.variances[1] > 0:
        raise NoPlaneError("it needs a path of three snapshots that do not lie on a line")
    axes = []
    for along in scores[:, :2].T:
        reach = float(np.ptp(along))
        axis = np.linspace(along.min() - MARGIN * reach, along.max() + MARGIN * reach, points)
        axis[np.argmin(np.abs(axis - along[-1]))] = along[-1]
        axes.append(axis)
    return axes[0], axes[1]


def plane_directions(
    path: WeightTrajectory, columns: Iterable[NDArray[np.floating]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The two unit vectors of the plane, some of their numbers ``(p,)`` at a time.

    Args:
        path: of the weights.
        columns: weights of the drawn snapshots, ``(n, p)`` each, all of the path's in turn.
    """
    scores = path.components.scores[:, :2]
    weights = scores / np.square(scores).sum(0)
    for part in columns:
        first, second = weights.T @ part.astype(np.float64)
        yield first, second
