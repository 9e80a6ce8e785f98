"""How alike two representations of the same inputs are, whatever their size and orientation.

Linear centred kernel alignment (Kornblith et al. 2019, section 3), with the estimator of its Hilbert-Schmidt criterion
that is unbiased (Song et al. 2012, equation 5; Nguyen et al. 2021): the plain one gives independent Gaussians of 512
units and 500 samples 0.5. It is computed in the space of the units, so no N x N matrix is made.

The samples of that estimator must be independent, and the states of one sequence are not. So sequences are compared
with each other at one step at a time, and the criteria are averaged over steps: what only tells early from late steps,
which any two networks have in common, does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

FEWEST = 4  # sequences of the unbiased estimator


@final
@dataclass(frozen=True, eq=False)
class Geometry:
    """States of N sequences at S steps, ready to be compared. The units may be others in another one."""

    states: NDArray[np.floating]  # (N, S, H)
    counted: NDArray[np.bool_]  # (N, S), whether a state counts

    @cached_property
    def steps(self) -> list[Step | None]:
        """Of each step with enough sequences, its centred states."""
        centred = [_centred(self.states[rows, step]) for step, rows in enumerate(self.counted.T)]
        largest = max((float(np.abs(step).max(initial=0)) for step in centred), default=0.0) or 1.0
        return [Step(step / step.dtype.type(largest)) if len(step) >= FEWEST else None for step in centred]


def geometry(states: NDArray[np.floating], counted: NDArray[np.bool_] | None = None) -> Geometry:
    """Prepare states for comparisons.

    Args:
        states: ``(N, S, H)``, or ``(N, H)`` for one step; single precision stays single, which is right to about 1e-6.
        counted: ``(N, S)``, whether a sequence has such a step; states with NaN or infinity are left out anyway.

    Raises:
        ValueError: for another shape.
    """
    if states.ndim == 2:
        states = states[:, None]
    if states.ndim != 3 or 0 in states.shape[1:]:
        raise ValueError(f"states must be (N, S, H) or (N, H), got shape {states.shape}")
    if counted is None:
        counted = np.ones(states.shape[:2], bool)
    if counted.shape != states.shape[:2]:
        raise ValueError(f"counted must be (N, S) = {states.shape[:2]}, got shape {counted.shape}")
    kind = np.float64 if states.dtype == np.float64 else np.float32
    return Geometry(states.astype(kind, copy=False), counted & np.isfinite(states).all(2))


@final
@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike two representations are: 1 of rotated, scaled copies, about 0 of unrelated ones.

    It may be a little below 0, as an unbiased estimate must. NaN where a representation is constant, or fewer than four
    sequences have the step.
    """

    cka: float  # over all steps
    by_step: NDArray[np.float64]  # (S,)


def cka(one: Geometry, other: Geometry) -> Similarity:
    """Compare two representations of the same sequences at the same steps.

    Args:
        one: of N sequences and S steps.
        other: of the same, in the same order; what counts in one only is left out.

    Raises:
        ValueError: when sequences or steps are others.
    """
    if one.counted.shape != other.counted.shape:
        raise ValueError(
            f"both must have the same sequences and steps, got {one.counted.shape} and {other.counted.shape}"
        )
    if not np.array_equal(one.counted, other.counted):
        both = one.counted & other.counted
        one, other = Geometry(one.states, both), Geometry(other.states, both)
    found = np.zeros((3, len(one.steps)))
    for place, (step, against) in enumerate(zip(one.steps, other.steps, strict=True)):
        if step is not None and against is not None:
            found[:, place] = _hsic(step, against), step.hsic, against.hsic
    cross, own, others = found
    return Similarity(float(_ratio(*found.sum(1))), _ratio(cross, own, others))


def _ratio(cross: NDArray[np.float64], own: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.sqrt(own) * np.sqrt(others)
    found: NDArray[np.float64] = np.divide(cross, size, out=np.full_like(size, np.nan), where=size > 0)
    return found


@final
@dataclass(frozen=True, eq=False)
class Step:
    """States of n sequences at one step."""

    states: NDArray[np.floating]  # (n, H), centred

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        """Squared norm of each sample, ``(n,)``."""
        found: NDArray[np.float64] = np.square(self.states, dtype=np.float64).sum(1)
        return found

    @cached_property
    def hsic(self) -> float:
        """The criterion of the states with themselves; 0 where it is but rounding (all but one are the same, say)."""
        found = _hsic(self, self)
        return found if found > self.rounding else 0.0

    @property
    def rounding(self) -> float:
        """What rounding may make of a criterion that is 0."""
        n = len(self.states)
        return 16 * float(np.finfo(self.states.dtype).eps) * float(self.squares.sum()) ** 2 / (n * (n - 3))


def _centred(states: NDArray[np.floating]) -> NDArray[np.floating]:
    """``(n, H)`` with mean zero; exactly zero in units in which only rounding tells samples apart."""
    if not len(states):
        return states
    moved = (states - states.mean(0, dtype=np.float64)).astype(states.dtype)
    noise = 4 * np.finfo(states.dtype).eps * np.abs(states).max(0)
    return np.where(np.abs(moved).max(0) <= noise, states.dtype.type(0), moved)


def _hsic(one: Step, other: Step) -> float:
    """The unbiased criterion of centred features: tr(K~L~) = |X'Y|^2 - sum k_ii l_ii, and K~1 = -diag K."""
    n = len(one.states)
    shared = one.states.T @ other.states
    trace = float(np.einsum("ij,ij->", shared, shared, dtype=np.float64))
    diagonal = float(one.squares @ other.squares)
    whole = float(one.squares.sum() * other.squares.sum()) / ((n - 1) * (n - 2))
    return (trace - diagonal + whole - 2 * diagonal / (n - 2)) / (n * (n - 3))


def fingerprint(of: Geometry) -> NDArray[np.float32]:
    """A representation as one vector of length 1, so that products of two are their CKA.

    At each step the upper triangle of the U-centred products of samples (Szekely and Rizzo 2014), weighed so that
    squared lengths are the unbiased criteria. For few sequences: it has N (N - 1) / 2 numbers for each step.

    Returns:
        ``(P,)``; all zeros where the representation is constant. P is the same for all that count the same states.
    """
    parts: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for step in of.steps:
        if step is None:
            continue
        n = len(step.states)
        products = step.states @ step.states.T
        np.fill_diagonal(products, 0.0)
        sums = products.sum(0, dtype=np.float64)
        middle = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
        products -= np.add.outer(middle, middle).astype(products.dtype)
        upper = products[np.triu(np.ones((n, n), bool), 1)].astype(np.float32) * np.float32(np.sqrt(2 / (n * (n - 3))))
        told = float(np.square(upper, dtype=np.float64).sum()) > step.rounding
        parts.append(upper if told else np.zeros_like(upper))
    whole = np.concatenate(parts)
    norm = float(np.linalg.norm(whole))
    return whole / np.float32(norm) if norm > 0 else whole


def similarities(prints: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """CKA of every representation with every other, ``(M, M)``; NaN where one is constant.

    Args:
        prints: of each, ``(P,)``, from `fingerprint` on the same states, or folds of these.
    """
    rows = np.stack([print_.astype(np.float64) for print_ in prints])
    products = rows @ rows.T
    sizes = np.sqrt(products.diagonal())
    return _ratio(products, *np.broadcast_arrays(sizes[:, None] ** 2, sizes[None, :] ** 2))


def compare_fingerprints(
    one: NDArray[np.floating], other: NDArray[np.floating], counts: NDArray[np.integer]
) -> Similarity:
    """What `cka` says of the geometries that these were taken of.

    Args:
        one: ``(P,)``, from `fingerprint`.
        other: of the same states.
        counts: ``(S,)``, sequences that counted at each step.

    Raises:
        ValueError: when the sizes do not fit each other.
    """
    sizes = np.where(counts >= FEWEST, counts * (counts - 1) // 2, 0)
    if not len(one) == len(other) == sizes.sum():
        raise ValueError(f"fingerprints of {counts} sequences have {sizes.sum()} numbers, got {len(one)}, {len(other)}")
    found = np.zeros((3, len(sizes)))
    ends = np.cumsum(sizes)
    for step, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        here, there = (print_[end - size : end].astype(np.float64) for print_ in (one, other))
        found[:, step] = here @ there, here @ here, there @ there
    return Similarity(float(_ratio(*found.sum(1))), _ratio(*found))
