"""Erased states hold no linear trace, are changed as little as can be, and by as much as the rank says."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression

from rnn_callbacks.analysis.erasure import fit_erasure, random_erasure

SAMPLES, UNITS, CLASSES = 701, 13, 4


@pytest.fixture
def generator():
    return np.random.default_rng(5)


def planted(generator, samples=SAMPLES, classes=CLASSES, units=UNITS):
    """Correlated states, and classes that they tell."""
    labels = generator.integers(0, classes, samples)
    mixing = generator.normal(size=(units, units))
    return (generator.normal(size=(samples, units)) + 1.5 * np.eye(classes, units)[labels]) @ mixing + 3, labels


def class_means(states, labels):
    return np.stack([states[labels == k].mean(0) for k in np.unique(labels)])


def covariance(states):
    return np.cov(states.T, bias=True)


def changes(states, erased, metric):
    """Mean squared change of a state in a metric."""
    change = erased - states
    return np.einsum("nh,hg,ng->", change, metric, change) / len(states)


def test_classes_have_equal_means_afterwards(generator):
    states, labels = planted(generator)
    erasure = fit_erasure(states, labels)
    erased = erasure.erase(states)
    assert (erasure.rank, erasure.left.shape, erasure.right.shape) == (CLASSES - 1, (UNITS, 3), (3, UNITS))
    means = class_means(erased, labels)
    np.testing.assert_allclose(means, np.broadcast_to(states.mean(0), means.shape), atol=1e-10)


def test_new_probe_is_at_chance_on_states_it_has_not_seen(generator):
    states, labels = planted(generator, samples=4000)
    probe = LinearDiscriminantAnalysis(solver="lsqr")
    fit, test = slice(0, 2000), slice(2000, 4000)
    erased = fit_erasure(states[fit], labels[fit]).erase(states)
    chance = np.bincount(labels[test]).max() / 2000
    assert probe.fit(states[fit], labels[fit]).score(states[test], labels[test]) > chance + 0.2
    # All means are equal, so all that is left to the probe is the most frequent class.
    most = np.bincount(labels[fit]).argmax()
    assert (probe.fit(erased[fit], labels[fit]).predict(erased[test]) == most).all()
    # Also a probe fitted to samples that the erasure has not seen: three standard errors of a share.
    half = slice(2000, 3000)
    found = probe.fit(erased[half], labels[half]).score(erased[3000:], labels[3000:])
    assert found < np.bincount(labels[3000:]).max() / 1000 + 3 * np.sqrt(0.25 * 0.75 / 1000)


def test_quantities_are_uncorrelated_with_all_units_afterwards(generator):
    states, _ = planted(generator)
    values = np.stack([states[:, 0] + generator.normal(size=SAMPLES), states[:, 1] * 1e6, states[:, 2] ** 2], 1)
    erasure = fit_erasure(states, values)
    assert erasure.rank == 3
    cross = (values - values.mean(0)).T @ erasure.erase(states) / SAMPLES / values.std(0)[:, None]
    np.testing.assert_allclose(cross, 0, atol=1e-10)
    assert LinearRegression().fit(erasure.erase(states), values).score(erasure.erase(states), values) < 1e-10
    single = fit_erasure(states, values[:, 0])
    assert single.rank == 1
    np.testing.assert_array_equal(single.right, fit_erasure(states, values[:, :1]).right)


def test_is_the_formula_of_the_theorem(generator):
    states, labels = planted(generator)
    one_hot = np.eye(CLASSES)[labels]
    variances, vectors = np.linalg.eigh(covariance(states))
    white, colour = ((vectors * variances**power) @ vectors.T for power in (-0.5, 0.5))
    cross = white @ (states - states.mean(0)).T @ (one_hot - one_hot.mean(0))
    projection = colour @ cross @ np.linalg.pinv(cross, rcond=1e-10) @ white
    erased = states - (states - states.mean(0)) @ projection.T
    np.testing.assert_allclose(fit_erasure(states, labels).erase(states), erased, atol=1e-9)


def test_erasing_twice_is_erasing_once(generator):
    states, labels = planted(generator)
    erasure = fit_erasure(states, labels)
    np.testing.assert_allclose(erasure.erase(erasure.erase(states)), erasure.erase(states), atol=1e-10)
    assert fit_erasure(erasure.erase(states), labels).rank == 0


def test_changes_least_in_every_metric(generator):
    states, labels = planted(generator, classes=2)
    erasure = fit_erasure(states, labels)
    erased = erasure.erase(states)
    (first, second), mean = class_means(states, labels), states.mean(0)
    inverse, mixing = np.linalg.inv(covariance(states)), generator.normal(size=(UNITS, UNITS))
    # In the states' own metric every direction counts one.
    assert changes(states, erased, inverse) == pytest.approx(1, abs=1e-9)
    difference = second - first
    orthogonal = states - np.outer((states - mean) @ difference, difference) / (difference @ difference)
    np.testing.assert_allclose(np.diff(class_means(orthogonal, labels), axis=0), 0, atol=1e-10)  # also erases
    for metric in (inverse, np.eye(UNITS), mixing @ mixing.T):
        assert changes(states, erased, metric) < 0.9 * changes(states, orthogonal, metric)


def test_does_not_depend_on_the_order_or_the_units_of_the_states(generator):
    states, labels = planted(generator)
    erased, order = fit_erasure(states, labels).erase(states), generator.permutation(UNITS)
    permuted = fit_erasure(states[:, order], labels).erase(states[:, order])
    np.testing.assert_allclose(permuted, erased[:, order], atol=1e-10)
    scale = 10.0 ** generator.integers(-9, 9, UNITS)
    np.testing.assert_allclose(fit_erasure(states * scale, labels).erase(states * scale) / scale, erased, atol=1e-9)


def test_origin_and_unit_of_a_quantity_do_not_matter(generator):
    states, labels = planted(generator)
    erased = fit_erasure(states, labels.astype(float)).erase(states)
    for values in (labels + 1e8, labels * 1e-15, labels * 1e15, np.stack([labels, 2.0 * labels + 5], 1)):
        erasure = fit_erasure(states, values)
        assert erasure.rank == 1
        np.testing.assert_allclose(erasure.erase(states), erased, atol=1e-10)


def test_names_of_classes_do_not_matter(generator):
    states, labels = planted(generator)
    renamed = np.array([70, -1, 8, 0])[labels]
    erased = fit_erasure(states, labels).erase(states)
    np.testing.assert_allclose(fit_erasure(states, renamed).erase(states), erased, atol=1e-10)


ROUNDED = np.where(np.arange(SAMPLES) % 2, 0.3, 0.1 + 0.2)


@pytest.mark.parametrize("concept", [np.full(SAMPLES, 3), np.full(SAMPLES, 0.1), ROUNDED, np.zeros((SAMPLES, 2))])
def test_constant_concept_changes_nothing(generator, concept):
    states, _ = planted(generator)
    erasure = fit_erasure(states, concept)
    assert (erasure.rank, erasure.share) == (0, 0)
    np.testing.assert_array_equal(erasure.erase(states), states)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_dead_doubled_and_tiny_units_are_erased_with_the_others(generator, kind):
    states, labels = planted(generator)
    states[:, 1], states[:, 2], states[:, 3] = 0.7, states[:, 4], states[:, 5] * 1e-12
    states[:, 6] = states[:, 7] + 1e-7 * labels  # the difference is too small to be whitened
    states = states.astype(kind)
    erasure = fit_erasure(states, labels)
    erased = erasure.erase(states)
    spread = states.std(0, dtype=np.float64)
    spread[1] = 1
    assert erasure.rank == CLASSES - 1
    assert np.isfinite(erasure.left).all()
    np.testing.assert_allclose(np.ptp(class_means(erased, labels), axis=0) / spread, 0, atol=1e-10)
    np.testing.assert_allclose(erased[:, 1], kind(0.7), rtol=1e-12)


def test_fewer_samples_than_units(generator):
    states, labels = planted(generator, samples=11)
    erased = fit_erasure(states, labels).erase(states)
    np.testing.assert_allclose(np.ptp(class_means(erased, labels), axis=0), 0, atol=1e-9)
    assert fit_erasure(states[:1], labels[:1]).rank == 0
    assert fit_erasure(np.ones((11, 3)), labels).rank == 0


def test_share_is_the_variance_that_is_missing(generator):
    states, labels = planted(generator)
    erasure = fit_erasure(states, labels)
    missing = 1 - np.trace(covariance(erasure.erase(states))) / np.trace(covariance(states))
    assert erasure.share == pytest.approx(missing, abs=1e-10)
    np.testing.assert_allclose(erasure.left.T @ covariance(states) @ erasure.left, np.eye(3), atol=1e-10)


def test_any_leading_axes(generator):
    states, labels = planted(generator)
    erasure = fit_erasure(states, labels)
    shaped = erasure.erase(states[:700].reshape(7, 100, UNITS))
    np.testing.assert_allclose(shaped.reshape(700, UNITS), erasure.erase(states[:700]), atol=1e-12)
    np.testing.assert_allclose(erasure.erase(states[0]), erasure.erase(states)[0], atol=1e-12)


def test_random_erasure_takes_its_rank_share_of_the_variance_on_average(generator):
    states, _ = planted(generator)
    states[:, 1] = states[:, 0]  # twelve directions vary
    found = [random_erasure(states, 3, seed=seed) for seed in range(400)]
    shares = np.array([erasure.share for erasure in found])
    assert {erasure.rank for erasure in found} == {3}
    assert abs(shares.mean() - 3 / 12) < 3 * shares.std() / np.sqrt(400)
    inverse = np.linalg.pinv(covariance(states), rcond=1e-9)
    for erasure in found[:5]:
        erased = erasure.erase(states)
        assert changes(states, erased, inverse) == pytest.approx(3, abs=1e-9)  # as large as the concept's
        np.testing.assert_allclose(erasure.erase(erased), erased, atol=1e-10)


def test_random_erasure_leaves_the_concept(generator):
    states, labels = planted(generator)
    probe = LinearDiscriminantAnalysis(solver="lsqr")
    erased = random_erasure(states, 3).erase(states)
    assert probe.fit(erased, labels).score(erased, labels) > probe.fit(states, labels).score(states, labels) - 0.25
    assert probe.score(erased, labels) > 0.5


def test_random_erasure_is_decided_by_its_seed(generator):
    states, _ = planted(generator)
    before = states.copy()
    first, again, other = (random_erasure(states, 2, seed=seed).right for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    np.testing.assert_array_equal(states, before)
    assert [random_erasure(states, rank).rank for rank in (0, UNITS, UNITS + 3)] == [0, UNITS, UNITS]


def test_rank_must_not_be_negative():
    with pytest.raises(ValueError, match="rank must be at least 0, got -1"):
        random_erasure(np.zeros((7, 3)), -1)


@pytest.mark.parametrize("states", [np.zeros(7), np.zeros((0, 3)), np.full((7, 3), np.nan)])
def test_states_must_be_a_finite_matrix(states):
    with pytest.raises(ValueError, match=r"states must be \(N, H\), finite and not empty"):
        fit_erasure(states, np.zeros(7))


@pytest.mark.parametrize("concept", [np.zeros(3), np.zeros((7, 1, 1)), np.full(7, np.inf), np.array(0.0)])
def test_concept_must_fit_the_states(concept):
    with pytest.raises(ValueError, match=r"concept must be \(7,\) or \(7, Q\) and finite"):
        fit_erasure(np.zeros((7, 3)), concept)


def test_classes_must_be_flat():
    with pytest.raises(ValueError, match=r"classes must be \(7,\), got shape \(7, 2\)"):
        fit_erasure(np.zeros((7, 3)), np.zeros((7, 2), int))


def test_states_to_erase_must_have_the_same_units(generator):
    states, labels = planted(generator)
    with pytest.raises(ValueError, match=r"states must be \(..., 13\), got shape \(5, 12\)"):
        fit_erasure(states, labels).erase(np.zeros((5, 12)))
