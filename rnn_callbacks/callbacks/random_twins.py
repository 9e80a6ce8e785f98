"""Networks that are as random as one at its start, and another draw: what an untrained network is compared with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..cells import Cell, GRUCell, LSTMCell, RNNCell
from ..snapshot import Snapshot


def random_twin(module: nn.Module, *, seed: int) -> tuple[Cell, ...] | None:
    """Cells of a module with their weights shuffled: rows and columns of each gate's matrices, each on its own.

    Of weights that were drawn independently, that is another draw. Unlike drawing anew it keeps whatever the user did
    at the start: scale, orthogonal matrices, biases of single gates. None of a type of the user's own, of which it is
    not known what its weights may be.
    """
    generator = torch.Generator().manual_seed(seed)
    twins: list[Cell] = []
    for cell in Snapshot.of(module, 0).cells:
        if not isinstance(cell, (RNNCell, LSTMCell, GRUCell)):
            return None
        gates, weights = len(cell.gates) + 1, cell.weights
        shuffled = replace(
            weights,
            ih=_by_gate(weights.ih, gates, generator),
            hh=_by_gate(weights.hh, gates, generator),
            bias_ih=_by_gate(weights.bias_ih, gates, generator),
            bias_hh=_by_gate(weights.bias_hh, gates, generator),
            hr=None if weights.hr is None else _shuffled(weights.hr, generator),
        )
        twins.append(type(cell)(shuffled))
    return tuple(twins)


def _by_gate(weights: Tensor, gates: int, generator: torch.Generator) -> Tensor:
    return torch.cat([_shuffled(part, generator) for part in weights.chunk(gates)])


def _shuffled(weights: Tensor, generator: torch.Generator) -> Tensor:
    for way, size in enumerate(weights.shape):
        weights = weights.index_select(way, torch.randperm(size, generator=generator))
    return weights
