"""The training loss over some batches, without making an accelerator wait at each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

WAITING = 1000  # losses on their device before they are added up


@final
class TrainingLoss:
    """Mean of what ``training_step`` returns, over the batches since `clear`.

    Args:
        total: sum of the losses of earlier batches, to go on with.
        count: how many they were.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.clear()
        self._sum, self._count = total, count

    def clear(self) -> None:
        """Begin anew."""
        self._waiting: list[Tensor] = []
        self._sum = 0.0
        self._count = 0

    def add(self, outputs: Any) -> None:
        """Take what Lightning hands to ``on_train_batch_end``; nothing where the step returned no loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._waiting.append(loss.detach().clone().reshape(()))
        if len(self._waiting) >= WAITING:
            self.settled()

    def settled(self) -> tuple[float, int]:
        """Sum and number of the losses so far."""
        if self._waiting:
            losses = torch.stack(self._waiting).double().cpu()
            self._sum, self._count = self._sum + float(losses.sum()), self._count + len(losses)
            self._waiting = []
        return self._sum, self._count

    @property
    def mean(self) -> float | None:
        """Over the batches that gave a loss; None where none did."""
        total, count = self.settled()
        return total / count if count else None
