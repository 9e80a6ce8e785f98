import dataclasses
import math

import numpy as np
import pytest

from rnn_callbacks.analysis.gradient_flags import (
    EPOCHS,
    FALLEN,
    RULES,
    SHORTEST,
    SKIPPED,
    SoFar,
    check_flags,
    dead_parameters,
    flow_flags,
    norm_flags,
)
from rnn_callbacks.analysis.gradient_flow import GradientFlow
from rnn_callbacks.analysis.gradient_norms import ABSENT, GradientNorms

LONG = 100  # steps, so that the limit of a tenth is ten steps


def flow(*lengths, credit=(0.0, -1.0)):
    lengths = np.array(lengths or (LONG,))
    none = np.zeros(int(lengths.max()))
    return GradientFlow(
        cell="l0",
        sequences=len(lengths),
        lengths=lengths,
        times=none.astype(int),
        hidden=none,
        memory=np.empty(0),
        gain=none,
        contribution=none,
        credit=np.array(credit),
        heard=np.ones(len(credit), dtype=int),
        horizon=1.0,
        rebuild_error=0.0,
        tolerance=1e-4,
    )


def flag(name, found, so_far, **thresholds):
    (one,) = [flag for flag in flow_flags(found, so_far, thresholds) if flag.name == name]
    return one


def vanishing(*lengths, credit=(0.0, -1.0), **so_far):
    short = {"epochs": EPOCHS, "best_horizon": 1.0, "loss": 1.0} | so_far
    return flag("vanishing", flow(*lengths, credit=credit), SoFar(**short)).raised


def test_short_horizon_while_nothing_is_learned_is_vanishing():
    found = flag("vanishing", flow(), SoFar(EPOCHS, 5.0, 0.9))
    assert found.raised
    assert (found.value, found.threshold) == (0.05, 0.1)
    assert (
        "credit fell by a factor e every 5.0 of 100 time steps, and the loss is still at 90% of its first value:"
        in found.meaning
    )
    assert "loss" not in flag("vanishing", flow(), SoFar(EPOCHS, 5.0)).meaning


@pytest.mark.parametrize(("horizon", "raised"), [(9.99, True), (10.0, False), (0.0, True), (1e6, False)])
def test_horizon_of_a_tenth_of_the_length_is_enough(horizon, raised):
    assert vanishing(best_horizon=horizon) == raised


@pytest.mark.parametrize(("loss", "raised"), [(FALLEN, True), (FALLEN * 0.999, False), (None, True), (math.nan, True)])
def test_network_that_learns_is_left_alone_and_unknown_loss_says_nothing(loss, raised):
    assert vanishing(loss=loss) == raised


@pytest.mark.parametrize(("epochs", "raised"), [(EPOCHS - 1, False), (EPOCHS, True)])
def test_something_that_has_not_come_about_takes_some_epochs_to_tell(epochs, raised):
    assert vanishing(epochs=epochs) == raised


@pytest.mark.parametrize(
    ("lengths", "raised"),
    [((SHORTEST - 1,), False), ((SHORTEST,), True), ((3, 3, 97), False), ((3, 97, 97), True)],
)
def test_steps_of_short_sequences_are_all_near_and_the_median_sequence_tells(lengths, raised):
    assert vanishing(*lengths, best_horizon=0.1) == raised


def test_horizon_is_measured_in_lengths_of_the_median_sequence():
    assert flag("vanishing", flow(10, 20, 1000), SoFar(EPOCHS, 5.0)).value == 0.25


def test_without_an_impulse_that_was_heard_nothing_vanishes():
    assert not vanishing(credit=(0.0,))
    assert vanishing(credit=(0.0, -690.0))


@pytest.mark.parametrize(
    ("credit", "raised"),
    [((0.0, 3.0, math.log(101)), True), ((0.0, math.log(99), 3.0), False), ((0.0, 9.0, -3.0), True), ((0.0,), False)],
)
def test_impulse_that_grows_a_hundred_times_anywhere_explodes(credit, raised):
    found = flag("exploding", flow(credit=credit), SoFar(1, 1.0))
    assert found.raised == raised
    assert found.value == pytest.approx(math.exp(max(credit)))
    assert f"grows {math.exp(max(credit)):.3g} times" in found.meaning


def test_exactly_the_limit_explodes_and_a_flat_credit_is_one():
    found = flag("exploding", flow(credit=(0.0, 0.0)), SoFar(1, 1.0), exploding=1.0)
    assert (found.value, found.raised) == (1.0, True)


def test_explosion_beyond_all_numbers_is_still_a_number():
    found = flag("exploding", flow(credit=(0.0, 5000.0)), SoFar(1, 1.0))
    assert found.raised
    assert found.value == pytest.approx(math.exp(700))


def test_explosion_is_told_in_few_words():
    found = flag("exploding", flow(credit=(0.0, 5000.0)), SoFar(1, 1.0))
    assert len(found.meaning) < 300


def test_threshold_moves_a_rule_and_none_switches_it_off():
    so_far = SoFar(EPOCHS, 5.0)
    assert not flag("vanishing", flow(), so_far, vanishing=0.05).raised
    assert flag("exploding", flow(credit=(0.0, 1.0)), so_far, exploding=2.0).raised
    assert [one.name for one in flow_flags(flow(), so_far, {})] == ["vanishing", "exploding"]
    assert [one.name for one in flow_flags(flow(), so_far, {"vanishing": None})] == ["exploding"]
    assert [one.name for one in flow_flags(flow(), so_far, {"exploding": None})] == ["vanishing"]


def norms(norm, share=1.0):
    """Of n steps and P parameters, clipped to a share of themselves (of each step, or of all)."""
    norm = np.array(norm, dtype=float)
    share = np.broadcast_to(share, len(norm))[:, None]
    names = tuple(f"p{number}" for number in range(norm.shape[1]))
    clipped = np.where(norm == ABSENT, ABSENT, norm * share)
    return GradientNorms(np.arange(len(norm)), names, (), norm, clipped, np.empty((len(norm), 0)))


def of_steps(name, found, *, looks=2, scaled=False, **thresholds):
    (one,) = [flag for flag in norm_flags(found, thresholds, looks=looks, scaled=scaled) if flag.name == name]
    return one


@pytest.mark.parametrize(("clipped", "raised"), [(5, False), (6, True), (10, True), (0, False)])
def test_more_than_half_of_the_steps_clipped_is_told(clipped, raised):
    found = of_steps("clipped", norms([[3.0]] * 10, share=np.where(np.arange(10) < clipped, 0.5, 1.0)))
    assert (found.value, found.raised) == (pytest.approx(clipped / 10), raised)
    assert f"{clipped / 10:.0%} of the epoch's steps were clipped" in found.meaning


def test_clipping_at_the_very_start_is_what_clipping_is_for():
    all_clipped = norms([[3.0]] * 7, share=0.1)
    assert not of_steps("clipped", all_clipped, looks=1).raised
    assert of_steps("clipped", all_clipped, looks=2).raised
    assert not of_steps("clipped", all_clipped, clipped=1.0).raised


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_single_step_without_finite_gradients_is_told(bad):
    found = of_steps("non_finite", norms([[1.0, bad], *[[1.0, 1.0]] * 10]), looks=1)
    assert (found.value, found.raised) == (pytest.approx(1 / 11), True)
    assert "9.1% of the epoch's steps had NaN or infinite gradients" in found.meaning
    assert not of_steps("non_finite", norms([[1.0, ABSENT]] * 11)).raised
    assert not of_steps("non_finite", norms([[1.0, bad], *[[1.0, 1.0]] * 10]), non_finite=0.1).raised


@pytest.mark.parametrize(("broken", "raised"), [(1, False), (2, True)])
def test_gradient_scaler_may_skip_a_tenth_of_the_steps(broken, raised):
    found = of_steps("non_finite", norms([[math.inf]] * broken + [[1.0]] * (10 - broken)), scaled=True)
    assert (found.threshold, found.raised) == (SKIPPED, raised)


def test_limit_above_what_a_scaler_may_skip_stays():
    found = of_steps("non_finite", norms([[math.inf]] * 3 + [[1.0]] * 7), scaled=True, non_finite=0.4)
    assert (found.threshold, found.raised) == (0.4, False)


def test_rules_of_steps_are_switched_off_by_none():
    seen = norms([[1.0]])
    assert [one.name for one in norm_flags(seen, {}, looks=2)] == ["clipped", "non_finite"]
    assert [one.name for one in norm_flags(seen, {"clipped": None}, looks=2)] == ["non_finite"]
    assert [one.name for one in norm_flags(seen, {"non_finite": None}, looks=2)] == ["clipped"]
    assert dead_parameters(seen, {"dead": None}, ["p0"]) is None


def test_parameter_without_a_gradient_other_than_zero_is_dead():
    rows = [[1.0, 0.0, ABSENT, 0.0, 0.0, math.nan], [1.0, 0.0, ABSENT, ABSENT, 1e-30, math.nan]]
    names = [f"p{number}" for number in range(6)]
    flag, dead = dead_parameters(norms(rows), {}, names)
    assert (flag.raised, flag.value, dead) == (True, 1.0, ("p1", "p2", "p3"))
    assert "zero to p1, p2, p3: not used" in flag.meaning
    assert dead_parameters(norms(rows), {"dead": 0.5}, names)[1] == ("p1", "p2", "p3", "p4")
    flag, dead = dead_parameters(norms(rows), {}, ["p0", "p4", "p5"])  # the others are frozen
    assert (flag.raised, flag.value, dead) == (False, 0.5, ())


def test_many_dead_parameters_are_counted():
    flag, dead = dead_parameters(norms([[0.0] * 7]), {}, [f"p{number}" for number in range(7)])
    assert len(dead) == 7
    assert "to p0, p1, p2, p3, p4 and 2 more: not used" in flag.meaning


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match="flags: the threshold of 'vanishing' is a share, from 0 to 1, got 20"):
        check_flags({"vanishing": 20})
    check_flags({"exploding": 20})


def test_thresholds_that_mean_nothing_are_refused():
    check_flags({"vanishing": 0.2, "exploding": None, "clipped": 1, "non_finite": np.float64(0.1), "dead": 0.9})
    check_flags({})
    with pytest.raises(ValueError, match="flags: 'frozen' is none of vanishing, exploding, clipped, non_finite, dead"):
        check_flags({"frozen": 0.1})
    for value in (True, math.nan, "0.1", [0.1]):
        with pytest.raises(ValueError, match="flags: the threshold of 'dead' must be a number or null, got"):
            check_flags({"dead": value})


def test_every_rule_is_applied_and_every_meaning_is_a_sentence():
    seen = norms([[1.0]])
    found = [
        *flow_flags(flow(), SoFar(1, 1.0), {}),
        *norm_flags(seen, {}, looks=1),
        dead_parameters(seen, {}, ["p0"])[0],
    ]
    assert [one.name for one in found] == list(RULES)
    for one in found:
        assert "{" not in one.meaning
        assert one.meaning.endswith(".")
        assert one.threshold == RULES[one.name].threshold
        assert dataclasses.is_dataclass(one)
