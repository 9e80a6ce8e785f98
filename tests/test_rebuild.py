import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import chunks, traces

from . import reference

INPUTS, UNITS, PROJECTED, SEQUENCES, STEPS = 3, 5, 2, 3, 7  # unlike primes (but one), so a transposed axis cannot pass
LENGTHS = torch.tensor([4, 7, 1])  # unsorted, one full, one of a single step

KINDS = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": PROJECTED}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
GRID = list(
    itertools.product(
        (1, 2, 3),  # layers
        (False, True),  # bidirectional
        ("batch_first", "time_first", "packed", "packed_batch_first", "unbatched"),
        (True, False),  # bias
        (False, True),  # an initial state is given
    )
)
# Rounding of a few dozen additions of numbers near 1; relu states grow, so they are compared relatively.
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-14}


def make_case(kind, dtype, layers, bidirectional, layout, bias, given, seed):
    torch.manual_seed(seed)
    family, options = KINDS[kind]
    batch_first = layout in ("batch_first", "packed_batch_first")
    module = family(
        INPUTS, UNITS, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype, **options
    )
    ways = layers * (1 + bidirectional)
    width = PROJECTED if "proj_size" in options else UNITS
    x = torch.randn(SEQUENCES, STEPS, INPUTS, dtype=dtype)
    h0, c0 = torch.zeros(ways, SEQUENCES, width, dtype=dtype), torch.zeros(ways, SEQUENCES, UNITS, dtype=dtype)
    if given:
        h0, c0 = torch.randn_like(h0), torch.randn_like(c0)
    lengths = LENGTHS if "packed" in layout else torch.full((SEQUENCES,), STEPS)
    if layout == "unbatched":
        x, h0, c0, lengths = x[:1], h0[:, :1], c0[:, :1], lengths[:1]
    return module, x, h0, c0, lengths


def run(module, x, h0, c0, lengths, layout, given):
    if "packed" in layout:
        source = x if module.batch_first else x.transpose(0, 1)
        source = pack_padded_sequence(source, lengths, batch_first=module.batch_first, enforce_sorted=False)
    elif layout == "unbatched":
        source, h0, c0 = x[0], h0[:, 0], c0[:, 0]
    else:
        source = x if module.batch_first else x.transpose(0, 1)
    state = (h0, c0) if module.mode == "LSTM" else h0
    with torch.no_grad():
        module(source, state) if given else module(source)


def differences(module, call, x, h0, c0, lengths, rows):
    """Largest relative differences of gates, states and memories between the two roads, over all cells and steps."""
    worst, steps_seen = 0.0, 0
    truth = [reference.rebuild(module, x[b, : lengths[b]], h0[:, b], c0[:, b])[0] for b in range(len(x))]
    for trace in traces(call):
        cell = trace.cell
        for chunk in chunks(trace, rows):
            gates = torch.cat([chunk.inside.logits.sigmoid(), chunk.inside.candidate[:, None]], dim=1)
            for n, (b, t) in enumerate(zip(chunk.sequences.tolist(), chunk.times.tolist(), strict=True)):
                named, h, c = truth[b][cell.name][t]
                pairs = [(gates[n, k], named[part]) for k, part in enumerate(cell.parts)]
                pairs += [(chunk.rebuilt[n], h), (chunk.hidden[n], h)]
                if cell.memory_size:
                    pairs.append((chunk.memory[n], c))
                for ours, theirs in pairs:
                    scale = max(1.0, theirs.abs().max().item())
                    worst = max(worst, (ours - theirs).abs().max().item() / scale)
                steps_seen += 1
    assert steps_seen == int(lengths.sum()) * len(call.cells)
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_gates_equal_the_documented_equations_in_every_configuration(kind, dtype):
    # 5 kinds x 2 dtypes x 120 = 1200 configurations.
    for seed, (layers, bidirectional, layout, bias, given) in enumerate(GRID):
        module, x, h0, c0, lengths = make_case(kind, dtype, layers, bidirectional, layout, bias, given, seed)
        with Recorder(module) as recorder:
            run(module, x, h0, c0, lengths, layout, given)
        (call,) = recorder.tapes[type(module).__name__.lower()].calls
        assert not recorder.faults
        worst = differences(module, call, x, h0, c0, lengths, rows=(5, 1024)[seed % 2])
        assert worst <= LIMIT[dtype], (layers, bidirectional, layout, bias, given)
