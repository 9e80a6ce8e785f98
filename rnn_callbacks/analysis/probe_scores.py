"""What a probe reads on sequences that it was not fitted to, in numbers of which each has its known zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .discriminant import ClassProbe, ValueProbe

BINS = 15  # of confidence, for the calibration error (Guo et al. 2017)
DRAWS = 400  # bootstrap samples; the ends of a 95 % interval then vary by about a tenth of its width
NONE = float("nan")


@final
@dataclass(frozen=True, eq=False)
class Tally:
    """What a probe did, added up by held-out sequence, so that sequences can be drawn anew.

    For classes ``right`` and ``all`` count samples of each class; for a quantity they are sums of squares, ``right`` of
    the errors and ``all`` of the deviations from the mean of the samples that the probe was fitted to.
    """

    right: NDArray[np.float64]  # (n, K), or (n, 1)
    all: NDArray[np.float64]  # (n, K), or (n, 1)
    bits: NDArray[np.float64]  # (n,), sum of log2 p(label | state) / p(label)
    samples: NDArray[np.float64]  # (n,)
    of_classes: bool

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Balanced accuracy or R^2 where sequences count as often as these weights ``(R, n)`` say, ``(R,)``."""
        right, everything = weights @ self.right, weights @ self.all
        if self.of_classes:
            seen = everything > 0
            recall = right / np.maximum(everything, 1e-300)
            return np.asarray((recall * seen).sum(1) / np.maximum(seen.sum(1), 1))
        return np.asarray(1 - right[:, 0] / np.maximum(everything[:, 0], 1e-300))

    @property
    def counts(self) -> NDArray[np.float64]:
        """Held-out sequences of each class, or of all in one for a quantity."""
        if self.of_classes:
            return np.asarray((self.all > 0).sum(0), np.float64)
        return np.array([(self.samples > 0).sum()], np.float64)

    def information(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """V-information in bits under the same weights, ``(R,)``."""
        return np.asarray((weights @ self.bits) / np.maximum(weights @ self.samples, 1e-300))


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """One probe at one site on held-out samples. What does not apply is NaN: R^2 of classes, accuracy of a quantity.

    V-information is the entropy of the labels minus the cross-entropy that is left given the state, in bits (Xu et al.
    2020): what a linear reader gains, and a lower bound of the mutual information. 0: nothing; below 0: misled.
    """

    fitted: int  # samples that the probe was fitted to; 0 where none could be
    tested: int  # held-out samples
    why_not: str  # the reason where there is no probe
    score: float  # balanced accuracy in [0, 1], or R^2
    accuracy: float
    macro_f1: float
    auc: float  # area under the ROC curve, for two classes
    calibration_error: float  # mean difference of confidence and accuracy, in [0, 1]
    v_information: float  # bits
    entropy: float  # bits, of the labels under their frequencies among the fitted samples; of a quantity none
    confusion: NDArray[np.int64]  # (K, K), samples by true class and the class told; empty for a quantity
    tally: Tally | None


def no_reading(why_not: str) -> Reading:
    """In place of a probe that could not be fitted."""
    return Reading(0, 0, why_not, NONE, NONE, NONE, NONE, NONE, NONE, NONE, np.zeros((0, 0), np.int64), None)


def read_classes(
    probe: ClassProbe,
    states: NDArray[np.floating[Any]],
    codes: NDArray[np.int64],
    *,
    fitted: int,
    groups: NDArray[np.int64] | None = None,
) -> Reading:
    """Scores of a classifier.

    Two decisions are scored: the most probable class (accuracy, macro F1), and the one that would be most probable if
    all were equally frequent (balanced accuracy, confusion), since with a rare class the first is always "no".

    Args:
        probe: fitted to other sequences.
        states: standardised in the probe's basis, ``(N, H)``.
        codes: true classes ``(N,)``.
        fitted: samples that the probe was fitted to.
        groups: sequence of each sample ``(N,)``, from 0 without gaps, where a tally is wanted.
    """
    count, everyone = len(probe.offsets), np.arange(len(codes))
    # Classes along the first axis: sums over classes are then ten times as fast.
    logits = probe.weights.T.astype(states.dtype) @ states.T
    logits += probe.offsets.astype(states.dtype)[:, None]
    priors = probe.log_priors.astype(states.dtype)[:, None]
    told, likely = logits.argmax(0), (logits + priors).argmax(0)
    log_p = logits * states.dtype.type(probe.sharpness) + priors
    log_p -= log_p.max(0)
    total = np.exp(log_p).sum(0)  # in units of the likeliest class's probability
    gained = (log_p[codes, everyone] - np.log(total)).astype(np.float64) - probe.log_priors[codes]
    bits = _hedged(gained / np.log(2), fitted)
    if probe.sharpness == 0 or not probe.weights.any():
        bits[:] = 0.0
    confusion = np.bincount(codes * count + told, minlength=count**2).reshape(count, count)
    usual = np.bincount(codes * count + likely, minlength=count**2).reshape(count, count)
    present = confusion.sum(1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(1)[present]
    touched = usual.sum(0) + usual.sum(1)
    f1 = 2 * np.diag(usual)[touched > 0] / touched[touched > 0]
    return Reading(
        fitted=fitted,
        tested=len(codes),
        why_not="",
        score=float(recall.mean()),
        accuracy=float(np.trace(usual) / len(codes)),
        macro_f1=float(f1.mean()),
        auc=area_under_roc(logits[1] - logits[0], codes) if count == 2 and present.all() else NONE,
        calibration_error=_calibration_error(1 / total, log_p.argmax(0) == codes),
        v_information=float(bits.mean()),
        entropy=float(-probe.log_priors[codes].mean() / np.log(2)),
        confusion=confusion,
        tally=None if groups is None else _tally_classes(told, codes, bits, groups, count),
    )


def score_classes(probe: ClassProbe, states: NDArray[np.floating[Any]], codes: NDArray[np.int64]) -> float:
    """Balanced accuracy alone, for controls."""
    logits = probe.weights.T.astype(states.dtype) @ states.T
    logits += probe.offsets.astype(states.dtype)[:, None]
    seen = np.bincount(codes, minlength=len(logits))
    right = np.bincount(codes[logits.argmax(0) == codes], minlength=len(logits))
    return float((right[seen > 0] / seen[seen > 0]).mean())


def area_under_roc(score: NDArray[np.floating[Any]], codes: NDArray[np.int64]) -> float:
    """How often a sample of class 1 scores above one of class 0; ties count half (Mann and Whitney 1947)."""
    ones, zeros = score[codes == 1], np.sort(score[codes == 0])
    below = np.searchsorted(zeros, ones, "left") + np.searchsorted(zeros, ones, "right")
    return float(below.sum() / (2 * len(ones) * len(zeros)))


def _tally_classes(
    told: NDArray[np.int64], codes: NDArray[np.int64], bits: NDArray[np.float64], groups: NDArray[np.int64], count: int
) -> Tally:
    sequences = int(groups.max()) + 1
    by_class = groups * count + codes
    right = np.bincount(by_class, weights=(told == codes).astype(float), minlength=sequences * count)
    everything = np.bincount(by_class, minlength=sequences * count).astype(np.float64)
    return Tally(
        right.astype(np.float64).reshape(sequences, count),
        everything.reshape(sequences, count),
        np.bincount(groups, weights=bits, minlength=sequences).astype(np.float64),
        np.bincount(groups, minlength=sequences).astype(np.float64),
        of_classes=True,
    )


def _hedged(bits: NDArray[np.float64], fitted: int) -> NDArray[np.float64]:
    """Bits gained by the mixture of the probe and the labels' frequencies, with weights of n to 1.

    From n samples nobody can know that something never happens (Laplace's rule of succession): without this, probes of
    four samples lost 400 bits on a single mistake. At most log2(n + 1) are lost now, and of what is gained about 1 / n.
    """
    hedged = np.logaddexp2(bits + np.log2(fitted), 0.0) - np.log2(fitted + 1)
    return np.where(bits == 0, 0.0, hedged)  # instead of rounding errors, which would all have one sign


def _calibration_error(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> float:
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(place, weights=confidence.astype(np.float64) - right, minlength=BINS)
    return float(np.abs(gap).sum() / len(right))


def read_values(
    probe: ValueProbe,
    states: NDArray[np.floating[Any]],
    values: NDArray[np.float64],
    *,
    fitted: int,
    groups: NDArray[np.int64] | None = None,
) -> Reading:
    """Scores of a regression: R^2, and V-information of normal densities with the variance of left-out samples.

    R^2 is the error against that of always saying the mean of the samples that the probe was fitted to, so that a probe
    that knows nothing has 0; against the mean of the held-out samples, as in scikit-learn, it would have a little less.

    Args:
        probe: fitted to other sequences.
        states: standardised in the probe's basis, ``(N, H)``.
        values: true values ``(N,)``.
        fitted: samples that the probe was fitted to.
        groups: sequence of each sample ``(N,)``, from 0 without gaps, where a tally is wanted.
    """
    deviation = values - probe.mean
    told = probe.sharpness * (states @ probe.weights.astype(states.dtype)).astype(np.float64)
    error = (deviation - told) ** 2
    gained = (np.log(probe.variance / probe.noise) + deviation**2 / probe.variance - error / probe.noise) / 2
    bits = _hedged(gained / np.log(2), fitted)
    return Reading(
        fitted=fitted,
        tested=len(values),
        why_not="",
        score=float(1 - error.sum() / (deviation**2).sum()),
        accuracy=NONE,
        macro_f1=NONE,
        auc=NONE,
        calibration_error=NONE,
        v_information=float(bits.mean()),
        entropy=NONE,
        confusion=np.zeros((0, 0), np.int64),
        tally=None if groups is None else _tally_values(error, deviation, bits, groups),
    )


def _tally_values(
    error: NDArray[np.float64], deviation: NDArray[np.float64], bits: NDArray[np.float64], groups: NDArray[np.int64]
) -> Tally:
    sequences = int(groups.max()) + 1

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(groups, weights=values, minlength=sequences).astype(np.float64)

    return Tally(
        summed(error)[:, None],
        summed(deviation**2)[:, None],
        summed(bits),
        np.bincount(groups, minlength=sequences).astype(np.float64),
        of_classes=False,
    )


@final
@dataclass(frozen=True, eq=False)
class Interval:
    """A 95 % bootstrap interval over sequences."""

    low: float
    high: float


def draws(sequences: int, seed: int) -> NDArray[np.float64]:
    """How often each sequence is drawn in each bootstrap sample, ``(400, n)``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(sequences, np.full(sequences, 1 / sequences), size=DRAWS).astype(np.float64)


def interval(values: NDArray[np.float64], counts: NDArray[np.float64]) -> Interval:
    """The interval of a quantity's bootstrap values ``(R,)``: expanded percentiles (Hesterberg 2015, section 3.3).

    Plain percentiles are too narrow where sequences are few. They are moved out as Student's t asks, with the degrees
    of freedom of a mean over classes (Satterthwaite 1946). Nothing is known of the spread of a class with one held-out
    sequence: it may move the mean by its whole share.

    Args:
        values: of the bootstrap samples.
        counts: held-out sequences of each class that is averaged over, or of all in one.
    """
    known = counts[counts > 0]
    if not len(known) or known.max() < 2:
        return Interval(-np.inf, np.inf)
    less = np.maximum(known - 1, 0.5)
    freedom = (1 / known).sum() ** 2 / (1 / (known**2 * less)).sum()
    wide = np.sqrt((1 / less).sum() / (1 / known).sum()) * stats.t.ppf(0.025, freedom)
    tail = float(stats.norm.cdf(wide))
    low, high = np.quantile(values, [tail, 1 - tail])
    alone = float((known < 2).mean())
    return Interval(float(low) - alone, float(high) + alone)


def p_value(tally: Tally) -> float:
    """How often probes of no use would gain as many bits: one-sided t-test of what sequences gain, each in all.

    Sums, for V-information is a mean over samples: short sequences (games that end soon, say) count less in it, and the
    mean of their means may be negative where it is well above 0.
    """
    gains = tally.bits[tally.samples > 0]
    if len(gains) < 2 or (gains <= 0).all():
        return 1.0
    if np.ptp(gains) == 0:
        return float(0.5 ** len(gains))  # of signs alone: the t-test knows no spread of 0
    return float(stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue)
