"""The plane of a path's first two principal components."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from rnn_callbacks.analysis.loss_plane import MARGIN, plane_directions, plane_grid
from rnn_callbacks.analysis.step_gram import path_steps
from rnn_callbacks.analysis.weight_trajectory import weight_trajectory

EXACT = 1e-10  # sums of a few hundred float64 numbers near 1, through an eigendecomposition
SNAPSHOTS, NUMBERS = 11, 97


def walk(seed=0, snapshots=SNAPSHOTS):
    return np.cumsum(np.random.default_rng(seed).normal(size=(snapshots, NUMBERS)), axis=0)


def directions(weights, *, cuts=()):
    path = weight_trajectory(path_steps(weights))
    parts = plane_directions(path, np.split(weights, cuts, axis=1))
    return path, np.array([np.concatenate(side) for side in zip(*parts, strict=True)])


@pytest.mark.parametrize("points", [1, 2, 3, 8, 31])
def test_the_grid_holds_the_path_and_the_last_snapshot_is_on_it(points):
    path = weight_trajectory(path_steps(walk()))
    for axis, along in zip(plane_grid(path, points), path.components.scores[:, :2].T, strict=True):
        assert axis.shape == (points,)
        assert along[-1] in axis  # exactly, so that the loss there is the network's own
        assert (np.diff(axis) > 0).all()
        reach = np.ptp(along)
        if points > 3:  # of fewer, the end itself may be moved to the last snapshot
            assert axis[[0, -1]] == pytest.approx([along.min() - MARGIN * reach, along.max() + MARGIN * reach])
        even = np.linspace(along.min() - MARGIN * reach, along.max() + MARGIN * reach, points)
        assert (axis == even).sum() >= points - 1  # all others are where they would be anyway


def test_the_directions_are_the_principal_axes_of_the_weights():
    weights = walk()
    path, found = directions(weights)
    pca = PCA(2).fit(weights)
    assert found @ found.T == pytest.approx(np.eye(2), abs=EXACT)
    assert np.abs((found * pca.components_).sum(1)) == pytest.approx(np.ones(2), abs=EXACT)
    # On the axes snapshots have the coordinates that are drawn, signs included.
    assert (weights - weights.mean(0)) @ found.T == pytest.approx(path.components.scores[:, :2], abs=1e-9)


def test_directions_are_the_same_in_one_piece_and_in_many():
    weights = walk()
    _, whole = directions(weights)
    assert directions(weights, cuts=(1, 13, 13, 50))[1] == pytest.approx(whole, abs=EXACT)


def test_single_precision_and_a_far_origin_do_not_turn_the_axes():
    # Steps of 1e-3 around weights of 100 in float32, as late in training; coordinates come from the steps alone.
    weights = (100 + 1e-3 * walk()).astype(np.float32)
    _, found = directions(weights)
    pca = PCA(2).fit(weights.astype(np.float64))
    assert np.abs((found * pca.components_).sum(1)) == pytest.approx(np.ones(2), abs=1e-6)
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    "weights",
    [walk(snapshots=1), walk(snapshots=2), np.outer(np.arange(5.0), np.ones(7)), np.ones((6, 7))],
    ids=["a point", "a step", "a line", "a standstill"],
)
def test_a_path_on_a_line_has_no_plane(weights):
    with pytest.raises(ValueError, match="three snapshots that do not lie on a line"):
        plane_grid(weight_trajectory(path_steps(weights)), 3)
