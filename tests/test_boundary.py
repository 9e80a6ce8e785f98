"""Gradients heard at the boundary of a recurrent module: what autograd gives for its outputs, and nobody disturbed."""

import copy
import dataclasses
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import LSTMCell, Place, Weights, cells

from .hear import calls_of, make_inputs

SEQUENCES, STEPS, INPUTS, UNITS = 3, 7, 2, 5
LENGTHS = torch.tensor([4, 7, 1])
FUSED = [nn.GRU, nn.LSTM, nn.RNN]
CELLS = [nn.GRUCell, nn.LSTMCell, nn.RNNCell]
every_module = pytest.mark.parametrize("family", FUSED)


def make(family, *sizes, seed=0, **options):
    torch.manual_seed(seed)
    return family(INPUTS, UNITS, *sizes, **options)


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def loss_of(output, last):
    """A loss that says something else of every number."""
    return (output**3).sum() + sum((state**2).sum() * (2 + n) for n, state in enumerate(parts_of(last)))


def heard_boundary(module, *args, loss=loss_of, **options):
    """The boundary of one call after a backward pass, and what torch itself kept of the gradients there."""
    with Recorder(module, gradients=True, **options) as recorder:
        output, last = module(*args)
    data = output.data if not isinstance(output, torch.Tensor) else output
    for tensor in (data, *parts_of(last)):
        tensor.retain_grad()
    packed = not isinstance(output, torch.Tensor)
    loss(output.data if packed else output, last).backward()
    (call,) = calls_of(recorder)
    (boundary,) = call.boundaries
    of_output = output._replace(data=data.grad) if packed else data.grad
    return boundary, of_output, torch.cat([state.grad for state in parts_of(last)], dim=-1)


# ---- it arrives ------------------------------------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layout", ["dense", "packed", "packed sorted", "unbatched"])
def test_gradients_are_those_that_torch_kept_in_every_layout(family, layout, batch_first):
    module = make(family, 2, bidirectional=True, batch_first=batch_first)
    x = make_inputs(SEQUENCES, STEPS)
    given = x if batch_first else x.transpose(0, 1)
    if "packed" in layout:
        lengths = LENGTHS.sort(descending=True).values if "sorted" in layout else LENGTHS
        given = pack_padded_sequence(given, lengths, batch_first, enforce_sorted="sorted" in layout)
    elif layout == "unbatched":
        given = x[0]
    boundary, of_output, of_last = heard_boundary(module, given)
    if "packed" in layout:
        of_output, _ = pad_packed_sequence(of_output, batch_first=True)
    elif layout == "unbatched":
        of_output, of_last = of_output[None], of_last[:, None]
    elif not batch_first:
        of_output = of_output.transpose(0, 1)
    assert torch.equal(boundary.outputs, of_output)
    assert torch.equal(boundary.final, of_last)
    assert boundary.arrived
    assert boundary.complete


def test_gradients_of_a_projected_lstm_have_widths_of_their_own():
    module = make(nn.LSTM, 2, proj_size=3, batch_first=True).double()  # float32 would warn of oneDNN
    boundary, of_output, of_last = heard_boundary(
        module,
        make_inputs(SEQUENCES, STEPS).double(),
        loss=lambda o, last: (o**3).sum() + (last[0] ** 2).sum() + (last[1] ** 3).sum(),
    )
    assert of_output.shape == (SEQUENCES, STEPS, 3)
    assert torch.equal(boundary.outputs, of_output)
    assert torch.equal(boundary.final, of_last)


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "unbatched"])
def test_gradients_of_a_step_are_those_that_torch_kept(family, batched):
    cell, x = make(family), make_inputs(SEQUENCES)
    with Recorder(cell, gradients=True) as recorder:
        state = parts_of(cell(x if batched else x[0]))
    for part in state:
        part.retain_grad()
    sum((part**3).sum() for part in state).backward()
    (call,) = calls_of(recorder)
    (boundary,) = call.boundaries
    assert torch.equal(boundary.outputs, state[0].grad.view(-1, 1, UNITS))
    assert not boundary.final[..., :UNITS].any()  # the output is the state
    if family is nn.LSTMCell:
        assert torch.equal(boundary.final[0, :, UNITS:], state[1].grad.view(-1, UNITS))
    assert boundary.arrived
    assert boundary.complete


@every_module
def test_only_the_first_sequences_are_kept(family):
    module, x = make(family, 2, batch_first=True), make_inputs(SEQUENCES, STEPS)
    boundary, of_output, of_last = heard_boundary(module, x, max_sequences=2)
    assert torch.equal(boundary.outputs, of_output[:2])
    assert torch.equal(boundary.final, of_last[:, :2])
    assert not boundary.complete


def test_first_packed_sequences_are_the_users_first():
    module, x = make(nn.GRU, batch_first=True), make_inputs(SEQUENCES, STEPS)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    boundary, of_output, of_last = heard_boundary(module, packed, max_sequences=2)
    assert torch.equal(boundary.outputs, pad_packed_sequence(of_output, batch_first=True)[0][:2])
    assert torch.equal(boundary.final, of_last[:, :2])
    assert not boundary.complete


# ---- what users do with the outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FUSED, *CELLS])
def test_backward_passes_add_up(family):
    module, found = make(family), []
    x = make_inputs(SEQUENCES, STEPS) if family in FUSED else make_inputs(SEQUENCES)
    for times in (1, 3):
        with Recorder(module, gradients=True) as recorder:
            output, last = module(x) if family in FUSED else (module(x), ())
        loss = loss_of(output, last) if family in FUSED else sum((part**3).sum() for part in parts_of(output))
        for _ in range(times):
            loss.backward(retain_graph=True)
        found.append(calls_of(recorder)[0].boundaries[0])
    # Sums of three equal numbers, rounded once more than the product.
    assert torch.allclose(found[1].outputs, 3 * found[0].outputs, rtol=1e-6)
    assert torch.allclose(found[1].final, 3 * found[0].final, rtol=1e-6)


@every_module
def test_losses_of_outputs_and_of_states_add_up_over_separate_backward_passes(family):
    module, x = make(family, batch_first=True), make_inputs(SEQUENCES, STEPS)
    with Recorder(module, gradients=True) as recorder:
        output, last = module(x)
    (output**2).sum().backward(retain_graph=True)
    sum((state**2).sum() for state in parts_of(last)).backward()
    (boundary,) = calls_of(recorder)[0].boundaries
    assert torch.equal(boundary.outputs, 2 * output)
    assert torch.equal(boundary.final, 2 * torch.cat(parts_of(last), dim=2))


@every_module
@pytest.mark.parametrize("batch_first", [False, True])
def test_output_that_the_user_changes_in_place_afterwards_has_the_gradient_of_what_was_returned(family, batch_first):
    # In float64, since oneDNN's LSTM for float32 lets nobody change its output, heard or not.
    module, x = make(family, batch_first=batch_first).double(), make_inputs(SEQUENCES, STEPS).double()
    with Recorder(module, gradients=True) as recorder:
        output, _ = module(x)
        returned = output.detach().clone()
        output.mul_(2)
    (output**2).sum().backward()
    (boundary,) = calls_of(recorder)[0].boundaries
    heard = boundary.outputs if batch_first else boundary.outputs.transpose(0, 1)
    assert torch.equal(heard, 8 * returned)  # of (2 h)^2


def test_loss_without_the_outputs_has_not_arrived():
    module, other = make(nn.GRU), nn.Linear(INPUTS, 1)
    x = make_inputs(SEQUENCES, STEPS)
    with Recorder(module, gradients=True) as recorder:
        module(x)
    other(x).sum().backward()
    (boundary,) = calls_of(recorder)[0].boundaries
    assert not boundary.arrived
    assert not boundary.outputs.any()
    assert not boundary.final.any()


def test_loss_of_the_last_state_alone_has_arrived_and_says_nothing_of_the_outputs():
    module = make(nn.LSTM, batch_first=True)
    with Recorder(module, gradients=True) as recorder:
        _, (_, memory) = module(make_inputs(SEQUENCES, STEPS))
    memory.sum().backward()
    (boundary,) = calls_of(recorder)[0].boundaries
    assert boundary.arrived
    assert not boundary.outputs.any()
    assert not boundary.final[..., :UNITS].any()
    assert boundary.final[..., UNITS:].eq(1).all()


def test_listening_may_have_ended_when_the_gradient_comes():
    module, x = make(nn.GRU, batch_first=True), make_inputs(SEQUENCES, STEPS)
    recorder = Recorder(module, gradients=True)
    recorder.open()
    output, _ = module(x)
    recorder.close()
    output.sum().backward()
    assert calls_of(recorder)[0].boundaries[0].outputs.eq(1).all()


def test_gradient_seconds_are_counted():
    module = make(nn.GRU)
    with Recorder(module, gradients=True) as recorder:
        output, _ = module(make_inputs(SEQUENCES, STEPS))
    before = recorder.seconds
    output.sum().backward()
    assert recorder.seconds > before


# ---- what is not heard -----------------------------------------------------------------------------------------------


def test_passes_without_a_graph_are_not_recorded():
    model, x = nn.ModuleDict({"rnn": make(nn.GRU, batch_first=True)}), make_inputs(SEQUENCES, STEPS)
    with Recorder(model, gradients=True) as recorder:
        recorder.next_batch()
        with torch.no_grad():
            model["rnn"](x)
        with torch.inference_mode():
            model["rnn"](x)
        model["rnn"](2 * x)[0].sum().backward()
    (call,) = calls_of(recorder)
    assert torch.equal(call.inputs, 2 * x)
    assert call.boundaries[0].arrived


def test_nothing_waits_for_gradients_unless_asked():
    module = make(nn.GRU)
    with Recorder(module) as recorder:
        output, _ = module(make_inputs(SEQUENCES, STEPS))
    assert not output._backward_hooks
    assert calls_of(recorder)[0].boundaries == ()


def test_frozen_module_is_heard_through_its_inputs():
    module = make(nn.GRU, batch_first=True).requires_grad_(False)
    x = make_inputs(SEQUENCES, STEPS)
    with Recorder(module, gradients=True) as recorder:
        module(x)
        output, _ = module(x.requires_grad_())
    output.sum().backward()
    (call,) = calls_of(recorder)
    assert call.boundaries[0].outputs.eq(1).all()


@pytest.mark.parametrize("family", [*FUSED, *CELLS])
@pytest.mark.parametrize("state", ["none", "constant", "learned", "from outside"])
def test_connected_says_whether_gradient_can_go_on_into_the_state(family, state):
    module = make(family)
    x = make_inputs(SEQUENCES, STEPS) if family in FUSED else make_inputs(STEPS)
    shape = (1, STEPS, UNITS) if family in FUSED else (STEPS, UNITS)
    given = torch.zeros(shape, requires_grad=state == "learned")
    given = given.requires_grad_().exp() if state == "from outside" else given
    given = (torch.zeros(shape), given) if family in (nn.LSTM, nn.LSTMCell) else given
    with Recorder(module, gradients=True) as recorder:
        module(x) if state == "none" else module(x, given)
    (boundary,) = calls_of(recorder)[0].boundaries
    assert boundary.connected == (state in ("learned", "from outside"))


# ---- nobody is disturbed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FUSED, *CELLS])
def test_gradients_of_the_user_are_the_same_to_the_last_bit(family):
    found = []
    for listening in (False, True):
        module = make(family)
        x = make_inputs(SEQUENCES, STEPS).requires_grad_()
        recorder = Recorder(module, gradients=True)
        if listening:
            recorder.open()
        state, shown = None, []
        for step in x.unbind(1):
            output = module(step[None], state) if family in FUSED else module(step, state)
            state = output[1] if family in FUSED else output
            shown.append(parts_of(output)[0])
        sum((h**3).sum() for h in shown).backward()
        recorder.close()
        assert not recorder.faults
        found.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_hooks_keep_no_graph_alive(packed):
    model = nn.ModuleDict({"rnn": make(nn.LSTM, 2, batch_first=True)})
    recorder = Recorder(model, gradients=True, max_sequences=10**6)
    recorder.open()
    gc.disable()  # what only a cycle would hold must go at once too
    try:
        for backward in (True, False):
            recorder.next_batch()
            x = make_inputs(SEQUENCES, STEPS)
            given = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False) if packed else x
            output, last = model["rnn"](given)
            output = output.data if packed else output
            held = [weakref.ref(tensor) for tensor in (output, *last)]
            if backward:
                loss_of(output, last).backward()
            del output, last, given, x
            assert all(ref() is None for ref in held)
    finally:
        gc.enable()
        recorder.close()
    assert [call.boundaries[0].arrived for call in calls_of(recorder)] == [True, False]


def test_graph_dies_with_the_users_last_tensor_though_the_recording_lives():
    module = make(nn.GRU, batch_first=True)
    gone = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marker = Marker()
            gone.append(weakref.ref(ctx.marker))
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Marker:
        pass

    with Recorder(module, gradients=True) as recorder:
        output, last = module(Marked.apply(make_inputs(SEQUENCES, STEPS).requires_grad_()))
    assert gone[0]() is not None
    del output, last
    gc.collect()
    assert gone[0]() is None
    assert len(calls_of(recorder)) == 1


def test_model_can_be_copied_and_saved_while_gradients_are_awaited():
    model = nn.ModuleDict({"rnn": make(nn.GRU, batch_first=True), "cell": make(nn.LSTMCell)})
    x = make_inputs(SEQUENCES, STEPS)
    with Recorder(model, gradients=True) as recorder:
        recorder.next_batch()
        output, _ = model["rnn"](x)
        hidden, _ = model["cell"](x[:, 0])
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
        twin["rnn"](3 * x)[0].sum().backward()
        (output.sum() + hidden.sum()).backward()
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again["rnn"](x)[0], output)
    assert [len(tape.calls) for tape in recorder.tapes.values()] == [1, 1]
    assert all(tape.calls[0].boundaries[0].outputs.eq(1).all() for tape in recorder.tapes.values())


def test_backward_pass_goes_on_where_copying_fails():
    module, x = make(nn.GRU, batch_first=True), make_inputs(SEQUENCES, STEPS)
    (module(x)[0] ** 2).sum().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    with Recorder(module, gradients=True) as recorder:
        output, _ = module(x)
    (boundary,) = calls_of(recorder)[0].boundaries
    boundary.outputs = torch.zeros(1, 1, 1)  # nowhere to put it
    (output**2).sum().backward()
    assert list(recorder.faults) == ["gru"]
    assert isinstance(recorder.faults["gru"], RuntimeError)
    assert not boundary.arrived
    assert all(torch.equal(p.grad, e) for p, e in zip(module.parameters(), expected, strict=True))


# ---- precision, memory, checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.GRUCell])
def test_half_precision_gradients_are_added_up_in_single(family):
    module, x = make(family).to(torch.bfloat16), make_inputs(SEQUENCES, STEPS).to(torch.bfloat16)
    with Recorder(module, gradients=True) as recorder:
        output = module(x)[0] if family in FUSED else module(x[:, 0])
    output.sum().backward(retain_graph=True)
    (output * 2**-9).sum().backward()  # bfloat16 has 8 bits: 1 + 2^-9 is 1 there
    (boundary,) = calls_of(recorder)[0].boundaries
    assert boundary.outputs.dtype == boundary.final.dtype == torch.float32
    assert boundary.outputs.eq(1 + 2**-9).all()


def test_double_precision_stays_double():
    module, x = make(nn.GRU).double(), make_inputs(SEQUENCES, STEPS).double()
    boundary, of_output, _ = heard_boundary(module, x)
    assert boundary.outputs.dtype == torch.float64
    assert torch.equal(boundary.outputs, of_output.transpose(0, 1))


def test_memory_limit_counts_gradients_within_a_call():
    module, x = make(nn.GRU, batch_first=True), make_inputs(SEQUENCES, STEPS)
    of_sequence = 4 * STEPS * (INPUTS + 2 * UNITS)  # the outputs and as many gradients
    for fitting, kept in ((2.1, 2), (1.9, 1)):
        limit = fitting * of_sequence / 2**20
        with Recorder(module, gradients=True, max_megabytes=limit) as recorder:
            module(x)
        (call,) = calls_of(recorder)
        (boundary,) = call.boundaries
        assert len(call.lengths) == kept
        used = call.inputs.nbytes + call.outputs.nbytes + boundary.outputs.nbytes
        assert used <= limit * 2**20


def test_memory_limit_counts_gradients_over_calls():
    model = nn.ModuleDict({"rnn": make(nn.GRU, batch_first=True).eval()})
    of_weights = sum(parameter.nbytes for parameter in model.parameters())
    of_call = 4 * SEQUENCES * STEPS * (INPUTS + 2 * UNITS)
    limit = of_weights + 3 * of_call
    with Recorder(model, gradients=True, max_megabytes=limit / 2**20) as recorder:
        for _ in range(5):
            recorder.next_batch()
            model["rnn"](make_inputs(SEQUENCES, STEPS))
    assert len(calls_of(recorder)) == 3


def test_batches_with_calls_that_found_no_room_are_marked_as_cut():
    model = nn.ModuleDict({"rnn": make(nn.GRU, batch_first=True).eval()})
    x = make_inputs(SEQUENCES, STEPS)
    of_weights = sum(parameter.nbytes for parameter in model.parameters())
    of_call = 4 * SEQUENCES * STEPS * (INPUTS + 2 * UNITS)
    with Recorder(model, gradients=True, max_megabytes=(of_weights + 3 * of_call) / 2**20) as recorder:
        recorder.next_batch()
        assert recorder.cut == set()
        model["rnn"](x)
        recorder.next_batch()
        for _ in range(3):
            model["rnn"](x)
        assert recorder.cut == {1}
        assert [call.batch for call in calls_of(recorder)] == [0, 1, 1]
        recorder.open()
        assert recorder.cut == set()


@pytest.mark.parametrize("way", ["no graph", "second run of a checkpoint"])
def test_batch_is_not_cut_by_passes_that_would_not_have_been_kept(way):
    model = nn.ModuleDict({"rnn": make(nn.GRU, batch_first=True).eval()})
    x = make_inputs(SEQUENCES, STEPS).requires_grad_()
    room_for_one = sum(p.nbytes for p in model.parameters()) + 4 * SEQUENCES * STEPS * (INPUTS + 2 * UNITS)
    with Recorder(model, gradients=True, max_megabytes=room_for_one / 2**20) as recorder:
        recorder.next_batch()
        if way == "no graph":
            model["rnn"](x)
            with torch.no_grad():
                model["rnn"](x)
        else:  # whose second run ends at the last tensor that is needed, so something follows
            checkpoint(lambda y: model["rnn"](y)[0].tanh().exp(), x, use_reentrant=False).sum().backward()
    assert len(calls_of(recorder)) == 1
    assert recorder.cut == set()


@every_module
def test_activation_checkpoints_are_heard_once(family):
    found = []
    for way in ("plain", "checkpoint"):
        module = make(family, batch_first=True)
        x = make_inputs(SEQUENCES, STEPS).requires_grad_()
        with Recorder(module, gradients=True) as recorder:

            def run(x, module=module):  # a second run ends at the last tensor that is needed: after the module
                output, last = module(x)
                return loss_of(output.tanh().exp(), last)

            (run(x) if way == "plain" else checkpoint(run, x, use_reentrant=False)).backward()
        (call,) = calls_of(recorder)
        (boundary,) = call.boundaries
        assert boundary.arrived
        found.append([boundary.outputs, boundary.final, x.grad, total_gradients(call)[0].total])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# ---- modules of the user's whose outputs hang together ---------------------------------------------------------------


class Chained(nn.Module):
    """An LSTM of a user's own, called per sequence, that returns states as they come out of its loop."""

    batch_first = True

    def __init__(self, returns):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.returns = nn.LSTMCell(INPUTS, UNITS).double(), returns

    def forward(self, x):
        hidden = memory = torch.zeros(len(x), UNITS).double()
        shown = []
        for step in x.unbind(1):
            hidden, memory = self.cell(step, (hidden, memory))
            hidden = hidden[None]
            shown.append(hidden)
            last, hidden = hidden, hidden[0]
        outputs = torch.cat(shown).transpose(0, 1).contiguous()
        if self.returns == "the last output":
            return outputs, (outputs[:, -1][None], memory[None])
        memory = memory.detach() if self.returns == "a detached memory" else memory
        return outputs, (last if self.returns == "the state in the outputs" else last.clone(), memory[None])


@cells.register
def _(module: Chained):
    return (LSTMCell(dataclasses.replace(Weights.of(module.cell), place=Place("l0"))),)


@pytest.mark.parametrize("steps", [STEPS, 71])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("returns", ["a copy", "a detached memory", "the state in the outputs", "the last output"])
def test_state_that_is_a_part_of_the_outputs_is_not_counted_twice(returns, times, steps):
    module, x = Chained(returns), make_inputs(SEQUENCES, steps).double()
    with Recorder(module, modules={"chained": module}, gradients=True) as recorder:
        outputs, (hidden, memory) = module(x)
    loss = (outputs**3).sum() + (hidden**2).sum() + (memory**2).sum()
    for _ in range(times):
        loss.backward(retain_graph=True)
    (found,) = total_gradients(*calls_of(recorder))
    own = module.cell.bias_hh.grad
    assert (found.bias.sum(0) - own).abs().max() < 1e-13 * own.abs().max()
