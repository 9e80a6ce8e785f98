import numpy as np
import pytest

from rnn_callbacks.analysis.concepts import (
    MOST_CLASSES,
    Concept,
    check_steps,
    read_concepts,
    read_labels,
    split_sequences,
)

from .known_labels import concept_of, rows_of, samples_of

SEQUENCES, STEPS = 7, 5


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        ([3, 100, 7, 3], [3, 7, 100], [0, 2, 1, 0]),
        ([-5, 2, -1, 2], [-5, 2], [0, 1, np.nan, 1]),
        ([True, False, True, True], [0, 1], [1, 0, 1, 1]),
        ([1.0, -0.0, np.nan, 0.0], [0, 1], [1, 0, np.nan, 0]),
        (np.array([0, 255, 0, 1], np.uint8), [0, 1, 255], [0, 2, 0, 1]),
        ([-1, -1, -1, -1], [], [np.nan] * 4),
    ],
)
def test_class_is_told_by_its_place_among_the_classes(labels, classes, codes):
    concept = concept_of(labels)
    assert concept.classes.tolist() == classes
    np.testing.assert_array_equal(concept.labels[:, 0], codes)
    assert concept.chance == (1 / len(classes) if classes else 0)
    assert not concept.of_steps


@pytest.mark.parametrize("labels", [[0.0, 0.5, 1.0], [2.0, 3.0, np.nan], [-1.0, 0.0, 1.0], [np.nan, np.nan, np.nan]])
def test_other_numbers_are_a_quantity(labels):
    concept = concept_of(labels)
    assert not len(concept.classes)
    assert concept.chance == 0
    np.testing.assert_array_equal(concept.labels[:, 0], labels)


def test_infinite_quantity_is_no_label():
    np.testing.assert_array_equal(concept_of([np.inf, 0.3, -np.inf]).labels[:, 0], [np.nan, 0.3, np.nan])


def test_labels_follow_the_sequences_that_were_heard():
    rows = np.array([[2, 1], [0, 2], [2, 0], [1, 0]])
    batches = {0: np.array([10, 11, 12]), 2: np.array([20, -1])}
    np.testing.assert_array_equal(read_labels("x", batches, rows)[:, 0], [np.nan, 12, 20, np.nan])


def test_batches_may_have_steps_of_other_number():
    batches = {0: np.array([[1, 2, 0]]), 1: np.array([[1], [2]])}
    (concept,) = read_concepts("x", batches, np.array([[1, 1], [0, 0]]))
    np.testing.assert_array_equal(concept.classes[concept.labels[1].astype(int)], [1, 2, 0])
    np.testing.assert_array_equal(concept.labels[0], [2, np.nan, np.nan])


def test_last_dimension_is_as_many_concepts():
    labels = np.random.default_rng(0).integers(0, 3, (SEQUENCES, STEPS, 2))
    found = read_concepts("bits", {0: labels}, rows_of(SEQUENCES))
    assert [concept.name for concept in found] == ["bits_0", "bits_1"]
    for place, concept in enumerate(found):
        np.testing.assert_array_equal(concept.labels, labels[..., place])
        assert concept.of_steps


def test_classes_keep_their_places_at_later_looks():
    first = concept_of([7, 3])
    (later,) = read_concepts("digit", {0: np.array([5, 7, 1])}, rows_of(3), {"digit": first.classes})
    assert later.classes.tolist() == [3, 7, 1, 5]
    np.testing.assert_array_equal(later.labels[:, 0], [3, 1, 2])


def test_quantity_of_an_earlier_look_stays_one():
    (later,) = read_concepts("x", {0: np.array([0.0, 1.0])}, rows_of(2), {"x": np.empty(0, np.int64)})
    assert not len(later.classes)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({}, r"labels must be \(B,\), \(B, T\) or \(B, T, F\), got none"),
        ({0: np.zeros((1, 2, 3, 4))}, r"labels must be .* got \(1, 2, 3, 4\)"),
        ({0: np.array(3)}, r"labels must be .* got \(\)"),
        ({0: np.zeros(2), 1: np.zeros((2, 3))}, r"got \(2, 3\), \(2,\)"),
        ({0: np.zeros((2, 3, 17))}, "must be the same F in all batches, up to 16, got .17."),
        ({0: np.zeros(1)}, r"the layer read 2 sequences has labels of shape \(1,\); expected one row"),
        ({0: np.arange(MOST_CLASSES + 1)}, "65 different whole numbers are too many classes"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(batches, message):
    count = len(batches[0]) if len(batches) == 1 and batches[0].ndim == 1 and len(batches[0]) > 1 else 2
    with pytest.raises(ValueError, match=message):
        read_concepts("x", batches, rows_of(count))


def test_label_of_a_step_is_found_at_its_column():
    lengths, steps = np.array([5, 3, 1, 0]), [0, 2, 4]
    labels = 10 * np.arange(4)[:, None] + np.arange(STEPS)
    concept = Concept("x", np.empty(0, np.int64), True, labels.astype(float))
    samples = samples_of(np.zeros((4, 4, 2)), lengths, steps)
    nan = np.nan
    forward = [[0, 2, 4, 4], [10, 12, nan, 12], [20, nan, nan, 20], [nan] * 4]
    reverse = [[0, 2, 4, 0], [10, 12, nan, 10], [20, nan, nan, 20], [nan] * 4]
    np.testing.assert_array_equal(concept.at(samples, reverse=False), forward)
    np.testing.assert_array_equal(concept.at(samples, reverse=True), reverse)


def test_label_of_a_sequence_holds_where_the_sequence_is():
    concept = Concept("x", np.empty(0, np.int64), False, np.array([[1.0], [2.0], [3.0]]))
    found = concept.at(samples_of(np.zeros((3, 3, 2)), [4, 2, 0], [1, 3]), reverse=False)
    np.testing.assert_array_equal(found, [[1, 1, 1], [2, np.nan, 2], [np.nan] * 3])


def test_label_beyond_those_given_is_missing():
    concept = Concept("x", np.empty(0, np.int64), True, np.array([[1.0, 2.0]]))
    found = concept.at(samples_of(np.zeros((1, 3, 2)), [4], [1, 3]), reverse=False)
    np.testing.assert_array_equal(found, [[2, np.nan, np.nan]])


@pytest.mark.parametrize(("lengths", "width"), [([5, 5], 4), ([5, 5], 6), ([5, 3], 4)])
def test_labels_of_other_steps_are_refused(lengths, width):
    samples = samples_of(np.zeros((2, 3, 2)), lengths)
    with pytest.raises(ValueError, match=f"labels are for {width} steps, but the layer reads 5; give"):
        check_steps(Concept("x", np.empty(0, np.int64), True, np.zeros((2, width))), samples)


def test_padded_labels_of_ragged_sequences_and_labels_of_sequences_are_not_refused():
    check_steps(Concept("x", np.empty(0, np.int64), True, np.zeros((2, 8))), samples_of(np.zeros((2, 3, 2)), [5, 3]))
    check_steps(Concept("x", np.empty(0, np.int64), False, np.zeros((2, 1))), samples_of(np.zeros((2, 3, 2)), [5, 5]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.5, 2 / 3])
def test_each_class_has_its_share_on_both_sides(share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2, 3], [2, 5, 31, 173]))
    fitted = split_sequences([concept_of(labels)], share, seed=seed)
    for code in range(4):
        assert abs(fitted[labels == code].sum() - share * (labels == code).sum()) <= 0.5
    assert abs(fitted.sum() - share * len(labels)) <= 4 * 0.5  # of four classes


def test_two_concepts_at_once_have_their_shares_within_a_member():
    rng = np.random.default_rng(0)
    labels = [rng.choice(3, 211, p=[0.05, 0.15, 0.8]), rng.choice(5, 211)]
    fitted = split_sequences([concept_of(one) for one in labels], 2 / 3)
    for one in labels:
        for code in range(one.max() + 1):
            # Members of a class that were dealt out for the sake of rarer ones cannot be taken back.
            assert fitted[one == code].sum() == pytest.approx(2 / 3 * (one == code).sum(), abs=2)


def test_large_and_small_values_are_on_both_sides():
    values = np.random.default_rng(0).lognormal(size=101)
    fitted = split_sequences([concept_of(values)], 0.6)
    for quarter in np.array_split(np.argsort(values), 4):
        assert fitted[quarter].sum() == pytest.approx(0.6 * len(quarter), abs=1.5)


def test_class_of_steps_counts_the_sequences_in_which_it_occurs():
    labels = np.zeros((60, STEPS), int)
    labels[:4, 2] = 1
    assert split_sequences([concept_of(labels)], 0.5)[:4].sum() == 2


def test_split_is_drawn_by_its_seed():
    concepts = [concept_of(np.arange(101) % 3)]
    assert np.array_equal(split_sequences(concepts, 0.6, seed=3), split_sequences(concepts, 0.6, seed=3))
    assert not np.array_equal(split_sequences(concepts, 0.6, seed=3), split_sequences(concepts, 0.6, seed=4))


@pytest.mark.parametrize("labels", [[-1, -1, -1], [np.nan, np.nan, np.nan], [0.5, 0.5, 0.5], [4, 4, 4]])
def test_labels_that_say_nothing_do_not_keep_sequences_from_being_dealt(labels):
    assert split_sequences([concept_of(labels)], 2 / 3).sum() == 2
