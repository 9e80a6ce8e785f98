"""Closed-form Jacobians and reductions of fixed-point equations, against autograd through the real torch modules."""

import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.newton import newton
from rnn_callbacks.cells import Activations, Cell, Place, cells

POINTS, INPUTS, UNITS, PROJECTED = 7, 3, 5, 2
CLOSED_FORM = 1e-10  # asked for; float64 sums of a dozen terms err by about 1e-15
MODULES = {
    "tanh": lambda: nn.RNN(INPUTS, UNITS),
    "relu": lambda: nn.RNN(INPUTS, UNITS, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(INPUTS, UNITS),
    "projected": lambda: nn.LSTM(INPUTS, UNITS, proj_size=PROJECTED),
    "gru": lambda: nn.GRU(INPUTS, UNITS),
    "unbiased": lambda: nn.GRU(INPUTS, UNITS, bias=False),
    "rnn cell": lambda: nn.RNNCell(INPUTS, UNITS),
    "lstm cell": lambda: nn.LSTMCell(INPUTS, UNITS),
    "gru cell": lambda: nn.GRUCell(INPUTS, UNITS),
}


def module_of(name, *, gain=2.0, seed=0):
    """A float64 module whose weights are large enough for its gates to be far from 1/2."""
    torch.manual_seed(seed)
    module = MODULES[name]().double()
    for weight in module.parameters():
        weight.data.mul_(gain)
    return module


def true_step(module, x, state):
    """The real module's next state (N, D) from inputs (N, I) and states (N, D)."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        width = state.shape[1] - module.hidden_size
        parts = state[:, :width], state[:, width:]
    else:
        parts = (state,)
    if isinstance(module, nn.RNNCellBase):
        after = module(x, parts if len(parts) > 1 else parts[0])
        return torch.cat(after, 1) if len(parts) > 1 else after
    parts = tuple(part[None].contiguous() for part in parts)
    _, after = module(x[None], parts if len(parts) > 1 else parts[0])
    return torch.cat([part[0] for part in after], 1) if len(parts) > 1 else after[0]


def jacobian_of(function, at):
    """The derivative of rows (N, A) by rows (N, B), each by its own: (N, A, B)."""
    leaf = at.detach().clone().requires_grad_()
    after = function(leaf)
    return torch.stack([torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in after.unbind(1)], 1)


def states_of(equation, seed=1):
    """Inputs and states far from the origin, those of an LSTM's memory beyond 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(POINTS, INPUTS, generator=generator, dtype=torch.float64)
    return x, 1.5 * torch.randn(POINTS, equation.state_size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MODULES)
def test_step_is_the_modules_own(name):
    module = module_of(name)
    equation = equation_of(cells(module)[0])
    x, state = states_of(equation)
    assert (equation.step(equation.drive_of(x), state) - true_step(module, x, state)).abs().max() < 1e-13


@pytest.mark.parametrize("name", MODULES)
def test_whole_jacobian_equals_autograd_through_the_module(name):
    module = module_of(name)
    equation = equation_of(cells(module)[0])
    x, state = states_of(equation)
    truth = jacobian_of(lambda leaf: true_step(module, x, leaf), state)
    found = equation.jacobian(equation.drive_of(x), state)
    assert found.shape == (POINTS, equation.state_size, equation.state_size)
    assert (found - truth).abs().max() < CLOSED_FORM


@pytest.mark.parametrize("name", MODULES)
def test_input_jacobian_equals_autograd_through_the_module(name):
    module = module_of(name)
    equation = equation_of(cells(module)[0])
    x, state = states_of(equation)
    truth = jacobian_of(lambda leaf: true_step(module, leaf, state), x)
    found = equation.input_jacobian(equation.drive_of(x), state)
    assert found.shape == (POINTS, equation.state_size, INPUTS)
    assert (found - truth).abs().max() < CLOSED_FORM


@pytest.mark.parametrize("name", MODULES)
def test_reduced_jacobian_is_the_derivative_of_the_reduced_residual(name):
    equation = equation_of(cells(module_of(name))[0])
    x, state = states_of(equation)
    drive, unknown = equation.drive_of(x), state[:, : equation.unknowns]
    residual, found = equation.linearised(drive, unknown)
    assert torch.equal(residual, equation.residual(drive, unknown))
    assert (found - jacobian_of(lambda leaf: equation.residual(drive, leaf), unknown)).abs().max() < CLOSED_FORM


@pytest.mark.parametrize("forget_bias", [29.0, 31.0])
def test_reduced_jacobian_is_right_on_both_sides_of_the_clamped_forget_gate(forget_bias):
    module = module_of("lstm")
    for weight in module.parameters():
        weight.data[2 * UNITS : 3 * UNITS] *= 1e-13  # so little new content that c is of the order of 1
    module.bias_ih_l0.data[UNITS : 2 * UNITS] = forget_bias
    equation = equation_of(cells(module)[0])
    x, state = states_of(equation)
    drive, unknown = equation.drive_of(0 * x), 1e-3 * state[:, :UNITS]
    found = equation.linearised(drive, unknown)[1]
    assert (found - jacobian_of(lambda leaf: equation.residual(drive, leaf), unknown)).abs().max() < CLOSED_FORM
    others = found.flatten(1)[:, torch.arange(UNITS**2) % (UNITS + 1) > 0]
    assert others.abs().max() > 0.01  # the claim is about slopes that are not flat


def roots_of(equation, x, starts=64, seed=2):
    generator = torch.Generator().manual_seed(seed)
    starts = 2 * torch.rand(starts, equation.unknowns, generator=generator, dtype=torch.float64) - 1
    drive = equation.drive_of(x)
    roots = newton(equation, drive, starts)
    return drive, roots.unknown[roots.converged]


@pytest.mark.parametrize("name", MODULES)
def test_roots_of_the_reduced_equation_stand_still_in_the_module(name):
    module = module_of(name, gain=1.0 if name == "relu" else 3.0)
    equation = equation_of(cells(module)[0])
    x = torch.full((1, INPUTS), 0.3, dtype=torch.float64)
    drive, roots = roots_of(equation, x)
    state = equation.state(drive, roots)
    assert len(state) > 10
    assert (true_step(module, x.expand(len(state), -1), state) - state).abs().max() < 1e-10  # residuals are <= 1e-11


@pytest.mark.parametrize("name", MODULES)
def test_reduction_keeps_the_sign_of_the_determinant(name):
    signs = set()
    for seed in range(12):
        module = module_of(name, gain=1.0 if name == "relu" else 6.0, seed=seed)
        equation = equation_of(cells(module)[0])
        drive, roots = roots_of(equation, torch.zeros(1, INPUTS, dtype=torch.float64))
        reduced = torch.linalg.slogdet(-equation.linearised(drive, roots)[1])[0]
        state = equation.state(drive, roots)
        x = torch.zeros(len(state), INPUTS, dtype=torch.float64)
        jacobian = jacobian_of(lambda leaf, module=module, x=x: true_step(module, x, leaf), state)
        whole = torch.linalg.slogdet(torch.eye(equation.state_size) - jacobian)[0]
        assert torch.equal(reduced, whole)
        signs |= set(reduced.tolist())
    assert signs == ({1.0} if name == "relu" else {-1.0, 1.0})  # the claim is about both


@pytest.mark.parametrize("name", MODULES)
def test_weights_halfway_between_give_the_module_halfway_between(name):
    first, second, middle = (module_of(name, seed=seed) for seed in (0, 1, 0))
    for weight, other in zip(middle.parameters(), second.parameters(), strict=True):
        weight.data.lerp_(other, 0.3)
    one, two, truth = (equation_of(cells(module)[0]) for module in (first, second, middle))
    between = one.between(two, 0.3)
    x, state = states_of(one)
    assert (between.step(between.drive_of(x), state) - truth.step(truth.drive_of(x), state)).abs().max() < 1e-13
    if truth.limit is not None:
        assert (between.limit - truth.limit).abs().max() < 1e-13


def test_projected_states_stay_within_the_limit():
    module = module_of("projected", gain=20.0)
    equation = equation_of(cells(module)[0])
    x, state = states_of(equation)
    shown = true_step(module, 100 * x, 100 * state)[:, :PROJECTED].abs()
    assert (shown <= equation.limit).all()
    assert (shown.amax(0) > 0.3 * equation.limit).all()  # and are not far from it: the limit is no loose one


class Wave(Cell):
    """sin(a h + W x + b): a cell that torch does not have, with numbers and no tensors of weights."""

    gates = ()
    candidate = "wave"

    def __init__(self, gain=0.7):
        super().__init__(Place("cell", stepwise=True), input_size=INPUTS, units=UNITS)
        self.gain = gain

    def activations(self, inputs, hidden, memory=None):
        turned = hidden.roll(1, 1) * self.gain + hidden**2 / 5
        return Activations((turned + inputs.sum(1, keepdim=True)).sin()[:, None])

    def follow(self, inside, hidden, memory):
        return inside.candidate, hidden.new_zeros(*hidden.shape[:2], 0)


def test_cell_without_tensors_is_differentiated_automatically():
    cell = Wave()
    equation = equation_of(cell)
    x, state = states_of(equation)
    drive = equation.drive_of(x)
    assert (equation.jacobian(drive, state) - jacobian_of(lambda leaf: cell.step(x, leaf), state)).abs().max() < 1e-14
    by_input = jacobian_of(lambda leaf: cell.step(leaf, state), x)
    assert (equation.input_jacobian(drive, state) - by_input).abs().max() < 1e-14
    eye = torch.eye(UNITS, dtype=torch.float64)
    assert (equation.linearised(drive, state)[1] - (equation.jacobian(drive, state) - eye)).abs().max() < 1e-14


def test_mixture_of_unknown_cells_is_the_mixture_of_their_steps():
    one, two = equation_of(Wave(0.7)), equation_of(Wave(-1.1))
    x, state = states_of(one)
    mixed = one.between(two, 0.25)
    truth = 0.75 * Wave(0.7).step(x, state) + 0.25 * Wave(-1.1).step(x, state)
    assert (mixed.step(x, state) - truth).abs().max() < 1e-14
