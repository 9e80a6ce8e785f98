"""Trajectories of some sequences at several looks in one picture, so that all share its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from .phate_embedding import MOST, phate_embedding

Method = Literal["phate", "pca"]
Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class StateEmbedding:
    """Where states lie in a picture. The axes of PCA are principal components of all states shown."""

    epochs: tuple[int, ...]  # of the looks, oldest first; -1: before training
    points: Floats  # (E, Q, S, 2), NaN where a sequence has no such step
    method: Method
    remark: str  # why PCA stands in for PHATE, or what to mind; "" where there is nothing
    explained: tuple[float, float]  # shares of the variance, of PCA; zeros of PHATE


def embed_states(
    looks: Sequence[tuple[int, NDArray[np.floating]]],
    method: Method,
    *,
    known: Mapping[int, Floats] | None = None,
    seed: int = 0,
) -> StateEmbedding:
    """Lay the states of several looks out in one plane.

    Args:
        looks: epoch and states ``(Q, S, H)`` of each, of the same sequences and steps; NaN where a sequence has no such
            step or the state is not finite.
        method: ``phate`` falls back on ``pca`` where there are too few distinct states, and says so.
        known: where states of some looks lay in an earlier picture, ``(Q, S, 2)`` by epoch: the new picture is turned
            (PCA: only reflected) to lie as that did.
        seed: of PHATE.

    Raises:
        ValueError: when shapes differ or no state is finite.
    """
    shapes = {states.shape for _, states in looks}
    if len(shapes) != 1 or any(len(shape) != 3 for shape in shapes):
        raise ValueError(f"looks must all have states of one shape (Q, S, H), got {sorted(shapes)}")
    stacked = np.stack([states for _, states in looks]).astype(np.float64)
    there = np.isfinite(stacked).all(-1)
    if not there.any():
        raise ValueError("there is no finite state to embed")
    flat, remark, explained = stacked[there], "", (0.0, 0.0)
    laid = None
    if method == "phate" and len(flat) > MOST:
        remark = f"PHATE takes up to {MOST} states, got {len(flat)}: PCA alone"
    elif method == "phate":
        laid, remark = _phate(flat, seed)
    if laid is None:
        method = "pca"
        laid, explained = _pca(flat)
    points = np.full((*there.shape, 2), np.nan)
    points[there] = laid
    epochs = tuple(epoch for epoch, _ in looks)
    return StateEmbedding(epochs, _oriented(points, epochs, known or {}, method), method, remark, explained)


def _phate(states: Floats, seed: int) -> tuple[Floats | None, str]:
    found = phate_embedding(squareform(pdist(states)), seed=seed)
    if found.why_not:
        return None, found.why_not
    return found.points, "" if found.connected else "in several pieces: gaps between them mean nothing"


def _pca(states: Floats) -> tuple[Floats, tuple[float, float]]:
    centred = states - states.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    scores = np.zeros((len(states), 2))
    scores[:, : min(2, len(singular))] = left[:, :2] * singular[:2]
    total = float(np.square(singular).sum())
    share = [float(value) for value in np.square(singular[:2]) / total] if total > 0 else []
    share += [0.0] * (2 - len(share))
    return scores, (share[0], share[1])


def _oriented(points: Floats, epochs: tuple[int, ...], known: Mapping[int, Floats], method: Method) -> Floats:
    """Turned or reflected so that states which were in the picture before lie about where they lay."""
    before = np.stack([known.get(epoch, np.full(points.shape[1:], np.nan)) for epoch in epochs])
    common = np.isfinite(points).all(-1) & np.isfinite(before).all(-1)
    if common.sum() < 2:
        return points
    now, then = points[common], before[common]
    product = (now - now.mean(0)).T @ (then - then.mean(0))
    if method == "pca":
        turn = np.diag(np.where(product.diagonal() < 0, -1.0, 1.0))
    else:
        left, _, right = np.linalg.svd(product)
        turn = left @ right
    return np.asarray(points @ turn)
