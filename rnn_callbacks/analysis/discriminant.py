"""Linear probes in closed form: one second moment and one factorisation of the states for every concept there is.

Classes are told apart by linear discriminant analysis, quantities are read by ridge regression. Both need the inverse
of the same matrix, S + r I with S the covariance of the standardised states: the covariance within classes differs from
S only by the means of the classes, a correction of rank K (Woodbury). So the probes of all concepts and all controls at
one site share everything that is dear. With a share a of shrinkage, r is a / (1 - a) times the mean variance.

Where samples are few, how much shrinkage is right depends on the concept: classes far apart in a few units want none of
it, classes a little apart in all of them want much, and no look at the states alone can tell (the shrinkage of Ledoit
and Wolf cost 20 points on the first kind). So several are tried, and each concept takes what left-out samples say.

How far a probe may be trusted is one number for each, its sharpness, fitted on left-out samples in closed form
(Lachenbruch and Mickey 1968): a probe that learned nothing but noise gets sharpness 0 and says what is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular

FLOOR = 1e-6  # least r: rounding of a single-precision second moment is a tenth of it
LEAST = 0.01  # least r in units of H / N: a hundredth of what the noise in the covariance comes to
MANY = 10  # samples per unit from which on shrinkage hardly matters (a point at most) and one is enough
CALIBRATED = 512  # samples from which the sharpness is fitted; its error is then a few percent
SHARPEST = 20.0  # logits of more than that say nothing new

Floats = NDArray[np.floating[Any]]


@final
@dataclass(frozen=True, eq=False)
class Metric:
    """One choice of shrinkage."""

    shrinkage: float  # a
    ridge: float  # r
    factor: NDArray[np.float64]  # (H, H), lower triangle L of S + r I = L L'

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """(S + r I)^-1 times something of H rows."""
        return np.asarray(cho_solve((self.factor, True), right, check_finite=False))

    def squared_length(self, states: Floats) -> NDArray[np.float64]:
        """Of each of n states in the metric of (S + r I)^-1, ``(n,)``."""
        white = solve_triangular(self.factor.astype(states.dtype), states.T, lower=True, check_finite=False)
        return np.asarray(np.einsum("hn,hn->n", white, white), np.float64)


@final
@dataclass(frozen=True, eq=False)
class Basis:
    """Standardised states of the samples that probes are fitted to, and their inverse covariance."""

    states: Floats  # (N, H), mean 0 and variance 1 in every unit that varies
    mean: NDArray[np.float64]  # (H,)
    scale: NDArray[np.float64]  # (H,), 1 where a unit does not vary
    metrics: tuple[Metric, ...]  # least shrinkage first

    def standardised(self, states: Floats) -> Floats:
        """Other states ``(n, H)`` in the same coordinates."""
        kind = self.states.dtype
        return (states - self.mean.astype(kind)) / self.scale.astype(kind)


def basis(states: Floats, *, shrinkage: float | None = None) -> Basis:
    """What all probes of one site share.

    Args:
        states: ``(N, H)``, finite.
        shrinkage: a, the weight in [0, 1) of equal variances against the covariance; by default several are offered
            where there are fewer than ten samples per unit: next to none, r = H / N, and that of Ledoit and Wolf 2004.

    Raises:
        ValueError: when there are fewer than two samples, a value is not finite, or the shrinkage no share below 1.
    """
    if states.ndim != 2 or len(states) < 2:
        raise ValueError(f"states must be (N, H) with N of at least 2, got shape {states.shape}")
    if states.dtype.kind != "f" or states.dtype.itemsize < 4:
        states = states.astype(np.float32)
    if not np.isfinite(states).all():
        raise ValueError("states must be finite")
    if shrinkage is not None and not 0 <= shrinkage < 1:
        raise ValueError(f"shrinkage must be a share in [0, 1), got {shrinkage}")
    mean = states.mean(0, dtype=np.float64)
    centred = states - mean.astype(states.dtype)
    # Squares of exploding or vanishing states leave single precision; a power of two changes no digit.
    size = 2.0 ** np.floor(np.log2(max(float(np.abs(centred).max()), 1e-37)))
    centred /= states.dtype.type(size)
    square = centred.T @ centred
    mean, variance = mean / size, np.diag(square).astype(np.float64) / len(states)
    # A unit that sits still differs from its mean by rounding only.
    scale = np.sqrt(np.where(variance > (1e-6 * np.maximum(np.abs(mean), 1e-30)) ** 2, variance, 0.0))
    still = scale == 0
    scale[still] = 1.0
    centred /= scale.astype(states.dtype)
    covariance = square.astype(np.float64) / (len(states) * np.outer(scale, scale))
    active = max(int((np.diag(covariance) > 0.5).sum()), 1)  # units that vary; the others have no part in it
    middle = float(np.trace(covariance)) / active
    noise = active / len(states)
    if shrinkage is not None:
        shares = [shrinkage]
    else:
        shares = [LEAST * noise / (1 + LEAST * noise)]
        if noise > 1 / MANY:
            shares += sorted([noise / (1 + noise), _ledoit_wolf(centred, covariance, active)])
    metrics = tuple(_metric(covariance, share, middle) for share in shares)
    return Basis(centred, mean * size, np.where(still, 1.0, scale * size), metrics)


def _metric(covariance: NDArray[np.float64], share: float, middle: float) -> Metric:
    ridge = max(share / (1 - share) * middle, FLOOR)
    while True:
        shrunk = covariance + ridge * np.eye(len(covariance))
        try:
            factor, _ = cho_factor(shrunk, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:  # rounding made an eigenvalue more negative than that: many units that say the same
            ridge *= 10
        else:
            return Metric(share, ridge, np.tril(factor))


def _ledoit_wolf(standardised: Floats, covariance: NDArray[np.float64], units: int) -> float:
    """Weight a of equal variances against the covariance that comes nearest to the true covariance (section 3.2)."""
    samples = len(standardised)
    square = (covariance**2).sum()
    distance = square - np.trace(covariance) ** 2 / units  # of the covariance from one of equal variances
    fourth = (np.einsum("nh,nh->n", standardised, standardised).astype(np.float64) ** 2).mean()
    noise = (fourth - square) / samples
    return float(np.clip(noise / distance, 0.0, 0.999)) if distance > 0 else 0.0


@final
@dataclass(frozen=True, eq=False)
class ClassProbe:
    """A linear probe that tells K classes apart."""

    weights: NDArray[np.float64]  # (H, K), of standardised states
    offsets: NDArray[np.float64]  # (K,)
    log_priors: NDArray[np.float64]  # (K,), log frequency of the classes among the samples
    sharpness: float  # what logits are multiplied by where they are to say how probable a class is


@final
@dataclass(frozen=True, eq=False)
class ValueProbe:
    """A linear probe that reads a quantity."""

    weights: NDArray[np.float64]  # (H,), of standardised states
    mean: float  # of the quantity among the samples
    variance: float
    sharpness: float  # by which deviations from the mean are multiplied, from 0
    noise: float  # variance that is left then, of left-out samples


def fit_classes(
    base: Basis,
    codes: Sequence[NDArray[np.int64]],
    *,
    calibrated: Sequence[bool] | None = None,
    guesses: Sequence[float] | None = None,
) -> list[ClassProbe]:
    """Linear discriminants of several concepts on the same samples.

    The classifier is ``argmax_k log p_k - |x - m_k|^2 / 2`` in the metric of (1 - a) (W + r I), with W the covariance
    within classes (scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")`` where a is 0).

    Args:
        base: of the states.
        codes: for each concept the class ``(N,)`` of every sample, every one of 0 ... K - 1 at least once.
        calibrated: for which of them to find the sharpness, which is 1 elsewhere; by default for all.
        guesses: where to look for it first, as at the step before; it is the same from anywhere.

    Raises:
        ValueError: when there is not one class for each sample, or a class has no sample.
    """
    if any(code.shape != base.states.shape[:1] for code in codes):
        raise ValueError(
            f"expected a class for each of {len(base.states)} samples, got {[code.shape for code in codes]}"
        )
    counts = [np.bincount(code) for code in codes]
    if not codes or not all(count.all() for count in counts):
        raise ValueError(
            f"classes must be 0 ... K - 1 with samples of each, got {[count.tolist() for count in counts]}"
        )
    columns = np.concatenate(
        [np.eye(len(n), dtype=base.states.dtype)[code] for n, code in zip(counts, codes, strict=True)], 1
    )
    sums = (columns.T @ base.states).astype(np.float64)
    wanted = [len(base.metrics) > 1 or calibrated is None or calibrated[place] for place in range(len(codes))]
    rows = _some_rows(len(base.states)) if any(wanted) else np.empty(0, np.int64)
    sample = base.states[rows]
    best: list[tuple[float, ClassProbe]] = []
    for metric in base.metrics:
        solved, own, begin = metric.solve(sums.T), metric.squared_length(sample), 0
        for place, (count, code) in enumerate(zip(counts, codes, strict=True)):
            part = slice(begin, begin + len(count))
            begin += len(count)
            probe, left = _discriminant(
                metric,
                sums[part] / count[:, None],
                solved[:, part] / count,
                count,
                sample if wanted[place] else None,
                own,
            )
            loss = 0.0
            if left is not None:
                known = count[code[rows]] > 1  # a class of one sample is unknown where that is left out
                logits = _left_out(left, count, code[rows])[known]
                guess = 1.0 if guesses is None else guesses[place]
                sharpness, loss = _sharpest(logits, probe.log_priors, code[rows][known], guess)
                probe = replace(probe, sharpness=sharpness)
            if len(best) == place:
                best.append((loss, probe))
            elif loss < best[place][0]:
                best[place] = loss, probe
    return [probe for _, probe in best]


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """Samples in the metric within classes, from which follows what they would be told if they were left out."""

    toward: NDArray[np.float64]  # (n, K), x' A^-1 m_j, with A the covariance within classes plus r I
    own: NDArray[np.float64]  # (n,), x' A^-1 x
    lengths: NDArray[np.float64]  # (K, K), m_i' A^-1 m_j
    kept: float  # 1 - a, by which A is multiplied in the classifier


def _discriminant(
    metric: Metric,
    means: NDArray[np.float64],
    toward: NDArray[np.float64],
    count: NDArray[np.int64],
    sample: Floats | None,
    own: NDArray[np.float64],
) -> tuple[ClassProbe, _Seen | None]:
    """The classifier from the means of the classes ``(K, H)`` and (S + r I)^-1 times them, not calibrated yet.

    Args:
        metric: r.
        means: of the classes.
        toward: ``(H, K)``.
        count: samples in each class.
        sample: some samples ``(n, H)`` to be seen as if they were left out; or None.
        own: their squared lengths in the metric of all states.
    """
    priors, kept, unit = count / count.sum(), 1 - metric.shrinkage, np.eye(len(count))
    between = means @ toward
    between = (between + between.T) / 2
    weights = toward @ np.linalg.inv(unit - priors[:, None] * between)  # (W + r I)^-1 m'
    lengths = means @ weights
    probe = ClassProbe(weights / kept, -np.diag(lengths) / (2 * kept), np.log(priors), 1.0)
    if sample is None:
        return probe, None
    seen = (sample @ weights.astype(sample.dtype)).astype(np.float64)
    first = seen @ (unit - priors[:, None] * between)  # before the correction by the means
    return probe, _Seen(seen, own + np.einsum("nk,k,nk->n", seen, priors, first), lengths, kept)


def _some_rows(samples: int) -> NDArray[np.int64]:
    """Always the same, and no even spacing, which periodic labels could be in step with."""
    return np.sort(np.random.default_rng(0).permutation(samples)[:CALIBRATED])


def _left_out(seen: _Seen, count: NDArray[np.int64], code: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits ``(n, K)`` without priors that each sample would get from a probe fitted to all others, up to order 1/N.

    Taking a sample out moves the mean of its class and takes a matrix of rank one from the covariance (Sherman and
    Morrison). A class of this sample alone is taken to be as it is.

    Args:
        seen: the samples.
        count: samples in each class.
        code: their class.
    """
    everyone, n = np.arange(len(code)), np.maximum(count[code], 2).astype(np.float64)
    of_own = seen.toward[everyone, code]
    squares = seen.own[:, None] - 2 * seen.toward + np.diag(seen.lengths)  # |x - m_j|^2
    products = seen.own[:, None] - of_own[:, None] - seen.toward + seen.lengths[code]  # (x - m_j)' A^-1 (x - m_own)
    weight = n / (n - 1) / (count.sum() - 1)
    lost = squares[everyone, code]
    growth = weight / np.maximum(1 - weight * lost, 1e-3)
    squares = squares + growth[:, None] * products**2
    squares[everyone, code] = (n / (n - 1)) ** 2 * (lost + growth * lost**2)
    logits: NDArray[np.float64] = -squares / (2 * seen.kept)
    return logits


def best_sharpness(logits: NDArray[np.float64], log_priors: NDArray[np.float64], code: NDArray[np.int64]) -> float:
    """The b in [0, 20] for which ``softmax(log_priors + b logits)`` gives these classes the least cross-entropy.

    The function is convex in b: Newton's method, and where that would leave the interval in which the minimum lies, its
    geometric mean.
    """
    return _sharpest(logits, log_priors, code)[0]


def _sharpest(
    logits: NDArray[np.float64], log_priors: NDArray[np.float64], code: NDArray[np.int64], guess: float = 1.0
) -> tuple[float, float]:
    """The best sharpness, and the cross-entropy in nats that is left with it."""
    deviation = logits - logits[np.arange(len(code)), code][:, None]
    size = float(np.abs(deviation).mean()) if len(code) else 0.0
    if size == 0:
        return 1.0, float(-log_priors[code].mean()) if len(code) else 0.0
    # Classes along the first axis, single precision: sums over classes are then ten times as fast.
    scaled = np.ascontiguousarray((deviation / size).T, dtype=np.float32)
    priors = log_priors.astype(np.float32)[:, None]
    low, limit = 0.0, SHARPEST * size
    high = limit
    usual = np.exp(log_priors, dtype=np.float64) @ scaled  # the slope at 0 of each sample
    sharpness = min(max(guess, 0.05) * size, high) if float(usual.mean()) < 0 else 0.0
    for _ in range(25 if sharpness else 0):
        slope, bend = _slope(scaled, priors, sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        moved = sharpness - slope / max(bend, 1e-12)
        if moved > high and sharpness < high == limit:
            moved = limit
        elif not low <= moved <= high:
            moved = float(np.sqrt(max(low, 1e-3 * high) * high))
        done = abs(moved - sharpness) < 1e-2 * sharpness  # the next of Newton's steps would be its square
        sharpness = moved
        if done:
            break
    exponents = scaled * np.float32(sharpness) + priors
    top = exponents.max(0)
    loss = (np.log(np.exp(exponents - top).sum(0)) + top).mean(dtype=np.float64) - log_priors[code].mean()
    return sharpness / size, float(loss)


def _slope(scaled: NDArray[np.float32], priors: NDArray[np.float32], sharpness: float) -> tuple[float, float]:
    """First and second derivative of the cross-entropy by the sharpness."""
    p = scaled * np.float32(sharpness)
    p += priors
    p -= p.max(0)
    np.exp(p, out=p)
    p /= p.sum(0)
    p *= scaled
    expected = p.sum(0)
    p *= scaled
    return float(expected.mean(dtype=np.float64)), float((p.sum(0) - expected**2).mean(dtype=np.float64))


def fit_values(base: Basis, values: Sequence[NDArray[np.float64]]) -> list[ValueProbe]:
    """Ridge regressions of several quantities on the same samples (``Ridge(alpha=N r)`` on standardised states).

    Args:
        base: of the states.
        values: for each concept the value ``(N,)`` of every sample.

    Raises:
        ValueError: when there is not one finite value for each sample.
    """
    samples = len(base.states)
    if not values or any(value.shape != (samples,) or not np.isfinite(value).all() for value in values):
        raise ValueError(f"expected a finite value for each of {samples} samples, got {[v.shape for v in values]}")
    targets = np.stack(values, 1)
    means = targets.mean(0)
    centred = targets - means
    spread = centred.std(0)  # in units of which all is well within single precision
    spread[spread == 0] = 1.0
    centred /= spread
    products = (base.states.T @ centred.astype(base.states.dtype)).astype(np.float64) / samples
    rows = _some_rows(samples)
    sample = base.states[rows]
    best: list[ValueProbe] = []
    for metric in base.metrics:
        weights = metric.solve(products)
        leverage = metric.squared_length(sample) / samples + 1 / samples  # of each sample on its own prediction
        fitted = (sample @ weights.astype(sample.dtype)).astype(np.float64)
        for column in range(len(values)):
            truth = centred[rows, column]
            # What a regression on all other samples says of each: residual / (1 - leverage) from the truth.
            told = truth - (truth - fitted[:, column]) / np.maximum(1 - leverage, 1e-3)
            variance = float(centred[:, column] @ centred[:, column] / samples * spread[column] ** 2)
            sharpness, lost = best_slope(told, truth)
            own = weights[:, column] * spread[column]
            probe = ValueProbe(own, float(means[column]), variance, sharpness, max(lost, 1e-12) * variance)
            if len(best) == column:
                best.append(probe)
            elif probe.noise < best[column].noise:
                best[column] = probe
    return best


def best_slope(told: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """By what to multiply deviations that were told, from 0, and the share of the true ones' square that is left then.

    A share, since a few outliers may lie outside of these samples and still in the variance of all.
    """
    power, square = float(told @ told), float(truth @ truth)
    slope = max(float(told @ truth) / power, 0.0) if power > 0 else 0.0
    left = truth - slope * told
    return slope, float(left @ left / square) if slope and square else 1.0
