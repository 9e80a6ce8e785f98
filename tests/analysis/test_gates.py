import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.analysis.gates import BINS, LONGEST, gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import traces

from .. import reference
from .known_gates import FAMILIES, INPUTS, PROJECTED, UNITS, hear, make, statistics, with_biases

BATCHES = ((2, 11), (7, 13))  # sequences and steps of two calls
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}  # of means over a few hundred numbers near 1


def random_inputs(*size, dtype=torch.float32, seed=1):
    return torch.randn(*size, INPUTS, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pack(x, lengths):
    return pack_padded_sequence(x, torch.as_tensor(lengths), batch_first=True, enforce_sorted=False)


# Closed forms


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_zero_weights_leave_every_gate_half_open(kind):
    found = statistics(with_biases(make(kind)), random_inputs(7, 11))
    assert found.rebuild_error == 0
    assert np.array_equal(found.mean[:-1], np.full((len(found.parts) - 1, UNITS), 0.5))
    assert not found.std.any()
    assert not found.closed[:-1].any()
    assert not found.open.any()
    assert (found.closed[-1] == 1).all()  # the candidate is tanh(0)
    assert (found.histogram[:-1, :, BINS // 2] == 77).all()
    np.testing.assert_allclose(found.timescale, 1 / math.log(2), rtol=1e-6)


@pytest.mark.parametrize(("bias", "closed", "opened"), [(-3.0, 1, 0), (-1.0, 0, 0), (1.0, 0, 0), (3.0, 0, 1)])
def test_forget_gate_without_weights_is_the_sigmoid_of_its_bias(bias, closed, opened):
    found = statistics(with_biases(make("lstm"), forget=bias), random_inputs(7, 11))
    forget = found.parts.index("forget")
    np.testing.assert_allclose(found.mean[forget], 1 / (1 + math.exp(-bias)), rtol=1e-6)
    assert (found.closed[forget] == closed).all()
    assert (found.open[forget] == opened).all()


@pytest.mark.parametrize("tau", [2.0, 10.0, 100.0])
def test_timescale_is_that_at_which_the_memory_fades(tau):
    module = with_biases(make("lstm"), forget=math.log(tau - 1))
    begin = torch.full((1, 7, UNITS), 0.8)
    found = statistics(module, random_inputs(7, 11), hx=(torch.zeros_like(begin), begin))
    share = 1 - 1 / tau
    np.testing.assert_allclose(found.timescale, -1 / math.log(share), rtol=1e-5)  # float32 logits, magnified by tau
    np.testing.assert_allclose(found.state_profile[2], 0.8 * share ** np.arange(1, 12), rtol=1e-5)


def test_timescale_of_a_gru_comes_from_what_its_update_gate_leaves():
    module = with_biases(make("gru"), z=math.log(9))
    found = statistics(module, random_inputs(7, 11), hx=torch.full((1, 7, UNITS), 0.8))
    np.testing.assert_allclose(found.mean[found.parts.index("update")], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.timescale, -1 / math.log(0.9), rtol=1e-5)
    np.testing.assert_allclose(found.state_profile[0], 0.8 * 0.9 ** np.arange(1, 12), rtol=1e-5)


@pytest.mark.parametrize(("kind", "gate", "sign"), [("lstm", "forget", 1), ("gru", "update", -1)])
def test_timescale_of_an_alternating_gate_averages_logarithms(kind, gate, sign):
    # Retention alternates between 0.5 and 0.99. The truth is -2 / (ln 0.5 + ln 0.99) = 2.84; 1 / (1 - mean) is 3.92.
    module = with_biases(make(kind))
    with torch.no_grad():
        module.weight_ih_l0[UNITS : 2 * UNITS, 0] = 1.0  # torch's forget and z rows alike
    x = torch.zeros(7, 12, INPUTS)
    x[:, 1::2, 0] = math.log(0.99 / 0.01)
    found = statistics(module, x)
    np.testing.assert_allclose(found.timescale, -2 / (math.log(0.5) + math.log(0.99)), rtol=1e-6)
    np.testing.assert_allclose(found.mean[found.parts.index(gate)], 0.745 if sign > 0 else 0.255, rtol=1e-6)


@pytest.mark.parametrize("bias", [30.0, 200.0, 1e30])
def test_timescale_of_a_unit_that_forgets_nothing_is_the_longest_reported(bias):
    # log sigmoid(200) is exactly 0 in float32.
    found = statistics(with_biases(make("lstm"), forget=bias), random_inputs(2, 7))
    assert (found.timescale == LONGEST).all()


def test_write_balance_is_what_is_written_over_what_is_forgotten():
    found = statistics(with_biases(make("lstm"), input=-1.0, forget=2.0), random_inputs(2, 7))
    np.testing.assert_allclose(found.write_balance, (1 + math.exp(2)) / (1 + math.exp(1)), rtol=1e-6)
    chrono = torch.rand(UNITS, generator=torch.Generator().manual_seed(0)) * 4
    found = statistics(with_biases(make("lstm"), input=-chrono, forget=chrono), random_inputs(2, 7))
    np.testing.assert_allclose(found.write_balance, 1.0, rtol=1e-5)
    assert not len(statistics(make("gru"), random_inputs(2, 7)).write_balance)


@pytest.mark.parametrize("cell", ["l0", "l0_reverse"])
@pytest.mark.parametrize("lengths", [(11, 11, 11), (4, 11, 1)])
def test_drift_of_an_integrator_is_what_it_adds_per_step_it_reads(cell, lengths):
    module = with_biases(make("lstm", bidirectional=True), input=40.0, forget=40.0, cell=0.1)
    with torch.no_grad():
        module.bias_ih_l0_reverse.copy_(module.bias_ih_l0)
    found = statistics(module, pack(random_inputs(3, 11), lengths), cell=cell)
    assert found.memory_drift == pytest.approx(math.tanh(0.1), rel=1e-5)  # c_t = (t + 1) tanh 0.1
    assert found.scalars()["memory/drift"] == found.memory_drift
    sizes = np.concatenate([np.arange(1, n + 1) for n in lengths]) * math.tanh(0.1)
    assert found.scalars()["memory/mean_abs"] == pytest.approx(sizes.mean(), rel=1e-5)
    assert found.memory_saturated == pytest.approx((np.tanh(sizes) > 0.9).mean())  # c = 1.4955, 1.5947 beside 1.4722


def test_blown_up_counts_the_logits_beyond_twelve():
    module = with_biases(make("lstm"))
    with torch.no_grad():
        module.weight_ih_l0[:UNITS, 0] = torch.tensor([11.0, 13.0, -13.0, 1.0, 0.0])
    x = torch.zeros(7, 10, INPUTS)
    x[:, :3, 0] = 1.0
    found = statistics(module, x)
    np.testing.assert_allclose(found.blown_up, [0.3 * 2 / 5, 0, 0])  # input, forget, output


def test_gate_that_is_open_or_closed_has_two_peaks():
    module = with_biases(make("lstm"))
    with torch.no_grad():
        module.weight_ih_l0[3 * UNITS :, 0] = 1.0  # output
    x = torch.zeros(7, 10, INPUTS)
    x[:, :, 0] = -4.0
    x[:, :3, 0] = 4.0
    counts = statistics(module, x).histogram[2]
    assert (counts[:, 0] == 49).all()
    assert (counts[:, -1] == 21).all()
    assert not counts[:, 1:-1].any()


def test_relu_that_explodes_is_still_measured():
    # h_t = 1 + 10 h_{t-1}; at 30 steps 1e29, whose square float32 does not hold and whose bin no int32 can count.
    module = with_biases(make("rnn_relu"))
    with torch.no_grad():
        module.bias_ih_l0.fill_(1.0)
        module.weight_hh_l0.copy_(10 * torch.eye(UNITS))
    found = statistics(module, random_inputs(7, 30))
    truth = (10.0 ** np.arange(1, 31) - 1) / 9
    np.testing.assert_allclose(found.state_profile[0], truth, rtol=1e-5)
    np.testing.assert_allclose(found.mean[0], truth.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.std[0], truth.std(), rtol=1e-5)
    assert (found.histogram[0, :, -1] == 7 * 30).all()
    # All units are equal: their spread is rounding of the float64 sums, 1e-8 of the size.
    assert (found.state_profile[1] <= 1e-7 * truth).all()
    assert found.rebuild_error < found.tolerance
    assert found.scalars() == {"hidden/mean_abs": pytest.approx(truth.mean(), rel=1e-5), "hidden/near_zero": 0.0}


def test_single_step_of_a_single_unit_is_enough():
    for family in (nn.GRU, nn.LSTM, nn.RNN):
        torch.manual_seed(0)
        found = statistics(family(1, 1, batch_first=True), torch.randn(1, 1, 1))
        assert found.steps == 1
        assert not found.std.any()
        assert np.isfinite(list(found.scalars().values())).all()
        assert found.memory_drift == 0.0


# The second road


def reference_steps(module, cell, x, lengths):
    """Of all steps, through the documented equations: position, steps read, parts (N, G + 1, H), h and c."""
    rows = []
    zeros = torch.zeros(len(cells(module)), x.shape[0], UNITS, dtype=x.dtype)
    for b, length in enumerate(lengths):
        found = reference.rebuild(module, x[b, :length], zeros[:, b, : cell.output_size], zeros[:, b])[0]
        for t, (gates, h, c) in enumerate(found[cell.name]):
            parts = torch.stack([gates[part] for part in cell.parts])
            parts[-1] = parts[-1].abs()
            rows.append((t, length - 1 - t if cell.place.reverse else t, parts.numpy(), h.numpy(), c.numpy()))
    return [np.array(column, dtype=float) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_statistics_are_those_of_the_documented_equations(kind, packed, dtype):
    module = make(kind, 2, bidirectional=True, dtype=dtype)
    xs = [2 * random_inputs(*size, dtype=dtype, seed=seed) for seed, size in enumerate(BATCHES)]
    lengths = [[1, 11], [5, 13, 2, 3, 7, 1, 4]] if packed else [[t] * b for b, t in BATCHES]
    heard = hear(module, *map(pack, xs, lengths)) if packed else hear(module, *xs)
    for name, trace in heard.items():
        check_against_reference(gate_statistics(trace, time_bins=3), module, trace[0].cell, xs, lengths)
        assert trace[0].cell.name == name


def check_against_reference(found, module, cell, xs, lengths):
    roads = [reference_steps(module, cell, *call) for call in zip(xs, lengths, strict=True)]
    times, read, parts, h, c = (np.concatenate(columns) for columns in zip(*roads, strict=True))
    close = {"rtol": ROUNDING[xs[0].dtype], "atol": ROUNDING[xs[0].dtype]}
    assert found.parts == cell.parts
    assert found.steps == len(times) == sum(map(sum, lengths))
    assert found.lengths.tolist() == [length for call in lengths for length in call]
    assert found.sequences == len(found.lengths)
    assert found.nonfinite == 0
    assert found.rebuild_error < found.tolerance
    np.testing.assert_allclose(found.mean, parts.mean(0), **close)
    np.testing.assert_allclose(found.std, parts.std(0), **close)
    assert (found.histogram.sum(-1) == found.steps).all()
    np.testing.assert_allclose(found.closed, (parts < 0.1).mean(0))
    np.testing.assert_allclose(found.open, (parts > 0.9).mean(0))
    for part, counts in enumerate(found.histogram):
        for unit in range(UNITS):
            clipped = np.minimum(parts[:, part, unit], 1)  # a relu's values beyond 1 are in the last bin
            assert counts[unit].tolist() == np.histogram(clipped, BINS, (0, 1))[0].tolist()
    logits = np.log(parts[:, :-1]) - np.log1p(-parts[:, :-1])
    np.testing.assert_allclose(found.blown_up, (abs(logits) > 12).mean((0, 2)))
    if cell.retention:
        kept = parts[:, cell.gates.index(cell.retention)]
        kept = kept if cell.retains_when_open else 1 - kept
        np.testing.assert_allclose(found.log_retention, np.log(kept).mean(0), **close)
    longest = max(map(max, lengths))
    for t in range(longest):
        at = times == t
        assert found.times[t] == at.sum()
        np.testing.assert_allclose(found.profile[:, t], parts[at].mean((0, 2)), **close)
        states = [h[at], c[at]] if cell.memory_size else [h[at]]
        truth = [moment for state in states for moment in (abs(state).mean(), state.std())]
        np.testing.assert_allclose(found.state_profile[:, t], truth, **close)
    for third in range(3):
        at = times * 3 // longest == third
        np.testing.assert_allclose(found.unit_profile[:, :, third], parts[at].mean(0), rtol=1e-5, atol=1e-6)
    if cell.memory_size:
        assert found.memory_saturated == pytest.approx((abs(np.tanh(c)) > 0.9).mean())
        assert found.memory_drift == pytest.approx(np.polyfit(read, abs(c).mean(1), 1)[0], abs=1e-6)


def test_spread_of_a_saturated_gate_is_that_of_float64():
    # f = sigmoid(8 + noise): mean 0.9997, std 2e-6. The mean of squares less the squared mean, in float32, is off by
    # 1e-7 and so says anything from 0 to 3e-4; what is left here is the grain of float32 near 1, 6e-8.
    module = with_biases(make("lstm"), forget=8.0)
    with torch.no_grad():
        module.weight_ih_l0[UNITS : 2 * UNITS, 0] = 0.01
    x = random_inputs(7, 211)
    logits = 8.0 + 0.01 * x[..., 0].double().numpy()
    truth = (1 / (1 + np.exp(-logits))).std()
    np.testing.assert_allclose(statistics(module, x).std[1], truth, rtol=0, atol=6e-8)
    assert 2e-6 < truth < 5e-6


def test_spread_of_states_that_hardly_differ_is_that_of_float64():
    # Memories near 50 that differ by 1e-3: float32 squares of them are 2500 with a grain of 2e-4.
    module = with_biases(make("lstm"), input=40.0, forget=40.0, cell=40.0)
    begin = torch.linspace(0, 1e-3, 7)[None, :, None].expand(1, 7, UNITS).contiguous()
    found = statistics(module, random_inputs(7, 53), hx=(torch.zeros_like(begin), begin))
    truth = begin[0, :, 0].double().std(correction=0)
    np.testing.assert_allclose(found.state_profile[3], truth, rtol=0, atol=4e-6)  # grain of float32 at 50


# Invariances


def assert_same(one, other, *, exactly=True):
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray) and not exactly:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=field.name)
        elif isinstance(ours, float) and not exactly:
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), field.name
        else:
            assert np.array_equal(ours, theirs), field.name


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_padding_never_counts(kind):
    module, lengths = make(kind, bidirectional=True), (4, 11, 1, 7)
    x = random_inputs(4, 11)
    padded = x.clone()
    for b, length in enumerate(lengths):
        padded[b, length:] = 1e6
    for cell in ("l0", "l0_reverse"):
        clean = statistics(module, pack(x, lengths), cell=cell)
        assert_same(clean, statistics(module, pack(padded, lengths), cell=cell))
        alone = [x[b : b + 1, :length] for b, length in enumerate(lengths)]
        assert_same(clean, statistics(module, *alone, cell=cell), exactly=False)
        assert clean.steps == sum(lengths)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_sequences_may_come_in_any_order_and_in_any_number_of_calls(kind):
    module, x = make(kind), random_inputs(7, 11)
    whole = statistics(module, x)
    assert_same(whole, statistics(module, x.flip(0)), exactly=False)
    assert_same(whole, statistics(module, x[:2], x[2:5], x[5:]), exactly=False)


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh"])
def test_permuting_units_permutes_what_is_told_of_each(kind):
    module, x = make(kind, dtype=torch.float64), random_inputs(7, 11, dtype=torch.float64)
    before = statistics(module, x)
    order = [3, 1, 4, 0, 2]
    with torch.no_grad():
        for name, weight in module.named_parameters():
            rows = weight.unflatten(0, (-1, UNITS))[:, order].flatten(0, 1)
            weight.copy_(rows[:, order] if name == "weight_hh_l0" else rows)
    after = statistics(module, x)
    assert np.array_equal(after.histogram, before.histogram[:, order])
    for name in ("mean", "std"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name)[:, order], rtol=1e-12)
    np.testing.assert_allclose(after.unit_profile, before.unit_profile[:, order], rtol=1e-6)
    np.testing.assert_allclose(after.profile, before.profile, rtol=1e-12)
    if kind != "rnn_tanh":
        np.testing.assert_allclose(after.timescale, before.timescale[order], rtol=1e-12)


@pytest.mark.parametrize(("family", "single"), [(nn.GRU, nn.GRUCell), (nn.LSTM, nn.LSTMCell), (nn.RNN, nn.RNNCell)])
def test_loop_over_a_cell_is_told_as_its_fused_module_is(family, single):
    torch.manual_seed(0)
    loop = single(INPUTS, UNITS)
    fused = family(INPUTS, UNITS, batch_first=True)
    fused.load_state_dict({f"{name}_l0": weight for name, weight in loop.state_dict().items()})
    x, state = random_inputs(7, 11), None
    with Recorder(loop) as recorder, torch.no_grad():
        for step in x.unbind(1):
            state = loop(step, state)
    (tape,) = recorder.tapes.values()
    ours, theirs = gate_statistics([trace for call in tape.calls for trace in traces(call)]), statistics(fused, x)
    assert_same(dataclasses.replace(ours, cell="l0"), theirs, exactly=False)


def test_half_precision_around_the_analysis_does_not_round_it():
    heard = hear(make("lstm"), random_inputs(7, 11))["l0"]
    plain = gate_statistics(heard)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(plain, gate_statistics(heard))


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh", "rnn_relu"])
def test_what_was_heard_is_not_written_to(kind):
    heard = hear(make(kind, bidirectional=True), random_inputs(7, 11))["l0_reverse"]
    tensors = [t for trace in heard for t in (trace.inputs, trace.hidden, trace.initial, trace.lengths)]
    before = [t.clone() for t in tensors]
    assert_same(gate_statistics(heard), gate_statistics(heard))
    assert all(map(torch.equal, tensors, before))


# NaN, infinity, and weights that are not those that made the states


def assert_no_nan(found):
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        assert isinstance(value, (str, tuple)) or np.isfinite(value).all(), field.name
    assert np.isfinite(list(found.scalars().values())).all()


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh", "rnn_relu"])
def test_steps_after_a_nan_are_left_out(kind):
    module, x = make(kind), random_inputs(7, 11)
    broken = x.clone()
    broken[2, 4] = math.nan
    found = statistics(module, broken)
    assert found.nonfinite == pytest.approx(7 / 77)
    assert found.steps == 70
    assert found.times.tolist() == [7] * 4 + [6] * 7
    assert_no_nan(found)
    assert_same(
        dataclasses.replace(found, nonfinite=0.0, lengths=np.empty(0)),
        dataclasses.replace(
            statistics(module, pack(x, [11, 11, 4, 11, 11, 11, 11])),
            lengths=np.empty(0),
            rebuild_error=found.rebuild_error,
        ),
        exactly=False,
    )


def test_step_with_an_infinite_input_is_left_out_alone():
    # The gates are then exactly 0 or 1 and the state stays finite, so the steps after it count.
    x = random_inputs(7, 11)
    x[2, 4, 0] = math.inf
    found = statistics(make("lstm"), x)
    assert found.nonfinite == pytest.approx(1 / 77)
    assert_no_nan(found)


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_nothing_but_nan_gives_no_scalar_and_no_nan(kind):
    found = statistics(make(kind), torch.full((7, 11, INPUTS), math.nan))
    assert (found.nonfinite, found.steps, found.scalars()) == (1.0, 0, {})
    assert_no_nan(found)


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh", "rnn_relu"])
def test_huge_inputs_give_no_nan(kind, size):
    found = statistics(make(kind, bidirectional=True), size * random_inputs(7, 11).clamp(-1, 1), cell="l0_reverse")
    assert_no_nan(found)


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_other_weights_than_those_that_made_the_states_are_noticed(kind):
    module = make(kind, 2)
    with Recorder(module) as recorder, torch.no_grad():
        module(random_inputs(7, 11))
    (call,) = next(iter(recorder.tapes.values())).calls
    assert all(gate_statistics([trace]).rebuild_error < 1e-5 for trace in traces(call))
    with torch.no_grad():
        module.weight_hh_l1.mul_(-1)
    found = gate_statistics([traces(dataclasses.replace(call, cells=cells(module)))[1]])
    assert found.rebuild_error > 10 * found.tolerance


def test_outputs_edited_in_place_are_noticed():
    # The steps are still those of the equations, but not the last state that the module returned.
    (trace,) = hear(make("gru"), random_inputs(7, 11))["l0"]
    edited = dataclasses.replace(trace, final=trace.hidden[:, -1] + 0.5)
    size = max(1.0, edited.final.abs().max().item())
    assert gate_statistics([edited]).rebuild_error == pytest.approx(0.5 / size, abs=1e-5)


def test_nothing_heard_is_refused():
    with pytest.raises(ValueError, match="needs at least one trace, got none: was the module called"):
        gate_statistics([])
    with pytest.raises(ValueError, match="time_bins must be at least 1, got 0"):
        statistics(make("gru"), random_inputs(2, 7), time_bins=0)


# A cell of the user's own


class MinimalCell(Cell):
    """``c' = f c + (1 - f) x`` and ``h' = c'`` with ``f = sigmoid(w)``: a memory, but no input gate."""

    gates, candidate, retention = ("forget",), "new", "forget"

    def activations(self, inputs, hidden, memory=None):
        return Activations(torch.stack([torch.full_like(inputs, math.log(9)), inputs.tanh()], dim=1))

    def follow(self, inside, hidden, memory):
        memories = []
        for forget, new in zip(inside.logits[..., 0, :].sigmoid(), inside.candidate, strict=True):
            memory = forget * memory + (1 - forget) * new
            memories.append(memory)
        return torch.stack(memories), torch.stack(memories)


class Minimal(nn.Module):
    """A module of the user's, by his own equations."""

    batch_first = True

    def forward(self, x, hx=None):
        memory, outputs = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            memory = 0.9 * memory + 0.1 * step.tanh()
            outputs.append(memory)
        return torch.stack(outputs, 1), (memory[None], memory[None])


@cells.register
def _(module: Minimal):
    return (MinimalCell(Place("l0"), input_size=INPUTS, units=INPUTS, memory_size=INPUTS),)


def test_cell_of_the_user_without_an_input_gate_has_statistics():
    found = statistics(Minimal(), random_inputs(7, 11))
    assert found.rebuild_error < found.tolerance
    np.testing.assert_allclose(found.mean[0], 0.9, rtol=1e-6)
    np.testing.assert_allclose(found.timescale, -1 / math.log(0.9), rtol=1e-5)
    assert not len(found.write_balance)
    assert_no_nan(found)


def test_projected_state_has_the_width_of_the_projection():
    heard = hear(make("lstm_projected"), random_inputs(2, 7))["l0"]
    assert heard[0].hidden.shape[2] == PROJECTED
    assert gate_statistics(heard).mean.shape == (4, UNITS)
