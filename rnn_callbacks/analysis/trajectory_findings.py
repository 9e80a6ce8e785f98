"""What one look at the path of the weights found, as it is drawn and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from .weight_trajectory import WeightTrajectory


@final
@dataclass(frozen=True, eq=False)
class PathTimes:
    """When the E snapshots of a path were taken, and how good the network was."""

    epochs: NDArray[np.int64]  # (E,), counted from 0; -1 before training
    steps: NDArray[np.int64]  # (E,), optimizer steps done
    values: NDArray[np.float64]  # (E,), of the metric; NaN where there was none
    metric: str
    mode: Literal["min", "max"]

    @property
    def by_epoch(self) -> bool:
        """Whether there is one snapshot per epoch at most, so that epochs tell them apart."""
        return len(set(self.epochs.tolist())) == len(self.epochs)

    @property
    def labels(self) -> list[str]:
        """A short name for each snapshot: its epoch, or its step."""
        if self.by_epoch:
            return ["start" if epoch < 0 else str(epoch) for epoch in self.epochs]
        return ["start" if step == 0 else str(step) for step in self.steps]

    @property
    def axis(self) -> NDArray[np.int64]:
        """Where each snapshot stands on an axis of time, ``(E,)``; the start is at -1 (epochs) or 0 (steps)."""
        return self.epochs if self.by_epoch else self.steps

    @property
    def unit(self) -> str:
        """What the axis counts."""
        return "epoch" if self.by_epoch else "optimizer step"

    @property
    def best(self) -> int | None:
        """The snapshot with the best value of the metric, the first of several; None where there is no value."""
        known = np.flatnonzero(np.isfinite(self.values))
        if not len(known):
            return None
        values = self.values[known]
        return int(known[np.argmin(values) if self.mode == "min" else np.argmax(values)])


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of one cell's recurrent weights at some looks."""

    parts: tuple[str, ...]  # G gates
    epochs: NDArray[np.int64]  # (L,)
    eigenvalues: NDArray[np.complex128]  # (L, G, K), the K of largest modulus


@final
@dataclass(frozen=True, eq=False)
class PlaceFindings:
    """The path of one place in the model, and of each of its gates."""

    place: str
    path: WeightTrajectory
    gates: Mapping[str, WeightTrajectory]
    spectrum: Spectrum | None = None
