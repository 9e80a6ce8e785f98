"""How classes lie in the states, step by step: how far apart, and since when a sequence is settled on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

ABSENT, UNDECIDED = -1, -2  # in place of a class: no such step or label; all states are the same

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """One concept's classes in the states of N sequences at S columns, in the order in which the cell reads them.

    NaN where a column has fewer than two classes of at least two sequences.
    """

    separation: Floats  # (S,), share of the variance that lies between classes, less what chance gives; up to 1
    nearest_mean: Floats  # (S,), share of sequences nearest to the mean of their own class, without themselves in it
    committed: Floats  # (S,), share that is nearest to one class from here on, that of its end
    commitment: float  # steps that the median sequence has read when it is settled


def class_geometry(states: NDArray[np.floating], labels: Floats, steps_read: NDArray[np.int64]) -> ClassGeometry:
    """Compare the distances between classes with those within.

    Separation is tr(S_B) / tr(S_T), adjusted for the number of classes as epsilon squared (Kelley 1935): 0 on average
    where labels say nothing. Whose mean is nearest is the classifier of neural collapse (Papyan, Han and Donoho 2020).

    Args:
        states: ``(N, S, H)``, columns in the order of reading, the last one where each sequence ends.
        labels: ``(N, S)``, codes of classes from 0; NaN where a sequence has no such step or no label.
        steps_read: ``(N, S)``, how many steps have been read at each column.

    Raises:
        ValueError: when sizes differ.
    """
    if states.ndim != 3 or labels.shape != states.shape[:2] or steps_read.shape != labels.shape:
        raise ValueError(
            f"states must be (N, S, H), labels and steps_read (N, S), got {states.shape}, {labels.shape} and "
            f"{steps_read.shape}"
        )
    count = states.shape[1]
    separation, nearest, predicted = np.full(count, np.nan), np.full(count, np.nan), np.full(labels.shape, ABSENT)
    for step in range(count):
        rows = np.flatnonzero(np.isfinite(labels[:, step]) & np.isfinite(states[:, step]).all(1))
        codes, members = np.unique(labels[rows, step], return_inverse=True)
        if len(codes) < 2 or np.sort(np.bincount(members))[-2] < 2:
            continue
        here = states[rows, step]
        if not np.ptp(here, axis=0).any():  # all are the same, and nearest to nobody
            predicted[rows, step] = UNDECIDED
            continue
        separation[step], own = _at_step(here.astype(np.float64), members)
        predicted[rows, step] = codes[own]
        nearest[step] = np.mean(own == members)
    committed, commitment = _commitment(predicted, steps_read)
    return ClassGeometry(separation, nearest, committed, commitment)


def _at_step(states: Floats, members: NDArray[np.integer]) -> tuple[float, NDArray[np.integer]]:
    """Separation, and whose mean each of these ``(n, H)`` is nearest to, ``(n,)``."""
    count = len(states)
    states = states - states.mean(0)
    counts = np.bincount(members)
    means = np.stack([states[members == code].mean(0) for code in range(len(counts))])
    total = float(np.square(states).sum())
    within = max(total - float((counts * np.square(means).sum(1)).sum()), 0.0)
    distances = np.square(states).sum(1)[:, None] - 2 * states @ means.T + np.square(means).sum(1)
    rows = np.arange(count)
    # The mean without the state itself is further away, in the direction from it.
    others = np.maximum(counts[members] - 1, 0)
    further = np.divide(counts[members], others, out=np.full(count, np.inf), where=others > 0)
    own = np.maximum(distances[rows, members], 0.0)
    distances[rows, members] = np.where(others > 0, own * np.where(others > 0, further, 0.0) ** 2, np.inf)
    free = count - len(counts)
    separation = 1 - within / total * (count - 1) / free if total > 0 and free > 0 else np.nan
    return separation, distances.argmin(1)


def _commitment(predicted: NDArray[np.integer], steps_read: NDArray[np.int64]) -> tuple[Floats, float]:
    """Share of sequences that are settled at each column, and what the median has read by then."""
    final_ = predicted[:, -1:]
    there = (predicted != ABSENT) & (final_ >= 0)
    agrees = ~there | (predicted == final_)
    settled = np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1] & there
    counts = there.sum(0)
    share = np.divide(settled.sum(0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    known = final_[:, 0] >= 0
    if not known.any():
        return share, np.nan
    first = settled[known].argmax(1)
    return share, float(np.median(np.take_along_axis(steps_read[known], first[:, None], axis=1)))
