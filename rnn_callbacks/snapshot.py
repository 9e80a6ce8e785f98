"""The equations of a module at one moment, and whether they still hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

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
    versions: tuple[tuple[int, int], ...]  # where each weight lies, and how often torch had written to it
    aliases: tuple[Tensor, ...]  # they keep those places from being given to other weights

    @classmethod
    def of(cls, module: nn.Module, batch: int) -> Snapshot:
        """Copy the weights as they act now."""
        weights = _weights(module)
        with _held_still(module):
            taken = cells(module)
        aliases = tuple(weight.detach() for weight in weights)
        return cls(taken, batch, sum(weight.nbytes for weight in weights), _versions(weights), aliases)

    def holds(self, module: nn.Module) -> bool:
        """Whether the module's weights are still the same tensors, and nobody has written to them."""
        return _versions(_weights(module)) == self.versions


def _weights(module: nn.Module) -> list[Tensor]:
    """Parameters, what parametrizations remember, and weights kept as plain attributes (as weight dropping does)."""
    found: list[Tensor] = list(module.parameters())
    for part in module.modules():
        if isinstance(part, ParametrizationList):
            found += part.buffers()
        plain = ((key, value) for key, value in vars(part).items() if key.startswith(("weight", "bias")))
        found += [value for _, value in plain if isinstance(value, Tensor)]
    return found


def _versions(weights: list[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights)


@contextmanager
def _held_still(module: nn.Module) -> Iterator[None]:
    """Keep parametrizations from moving when they are read: spectral_norm does, and random ones draw numbers."""
    lists = [part for part in module.modules() if isinstance(part, ParametrizationList)]
    moving = [part for parts in lists for part in parts.modules() if part.training]
    try:
        for part in moving:
            part.training = False
        with torch.random.fork_rng(devices=[], enabled=bool(lists)):
            yield
    finally:
        for part in moving:
            part.training = True
