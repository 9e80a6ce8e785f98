"""Labels that mean nothing, for probes that should learn nothing or only what memory alone can.

A probe that reads a concept well may have learned it from the states or by heart. The control task of Hewitt and
Liang 2019 asks for the second: every type of input gets a label at random, so that only the type itself can be learned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PLANES = 6  # random cuts through the inputs, so up to 64 types


def input_types(inputs: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.int64]:
    """Types of input vectors ``(N, S + 1)``: the cells into which six random planes in their midst cut the space.

    Equal inputs, such as the same token, have the same type; where inputs are vectors of numbers, neighbours share one.

    Args:
        inputs: ``(N, S + 1, I)``; a vector with a value that is not finite gets type -1.
        seed: of the planes.
    """
    known = np.isfinite(inputs).all(2)
    seen = inputs[known].astype(np.float64)
    types = np.full(inputs.shape[:2], -1, dtype=np.int64)
    if not len(seen):
        return types
    scale = seen.std(0)
    moved = (seen - seen.mean(0)) / np.where(scale > 1e-9 * np.abs(seen.mean(0)), scale, 1.0)
    generator = np.random.default_rng(seed)
    shares = moved @ generator.standard_normal((inputs.shape[2], PLANES))
    cuts = [
        np.quantile(share, place) for share, place in zip(shares.T, generator.uniform(0.2, 0.8, PLANES), strict=True)
    ]
    types[known] = (shares > cuts) @ (1 << np.arange(PLANES))
    return types


def control_labels(types: NDArray[np.int64], labels: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """A label for every type, in the proportions in which the concept has them; NaN where there is no type or label.

    Args:
        types: of the inputs, in any shape; -1 for none.
        labels: of the concept, in the same shape; NaN for none.
        seed: of the draw.

    Raises:
        ValueError: when the shapes differ.
    """
    if types.shape != labels.shape:
        raise ValueError(f"types and labels must have one shape, got {types.shape} and {labels.shape}")
    known = (types >= 0) & np.isfinite(labels)
    found = np.full(labels.shape, np.nan)
    if not known.any():
        return found
    kinds, place = np.unique(types[known], return_inverse=True)
    ranked = np.sort(labels[known])
    dealt = ranked[((np.arange(len(kinds)) + 0.5) / len(kinds) * len(ranked)).astype(np.int64)]
    found[known] = np.random.default_rng(seed).permutation(dealt)[place]
    return found
