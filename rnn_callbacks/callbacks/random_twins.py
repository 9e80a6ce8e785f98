"""Networks that are as random as one at its start, and another draw: what an untrained network is compared with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..cells import Cell
from ..snapshot import Snapshot

GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def random_twin(module: nn.Module, *, seed: int) -> tuple[Cell, ...]:
    """Cells of a module whose weights are shuffled: rows and columns of each gate's matrices, each on its own.

    Of weights that were drawn independently, that is another draw. Unlike drawing anew it keeps whatever the user did
    at the start: scale, orthogonal matrices, biases of single gates.
    """
    gates = next((count for kind, count in GATES.items() if isinstance(module, kind)), 1)
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            shuffled = torch.cat([_shuffled(part, generator) for part in _parts(parameter.detach().cpu(), gates)])
            parameter.copy_(shuffled)
    return Snapshot.of(twin, 0).cells


def _parts(weights: Tensor, gates: int) -> tuple[Tensor, ...]:
    """What each gate has of a parameter; a projection belongs to none."""
    return weights.chunk(gates) if weights.dim() and len(weights) % gates == 0 else (weights,)


def _shuffled(weights: Tensor, generator: torch.Generator) -> Tensor:
    for way, size in enumerate(weights.shape):
        weights = weights.index_select(way, torch.randperm(size, generator=generator))
    return weights
