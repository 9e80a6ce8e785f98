"""What a Recorder must not do to the model that it listens to, nor the model to the recording."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Activations, Cell, Place, cells
from rnn_callbacks.rebuild import traces

from .hear import calls_of, rebuild_error
from .sandwich import INPUTS, SEQUENCES, STEPS, UNITS, Model, make_inputs

ROUNDING = 2e-6

every_family = pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])


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


def test_module_with_a_fault_is_not_heard_again():
    # What came before and what comes after would look like one recording.
    module = nn.GRU(INPUTS, UNITS)
    x = make_inputs()
    with Recorder(module) as recorder, torch.no_grad():
        module(x)
        forward = module.forward
        module.forward = lambda x: None
        module(x)
        module.forward = forward
        module(x)
    assert "cannot unpack" in str(recorder.faults["gru"])
    assert len(recorder.tapes["gru"].calls) == 1


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
