"""The path of the weights: how far, how straight, in how many directions, and whether by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from .step_gram import PathSteps

COMPONENTS = 10  # principal components that are kept


@final
@dataclass(frozen=True, eq=False)
class PathComponents:
    """Principal components of the n points of a path, as scikit-learn's PCA of the weights has them."""

    scores: NDArray[np.float64]  # (n, k), coordinates, in the units of the weights
    variances: NDArray[np.float64]  # (k,), over the points (divided by n - 1), largest first
    total: float  # variance along all components together
    dimension: float  # participation ratio, (sum of variances)^2 / sum of their squares; 0 for a path that stands still

    @property
    def explained(self) -> NDArray[np.float64]:
        """Share of the variance along each component, ``(k,)``, in [0, 1]; 0 for a path that stands still."""
        found: NDArray[np.float64] = self.variances / self.total if self.total > 0 else np.zeros_like(self.variances)
        return found

    @property
    def first_two(self) -> float:
        """Share of the variance in a picture of two components, in [0, 1]."""
        return float(self.explained[:2].sum())


@final
@dataclass(frozen=True, eq=False)
class WeightTrajectory:
    """Geometry of the path of some weights, E snapshots long, n of them drawn."""

    steps: PathSteps
    distances: NDArray[np.float64]  # (n, n), between drawn snapshots, in the units of the weights
    components: PathComponents
    random: PathComponents  # of a random walk in many dimensions with the same step lengths

    @property
    def from_start(self) -> NDArray[np.float64]:
        """Distance of each drawn snapshot from the first, ``(n,)``."""
        first: NDArray[np.float64] = self.distances[0]
        return first

    @property
    def path_length(self) -> float:
        """All steps together."""
        return float(self.steps.lengths.sum())

    @property
    def straightness(self) -> float:
        """Displacement / path length, in [0, 1]; 0 for a path that stands still."""
        return float(self.from_start[-1] / self.path_length) if self.path_length > 0 else 0.0

    @property
    def random_straightness(self) -> float:
        """The same of a random walk: sqrt(sum of l^2) / sum of l."""
        return float(np.sqrt(self.steps.squares.sum()) / self.path_length) if self.path_length > 0 else 0.0

    def scalars(self) -> dict[str, float]:
        """Headline numbers, of the latest snapshot and of the path to it."""
        lengths, cosines, norms = self.steps.lengths, self.steps.cosines, self.steps.norms
        step = float(lengths[-1]) if len(lengths) else 0.0
        return {
            "distance": float(self.from_start[-1]),
            "relative_distance": _ratio(float(self.from_start[-1]), float(norms[0])),
            "step": step,
            "relative_step": _ratio(step, float(norms[-2]) if len(norms) > 1 else 0.0),
            "path_length": self.path_length,
            "straightness": self.straightness,
            "straightness_random": self.random_straightness,
            "turning": float(cosines[-1]) if len(cosines) else 0.0,
            "dimension": self.components.dimension,
            "dimension_random": self.random.dimension,
            "explained": self.components.first_two,
            "explained_random": self.random.first_two,
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def weight_trajectory(steps: PathSteps) -> WeightTrajectory:
    """Where a path through weight space went, from the products of its steps alone.

    Principal components follow from the distances (classical scaling, Torgerson 1952) and equal those of the weights.
    The null is a random walk in many more dimensions than it has steps, with the same step lengths: its steps are
    orthogonal, so all its distances are known, and its picture is a smooth curve too (Antognini and Sohl-Dickstein,
    2018: a share of 6 / pi^2 in the first component alone). What two components explain of a walk of 50 steps scatters
    about that by .007 in 1000 dimensions, .02 in 100 and .05 in 20; in fewer it is also larger, .86 instead of .76 in 5
    and 1 in 2. Few parameters, or noise in few directions, therefore look like more than chance when they are not.

    Args:
        steps: of the path.
    """
    squared = squared_distances(steps.products)
    walk = squared_distances(np.diag(np.add.reduceat(steps.squares, steps.points[:-1])))
    return WeightTrajectory(steps, np.sqrt(squared), path_components(squared), path_components(walk))


def squared_distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances of n points from the products of the n - 1 steps between them, ``(n, n)``.

    Each distance is summed along the path from its own two ends, so that short ones far from the start keep all their
    digits: |w_j+1 - w_i|^2 = |w_j - w_i|^2 + 2 <w_j - w_i, d_j> + |d_j|^2. A path that comes back to a place has a
    distance of up to 1e-7 of the way that it went out, instead of 0.

    Args:
        products: ``(n - 1, n - 1)``, symmetric.

    Raises:
        ValueError: for another shape, or products that are NaN or infinite.
    """
    if products.ndim != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"products must be (n - 1, n - 1), got shape {products.shape}")
    if not np.isfinite(products).all():
        raise ValueError("products of steps must be finite; leave out the snapshots that hold NaN or infinity")
    n = len(products) + 1
    before = np.triu(products, 1)
    along = np.cumsum(before[::-1], axis=0)[::-1]  # (i, j): <w_j - w_i, d_j>
    growth = np.triu(2 * along + np.diagonal(products)[None, :])
    squared = np.zeros((n, n))
    squared[:-1, 1:] = np.triu(np.cumsum(growth, axis=1))
    squared = np.maximum(squared, 0.0)
    return squared + squared.T


def path_components(squared: NDArray[np.float64]) -> PathComponents:
    """Principal components of points in order of time, from their squared distances ``(n, n)``.

    The last point lies to the right of the first one, and the first one above the middle of the path, so that pictures
    of a growing path do not turn over. Components below the rounding of the first one, about 1e-7 of its size, are 0.
    """
    n = len(squared)
    means = squared.mean(0)
    gram = -0.5 * (squared - means[:, None] - means[None, :] + means.mean())
    kept = min(COMPONENTS, n - 1)
    total = float(np.trace(gram))
    if kept == 0 or total <= 0:
        return PathComponents(np.zeros((n, kept)), np.zeros(kept), 0.0, 0.0)
    gram /= total  # squares of huge and tiny weights are no numbers
    shares, vectors = eigh(gram, subset_by_index=(n - kept, n - 1))
    shares, vectors = shares[::-1], vectors[:, ::-1]
    shares = np.where(shares > n * np.finfo(np.float64).eps * shares[0], shares, 0.0)  # below is rounding
    values = total * shares
    scores = vectors * np.sqrt(values)
    forward = scores[-1, 0] >= scores[0, 0]
    upright = scores[0] >= 0
    upright[0] = forward
    scores = scores * np.where(upright, 1.0, -1.0)
    return PathComponents(scores, values / (n - 1), total / (n - 1), 1 / float(np.square(gram).sum()))
