"""The gradient that comes back to what a recurrent module returned.

Hooks on a fused module's output hear only the *direct* gradient: what the loss says of ``h_t`` itself, without what it
says of it through all later states. That is the boundary condition from which the rest follows by the equations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .crossing import Crossing
from .tape import Boundary, Call

NODES = 64  # of the graph that are searched for how outputs hang together
Done = Callable[[float, "Exception | None"], None]


def returns_gradient(crossing: Crossing) -> bool:
    """Whether anything that a module returned can be differentiated."""
    return any(tensor.requires_grad for tensor in _tensors(crossing.output))


def await_gradients(crossing: Crossing, call: Call, done: Done, wanted: Callable[[], bool] = lambda: True) -> Boundary:
    """Listen for the gradients of what a call returned; they arrive when somebody runs the backward pass.

    Args:
        crossing: what the forward hook saw; nothing of its graph is kept.
        call: the same as it was read, which says how many sequences to keep and in which precision.
        done: told the seconds that each listening took, and what went wrong if something did: a backward pass of the
            user's must not fail for our sake.
        wanted: whether a backward pass that runs now is the one to listen to.
    """
    stepwise = call.cells[0].place.stepwise
    output: Any = crossing.output
    if isinstance(output, Tensor):  # an nn.GRUCell
        output = (output,)
    first, states = output[0], _tensors(output[1:])
    read = _read_steps if stepwise else _sequence_reader(first, getattr(crossing.module, "batch_first", False))
    given = [tensor.requires_grad for tensor in _tensors(crossing.hx)] or [False]
    boundary = Boundary(
        outputs=torch.zeros_like(call.outputs),
        final=torch.zeros_like(call.final),
        connections=(given[0], given[-1]),
        complete=len(call.lengths) == _sequences(first, read),
    )
    # Not so in torch's own modules for whole sequences: what they return last is a tensor of its own.
    in_loop = not isinstance(crossing.module, nn.RNNBase)

    def keep_outputs(gradient: Tensor) -> None:
        boundary.outputs[:] += read(gradient)[: len(call.lengths)].to(boundary.outputs)

    def keep_states(begin: int, gradient: Tensor) -> None:
        rows = gradient.reshape(len(call.cells), -1, gradient.shape[-1])[:, : len(call.lengths)]
        boundary.final[..., begin : begin + rows.shape[2]] += rows.to(boundary.final)

    base = _transposed(first)
    if base is None:
        _hook(first.data if isinstance(first, PackedSequence) else first, keep_outputs, boundary, done, wanted)
    else:  # an in-place change of a view would take the hook with it
        _hook(base, lambda gradient: keep_outputs(gradient.transpose(0, 1)), boundary, done, wanted)
    begin = call.cells[0].output_size if stepwise else 0  # a step's hidden state is its output
    for state in states:
        if in_loop and _feeds(state, first):
            boundary.hidden_whole |= not begin
            boundary.memory_whole |= begin > 0
        if not (in_loop and _feeds(first, state)):  # its gradient comes back to the outputs anyway
            _hook(state, partial(keep_states, begin), boundary, done, wanted)
        begin += state.shape[-1]
    return boundary


def _transposed(output: Any) -> Tensor | None:
    """The tensor of which a batch-first output is but a view."""
    base = output._base if isinstance(output, Tensor) and output._is_view() else None
    if base is None or base.dim() != 3 or base.transpose(0, 1).shape != output.shape:
        return None
    return base if base.requires_grad and base.transpose(0, 1).stride() == output.stride() else None


def _hook(
    tensor: Tensor, keep: Callable[[Tensor], None], boundary: Boundary, done: Done, wanted: Callable[[], bool]
) -> None:
    def listen(gradient: Tensor | None) -> None:
        # torch also calls with nothing, where the loss does not use this output.
        if gradient is None or not wanted():
            return
        begin = time.perf_counter()
        fault: Exception | None = None
        try:
            with torch.inference_mode(False), torch.no_grad():
                keep(gradient.detach())
            boundary.arrived = True
        except Exception as error:
            fault = error
        done(time.perf_counter() - begin, fault)

    if tensor.requires_grad:
        tensor.register_hook(listen)  # type: ignore[no-untyped-call]


def _feeds(source: Tensor | PackedSequence, result: Tensor | PackedSequence) -> bool:
    """Whether one thing that a module returned was made from the other, so that gradients of the other include its own.

    A step of ``nn.LSTMCell`` is made of single operations on a CPU, and its memory goes on into its hidden state; on a
    GPU it is one operation that gives both.
    """
    (sought,), (end,) = ([tensor.grad_fn for tensor in _tensors(value)] for value in (source, result))
    if sought is None or end is None or sought is end:
        return False
    front = [end]
    for _ in range(NODES):
        if not front:
            return False
        below = [node for node, _ in front.pop(0).next_functions if node is not None]
        if any(node is sought for node in below):
            return True
        front += below
    return False


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [tensor for part in value or () for tensor in _tensors(part)]


def _read_steps(gradient: Tensor) -> Tensor:
    """One step, ``(B, P)`` or ``(P,)``, as ``(B, 1, P)``."""
    return gradient.reshape(-1, 1, gradient.shape[-1])


def _sequence_reader(output: Tensor | PackedSequence, batch_first: bool) -> Callable[[Tensor], Tensor]:
    """From the gradient of what a module returned to ``(B, T, directions * P)``."""
    if isinstance(output, PackedSequence):
        order = [None if way is None else way.cpu() for way in (output.sorted_indices, output.unsorted_indices)]
        shape = PackedSequence(torch.empty(0, device="cpu"), output.batch_sizes, *order)
        # Host memory from here on, since a part of the order lies there.
        return lambda gradient: pad_packed_sequence(shape._replace(data=gradient.cpu()), batch_first=True)[0]
    if output.dim() == 2:
        return lambda gradient: gradient[None]
    return (lambda gradient: gradient) if batch_first else (lambda gradient: gradient.transpose(0, 1))


def _sequences(output: Tensor | PackedSequence, read: Callable[[Tensor], Tensor]) -> int:
    """How many sequences a call had, recorded or not."""
    return int(output.batch_sizes[0]) if isinstance(output, PackedSequence) else len(read(output.detach()))
