import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import cells
from rnn_callbacks.rebuild import chunks, flip, rerun, traces

from . import reference
from .hear import calls_of, hear, rebuild_error, skip_where_torch_cannot

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
            rows_seen = zip(chunk.sequences.tolist(), chunk.times.tolist(), strict=True)
            named, h, c = zip(*(truth[b][cell.name][t] for b, t in rows_seen), strict=True)
            pairs = [(gates[:, k], [of[part] for of in named]) for k, part in enumerate(cell.parts)]
            pairs += [(chunk.rebuilt, h), (chunk.hidden, h)]
            if cell.memory_size:
                pairs.append((chunk.memory, c))
            for ours, theirs in pairs:
                theirs = torch.stack(list(theirs))
                scale = theirs.abs().amax(1).clamp(min=1.0)
                worst = max(worst, ((ours - theirs).abs().amax(1) / scale).max().item())
            steps_seen += len(h)
    assert steps_seen == int(lengths.sum()) * len(call.cells)
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_gates_equal_the_documented_equations_in_every_configuration(kind, dtype):
    # 5 kinds x 120 configurations in double precision; in single every third, which has all of each option's values.
    for seed, (layers, bidirectional, layout, bias, given) in list(enumerate(GRID))[
        :: 3 if dtype == torch.float32 else 1
    ]:
        module, x, h0, c0, lengths = make_case(kind, dtype, layers, bidirectional, layout, bias, given, seed)
        with Recorder(module) as recorder:
            run(module, x, h0, c0, lengths, layout, given)
        (call,) = recorder.tapes[type(module).__name__.lower()].calls
        assert not recorder.faults
        worst = differences(module, call, x, h0, c0, lengths, rows=(5, 1024)[seed % 2])
        assert worst <= LIMIT[dtype], (layers, bidirectional, layout, bias, given)


# ---- dropout between the layers --------------------------------------------------------------------------------------

SHARE = 0.4
every_family = pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])


def make_dropping(family, *, layers=3, seed=0, **options):
    torch.manual_seed(seed)
    return family(INPUTS, UNITS, layers, dropout=SHARE, batch_first=True, **options)


@every_family
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layout", ["dense", "packed", "packed equal", "unbatched"])
@pytest.mark.parametrize("kept", [SEQUENCES, SEQUENCES - 1], ids=["all", "trimmed"])
def test_dropout_between_layers_is_drawn_again_as_it_was(family, bidirectional, layout, kept):
    module = make_dropping(family, bidirectional=bidirectional)
    x = torch.randn(SEQUENCES, STEPS, INPUTS)
    lengths = LENGTHS if layout == "packed" else torch.full((SEQUENCES,), STEPS)
    source = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) if "packed" in layout else x
    with Recorder(module, max_sequences=kept) as recorder, torch.no_grad():
        module(x[0] if layout == "unbatched" else source)
    (call,) = calls_of(recorder)
    assert rebuild_error(call) < 1e-6
    found = traces(call)
    for trace in found[1 + bidirectional :]:
        valid = torch.arange(STEPS) < trace.lengths[:, None]
        dropped = (trace.inputs[valid] == 0).double().mean().item()
        assert abs(dropped - SHARE) < 0.2  # of 35 draws or more, with standard deviation 0.08 at most
    again = traces(call)
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(found, again, strict=True))


@every_family
@pytest.mark.parametrize("way", ["float64", "bfloat16", "autocast"])
def test_dropout_is_drawn_alike_in_other_precisions(family, way):
    module, x = make_dropping(family), torch.randn(SEQUENCES, STEPS, INPUTS)
    if way != "autocast":
        module, x = module.to(getattr(torch, way)), x.to(getattr(torch, way))
    if way == "autocast":
        skip_where_torch_cannot(module, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        call = hear(module, x)
    assert rebuild_error(call) < call.tolerance / 2


@every_family
def test_dropout_is_drawn_anew_for_every_call_of_a_passage(family):
    module, x = make_dropping(family), torch.randn(SEQUENCES, STEPS, INPUTS)
    state = None
    with Recorder(module, max_sequences=2) as recorder, torch.no_grad():
        for part in x.split((1, 4, 2), dim=1):
            _, state = module(part, state)
    (call,) = calls_of(recorder)
    assert call.inputs.shape[:2] == (2, STEPS)
    assert rebuild_error(call) < 1e-6


def test_sequences_that_leave_a_decoder_early_draw_no_more():
    module, x = make_dropping(nn.LSTM), torch.randn(SEQUENCES, STEPS, INPUTS)
    state = None
    with Recorder(module) as recorder, torch.no_grad():
        for t, running in enumerate((3, 3, 2, 2, 2, 1, 1)):
            if state is not None:
                state = tuple(s[:, :running].contiguous() for s in state)
            _, state = module(x[:running, t : t + 1], state)
    (call,) = calls_of(recorder)
    assert call.lengths.tolist() == [7, 5, 2]
    assert rebuild_error(call) < 1e-6


def test_dropout_that_was_off_is_not_drawn():
    module, x = make_dropping(nn.GRU), torch.randn(SEQUENCES, STEPS, INPUTS)
    with Recorder(module) as recorder, torch.no_grad():
        module(x)
        module.eval()
        module(x)
        module.train()
        module.dropout = 0.0
        module(x)
    first, *others = calls_of(recorder)
    assert first.dropout
    assert not any(call.dropout for call in others)
    assert max(map(rebuild_error, [first, *others])) < 1e-6


def test_rebuilding_leaves_the_global_random_state_alone():
    for module in (make_dropping(nn.LSTM, bidirectional=True), make_dropping(nn.LSTM).eval()):
        call = hear(module, torch.randn(SEQUENCES, STEPS, INPUTS))
        torch.rand(1)
        before = torch.get_rng_state()
        assert rebuild_error(call) < 1e-6
        assert torch.equal(torch.get_rng_state(), before)


# ---- with other weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layout", ["batch_first", "packed"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_rerun_is_what_a_module_of_other_weights_makes_of_the_same_inputs(kind, layers, bidirectional, layout):
    case = (kind, torch.float32, layers, bidirectional, layout, True, True)
    module, *given = make_case(*case, seed=5)
    other, *_ = make_case(*case, seed=6)
    calls = []
    for each in (module, other):
        with Recorder(each) as recorder:
            run(each, *given, layout, True)
        (call,) = calls_of(recorder)
        calls.append(call)
    heard, expected = calls
    found = rerun(heard, cells(other))
    valid = torch.arange(STEPS) < expected.lengths[:, None]
    assert (found.outputs[valid] - expected.outputs[valid]).abs().max() < LIMIT[torch.float32]
    assert (found.outputs[valid] - heard.outputs[valid]).abs().max() > 0.1
    for one, two in zip(traces(found), traces(expected), strict=True):
        for chunk, known in zip(chunks(one), chunks(two), strict=True):
            assert (chunk.memory - known.memory).abs().max() < LIMIT[torch.float32] if chunk.memory.numel() else True
            assert (chunk.hidden - known.hidden).abs().max() < LIMIT[torch.float32]


def test_rerun_of_a_users_loop_goes_without_what_was_done_between_its_steps():
    torch.manual_seed(0)
    cell, other = nn.GRUCell(INPUTS, UNITS), nn.GRUCell(INPUTS, UNITS)
    x = torch.randn(SEQUENCES, STEPS, INPUTS)
    state = None
    with Recorder(cell) as recorder, torch.no_grad():
        for step in x.unbind(1):
            state = cell(step, None if state is None else 0.5 * state)
    (call,) = calls_of(recorder)
    found = rerun(call, cells(other))
    expected = []
    with torch.no_grad():
        for step in x.unbind(1):
            expected.append(other(step, expected[-1] if expected else None))
    assert (found.outputs - torch.stack(expected, 1)).abs().max() < LIMIT[torch.float32]
    (trace,) = traces(found)
    (chunk,) = chunks(trace)
    assert (chunk.rebuilt - chunk.hidden).abs().max() < LIMIT[torch.float32]


def test_rerun_of_a_module_in_training_is_without_its_dropout():
    module, x = make_dropping(nn.LSTM), torch.randn(SEQUENCES, STEPS, INPUTS)
    call = hear(module, x)
    with torch.no_grad():
        expected, _ = module.eval()(x)
    found = rerun(call, call.cells)
    assert (call.outputs - expected).abs().max() > 0.01
    assert (found.outputs - expected).abs().max() < LIMIT[torch.float32]
    assert rebuild_error(found) < LIMIT[torch.float32]


# ---- chunks and reversal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_size_of_chunks_changes_nothing(kind):
    module, x, *_ = make_case(kind, torch.float64, 1, True, "packed", True, False, seed=3)
    with Recorder(module) as recorder:
        run(module, x, None, None, LENGTHS, "packed", False)
    for trace in traces(calls_of(recorder)[0]):
        tables = []
        for rows in (1, 4, 1024):
            found = list(chunks(trace, rows))
            assert max(len(chunk.times) for chunk in found) <= max(rows, SEQUENCES)
            order = torch.cat([chunk.times * SEQUENCES + chunk.sequences for chunk in found]).argsort()
            fields = [[c.inside.values.flatten(1), c.rebuilt, c.hidden, c.memory] for c in found]
            tables.append(torch.cat([torch.cat(field, dim=1) for field in fields])[order])
        assert len(tables[0]) == LENGTHS.sum()
        assert max((table - tables[0]).abs().max() for table in tables) < 1e-14


def test_no_chunk_is_empty_when_the_longest_sequence_was_left_out():
    module, x, *_ = make_case("gru", torch.float32, 2, True, "packed", True, False, seed=4)
    with Recorder(module, max_sequences=1) as recorder:
        run(module, x, None, None, LENGTHS, "packed", False)
    (call,) = calls_of(recorder)
    assert call.lengths.tolist() == LENGTHS[:1].tolist()
    for trace in traces(call):
        assert [len(chunk.times) for chunk in chunks(trace, rows=3)] == [3, 1]
    assert rebuild_error(call) < LIMIT[torch.float32]


def test_flip_turns_each_sequence_within_its_own_length():
    steps = torch.arange(SEQUENCES * STEPS).view(SEQUENCES, STEPS, 1)
    turned = flip(steps, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        assert turned[row, :length, 0].tolist() == steps[row, :length, 0].tolist()[::-1]
