"""CKA against closed forms, what must not matter, and the unbiased criterion by its definition."""

from itertools import permutations

import numpy as np
import pytest

from rnn_callbacks.analysis.cka import FEWEST, cka, compare_fingerprints, fingerprint, geometry, similarities
from rnn_callbacks.analysis.count_sketch import CountSketch

SEQUENCES, STEPS, UNITS, OTHERS = 29, 5, 11, 7


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def alike(one, other, counted=None):
    return cka(geometry(one, counted), geometry(other, counted))


def related(generator, sequences=SEQUENCES, steps=STEPS):
    """Two representations with something in common, more of it at each step, and with means that are not zero."""
    one, other = generator.normal(size=(sequences, steps, UNITS)), generator.normal(size=(sequences, steps, OTHERS))
    shared = one @ generator.normal(size=(UNITS, OTHERS))
    return one + generator.normal(size=UNITS), other + shared * np.arange(steps)[:, None] / steps + 2


def orthonormal(generator, rows, columns):
    """``(rows, columns)`` with rows that are orthonormal."""
    return np.linalg.qr(generator.normal(size=(columns, rows)))[0].T


def criterion(one, other):
    """Song et al. 2012, equation 5, as it stands there: from Gram matrices of what is not centred."""
    n = len(one)
    k, l = one @ one.T, other @ other.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    whole = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + whole - 2 * (k @ l).sum() / (n - 2)) / (n * (n - 3))


def biased(one, other):
    """The plain CKA of Kornblith et al. 2019."""
    one, other = one - one.mean(0), other - other.mean(0)
    return ((one.T @ other) ** 2).sum() / np.linalg.norm(one.T @ one) / np.linalg.norm(other.T @ other)


def by_definition(one, other, counted):
    """CKA over all steps and at each, from criteria of those sequences that count."""
    found = []
    for step, rows in enumerate(counted.T):
        here, there = one[rows, step].astype(np.float64), other[rows, step].astype(np.float64)
        few = len(here) < FEWEST
        found.append([0, 0, 0] if few else [criterion(*p) for p in ((here, there), (here, here), (there, there))])
    cross, own, others = np.array(found).T
    with np.errstate(invalid="ignore"):
        return cross.sum() / np.sqrt(own.sum() * others.sum()), cross / np.sqrt(own * others)


def test_definition_used_here_is_a_mean_over_four_different_samples(generator):
    """The referee's referee: E k(1,2) (l(1,2) + l(3,4) - 2 l(1,3)), which is what the criterion estimates."""
    one, other = generator.normal(size=(7, 3)), generator.normal(size=(7, 2))
    k, l = one @ one.T, other @ other.T  # noqa: E741
    naive = np.mean([k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in permutations(range(7), 4)])
    assert criterion(one, other) == pytest.approx(naive, rel=1e-10)


@pytest.mark.parametrize("width", [UNITS, UNITS + 8])
@pytest.mark.parametrize("scale", [1e-20, 0.37, 1e20])
def test_rotated_scaled_and_moved_copy_is_the_same(generator, width, scale):
    states = generator.normal(size=(SEQUENCES, STEPS, UNITS))
    copy = scale * (states @ orthonormal(generator, UNITS, width) + generator.normal(size=width))
    found = alike(states, copy)
    assert found.cka == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.by_step, 1, atol=1e-12)
    single = alike(states.astype(np.float32), copy.astype(np.float32))
    np.testing.assert_allclose([single.cka, *single.by_step], 1, atol=1e-5)


def test_two_halves_of_the_units_are_as_alike_as_their_variances_say(generator):
    """In the limit of many samples CKA of X with [X, Y], both white, is sqrt(p / (p + q))."""
    whole = generator.normal(size=(4001, UNITS + OTHERS))
    # The error is that of independent samples, about 1 / n; more than ten of those.
    assert alike(whole[:, :UNITS], whole).cka == pytest.approx(np.sqrt(UNITS / (UNITS + OTHERS)), abs=0.005)


def test_unrelated_gaussians_are_not_alike_where_the_plain_estimator_has_a_half(generator):
    draws = [(generator.normal(size=(101, 103)), generator.normal(size=(101, 107))) for _ in range(30)]
    found = np.array([alike(one, other).cka for one, other in draws])
    assert found.std() < 2 * np.sqrt(2) / 101  # that of a mean over so many pairs is sqrt(2) / n
    assert abs(found.mean()) < 4 * np.sqrt(2) / 101 / np.sqrt(len(found))
    assert found.min() < 0  # unbiased, so it is below as often
    assert np.mean([biased(*draw) for draw in draws]) == pytest.approx(0.5, abs=0.03)


def test_few_unrelated_sequences_are_not_alike_on_average(generator):
    """Also with the fewest: the criterion is unbiased for any number."""
    found = [alike(generator.normal(size=(4, 3, 13)), generator.normal(size=(4, 3, 17))).cka for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(400)


def test_slow_walks_that_know_nothing_of_each_other_are_not_alike(generator):
    """Steps of one sequence are not independent, so they must not be samples."""

    def walks(units):
        return generator.normal(size=(SEQUENCES, 97, units)).cumsum(1)

    draws = [(walks(UNITS), walks(OTHERS)) for _ in range(20)]
    found = np.array([alike(one, other).cka for one, other in draws])
    assert abs(found.mean()) < 4 * np.sqrt(2) / SEQUENCES / np.sqrt(20)
    pooled = [alike(one.reshape(-1, UNITS), other.reshape(-1, OTHERS)).cka for one, other in draws]
    alone = [alike(one[0], other[0]).cka for one, other in draws]
    assert np.mean(pooled) > 0.03 > 3 * abs(found.mean())
    assert np.mean(alone) > 0.2


def test_what_only_tells_early_from_late_does_not_count(generator):
    clock = 100 * np.arange(STEPS)[:, None] * np.ones((1, 1))
    one = generator.normal(size=(101, STEPS, UNITS))
    other = generator.normal(size=(101, STEPS, OTHERS))
    found = alike(one + clock, other + clock)
    assert abs(found.cka) < 4 * np.sqrt(2) / 101
    assert found.cka == pytest.approx(alike(one, other).cka, abs=1e-10)
    assert alike((one + clock).reshape(-1, UNITS), (other + clock).reshape(-1, OTHERS)).cka > 0.99


@pytest.mark.parametrize("sequences", [4, 5, SEQUENCES])
@pytest.mark.parametrize("kind, tolerance", [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_similarity_is_that_of_gram_matrices(generator, sequences, kind, tolerance):
    one, other = (states.astype(kind) for states in related(generator, sequences))
    everything = np.ones((sequences, STEPS), bool)
    for found in (alike(one, other), alike(one, other, everything)):
        whole, by_step = by_definition(one, other, everything)
        assert found.cka == pytest.approx(whole, abs=tolerance)
        np.testing.assert_allclose(found.by_step, by_step, atol=tolerance)
    assert found.by_step.dtype == np.float64
    if sequences == SEQUENCES:
        assert by_step[-1] > 0.4 > by_step[0]


@pytest.mark.parametrize("kind, tolerance", [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_what_is_not_counted_does_not_count(generator, kind, tolerance):
    one, other = (states.astype(kind) for states in related(generator))
    counted = np.arange(SEQUENCES)[:, None] < SEQUENCES - np.array([0, 3, 13, 25, 26])
    counted = counted[generator.permutation(SEQUENCES)]
    one[~counted], other[~counted] = 1e6, np.inf
    found = alike(one, other, counted)
    whole, by_step = by_definition(one, other, counted)
    assert counted.sum(0).tolist() == [29, 26, 16, 4, 3]
    assert found.cka == pytest.approx(whole, abs=tolerance)
    np.testing.assert_allclose(found.by_step, by_step, atol=tolerance)
    assert np.isnan(found.by_step[-1])
    assert np.isfinite(found.by_step[:-1]).all()


def test_steps_weigh_as_much_as_their_states_differ(generator):
    """Criteria are averaged, not similarities: one step ten times as wide is nearly all there is."""
    states, other = generator.normal(size=(2, 101, 2, UNITS))
    states[:, 1] *= 10
    other[:, 1] = states[:, 1]
    found = alike(states, other)
    assert found.cka > 0.999
    assert abs(found.by_step[0]) < 0.06
    assert found.by_step[1] == pytest.approx(1, abs=1e-12)


def test_states_without_a_number_are_left_out_on_both_sides(generator):
    one, other = related(generator)
    holes, gaps = one.copy(), other.copy()
    holes[3, 1, 5], gaps[17, 1, 2], gaps[5, 4] = np.nan, np.inf, -np.inf
    counted = np.ones((SEQUENCES, STEPS), bool)
    counted[3, 1] = counted[17, 1] = counted[5, 4] = False
    found, expected = alike(holes, gaps), alike(one, other, counted)
    np.testing.assert_allclose([found.cka, *found.by_step], [expected.cka, *expected.by_step], atol=1e-12)
    whole, by_step = by_definition(one, other, counted)
    np.testing.assert_allclose([found.cka, *found.by_step], [whole, *by_step], atol=1e-10)
    back = alike(gaps, holes)
    np.testing.assert_allclose([back.cka, *back.by_step], [whole, *by_step], atol=1e-10)
    assert np.isnan(alike(np.full_like(one, np.nan), other).cka)


def test_states_without_a_number_are_left_out_of_the_scale(generator):
    states = generator.normal(size=(SEQUENCES, STEPS, UNITS)).astype(np.float32)
    holes = states.copy()
    holes[3, 1], holes[11, 2, 0] = np.inf, np.nan
    assert alike(holes, states).cka == pytest.approx(1, abs=1e-5)


def test_order_of_sequences_is_nothing_where_it_is_shared(generator):
    one, other = related(generator)
    order, units = generator.permutation(SEQUENCES), generator.permutation(UNITS)
    found, permuted = alike(one, other), alike(one[order][:, :, units], other[order])
    np.testing.assert_allclose([permuted.cka, *permuted.by_step], [found.cka, *found.by_step], atol=1e-12)
    assert alike(one, one[order]).cka < 0.3  # and everything where it is not


def test_similarity_is_the_same_both_ways_and_units_of_zero_change_nothing(generator):
    one, other = related(generator)
    found, back = alike(one, other), alike(other, one)
    padded = alike(np.concatenate([one, np.zeros((SEQUENCES, STEPS, 13))], 2), other)
    for again in (back, padded):
        np.testing.assert_allclose([again.cka, *again.by_step], [found.cka, *found.by_step], atol=1e-12)


def test_states_of_one_step_need_no_axis_for_it(generator):
    one, other = related(generator)
    found = alike(one[:, 2], other[:, 2])
    assert found.by_step.shape == (1,)
    np.testing.assert_allclose([found.cka, found.by_step[0]], alike(one, other).by_step[2], atol=1e-12)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_constant_states_are_like_nothing(generator, kind):
    states = generator.normal(size=(SEQUENCES, STEPS, UNITS)).astype(kind)
    for constant in (np.zeros_like(states), np.broadcast_to(states[:1], states.shape), np.full_like(states, 0.1)):
        for found in (alike(states, constant), alike(constant, states), alike(constant, constant)):
            assert np.isnan([found.cka, *found.by_step]).all()
    states[:, 1] = states[0, 1]
    np.testing.assert_array_equal(np.isnan(alike(states, states).by_step), np.arange(STEPS) == 1)
    assert alike(states, states).cka == pytest.approx(1, abs=1e-5)


def test_states_that_only_rounding_tells_apart_are_constant(generator):
    once = generator.normal(size=(1, UNITS)).astype(np.float32) + 3
    noise = np.finfo(np.float32).eps * generator.integers(-1, 2, size=(SEQUENCES, UNITS))
    rounded = (once * (1 + noise)).astype(np.float32)
    assert len(np.unique(rounded, axis=0)) > 1
    assert np.isnan(alike(rounded, generator.normal(size=(SEQUENCES, OTHERS))).cka)


@pytest.mark.parametrize("sequences", [0, 1, 3])
def test_fewer_than_four_sequences_tell_nothing(generator, sequences):
    one, other = related(generator, sequences)
    found = alike(one, other)
    assert np.isnan([found.cka, *found.by_step]).all()
    assert found.by_step.shape == (STEPS,)


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_large_mean_does_not_spoil_single_precision(generator, mean):
    one, other = ((states + mean).astype(np.float32) for states in related(generator))
    found = alike(one, other)
    whole, by_step = by_definition(
        *(states - states.mean(0, dtype=np.float64) for states in (one, other)), one[..., 0] > 0
    )
    np.testing.assert_allclose([found.cka, *found.by_step], [whole, *by_step], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_squares_of_single_precision_need_not_fit_into_it(generator, scale):
    one, other = (states.astype(np.float32) for states in related(generator))
    for sides in ((one * np.float32(scale), other), (one, other * np.float32(scale))):
        # Scaled states are rounded anew, which is the error of single precision.
        assert alike(*sides).cka == pytest.approx(alike(one, other).cka, abs=1e-5)
        prints = [fingerprint(geometry(side)) for side in sides]
        assert prints[0] @ prints[1] == pytest.approx(alike(one, other).cka, abs=1e-5)


def test_half_precision_is_computed_in_single(generator):
    one, other = (states.astype(np.float16) for states in related(generator, 131))
    assert geometry(one).states.dtype == np.float32
    assert alike(one, other).cka == pytest.approx(alike(one.astype(np.float64), other.astype(np.float64)).cka, abs=1e-5)


def test_precision_of_the_two_may_differ(generator):
    one, other = related(generator)
    assert alike(one, other.astype(np.float32)).cka == pytest.approx(alike(one, other).cka, abs=1e-5)


def some_geometries(generator, counted, kind=np.float32):
    one, other = related(generator, len(counted), counted.shape[1])
    unrelated = generator.normal(size=one.shape)
    return [geometry(states.astype(kind), counted) for states in (one, other, unrelated)]


@pytest.fixture
def ragged(generator):
    return np.arange(SEQUENCES)[:, None] < SEQUENCES - np.array([0, 3, 26, 13, 25])


def test_products_of_fingerprints_are_similarities(generator, ragged):
    those = some_geometries(generator, ragged)
    prints = [fingerprint(one) for one in those]
    table = similarities(prints)
    sizes = [n * (n - 1) // 2 for n in (29, 26, 16, 4)]
    for a, one in enumerate(those):
        assert prints[a].dtype == np.float32
        assert prints[a].shape == (sum(sizes),)
        assert np.linalg.norm(prints[a].astype(np.float64)) == pytest.approx(1, abs=1e-6)
        for b, other in enumerate(those):
            found, expected = compare_fingerprints(prints[a], prints[b], ragged.sum(0)), cka(one, other)
            assert prints[a] @ prints[b] == pytest.approx(expected.cka, abs=1e-5)
            assert table[a, b] == pytest.approx(expected.cka, abs=1e-5)
            assert found.cka == pytest.approx(expected.cka, abs=1e-5)
            np.testing.assert_allclose(found.by_step, expected.by_step, atol=1e-5)
    assert np.isnan(found.by_step[2])
    np.testing.assert_array_equal(table, table.T)


def test_fingerprint_holds_whatever_the_scale_and_rotation(generator, ragged):
    states = generator.normal(size=(SEQUENCES, STEPS, UNITS)) + 3
    turned = 1e3 * states @ orthonormal(generator, UNITS, 13)
    np.testing.assert_allclose(
        fingerprint(geometry(states, ragged)), fingerprint(geometry(turned, ragged)), rtol=0, atol=1e-7
    )


def test_folded_fingerprints_keep_the_similarities(generator):
    those = some_geometries(generator, np.ones((131, STEPS), bool))
    sketch = CountSketch(size=16381)
    folds = [sketch.fold(fingerprint(one), "states") for one in those]
    assert [len(fold) for fold in folds] == [16381] * 3
    exact = [[cka(one, other).cka for other in those] for one in those]
    # The standard error is at most 1 / sqrt(16381) = .0078: four of those.
    np.testing.assert_allclose(similarities(folds), exact, atol=0.03)
    np.testing.assert_allclose(np.diagonal(similarities(folds)), 1, atol=1e-12)


def test_fingerprint_of_constant_states_is_zero_and_like_nothing(generator):
    constant, other = (fingerprint(geometry(states)) for states in (np.ones((7, 3)), generator.normal(size=(7, 3))))
    assert constant.tolist() == [0] * 21
    np.testing.assert_array_equal(np.isnan(similarities([constant, other])), [[True, True], [True, False]])
    found = compare_fingerprints(constant, other, np.array([7]))
    assert np.isnan([found.cka, *found.by_step]).all()


def test_fingerprint_of_few_sequences_is_empty(generator):
    nothing = fingerprint(geometry(generator.normal(size=(3, STEPS, UNITS))))
    assert nothing.shape == (0,)
    found = compare_fingerprints(nothing, nothing, np.full(STEPS, 3))
    assert np.isnan([found.cka, *found.by_step]).all()
    assert np.isnan(similarities([nothing, nothing])).all()


def test_nothing_is_written_to(generator, ragged):
    one, other = related(generator)
    for states in (one, other, ragged):
        states.flags.writeable = False
    those = [geometry(states.astype(kind), ragged) for states in (one, other) for kind in (np.float32, np.float64)]
    kept = [(each.states.copy(), each.counted.copy()) for each in those]
    cka(geometry(one, ragged), geometry(other, ragged))
    prints = [fingerprint(each) for each in those]
    again = [fingerprint(each) for each in those]
    np.testing.assert_array_equal(prints, again)
    for each, (states, counted) in zip(those, kept, strict=True):
        np.testing.assert_array_equal(each.states, states)
        np.testing.assert_array_equal(each.counted, counted)


@pytest.mark.parametrize("shape", [(7,), (7, 0), (7, 0, 3), (7, 5, 3, 2)])
def test_states_must_be_sequences_steps_and_units(shape):
    with pytest.raises(ValueError, match=r"states must be \(N, S, H\) or \(N, H\), got shape \(7,"):
        geometry(np.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 7), (7,), (7, 5, 3), (7, 1)])
def test_counted_must_be_of_sequences_and_steps(shape):
    with pytest.raises(ValueError, match=r"counted must be \(N, S\) = \(7, 5\), got shape \("):
        geometry(np.zeros((7, 5, 3)), np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(7, 3, 2), (5, 7, 2), (11, 5, 2)])
def test_both_must_be_of_the_same_sequences_and_steps(shape):
    with pytest.raises(ValueError, match=r"the same sequences and steps, got \(7, 5\) and \("):
        cka(geometry(np.zeros((7, 5, 2))), geometry(np.zeros(shape)))


@pytest.mark.parametrize("one, other", [(21, 20), (20, 21), (20, 20), (0, 0), (24, 24)])
def test_fingerprints_must_fit_the_numbers_of_sequences(one, other):
    with pytest.raises(ValueError, match=rf"fingerprints of \[7 3\] sequences have 21 numbers, got {one}, {other}"):
        compare_fingerprints(np.ones(one), np.ones(other), np.array([7, 3]))


def test_a_large_constant_unit_hides_no_other_in_single_precision():
    generator = np.random.default_rng(0)
    states = np.stack([0.1 * generator.normal(size=23), np.full(23, 1e6)], axis=1).astype(np.float32)
    assert cka(geometry(states), geometry(states[:, :1])).cka == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_where_all_but_one_are_the_same_there_is_nothing_to_compare(kind):
    generator = np.random.default_rng(0)
    one, other = (np.tile(generator.normal(size=5), (23, 1)) for _ in range(2))
    one[3] += generator.normal(size=5)
    other[5] += generator.normal(size=5)
    shapes = [geometry(states.astype(kind)) for states in (one, other)]
    assert np.isnan(cka(*shapes).cka)
    assert not any(fingerprint(shape).any() for shape in shapes)
