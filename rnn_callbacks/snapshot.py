"""The equations of a module at one moment, and whether they still hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .cells import Cell, cells


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """A module's cells, and the weights they were copied from."""

    cells: tuple[Cell, ...]
    batch: int
    nbytes: int
    versions: tuple[tuple[ReferenceType[Tensor], int], ...]  # each weight, and how often torch had written to it

    @classmethod
    def of(cls, module: nn.Module, batch: int) -> Snapshot:
        """Copy the weights as they act now."""
        weights = _weights(module)
        with _held_still(module), torch.device("cpu"):  # whatever the user's default device is
            taken = cells(module)
        versions = tuple((ref(weight), _version(weight)) for weight in weights)
        return cls(taken, batch, sum(weight.nbytes for weight in weights), versions)

    def holds(self, module: nn.Module) -> bool:
        """Whether the module's weights are still the same tensors, and nobody has written to them."""
        now = _weights(module)
        return len(now) == len(self.versions) and all(
            known() is weight and version == _version(weight)
            for weight, (known, version) in zip(now, self.versions, strict=True)
        )


def _weights(module: nn.Module) -> list[Tensor]:
    """Parameters, what parametrizations remember, and weights kept as plain attributes (as weight dropping does)."""
    found: list[Tensor] = list(module.parameters())
    for part in module.modules():
        if isinstance(part, ParametrizationList):
            found += part.buffers()
        plain = ((key, value) for key, value in vars(part).items() if key.startswith(("weight", "bias")))
        found += [value for _, value in plain if isinstance(value, Tensor)]
    return found


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version  # torch does not count for inference tensors


@contextmanager
def _held_still(module: nn.Module) -> Iterator[None]:
    """Keep parametrizations from moving when they are read: spectral_norm does, and random ones draw numbers."""
    lists = [part for part in module.modules() if isinstance(part, ParametrizationList)]
    moving = [part for found in lists for part in found.modules() if part.training]
    try:
        for part in moving:
            part.training = False
        with torch.random.fork_rng(devices=[], enabled=bool(lists)):
            yield
    finally:
        for part in moving:
            part.training = True
