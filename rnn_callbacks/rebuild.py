"""The inside of a recurrent module, rebuilt from what crossed its boundary.

`traces` gives every cell of a stack its own inputs and hidden states: the top layer's were heard, the lower layers'
come from running them once more, one by one, on the recorded inputs. `chunks` then walks along a trace and yields all
gates of about a thousand steps at a time, so that memory stays flat however long the sequences are. Each chunk carries
the hidden states rebuilt from its gates beside the recorded ones: if the two differ, the rebuilt inside is not true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .cells import Activations, Cell, GRUCell, LSTMCell, RNNCell
from .tape import Call, Dropout, Tape

ROWS = 1024  # steps per chunk; measured: 0.74 of a GRU's forward pass in chunks of 1024, 1.06 in one piece


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """One cell over one call, in the order in which it read: a reversed cell's sequences are turned round."""

    cell: Cell
    inputs: Tensor  # (B, T, I)
    hidden: Tensor  # (B, T, P), after each step
    initial: Tensor  # (B, D)
    lengths: Tensor  # (B,)
    previous: Tensor | None  # (B, T, D), where a user's loop set the state before each step
    final: Tensor | None  # (B, P), the last hidden state as the module returned it, where known
    tolerance: float
    batch: int

    @property
    def ragged(self) -> bool:
        """Whether some sequences are shorter than T."""
        return bool((self.lengths < self.inputs.shape[1]).any())


@final
@dataclass(frozen=True, eq=False)
class Chunk:
    """N steps of a trace, padding left out."""

    times: Tensor  # (N,), position in the sequence as the user counts it, from 0
    sequences: Tensor  # (N,), row of the call
    inside: Activations  # (N, G + 1, H)
    rebuilt: Tensor  # (N, P), hidden state after the step, from the equations
    hidden: Tensor  # (N, P), the same, as recorded
    memory: Tensor  # (N, M), after the step


def traces(call: Call) -> tuple[Trace, ...]:
    """One trace per cell, from the lowest layer up, forward before reverse.

    The dropout between the layers of a module in training mode is replayed from the recorded random state. That holds
    for the host's generator; with another one the rebuilt top layer will not match and be refused as such.
    """
    layers = 1 + max(cell.place.layer for cell in call.cells)
    masks = dropout_masks(call, layers - 1)
    found: list[Trace] = []
    inputs = call.inputs
    for layer in range(layers):
        rows = [row for row, cell in enumerate(call.cells) if cell.place.layer == layer]
        stack = [call.cells[row] for row in rows]
        outputs = call.outputs if layer == layers - 1 else _run_layer(stack, inputs, call, call.initial[rows])
        for place, hidden in enumerate(outputs.chunk(len(stack), dim=2)):
            found.append(_trace(stack[place], inputs, hidden, call, rows[place]))
        inputs = outputs * masks[layer] if layer < len(masks) else outputs
    return tuple(found)


def traces_by_cell(tape: Tape) -> dict[str, list[Trace]]:
    """Traces of every cell of a module over all its recorded calls, by cell name, lowest layer first."""
    found: dict[str, list[Trace]] = {}
    for call in tape.calls:
        for trace in traces(call):
            found.setdefault(trace.cell.name, []).append(trace)
    return found


def rerun(call: Call, cells: Sequence[Cell]) -> Call:
    """The same inputs, from the same initial states, through a module of other weights; without dropout.

    A loop of the user's own is run through without what the user did to the state between its steps.
    """
    inputs = call.inputs
    for layer in range(1 + max(cell.place.layer for cell in cells)):
        rows = [row for row, cell in enumerate(cells) if cell.place.layer == layer]
        inputs = _run_layer([cells[row] for row in rows], inputs, call, call.initial[rows])
    return replace(
        call,
        cells=tuple(cells),
        outputs=inputs,
        final=torch.zeros_like(call.final),
        previous=None,
        dropout=(),
        boundaries=(),
    )


def _trace(cell: Cell, inputs: Tensor, hidden: Tensor, call: Call, row: int) -> Trace:
    if cell.place.reverse:
        inputs, hidden = flip(inputs, call.lengths), flip(hidden, call.lengths)
    return Trace(
        cell=cell,
        inputs=inputs,
        hidden=hidden,
        initial=call.initial[row],
        lengths=call.lengths,
        previous=call.previous,
        final=call.final[row][:, : cell.output_size],
        tolerance=call.tolerance,
        batch=call.batch,
    )


def flip(steps: Tensor, lengths: Tensor) -> Tensor:
    """Turn each sequence ``(B, T, F)`` round within its own length; padding repeats its first step."""
    order = (lengths[:, None] - 1 - torch.arange(steps.shape[1])).clamp(min=0)
    turned = steps.transpose(0, 1).gather(0, order.T[:, :, None].expand(-1, -1, steps.shape[2]))
    return turned.transpose(0, 1)


def unroll(cell: Cell, inputs: Tensor, initial: Tensor) -> Tensor:
    """Hidden states ``(B, T, P)`` of a forward cell, step by step: the slow road that holds for every `Cell`."""
    state, hidden = initial, []
    for step in inputs.unbind(1):
        state = cell.step(step, state)
        hidden.append(state[:, : cell.output_size])
    return torch.stack(hidden).transpose(0, 1)


_FUSED: dict[type[Cell], Callable[..., nn.RNNBase]] = {RNNCell: nn.RNN, LSTMCell: nn.LSTM, GRUCell: nn.GRU}


def _run_layer(stack: list[Cell], inputs: Tensor, call: Call, initial: Tensor) -> Tensor:
    """Outputs ``(B, T, directions * P)`` of one layer: torch's own kernel where there is one, else step by step."""
    if type(stack[0]) in _FUSED:
        outputs, _ = run_fused(fused_layer(stack), inputs, call.lengths, initial, stack[0].output_size)
        return outputs.detach()
    ways = []
    for cell, state in zip(stack, initial, strict=True):
        source = flip(inputs, call.lengths) if cell.place.reverse else inputs
        hidden = unroll(cell, source, state)
        ways.append(flip(hidden, call.lengths) if cell.place.reverse else hidden)
    return torch.cat(ways, dim=2)


def fused_layer(stack: Sequence[Cell]) -> nn.RNNBase:
    """One layer of torch's own, with the weights of one cell, or of two that read in opposite directions."""
    first = stack[0]
    options: dict[str, Any] = {}
    if isinstance(first, RNNCell):
        options["nonlinearity"] = first.weights.nonlinearity
    if isinstance(first, LSTMCell) and first.weights.hr is not None:
        options["proj_size"] = first.output_size
    # On the meta device nothing is initialised, so no random number is drawn.
    layer = _FUSED[type(first)](first.input_size, first.units, bidirectional=len(stack) == 2, device="meta", **options)
    weights: dict[str, Tensor] = {}
    for number, cell in enumerate(stack):
        assert isinstance(cell, (RNNCell, LSTMCell, GRUCell))
        suffix = "_l0_reverse" if number else "_l0"
        own = cell.weights
        weights |= {f"weight_ih{suffix}": own.ih, f"weight_hh{suffix}": own.hh}
        weights |= {f"bias_ih{suffix}": own.bias_ih, f"bias_hh{suffix}": own.bias_hh}
        if own.hr is not None:
            weights[f"weight_hr{suffix}"] = own.hr
    layer.load_state_dict(weights, assign=True)
    return layer


def run_fused(
    layer: nn.RNNBase, inputs: Tensor, lengths: Tensor, initial: Tensor, output_size: int
) -> tuple[Tensor, Any]:
    """Outputs ``(B, T, directions * P)`` of one layer of torch's own, and the states it returns last."""
    hidden = initial[..., :output_size].contiguous()
    memory = initial[..., output_size:].contiguous()
    state = (hidden, memory) if memory.shape[-1] else hidden
    if bool((lengths == inputs.shape[1]).all()):
        outputs, last = layer(inputs.transpose(0, 1), state)
    else:
        packed, last = layer(pack_padded_sequence(inputs.transpose(0, 1), lengths, enforce_sorted=False), state)
        outputs = pad_packed_sequence(packed, total_length=inputs.shape[1])[0]
    return outputs.transpose(0, 1), last


def dropout_masks(call: Call, gaps: int) -> list[Tensor]:
    """What dropout multiplied the states between the layers by, one ``(B, T, directions * P)`` for each gap.

    Empty without dropout. torch draws for all sequences and steps of a call at once, layer after layer; for packed ones
    without their padding.
    """
    if not call.dropout:
        return []
    pieces: list[list[Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        for dropout in call.dropout:
            torch.set_rng_state(dropout.rng_state)
            pieces.append([_mask(dropout, call) for _ in range(gaps)])
    return [torch.cat(gap, dim=1) for gap in zip(*pieces, strict=True)]


def _mask(dropout: Dropout, call: Call) -> Tensor:
    sequences, width = call.outputs.shape[::2]
    packed = dropout.packed
    shape = (dropout.steps, dropout.sequences) if packed is None else (int(packed.batch_sizes.sum()),)
    mask = F.dropout(torch.ones(*shape, width, dtype=call.precision), dropout.share, training=True)
    if packed is None:
        mask = mask.transpose(0, 1)
    else:
        mask, _ = pad_packed_sequence(packed._replace(data=mask), batch_first=True)
    # Sequences that left a loop before its end draw no more.
    return F.pad(mask[:sequences], (0, 0, 0, 0, 0, max(0, sequences - len(mask)))).to(call.outputs.dtype)


def chunks(trace: Trace, rows: int = ROWS) -> Iterator[Chunk]:
    """Walk along a trace, about ``rows`` steps at a time; every step of every sequence comes once, padding never."""
    cell = trace.cell
    sequences, steps = len(trace.inputs), int(trace.lengths.max())  # longer ones may have been left out
    stride = 1 if cell.gates_read_memory else max(1, rows // sequences)
    width = cell.output_size
    hidden = trace.hidden.transpose(0, 1)
    memory = trace.initial[:, width:]
    ragged = trace.ragged
    for begin in range(0, steps, stride):
        end = min(begin + stride, steps)
        count = (end - begin) * sequences
        before, memory = _before(trace, begin, end, memory)
        inputs = trace.inputs[:, begin:end].transpose(0, 1)
        inside = cell.activations(inputs.reshape(count, -1), before.reshape(count, width), memory)
        # A user's loop sets every state itself: its steps are independent rows, not a scan.
        shape = (1, count) if trace.previous is not None else (end - begin, sequences)
        rebuilt, memories = cell.follow(
            Activations(inside.values.view(*shape, *inside.values.shape[1:])), before.reshape(*shape, width), memory
        )
        memory = memories[-1]
        times = torch.arange(begin, end).repeat_interleave(sequences)
        rows_of = torch.arange(sequences).repeat(end - begin)
        if cell.place.reverse:
            times = trace.lengths[rows_of] - 1 - times
        parts = (inside.values, rebuilt.reshape(count, width), hidden[begin:end].reshape(count, width))
        flat_memory = memories.reshape(count, cell.memory_size)
        if ragged:
            valid = (torch.arange(begin, end)[:, None] < trace.lengths).flatten().nonzero().squeeze(1)
            times, rows_of, flat_memory = times[valid], rows_of[valid], flat_memory[valid]
            parts = (parts[0][valid], parts[1][valid], parts[2][valid])
        yield Chunk(times, rows_of, Activations(parts[0]), parts[1], parts[2], flat_memory)


def _before(trace: Trace, begin: int, end: int, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states ``(T, B, P)`` before each of these steps, and the memory the first of them starts from.

    Where a user's loop set the states, the memory before every step is known: ``(T * B, M)``.
    """
    width = trace.cell.output_size
    if trace.previous is not None:
        given = trace.previous[:, begin:end].transpose(0, 1)
        return given[..., :width], given[..., width:].flatten(0, 1)
    hidden = trace.hidden.transpose(0, 1)
    if begin == 0:
        return torch.cat([trace.initial[None, :, :width], hidden[: end - 1]]), memory
    return hidden[begin - 1 : end - 1], memory
