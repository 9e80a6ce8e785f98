"""Which looks are due, given what they cost: watching must not become what the run does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

NUMBERS, PICTURES = 0.35, 0.5  # of a callback's share of the time; the first and the last look need the rest
NEVER = 10**6  # epochs


def fair_shares(whole: float, wishes: Sequence[float]) -> list[float]:
    """Divide evenly, but give nobody more than they can use while another can use it; the least demanding come first.

    What all wishes together leave over is divided evenly too.
    """
    shares, left = [0.0] * len(wishes), whole
    for served, index in enumerate(sorted(range(len(wishes)), key=lambda i: wishes[i])):
        shares[index] = min(wishes[index], left / (len(wishes) - served))
        left -= shares[index]
    return [share + left / len(wishes) for share in shares]


@final
@dataclass
class _Cost:
    """Seconds spent on one kind of work, and what the next piece of it may take."""

    spent: float = 0.0
    pieces: float = 0.0  # of it; the rest was spent between them
    free: float = 0.0  # the first piece warms up caches and is always due: a short run has its budget for the rest
    expected: float | None = None

    def add(self, seconds: float) -> None:
        self.spent += seconds
        self.pieces += seconds
        if self.expected is None:
            self.free, self.expected = seconds, seconds
        else:
            self.expected = max(seconds, self.expected / 2)  # what an unusually dear piece took is soon forgotten

    @property
    def between(self) -> float:
        """Seconds spent between pieces: on listening, or at every step."""
        return self.spent - self.pieces

    def fits(self, budget: float) -> bool:
        # The first piece says little about the second, so the second only needs half of it.
        return self.expected is None or self.spent - self.free + self.expected / 2 <= budget


@final
@dataclass(eq=False)
class Schedule:
    """Decides by epoch where a period is given, else by the share of the training time that looking has taken.

    Args:
        every_n_epochs: fixed period of looks, or None.
        figure_every_n_epochs: fixed period of pictures, or None.
        max_overhead: share of the training time that all schedules of a run may take together. Those without a period
            divide it by need; of a schedule's part a good third is for numbers and half of it for pictures.
        clock: seconds.
    """

    every_n_epochs: int | None
    figure_every_n_epochs: int | None
    max_overhead: float
    clock: Callable[[], float] = time.perf_counter
    numbers: _Cost = field(default_factory=_Cost)
    figures: _Cost = field(default_factory=_Cost)

    def __post_init__(self) -> None:
        self._all: Sequence[Schedule] = [self]
        self._first_epoch: int | None = None
        self._epochs = 1
        self.start()

    def start(self) -> None:
        """Training begins now."""
        self._begin = self.clock()

    def share_with(self, schedules: Sequence[Schedule]) -> None:
        """Those of one run, this one among them."""
        self._all = schedules

    @property
    def spent(self) -> float:
        """Seconds of looking."""
        return self.numbers.spent + self.figures.spent

    @property
    def training_seconds(self) -> float:
        """Time since the start in which nobody looked."""
        return max(self.clock() - self._begin - sum(schedule.spent for schedule in self._all), 1e-9)

    def overhead(self, seconds: float = 0.0) -> float:
        """Seconds spent looking per second of training, with those of the present look."""
        return (self.spent + seconds) / max(self.training_seconds - seconds, 1e-9)

    @property
    def share(self) -> float:
        """Of the training time, what looking may take of it."""
        return fair_shares(self.max_overhead, [other._wish for other in self._all])[self._all.index(self)]

    @property
    def _wish(self) -> float:
        """The share that looks and pictures at every epoch would take; infinite before the first."""
        costs = [(self.every_n_epochs, self.numbers, NUMBERS), (self.figure_every_n_epochs, self.figures, PICTURES)]
        wishes = [
            math.inf if cost.expected is None else (cost.expected + cost.between / self._epochs) / part
            for period, cost, part in costs
            if period is None
        ]
        return max(wishes, default=0.0) / self._epoch_seconds

    @property
    def _epoch_seconds(self) -> float:
        return self.training_seconds / self._epochs

    def wants_epoch(self, epoch: int) -> bool:
        """Whether a fixed period allows a look at this epoch (from 0); without one, any epoch may be looked at."""
        return self.every_n_epochs is None or (epoch + 1) % self.every_n_epochs == 0

    def look_is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to look at this epoch; the first and the last look are always due."""
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        self._epochs = max(epoch - self._first_epoch, 0) + 1
        if self.every_n_epochs is not None:
            return self.wants_epoch(epoch)
        return last or self.numbers.fits(NUMBERS * self.share * self.training_seconds)

    def figure_is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to draw at this look."""
        if self.figure_every_n_epochs is not None:
            return (epoch + 1) % self.figure_every_n_epochs == 0
        return last or self.figures.fits(PICTURES * self.share * self.training_seconds)

    @property
    def spacing(self) -> int:
        """About how many epochs lie between looks, as far as is known; `NEVER` where there is no time for any."""
        if self.every_n_epochs is not None:
            return self.every_n_epochs
        left = NUMBERS * self.share * self._epoch_seconds - self.numbers.between / self._epochs  # of each epoch
        return max(1, min(round((self.numbers.expected or 0.0) / left), NEVER)) if left > 0 else NEVER
