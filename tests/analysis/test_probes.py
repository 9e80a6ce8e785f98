"""Probes of planted labels, of noise, of what leaks and of what is missing."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from rnn_callbacks.analysis.concepts import split_sequences
from rnn_callbacks.analysis.discriminant import basis
from rnn_callbacks.analysis.probe_findings import judge
from rnn_callbacks.analysis.probe_fits import ProbeSettings
from rnn_callbacks.analysis.probes import POOLED, headline_samples, probe

from .known_labels import SITE, concept_of, read, rows_of, samples_of

SEQUENCES, UNITS = 307, 11


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def clouds(labels, *, apart=1.0, seed=0):
    """Correlated Gaussian clouds, one for each class."""
    rng = np.random.default_rng(seed)
    means = apart * rng.normal(size=(labels.max() + 1, UNITS))
    mixed = np.eye(UNITS) + 0.2 * rng.normal(size=(UNITS, UNITS))
    return (rng.normal(size=(len(labels), UNITS)) + means[labels]) @ mixed + 3


@pytest.mark.parametrize("engine", ["discriminant", "logistic"])
@pytest.mark.parametrize("names", [[0, 1], [3, 7, 100], [-5, 2, 4, 9]])
def test_planted_label_is_read_without_an_error_and_the_control_is_not(names, engine):
    labels = np.random.default_rng(0).integers(0, len(names), SEQUENCES)
    states = noise(SEQUENCES, UNITS)
    states[:, : len(names)] += 50 * np.eye(len(names))[labels]
    inputs = noise(SEQUENCES, 2, 5, seed=1).astype(np.float32)
    found = read(states, np.array(names)[labels], sites={"input": inputs}, engine=engine)
    assert found.headline.score == found.headline.accuracy == found.headline.macro_f1 == 1
    assert found.headline.v_information == pytest.approx(found.headline.entropy, abs=0.02)
    assert found.headline.score - found.control_headline > 0.8 * (1 - 1 / len(names)) - 0.1
    assert np.trace(found.headline.confusion) == found.headline.tested


def test_perfectly_read_label_is_no_chance():
    labels = np.arange(300) % 2
    finding = judge(read(100.0 * labels[:, None] * np.ones(3), labels), None, None)
    assert finding.probed.headline.score == 1
    assert finding.p_value < 1e-6


def test_exclusive_or_of_two_units_is_at_chance():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(901, 2))
    labels = ((states > 0).sum(1) == 1).astype(int)
    found = read(states, labels)
    # Three deviations of the binomial; the classes are of about one size.
    assert abs(found.headline.score - 0.5) < 3 * 0.5 / np.sqrt(found.headline.tested)
    assert found.headline.v_information == pytest.approx(0, abs=0.01)
    product = read(np.c_[states, states.prod(1)], labels)
    assert product.headline.score > 0.9


@pytest.mark.parametrize("kind", ["balanced", "rare", "correlated", "quantity", "steps"])
def test_noise_is_above_chance_no_more_often_than_it_may_be(kind):
    excluded, lucky, gained, bits = [], [], [], []
    for seed in range(200 if kind == "balanced" else 60):
        rng = np.random.default_rng(seed)
        states, labels = rng.normal(size=(150, 2, 8)), rng.permutation(np.arange(150) % 3)
        if kind == "rare":
            labels = rng.permutation(np.arange(150) < 9).astype(int)
        if kind == "correlated":
            states = states @ (rng.normal(size=(8, 8)) * np.exp(-np.arange(8) / 2))
        if kind == "quantity":
            labels = rng.lognormal(size=150)
        if kind == "steps":
            states = np.repeat(states[:, :1], 4, axis=1) + 0.1 * rng.normal(size=(150, 4, 8))
            labels = np.repeat(labels[:, None], 3, axis=1)
        finding = judge(read(states, labels, seed=seed, shuffles=0), None, None, seed=seed)
        excluded.append(not finding.score.low <= finding.probed.chance <= finding.score.high)
        lucky.append(finding.p_value < 0.05)
        gained.append(finding.bits.low > 0)
        bits.append(finding.probed.headline.v_information)
    # 5 % and two deviations of the count; of 60, six.
    most = 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(bits))
    assert max(np.mean(excluded), np.mean(lucky), np.mean(gained)) <= most
    assert np.mean(bits) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("classes", [2, 7])
def test_probe_is_scikit_learns_discriminant(classes):
    labels = np.random.default_rng(1).choice(classes, SEQUENCES, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    states = clouds(labels).astype(np.float32)
    fitted = split_sequences([concept_of(labels)], 0.6)
    found = read(states, labels, fitted=fitted, shrinkage=0.0).headline
    referee = LinearDiscriminantAnalysis(solver="lsqr").fit(states[fitted], labels[fitted])
    likely, truth = referee.predict(states[~fitted]), labels[~fitted]
    # Given priors, scikit-learn weighs the classes by them in the covariance too; so they are taken off here instead.
    posterior = referee.predict_log_proba(states[~fitted].astype(float))
    told = (posterior - np.log(referee.priors_)).argmax(1)
    assert found.score == pytest.approx(metrics.balanced_accuracy_score(truth, told))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, likely))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, likely, average="macro"))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(truth, told))
    assert (found.fitted, found.tested) == (fitted.sum(), (~fitted).sum())


def test_quantity_is_read_as_by_ridge_regression():
    states = clouds(np.zeros(SEQUENCES, int))
    values = states @ noise(UNITS, seed=2) + 2 * noise(SEQUENCES, seed=3) + 20
    fitted = split_sequences([concept_of(values)], 0.6)
    found = read(states, values, fitted=fitted, shrinkage=0.05).headline
    base = basis(states[fitted].astype(np.float32), shrinkage=0.05)
    referee = Ridge(alpha=fitted.sum() * base.metrics[0].ridge).fit(base.states, values[fitted])
    told = referee.predict(base.standardised(states[~fitted].astype(np.float32)))
    mean = values[fitted].mean()
    left, everything = ((values[~fitted] - told) ** 2).sum(), ((values[~fitted] - mean) ** 2).sum()
    # The sharpness undoes part of the shrinkage, so that the two differ by a little.
    assert found.score == pytest.approx(1 - left / everything, abs=0.01)
    assert found.score > 0.5


@pytest.mark.parametrize("kind", ["classes", "quantity"])
def test_units_may_be_permuted_scaled_moved_and_mixed(kind):
    labels = np.random.default_rng(1).integers(0, 5, SEQUENCES)
    states = clouds(labels)
    given = labels if kind == "classes" else labels + noise(SEQUENCES)
    before = read(states, given, shrinkage=0.0).headline
    order = np.random.default_rng(2).permutation(UNITS)
    mixed = states @ (0.2 * noise(UNITS, UNITS, seed=3) + np.eye(UNITS)) + 10
    # Single precision and the least ridge of 1e-6 are all that may differ.
    for other in (states[:, order], states * 2.0**40, states * 1e-25, mixed):
        after = read(other, given, shrinkage=0.0).headline
        assert after.score == pytest.approx(before.score, abs=1e-3 if kind == "quantity" else 1e-12)
        assert after.v_information == pytest.approx(before.v_information, abs=2e-3)


@pytest.mark.parametrize(("scale", "origin"), [(1e200, 0.0), (1e-200, 0.0), (1e39, 0.0), (0.1, 1.7e9)])
def test_unit_and_origin_of_a_quantity_do_not_matter(scale, origin):
    states = noise(SEQUENCES, UNITS)
    values = states[:, 0] + 0.5 * noise(SEQUENCES, seed=1)
    one, other = read(states, values).headline, read(states, scale * values + origin).headline
    assert other.score == pytest.approx(one.score, abs=1e-4)
    assert other.v_information == pytest.approx(one.v_information, abs=1e-4)


def test_outliers_of_a_quantity_are_no_information():
    bits, lucky = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        # More samples than the sharpness is fitted to, so that outliers lie outside of those.
        states = rng.normal(size=(1500, 8)) @ (rng.normal(size=(8, 8)) * np.exp(-np.arange(8) / 2))
        finding = judge(read(states, np.exp(2 * rng.normal(size=1500)), seed=seed, shuffles=0), None, None)
        bits.append(finding.probed.headline.v_information)
        lucky.append(finding.p_value < 0.05)
    assert max(bits) < 0.02
    assert np.mean(lucky) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


@pytest.mark.parametrize("classes", [2, 10])
def test_sequence_whose_steps_are_all_alike_does_not_leak(classes):
    bits, scores = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        states = np.repeat(rng.normal(size=(60, 1, 8)), 7, axis=1) + 0.1 * rng.normal(size=(60, 7, 8))
        labels = np.repeat(rng.integers(0, classes, 60)[:, None], 6, axis=1)
        head = read(states, labels, seed=seed, shuffles=0).headline
        bits.append(head.v_information)
        scores.append(head.score)
    # Of 20 sequences held out each time.
    assert np.mean(scores) == pytest.approx(1 / classes, abs=3 * 0.5 / np.sqrt(20 * 30))
    assert np.mean(bits) == pytest.approx(0, abs=0.02)
    assert min(bits) > -0.3


def test_shuffled_steps_vary_as_much_as_noise_does():
    outside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        states = np.repeat(rng.normal(size=(60, 1, 6)), 9, axis=1) + 0.1 * rng.normal(size=(60, 9, 6))
        labels = np.repeat(rng.integers(0, 2, 60)[:, None], 8, axis=1)
        found = read(states, labels, seed=seed, shuffles=20)
        low, high = np.quantile(found.shuffled, [0.025, 0.975])
        outside.append(not low <= found.headline.score <= high)
    # Twenty draws span about nine tenths; shuffled one by one, half of all noise lay outside.
    assert np.mean(outside) < 0.3


def test_shuffled_labels_break_the_tie_to_the_step():
    states = noise(80, 5, 4)
    states[:, :, 0] += 10 * np.arange(5)
    found = read(states, np.tile(np.arange(4), (80, 1)))
    assert found.headline.score > 0.95
    assert found.shuffled.max() < 0.5


def test_shuffled_labels_are_as_many_as_were_asked_for_and_at_chance():
    labels = np.random.default_rng(0).integers(0, 2, SEQUENCES)
    found = read(clouds(labels, apart=3.0), labels, shuffles=7)
    assert found.shuffled.shape == (7,)
    assert found.headline.score > 0.9
    assert abs(found.shuffled.mean() - 0.5) < 3 * 0.5 / np.sqrt(7 * found.headline.tested)


@pytest.mark.parametrize("of_steps", [False, True])
@pytest.mark.parametrize("engine", ["discriminant", "logistic"])
@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.full(30, 4), "one class only"),
        (np.full(30, -1), "too few sequences"),
        (np.full(30, np.nan), "too few sequences"),
        (np.full(30, 0.3), "the same value everywhere"),
        (np.arange(30), "too few sequences"),
        (np.where(np.arange(30) < 2, np.arange(30.0), np.nan), "too few sequences"),
    ],
)
def test_label_that_cannot_be_read_has_a_reason(labels, why, engine, of_steps):
    if of_steps:
        labels = np.repeat(labels[:, None], 3, axis=1)
    found = read(noise(30, 4, 5), labels, engine=engine)
    assert found.headline.why_not == why
    assert np.isnan(found.headline.score)
    assert not len(found.shuffled)
    assert {reading.why_not for reading in found.readings[:-1]} == {why}
    finding = judge(found, None, None)
    assert (finding.p_value, finding.score.low, finding.score.high) == (1, -np.inf, np.inf)


@pytest.mark.parametrize("seed", range(5))
def test_class_of_one_sequence_beside_one_other_class_cannot_be_read(seed):
    # The one is dealt to the side that is fitted to, where it is too few.
    found = read(noise(30, 5), np.where(np.arange(30) == 3, 1, 0), seed=seed)
    assert found.headline.why_not == "too few sequences"


@pytest.mark.parametrize("labels", [[3], [0.5], [[0, 1, 0, 1]], [[0.1, 0.2, 0.3, 0.4]]])
def test_one_sequence_is_too_few(labels):
    found = read(noise(1, 5, 3), labels)
    assert found.headline.why_not
    assert np.isnan(found.headline.score)


@pytest.mark.parametrize("of_steps", [False, True])
def test_class_of_one_sequence_is_left_out_and_the_others_are_read(of_steps):
    labels = np.random.default_rng(0).permutation(np.append(np.arange(60) % 2, 2))
    states = np.repeat(clouds(labels, apart=4.0)[:, None], 4, axis=1)
    given = np.repeat(labels[:, None], 3, axis=1) if of_steps else labels
    found = read(states, given)
    alone = read(states[labels < 2], given[labels < 2])
    assert found.headline.score == pytest.approx(alone.headline.score, abs=0.1)
    assert found.headline.confusion.shape == (3, 3)
    assert found.headline.confusion[2].sum() == found.headline.confusion[:, 2].sum() == 0
    assert found.chance == 0.5


def test_class_that_only_held_out_sequences_have_is_left_out():
    labels, fitted = np.arange(90) % 3, np.arange(90) < 60
    labels[:60] %= 2
    found = read(clouds(labels, apart=4.0), labels, fitted=fitted).headline
    assert found.tested == (labels[60:] < 2).sum()
    assert found.score > 0.9


def test_held_out_sequences_of_one_class_are_no_test():
    labels, fitted = np.arange(90) % 2, np.arange(90) < 60
    labels[60:] = 1
    assert read(noise(90, 3), labels, fitted=fitted).headline.why_not == "held-out sequences of one class only"


def test_class_that_is_missing_at_a_step_is_missing_there_only():
    labels = np.random.default_rng(0).integers(0, 3, (120, 3))
    labels[:, 1] %= 2
    states = noise(120, 4, 6)
    states[:, :3, :3] += 30 * np.eye(3)[labels]
    found = read(states, labels)
    assert found.column("score").tolist()[:3] == [1, 1, 1]
    assert [len(np.unique(reading.confusion.nonzero()[0])) for reading in found.readings[:3]] == [3, 2, 3]
    assert all(reading.confusion.shape == (3, 3) for reading in found.readings)


@pytest.mark.parametrize("of_steps", [False, True])
def test_states_that_are_no_numbers_and_missing_labels_are_left_out(of_steps):
    labels = np.random.default_rng(0).integers(0, 2, (120, 3))
    if not of_steps:
        labels = np.repeat(labels[:, :1], 3, axis=1)
    states = noise(120, 4, 6)
    states[:, :, 0] += 30 * labels[:, [0, 1, 2, 2]]
    states[5, :, 2], states[7, 1, 0], states[11, 3] = np.nan, np.inf, -np.inf
    labels[20:40] = -1
    found = read(states, labels if of_steps else labels[:, 0])
    assert found.column("score").tolist() == [1] * 4
    assert (found.column("fitted") + found.column("tested")).tolist() == [99, 98, 99, 98]
    assert found.headline.fitted + found.headline.tested == (296 if of_steps else 98)


@pytest.mark.parametrize("of_steps", [False, True])
def test_samples_behind_a_headline_are_numbers(of_steps):
    states, labels = noise(60, 4, 3), np.random.default_rng(0).integers(0, 2, (60, 3))
    states[5, 3, 1] = states[7, 0, 2] = np.nan
    chosen = headline_samples(samples_of(states), SITE, concept_of(labels if of_steps else labels[:, 0]))
    assert np.isfinite(chosen.states).all()
    assert len(chosen.labels) == (179 if of_steps else 59)


def test_states_of_which_none_is_a_number_are_too_few():
    found = read(np.full((40, 3), np.nan), np.arange(40) % 2)
    assert found.headline.why_not == "too few sequences"


def test_padding_and_sequences_without_a_step_are_left_out():
    lengths = np.array([3, 2, 1, 0] * 30)
    labels = np.random.default_rng(0).integers(0, 2, (120, 3))
    states = noise(120, 4, 6)
    states[:, :3, 0] += 30 * labels
    states[np.arange(120), 3, 0] = 30 * labels[np.arange(120), lengths - 1]
    for row, length in enumerate(lengths):
        states[row, length:3] = 1e6
    found = read(states, labels, lengths=lengths)
    assert (found.column("fitted") + found.column("tested")).tolist() == [90, 60, 30, 90]
    assert found.headline.fitted + found.headline.tested == 180
    assert found.column("score").tolist() == [1] * 4
    assert found.headline.score == 1


@pytest.mark.parametrize("labels", [np.arange(90) % 3, np.linspace(-1, 1, 90)])
def test_states_that_do_not_move_tell_nothing(labels):
    found = read(np.full((90, 5), 0.7), labels).headline
    assert found.score == pytest.approx(1 / 3 if found.confusion.size else 0)
    assert found.v_information == 0


def test_unit_that_moves_only_where_it_is_held_out_tells_nothing():
    states, labels = np.zeros((90, 3)), np.arange(90) % 2
    states[60:, 0] = 1e10
    assert read(states, labels, fitted=np.arange(90) < 60).headline.v_information == 0


def test_exploding_states_are_read():
    labels = np.arange(300) % 2
    states = noise(300, 5)
    states[:, 0] += 20 * labels
    assert read(1e30 * states, labels).headline.score == 1


def test_probes_of_few_sequences_lose_few_bits():
    worst = min(read(noise(6, 4, seed=seed), np.arange(6) % 2).headline.v_information for seed in range(60))
    assert worst > -np.log2(5)


def test_headline_is_the_last_column_or_all_steps_but_the_last_column():
    labels = np.random.default_rng(0).integers(0, 2, (90, 3))
    states = noise(90, 4, 5)
    states[:, :3, 0] += 30 * labels
    of_steps = read(states, labels)
    assert of_steps.headline.score == 1
    assert of_steps.headline.fitted + of_steps.headline.tested == 270
    of_sequence = read(states, labels[:, 1])
    assert of_sequence.headline is of_sequence.readings[-1]
    assert of_sequence.headline.tally is not None
    assert of_sequence.readings[1].score == 1


def test_reversed_cell_is_held_against_the_label_of_the_first_step():
    labels = np.random.default_rng(0).integers(0, 2, (90, 3))
    states = noise(90, 4, 5)
    states[:, :, 0] += 30 * labels[:, [0, 1, 2, 0]]
    samples = samples_of(states)
    samples.states["l0_reverse/hidden"] = samples.states[SITE]
    concept = concept_of(labels)
    found = probe(samples, [concept], split_sequences([concept], 2 / 3))
    forward, reverse = (one.readings[-1].score for one in found)
    assert reverse == 1
    assert forward < 0.8


def test_several_concepts_are_read_as_each_alone():
    rng = np.random.default_rng(0)
    digit, size = concept_of(rng.integers(0, 3, 120)), concept_of(rng.normal(size=120), "size")
    samples = samples_of(clouds(digit.labels[:, 0].astype(int)))
    fitted = split_sequences([digit, size], 2 / 3)
    together = probe(samples, [digit, size], fitted)
    for found, concept in zip(together, [digit, size], strict=True):
        (alone,) = probe(samples, [concept], fitted)
        assert found.headline.score == pytest.approx(alone.headline.score, abs=1e-12)
        assert found.headline.v_information == pytest.approx(alone.headline.v_information, abs=1e-6)


def test_types_of_input_may_be_given():
    labels = np.random.default_rng(0).integers(0, 2, 120)
    types = np.arange(240).reshape(120, 2) % 4
    states = np.eye(4)[types[:, 1]] + 0.01 * noise(120, 4)
    concept = concept_of(labels)
    (found,) = probe(samples_of(states), [concept], split_sequences([concept], 2 / 3), types=[types, types])
    assert found.control_headline == 1
    assert np.isnan(read(states, labels).control).all()


def test_too_many_steps_are_thinned():
    sequences, steps = 400, 60
    labels = np.random.default_rng(0).integers(0, 2, (sequences, steps))
    samples, concept = samples_of(noise(sequences, steps + 1, 2)), concept_of(labels)
    chosen = headline_samples(samples, SITE, concept)
    assert len(chosen.states) == len(chosen.labels) == len(chosen.sequences) == POOLED * 3 // 2
    again = headline_samples(samples, SITE, concept)
    np.testing.assert_array_equal(chosen.states, again.states)


def test_samples_behind_a_headline_are_those_it_was_fitted_to_and_tested_with():
    labels = np.random.default_rng(0).integers(0, 3, (90, 3))
    labels[:30, 1] = -1
    samples, concept = samples_of(noise(90, 4, 5)), concept_of(labels)
    chosen = headline_samples(samples, SITE, concept)
    head = read(noise(90, 4, 5), labels).headline
    assert len(chosen.labels) == head.fitted + head.tested == 240
    keys = {(one, state.tobytes()) for one, state in zip(chosen.labels, chosen.states, strict=True)}
    rows, columns = np.nonzero(labels >= 0)
    assert keys == {
        (float(labels[r, c]), samples.states[SITE][r, c].tobytes()) for r, c in zip(rows, columns, strict=True)
    }


def test_same_seed_gives_the_same_numbers():
    labels = np.random.default_rng(0).integers(0, 3, 120)
    one, other = read(clouds(labels), labels, seed=3), read(clouds(labels), labels, seed=3)
    np.testing.assert_array_equal(one.shuffled, other.shuffled)
    assert one.headline.v_information == other.headline.v_information


def test_what_does_not_match_is_refused():
    samples, concept = samples_of(noise(9, 3)), concept_of(np.arange(9) % 2)
    with pytest.raises(ValueError, match="one label and one side of the split for each of 9 sequences"):
        probe(samples, [concept], np.ones(8, bool))
    with pytest.raises(ValueError, match="one label and one side"):
        probe(samples, [concept_of(np.arange(8))], np.ones(9, bool))
    with pytest.raises(ValueError, match="no states of l7/hidden; there are l0/hidden"):
        probe(samples, [concept], np.ones(9, bool), sites=["l7/hidden"])


def test_inputs_are_not_written_to():
    labels = np.random.default_rng(0).integers(0, 3, (40, 3))
    samples, concept = samples_of(noise(40, 4, 5)), concept_of(labels)
    states, codes = samples.states[SITE].copy(), concept.labels.copy()
    samples.states[SITE].flags.writeable = concept.labels.flags.writeable = False
    probe(samples, [concept], split_sequences([concept], 2 / 3), ProbeSettings(shuffles=2))
    np.testing.assert_array_equal(samples.states[SITE], states)
    np.testing.assert_array_equal(concept.labels, codes)
    assert len(rows_of(40)) == len(samples.rows)
