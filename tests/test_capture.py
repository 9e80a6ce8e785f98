import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.capture import Recorder, recurrent_modules, why_unheard

from .hear import calls_of, rebuild_error
from .sandwich import INPUTS, SEQUENCES, STEPS, UNITS, Model, make_inputs

LENGTHS = torch.tensor([4, 7, 1, 3, 7])
ROUNDING = 2e-6

FUSED = [nn.GRU, nn.LSTM, nn.RNN]
every_family = pytest.mark.parametrize("family", FUSED)


def hooks_in(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---- how much --------------------------------------------------------------------------------------------------------


def test_first_sequences_are_kept_within_a_batch_and_over_batches():
    model = Model()
    batches = [make_inputs(SEQUENCES, seed) for seed in range(4)]
    with Recorder(model, max_sequences=12) as recorder, torch.no_grad():
        for x in batches:
            model(x)
    calls = calls_of(recorder)
    assert [len(call.lengths) for call in calls] == [5, 5, 2]
    assert [call.batch for call in calls] == [0, 1, 2]
    for call, x in zip(calls, batches, strict=False):
        assert torch.equal(call.inputs, model.first(x)[: len(call.lengths)].detach())
        assert rebuild_error(call) < ROUNDING


@every_family
def test_packed_sequences_are_trimmed_in_the_users_order(family):
    module = family(INPUTS, UNITS, 2, bidirectional=True)
    x = make_inputs()
    hidden = torch.randn(4, SEQUENCES, UNITS)
    state = (hidden, 2 * hidden) if family is nn.LSTM else hidden
    with Recorder(module, max_sequences=3) as recorder, torch.no_grad():
        module(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False), state)
    (call,) = calls_of(recorder)
    assert call.lengths.tolist() == LENGTHS[:3].tolist()
    for row in range(3):
        assert torch.equal(call.inputs[row, : LENGTHS[row]], x[row, : LENGTHS[row]])
    assert torch.equal(call.initial[..., :UNITS], hidden[:, :3])
    assert rebuild_error(call) < ROUNDING


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_memory_has_a_limit(training):
    model = Model().train(training)
    of_sequence = 4 * STEPS * (INPUTS + UNITS)
    of_weights = sum(p.nbytes for p in model.rnn.parameters())
    limit = 2 * (SEQUENCES * of_sequence + of_weights) + of_sequence
    with Recorder(model, max_megabytes=limit / 2**20) as recorder:
        while recorder.listening:
            model(make_inputs())
    calls = calls_of(recorder)
    snapshots = len({id(call.cells) for call in calls})
    assert snapshots == (len(calls) if training else 1)
    kept = sum(len(call.lengths) for call in calls) * of_sequence + snapshots * of_weights
    assert limit <= kept <= limit + of_sequence + of_weights
    assert max(map(rebuild_error, calls)) < ROUNDING


@pytest.mark.parametrize("family", [nn.GRU, nn.GRUCell])
@pytest.mark.parametrize("fitting, kept", [(0.5, 1), (2.5, 2), (4, 4), (6.5, 5)])
def test_memory_limit_holds_within_a_call(family, fitting, kept):
    module, x = family(INPUTS, UNITS), make_inputs(steps=1)
    with Recorder(module, max_megabytes=fitting * 4 * (INPUTS + UNITS) / 2**20) as recorder:
        module(x[:, 0] if family is nn.GRUCell else x.transpose(0, 1))
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, x[:kept])
    assert rebuild_error(call) < ROUNDING


def test_memory_limit_holds_within_a_loop():
    cell = nn.LSTMCell(INPUTS, UNITS)
    state = None
    with Recorder(cell, max_megabytes=0.01) as recorder:
        for x in make_inputs(steps=211).unbind(1):
            state = cell(x, state)
    (call,) = calls_of(recorder)
    assert call.lengths[0] < 100
    assert call.inputs.nbytes + call.outputs.nbytes + call.previous.nbytes < 0.02 * 2**20
    assert rebuild_error(call) < ROUNDING


def test_memory_of_one_module_is_not_that_of_another():
    model = nn.ModuleDict({"long": nn.GRU(INPUTS, UNITS, batch_first=True), "short": nn.GRUCell(INPUTS, UNITS)})
    model.forward = lambda x: (model["long"](x), model["short"](x[:, 0]))
    with Recorder(model.eval(), max_sequences=12, max_megabytes=0.005) as recorder:
        for _ in range(3):
            model(make_inputs())
        assert recorder.tapes["long"].sequences < recorder.tapes["short"].sequences
        assert recorder.tapes["short"].calls[-1].batch == 2


def test_module_on_its_own_counts_its_calls_as_batches():
    module = nn.GRU(INPUTS, UNITS, batch_first=True)
    with Recorder(module, max_sequences=12) as recorder, torch.no_grad():
        for seed in range(4):
            _, state = module(make_inputs(seed=seed))
            module(make_inputs(seed=seed + 10), state)
    calls = calls_of(recorder)
    assert [tuple(call.inputs.shape[:2]) for call in calls] == [(5, 14), (5, 14), (2, 14)]
    assert [call.batch for call in calls] == [0, 1, 2]
    assert not recorder.listening


def test_parts_of_a_model_that_are_called_directly_count_their_calls_as_batches():
    model = nn.ModuleDict({"encoder": nn.GRU(INPUTS, UNITS, batch_first=True), "decoder": nn.GRUCell(INPUTS, UNITS)})
    with Recorder(model, max_sequences=12) as recorder, torch.no_grad():
        for seed in range(4):
            _, state = model["encoder"](make_inputs(seed=seed))
            state = state[0]
            for step in make_inputs(seed=seed).unbind(1):
                state = model["decoder"](step, state)
    for tape in recorder.tapes.values():
        assert [len(call.lengths) for call in tape.calls] == [5, 5, 2]
        assert [call.batch for call in tape.calls] == [0, 1, 2]
    assert not recorder.listening


# ---- batch by batch --------------------------------------------------------------------------------------------------


def test_what_is_taken_batch_by_batch_is_what_would_have_been_heard_at_once():
    model = Model(nn.LSTM, layers=2)
    with Recorder(model, max_sequences=12) as whole, torch.no_grad():
        for seed in range(4):
            model(make_inputs(seed=seed))
    taken, counted = [], []
    with Recorder(model, max_sequences=12) as recorder, torch.no_grad():
        for seed in range(4):
            recorder.next_batch()
            model(make_inputs(seed=seed))
            taken.append(recorder.take())
            counted.append(recorder.sequences)
            assert recorder.tapes["rnn"].calls == ()
        recorder.next_batch()
        assert not recorder.listening  # the limit counts what was taken
    assert [list(tapes) for tapes in taken] == [["rnn"], ["rnn"], ["rnn"], []]
    assert counted == [{"rnn": 5}, {"rnn": 10}, {"rnn": 12}, {"rnn": 12}]
    calls = [call for tapes in taken[:3] for call in tapes["rnn"].calls]
    assert [call.batch for call in calls] == [0, 1, 2]
    for one, other in zip(calls, calls_of(whole), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.outputs, other.outputs)
        assert rebuild_error(one) < ROUNDING


def test_where_batches_are_taken_the_limit_of_memory_is_that_of_a_batch():
    model = Model()
    of_batch = SEQUENCES * 4 * STEPS * (INPUTS + UNITS) + sum(p.nbytes for p in model.rnn.parameters())
    with Recorder(model, max_megabytes=1.5 * of_batch / 2**20) as recorder, torch.no_grad():
        for seed in range(7):
            recorder.next_batch()
            assert recorder.listening
            model(make_inputs(seed=seed))
            (tape,) = recorder.take().values()
            assert tape.sequences == SEQUENCES
    assert recorder.sequences == {"rnn": 7 * SEQUENCES}


def test_calls_of_one_batch_are_taken_joined():
    cell, x = nn.LSTMCell(INPUTS, UNITS), make_inputs()
    with Recorder(cell, max_sequences=3 * SEQUENCES) as recorder, torch.no_grad():
        for _ in range(2):
            recorder.next_batch()
            state = None
            for step in x.unbind(1):
                state = cell(step, state)
            (tape,) = recorder.take().values()
            (call,) = tape.calls
            assert call.inputs.shape == x.shape
            assert torch.equal(call.outputs[:, -1], state[0])
            assert rebuild_error(call) < ROUNDING
        recorder.next_batch()
        assert recorder.sequences == {"lstmcell": 2 * SEQUENCES}  # of a batch once, whatever the calls
        assert recorder.take() == {}


def test_opening_again_counts_anew():
    model = Model()
    with Recorder(model) as recorder:
        model(make_inputs())
        assert recorder.sequences == {"rnn": SEQUENCES}
        recorder.open()
        assert recorder.sequences == {"rnn": 0}


# ---- when ------------------------------------------------------------------------------------------------------------


def test_forward_passes_are_batches_unless_somebody_says_where_those_begin():
    model, x = Model(), make_inputs()
    with Recorder(model) as recorder:
        assert recorder.batch == 0
        model(x), model(x)
        assert recorder.batch == 1
        recorder.open()
        for _ in range(3):
            recorder.next_batch()  # before the batch, as Lightning calls; two passes in each
            model(x), model(x)
        assert recorder.batch == 2
    assert [call.batch for call in calls_of(recorder)] == [0, 0, 1, 1, 2, 2]


def test_batches_in_which_nothing_was_heard_have_no_number():
    model = Model()
    model.forward = lambda x: model.rnn(x) if x is not None else None
    with Recorder(model) as recorder:
        for x in (None, make_inputs(), None, None, make_inputs()):
            model(x)
    assert [call.batch for call in calls_of(recorder)] == [0, 1]


def test_hooks_leave_when_enough_was_heard():
    model = Model()
    with Recorder(model, max_sequences=2 * SEQUENCES) as recorder:
        for _ in range(2):
            assert recorder.listening
            model(make_inputs())
        model(make_inputs())
        assert not recorder.listening
        assert hooks_in(model) == 0
        recorder.open()
        assert recorder.listening
        for _ in range(3):
            recorder.next_batch()
            model(make_inputs())
        assert not recorder.listening
    assert len(calls_of(recorder)) == 2


def test_hooks_leave_with_the_block_and_after_an_error_in_it():
    model = Model(layers=2, dropout=0.5)
    recorder = Recorder(model)
    assert hooks_in(model) == 0
    assert not recorder.listening
    with recorder:
        assert recorder.listening
    assert (hooks_in(model), recorder.listening) == (0, False)
    model.first = nn.Identity()
    with pytest.raises(RuntimeError, match="must match"), recorder:
        model(torch.zeros(2, 3, INPUTS) + torch.zeros(2, 5, INPUTS))
    assert (hooks_in(model), recorder.listening) == (0, False)


def test_opening_again_forgets():
    model = Model()
    recorder = Recorder(model)
    for seed in range(2):
        with recorder:
            model(make_inputs(seed=seed))
            recorder.open()  # twice, by mistake
            model(make_inputs(seed=seed))
        assert hooks_in(model) == 0
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, model.first(make_inputs(seed=1)).detach())
    assert (call.batch, recorder.batch) == (0, 0)
    assert recorder.seconds > 0


# ---- which -----------------------------------------------------------------------------------------------------------


def test_module_registered_under_two_names_is_heard_once():
    model = Model()
    model.alias = model.rnn
    with Recorder(model) as recorder:
        model(make_inputs())
    assert list(recorder.modules) == ["rnn"]
    assert len(calls_of(recorder)) == 1


def test_only_modules_asked_for_are_heard():
    model = nn.ModuleDict({"a": nn.GRU(INPUTS, UNITS), "b": nn.LSTMCell(UNITS, 2)})
    model.forward = lambda x: model["b"](model["a"](x)[0][0])
    assert list(recurrent_modules(model)) == ["a", "b"]
    with Recorder(model, modules={"b": model["b"]}) as recorder:
        model(make_inputs())
    assert [len(tape.calls) for tape in recorder.tapes.values()] == [1]


def test_module_that_is_not_called_has_an_empty_tape_and_keeps_the_recorder_listening():
    model = Model()
    model.spare = nn.GRU(2, 3)
    with Recorder(model, max_sequences=1) as recorder:
        model(make_inputs()), model(make_inputs())
        assert recorder.listening
    assert (recorder.tapes["rnn"].sequences, recorder.tapes["spare"].calls) == (1, ())


def make_deaf():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.ao and torch.jit, both on their way out
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        modules = {kind.__name__: kind(2, 3) for kind in (nn.RNN, nn.GRU, nn.LSTM, nn.GRUCell, nn.LSTMCell)}
        found = {f"scripted {name}": torch.jit.script(module) for name, module in modules.items()}
        traced = torch.jit.trace(modules["GRU"], torch.zeros(1, 1, 2), check_trace=False)
        quantized = torch.ao.quantization.quantize_dynamic(nn.ModuleDict(modules), {nn.GRU, nn.LSTM, nn.GRUCell})
        observed = torch.ao.nn.quantizable.LSTM(2, 3)
    quantized = {f"quantized {name}": quantized[name] for name in ("GRU", "LSTM", "GRUCell")}
    return found | quantized | {"traced GRU": traced, "quantized LSTM tomorrow": observed}


def test_modules_that_cannot_be_heard_say_why():
    deaf = make_deaf()
    for name, module in deaf.items():
        assert recurrent_modules(module) == {}, name
        way, kind = name.split()[:2]
        if way == "quantized":
            assert f"a quantized {kind} has no float weights" in why_unheard(module)
        else:
            assert f"a TorchScript {kind} runs outside Python" in why_unheard(module)
    assert why_unheard(nn.GRU(2, 3)) is None
    assert why_unheard(nn.Linear(2, 3)) is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_heard_and_unheard_modules_go_together():
    deaf = torch.jit.script(nn.Sequential(nn.GRU(INPUTS, UNITS)))
    model = nn.ModuleDict({"sound": nn.GRU(INPUTS, UNITS), "deaf": deaf})
    model.forward = lambda x: (model["sound"](x), deaf(x))
    with Recorder(model) as recorder:
        model(make_inputs())
    assert list(recorder.modules) == ["sound"]
    assert len(calls_of(recorder)) == 1


def test_bad_requests_are_refused():
    with pytest.raises(
        ValueError, match=r"no recurrent module to listen to \(nn.RNN, nn.LSTM, nn.GRU or their cells\)"
    ):
        Recorder(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"limits must be positive, got 0 sequences and 32\.0 megabytes"):
        Recorder(Model(), max_sequences=0)
    with pytest.raises(ValueError, match="limits must be positive, got 256 sequences and 0 megabytes"):
        Recorder(Model(), max_megabytes=0)
