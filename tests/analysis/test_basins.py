"""Basins, kicks and reach of cells whose basins are known, and of trained flip-flops."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.basins import ARRIVED, KICK, Basins, Reach, find_basins, measure_reach, return_rates
from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_search import search
from rnn_callbacks.analysis.fixed_points import find_fixed_points
from rnn_callbacks.analysis.flow import Flow
from rnn_callbacks.cells import cells

from .known_dynamics import box, plain, training, turning, visited

ROOT = 0.9575040240772688  # of tanh(2 h) = h
FOLD = math.sqrt(2) - math.atanh(math.sqrt(0.5))  # tanh(2 h + b) = h has three roots below
FAMILIES = ("rnn", "lstm", "gru")
BITS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)


def flow_of(cell):
    return Flow((equation_of(cell),), torch.zeros(cell.input_size).double())


def points_of(cell, states):
    equation = equation_of(cell)
    return search([equation], torch.zeros(cell.input_size).double(), [states[:, : equation.unknowns].double()]).points


def attractors_of(cell, states):
    points = points_of(cell, states)
    return torch.as_tensor(points.states[points.kind == "attractor"])


def test_sign_decides_the_basin_of_a_one_bit_cell():
    cell, states = plain([[2.0]]), box(211, 1)
    attractors = attractors_of(cell, states)
    found = find_basins(flow_of(cell), states, attractors, 0.6)
    assert np.array_equal(np.sign(attractors.numpy()[found.attractor, 0]), np.sign(states.numpy()[:, 0]))
    positive = float((states > 0).double().mean())
    for attractor, share in zip(attractors, found.shares, strict=True):
        assert share == (positive if attractor > 0 else 1 - positive)
    assert found.unresolved == 0
    entropy = -(positive * math.log2(positive) + (1 - positive) * math.log2(1 - positive))
    assert found.entropy == pytest.approx(entropy, rel=1e-12)


def test_three_bits_used_equally_are_three_bits():
    cell = plain(2 * torch.eye(3))
    states = (BITS[:, None] * (0.1 + 0.8 * box(31, 3).abs())).flatten(0, 1)
    found = find_basins(flow_of(cell), states, ROOT * BITS, 1.0)
    assert (found.attractor == np.arange(8).repeat(31)).all()
    assert (found.shares == 1 / 8).all()
    assert found.entropy == pytest.approx(3)


def test_order_of_states_and_of_attractors_does_not_matter():
    cell, states = plain(2 * torch.eye(3)), box(97, 3)
    flow, order, rows = flow_of(cell), torch.randperm(8), torch.randperm(97)
    one = find_basins(flow, states, ROOT * BITS, 1.0)
    other = find_basins(flow, states[rows], ROOT * BITS[order], 1.0)
    assert (order.numpy()[other.attractor] == one.attractor[rows]).all()
    np.testing.assert_allclose(other.shares, one.shares[order.numpy()])


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_a_flip_flop_flow_where_the_module_takes_them(family):
    module = training(family)[-1].rnn
    cell = cells(module)[0]
    equation = equation_of(cell)
    hidden = visited(family)[::16].double()
    states = equation.state(equation.drive_of(torch.zeros(1, 3)), hidden)
    attractors = attractors_of(cell, visited(family))
    found = find_basins(flow_of(cell), states, attractors, 1.0)
    start = tuple(part[None].float().contiguous() for part in states.split(16, dim=1))
    with torch.no_grad():
        outputs, _ = module(torch.zeros(len(states), 300, 3), start if family == "lstm" else start[0])
    truth = torch.cdist(outputs[:, -1].double(), attractors[:, :16]).argmin(1)
    assert len(attractors) == 8
    assert (found.attractor == truth.numpy()).all()
    assert 2.5 < found.entropy <= 3
    assert found.shares.sum() == pytest.approx(1)


def test_states_that_never_arrive_are_unresolved():
    circling, states = plain(1.3 * turning(0.7)), box(13, 2)
    found = find_basins(flow_of(circling), states, torch.zeros(1, 2).double(), 1.0)
    assert (found.attractor == -1).all()
    assert (found.unresolved, found.entropy) == (1, 0)
    leaving = plain([[2.0]], nonlinearity="relu")
    found = find_basins(flow_of(leaving), box(13, 1).abs(), torch.zeros(1, 1).double(), 1.0)
    assert found.unresolved == 1


def test_without_attractors_or_time_nothing_is_resolved():
    cell, states = plain([[2.0]]), box(13, 1)
    found = find_basins(flow_of(cell), states, torch.empty(0, 1).double(), 1.0)
    assert (len(found.shares), found.unresolved, found.entropy) == (0, 1, 0)
    slow, states = plain([[math.exp(-1 / 100)]]), torch.tensor([[ARRIVED], *[[0.5]] * 12]).double()
    found = find_basins(flow_of(slow), states, torch.zeros(1, 1).double(), 1.0, deadline=time.perf_counter())
    assert found.attractor[0] == 0  # it was there already
    assert found.shares == pytest.approx([1 / 13])
    assert found.unresolved == pytest.approx(float((states > 1.2 * ARRIVED).double().mean()))


def test_shares_of_no_states_are_finite():
    found = Basins(np.array([], dtype=np.int64), np.zeros(2))
    assert (found.unresolved, found.entropy) == (0, 0)


# ---- kicks


@pytest.mark.parametrize("weight", [[[0.5]], [[2.0]], [[-0.9]], (2 * torch.eye(3)).tolist(), (0.95 * turning(0.3))])
def test_every_attractor_of_a_known_cell_survives_every_kick(weight):
    cell = plain(weight)
    points = points_of(cell, box(64, len(weight)))
    found = return_rates(flow_of(cell), points, 0.6)
    assert found.shape == ((points.kind == "attractor").sum(),)
    assert (found == 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_attractors_of_a_flip_flop_survive_kicks(family):
    cell = cells(training(family)[-1].rnn)[0]
    found = return_rates(flow_of(cell), points_of(cell, visited(family)), 1.0)
    assert found.tolist() == [1.0] * 8


@pytest.mark.parametrize("before", [1e-2, 1e-4, 1e-6])
def test_kicks_shrink_with_the_distance_to_the_saddle_before_a_fold(before):
    # A kick of fixed size would throw the state over the saddle; a tenth of the way to it does not.
    cell = plain([[2.0]], [FOLD - before])
    points = points_of(cell, box(64, 1))
    assert len(points) == 3
    assert return_rates(flow_of(cell), points, 0.6).tolist() == [1, 1]


def test_saddles_and_repellers_are_not_kicked():
    cell = plain(1.3 * turning(0.7))
    assert return_rates(flow_of(cell), points_of(cell, box(64, 2)), 1.0).shape == (0,)


def test_kicks_that_lead_away_are_counted():
    # Beside its line of stable points a relu cell is pushed along: h1' = h1 + max(h2, 0) keeps what it was given.
    cell = plain([[1.0, 1.0], [0.0, 0.0]], nonlinearity="relu")
    found = find_fixed_points(cell, torch.tensor([[1.0, 0.0]]).double())
    assert found.kind.tolist() == ["attractor"]
    assert return_rates(flow_of(cell), found, 1.0)[0] < 1


def test_kicks_are_seeded():
    cell = plain(2 * torch.eye(3))
    points = points_of(cell, box(64, 3))
    state = torch.get_rng_state()
    one, other = (return_rates(flow_of(cell), points, 1.0, seed=3) for _ in range(2))
    assert np.array_equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert 0 < KICK < 0.5


def test_a_kick_without_time_to_return_is_not_called_lost():
    cell = plain([[math.exp(-1 / 30)]])
    points = points_of(cell, box(7, 1))
    found = return_rates(flow_of(cell), points, 1.0, deadline=time.perf_counter())
    assert not (found < 1).any()


# ---- reach


def test_reach_of_known_states_is_the_median_of_known_distances():
    halving = plain(0.5 * torch.eye(2), nonlinearity="relu")
    ends = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0]]).double()  # |h| = 5, 10, 1
    found = measure_reach(flow_of(halving), ends, torch.zeros(1, 2).double(), 2.0)
    assert (found.end_distance, found.end_speed) == (5 / 2, 5 / 2 / 2)
    nearer = torch.tensor([[0.0, 0.0], [6.0, 8.0], [3.0, 3.0]]).double()
    assert measure_reach(flow_of(halving), ends, nearer, 2.0).end_distance == 1 / 2


def test_reach_counts_the_hidden_state_and_not_the_memory():
    torch.manual_seed(0)
    module = nn.LSTM(3, 5, 2).double()
    flow = Flow(tuple(equation_of(cell) for cell in cells(module)), torch.zeros(3).double())
    ends, attractor = torch.rand(1, 20).double(), torch.rand(1, 20).double()
    hidden = [*range(5), *range(10, 15)]
    truth = float((ends - attractor)[0, hidden].norm()) / 3
    assert measure_reach(flow, ends, attractor, 3.0).end_distance == pytest.approx(truth)
    with torch.no_grad():
        given = ends.view(2, 2, 5).transpose(0, 1)  # hidden and memory, by layer
        _, (after, _) = module(torch.zeros(1, 1, 3).double(), tuple(part[:, None].contiguous() for part in given))
    speed = float((after.flatten() - ends[0, hidden]).norm()) / 3
    assert measure_reach(flow, ends, attractor, 3.0).end_speed == pytest.approx(speed)


def test_reach_without_ends_or_attractors_is_zero():
    flow = flow_of(plain([[0.5]]))
    none = torch.empty(0, 1).double()
    assert measure_reach(flow, none, torch.zeros(1, 1).double(), 1.0) == Reach(0, 0)
    found = measure_reach(flow, torch.ones(1, 1).double(), none, 1.0)
    assert found.end_distance == 0
    assert found.end_speed == pytest.approx(1 - math.tanh(0.5))
