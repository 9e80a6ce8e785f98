"""Which paths are told to swing or to wander, and in which words."""

import math

import numpy as np
import pytest

from rnn_callbacks.analysis.step_gram import path_steps
from rnn_callbacks.analysis.trajectory_flags import (
    LATE,
    QUIET,
    RULES,
    WINDOW,
    check_flags,
    path_flags,
    unmoved_flag,
)
from rnn_callbacks.analysis.weight_trajectory import weight_trajectory

MANY = 4001  # parameters, so that chance has no say


@pytest.fixture
def generator():
    return np.random.default_rng(13)


def flag(name, weights, *, most=500, **thresholds):
    path = weight_trajectory(path_steps(np.asarray(weights, dtype=np.float64), most=most))
    (one,) = [flag for flag in path_flags(path, thresholds) if flag.name == name]
    return one


def line(steps, lengths=1.0):
    return np.concatenate([[0], np.cumsum(np.broadcast_to(lengths, steps))])[:, None] * np.array([3.0, 4.0])


def swing(steps, drift=0.0):
    """To and fro, a little further each time."""
    return (np.arange(steps + 1) % 2)[:, None] * np.array([1.0, 0.0]) + drift * np.arange(steps + 1)[:, None] * [0, 1]


def random_walk(generator, steps):
    return generator.normal(size=(steps + 1, MANY)).cumsum(0)


def places_by_chance(generator, steps):
    return generator.normal(size=(steps + 1, MANY))


def test_path_that_swings_is_told_to():
    found = flag("oscillating", swing(WINDOW + 1))
    assert (found.value, found.threshold, found.raised) == (pytest.approx(-1), -0.6, True)
    assert "the last 6 steps turned back on one another (mean cosine -1.00)" in found.meaning


def test_places_drawn_by_chance_around_one_point_do_not_swing(generator):
    found = flag("oscillating", places_by_chance(generator, 40))
    assert (found.value, found.raised) == (pytest.approx(-0.5, abs=0.03), False)


def test_straight_path_and_random_walk_do_not_swing(generator):
    assert flag("oscillating", line(20)).value == pytest.approx(1)
    found = flag("oscillating", random_walk(generator, 40))
    assert (found.value, found.raised) == (pytest.approx(0, abs=0.03), False)


@pytest.mark.parametrize("angle, raised", [(126, False), (127, True), (180, True)])  # the cosine of 126.9 is -0.6
def test_mean_cosine_beyond_the_limit_is_told(angle, raised):
    turns = np.radians(angle) * np.arange(WINDOW + 1)
    path = np.stack([np.cos(turns), np.sin(turns)], 1).cumsum(0)
    found = flag("oscillating", np.concatenate([[[0, 0]], path]))
    assert (found.value, found.raised) == (pytest.approx(math.cos(math.radians(angle))), raised)


def test_only_the_last_turns_count():
    for swings, corner in ((WINDOW - 1, 2), (WINDOW, 1), (WINDOW + 1, 0)):
        found = flag("oscillating", np.concatenate([line(30), line(30)[-1] + swing(swings)[1:]]))
        into = 0.6 if corner else 0.0  # the cosine between the line and the first swing
        ahead = 1.0 if corner == 2 else 0.0
        assert found.value == pytest.approx((into + ahead - (WINDOW - corner)) / WINDOW)
    swings_then_straight = np.concatenate([swing(30), swing(30)[-1] + line(WINDOW + 1)[1:]])
    assert flag("oscillating", swings_then_straight).value == pytest.approx(1)


def test_steps_without_length_do_not_swing():
    path = swing(40)
    path[-4:] = path[-4]
    found = flag("oscillating", path)
    assert (found.value, found.raised) == (pytest.approx(-2 / WINDOW), False)


@pytest.mark.parametrize("most", [500, 7])
def test_swinging_is_seen_in_snapshots_that_are_not_drawn(most):
    assert flag("oscillating", swing(64), most=most).value == pytest.approx(-1)


@pytest.mark.parametrize("steps, known", [(LATE - 1, False), (LATE, True), (60, True)])
def test_straight_path_comes_as_far_as_the_root_of_its_steps(steps, known):
    found = flag("wandering", line(steps))
    assert (found.value, found.raised) == (pytest.approx(math.sqrt(LATE) if known else 0), False)


def test_random_walk_comes_as_far_as_a_random_walk(generator):
    values = [flag("wandering", random_walk(generator, 20)).value for _ in range(5)]
    # In P dimensions the squared distance of 10 steps scatters by sqrt(2 * 0.9 / P), .02.
    np.testing.assert_allclose(values, 1, atol=0.04)


def test_places_drawn_by_chance_and_swings_wander(generator):
    found = flag("wandering", places_by_chance(generator, 40))
    assert (found.value, found.raised) == (pytest.approx(1 / math.sqrt(LATE), abs=0.02), True)
    assert "over the last 10 steps the weights came no further than a random walk would (0.31 times" in found.meaning
    drifting = flag("wandering", swing(40, drift=0.1))
    assert (drifting.value, drifting.raised) == (pytest.approx(1 / math.sqrt(LATE * 1.01)), True)


def test_path_that_is_back_where_it_was_wanders():
    found = flag("wandering", swing(40))
    assert (found.value, found.raised) == (0, True)
    assert "(0.00 times as far)" in found.meaning


def test_lengths_of_the_steps_are_those_of_the_walk():
    lengths = np.array([100.0] * 5 + [*range(1, LATE + 1)])
    late = lengths[5:]
    assert flag("wandering", line(15, lengths)).value == pytest.approx(late.sum() / math.sqrt((late**2).sum()))


@pytest.mark.parametrize("name, enough", [("oscillating", WINDOW + 1), ("wandering", LATE)])
def test_nothing_is_told_before_there_are_steps_enough(name, enough):
    for steps in range(enough):
        found = flag(name, swing(steps))
        assert (found.value, found.raised) == (0, False)
        assert not flag(name, swing(steps), **{name: 0.5}).raised
    assert flag(name, swing(enough)).raised


def test_weights_that_stand_still_neither_swing_nor_wander():
    for name in ("oscillating", "wandering"):
        found = flag(name, np.ones((30, 3)))
        assert (found.value, found.raised) == (0, False)


@pytest.mark.parametrize("most", [4, 7, 20, 40])
@pytest.mark.parametrize("steps", [40, 41, 47, 64, 100])
def test_steps_of_a_thinned_path_are_counted_as_they_were_taken(generator, steps, most):
    # Few snapshots are drawn, so the stretch begins at one of them, LATE steps ago or a little more.
    points = path_steps(line(steps), most=most).points
    taken = steps - int(points[points <= max(steps - LATE, 0)][-1])
    found = flag("wandering", line(steps), most=most)
    assert found.value == pytest.approx(math.sqrt(taken))
    assert f"over the last {taken} steps" in found.meaning
    assert flag("wandering", random_walk(generator, steps), most=most).value == pytest.approx(1, abs=0.06)
    swinging = flag("wandering", swing(steps), most=most)
    assert (swinging.value, swinging.raised) == (pytest.approx((taken % 2) / math.sqrt(taken)), True)


def test_path_with_a_direction_does_not_wander(generator):
    path = random_walk(generator, 40) + 0.5 * np.arange(41)[:, None]
    # Squared, 10 steps of noise and 100 times a quarter, over 10 of both.
    assert flag("wandering", path).value == pytest.approx(math.sqrt((10 + 25) / 12.5), abs=0.05)
    assert not flag("wandering", path).raised
    assert flag("wandering", path, wandering=2.0).raised


def test_thresholds_move_the_rules_and_none_switches_them_off(generator):
    chance = places_by_chance(generator, 40)
    assert flag("oscillating", chance, oscillating=-0.4).raised
    assert flag("oscillating", chance, oscillating=-0.4).threshold == -0.4
    assert not flag("wandering", chance, wandering=0.2).raised
    path = weight_trajectory(path_steps(chance))
    assert [one.name for one in path_flags(path, {})] == ["oscillating", "wandering"]
    assert [one.name for one in path_flags(path, {"oscillating": None})] == ["wandering"]
    assert [one.name for one in path_flags(path, {"wandering": None})] == ["oscillating"]
    assert unmoved_flag(["head.weight"], {"unmoved": None}) is None


def test_exactly_the_limit_is_not_beyond_it():
    value = flag("oscillating", swing(20)).value
    assert not flag("oscillating", swing(20), oscillating=value).raised
    value = flag("wandering", line(20)).value
    assert not flag("wandering", line(20), wandering=value).raised


def test_parameters_that_have_not_moved_are_named():
    found = unmoved_flag(["rnn.weight_hh_l0", "head.bias"], {})
    assert (found.name, found.value, found.threshold, found.raised) == ("unmoved", 2.0, 0.0, True)
    assert "have not moved at all: rnn.weight_hh_l0, head.bias. Left out of the optimizer" in found.meaning
    assert not unmoved_flag([], {}).raised
    assert not unmoved_flag(["a", "b"], {"unmoved": 2}).raised
    assert unmoved_flag(["a", "b", "c"], {"unmoved": 2}).raised


def test_many_parameters_that_have_not_moved_are_counted():
    found = unmoved_flag([f"p{number}" for number in range(7)], {})
    assert found.value == 7
    assert "at all: p0, p1, p2, p3, p4 and 2 more. Left" in found.meaning


def test_thresholds_that_mean_nothing_are_refused():
    check_flags({})
    check_flags({"unmoved": 3, "oscillating": -1, "wandering": None})
    check_flags({"oscillating": 1, "wandering": 7.5})
    check_flags({"oscillating": None})
    with pytest.raises(ValueError, match="flags: 'swinging' is none of unmoved, oscillating, wandering"):
        check_flags({"swinging": 0.1})
    for value in (True, math.nan, "0.1", [0.1]):
        with pytest.raises(ValueError, match="flags: the threshold of 'wandering' must be a number or null, got"):
            check_flags({"wandering": value})
    for value in (-1.01, 1.01):
        with pytest.raises(ValueError, match="flags: the threshold of 'oscillating' is a cosine, from -1 to 1, got"):
            check_flags({"oscillating": value})


def test_every_rule_is_applied_and_every_meaning_is_a_sentence():
    found = [unmoved_flag(["p"], {}), *path_flags(weight_trajectory(path_steps(swing(40))), {})]
    assert [one.name for one in found] == list(RULES)
    for one in found:
        assert "{" not in one.meaning
        assert one.meaning.endswith(".")
        assert one.threshold == RULES[one.name].threshold
    assert set(QUIET) < set(RULES)


def test_where_nothing_moved_the_learning_rate_is_named():
    found = unmoved_flag(["a", "b"], {}, nothing_moved=True)
    assert found.raised
    assert found.meaning == "no weight has moved at all: is the learning rate 0, or no optimizer stepping?"
