"""Where attention looks: the mean map over query and key steps, and how sharp each head is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention weights of one module over its sequences, head by head, or of the mean head alone."""

    mean: NDArray[np.float64]  # (A, Q, K), weight of each key step at each query step, mean over sequences
    entropy: NDArray[np.float64]  # (A,), bits, mean over sequences and query steps; log2 K where all keys weigh alike
    highest: float  # bits: the mean of log2 of the keys that there are
    by_head: bool  # False: only the mean over heads was handed out, so A is 1
    sequences: int


@final
class AttentionSums:
    """Adds up attention weights, batch by batch."""

    def __init__(self) -> None:
        self.sequences = 0
        self.by_head = True
        self._sum = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._count = torch.zeros(0, dtype=torch.float64)
        self._entropy = torch.zeros(0, dtype=torch.float64)
        self._highest = 0.0
        self._queries = 0

    def add(self, weights: Tensor, masked: Tensor | None = None) -> None:
        """Take one batch in.

        Args:
            weights: ``(B, A, Q, K)``, or ``(B, Q, K)`` for the mean over heads; rows sum to 1, NaN where all keys were
                masked.
            masked: ``(B, K)``, whether a step is padding, where queries and keys are the same steps.

        Raises:
            ValueError: when the number of heads changes from batch to batch.
        """
        by_head = weights.dim() == 4
        rows = (weights if by_head else weights[:, None]).detach().double().cpu()
        batch, heads, queries, keys = rows.shape
        if self.sequences and (heads != len(self._entropy) or by_head != self.by_head):
            raise ValueError(f"attention weights must have {len(self._entropy)} heads in each batch, got {heads}")
        if not self.sequences:
            self.by_head, self._entropy = by_head, torch.zeros(heads, dtype=torch.float64)
        valid = rows.isfinite().all(3).all(1)  # (B, Q)
        if masked is not None and masked.shape == (batch, queries) and queries == keys:
            valid &= ~masked.cpu()
        rows = torch.where(valid[:, None, :, None], rows, 0.0)
        self._sum = _grown(self._sum, (heads, queries, keys))
        self._sum[:, :queries, :keys] += rows.sum(0)
        self._count = _grown(self._count, (queries,))
        self._count[:queries] += valid.sum(0)
        self._entropy += -torch.special.xlogy(rows, rows).sum((0, 2, 3)) / np.log(2)
        allowed = (rows > 0).any(1).sum(2).clamp(min=1)  # a softmax gives nothing to masked keys only
        self._highest += float(allowed.double().log2().sum())
        self._queries += int(valid.sum())
        self.sequences += batch

    def result(self) -> AttentionMaps | None:
        """Everything taken in; None if that is nothing."""
        if not self._queries:
            return None
        return AttentionMaps(
            mean=(self._sum / self._count.clamp(min=1)[:, None]).numpy(),
            entropy=(self._entropy / self._queries).numpy(),
            highest=self._highest / self._queries,
            by_head=self.by_head,
            sequences=self.sequences,
        )


def _grown(kept: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros where a larger map has room that a smaller one had not."""
    larger = kept.new_zeros([max(old, new) for old, new in zip(kept.shape, shape, strict=True)])
    larger[tuple(slice(size) for size in kept.shape)] = kept
    return larger
