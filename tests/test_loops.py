"""Loops that users write over single-step cells."""

import pytest
import torch
from torch import nn

from rnn_callbacks.capture import Recorder

from .hear import (
    INPUTS,
    ROUNDING,
    SEQUENCES,
    STEPS,
    UNITS,
    calls_of,
    changed,
    make,
    make_inputs,
    memories,
    rebuild_error,
)

CELLS = [nn.GRUCell, nn.LSTMCell, nn.RNNCell]


def hidden_of(state):
    return state[0] if isinstance(state, tuple) else state


class Loop(nn.Module):
    """A loop over a single-step cell as users write it; keeps its own list of states ``(B, T, H)``."""

    def __init__(self, family, between=lambda t, state: state, start=None):
        super().__init__()
        self.cell = make(family)
        self.between, self.start = between, start

    def forward(self, x, state=None):
        state = self.start if state is None else state
        shown = []
        for t, step in enumerate(x.unbind(1)):
            state = self.cell(step) if state is None else self.cell(step, hx=state)
            shown.append(hidden_of(state))
            state = self.between(t, state)
        return torch.stack(shown, dim=1), state


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("start", [False, True], ids=["from nothing", "from a state"])
def test_loop_over_a_cell_is_one_passage(family, start):
    model, x = Loop(family), make_inputs(SEQUENCES, STEPS)
    h0 = make_inputs(SEQUENCES, UNITS).mean(2)
    state = ((h0, 2 * h0) if family is nn.LSTMCell else h0) if start else None
    with Recorder(model) as recorder, torch.no_grad():
        shown, last = model(x, state)
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, x)
    assert torch.equal(call.outputs, shown)
    assert torch.equal(call.previous[:, 1:, :UNITS], shown[:, :-1])
    expected = torch.cat(state, 1) if start and family is nn.LSTMCell else h0 if start else torch.zeros(1)
    assert torch.equal(call.initial[0], expected.expand_as(call.initial[0]))
    assert torch.equal(call.final[0], torch.cat(last, dim=1) if family is nn.LSTMCell else last)
    assert rebuild_error(call) < ROUNDING


@pytest.mark.parametrize("family", CELLS)
def test_loop_tells_the_gates_of_the_fused_module(family):
    fused = {nn.GRUCell: nn.GRU, nn.LSTMCell: nn.LSTM, nn.RNNCell: nn.RNN}[family]
    model, x = Loop(family), make_inputs(SEQUENCES, STEPS)
    whole = fused(INPUTS, UNITS, batch_first=True)
    whole.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    with Recorder(model) as one, Recorder(whole) as other, torch.no_grad():
        model(x)
        whole(x)
    stepped, fused_call = calls_of(one)[0], calls_of(other)[0]
    assert (stepped.outputs - fused_call.outputs).abs().max() < ROUNDING
    if family is nn.LSTMCell:
        assert (memories(stepped) - memories(fused_call)).abs().max() < ROUNDING


MASK = torch.tensor([[1.0], [0.0], [1.0]])
CHANGES = {
    "masked": lambda t, state: changed(state, lambda s: MASK * s),  # the second sequence is reset after every step
    "reset at times": lambda t, state: changed(state, lambda s: MASK * s if t == 3 else s),
    "dropped": lambda t, state: changed(state, lambda s: nn.functional.dropout(s, 0.4)),
    "normalised": lambda t, state: changed(state, lambda s: nn.functional.layer_norm(s, s.shape[1:])),
    "decaying": lambda t, state: changed(state, lambda s: 0.7 * s),
}


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("change", list(CHANGES))
def test_states_that_the_user_changes_between_steps_are_those_before_the_next(family, change):
    seen = []

    def between(t, state):
        state = CHANGES[change](t, state)
        seen.append(torch.cat(state, dim=1) if isinstance(state, tuple) else state)
        return state

    model, x = Loop(family, between), make_inputs(SEQUENCES, STEPS)
    with Recorder(model) as recorder, torch.no_grad():
        shown, _ = model(x)
    (call,) = calls_of(recorder)
    assert torch.equal(call.outputs, shown)
    assert torch.equal(call.previous[:, 1:], torch.stack(seen[:-1], dim=1))
    assert rebuild_error(call) < ROUNDING


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("start", [False, True], ids=["from nothing", "from the same state"])
def test_two_loops_in_a_batch_are_two_passages(family, start):
    h0 = torch.ones(SEQUENCES, UNITS) / 2
    model = Loop(family, start=((h0, h0) if family is nn.LSTMCell else h0) if start else None)
    model.between = CHANGES["decaying"]  # so that no loop is known by handing on the very same state
    x, other = make_inputs(SEQUENCES, STEPS), make_inputs(SEQUENCES, 4, seed=2)
    with Recorder(model) as recorder, torch.no_grad():
        recorder.next_batch()
        model(x), model(other)
        recorder.next_batch()
        model(x)
    calls = calls_of(recorder)
    assert [call.inputs.shape[1] for call in calls] == [STEPS, 4, STEPS]
    assert [call.batch for call in calls] == [0, 0, 1]
    assert torch.equal(calls[1].inputs, other)


def decaying_loops(*loops, between=lambda recorder, cell: None):
    """Passages of loops over one cell, each given as inputs and first state, with a state that no loop hands on."""
    cell = make(nn.GRUCell).eval()
    with Recorder(cell) as recorder:
        recorder.next_batch()
        for x, state in loops:
            for step in x.unbind(1):
                state = 0.7 * cell(step, state).detach()
            between(recorder, cell)
    return calls_of(recorder)


def test_loop_is_another_that_starts_from_zeros_or_with_other_sequences_or_in_the_next_batch():
    x, more = make_inputs(SEQUENCES, STEPS), make_inputs(11, STEPS, seed=2)
    ones, zeros = torch.ones(SEQUENCES, UNITS), torch.zeros(SEQUENCES, UNITS)
    calls = decaying_loops((x, ones), (x, zeros))
    assert [call.inputs.shape[:2] for call in calls] == [x.shape[:2], x.shape[:2]]
    calls = decaying_loops((x, ones), (more, torch.ones(11, UNITS) / 2))
    assert [call.inputs.shape[:2] for call in calls] == [x.shape[:2], more.shape[:2]]
    calls = decaying_loops((x, ones), (x, ones / 2), between=lambda recorder, _: recorder.next_batch())
    assert [call.batch for call in calls] == [0, 1]


def test_loop_whose_weights_move_halfway_is_two_passages():
    x, ones = make_inputs(SEQUENCES, STEPS), torch.ones(SEQUENCES, UNITS)
    with torch.no_grad():
        calls = decaying_loops((x, ones), (x, ones / 2), between=lambda _, cell: cell.weight_hh.mul_(2))
    assert [call.inputs.shape[1] for call in calls] == [STEPS, STEPS]
    assert max(map(rebuild_error, calls)) < ROUNDING


@pytest.mark.parametrize("family", CELLS)
def test_unbatched_step_is_a_sequence_of_its_own(family):
    cell, x = make(family), make_inputs(STEPS)
    state = None
    with Recorder(cell) as recorder, torch.no_grad():
        for step in x:
            state = cell(step, state)
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, x[None])
    assert torch.equal(call.outputs[0, -1], hidden_of(state))
    assert rebuild_error(call) < ROUNDING


def test_head_of_a_loop_is_what_fewer_sequences_would_have_told():
    model, x = Loop(nn.LSTMCell), make_inputs(SEQUENCES, STEPS)
    with Recorder(model) as recorder, torch.no_grad():
        model(x)
    (call,) = calls_of(recorder)
    part = call.head(2)
    assert torch.equal(part.previous, call.previous[:2])
    assert (memories(part) - memories(call)[:2]).abs().max() < ROUNDING
    assert rebuild_error(part) < ROUNDING
