"""The joint map of a stack: the real module run for one constant step is the referee, autograd that of its Jacobian."""

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.flow import Flow, flow_of
from rnn_callbacks.cells import cells

from .known_dynamics import plain

INPUTS, UNITS, PROJECTED, STATES = 3, 5, 2, 7
ROUNDING = 1e-13  # float64, sums of a dozen terms of size 1
STACKS = {
    "rnn": lambda layers: nn.RNN(INPUTS, UNITS, layers),
    "relu": lambda layers: nn.RNN(INPUTS, UNITS, layers, nonlinearity="relu"),
    "lstm": lambda layers: nn.LSTM(INPUTS, UNITS, layers),
    "projected": lambda layers: nn.LSTM(INPUTS, UNITS, layers, proj_size=PROJECTED),
    "gru": lambda layers: nn.GRU(INPUTS, UNITS, layers),
}


def make(kind, layers, seed=0):
    """A real stack in float64, with weights large enough for its gates to matter."""
    torch.manual_seed(seed)
    module = STACKS[kind](layers).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(2)
    return module


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow_through(*modules, x):
    return flow_of([equation_of(cell) for module in modules for cell in cells(module)], x)


def step_of_modules(modules, x, states):
    """Whole states after the modules, one on top of the other, have read one step: layer after layer ``[h, c]``."""
    sizes = [cell.state_size for module in modules for cell in cells(module)]
    parts, after = list(states.split(sizes, dim=1)), []
    reading = x.expand(1, len(states), -1)
    for module in modules:
        own, parts = parts[: module.num_layers], parts[module.num_layers :]
        width = cells(module)[0].output_size
        hidden = torch.stack([part[:, :width] for part in own])
        if isinstance(module, nn.LSTM):
            reading, (hidden, memory) = module(reading, (hidden, torch.stack([part[:, width:] for part in own])))
            after += [torch.cat(pair, dim=1) for pair in zip(hidden, memory, strict=True)]
        else:
            reading, hidden = module(reading, hidden)
            after += list(hidden)
    return torch.cat(after, dim=1)


MIXED = [("lstm", 1), ("projected", 1)], [("gru", 2), ("rnn", 1)], [("projected", 1), ("gru", 1), ("lstm", 1)]


def mixed(kinds):
    """Modules of different families, each reading what the one below says."""
    modules, width = [], INPUTS
    for seed, (kind, layers) in enumerate(kinds):
        module = make(kind, layers, seed)
        if width != INPUTS:
            torch.manual_seed(seed)
            options = {"proj_size": PROJECTED} if kind == "projected" else {}
            module = type(module)(width, UNITS, layers, **options).double()
        modules.append(module)
        width = cells(module)[0].output_size
    return modules


CASES = [
    *(pytest.param([(kind, layers)], id=f"{kind} {layers}") for kind in STACKS for layers in (1, 2, 3)),
    *(pytest.param(kinds, id=" ".join(kind for kind, _ in kinds)) for kinds in MIXED),
]


@pytest.mark.parametrize("kinds", CASES)
def test_a_step_is_the_step_of_the_module(kinds):
    modules, x = mixed(kinds), draw(INPUTS)
    flow = flow_through(*modules, x=x)
    states = draw(STATES, flow.state_size, seed=2)
    with torch.no_grad():
        truth = step_of_modules(modules, x, states)
    assert flow.state_size == sum(cell.state_size for module in modules for cell in cells(module))
    assert (flow.step(states) - truth).abs().max() < ROUNDING


@pytest.mark.parametrize("kinds", CASES)
def test_its_jacobian_is_that_of_the_module_by_autograd(kinds):
    modules, x = mixed(kinds), draw(INPUTS)
    flow = flow_through(*modules, x=x)
    states = draw(STATES, flow.state_size, seed=2)
    found = flow.jacobian(states)
    for row in (0, STATES - 1):
        truth = torch.autograd.functional.jacobian(
            lambda state: step_of_modules(modules, x, state[None])[0], states[row]
        )
        assert (found[row] - truth).abs().max() < 10 * ROUNDING  # products along three layers


@pytest.mark.parametrize("kind", STACKS)
def test_joint_eigenvalues_are_those_of_all_layers_together(kind):
    module, x = make(kind, 3), draw(INPUTS)
    flow = flow_through(module, x=x)
    state = draw(1, flow.state_size, seed=2)
    each, below = [], x[None]
    for equation, part in zip(flow.equations, state.split(flow.state_size // 3, dim=1), strict=True):
        drive = equation.drive_of(below)
        each.append(torch.linalg.eigvals(equation.jacobian(drive, part)[0]))
        below = equation.step(drive, part)[:, : equation.output_size]
    joint, union = torch.linalg.eigvals(flow.jacobian(state)[0]), torch.cat(each)
    distance = (joint[:, None] - union[None]).abs()
    # A projected layer has defective zeros, which rounding splits into its third root.
    tolerance = 1e-4 if kind == "projected" else 1e-7
    assert max(distance.amin(0).max(), distance.amin(1).max()) < tolerance
    assert abs(joint.sum() - union.sum()) < 1e-12  # the trace, which does not care


def test_no_layer_feels_the_ones_above():
    flow = flow_through(make("lstm", 3), x=draw(INPUTS))
    found = flow.jacobian(draw(STATES, flow.state_size, seed=2)).unflatten(2, (3, -1)).unflatten(1, (3, -1))
    for below, above in [(0, 1), (0, 2), (1, 2)]:
        assert (found[:, below, :, above] == 0).all()
        assert (found[:, above, :, below] != 0).any()


def test_hidden_states_are_taken_out_of_whole_ones():
    flow = flow_through(make("projected", 2), x=draw(INPUTS))
    states = torch.arange(2.0 * flow.state_size).view(2, -1)
    width = PROJECTED + UNITS
    assert flow.hidden(states)[0].tolist() == [0, 1, width, width + 1]
    assert flow.hidden(states)[1].tolist() == [2 * width, 2 * width + 1, 3 * width, 3 * width + 1]


def test_a_run_is_the_module_reading_a_constant_sequence():
    module, x = make("lstm", 2), draw(INPUTS)
    flow = flow_through(module, x=x)
    with torch.no_grad():
        _, (hidden, memory) = module(x.expand(11, 1, -1))
    truth = torch.cat([hidden[0], memory[0], hidden[1], memory[1]], dim=1)
    start = torch.zeros(1, flow.state_size).double()
    assert (flow.run(start, 11) - truth).abs().max() < ROUNDING
    assert flow.run(start, 0) is start


def test_a_linear_flow_is_a_power_of_its_weights():
    weight = 0.1 * draw(UNITS, UNITS).abs()
    flow = Flow((equation_of(plain(weight, nonlinearity="relu")),), torch.zeros(1).double())
    start = draw(STATES, UNITS).abs()
    truth = start @ torch.linalg.matrix_power(weight, 9).T
    np.testing.assert_allclose(flow.run(start, 9), truth, rtol=1e-12)


def test_states_are_never_written_to():
    flow = flow_through(make("gru", 2), x=draw(INPUTS))
    states = draw(STATES, flow.state_size)
    before = states.clone()
    flow.step(states), flow.jacobian(states), flow.run(states, 3)
    assert torch.equal(states, before)
