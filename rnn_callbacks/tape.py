"""What one passage through a recurrent module looked like from outside: inputs, lengths, states, outputs.

However a module was called (batch first or not, packed, unbatched, in one go or step by step in the user's own loop),
a `Call` says it in one form: batch first, padded, in host memory, float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .cells import Cell


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One passage of B sequences of up to T steps through a recurrent module with C cells. Lives in host memory."""

    cells: tuple[Cell, ...]  # the module's equations, on its weights at that moment
    inputs: Tensor  # (B, T, I), anything beyond a sequence's length is padding
    outputs: Tensor  # (B, T, directions * P)
    lengths: Tensor  # (B,)
    initial: Tensor  # (C, B, D), the state before the first step
    final: Tensor | None  # (C, B, P), the hidden states the module itself returned as its last; None when stepwise
    previous: Tensor | None  # (B, T, D), the state before every step, where the user's own loop drives the steps
    batch: int  # number of the batch in this recording, from 0
    precision: torch.dtype  # of the module's output; the recording is float32 at least
    device: str  # "cpu", "cuda", ...
    dropout: float = 0.0  # between layers, active in this call
    rng_state: Tensor | None = None  # torch's generator before the call, from which that dropout can be replayed

    @property
    def tolerance(self) -> float:
        """Largest relative difference that rounding explains between the module and its rebuilt equations.

        Measured: 2e-6 in float32 and 2e-14 in float64 on a CPU, 7e-3 in bfloat16. On other devices float32 may be
        computed in TF32, with 10 bits of mantissa.
        """
        if self.precision == torch.float64:
            return 1e-9
        if self.precision == torch.float32:
            return 1e-4 if self.device == "cpu" else 1e-2
        return 3e-2

    def head(self, sequences: int) -> Call:
        """The same passage, of the first sequences only."""
        return replace(
            self,
            inputs=self.inputs[:sequences],
            outputs=self.outputs[:sequences],
            previous=None if self.previous is None else self.previous[:sequences],
            lengths=self.lengths[:sequences],
            initial=self.initial[:, :sequences],
            final=None if self.final is None else self.final[:, :sequences],
        )


@final
@dataclass(frozen=True, eq=False)
class Tape:
    """All recorded passages through one module."""

    name: str  # the module's dotted name in the model
    calls: tuple[Call, ...]

    @property
    def sequences(self) -> int:
        """How many sequences were heard."""
        return sum(len(call.lengths) for call in self.calls)

    def head(self, sequences: int) -> Tape:
        """The same tape, of the first sequences only."""
        kept: list[Call] = []
        for call in self.calls:
            if sequences <= 0:
                break
            kept.append(call.head(sequences))
            sequences -= len(call.lengths)
        return Tape(self.name, tuple(kept))


def boundary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The input and the initial state (or None), however they were passed."""
    rest = [*args, *(kwargs[key] for key in ("input", "hx") if key in kwargs)]
    return rest[0], rest[1] if len(rest) > 1 else None


def read_call(module: nn.Module, snapshot: tuple[Cell, ...], given: tuple[Any, Any], output: Any, room: int) -> Call:
    """What a forward hook on ``module`` saw, of the first ``room`` sequences.

    Args:
        module: the recurrent module.
        snapshot: its cells, on its present weights.
        given: input and initial state, from `boundary`.
        output: what the module returned.
        room: how many sequences to keep.
    """
    read = _read_step if snapshot[0].place.stepwise else _read_sequences
    return read(module, snapshot, given, output, room)


def _host(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy ``(B, T, F)`` in host memory whose steps lie one after the other, so that chunks of steps are views."""
    steps = tensor.detach().transpose(0, 1)
    return torch.empty(steps.shape, dtype=dtype, device="cpu").copy_(steps).transpose(0, 1)


def _states(hx: Any, like: Tensor) -> list[Tensor]:
    """Hidden state and memory as a list; none given means zeros, which the caller makes."""
    parts = [hx] if isinstance(hx, Tensor) else list(hx or ())
    return [part.detach().to("cpu", like.dtype, copy=True) for part in parts]


def _read_sequences(
    module: nn.Module,
    snapshot: tuple[Cell, ...],
    given: tuple[Any, Any],
    output: Any,
    room: int,
) -> Call:
    """A module that reads whole sequences, ``(input, hx) -> (output, hx)`` as ``nn.GRU`` does."""
    source, hx = given
    outputs, last = output
    batch_first = bool(getattr(module, "batch_first", False))
    lengths: Tensor | None = None
    unbatched = False
    if isinstance(source, PackedSequence):
        source, lengths = pad_packed_sequence(source, batch_first=True)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    elif source.dim() == 2:
        source, outputs, unbatched = source[None], outputs[None], True
    elif not batch_first:
        source, outputs = source.transpose(0, 1), outputs.transpose(0, 1)
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    inputs = _host(source[:room], dtype)
    sequences, steps = inputs.shape[:2]

    def per_cell(state: Any) -> list[Tensor]:
        return [(s.unsqueeze(1) if unbatched else s)[:, :sequences] for s in _states(state, inputs)]

    begin = per_cell(hx)
    sizes = (len(snapshot), sequences, snapshot[0].state_size)
    return Call(
        cells=snapshot,
        inputs=inputs,
        outputs=_host(outputs[:room], dtype),
        lengths=torch.full((sequences,), steps) if lengths is None else lengths[:sequences].clone(),
        initial=torch.cat(begin, dim=2) if begin else torch.zeros(sizes, dtype=dtype),
        final=per_cell(last)[0],
        previous=None,
        batch=0,
        precision=outputs.dtype,
        device=outputs.device.type,
        dropout=float(getattr(module, "dropout", 0.0)) if module.training and snapshot[-1].place.layer else 0.0,
    )


def _read_step(
    module: nn.Module,
    snapshot: tuple[Cell, ...],
    given: tuple[Any, Any],
    output: Any,
    room: int,
) -> Call:
    """One step of a loop that the user wrote over ``nn.GRUCell`` or its like."""
    source, hx = given
    hidden = output if isinstance(output, Tensor) else output[0]
    if source.dim() == 1:
        source, hidden = source[None], hidden[None]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    inputs, outputs = _host(source[:room, None], dtype), _host(hidden[:room, None], dtype)
    begin = [state.view(-1, state.shape[-1])[:room] for state in _states(hx, inputs)]
    state = torch.cat(begin, dim=1) if begin else torch.zeros(len(inputs), snapshot[0].state_size, dtype=dtype)
    return Call(
        cells=snapshot,
        inputs=inputs,
        outputs=outputs,
        lengths=torch.ones(len(inputs), dtype=torch.long),
        initial=state[None],
        final=None,
        previous=state[:, None],
        batch=0,
        precision=hidden.dtype,
        device=hidden.device.type,
    )


def continues(last: Call, call: Call, *, hx: object) -> bool:
    """Whether a call goes on where the last one stopped: decoder loops, truncated back-propagation, cells in a loop."""
    if hx is None or last.batch != call.batch or last.lengths.shape != call.lengths.shape:
        return False
    if call.previous is not None:
        return bool(call.initial.any())  # a loop that starts again starts from zeros
    dense = bool((last.lengths == last.inputs.shape[1]).all())
    width = call.cells[0].output_size
    return dense and last.final is not None and torch.equal(call.initial[..., :width], last.final)


def join(calls: Sequence[Call]) -> Call:
    """Calls that follow each other in time, as one."""
    if len(calls) == 1:
        return calls[0]
    first, last = calls[0], calls[-1]

    def along_time(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.transpose(0, 1) for part in parts]).transpose(0, 1)

    return replace(
        first,
        inputs=along_time([call.inputs for call in calls]),
        outputs=along_time([call.outputs for call in calls]),
        lengths=torch.stack([call.lengths for call in calls]).sum(0),
        final=last.final,
        previous=along_time([c.previous for c in calls if c.previous is not None])
        if last.previous is not None
        else None,
    )
