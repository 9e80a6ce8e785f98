"""The network as it was before training: the control that a run can only take at its beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..analysis.probe_findings import Baseline
from ..analysis.probe_scores import Tally
from ..analysis.state_samples import StateSampler, StateSamples
from ..cells import Cell
from ..snapshot import Snapshot

Place = tuple[str, str, str]  # module, site, concept
Labels = Mapping[str, Mapping[int, NDArray[Any]]]  # by concept and number of the batch


@final
class UntrainedNetwork:
    """Collects states of the untrained network until they have been probed, and keeps what the probes read.

    The sanity check runs the untrained network. Where that is too short, the untrained layers are run on the inputs of
    the first look, which is the same unless something in front of them learns.

    Args:
        kept: from the checkpoint of a run that goes on.
    """

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.baselines: dict[Place, Baseline] = {place_of(key): _unpack(value) for key, value in kept.items()}
        self.cells: dict[str, tuple[Cell, ...]] = {}  # with the untrained weights, until they are not needed any more
        self.heard: dict[str, StateSampler] = {}  # in the sanity check
        self.labels: Labels = {}  # of what was heard then
        self.rerun: dict[str, StateSampler] = {}  # the untrained layers on the inputs of the first look

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """These modules are untrained."""
        self.cells = {name: Snapshot.of(module, 0).cells for name, module in modules.items()}

    def join_labels(self, labels: Labels) -> None:
        """Take in those of another process."""
        concepts = {**self.labels, **labels}
        self.labels = {name: {**self.labels.get(name, {}), **labels.get(name, {})} for name in concepts}

    def states(self, name: str, samples: StateSamples, labels: Labels) -> StateSamples | None:
        """States of a module for the same sequences as these samples; None once they have been given away.

        Args:
            name: of the module.
            samples: of the network as it is.
            labels: of the same sequences.
        """
        heard = self._heard(name)
        # Other labels for the same rows: the loader shuffles, and the sequences are others.
        if heard is not None and np.array_equal(heard.rows, samples.rows) and _same_labels(self.labels, labels):
            return heard
        return self.rerun[name].result() if name in self.rerun else None

    def is_whole(self, name: str, samples: StateSamples, labels: Labels) -> bool:
        """Whether those states are the untrained network's, with all that lies in front of the module."""
        heard = self._heard(name)
        if heard is None:
            return False
        count = len(heard.rows)
        everything = np.array_equal(heard.rows, samples.rows) and _same_labels(self.labels, labels)
        return everything or (
            np.array_equal(heard.rows, samples.rows[:count])
            and all(
                np.array_equal(heard.states[site], samples.states[site][:count], equal_nan=True)
                for site in heard.states
                if site.startswith("input")
            )
        )

    def _heard(self, name: str) -> StateSamples | None:
        return self.heard[name].result() if name in self.heard else None

    def forget_states(self) -> None:
        """They have been probed, or never will be."""
        self.cells, self.heard, self.labels, self.rerun = {}, {}, {}, {}

    def memory(self) -> dict[str, Any]:
        """What was read, as tensors and numbers."""
        return {"|".join(place): _pack(baseline) for place, baseline in self.baselines.items()}


def place_of(key: str) -> Place:
    """Module, site and concept of a key in a checkpoint."""
    module, site, concept = key.rsplit("|", 2)  # a module's name may hold anything
    return module, site, concept


def _same_labels(before: Labels, now: Labels) -> bool:
    """Whether every concept has the labels now that it had before training."""
    return all(
        np.array_equal(labels, now.get(concept, {}).get(number, ()), equal_nan=labels.dtype.kind == "f")
        for concept, batches in before.items()
        for number, labels in batches.items()
    )


_TALLY = ("right", "all", "bits", "samples")


def _pack(baseline: Baseline) -> dict[str, Any]:
    tally = baseline.tally
    return {
        "columns": torch.from_numpy(baseline.columns),
        "score": baseline.score,
        "bits": baseline.bits,
        "tally": {} if tally is None else {key: torch.from_numpy(getattr(tally, key)) for key in _TALLY},
        "of_classes": tally is not None and tally.of_classes,
        "whole": baseline.whole,
    }


def _unpack(kept: Mapping[str, Any]) -> Baseline:
    arrays = {key: value.numpy() for key, value in kept["tally"].items()}
    tally = Tally(**arrays, of_classes=kept["of_classes"]) if arrays else None
    return Baseline(kept["columns"].numpy(), kept["score"], kept["bits"], tally, kept["whole"])
