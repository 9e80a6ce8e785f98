"""How much each single unit says about a concept, in bits: no probe, and any relation, not only a linear one.

A unit is cut into bins of equally many samples, the information between bin and class is counted. Counting finds
information in noise too. Miller and Madow's correction takes away the part of order 1/N; what is left is measured, on
labels that were shuffled, and subtracted.

A concept that no unit tells may still be told by two of them together (exclusive or).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

BINS = 16  # of each unit; correlation .997 with nearest neighbours (Ross 2014) on states of a trained network
SHUFFLES = 10

_MILLER = 0.5 / math.log(2)  # bits times N that each further cell costs


@final
@dataclass(frozen=True, eq=False)
class UnitInformation:
    """Mutual information of each of H units with one concept."""

    raw: NDArray[np.float64]  # (H,), in bits, with Miller and Madow's correction only
    noise: NDArray[np.float64]  # (H,), in bits, the same for shuffled labels, mean over shuffles
    entropy: float  # of the concept among the samples, in bits

    @property
    def bits(self) -> NDArray[np.float64]:
        """Information of each unit, ``(H,)``, in bits; 0 on average for noise, so it may lie below."""
        return self.raw - self.noise

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of the concept that each unit tells, ``(H,)``, about [0, 1]; 0 for a concept of one class."""
        return self.bits / self.entropy if self.entropy else np.zeros_like(self.raw)

    @property
    def best(self) -> int:
        """Index of the unit that tells most."""
        return int(self.bits.argmax())


def unit_information(
    states: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    bins: int = BINS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> UnitInformation:
    """What each unit, taken alone, says about a concept.

    I = H(bin) + H(class) - H(bin, class), each entropy counted and raised by (cells that occur - 1) / 2N nats (Miller
    1955), minus the mean of the same over shuffled labels. Only the order of a unit's values counts, so a monotone
    change of a unit changes nothing.

    Args:
        states: ``(N, H)``, finite.
        labels: class ``(N,)`` of every sample; cut a quantity into classes with `as_classes`.
        bins: into which a unit is cut; fewer where many values are equal, which always share one bin.
        shuffles: of the labels, the same for all units.
        seed: of the shuffles.

    Raises:
        ValueError: when shapes do not fit, a state is not finite or labels are not integers.
    """
    if states.ndim != 2 or not states.size:
        raise ValueError(f"states must be (N, H) and not empty, got shape {states.shape}")
    if labels.shape != states.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be ({len(states)},) integers, got shape {labels.shape} of {labels.dtype}")
    if bins < 1 or shuffles < 1:
        raise ValueError(f"bins and shuffles must be at least 1, got {bins} and {shuffles}")
    finite = np.isfinite(states).all(0)
    if not finite.all():
        raise ValueError(f"states must be finite, unit {int(finite.argmin())} is not")
    codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    count = np.bincount(codes)
    samples, classes = len(codes), len(count)
    surprise = _surprise(samples)
    place = _bins(states, bins) + bins * np.arange(states.shape[1])[:, None]
    known = np.log2(samples) - _MILLER / samples + surprise[count].sum() + _entropy(place, bins, surprise)
    place *= classes

    def information(code: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(known - _entropy(place + code, bins * classes, surprise))

    generator = np.random.default_rng(seed)
    noise = np.mean([information(generator.permutation(codes)) for _ in range(shuffles)], 0)
    share = count / samples
    return UnitInformation(information(codes), noise, max(float(-share @ np.log2(share)), 0.0))


def as_classes(values: NDArray[np.number[Any]], bins: int = BINS) -> NDArray[np.int64]:
    """Class ``(N,)`` of each value ``(N,)``, from 0 up without a gap; equally many in each but for equal values."""
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values must be (N,), finite and not empty, got shape {values.shape}")
    return np.unique(_bins(values[:, None], bins)[0], return_inverse=True)[1].reshape(-1)


def _bins(values: NDArray[np.number[Any]], bins: int) -> NDArray[np.int64]:
    """Bin ``(H, N)`` of each of ``(N, H)`` by its rank among the N; equal values share their middle rank."""
    columns = np.ascontiguousarray(values.T)
    units, samples = columns.shape
    order = np.argsort(columns, 1)
    ordered = np.take_along_axis(columns, order, 1)
    begins = np.ones((units, samples), bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=begins.size)
    middle = (2 * (starts % samples) + lengths) * bins // (2 * samples)
    found = np.empty((units, samples), np.int64)
    np.put_along_axis(found, order, np.repeat(middle, lengths).reshape(units, samples), 1)
    return found


def _surprise(samples: int) -> NDArray[np.float64]:
    """What a cell of 0 ... N samples adds to an entropy in bits, ``(N + 1,)``, with its part of the correction."""
    count = np.arange(samples + 1.0)
    return np.asarray(((count > 0) * _MILLER - count * np.log2(np.maximum(count, 1))) / samples)


def _entropy(cells: NDArray[np.int64], size: int, surprise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy ``(H,)`` in bits, up to a constant, of cells ``(H, N)``, of which each unit has ``size`` of its own."""
    units = len(cells)
    counts = np.bincount(cells.reshape(-1), minlength=units * size).reshape(units, size)
    return np.asarray(surprise[counts].sum(1))
