"""Plain words for what gradients show. A flag describes what was seen; whether it is a fault, the task decides.

A short horizon alone is no flag: a fresh network has one, a task may need no more, and a network that holds bits in
attractors contracts *because* it works. What tells is a horizon that never was longer while the loss does not fall.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .gate_flags import Flag, check_names
from .gradient_flow import GradientFlow
from .gradient_norms import ABSENT, GradientNorms

EPOCHS = 5  # before it can be said that something has not come about
FALLEN = 0.2  # of the first loss: below, the network learns, whatever its horizon; adding without memory stays at 0.4
SHORTEST = 10  # steps; in shorter sequences every step is near
SKIPPED = 0.1  # share of steps that a gradient scaler may well skip while it finds its scale


@final
@dataclass(frozen=True)
class _Rule:
    threshold: float
    meaning: str  # of {value} and, for cells, {horizon}, {length} and {loss}


RULES: dict[str, _Rule] = {
    "vanishing": _Rule(
        0.1,
        "at best so far, credit fell by a factor e every {horizon:.1f} of {length:.0f} time steps{loss}: what the task "
        "needs from further back is not being learned. Try a larger forget-gate bias (LSTM; log(T) reaches back T "
        "steps), a GRU or an LSTM in place of a plain RNN, an orthogonal recurrent matrix, or shorter sequences first.",
    ),
    "exploding": _Rule(
        100.0,  # healthy networks reached 6: digits, flip-flops, adding; GRU, LSTM, RNN
        "the gradient of a single step grows {value:.3g} times on its way back: updates are ruled by a few sequences "
        "and far steps. Clip the gradient norm, lower the learning rate, or start with smaller recurrent weights.",
    ),
    "clipped": _Rule(
        0.5,
        "{value:.0%} of the epoch's steps were clipped: the clipping limit, not the learning rate, sets the step "
        "length. Raise gradient_clip_val to the usual norm (tag total/norm) or lower the learning rate.",
    ),
    "non_finite": _Rule(
        0.0,
        "{value:.1%} of the epoch's steps had NaN or infinite gradients. Look at the inputs and the loss first, then "
        "at the learning rate and at half precision.",
    ),
    "dead": _Rule(
        1.0,
        "no step of the epoch gave a gradient other than zero to {names}: not used in the loss, or cut "
        "off by a detach(), or by units that never fire? (A bidirectional layer of which only the last step is used "
        "never trains its reverse recurrence.) requires_grad_(False) says that this is meant.",
    ),
}

NAMED = 5  # parameters in one message
QUIET = ("clipped",)  # explained, but no cause for a warning: with Adam many healthy networks train so


def check_flags(thresholds: Mapping[str, float | None]) -> None:
    """Refuse thresholds of rules that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    check_names(thresholds, RULES)
    for name, value in thresholds.items():
        if value is not None and name != "exploding" and not 0 <= value <= 1:
            raise ValueError(f"flags: the threshold of {name!r} is a share, from 0 to 1, got {value!r}")


@final
@dataclass(frozen=True)
class SoFar:
    """What earlier looks of a run have shown."""

    epochs: int  # with the present one
    best_horizon: float  # of the cell, the longest in any look with the present one
    loss: float | None = None  # mean of the training loss now, in units of that of the first look


def flow_flags(flow: GradientFlow, so_far: SoFar, thresholds: Mapping[str, float | None]) -> tuple[Flag, ...]:
    """Vanishing and exploding gradients of one cell."""
    length = float(np.median(flow.lengths))
    share = so_far.best_horizon / length
    learns = so_far.loss is not None and so_far.loss < FALLEN
    heard = len(flow.credit) > 1
    judged = so_far.epochs >= EPOCHS and length >= SHORTEST and heard and not learns
    found = []
    limit = _threshold("vanishing", thresholds)
    if limit is not None:
        loss = "" if so_far.loss is None else f", and the loss is still at {so_far.loss:.0%} of its first value"
        words = RULES["vanishing"].meaning.format(horizon=so_far.best_horizon, length=length, loss=loss)
        found.append(Flag("vanishing", share, limit, judged and share < limit, words))
    limit = _threshold("exploding", thresholds)
    if limit is not None:
        grown = float(np.exp(min(flow.credit.max(), 700.0)))
        found.append(Flag("exploding", grown, limit, grown >= limit, RULES["exploding"].meaning.format(value=grown)))
    return tuple(found)


def norm_flags(
    norms: GradientNorms, thresholds: Mapping[str, float | None], *, looks: int, scaled: bool = False
) -> tuple[Flag, ...]:
    """Clipping and numbers that are none, over the steps of an epoch.

    Args:
        norms: of the steps.
        thresholds: other thresholds; None switches a rule off.
        looks: with the present one; clipping at the very start is what clipping is for.
        scaled: whether a gradient scaler skips steps that overflow, as half precision needs.
    """
    clipped, broken = float(norms.was_clipped.mean()), float(1 - norms.finite.mean())
    found = []
    limit = _threshold("clipped", thresholds)
    if limit is not None:
        words = RULES["clipped"].meaning.format(value=clipped)
        found.append(Flag("clipped", clipped, limit, looks > 1 and clipped > limit, words))
    limit = _threshold("non_finite", thresholds)
    if limit is not None:
        limit = max(limit, SKIPPED) if scaled and "non_finite" not in thresholds else limit
        words = RULES["non_finite"].meaning.format(value=broken)
        found.append(Flag("non_finite", broken, limit, broken > limit, words))
    return tuple(found)


def dead_parameters(
    norms: GradientNorms, thresholds: Mapping[str, float | None], names: Collection[str]
) -> tuple[Flag, tuple[str, ...]] | None:
    """Whether some parameter's gradient was zero, or none, at nearly every step, and which; None if switched off.

    Args:
        norms: of the steps.
        thresholds: other thresholds.
        names: of the parameters that are to learn.
    """
    limit = _threshold("dead", thresholds)
    if limit is None:
        return None
    idle = ((norms.norm == 0) | (norms.norm == ABSENT)).mean(0)
    shares = {name: float(share) for name, share in zip(norms.parameters, idle, strict=True) if name in names}
    dead = tuple(name for name, share in shares.items() if share >= limit)
    words = RULES["dead"].meaning.format(names=listed(dead))
    return Flag("dead", max(shares.values(), default=0.0), limit, bool(dead), words), dead


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _threshold(name: str, thresholds: Mapping[str, float | None]) -> float | None:
    return thresholds.get(name, RULES[name].threshold)
