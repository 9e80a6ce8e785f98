"""Is the rebuilt gradient the one that trains the network? Two ways to know, both on the user's own run.

The better one: the gradient of the recurrent bias, summed over all steps and sequences of a batch, must equal the
module's own ``.grad``. Where that cannot be had (a batch too large to record, gradients averaged over processes, a
frozen or missing bias), torch's own backward pass is run on a few of the recorded sequences with
the same boundary gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cells import GRUCell, LSTMCell, RNNCell
from ..rebuild import fused_layer, run_fused
from .adjoint import CellGradients

SLACK = 10.0  # of the tolerance for states: gradients sum over all steps


def relative_error(found: Tensor, true: Tensor) -> float:
    """Largest difference relative to the largest true value; infinite where a number is not finite."""
    scale = float(true.abs().max())
    worst = float((found.double() - true.double()).abs().max())
    error = worst / scale if scale > 0 else worst
    return error if error == error else float("inf")


def replay_error(found: CellGradients, sequences: int = 8) -> float | None:
    """Relative difference of the bias gradient of the first sequences to the one that torch's own backward pass gives.

    None where that cannot be run: for cells of a user's own, and where a loop reads a sequence part by part.
    """
    trace = found.trace
    cell = trace.cell
    if found.joined or not isinstance(cell, (RNNCell, LSTMCell, GRUCell)):
        return None
    inputs, direct = trace.inputs[:sequences], found.direct[:, :sequences].transpose(0, 1)
    lengths, initial = trace.lengths[:sequences], trace.initial[:sequences]
    if trace.previous is not None:  # every step is a sequence of its own
        initial = trace.previous[:sequences].flatten(0, 1)
        inputs, direct = inputs.flatten(0, 1)[:, None], direct.flatten(0, 1)[:, None]
        lengths = torch.ones(len(inputs), dtype=torch.long)
    layer = fused_layer([cell])
    with torch.enable_grad():
        outputs, last = run_fused(layer, inputs, lengths, initial[None], cell.output_size)
        pairs = [(outputs, direct[..., : cell.output_size])]
        if isinstance(last, tuple):
            at_end = direct[torch.arange(len(lengths)), lengths - 1]
            pairs.append((last[1][0], at_end[:, cell.output_size :]))
        (bias,) = torch.autograd.grad(
            [output for output, _ in pairs], [_bias(layer)], [gradient for _, gradient in pairs]
        )
    return relative_error(found.bias[:sequences].sum(0), bias)


def _bias(layer: nn.RNNBase) -> Tensor:
    bias = layer.bias_hh_l0
    assert isinstance(bias, Tensor)
    return bias


def own_error(found: Sequence[CellGradients], own: Tensor) -> float:
    """Relative difference of the bias gradient, over all calls of a batch, to the module's own."""
    return relative_error(torch.stack([part.bias.sum(0) for part in found]).sum(0), own)
