"""How alike the states of runs are to each other: CKA between runs, at one epoch, on the same sequences.

Weights of two seeds cannot be compared, and units not either; what states say of the same inputs can, also where
networks are of unlike kind and size.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.cka import similarities
from .comparison import Comparison
from .quantities import renamed

_NOUN, _PRINT = "representation", "fingerprint"


@final
@dataclass(frozen=True, eq=False)
class RunLikeness:
    """CKA of M runs with each other at one place."""

    place: str  # ``reader.l0/hidden``, as the comparison calls it
    epoch: int  # the last at which all of them were looked at
    runs: tuple[int, ...]  # (M,), numbers in the comparison
    cka: NDArray[np.float64]  # (M, M)

    def between(self, one: tuple[int, ...], other: tuple[int, ...]) -> NDArray[np.float64]:
        """Of every run of one group with every other run of another, or of the same one; each pair once."""
        here = [self.runs.index(run) for run in one if run in self.runs]
        there = [self.runs.index(run) for run in other if run in self.runs]
        pairs = {(min(a, b), max(a, b)) for a in here for b in there if a != b}
        return np.array([self.cka[pair] for pair in sorted(pairs)])


def likeness_of_runs(comparison: Comparison) -> list[RunLikeness]:
    """CKA between runs, of every place that at least two of them have, at the last epoch that all of these share.

    Only of runs whose `RepresentationTracker` looked at the same sequences at the same steps; of several audiences, the
    one of most runs.
    """
    epochs = [{look.epoch for look in run.looks.get(_NOUN, [])} for run in comparison.runs]
    watched = [number for number, found in enumerate(epochs) if found]
    common = set.intersection(*(epochs[number] for number in watched)) if watched else set()
    if len(watched) < 2 or not common:
        return []
    epoch = max(common)
    kept = {number: _arrays(comparison, number, epoch) for number in watched}
    audiences = Counter(str(arrays[f"{_NOUN}/audience"]) for arrays in kept.values() if f"{_NOUN}/audience" in arrays)
    if not audiences:
        return []
    audience = audiences.most_common(1)[0][0]
    places: dict[str, dict[int, NDArray[Any]]] = {}
    for number, arrays in kept.items():
        if str(arrays.get(f"{_NOUN}/audience", "")) != audience:
            continue
        for tag, array in arrays.items():
            if tag.endswith(f"/{_PRINT}") and array.ndim == 1 and len(array):
                places.setdefault(_place(comparison, number, tag), {})[number] = array
    return [
        RunLikeness(place, epoch, tuple(prints), np.clip(similarities(list(prints.values())), -1.0, 1.0))
        for place, prints in places.items()
        if len(prints) > 1 and len({len(print_) for print_ in prints.values()}) == 1
    ]


def _arrays(comparison: Comparison, number: int, epoch: int) -> dict[str, NDArray[Any]]:
    """What the looks of one run kept at an epoch."""
    run = comparison.runs[number]
    found: dict[str, NDArray[Any]] = {}
    for look in run.looks[_NOUN]:
        if look.epoch == epoch and (saved := run.read_look(look)) is not None:
            found |= saved.report.arrays
    return found


def _place(comparison: Comparison, number: int, tag: str) -> str:
    name = renamed(tag, comparison.names[number])
    return name.removeprefix(f"{_NOUN}/").removesuffix(f"/{_PRINT}")


def likeness_in_words(comparison: Comparison, found: RunLikeness) -> list[str]:
    """One sentence for each pair of configurations, and for the seeds of each."""
    groups, said = comparison.groups, []
    for first, one in enumerate(groups):
        for other in groups[first:]:
            values = found.between(one.distinct, other.distinct)
            values = values[np.isfinite(values)]
            if len(values):
                who = f"runs of {one.name}" if one is other else f"{one.name} and {other.name}"
                spread = f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
                said.append(f"{found.place}, epoch {found.epoch}: CKA between {who}: {values.mean():.2f}{spread}")
    return said
