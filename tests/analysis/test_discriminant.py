"""Closed-form probes against scikit-learn's, brute-force refits and what must not change."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from rnn_callbacks.analysis.discriminant import SHARPEST, basis, best_sharpness, fit_classes, fit_values


def clouds(classes, *, samples=307, units=11, apart=1.0, seed=0, priors=None):
    """Gaussian clouds of one shape, correlated and of unequal scales, one for each class."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(classes, samples, p=priors)
    codes[: 3 * classes] = np.tile(np.arange(classes), 3)
    states = rng.normal(size=(samples, units)) + apart * rng.normal(size=(classes, units))[codes]
    return states @ (rng.normal(size=(units, units)) + 2 * np.sqrt(units) * np.eye(units)) + rng.normal(
        size=units
    ), codes


def logits(base, probe, states):
    return base.standardised(states) @ probe.weights + probe.offsets + probe.log_priors


def decisions(states, codes, others, **options):
    base = basis(states, **options)
    (probe,) = fit_classes(base, [codes], calibrated=[False])
    return logits(base, probe, others).argmax(1)


def centred(values):
    return values - values.mean(1, keepdims=True)


def cross_entropy(sharpness, values, log_priors, codes):
    exponents = log_priors + sharpness * values
    exponents = exponents - exponents.max(1, keepdims=True)
    return (np.log(np.exp(exponents).sum(1)) - exponents[np.arange(len(codes)), codes]).mean()


@pytest.mark.parametrize("classes", [2, 3, 7, 13, 20])
def test_discriminants_are_scikit_learns(classes):
    priors = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    states, codes = clouds(classes, samples=601, priors=priors)
    others, _ = clouds(classes, seed=1)
    base = basis(states, shrinkage=0.0)
    (probe,) = fit_classes(base, [codes])
    referee = LinearDiscriminantAnalysis(solver="lsqr").fit(states, codes)
    true = referee.decision_function(others)
    if classes == 2:
        true = np.stack([np.zeros_like(true), true], 1)
    # The least ridge of 1e-6 changes logits by about 1e-5 of their size.
    ours = logits(base, probe, others)
    np.testing.assert_allclose(centred(ours), centred(true), atol=1e-4 * np.abs(true).max())
    assert (ours.argmax(1) == referee.predict(others)).all()


def test_several_concepts_get_the_probes_that_each_gets_alone():
    states, first = clouds(5)
    second = np.random.default_rng(3).integers(0, 3, len(first))
    base = basis(states)
    together = fit_classes(base, [first, second])
    for probe, codes in zip(together, [first, second], strict=True):
        (alone,) = fit_classes(base, [codes])
        np.testing.assert_allclose(probe.weights, alone.weights, atol=1e-12)
        np.testing.assert_allclose(probe.offsets, alone.offsets, atol=1e-12)
        np.testing.assert_allclose(probe.log_priors, np.log(np.bincount(codes) / len(codes)), atol=1e-15)
        assert probe.sharpness == pytest.approx(alone.sharpness, rel=1e-9)


def test_quantities_are_read_by_ridge_regression():
    states, _ = clouds(2)
    rng = np.random.default_rng(1)
    values = [states @ rng.normal(size=11) + rng.normal(size=len(states)), rng.normal(size=len(states)) + 1e3]
    base = basis(states, shrinkage=0.2)
    for probe, value in zip(fit_values(base, values), values, strict=True):
        referee = Ridge(alpha=len(states) * base.metrics[0].ridge).fit(base.states, value)
        np.testing.assert_allclose(probe.weights, referee.coef_, atol=1e-10)
        assert probe.mean == pytest.approx(value.mean(), rel=1e-12)
        assert probe.variance == pytest.approx(value.var(), rel=1e-9)


def test_sharpness_of_quantities_is_that_of_refits_without_each_sample():
    states, _ = clouds(2, samples=53)
    value = states[:, 0] + np.random.default_rng(1).normal(size=53)
    base = basis(states, shrinkage=0.3)
    told = np.empty(53)
    for sample in range(53):
        others = np.delete(np.arange(53), sample)
        referee = Ridge(alpha=53 * base.metrics[0].ridge).fit(base.states[others], value[others])
        told[sample] = referee.predict(base.states[sample : sample + 1])[0] - value.mean()
    truth = value - value.mean()
    (probe,) = fit_values(base, [value])
    sharpness = told @ truth / (told @ told)
    assert probe.sharpness == pytest.approx(sharpness, rel=1e-9)
    assert probe.noise == pytest.approx(((truth - sharpness * told) ** 2).mean(), rel=1e-9)


def left_out_sharpness(base, codes):
    """The sharpness by as many refits as samples, on the same standardised states with the same ridge."""
    states, values = base.states, []
    for sample in range(len(codes)):
        others = np.delete(np.arange(len(codes)), sample)
        kept = codes[others]
        means = np.stack([states[others][kept == code].mean(0) for code in range(codes.max() + 1)])
        within = states[others] - means[kept]
        metric = (1 - base.metrics[0].shrinkage) * (
            within.T @ within / len(others) + base.metrics[0].ridge * np.eye(states.shape[1])
        )
        apart = states[sample] - means
        values.append(-(apart * np.linalg.solve(metric, apart.T).T).sum(1) / 2)
    return best_sharpness(np.array(values), np.log(np.bincount(codes) / len(codes)), codes)


@pytest.mark.parametrize("samples, units", [(61, 5), (127, 5), (509, 5), (127, 41), (61, 83)])
def test_sharpness_of_classes_is_that_of_refits_without_each_sample_to_order_one_over_n(samples, units):
    states, codes = clouds(3, samples=samples, units=units, apart=0.8 if units == 5 else 1.5)
    base = basis(states, shrinkage=0.2)
    (probe,) = fit_classes(base, [codes])
    true = left_out_sharpness(base, codes)
    assert true > 0.3
    # Measured: at most 1.6 / N; without leaving out it is 0.02 to 0.8 away.
    assert probe.sharpness == pytest.approx(true, rel=3 / samples)


@pytest.mark.parametrize("size", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("signal", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_best_sharpness_is_the_minimum(size, signal, classes):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, classes, 211)
    values = size * (rng.normal(size=(211, classes)) + signal * np.eye(classes)[codes])
    log_priors = np.log(np.bincount(codes) / 211)
    found = best_sharpness(values, log_priors, codes)
    referee = minimize_scalar(
        cross_entropy, bounds=(0, SHARPEST), args=(values, log_priors, codes), method="bounded", options={"xatol": 1e-7}
    )
    assert found == pytest.approx(referee.x, rel=1e-2, abs=0.011)
    assert cross_entropy(found, values, log_priors, codes) <= referee.fun + 1e-4


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e3, 1e9])
def test_best_sharpness_of_perfect_logits_leaves_little_to_gain(size):
    codes = np.arange(31) % 3
    values, log_priors = size * np.eye(3)[codes], np.log(np.bincount(codes) / 31)
    found = best_sharpness(values, log_priors, codes)
    assert 0 <= found <= SHARPEST
    assert cross_entropy(found, values, log_priors, codes) <= cross_entropy(SHARPEST, values, log_priors, codes) + 1e-4


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e3, 1e9])
def test_best_sharpness_of_logits_that_are_always_wrong_is_zero(size):
    codes = np.arange(31) % 3
    assert best_sharpness(-size * np.eye(3)[codes], np.log(np.full(3, 1 / 3)), codes) == 0.0


def test_best_sharpness_of_equal_logits_is_finite():
    codes = np.arange(31) % 3
    assert np.isfinite(best_sharpness(np.full((31, 3), 5.0), np.log(np.full(3, 1 / 3)), codes))


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_best_sharpness_of_logits_far_too_large_is_the_minimum(size):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 5, 211)
    values = size * (rng.normal(size=(211, 5)) + 2 * np.eye(5)[codes])
    log_priors = np.log(np.bincount(codes) / 211)
    found = best_sharpness(values, log_priors, codes)
    true = best_sharpness(values / size, log_priors, codes)
    assert found == pytest.approx(true / size, rel=1e-2)


def test_noise_has_next_to_no_sharpness_and_costs_next_to_nothing():
    found, excess, of_values = [], [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        states, codes, others = rng.normal(size=(401, 53)), rng.integers(0, 3, 401), rng.integers(0, 3, 2003)
        base = basis(states)
        (probe,) = fit_classes(base, [codes])
        values = base.standardised(rng.normal(size=(2003, 53))) @ probe.weights + probe.offsets
        usual = cross_entropy(0.0, values, probe.log_priors, others)
        found.append(probe.sharpness)
        excess.append(cross_entropy(probe.sharpness, values, probe.log_priors, others) - usual)
        of_values.append(fit_values(base, [rng.normal(size=401)])[0].sharpness)
    # Half of them would be below 0 if they could; the others are about as large as their errors.
    assert np.mean(found) < 0.1
    assert np.mean(of_values) < 0.2
    assert np.mean(excess) < 0.005
    assert np.max(excess) < 0.03


@pytest.mark.parametrize("samples, units", [(67, 13), (37, 29), (23, 41)])
def test_shrinkage_of_ledoit_and_wolf_is_offered_where_samples_are_few(samples, units):
    states, _ = clouds(2, samples=samples, units=units)
    base = basis(states)
    _, true = ledoit_wolf(base.states, assume_centered=True)
    shares = [metric.shrinkage for metric in base.metrics]
    assert shares == sorted(shares)
    assert true == pytest.approx(min(shares, key=lambda share: abs(share - true)), rel=1e-9)
    for metric, share in zip(base.metrics, shares, strict=True):
        assert metric.ridge == pytest.approx(share / (1 - share), rel=1e-9)


def test_basis_is_what_it_says():
    states, _ = clouds(2)
    base = basis(states, shrinkage=0.1)
    np.testing.assert_allclose(base.states, (states - states.mean(0)) / states.std(0), atol=1e-12)
    np.testing.assert_allclose(base.standardised(states), base.states, atol=1e-12)
    covariance = np.corrcoef(states.T) + 0.1 / 0.9 * np.eye(11)
    np.testing.assert_allclose(base.metrics[0].factor @ base.metrics[0].factor.T, covariance, atol=1e-12)
    np.testing.assert_allclose(base.metrics[0].solve(np.eye(11)), np.linalg.inv(covariance), atol=1e-10)


def test_sharpness_is_found_only_where_it_is_wanted():
    states, codes = clouds(3)
    base = basis(states)
    (expected,) = fit_classes(base, [codes])
    without, probe = fit_classes(base, [codes, codes], calibrated=[False, True])
    assert without.sharpness == 1.0 != expected.sharpness
    assert probe.sharpness == expected.sharpness
    np.testing.assert_allclose(without.weights, expected.weights, atol=1e-12)


def test_states_are_not_written_to():
    states, codes = clouds(3)
    before, codes_before = states.copy(), codes.copy()
    fit_classes(basis(states), [codes])
    assert (states == before).all()
    assert (codes == codes_before).all()


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3])
def test_order_of_units_changes_no_decision(shrinkage):
    states, codes = clouds(5)
    others, _ = clouds(5, seed=1)
    order = np.random.default_rng(2).permutation(11)
    expected = decisions(states, codes, others, shrinkage=shrinkage)
    assert (decisions(states[:, order], codes, others[:, order], shrinkage=shrinkage) == expected).all()


def test_affine_map_changes_no_decision_without_shrinkage():
    states, codes = clouds(5)
    others, _ = clouds(5, seed=1)
    rng = np.random.default_rng(2)
    turn, shift = rng.normal(size=(11, 11)) + 3 * np.eye(11), 5 * rng.normal(size=11)
    expected = decisions(states, codes, others, shrinkage=0.0)
    assert (decisions(states @ turn + shift, codes, others @ turn + shift, shrinkage=0.0) == expected).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("scale, shift", [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (1e-6, 1e-2)])
def test_units_of_measurement_change_next_to_nothing(kind, scale, shift):
    states, codes = clouds(5)
    states /= states.std(0)
    moved = (scale * states + shift).astype(kind)
    # What rounding to single precision took from the states is no fault of the probe.
    true = basis((moved.astype(np.float64) - shift) / scale)
    base = basis(moved)
    (expected,), (found,) = fit_classes(true, [codes]), fit_classes(base, [codes])
    size = np.abs(expected.weights).max()
    np.testing.assert_allclose(found.weights, expected.weights, atol=(2e-3 if kind is np.float32 else 1e-6) * size)
    assert found.sharpness == pytest.approx(expected.sharpness, rel=5e-3)


def test_single_precision_gives_the_probes_of_double():
    states, codes = clouds(5, units=83, samples=503)
    value = states @ np.random.default_rng(1).normal(size=83)
    single, double = basis(states.astype(np.float32)), basis(states)
    assert single.states.dtype == np.float32
    assert [m.shrinkage for m in single.metrics] == pytest.approx([m.shrinkage for m in double.metrics], rel=1e-4)
    (found,), (true,) = fit_classes(single, [codes]), fit_classes(double, [codes])
    np.testing.assert_allclose(found.weights, true.weights, atol=1e-3 * np.abs(true.weights).max())
    assert found.sharpness == pytest.approx(true.sharpness, rel=1e-3)
    (read,), (read_true,) = fit_values(single, [value]), fit_values(double, [value])
    np.testing.assert_allclose(read.weights, read_true.weights, atol=1e-3 * np.abs(read_true.weights).max())
    assert read.noise == pytest.approx(read_true.noise, rel=1e-2)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_units_that_sit_still_change_no_decision(kind):
    states, codes = clouds(5)
    others, _ = clouds(5, seed=1)
    still = np.tile([0.0, 0.1, -7e3], (len(states), 1))
    expected = decisions(states.astype(kind), codes, others.astype(kind), shrinkage=0.0)
    wider, wider_others = np.concatenate([states, still], 1), np.concatenate([others, still], 1)
    assert (decisions(wider.astype(kind), codes, wider_others.astype(kind), shrinkage=0.0) == expected).all()


def test_duplicated_units_change_no_decision():
    states, codes = clouds(5)
    others, _ = clouds(5, seed=1)
    expected = decisions(states, codes, others, shrinkage=0.0)
    assert (decisions(np.tile(states, 3), codes, np.tile(others, 3), shrinkage=0.0) == expected).all()


def test_states_that_never_move_say_only_what_is_usual():
    codes = np.array([0, 1, 1, 1, 2, 1])
    base = basis(np.full((6, 3), 0.5, np.float32))
    (probe,) = fit_classes(base, [codes])
    assert (probe.weights == 0).all()
    assert (logits(base, probe, base.states * 0).argmax(1) == 1).all()
    (read,) = fit_values(base, [np.arange(6.0)])
    assert read.sharpness == 0.0
    assert read.noise == read.variance


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shrinkage", [None, 0.0])
def test_fewer_samples_than_units_stay_finite(kind, shrinkage):
    states, codes = clouds(3, samples=29, units=67)
    base = basis(states.astype(kind), shrinkage=shrinkage)
    (probe,) = fit_classes(base, [codes])
    assert np.isfinite(probe.weights).all()
    assert np.isfinite(probe.offsets).all()
    assert 0 <= probe.sharpness <= SHARPEST
    assert (logits(base, probe, states.astype(kind)).argmax(1) == codes).all()


def test_class_of_one_member_stays_finite_and_matters_little():
    states, codes = clouds(3)
    base = basis(states)
    (without,) = fit_classes(base, [codes])
    codes[5] = 3
    (probe,) = fit_classes(base, [codes])
    assert np.isfinite(probe.weights).all()
    assert np.isfinite(probe.offsets).all()
    assert probe.sharpness == pytest.approx(without.sharpness, rel=0.05)


def test_value_that_never_changes_is_its_mean():
    states, _ = clouds(2)
    (probe,) = fit_values(basis(states), [np.full(len(states), 3.0)])
    assert (probe.mean, probe.variance, probe.sharpness, probe.noise) == (3.0, 0.0, 0.0, 0.0)


def test_saturated_copies_of_one_bit_have_a_basis_in_single_precision():
    gains = 1 + 0.1 * np.random.default_rng(0).random(128)
    states = np.tanh(np.tile([-1.0, 1.0], 1000)[:, None] * gains + 0.1).astype(np.float32)
    for shrinkage in (None, 0.0):
        assert np.isfinite(basis(states, shrinkage=shrinkage).metrics[0].factor).all()


def test_periodic_classes_are_calibrated_on_all_of_them():
    rng = np.random.default_rng(0)
    codes = np.arange(1023) % 2
    states = rng.normal(size=(1023, 5)) + 0.5 * codes[:, None]
    order = rng.permutation(1023)
    (periodic,), (mixed,) = fit_classes(basis(states), [codes]), fit_classes(basis(states[order]), [codes[order]])
    assert periodic.sharpness == pytest.approx(mixed.sharpness, rel=0.1)  # of 512 samples each


@pytest.mark.parametrize("shape", [(7,), (1, 3), (2, 3, 5)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"states must be \(N, H\) with N of at least 2, got shape"):
        basis(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_are_refused(value):
    states, _ = clouds(2)
    states[3, 2] = value
    with pytest.raises(ValueError, match="states must be finite"):
        basis(states)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([np.zeros(52, int)], r"expected a class for each of 53 samples, got \[\(52,\)\]"),
        ([np.arange(53) % 2 * 2], r"classes must be 0 ... K - 1 with samples of each, got \[\[27, 0, 26\]\]"),
        ([], r"classes must be 0 ... K - 1"),
    ],
)
def test_codes_that_are_no_classes_of_these_samples_are_refused(codes, message):
    base = basis(np.random.default_rng(0).normal(size=(53, 3)))
    with pytest.raises(ValueError, match=message):
        fit_classes(base, codes)


@pytest.mark.parametrize("values", [[], [np.zeros(52)], [np.full(53, np.nan)]])
def test_values_that_are_none_of_these_samples_are_refused(values):
    base = basis(np.random.default_rng(0).normal(size=(53, 3)))
    with pytest.raises(ValueError, match="expected a finite value for each of 53 samples"):
        fit_values(base, values)


@pytest.mark.parametrize("shrinkage", [-0.1, 1, 1.5])
def test_shrinkage_that_is_no_share_is_refused(shrinkage):
    with pytest.raises(ValueError, match=r"shrinkage must be a share in \[0, 1\), got"):
        basis(np.eye(3), shrinkage=shrinkage)


def test_states_of_whole_numbers_or_half_precision_are_read_as_single_precision():
    states = np.random.default_rng(0).integers(-3, 4, (53, 3))
    codes = np.arange(53) % 3
    (whole,), (single,) = (fit_classes(basis(x), [codes]) for x in (states, states.astype(np.float32)))
    (half,) = fit_classes(basis(states.astype(np.float16)), [codes])
    assert np.array_equal(whole.weights, single.weights)
    assert np.array_equal(half.weights, single.weights)


@pytest.mark.parametrize("size", [1e-40, 1e40])
def test_quantities_of_any_size_are_read_alike(size):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(211, 3)).astype(np.float32)
    value = states[:, 0] + rng.normal(size=211)
    (plain,), (scaled,) = (fit_values(basis(states), [factor * value]) for factor in (1.0, size))
    np.testing.assert_allclose(scaled.weights, size * plain.weights, rtol=1e-5)
    assert scaled.sharpness == pytest.approx(plain.sharpness, rel=1e-5)
    assert scaled.noise / scaled.variance == pytest.approx(plain.noise / plain.variance, rel=1e-5)
