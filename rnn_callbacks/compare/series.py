"""One number of a run over the course of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

Axis = Literal["epoch", "step", "time"]
AXES: tuple[Axis, ...] = ("epoch", "step", "time")


@final
@dataclass(frozen=True, eq=False)
class Series:
    """Values in order of steps, one for each step."""

    steps: NDArray[np.int64]  # (n,), increasing
    values: NDArray[np.float64]  # (n,)
    walls: NDArray[np.float64]  # (n,), seconds since 1970; NaN where unknown
    epochs: NDArray[np.float64]  # (n,), counted from 0 as Lightning does; NaN where unknown

    def on(self, axis: Axis, start: float = np.nan) -> NDArray[np.float64]:
        """Horizontal positions ``(n,)``: epochs, steps, or seconds since a start."""
        if axis == "epoch":
            return self.epochs
        return self.steps.astype(np.float64) if axis == "step" else self.walls - start

    def at(self, place: float, axis: Axis = "epoch", start: float = np.nan) -> float:
        """The last finite value at or before a place on an axis; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            known = np.flatnonzero((self.on(axis, start) <= place) & np.isfinite(self.values))
        return float(self.values[known[-1]]) if len(known) else np.nan

    @property
    def last(self) -> float:
        """The last finite value; NaN where there is none."""
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if len(known) else np.nan


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of a number of things, evenly chosen, with the first and the last: ``(n,)``, increasing."""
    found: NDArray[np.int64] = np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64))
    return found


def joined(parts: Sequence[Series]) -> Series:
    """Series of one number from several sources; where two have the same step, the later source counts.

    Within a source a step that was written twice has the value written last.
    """
    steps, values, walls, epochs = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("steps", "values", "walls", "epochs")
    )
    backwards, first = np.unique(steps[::-1], return_index=True)
    kept = len(steps) - 1 - first
    return Series(backwards, values[kept], walls[kept], epochs[kept])


def epochs_of(steps: NDArray[np.int64], known: Series | None) -> NDArray[np.float64]:
    """The epoch of each step, from the values that Lightning logs as ``epoch``; NaN without them.

    A step between two that are known belongs to the later one's epoch, as numbers of an epoch are logged at its end.
    """
    if known is None or not len(known.steps):
        return np.full(len(steps), np.nan)
    places = np.searchsorted(known.steps, steps).clip(max=len(known.steps) - 1)
    found: NDArray[np.float64] = known.values[places]
    return found
