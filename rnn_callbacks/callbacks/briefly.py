"""What a callback does at every step of the training, between its looks."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:  # which makes one
    from .base import EpochCallback


@final
class Briefly:
    """For what a callback does at every step: its time is counted, and a fault goes where faults of looks go."""

    def __init__(self, owner: EpochCallback) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._owner._schedule.numbers.spent += time.perf_counter() - self._begin
        return self._owner._guard.__exit__(kind, error, trace)
