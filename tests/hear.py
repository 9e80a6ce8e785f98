"""From a module to what was heard of it, for the tests of listening and rebuilding."""

import pytest
import torch

from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import chunks, traces

SEQUENCES, STEPS, INPUTS, UNITS = 3, 7, 2, 5
ROUNDING = 2e-6  # of a few dozen additions of numbers near 1 in float32


def make(family, *sizes, seed=0, **options):
    torch.manual_seed(seed)
    return family(INPUTS, UNITS, *sizes, **options)


def make_inputs(*shape, seed=1):
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed))


def changed(state, change):
    """The state, or both of an LSTM's, changed."""
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def calls_of(recorder):
    """The passages of the only module that was heard; nothing may have gone wrong."""
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    return tape.calls


def skip_where_torch_cannot(module, x):
    """oneDNN has no LSTM in half precision for some processors; torch then raises whether or not somebody listens."""
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            module(x)
    except RuntimeError as error:
        if "primitive" not in str(error):
            raise
        pytest.skip(f"torch cannot run this module in bfloat16 here: {error}")


def hear(module, *args, **kwargs):
    """The one passage of one forward pass."""
    with Recorder(module) as recorder, torch.no_grad():
        module(*args, **kwargs)
    (call,) = calls_of(recorder)
    return call


def rebuild_error(call, rows=11):
    """Largest difference of rebuilt and recorded hidden states over all cells, relative to the largest state."""
    worst = 0.0
    for trace in traces(call):
        for chunk in chunks(trace, rows):
            scale = max(1.0, chunk.hidden.abs().max().item())
            worst = max(worst, (chunk.rebuilt - chunk.hidden).abs().max().item() / scale)
    return worst


def memories(call, cell=0):
    """Rebuilt memory ``(B, T, M)`` of one cell of a call without padding."""
    trace = traces(call)[cell]
    found = torch.full((*trace.inputs.shape[:2], trace.cell.memory_size), torch.nan, dtype=trace.inputs.dtype)
    for chunk in chunks(trace, 11):
        found[chunk.sequences, chunk.times] = chunk.memory
    return found
