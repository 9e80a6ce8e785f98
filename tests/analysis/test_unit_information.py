"""Information of single units against closed forms, what must not matter, and scikit-learn's nearest neighbours."""

import time

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.feature_selection import mutual_info_classif

from rnn_callbacks.analysis.unit_information import as_classes, unit_information

SAMPLES, UNITS, CLASSES = 1999, 31, 5


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def told(generator, strength=1.0):
    """Labels, and states of which each unit says something else about them."""
    labels = generator.integers(0, CLASSES, SAMPLES)
    means = generator.normal(size=(CLASSES, UNITS)) * strength
    return means[labels] + generator.normal(size=(SAMPLES, UNITS)), labels


def test_information_of_a_gaussian_unit_about_classes_is_that_of_its_bins(generator):
    means, samples, bins = np.array([-1.5, 0.0, 0.5]), 20_000, 16
    labels = np.arange(samples) % 3
    states = (means[labels] + generator.normal(size=samples))[:, None]
    edges = [brentq(lambda x, q=q: norm.cdf(x - means).mean() - q / bins, -9, 9) for q in range(1, bins)]
    below = np.concatenate([np.zeros((1, 3)), norm.cdf(np.array(edges)[:, None] - means), np.ones((1, 3))])
    joint = np.diff(below, axis=0) / 3
    true = (joint * np.log2(joint * 3 * bins)).sum()
    # Three standard deviations over draws of the labels' states, 0.006.
    assert unit_information(states, labels).bits[0] == pytest.approx(true, abs=0.02)


def test_information_of_a_gaussian_pair_is_that_of_its_correlation(generator):
    samples, correlation = 50_000, 0.6
    values = generator.normal(size=samples)
    unit = correlation * values + np.sqrt(1 - correlation**2) * generator.normal(size=samples)
    found = unit_information(unit[:, None], as_classes(values, 32), bins=32)
    assert found.entropy == pytest.approx(5, abs=1e-4)
    # Of 0.322 bits 32 bins lose 0.007 (by integration); the sampling error is 0.004.
    assert found.bits[0] == pytest.approx(-np.log2(1 - correlation**2) / 2, abs=0.007 + 3 * 0.004)


def test_unit_that_copies_a_bit_tells_one_bit(generator):
    labels = np.arange(SAMPLES) % 2
    found = unit_information(np.stack([labels * 2.5 - 1, -labels, labels**0.0], 1), labels)
    assert found.entropy == pytest.approx(1, abs=1e-5)
    # The correction for finite samples and the noise of ten shuffles are both of the order 1 / N.
    np.testing.assert_allclose(found.bits, [1, 1, 0], atol=2 / SAMPLES)
    np.testing.assert_allclose(found.share, [1, 1, 0], atol=2 / SAMPLES)
    assert found.best < 2


def test_neither_of_two_bits_tells_their_exclusive_or(generator):
    pairs = generator.integers(0, 2, (4000, 2))
    found = unit_information(pairs.astype(float), pairs[:, 0] ^ pairs[:, 1])
    np.testing.assert_allclose(found.bits, 0, atol=3e-3)  # 2 N ln 2 of it is chi-squared with one degree of freedom
    together = unit_information((pairs @ [1.0, 2.0])[:, None], pairs[:, 0] ^ pairs[:, 1])
    assert together.bits[0] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("samples", [53, 1999])
def test_noise_tells_nothing_on_average(generator, samples):
    units = 997
    found = unit_information(generator.normal(size=(samples, units)), generator.integers(0, 7, samples), shuffles=40)
    error = found.bits.std() * np.sqrt(1 / units)
    assert abs(found.bits.mean()) < 3 * error
    assert (found.bits < 0).mean() > 0.3  # not clipped
    np.testing.assert_array_equal(found.bits, found.raw - found.noise)


def test_shuffles_take_away_what_the_correction_leaves(generator):
    """With more cells than samples, Miller and Madow's correction is far too small."""
    found = unit_information(generator.normal(size=(97, 211)), generator.integers(0, 23, 97))
    assert found.raw.mean() > 0.05
    assert abs(found.bits.mean()) < 0.02


def test_correction_is_half_a_sample_for_each_cell_that_occurs():
    states, labels = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    # Two bins, two classes, two cells; the bit itself, and (1 + 1 - 1) / 2N nats.
    assert unit_information(states, labels, bins=2).raw[0] == pytest.approx(1 + 1 / (8 * np.log(2)), abs=1e-12)


def test_permuted_units_have_permuted_information(generator):
    states, labels = told(generator)
    order = generator.permutation(UNITS)
    found, permuted = unit_information(states, labels), unit_information(states[:, order], labels)
    np.testing.assert_array_equal(permuted.bits, found.bits[order])
    assert order[permuted.best] == found.best == found.bits.argmax()


def test_monotone_changes_of_units_and_names_of_classes_change_nothing(generator):
    states, labels = told(generator)
    found = unit_information(states, labels).bits
    for changed in (np.tanh(states), np.exp(states), states * 1e-30 - 7e-31):
        np.testing.assert_allclose(unit_information(changed, labels).bits, found, atol=1e-12)
    np.testing.assert_allclose(unit_information(states, labels * 1000 - 7).bits, found, atol=1e-12)
    # Turned around, too, where no sample lies on the edge of two bins, of which it would go to the upper one.
    found = unit_information(states[:1600], labels[:1600]).bits
    np.testing.assert_allclose(unit_information(-states[:1600], labels[:1600]).bits, found, atol=1e-12)
    tied = np.repeat([1, 2, 3], [7, 4, 5])
    assert as_classes(tied, 2).tolist() == (1 - as_classes(-tied, 2)).tolist() == [0] * 7 + [1] * 9


def test_order_of_samples_creates_no_information_where_values_are_equal(generator):
    """Sorted labels, so that a tie broken by index would tell them."""
    labels = np.repeat(np.arange(CLASSES), 400)
    noise = generator.normal(size=len(labels))
    dead, saturated = np.zeros(len(labels)), np.sign(noise)
    rectified, few = np.maximum(noise, 0), generator.integers(0, 3, len(labels)).astype(float)
    found = unit_information(np.stack([dead, saturated, rectified, few], 1), labels)
    assert found.bits[0] == 0
    np.testing.assert_allclose(found.bits, 0, atol=0.012)  # ties by index tell 2.3 bits


def test_zero_of_either_sign_is_one_value():
    states = np.array([[0.0], [-0.0], [0.0], [-0.0]])
    assert unit_information(states, np.array([0, 1, 0, 1])).bits[0] == 0


def test_concept_of_one_class_has_nothing_to_tell(generator):
    found = unit_information(generator.normal(size=(17, 3)), np.full(17, 4))
    assert found.entropy == 0
    np.testing.assert_allclose([found.bits, found.share], 0, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_few_samples_give_finite_information(generator, samples):
    found = unit_information(generator.normal(size=(samples, 3)), np.arange(samples))
    np.testing.assert_allclose(found.bits, 0, atol=1e-12)  # every label is another: shuffles tell as much
    assert found.entropy == pytest.approx(np.log2(samples))


def test_seed_decides_and_inputs_are_left_alone(generator):
    states, labels = told(generator)
    before = states.copy(), labels.copy()
    first, again, other = (unit_information(states, labels, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.noise, again.noise)
    assert (first.noise != other.noise).any()
    np.testing.assert_array_equal(first.raw, other.raw)
    np.testing.assert_array_equal(states, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_quantities_are_cut_into_classes_of_equal_size(generator):
    values = generator.normal(size=1600)
    classes = as_classes(values)
    assert np.bincount(classes).tolist() == [100] * 16
    assert (np.diff(classes[np.argsort(values)]) >= 0).all()
    assert as_classes(np.array([3, 3, 3, 3, 9])).tolist() == [0, 0, 0, 0, 1]
    assert as_classes(np.zeros(5)).tolist() == [0] * 5


def test_as_nearest_neighbours_say_at_a_thirtieth_of_the_cost(generator):
    samples, units, classes = 2000, 128, 12
    labels = generator.integers(0, classes, samples)
    means = generator.normal(size=(classes, units)) * generator.uniform(0, 1.5, units)
    states = np.tanh(means[labels] + generator.normal(size=(samples, units)))
    spent = []
    for _ in range(5):
        begin = time.process_time()
        found = unit_information(states, labels)
        spent.append(time.process_time() - begin)
    begin = time.process_time()
    referee = mutual_info_classif(states, labels, random_state=0) / np.log(2)
    assert time.process_time() - begin > 30 * min(spent)  # 67 to 77 measured
    assert np.corrcoef(referee, found.bits)[0, 1] > 0.99  # 0.996 measured


def test_states_must_be_finite(generator):
    states, labels = told(generator)
    states[5, 7] = np.nan
    with pytest.raises(ValueError, match="states must be finite, unit 7 is not"):
        unit_information(states, labels)


@pytest.mark.parametrize("shape", [(7,), (7, 3, 2), (0, 3), (7, 0)])
def test_states_must_be_a_matrix(shape):
    with pytest.raises(ValueError, match=r"states must be \(N, H\) and not empty"):
        unit_information(np.zeros(shape), np.zeros(shape[0], int))


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros(7), np.zeros((7, 1), int)])
def test_labels_must_be_one_integer_for_each_sample(labels):
    with pytest.raises(ValueError, match=r"labels must be \(7,\) integers"):
        unit_information(np.zeros((7, 3)), labels)


@pytest.mark.parametrize("options", [{"bins": 0}, {"shuffles": 0}])
def test_bins_and_shuffles_must_be_some(options):
    with pytest.raises(ValueError, match="bins and shuffles must be at least 1"):
        unit_information(np.zeros((7, 3)), np.zeros(7, int), **options)


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.zeros(0), np.array([1.0, np.inf])])
def test_values_must_be_finite_and_flat(values):
    with pytest.raises(ValueError, match=r"values must be \(N,\), finite and not empty"):
        as_classes(values)
