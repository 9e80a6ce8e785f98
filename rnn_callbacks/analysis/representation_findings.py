"""What a look found of the states at one site, as numbers and for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .cka import Similarity
from .class_geometry import ClassGeometry
from .representation import Representation
from .step_clusters import StepClusters

SETTLED = 0.95  # CKA with the latest look from which on a look counts as like it
NEVER = -1.0

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]  # epochs and values


@final
@dataclass(frozen=True, eq=False)
class SiteFindings:
    """One site at one look. Columns are S chosen steps, and one more where each sequence ends for its cell."""

    shape: Representation
    untrained: Similarity | None  # with the untrained network
    untrained_end: float  # the same where sequences end; NaN where unknown
    previous: float  # CKA with the look before; NaN where unknown
    random: tuple[float, float] | None  # mean and highest CKA of two random networks
    clusters: StepClusters | None  # at `cluster_columns`
    cluster_columns: NDArray[np.int64]
    classes: Mapping[str, ClassGeometry]  # by concept, columns in the order of the steps
    epochs: NDArray[np.int64]  # of the looks in `matrix`; -1: before training
    matrix: Floats  # (E, E), CKA of looks with each other
    curves: Mapping[str, Curve] = field(default_factory=dict)  # over the looks, by quantity

    @property
    def settled_epoch(self) -> float:
        """The first look from which on all are like the latest."""
        if len(self.epochs) < 2 or not np.isfinite(self.matrix[-1, -1]):
            return NEVER
        like = np.flatnonzero(~(self.matrix[-1] >= SETTLED))
        return float(self.epochs[0 if not len(like) else like[-1] + 1])

    def scalars(self) -> dict[str, float]:
        """Numbers of the look, by the last part of their tag."""
        found = self.shape.scalars() | {
            "cka_untrained": np.nan if self.untrained is None else self.untrained.cka,
            "cka_untrained_end": self.untrained_end,
            "cka_previous": self.previous,
            "cka_random": np.nan if self.random is None else self.random[0],
        }
        if len(self.epochs):
            found["settled_epoch"] = self.settled_epoch
        if self.clusters is not None:
            found["clusters"] = float(self.clusters.count[-1])
            found["silhouette"] = float(self.clusters.silhouette[-1])
        for concept, classes in self.classes.items():
            found[f"{concept}/separation"] = _end(classes.separation)
            found[f"{concept}/nearest_mean"] = _end(classes.nearest_mean)
            found[f"{concept}/commitment"] = classes.commitment
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the file of a look keeps beside the scalars; 0 where nothing could be measured."""
        found: dict[str, NDArray[Any]] = {
            "spectrum": self.shape.spectrum,
            "deviation": self.shape.deviation,
            "participation_by_step": self.shape.participation_by_step,
            "cka_epochs": self.epochs,
            "cka_matrix": self.matrix,
        }
        if self.untrained is not None:
            found["cka_untrained_by_step"] = self.untrained.by_step
        if self.clusters is not None:
            found |= {"cluster_columns": self.cluster_columns, "clusters_by_step": self.clusters.count}
            found["silhouette_by_step"] = self.clusters.silhouette
        for concept, classes in self.classes.items():
            for name in ("separation", "nearest_mean", "committed"):
                found[f"{concept}/{name}_by_step"] = getattr(classes, name)
        return {name: np.nan_to_num(array) for name, array in found.items()}


def _end(values: Floats) -> float:
    """At the column where sequences end."""
    return float(values[-1]) if len(values) else np.nan
