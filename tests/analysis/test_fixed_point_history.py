"""Births, deaths and changes of stability through bifurcations that are known, and through a real training run."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_history import begin, go_on, pack, unpack
from rnn_callbacks.analysis.fixed_point_search import search
from rnn_callbacks.cells import cells

from .known_dynamics import Linear, box, orthogonal, plain, training, turning, visited
from .test_fixed_points import EXACT, FAMILIES, SPEED

NOTHING = torch.zeros(1, dtype=torch.float64)


def life(stages, pool, held=NOTHING):
    """Chapters of successive cells, or tuples of them, with pools of visited states, one for all or one for each."""
    history, chapters = None, []
    for number, stage in enumerate(stages):
        equations = [equation_of(cell) for cell in (stage if isinstance(stage, tuple) else (stage,))]
        seen = pool[number] if isinstance(pool, list) else pool
        pools = [seen[:, : equation.unknowns].double() for equation in equations]
        if history is None:
            history, chapter = begin(equations, held, search(equations, held, pools))
        else:
            history, chapter = go_on(history, equations, held, pools, seed=number)
        chapters.append(chapter)
    return chapters


def states_by_id(chapter):
    return dict(zip(chapter.ids.tolist(), chapter.skeleton.points.states, strict=True))


def happened(chapters, what):
    """Looks at which something happened, and to how many points."""
    return {look: chapter.count(what) for look, chapter in enumerate(chapters) if chapter.count(what)}


def check_books(chapters):
    """Ids are unique and never used again, and the points are those of before plus born and found less dead."""
    used, here = set(), set()
    for chapter in chapters:
        now = set(chapter.ids.tolist())
        assert len(now) == len(chapter.ids)
        new = now - here
        assert not new & used
        if chapter is not chapters[0]:
            told = {what: {i for e in chapter.events if e.what == what for i in e.ids} for what in ("birth", "death")}
            found = {i for e in chapter.events if e.what == "found late" for i in e.ids}
            assert new == told["birth"] | found
            assert here - now == told["death"]
        used |= now
        here = now


def test_nothing_happens_where_nothing_changes():
    cell = plain(2 * torch.eye(3))
    first, second, third = life([cell, plain(2 * torch.eye(3)), cell], box(97, 3))
    assert second.events == third.events == ()
    assert (first.ids == np.arange(27)).all()
    assert np.abs(third.moved).max() < EXACT
    assert np.isnan(first.moved).all()
    ours, theirs = states_by_id(first), states_by_id(third)
    assert all(np.abs(ours[number] - theirs[number]).max() < EXACT for number in range(27))


@pytest.mark.parametrize("weights", [np.arange(0.5, 2.01, 0.1), np.linspace(0.51, 2.0, 7), (0.5, 2.0), (0.99, 1.01)])
def test_pitchfork_is_two_births_at_one_look_and_the_middle_turns(weights):
    chapters = life([plain([[weight]]) for weight in weights], box(97, 1))
    look = int(np.argmax(np.asarray(weights) > 1 + 1e-9))
    assert happened(chapters, "birth") == {look: 2}
    assert happened(chapters, "stability") == {look: 1}
    assert happened(chapters, "death") == happened(chapters, "found late") == {}
    (turned,) = [event for event in chapters[look].events if event.what == "stability"]
    assert turned.ids == (0,)
    assert turned.crossing == "+1"
    check_books(chapters)


def test_pitchfork_run_backwards_is_two_deaths():
    chapters = life([plain([[weight]]) for weight in (2.0, 1.5, 1.1, 0.9, 0.5)], box(97, 1))
    assert happened(chapters, "death") == {3: 2}
    assert happened(chapters, "stability") == {3: 1}
    assert happened(chapters, "birth") == {}
    check_books(chapters)


def test_saddle_node_is_two_births_and_no_turn():
    fold = 0.53284  # of tanh(2 h + b): 2 (1 - h^2) = 1 at h = -sqrt(1/2), where atanh(h) - 2 h = b
    assert abs(2 * np.sqrt(0.5) - np.arctanh(np.sqrt(0.5)) - fold) < 1e-5
    biases = [0.8, 0.7, 0.6, 0.54, 0.52, 0.3, 0.0]
    chapters = life([plain([[2.0]], [bias]) for bias in biases], box(97, 1))
    assert happened(chapters, "birth") == {4: 2}
    assert happened(chapters, "death") == happened(chapters, "stability") == happened(chapters, "found late") == {}
    (born,) = chapters[4].events
    assert born.words == "1 attractor, 1 repeller appeared"
    assert chapters[-1].ids[0] in (0, born.ids[0], born.ids[1])
    check_books(chapters)


def test_s_curve_keeps_the_identity_of_the_branch_that_was_followed():
    biases = [-0.8, -0.4, 0.0, 0.4, 0.8]  # low branch, then three points, then high branch
    chapters = life([plain([[2.0]], [bias]) for bias in biases], box(97, 1))
    assert [len(chapter.ids) for chapter in chapters] == [1, 3, 3, 3, 1]
    assert happened(chapters, "birth") == {1: 2}
    assert happened(chapters, "death") == {4: 2}
    assert 0 not in chapters[4].ids  # the low branch died with the middle
    check_books(chapters)


def test_a_point_that_jumps_around_two_folds_within_one_look_is_the_same_point():
    chapters = life([plain([[2.0]], [bias]) for bias in (-0.8, 0.8)], box(97, 1))
    assert chapters[1].events == ()
    assert chapters[1].ids.tolist() == [0]


def test_flip_is_said_to_pass_minus_one():
    chapters = life([plain([[weight]]) for weight in (-0.8, -0.9, -1.1, -1.5)], box(97, 1))
    assert happened(chapters, "stability") == {2: 1}
    (event,) = chapters[2].events
    assert event.crossing == "-1"
    assert "0 to 1 unstable" in event.words


def test_neimark_sacker_is_said_to_be_a_complex_pair():
    chapters = life([plain(gain * turning(0.7)) for gain in (0.8, 0.95, 1.05, 1.3)], box(97, 2))
    assert happened(chapters, "stability") == {2: 1}
    (event,) = chapters[2].events
    assert event.crossing == "complex pair"
    assert chapters[2].skeleton.index_sum == 1


def test_real_eigenvalue_that_leaves_while_a_pair_is_outside_is_no_pair():
    def cell(pair, single):
        weight = torch.zeros(3, 3).double()
        weight[:2, :2], weight[2, 2] = pair * turning(0.7), single
        return plain(weight)

    chapters = life([cell(1.3, 0.8), cell(1.4, 1.2)], box(97, 3))
    (event,) = [event for event in chapters[1].events if event.what == "stability"]
    assert event.crossing == "+1"
    chapters = life([cell(1.3, -0.8), cell(1.1, -1.2)], box(97, 3))
    (event,) = [event for event in chapters[1].events if event.what == "stability"]
    assert event.crossing == "-1"


@pytest.mark.parametrize("family", FAMILIES)
def test_points_of_a_flip_flop_are_born_once_and_never_die_while_it_learns(family):
    stages = [cells(model.rnn) for model in training(family)]
    pools = [visited(family, epoch) for epoch in range(len(stages))]
    chapters = life(stages, pools, torch.zeros(3).double())
    check_books(chapters)
    for before, after in pairwise(chapters):
        change = len(after.ids) - len(before.ids)
        assert after.count("birth") + after.count("found late") - after.count("death") == change
    assert all(chapter.skeleton.index_sum == 1 for chapter in chapters)
    assert all(chapter.skeleton.points.speed.max() <= SPEED for chapter in chapters)
    assert len(chapters[-1].ids) == 27
    assert sum(happened(chapters, "birth").values()) == 27 - len(chapters[0].ids)
    assert happened(chapters, "death") == happened(chapters, "found late") == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_rare_looks_tell_the_same_story(family):
    stages = [cells(model.rnn) for model in training(family)[::6]] + [cells(training(family)[-1].rnn)]
    pools = [visited(family, epoch) for epoch in (*range(0, 24, 6), 23)]
    chapters = life(stages, pools, torch.zeros(3).double())
    check_books(chapters)
    assert len(chapters[-1].ids) == 27
    assert happened(chapters, "death") == {}


def test_overlooked_point_is_found_late_and_not_born():
    cell, pool = plain(2 * torch.eye(3)), box(97, 3)
    equations, held = [equation_of(cell)], NOTHING
    history, chapter = begin(equations, held, search(equations, held, [pool]))
    keep = np.arange(27) != 11
    forgotten = chapter.skeleton.points.states[11]
    history.unknown, history.ids = history.unknown[torch.tensor(keep)], history.ids[keep]
    history.unstable, history.eigenvalues = history.unstable[keep], history.eigenvalues[keep]
    _, after = go_on(history, [equation_of(plain(2.01 * torch.eye(3)))], held, [pool])
    assert [event.what for event in after.events] == ["found late"]
    (number,) = after.events[0].ids
    assert number == 27
    assert np.abs(states_by_id(after)[number] - forgotten).max() < 0.05


def test_history_of_permuted_rows_goes_on_alike():
    old, new, pool = plain(2 * torch.eye(3)), plain(2.2 * torch.eye(3) + 0.1 * orthogonal(3)), box(97, 3)
    equations = [equation_of(old)]
    history, _ = begin(equations, NOTHING, search(equations, NOTHING, [pool]))
    _, truth = go_on(history, [equation_of(new)], NOTHING, [pool])
    order = np.random.default_rng(0).permutation(27)
    history.unknown, history.ids = history.unknown[torch.tensor(order)], history.ids[order]
    history.unstable, history.eigenvalues = history.unstable[order], history.eigenvalues[order]
    _, found = go_on(history, [equation_of(new)], NOTHING, [pool])
    assert found.events == truth.events == ()
    ours, theirs = states_by_id(truth), states_by_id(found)
    assert ours.keys() == theirs.keys()
    assert all(np.abs(ours[number] - theirs[number]).max() < EXACT for number in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_points_of_a_stack_keep_their_identity(family):
    torch.manual_seed(0)
    module = FAMILIES[family](1, 3, num_layers=2).double()
    for name, weight in module.named_parameters():
        weight.data.mul_(4.0 if "hh" in name else 1.0)
    stages = []
    for _ in range(4):
        stages.append(cells(module))
        for weight in module.parameters():
            weight.data.mul_(1.001)
    chapters = life(stages, box(97, 3))
    assert all(chapter.events == () for chapter in chapters)
    assert all(sorted(chapter.ids) == list(range(len(chapters[0].ids))) for chapter in chapters)


def test_a_cell_of_a_users_own_has_a_history():
    stages = [Linear(gain * turning(0.7), torch.ones(2).double()) for gain in (0.8, 0.9, 1.1)]
    chapters = life(stages, box(9, 2))
    assert [chapter.ids.tolist() for chapter in chapters] == [[0], [0], [0]]
    assert [event.crossing for event in chapters[2].events] == ["complex pair"]


def test_running_out_of_time_is_no_death_and_no_birth():
    """What was not looked at has not vanished."""
    cell, pool = plain(2 * torch.eye(3)), box(97, 3)
    equations = [equation_of(cell)]
    history, _ = begin(equations, NOTHING, search(equations, NOTHING, [pool]))
    history, hurried = go_on(history, equations, NOTHING, [pool], deadline=time.perf_counter() - 1)
    assert hurried.skeleton.stopped == "seconds"
    assert hurried.count("death") == hurried.count("birth") == 0
    _, calm = go_on(history, equations, NOTHING, [pool])
    assert calm.count("birth") == calm.count("death") == 0
    assert sorted(calm.ids) == list(range(27))


def test_no_point_before_and_some_after():
    first, second = life(
        [plain([[2.0]], [1.0], nonlinearity="relu"), plain([[0.5]], [1.0], nonlinearity="relu")], box(9, 1)
    )
    assert len(first.ids) == 0
    assert second.ids.tolist() == [0]
    assert second.count("birth") == 1


def test_some_points_before_and_none_after():
    first, second = life(
        [plain([[0.5]], [1.0], nonlinearity="relu"), plain([[2.0]], [1.0], nonlinearity="relu")], box(9, 1)
    )
    assert first.ids.tolist() == [0]
    assert len(second.ids) == 0
    assert second.count("death") == 1


def test_packed_history_goes_on_as_if_nothing_had_happened():
    old, new, pool = plain(2 * torch.eye(3)), plain(2.2 * torch.eye(3) + 0.1 * orthogonal(3)), box(97, 3)
    equations = [equation_of(old)]
    history, _ = begin(equations, NOTHING, search(equations, NOTHING, [pool]))
    resumed = unpack(pack(history), [equation_of(new)])
    (_, one), (_, other) = (go_on(h, [equation_of(new)], NOTHING, [pool]) for h in (history, resumed))
    assert one.events == other.events
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.skeleton.points.states, other.skeleton.points.states)
    assert unpack(pack(history), [equation_of(plain(torch.eye(2)))]) is None
    assert unpack(pack(history), [equation_of(cells(nn.GRU(1, 3))[0])]) is None
