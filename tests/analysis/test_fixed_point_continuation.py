"""Points followed from weights to weights, where they go is known."""

import time

import pytest
import torch

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_continuation import follow
from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points
from rnn_callbacks.cells import cells

from .known_dynamics import Linear, box, orthogonal, plain, training, visited
from .test_fixed_points import EXACT, FAMILIES

NOTHING = torch.zeros(1, dtype=torch.float64)


def followed(old, new, unknown=None, **options):
    """Points of one cell, all of them or those given, followed to another's."""
    if unknown is None:
        unknown = points_of(old)
    return follow([equation_of(old)], [equation_of(new)], NOTHING, NOTHING, unknown, **options)


def points_of(cell):
    """Unknowns (M, H) of all fixed points, sorted by their first component."""
    found = torch.tensor(find_all_fixed_points(cell, box(97, cell.units)).points.states)
    return found[found[:, 0].argsort()]


def test_nothing_moves_where_nothing_changes():
    cell = plain(2 * torch.eye(3))
    points = points_of(cell)
    found = followed(cell, cell, points)
    assert found.alive.all()
    assert (found.unknown - points).abs().max() < EXACT
    assert (found.index.sum() == 1).all()


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_three_points_of_one_unit_keep_their_order(distance):
    old, new = plain([[1.5]]), plain([[1.5 + distance]])
    found = followed(old, new)
    assert found.alive.all()
    assert (found.unknown - points_of(new)).abs().max() < EXACT
    assert found.index.tolist() == [1, -1, 1]


def test_points_of_a_turned_linear_cell_arrive_where_they_are_known_to_be():
    old, new = (
        Linear(0.5 * orthogonal(5), torch.ones(5).double()),
        Linear(0.7 * orthogonal(5, 1), torch.ones(5).double()),
    )
    found = followed(old, new)
    assert found.alive.all()
    assert (found.unknown - points_of(new)).abs().max() < EXACT


def test_two_points_that_merge_are_both_lost():
    old, new = plain([[2.0]], [0.0]), plain([[2.0]], [0.7])  # the fold is at a bias of 0.53
    found = followed(old, new)
    assert found.alive.tolist() == [False, False, True]
    assert (found.unknown[2] - points_of(new)[0]).abs().max() < EXACT


@pytest.mark.parametrize("weights", [(0.5, 2.0), (2.0, 0.5)], ids=["born", "dying"])
def test_the_middle_of_a_pitchfork_lives_through_it_and_its_arms_do_not(weights):
    old, new = (plain([[weight]]) for weight in weights)
    found = followed(old, new)
    assert found.alive.sum() == 1
    assert found.unknown[found.alive].abs().max() < EXACT
    assert found.index[found.alive].tolist() == [1 if weights[1] < 1 else -1]  # the middle turns


def test_a_point_that_jumps_around_two_folds_is_the_same_point():
    units = torch.tensor([[2.0, 1.0], [0.0, 0.0]]).double()
    # Unit 1 only reads its bias; unit 0 is bistable while its drive is within 0.53, and its lower branch ends at 0.53.
    old, new = plain(units, [0.0, -1.0]), plain(units, [0.0, 1.0])
    (low,) = points_of(old)
    (high,) = points_of(new)
    assert low[0] < -0.9
    assert high[0] > 0.9
    found = followed(old, new)
    assert found.alive.all()
    assert (found.unknown[0] - high).abs().max() < EXACT


def test_what_is_lost_stays_where_it_was():
    old, new = plain([[2.0]], [0.0]), plain([[2.0]], [0.7])
    points = points_of(old)
    found = followed(old, new, points)
    assert torch.equal(found.unknown[~found.alive], points[~found.alive])


def test_permuted_points_are_followed_alike():
    old, new = plain(2 * torch.eye(3)), plain(2.2 * torch.eye(3) + 0.1 * orthogonal(3))
    points = points_of(old)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    found, turned = followed(old, new, points), followed(old, new, points[order])
    assert found.alive.all()
    assert torch.equal(found.alive[order], turned.alive)
    assert (found.unknown[order] - turned.unknown).abs().max() < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_all_points_of_a_flip_flop_come_back_from_the_epoch_before(family):
    now, before = (equation_of(cells(training(family)[epoch].rnn)[0]) for epoch in (-1, -2))
    held = torch.zeros(3).double()
    points = torch.tensor(find_all_fixed_points(cells(training(family)[-1].rnn), visited(family)).points.states)
    there = follow([now], [before], held, held, points[:, :16])
    back = follow([before], [now], held, held, there.unknown)
    assert there.alive.all()
    assert back.alive.all()
    assert (back.unknown - points[:, :16]).abs().max() < EXACT


def test_inputs_are_moved_in_step_with_the_weights():
    cell = cells(training("rnn")[-1].rnn)
    equations, points = [equation_of(cell[0])], find_all_fixed_points(cell, visited("rnn")).points
    held = torch.tensor([0.0, 0, 0]).double(), torch.tensor([1.0, 0, 0]).double()
    found = follow(equations, equations, *held, torch.tensor(points.states))
    driven = find_all_fixed_points(cell, visited("rnn"), held[1]).points
    assert int(found.alive.sum()) == len(driven) == 9  # nothing is born when a bit is held down
    assert int(found.index[found.alive].sum()) == 1


def test_no_point_is_followed_nowhere():
    assert len(followed(plain([[2.0]]), plain([[3.0]]), torch.empty(0, 1).double()).unknown) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_budget_of_seconds_holds_between_networks_that_have_nothing_in_common(family):
    units = 64
    torch.manual_seed(0)
    modules = [FAMILIES[family](3, units) for _ in range(2)]
    for module in modules:
        for weight in module.parameters():
            weight.data.mul_(8 if family == "rnn" else 16)
    old, new = ([equation_of(cells(module)[0])] for module in modules)
    points = find_all_fixed_points(cells(modules[0]), torch.rand(64, units), max_seconds=0.3).points.states[:, :units]
    held = torch.zeros(3).double()
    begin = time.perf_counter()
    follow(old, new, held, held, torch.tensor(points), deadline=begin + 0.3)
    assert time.perf_counter() - begin < 5.0  # one chunk more, and a busy machine
