"""The Jacobians of torch's own cells along real sequences, in closed form.

Each step's Jacobian is a diagonal part (what is kept) plus the recurrent matrix with elementwise factors before it.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..cells import GRUCell, LSTMCell, RNNCell
from .jacobian_products import Linearisation, difference


@final
class ElmanLinearisation(Linearisation):
    """``h' = f(W x + U h)``: the slope of f."""

    def __init__(self, cell: RNNCell, inputs: Tensor, before: Tensor, hidden: Tensor, lengths: Tensor) -> None:
        own = cell.weights
        values = torch.addmm(own.bias_ih + own.bias_hh, inputs.flatten(0, 1), own.ih.T)
        values = values.addmm_(before.flatten(0, 1), own.hh.T).view_as(hidden)
        values = values.tanh_() if cell.bounded else values.relu_()
        super().__init__(
            before, error=difference(values, hidden, lengths), width=cell.units, state_size=cell.state_size
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
class GruLinearisation(Linearisation):
    """A share z of the old state is kept; reset, z and candidate each feel it through the recurrent matrix."""

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
            error=difference(torch.addcmul(new, keep, apart), hidden, lengths),
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
class LstmLinearisation(Linearisation):
    """The memory is kept by the forget gate; all four gates feel the hidden state, which shows the memory."""

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
            before, error=difference(rebuilt, hidden, lengths), width=4 * units, state_size=cell.state_size
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


def _scan(written: Tensor, keep: Tensor, memory: Tensor) -> Tensor:
    """Memories after each step, ``(T, B, H)``, in place of what was written; the ones before are given or follow."""
    if memory.dim() == 3:
        return written.addcmul_(keep, memory)
    for new, kept in zip(written.unbind(), keep.unbind(), strict=True):
        memory = new.addcmul_(kept, memory)
    return written
