import numpy as np
import pytest

from rnn_callbacks.analysis.emergence import NEVER, emergence
from rnn_callbacks.analysis.probe_findings import COURSE, Course

WIDTH = 0.05  # of an interval to either side


def course(epochs, bits, *, untrained=np.nan, width=WIDTH):
    found = Course(list(epochs))
    for value in bits:
        row = dict.fromkeys(COURSE, np.nan)
        row |= {"bits": value, "bits_low": value - width, "bits_high": value + width, "untrained_bits": untrained}
        found.rows.append([row[name] for name in COURSE])
    return found


@pytest.mark.parametrize("untrained", [np.nan, -0.4, 0.0, 0.3])
@pytest.mark.parametrize("half", [7.0, 11.3])
def test_sigmoid_emerges_half_way_from_the_untrained_networks_bits_to_the_last(half, untrained):
    start = max(np.nan_to_num(untrained), 0.0)
    epochs = np.arange(41)
    found = emergence(course(epochs, start + 2 / (1 + np.exp(-(epochs - half) / 1.5)), untrained=untrained))
    # A straight line between looks leaves the sigmoid by less than a hundredth of an epoch near its middle.
    assert found.epoch == pytest.approx(half, abs=0.02)
    assert found.gain == pytest.approx(2, abs=1e-6)
    assert found.lost == 0


def test_epoch_lies_on_the_straight_line_between_two_looks():
    found = emergence(course([0, 10, 30], [0.0, 0.2, 1.0]))
    assert found.epoch == pytest.approx(10 + 20 * 3 / 8)
    assert found.looks == (10, 30)


def test_epoch_is_where_half_is_passed_for_good():
    assert emergence(course([0, 1, 2, 3, 4], [0.0, 0.8, 0.2, 0.8, 1.0])).epoch == pytest.approx(2.5)


def test_concept_that_is_there_at_the_first_look_emerged_then():
    found = emergence(course([4, 5], [0.9, 1.0]))
    assert found.epoch == 4
    assert found.looks == (4, 4)


@pytest.mark.parametrize(
    ("bits", "untrained"),
    [([0.0, 0.0], np.nan), ([0.0, 0.04], 0.0), ([0.0, 0.5], 0.47), ([0.0, 0.5], 0.9), ([0.2, -0.5], -0.9)],
)
def test_what_moves_within_its_interval_has_not_emerged(bits, untrained):
    found = emergence(course([0, 1], bits, untrained=untrained))
    assert found.epoch == NEVER
    assert found.looks == (NEVER, NEVER)


def test_share_of_the_peak_is_lost():
    found = emergence(course([0, 1, 2], [0.1, 1.0, 0.25]))
    assert found.peak == 1.0
    assert found.lost == pytest.approx(0.75)
    assert found.last == 0.25


def test_peak_within_the_last_looks_interval_is_no_loss():
    found = emergence(course([0, 1, 2], [0.0, 1.0, 0.95]))
    assert found.peak == 0.95
    assert found.lost == 0


def test_untrained_network_that_read_more_is_the_peak():
    found = emergence(course([0, 1], [0.6, 0.5], untrained=2.0))
    assert found.peak == 2.0
    assert found.lost == pytest.approx(0.75)
    assert found.gain == pytest.approx(-1.5)


def test_more_than_all_cannot_be_lost():
    assert emergence(course([0, 1], [1.0, -3.0])).lost == 1


def test_looks_without_a_probe_count_as_nothing_read():
    found = emergence(course([0, 1, 2], [np.nan, np.nan, 1.0]))
    assert found.epoch == pytest.approx(1.5)
    assert emergence(course([0, 1], [1.0, np.nan])).last == 0


def test_course_without_a_look_is_refused():
    with pytest.raises(ValueError, match="at least one look"):
        emergence(Course())
