"""How a small change of the state at one step moves the state at the next, along real sequences.

The Jacobian of every step is kept as the few elementwise factors it is made of, and only ever multiplied with vectors:
`Linearisation.pull` takes gradients back in time, `Linearisation.push` takes tangents forward. A step then costs one
product with the recurrent matrix, as the step itself does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import final

import torch
from torch import Tensor

from ..cells import Cell, GRUCell, LSTMCell, RNNCell
from ..rebuild import Trace


class Linearisation(ABC):
    """The Jacobians of T steps of B sequences, in the order in which the cell reads.

    The state is ``[h, c]``, of width D. K gradients or tangents of each sequence travel together, ``(K, B, D)``.

    Args:
        before: ``(T, B, P)``, hidden state before each step.
        error: largest difference of the rebuilt hidden states to the recorded ones, relative to max(1, |h|).
        width: of what `pull` leaves behind at each step: the gradient of the cell's pre-activations as the recurrent
            matrix sees them, in torch's row order, G * H.
    """

    memory: Tensor | None = None  # (T, B, M), after each step, of cells with a memory in a user's own loop
    knows_weights = True  # whether what `pull` leaves behind is the gradient of pre-activations

    def __init__(self, before: Tensor, *, error: float, width: int, state_size: int) -> None:
        self.before = before
        self.error = error
        self.width = width
        self.state_size = state_size

    @abstractmethod
    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        """Take gradients back through the steps from ``end - 1`` to ``begin``.

        Args:
            gradients: ``(T, K, B, D)``, of the state after each step; holds the direct gradients and is completed in
                place: afterwards the rows from ``begin`` to ``end`` hold all that the later ones send back.
            inner: ``(end - begin, K, B, width)``, written to.
            begin: first step.
            end: one past the last.

        Returns:
            What goes back into the state before ``begin``, ``(K, B, D)``.
        """

    @abstractmethod
    def push(self, step: int, tangents: Tensor) -> Tensor:
        """Take tangents ``(K, B, D)`` of the state before a step to those after it."""

    @abstractmethod
    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        """Gradients of the cell's inputs, ``(end - begin, B, I)``, of the first of the K, after the same `pull`."""

    def memory_gradients(self, gradients: Tensor) -> Tensor:
        """Total gradient of the memory, ``(T, K, B, M)``, after `pull`: with what it does through ``h`` of its step."""
        return gradients[..., self.before.shape[2] :]

    def shown(self, hidden: Tensor) -> Tensor:
        """What gradients of the hidden state after each step, ``(T, B, P)``, are for the memory through it alone.

        Raises:
            ValueError: for cells whose equations are not known so far.
        """
        raise ValueError(
            "gradients through time of a cell of your own with a memory need the gradient of its memory apart from "
            "that of its hidden state, which a loop over single steps does not give"
        )


@final
class _Elman(Linearisation):
    def __init__(self, cell: RNNCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor) -> None:
        own = cell.weights
        values = torch.addmm(own.bias_ih + own.bias_hh, inputs.flatten(0, 1), own.ih.T)
        values = values.addmm_(before.flatten(0, 1), own.hh.T).view_as(hidden)
        values = values.tanh_() if cell.bounded else values.relu_()
        super().__init__(
            before, error=_difference(values, hidden, lengths), width=cell.units, state_size=cell.state_size
        )
        self._slope = values.square_().neg_().add_(1) if cell.bounded else (values > 0).to(values.dtype)
        self._slopes = self._slope.unbind()
        self._ih, self._hh = own.ih, own.hh

    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        rows, deltas, hh = gradients[begin:end].unbind(), inner.unbind(), self._hh
        slopes = self._slopes[begin:end]
        for step in range(len(rows) - 1, 0, -1):
            torch.mul(rows[step], slopes[step], out=deltas[step])
            rows[step - 1].flatten(0, 1).addmm_(deltas[step].flatten(0, 1), hh)
        torch.mul(rows[0], slopes[0], out=deltas[0])
        return deltas[0] @ hh

    def push(self, step: int, tangents: Tensor) -> Tensor:
        return (tangents @ self._hh.T).mul_(self._slopes[step])

    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        return inner[:, 0] @ self._ih


@final
class _Gru(Linearisation):
    def __init__(self, cell: GRUCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor) -> None:
        own, units = cell.weights, cell.units
        steps, sequences = before.shape[:2]
        drive = torch.addmm(own.bias_ih, inputs.flatten(0, 1), own.ih.T).view(steps, sequences, 3, units)
        recurrent = torch.addmm(own.bias_hh, before.flatten(0, 1), own.hh.T).view(steps, sequences, 3, units)
        reset, keep = drive[:, :, :2].add_(recurrent[:, :, :2]).sigmoid_().unbind(2)
        inner = recurrent[:, :, 2]
        new = torch.addcmul(drive[:, :, 2], reset, inner).tanh_()
        apart = before - new
        super().__init__(
            before,
            error=_difference(torch.addcmul(new, keep, apart), hidden, lengths),
            width=3 * units,
            state_size=units,
        )
        # dh'/d(pre-activation) of reset, of torch's z, of the candidate: first as the inputs see it, then as U does.
        self._new = (1 - keep).mul_(new.square_().neg_().add_(1))
        factors = torch.empty_like(drive)
        torch.mul(self._new, inner, out=factors[:, :, 0])
        factors[:, :, 0].mul_(reset).mul_(1 - reset)
        torch.mul(apart, keep, out=factors[:, :, 1])
        factors[:, :, 1].mul_(1 - keep)
        torch.mul(self._new, reset, out=factors[:, :, 2])
        self._factors, self._keeps = factors.unbind(), keep.contiguous().unbind()
        self._ih, self._hh = own.ih, own.hh

    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        kinds, sequences, units = gradients.shape[1:]
        rows, flat = gradients[begin:end].unbind(), gradients[begin:end].flatten(1, 2).unbind()
        deltas = inner.view(end - begin, kinds, sequences, 3, units).unbind()
        flat_deltas, hh = inner.flatten(1, 2).unbind(), self._hh
        wide = gradients[begin:end].unsqueeze(3).unbind()
        factors, keeps = self._factors[begin:end], self._keeps[begin:end]
        for step in range(len(rows) - 1, 0, -1):
            torch.mul(wide[step], factors[step], out=deltas[step])
            rows[step - 1].addcmul_(rows[step], keeps[step])
            flat[step - 1].addmm_(flat_deltas[step], hh)
        torch.mul(wide[0], factors[0], out=deltas[0])
        return torch.addcmul(inner[0] @ hh, rows[0], keeps[0])

    def push(self, step: int, tangents: Tensor) -> Tensor:
        kinds, sequences, units = tangents.shape
        moved = (tangents @ self._hh.T).view(kinds, sequences, 3, units).mul_(self._factors[step])
        return moved.sum(2).addcmul_(tangents, self._keeps[step])

    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        units = gradients.shape[-1]
        gates = inner[:, 0, :, : 2 * units] @ self._ih[: 2 * units]
        return gates + (gradients[begin:end, 0] * self._new[begin:end]) @ self._ih[2 * units :]


@final
class _Lstm(Linearisation):
    def __init__(
        self, cell: LSTMCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor
    ) -> None:
        own, units = cell.weights, cell.units
        steps, sequences = before.shape[:2]
        values = torch.addmm(own.bias_ih + own.bias_hh, inputs.flatten(0, 1), own.ih.T)
        values = values.addmm_(before.flatten(0, 1), own.hh.T).view(steps, sequences, 4, units)
        write, forget, new, output = values.unbind(2)
        values[:, :, :2].sigmoid_()
        new.tanh_()
        output.sigmoid_()
        memories = _scan(write * new, forget, memory)
        earlier = memory if memory.dim() == 3 else torch.cat([memory[None], memories[:-1]])
        kept = memories.clone() if memory.dim() == 3 else None
        shown = memories.tanh_()  # the memories themselves are not needed any more
        rebuilt = output * shown
        if own.hr is not None:
            rebuilt = rebuilt @ own.hr.T
        super().__init__(
            before, error=_difference(rebuilt, hidden, lengths), width=4 * units, state_size=cell.state_size
        )
        self.memory = kept
        self._keeps = forget.contiguous().unbind()
        factors = torch.empty_like(values)
        torch.mul(new, write, out=factors[:, :, 0])
        factors[:, :, 0].mul_(1 - write)
        torch.mul(earlier, forget, out=factors[:, :, 1])
        factors[:, :, 1].mul_(1 - forget)
        torch.mul(write, 1 - new.square(), out=factors[:, :, 2])
        torch.mul(shown, output, out=factors[:, :, 3])
        factors[:, :, 3].mul_(1 - output)
        self._show = output * (1 - shown.square())  # dh/dc
        self._factors, self._shows = factors.unbind(), self._show.unbind()
        self._ih, self._hh, self._hr = own.ih, own.hh, own.hr
        self._units = units

    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        kinds, sequences = gradients.shape[1:3]
        units, width, hh = self._units, self.before.shape[2], self._hh
        hidden, memory = gradients[begin:end, ..., :width].unbind(), gradients[begin:end, ..., width:].unbind()
        flat = gradients[begin:end].flatten(1, 2)[..., :width].unbind()
        deltas = inner.view(end - begin, kinds, sequences, 4, units)
        by_memory, by_output = deltas[:, :, :, :3].unbind(), deltas[:, :, :, 3].unbind()
        flat_deltas = inner.flatten(1, 2).unbind()
        factors, keeps, shows = self._factors[begin:end], self._keeps[begin:end], self._shows[begin:end]
        back = gradients.new_empty(kinds, sequences, self.state_size)
        for step in range(len(hidden) - 1, -1, -1):
            shown = hidden[step] if self._hr is None else hidden[step] @ self._hr
            total = torch.addcmul(memory[step], shown, shows[step])
            torch.mul(total.unsqueeze(2), factors[step][:, :3], out=by_memory[step])
            torch.mul(shown, factors[step][:, 3], out=by_output[step])
            if step:
                memory[step - 1].addcmul_(total, keeps[step])
                flat[step - 1].addmm_(flat_deltas[step], hh)
            else:
                torch.mul(total, keeps[step], out=back[..., width:])
                back[..., :width] = inner[0] @ hh
        return back

    def push(self, step: int, tangents: Tensor) -> Tensor:
        kinds, sequences = tangents.shape[:2]
        width = self.before.shape[2]
        moved = (tangents[..., :width] @ self._hh.T).view(kinds, sequences, 4, self._units).mul_(self._factors[step])
        memory = moved[:, :, :3].sum(2).addcmul_(tangents[..., width:], self._keeps[step])
        hidden = torch.addcmul(moved[:, :, 3], memory, self._shows[step])
        if self._hr is not None:
            hidden = hidden @ self._hr.T
        return torch.cat([hidden, memory], dim=2)

    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        return inner[:, 0] @ self._ih

    def memory_gradients(self, gradients: Tensor) -> Tensor:
        hidden, memory = gradients.split_with_sizes([self.before.shape[2], self._units], dim=-1)
        shown = hidden if self._hr is None else hidden @ self._hr
        return torch.addcmul(memory, shown, self._show[:, None])

    def shown(self, hidden: Tensor) -> Tensor:
        return (hidden if self._hr is None else hidden @ self._hr) * self._show


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
            error=_difference(after[..., :width], hidden, lengths),
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
    return _Elman(cell, inputs, before, hidden, lengths)


@_linearise.register
def _(cell: GRUCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor) -> Linearisation:
    return _Gru(cell, inputs, before, hidden, lengths)


@_linearise.register
def _(cell: LSTMCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor, memory: Tensor) -> Linearisation:
    return _Lstm(cell, inputs, before, hidden, lengths, memory)


def _scan(written: Tensor, keep: Tensor, memory: Tensor) -> Tensor:
    """Memories after each step, ``(T, B, H)``, in place of what was written; the ones before are given or follow."""
    if memory.dim() == 3:
        return written.addcmul_(keep, memory)
    for new, kept in zip(written.unbind(), keep.unbind(), strict=True):
        memory = new.addcmul_(kept, memory)
    return written


def _difference(rebuilt: Tensor, hidden: Tensor, lengths: Tensor) -> float:
    """Largest difference relative to max(1, |h|), padding left out; infinite where a number is not finite."""
    valid = torch.arange(len(hidden))[:, None] < lengths
    apart = ((rebuilt - hidden).abs_() / hidden.abs().clamp(min=1)).amax(2).masked_fill_(~valid, 0.0)
    worst = float(apart.max()) if apart.numel() else 0.0
    return worst if worst == worst else float("inf")
