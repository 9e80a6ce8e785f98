"""The model's own validation loss with a gate held, computed on a copy of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ..analysis.gate_ablation import Hold, ablatable, held_value, hold_gate, restore, with_plain_weights
from ..analysis.gates import GateStatistics
from ..capture import recurrent_modules
from ..cells import Cell
from .look import Look, rehearsal


@final
@dataclass(frozen=True, eq=False)
class HeardBatch:
    """A validation batch, as ``validation_step`` was given it."""

    batch: Any
    batch_idx: int
    dataloader_idx: int


def losses_without_gates(
    look: Look, name: str, cells: list[tuple[Cell, GateStatistics]], batches: list[HeardBatch], hold: Hold
) -> dict[str, float]:
    """Change of the validation loss when a gate is held, by ``cell/gate``; empty where a module has no gates to hold.

    Raises:
        RuntimeError: when ``validation_step`` gives no loss.
    """
    if not ablatable(recurrent_modules(look.pl_module)[name]):
        return {}
    model = rehearsal(look.pl_module)
    module = recurrent_modules(model)[name]
    plain = with_plain_weights(module)
    if plain is not module:
        _replace(model, module, plain)
    whole = _loss(look.trainer, model, batches)
    changes: dict[str, float] = {}
    for cell, statistics in cells:
        for row, gate in enumerate(cell.gates):
            before = hold_gate(plain, cell, gate, held_value(hold, statistics.mean[row]))
            changes[f"{cell.name}/{gate}"] = _loss(look.trainer, model, batches) - whole
            restore(plain, before)
    return changes


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for key, child in list(parent.named_children()):
            if child is old:
                setattr(parent, key, new)


def _loss(trainer: pl.Trainer, model: pl.LightningModule, batches: list[HeardBatch]) -> float:
    """Mean over batches of what ``validation_step`` returns, or else of what it logs with *loss* in its name."""
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
        several = isinstance(trainer.val_dataloaders, (list, tuple)) and len(trainer.val_dataloaders) > 1
        rest = (heard.dataloader_idx,) if several else ()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            output = model.validation_step(heard.batch, heard.batch_idx, *rest)
        if isinstance(output, dict):
            output = output.get("loss")
        if not isinstance(output, (Tensor, float)):
            output = next((value for key, value in logged.items() if "loss" in key), None)
        if output is None:
            raise RuntimeError(
                "ablate needs a validation_step that returns its loss, or logs one with 'loss' in its name"
            )
        losses.append(float(output))
    return sum(losses) / len(losses)
