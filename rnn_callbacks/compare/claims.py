"""Which differences between configurations are more than seeds explain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from .groups import Group
from .quantities import Quantity

ALPHA = 0.05  # chance that a comparison in which nothing differs claims anything at all
FEWEST = 3  # runs of each group; one run beside the five seeds of another group passed for unlike in 38 of 100 cases
FEW = 5  # runs of a group below which its own spread is too uncertain to be used alone
UNLIKE_FEW, UNLIKE_MANY = 1.5, 2  # times the runs of the other group: no t test alone is safe; see `find_differences`
MOST_PAIRS = 190  # of groups; of more groups each is compared with the first one only
ROUNDING = 1e-6  # of a logged number's size: event files hold 32-bit numbers
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@final
@dataclass(frozen=True)
class Difference:
    """One quantity in two groups."""

    quantity: Quantity
    moment: str  # "matched" or "best"
    groups: tuple[int, int]
    means: tuple[float, float]
    spreads: tuple[float, float]  # standard deviation between seeds; NaN of a single run
    counts: tuple[int, int]
    effect: float  # difference of means / spread between seeds; of logarithmic quantities, that of their logarithms
    p_value: float  # alone
    adjusted: float  # for all that was compared (Holm 1979)
    claimed: bool


def find_differences(
    values: NDArray[np.float64],
    quantities: Sequence[Quantity],
    groups: Sequence[Group],
    *,
    moment: str,
    grains: Sequence[float] | None = None,
) -> list[Difference]:
    """Compare every quantity in every pair of groups; nothing is claimed yet, see `claim`.

    The question is whether the runs could all be seeds of one configuration.

    With few runs (`FEW`) in a group it is answered by Student's test, which is exact for that, and nothing counts where
    the two groups overlap. Where the counts are unlike, Welch's test (1947), which allows for unlike spreads, has to
    agree (the larger p-value counts): in 30 quantities of equal means Student's alone claims something in 99 of 100
    comparisons of 3 runs with 17 that have a tenth of their spread, both together in 16. With more runs it is answered
    by Welch's test; where the counts are unlike, the rank test of Mann and Whitney (1947) has to agree: Welch's alone
    claims something in 34 of 100 comparisons of 6 runs with 30 that all have the same skewed distribution.

    Logarithmic quantities are compared by their logarithms if all runs have positive ones. All numbers are taken to
    scatter by their rounding at least; counts, and others that only have certain values, by half the distance between
    two such values: three equal ones do not pass for certainty. What is the same in all runs is not tested.

    Args:
        values: ``(Q, R)``, NaN where a run does not have the quantity.
        quantities: the Q that are compared.
        groups: runs that differ by their seeds.
        moment: of the values.
        grains: distance between the values that each quantity can have, 0 of continuous ones; by default the `grain`
            of its values.
    """
    pairs = list(itertools.combinations(range(len(groups)), 2))
    pairs = pairs if len(pairs) <= MOST_PAIRS else [(0, other) for other in range(1, len(groups))]
    found = []
    for number, (quantity, row) in enumerate(zip(quantities, values, strict=True)):
        sides = [_finite(row[list(group.distinct)]) for group in groups]
        every = np.concatenate([np.zeros(0), *sides])
        step = 1.0 if quantity.whole else grain(every) if grains is None else grains[number]
        logarithmic = quantity.logarithmic and bool((every > 0).all())
        for one, other in pairs:
            if len(sides[one]) and len(sides[other]):
                pair = sides[one], sides[other]
                found.append(_difference(quantity, moment, (one, other), pair, step, logarithmic))
    return found


def grain(values: NDArray[np.float64]) -> float:
    """The distance between the values that a quantity can have; 0 where none occurs twice, as in continuous ones.

    It is the least distance between two that are not the same but for rounding; 1 at most where all are whole.
    """
    known = np.sort(_finite(values))
    if len(np.unique(known)) == len(known):
        return 0.0
    with np.errstate(over="ignore"):
        gaps = np.diff(known)
    gaps = gaps[gaps > ROUNDING * np.abs(known).max()]
    least = float(gaps.min(initial=np.inf))
    return min(least, 1.0 if (known == np.round(known)).all() else np.inf) if np.isfinite(least) else 0.0


def claim(differences: Sequence[Difference], alpha: float = ALPHA) -> list[Difference]:
    """The same with `adjusted` and `claimed`: Holm's correction over all of them, so that all claims hold together.

    Args:
        differences: everything that was compared, of all moments.
        alpha: chance of any false claim.

    Raises:
        ValueError: when alpha is no chance.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    p_values = np.array([found.p_value for found in differences])
    tested = np.flatnonzero(np.isfinite(p_values))
    adjusted = np.full(len(p_values), np.nan)
    order = tested[np.argsort(p_values[tested], kind="stable")]
    raised = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [
        replace(found, adjusted=float(value), claimed=bool(value < alpha))
        for found, value in zip(differences, adjusted, strict=True)
    ]


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known: NDArray[np.float64] = values[np.isfinite(values)]
    return known


def _difference(
    quantity: Quantity, moment: str, groups: tuple[int, int], pair: Pair, step: float, logarithmic: bool
) -> Difference:
    size = float(max(np.abs(side).max() for side in pair)) or 1.0  # squares of huge and tiny numbers are no numbers
    scaled = pair[0] / size, pair[1] / size
    (mean, spread), (other_mean, other_spread) = mean_of(pair[0]), mean_of(pair[1])
    if logarithmic:
        tested = np.log(pair[0]), np.log(pair[1])
        least = max(np.log1p(step / 2 / size), ROUNDING)
    else:
        tested = scaled
        least = max(step / 2 / size, ROUNDING * max(abs(float(side.mean())) for side in scaled))
    return Difference(
        quantity=quantity,
        moment=moment,
        groups=groups,
        means=(mean, other_mean),
        spreads=(spread, other_spread),
        counts=(len(pair[0]), len(pair[1])),
        effect=_effect(tested, float(least)),
        p_value=_p_value(tested, float(least)),
        adjusted=np.nan,
        claimed=False,
    )


def _effect(pair: Pair, least: float) -> float:
    """Difference of the means in units of the spread within the groups; NaN of two single runs."""
    pooled = _pooled(pair, least)
    return float((pair[1].mean() - pair[0].mean()) / pooled) if pooled > 0 else pooled


def _p_value(pair: Pair, least: float) -> float:
    """Two-sided; NaN where it is not tested."""
    one, other = pair
    counts = len(one), len(other)
    if min(counts) < FEWEST or not np.ptp(np.concatenate(pair)) > 0:
        return np.nan
    spreads = max(_spread(one), least), max(_spread(other), least)
    many = min(counts) >= FEW
    unlike_counts = max(counts) >= (UNLIKE_MANY if many else UNLIKE_FEW) * min(counts)
    if many:
        welch = _t_test(pair, spreads, pooled=False)
        return max(welch, _rank_test(pair)) if unlike_counts else welch
    if not max(one.min() - other.max(), other.min() - one.max()) > 0:
        return 1.0
    student = _t_test(pair, (_pooled(pair, least),) * 2, pooled=True)
    return max(student, _t_test(pair, spreads, pooled=False)) if unlike_counts else student


def _t_test(pair: Pair, spreads: tuple[float, float], *, pooled: bool) -> float:
    """Student's or Welch's; scipy.stats does the same, and takes a second to import."""
    counts = len(pair[0]), len(pair[1])
    errors = [spread**2 / count for spread, count in zip(spreads, counts, strict=True)]
    freedom = float(sum(counts) - 2)
    if not pooled:
        freedom = sum(errors) ** 2 / sum(error**2 / (count - 1) for error, count in zip(errors, counts, strict=True))
    return float(2 * stdtr(freedom, -abs(pair[1].mean() - pair[0].mean()) / np.sqrt(sum(errors))))


def _rank_test(pair: Pair) -> float:
    """Mann's and Whitney's."""
    from scipy.stats import mannwhitneyu  # takes a second to import, and is rarely needed

    return float(mannwhitneyu(*pair).pvalue)


def mean_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation between seeds, NaN of a single one; also of numbers whose squares are none."""
    size = float(np.abs(values).max(initial=0.0)) or 1.0
    with np.errstate(over="ignore"):
        return size * float((values / size).mean()), float(size * np.float64(_spread(values / size)))


def _spread(side: NDArray[np.float64]) -> float:
    return float(side.std(ddof=1)) if len(side) > 1 else np.nan


def _pooled(pair: Pair, least: float) -> float:
    """Spread between seeds within both groups; NaN where each is a single run."""
    freedom = len(pair[0]) + len(pair[1]) - 2
    if freedom < 1:
        return float("nan")
    squares = sum(float(np.square(side - side.mean()).sum()) for side in pair)
    return max(float(np.sqrt(squares / freedom)), least)
