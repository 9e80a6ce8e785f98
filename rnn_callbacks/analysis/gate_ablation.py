"""What a gate is good for: hold it at a constant and see what the model loses.

A gate whose weight rows are zero is the sigmoid of its bias alone, at every step and for every input. So a clamped
layer needs no loop of our own: the same module with edited rows *is* the layer with the gate held, packed, stacked,
bidirectional and at full speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..cells import Cell

Hold = Literal["mean", "zero", "one"]
KINDS = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
FAR = 40.0  # sigmoid(-40) = 4e-18 and sigmoid(40) = 1 exactly in float32


def ablatable(module: nn.Module) -> bool:
    """Whether gates of this module can be held: those of torch's own LSTM and GRU."""
    return isinstance(module, KINDS)


def with_plain_weights(module: nn.Module) -> nn.Module:
    """The module itself, or one of the same kind and weights whose weights are plain parameters, biases included.

    Weights that a parametrization or a hook makes from others (``weight_norm``) are read as they act.
    """
    assert isinstance(module, KINDS)
    options: dict[str, Any] = {"device": "meta"}
    if isinstance(module, nn.RNNBase):
        options |= {key: getattr(module, key) for key in ("num_layers", "batch_first", "dropout", "bidirectional")}
        options |= {"proj_size": module.proj_size} if isinstance(module, nn.LSTM) else {}
    family: Callable[..., nn.Module] = next(kind for kind in KINDS if isinstance(module, kind))
    plain = family(module.input_size, module.hidden_size, **options)
    own = dict(module.named_parameters())
    if own.keys() >= dict(plain.named_parameters()).keys():
        return module
    like = next(iter(own.values()))
    weights: dict[str, Tensor] = {}
    for name, parameter in plain.named_parameters():
        weight = getattr(module, name, None)
        weights[name] = like.new_zeros(parameter.shape) if weight is None else weight.detach().clone()
    plain.load_state_dict(weights, assign=True)
    return plain.train(module.training)


@torch.no_grad()
def hold_gate(module: nn.Module, cell: Cell, gate: str, value: NDArray[np.float64]) -> dict[str, Tensor]:
    """Hold one gate of one cell at ``value (H,)`` in [0, 1] by editing the module's weights in place.

    Returns:
        The weights as they were, for `restore`.

    Raises:
        ValueError: when the cell has no such gate.
    """
    if gate not in cell.gates:
        raise ValueError(f"gate must be one of {', '.join(cell.gates)}, got {gate!r}")
    # torch's row blocks; its z is the share of the old state, our update that of the new one.
    row = {"input": 0, "forget": 1, "output": 3, "reset": 0, "update": 1}[gate]
    suffix = "" if cell.place.stepwise else f"_{cell.name}"
    rows = slice(row * cell.units, (row + 1) * cell.units)
    logit = np.clip(np.log(np.maximum(value, 1e-30)) - np.log(np.maximum(1.0 - value, 1e-30)), -FAR, FAR)
    before: dict[str, Tensor] = {}
    for name in ("weight_ih", "weight_hh", "bias_hh", "bias_ih"):
        parameter = getattr(module, name + suffix)
        before[name + suffix] = parameter.detach().clone()
        parameter[rows] = 0.0
    bias = torch.from_numpy(-logit if gate == "update" else logit)
    parameter[rows] = bias.to(parameter.device, parameter.dtype)
    return before


@torch.no_grad()
def restore(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Undo `hold_gate`."""
    for name, weight in weights.items():
        getattr(module, name).copy_(weight)


def held_value(hold: Hold, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a gate is held: at each unit's own mean, closed, or open."""
    return mean if hold == "mean" else np.full_like(mean, 0.0 if hold == "zero" else 1.0)
