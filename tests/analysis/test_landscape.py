"""The plane of the picture against scikit-learn, its arrows against eigenvectors that are known."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points
from rnn_callbacks.analysis.fixed_points import find_fixed_points
from rnn_callbacks.analysis.flow import Flow
from rnn_callbacks.analysis.landscape import Plane, lay_out, principal_plane
from rnn_callbacks.analysis.slow_points import Continuum
from rnn_callbacks.cells import cells

from .known_dynamics import box, orthogonal, plain, training, turning, visited

STATES, UNITS = 97, 5


def cloud(seed=0):
    """States with a different width in every direction."""
    wide = box(STATES, UNITS, seed=seed) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double()
    return wide @ orthogonal(UNITS, seed=seed).T + torch.arange(UNITS)


def flow_of(cell):
    return Flow((equation_of(cell),), torch.zeros(cell.input_size).double())


def seen_along(*rows, units):
    return Plane(np.zeros(units), np.eye(units)[list(rows)], np.array([0.5, 0.5]))


def continuum(states):
    return Continuum(1, 1.0, states.mean(0), np.eye(states.shape[1])[:1], 1.0, 0.0, states)


def test_the_plane_is_that_of_scikit_learn():
    states = cloud()
    found, truth = principal_plane(states), PCA(2).fit(states.numpy())
    np.testing.assert_allclose(found.centre, truth.mean_)
    np.testing.assert_allclose(found.explained, truth.explained_variance_ratio_)
    signs = np.sign((found.axes * truth.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(found.axes, signs * truth.components_, atol=1e-10)
    np.testing.assert_allclose(found.project(states.numpy()), truth.transform(states.numpy()) * signs.T, atol=1e-10)


def test_the_largest_weight_of_a_first_plane_is_positive():
    for seed in range(5):
        axes = principal_plane(cloud(seed)).axes
        assert (axes[[0, 1], np.abs(axes).argmax(1)] > 0).all()


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_axes_keep_the_sign_of_the_look_before(signs):
    states = cloud()
    first = principal_plane(states)
    before = Plane(first.centre, first.axes * np.array(signs)[:, None], first.explained)
    found = principal_plane(states + 0.01 * box(STATES, UNITS, seed=3), before)
    assert ((found.axes * before.axes).sum(1) > 0.99).all()


def test_one_unit_is_a_line_in_the_plane():
    states = box(STATES, 1) + 2
    plane = principal_plane(states)
    assert plane.axes.tolist() == [[1], [0]]
    assert plane.explained.tolist() == [1, 0]
    coordinates = plane.project(states.numpy())
    np.testing.assert_allclose(coordinates[:, 0], (states - states.mean())[:, 0])
    assert (coordinates[:, 1] == 0).all()
    assert principal_plane(states, plane).axes.tolist() == [[1], [0]]


@pytest.mark.parametrize("states", [torch.ones(1, 3), torch.ones(7, 3)])
def test_states_that_are_all_the_same_explain_nothing(states):
    plane = principal_plane(states.double())
    assert plane.explained.tolist() == [0, 0]
    assert (plane.project(states.double().numpy()) == 0).all()


def test_turned_states_have_the_same_coordinates():
    states, turn = cloud(), orthogonal(UNITS, seed=4)
    one, other = principal_plane(states), principal_plane(states @ turn.T)
    np.testing.assert_allclose(
        np.abs(one.project(states.numpy())), np.abs(other.project((states @ turn.T).numpy())), atol=1e-10
    )
    np.testing.assert_allclose(one.explained, other.explained)


def test_the_arrow_of_a_saddle_is_its_unstable_direction():
    turn = orthogonal(3)
    weight = turn @ torch.diag(torch.tensor([2.0, 0.5, 0.3]).double()) @ turn.T
    cell = plain(weight)
    points = find_fixed_points(cell, torch.zeros(1, 3))
    found = lay_out(flow_of(cell), points, seen_along(2, 0, units=3), [])
    ((row, arrow),) = found.arrows
    assert row == 0
    direction = turn[[2, 0], 0].numpy()
    np.testing.assert_allclose(arrow * np.sign(arrow[0]), direction * np.sign(direction[0]), atol=1e-10)


def test_the_arrows_of_a_turning_motion_span_its_plane():
    weight = torch.zeros(3, 3).double()
    weight[:2, :2] = 1.3 * turning(0.7)
    cell = plain(weight)
    points = find_fixed_points(cell, torch.zeros(1, 3))
    assert points.kind.tolist() == ["saddle"]
    arrows = lay_out(flow_of(cell), points, seen_along(0, 1, units=3), []).arrows
    assert [row for row, _ in arrows] == [0, 0]
    # The eigenvectors of a rotation are (1, +-i) / sqrt(2): real and imaginary part are orthogonal and equally long.
    pair = np.stack([arrow for _, arrow in arrows])
    np.testing.assert_allclose(pair @ pair.T, np.eye(2) / 2, atol=1e-10)


def test_arrows_belong_to_points_with_something_unstable_and_to_each_direction_that_grows():
    cell = plain(torch.diag(torch.tensor([2.0, 3.0, 0.5]).double()))
    starts = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    points = find_fixed_points(cell, starts)
    assert points.unstable.tolist() == [0, 1, 2, 1]
    found = lay_out(flow_of(cell), points, seen_along(0, 1, units=3), [])
    rows = [row for row, _ in found.arrows]
    assert rows == [1, 2, 2, 3]
    directions = np.abs([arrow for _, arrow in found.arrows])
    np.testing.assert_allclose(directions[[0, 3]], [[1, 0], [0, 1]], atol=1e-10)
    np.testing.assert_allclose(np.sort(directions[[1, 2]], axis=0), [[0, 0], [1, 1]], atol=1e-10)


def test_arrows_of_an_lstm_show_the_hidden_part_of_the_eigenvector():
    module = copy.deepcopy(training("lstm")[-1].rnn).double()
    cell, units = cells(module)[0], module.hidden_size
    points = find_all_fixed_points(cell, visited("lstm")).points
    points = points[np.flatnonzero(points.unstable == 1)[:3]]
    assert len(points) == 3
    found = lay_out(flow_of(cell), points, seen_along(0, 2, units=units), [])
    assert [row for row, _ in found.arrows] == [0, 1, 2]

    def step(state):
        parts = tuple(part[None, None].contiguous() for part in state.split(units))
        return torch.cat([part.flatten() for part in module(torch.zeros(1, 1, 3).double(), parts)[1]])

    for (_, arrow), state in zip(found.arrows, torch.as_tensor(points.states), strict=True):
        values, vectors = torch.linalg.eig(torch.autograd.functional.jacobian(step, state))
        truth = vectors[:, values.abs().argmax()].real[[0, 2]].numpy()
        np.testing.assert_allclose(arrow * np.sign(arrow[0]), truth * np.sign(truth[0]), atol=1e-8)


def test_everything_is_seen_from_the_same_place():
    cell = plain(2 * torch.eye(3))
    points = find_fixed_points(cell, box(64, 3)).unique()
    states = box(STATES, 3)
    plane = principal_plane(states)
    paths = [states[:7], states[7:20]]
    found = lay_out(flow_of(cell), points, plane, paths, continuum(states[:11].numpy()))
    np.testing.assert_allclose(found.points, (points.states - plane.centre) @ plane.axes.T)
    for coordinates, path in zip(found.trajectories, paths, strict=True):
        np.testing.assert_allclose(coordinates, (path.numpy() - plane.centre) @ plane.axes.T)
    np.testing.assert_allclose(found.continuum, (states[:11].numpy() - plane.centre) @ plane.axes.T)


def test_nothing_is_laid_out_as_nothing():
    cell = plain(2 * torch.eye(3))
    points = find_fixed_points(cell, box(5, 3))[:0]
    found = lay_out(flow_of(cell), points, seen_along(0, 1, units=3), [])
    assert (found.points.shape, found.continuum.shape) == ((0, 2), (0, 2))
    assert (found.arrows, found.trajectories) == ((), ())


def test_one_unit_has_arrows_along_its_line():
    cell = plain([[2.0]])
    points = find_fixed_points(cell, torch.zeros(1, 1))
    ((_, arrow),) = lay_out(flow_of(cell), points, principal_plane(box(STATES, 1)), []).arrows
    assert np.abs(arrow).tolist() == [1, 0]
    assert math.isfinite(arrow.sum())
