import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from rnn_callbacks.cells import Activations, Cell, Place, cells, is_recurrent

INPUTS, UNITS, PROJECTED, ROWS, STEPS = 3, 5, 2, 7, 11
ROUNDING = 1e-14  # float64, a few dozen additions of numbers near 1

FUSED = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": PROJECTED}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
SINGLE = {
    "gru": (nn.GRUCell, {}),
    "lstm": (nn.LSTMCell, {}),
    "rnn_tanh": (nn.RNNCell, {}),
    "rnn_relu": (nn.RNNCell, {"nonlinearity": "relu"}),
}


def make(kinds, kind, *sizes, **options):
    torch.manual_seed(1)
    family, own = kinds[kind]
    return family(INPUTS, UNITS, *sizes, dtype=torch.float64, **own, **options)


def make_rows(cell):
    torch.manual_seed(2)
    return torch.randn(ROWS, cell.input_size).double(), torch.randn(ROWS, cell.state_size).double()


def as_hx(cell, state):
    """A state ``(N, D)`` as torch takes it: a tensor, or an LSTM's pair."""
    hidden, memory = state.split([cell.output_size, cell.memory_size], dim=1)
    return (hidden.contiguous(), memory.contiguous()) if cell.memory_size else hidden.contiguous()


def as_state(hx):
    return torch.cat(hx, dim=-1) if isinstance(hx, tuple) else hx


def zeroed(module, **biases):
    """The module with all weights 0 and the given rows of its input bias set."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for row, value in biases.items():
            module.bias_ih_l0.view(-1, UNITS)[int(row[1:])] = value
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", list(SINGLE))
def test_step_is_that_of_torch_single_step_cell(kind, bias):
    module = make(SINGLE, kind, bias=bias)
    (cell,) = cells(module)
    inputs, state = make_rows(cell)
    with torch.no_grad():
        truth = as_state(module(inputs, as_hx(cell, state)))
    torch.testing.assert_close(cell.step(inputs, state), truth, rtol=0, atol=ROUNDING)
    assert (cell.name, cell.place.stepwise) == ("cell", True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", list(FUSED))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_chained_steps_are_one_step_of_a_stacked_bidirectional_module(kind, bias):
    module = make(FUSED, kind, 2, bias=bias, bidirectional=True)
    stack = cells(module)
    assert [(cell.name, cell.place.layer, cell.place.reverse) for cell in stack] == [
        ("l0", 0, False),
        ("l0_reverse", 0, True),
        ("l1", 1, False),
        ("l1_reverse", 1, True),
    ]
    inputs, _ = make_rows(stack[0])
    begin = torch.randn(len(stack), ROWS, stack[0].state_size).double()
    after, below = [], inputs
    for forward, backward in (stack[:2], stack[2:]):
        after += [cell.step(below, begin[len(after) + n]) for n, cell in enumerate((forward, backward))]
        below = torch.cat([state[:, : forward.output_size] for state in after[-2:]], dim=1)
    hx = begin.split([stack[0].output_size, stack[0].memory_size], dim=2) if stack[0].memory_size else begin
    with torch.no_grad():
        outputs, last = module(inputs[None], tuple(h.contiguous() for h in hx) if stack[0].memory_size else hx)
    torch.testing.assert_close(below, outputs[0], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(torch.stack(after), as_state(last), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", list(FUSED))
def test_following_known_gates_is_stepping(kind):
    (cell,) = cells(make(FUSED, kind))
    torch.manual_seed(3)
    inputs, state = torch.randn(STEPS, ROWS, INPUTS).double(), torch.randn(ROWS, cell.state_size).double()
    memory, states = state[:, cell.output_size :], [state]
    for step in inputs:
        states.append(cell.step(step, states[-1]))
    before, after = torch.stack(states[:-1]), torch.stack(states[1:])
    hidden = before[..., : cell.output_size]
    inside = cell.activations(inputs.flatten(0, 1), hidden.flatten(0, 1)).values
    followed = cell.follow(Activations(inside.view(STEPS, ROWS, *inside.shape[1:])), hidden, memory)
    torch.testing.assert_close(torch.cat(followed, dim=2), after, rtol=1e-13, atol=ROUNDING)  # relu states grow


@pytest.mark.parametrize("kind", list(SINGLE))
def test_jacobian_of_step_is_that_of_torch(kind):
    module = make(SINGLE, kind)
    (cell,) = cells(module)
    inputs, state = make_rows(cell)

    def torch_step(given):
        return as_state(module(inputs[:1], as_hx(cell, given)))

    ours = torch.autograd.functional.jacobian(lambda given: cell.step(inputs[:1], given), state[:1])
    torch.testing.assert_close(ours, torch.autograd.functional.jacobian(torch_step, state[:1]), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", list(SINGLE))
def test_permuting_units_permutes_the_step(kind):
    module = make(SINGLE, kind)
    (cell,) = cells(module)
    inputs, state = make_rows(cell)
    after = cell.step(inputs, state)
    order = torch.randperm(UNITS)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            rows = weight.unflatten(0, (-1, UNITS))[:, order].flatten(0, 1)
            weight.copy_(rows[:, order] if name == "weight_hh" else rows)
    (turned,) = cells(module)
    both = torch.cat([order, UNITS + order]) if cell.memory_size else order
    torch.testing.assert_close(turned.step(inputs, state[:, both]), after[:, both], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("tau", [2.0, 10.0, 100.0])
def test_memory_of_a_forget_bias_fades_as_one_minus_one_over_tau(tau):
    (cell,) = cells(zeroed(nn.LSTM(INPUTS, UNITS, dtype=torch.float64), b1=math.log(tau - 1)))
    inputs, begin = make_rows(cell)
    state = begin
    for _ in range(STEPS):
        state = cell.step(inputs, state)
    torch.testing.assert_close(state[:, UNITS:], begin[:, UNITS:] * (1 - 1 / tau) ** STEPS, rtol=1e-13, atol=0)


def test_gru_keeps_nine_tenths_at_a_z_bias_of_log_nine():
    (cell,) = cells(zeroed(nn.GRU(INPUTS, UNITS, dtype=torch.float64), b1=math.log(9)))
    inputs, state = make_rows(cell)
    torch.testing.assert_close(cell.step(inputs, state), 0.9 * state, rtol=1e-14, atol=0)
    update = cell.activations(inputs, state).logits.sigmoid()[:, cell.gates.index("update")]
    torch.testing.assert_close(update, torch.full_like(update, 0.1), rtol=1e-14, atol=0)  # share of new content


@pytest.mark.parametrize(("bias", "frozen"), [(40.0, True), (-40.0, False)])
def test_gru_with_an_extreme_z_bias_holds_its_state_or_takes_the_candidate(bias, frozen):
    module = make(FUSED, "gru")
    with torch.no_grad():
        module.bias_ih_l0[UNITS : 2 * UNITS] = bias  # against logits of a few: sigmoid(37) is 1 in float64
    (cell,) = cells(module)
    inputs, state = make_rows(cell)
    truth = state if frozen else cell.activations(inputs, state).candidate
    torch.testing.assert_close(cell.step(inputs, state), truth, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", list(FUSED))
def test_cell_has_the_sizes_and_parts_of_its_module(kind):
    (cell,) = cells(make(FUSED, kind))
    inputs, state = make_rows(cell)
    inside = cell.activations(inputs, state[:, : cell.output_size])
    assert inside.logits.shape == (ROWS, len(cell.gates), UNITS)
    assert inside.candidate.shape == (ROWS, UNITS)
    assert cell.parts == (*cell.gates, cell.candidate)
    assert (cell.input_size, cell.units) == (INPUTS, UNITS)
    assert cell.output_size == (PROJECTED if kind == "lstm_projected" else UNITS)
    assert cell.memory_size == (UNITS if kind.startswith("lstm") else 0)
    assert cell.bounded == (kind != "rnn_relu")


@pytest.mark.parametrize("kind", list(FUSED))
def test_training_the_module_does_not_change_the_cell(kind):
    module = make(FUSED, kind)
    (cell,) = cells(module)
    inputs, state = make_rows(cell)
    before = cell.step(inputs, state)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(cell.step(inputs, state), before)
    assert not cell.step(inputs, state).requires_grad
    assert not torch.allclose(cells(module)[0].step(inputs, state), before)


def test_cell_is_never_less_precise_than_float32():
    for given, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        (cell,) = cells(nn.LSTM(INPUTS, UNITS, proj_size=PROJECTED, dtype=given))
        assert {weight.dtype for weight in (cell.weights.ih, cell.weights.hh, cell.weights.bias_ih)} == {kept}
        assert cell.weights.hr.dtype == kept


@pytest.mark.parametrize("kind", list(FUSED))
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_parametrized_weights_are_read_as_they_act(kind):
    module = parametrizations.weight_norm(make(FUSED, kind), "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0 *= 3.0  # otherwise the norm is that of the plain weight
    (cell,) = cells(module)
    inputs, state = make_rows(cell)
    hx = as_hx(cell, state)
    with torch.no_grad():
        last = module(inputs[None], tuple(h[None] for h in hx) if isinstance(hx, tuple) else hx[None])[1]
    torch.testing.assert_close(cell.step(inputs, state), as_state(last)[0], rtol=0, atol=ROUNDING)


def test_registered_module_of_the_user_has_cells():
    class Integrator(nn.Module):
        pass

    class IntegratorCell(Cell):
        gates, candidate = (), "sum"

        def activations(self, inputs, hidden, memory=None):
            return Activations((inputs + hidden)[:, None])

        def follow(self, inside, hidden, memory):
            return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)

    assert not is_recurrent(Integrator())

    @cells.register
    def _(module: Integrator):
        return (IntegratorCell(Place("l0"), input_size=UNITS, units=UNITS),)

    assert is_recurrent(Integrator())
    (cell,) = cells(Integrator())
    inputs, state = make_rows(cell)
    assert torch.equal(cell.step(inputs, state), inputs + state)


def test_module_without_known_equations_is_refused_by_name():
    with pytest.raises(TypeError, match=r"no equations are known for Linear; expected nn\.RNN, .*cells\.register"):
        cells(nn.Linear(INPUTS, UNITS))


def test_recurrent_modules_are_told_from_others():
    assert all(is_recurrent(make(FUSED, kind)) for kind in FUSED)
    assert all(is_recurrent(make(SINGLE, kind)) for kind in SINGLE)
    assert is_recurrent(parametrizations.weight_norm(nn.GRU(INPUTS, UNITS), "weight_hh_l0"))
    assert not any(is_recurrent(module) for module in (nn.Linear(2, 3), nn.Sequential(nn.GRU(2, 3)), nn.Module()))


def test_step_says_which_shapes_it_takes():
    (cell,) = cells(make(FUSED, "lstm_projected"))
    inputs, state = make_rows(cell)
    with pytest.raises(ValueError, match=r"inputs must be \(N, 3\), got shape \(7, 2\)"):
        cell.step(inputs[:, 1:], state)
    with pytest.raises(ValueError, match=r"inputs must be \(N, 3\), got shape \(7, 3, 1\)"):
        cell.step(inputs[:, :, None], state)
    with pytest.raises(ValueError, match=r"state must be \(7, 7\), got shape \(7, 6\)"):
        cell.step(inputs, state[:, 1:])
    with pytest.raises(ValueError, match=r"state must be \(7, 7\), got shape \(6, 7\)"):
        cell.step(inputs, state[1:])
