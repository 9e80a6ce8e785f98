import math

import numpy as np
import pytest

from rnn_callbacks.compare.series import Series, epochs_of, joined


def series(steps, values, walls=None, epochs=None):
    unknown = np.full(len(steps), np.nan)
    return Series(
        np.array(steps, np.int64),
        np.array(values, np.float64),
        unknown if walls is None else np.array(walls, np.float64),
        unknown if epochs is None else np.array(epochs, np.float64),
    )


def test_each_axis_has_its_positions_and_time_counts_from_the_start():
    known = series([0, 10, 2**40], [1, 2, 3], walls=[100, 105, 130.5], epochs=[0, 0, 1])
    assert known.on("epoch").tolist() == [0, 0, 1]
    assert known.on("step").tolist() == [0, 10, 2**40]
    assert known.on("time", 100.0).tolist() == [0, 5, 30.5]


@pytest.mark.parametrize("axis, places", [("epoch", [0, 1, 2]), ("step", [5, 15, 25]), ("time", [1, 2, 3])])
def test_the_value_at_a_place_is_the_last_at_or_before_it(axis, places):
    known = series([5, 15, 25], [0.5, 0.25, 0.125], walls=[11, 12, 13], epochs=[0, 1, 2])
    assert math.isnan(known.at(places[0] - 0.5, axis, 10.0))
    assert known.at(places[0], axis, 10.0) == 0.5
    assert known.at(places[1] + 0.5, axis, 10.0) == 0.25
    assert known.at(1e300, axis, 10.0) == 0.125


def test_values_that_are_not_finite_are_never_the_last_and_never_at_a_place():
    known = series([1, 2, 3, 4], [7, math.inf, math.nan, -math.inf])
    assert known.last == 7
    assert known.at(4, "step") == 7
    nowhere = series([1, 2], [math.nan, math.inf])
    assert math.isnan(nowhere.last)
    assert math.isnan(nowhere.at(2, "step"))


def test_a_place_on_an_axis_that_nobody_knows_has_no_value():
    assert math.isnan(series([1, 2], [3, 4]).at(1e9, "epoch"))
    assert math.isnan(series([1, 2], [3, 4]).at(1e9, "time", 0.0))


def test_an_empty_series_has_no_last_value():
    assert math.isnan(series([], []).last)
    assert math.isnan(series([], []).at(3, "step"))


def test_joined_steps_increase_and_the_later_source_and_the_later_writing_count():
    first = series([3, 1, 2, 1], [30, 10, 20, 11], walls=[4, 1, 3, 2], epochs=[0, 0, 0, 5])
    second = series([2, 7], [21, 70], walls=[8, 9], epochs=[1, 2])
    found = joined([first, second])
    assert found.steps.tolist() == [1, 2, 3, 7]
    assert found.values.tolist() == [11, 21, 30, 70]
    assert found.walls.tolist() == [2, 8, 4, 9]
    assert found.epochs.tolist() == [5, 1, 0, 2]
    assert joined([second, first]).values.tolist() == [11, 20, 30, 70]


def test_joining_is_what_a_dictionary_does():
    generator = np.random.default_rng(0)
    parts = [series(generator.integers(-50, 50, n), generator.normal(size=n)) for n in (0, 1, 200, 31)]
    expected = {}
    for part in parts:
        expected |= dict(zip(part.steps.tolist(), part.values.tolist(), strict=True))
    found = joined(parts)
    assert list(zip(found.steps.tolist(), found.values.tolist(), strict=True)) == sorted(expected.items())


def test_a_step_belongs_to_the_epoch_at_whose_end_it_is_logged():
    known = series([9, 19, 29], [0, 1, 2])
    found = epochs_of(np.array([-1, 0, 9, 10, 19, 25, 29, 40]), known)
    assert found.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("known", [None, series([], [])])
def test_without_logged_epochs_none_is_known(known):
    assert np.isnan(epochs_of(np.array([1, 2, 3]), known)).tolist() == [True] * 3
