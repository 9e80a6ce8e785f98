"""All fixed points of a cell and of a stack, and what the search says of its own completeness."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points
from rnn_callbacks.analysis.fixed_points import find_fixed_points
from rnn_callbacks.cells import cells

from ..reference_dynamics import find_reference_points
from ..test_own_cells import INPUTS, UNITS, PeepholeCell
from .known_dynamics import Linear, box, orthogonal, plain, training, turning, visited
from .test_fixed_points import EXACT, FAMILIES, ROOT, SPEED, same_set, spectrum_distance


def counts(points):
    """How many points have 0, 1, 2, ... unstable directions."""
    return np.bincount(points.unstable).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_flip_flop_has_8_attractors_and_19_saddles(family):
    found = find_all_fixed_points(cells(training(family)[-1].rnn), visited(family))
    assert counts(found.points) == [8, 12, 6, 1]
    assert found.index_sum == 1
    assert found.complete
    assert found.points.speed.max() <= SPEED
    assert found.stopped == ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held", [(0, 0, 0), (1, 0, 0), (1, -1, 0), (1, -1, 1)])
def test_points_are_those_of_the_slow_reference(family, held):
    held = torch.tensor(held).double()
    module = training(family)[-1].rnn
    truth = find_reference_points(module, held, starts=64)
    found = find_all_fixed_points(cells(module), visited(family), held)
    assert same_set(found.points.states, truth.states, 1e-8)  # the reference stops at 1e-10 in an LSTM's c of size 20
    assert found.complete
    for state, eigenvalues in zip(found.points.states, found.points.eigenvalues, strict=True):
        (row,) = np.flatnonzero(np.abs(truth.states - state).max(1) < 1e-6)
        assert spectrum_distance(eigenvalues, truth.eigenvalues[row]) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_answer_does_not_depend_on_the_choice_of_starts(family, seed):
    module = cells(training(family)[-1].rnn)
    one, other = (find_all_fixed_points(module, visited(family), seed=s).points for s in (0, seed))
    assert same_set(one.states, other.states, EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_few_or_equal_visited_states_are_enough(family):
    module = cells(training(family)[-1].rnn)
    for pool in (visited(family)[:1], visited(family)[:1].expand(40, -1), visited(family)[:3]):
        assert counts(find_all_fixed_points(module, pool).points) == [8, 12, 6, 1]


def test_points_on_the_side_that_was_never_visited_are_found():
    for pool in (torch.zeros(1, 1), torch.full((9, 1), 0.9)):
        found = find_all_fixed_points(plain([[2.0]]), pool)
        assert same_set(found.points.states, np.array([[-ROOT], [0.0], [ROOT]]))
        assert found.complete


@pytest.mark.parametrize("pool", [torch.zeros(1, 1), torch.full((9, 1), 0.9), box(97, 1)])
def test_a_search_of_a_bounded_cell_goes_on_until_the_sum_is_1_or_its_starts_are_used_up(pool):
    found = find_all_fixed_points(plain([[2.0]]), pool)
    assert found.index_sum == 1 or found.stopped == "starts"


def test_rotation_with_gain_above_one_is_one_repeller():
    found = find_all_fixed_points(plain(1.3 * turning(0.7)), box(97, 2))
    assert found.points.kind.tolist() == ["repeller"]
    assert found.index_sum == 1
    assert found.complete


def test_independent_units_have_every_combination():
    found = find_all_fixed_points(plain(2 * torch.eye(3)), box(97, 3))
    grid = np.stack(np.meshgrid(*[[-ROOT, 0, ROOT]] * 3), axis=-1).reshape(27, 3)
    assert same_set(found.points.states, grid)
    assert counts(found.points) == [8, 12, 6, 1]
    assert found.complete


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_weights_rest_at_zero(family):
    module = FAMILIES[family](3, 5)
    for weight in module.parameters():
        weight.data.zero_()
    found = find_all_fixed_points(cells(module), torch.zeros(7, 5))
    assert np.abs(found.points.states).max() < EXACT
    assert len(found.points) == 1
    assert found.complete


def test_line_attractor_is_a_continuum_and_no_list_of_points():
    found = find_all_fixed_points(plain(torch.full((4, 4), 0.25), nonlinearity="relu"), box(97, 4).abs())
    assert found.stopped == "continuum"
    assert len(found.points) == 0
    assert found.index_sum is None
    assert not found.complete


@pytest.mark.parametrize("closed", [8.0, 16.0, 40.0])
def test_slow_units_do_not_make_an_isolated_point_degenerate(closed):
    torch.manual_seed(0)
    module = nn.GRU(1, 5).double()
    module.bias_ih_l0.data[5:10] = closed  # all eigenvalues are 1 - something e^-closed, n(h) = h stays as it was
    found = find_all_fixed_points(cells(module), box(97, 5))
    assert len(found.points) == 1
    assert not found.points.degenerate.any()
    assert found.index_sum == 1


@pytest.mark.parametrize("open_", [10.0, 16.0, 25.0])
def test_long_memories_do_not_make_an_isolated_point_degenerate(open_):
    torch.manual_seed(0)
    module = nn.LSTM(1, 5).double()
    module.bias_ih_l0.data[5:10] = open_
    found = find_all_fixed_points(cells(module), box(97, 5))
    assert len(found.points)
    assert not found.points.degenerate.any()


def test_fresh_lstm_with_a_forget_bias_of_3_has_a_point():
    """A common start for long memories; a bounded map of a box into itself has a fixed point (Brouwer)."""
    torch.manual_seed(0)
    module = nn.LSTM(2, 64, batch_first=True)
    module.bias_ih_l0.data[64:128] = 3
    with torch.no_grad():
        states = module(torch.randn(16, 50, 2))[0].flatten(0, 1)
    assert len(find_all_fixed_points(cells(module), states).points)


def test_forget_gates_that_round_to_one_give_no_point_that_moves():
    torch.manual_seed(0)
    module = nn.LSTM(1, 5).double()
    module.bias_ih_l0.data[5:10] = 40.0
    found = find_all_fixed_points(cells(module), box(97, 5), max_starts=100)
    c = np.abs(found.points.states[:, 5:]).max(1, initial=0)
    assert (found.points.speed <= 5 * (1e-15 * c) ** 2 + SPEED).all()  # what rounding makes of so large a memory


def test_point_at_which_a_pitchfork_opens_is_one_point_and_no_continuum():
    found = find_all_fixed_points(plain(torch.eye(3)), box(97, 3))  # tanh(h) = h, all slopes are 1
    assert len(found.points) == 1
    assert np.abs(found.points.states).max() < 1e-3  # |h|^3 / 3 is below the residual of 1e-11 there
    assert found.points.degenerate.all()
    assert found.index_sum is None


def test_a_sum_of_one_is_not_complete_where_most_starts_end_nowhere():
    generator = torch.Generator().manual_seed(0)
    cell = plain(0.5 * torch.randn(64, 64, generator=generator, dtype=torch.float64))  # gain 4: chaos, many saddles
    found = find_all_fixed_points(cell, box(97, 64))
    others = find_fixed_points(cell, box(300, 64, seed=3)).unique()
    assert len(others) > 10
    assert len(found.points) >= len(others) or not found.complete


def joint(module, states):
    """The next states of a real 2-layer module, [h, c] of layer 0 and then of layer 1, under no input."""
    units = module.hidden_size
    parts = states.split(units, dim=1)
    x = states.new_zeros(1, len(states), module.input_size)
    if isinstance(module, nn.LSTM):
        h, c = torch.stack(parts[::2]), torch.stack(parts[1::2])
        h, c = module(x, (h, c))[1]
        return torch.cat([h[0], c[0], h[1], c[1]], dim=1)
    return torch.cat(list(module(x, torch.stack(parts))[1]), dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_points_of_a_stack_rest_in_the_real_module_with_its_joint_spectrum(family, seed):
    torch.manual_seed(seed)
    module, units = FAMILIES[family](3, 5, num_layers=2).double(), 5
    for name, weight in module.named_parameters():
        weight.data.mul_(4.0 if "hh" in name else 2.0)
    found = find_all_fixed_points(cells(module), [box(97, units), box(97, units)])
    assert found.index_sum == 1
    assert found.complete
    states = torch.tensor(found.points.states)
    assert (joint(module, states) - states).abs().max() < 1e-10
    for row, state in enumerate(states):
        jacobian = torch.autograd.functional.jacobian(lambda s: joint(module, s[None])[0], state)
        assert spectrum_distance(found.points.eigenvalues[row], np.linalg.eigvals(jacobian.numpy())) < 1e-6
        sign = np.linalg.slogdet(np.eye(len(jacobian)) - jacobian.numpy()).sign
        assert found.points.index[row] == sign


def test_stack_of_independent_units_has_the_product_of_points():
    module = nn.RNN(1, 2, num_layers=2).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.weight_hh_l0.copy_(2 * torch.eye(2))
        module.weight_hh_l1.copy_(2 * torch.eye(2))
        module.weight_ih_l1.copy_(0.01 * torch.eye(2))  # too little to make points merge
    found = find_all_fixed_points(cells(module), [box(97, 2), box(97, 2)])
    assert counts(found.points) == [16, 32, 24, 8, 1]  # (2 attractors, 1 repeller)^4, binomial(4, k) 2^(4 - k)
    assert found.complete


def test_cell_of_a_users_own_is_searched_in_its_whole_state():
    torch.manual_seed(0)
    module = PeepholeCell(INPUTS)
    found = find_all_fixed_points(cells(module), box(97, 2 * UNITS))
    assert len(found.points)
    assert found.index_sum is None  # nothing is known of its bounds
    assert not found.complete
    h, c = torch.tensor(found.points.states).float().split(UNITS, dim=1)
    with torch.no_grad():
        after = torch.cat(module(torch.zeros(len(h), INPUTS), (h, c)), dim=1)
    assert (after - torch.cat([h, c], dim=1)).abs().max() < 1e-5  # float32
    assert found.points.speed.max() <= SPEED


def test_cell_whose_weights_still_ask_for_gradients_is_searched():
    weight = nn.Parameter(0.5 * orthogonal(3))
    found = find_all_fixed_points(Linear(weight, torch.ones(3).double()), box(7, 3))
    assert len(found.points) == 1
    assert weight.requires_grad
    assert weight.grad is None


class Sealed:
    """A weight in float32 where no search for tensors would look for it."""

    __slots__ = ("T",)


def test_cell_that_only_computes_in_float32_has_its_point():
    cell, weight = Linear(torch.zeros(3, 3), torch.ones(3)), 0.5 * orthogonal(3)
    cell.weight = Sealed()
    cell.weight.T = weight.float().T
    found = find_all_fixed_points(cell, box(7, 3))
    truth = torch.linalg.solve(torch.eye(3) - weight, torch.ones(3).double())
    assert len(found.points) == 1
    assert np.abs(found.points.states - truth.numpy()).max() < 1e-5  # float32


def test_known_points_are_kept():
    module = cells(training("gru")[-1].rnn)
    first = find_all_fixed_points(module, visited("gru"))
    known = torch.tensor(first.points.states)
    again = find_all_fixed_points(module, visited("gru")[:2], known=known, max_starts=1)
    assert same_set(again.points.states, first.points.states)
    single = find_all_fixed_points(module, visited("gru")[:2], known=known.float(), max_starts=1)
    assert same_set(single.points.states, first.points.states)


def test_relu_without_a_point_is_an_honest_nothing():
    found = find_all_fixed_points(plain([[2.0]], [1.0], nonlinearity="relu"), box(97, 1))
    assert len(found.points) == 0
    assert found.index_sum is None
    assert not found.complete


def test_far_away_point_of_an_unbounded_cell_is_found():
    found = find_all_fixed_points(plain([[0.99]], [10.0], nonlinearity="relu"), box(97, 1).abs())
    assert same_set(found.points.states, np.array([[1000.0]]), 1e-8)


def test_large_points_of_an_unbounded_cell_are_found():
    weight = torch.tensor([[0.7, 0.1], [0.2, 0.3]]).double()
    bias = torch.tensor([1e6, 2e6]).double()
    truth = torch.linalg.solve(torch.eye(2) - weight, bias).numpy()
    found = find_all_fixed_points(plain(weight, bias, nonlinearity="relu"), 5e6 * box(97, 2).abs())
    assert len(found.points) == 1
    assert np.abs(found.points.states / truth - 1).max() < EXACT


def test_no_time_is_an_honest_stop():
    found = find_all_fixed_points(cells(training("gru")[-1].rnn), visited("gru"), max_seconds=0)
    assert found.stopped == "seconds"
    assert not found.complete


def test_budget_of_seconds_holds():
    torch.manual_seed(0)
    module = nn.RNN(3, 256, num_layers=2)
    for name, weight in module.named_parameters():
        weight.data.mul_(6.0 if "hh" in name else 1.0)
    begin = time.perf_counter()
    found = find_all_fixed_points(cells(module), [torch.rand(97, 256), torch.rand(97, 256)], max_seconds=0.5)
    assert found.stopped == "seconds"
    assert time.perf_counter() - begin < 8.0  # one iteration of a chunk, one set of eigenvalues, and a busy machine


def test_more_points_than_allowed_are_said_to_be_more():
    found = find_all_fixed_points(plain(2 * torch.eye(3)), box(97, 3), max_points=10)
    assert found.stopped == "points"
    assert not found.complete


def test_more_starts_than_allowed_are_not_tried():
    found = find_all_fixed_points(plain(2 * torch.eye(3)), box(97, 3), max_starts=20)
    assert found.stopped == "starts"
    assert not found.complete
    assert found.starts < 20 + 16 + 16 + 64  # whole rounds


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gain", [30.0, 1e3])
def test_huge_weights_are_survived(family, gain):
    torch.manual_seed(0)
    module = FAMILIES[family](3, 7)
    for weight in module.parameters():
        weight.data.mul_(gain)
    found = find_all_fixed_points(cells(module), box(97, 7), max_seconds=5)
    assert np.isfinite(found.points.states).all()
    assert found.index_sum in (None, 1) or not found.complete


def test_global_random_state_is_left_alone():
    cell = plain([[2.0]])
    before = torch.get_rng_state()
    find_all_fixed_points(cell, box(9, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_bidirectional_stack_is_refused():
    module = nn.RNN(3, 3, bidirectional=True)  # of equal sizes: taken for a cascade it would compute
    with pytest.raises(ValueError, match="direction"):
        find_all_fixed_points(cells(module), [torch.rand(7, 3)] * 2)


@pytest.mark.parametrize("changes, message", [
    ({"visited": [torch.rand(7, 3)] * 2}, "visited must hold one tensor for each of 1 cells, got 2"),
    ({"visited": torch.rand(7, 4)}, r"starts must be \(N, 3\), got shape \(7, 4\)"),
    ({"visited": torch.rand(0, 3)}, "starts holds no state"),
    ({"inputs": torch.rand(7, 2)}, r"inputs must be \(2,\), one held vector"),
    ({"known": torch.rand(7, 4)}, r"known must be \(M, 3\), got shape \(7, 4\)"),
    ({"cells": []}, "cells"),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused(changes, message):
    arguments = {"cells": cells(nn.GRU(2, 3)), "visited": torch.rand(7, 3)} | changes
    if not arguments["cells"]:
        arguments["visited"] = []
    with pytest.raises(ValueError, match=message):
        find_all_fixed_points(**arguments)
