"""What one passage through a recurrent module looked like from outside: inputs, lengths, states, outputs.

However a module was called (batch first or not, packed, unbatched, in one go or step by step in the user's own loop),
a `Call` says it in one form: batch first, padded, in host memory, float32 or better. `passage_of` and `join` put the
calls together that follow each other in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .cells import Cell

NEAR = 64  # how many of the last passages a call may go on with: streams that take turns, as in siamese networks


@final
@dataclass(frozen=True, eq=False)
class Dropout:
    """What a module in training mode drew between its layers, to be drawn again."""

    share: float  # of values dropped
    rng_state: Tensor  # torch's generator on the host before the call
    sequences: int  # in the call, recorded or not
    steps: int
    packed: PackedSequence | None  # how a packed input was packed, without its data


@final
@dataclass(eq=False)
class Boundary:
    """The gradients of the loss that came back to what one call returned; zero until they arrive."""

    outputs: Tensor  # (B, T, directions * P)
    final: Tensor  # (C, B, D), of the states returned beside the outputs
    connections: tuple[bool, bool]  # whether gradient can go on into the hidden state, and the memory, that were given
    complete: bool  # whether every sequence of the call is recorded
    hidden_whole: bool = False  # whether the last hidden state's gradient holds that of the output made from it
    memory_whole: bool = False  # whether the memory's gradient holds what the memory does through its hidden state
    arrived: bool = False

    @property
    def connected(self) -> bool:
        """Whether gradient can go on into any part of the state that the call was given."""
        return any(self.connections)

    def head(self, sequences: int) -> Boundary:
        """The same, of the first sequences only."""
        if sequences >= len(self.outputs):
            return self
        return replace(self, outputs=self.outputs[:sequences], final=self.final[:, :sequences], complete=False)


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One passage of B sequences of up to T steps through a recurrent module with C cells. Lives in host memory."""

    cells: tuple[Cell, ...]  # the module's equations, on its weights at that moment
    inputs: Tensor  # (B, T, I), anything beyond a sequence's length is padding
    outputs: Tensor  # (B, T, directions * P)
    lengths: Tensor  # (B,)
    initial: Tensor  # (C, B, D), the state before the first step
    final: Tensor  # (C, B, D), the state that the module itself returned as its last
    previous: Tensor | None  # (B, T, D), the state before every step, where the user's own loop drives the steps
    batch: int  # number of the batch in this recording, from 0
    precision: torch.dtype  # in which the module computed; the recording is float32 at least
    device: str  # "cpu", "cuda", ...
    dropout: tuple[Dropout, ...] = ()  # between layers, where it was active: one for each call that was joined
    boundaries: tuple[Boundary, ...] = ()  # where gradients are listened for: one for each call that was joined

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
            final=self.final[:, :sequences],
            boundaries=tuple(boundary.head(sequences) for boundary in self.boundaries),
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


def passage_of(call: Call, passages: Sequence[list[Call]]) -> list[Call] | None:
    """The passage with which a call that was given a state goes on; None for one that begins anew.

    Decoder loops, truncated back-propagation and cells in a loop hand on the very state they were given back. In a
    user's own loop the state may also be masked, dropped or reset between two steps.
    """
    for passage in reversed(passages[-NEAR:]):
        if _hands_on(passage[-1], call):
            return passage
    if passages and call.previous is not None and _alters_state(passages[-1], call):
        return passages[-1]
    return None


def _hands_on(last: Call, call: Call) -> bool:
    """Whether a call starts in the state, hidden and memory, in which another ended, of all or the first sequences."""
    if last.batch != call.batch or last.cells is not call.cells:
        return False
    if any(cell.place.reverse for cell in call.cells) or bool((last.lengths < last.inputs.shape[1]).any()):
        return False
    return torch.equal(call.initial, last.final[:, : len(call.lengths)])


def _alters_state(passage: list[Call], call: Call) -> bool:
    """Whether a step goes on in a state that the user changed; a loop that begins again starts from zeros or as before.

    Which loop an altered state belongs to cannot be known, so the last one is taken.
    """
    first, last = passage[0], passage[-1]
    if last.batch != call.batch or last.cells is not call.cells or last.lengths.shape != call.lengths.shape:
        return False
    return bool(call.initial.any()) and not torch.equal(call.initial, first.initial)


def join(calls: Sequence[Call]) -> Call:
    """Calls that follow each other in time, as one; a later call may have lost some of the last sequences."""
    if len(calls) == 1:
        return calls[0]
    sequences = len(calls[0].lengths)

    def along_time(parts: list[Tensor]) -> Tensor:
        return torch.cat([_fill(part.transpose(0, 1), sequences) for part in parts]).transpose(0, 1)

    final = calls[0].final.clone()
    for call in calls[1:]:
        final[:, : len(call.lengths)] = call.final
    previous = [call.previous for call in calls if call.previous is not None]
    return replace(
        calls[0],
        inputs=along_time([call.inputs for call in calls]),
        outputs=along_time([call.outputs for call in calls]),
        lengths=torch.stack([F.pad(call.lengths, (0, sequences - len(call.lengths))) for call in calls]).sum(0),
        final=final,
        previous=along_time(previous) if previous else None,
        dropout=tuple(dropout for call in calls for dropout in call.dropout),
        boundaries=tuple(boundary for call in calls for boundary in call.boundaries),
    )


def _fill(steps: Tensor, sequences: int) -> Tensor:
    """Pad ``(T, B, F)`` to more sequences."""
    return F.pad(steps, (0, 0, 0, sequences - steps.shape[1]))
