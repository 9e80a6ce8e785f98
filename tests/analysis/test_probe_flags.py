from dataclasses import replace

import numpy as np
import pytest

from rnn_callbacks.analysis.emergence import Emergence
from rnn_callbacks.analysis.probe_findings import Baseline, correct, judge
from rnn_callbacks.analysis.probe_flags import FIRST, RULES, ConceptStory, check_thresholds, encoding, find_flags
from rnn_callbacks.analysis.probe_scores import no_reading
from rnn_callbacks.analysis.unit_information import unit_information

from .known_labels import read

SEQUENCES, UNITS = 301, 5
LABELS = np.random.default_rng(0).integers(0, 2, SEQUENCES)
STEADY = Emergence(epoch=3.0, looks=(2.0, 4.0), gain=0.5, peak=0.6, last=0.6)


def probed_at(strength, *, seed=1, labels=LABELS):
    states = np.random.default_rng(seed).normal(size=(SEQUENCES, UNITS))
    states[:, 0] += strength * labels
    return read(states, labels)


def baseline(bits):
    """A control of which so many bits are read."""
    return replace(Baseline.of(probed_at(0.0)), bits=bits)


def story(strength=4.0, *, untrained=None, source=None, course=STEADY, required=None, epochs=7, last=False, **options):
    finding = judge(probed_at(strength, **options), untrained, source)
    (finding,) = correct([finding])
    return ConceptStory("encoder.rnn.l1/hidden", finding, course, epochs, last, required)


def raised(one, **thresholds):
    return {flag.name for flag in find_flags(one, thresholds) if flag.raised}


def flag(one, name):
    return {flag.name: flag for flag in find_flags(one)}[name]


def test_learned_concept_raises_no_flag():
    assert raised(story(untrained=baseline(0.6), source=baseline(0.5), required=0.9)) == set()


def test_concept_that_nobody_asked_for_is_not_missing():
    assert "missing" not in {flag.name for flag in find_flags(story(0.0))}


def test_missing_concept_is_named_with_what_it_has_and_what_it_should():
    one = story(0.0, required=0.9)
    found = flag(one, "missing")
    score = one.best.probed.headline.score
    assert found.raised
    assert found.value == pytest.approx(0.9 - score)
    assert f"balanced accuracy is {score:.2f} at best (in encoder.rnn.l1/hidden), and 0.9 was asked" in found.meaning


@pytest.mark.parametrize(
    ("epochs", "last", "says"), [(1, False, False), (FIRST - 1, False, False), (FIRST, False, True), (1, True, True)]
)
def test_missing_concept_is_spoken_of_when_there_was_time_to_learn_it(epochs, last, says):
    assert ("missing" in raised(story(0.0, required=0.9, epochs=epochs, last=last))) is says


def test_concept_without_a_probe_is_missing_as_a_whole():
    one = story(required=0.9)
    silent = replace(one.best, probed=replace(one.best.probed, headline=no_reading("one class only")))
    assert flag(replace(one, best=silent), "missing").value == 0.9


@pytest.mark.parametrize(("last", "says"), [(0.31, False), (0.29, True)])
def test_forgotten_concept_has_lost_more_than_half_of_its_peak(last, says):
    one = story(course=replace(STEADY, last=last))
    assert ("forgotten" in raised(one)) is says
    assert flag(one, "forgotten").value == pytest.approx(1 - last / 0.6)


@pytest.mark.parametrize("name", ["already_there", "in_the_input"])
@pytest.mark.parametrize(("share", "says"), [(-0.2, False), (0.89, False), (0.91, True), (1.3, True)])
def test_control_that_reads_most_of_the_bits_is_said(name, share, says):
    control = baseline(share * story().best.probed.headline.v_information)
    one = story(untrained=control) if name == "already_there" else story(source=control)
    assert (name in raised(one)) is says
    assert flag(one, name).value == pytest.approx(np.clip(share, 0, 1))


@pytest.mark.parametrize("control", [None, baseline(np.nan)])
def test_control_that_does_not_exist_is_not_said(control):
    assert not {"already_there", "in_the_input"} & raised(story(untrained=control, source=control))


def test_of_what_nobody_reads_no_control_reads_most():
    assert raised(story(0.0, untrained=baseline(0.9), source=baseline(0.9))) == set()


def test_what_may_be_luck_is_not_read_at_all():
    one = story(untrained=baseline(0.99), source=baseline(0.99))
    assert raised(one) == {"already_there", "in_the_input"}
    assert encoding(one.best) == "linear"
    lucky = replace(one, best=replace(one.best, q_value=0.2))
    assert raised(lucky) == set()
    assert encoding(lucky.best) == "absent"


def test_quantity_is_told_by_its_share_of_variance():
    one = story(labels=np.random.default_rng(1).normal(size=SEQUENCES), required=2.0)
    assert "R² is " in flag(one, "missing").meaning


@pytest.mark.parametrize("name", list(RULES))
def test_threshold_is_the_users_to_set_or_to_switch_off(name):
    one = story(0.5, required=0.99, course=replace(STEADY, last=0.1))
    names = {flag.name for flag in find_flags(one, {name: None})}
    assert names == set(RULES) - {name}
    assert {flag.name: flag.threshold for flag in find_flags(one, {name: 0.123})}[name] == 0.123
    assert name not in raised(one, **{name: 10.0})


def test_thresholds_of_flags_that_do_not_exist_are_refused():
    check_thresholds({"forgotten": 0.9, "missing": None})
    with pytest.raises(ValueError, match="forgoten"):
        check_thresholds({"forgoten": 0.9})


def encoded(states, labels):
    """How labels lie in states of which the probe and the units' information are known."""
    (finding,) = correct([judge(read(states, labels), None, None)])
    return encoding(replace(finding, information=unit_information(states, labels)))


def test_line_units_and_neither_are_told_apart():
    rng = np.random.default_rng(0)
    labels, states = rng.integers(0, 2, 900), rng.normal(size=(900, 3))
    linear, bump = states.copy(), states.copy()
    linear[:, 0] += 3 * labels
    bump[:, 0] = np.where(labels == 1, 0.3 * bump[:, 0], 3 * np.sign(bump[:, 0]) + 0.3 * rng.normal(size=900))
    assert encoded(linear, labels) == "linear"
    assert encoded(bump, labels) == "nonlinear"
    assert encoded(states, labels) == "absent"
    assert encoded(states, ((states[:, :2] > 0).sum(1) == 1).astype(int)) == "absent"


def test_perfectly_read_label_is_linear():
    labels = np.arange(300) % 2
    assert encoded(100.0 * labels[:, None] * np.ones(3), labels) == "linear"


@pytest.mark.parametrize("whole", [True, False])
def test_untrained_layers_behind_a_trained_encoder_are_said_to_be_so(whole):
    one = story(untrained=replace(baseline(0.99), whole=whole))
    meaning = flag(one, "already_there").meaning
    assert f"gives 0.99 bits of it, where this one gives {one.best.probed.headline.v_information:.2f}" in meaning
    assert ("num_sanity_val_steps=-1" in meaning) is not whole
