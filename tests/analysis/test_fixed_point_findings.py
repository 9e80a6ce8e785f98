"""The headline of one look against hand counts, and every flag on both sides of its threshold."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.basins import Reach
from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_findings import examine, longest_timescale
from rnn_callbacks.analysis.fixed_point_flags import RULES, WARNED, check_thresholds, find_flags
from rnn_callbacks.analysis.fixed_point_history import Chapter, Event, begin, go_on
from rnn_callbacks.analysis.fixed_point_search import search
from rnn_callbacks.analysis.slow_points import Ghosts
from rnn_callbacks.analysis.visited import Visited, visit
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import traces_by_cell

from ..flip_flop import flip_flop
from .known_dynamics import box, plain, training, turning

ROOT = 0.9575040240772688  # of tanh(2 h) = h
BOTH = {"ghosts": True, "basins": True}


def seen(cell, states):
    """As if the network had been seen in these states, each of them a sequence of its own."""
    return Visited(
        (cell,), states, states, tuple(states[:3, None]), ((0, 0), (0, 1), (0, 2)), torch.zeros(1).double(), 0.0, 1e-9
    )


def look_at(cell, states, **options):
    equations, held = [equation_of(cell)], torch.zeros(1).double()
    _, chapter = begin(equations, held, search(equations, held, [states]))
    return examine(equations, held, seen(cell, states), chapter, **options)


def look_at_module(module, x, **options):
    with Recorder(module) as recorder, torch.no_grad():
        module(x)
    (tape,) = recorder.tapes.values()
    visited = visit(traces_by_cell(tape))
    equations, held = [equation_of(cell) for cell in visited.cells], torch.zeros(x.shape[2]).double()
    pools = [states[:, : e.unknowns] for states, e in zip(visited.per_cell, equations, strict=True)]
    _, chapter = begin(equations, held, search(equations, held, pools))
    return examine(equations, held, visited, chapter, **options)


def bistable(**options):
    return look_at(plain([[2.0]]), box(97, 1), **options)


SITUATIONS = {
    "two attractors": lambda **o: bistable(**o),
    "one slow attractor": lambda **o: look_at(plain([[0.99]]), box(97, 1), **o),
    "a line": lambda **o: look_at(plain([[0.5, 0.5], [0.5, 0.5]], nonlinearity="relu"), box(97, 2).abs(), **o),
    "a cycle": lambda **o: look_at(plain(1.3 * turning(0.7)), box(97, 2), **o),
    "a two-cycle": lambda **o: look_at(plain([[-2.0]]), box(97, 1), **o),
    "growth": lambda **o: look_at(plain([[2.0]], [1.0], nonlinearity="relu"), box(97, 1).abs(), **o),
    "growth from 0": lambda **o: look_at(plain([[2.0]], nonlinearity="relu"), box(97, 1).abs(), **o),
    "nothing recurs": lambda **o: look_at(plain([[0.0]]), box(97, 1), **o),
    "a state that never moves": lambda **o: look_at(plain([[0.5]]), torch.zeros(97, 1).double(), **o),
    "one state": lambda **o: look_at(plain([[2.0]]), torch.full((1, 1), 0.5).double(), **o),
}
NAMES = {
    "attractors", "saddles", "repellers", "index_sum", "complete", "largest_modulus", "slowest_timescale", "drift",
    "births", "deaths", "stability_changes", "found_late", "starts", "phantoms", "stopped_early", "end_distance",
    "end_speed", "continuum_dimension", "continuum_extent", "moving", "diverging", "period",
}  # fmt: skip
ON_REQUEST = {"ghosts", "ghost_speed", "basin_entropy", "largest_basin", "unresolved", "returned"}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_same_names_are_logged_in_every_situation_and_all_numbers_are_finite(situation):
    for options, names in [({}, NAMES), (BOTH, NAMES | ON_REQUEST)]:
        found = SITUATIONS[situation](**options).scalars()
        assert found.keys() == names
        assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_headline_of_a_one_bit_cell_is_counted_by_hand():
    states = box(97, 1)
    found = look_at(plain([[2.0]]), states, **BOTH).scalars()
    slope, size = 2 * (1 - ROOT**2), states.abs().numpy()
    spread = states.numpy().std()
    positive = float((states > 0).double().mean())
    truth = {
        "attractors": 2, "saddles": 0, "repellers": 1, "index_sum": 1, "complete": 1, "largest_modulus": 2,
        "slowest_timescale": -1 / math.log(slope), "drift": 0, "births": 0, "deaths": 0, "stability_changes": 0,
        "found_late": 0, "phantoms": 0, "stopped_early": 0, "end_distance": np.median(np.abs(size - ROOT)) / spread,
        "end_speed": np.median(np.abs(np.tanh(2 * size) - size)) / spread, "continuum_dimension": 0,
        "continuum_extent": 0, "moving": 0, "diverging": 0, "period": 0, "ghosts": 0, "ghost_speed": 0,
        "largest_basin": max(positive, 1 - positive), "unresolved": 0, "returned": 1,
    }  # fmt: skip
    assert {name: found[name] for name in truth} == pytest.approx(truth, abs=1e-9)
    assert found["starts"] > 0


def test_a_line_is_one_object_and_no_crowd_of_points():
    found = SITUATIONS["a line"]()
    headline = found.scalars()
    assert headline["continuum_dimension"] == 1
    assert headline["stopped_early"] == 0
    assert headline["attractors"] + headline["saddles"] + headline["repellers"] <= 1
    assert found.motion is None
    assert not any(flag.raised for flag in find_flags(found) if flag.name in WARNED)


def test_a_line_is_where_its_states_rest():
    # After the run every state is on the line, so its own projection is among those the line is known by.
    states = box(97, 2).abs()
    found = look_at(plain([[0.5, 0.5], [0.5, 0.5]], nonlinearity="relu"), states)
    across = (states[:, 0] - states[:, 1]).abs().numpy() / math.sqrt(2)
    assert found.reach.end_distance == pytest.approx(np.median(across) / found.spread, rel=0.05)  # 97 places on it
    assert found.reach.end_speed == pytest.approx(np.median(across) / found.spread, rel=1e-12)


def test_cycles_and_growth_are_looked_at_where_nothing_rests():
    assert SITUATIONS["a two-cycle"]().scalars()["period"] == 2
    assert SITUATIONS["growth"]().scalars()["diverging"] == 1
    assert SITUATIONS["a cycle"]().scalars()["moving"] == 1
    assert bistable().motion is None


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru"])
def test_headline_of_a_flip_flop_is_the_known_one(family):
    x, _ = flip_flop(64, 24, torch.Generator().manual_seed(1))
    found = look_at_module(training(family)[-1].rnn, x, **BOTH).scalars()
    truth = {"attractors": 8, "saddles": 12 + 6 + 1, "repellers": 0, "index_sum": 1, "complete": 1}
    truth |= {"continuum_dimension": 0, "returned": 1, "unresolved": 0, "ghosts": 0, "moving": 0}
    assert {name: found[name] for name in truth} == truth
    assert 2.5 < found["basin_entropy"] <= 3
    assert found["end_distance"] < 0.3  # pulses and holding alternate: most sequences end near a corner


def test_units_at_their_limit_are_counted_at_the_worst_attractor():
    weight = torch.diag(torch.tensor([9.0, 9.0, 2.0, 0.5]).double())  # roots near 1, 1, 0.96 and 0
    assert look_at(plain(weight), box(97, 4)).saturated == 2 / 4
    unbounded = plain(torch.zeros(2, 2), [5.0, 5.0], nonlinearity="relu")
    assert look_at(unbounded, box(97, 2).abs()).saturated == 0


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_projected_units_are_at_their_limit_only_where_their_projection_is():
    torch.manual_seed(0)
    module = nn.LSTM(3, 5, proj_size=2)
    with torch.no_grad():
        module.bias_ih_l0.copy_(torch.tensor([0.0, -1.0, 1.0, 0.0]).repeat_interleave(5))
        module.weight_hh_l0.mul_(0.1)
        module.weight_hr_l0.fill_(3.0)  # h can be 15: at 2 its gates are wide open still
    found = look_at_module(module, torch.randn(7, 11, 3))
    attractor = found.chapter.skeleton.points.states[0]
    assert 1 < np.abs(attractor[:2]).max() < 10
    assert found.saturated == 0


def test_events_and_drift_are_those_of_the_chapter():
    before, after = [equation_of(plain([[0.8]]))], [equation_of(plain([[1.5]]))]
    held, states = torch.zeros(1).double(), box(97, 1)
    history, _ = begin(before, held, search(before, held, [states]))
    _, chapter = go_on(history, after, held, [states])
    found = examine(after, held, seen(plain([[1.5]]), states), chapter).scalars()
    assert (found["births"], found["deaths"], found["stability_changes"]) == (2, 0, 1)
    assert found["drift"] == pytest.approx(0, abs=1e-9)
    moved = Chapter(chapter.skeleton, chapter.ids, chapter.events, np.array([0.3, np.nan, 0.5]))
    findings = examine(after, held, seen(plain([[1.5]]), states), moved)
    assert findings.scalars()["drift"] == pytest.approx(0.4 / findings.spread)


def test_arrays_hold_what_is_known_of_every_point():
    found = bistable(**BOTH)
    arrays = found.arrays()
    assert sorted(arrays["kind"]) == ["attractor", "attractor", "repeller"]
    np.testing.assert_allclose(np.sort(arrays["states"][arrays["kind"] == "attractor", 0]), [-ROOT, ROOT])
    assert arrays["ids"].tolist() == [0, 1, 2]
    assert arrays["basin_shares"].sum() == pytest.approx(1)
    assert arrays["returned"].tolist() == [1, 1]
    assert arrays["ghost_states"].shape == (0, 1)
    assert all(np.isfinite(values).all() for name, values in arrays.items() if name != "kind")
    assert SITUATIONS["a line"]().arrays()["continuum_directions"].shape == (1, 2)


def test_ghosts_are_counted_and_the_slowest_is_named():
    ghosts = Ghosts(np.zeros((2, 1)), np.array([1e-8, 1e-6]), np.ones((2, 1), dtype=complex))
    found = replace(bistable(), ghosts=ghosts).scalars()
    assert (found["ghosts"], found["ghost_speed"]) == (2, 1e-8)


@pytest.mark.parametrize(("modulus", "steps"), [
    ([0.5], 1 / math.log(2)),
    ([math.exp(-1 / 30), 0.1], 30),
    ([1.0], 1e6),
    ([1 - 1e-9], 1e6),
    ([1 + 1e-9], 1e6),
    ([0.0], 0),
    ([], 0),
    ([np.nan, 0.5], 1 / math.log(2)),
])  # fmt: skip
def test_longest_timescale_is_capped_and_finite(modulus, steps):
    assert longest_timescale(np.array(modulus, dtype=complex)) == pytest.approx(steps)
    assert longest_timescale(1j * np.array(modulus, dtype=complex)) == pytest.approx(steps)


# ---- flags


def raised(findings, name, thresholds=None):
    (flag,) = [flag for flag in find_flags(findings, thresholds) if flag.name == name]
    return flag.raised


def with_reach(distance):
    return replace(bistable(), reach=Reach(distance, 0.0))


def with_events(*events):
    found = bistable()
    chapter = replace(found.chapter, events=tuple(Event(what, ids, "", "") for what, ids in events))
    return replace(found, chapter=chapter)


def with_points(count):
    found = bistable()
    skeleton = found.chapter.skeleton
    points = skeleton.points[np.zeros(count, dtype=np.int64)]
    return replace(found, chapter=replace(found.chapter, skeleton=replace(skeleton, points=points)))


def test_no_attractor_is_raised_where_nothing_rests():
    assert raised(SITUATIONS["a cycle"](), "no_attractor")
    assert raised(SITUATIONS["growth"](), "no_attractor")
    assert not raised(bistable(), "no_attractor")
    assert not raised(SITUATIONS["a line"](), "no_attractor")


def test_a_search_that_stopped_early_needs_restless_states_to_say_that_nothing_rests():
    found = SITUATIONS["a cycle"]()
    skeleton = replace(found.chapter.skeleton, stopped="seconds")
    hurried = replace(found, chapter=replace(found.chapter, skeleton=skeleton))
    assert hurried.motion.moving == 1
    assert raised(hurried, "no_attractor")
    halting = replace(hurried.motion, moving=0.9)
    assert not raised(replace(hurried, motion=halting), "no_attractor")
    assert raised(replace(found, motion=halting), "no_attractor")  # a whole search that found none is enough
    assert not raised(replace(hurried, motion=None), "no_attractor")


@pytest.mark.parametrize(("name", "below", "above"), [
    ("explosion", lambda: with_points(100), lambda: with_points(101)),
    ("saturated", lambda: replace(bistable(), saturated=0.9), lambda: replace(bistable(), saturated=0.91)),
    ("transient", lambda: with_reach(0.75), lambda: with_reach(0.76)),
    ("bifurcation", lambda: with_events(), lambda: with_events(("stability", (3,)))),
    ("bifurcation", lambda: with_events(("found late", (1, 2))), lambda: with_events(("birth", (1,)), ("death", (2,)))),
])  # fmt: skip
def test_a_flag_is_raised_above_its_threshold_and_not_at_it(name, below, above):
    assert not raised(below(), name)
    assert raised(above(), name)


def test_words_name_what_was_measured():
    flags = {flag.name: flag for flag in find_flags(with_events(("birth", (1, 2, 5)), ("death", (0,))))}
    assert flags["bifurcation"].value == 4
    assert flags["bifurcation"].meaning.startswith("4 of the fixed points appeared, vanished or changed")
    assert "still 1.2 times the states' spread" in find_flags(with_reach(1.23))[-1].meaning
    saturated = find_flags(replace(bistable(), saturated=0.95))[2]
    assert "in an attractor 95% of the units" in saturated.meaning
    assert not any("{" in flag.meaning for flag in flags.values())


def test_thresholds_are_the_users():
    found = bistable()  # three points
    assert raised(found, "explosion", {"explosion": 2})
    assert not raised(found, "explosion", {"explosion": 3})
    assert [flag.name for flag in find_flags(found, {"explosion": None})] == [n for n in RULES if n != "explosion"]
    assert [flag.name for flag in find_flags(found)] == list(RULES)
    assert set(WARNED) <= set(RULES)


@pytest.mark.parametrize(("thresholds", "message"), [
    ({"chaos": 1.0}, "flags: 'chaos' is none of no_attractor, explosion, saturated, bifurcation, transient"),
    ({"explosion": "ten"}, "flags: the threshold of 'explosion' must be a number or null, got 'ten'"),
    ({"explosion": True}, "flags: the threshold of 'explosion' must be a number or null, got True"),
    ({"transient": math.nan}, "flags: the threshold of 'transient' must be a number or null, got nan"),
    ({3: 1.0}, "flags: 3 is none of"),
])  # fmt: skip
def test_thresholds_that_mean_nothing_are_refused(thresholds, message):
    with pytest.raises(ValueError, match=message):
        check_thresholds(thresholds)


def test_good_thresholds_pass():
    check_thresholds({})
    check_thresholds({"explosion": 7, "transient": 0.5, "saturated": None, "bifurcation": math.inf})


class Single(Cell):
    """A user's cell that computes in float32, from weights that nobody can reach."""

    gates = ()
    candidate = "hidden"

    def __init__(self):
        super().__init__(Place("cell", stepwise=True), input_size=1, units=3)

    def activations(self, inputs, hidden, memory=None):
        return Activations(torch.tanh(hidden @ torch.diag(torch.tensor([2.0, 0.5, 0.3])))[:, None])

    def follow(self, inside, hidden, memory):
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


def test_a_cell_that_computes_in_float32_is_looked_at():
    cell, states = Single(), box(97, 3)
    equations, held = [equation_of(cell)], torch.zeros(1).double()
    _, chapter = begin(equations, held, search(equations, held, [states.to(equations[0].dtype)]))
    found = examine(equations, held, seen(cell, states), chapter, **BOTH).scalars()
    assert all(math.isfinite(value) for value in found.values())
    assert found["attractors"] <= 2


def test_stacks_are_looked_at_as_one():
    torch.manual_seed(0)
    module = nn.GRU(3, 5, 3)
    found = look_at_module(module, torch.randn(7, 11, 3), **BOTH)
    assert found.chapter.skeleton.points.states.shape[1] == sum(cell.state_size for cell in cells(module))
    assert found.scalars()["returned"] == 1
    assert found.scalars()["unresolved"] == 0
