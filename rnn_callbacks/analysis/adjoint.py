"""The total gradient at every step of every layer, from the direct one at a module's boundary.

Walks a call's layers from the top down and each cell's steps from the last back, a few sequences at a time. Beside the
real gradients of the first few sequences travel *impulses*: the direct gradient of one single step, from which one sees
how far back the loss of that moment is felt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..rebuild import Trace, dropout_masks, flip, traces
from ..tape import Call
from .jacobian_products import Linearisation
from .linearisation import linearise

ROWS = 2048  # steps in work at a time: memory stays flat, and larger pieces were slower
STRETCH = 16  # steps after which impulses are scaled back, before single precision loses them


@final
@dataclass(frozen=True, eq=False)
class Impulses:
    """What is left, further and further back, of the direct gradient of a single step; one row per sequence.

    In a user's own loop over steps the gradient that a step's state gets is the total one, so that starts there.
    """

    sizes: Tensor  # (F, T), log of |dL/dc| (|dL/dh| without a memory) at each lag; -inf where nothing is left
    lags: Tensor  # (F,), the longest lag that was heard; -1 where a sequence has no direct gradient


@final
@dataclass(frozen=True, eq=False)
class CellGradients:
    """Total gradients of one cell over the B sequences of a call, in the order in which the cell reads."""

    trace: Trace
    total: Tensor  # (T, B, D), dL/d[h_t, c_t], with all that goes through later steps; of c_t, through h_t too
    sent: Tensor  # (T, B), size of the gradient of the state after each step, h and c apart, ...
    received: Tensor  # (T, B), ... and of what the step hands on of it to the state before; 0 at the first step
    impulses: Impulses
    contribution: Tensor  # (T,), |dL/dU| that each step makes, of the first few sequences; 0 for unknown cells
    direct: Tensor  # (T, B, D), what of it was heard at the boundary, or came from the layer above
    bias: Tensor  # (B, G * H), dL/d(bias_hh) of each sequence, torch's row order; no columns for unknown cells
    changed: bool  # whether a user's own loop hands on another state than it was given, in the first few sequences
    joined: bool  # whether several calls over parts of the sequences make up the whole
    rebuild_error: float  # of the hidden states from which this was made
    input_gradients: Tensor | None  # (T, B, I), where asked for


def total_gradients(call: Call, *, impulses: int = 8, inputs: bool = False) -> tuple[CellGradients, ...]:
    """The total gradient through every step of every cell of a module, lowest layer first.

    Args:
        call: with the boundary gradients that arrived.
        impulses: for how many sequences to follow single moments too.
        inputs: give the gradients of the module's own inputs as well.

    Raises:
        ValueError: when the call was recorded without gradients.
    """
    if not call.boundaries:
        raise ValueError("the call has no gradients: record it with Recorder(model, gradients=True)")
    if not any(boundary.arrived for boundary in call.boundaries):
        raise ValueError("no gradient came back to the call: run loss.backward() before, on a loss of its outputs")
    walked = traces(call)
    layers = 1 + max(trace.cell.place.layer for trace in walked)
    masks = dropout_masks(call, layers - 1)
    outputs = _along_time([boundary.outputs for boundary in call.boundaries], call)
    found: dict[int, CellGradients] = {}
    for layer in reversed(range(layers)):
        rows = [row for row, trace in enumerate(walked) if trace.cell.place.layer == layer]
        below = torch.zeros((), dtype=outputs.dtype)
        for row, mine in zip(rows, outputs.chunk(len(rows), dim=2), strict=True):
            trace = walked[row]
            mine = flip(mine, trace.lengths) if trace.cell.place.reverse else mine
            found[row] = _of_cell(trace, call, _direct(mine, trace, call, row), impulses, inputs=inputs or layer > 0)
            handed = found[row].input_gradients
            if handed is not None:
                handed = handed.transpose(0, 1)
                below = below + (flip(handed, trace.lengths) if trace.cell.place.reverse else handed)
        outputs = below * masks[layer - 1] if masks and layer else below
    return tuple(found[row] for row in sorted(found))


def _along_time(parts: Sequence[Tensor], call: Call) -> Tensor:
    """Gradients of calls that were joined, one after the other; those of sequences that had left are zero."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_zeros(call.outputs.shape[1], *call.outputs.shape[::2])
    begin = 0
    for part in parts:
        whole[begin : begin + part.shape[1], : len(part)] = part.transpose(0, 1)
        begin += part.shape[1]
    return whole.transpose(0, 1)


def _ends(call: Call) -> list[int]:
    """One past the last step of each call that was joined."""
    return torch.tensor([boundary.outputs.shape[1] for boundary in call.boundaries]).cumsum(0).tolist()


def _direct(outputs: Tensor, trace: Trace, call: Call, row: int) -> Tensor:
    """Direct gradient of the whole state, ``(T, B, D)``: what came to the outputs, and to the states returned last."""
    sequences, steps, width = outputs.shape
    state = outputs.new_zeros(steps, sequences, trace.cell.state_size)
    valid = torch.arange(steps)[:, None] < trace.lengths
    state[..., :width] = outputs.transpose(0, 1) * valid[..., None]
    begin = 0
    for boundary, end in zip(call.boundaries, _ends(call), strict=True):
        last = trace.lengths[: boundary.final.shape[1]].clamp(max=end) - 1
        there = (last >= begin).nonzero().squeeze(1)
        state[last[there], there] += boundary.final[row, there]
        if boundary.hidden_whole:  # the last state's gradient holds that of the output it went into
            state[last[there], there, :width] -= outputs[there, last[there]]
        begin = end
    return state


def _last(trace: Trace, call: Call, group: slice) -> Tensor:
    """Where each call that was joined returned its last state, ``(T, B, 1)``: 1 there, else 0."""
    lengths = trace.lengths[group]
    found = torch.zeros(trace.inputs.shape[1], len(lengths), 1)
    for end in _ends(call):
        found[lengths.clamp(max=end) - 1, torch.arange(len(lengths))] = 1.0
    return found


def _of_cell(trace: Trace, call: Call, direct: Tensor, few: int, *, inputs: bool) -> CellGradients:
    steps, sequences = direct.shape[:2]
    size = max(1, ROWS // steps)
    few = min(few, max(1, 2 * size))  # of long sequences fewer, for impulses take twice the memory
    begins = [0, *range(min(few, sequences), sequences, size)] if few else list(range(0, sequences, size))
    parts = [
        _of_group(trace, call, direct[:, begin:end], slice(begin, end), follow=few > 0 and begin == 0, inputs=inputs)
        for begin, end in zip(begins, [*begins[1:], sequences], strict=True)
        if begin < end
    ]
    handed = [part.input_gradients for part in parts if part.input_gradients is not None]
    return CellGradients(
        trace=trace,
        total=torch.cat([part.total for part in parts], 1),
        sent=torch.cat([part.sent for part in parts], 1),
        received=torch.cat([part.received for part in parts], 1),
        impulses=parts[0].impulses,
        contribution=parts[0].contribution,
        direct=direct,
        bias=torch.cat([part.bias for part in parts]),
        changed=parts[0].changed,
        joined=parts[0].joined,
        rebuild_error=max(part.rebuild_error for part in parts),
        input_gradients=torch.cat(handed, 1) if handed else None,
    )


def _of_group(trace: Trace, call: Call, direct: Tensor, group: slice, *, follow: bool, inputs: bool) -> CellGradients:
    """Some of the sequences, few enough to be in work at once."""
    cell, lengths = trace.cell, trace.lengths[group]
    steps, sequences, size = direct.shape
    flow = linearise(trace, group)
    if any(boundary.memory_whole for boundary in call.boundaries):
        direct[..., cell.output_size :] -= flow.shown(direct[..., : cell.output_size]) * _last(trace, call, group)
    gradients = direct.new_zeros(steps, 1 + follow, sequences, size)
    gradients[:, 0] = direct
    handed_on = _handed_on(trace, flow, group)
    anchors, changed = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    if follow:
        anchors, changed = _set_impulses(gradients, lengths), _changed(trace, call, handed_on, group)
        anchors[changed] = -1  # what goes through a change that nobody heard is not known
    walk = _Walk(flow, gradients, cell.input_size if inputs else 0, keep=follow and flow.knows_weights)
    walk.back(call, handed_on)
    # Double precision, because squares of small gradients vanish before the gradients do.
    sent = gradients[:, 0].norm(dim=2, dtype=torch.float64)
    within = (walk.received[1:] == 0).all(1)
    walk.received[1:][within] = (gradients[:-1, 0] - direct[:-1]).norm(dim=2, dtype=torch.float64)[within]
    if cell.memory_size:
        gradients[..., cell.output_size :] = flow.memory_gradients(gradients)
    impulses = Impulses(direct.new_zeros(0, steps).double(), anchors)
    if follow:
        seen = gradients[:, 1, :, cell.output_size :] if cell.memory_size else gradients[:, 1]
        impulses = _impulses(seen, walk.scales, anchors)
    return CellGradients(
        trace=trace,
        total=gradients[:, 0],
        sent=sent,
        received=walk.received,
        impulses=impulses,
        contribution=_contribution(walk, lengths, reverse=cell.place.reverse)
        if walk.deltas is not None
        else direct.new_zeros(steps),
        direct=direct,
        bias=walk.bias,
        changed=bool(changed.any()),
        joined=len(call.boundaries) > 1 and trace.previous is None,
        rebuild_error=flow.error,
        input_gradients=walk.input_gradients,
    )


def _set_impulses(gradients: Tensor, lengths: Tensor) -> Tensor:
    """Put a single step's direct gradient, at size 1, in the second row of each sequence; the steps, -1 for none.

    The steps are spread over the second half of the sequences, the last one first, as far as the loss has a say there.
    """
    sequences = torch.arange(len(lengths))
    wanted = lengths - 1 - sequences * (lengths // 2) // max(1, len(lengths))
    felt = (gradients[:, 0] != 0).any(2)  # (T, B)
    away = (torch.arange(len(felt))[:, None] - wanted).abs().masked_fill(~felt, len(felt))
    anchors = torch.where(felt.any(0), away.argmin(0), -1)
    impulses = gradients[anchors, 0, sequences].double()
    sizes = impulses.norm(dim=1, keepdim=True)
    heard = (anchors >= 0).nonzero().squeeze(1)
    gradients[anchors[heard], 1, heard] = (impulses / sizes)[heard].to(gradients.dtype)
    return anchors


def _handed_on(trace: Trace, flow: Linearisation, group: slice) -> Tensor | None:
    """Whether each number of the state was handed to the next step as it was, ``(T - 1, B, D)``; None for always."""
    if trace.previous is None:
        return None
    cell = trace.cell
    given = trace.previous[group, 1:].transpose(0, 1)
    hidden = trace.hidden[group, :-1].transpose(0, 1)
    parts = [given[..., : cell.output_size] == hidden]
    if cell.memory_size and flow.memory is not None:  # rebuilt, so equal but for rounding
        memory, before = flow.memory[:-1], given[..., cell.output_size :]
        parts.append((memory - before).abs() <= trace.tolerance * before.abs().clamp(min=1))
    return torch.cat(parts, dim=2)


def _changed(trace: Trace, call: Call, handed_on: Tensor | None, group: slice) -> Tensor:
    """Which sequences a user's own loop hands on a changed state, other than a cut or a fresh one, ``(B,)``."""
    if trace.previous is None or handed_on is None:
        return torch.zeros(len(trace.lengths[group]), dtype=torch.bool)
    given = trace.previous[group, 1:].transpose(0, 1)
    fresh = (given == trace.initial[group]) | (given == 0)
    steps = torch.arange(1, len(given) + 1)[:, None] < trace.lengths[group]
    changed = (~handed_on & ~fresh).any(2) & steps
    ends = _ends(call)
    for end, boundary in zip(ends[:-1], call.boundaries[1:], strict=True):
        if not boundary.connected:
            changed[end - 1] = False
    return changed.any(0)


@final
class _Walk:
    """From the last step back to the first, a stretch at a time, gathering what is only in reach on the way.

    Args:
        flow: Jacobians of the steps.
        gradients: ``(T, K, B, D)``, the direct ones; completed in place.
        inputs: how wide the gradients of the inputs are that are to be gathered too; 0 for none.
        keep: whether to keep the gradients of the pre-activations.
    """

    def __init__(self, flow: Linearisation, gradients: Tensor, inputs: int, *, keep: bool) -> None:
        steps, self.kinds, sequences, _ = gradients.shape
        self.flow, self.gradients, self.steps = flow, gradients, steps
        self.bias = gradients.new_zeros(sequences, flow.width if flow.knows_weights else 0)
        self.received = torch.zeros(steps, sequences, dtype=torch.float64)  # only where calls were joined
        # Log of what impulses are to be multiplied with, for they are scaled back on the way.
        self.scales = torch.zeros(steps, sequences, dtype=torch.float64)
        self.deltas = gradients.new_empty(steps, sequences, flow.width) if keep else None
        self.input_gradients = gradients.new_empty(steps, sequences, inputs) if inputs else None

    def back(self, call: Call, handed_on: Tensor | None) -> None:
        """Walk.

        Where calls were joined, the gradient that goes from one to the one before came with the gradient of the state
        returned last, or not at all; an impulse has to be handed on, if the state was, by a graph that lets it through.
        """
        ends = _ends(call)
        connected = {end: part.connections for end, part in zip(ends[:-1], call.boundaries[1:], strict=True)}
        width = self.flow.before.shape[2]
        stretch = STRETCH if self.kinds > 1 else 4 * STRETCH
        stops = sorted({*range(0, self.steps, stretch), *ends})
        offset = torch.zeros(self.gradients.shape[2], dtype=torch.float64)
        scratch = self.gradients.new_empty(stretch, *self.gradients.shape[1:3], self.flow.width)
        for begin, end in reversed(list(itertools.pairwise(stops))):
            inner = scratch[: end - begin]
            back = self.flow.pull(self.gradients, inner, begin, end)
            self._gather(inner, begin, end)
            self.scales[begin:end] = offset
            if not begin:
                break
            if begin in connected:
                self.received[begin] = back[0].norm(dim=1, dtype=torch.float64)
            else:
                self.gradients[begin - 1, 0] += back[0]
            if self.kinds > 1:
                hidden, memory = connected.get(begin, (True, True))
                back[1, :, :width] *= hidden
                back[1, :, width:] *= memory
                if handed_on is not None:
                    back[1] *= handed_on[begin - 1]
                size = back[1].double().norm(dim=1)
                size[size == 0] = 1.0
                offset = offset + size.log()
                self.gradients[begin - 1, 1] += back[1] / size.to(back.dtype)[:, None]

    def _gather(self, inner: Tensor, begin: int, end: int) -> None:
        if self.flow.knows_weights:
            self.bias += inner[:, 0].sum(0)
        if self.deltas is not None:
            self.deltas[begin:end] = inner[:, 0]
        if self.input_gradients is not None:
            self.input_gradients[begin:end] = self.flow.input_gradients(self.gradients, inner, begin, end)


def _impulses(seen: Tensor, scales: Tensor, anchors: Tensor) -> Impulses:
    """Sizes by lag, from what ``(T, F, P)`` is left of each impulse at each step."""
    steps = len(seen)
    sizes = (seen.double().norm(dim=2).log() + scales).T  # (F, T), by step
    at = anchors[:, None] - torch.arange(steps)
    by_lag = torch.where(at >= 0, sizes.gather(1, at.clamp(min=0)), -torch.inf)
    return Impulses(by_lag, anchors)


def _contribution(walk: _Walk, lengths: Tensor, *, reverse: bool) -> Tensor:
    """``|dL/dU|`` (Frobenius) that each step makes, ``(T,)``, as the user counts steps, from products of sequences."""
    assert walk.deltas is not None
    deltas, before = walk.deltas, walk.flow.before
    if reverse:
        there = torch.arange(walk.steps)[:, None, None] < lengths[:, None]  # `flip` repeats a step in the padding
        deltas, before = (flip(part.transpose(0, 1), lengths).transpose(0, 1) * there for part in (deltas, before))
    deltas, before = deltas.double(), before.double()
    products = torch.bmm(deltas, deltas.transpose(1, 2)) * torch.bmm(before, before.transpose(1, 2))
    return products.sum((1, 2)).clamp(min=0).sqrt()
