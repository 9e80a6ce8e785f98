"""A picture of a path in two dimensions that keeps who is near to whom, also where the path bends out of every plane.

PHATE (Moon et al. 2019, Nature Biotechnology 37): distances become steps of a diffusion between neighbours, what the
diffusion says about two points becomes their distance, and that is laid out in the plane. Lengths mean little in the
picture: compare with the distances themselves before believing in a gap or a loop.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

MOST = 1000  # points; 0.4 s of one core for 500, 1.8 s for 1000
FEWEST = 6  # distinct points; of fewer PHATE 2.0 makes a line at best
SYMMETRIC = 1e-6  # share of the largest distance that d(i, j) and d(j, i) may differ by: rounding in float32 is 1e-7

# From so many distinct points on, so many neighbours: with more of them short paths collapse to a line (second singular
# value over the first: with 10 points .32 for 1 neighbour, .22 for 2, .001 for 3; with 20 points .20 for 5).
# From 60 points on it is a tenth of them: with 5, a straight line of 100 points ends .79 of the picture's width from
# where it begins, of 500 points .15, a ring.
_NEIGHBOURS = ((20, 5), (15, 3), (10, 2), (FEWEST, 1))


@final
@dataclass(frozen=True, eq=False)
class Embedding:
    """Where points lie in a picture, or why there is none."""

    points: NDArray[np.float64]  # (n, 2), root mean square distance from the origin 1; (0, 2) where there is none
    why_not: str  # in plain words; "" where there are points
    neighbours: int  # of each point in the graph; 0 where there is none
    connected: bool  # False: the graph fell apart (a jump in the path); gaps between its pieces mean nothing


def phate_embedding(distances: NDArray[np.float64], *, seed: int = 0) -> Embedding:
    """Where the points of a path lie when its neighbourhoods are laid out in the plane.

    PHATE with its defaults (decay 40, the time of the diffusion chosen by itself), but for two: SMACOF lays out fewer
    than 200 points better than the stochastic default does, and short paths get fewer neighbours. Points at distance 0
    are embedded once, so they coincide and weigh as one.

    The picture has no units: distances count relative to the largest only, and the distinct points are centred and
    scaled to a root mean square distance of 1. Axes are as PHATE's layout has them, the longest extent about along the
    first. Each is reflected, nothing is rotated, so that a path which grows looks alike from look to look: the last
    point not to the left of the first, the first not below the centre. Where either is a tie an axis may flip.

    Where the picture misleads, all measured. A straight line is drawn as a bow, a fifth (20 points) to half (500) as
    high as it is wide: the diffusion does not tell far from farther. A stretch of no more points than `neighbours`, far
    from all others, is linked to all of them: it is drawn in their midst, and `connected` stays true. And with fewer
    than 10 points a path that wanders falls apart without a jump (.4 to .55 of random walks).

    Args:
        distances: ``(n, n)`` between points in order of time, exact: symmetric, finite, 0 on the diagonal, n at most
            `MOST`.
        seed: of the layout's start, which moves points by rounding only.

    Raises:
        ValueError: when distances are none, which PHATE would embed without a word, or of too many points.
    """
    relative = _relative(distances)
    count, place = connected_components(relative == 0, directed=False)
    if count < FEWEST:
        why_not = f"PHATE needs at least {FEWEST} distinct points, got {count}: PCA alone"
        if count == 1 < len(relative):
            why_not = f"nothing moved: all {len(relative)} points are the same"
        return Embedding(np.zeros((0, 2)), why_not, 0, True)
    first = np.unique(place, return_index=True)[1]
    neighbours = max(next(number for least, number in _NEIGHBOURS if count >= least), count // 10)
    points, connected = _phate(relative[np.ix_(first, first)], neighbours, seed)
    points = (points - points.mean(0))[place] / np.sqrt(points.var(0).sum())
    points *= np.where([points[-1, 0] < points[0, 0], points[0, 1] < 0], -1.0, 1.0)
    return Embedding(points, "", neighbours, connected)


def _relative(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances ``(n, n)`` in units of the largest; refused where they are none."""
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(f"distances must be (n, n), got shape {distances.shape}")
    if len(distances) > MOST:
        raise ValueError(f"distances must be of at most {MOST} points, got {len(distances)}: thin the path first")
    if not np.isfinite(distances).all():
        raise ValueError(f"distances must be finite, {np.sum(~np.isfinite(distances))} of {distances.size} are not")
    if distances.min(initial=0) < 0:
        raise ValueError(f"distances must not be negative, got {distances.min():.3g}")
    if (diagonal := distances.diagonal()).any():
        raise ValueError(f"distances must be 0 from a point to itself, got up to {diagonal.max():.3g}")
    relative = distances.astype(np.float64) / (distances.max(initial=0) or 1)
    if (skew := np.abs(relative - relative.T).max(initial=0)) > SYMMETRIC:
        raise ValueError(f"distances must be symmetric, got some that differ by {skew:.3g} of the largest")
    return np.asarray(relative)


def _phate(distances: NDArray[np.float64], neighbours: int, seed: int) -> tuple[NDArray[np.float64], bool]:
    """PHATE's layout ``(n, 2)`` and whether its graph hangs together, without a sound."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a graph in pieces is told, overflow of (distance / bandwidth)^40 is meant
        import phate  # here: takes 2.5 s, imports pyplot, and is GPL, so that who does not call this does not load it

        logger = logging.getLogger("graphtools")  # PHATE sets its level for the whole process
        level = logger.level
        try:
            operator = phate.PHATE(
                n_components=2,
                knn=neighbours,
                knn_dist="precomputed_distance",
                mds_solver="smacof",  # the default, sgd, also prints on the real stdout
                n_pca=None,
                random_state=int(seed),  # None draws from the global generator, np.int64 crashes other layouts
                n_jobs=1,
                verbose=0,
            )
            points = np.asarray(operator.fit_transform(distances), np.float64)
        finally:
            logger.setLevel(level)
    return points, bool(connected_components(operator.graph.kernel, directed=False)[0] == 1)
