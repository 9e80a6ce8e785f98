"""Weights folded into few numbers that keep their distances: for models too large to keep every snapshot of."""

from __future__ import annotations

import zlib
from typing import final

import numpy as np
from numpy.typing import NDArray

SIZE = 4099  # a prime, so that rows of weights do not fall on each other
BLOCK = 2**20  # numbers folded at a time


@final
class CountSketch:
    """Adds numbers up in `size` buckets, with random signs (Charikar, Chen and Farach-Colton, 2002).

    A fold is linear: that of a difference is the difference of the folds, and its squared length is right on average,
    with a relative standard deviation of at most sqrt(2 / size). Every `size` consecutive numbers go to the buckets in
    turn, from one drawn at random: two numbers meet with a chance of at most 1 / size, as in the original, which needs
    a hash of each. What is no longer than `size` is kept as it is.

    Args:
        seed: of the signs; runs that are to share a space need the same.
        size: buckets.
    """

    def __init__(self, seed: int = 0, size: int = SIZE) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.seed = seed
        self.size = size

    def width(self, numbers: int) -> int:
        """How many numbers so many are folded into."""
        return min(numbers, self.size)

    @property
    def distance_error(self) -> float:
        """Relative standard error of a distance, at most."""
        return 1 / float(np.sqrt(2 * self.size))

    def fold(self, values: NDArray[np.floating], key: str) -> NDArray[np.float64]:
        """The fold of a vector ``(p,)``, ``(min(p, size),)``.

        Args:
            values: to fold.
            key: names the vector; equal keys get equal signs, wherever and whenever.
        """
        if len(values) <= self.size:
            return values.astype(np.float64)
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, zlib.crc32(key.encode())]))
        found = np.zeros(self.size)
        width = 1 + -(-self.size // 64)  # of a row in random words: where it begins, then its signs
        block = self.size * max(1, BLOCK // self.size)
        for at in range(0, len(values), block):
            part = values[at : at + block]
            rows = -(-len(part) // self.size)
            words = np.asarray(bits.random_raw(rows * width), dtype="<u8").reshape(rows, width)
            minus = np.unpackbits(words[:, 1:].copy().view(np.uint8), axis=1, count=self.size).view(np.bool_)
            signed = np.where(minus.ravel()[: len(part)], -part, part)
            for row, begin in enumerate((words[:, 0] % self.size).tolist()):
                numbers = signed[row * self.size : (row + 1) * self.size]
                until = self.size - begin
                found[begin : begin + len(numbers)] += numbers[:until]
                found[: max(0, len(numbers) - until)] += numbers[until:]
        return found
