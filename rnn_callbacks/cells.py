"""The equations of recurrent cells, written out on a detached copy of their weights.

A fused ``nn.LSTM`` returns its hidden state at every step and hides everything else. Because it does return every
``h_t``, all gates of all steps follow from one batched product of ``(x_t, h_{t-1})`` with the weights; only an LSTM's
cell state needs a scan over time, and that scan is elementwise.

A `Cell` is one direction of one layer: the map ``state' = F(x, state)`` with its gates laid open. ``cells(module)``
gives the cells of ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and of their single-step forms; a cell of your own joins with
``@cells.register``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch
from typing import ClassVar, final

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Activations:
    """What happens inside a cell, for any number of pairs ``(x_t, h_{t-1})``."""

    values: Tensor  # (..., G + 1, H): G pre-activations of sigmoid gates, then the candidate after its non-linearity

    @property
    def logits(self) -> Tensor:
        """Pre-activations of the sigmoid gates, ``(..., G, H)``, in the order of `Cell.gates`."""
        return self.values[..., :-1, :]

    @property
    def candidate(self) -> Tensor:
        """New content the cell proposes, ``(..., H)``."""
        return self.values[..., -1, :]


@final
@dataclass(frozen=True)
class Place:
    """Where a cell sits in its module."""

    name: str  # l0, l1_reverse, ... as torch names its weights
    layer: int = 0  # from the bottom of the stack
    reverse: bool = False  # reads the sequence from its end
    stepwise: bool = False  # its module is called once per time step (nn.GRUCell) instead of once per sequence


class Cell(ABC):
    """One direction of one recurrent layer, with weights of its own that no training step changes.

    The state is ``[hidden, memory]``: the hidden state is what the module returns at every step, the memory (an LSTM's
    cell state) is what it keeps to itself.

    Args:
        place: layer, direction and name.
        input_size: features of ``x_t``, I.
        units: width of a gate, H.
        output_size: width of the hidden state, P; H unless it is projected.
        memory_size: width of the memory, M; 0 for cells whose state is their output.
    """

    gates: ClassVar[tuple[str, ...]]  # the sigmoid gates
    candidate: ClassVar[str]  # the name of the proposed content
    retention: ClassVar[str | None] = None  # the gate that says how much of the old state is kept ...
    retains_when_open: ClassVar[bool] = True  # ... by being open (LSTM's forget) or closed (GRU's update)
    gates_read_memory: ClassVar[bool] = False  # True for peephole-like cells: they are rebuilt step by step
    bounded: bool = True  # whether the candidate lies in [-1, 1]

    def __init__(
        self, place: Place, *, input_size: int, units: int, output_size: int | None = None, memory_size: int = 0
    ) -> None:
        self.place = place
        self.input_size = input_size
        self.units = units
        self.output_size = units if output_size is None else output_size
        self.memory_size = memory_size

    @property
    def name(self) -> str:
        """``l0``, ``l1_reverse``, ...; unique within a module."""
        return self.place.name

    @property
    def state_size(self) -> int:
        """Width of the whole state, D = P + M."""
        return self.output_size + self.memory_size

    @property
    def parts(self) -> tuple[str, ...]:
        """Names along the second-last axis of `Activations.values`: the gates, then the candidate."""
        return (*self.gates, self.candidate)

    @abstractmethod
    def activations(self, inputs: Tensor, hidden: Tensor, memory: Tensor | None = None) -> Activations:
        """Gates and candidate of N independent pairs ``(x_t, h_{t-1})``.

        Args:
            inputs: ``(N, I)``.
            hidden: ``(N, P)``, the hidden state before the step.
            memory: ``(N, M)``, the memory before the step; given only to cells with `gates_read_memory`.
        """

    @abstractmethod
    def follow(self, inside: Activations, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """States after each of T steps whose gates are known.

        Args:
            inside: activations with leading ``(T, B)``.
            hidden: ``(T, B, P)``, the hidden state *before* each step.
            memory: ``(B, M)``, the memory before the first step.

        Returns:
            Hidden states ``(T, B, P)`` and memories ``(T, B, M)`` after each step.
        """

    @final
    def step(self, inputs: Tensor, state: Tensor) -> Tensor:
        """One step of the map: ``(N, I)`` and state ``(N, D)`` to the next state ``(N, D)``.

        Raises:
            ValueError: when the shapes are not those.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.input_size:
            raise ValueError(f"inputs must be (N, {self.input_size}), got shape {tuple(inputs.shape)}")
        if state.shape != (len(inputs), self.state_size):
            raise ValueError(f"state must be ({len(inputs)}, {self.state_size}), got shape {tuple(state.shape)}")
        hidden, memory = state[:, : self.output_size], state[:, self.output_size :]
        inside = self.activations(inputs, hidden, memory)
        after = self.follow(Activations(inside.values[None]), hidden[None], memory)
        return torch.cat([part[0] for part in after], dim=1)


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """Detached host copies of one torch cell's weights, in torch's own row order; half precision becomes float32."""

    ih: Tensor  # (gates * H, I)
    hh: Tensor  # (gates * H, P)
    bias_ih: Tensor  # (gates * H,), zeros where the module has no bias
    bias_hh: Tensor  # (gates * H,)
    hr: Tensor | None  # (P, H), an LSTM's projection
    nonlinearity: str  # of an nn.RNN: tanh or relu
    place: Place

    @classmethod
    def of(cls, module: nn.RNNBase | nn.RNNCellBase, layer: int = 0, *, reverse: bool = False) -> Weights:
        """Copy what ``module`` uses for one layer and direction; parametrized weights are read as they act."""
        stepwise = isinstance(module, nn.RNNCellBase)
        suffix = "" if stepwise else f"_l{layer}{'_reverse' if reverse else ''}"

        def copy(weight: str) -> Tensor | None:
            value: Tensor | None = getattr(module, weight + suffix, None)
            if value is None:
                return None
            return value.detach().to("cpu", torch.promote_types(value.dtype, torch.float32), copy=True)

        ih, hh = copy("weight_ih"), copy("weight_hh")
        assert ih is not None
        assert hh is not None
        none = ih.new_zeros(len(ih))
        bias_ih, bias_hh = copy("bias_ih"), copy("bias_hh")
        return cls(
            ih=ih,
            hh=hh,
            bias_ih=none if bias_ih is None else bias_ih,
            bias_hh=none if bias_hh is None else bias_hh,
            hr=copy("weight_hr"),
            nonlinearity=getattr(module, "nonlinearity", "tanh"),
            place=Place("cell" if stepwise else suffix[1:], layer, reverse, stepwise),
        )


@final
class RNNCell(Cell):
    """``h' = tanh(W x + b + U h + d)``, or with relu (Elman 1990; ``torch.nn.RNN``)."""

    gates = ()
    candidate = "hidden"

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.place, input_size=weights.ih.shape[1], units=weights.ih.shape[0])
        self.weights = weights
        self.bounded = weights.nonlinearity == "tanh"
        self._bias = weights.bias_ih + weights.bias_hh

    def activations(self, inputs: Tensor, hidden: Tensor, memory: Tensor | None = None) -> Activations:
        values = torch.addmm(self._bias, inputs, self.weights.ih.T).addmm_(hidden, self.weights.hh.T)
        values = values.tanh_() if self.bounded else values.relu_()
        return Activations(values.view(-1, 1, self.units))

    def follow(self, inside: Activations, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


@final
class LSTMCell(Cell):
    """``c' = f c + i g``, ``h' = o tanh(c')``, projected where the module has a ``proj_size`` (``torch.nn.LSTM``).

    torch keeps its weight rows as input, forget, cell, output; here the candidate `cell` comes last.
    """

    gates = ("input", "forget", "output")
    candidate = "cell"
    retention = "forget"

    def __init__(self, weights: Weights) -> None:
        units = weights.ih.shape[0] // 4
        super().__init__(
            weights.place,
            input_size=weights.ih.shape[1],
            units=units,
            output_size=weights.hh.shape[1],
            memory_size=units,
        )
        self.weights = weights
        order = torch.arange(4 * units).view(4, units)[[0, 1, 3, 2]].flatten()
        self._ih, self._hh = weights.ih[order], weights.hh[order]
        self._bias = (weights.bias_ih + weights.bias_hh)[order]

    def activations(self, inputs: Tensor, hidden: Tensor, memory: Tensor | None = None) -> Activations:
        values = torch.addmm(self._bias, inputs, self._ih.T).addmm_(hidden, self._hh.T)
        values[:, 3 * self.units :].tanh_()
        return Activations(values.view(-1, 4, self.units))

    def follow(self, inside: Activations, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        write, keep, output = inside.logits.sigmoid().unbind(-2)
        memories = write * inside.candidate
        for step, kept in enumerate(keep):  # not zip: autograd forbids writing to the views that iteration gives
            memory = memories[step].addcmul_(kept, memory)
        shown = output * memories.tanh()
        return shown if self.weights.hr is None else shown @ self.weights.hr.T, memories


@final
class GRUCell(Cell):
    """``h' = (1 - u) h + u n`` with ``n = tanh(W x + b + r (U h + d))`` (Cho 2014, as in ``torch.nn.GRU``).

    torch's ``z`` multiplies the *old* state. The `update` gate here is ``u = 1 - z``, the share of new content: near 0
    the unit holds its state, near 1 it takes the candidate. Its rows are stored with the sign turned.
    """

    gates = ("reset", "update")
    candidate = "new"
    retention = "update"
    retains_when_open = False

    def __init__(self, weights: Weights) -> None:
        units = weights.ih.shape[0] // 3
        super().__init__(weights.place, input_size=weights.ih.shape[1], units=units)
        self.weights = weights
        sign = torch.ones(3, units, 1, dtype=weights.ih.dtype)
        sign[1] = -1
        sign = sign.view(-1, 1)
        self._ih, self._hh = weights.ih * sign, weights.hh * sign
        self._bias_x = weights.bias_ih * sign[:, 0]
        self._bias_h = weights.bias_hh * sign[:, 0]
        # The reset gate multiplies U h + d, so the candidate's d stays apart from its b.
        self._bias_x[: 2 * units] += self._bias_h[: 2 * units]

    def activations(self, inputs: Tensor, hidden: Tensor, memory: Tensor | None = None) -> Activations:
        gates = 2 * self.units
        values = torch.addmm(self._bias_x, inputs, self._ih.T)
        values[:, :gates].addmm_(hidden, self._hh[:gates].T)
        recurrent = torch.addmm(self._bias_h[gates:], hidden, self._hh[gates:].T)
        reset = values[:, : self.units].sigmoid()
        values[:, gates:].addcmul_(reset, recurrent).tanh_()
        return Activations(values.view(-1, 3, self.units))

    def follow(self, inside: Activations, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        update = inside.logits[..., 1, :].sigmoid()
        return torch.lerp(hidden, inside.candidate, update), hidden.new_zeros(*hidden.shape[:2], 0)


@singledispatch
def cells(module: nn.Module) -> tuple[Cell, ...]:
    """Cells of a recurrent module, from its lowest layer up, forward before reverse, on copies of its weights.

    Register a function of your own module type with ``@cells.register`` to have it watched like the built-in ones.

    Raises:
        TypeError: when nobody registered this type of module.
    """
    raise TypeError(
        f"no equations are known for {type(module).__name__}; expected nn.RNN, nn.LSTM, nn.GRU, one of their "
        "single-step cells, or a type registered with @rnn_callbacks.cells.cells.register"
    )


def is_recurrent(module: nn.Module) -> bool:
    """Whether `cells` knows the equations of this module."""
    return cells.dispatch(type(module)) is not cells.dispatch(object)


def _stack(module: nn.RNNBase) -> list[Weights]:
    directions = (False, True) if module.bidirectional else (False,)
    return [Weights.of(module, layer, reverse=reverse) for layer in range(module.num_layers) for reverse in directions]


@cells.register
def _(module: nn.RNN) -> tuple[Cell, ...]:
    return tuple(RNNCell(weights) for weights in _stack(module))


@cells.register
def _(module: nn.LSTM) -> tuple[Cell, ...]:
    return tuple(LSTMCell(weights) for weights in _stack(module))


@cells.register
def _(module: nn.GRU) -> tuple[Cell, ...]:
    return tuple(GRUCell(weights) for weights in _stack(module))


@cells.register
def _(module: nn.RNNCell) -> tuple[Cell, ...]:
    return (RNNCell(Weights.of(module)),)


@cells.register
def _(module: nn.LSTMCell) -> tuple[Cell, ...]:
    return (LSTMCell(Weights.of(module)),)


@cells.register
def _(module: nn.GRUCell) -> tuple[Cell, ...]:
    return (GRUCell(Weights.of(module)),)
