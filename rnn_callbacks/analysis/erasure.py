"""States without a concept: what is left when every linear trace of it is taken out, and nothing else.

Least-squares concept erasure (LEACE; Belrose et al. 2023, theorem 4.3). Of all affine maps after which no linear probe
does better than without states, it changes the states least, whatever the metric that changes are measured in. So what
a network loses when its states are erased, it had read from the concept, if it loses more than by `random_erasure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

CUT = 1e-10  # share of the largest variance below which a direction does not vary: rounding in float32 is 1e-14
UNRELATED = 1e-12  # canonical correlation of states and concept that is rounding
STILL = 1e-10  # spread of a concept, relative to its mean, that is rounding; so for what one quantity adds to others


@final
@dataclass(frozen=True, eq=False)
class Erasure:
    """The map ``x -> x - (x - mean) @ left @ right`` of states, of rank R."""

    mean: NDArray[np.float64]  # (H,), of the states
    left: NDArray[np.float64]  # (H, R), reads R features of variance 1, uncorrelated, that hold all of the concept
    right: NDArray[np.float64]  # (R, H), what the states change by with each
    share: float  # of the states' variance, units added up, that is taken out, in [0, 1]

    @property
    def rank(self) -> int:
        """Directions that are taken out, R."""
        return len(self.right)

    def erase(self, states: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """States ``(..., H)`` without the concept."""
        if states.shape[-1:] != self.mean.shape:
            raise ValueError(f"states must be (..., {len(self.mean)}), got shape {states.shape}")
        return np.asarray(states - (states - self.mean) @ self.left @ self.right, np.float64)


def fit_erasure(
    states: NDArray[np.floating[Any]],
    concept: NDArray[np.integer[Any]] | NDArray[np.floating[Any]],
    *,
    cut: float = CUT,
) -> Erasure:
    """What to take out of the states so that no linear probe finds a concept.

    With W the inverse square root of the states' covariance and P the orthogonal projection onto the columns of
    W cov(x, z), z being the concept, the map is ``x - W^-1 P W (x - mean)``. The theorem's pseudoinverse is taken with
    units standardised, which LEACE does not depend on, so that small units are not taken for dead ones.

    Args:
        states: ``(N, H)``, finite. With N of at most H the concept is erased from these states only.
        concept: class ``(N,)`` of each sample if integers, a quantity ``(N,)`` or several ``(N, Q)`` if floats. R is at
            most K - 1 or Q.
        cut: share of the largest variance below which the standardised states do not vary along a direction.

    Raises:
        ValueError: when shapes do not fit or a value is not finite.
    """
    if states.ndim != 2 or not states.size or not np.isfinite(states).all():
        raise ValueError(f"states must be (N, H), finite and not empty, got shape {states.shape}")
    if not 1 <= concept.ndim <= 2 or len(concept) != len(states) or not np.isfinite(concept).all():
        raise ValueError(
            f"concept must be ({len(states)},) or ({len(states)}, Q) and finite, got shape {concept.shape}"
        )
    if concept.dtype.kind in "iu" and concept.ndim != 1:
        raise ValueError(f"classes must be ({len(states)},), got shape {concept.shape}")
    mean = states.mean(0, dtype=np.float64)
    centred = states - mean
    scale = centred.std(0)
    scale = np.where(scale > 1e-6 * np.abs(mean), scale, np.inf)  # a unit that sits still differs by rounding
    white, target = _whitening(centred / scale, cut), _orthonormal(concept)
    samples = len(states)
    cross = target.T @ centred / samples  # (Q, H)
    directions, correlation, turn = np.linalg.svd(white.T @ (cross / scale).T, full_matrices=False)
    kept = correlation > UNRELATED
    left = (white @ directions[:, kept]) / scale[:, None]
    # W^-1 P, by way of the covariance itself: directions too small to be whitened lose the concept all the same.
    right = (turn[kept] / correlation[kept, None]) @ cross
    total = float((centred**2).sum()) / samples
    return Erasure(mean, left, right, float((right**2).sum()) / total if total else 0.0)


def random_erasure(states: NDArray[np.floating[Any]], rank: int, *, seed: int = 0, cut: float = CUT) -> Erasure:
    """What taking out as many linear features of the states does that stand for nothing.

    The erasure of Gaussian noise, ``rank`` numbers a sample: of whitened states it takes a subspace out that points
    anywhere equally likely, so every linear feature of variance 1 has the same chance, and the states change along
    directions distributed like the states themselves. On average it takes rank / (directions that vary) of their
    variance. A concept's erasure may take more (`Erasure.share`): that is a finding about the concept.

    Args:
        states: ``(N, H)``, finite.
        rank: directions to take out; fewer when the states vary along fewer.
        seed: of the noise.
        cut: as in `fit_erasure`.
    """
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    return fit_erasure(states, np.random.default_rng(seed).standard_normal((len(states), rank)), cut=cut)


def _whitening(standardised: NDArray[np.float64], cut: float) -> NDArray[np.float64]:
    """Directions ``(H, directions that vary)``, in units of their standard deviation: ``W' S W`` is the identity."""
    variances, vectors = np.linalg.eigh(standardised.T @ standardised / len(standardised))
    kept = variances > cut * variances[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(variances[kept]))


def _orthonormal(concept: NDArray[Any]) -> NDArray[np.float64]:
    """What varies in a concept, ``(N, at most Q)``: columns of mean 0 and variance 1, uncorrelated."""
    if concept.dtype.kind in "iu":
        place = np.unique(concept, return_inverse=True)[1].reshape(-1)
        concept = np.eye(int(place.max()) + 1)[place][:, 1:]  # the first class is where all others are not
    columns = concept.reshape(len(concept), -1).astype(np.float64)
    mean, spread = columns.mean(0), columns.std(0)
    varies = spread > STILL * np.abs(mean)
    columns = (columns - mean)[:, varies] / spread[varies]
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > STILL * np.sqrt(len(columns))] * np.sqrt(len(columns)))
