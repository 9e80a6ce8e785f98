"""Inner products of the steps of a path through weight space: all its geometry, in a matrix that does not grow with P.

A float32 Gram matrix of the weights themselves loses late, small steps altogether (an error of 54 times was measured on
a network of 153 354 weights); that of the *steps* keeps distances to 2.6e-6, and in float64, as here, to rounding.
Steps of different parts are added up where parts are put together, since P numbers are P orthogonal directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 500  # of a path; a longer one is thinned to every second, fourth, ... snapshot
CHUNK = 2**21  # numbers read at a time, 16 MB

# Of a part and some snapshots (n,): their weights, some columns (n, p) at a time.
Reader = Callable[[str, NDArray[np.int64]], Iterable[NDArray[np.floating]]]


@final
@dataclass(frozen=True, eq=False)
class PathSteps:
    """Steps of a path of E snapshots, drawn at n of them."""

    points: NDArray[np.int64]  # (n,), numbers of the snapshots that are drawn: every stride-th and the last one
    products: NDArray[np.float64]  # (n - 1, n - 1), <d_i, d_j> of the steps from one drawn snapshot to the next
    squares: NDArray[np.float64]  # (E - 1,), squared length of the step after each snapshot
    adjacent: NDArray[np.float64]  # (E - 2,), <d_i, d_(i+1)> of successive steps
    norms: NDArray[np.float64]  # (E,), |w| of each snapshot

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Length of the step after each snapshot, ``(E - 1,)``."""
        found: NDArray[np.float64] = np.sqrt(self.squares)
        return found

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Cosine between each step and the next, ``(E - 2,)``; 0 where one of them has no length."""
        both = self.lengths[1:] * self.lengths[:-1]
        found: NDArray[np.float64] = np.divide(self.adjacent, both, out=np.zeros_like(both), where=both > 0)
        return np.clip(found, -1.0, 1.0)


@final
class StepGram:
    """Grows with a path: the products of new steps with all others are added, those that are known are kept.

    Args:
        parts: names of the parts.
        most: snapshots that are kept as points; beyond, every second one goes, which is exact for those that stay.
    """

    def __init__(self, parts: Sequence[str], *, most: int = MOST_POINTS) -> None:
        if most < 3:
            raise ValueError(f"most must be at least 3 points, got {most}")
        self.parts = tuple(parts)
        self.most = most
        self.stride = 1
        self.count = 0  # snapshots
        self._kept = np.zeros((len(self.parts), 0, 0))  # products of steps between points
        self._tail = np.zeros((len(self.parts), 0))  # of the step from the last point to the last snapshot, if any
        self._squares = np.zeros((len(self.parts), 0))
        self._adjacent = np.zeros((len(self.parts), 0))
        self._norms = np.zeros((len(self.parts), 0))

    def extend(self, read: Reader, count: int) -> None:
        """Take in the snapshots up to a number of them.

        Args:
            read: gives the weights of any snapshot.
            count: how many there are now; at least as many as before.
        """
        if count < self.count:
            raise ValueError(f"the path has {self.count} snapshots already, got {count}")
        if count == self.count:
            return
        stride, kept = self.stride, self._kept  # nothing is changed until all is read
        while (count - 1) // stride + 1 > self.most:
            stride, kept = 2 * stride, _two_by_two(kept)
        known = kept.shape[1]  # steps
        grid = np.arange(0, count, stride)
        points = np.append(grid, count - 1) if grid[-1] != count - 1 else grid
        fresh = np.arange(max(self.count - 2, 0), count)  # the last two known ones, for their steps
        rows = np.union1d(points, fresh)
        at_points, at_fresh = np.searchsorted(rows, points), np.searchsorted(rows, fresh)
        new = np.zeros((len(self.parts), len(points) - 1 - known, len(points) - 1))
        singles = np.zeros((len(self.parts), 3, len(fresh)))
        for number, part in enumerate(self.parts):
            for columns in read(part, rows):
                steps = np.diff(columns[at_points].astype(np.float64), axis=0)
                new[number] += steps[known:] @ steps.T
                weights = columns[at_fresh].astype(np.float64)
                moves = np.diff(weights, axis=0)
                singles[number, 0] += np.einsum("np,np->n", weights, weights)
                singles[number, 1, 1:] += np.einsum("np,np->n", moves, moves)
                singles[number, 2, 2:] += np.einsum("np,np->n", moves[1:], moves[:-1])
        self.stride = stride
        self._keep(kept, new, len(grid) - 1)
        came = slice(self.count - count, None)  # the snapshots that are new
        norms, squares, adjacent = (singles[:, row, came] for row in range(3))
        self._norms = np.append(self._norms, np.sqrt(norms), 1)
        self._squares = np.append(self._squares, squares[:, 1:] if self.count == 0 else squares, 1)
        self._adjacent = np.append(self._adjacent, adjacent[:, max(0, 2 - self.count) :], 1)
        self.count = count

    def _keep(self, kept: NDArray[np.float64], new: NDArray[np.float64], steps: int) -> None:
        """Put the products of new steps (m, all) beside the known ones; what lies after `steps` steps is the tail."""
        known = kept.shape[1]
        grown = np.empty((len(self.parts), steps, steps))
        grown[:, :known, :known] = kept
        grown[:, known:, :] = new[:, : steps - known, :steps]
        grown[:, :known, known:] = grown[:, known:, :known].transpose(0, 2, 1)
        self._kept = grown
        self._tail = new[:, steps - known :].reshape(len(self.parts), -1)

    def of(self, parts: Sequence[str]) -> PathSteps:
        """The path of some parts together.

        Raises:
            ValueError: for a part that does not exist, or without any snapshot.
        """
        unknown = [part for part in parts if part not in self.parts]
        if unknown or not self.count:
            raise ValueError(f"no part is called {unknown}" if unknown else "there is no snapshot yet")
        rows = [self.parts.index(part) for part in parts]
        kept, tail = self._kept[rows].sum(0), self._tail[rows].sum(0)
        points = np.arange(0, self.count, self.stride)
        if len(tail):
            points = np.append(points, self.count - 1)
            kept = np.block([[kept, tail[:-1, None]], [tail[None, :]]])
        return PathSteps(
            points,
            kept,
            self._squares[rows].sum(0),
            self._adjacent[rows].sum(0),
            np.sqrt(np.square(self._norms[rows]).sum(0)),
        )


def _two_by_two(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a path without every second point, where two steps are one; ``(parts, steps, steps)``."""
    parts, pairs = len(products), products.shape[1] // 2
    whole = products[:, : 2 * pairs, : 2 * pairs]
    found: NDArray[np.float64] = whole.reshape(parts, pairs, 2, pairs, 2).sum((2, 4))
    return found


def path_steps(weights: NDArray[np.floating], *, most: int = MOST_POINTS) -> PathSteps:
    """Steps of a path whose weights lie in memory.

    Args:
        weights: ``(E, P)``, a snapshot in each row, in order of time.
        most: as in `StepGram`.

    Raises:
        ValueError: for another shape, or weights that are NaN or infinite.
    """
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"weights must be (E, P), a row for each snapshot, got shape {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("weights must be finite; leave out the snapshots that hold NaN or infinity")
    width = max(1, CHUNK // len(weights))

    def read(part: str, rows: NDArray[np.int64]) -> Iterable[NDArray[np.floating]]:
        return (weights[rows, at : at + width] for at in range(0, weights.shape[1], width))

    gram = StepGram(["all"], most=most)
    gram.extend(read, len(weights))
    return gram.of(["all"])
