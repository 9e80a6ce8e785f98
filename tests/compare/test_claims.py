import itertools

import numpy as np
import pytest
from scipy import stats

from rnn_callbacks.compare.claims import FEW, FEWEST, MOST_PAIRS, claim, find_differences, grain, mean_of
from rnn_callbacks.compare.groups import Group
from rnn_callbacks.compare.quantities import Quantity

from .known_runs import metrics, pair

LOG = Quantity("g", "metrics", "g", logarithmic=True)


def found(one, other, quantity=None):
    values, groups = pair(one, other)
    (difference,) = find_differences(values, [quantity] if quantity else metrics(1), groups, moment="matched")
    return difference


def holm(p_values):
    """Step by step, as Holm (1979) writes it."""
    left, adjusted, worst = sorted(range(len(p_values)), key=lambda k: p_values[k]), {}, 0.0
    for rank, number in enumerate(left):
        worst = max(worst, min(1.0, (len(left) - rank) * p_values[number]))
        adjusted[number] = worst
    return [adjusted[number] for number in range(len(p_values))]


@pytest.mark.parametrize("counts", [(3, 3), (4, 3), (4, 5)])
def test_few_runs_have_the_p_value_of_students_test(counts):
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=counts[0]), generator.normal(5, 1, size=counts[1])
    referee = stats.ttest_ind_from_stats(
        one.mean(), one.std(ddof=1), len(one), other.mean(), other.std(ddof=1), len(other)
    )
    assert found(one, other).p_value == pytest.approx(referee.pvalue, rel=1e-9)


@pytest.mark.parametrize("counts", [(FEW, FEW), (7, 11)])
def test_more_runs_have_the_p_value_of_welchs_test(counts):
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=counts[0]), generator.normal(1, 3, size=counts[1])
    assert found(one, other).p_value == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue, rel=1e-9)


@pytest.mark.parametrize("counts", [(3, 5), (3, 17), (4, 6)])
def test_few_against_many_need_both_t_tests(counts):
    generator = np.random.default_rng(2)
    one, other = generator.normal(30, 5, size=counts[0]), generator.normal(size=counts[1])
    student, welch = (stats.ttest_ind(one, other, equal_var=equal).pvalue for equal in (True, False))
    assert student < welch / 2
    assert found(one, other).p_value == pytest.approx(welch, rel=1e-9)


@pytest.mark.parametrize("counts", [(6, 13), (6, 500)])
def test_unlike_counts_need_the_rank_test_too(counts):
    generator = np.random.default_rng(3)
    one, other = generator.exponential(size=counts[0]) + 0.9, generator.exponential(size=counts[1])
    method = "exact" if counts[0] * counts[1] < 2500 else "asymptotic"
    ranks = stats.mannwhitneyu(one, other, method=method).pvalue
    welch = stats.ttest_ind(one, other, equal_var=False).pvalue
    assert found(one, other).p_value == pytest.approx(max(ranks, welch), rel=1e-9)


def test_a_rank_test_with_ties_claims_no_more_than_all_permutations_allow():
    one, other = np.array([1.0, 1, 2, 2, 3]), np.array([2.0, 3, 3, 4, 4, 4, 5, 5, 5, 5])
    every = np.concatenate([one, other])

    def extremes(chosen):
        below = (every[chosen][:, None] < np.delete(every, chosen)).sum()
        below = below + 0.5 * (every[chosen][:, None] == np.delete(every, chosen)).sum()
        return min(below, 50 - below)

    counts = np.array([extremes(list(chosen)) for chosen in itertools.combinations(range(15), 5)])
    exact = np.mean(counts <= extremes(list(range(5))))
    assert stats.ttest_ind(one, other, equal_var=False).pvalue < exact < found(one, other).p_value < 3 * exact


def test_adjusted_p_values_are_holms():
    generator = np.random.default_rng(4)
    values, groups = pair(generator.normal(size=(9, 4)), generator.normal(size=(9, 4)) + np.arange(9)[:, None])
    raw = find_differences(values, metrics(9), groups, moment="matched")
    claimed = claim(raw, 0.1)
    assert [one.adjusted for one in claimed] == pytest.approx(holm([one.p_value for one in raw]))
    assert [one.claimed for one in claimed] == [one.adjusted < 0.1 for one in claimed]
    assert 0 < sum(one.claimed for one in claimed) < 9


def test_what_is_not_tested_takes_no_share_of_the_correction():
    values, groups = pair([[1.0, 1.1, 1.2], [1, 1, 1]], [[9.0, 9.1, 9.2], [1, 1, 1]])
    claimed = claim(find_differences(values, metrics(2), groups, moment="matched"))
    assert claimed[0].adjusted == claimed[0].p_value
    assert np.isnan(claimed[1].p_value)
    assert not claimed[1].claimed


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 5, np.nan])
def test_an_alpha_that_is_no_chance_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got"):
        claim([], alpha)


KINDS = {
    "normal": lambda generator, size: generator.normal(size=size),
    "correlated": lambda generator, size: generator.normal(size=size[1]) + 0.3 * generator.normal(size=size),
    "skewed": lambda generator, size: np.exp(generator.normal(size=size)),
    "heavy tails": lambda generator, size: generator.standard_t(2, size=size),
    "coin": lambda generator, size: 0.9 + 0.05 * generator.integers(0, 2, size=size),
    "coarse accuracy": lambda generator, size: 0.9 + 0.0125 * generator.integers(0, 3, size=size),
    "whole": lambda generator, size: generator.poisson(1.0, size=size).astype(float),
}


CASES = [(kind, (3, 3)) for kind in KINDS] + [
    *(("skewed", counts) for counts in [(3, 17), (10, 10), (6, 30)]),
    *(("coin", counts) for counts in [(3, 17), (5, 5), (6, 30)]),
]


@pytest.mark.parametrize("kind, counts", CASES)
def test_seeds_of_one_configuration_raise_no_claim(kind, counts):
    """In 95 of 100 comparisons of 15 quantities; of 40, more than 7 false ones come by chance in one of 1000 tests."""
    generator = np.random.default_rng(5)
    false = 0
    for _ in range(40):
        every = KINDS[kind](generator, (15, sum(counts)))
        values, groups = pair(every[:, : counts[0]], every[:, counts[0] :])
        false += any(one.claimed for one in claim(find_differences(values, metrics(15), groups, moment="matched")))
    assert false <= 7


@pytest.mark.parametrize("counts, least", [((3, 3), 45), ((5, 5), 59), ((10, 10), 60)])
def test_a_shift_of_six_spreads_is_found(counts, least):
    generator = np.random.default_rng(6)
    hits = 0
    for _ in range(60):
        values, groups = pair(generator.normal(size=(4, counts[0])), generator.normal(size=(4, counts[1])))
        values[0, counts[0] :] += 6
        hits += claim(find_differences(values, metrics(4), groups, moment="matched"))[0].claimed
    assert hits >= least


def test_few_wide_runs_are_not_told_from_many_narrow_ones_by_luck():
    """Student's test alone claims something in 99 of 100; of 40, 15 would be far too many."""
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(40):
        values, groups = pair(10 * generator.normal(size=(15, 3)), generator.normal(size=(15, 17)))
        false += any(one.claimed for one in claim(find_differences(values, metrics(15), groups, moment="matched")))
    assert false <= 14


def test_fewer_than_three_runs_tell_nothing():
    assert FEWEST == 3
    assert np.isnan(found([1.0, 1.1], [9.0, 9.1, 9.2, 9.3]).p_value)
    assert np.isnan(found([1.0], [9.0]).p_value)
    assert np.isnan(found([1.0], [9.0]).effect)


def test_a_single_run_has_no_spread():
    assert np.isnan(found([1.0], [9.0, 9.1]).spreads[0])
    assert found([1.0], [9.0, 9.1]).spreads[1] == pytest.approx(np.std([9.0, 9.1], ddof=1))


def test_few_runs_that_overlap_are_not_told_apart():
    assert found([0.0, 0.1, 1.0], [0.99, 5, 5]).p_value == 1.0


def test_infinite_and_missing_values_are_left_out():
    difference = found([1, np.nan, 1.2, 1.1, np.inf], [9.0, 9.1, 9.2])
    assert difference.counts == (3, 3)
    assert difference.means == pytest.approx((1.1, 9.1))


def test_a_group_without_any_value_is_not_compared():
    values, groups = pair([np.nan] * 3, [1.0, 2, 3])
    assert find_differences(values, metrics(1), groups, moment="matched") == []


@pytest.mark.parametrize("size", [1e-310, 1e-30, 1e30, 1e307])
def test_scale_changes_nothing(size):
    one, other = np.array([1.0, 1.1, 1.3]), np.array([2.0, 2.2, 2.3])
    plain, scaled = found(one, other), found(one * size, other * size)
    tolerance = 1e-6 if size > 1e-300 else 1e-2  # numbers below 2e-308 have fewer digits
    assert scaled.p_value == pytest.approx(plain.p_value, rel=tolerance)
    assert scaled.effect == pytest.approx(plain.effect, rel=tolerance)
    assert scaled.means == pytest.approx([mean * size for mean in plain.means], rel=tolerance)


def test_logarithmic_quantities_are_compared_by_ratios():
    one, other = np.array([1.0, 2, 4]), np.array([100.0, 200, 500])
    assert found(one, other, LOG).p_value == pytest.approx(stats.ttest_ind(np.log(one), np.log(other)).pvalue)
    assert found(one, other, LOG).means == pytest.approx((one.mean(), other.mean()))


@pytest.mark.parametrize("other", [[0.0, 0.1, 0.2], [-1.0, -2, -3]])
def test_zeros_and_negative_values_are_compared_as_they_are(other):
    one = [5.0, 5.5, 6.0]
    assert found(one, other, LOG).p_value == pytest.approx(stats.ttest_ind(one, other).pvalue)
    assert found(one, other, LOG).counts == (3, 3)


def test_equal_values_do_not_pass_for_certainty():
    """Three times 0.95 and three times 0.9 is what a coin with two sides shows in one of 32 cases."""
    assert found([0.95] * 3, [0.9] * 3).p_value > 0.05
    assert found([1.0] * 3, [2.0] * 3, Quantity("n", "metrics", "n", whole=True)).p_value > 0.05


def test_the_rest_of_a_curve_tells_how_coarse_a_quantity_is():
    values, groups = pair([1.0] * 3, [0.5] * 3)
    (difference,) = find_differences(values, metrics(1), groups, moment="matched", grains=[0.01])
    assert difference.p_value < 1e-6


def test_rounding_is_no_difference():
    """Event files hold 32 bits: 0.1 is 1e-8 off."""
    assert found([0.1, 0.1, 0.1], [0.1 + 1.5e-9] * 3).p_value > 0.05


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], 0),
        ([1.0, 2.0], 0),
        ([0.5, 0.5], 0),
        ([0.5, 0.5, 0.75, 1.0], 0.25),
        ([70, 70, 35], 1),
        ([0.1, 0.1, 0.1 + 1e-9, 0.3], 0.2),
        ([np.nan, np.inf, 1.5, 1.5, 2.0], 0.5),
        ([1e308, 1e308, -1e308], 0),  # the distance is no number
    ],
)
def test_a_grain_is_the_distance_between_values_that_occur_again(values, expected):
    assert grain(np.array(values, float)) == pytest.approx(expected)


def test_repeated_runs_count_once():
    values = np.array([[1.0, 1.0, 1.0, 5.0, 5.1, 5.2]])
    groups = [Group("a", (0, 1, 2), (0,)), Group("b", (3, 4, 5), (3, 4, 5))]
    (difference,) = find_differences(values, metrics(1), groups, moment="matched")
    assert difference.counts == (1, 3)
    assert np.isnan(difference.p_value)


def test_many_groups_are_compared_with_the_first():
    count = 25
    assert count * (count - 1) / 2 > MOST_PAIRS
    groups = [Group(str(number), (number,), (number,)) for number in range(count)]
    compared = find_differences(np.arange(float(count))[None], metrics(1), groups, moment="matched")
    assert [one.groups for one in compared] == [(0, other) for other in range(1, count)]


def test_means_of_huge_numbers_are_numbers():
    mean, spread = mean_of(np.array([1e308, 1.5e308, 1e308]))
    assert mean == pytest.approx(1e308 + 0.5e308 / 3)
    assert spread == pytest.approx(0.5e308 / np.sqrt(3), rel=1e-9)
