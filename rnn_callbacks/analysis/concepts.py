"""What a probe is to read: one label for each sequence, or one for each of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .state_samples import StateSamples

IGNORED = -100  # torch's own number for a target that does not count
MOST_CLASSES = 64  # more distinct whole numbers are no classes that so few sequences could tell apart


@final
@dataclass(frozen=True, eq=False)
class Concept:
    """Labels of N sequences. A class is given by its place among the classes; NaN: no label there."""

    name: str
    classes: NDArray[np.int64]  # (K,), as the user numbers them; empty for a quantity
    of_steps: bool  # one label for each step, instead of one for the sequence
    labels: NDArray[np.float64]  # (N, T), or (N, 1) for one label for the sequence; NaN beyond the end

    @property
    def chance(self) -> float:
        """The score of a probe that knows nothing: 1 / K of balanced accuracy, 0 of R^2."""
        return 1.0 / len(self.classes) if len(self.classes) else 0.0

    def at(self, samples: StateSamples, *, reverse: bool) -> NDArray[np.float64]:
        """The label of every sequence at every column of the states, ``(N, S + 1)``; NaN where there is none."""
        present = samples.present
        if not self.of_steps:
            return np.where(present, self.labels, np.nan)
        columns = np.minimum(samples.positions(reverse=reverse), self.labels.shape[1] - 1)
        found = np.take_along_axis(self.labels, np.maximum(columns, 0), axis=1)
        return np.where(present & (samples.positions(reverse=reverse) < self.labels.shape[1]), found, np.nan)


def read_concepts(
    name: str,
    batches: Mapping[int, NDArray[Any]],
    rows: NDArray[np.int64],
    known: Mapping[str, NDArray[np.int64]] | None = None,
) -> list[Concept]:
    """Labels as they came with the batches, put in order for the sequences that were heard.

    Arrays of integers or booleans are classes, and -1 or -100 says that there is no label; arrays of floating-point
    numbers are a quantity, and NaN says that there is none, unless all are 0 or 1, which are taken as two classes.

    Args:
        name: of the concept.
        batches: labels by number of the batch: ``(B,)`` or ``(B, 1)``, ``(B, T)``, or ``(B, T, F)`` for F concepts.
        rows: ``(N, 2)``, number of the batch and row in it of every sequence.
        known: classes of concepts from earlier looks, by name, so that they keep their places; empty for a quantity.

    Raises:
        ValueError: when shapes are others, or a batch has fewer labels than sequences, or there are too many classes.
    """
    if all(array.shape[1:] == (1,) for array in batches.values()):
        batches = {number: array[:, 0] for number, array in batches.items()}
    ranks = {array.ndim for array in batches.values()}
    if len(ranks) != 1 or not ranks <= {1, 2, 3}:
        shapes = ", ".join(sorted({str(array.shape) for array in batches.values()}))
        raise ValueError(f"{name}: labels must be (B,), (B, T) or (B, T, F), got {shapes or 'none'}")
    (rank,) = ranks
    if rank == 3:
        widths = {array.shape[2] for array in batches.values()}
        if len(widths) != 1 or max(widths) > 16:
            raise ValueError(
                f"{name}: the last dimension of (B, T, F) must be the same F in all batches, up to 16, got {widths}"
            )
        return [
            concept
            for place in range(widths.pop())
            for concept in read_concepts(f"{name}_{place}", {n: a[..., place] for n, a in batches.items()}, rows, known)
        ]
    labels = read_labels(name, batches, rows)
    seen = np.unique(labels[np.isfinite(labels)])
    classes = (known or {}).get(name)
    whole = all(array.dtype.kind in "biu" for array in batches.values())
    if whole or (len(seen) and np.isin(seen, (0, 1)).all() and (classes is None or len(classes))):
        return [_of_classes(name, labels, seen, classes, of_steps=rank == 2)]
    return [Concept(name, np.empty(0, np.int64), rank == 2, labels)]


def read_labels(name: str, batches: Mapping[int, NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Labels in the order of the sequences that were heard, ``(N, T)`` or ``(N, 1)``; NaN where there is none.

    Args:
        name: for messages.
        batches: labels by number of the batch: ``(B,)`` or ``(B, T)``.
        rows: ``(N, 2)``, number of the batch and row in it of every sequence.

    Raises:
        ValueError: when a batch has fewer labels than sequences.
    """
    longest = max((array.shape[1] for array in batches.values() if array.ndim == 2), default=1)
    labels = np.full((len(rows), longest), np.nan)
    for number in np.unique(rows[:, 0]):
        of_batch = rows[:, 0] == number
        if number not in batches:
            continue
        array = batches[number]
        if len(array) <= rows[of_batch, 1].max():
            raise ValueError(
                f"{name}: a batch of which the layer read {rows[of_batch, 1].max() + 1} sequences has labels of shape "
                f"{array.shape}; expected one row for each sequence"
            )
        whole = array.dtype.kind in "iu"
        values = array.astype(np.float64)
        values = np.where(np.isin(values, (-1, IGNORED)) if whole else ~np.isfinite(values), np.nan, values)
        labels[of_batch, : array.shape[1] if array.ndim == 2 else 1] = values[rows[of_batch, 1]].reshape(
            of_batch.sum(), -1
        )
    return labels


def check_steps(concept: Concept, samples: StateSamples) -> None:
    """Refuse labels of steps that cannot be those of the layer's.

    Raises:
        ValueError: when all sequences have one length and the labels another.
    """
    lengths, width = np.unique(samples.lengths), concept.labels.shape[1]
    if concept.of_steps and ((len(lengths) == 1 and width != lengths[0]) or width < lengths.max()):
        raise ValueError(
            f"{concept.name}: labels are for {width} steps, but the layer reads {lengths.max()}; give (B, T) with one "
            "label for each step that the layer reads, or (B,) with one for the sequence"
        )


def _of_classes(
    name: str,
    labels: NDArray[np.float64],
    seen: NDArray[np.float64],
    known: NDArray[np.int64] | None,
    *,
    of_steps: bool,
) -> Concept:
    classes = seen.astype(np.int64)
    if known is not None and len(known):
        classes = np.concatenate([known, np.setdiff1d(classes, known)])
    if len(classes) > MOST_CLASSES:
        raise ValueError(
            f"{name}: {len(classes)} different whole numbers are too many classes (up to {MOST_CLASSES}); group them, "
            "or give floating-point numbers to have them read as a quantity"
        )
    order = np.argsort(classes)
    codes = np.full(labels.shape, np.nan)
    labelled = np.isfinite(labels)
    codes[labelled] = order[np.searchsorted(classes, labels[labelled], sorter=order)] if len(classes) else 0
    return Concept(name, classes, of_steps, codes)


def split_sequences(concepts: Sequence[Concept], share: float, *, seed: int = 0) -> NDArray[np.bool_]:
    """Which sequences probes are fitted to, ``(N,)``; the others are held out. A sequence is never on both sides.

    Stratified over all concepts at once: the rarest class first, its members that have no side yet are dealt out so
    that the side gets its share (Sechidis, Tsoumakas and Vlahavas 2011). A class of a concept with labels for steps has
    the sequences in which it occurs.

    Args:
        concepts: of the same N sequences.
        share: of the sequences to fit to, in (0, 1).
        seed: of the draw.
    """
    members = [np.ones(len(concepts[0].labels), dtype=bool)]
    for concept in concepts:
        if len(concept.classes):
            members += [(concept.labels == code).any(axis=1) for code in range(len(concept.classes))]
        else:
            members += _quarters(concept)
    return deal(members, share, seed=seed)


def deal(members: Sequence[NDArray[np.bool_]], share: float, *, seed: int = 0) -> NDArray[np.bool_]:
    """A side ``(N,)`` that holds this share of every group, as far as that can be.

    Args:
        members: of each group, ``(N,)``; one of them is everybody.
        share: of the side, in (0, 1).
        seed: of the draw.
    """
    count = len(members[0])
    order = np.random.default_rng(seed).permutation(count)
    fitted, dealt = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for member in sorted(members, key=lambda m: int(m.sum())):
        free = order[member[order] & ~dealt[order]]
        wanted = round(share * int(member.sum())) - int((member & fitted).sum())
        fitted[free[: max(wanted, 0)]] = True
        dealt[free] = True
    return fitted


def _quarters(concept: Concept) -> list[NDArray[np.bool_]]:
    """Sequences by the size of a quantity, on average over steps, in four groups."""
    known = np.isfinite(concept.labels)
    size = np.where(known, concept.labels, 0).sum(1) / np.maximum(known.sum(1), 1)
    if not known.any():
        return []
    edges = np.quantile(size[known.any(1)], [0.25, 0.5, 0.75])
    group = np.searchsorted(edges, size)
    return [(group == number) & known.any(1) for number in range(4)]
