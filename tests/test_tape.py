import pytest
import torch
from torch import nn

from rnn_callbacks.capture import Recorder

from .hear import (
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

LAYERS = 2

FUSED = [nn.GRU, nn.LSTM, nn.RNN]


# ---- modules that read sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("sizes", [(STEPS,), (1,) * STEPS, (4, 1, 2)], ids=["whole", "decoder", "chunks"])
def test_calls_that_hand_on_the_last_state_are_one_passage(family, sizes):
    module, x = make(family, LAYERS, batch_first=True), make_inputs(SEQUENCES, STEPS)
    state, shown = None, []
    with Recorder(module) as recorder, torch.no_grad():
        for part in x.split(sizes, dim=1):
            y, state = module(part, state)
            shown.append(y)
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, x)
    assert torch.equal(call.outputs, torch.cat(shown, dim=1))
    assert call.lengths.tolist() == [STEPS] * SEQUENCES
    assert not call.initial.any()
    last = torch.cat(state, dim=2) if family is nn.LSTM else state
    assert torch.equal(call.final, last)
    assert rebuild_error(call) < ROUNDING


def test_memory_runs_on_through_chunks_of_an_lstm():
    module, x = make(nn.LSTM, batch_first=True), make_inputs(SEQUENCES, STEPS)
    state, shown = None, []
    with Recorder(module) as recorder, torch.no_grad():
        for part in x.split((2, 5), dim=1):
            _, state = module(part, state)
        for t in range(STEPS):
            shown.append(module(x[:, : t + 1])[1][1][0])
    call = calls_of(recorder)[0]
    assert (memories(call) - torch.stack(shown, dim=1)).abs().max() < ROUNDING


@pytest.mark.parametrize("family", FUSED)
def test_calls_without_a_state_are_passages_of_their_own(family):
    module, x = make(family, batch_first=True), make_inputs(SEQUENCES, STEPS)
    other = make_inputs(SEQUENCES, 4, seed=2)
    model = nn.Sequential()
    model.rnn = module
    model.forward = lambda: (module(x), module(other))
    with Recorder(model) as recorder, torch.no_grad():
        model()
    first, second = calls_of(recorder)
    assert torch.equal(first.inputs, x)
    assert torch.equal(second.inputs, other)
    assert (first.batch, second.batch) == (0, 0)
    assert max(map(rebuild_error, (first, second))) < ROUNDING


def test_same_hidden_state_with_another_memory_begins_anew():
    module, x = make(nn.LSTM, batch_first=True), make_inputs(SEQUENCES, STEPS)
    with Recorder(module) as recorder, torch.no_grad():
        _, (h, c) = module(x)
        recorder.next_batch()
        _, (h, c) = module(x)
        module(x, (h, c + 1))
    _, first, second = calls_of(recorder)
    assert torch.equal(second.initial, torch.cat([h, c + 1], dim=2))
    assert (memories(second)[:, 0] - memories(first)[:, -1]).abs().max() > 0.1  # a wrong start would show


def test_backward_cell_is_not_joined_over_chunks():
    # It starts every chunk from that chunk's end, so two chunks are not one longer passage.
    module, x = make(nn.GRU, batch_first=True, bidirectional=True), make_inputs(SEQUENCES, STEPS)
    with Recorder(module) as recorder, torch.no_grad():
        recorder.next_batch()
        _, state = module(x[:, :4])
        module(x[:, 4:], state)
    first, second = calls_of(recorder)
    assert torch.equal(second.initial, first.final)
    assert max(map(rebuild_error, (first, second))) < ROUNDING


def test_sequences_do_not_go_on_from_one_batch_to_the_next():
    module, x = make(nn.GRU, batch_first=True).eval(), make_inputs(SEQUENCES, STEPS)
    with Recorder(module) as recorder, torch.no_grad():
        _, state = module(x)
        recorder.next_batch()
        module(x, state)
    first, second = calls_of(recorder)
    assert (first.batch, second.batch) == (0, 1)
    assert torch.equal(second.initial, first.final)


def test_sequences_that_ended_at_different_times_do_not_go_on():
    # Their steps would have to be put in where each sequence ended.
    module, x = make(nn.GRU, batch_first=True), make_inputs(SEQUENCES, STEPS)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 7, 3]), batch_first=True, enforce_sorted=False)
    with Recorder(module) as recorder, torch.no_grad():
        recorder.next_batch()
        _, state = module(packed)
        module(x, state)
    first, second = calls_of(recorder)
    assert first.lengths.tolist() == [2, 7, 3]
    assert torch.equal(second.initial, first.final)
    assert max(map(rebuild_error, (first, second))) < ROUNDING


@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM])
def test_weights_that_move_between_chunks_end_a_passage(family):
    module, x = make(family, batch_first=True), make_inputs(SEQUENCES, STEPS)
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    state = None
    with Recorder(module) as recorder:
        recorder.next_batch()
        for part in x.split((4, 3), dim=1):
            y, state = module(part, state)
            y.square().mean().backward()
            optimizer.step()
            state = changed(state, torch.Tensor.detach)
    first, second = calls_of(recorder)
    assert torch.equal(second.initial, first.final)
    assert max(map(rebuild_error, (first, second))) < ROUNDING


@pytest.mark.parametrize("family", [nn.GRU, nn.GRUCell, nn.LSTMCell])
def test_streams_that_take_turns_stay_apart(family):
    module, x = make(family), make_inputs(2, SEQUENCES, STEPS)
    states = [None, None]
    with Recorder(module) as recorder, torch.no_grad():
        recorder.next_batch()
        for t in range(STEPS):
            for stream in range(2):
                if family is nn.GRU:
                    _, states[stream] = module(x[stream, :, t][None], states[stream])
                else:
                    states[stream] = module(x[stream, :, t], states[stream])
    calls = calls_of(recorder)
    assert [torch.equal(call.inputs, x[stream]) for stream, call in enumerate(calls)] == [True, True]
    assert max(map(rebuild_error, calls)) < ROUNDING


def test_sequences_that_leave_a_loop_early_are_shorter():
    # A decoder over sequences sorted by length that computes only the ones still running.
    module, x = make(nn.LSTMCell), make_inputs(SEQUENCES, STEPS)
    running = [3, 3, 2, 2, 2, 1, 1]
    state, shown = None, []
    with Recorder(module) as recorder, torch.no_grad():
        for t, rows in enumerate(running):
            state = module(x[:rows, t], None if state is None else changed(state, lambda s, b=rows: s[:b]))
            shown.append(state)
    (call,) = calls_of(recorder)
    assert call.lengths.tolist() == [7, 5, 2]
    for row, length in enumerate(call.lengths.tolist()):
        assert torch.equal(call.inputs[row, :length], x[row, :length])
        hidden = torch.stack([h[row] for h, _ in shown[:length]])
        assert torch.equal(call.outputs[row, :length], hidden)
        assert torch.equal(call.final[0, row], torch.cat([part[row] for part in shown[length - 1]]))
    assert rebuild_error(call) < ROUNDING


# ---- trimming -------------------------------------------------------------------------------------------------------


def test_head_is_what_fewer_sequences_would_have_told():
    module, x = make(nn.LSTM, batch_first=True), make_inputs(SEQUENCES, STEPS)
    with Recorder(module) as recorder, torch.no_grad():
        module(x), module(x + 1)
    (tape,) = recorder.tapes.values()
    assert (tape.sequences, len(tape.calls)) == (6, 2)
    assert [len(call.lengths) for call in tape.head(5).calls] == [3, 2]
    assert [len(call.lengths) for call in tape.head(3).calls] == [3]
    part = tape.head(2)
    assert (part.name, part.sequences) == (tape.name, 2)
    call = part.calls[0]
    assert torch.equal(call.inputs, x[:2])
    assert call.initial.shape == call.final.shape == (1, 2, 2 * UNITS)
    assert (memories(call) - memories(tape.calls[0])[:2]).abs().max() < ROUNDING
    assert rebuild_error(call) < ROUNDING
