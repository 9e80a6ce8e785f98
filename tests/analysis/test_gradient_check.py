"""The check that guards every look: silent on true gradients of every family, loud on any that were changed."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.analysis.gradient_check import own_error, relative_error, replay_error
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import Cell, Place, cells

from .known_gates import FAMILIES, INPUTS, UNITS, make, pack

SEQUENCES, STEPS = 3, 7
LENGTHS = (4, 7, 1)
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}  # of sums over all steps, relative to the largest
ONE_DNN = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def numbers(*shape, dtype=torch.float64, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def recorded(model, run):
    """Gradients of every cell of every call that the run makes; it gives its loss."""
    with Recorder(model, gradients=True) as recorder:
        run().backward()
    assert not recorder.faults
    return [found for tape in recorder.tapes.values() for call in tape.calls for found in total_gradients(call)]


def weighed(outputs, last):
    """A loss with a say in every output and in every state that came back last."""
    outputs = pad_packed_sequence(outputs, batch_first=True)[0] if isinstance(outputs, tuple) else outputs
    states = [outputs, *(last if isinstance(last, tuple) else (last,))]
    return sum((state.tanh() * numbers(*state.shape, dtype=state.dtype)).sum() for state in states)


def whole(kind, *, sequences=SEQUENCES, packed=False, dtype=torch.float64, **options):
    module = make(kind, 2, **options).to(dtype)
    x = numbers(sequences, STEPS, INPUTS, dtype=dtype)
    return module, recorded(module, lambda: weighed(*module(pack(x, LENGTHS) if packed else x)))


CONFIGURATIONS = list(itertools.product(*[(False, True)] * 3, ROUNDING))


@ONE_DNN
@pytest.mark.parametrize("kind", FAMILIES)
def test_true_gradients_are_those_of_torchs_own_backward_pass_and_of_the_bias_itself(kind):
    for packed, bidirectional, bias, dtype in CONFIGURATIONS:
        module, found = whole(kind, packed=packed, bidirectional=bidirectional, bias=bias, dtype=dtype)
        assert len(found) == 2 * (1 + bidirectional)
        for part in found:
            assert replay_error(part) < ROUNDING[dtype]
            if bias:
                assert own_error([part], getattr(module, f"bias_hh_{part.trace.cell.name}").grad) < ROUNDING[dtype]


class Loop(nn.Module):
    """A single-step cell in a loop that begins where it is told."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, shown = None, []
        for step in x.unbind(1):
            state = self.cell(step) if state is None else self.cell(step, state)
            shown.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(shown, 1), state


@pytest.mark.parametrize("family", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_cell_in_a_loop_of_the_users_is_replayed_step_by_step(family):
    torch.manual_seed(0)
    model, x = Loop(family(INPUTS, UNITS).double()), numbers(SEQUENCES, STEPS, INPUTS)
    (found,) = recorded(model, lambda: weighed(*model(x)))
    assert found.trace.previous is not None
    assert replay_error(found) < ROUNDING[torch.float64]
    assert replay_error(dataclasses.replace(found, direct=0.9 * found.direct)) == pytest.approx(1 / 9)


def in_chunks(kind):
    module, x = make(kind).double(), numbers(SEQUENCES, STEPS, INPUTS)

    def run():
        first, state = module(x[:, :3])
        rest, last = module(x[:, 3:], state)
        return weighed(torch.cat([first, rest], 1), last)

    return recorded(module, run)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_loop_that_reads_a_sequence_part_by_part_cannot_be_replayed(kind):
    (found,) = in_chunks(kind)
    assert found.joined
    assert replay_error(found) is None


class OwnCell(Cell):
    """A cell of the user's, of whose weights nothing is known."""

    gates, candidate = (), "output"

    def activations(self, inputs, hidden, memory=None):
        raise AssertionError

    def follow(self, inside, hidden, memory):
        raise AssertionError


def test_cell_of_the_user_cannot_be_replayed():
    _, found = whole("gru")
    own = OwnCell(Place("l0"), input_size=INPUTS, units=UNITS)
    trace = dataclasses.replace(found[0].trace, cell=own)
    assert replay_error(dataclasses.replace(found[0], trace=trace)) is None


@ONE_DNN
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("packed", [False, True])
def test_changed_boundary_gradients_are_noticed_by_as_much_as_they_were_changed(kind, packed):
    _, found = whole(kind, packed=packed)
    for part in found:
        doubled = dataclasses.replace(part, direct=2.0 * part.direct)
        assert replay_error(doubled) == pytest.approx(0.5)
        assert replay_error(dataclasses.replace(part, bias=1.01 * part.bias)) == pytest.approx(0.01)
        one = part.direct.clone()
        one[0, 1] += 1.0  # at one step of one sequence
        assert replay_error(dataclasses.replace(part, direct=one)) > 1e-3


@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
@ONE_DNN
def test_gradient_of_the_last_memory_counts(kind):
    module = make(kind).double()
    x = numbers(SEQUENCES, STEPS, INPUTS)
    (found,) = recorded(module, lambda: module(pack(x, LENGTHS))[1][1].square().sum())
    assert replay_error(found) < ROUNDING[torch.float64]
    width = found.trace.cell.output_size
    assert (found.direct[torch.tensor(LENGTHS) - 1, torch.arange(SEQUENCES)][:, width:] != 0).all()
    without = found.direct.clone()
    without[..., width:] = 0.0
    assert replay_error(dataclasses.replace(found, direct=without)) > 1e-3


@ONE_DNN
@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_that_changed_between_forward_and_backward_pass_are_noticed(kind):
    module, found = whole(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    for part, cell in zip(found, cells(module), strict=True):
        assert replay_error(dataclasses.replace(part, trace=dataclasses.replace(part.trace, cell=cell))) > 1e-3


def test_only_the_first_sequences_are_replayed():
    _, found = whole("gru", sequences=11)
    assert replay_error(found[0]) < ROUNDING[torch.float64]
    changed = found[0].bias.clone()
    changed[8:] = 1e6
    assert replay_error(dataclasses.replace(found[0], bias=changed)) < ROUNDING[torch.float64]
    changed[7] *= 2
    assert replay_error(dataclasses.replace(found[0], bias=changed)) > 1e-3
    assert replay_error(dataclasses.replace(found[0], bias=changed), sequences=7) < ROUNDING[torch.float64]


def test_gradients_of_several_calls_add_up_to_the_modules_own():
    module, x = make("gru").double(), numbers(SEQUENCES, STEPS, INPUTS)
    found = recorded(module, lambda: weighed(*module(x)) + weighed(*module(x[:, :4])))
    assert len(found) == 2
    own = module.bias_hh_l0.grad
    assert own_error(found, own) < ROUNDING[torch.float64]
    assert own_error(found[:1], own) > 1e-3
    # A weight decay that the loss itself carries is no gradient through time.
    assert own_error(found, own + 0.5 * own.abs().max()) > 0.1


def test_replay_leaves_no_gradient_and_no_random_number_behind():
    module, found = whole("lstm")
    before = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    state = torch.get_rng_state()
    with torch.no_grad():
        assert replay_error(found[0]) < ROUNDING[torch.float64]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in module.named_parameters())
    weights = found[0].trace.cell.weights
    assert not any(weight.requires_grad for weight in (weights.ih, weights.hh, weights.bias_ih, weights.bias_hh))


@pytest.mark.parametrize(
    ("found", "true", "error"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.5, -5.0], 9 / 5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.25], [0.0, 0.0], 0.25),  # nothing to be relative to
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.inf, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.inf, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.0], math.inf),
    ],
)
def test_error_is_the_largest_difference_over_the_largest_true_value(found, true, error):
    assert relative_error(torch.tensor(found), torch.tensor(true)) == pytest.approx(error)


def test_half_precision_is_compared_without_overflow():
    found, true = torch.tensor([6e4, 1.0], dtype=torch.float64), torch.tensor([-6e4, 1.0], dtype=torch.float16)
    assert relative_error(found, true) == pytest.approx(2.0, rel=1e-3)
