import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.capture import Recorder

from .hear import calls_of, hear, memories, rebuild_error, skip_where_torch_cannot

SEQUENCES, STEPS, INPUTS, UNITS, PROJECTED, LAYERS = 5, 7, 3, 11, 2, 2
LENGTHS = torch.tensor([4, 7, 1, 3, 7])
ROUNDING = 2e-6

FUSED = [nn.GRU, nn.LSTM, nn.RNN]
CELLS = [nn.GRUCell, nn.LSTMCell, nn.RNNCell]
every_family = pytest.mark.parametrize("family", FUSED)
quiet_projection = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"  # torch's, at every forward pass
)


def make(family, *sizes, seed=0, **options):
    torch.manual_seed(seed)
    return family(INPUTS, UNITS, *sizes, **options)


def make_inputs(*shape, seed=1):
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed))


def make_state(family, *leading, seed=2):
    generator = torch.Generator().manual_seed(seed)
    h, c = torch.randn(2, *leading, UNITS, generator=generator)
    return (h, c) if family in (nn.LSTM, nn.LSTMCell) else h


def whole(state):
    return torch.cat(state, dim=-1) if isinstance(state, tuple) else state


# ---- layouts ---------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layout", ["batch_first", "time_first", "unbatched", "packed", "packed_sorted", "one_step"])
def test_every_layout_is_told_in_one_form(family, bidirectional, layout):
    module = make(family, LAYERS, bidirectional=bidirectional, batch_first=layout in ("batch_first", "unbatched"))
    x, lengths = make_inputs(SEQUENCES, STEPS), torch.full((SEQUENCES,), STEPS)
    state = make_state(family, LAYERS * (1 + bidirectional), SEQUENCES)
    given, source = state, x
    if layout == "unbatched":
        x, lengths = x[:1], lengths[:1]
        source, given = x[0], tuple(s[:, 0] for s in state) if family is nn.LSTM else state[:, 0]
        state = tuple(s[:, :1] for s in state) if family is nn.LSTM else state[:, :1]
    elif layout == "time_first":
        source = x.transpose(0, 1)
    elif layout != "batch_first":
        lengths = {"packed": LENGTHS, "packed_sorted": LENGTHS.sort(descending=True).values}.get(layout, lengths)
        if layout == "one_step":
            x, lengths = x[:, :1], lengths // lengths
        source = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=layout == "packed_sorted")
    with torch.no_grad():
        expected, last = module(source, given)
    if "pack" in layout or layout == "one_step":
        expected, _ = nn.utils.rnn.pad_packed_sequence(expected)
    expected = expected[None] if layout == "unbatched" else expected if module.batch_first else expected.transpose(0, 1)
    call = hear(module, source, given)
    assert torch.equal(call.lengths, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(call.inputs[row, :length], x[row, :length])
        assert torch.equal(call.outputs[row, :length], expected[row, :length])
    assert torch.equal(call.initial, whole(state))
    assert torch.equal(call.final, whole(last).view_as(call.final))
    assert rebuild_error(call) < ROUNDING


@pytest.mark.parametrize("way", ["positions", "hx by name", "all by name", "a list"])
@pytest.mark.parametrize("family", [nn.LSTM, nn.LSTMCell])
def test_input_and_state_are_found_however_they_are_passed(family, way):
    module = make(family)
    shape = (1, SEQUENCES) if family is nn.LSTM else (SEQUENCES,)
    x, state = make_inputs(*shape), make_state(family, *shape)
    args = {"positions": (x, state), "hx by name": (x,), "all by name": (), "a list": (x, list(state))}[way]
    kwargs = {"hx by name": {"hx": state}, "all by name": {"hx": state, "input": x}}.get(way, {})
    call = hear(module, *args, **kwargs)
    assert torch.equal(call.inputs, x.view(SEQUENCES, 1, INPUTS))
    assert torch.equal(call.initial[0], whole(state).view(SEQUENCES, -1))
    assert rebuild_error(call) < ROUNDING


@every_family
def test_state_broadcast_over_sequences_is_told_for_each(family):
    module, x = make(family, batch_first=True), make_inputs(SEQUENCES, STEPS)
    one = make_state(family, 1, 1)
    state = tuple(s.expand(-1, SEQUENCES, -1) for s in one) if family is nn.LSTM else one.expand(-1, SEQUENCES, -1)
    call = hear(module, x, tuple(s.contiguous() for s in state) if family is nn.LSTM else state)
    assert torch.equal(call.initial, whole(state))
    assert rebuild_error(call) < ROUNDING


@quiet_projection
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_projected_state_and_memory_keep_their_own_widths(bidirectional):
    module = make(nn.LSTM, LAYERS, proj_size=PROJECTED, bidirectional=bidirectional, batch_first=True)
    cells = LAYERS * (1 + bidirectional)
    h, c = torch.randn(cells, SEQUENCES, PROJECTED), torch.randn(cells, SEQUENCES, UNITS)
    x = make_inputs(SEQUENCES, STEPS)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    call = hear(module, packed, (h, c))
    assert torch.equal(call.initial, torch.cat([h, c], dim=2))
    assert call.outputs.shape == (SEQUENCES, STEPS, PROJECTED * (1 + bidirectional))
    assert rebuild_error(call) < ROUNDING
    with torch.no_grad():
        _, (_, last) = module(packed, (h, c))
    end = memories(call)[torch.arange(SEQUENCES), LENGTHS - 1]  # of the lowest forward cell
    assert (end - last[0]).abs().max() < ROUNDING


@every_family
def test_empty_batch_is_not_heard(family):
    module = make(family, batch_first=True)
    with Recorder(module) as recorder, torch.no_grad():
        module(make_inputs(0, STEPS))
        module(make_inputs(SEQUENCES, STEPS))
    (call,) = calls_of(recorder)
    assert len(call.lengths) == SEQUENCES


@pytest.mark.parametrize("family", CELLS)
def test_empty_batch_of_steps_is_not_heard(family):
    module = make(family)
    with Recorder(module) as recorder, torch.no_grad():
        module(make_inputs(0), make_state(family, 0))
    assert calls_of(recorder) == ()


# ---- precision -------------------------------------------------------------------------------------------------------

EXACTNESS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("sizes", [(1,), (3,)], ids=["one layer", "three layers"])
@pytest.mark.parametrize("way", ["float32", "float64", "bfloat16", "autocast"])
@every_family
def test_rounding_stays_within_the_tolerance_of_the_precision(family, way, sizes):
    module, x = make(family, *sizes, bidirectional=True), make_inputs(53, SEQUENCES)
    dtype = torch.bfloat16 if way == "autocast" else getattr(torch, way)
    if way != "autocast":
        module, x = module.to(dtype), x.to(dtype)
    if way == "autocast":
        skip_where_torch_cannot(module, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        call = hear(module, x)
    assert call.precision == dtype
    assert call.tolerance == EXACTNESS[dtype]
    assert call.inputs.dtype == call.outputs.dtype == torch.promote_types(dtype, torch.float32)
    error = rebuild_error(call)
    assert error < call.tolerance / 2
    # It must be so wide for a reason: half precision is not float32.
    assert (error > 1e-4) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("family", CELLS)
def test_autocast_shows_in_the_precision_of_a_cell_though_its_output_is_float32(family):
    module, x = make(family), make_inputs(STEPS, SEQUENCES)
    with Recorder(module) as recorder, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = None
        for step in x:
            state = module(step, state)
    (call,) = calls_of(recorder)
    assert call.inputs.shape == (SEQUENCES, STEPS, INPUTS)
    assert (call.precision, call.tolerance) == (torch.bfloat16, 3e-2)
    assert rebuild_error(call) < call.tolerance / 2


# ---- what does not fit -----------------------------------------------------------------------------------------------


class Embedding(nn.GRU):
    """Takes tokens, so that what goes in is not what its equations read."""

    def forward(self, tokens, hx=None):
        return super().forward(nn.functional.one_hot(tokens, INPUTS).float(), hx)


class Summing(nn.GRU):
    """Gives the two directions' sum."""

    def forward(self, x, hx=None):
        y, last = super().forward(x, hx)
        return sum(y.chunk(2, dim=2)), last


class LastOnly(nn.GRU):
    """Gives only one cell's last state."""

    def forward(self, x, hx=None):
        y, last = super().forward(x, hx)
        return y, last[:1]


class Wide(nn.GRU):
    """Takes a state of another kind."""

    def forward(self, x, hx=None):
        return super().forward(x)


@pytest.mark.parametrize(
    "module, given, words",
    [
        (
            Embedding(INPUTS, UNITS),
            (torch.zeros(SEQUENCES, STEPS, dtype=torch.long),),
            r"inputs must be \(1, 5, 3\), got",
        ),
        (
            Summing(INPUTS, UNITS, bidirectional=True),
            (torch.zeros(STEPS, SEQUENCES, INPUTS),),
            r"outputs must be \(5, 7, 22\), got shape \(5, 7, 11\)",
        ),
        (
            LastOnly(INPUTS, UNITS, 2),
            (torch.zeros(STEPS, SEQUENCES, INPUTS),),
            r"state after must be \(2, 5, 11\), got shape \(1, 5, 11\)",
        ),
        (
            Wide(INPUTS, UNITS),
            (torch.zeros(STEPS, SEQUENCES, INPUTS), torch.zeros(1, SEQUENCES, 2)),
            r"state before must be \(1, 5, 11\), got shape \(1, 5, 2\)",
        ),
    ],
    ids=["inputs", "outputs", "state after", "state before"],
)
def test_forward_method_that_does_not_fit_the_equations_is_a_fault(module, given, words):
    with Recorder(module) as recorder, torch.no_grad():
        module(*given)
    (fault,) = recorder.faults.values()
    with pytest.raises(ValueError, match=words):
        raise fault
    assert not recorder.tapes[type(module).__name__.lower()].calls


def test_subclass_that_changes_nothing_is_heard():
    class Named(nn.RNN):
        """Its own name."""

    call = hear(make(Named, LAYERS, nonlinearity="relu"), make_inputs(STEPS, SEQUENCES))
    assert rebuild_error(call) < 2e-5  # relu states grow
