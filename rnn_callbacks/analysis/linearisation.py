"""Jacobians along a trace for every kind of cell: in closed form where it is known, else by autograd."""

from __future__ import annotations

from functools import singledispatch
from typing import final

import torch
from torch import Tensor

from ..cells import Cell, GRUCell, LSTMCell, RNNCell
from ..rebuild import Trace
from .jacobian_products import Linearisation, difference
from .linearised_cells import ElmanLinearisation, GruLinearisation, LstmLinearisation


@final
class _Unknown(Linearisation):
    """A cell that only says how it steps: products by automatic differentiation, one step at a time.

    What `pull` leaves behind is the gradient of the cell's inputs, since nothing is known of its pre-activations.
    """

    knows_weights = False

    def __init__(self, cell: Cell, inputs: Tensor, states: Tensor, hidden: Tensor, lengths: Tensor) -> None:
        width = cell.output_size
        after = torch.stack([cell.step(x, state) for x, state in zip(inputs, states, strict=True)])
        super().__init__(
            states[..., :width],
            error=difference(after[..., :width], hidden, lengths),
            width=cell.input_size,
            state_size=cell.state_size,
        )
        self.memory = after[..., width:]
        self._cell, self._inputs, self._states = cell, inputs, states

    def _step(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self._inputs[step].clone().requires_grad_()
        state = self._states[step].clone().requires_grad_()
        return inputs, state, self._cell.step(inputs, state)

    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        back = torch.zeros_like(gradients[0])
        for step in range(end - 1, begin - 1, -1):
            with torch.enable_grad():
                inputs, state, after = self._step(step)
            for kind, gradient in enumerate(gradients[step]):
                found = torch.autograd.grad(after, (inputs, state), gradient, retain_graph=True, allow_unused=True)
                inner[step - begin, kind] = 0 if found[0] is None else found[0]
                back[kind] = 0 if found[1] is None else found[1]
            if step > begin:
                gradients[step - 1] += back
        return back

    def push(self, step: int, tangents: Tensor) -> Tensor:
        with torch.enable_grad():
            _, state, after = self._step(step)
            probe = torch.zeros_like(after).requires_grad_()
            # The product from the left is linear in its vector, so its own derivative is the product from the right.
            (pulled,) = torch.autograd.grad(after, state, probe, create_graph=True)
        return torch.stack([torch.autograd.grad(pulled, probe, row, retain_graph=True)[0] for row in tangents])

    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        return inner[:, 0]


def linearise(trace: Trace, sequences: slice = slice(None)) -> Linearisation:
    """The Jacobians along some of a trace's sequences."""
    inputs, hidden = (part[sequences].transpose(0, 1) for part in (trace.inputs, trace.hidden))
    width, initial = trace.cell.output_size, trace.initial[sequences]
    lengths = trace.lengths[sequences]
    if trace.previous is not None:
        given = trace.previous[sequences].transpose(0, 1)
        before, memory = given[..., :width], given[..., width:]
    else:
        before, memory = torch.cat([initial[None, :, :width], hidden[:-1]]), initial[:, width:]
    return _linearise(trace.cell, inputs, before, hidden, lengths, memory)


@singledispatch
def _linearise(
    cell: Cell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor
) -> Linearisation:
    if memory.dim() == 3 or not cell.memory_size:
        memories = memory.expand(len(inputs), *memory.shape[-2:])
        return _Unknown(cell, inputs, torch.cat([before, memories], dim=2), hidden, lengths)
    states = []
    for step, known in zip(inputs, before, strict=True):
        states.append(torch.cat([known, memory], dim=1))
        memory = cell.step(step, states[-1])[:, cell.output_size :]
    return _Unknown(cell, inputs, torch.stack(states), hidden, lengths)


@_linearise.register
def _(cell: RNNCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor) -> Linearisation:
    return ElmanLinearisation(cell, inputs, before, hidden, lengths)


@_linearise.register
def _(cell: GRUCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor) -> Linearisation:
    return GruLinearisation(cell, inputs, before, hidden, lengths)


@_linearise.register
def _(cell: LSTMCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor) -> Linearisation:
    return LstmLinearisation(cell, inputs, before, hidden, lengths, memory)
