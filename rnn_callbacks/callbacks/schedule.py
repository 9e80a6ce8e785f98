"""Which looks are due, given what they cost: watching must not become what the run does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

NUMBERS, PICTURES = 0.35, 0.5  # of the share that looking may take; the first and the last look need the rest


@final
@dataclass
class _Cost:
    """Seconds spent on one kind of work, and what the next piece of it may take."""

    spent: float = 0.0
    free: float = 0.0  # the first piece warms up caches and is always due: a short run has its budget for the rest
    expected: float | None = None

    def add(self, seconds: float) -> None:
        self.spent += seconds
        if self.expected is None:
            self.free, self.expected = seconds, seconds
        else:
            self.expected = max(seconds, self.expected / 2)  # what an unusually dear piece took is soon forgotten

    def fits(self, budget: float) -> bool:
        # The first piece says little about the second, so the second only needs half of it.
        return self.expected is None or self.spent - self.free + self.expected / 2 <= budget


@final
@dataclass
class Schedule:
    """Decides by epoch where a period is given, else by the share of the training time that looking has taken.

    Args:
        every_n_epochs: fixed period of looks, or None.
        figure_every_n_epochs: fixed period of pictures, or None.
        max_overhead: share of the training time, a good third of it for numbers and half of it for pictures.
        clock: seconds.
    """

    every_n_epochs: int | None
    figure_every_n_epochs: int | None
    max_overhead: float
    clock: Callable[[], float] = time.perf_counter
    numbers: _Cost = field(default_factory=_Cost)
    figures: _Cost = field(default_factory=_Cost)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Training begins now."""
        self._begin = self.clock()

    @property
    def training_seconds(self) -> float:
        """Time since the start that was not spent looking."""
        return max(self.clock() - self._begin - self.numbers.spent - self.figures.spent, 1e-9)

    def overhead(self, seconds: float = 0.0) -> float:
        """Seconds spent looking per second of training, with those of the present look."""
        spent = self.numbers.spent + self.figures.spent + seconds
        return spent / max(self.training_seconds - seconds, 1e-9)

    def wants_epoch(self, epoch: int) -> bool:
        """Whether a fixed period allows a look at this epoch (from 0); without one, any epoch may be looked at."""
        return self.every_n_epochs is None or (epoch + 1) % self.every_n_epochs == 0

    def look_is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to look at this epoch; the first and the last look are always due."""
        if self.every_n_epochs is not None:
            return self.wants_epoch(epoch)
        return last or self.numbers.fits(NUMBERS * self.max_overhead * self.training_seconds)

    def figure_is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to draw at this look."""
        if self.figure_every_n_epochs is not None:
            return (epoch + 1) % self.figure_every_n_epochs == 0
        return last or self.figures.fits(PICTURES * self.max_overhead * self.training_seconds)

    def spacing(self, epochs_done: int) -> int:
        """About how many epochs lie between looks."""
        if self.every_n_epochs is not None:
            return self.every_n_epochs
        epoch = self.training_seconds / max(epochs_done, 1)
        return max(1, round((self.numbers.expected or 0.0) / (NUMBERS * self.max_overhead * epoch)))
