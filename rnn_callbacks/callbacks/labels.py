"""One label for each sequence that was heard, for the colours of trajectories."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.visited import Visited
from .importing import function_of


@final
class SequenceLabels:
    """Collects labels batch by batch.

    Args:
        given: a function from a batch to one number per sequence, or its import path; by default the classes of an
            ``(input, target)`` batch.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        self.fault: Exception | None = None  # of the user's function, in the batches that were heard
        self._heard: dict[int, NDArray[np.float64]] = {}

    def begin(self) -> None:
        """Forget what was read."""
        self._heard.clear()
        self.fault = None

    @property
    def heard(self) -> tuple[dict[int, NDArray[np.float64]], str | None]:
        """Labels by number of the batch, and what went wrong, to be sent to another process."""
        return self._heard, None if self.fault is None else repr(self.fault)

    def join(self, heard: dict[int, NDArray[np.float64]], fault: str | None) -> None:
        """Take in what another process has `heard` in batches of its own."""
        self._heard |= heard
        if fault is not None and self.fault is None:
            self.fault = RuntimeError(fault)

    def hear(self, number: int, batch: Any) -> None:
        """Read the labels of a batch."""
        try:
            found = _targets(batch) if self.given is None else function_of("labels", self.given)(batch)
            if found is None:
                return
            labels = torch.as_tensor(found).detach().double().cpu()
            if labels.dim() != 1:
                raise ValueError(f"labels must give one number per sequence, (B,), got shape {tuple(labels.shape)}")
            self._heard[number] = labels.numpy()
        except Exception as fault:  # said once at the look, not at every batch
            self.fault = fault

    def of(self, visited: Visited) -> NDArray[np.float64] | None:
        """One label for each trajectory, where all have one."""
        found = [
            self._heard[batch][row] if batch in self._heard and row < len(self._heard[batch]) else np.nan
            for batch, row in visited.sequences
        ]
        return np.array(found) if found and np.isfinite(found).all() else None


def _targets(batch: Any) -> Tensor | None:
    """The classes of an ``(input, target)`` batch, one for each sequence."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        targets = batch[1]
        if targets.dim() == 1 and not targets.is_floating_point() and not targets.is_complex():
            return targets
    return None
