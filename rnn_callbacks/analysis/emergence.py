"""When in training a concept became readable, and whether it was lost again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from .probe_findings import Course

HALF = 0.5  # of the final gain
NEVER = -1.0


@final
@dataclass(frozen=True, eq=False)
class Emergence:
    """The course of one concept at one site in a few numbers."""

    epoch: (
        float  # at which half of the final gain was passed, between looks by a straight line; -1 if nothing was gained
    )
    looks: tuple[float, float]  # epochs of the looks before and after that, which is all that is known; both -1 if none
    gain: float  # bits of V-information over the untrained network's (or none, where that is unknown), at the last look
    peak: float  # most bits ever read, before training or at a look whose interval lies above the last one's
    last: float  # bits at the last look

    @property
    def lost(self) -> float:
        """Share of the peak that is gone, in [0, 1]."""
        return float(np.clip(1 - self.last / self.peak, 0, 1)) if self.peak > 0 else 0.0


def emergence(course: Course) -> Emergence:
    """Read a course.

    The final gain counts only where the last look's interval lies above what the untrained network gives; what moves
    within its own uncertainty has not emerged.

    Raises:
        ValueError: when there is no look.
    """
    if not course.epochs:
        raise ValueError("emergence needs at least one look")
    bits = np.nan_to_num(course["bits"])
    untrained = float(np.nan_to_num(course["untrained_bits"])[-1])
    start = max(untrained, 0.0)
    gain = bits[-1] - start
    epoch, between = NEVER, (NEVER, NEVER)
    if course["bits_low"][-1] > start and gain > 0:
        epochs = np.array(course.epochs, dtype=np.float64)
        epoch = _crossing(epochs, bits - start, HALF * gain)
        between = float(epochs[epochs <= epoch].max()), float(epochs[epochs >= epoch].min())
    lows, highs = course["bits_low"], course["bits_high"]
    above = [bits[look] for look in range(len(bits)) if lows[look] > highs[-1]]
    peak = max(bits[-1], *above, untrained if untrained > highs[-1] else bits[-1])
    return Emergence(epoch, between, float(gain), float(peak), float(bits[-1]))


def _crossing(epochs: NDArray[np.float64], gains: NDArray[np.float64], level: float) -> float:
    """Where a course passes a level for good: after its last look below it."""
    below = np.flatnonzero(gains < level)
    if not len(below):
        return float(epochs[0])
    before = below[-1]
    after = before + 1
    share = (level - gains[before]) / (gains[after] - gains[before])
    return float(epochs[before] + share * (epochs[after] - epochs[before]))
