"""The model's own validation loss with a gate held, computed on a copy of the model."""

from __future__ import annotations

from torch import nn

from ..analysis.gate_ablation import Hold, ablatable, held_value, hold_gate, restore, with_plain_weights
from ..analysis.gates import GateStatistics
from ..capture import recurrent_modules
from ..cells import Cell
from .look import Look, rehearsal
from .rehearsed_loss import HeardBatch, validation_loss


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
    whole = validation_loss(look.trainer, model, batches, setting="ablate")
    changes: dict[str, float] = {}
    for cell, statistics in cells:
        for row, gate in enumerate(cell.gates):
            before = hold_gate(plain, cell, gate, held_value(hold, statistics.mean[row]))
            changes[f"{cell.name}/{gate}"] = validation_loss(look.trainer, model, batches, setting="ablate") - whole
            restore(plain, before)
    return changes


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for key, child in list(parent.named_children()):
            if child is old:
                setattr(parent, key, new)
