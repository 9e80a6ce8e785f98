import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from rnn_callbacks.capture import Recorder, recurrent_modules, why_unheard
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import traces

from .hear import calls_of, rebuild_error

SEQUENCES, STEPS, INPUTS, UNITS = 5, 7, 3, 11
LENGTHS = torch.tensor([4, 7, 1, 3, 7])
ROUNDING = 2e-6

FUSED = [nn.GRU, nn.LSTM, nn.RNN]
every_family = pytest.mark.parametrize("family", FUSED)


def make_inputs(sequences=SEQUENCES, seed=1, steps=STEPS):
    return torch.randn(sequences, steps, INPUTS, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A recurrent module between two others."""

    def __init__(self, family=nn.GRU, *, layers=1, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(INPUTS, INPUTS)
        self.rnn = family(INPUTS, UNITS, layers, batch_first=True, **options)
        self.head = nn.Linear(UNITS * (1 + self.rnn.bidirectional), 2)

    def forward(self, x):
        return self.head(self.rnn(self.first(x))[0])


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
    of_call = 4 * SEQUENCES * STEPS * (INPUTS + UNITS)
    of_weights = 4 * sum(p.numel() for p in model.rnn.parameters())
    snapshots = 3 if training else 1
    limit = (3 * of_call + snapshots * of_weights - 1) / 2**20
    with Recorder(model, max_megabytes=limit) as recorder:
        for seed in range(4):
            assert recorder.listening
            model(make_inputs(seed=seed))
        assert len(calls_of(recorder)) == 3
        assert recorder.listening == (training and False)


def test_memory_limit_holds_within_a_batch():
    cell = nn.GRUCell(INPUTS, UNITS)
    with Recorder(cell, max_megabytes=1e-6) as recorder:
        cell(make_inputs()[:, 0])
        cell(make_inputs()[:, 1])
    assert calls_of(recorder)[0].inputs.shape[1] == 1


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
    with pytest.raises(ValueError, match=r"limits must be positive, got 0 sequences and 256\.0 megabytes"):
        Recorder(Model(), max_sequences=0)
    with pytest.raises(ValueError, match="limits must be positive, got 256 sequences and 0 megabytes"):
        Recorder(Model(), max_megabytes=0)


# ---- without disturbing ----------------------------------------------------------------------------------------------


@every_family
def test_training_is_bit_for_bit_the_same(family):
    def train(*, watched):
        model = Model(family, layers=3, dropout=0.3, bidirectional=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        found = []
        recorder = Recorder(model)
        for seed in range(3):
            if watched:
                recorder.open()
            optimizer.zero_grad()
            loss = model(make_inputs(seed=seed)).square().mean()
            loss.backward()
            recorder.close()
            found += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
            optimizer.step()
        return [*found, *model.state_dict().values(), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(train(watched=False), train(watched=True), strict=True))


@pytest.mark.parametrize("family", [nn.GRU, nn.LSTMCell])
def test_nothing_that_is_kept_has_a_graph_or_shares_memory(family):
    module = family(INPUTS, UNITS)
    x = make_inputs().requires_grad_()
    x = x[:, 0] if family is nn.LSTMCell else x
    state = torch.zeros(SEQUENCES, UNITS, requires_grad=True)
    state = (state, state) if family is nn.LSTMCell else torch.zeros(1, STEPS, UNITS, requires_grad=True)
    with Recorder(module) as recorder:
        module(x, state)
    (call,) = calls_of(recorder)
    kept = [value for value in vars(call).values() if isinstance(value, torch.Tensor)]
    kept += [v for v in vars(call.cells[0].weights).values() if isinstance(v, torch.Tensor)]
    kept += [value for trace in traces(call) for value in vars(trace).values() if isinstance(value, torch.Tensor)]
    assert len(kept) >= 10
    theirs = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    for tensor in kept:
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert tensor.untyped_storage().data_ptr() not in theirs


@every_family
def test_users_later_edits_in_place_are_not_heard(family):
    module, x = family(INPUTS, UNITS, batch_first=True), make_inputs()
    hidden = torch.ones(1, SEQUENCES, UNITS)
    state = (hidden, hidden) if family is nn.LSTM else hidden
    with Recorder(module) as recorder, torch.no_grad():
        y, last = module(x, state)
        for tensor in (x, y, hidden, *(last if family is nn.LSTM else (last,)), *module.parameters()):
            tensor.mul_(0).add_(7)
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, make_inputs())
    assert bool((call.initial == 1).all())
    assert rebuild_error(call) < ROUNDING


def test_users_hook_that_puts_something_else_in_the_outputs_place_is_not_heard():
    model = Model()
    model.rnn.register_forward_hook(lambda module, args, output: (output[0] * 2, output[1]))
    model.rnn.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with Recorder(model) as recorder:
        model(make_inputs())
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, model.first(make_inputs()).detach() + 1)
    assert rebuild_error(call) < ROUNDING


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM])
def test_recording_made_in_any_grad_mode_can_be_used_in_any_other(family, mode):
    model = Model(family, layers=2)
    with Recorder(model) as recorder, mode():
        model(make_inputs())
    (call,) = calls_of(recorder)
    assert not any(t.is_inference() for t in (call.inputs, call.outputs, call.initial, call.final, call.lengths))
    assert rebuild_error(call) < ROUNDING
    weight = torch.ones((), requires_grad=True)
    (call.outputs * weight).sum().backward()  # inference tensors refuse that
    with torch.inference_mode():
        assert rebuild_error(call) < ROUNDING


def test_second_run_of_a_checkpointed_forward_is_not_heard():
    model = Model(layers=2, dropout=0.5)
    for reentrant in (True, False):
        with Recorder(model) as recorder:
            recorder.next_batch()
            x = make_inputs().requires_grad_()
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
            recorder.next_batch()
            model.eval()(x)
            model.train()
        first, second = calls_of(recorder)
        assert (len(first.dropout), len(second.dropout)) == (1, 0)
        assert max(map(rebuild_error, (first, second))) < ROUNDING


def test_default_device_of_the_users_does_not_matter():
    model, x = Model(nn.LSTM, layers=2), make_inputs()
    with Recorder(model) as recorder, torch.device("meta"):
        model(x)
    (call,) = calls_of(recorder)
    assert rebuild_error(call) < ROUNDING


# ---- faults ----------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Gives something that is not a state."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(1)), answer

    def forward(self, *args):
        return self.answer


class Still(Cell):
    """Never moves."""

    gates = ()
    candidate = "hidden"

    def activations(self, inputs, hidden, memory=None):
        return Activations(hidden[:, None])

    def follow(self, inside, hidden, memory):
        return hidden, hidden.new_zeros(*hidden.shape[:2], 0)


@cells.register
def _(module: Odd):
    return (Still(Place("l0", stepwise=module.answer == "step"), input_size=INPUTS, units=UNITS),)


@pytest.mark.parametrize("answer", [None, "step", (1, 2), {"a": 1}, (torch.zeros(2), None)])
@pytest.mark.parametrize("args", [(), (None,), (torch.zeros(2, 3, INPUTS), 5)], ids=["nothing", "None", "a number"])
def test_fault_in_a_hook_never_reaches_the_users_forward(answer, args):
    model = nn.ModuleDict({"odd": Odd(answer), "sound": nn.GRU(INPUTS, UNITS)})
    model.forward = lambda: (model["odd"](*args), model["sound"](make_inputs()))
    with Recorder(model) as recorder:
        for _ in range(2):
            given, _ = model()
            assert given is answer
    assert list(recorder.faults) == ["odd"]
    assert not recorder.tapes["odd"].calls
    assert [rebuild_error(call) < ROUNDING for call in recorder.tapes["sound"].calls] == [True, True]
    recorder.open()
    assert not recorder.faults
    recorder.close()


@pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")  # torch's vmap
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_functional_transforms_are_not_broken(transform):
    cell = nn.RNNCell(INPUTS, UNITS)
    weights = dict(cell.named_parameters())

    def loss(x):
        return torch.func.functional_call(cell, weights, (x,)).square().mean()

    expected = transform(loss)(make_inputs()[0])
    with Recorder(cell) as recorder:
        found = transform(loss)(make_inputs()[0])
    assert torch.equal(found, expected)
    calls = recorder.tapes["rnncell"].calls
    assert bool(calls) != bool(recorder.faults)  # heard truly, or not at all
    assert all(rebuild_error(call) < ROUNDING for call in calls)
