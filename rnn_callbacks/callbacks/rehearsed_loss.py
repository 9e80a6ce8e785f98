"""The model's own validation loss, once more, on a copy of the model that was changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import lightning.pytorch as pl
import torch
from torch import Tensor

from .look import Look, rehearsal


@final
@dataclass(frozen=True, eq=False)
class HeardBatch:
    """A validation batch, as ``validation_step`` was given it."""

    batch: Any
    batch_idx: int
    dataloader_idx: int


@final
class HeardBatches:
    """The first batches of a validation, and the model that read them: averaged weights may be gone before the look."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.list: list[HeardBatch] = []
        self._model: pl.LightningModule | None = None

    def __len__(self) -> int:
        return len(self.list)

    def keep_model(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """To be called before each batch; the first one's is kept."""
        if len(self) == 1 and self._model is None and trainer.is_global_zero and not trainer.sanity_checking:
            self._model = rehearsal(pl_module)

    def of(self, look: Look) -> Look:
        """The look at that model."""
        return look if self._model is None else replace(look, pl_module=self._model)


def validation_loss(
    trainer: pl.Trainer, model: pl.LightningModule, batches: list[HeardBatch], *, setting: str
) -> float:
    """Mean over batches of what ``validation_step`` returns, or else of what it logs with *loss* in its name.

    Args:
        trainer: whose precision and loaders the batches came with.
        model: a `rehearsal`.
        batches: at least one.
        setting: what asks for the loss, for the message.

    Raises:
        RuntimeError: when ``validation_step`` does neither.
    """
    logged: dict[str, Any] = {}

    def keep(key: str, value: Any, *args: object, **options: object) -> None:
        logged[key] = value

    def keep_all(values: dict[str, Any], *args: object, **options: object) -> None:
        logged.update(values)

    object.__setattr__(model, "log", keep)
    object.__setattr__(model, "log_dict", keep_all)
    losses: list[float] = []
    for heard in batches:
        logged.clear()
        several = isinstance(trainer.val_dataloaders, (list, tuple, Mapping)) and len(trainer.val_dataloaders) > 1
        rest = (heard.dataloader_idx,) if several else ()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            output = model.validation_step(heard.batch, heard.batch_idx, *rest)
        if isinstance(output, dict):
            output = output.get("loss")
        if not isinstance(output, (Tensor, float)):
            output = next((value for key, value in logged.items() if "loss" in key), None)
        if output is None:
            raise RuntimeError(
                f"{setting} needs a validation_step that returns its loss, or logs one with 'loss' in its name"
            )
        losses.append(float(output))
    return sum(losses) / len(losses)
