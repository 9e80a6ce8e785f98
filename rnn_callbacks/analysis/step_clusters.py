"""Into how many groups do sequences split as they are read?

At each step the states of all sequences are clustered by k-means, and the number of clusters is the one with the
largest mean silhouette (Rousseeuw 1987). A silhouette is large also where nothing is grouped but little room is there:
a line that is cut in two has 0.62. So it counts only above what a uniform cloud of the same dimension gives, which is
the reference of the gap statistic (Tibshirani, Walther and Hastie 2001); otherwise all are one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans

MOST = 12  # clusters; more are reported as so many
SEQUENCES = 128  # that are clustered at a step, evenly spread over those there are
FEWEST = 8  # sequences, below which groups mean nothing
MARGIN = 0.1  # by which a silhouette must exceed that of a uniform cloud; these differ by .03 from draw to draw
SURE = 64  # sequences, with fewer of which draws differ more, and the margin grows
SMALLEST = 3  # sequences, below which a cluster is an outlier and counts for nothing
ROUNDS, REFINED = 30, 2  # rounds of k-means; divisions that it refines, the best ones of Ward's method
EXPLAINED, DIMENSIONS = 0.9, 10  # of the variance, in at most so many principal components
SAME = 1e-4  # of the root mean square state: states less far from each other are the same

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class StepClusters:
    """Groups of sequences at S steps. NaN where fewer than 8 sequences have the step."""

    count: Floats  # (S,), from 1 to 12
    silhouette: Floats  # (S,), of the best division into at least two, in [-1, 1]; 1 where there are two states or more
    reference: Floats  # (S,), the same of a uniform cloud with as many dimensions


def step_clusters(states: NDArray[np.floating], counted: NDArray[np.bool_]) -> StepClusters:
    """Cluster sequences at each step.

    k-means starts from the best two divisions of Ward's method, so nothing is drawn and equal states give equal
    clusters. What it cannot know: a ring, or another curve that fills no line and no plane, is cut into pieces.

    Args:
        states: ``(N, S, H)``.
        counted: ``(N, S)``, whether a sequence has a finite state at a step.

    Raises:
        ValueError: for other shapes.
    """
    if states.ndim != 3 or counted.shape != states.shape[:2]:
        raise ValueError(f"states must be (N, S, H) and counted (N, S), got {states.shape} and {counted.shape}")
    found = [_clusters(states[rows, step]) for step, rows in enumerate(counted.T)]
    return StepClusters(*np.array(found, dtype=np.float64).reshape(-1, 3).T)


def _clusters(states: NDArray[np.floating]) -> tuple[float, float, float]:
    """Number, silhouette and reference of one step."""
    if len(states) < FEWEST:
        return np.nan, np.nan, np.nan
    chosen = states[np.unique(np.linspace(0, len(states) - 1, SEQUENCES).round().astype(int))].astype(np.float64)
    scores = _scores(chosen)
    if scores is None:
        return 1.0, 0.0, 0.0
    spectrum = scores.var(0)
    reference = _reference_at(float(spectrum.sum() ** 2 / np.square(spectrum).sum()), len(scores))
    silhouette, count = max(_divisions(scores))
    margin = MARGIN * max(1.0, np.sqrt(SURE / len(scores)))
    return float(count if silhouette > reference + margin else 1), silhouette, reference


def _scores(states: Floats) -> Floats | None:
    """The first principal components ``(n, D)``; None where all states are the same."""
    centred = states - states.mean(0)
    size = np.sqrt(np.square(states).sum(1).mean())
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    if not singular[0] > SAME * size * np.sqrt(len(states)):
        return None
    share = np.cumsum(np.square(singular)) / np.square(singular).sum()
    count = min(int(np.searchsorted(share, EXPLAINED)) + 1, DIMENSIONS)
    scores: Floats = left[:, :count] * singular[:count]
    return scores


def _divisions(scores: Floats) -> list[tuple[float, int]]:
    """Mean silhouette and number of clusters of the divisions that are best by Ward's method, after k-means."""
    size = np.sqrt(np.square(scores).sum(1).mean())
    distinct = len(np.unique(np.round(scores / (SAME * size)), axis=0))
    tree, distances = linkage(scores, "ward"), squareform(pdist(scores))
    ranked = sorted(_cuts(tree, min(MOST, distinct)), key=lambda labels: -_judge(distances, labels)[0])
    found = [(0.0, 1)]
    for labels in ranked[:REFINED]:
        members = np.eye(labels.max() + 1)[labels]
        start = members.T @ scores / members.sum(0)[:, None]
        refined = KMeans(len(start), init=start, n_init=1, max_iter=ROUNDS).fit(scores).labels_
        found.append(_judge(distances, refined))
    return found


def _cuts(tree: Floats, most: int) -> list[NDArray[np.intp]]:
    """Labels ``(n,)`` of the divisions of a tree into 2, 3, ... clusters; scipy's ``fcluster`` takes each anew."""
    count = len(tree) + 1
    parents = np.empty(2 * count - 1, int)
    parents[tree[:, :2].astype(int)] = np.arange(count, 2 * count - 1)[:, None]
    parents[-1] = 2 * count
    nodes = np.arange(count)
    while (up := parents[nodes] < 2 * count - most).any():  # those that are merged before so many are left
        nodes = np.where(up, parents[nodes], nodes)
    cuts = []
    for merged in range(2 * count - most, 2 * count - 1):
        cuts.append(np.unique(nodes, return_inverse=True)[1])
        nodes = np.where(parents[nodes] == merged, merged, nodes)
    return cuts[::-1]


def _judge(distances: Floats, labels: NDArray[np.integer]) -> tuple[float, int]:
    """Mean silhouette of a division and its number of clusters; outliers are left out."""
    large = np.flatnonzero(np.bincount(labels) >= SMALLEST)
    if len(large) < 2:
        return 0.0, 1
    kept = np.isin(labels, large)
    return _silhouette(distances[kept][:, kept], np.searchsorted(large, labels[kept])), len(large)


def _silhouette(distances: Floats, labels: NDArray[np.integer]) -> float:
    """Mean over points of (b - a) / max(a, b), from the distances between them."""
    members = np.eye(labels.max() + 1)[labels]
    counts, sums, rows = members.sum(0), distances @ members, np.arange(len(labels))
    own = sums[rows, labels] / np.maximum(counts[labels] - 1, 1)
    means = sums / counts
    means[rows, labels] = np.inf
    other = means.min(1)
    larger = np.maximum(own, other)
    return float(np.divide(other - own, larger, out=np.zeros_like(own), where=larger > 0).mean())


_SIZES = (1, 2, 4, 10)  # dimensions of the clouds


def _reference_at(dimension: float, count: int) -> float:
    """The largest silhouette of a uniform cloud of so many dimensions, between whole ones by a straight line."""
    return float(np.interp(dimension, _SIZES, _references(count)))


@lru_cache(maxsize=SEQUENCES)
def _references(count: int) -> tuple[float, ...]:
    """Of clouds with each of these dimensions."""
    generator = np.random.default_rng(0)
    return tuple(max(_divisions(generator.random((count, size))))[0] for size in _SIZES)
