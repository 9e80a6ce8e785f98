import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import traces

from .known_gates import FAMILIES, INPUTS, UNITS, hear, make, pack, random_inputs, statistics, with_biases


def assert_same(one, other, *, exactly=True):
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray) and not exactly:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=field.name)
        elif isinstance(ours, float) and not exactly:
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), field.name
        else:
            assert np.array_equal(ours, theirs), field.name


def assert_no_nan(found):
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        assert value is None or isinstance(value, (str, tuple)) or np.isfinite(value).all(), field.name
    assert np.isfinite(list(found.scalars().values())).all()


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


def test_float64_beyond_the_range_of_float32_counts_as_infinite():
    # h_t = 1 + 1000 h_{t-1} passes 3.4e38 at its 14th step; the squares that spreads need would pass float64's 1e308.
    module = with_biases(make("rnn_relu", dtype=torch.float64))
    with torch.no_grad():
        module.bias_ih_l0.fill_(1.0)
        module.weight_hh_l0.copy_(1e3 * torch.eye(UNITS))
    found = statistics(module, random_inputs(7, 60, dtype=torch.float64))
    assert found.nonfinite == pytest.approx(47 / 60)
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


def test_nan_in_one_sequence_does_not_hide_a_wrong_last_state_in_another():
    x = random_inputs(7, 11)
    x[2, 4:] = math.nan
    (trace,) = hear(make("gru"), x)["l0"]
    last = trace.final.clone()
    last[5] += 0.5
    assert gate_statistics([dataclasses.replace(trace, final=last)]).rebuild_error > 0.1


def test_there_are_no_more_time_bins_than_steps():
    assert statistics(make("gru"), random_inputs(2, 7)).unit_profile.shape == (3, UNITS, 7)


def test_nothing_heard_is_refused():
    with pytest.raises(ValueError, match="needs at least one trace, got none: was the module called"):
        gate_statistics([])
    with pytest.raises(ValueError, match="time_bins must be at least 1, got 0"):
        statistics(make("gru"), random_inputs(2, 7), time_bins=0)


class MinimalCell(Cell):
    """``c' = f c + (1 - f) x`` and ``h' = c'`` with ``f = sigmoid(w)``: a memory, but no input gate."""

    gates, candidate, retention = ("forget",), "input", "forget"

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


class CopyingCell(Cell):
    """``c' = h' = x``, with one gate that is a view of a constant: the memory is a view of the candidate."""

    gates, candidate = ("shut",), "copied"

    def activations(self, inputs, hidden, memory=None):
        if self.gates_read_memory:
            assert torch.equal(memory, hidden)
        return Activations(torch.cat([inputs.new_zeros(1, 1, 1).expand(len(inputs), 1, INPUTS), inputs[:, None]], 1))

    def follow(self, inside, hidden, memory):
        return inside.candidate, inside.candidate


class StridedCell(CopyingCell):
    """The same with activations that share memory between steps."""

    def activations(self, inputs, hidden, memory=None):
        return Activations(inputs.new_zeros(1, 1, 1).expand(len(inputs), 2, INPUTS))

    def follow(self, inside, hidden, memory):
        return hidden, torch.zeros_like(hidden)


@pytest.mark.parametrize("by_step", [False, True])
def test_states_of_a_cell_may_be_views_of_its_candidate(by_step):
    (trace,) = hear(make("rnn_tanh"), random_inputs(7, 11))["l0"]
    cell = CopyingCell(Place("l0"), input_size=INPUTS, units=INPUTS, memory_size=INPUTS)
    cell.gates_read_memory = by_step  # then the memory after a step is handed to the next one, sign and all
    x = trace.inputs
    copied = dataclasses.replace(trace, cell=cell, hidden=x, initial=torch.zeros(7, 2 * INPUTS), final=x[:, -1])
    found = gate_statistics([copied])
    assert found.rebuild_error == 0
    steps = x.double().numpy()
    np.testing.assert_allclose(found.mean[1], abs(steps).mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.state_profile[3], steps.std((0, 2)), rtol=1e-12)


def test_activations_of_a_cell_may_share_memory():
    (trace,) = hear(make("rnn_tanh"), random_inputs(7, 11))["l0"]
    cell = StridedCell(Place("l0"), input_size=INPUTS, units=INPUTS, memory_size=INPUTS)
    still = torch.zeros_like(trace.inputs)
    found = gate_statistics(
        [dataclasses.replace(trace, cell=cell, hidden=still, initial=torch.zeros(7, 2 * INPUTS), final=None)]
    )
    assert (found.mean[0] == 0.5).all()
