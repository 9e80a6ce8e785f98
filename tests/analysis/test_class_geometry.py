"""How classes lie: closed forms, what must not matter, and naive loops over sequences."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from rnn_callbacks.analysis.class_geometry import class_geometry

SEQUENCES, STEPS, UNITS, CLASSES = 29, 7, 11, 3


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def reading(sequences, steps=STEPS):
    """Steps read at each column of sequences that are all as long: 1, 2, 3, ..."""
    return np.tile(np.arange(1, steps + 1), (sequences, 1))


def every_step(codes, steps=STEPS):
    """A label at every step from one of each sequence."""
    return np.tile(np.asarray(codes, np.float64)[:, None], (1, steps))


def some(generator, sequences=SEQUENCES, distance=1.5):
    """States, labels of three classes of unlike size that are a bit apart, and steps read."""
    codes = generator.permutation(np.repeat(np.arange(CLASSES), [sequences - 15, 11, 4]))
    centres = distance * generator.normal(size=(CLASSES, UNITS))
    states = (
        generator.normal(size=(sequences, STEPS, UNITS)) + centres[codes][:, None] * np.linspace(0, 1, STEPS)[:, None]
    )
    return states + 2, every_step(codes), reading(sequences)


def numbers(found):
    return [*found.separation, *found.nearest_mean, *found.committed, found.commitment]


def naive_separation(states, codes):
    """1 - (1 - eta^2)(n - 1) / (n - K), sum by sum."""
    kinds, mean = np.unique(codes), states.mean(0)
    total = sum(((state - mean) ** 2).sum() for state in states)
    between = 0.0
    for kind in kinds:
        mine = states[codes == kind]
        between += len(mine) * ((mine.mean(0) - mean) ** 2).sum()
    return 1 - (1 - between / total) * (len(states) - 1) / (len(states) - len(kinds))


def naive_nearest(states, codes):
    """Leave one out, one by one: whose class's mean is nearest to each."""
    found = []
    for one in range(len(states)):
        others = np.arange(len(states)) != one
        kinds = np.unique(codes[others])
        means = np.stack([states[others & (codes == kind)].mean(0) for kind in kinds])
        found.append(kinds[np.linalg.norm(means - states[one], axis=1).argmin()])
    return np.array(found)


def naive_commitment(nearest, read):
    """From the class nearest at each column ``(N, S)``, NaN where there is none."""
    settled, when = np.zeros(nearest.shape, bool), []
    for row, classes in enumerate(nearest):
        if np.isnan(classes[-1]):
            continue
        for step in range(nearest.shape[1]):
            rest = classes[step:]
            settled[row, step] = not np.isnan(classes[step]) and set(rest[~np.isnan(rest)]) == {classes[-1]}
        when.append(read[row, settled[row]][0])
    there = ~np.isnan(nearest) & ~np.isnan(nearest[:, -1:])
    with np.errstate(invalid="ignore"):
        return settled.sum(0) / there.sum(0), np.median(when)


def test_classes_without_spread_are_all_there_is(generator):
    codes = generator.permutation(np.arange(SEQUENCES) % CLASSES)
    states = np.tile(generator.normal(size=(CLASSES, UNITS))[codes][:, None], (1, STEPS, 1))
    found = class_geometry(states, every_step(codes), reading(SEQUENCES))
    np.testing.assert_allclose(found.separation, 1, atol=1e-12)
    assert found.nearest_mean.tolist() == found.committed.tolist() == [1] * STEPS
    assert found.commitment == 1


def test_two_classes_on_a_line_have_their_known_separation():
    """-1 and 1 about -d and d: eta^2 = d^2 / (1 + d^2)."""
    distance, half = 3.0, 10
    states = np.concatenate([np.tile([-1.0, 1], half // 2) - distance, np.tile([-1.0, 1], half // 2) + distance])
    found = class_geometry(states[:, None, None], every_step(np.repeat([0, 1], half), 1), reading(2 * half, 1))
    assert found.separation[0] == pytest.approx(1 - 1 / (1 + distance**2) * 19 / 18, rel=1e-12)
    assert found.nearest_mean[0] == 1


@pytest.mark.parametrize("sequences, classes", [(29, 3), (23, 11), (13, 2)])
def test_shuffled_labels_separate_nothing_on_average(generator, sequences, classes):
    """Every column gets labels of its own, so one call is many draws."""
    draws = 400
    states = np.tile(generator.exponential(size=(sequences, 1, UNITS)), (1, draws, 1))
    labels = np.stack([generator.permutation(np.arange(sequences) % classes) for _ in range(draws)], 1).astype(float)
    found = class_geometry(states, labels, reading(sequences, draws)).separation
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(draws)
    assert 4 * found.std() / np.sqrt(draws) < 0.03 < (classes - 1) / (sequences - 1)  # what it is without adjustment
    assert found.min() < 0


def test_separation_is_that_of_a_naive_loop(generator):
    states, labels, read = some(generator)
    found = class_geometry(states, labels, read).separation
    expected = [naive_separation(states[:, step], labels[:, step]) for step in range(STEPS)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[-1] > 0.3 > 0.1 > found[0]


@pytest.mark.parametrize("distance", [0, 0.3, 1.5])
def test_nearest_mean_is_that_of_a_naive_loop_that_leaves_one_out(generator, distance):
    states, labels, read = some(generator, distance=distance)
    found = class_geometry(states, labels, read)
    nearest = np.stack([naive_nearest(states[:, step], labels[:, step]) for step in range(STEPS)], 1)
    np.testing.assert_allclose(found.nearest_mean, (nearest == labels).mean(0), atol=1e-12)
    committed, commitment = naive_commitment(nearest, read)
    np.testing.assert_allclose(found.committed, committed, atol=1e-12)
    assert found.commitment == commitment
    assert found.nearest_mean.min() < 0.7


def test_nearest_mean_is_scikit_learns_nearest_centroid(generator):
    states, labels, read = some(generator, distance=0.5)
    for step in range(STEPS):
        here, codes = states[:, step], labels[:, step].astype(int)
        right = 0
        for one in range(SEQUENCES):
            others = np.arange(SEQUENCES) != one
            right += NearestCentroid().fit(here[others], codes[others]).predict(here[[one]])[0] == codes[one]
        assert class_geometry(states, labels, read).nearest_mean[step] == pytest.approx(right / SEQUENCES)


def test_state_is_not_in_the_mean_that_it_is_compared_with(generator):
    """Two sequences of each class in many dimensions: with itself in it, each is nearest to its own mean."""
    states = generator.normal(size=(22, 1, 503))
    codes = np.arange(22) % 11
    found = class_geometry(states, every_step(codes, 1), reading(22, 1))
    assert found.nearest_mean[0] == np.mean(naive_nearest(states[:, 0], codes) == codes) < 0.2


@pytest.mark.parametrize("at", [0, 1, 3, 6])
@pytest.mark.parametrize("sequences", [28, 29])
def test_commitment_is_when_classes_come_apart(generator, at, sequences):
    codes = np.arange(sequences) % 2
    states = generator.normal(size=(sequences, STEPS, UNITS)) * 0.1
    states[:, at:, 0] += 10 * codes[:, None]
    # Before, they lie in two groups that have nothing to do with the classes.
    wrong = np.arange(sequences) // 2 % 2
    states[:, :at, 1] += 10 * wrong[:, None]
    read = 3 * reading(sequences) + 2
    labels = every_step(codes)
    found = class_geometry(states, labels, read)
    assert found.nearest_mean[at:].tolist() == found.committed[at:].tolist() == [1] * (STEPS - at)
    assert (found.nearest_mean[:at] < 0.8).all()
    nearest = np.stack([naive_nearest(states[:, step], codes) for step in range(STEPS)], 1).astype(float)
    committed, commitment = naive_commitment(nearest, read)
    np.testing.assert_allclose(found.committed, committed, atol=1e-12)
    assert found.commitment == commitment


def test_commitment_is_the_steps_read_where_all_are_settled_at_once(generator):
    """Until then all sequences have the other label, and their states tell it."""
    codes = np.arange(28) % 2
    labels = np.where(np.arange(STEPS) < 4, 1 - codes[:, None], codes[:, None]).astype(float)
    states = 10 * labels[..., None] + 0.1 * generator.normal(size=(28, STEPS, UNITS))
    read = 5 * reading(28) + generator.integers(0, 2, size=(28, 1))
    found = class_geometry(states, labels, read)
    assert found.nearest_mean.tolist() == [1] * STEPS
    assert found.committed.tolist() == [0] * 4 + [1] * 3
    assert found.commitment == np.median(read[:, 4])


def test_committed_never_falls_where_all_have_every_step_and_ends_with_all(generator):
    found = class_geometry(*some(generator, distance=0.5))
    assert (np.diff(found.committed) >= 0).all()
    assert found.committed[-1] == 1


def test_one_step_back_undoes_what_was_settled(generator):
    codes = np.arange(SEQUENCES) % 2
    states = 10.0 * codes[:, None, None] + 0.1 * generator.normal(size=(SEQUENCES, STEPS, UNITS))
    states[6, 4] = 10 - 10 * codes[6]
    found = class_geometry(states, every_step(codes), reading(SEQUENCES))
    wavers = 1 - 1 / SEQUENCES
    np.testing.assert_allclose(found.committed, [wavers] * 5 + [1] * 2, atol=1e-12)
    np.testing.assert_allclose(found.nearest_mean, [1] * 4 + [wavers] + [1] * 2, atol=1e-12)
    assert found.commitment == 1


@pytest.mark.parametrize("where", ["labels", "states", "both"])
def test_sequences_without_label_or_state_are_left_out(generator, where):
    states, labels, read = some(generator)
    missing = generator.random((SEQUENCES, STEPS)) < 0.2
    missing[5], missing[7, -1], missing[9, :3] = True, True, True
    inside, outside = states.copy(), labels.copy()
    if where != "states":
        outside[missing] = np.nan
    if where != "labels":
        inside[missing, 3] = np.nan
        inside[9, 0] = np.inf
    found = class_geometry(inside, outside, read)
    nearest = np.full(labels.shape, np.nan)
    for step in range(STEPS):
        rows = ~missing[:, step]
        here, codes = states[rows, step], labels[rows, step]
        nearest[rows, step] = naive_nearest(here, codes)
        assert found.separation[step] == pytest.approx(naive_separation(here, codes), abs=1e-12)
        assert found.nearest_mean[step] == pytest.approx(np.mean(nearest[rows, step] == codes))
    committed, commitment = naive_commitment(nearest, read)
    np.testing.assert_allclose(found.committed, committed, atol=1e-12)
    assert found.commitment == commitment


def test_sequences_that_start_late_have_read_what_they_have_read(generator):
    """Aligned at their ends: columns before a sequence begins have no label, and steps read count from there."""
    lengths = np.arange(SEQUENCES) % STEPS + 1
    read = np.maximum(np.arange(1, STEPS + 1) - (STEPS - lengths)[:, None], 0)
    codes = np.arange(SEQUENCES) // STEPS % 2
    states = 10.0 * codes[:, None, None] + 0.1 * generator.normal(size=(SEQUENCES, STEPS, UNITS))
    labels = np.where(read > 0, every_step(codes), np.nan)
    found = class_geometry(states, labels, read)
    assert found.commitment == 1  # everyone at once, however many columns are empty before
    np.testing.assert_array_equal(found.committed, [1] * STEPS)


def test_class_with_one_member_is_near_to_others_only(generator):
    states, labels, read = some(generator, distance=5)
    alone = np.flatnonzero(labels[:, 0] == 2)[0]
    labels[alone] = 7
    found = class_geometry(states, labels, read)
    for step in range(STEPS):
        nearest = naive_nearest(states[:, step], labels[:, step])
        assert nearest[alone] != 7
        assert found.nearest_mean[step] == pytest.approx(np.mean(nearest == labels[:, step]))
        assert found.separation[step] == pytest.approx(naive_separation(states[:, step], labels[:, step]), abs=1e-12)
    assert found.nearest_mean[-1] <= 1 - 1 / SEQUENCES


@pytest.mark.parametrize(
    "codes", [[0] * 29, [0] * 28 + [1], [0] * 27 + [1, 2], np.arange(29), [np.nan] * 29, [np.nan] * 25 + [0, 0, 0, 1]]
)
def test_fewer_than_two_classes_of_two_tell_nothing(generator, codes):
    states, _, read = some(generator)
    assert np.isnan(numbers(class_geometry(states, every_step(codes), read))).all()


def test_column_with_one_class_is_passed_over(generator):
    codes = np.arange(SEQUENCES) % 2
    states = 10.0 * codes[:, None, None] + 0.1 * generator.normal(size=(SEQUENCES, STEPS, UNITS))
    labels = every_step(codes)
    labels[:, 3] = 0
    found = class_geometry(states, labels, reading(SEQUENCES))
    for each in (found.separation, found.nearest_mean, found.committed):
        np.testing.assert_array_equal(np.isnan(each), np.arange(STEPS) == 3)
    assert found.commitment == 1
    labels[:, 3], labels[:, -1] = codes, 0
    found = class_geometry(states, labels, reading(SEQUENCES))
    assert np.isnan([*found.committed, found.commitment]).all()  # what the end is, nobody knows
    assert np.isfinite(found.nearest_mean[:-1]).all()


def test_columns_reversed_reverse_what_is_told_of_each(generator):
    states, labels, read = some(generator, distance=0.5)
    found, back = (class_geometry(*each) for each in ((states, labels, read), (states[:, ::-1], labels[:, ::-1], read)))
    np.testing.assert_allclose(back.separation, found.separation[::-1], atol=1e-12)
    np.testing.assert_allclose(back.nearest_mean, found.nearest_mean[::-1], atol=1e-12)
    nearest = np.stack([naive_nearest(states[:, step], labels[:, step]) for step in range(STEPS)][::-1], 1)
    committed, commitment = naive_commitment(nearest, read)
    np.testing.assert_allclose(back.committed, committed, atol=1e-12)
    assert back.commitment == commitment > found.commitment


@pytest.mark.parametrize("scale", [1e-20, 7, 1e20])
def test_scale_rotation_mean_order_and_more_units_change_nothing(generator, scale):
    states, labels, read = some(generator, distance=0.5)
    found = numbers(class_geometry(states, labels, read))
    turn = np.linalg.qr(generator.normal(size=(17, UNITS)))[0].T
    order = generator.permutation(SEQUENCES)
    moved = scale * (states @ turn + generator.normal(size=17))[order]
    np.testing.assert_allclose(numbers(class_geometry(moved, labels[order], read[order])), found, atol=1e-9)
    padded = np.concatenate([states, np.full((SEQUENCES, STEPS, 5), 0.7)], 2)
    np.testing.assert_allclose(numbers(class_geometry(padded, labels, read)), found, atol=1e-9)


@pytest.mark.parametrize("codes", [[2, 0, 1], [0, 5, 11], [40, 3, 17]])
def test_names_of_the_classes_are_nothing(generator, codes):
    states, labels, read = some(generator, distance=0.5)
    renamed = np.array(codes, float)[labels.astype(int)]
    np.testing.assert_allclose(
        numbers(class_geometry(states, renamed, read)), numbers(class_geometry(states, labels, read)), atol=1e-12
    )


@pytest.mark.parametrize("mean", [1e2, 1e4])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_large_mean_does_not_spoil_any_precision(generator, mean, kind):
    states, labels, read = some(generator)
    states = (states + mean).astype(kind)
    # Sums are of double precision: what is left is the rounding of the states, which the referee has, too.
    centred = states.astype(np.float64) - mean
    found, exact = class_geometry(states, labels, read), class_geometry(centred, labels, read)
    np.testing.assert_allclose(found.separation, exact.separation, atol=1e-9)
    for step in range(STEPS):
        assert found.separation[step] == pytest.approx(naive_separation(centred[:, step], labels[:, step]), abs=1e-9)


def test_states_of_zero_separate_nothing():
    found = class_geometry(np.zeros((SEQUENCES, STEPS, UNITS)), every_step(np.arange(29) % 2), reading(SEQUENCES))
    assert np.isnan(found.separation).all()


def test_nothing_in_is_nothing_out():
    found = class_geometry(np.zeros((0, STEPS, UNITS)), np.zeros((0, STEPS)), reading(0))
    assert found.separation.shape == found.nearest_mean.shape == found.committed.shape == (STEPS,)
    assert np.isnan(numbers(found)).all()


def test_nothing_is_written_to(generator):
    given = some(generator)
    for each in given:
        each.flags.writeable = False
    kept = [each.copy() for each in given]
    class_geometry(*given)
    for each, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(each, before)


@pytest.mark.parametrize(
    "states, labels, read",
    [
        ((29, 7), (29, 7), (29, 7)),
        ((29, 7, 11), (7, 29), (29, 7)),
        ((29, 7, 11), (29, 7), (7, 29)),
        ((29, 7, 11), (29,), (29,)),
        ((29, 7, 11), (29, 7, 11), (29, 7, 11)),
    ],
)
def test_sizes_must_fit(states, labels, read):
    with pytest.raises(ValueError, match=r"states must be \(N, S, H\), labels and steps_read \(N, S\), got \(29, 7"):
        class_geometry(np.zeros(states), np.zeros(labels), np.ones(read, int))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5 + 0.1])
def test_where_all_states_are_the_same_nobody_is_settled(value):
    generator = np.random.default_rng(0)
    labels = np.repeat((generator.permutation(29) < 16).astype(float)[:, None], 7, axis=1)
    states = np.full((29, 7, 3), value)
    states[:, 4:] += labels[:, 4:, None] + 0.01 * generator.normal(size=(29, 3, 3))
    found = class_geometry(states, labels, np.tile(np.arange(1, 8), (29, 1)))
    assert np.isnan(found.separation[:4]).all()
    assert np.isnan(found.nearest_mean[:4]).all()
    assert found.committed.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.commitment == 5


def test_a_class_that_is_not_there_yet_takes_no_other_ones_place():
    codes = np.repeat([0.0, 1.0, 2.0], 5)
    labels = np.repeat(codes[:, None], 3, axis=1)
    labels[:5, 0] = np.nan  # class 0 begins later
    states = np.repeat(10 * np.eye(3)[codes.astype(int)][:, None], 3, axis=1)
    states += 0.1 * np.random.default_rng(0).normal(size=states.shape)
    found = class_geometry(states, labels, np.tile(np.arange(1, 4), (15, 1)))
    assert found.committed.tolist() == [1, 1, 1]
    assert found.commitment == 1
