"""What crosses the boundary of a recurrent module in one call, as a forward hook sees it, read into one form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .cells import Cell
from .tape import Call, Dropout


@final
@dataclass(frozen=True, eq=False)
class Crossing:
    """What a forward hook saw: what went into a recurrent module and what came out."""

    module: Any
    source: Any  # the input, as it was passed
    hx: Any  # the state, as it was passed, or None
    output: Any
    rng_state: Tensor | None = None  # of torch's generator on the host before the call, where dropout draws from it

    @classmethod
    def of(
        cls,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        rng_state: Tensor | None = None,
    ) -> Crossing:
        """The arguments of a hook sorted out, however input and state were passed."""
        source, hx, *_ = [*args, *(kwargs[key] for key in ("input", "hx") if key in kwargs), None]
        return cls(module, source, hx, output, rng_state)


@final
@dataclass(frozen=True)
class Room:
    """How much of a call to keep."""

    sequences: int
    megabytes: float  # of inputs and outputs; one sequence is kept however long it is
    gradients: bool = False  # of the outputs are kept too

    def within(self, dtype: torch.dtype, inputs: Tensor, outputs: Tensor) -> int:
        """How many sequences to keep of tensors that have them in front."""
        size = dtype.itemsize * (inputs.shape[1:].numel() + (1 + self.gradients) * outputs.shape[1:].numel())
        return min(self.sequences, max(1, int(self.megabytes * 2**20 / size)))


def read_call(crossing: Crossing, cells: tuple[Cell, ...], *, batch: int, room: Room) -> Call:
    """What a forward hook saw, of the first sequences, in the one form.

    Raises:
        ValueError: when the shapes are not those of the cells, as in a subclass with a forward method of its own.
    """
    read = _read_step if cells[0].place.stepwise else _read_sequences
    call = replace(read(crossing, cells, room), batch=batch)
    top = [cell.output_size for cell in cells if cell.place.layer == cells[-1].place.layer]
    leading, state = tuple(call.inputs.shape[:2]), (len(cells), len(call.inputs), cells[0].state_size)
    for what, tensor, shape in (
        ("inputs", call.inputs, (*leading, cells[0].input_size)),
        ("outputs", call.outputs, (*leading, sum(top))),
        ("state before", call.initial, state),
        ("state after", call.final, state),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{what} must be {shape}, got shape {tuple(tensor.shape)}")
    return call


def _host(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy ``(B, T, F)`` in host memory whose steps lie one after the other, so that chunks of steps are views."""
    steps = tensor.detach().transpose(0, 1)
    return torch.empty(steps.shape, dtype=dtype, device="cpu").copy_(steps).transpose(0, 1)


def _state(hx: Any, dtype: torch.dtype) -> Tensor:
    """Hidden state and memory side by side, copied to host memory."""
    parts = [hx] if isinstance(hx, Tensor) else list(hx)
    return torch.cat([part.detach().to("cpu", dtype) for part in parts], dim=-1)


def _precision(output: Tensor) -> torch.dtype:
    """In which a module computed: autocast's half precision does not always show in the output (``nn.GRU`` on CPUs)."""
    device = output.device.type
    if output.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return output.dtype


def _read_sequences(crossing: Crossing, cells: tuple[Cell, ...], room: Room) -> Call:
    """A module that reads whole sequences, ``(input, hx) -> (output, hx)`` as ``nn.GRU`` does."""
    source, (outputs, last) = crossing.source, crossing.output
    lengths: Tensor | None = None
    packed: PackedSequence | None = None
    unbatched = False
    if isinstance(source, PackedSequence):
        order = [None if way is None else way.cpu() for way in (source.sorted_indices, source.unsorted_indices)]
        packed = PackedSequence(torch.empty(0, device="cpu"), source.batch_sizes, *order)
        source, lengths = pad_packed_sequence(source, batch_first=True)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    elif source.dim() == 2:
        source, outputs, unbatched = source[None], outputs[None], True
    elif not getattr(crossing.module, "batch_first", False):
        source, outputs = source.transpose(0, 1), outputs.transpose(0, 1)
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    kept = room.within(dtype, source, outputs)
    inputs = _host(source[:kept], dtype)

    def per_cell(hx: Any) -> Tensor:
        state = _state(hx, dtype)
        return (state.unsqueeze(1) if unbatched else state)[:, :kept]

    before = torch.zeros(len(cells), len(inputs), cells[0].state_size, dtype=dtype, device="cpu")
    return Call(
        cells=cells,
        inputs=inputs,
        outputs=_host(outputs[:kept], dtype),
        lengths=torch.full((len(inputs),), inputs.shape[1], device="cpu")
        if lengths is None
        else lengths[:kept].clone(),
        initial=before if crossing.hx is None else per_cell(crossing.hx),
        final=per_cell(last),
        previous=None,
        batch=0,
        precision=_precision(outputs),
        device=outputs.device.type,
        dropout=()
        if crossing.rng_state is None
        else (Dropout(crossing.module.dropout, crossing.rng_state, len(source), source.shape[1], packed),),
    )


def _read_step(crossing: Crossing, cells: tuple[Cell, ...], room: Room) -> Call:
    """One step of a loop that the user wrote over ``nn.GRUCell`` or its like, ``(input, hx) -> hx``."""
    source, last = crossing.source, crossing.output
    hidden = last if isinstance(last, Tensor) else last[0]
    if source.dim() == 1:
        source, hidden = source[None], hidden[None]
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    kept = room.within(dtype, source, hidden)

    def rows(hx: Any) -> Tensor:
        state = _state(hx, dtype)
        return state.view(-1, state.shape[-1])[:kept]

    inputs = _host(source[:kept, None], dtype)
    before = torch.zeros(len(inputs), cells[0].state_size, dtype=dtype, device="cpu")
    before = before if crossing.hx is None else rows(crossing.hx)
    return Call(
        cells=cells,
        inputs=inputs,
        outputs=_host(hidden[:kept, None], dtype),
        lengths=torch.ones(len(inputs), dtype=torch.long, device="cpu"),
        initial=before[None],
        final=rows(last)[None],
        previous=before[:, None],
        batch=0,
        precision=_precision(hidden),
        device=hidden.device.type,
    )
