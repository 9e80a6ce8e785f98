"""Linear probes by logistic regression, for where the discriminant in closed form says too little.

A discriminant is right where every class is a Gaussian cloud of one shape. Logistic regression needs no such thing, but
has no closed form. From the discriminant, in coordinates in which the loss is about equally curved in all directions,
some twenty evaluations come as near to the minimum as a probe needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from .discriminant import FLOOR, Basis, ClassProbe, Floats, best_sharpness

JUDGES = 6  # one sample in so many is left out until the sharpness is known
EARLY = 0.7  # share of the evaluations before that
TEMPERED = 256  # samples by which the start is scaled
HALVINGS = 12  # of the start, at most
FLATTEST = 1e-6  # least mean curvature of the cross-entropy by the logits; the largest is 1/4
MEMORY = 10  # steps from which curvature is estimated
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Nocedal and Wright 2006, section 3.1)

Point = NDArray[np.float64]
Loss = Callable[[Point], tuple[float, Point]]


def fit_logistic(
    base: Basis,
    codes: NDArray[np.int64],
    *,
    start: ClassProbe,
    evaluations: int = 20,
    penalty: float = 1.0,
    groups: NDArray[np.int64] | None = None,
    tolerance: float = 5e-4,
) -> ClassProbe:
    """The linear probe of least cross-entropy, nearly.

    The loss is that of scikit-learn's ``LogisticRegression(C=1 / penalty)`` on the standardised states: the sum of the
    cross-entropies and ``penalty / 2`` times the squared weights (for two classes, of the difference of their weights).
    The sharpness comes from a sixth of the samples, left out of the first evaluations; the others go on from there with
    all samples. It is 0 where no sample can be left out.

    Args:
        base: of the states.
        codes: class ``(N,)`` of every sample, every one of 0 ... K - 1 at least once.
        start: discriminant of the same classes, with its sharpness.
        evaluations: of loss and gradient, at most.
        penalty: on the weights, above 0.
        groups: the sequence ``(N,)`` that each sample belongs to; samples of one sequence are left out together.
        tolerance: in nats per sample; a step that promises less is not taken (tenths of a percent of accuracy at most).

    Raises:
        ValueError: when sizes do not match, evaluations are fewer than two or the penalty is not positive.
    """
    _check(base, codes, start, evaluations, penalty, groups)
    per_sample = penalty * (2 if len(start.log_priors) == 2 else 1) / len(codes)
    coordinates = _coordinates(base, codes, start, per_sample)
    left = _left_out(codes, codes if groups is None else groups, grouped=groups is not None)
    descent, used, sharpness = Descent(coordinates.start, (), 0), 0, 0.0
    if left.any():
        loss = _loss(base.states[~left], codes[~left], coordinates, per_sample * len(codes) / (~left).sum())
        descent = descend(loss, descent, round(EARLY * evaluations), tolerance)
        used = descent.evaluations
        weights, offsets = coordinates.probe(descent.point)
        unseen = base.states[left] @ weights.T.astype(base.states.dtype) + (offsets - start.log_priors)
        sharpness = best_sharpness(unseen.astype(np.float64), start.log_priors, codes[left])
    loss = _loss(base.states, codes, coordinates, per_sample)
    descent = descend(loss, descent, evaluations - used, tolerance)
    weights, offsets = coordinates.probe(descent.point)
    return ClassProbe(weights.T, offsets - start.log_priors, start.log_priors, sharpness)


def _check(
    base: Basis,
    codes: NDArray[np.int64],
    start: ClassProbe,
    evaluations: int,
    penalty: float,
    groups: NDArray[np.int64] | None,
) -> None:
    samples, units = base.states.shape
    if codes.shape != (samples,):
        raise ValueError(f"codes must be ({samples},) like the states of the base, got shape {codes.shape}")
    if groups is not None and groups.shape != (samples,):
        raise ValueError(f"groups must be ({samples},) like the states of the base, got shape {groups.shape}")
    counts = np.bincount(codes)
    if start.weights.shape != (units, len(counts)):
        raise ValueError(f"start must have weights ({units}, {len(counts)}), got shape {start.weights.shape}")
    if evaluations < 2:
        raise ValueError(f"evaluations must be at least 2, got {evaluations}")
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")


def _left_out(codes: NDArray[np.int64], groups: NDArray[np.int64], *, grouped: bool) -> NDArray[np.bool_]:
    """About a sixth of the samples ``(N,)``, spread over the classes: whole groups, but of no class all samples."""
    first, group = np.arange(len(codes)), np.arange(len(codes))
    if grouped:
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    chosen = np.zeros(len(first), bool)
    chosen[np.argsort(codes[first], kind="stable")[JUDGES // 2 :: JUDGES]] = True
    left = chosen[group]
    kept = np.bincount(codes[~left], minlength=codes.max() + 1)
    return np.asarray(left & (kept[codes] > 0))


@final
@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates ``(K, H + 1)`` in which the loss curves about as 1 in every direction."""

    turn: NDArray[np.float64]  # (H, H), weights (K, H) are coordinates times this
    stretch: float  # offsets are the last coordinate times this
    start: Point  # (K, H + 1)

    def probe(self, point: Point) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights ``(K, H)`` and offsets ``(K,)``."""
        return point[:, :-1] @ self.turn, point[:, -1] * self.stretch


def _coordinates(base: Basis, codes: NDArray[np.int64], start: ClassProbe, penalty: float) -> Coordinates:
    """From the curvature h S + penalty of the loss, with h the mean of p (1 - p) at the start.

    One h for each class makes them no better: of 45 probes it helped a third and harmed a third.
    """
    weights, rows = start.weights.T.astype(base.states.dtype), slice(None, None, max(len(codes) // TEMPERED, 1))
    logits = weights @ base.states[rows].T + start.offsets.astype(weights.dtype)[:, None]
    scale = _tempered(logits, codes[rows], start, penalty)
    _, _, p = _softmax(scale * logits + start.log_priors.astype(weights.dtype)[:, None], codes[rows])
    h = max(float((p * (1 - p)).mean(dtype=np.float64)), FLATTEST)
    curvature = base.metrics[0].factor @ base.metrics[0].factor.T
    curvature[np.diag_indices_from(curvature)] += max(penalty / h, FLOOR) - base.metrics[0].ridge
    factor = np.sqrt(h) * cholesky(curvature, lower=True, check_finite=False)
    turn = solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False)
    stretch = 1 / np.sqrt(h)
    offsets = (start.log_priors + scale * start.offsets) / stretch
    return Coordinates(turn, stretch, np.concatenate([scale * start.weights.T @ factor, offsets[:, None]], 1))


def _tempered(logits: Floats, codes: NDArray[np.int64], start: ClassProbe, penalty: float) -> float:
    """The sharpness, halved for as long as that makes the loss less.

    The weights of a discriminant of classes far apart are so long that the penalty is most of the loss: without this,
    it was 2 nats above its minimum after 20 evaluations at worst, with it 0.01.
    """
    square, scale, least = float((start.weights**2).sum()), start.sharpness, np.inf
    log_priors = start.log_priors.astype(logits.dtype)[:, None]
    for _ in range(HALVINGS):
        total, own, _ = _softmax(scale * logits + log_priors, codes)
        loss = float((np.log(total) - own).mean(dtype=np.float64)) + penalty / 2 * scale**2 * square
        if loss >= least:
            return 2 * scale
        least, scale = loss, scale / 2
    return scale


def _softmax(logits: Floats, codes: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Sum of the exponentials and logit of the true class ``(N,)``, up to one addend, and probabilities ``(K, N)``."""
    logits -= logits.max(0)
    own = logits[codes, np.arange(len(codes))]
    np.exp(logits, out=logits)
    total = logits.sum(0)
    logits /= total
    return total, own, logits


def _loss(states: Floats, codes: NDArray[np.int64], coordinates: Coordinates, penalty: float) -> Loss:
    """Mean cross-entropy and penalty of the weights, with the gradient by the coordinates."""
    columns, everyone, kind = np.ascontiguousarray(states.T), np.arange(len(codes)), states.dtype

    def loss(point: Point) -> tuple[float, Point]:
        weights, offsets = coordinates.probe(point)
        logits = weights.astype(kind) @ columns
        logits += offsets.astype(kind)[:, None]
        total, own, p = _softmax(logits, codes)
        value = float((np.log(total) - own).mean(dtype=np.float64)) + penalty / 2 * float(np.vdot(weights, weights))
        p[codes, everyone] -= 1
        by_weights = (p @ states).astype(np.float64) / len(codes) + penalty * weights
        by_offsets = p.mean(1, dtype=np.float64) * coordinates.stretch
        return value, np.concatenate([by_weights @ coordinates.turn.T, by_offsets[:, None]], 1)

    return loss


@final
@dataclass(frozen=True, eq=False)
class Descent:
    """Where a descent came to."""

    point: Point
    steps: Sequence[tuple[Point, Point]]  # the last ones, each with the change of the gradient
    evaluations: int  # that it took


def descend(loss: Loss, start: Descent, evaluations: int, tolerance: float) -> Descent:
    """Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.5) that never evaluates more than it may.

    The first step has length 1, as fits coordinates of curvature 1, where a library's has norm 1. A step that had to be
    shortened shortens the next ones: of rare classes the curvature changes along the way, and every failure costs an
    evaluation.
    """
    point, steps = start.point, list(start.steps)
    value, gradient = loss(point)
    used, length = 1, 1.0
    while used < evaluations:
        direction = _direction(gradient, steps)
        slope = float(np.vdot(gradient, direction))
        if -slope / 2 <= tolerance:
            break
        there, (value_there, gradient_there) = point + length * direction, loss(point + length * direction)
        used += 1
        if not value_there <= value + SUFFICIENT * length * slope:
            parabola = -slope * length**2 / 2 / (value_there - value - length * slope)
            length = float(np.clip(parabola, length / 10, length / 2))
            continue
        step, change = there - point, gradient_there - gradient
        if np.vdot(step, change) > 1e-10 * np.vdot(change, change):
            steps = [*steps, (step, change)][-MEMORY:]
        point, value, gradient, length = there, value_there, gradient_there, min(2 * length, 1.0)
    return Descent(point, steps, used)


def _direction(gradient: Point, steps: Sequence[tuple[Point, Point]]) -> Point:
    """Minus the gradient times the inverse curvature that the steps suggest."""
    turned, shares = -gradient, []
    for step, change in reversed(steps):
        shares.append(np.vdot(step, turned) / np.vdot(step, change))
        turned = turned - shares[-1] * change
    if steps:
        step, change = steps[-1]
        turned = turned * (np.vdot(step, change) / np.vdot(change, change))
    for (step, change), share in zip(steps, reversed(shares), strict=True):
        turned = turned + step * (share - np.vdot(change, turned) / np.vdot(step, change))
    return turned
