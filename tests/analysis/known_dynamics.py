"""Cells and networks whose fixed points are known."""

import copy
from functools import cache

import torch
from torch import nn

from rnn_callbacks.cells import Activations, Cell, Place, cells

from ..flip_flop import BATCH, STEPS, flip_flop, train


def plain(weight, bias=None, *, nonlinearity="tanh", inputs=1):
    """``h' = tanh(W h + b)`` as the cell of a real nn.RNN in float64 that does not see its inputs."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    module = nn.RNN(inputs, len(weight), nonlinearity=nonlinearity).double()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.weight_hh_l0.copy_(weight)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.zero_() if bias is None else module.bias_hh_l0.copy_(torch.as_tensor(bias))
    return cells(module)[0]


def turning(angle, size=2):
    """A rotation in the first two coordinates, identity elsewhere."""
    found = torch.eye(size, dtype=torch.float64)
    angle = torch.tensor(angle, dtype=torch.float64)
    found[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return found


def orthogonal(size, seed=0):
    """A random rotation of all coordinates."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


class Linear(Cell):
    """``h' = W h + V x + b``, a cell that torch does not have."""

    gates = ()
    candidate = "sum"
    bounded = False

    def __init__(self, weight, bias, of_input=None):
        of_input = torch.zeros(len(bias), 1, dtype=weight.dtype) if of_input is None else of_input
        super().__init__(Place("cell", stepwise=True), input_size=of_input.shape[1], units=len(bias))
        self.weight, self.bias, self.of_input = weight, bias, of_input

    def activations(self, inputs, hidden, memory=None):
        values = hidden @ self.weight.T + inputs @ self.of_input.T + self.bias
        return Activations(values[:, None])

    def follow(self, inside, hidden, memory):
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


UNITS = 16


@cache
def training(family):
    """A flip-flop network after every one of its 24 epochs; read only."""
    models = []
    train(family, UNITS, 0, after_epoch=lambda epoch, model: models.append(copy.deepcopy(model)))
    return models


@cache
def visited(family, epoch=-1):
    """Hidden states (S, H) of a run of that network from zero."""
    x, _ = flip_flop(BATCH, STEPS, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return training(family)[epoch].rnn(x)[0].flatten(0, 1)


def box(count, units, *, size=1.0, seed=0):
    """States (count, units) anywhere in the box."""
    generator = torch.Generator().manual_seed(seed)
    return size * (2 * torch.rand(count, units, generator=generator, dtype=torch.float64) - 1)
