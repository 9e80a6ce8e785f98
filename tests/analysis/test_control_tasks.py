import numpy as np
import pytest

from rnn_callbacks.analysis.control_tasks import PLANES, control_labels, input_types

from .known_labels import read

SEQUENCES, COLUMNS, INPUTS = 211, 5, 7


def tokens(kinds, seed=0):
    """Embedded tokens ``(N, S + 1, I)`` and which they are."""
    rng = np.random.default_rng(seed)
    token = rng.integers(0, kinds, (SEQUENCES, COLUMNS))
    return rng.normal(size=(kinds, INPUTS)).astype(np.float32)[token], token


def test_equal_inputs_have_one_type():
    inputs, token = tokens(11)
    types = input_types(inputs)
    assert all(len(np.unique(types[token == kind])) == 1 for kind in range(11))
    assert 1 < len(np.unique(types)) <= 11
    assert types.min() >= 0
    assert types.max() < 2**PLANES


def test_scale_and_origin_of_an_input_do_not_move_its_type():
    inputs, _ = tokens(11)
    assert np.array_equal(input_types(inputs), input_types(8 * inputs + np.arange(INPUTS, dtype=np.float32)))


def test_sequences_keep_their_types_in_another_order():
    inputs, _ = tokens(11)
    order = np.random.default_rng(1).permutation(SEQUENCES)
    assert np.array_equal(input_types(inputs)[order], input_types(inputs[order]))


def test_input_that_is_not_finite_has_no_type():
    inputs, _ = tokens(11)
    inputs[3, 2, 1], inputs[5, 0, 0] = np.nan, np.inf
    assert np.argwhere(input_types(inputs) < 0).tolist() == [[3, 2], [5, 0]]
    assert (input_types(np.full_like(inputs, np.nan)) == -1).all()


def test_constant_inputs_have_one_type():
    assert len(np.unique(input_types(np.full((7, 3, 2), 0.1, np.float32)))) == 1


@pytest.mark.parametrize("value", [0.5, 0.1])  # the mean of equal numbers is one of them, or differs by rounding
def test_features_that_do_not_move_do_not_move_the_planes(value):
    inputs = np.random.default_rng(0).normal(size=(2003, 1, 9)).astype(np.float32)
    inputs[:, :, 1:] = value
    types = input_types(inputs)
    # All planes cut the one feature that moves, each at a place of its own: types are intervals of it.
    ordered = types[np.argsort(inputs[:, 0, 0]), 0]
    assert 3 <= len(np.unique(types)) == 1 + np.count_nonzero(np.diff(ordered)) <= 7


def test_every_type_has_one_label_in_about_the_concepts_proportions():
    rng = np.random.default_rng(0)
    types, labels = rng.integers(0, 50, (SEQUENCES, COLUMNS)), rng.choice(3, (SEQUENCES, COLUMNS), p=[0.2, 0.3, 0.5])
    found = control_labels(types, labels.astype(float))
    by_type = [np.unique(found[types == kind]) for kind in range(50)]
    assert all(len(one) == 1 for one in by_type)
    # Of 50 types, each class gets its share up to one.
    np.testing.assert_allclose(np.bincount(np.concatenate(by_type).astype(int)) / 50, [0.2, 0.3, 0.5], atol=0.05)


def test_control_knows_nothing_of_the_concept_but_its_labels():
    types, labels = np.arange(600) % 40, np.arange(600) % 40 // 20 * 1.0
    agree = [np.mean(control_labels(types, labels, seed=seed) == labels) for seed in range(200)]
    # 20 of 40 types agree on average, with deviation sqrt(40) / 4 / 40 / sqrt(200).
    assert np.mean(agree) == pytest.approx(0.5, abs=0.02)
    assert np.std(agree) > 0.05


def test_no_type_or_no_label_is_no_control():
    types, labels = np.array([0, -1, 1, 0]), np.array([1.0, 1.0, np.nan, 0.0])
    assert np.isnan(control_labels(types, labels)).tolist() == [False, True, True, False]
    assert np.isnan(control_labels(-np.ones(3, int), np.ones(3))).all()


def test_types_and_labels_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(4,\)"):
        control_labels(np.zeros(3, int), np.zeros(4))


def test_probe_that_remembers_tokens_scores_in_the_control_and_one_of_a_rule_does_not():
    rng = np.random.default_rng(0)
    token = rng.integers(0, 12, (400, 3))
    inputs = np.eye(12, dtype=np.float32)[token]
    parity = token[:, -1] % 2
    rule = np.concatenate([rng.normal(size=(400, 3, 5)), np.repeat(3.0 * parity[:, None, None], 3, 1)], axis=2)
    by_heart = read(inputs + 0.05 * rng.normal(size=inputs.shape), parity, sites={"input": inputs})
    by_rule = read(rule, parity, sites={"input": inputs})
    assert by_heart.headline.score == 1.0
    assert by_heart.control_headline == 1.0
    assert by_rule.headline.score > 0.9
    assert by_rule.headline.score - by_rule.control_headline > 0.25
