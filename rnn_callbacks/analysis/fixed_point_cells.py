"""The fixed-point equations of ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, with all Jacobians in closed form."""

from __future__ import annotations

from functools import singledispatch
from typing import final

import torch
from torch import Tensor

from ..cells import Cell, GRUCell, LSTMCell, RNNCell
from .fixed_point_equations import Equation, less_identity, unknown_equation

STEEPEST = 30.0  # forget pre-activation from which 1 - f is rounding; exp of it still fits float32
_STRETCHED = float(torch.tensor(STEEPEST).exp()) * (1 - 1e-6)


def _scaled(factor: Tensor, weight: Tensor) -> Tensor:
    """Rows of one weight ``(H, F)``, scaled differently for each of N points: ``(N, H, F)``."""
    return factor[:, :, None] * weight


@final
class _RNN(Equation):
    """``tanh(W x + b + U h) = h``, or with relu."""

    saturating: bool

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return self.step(drive, unknown) - unknown

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        after, slope = self._shape(drive, unknown)
        return after - unknown, less_identity(_scaled(slope, self.tensors["hh"]))

    def state(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return unknown

    def step(self, drive: Tensor, state: Tensor) -> Tensor:
        return self._shape(drive, state)[0]

    def jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        return _scaled(self._shape(drive, state)[1], self.tensors["hh"])

    def input_jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        return _scaled(self._shape(drive, state)[1], self.tensors["ih"])

    def _shape(self, drive: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden state and its derivative by the pre-activation."""
        before = torch.addmm(drive, hidden, self.tensors["hh"].T)
        if self.saturating:
            after = before.tanh_()
            return after, 1.0 - after.square()
        # At the kink the slope of its open side, so that a network without biases is not called stable at the origin.
        return before.relu(), (before >= 0).to(before.dtype)


@final
class _GRU(Equation):
    """``n(h) = h`` with ``n = tanh(W x + b + r (U h + d))``; torch's order of rows: reset, z, new."""

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return self._candidate(drive, unknown)[0] - unknown

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        new, reset, recurrent = self._candidate(drive, unknown)
        return new - unknown, less_identity(self._candidate_jacobian(new, reset, recurrent))

    def state(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return unknown

    def step(self, drive: Tensor, state: Tensor) -> Tensor:
        new, _, _ = self._candidate(drive, state)
        return torch.lerp(state, new, self._update(drive, state))

    def jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        units = self.unknowns
        new, reset, recurrent = self._candidate(drive, state)
        update = self._update(drive, state)
        found = self._candidate_jacobian(new, reset, recurrent) * update[:, :, None]
        found -= _scaled((new - state) * update * (1 - update), self.tensors["hh"][units : 2 * units])
        found.diagonal(dim1=1, dim2=2).add_(1 - update)
        return found

    def input_jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        new, reset, recurrent = self._candidate(drive, state)
        update = self._update(drive, state)
        read, keep, write = self.tensors["ih"].chunk(3)
        slope = update * (1 - new.square())
        found = _scaled(slope, write) + _scaled(slope * recurrent * reset * (1 - reset), read)
        return found - _scaled((new - state) * update * (1 - update), keep)

    def _candidate(self, drive: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New content, reset gate and ``U h + d``."""
        units = self.unknowns
        weight = self.tensors["hh"]
        reset = torch.addmm(drive[:, :units], hidden, weight[:units].T).sigmoid_()
        recurrent = torch.addmm(self.tensors["inner_bias"], hidden, weight[2 * units :].T)
        return torch.addcmul(drive[:, 2 * units :], reset, recurrent).tanh_(), reset, recurrent

    def _candidate_jacobian(self, new: Tensor, reset: Tensor, recurrent: Tensor) -> Tensor:
        units = self.unknowns
        slope = 1 - new.square()
        found = _scaled(slope * reset, self.tensors["hh"][2 * units :])
        return found.addcmul_((slope * recurrent * reset * (1 - reset))[:, :, None], self.tensors["hh"][:units])

    def _update(self, drive: Tensor, hidden: Tensor) -> Tensor:
        """Share of new content, 1 - z."""
        rows = slice(self.unknowns, 2 * self.unknowns)
        return torch.addmm(drive[:, rows], hidden, self.tensors["hh"][rows].T).neg_().sigmoid_()


@final
class _LSTM(Equation):
    """``o tanh(c) = h`` with ``c = i g / (1 - f)``, projected where the cell is.

    torch's order of rows: input, forget, cell, output.
    """

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        write, _, new, output, stretch = self._gates(drive, unknown)
        return self._shown(output * (write * new * (1 + stretch)).tanh_()) - unknown

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        write, _, new, output, stretch = self._gates(drive, unknown)
        weight_write, weight_keep, weight_new, weight_output = self.tensors["hh"].chunk(4)
        content = write * new
        tanh = (content * (1 + stretch)).tanh_()
        slope = output * (1 - tanh.square())
        found = _scaled(slope * (1 + stretch) * content * (1 - write), weight_write)
        # Beyond the clamp the forget gate no longer moves.
        found.addcmul_((slope * content * stretch * (stretch < _STRETCHED))[:, :, None], weight_keep)
        found.addcmul_((slope * (1 + stretch) * write * (1 - new.square()))[:, :, None], weight_new)
        found.addcmul_((tanh * output * (1 - output))[:, :, None], weight_output)
        return self._shown(output * tanh) - unknown, less_identity(self._projected(found))

    def resolved(self, drive: Tensor, unknown: Tensor) -> Tensor:
        # With 1 - f below rounding the memory grows on, though too slowly for the equation to say where to.
        return (self._gates(drive, unknown)[-1] < _STRETCHED).all(1)

    def state(self, drive: Tensor, unknown: Tensor) -> Tensor:
        write, _, new, _, stretch = self._gates(drive, unknown)
        return torch.cat([unknown, write * new * (1 + stretch)], dim=1)

    def step(self, drive: Tensor, state: Tensor) -> Tensor:
        hidden, memory = state[:, : self.unknowns], state[:, self.unknowns :]
        write, keep, new, output, _ = self._gates(drive, hidden)
        memory = keep * memory + write * new
        return torch.cat([self._shown(output * memory.tanh()), memory], dim=1)

    def jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        width = self.unknowns
        memory_by_hidden, keep, slope, shown_by_output = self._parts(drive, state, self.tensors["hh"])
        found = state.new_zeros(len(state), self.state_size, self.state_size)
        found[:, width:, :width] = memory_by_hidden
        found[:, width:, width:].diagonal(dim1=1, dim2=2).copy_(keep)
        found[:, :width, :width] = self._projected(shown_by_output + slope[:, :, None] * memory_by_hidden)
        found[:, :width, width:] = self._projected(torch.diag_embed(slope * keep))
        return found

    def input_jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        memory_by_input, _, slope, shown_by_output = self._parts(drive, state, self.tensors["ih"])
        shown = self._projected(shown_by_output + slope[:, :, None] * memory_by_input)
        return torch.cat([shown, memory_by_input], dim=1)

    def _parts(self, drive: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Through ``weight``: d memory; then the forget gate, d shown / d memory, and d shown by the output gate."""
        hidden, memory = state[:, : self.unknowns], state[:, self.unknowns :]
        write, keep, new, output, _ = self._gates(drive, hidden)
        weight_write, weight_keep, weight_new, weight_output = weight.chunk(4)
        by_weight = _scaled(new * write * (1 - write), weight_write)
        by_weight.addcmul_((memory * keep * (1 - keep))[:, :, None], weight_keep)
        by_weight.addcmul_((write * (1 - new.square()))[:, :, None], weight_new)
        tanh = (keep * memory + write * new).tanh_()
        slope = output * (1 - tanh.square())
        return by_weight, keep, slope, _scaled(tanh * output * (1 - output), weight_output)

    def _gates(self, drive: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Input, forget, new content and output, and ``exp`` of the forget gate's pre-activation: f / (1 - f)."""
        write, keep, new, output = torch.addmm(drive, hidden, self.tensors["hh"].T).chunk(4, dim=1)
        stretch = keep.clamp(max=STEEPEST).exp_()
        return write.sigmoid(), keep.sigmoid(), new.tanh(), output.sigmoid(), stretch

    def _shown(self, hidden: Tensor) -> Tensor:
        return hidden @ self.tensors["hr"].T if "hr" in self.tensors else hidden

    def _projected(self, jacobian: Tensor) -> Tensor:
        return self.tensors["hr"] @ jacobian if "hr" in self.tensors else jacobian

    def _limit(self) -> Tensor:
        if "hr" in self.tensors:
            return self.tensors["hr"].abs().sum(1)
        return super()._limit()


@singledispatch
def equation_of(cell: Cell) -> Equation:
    """The fixed-point equation of a cell, in float64; one that only steps, for a cell that torch does not have."""
    return unknown_equation(cell)


def _double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@equation_of.register
def _(cell: RNNCell) -> Equation:
    own = cell.weights
    ih, hh, bias, inner = _double(own.ih, own.hh, own.bias_ih, own.bias_hh)
    found = _RNN(
        {"ih": ih, "hh": hh, "bias": bias + inner},
        unknowns=cell.units,
        output_size=cell.units,
        state_size=cell.units,
        limit=ih.new_ones(cell.units) if cell.bounded else None,
    )
    found.saturating = cell.bounded
    return found


@equation_of.register
def _(cell: GRUCell) -> Equation:
    own, gates = cell.weights, 2 * cell.units
    ih, hh, bias, inner = _double(own.ih, own.hh, own.bias_ih, own.bias_hh)
    bias = bias.clone()
    bias[:gates] += inner[:gates]
    tensors = {"ih": ih, "hh": hh, "bias": bias, "inner_bias": inner[gates:]}
    return _GRU(
        tensors, unknowns=cell.units, output_size=cell.units, state_size=cell.units, limit=ih.new_ones(cell.units)
    )


@equation_of.register
def _(cell: LSTMCell) -> Equation:
    own = cell.weights
    ih, hh, bias, inner = _double(own.ih, own.hh, own.bias_ih, own.bias_hh)
    tensors = {"ih": ih, "hh": hh, "bias": bias + inner}
    if own.hr is not None:
        tensors["hr"] = own.hr.double()
    found = _LSTM(
        tensors,
        unknowns=cell.output_size,
        output_size=cell.output_size,
        state_size=cell.state_size,
        limit=ih.new_ones(cell.output_size),
    )
    found.limit = found._limit()
    return found
