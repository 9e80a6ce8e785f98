"""How good the network was at each snapshot: the metric that colours a path and says where it was best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import lightning.pytorch as pl

from .training_loss import TrainingLoss

Mode = Literal["min", "max"]
TRAINING_LOSS = "training loss"


@final
class PathMetric:
    """A metric of the run, or the training loss since the snapshot before.

    Args:
        monitor: its name; by default what another callback monitors, else a validation loss, else the training loss.
        mode: whether less or more is better; by default as the other callback has it, else less.
        within_epochs: whether snapshots are also taken within epochs, where validation says nothing new.
        noun: first segment of our own tags, which say nothing of how good the network is.
        memory: of the same run so far, to go on with.
    """

    def __init__(
        self, monitor: str | None, mode: Mode | None, *, within_epochs: bool, noun: str, memory: Mapping[str, Any]
    ) -> None:
        self._asked = (monitor, mode)
        self._within_epochs = within_epochs
        self._noun = noun
        self._loss = TrainingLoss(*memory.get("loss", ()))
        self.found: tuple[str, Mode] | None = tuple(memory["found"]) if memory.get("found") else None
        self._latest: dict[str, Any] = {}  # metrics at the end of an epoch

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"found": list(self.found or ()), "loss": list(self._loss.settled())}

    @property
    def hears_loss(self) -> bool:
        """Whether the training loss is, or may be, what is wanted."""
        return self.found is None or self.found[0] == TRAINING_LOSS

    def hear(self, outputs: Any) -> None:
        """Take what a training step returned."""
        self._loss.add(outputs)

    def begin_step(self) -> None:
        """A snapshot was taken."""
        self._loss.clear()

    def end_epoch(self, trainer: pl.Trainer) -> None:
        """Read the run's metrics; on all ranks at once, since reading may reduce them over the ranks."""
        self._latest = dict(trainer.callback_metrics)

    @property
    def known(self) -> list[str]:
        """Metrics that the run has logged."""
        return list(self._latest)

    def value(self, trainer: pl.Trainer) -> float | None:
        """Now; None where there is none, or none that is a number."""
        if self.found is None:
            self.found = self._find(trainer)
        if self.found is None:
            return None
        name, _ = self.found
        value = self._loss.mean if name == TRAINING_LOSS else self._latest.get(name)
        number = math.nan if value is None else float(value)
        return number if math.isfinite(number) else None

    def _find(self, trainer: pl.Trainer) -> tuple[str, Mode] | None:
        """Its name and mode; None as long as a validation is to come that may log one."""
        monitor, mode = self._asked
        if monitor is not None:
            return monitor, mode or "min"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name, way = getattr(callback, "monitor", None), getattr(callback, "mode", None)
            if isinstance(name, str) and way in ("min", "max") and not name.startswith(f"{self._noun}/"):
                return name, mode or way
        if not self._within_epochs:
            for name in self._latest:
                if "loss" in name and "val" in name:
                    return name, mode or "min"
            if trainer.enable_validation and trainer.current_epoch + 1 < (trainer.check_val_every_n_epoch or 1):
                return None
        return TRAINING_LOSS, mode or "min"
