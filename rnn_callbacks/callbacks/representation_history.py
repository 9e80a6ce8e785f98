"""What the looks so far have shown of each site, in bounded memory and in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.cka import similarities
from ..analysis.count_sketch import CountSketch

MOST_LOOKS = 100  # of which a folded fingerprint is kept; of more, that one goes whose neighbours are closest
MOST_SCENES = 8  # looks of which states are kept for pictures
FOLD = 16381  # numbers; errors of the CKA are up to 1 / sqrt(FOLD) = .008, far less between looks that are alike
BEFORE = -1  # epoch of the untrained network
NOTHING = np.zeros(0, np.float16)

Half = NDArray[np.float16]


@final
class SiteHistory:
    """One site's looks.

    Args:
        kept: from a checkpoint, or empty.
    """

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.epochs: list[int] = [int(epoch) for epoch in kept.get("epochs", [])]  # of folds
        self.folds: list[Half] = [_array(fold) for fold in kept.get("folds", [])]
        self.curves: list[dict[str, float]] = [dict(row) for row in kept.get("curves", [])]  # with "epoch"
        self.untrained = _array(kept.get("untrained"))  # fingerprints, of all steps and of the ends
        self.untrained_end = _array(kept.get("untrained_end"))
        self.latest = _array(kept.get("latest"))  # of the last look that could be compared
        self.now = NOTHING  # of the look that is being taken
        self.random: tuple[float, float] | None = kept.get("random")  # mean and highest CKA of two random networks
        self.scenes: dict[int, NDArray[np.float32]] = {
            int(e): states.numpy() for e, states in kept.get("scenes", {}).items()
        }
        self.drawn: dict[str, dict[int, NDArray[np.float64]]] = {
            method: {int(e): points.numpy() for e, points in places.items()}
            for method, places in kept.get("drawn", {}).items()
        }

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "epochs": list(self.epochs),
            "folds": [torch.from_numpy(fold) for fold in self.folds],
            "curves": [dict(row) for row in self.curves],
            "untrained": torch.from_numpy(self.untrained),
            "untrained_end": torch.from_numpy(self.untrained_end),
            "latest": torch.from_numpy(self.latest),
            "random": self.random,
            "scenes": {str(epoch): torch.from_numpy(states) for epoch, states in self.scenes.items()},
            "drawn": {
                method: {str(epoch): torch.from_numpy(points) for epoch, points in places.items()}
                for method, places in self.drawn.items()
            },
        }

    @property
    def nbytes(self) -> int:
        """Memory that is held."""
        held: list[NDArray[Any]] = [
            *self.folds,
            *self.scenes.values(),
            *self._points,
            self.untrained,
            self.untrained_end,
            self.latest,
        ]
        return sum(array.nbytes for array in held)

    @property
    def _points(self) -> list[NDArray[np.float64]]:
        return [points for places in self.drawn.values() for points in places.values()]

    def add_print(self, epoch: int, print_: NDArray[np.floating]) -> None:
        """Keep a look's fingerprint, folded."""
        if self.folds and len(self.folds[-1]) != min(len(print_), FOLD):  # of other sequences
            self.epochs, self.folds = [], []
        self.epochs.append(epoch)
        self.folds.append(CountSketch(size=FOLD).fold(print_, "fingerprint").astype(np.float16))
        if len(self.epochs) > MOST_LOOKS:
            place = _closest(self.epochs)
            del self.epochs[place], self.folds[place]

    def add_scene(self, epoch: int, states: NDArray[np.float32]) -> None:
        """Keep some trajectories of a look."""
        if self.scenes and next(iter(self.scenes.values())).shape != states.shape:
            self.scenes, self.drawn = {}, {}
        self.scenes[epoch] = states
        if len(self.scenes) > MOST_SCENES:
            del self.scenes[list(self.scenes)[_closest(list(self.scenes))]]

    def matrix(self) -> NDArray[np.float64]:
        """CKA of every kept look with every other, ``(E, E)``."""
        return np.clip(similarities(self.folds), -1.0, 1.0) if self.folds else np.zeros((0, 0))

    def curve(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Epochs and values of a number over the looks, where it is known."""
        known = [(row["epoch"], row[name]) for row in self.curves if name in row]
        epochs, values = zip(*known, strict=True) if known else ((), ())
        return np.array(epochs, dtype=np.float64), np.array(values, dtype=np.float64)


def _closest(epochs: list[int]) -> int:
    """Place of the epoch whose neighbours are closest; the first and the last stay."""
    gaps = np.array(epochs[2:]) - np.array(epochs[:-2])
    return 1 + int(np.argmin(gaps))


def _array(kept: Tensor | None) -> Half:
    return NOTHING if kept is None else kept.numpy()
