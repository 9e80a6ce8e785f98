"""Logistic probes against scikit-learn's, within their budget and where there is nothing to learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rnn_callbacks.analysis import logistic
from rnn_callbacks.analysis.discriminant import ClassProbe, basis, best_sharpness, fit_classes
from rnn_callbacks.analysis.logistic import Descent, descend, fit_logistic


def curved(classes, *, samples=701, units=13, seed=0):
    """Classes by the size of a projection, seen through tanh: a discriminant is not the best linear probe."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(samples, units))
    codes = (
        hidden @ np.random.default_rng(5).normal(size=(units, classes)) + rng.normal(size=(samples, classes))
    ).argmax(1)
    codes[: 3 * classes] = np.tile(np.arange(classes), 3)
    return np.tanh(2 * hidden @ np.random.default_rng(6).normal(size=(units, units)) / np.sqrt(units)), codes


def fit(states, codes, **options):
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    return base, fit_logistic(base, codes, start=start, **options)


def accuracy(base, probe, states, codes):
    values = base.standardised(states) @ probe.weights + probe.offsets + probe.log_priors
    return (values.argmax(1) == codes).mean()


def referee(base, codes, penalty=1.0):
    return LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-10).fit(base.states, codes)


def nearly(start, share):
    return ClassProbe(start.weights * share, start.offsets * share, start.log_priors, start.sharpness)


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_many_evaluations_end_where_scikit_learn_does(classes, penalty):
    states, codes = curved(classes)
    base, probe = fit(states, codes, evaluations=2000, penalty=penalty, tolerance=0.0)
    true = referee(base, codes, penalty)
    weights, intercept = probe.weights.T, probe.offsets + probe.log_priors
    if classes == 2:
        weights, intercept = weights[1:] - weights[:1], intercept[1:] - intercept[:1]
    else:
        intercept = intercept - intercept.mean()
    np.testing.assert_allclose(weights, true.coef_, atol=1e-3)
    np.testing.assert_allclose(intercept, true.intercept_ - true.intercept_.mean() * (classes > 2), atol=1e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 4, 12, 20])
def test_twenty_evaluations_are_as_accurate_as_scikit_learn(classes, kind):
    gaps = []
    for seed in range(3):
        states, codes = curved(classes, samples=1999, units=31, seed=seed)
        others, truth = curved(classes, samples=3001, units=31, seed=seed + 100)
        base, probe = fit(states.astype(kind), codes)
        gaps.append(accuracy(base, probe, others, truth) - referee(base, codes).score(base.standardised(others), truth))
    assert np.mean(gaps) > -0.002
    assert np.min(gaps) > -0.016


@pytest.mark.parametrize("scale", [0.03, 1.0, 100.0])
def test_a_start_far_off_in_scale_ends_near_all_the_same(scale):
    states, codes = curved(7)
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    probe = fit_logistic(base, codes, start=nearly(start, scale))
    assert accuracy(base, probe, states, codes) > referee(base, codes).score(base.states, codes) - 0.016


@pytest.mark.parametrize("evaluations", [2, 3, 7, 20])
def test_evaluations_stay_within_the_budget(evaluations, monkeypatch):
    counted = []
    make = logistic._loss

    def counting(*arguments):
        loss = make(*arguments)
        return lambda point: (counted.append(1), loss(point))[1]

    monkeypatch.setattr(logistic, "_loss", counting)
    states, codes = curved(7)
    fit(states, codes, evaluations=evaluations, tolerance=0.0)
    assert len(counted) == evaluations


def test_descent_stays_within_its_budget_where_steps_fail():
    calls = []

    def valley(point):
        calls.append(point)
        x, y = point[0]
        gradient = np.array([[-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)]])
        return float(100 * (y - x**2) ** 2 + (1 - x) ** 2), gradient

    for budget in (1, 2, 9):
        calls.clear()
        assert descend(valley, Descent(np.array([[-1.2, 1.0]]), (), 0), budget, 0.0).evaluations == len(calls) == budget
    found = descend(valley, Descent(np.array([[-1.2, 1.0]]), (), 0), 200, 1e-20)
    np.testing.assert_allclose(found.point, [[1.0, 1.0]], atol=1e-6)


def test_descent_never_ends_above_its_start():
    loss = logistic._loss
    states, codes = curved(7)
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    coordinates = logistic._coordinates(base, codes, start, 1e-3)
    of_all = loss(base.states, codes, coordinates, 1e-3)
    values = [of_all(descend(of_all, Descent(coordinates.start, (), 0), n, 0.0).point)[0] for n in (1, 2, 5, 10, 40)]
    assert (np.diff(values) <= 0).all()
    assert values[0] == of_all(coordinates.start)[0]


def test_gradient_is_that_of_the_loss():
    states, codes = curved(5, samples=97)
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    coordinates = logistic._coordinates(base, codes, start, 0.1)
    loss = logistic._loss(base.states, codes, coordinates, 0.1)
    point = coordinates.start + np.random.default_rng(0).normal(size=coordinates.start.shape)
    _, gradient = loss(point)
    for row, column in ((0, 0), (3, 7), (4, 13)):
        step = np.zeros_like(point)
        step[row, column] = 1e-5
        slope = (loss(point + step)[0] - loss(point - step)[0]) / 2e-5
        assert gradient[row, column] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rare_classes_leave_the_common_ones_alone(kind):
    rng = np.random.default_rng(0)
    codes = np.concatenate([[0, 0, 1, 1], rng.integers(2, 4, 500)])
    states = (rng.normal(size=(504, 17)) + rng.normal(size=(4, 17))[codes]).astype(kind)
    base, probe = fit(states, codes)
    assert np.isfinite(probe.weights).all()
    assert np.isfinite(probe.offsets).all()
    assert accuracy(base, probe, states, codes) > referee(base, codes).score(base.states, codes) - 0.016
    assert probe.sharpness > 0.3


def test_two_twos_among_five_hundred_stay_finite_and_in_budget():
    rng = np.random.default_rng(0)
    codes = np.concatenate([[0, 0, 1, 1], np.full(500, 2)])
    base, probe = fit(rng.normal(size=(504, 17)), codes)
    assert np.isfinite(probe.weights).all()
    assert np.isfinite(probe.sharpness)
    assert accuracy(base, probe, rng.normal(size=(503, 17)), 2) > 0.95


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_classes_far_apart_stay_finite_and_are_told_apart(kind):
    rng = np.random.default_rng(0)
    codes = np.arange(599) % 7
    states = (10 * rng.normal(size=(7, 23))[codes] + 0.1 * rng.normal(size=(599, 23))).astype(kind)
    base, probe = fit(states, codes)
    assert np.isfinite(probe.weights).all()
    assert accuracy(base, probe, states, codes) == 1.0
    assert probe.sharpness > 1
    # The penalty bounds the weights: those of the minimum are not far.
    assert np.abs(probe.weights).max() < 2 * np.abs(referee(base, codes).coef_).max()


def test_fewer_samples_than_units_are_fitted_as_well():
    rng = np.random.default_rng(0)
    codes = np.arange(61) % 3
    states = rng.normal(size=(61, 127)) + 2 * rng.normal(size=(3, 127))[codes]
    base, probe = fit(states, codes)
    assert np.isfinite(probe.weights).all()
    assert accuracy(base, probe, states, codes) == 1.0


def test_noise_has_next_to_no_sharpness():
    found, excess = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, probe = fit(rng.normal(size=(1201, 127)), rng.integers(0, 3, 1201))
        values = rng.normal(size=(3001, 127)) @ probe.weights + probe.offsets
        told = np.log(np.exp(probe.log_priors + probe.sharpness * values))
        told -= np.log(np.exp(told).sum(1, keepdims=True))
        found.append(probe.sharpness)
        excess.append(-told[np.arange(3001), rng.integers(0, 3, 3001)].mean() - np.log(3))
    # The error of each is about sqrt(6 / 127) = 0.2, whatever the samples, and what would be below 0 is 0.
    assert np.mean(found) < 0.15
    assert np.mean(excess) < 0.01


def test_sharpness_suits_other_samples():
    states, codes = curved(5, samples=997, units=61)
    others, truth = curved(5, samples=5003, units=61, seed=1)
    base, probe = fit(states, codes)
    values = base.standardised(others) @ probe.weights + probe.offsets
    # 166 samples were left out: its error is about a tenth.
    assert probe.sharpness == pytest.approx(best_sharpness(values, probe.log_priors, truth), rel=0.25)


def test_samples_of_one_sequence_do_not_vouch_for_each_other():
    plain, grouped = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(67), 9)
        codes = rng.integers(0, 3, 67)[groups]
        states = 3 * rng.normal(size=(67, 41))[groups] + 0.3 * rng.normal(size=(603, 41))  # of the class nothing
        plain.append(fit(states, codes)[1].sharpness)
        grouped.append(fit(states, codes, groups=groups * 1000 - 7)[1].sharpness)
    assert np.mean(plain) > 0.5
    assert np.mean(grouped) < 0.1


@pytest.mark.parametrize("period", [2, 6, 12])
def test_left_out_are_a_sixth_of_every_class_and_whole_sequences(period):
    codes = np.arange(1201) % period
    left = logistic._left_out(codes, codes, grouped=False)
    np.testing.assert_allclose(np.bincount(codes[left]), np.bincount(codes) / 6, atol=1)
    groups = np.arange(1201) // 7
    left = logistic._left_out(codes, groups, grouped=True)
    assert left.mean() == pytest.approx(1 / 6, abs=0.01)
    assert all(len(np.unique(left[groups == group])) == 1 for group in range(172))


def test_no_class_is_left_out_altogether():
    codes = np.arange(12)
    assert not logistic._left_out(codes, codes, grouped=False).any()
    states = np.random.default_rng(0).normal(size=(12, 5))
    assert fit(states, codes)[1].sharpness == 0.0


@pytest.mark.parametrize("kind, most", [(np.float64, 1e-6), (np.float32, 1e-2)])
def test_order_of_units_changes_next_to_nothing(kind, most):
    states, codes = curved(5)
    order = np.random.default_rng(1).permutation(13)
    _, probe = fit(states.astype(kind), codes)
    _, permuted = fit(states[:, order].astype(kind), codes)
    np.testing.assert_allclose(permuted.weights, probe.weights[order], atol=most)
    assert permuted.sharpness == pytest.approx(probe.sharpness, rel=1e-2)


def test_inputs_are_not_written_to():
    states, codes = curved(5)
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    before = [array.copy() for array in (base.states, base.metrics[0].factor, codes, start.weights, start.offsets)]
    fit_logistic(base, codes, start=start)
    for array, old in zip(
        (base.states, base.metrics[0].factor, codes, start.weights, start.offsets), before, strict=True
    ):
        assert (array == old).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"evaluations": 1}, "evaluations must be at least 2, got 1"),
        ({"penalty": 0.0}, "penalty must be above 0, got 0.0"),
        ({"penalty": float("nan")}, "penalty must be above 0, got nan"),
        ({"groups": np.zeros(7, np.int64)}, r"groups must be \(701,\) like the states of the base, got shape \(7,\)"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    states, codes = curved(3)
    with pytest.raises(ValueError, match=message):
        fit(states, codes, **options)


def test_codes_and_start_must_fit_the_states():
    states, codes = curved(3)
    base = basis(states)
    (start,) = fit_classes(base, [codes])
    with pytest.raises(ValueError, match=r"codes must be \(701,\) like the states of the base, got shape \(700,\)"):
        fit_logistic(base, codes[1:], start=start)
    with pytest.raises(ValueError, match=r"start must have weights \(13, 2\), got shape \(13, 3\)"):
        fit_logistic(base, codes % 2, start=start)
