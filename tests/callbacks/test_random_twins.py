"""`random_twin`: other random networks that have in common with the first whatever is not chance."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.cka import cka, geometry
from rnn_callbacks.callbacks.random_twins import random_twin
from rnn_callbacks.cells import cells

FEATURES, UNITS, SEQUENCES, STEPS = 3, 7, 31, 5
KINDS = {
    "gru": (lambda: nn.GRU(FEATURES, UNITS), 3),
    "lstm": (lambda: nn.LSTM(FEATURES, UNITS), 4),
    "rnn": (lambda: nn.RNN(FEATURES, UNITS), 1),
    "two-way stack": (lambda: nn.GRU(FEATURES, UNITS, 2, bidirectional=True), 3),
    "gru cell": (lambda: nn.GRUCell(FEATURES, UNITS), 3),
    "lstm cell": (lambda: nn.LSTMCell(FEATURES, UNITS), 4),
    "rnn cell": (lambda: nn.RNNCell(FEATURES, UNITS), 1),
    "no bias": (lambda: nn.LSTM(FEATURES, UNITS, bias=False), 4),
}


def made(kind):
    torch.manual_seed(0)
    return KINDS[kind][0]()


def tensors(found):
    """All weights of cells, by cell and name."""
    return {
        (cell.name, name): value
        for cell in found
        for name, value in vars(cell).items()
        if isinstance(value, torch.Tensor) and value.dim()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_keeps_its_singular_values_and_its_biases(kind):
    module, gates = made(kind), KINDS[kind][1]
    before, after = tensors(cells(module)), tensors(random_twin(module, seed=0))
    assert before.keys() == after.keys()
    assert len(before) >= 2
    for key, value in before.items():
        whole = len(value) // UNITS
        assert whole == gates, key
        for one, other in zip(value.chunk(gates), after[key].chunk(gates), strict=True):
            assert not torch.equal(one, other) or one.numel() < 2, key
            if value.dim() == 2:  # permutations are orthogonal
                assert torch.linalg.svdvals(other) == pytest.approx(torch.linalg.svdvals(one).detach(), abs=1e-6), key
            assert torch.equal(one.flatten().sort().values, other.flatten().sort().values), key


def states(found, x):
    hidden = torch.zeros(len(x), UNITS)
    weights = {name: value for (_, name), value in tensors(found).items()}
    (cell,) = found
    del weights
    steps = []
    with torch.no_grad():
        for step in x.unbind(1):
            hidden = cell.step(step, hidden)
            steps.append(hidden)
    return torch.stack(steps, 1).numpy()


def run(module, found, x):
    """States of the module with the weights of these cells."""
    other = copy.deepcopy(module)
    (cell,) = found
    weights = dict(zip(sorted(other.state_dict()), [None] * 4, strict=True))
    assert len(weights) == 4
    return cell, other
