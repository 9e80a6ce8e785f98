"""Labels of concepts, read from the batches that are heard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .importing import function_of

Source = Callable[[Any], Any]
TARGET = "target"  # the name of the concept that is probed where none is given


def read_sources(concepts: object, *, setting: str = "concepts") -> dict[str, Source]:
    """How each concept's labels are found in a batch; that of an ``(input, target)`` batch where none is named.

    Args:
        concepts: by name a function of the batch, its import path (with a dot), a key of the batch, or a place in it.
        setting: for messages.

    Raises:
        ValueError: when it is no such mapping, or a name or a source is none.
    """
    if concepts is None:
        return {TARGET: _target}
    if not isinstance(concepts, dict) or not concepts:
        raise ValueError(
            f"{setting} must be a dict: name -> function of the batch, import path, key or index, got {concepts!r}"
        )
    for name in concepts:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{setting}: {name!r} is no name; expected letters, digits, '_', '-' and '.'")
    return {name: read_source(f"{setting}: {name}", given) for name, given in concepts.items()}


def read_source(setting: str, given: object) -> Source:
    """One source of labels.

    Raises:
        ValueError: when it is neither a function, an import path, a key nor an index.
    """
    if isinstance(given, bool) or not (callable(given) or isinstance(given, (str, int))):
        raise ValueError(
            f"{setting} must be a function of the batch, its import path, a key or an index, got {given!r}"
        )
    if callable(given) or (isinstance(given, str) and "." in given):
        return function_of(setting, given)
    return _Part(given)


class NoLabelsError(ValueError):
    """A batch has no such labels; the message is meant for the user."""


@final
class _Part:
    """A part of the batch, by key, attribute or place."""

    def __init__(self, key: str | int) -> None:
        self.key = key

    def __call__(self, batch: Any) -> Any:
        try:
            if isinstance(self.key, str) and hasattr(batch, self.key) and not isinstance(batch, dict):
                return getattr(batch, self.key)
            return batch[self.key]
        except (KeyError, IndexError, TypeError) as error:
            has = f"keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
            raise NoLabelsError(f"the batch has no {self.key!r}; it is or has: {has}") from error


def _target(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[1]
    raise NoLabelsError(
        "there are no concepts to probe: batches are no (input, target) pairs; write "
        'concepts={"name": function of the batch, import path, key or index}'
    )


@final
class ConceptLabels:
    """Collects labels batch by batch.

    Args:
        sources: how to find them, by concept.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)
        self.faults: dict[str, Exception] = {}  # of a source, in the batches that were heard
        self.labels: dict[str, dict[int, NDArray[Any]]]  # by concept and number of the batch
        self.begin()

    def begin(self) -> None:
        """Forget what was read."""
        self.labels = {name: {} for name in self.sources}
        self.faults = {}

    @property
    def heard(self) -> tuple[dict[str, dict[int, NDArray[Any]]], dict[str, str]]:
        """Labels, and what went wrong, by concept, to be sent to another process."""
        return self.labels, {name: str(fault) for name, fault in self.faults.items()}

    def join(self, labels: Mapping[str, dict[int, NDArray[Any]]], faults: Mapping[str, str]) -> None:
        """Take in what another process has `heard` in batches of its own."""
        for name, batches in labels.items():
            self.labels[name] |= batches
        self.faults = {name: NoLabelsError(fault) for name, fault in faults.items()} | self.faults

    def hear(self, number: int, batch: Any) -> None:
        """Read the labels of a batch."""
        for name, source in self.sources.items():
            if name in self.faults:
                continue
            try:
                self.labels[name][number] = _array(source(batch))
            except Exception as fault:  # said once at the look, not at every batch
                self.faults[name] = fault


def _array(found: Any) -> NDArray[Any]:
    if isinstance(found, Tensor):
        found = found.detach()
        found = (found.float() if found.is_floating_point() else found).cpu()
    array = torch.as_tensor(np.asarray(found) if isinstance(found, (list, tuple)) else found).numpy()
    if array.ndim == 0:
        raise ValueError("a concept must give one label for each sequence or step of the batch, got a single number")
    return np.array(array)  # the user may write to the batch
