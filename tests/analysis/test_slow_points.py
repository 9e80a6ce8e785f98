"""Lines, planes, rings, ghosts and cycles made by hand, and networks that must not be taken for one."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_search import search
from rnn_callbacks.analysis.flow import Flow
from rnn_callbacks.analysis.slow_points import (
    CYCLE_STEPS,
    GHOST_DISTANCE,
    SLOW,
    find_continuum,
    find_cycle,
    find_ghosts,
)
from rnn_callbacks.cells import Activations, Cell, Place, cells

from .known_dynamics import Linear, box, orthogonal, plain, training, turning, visited

ROOT = 0.9575040240772688  # of tanh(2 h) = h
FOLD = math.sqrt(2) - math.atanh(math.sqrt(0.5))  # from here on tanh(2 h + b) = h has one root instead of three
FAMILIES = ("rnn", "lstm", "gru")


def flow_of(cell):
    return Flow((equation_of(cell),), torch.zeros(cell.input_size).double())


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def spread_of(states):
    return float(states.var(0, correction=0).sum().sqrt())


def continuum_of(cell, states):
    return find_continuum(flow_of(cell), states, spread_of(states))


def points_of(cell, states):
    equation = equation_of(cell)
    held = torch.zeros(cell.input_size).double()
    return search([equation], held, [states[:, : equation.unknowns].double()]).points


def whole(cell, hidden):
    """Hidden states as whole ones; an LSTM's memory is what it would hold there."""
    equation = equation_of(cell)
    return equation.state(equation.drive_of(torch.zeros(1, cell.input_size)), hidden.double())


# ---- continua


def test_relu_line_is_found_whole():
    states = box(256, 2).abs()
    found = continuum_of(plain([[0.5, 0.5], [0.5, 0.5]], nonlinearity="relu"), states)
    along = states.sum(1) / math.sqrt(2)  # after one step every state is at its projection on [1, 1] / sqrt(2)
    along = along[::2]  # 128 of them are let go
    assert found.dimension == 1
    np.testing.assert_allclose(np.abs(found.directions), [[math.sqrt(0.5)] * 2], rtol=1e-12)
    assert found.participation == pytest.approx(1)
    assert found.extent == pytest.approx(float(along.std(correction=0)) / spread_of(states))
    assert found.speed < 1e-15
    np.testing.assert_allclose(found.centre, [float(along.mean()) / math.sqrt(2)] * 2, rtol=1e-12)
    np.testing.assert_allclose(found.states, (along / math.sqrt(2))[:, None].expand(-1, 2), rtol=1e-12)


def test_plane_of_two_modes_of_a_thousand_steps_is_found():
    turn = orthogonal(5)
    weight = turn @ diagonal(0.999, 0.999, 0.3, 0.2, 0.1) @ turn.T
    found = continuum_of(plain(weight), box(512, 5, size=0.05))
    assert found.dimension == 2
    assert found.participation == pytest.approx(2, abs=0.1)  # as wide as long, up to the draw of 128 states
    both = np.linalg.svd(found.directions @ turn[:, :2].numpy(), compute_uv=False)
    np.testing.assert_allclose(both, 1, atol=1e-3)  # the cosines between found and true plane; tanh bends it by h^2
    assert found.speed == pytest.approx(1e-3 * math.sqrt(2 / 5), rel=0.3)  # a thousandth of the way to the middle


class Ring(Cell):
    """``h' = h (3 - |h|^2) / 2``: every state between 0 and sqrt(3) goes to the unit circle, straight out or in."""

    gates = ()
    candidate = "scaled"
    bounded = False

    def __init__(self):
        super().__init__(Place("cell", stepwise=True), input_size=1, units=2)

    def activations(self, inputs, hidden, memory=None):
        return Activations((hidden * (3 - hidden.square().sum(1, keepdim=True)) / 2)[:, None])

    def follow(self, inside, hidden, memory):
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


def test_ring_has_one_dimension_but_bends_through_two():
    states = box(256, 2)
    found = continuum_of(Ring(), states)
    assert found.dimension == 1
    np.testing.assert_allclose(np.linalg.norm(found.states, axis=1), 1, rtol=1e-12)
    assert found.participation == pytest.approx(2, abs=0.1)  # up to the draw of 128 angles
    variance = found.states.var(0).sum()
    assert found.extent == pytest.approx(math.sqrt(variance) / spread_of(states))


def integrator(units=32, seed=0):
    """``h' = tanh(a (w . h) + b)`` with w such that ``w . h`` stays as it is anywhere in [-1, 1], and a, b, w.

    Eliasmith 2005: readout weights by least squares. The Jacobian has rank one.
    """
    generator = torch.Generator().manual_seed(seed)
    slope = 0.5 + torch.rand(units, generator=generator, dtype=torch.float64)
    offset = 2 * torch.rand(units, generator=generator, dtype=torch.float64) - 1
    grid = torch.linspace(-1.2, 1.2, 241, dtype=torch.float64)
    curve = torch.tanh(grid[:, None] * slope + offset)
    readout = torch.linalg.lstsq(curve, grid[:, None], driver="gelsd", rcond=1e-7).solution[:, 0]
    return slope, offset, readout


def test_tanh_integrator_is_a_line_as_long_as_what_it_integrates():
    slope, offset, readout = integrator()
    held = torch.linspace(-1, 1, 128, dtype=torch.float64)
    curve = torch.tanh(held[:, None] * slope + offset)
    beside = 0.2 * torch.randn(curve.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beside -= torch.outer(beside @ readout, readout) / readout.square().sum()
    states = curve + beside
    found = continuum_of(plain(torch.outer(slope, readout), offset), states)
    assert found.dimension == 1
    assert 1 <= found.participation < 1.1
    assert found.extent == pytest.approx(spread_of(curve) / spread_of(states), rel=1e-3)
    assert found.speed < 1e-4
    np.testing.assert_allclose(found.states @ readout.numpy(), held, atol=1e-2)


def test_scaled_and_turned_states_have_the_same_shape():
    states, turn = box(256, 2).abs(), orthogonal(2, seed=3)

    class Turned(Ring):
        def activations(self, inputs, hidden, memory=None):
            return Activations((turn @ super().activations(inputs, hidden @ turn / 7).candidate.mT * 7).mT[:, None])

    one, other = continuum_of(Ring(), states), continuum_of(Turned(), 7 * states @ turn.T)
    assert one.dimension == other.dimension
    for name in ("participation", "extent"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)
    np.testing.assert_allclose(other.states, 7 * one.states @ turn.numpy().T, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_flip_flops_have_no_line(family):
    cell = cells(training(family)[-1].rnn)[0]
    assert continuum_of(cell, whole(cell, visited(family)[::3])) is None


@pytest.mark.parametrize("timescale", [2, 20, 60, 200])
def test_one_slow_attractor_is_no_line(timescale):
    # From so near to 0 tanh is linear: after n steps the states are exp(-n / timescale) of where they were.
    assert continuum_of(plain(diagonal(math.exp(-1 / timescale), 0.3)), box(512, 2, size=0.1)) is None


@pytest.mark.parametrize("weight", [
    diagonal(1.01, 0.3),  # two points with a slow saddle between
    diagonal(1.03, 0.3),
    diagonal(2.0, 0.3),
    diagonal(2.0, 2.0),  # four points
    1.3 * turning(0.7),  # a cycle
    1.01 * turning(0.05),  # a slow one
], ids=lambda weight: " ".join(f"{value:.3g}" for value in weight.flatten().tolist()))  # fmt: skip
def test_points_and_cycles_are_no_line(weight):
    assert continuum_of(plain(weight), box(512, 2, size=0.3)) is None


def test_a_slow_direction_that_no_state_uses_is_no_line():
    states = box(256, 2) * torch.tensor([1.0, 0.0])
    assert continuum_of(plain(diagonal(2.0, 0.999)), states) is None  # two points, side by side


@pytest.mark.parametrize(("share", "found"), [(0.25, False), (0.75, True)])
def test_a_line_on_which_few_states_settle_is_none(share, found):
    states = box(256, 2, size=0.05)
    states[: int(share * 256), 1] = 0  # the others end on a cycle of two steps
    assert (continuum_of(plain(diagonal(0.999, -2.0)), states) is not None) == found


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.5, 4.0])
def test_random_networks_have_no_line(gain):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator, dtype=torch.float64) * gain / 8
    assert continuum_of(plain(weight), box(128, 64)) is None


def test_states_that_leave_for_infinity_are_no_line():
    assert continuum_of(plain([[2.0]], nonlinearity="relu"), box(64, 1).abs()) is None


# ---- ghosts


def beyond(far):
    """One slow place where two points have just met and vanished, and a point on the other side."""
    return plain(diagonal(2.0, 0.3), [FOLD + far, 0.0])


@pytest.mark.parametrize("far", [1e-3, 5e-3])
def test_ghost_of_a_saddle_node_is_where_a_scalar_search_finds_it(far):
    cell, states = beyond(far), box(128, 2)
    found = find_ghosts(flow_of(cell), states, points_of(cell, states), spread_of(states))
    truth = minimize_scalar(
        lambda h: (math.tanh(2 * h + FOLD + far) - h) ** 2 / 2, bounds=(-0.9, -0.5), options={"xatol": 1e-12}
    )
    assert len(found.speed) == 1
    # A minimum of a square is found to the root of its rounding, where the slope is 0.
    np.testing.assert_allclose(found.states, [[truth.x, 0.0]], atol=1e-4)
    assert found.speed[0] == pytest.approx(truth.fun, rel=1e-4)
    after = math.tanh(2 * found.states[0, 0] + FOLD + far)
    np.testing.assert_allclose(found.eigenvalues, [[2 * (1 - after**2), 0.3]], rtol=1e-3)


def test_fixed_points_are_no_ghosts_on_either_side_of_the_fold():
    states = box(128, 2)
    before = beyond(-5e-3)
    points = points_of(before, states)
    assert len(points) == 3
    assert len(find_ghosts(flow_of(before), states, points, spread_of(states)).speed) == 0
    assert len(find_ghosts(flow_of(before), states, points[:0], spread_of(states)).speed) == 0  # known or not
    far_beyond = beyond(0.1)  # the same place is no longer slow
    assert len(find_ghosts(flow_of(far_beyond), states, points_of(far_beyond, states), spread_of(states)).speed) == 0


def test_a_ghost_beside_a_known_point_is_left_out():
    cell, states = beyond(1e-3), box(128, 2)
    points, spread = points_of(cell, states), spread_of(states)
    for aside, ghosts in [(0.9, 0), (1.1, 1)]:
        place = [[-math.sqrt(0.5) + aside * GHOST_DISTANCE * spread, 0.0]]
        near = replace(points[np.array([0])], states=np.array(place))
        assert len(find_ghosts(flow_of(cell), states, near, spread).speed) == ghosts


def test_a_line_of_fixed_points_is_full_of_no_ghosts():
    cell, states = plain([[0.5, 0.5], [0.5, 0.5]], nonlinearity="relu"), box(64, 2).abs()
    assert len(find_ghosts(flow_of(cell), states, points_of(cell, states), spread_of(states)).speed) == 0


def test_two_ghosts_are_ordered_by_speed_and_far_apart():
    cell = plain(diagonal(2.0, 2.0), [FOLD + 4e-3, -FOLD - 1e-3])
    states = box(256, 2)
    spread = spread_of(states)
    found = find_ghosts(flow_of(cell), states, points_of(cell, states), spread)
    assert (np.diff(found.speed) >= 0).all()
    assert (np.sqrt(2 * found.speed) <= SLOW * spread).all()
    place = math.sqrt(0.5)
    assert {tuple(np.sign(state)) for state in found.states if abs(abs(state) - place).max() < 0.05} == {(-1.0, 1.0)}
    distances = np.linalg.norm(found.states[:, None] - found.states[None], axis=2) + 1e3 * np.eye(len(found.states))
    assert distances.min() > GHOST_DISTANCE * spread


def test_ghosts_closer_than_a_tenth_of_the_spread_are_one_in_any_number_of_dimensions():
    weight, bias = torch.zeros(64, 64).double(), torch.zeros(64).double()
    cell = beyond(5e-3)
    weight[:2, :2], bias[:2] = cell.weights.hh, cell.weights.bias_hh
    weight[2:, 2:] = diagonal(*[0.3] * 62)
    cell = plain(weight, bias)
    states = torch.cat([box(128, 2), box(128, 62, size=0.01)], dim=1)
    found = find_ghosts(flow_of(cell), states, points_of(cell, states), spread_of(states))
    assert len(found.speed) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_flip_flops_have_no_ghosts(family):
    cell = cells(training(family)[-1].rnn)[0]
    states = whole(cell, visited(family)[::24])
    found = find_ghosts(flow_of(cell), states, points_of(cell, states), spread_of(flow_of(cell).hidden(states)))
    assert len(found.speed) == 0


def test_a_search_without_time_invents_no_ghosts():
    cell, states = plain(diagonal(math.exp(-1 / 200), 0.3)), box(64, 2, size=0.3)
    states[:, 1] = 0  # all of them slow: a two-hundredth of the way to 0 per step
    found = find_ghosts(flow_of(cell), states, points_of(cell, states)[:0], 1.0, deadline=time.perf_counter())
    assert len(found.speed) == 0


# ---- cycles


def motion_of(cell, states, **options):
    return find_cycle(flow_of(cell), states, spread_of(states), **options)


@pytest.mark.parametrize("period", [4, 8, 12, 40])
def test_rotation_with_gain_above_one_returns_after_a_full_turn(period):
    found = motion_of(plain(1.05 * turning(2 * math.pi / period)), box(128, 2))
    assert found.moving == 1
    assert found.diverging == 0
    assert found.period == period


def test_quarter_turns_move_by_the_side_of_their_square():
    # Every coordinate grows to +- ROOT, so that the states go round the corners of a square.
    found = motion_of(plain(2.0 * turning(math.pi / 2)), box(128, 2))
    assert found.period == 4
    assert found.speed == pytest.approx(2 * ROOT)


def test_two_cycle_has_period_two_and_jumps_across():
    found = motion_of(plain([[-2.0]]), box(128, 1))
    assert (found.moving, found.diverging, found.period) == (1, 0, 2)
    assert found.speed == pytest.approx(2 * ROOT)


@pytest.mark.parametrize("period", [3, 10, 100])
def test_turns_of_a_linear_cell_have_their_period_at_every_scale(period):
    spin, states = Linear(turning(2 * math.pi / period), torch.zeros(2).double()), box(31, 2)
    for scale in (1e-3, 1.0, 100.0):
        found = motion_of(spin, scale * states)
        assert (found.moving, found.diverging, found.period) == (1, 0, period)


def test_relu_with_gain_above_one_diverges_from_where_it_is_not_silent():
    states = box(31, 1)  # few enough to be let go all
    found = motion_of(plain([[2.0]], nonlinearity="relu"), states)
    assert found.diverging == float((states > 0).double().mean())
    assert (found.moving, found.period, found.speed) == (0, 0, 0)


@pytest.mark.parametrize(("weight", "bias"), [(1.01, 0.0), (1.0, 1.0)])
def test_slow_growth_without_end_diverges_too(weight, bias):
    found = motion_of(plain([[weight]], [bias], nonlinearity="relu"), 0.1 + box(64, 1).abs())
    assert (found.diverging, found.moving) == (1, 0)


@pytest.mark.parametrize("weight", [0.5, 0.9, 2.0, -0.9])
def test_states_that_come_to_rest_do_not_move(weight):
    found = motion_of(plain([[weight]]), box(128, 1))
    assert (found.moving, found.diverging, found.period, found.speed) == (0, 0, 0, 0)


def test_chaos_moves_and_does_not_return():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator, dtype=torch.float64) * 3 / 8
    found = motion_of(plain(weight), box(32, 64))
    assert found.moving == 1
    assert found.period == 0
    assert found.speed > 1


def test_a_run_without_time_says_nothing():
    found = motion_of(plain([[-2.0]]), box(128, 1), deadline=time.perf_counter())
    assert (found.moving, found.diverging, found.period, found.speed) == (0, 0, 0, 0)
    assert CYCLE_STEPS > 3


def test_a_root_that_the_search_had_missed_is_no_ghost():
    cell, states = plain([[2.0]]), box(64, 1)
    found = find_ghosts(flow_of(cell), states, points_of(cell, states)[:0], 1.0)
    assert len(found.states) == 0
