"""Jacobian products: forward against central differences of the cell's own step, backward as its adjoint."""

import dataclasses

import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.linearisation import linearise
from rnn_callbacks.capture import Recorder
from rnn_callbacks.rebuild import traces

from ..hear import calls_of
from ..test_own_cells import PeepholeCell, PeepholeStack

SEQUENCES, STEPS, INPUTS, UNITS, PROJECTED, KINDS = 3, 7, 2, 5, 4, 2
LENGTHS = [4, 7, 1]
EXACT = 1e-13  # a few dozen additions in float64 of numbers up to about 10

FUSED = {
    "gru": lambda: nn.GRU(INPUTS, UNITS, 2, bidirectional=True),
    "lstm": lambda: nn.LSTM(INPUTS, UNITS, 2, bidirectional=True),
    "lstm projected": lambda: nn.LSTM(INPUTS, UNITS, 2, bidirectional=True, proj_size=PROJECTED),
    "rnn": lambda: nn.RNN(INPUTS, UNITS, 2, bidirectional=True),
    "rnn relu": lambda: nn.RNN(INPUTS, UNITS, 2, bidirectional=True, nonlinearity="relu"),
    "own": PeepholeStack,
}
STEPWISE = {
    "gru cell": lambda: nn.GRUCell(INPUTS, UNITS),
    "lstm cell": lambda: nn.LSTMCell(INPUTS, UNITS),
    "rnn cell": lambda: nn.RNNCell(INPUTS, UNITS),
    "own cell": lambda: PeepholeCell(INPUTS),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
every_family = pytest.mark.parametrize("family", [*FUSED, *STEPWISE])


def heard(family):
    """The traces of all cells, from a given state; a loop's state is changed between its steps."""
    torch.manual_seed(4)
    module = {**FUSED, **STEPWISE}[family]().double()
    x = torch.randn(SEQUENCES, STEPS, INPUTS).double()
    pair = "lstm" in family or "own" in family
    with Recorder(module) as recorder, torch.no_grad():
        if family in STEPWISE:
            state = torch.randn(2, SEQUENCES, UNITS).double()
            for step in x.unbind(1):
                state = module(step, tuple(state) if pair else state[0])
                state = [0.7 * part for part in (state if pair else (state,))]
        else:
            width = PROJECTED if "projected" in family else UNITS
            h0, c0 = (torch.randn(4, SEQUENCES, size).double() for size in (width, UNITS))
            module(x if family == "own" else x.transpose(0, 1), (h0, c0) if pair else h0)
    (call,) = calls_of(recorder)
    return traces(call)


def states_before(trace):
    """The whole state before each step ``(T, B, D)``, by the cell's own steps."""
    if trace.previous is not None:
        return trace.previous.transpose(0, 1)
    states = [trace.initial]
    for step in trace.inputs.unbind(1)[:-1]:
        states.append(trace.cell.step(step, states[-1]))
    return torch.stack(states)


def vectors(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def pull_one(flow, step, gradients):
    """``J^T u`` of one step, ``(K, B, D)``, and what is left behind."""
    rows = vectors(STEPS, *gradients.shape, seed=9)  # what lies at other steps must not matter
    rows[step] = gradients
    untouched = rows.clone()
    inner = torch.full((1, *gradients.shape[:2], flow.width), torch.nan).double()
    back = flow.pull(rows, inner, step, step + 1)
    assert torch.equal(rows, untouched)  # a single step has no later one within reach
    assert not inner.isnan().any()
    return back


@every_family
def test_push_is_the_derivative_of_a_step(family):
    small = 1e-6  # central differences: an error of 1e-12 from curvature and 1e-10 from rounding
    for trace in heard(family):
        flow, before = linearise(trace), states_before(trace)
        tangents = vectors(KINDS, SEQUENCES, trace.cell.state_size, seed=6)
        for step in range(STEPS):
            given = tangents.clone()
            pushed = flow.push(step, given)
            assert torch.equal(given, tangents)
            for kind, tangent in enumerate(tangents):
                ends = [trace.cell.step(trace.inputs[:, step], before[step] + s * tangent) for s in (small, -small)]
                assert (pushed[kind] - (ends[0] - ends[1]) / (2 * small)).abs().max() < 1e-8


@every_family
def test_pull_is_the_adjoint_of_push(family):
    for trace in heard(family):
        flow, size = linearise(trace), trace.cell.state_size
        gradients, tangents = (vectors(KINDS, SEQUENCES, size, seed=seed) for seed in (7, 8))
        for step in range(STEPS):
            forth = (gradients * flow.push(step, tangents)).sum(2)
            back = (pull_one(flow, step, gradients) * tangents).sum(2)
            assert (forth - back).abs().max() < EXACT * 10


@every_family
def test_pull_through_many_steps_adds_up_what_single_steps_give(family):
    for trace in heard(family):
        flow = linearise(trace)
        direct = vectors(STEPS, KINDS, SEQUENCES, trace.cell.state_size, seed=10)
        total, expected = direct.clone(), direct.clone()
        inner = torch.empty(STEPS - 2, KINDS, SEQUENCES, flow.width).double()
        back = flow.pull(total, inner, 2, STEPS)
        for step in range(STEPS - 1, 2, -1):
            expected[step - 1] += pull_one(flow, step, expected[step])
        largest = expected.abs().max()
        assert (total - expected).abs().max() < EXACT * largest
        assert (back - pull_one(flow, 2, expected[2])).abs().max() < EXACT * largest


@every_family
def test_input_gradients_are_those_of_a_loss_of_the_states(family):
    for trace in heard(family):
        flow = linearise(trace)
        total, begin, end = vectors(STEPS, KINDS, SEQUENCES, trace.cell.state_size, seed=11), 1, STEPS - 1
        inner = torch.empty(end - begin, KINDS, SEQUENCES, flow.width).double()
        flow.pull(total, inner, begin, end)
        small, before, found = 1e-6, states_before(trace), flow.input_gradients(total, inner, begin, end)
        assert found.shape == (end - begin, SEQUENCES, trace.cell.input_size)
        for step in range(begin, end):
            for which in range(trace.cell.input_size):
                move = torch.zeros(trace.cell.input_size).double()
                move[which] = small
                ends = [trace.cell.step(trace.inputs[:, step] + s * move, before[step]) for s in (1, -1)]
                slope = ((ends[0] - ends[1]) / (2 * small) * total[step, 0]).sum(1)
                assert (found[step - begin, :, which] - slope).abs().max() < 1e-8


@pytest.mark.parametrize("family", ["lstm", "lstm projected", "lstm cell"])
def test_gradient_of_a_memory_counts_what_the_hidden_state_shows_of_it(family):
    for trace in heard(family):
        flow, width = linearise(trace), trace.cell.output_size
        gradients = vectors(STEPS, KINDS, SEQUENCES, trace.cell.state_size, seed=12)
        own = trace.cell.weights
        state = states_before(trace).flatten(0, 1)
        rows = trace.inputs.transpose(0, 1).flatten(0, 1) @ own.ih.T + own.bias_ih + own.bias_hh
        rows = rows + state[:, :width] @ own.hh.T
        write, forget, new, output = rows.chunk(4, dim=1)
        memory = (forget.sigmoid() * state[:, width:] + write.sigmoid() * new.tanh()).requires_grad_()
        shown = output.sigmoid() * memory.tanh()
        shown = shown if own.hr is None else shown @ own.hr.T
        for kind in range(KINDS):
            of_hidden = gradients[:, kind, :, :width]
            (through,) = torch.autograd.grad(shown, memory, of_hidden.flatten(0, 1), retain_graph=True)
            through = through.view(STEPS, SEQUENCES, -1)
            assert (flow.shown(of_hidden) - through).abs().max() < EXACT
            whole = flow.memory_gradients(gradients)[:, kind]
            assert (whole - gradients[:, kind, :, width:] - through).abs().max() < EXACT


@every_family
def test_rebuilt_states_are_those_that_were_heard_unless_somebody_changed_them(family):
    for trace in heard(family):
        flow = linearise(trace)
        assert flow.error < EXACT
        assert (flow.before - states_before(trace)[..., : trace.cell.output_size]).abs().max() < EXACT
        for change in (0.1, 100.0):  # of a number below 1, and of one relative to which it is nearly 1
            tampered = trace.hidden.clone()
            tampered[1, -1] += change  # the last step: no later one starts from it
            error = linearise(dataclasses.replace(trace, hidden=tampered)).error
            assert abs(error - float((change / tampered[1, -1].abs().clamp(min=1)).max())) < EXACT
        tampered[1, 3, 0] = torch.nan
        assert linearise(dataclasses.replace(trace, hidden=tampered)).error == float("inf")


@every_family
def test_what_lies_in_the_padding_is_no_error(family):
    for trace in heard(family):
        padded = trace.hidden.clone()
        for row, length in enumerate(LENGTHS):
            padded[row, length:] = torch.nan
        tampered = dataclasses.replace(trace, hidden=padded, lengths=torch.tensor(LENGTHS))
        assert linearise(tampered).error < EXACT


@every_family
def test_part_of_the_sequences_is_linearised_as_it_is_among_all(family):
    for trace in heard(family):
        tangents = vectors(KINDS, SEQUENCES, trace.cell.state_size, seed=13)
        whole, part = linearise(trace), linearise(trace, slice(1, 3))
        for step in range(STEPS):
            apart = whole.push(step, tangents)[:, 1:3] - part.push(step, tangents[:, 1:3])
            assert apart.abs().max() < EXACT


def test_cell_of_a_users_own_without_known_weights_says_so():
    for family, known in (("own", False), ("gru", True), ("lstm", True), ("rnn", True)):
        trace = heard(family)[0]
        flow = linearise(trace)
        assert flow.knows_weights == known
        assert flow.width == (trace.cell.input_size if not known else len(trace.cell.weights.bias_hh))
        assert flow.state_size == trace.cell.state_size


def test_own_cells_memory_has_no_gradient_through_the_hidden_state_alone():
    with pytest.raises(ValueError, match="gradient of its memory apart from that of its hidden state"):
        linearise(heard("own cell")[0]).shown(torch.zeros(STEPS, SEQUENCES, UNITS).double())
