"""What the tests of gates share: modules with known gates, and the road from a module to what it was heard to do."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import traces

INPUTS, UNITS, PROJECTED = 3, 5, 2
FAMILIES = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": PROJECTED}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


def random_inputs(*size, dtype=torch.float32, seed=1):
    return torch.randn(*size, INPUTS, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pack(x, lengths):
    return pack_padded_sequence(x, torch.as_tensor(lengths), batch_first=True, enforce_sorted=False)


def make(kind, *sizes, seed=0, **options):
    """A batch-first module of one of `FAMILIES`."""
    torch.manual_seed(seed)
    family, own = FAMILIES[kind]
    return family(INPUTS, UNITS, *sizes, batch_first=True, **own, **options)


def with_biases(module, *, keep_weights=False, **biases):
    """The module with the gates' biases in its first layer set, everything else zero unless weights are kept.

    ``z`` is torch's, the share of the old state.
    """
    row = {"input": 0, "forget": 1, "cell": 2, "output": 3, "reset": 0, "z": 1, "new": 2}
    names = ("bias_ih_l0", "bias_hh_l0") if hasattr(module, "bias_ih_l0") else ("bias_ih", "bias_hh")
    with torch.no_grad():
        for parameter in module.parameters() if not keep_weights else ():
            parameter.zero_()
        for gate, value in biases.items():
            for name, bias in zip(names, (value, 0.0), strict=True):
                getattr(module, name).unflatten(0, (-1, module.hidden_size))[row[gate]] = bias
    return module


def hear(module, *inputs, hx=None):
    """Traces by cell name of calls with these inputs, each a batch of its own."""
    with Recorder(module) as recorder, torch.no_grad():
        for given in inputs:
            module(given, hx)
            recorder.next_batch()
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    found = {}
    for call in tape.calls:
        for trace in traces(call):
            found.setdefault(trace.cell.name, []).append(trace)
    return found


def statistics(module, *inputs, cell="l0", hx=None, **options):
    """Gate statistics of one cell over these calls."""
    return gate_statistics(hear(module, *inputs, hx=hx)[cell], **options)
