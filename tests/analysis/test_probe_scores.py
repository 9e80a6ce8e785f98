"""Scores against scikit-learn's and brute force."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from rnn_callbacks.analysis.discriminant import ClassProbe, ValueProbe
from rnn_callbacks.analysis.probe_scores import (
    DRAWS,
    Tally,
    area_under_roc,
    draws,
    interval,
    no_reading,
    p_value,
    read_classes,
    read_values,
    score_classes,
)

SAMPLES, UNITS = 211, 7


def a_probe(classes, *, sharpness=0.7, seed=0):
    """A probe, states and true classes that have something to do with each other; the last class is rare."""
    rng = np.random.default_rng(seed)
    priors = np.append(np.ones(classes - 1), 0.15)
    priors /= priors.sum()
    probe = ClassProbe(rng.normal(size=(UNITS, classes)), rng.normal(size=classes), np.log(priors), sharpness)
    states = rng.normal(size=(SAMPLES, UNITS))
    noisy = states @ probe.weights + 2 * rng.normal(size=(SAMPLES, classes))
    codes = (noisy + probe.log_priors).argmax(1)
    codes[:classes] = np.arange(classes)
    return probe, states, codes


def brute_logits(probe, states):
    return states @ probe.weights + probe.offsets


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_scikit_learns(classes):
    probe, states, codes = a_probe(classes)
    found = read_classes(probe, states, codes, fitted=503)
    logits = brute_logits(probe, states)
    fair, likely = logits.argmax(1), (logits + probe.log_priors).argmax(1)
    assert found.score == pytest.approx(metrics.balanced_accuracy_score(codes, fair))
    assert score_classes(probe, states, codes) == pytest.approx(found.score)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(codes, likely))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(codes, likely, average="macro"))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(codes, fair))
    assert (found.fitted, found.tested, found.why_not) == (503, SAMPLES, "")
    if classes == 2:
        assert found.auc == pytest.approx(metrics.roc_auc_score(codes, logits[:, 1] - logits[:, 0]))
    else:
        assert np.isnan(found.auc)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("fitted", [5, 503])
def test_v_information_is_entropy_minus_cross_entropy(classes, fitted):
    probe, states, codes = a_probe(classes)
    found = read_classes(probe, states, codes, fitted=fitted)
    exponents = probe.sharpness * brute_logits(probe, states) + probe.log_priors
    p = np.exp(exponents) / np.exp(exponents).sum(1, keepdims=True)
    p = (fitted * p + np.exp(probe.log_priors)) / (fitted + 1)
    left = metrics.log_loss(codes, p, labels=np.arange(classes)) / np.log(2)
    entropy = metrics.log_loss(codes, np.tile(np.exp(probe.log_priors), (SAMPLES, 1)), labels=np.arange(classes))
    assert found.entropy == pytest.approx(entropy / np.log(2))
    assert found.v_information == pytest.approx(found.entropy - left)


def test_calibration_error_is_that_of_fifteen_bins():
    probe, states, codes = a_probe(3)
    exponents = probe.sharpness * brute_logits(probe, states) + probe.log_priors
    p = np.exp(exponents) / np.exp(exponents).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == codes
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        error += abs((confidence[inside] - right[inside]).sum()) / SAMPLES
    assert read_classes(probe, states, codes, fitted=503).calibration_error == pytest.approx(error)


def test_single_precision_changes_no_score_much():
    probe, states, codes = a_probe(3)
    one = read_classes(probe, states, codes, fitted=503)
    other = read_classes(probe, states.astype(np.float32), codes, fitted=503)
    assert other.v_information == pytest.approx(one.v_information, abs=1e-5)
    assert other.score == pytest.approx(one.score, abs=2 / SAMPLES)


def test_probe_of_no_use_has_exactly_no_bits_and_a_confident_one_loses_few():
    probe, states, codes = a_probe(3, sharpness=0.0)
    assert read_classes(probe, states, codes, fitted=503).v_information == 0
    probe, states, codes = a_probe(3, sharpness=1e4)
    assert -np.log2(504) <= read_classes(probe, states, codes, fitted=503).v_information < -1
    assert read_classes(probe, states, codes, fitted=3).v_information >= -2
    useless = ValueProbe(np.ones(UNITS), 0.3, 2.0, sharpness=0.0, noise=2.0)
    for fitted in range(3, 50):
        found = read_values(useless, states, 100 * states[:, 0], fitted=fitted)
        assert (found.v_information, found.score) == (0, 0)


def test_class_that_is_not_among_the_held_out_is_not_averaged_over():
    probe, states, codes = a_probe(3)
    kept = codes != 1
    found = read_classes(probe, states[kept], codes[kept], fitted=503)
    fair = brute_logits(probe, states[kept]).argmax(1)
    assert found.score == pytest.approx(np.mean([(fair[codes[kept] == code] == code).mean() for code in (0, 2)]))
    assert found.confusion[1].sum() == 0
    two, states, codes = a_probe(2)
    assert np.isnan(read_classes(two, states[codes == 0], codes[codes == 0], fitted=503).auc)


def test_ties_count_half_in_the_area_under_the_curve():
    assert area_under_roc(np.zeros(7), np.array([0, 1, 1, 0, 0, 0, 1])) == 0.5
    score, codes = np.array([0.0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    assert area_under_roc(score, codes) == pytest.approx(metrics.roc_auc_score(codes, score))


def test_quantity_is_scored_against_the_mean_of_the_fitted_samples():
    rng = np.random.default_rng(0)
    states, weights = rng.normal(size=(SAMPLES, UNITS)), rng.normal(size=UNITS)
    values = 3 + states @ weights + rng.normal(size=SAMPLES)
    probe = ValueProbe(weights, mean=2.5, variance=9.0, sharpness=0.8, noise=1.7)
    found = read_values(probe, states, values, fitted=503)
    told = 2.5 + 0.8 * states @ weights
    assert found.score == pytest.approx(1 - ((values - told) ** 2).mean() / ((values - 2.5) ** 2).mean())
    gain = stats.norm.pdf(values, told, np.sqrt(1.7)) / stats.norm.pdf(values, 2.5, 3.0)
    assert found.v_information == pytest.approx(np.log2((503 * gain + 1) / 504).mean())
    assert np.isnan([found.accuracy, found.macro_f1, found.auc, found.entropy]).all()
    assert found.confusion.size == 0
    # scikit-learn's R^2 is the same where the means are the same.
    centred = ValueProbe(weights, values.mean(), 9.0, 0.8, 1.7)
    told = values.mean() + 0.8 * states @ weights
    assert read_values(centred, states, values, fitted=503).score == pytest.approx(metrics.r2_score(values, told))


def grouped(kind):
    """A reading with its tally, and what it was made from: sequences with 1 to 4 samples each."""
    groups = np.sort(np.random.default_rng(1).integers(0, 61, SAMPLES))
    groups = np.unique(groups, return_inverse=True)[1]
    if kind == "classes":
        probe, states, codes = a_probe(3)
        return read_classes(probe, states, codes, fitted=503, groups=groups), probe, states, codes, groups
    rng = np.random.default_rng(0)
    states, weights = rng.normal(size=(SAMPLES, UNITS)), rng.normal(size=UNITS)
    probe = ValueProbe(weights, 0.1, 8.0, 0.9, 1.2)
    values = states @ weights + rng.normal(size=SAMPLES)
    return read_values(probe, states, values, fitted=503, groups=groups), probe, states, values, groups


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_drawing_sequences_anew_is_reading_the_drawn_samples(kind):
    found, probe, states, labels, groups = grouped(kind)
    tally = found.tally
    weights = draws(len(tally.samples), seed=3)
    scores, bits = tally.scores(weights), tally.information(weights)
    read = read_classes if kind == "classes" else read_values
    for number in range(0, DRAWS, 40):
        rows = np.repeat(np.arange(SAMPLES), weights[number].astype(int)[groups])
        again = read(probe, states[rows], labels[rows], fitted=503)
        assert scores[number] == pytest.approx(again.score)
        assert bits[number] == pytest.approx(again.v_information)
    once = np.ones((1, len(tally.samples)))
    assert tally.scores(once)[0] == pytest.approx(found.score)
    assert tally.information(once)[0] == pytest.approx(found.v_information)


def test_class_that_is_not_drawn_is_not_averaged_over():
    tally = Tally(np.array([[3.0, 0], [0, 1]]), np.array([[4.0, 0], [0, 4]]), np.zeros(2), np.ones(2), of_classes=True)
    assert tally.scores(np.array([[1.0, 1], [2, 0], [0, 2]])).tolist() == [0.5, 0.75, 0.25]


def test_tally_counts_the_sequences_of_each_class():
    found, *_, codes, groups = grouped("classes")
    assert found.tally.counts.tolist() == [len(np.unique(groups[codes == code])) for code in range(3)]
    assert grouped("values")[0].tally.counts.tolist() == [groups.max() + 1]


def test_sequences_are_drawn_with_replacement():
    weights = draws(31, seed=0)
    assert weights.shape == (DRAWS, 31)
    assert (weights.sum(1) == 31).all()
    assert weights.var() == pytest.approx(1 - 1 / 31, rel=0.05)
    assert np.array_equal(weights, draws(31, seed=0))
    assert not np.array_equal(weights, draws(31, seed=1))


def test_interval_of_a_mean_is_students():
    rng = np.random.default_rng(0)
    for count in (8, 40):
        values = rng.normal(size=count)
        bits = Tally(np.zeros((count, 1)), np.ones((count, 1)), values, np.ones(count), of_classes=False)
        found = interval(bits.information(draws(count, 0)), np.array([float(count)]))
        half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
        # Quantiles of 400 draws vary by a tenth of the interval, and further out by more.
        assert (found.high - found.low) / (2 * half) == pytest.approx(1, abs=0.25)
        assert found.low < values.mean() < found.high


def test_interval_of_a_class_with_one_sequence_says_that_nothing_is_known_of_it():
    right = np.array([[1.0, 0]] * 30 + [[0.0, 0]] * 10 + [[0, 1.0]])
    all_of = np.array([[1.0, 0]] * 40 + [[0, 1.0]])
    tally = Tally(right, all_of, np.zeros(41), np.ones(41), of_classes=True)
    found = interval(tally.scores(draws(41, 0)), tally.counts)
    assert found.low <= 0.75 / 2
    assert found.high >= 1
    assert tally.scores(np.ones((1, 41)))[0] == 0.875


@pytest.mark.parametrize("counts", [[], [1.0], [1.0, 1.0, 0.0]])
def test_interval_of_too_few_is_everything(counts):
    found = interval(np.zeros(DRAWS), np.array(counts))
    assert (found.low, found.high) == (-np.inf, np.inf)


def tally_of(bits, samples=None):
    bits = np.asarray(bits, float)
    samples = np.ones(len(bits)) if samples is None else np.asarray(samples, float)
    return Tally(np.zeros((len(bits), 1)), np.ones((len(bits), 1)), bits, samples, of_classes=False)


def test_p_value_is_that_of_a_t_test_over_sequences():
    bits, samples = np.random.default_rng(0).normal(0.2, 1, 31), np.arange(31) % 4
    gains = bits[samples > 0]
    t = gains.mean() / gains.std(ddof=1) * np.sqrt(len(gains))
    assert p_value(tally_of(bits, samples)) == pytest.approx(stats.t.sf(t, len(gains) - 1))


def test_p_value_is_about_the_mean_over_samples_as_the_bits_that_are_reported():
    """Short sequences that lose a bit each, and long ones that gain a tenth at each of their steps."""
    rng = np.random.default_rng(0)
    samples = np.repeat([1, 31], 101)
    bits = np.where(samples == 1, -1.0, 3.1) + rng.normal(0, 0.5, 202)
    tally = tally_of(bits, samples)
    assert (bits / samples).mean() < 0 < bits.sum() / samples.sum()
    reported = interval(tally.information(draws(202, 0)), np.array([202.0]))
    assert reported.low > 0
    assert p_value(tally) < 0.001
    assert p_value(tally_of(-bits, samples)) > 0.999


def test_p_value_of_probes_of_no_use_is_uniform_whatever_the_lengths():
    rng = np.random.default_rng(0)
    samples = rng.integers(1, 43, size=300)
    found = [p_value(tally_of(rng.normal(0, np.sqrt(samples)), samples)) for _ in range(997)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_p_value_of_equal_gains_is_that_of_their_signs():
    assert p_value(tally_of([1.0] * 10)) == 2.0**-10
    assert p_value(tally_of([0.0] * 10)) == 1
    assert p_value(tally_of([-1.0] * 10)) == 1
    assert p_value(tally_of([5.0])) == 1
    assert p_value(tally_of([])) == 1


def test_no_reading_has_a_reason_and_no_number():
    found = no_reading("one class only")
    assert (found.why_not, found.fitted, found.tested, found.tally) == ("one class only", 0, 0, None)
    assert np.isnan([found.score, found.accuracy, found.v_information, found.entropy]).all()
