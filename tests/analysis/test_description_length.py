"""Codes of labels against closed forms, a referee, and what must not matter."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rnn_callbacks.analysis.description_length import description_length, description_lengths
from rnn_callbacks.analysis.discriminant import basis, fit_classes

SAMPLES, UNITS, CLASSES = 1009, 23, 5


@pytest.fixture
def generator():
    return np.random.default_rng(11)


def planted(generator, strength, samples=SAMPLES, classes=CLASSES):
    labels = generator.integers(0, classes, samples)
    return strength * np.eye(classes, UNITS)[labels] + generator.normal(size=(samples, UNITS)), labels


@pytest.mark.parametrize("samples, classes, least", [(60, 2, 0.6), (500, 5, 0.95), (2003, 12, 0.99)])
def test_noise_compresses_nothing(generator, samples, classes, least):
    """A probe on few samples may trust itself too much, which costs, but never gains."""
    found = [
        description_length(generator.normal(size=(samples, UNITS)), generator.integers(0, classes, samples)).compression
        for _ in range(20)
    ]
    assert max(found) < 1.04
    assert min(found) > least
    assert np.median(found) == pytest.approx(1, abs=0.04)


def test_frequencies_alone_compress_nothing(generator):
    """Where the source's own quotient is far above 1."""
    labels = generator.choice(4, SAMPLES, p=[0.9, 0.08, 0.01, 0.01])
    found = description_length(generator.normal(size=(SAMPLES, UNITS)), labels)
    assert found.compression == pytest.approx(1, abs=0.04)
    assert found.uniform_compression > 2.5


def test_planted_label_compresses_as_much_as_the_first_portion_lets_it(generator):
    states, labels = planted(generator, 20)
    found = description_length(states, labels, first=64)
    # 64 labels at log2 K bits, then next to nothing: a sample's worth of doubt, 1.15 bits for each of four portions.
    assert found.bits == pytest.approx(64 * np.log2(CLASSES) + 4 * 1.15, abs=1)
    assert found.compression > 15


def test_stronger_signal_and_more_samples_compress_more(generator):
    by_strength = [description_length(*planted(generator, strength)).compression for strength in (0, 1, 2, 4, 8)]
    assert (np.diff(by_strength) > 0.05).all()
    by_samples = [
        description_length(*planted(generator, 2.5, samples)).compression for samples in (100, 400, 1600, 6400)
    ]
    assert (np.diff(by_samples) > 0.1).all()


def test_labels_without_states_are_coded_by_the_frequencies_before():
    """Groups of one portion each and one class each, so that the code is the same in any order."""
    labels = np.array([4, 4, 4, 9, 9, 9])
    found = description_length(np.ones((6, 2)), labels, first=3, groups=labels)
    # One bit each for the first portion; then a class not seen in 3 samples has (0 + 1/2) / (3 + 1).
    assert found.labels_only == pytest.approx(3 + 3 * 3, abs=1e-12)
    assert found.bits == pytest.approx(12, abs=1e-12)  # constant states say what frequencies say
    assert (found.samples, found.classes, found.bits_per_label) == (6, 2, pytest.approx(2))
    assert found.uniform_compression == pytest.approx(0.5)


def test_portion_costs_what_scikit_learns_discriminant_says(generator):
    """Two groups, so two portions, of which the second is coded by a probe on the first: in one of two orders."""
    states, labels = planted(generator, 2, samples=400)
    states = states * 10.0 ** generator.integers(-3, 3, UNITS)  # the probe standardises
    labels[:10] = labels[200:210] = np.arange(10) % CLASSES
    groups = np.repeat([7, 3], 200)
    found = description_length(states, labels, first=2, groups=groups)
    costs = [referee(states[one], labels[one], states[~one], labels[~one]) for one in (groups == 7, groups == 3)]
    assert min(abs(found.bits - 200 * np.log2(CLASSES) - cost) for cost in costs) < 1e-6
    assert abs(costs[0] - costs[1]) > 1


def referee(states, labels, new, new_labels):
    """Bits of new labels by scikit-learn, with the package's shrinkage and sharpness."""
    base = basis(states)
    (probe,) = fit_classes(base, [labels])
    alone = [fit_classes(replace(base, metrics=(metric,)), [labels])[0] for metric in base.metrics]
    (chosen,) = {row for row, other in enumerate(alone) if np.array_equal(other.weights, probe.weights)}
    inner = Shrunk(base, base.metrics[chosen])
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=inner).fit(states, labels)
    logits = discriminant.decision_function(new) - probe.log_priors
    told = np.exp(probe.log_priors + probe.sharpness * logits)
    told = (told / told.sum(1, keepdims=True))[np.arange(len(new)), new_labels]
    return -np.log2((len(states) * told + 1 / CLASSES) / (len(states) + 1)).sum()


class Shrunk:
    """Covariance of one class as scikit-learn asks for it, with the share of equal variances that the basis found."""

    def __init__(self, base, metric):
        self.base, self.metric = base, metric

    def get_params(self, deep=True):
        return {"base": self.base, "metric": self.metric}

    def fit(self, states):
        metric = self.metric
        within = np.cov(states.T, bias=True) + metric.ridge * np.diag(self.base.scale**2)
        self.covariance_ = (1 - metric.shrinkage) * within
        return self


def test_classes_not_seen_before_can_be_coded(generator):
    """The last group holds a class of its own, whichever is sent last: it costs log2(K (n + 1)) a label."""
    groups = np.repeat([0, 1], 50)
    states, labels = planted(generator, 3, samples=100)
    found = description_length(states, labels % 2 + 2 * groups, first=2, groups=groups)
    assert found.bits == pytest.approx(50 * 2 + 50 * np.log2(4 * 51), abs=1e-9)
    assert found.labels_only == pytest.approx(found.bits, abs=1e-9)


def test_no_label_costs_more_than_one_that_was_never_seen(generator):
    """Classes swap their places in the states from one portion to the next."""
    groups = np.repeat([0, 1], 100)
    labels = np.tile([0, 1], 100)
    states = generator.normal(size=(200, 3))
    states[:, 0] += 100 * np.where(groups == 0, labels, 1 - labels)
    found = description_length(states, labels, first=2, groups=groups)
    assert found.bits == pytest.approx(100 + 100 * np.log2(2 * 101), rel=1e-3)


def test_permuted_scaled_and_moved_units_and_renamed_classes_change_nothing(generator):
    states, labels = planted(generator, 2)
    bits, order = description_length(states, labels).bits, generator.permutation(UNITS)
    scale = 10.0 ** generator.integers(-3, 3, UNITS)
    for changed in (states[:, order], states * scale, states - 5):
        assert description_length(changed, labels).bits == pytest.approx(bits, rel=1e-4)  # sharpness to a thousandth
    assert description_length(states, 1000 - 3 * labels).bits == pytest.approx(bits, rel=1e-4)


def test_several_concepts_cost_what_each_costs_alone(generator):
    states, labels = planted(generator, 2)
    concepts = [labels, labels % 2, generator.integers(0, 7, SAMPLES), np.zeros(SAMPLES, int)]
    for found, concept in zip(description_lengths(states, concepts), concepts, strict=True):
        alone = description_length(states, concept)
        assert found.bits == pytest.approx(alone.bits, rel=1e-9)
        assert found.labels_only == alone.labels_only
        assert found.classes == alone.classes


def test_samples_of_one_sequence_tell_nothing_about_each_other(generator):
    """Every sequence has a random state and a random label, both held over its ten steps."""
    sequences, steps = 200, 10
    groups = generator.permutation(np.repeat(np.arange(sequences), steps))
    labels = generator.integers(0, 3, sequences)[groups]
    states = generator.normal(size=(sequences, 97))[groups] + 0.3 * generator.normal(size=(len(groups), 97))
    assert description_length(states, labels).compression > 1.3
    assert 0.9 < description_length(states, labels, groups=groups).compression < 1.03
    told = states + 6 * np.eye(3, 97)[labels]
    assert description_length(told, labels, groups=groups).compression > 1.5


def test_a_group_for_each_sample_is_no_groups_but_for_the_sharpness(generator):
    states, labels = planted(generator, 2)
    free = description_length(states, labels)
    grouped = description_length(states, labels, groups=np.arange(SAMPLES) * 3)
    assert grouped.labels_only == free.labels_only
    assert grouped.bits == pytest.approx(free.bits, rel=0.1)
    assert grouped.bits != free.bits


def test_one_group_is_one_portion(generator):
    states, labels = planted(generator, 5)
    found = description_length(states, labels, groups=np.zeros(SAMPLES, int))
    assert found.bits == pytest.approx(SAMPLES * np.log2(CLASSES))
    assert found.compression == found.uniform_compression == 1


@pytest.mark.parametrize("samples", [1, 2, 3, 100])
def test_single_class_is_free(generator, samples):
    found = description_length(generator.normal(size=(samples, 3)), np.full(samples, 8))
    assert (found.bits, found.labels_only, found.classes) == (0, 0, 1)
    assert (found.compression, found.uniform_compression, found.bits_per_label) == (1, 1, 0)


@pytest.mark.parametrize("samples", [2, 3, 5, 17, 33])
@pytest.mark.parametrize("first", [2, 3, None])
def test_as_many_classes_as_samples_are_coded(generator, samples, first):
    found = description_length(generator.normal(size=(samples, 3)), generator.permutation(samples), first=first)
    assert np.isfinite(found.bits)
    # A class occurs once, so no label has been seen in portions before.
    assert found.bits == pytest.approx(found.labels_only)


def test_constant_and_single_precision_states_are_coded(generator):
    states, labels = planted(generator, 3)
    states[:, 1], states[:, 2] = 0.3, 0.0
    double, single = description_length(states, labels).bits, description_length(states.astype(np.float32), labels).bits
    assert single == pytest.approx(double, rel=1e-2)
    constant = description_length(np.full((SAMPLES, 3), 0.3), labels)
    assert constant.compression == pytest.approx(1, abs=1e-6)


def test_seed_decides_and_inputs_are_left_alone(generator):
    states, labels = planted(generator, 1)
    before = states.copy(), labels.copy()
    assert description_length(states, labels).bits == description_length(states, labels, seed=0).bits
    assert description_length(states, labels).bits != description_length(states, labels, seed=1).bits
    np.testing.assert_array_equal(states, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_portions_double_and_end_with_a_sequence(generator):
    """Labels of one class to a sequence that is in no other: each portion costs what all that went before make it."""
    groups = np.repeat(np.arange(12), 5)
    found = description_length(generator.normal(size=(60, 3)), groups, first=8, groups=groups)
    # Sequences end at 5, 10, ...; portions of 8, 16, 32 and 60 end with the sequence that holds their last sample.
    ends = [10, 20, 35, 60]
    true = 10 * np.log2(12) + sum((end - begin) * np.log2(12 * (begin + 1)) for begin, end in pairwise(ends))
    assert found.labels_only == pytest.approx(true)


@pytest.mark.parametrize("shape", [(7,), (0, 3)])
def test_states_must_be_a_matrix(shape):
    with pytest.raises(ValueError, match=r"states must be \(N, H\) with N of at least 1"):
        description_length(np.zeros(shape), np.zeros(shape[0], int))


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros(7), np.zeros((7, 1), int)])
def test_labels_and_groups_must_be_one_integer_for_each_sample(labels):
    with pytest.raises(ValueError, match=r"labels must be \(7,\) integers"):
        description_length(np.zeros((7, 3)), labels)
    with pytest.raises(ValueError, match=r"groups must be \(7,\) integers"):
        description_length(np.zeros((7, 3)), np.zeros(7, int), groups=labels)


def test_first_portion_must_be_enough_for_a_probe():
    with pytest.raises(ValueError, match="first must be at least 2, got 1"):
        description_length(np.zeros((7, 3)), np.zeros(7, int), first=1)


def test_states_must_be_finite(generator):
    states, labels = planted(generator, 1)
    states[-1, 3] = np.inf
    with pytest.raises(ValueError, match="states must be finite"):
        description_length(states, labels)
