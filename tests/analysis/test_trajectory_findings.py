"""Names of snapshots in time, and which one is best."""

import math

import numpy as np
import pytest

from rnn_callbacks.analysis.trajectory_findings import PathTimes


def times(epochs, steps=None, values=None, mode="min"):
    epochs = np.array(epochs, dtype=np.int64)
    steps = np.arange(len(epochs)) * 7 if steps is None else np.array(steps, dtype=np.int64)
    values = np.zeros(len(epochs)) if values is None else np.array(values, dtype=np.float64)
    return PathTimes(epochs, steps, values, "val_loss", mode)


def best(*values, mode="min"):
    return times(range(len(values)), values=values, mode=mode).best


@pytest.mark.parametrize("mode, place", [("min", 2), ("max", 1)])
def test_best_is_the_smallest_or_the_largest_value(mode, place):
    assert best(0.5, 0.9, 0.1, 0.3, mode=mode) == place


@pytest.mark.parametrize("mode", ["min", "max"])
def test_first_of_several_equals_is_best(mode):
    assert best(math.nan, 2.0, 2.0, 2.0, mode=mode) == 1


@pytest.mark.parametrize("mode", ["min", "max"])
def test_snapshot_without_a_value_is_never_best(mode):
    assert best(math.nan, 3.0, math.nan, mode=mode) == 1
    assert best(math.inf, -math.inf, 3.0, math.nan, mode=mode) == 2
    assert best(math.nan, math.nan, mode=mode) is None
    assert best(mode=mode) is None


def test_snapshots_of_different_epochs_are_named_by_epoch():
    found = times([-1, 0, 1, 2])
    assert (found.by_epoch, found.unit, found.labels) == (True, "epoch", ["start", "0", "1", "2"])
    np.testing.assert_array_equal(found.axis, [-1, 0, 1, 2])


def test_snapshots_within_epochs_are_named_by_step():
    found = times([-1, 0, 0, 1], steps=[0, 5, 10, 15])
    assert (found.by_epoch, found.unit, found.labels) == (False, "optimizer step", ["start", "5", "10", "15"])
    np.testing.assert_array_equal(found.axis, [0, 5, 10, 15])


def test_path_that_goes_on_after_a_pause_keeps_its_names():
    found = times([-1, 0, 1, 4, 5], steps=[0, 5, 10, 25, 30])
    assert found.labels == ["start", "0", "1", "4", "5"]
    within = times([-1, 0, 1, 1, 2], steps=[0, 5, 8, 10, 15])  # stopped in the middle of an epoch
    assert within.labels == ["start", "5", "8", "10", "15"]


def test_path_that_begins_late_has_no_start():
    assert times([3, 4], steps=[20, 25]).labels == ["3", "4"]
    assert times([3, 3], steps=[20, 25]).labels == ["20", "25"]
