"""Plain words for the path of the weights. A flag describes what was seen; whether it is a fault, the task decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .gate_flags import Flag, check_names
from .gradient_flags import listed
from .weight_trajectory import WeightTrajectory

WINDOW = 5  # steps whose turning is averaged
LATE = 10  # steps, at least, over which it is judged whether the path still leads anywhere


@final
@dataclass(frozen=True)
class _Rule:
    threshold: float
    meaning: str  # of {value}, {steps}, {names}


RULES: dict[str, _Rule] = {
    "unmoved": _Rule(
        0.0,
        "trainable, and have not moved at all: {names}. Left out of the optimizer, not used in the loss, or cut off by "
        "a detach()? requires_grad_(False) says that this is meant.",
    ),
    "oscillating": _Rule(
        -0.6,  # places drawn by chance around one point have -0.5
        "the last {steps} steps turned back on one another (mean cosine {value:.2f}): the weights swing to and fro "
        "instead of going somewhere. Lower the learning rate.",
    ),
    "wandering": _Rule(
        1.0,
        "over the last {steps} steps the weights came no further than a random walk would ({value:.2f} times as far): "
        "there is no direction in which they still go. At the end of training that is usual; while the loss should "
        "still fall, lower the learning rate or take larger batches.",
    ),
}
_NOTHING = "no weight has moved at all: is the learning rate 0, or no optimizer stepping?"
QUIET = ("wandering",)  # explained, but no cause for a warning: a run that has arrived wanders


def check_flags(thresholds: Mapping[str, float | None]) -> None:
    """Refuse thresholds of rules that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number, or the cosine no cosine.
    """
    check_names(thresholds, RULES)
    limit = thresholds.get("oscillating")
    if limit is not None and not -1 <= limit <= 1:
        raise ValueError(f"flags: the threshold of 'oscillating' is a cosine, from -1 to 1, got {limit!r}")


def path_flags(path: WeightTrajectory, thresholds: Mapping[str, float | None]) -> tuple[Flag, ...]:
    """Whether a path still leads somewhere; neither is raised before there are steps enough to judge."""
    found = []
    limit = _threshold("oscillating", thresholds)
    if limit is not None:
        turns = path.steps.cosines[-WINDOW:]
        value = float(turns.mean()) if len(turns) == WINDOW else 0.0
        words = RULES["oscillating"].meaning.format(value=value, steps=WINDOW + 1)
        found.append(Flag("oscillating", value, limit, len(turns) == WINDOW and value < limit, words))
    limit = _threshold("wandering", thresholds)
    if limit is not None:
        points = path.steps.points  # of a long path not every snapshot, so that there may be more steps than LATE
        since = max(int(np.searchsorted(points, points[-1] - LATE, side="right")) - 1, 0)
        squares = path.steps.squares[points[since] :]
        walked = float(np.sqrt(squares.sum())) if len(squares) >= LATE else 0.0
        value = float(path.distances[-1, since]) / walked if walked > 0 else 0.0
        words = RULES["wandering"].meaning.format(value=value, steps=len(squares))
        found.append(Flag("wandering", value, limit, walked > 0 and value < limit, words))
    return tuple(found)


def unmoved_flag(
    unmoved: Sequence[str], thresholds: Mapping[str, float | None], *, nothing_moved: bool = False
) -> Flag | None:
    """Whether trainable parameters have not moved at all, by name; None where that was switched off."""
    limit = _threshold("unmoved", thresholds)
    if limit is None:
        return None
    words = _NOTHING if nothing_moved else RULES["unmoved"].meaning.format(names=listed(unmoved))
    return Flag("unmoved", float(len(unmoved)), limit, len(unmoved) > limit, words)


def _threshold(name: str, thresholds: Mapping[str, float | None]) -> float | None:
    return thresholds.get(name, RULES[name].threshold)
