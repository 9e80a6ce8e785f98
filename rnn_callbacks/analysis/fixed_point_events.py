"""What happened to fixed points between two looks, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from .fixed_point_result import MARGINAL, FixedPoints

What = Literal["birth", "death", "stability", "found late"]


@final
@dataclass(frozen=True)
class Event:
    """Something that happened to fixed points between two looks."""

    what: What
    ids: tuple[int, ...]
    crossing: str  # how an eigenvalue passed the unit circle: "+1", "-1", "complex pair"; empty where unknown
    words: str


def tell(
    old_ids: NDArray[np.int64],
    old_unstable: NDArray[np.int64],
    old_eigenvalues: NDArray[np.complex128],
    points: FixedPoints,
    ids: NDArray[np.int64],
    old: NDArray[np.int64],
    late: set[int],
    gone: NDArray[np.int64],
) -> tuple[Event, ...]:
    """Births, deaths, points that had been overlooked, and changes of stability, between two looks.

    Args:
        old_ids: ``(L,)``, of the points of the last look.
        old_unstable: ``(L,)``, their unstable directions.
        old_eigenvalues: ``(L, D)``.
        points: M points of this look.
        ids: ``(M,)``.
        old: ``(M,)``, row of the same point at the last look, or -1.
        late: rows of points that were there at the last look and had been overlooked.
        gone: rows of the last look that vanished.
    """
    found: list[Event] = []
    fresh = np.flatnonzero(old < 0)
    born = [int(row) for row in fresh if int(row) not in late]
    if born:
        found.append(Event("birth", _numbers(ids[born]), "+1", f"{_listed(points, born)} appeared"))
    if late:
        rows = sorted(late)
        words = f"{_listed(points, rows)} had been overlooked before"
        found.append(Event("found late", _numbers(ids[rows]), "", words))
    if len(gone):
        words = f"{len(gone)} point{'s' if len(gone) > 1 else ''} vanished"
        found.append(Event("death", _numbers(old_ids[gone]), "+1", words))
    for row in np.flatnonzero(old >= 0):
        before, after = int(old_unstable[old[row]]), int(points.unstable[row])
        if before != after:
            crossing = _crossing(old_eigenvalues[old[row]], points.eigenvalues[row], before, after)
            how = {
                "+1": "through +1",
                "-1": "through -1: a cycle of two steps",
                "complex pair": "as a complex pair: a turning motion",
            }
            words = f"point {ids[row]} went from {before} to {after} unstable directions ({how[crossing]})"
            found.append(Event("stability", (int(ids[row]),), crossing, words))
    return tuple(found)


def _numbers(ids: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(number) for number in ids)


def _listed(points: FixedPoints, rows: Sequence[int]) -> str:
    """``2 attractors, 1 saddle``."""
    kinds, counts = np.unique(points.kind[list(rows)], return_counts=True)
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in zip(kinds, counts, strict=True))


def _crossing(old: NDArray[np.complex128], new: NDArray[np.complex128], before: int, after: int) -> str:
    """Where eigenvalues passed the unit circle, judged by how many of each sort are outside."""
    plus, minus, turning = ((_outside(new) - _outside(old)) * (1 if after > before else -1)).tolist()
    if plus % 2 or minus % 2:
        return "+1" if plus % 2 else "-1"
    return max(("complex pair", turning), ("+1", plus), ("-1", minus), key=lambda sort: sort[1])[0]


def _outside(eigenvalues: NDArray[np.complex128]) -> NDArray[np.int64]:
    """How many lie outside the unit circle: real and positive, real and negative, complex."""
    outside = eigenvalues[np.abs(eigenvalues) > 1 + MARGINAL]
    real = np.abs(outside.imag) <= MARGINAL
    return np.array([(real & (outside.real > 0)).sum(), (real & (outside.real < 0)).sum(), (~real).sum()])
