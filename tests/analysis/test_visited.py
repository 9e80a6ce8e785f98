"""States that a module went through: the module itself and loops written out by hand are the referees."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_callbacks.analysis.visited import MOST_TRAJECTORIES, hidden_part, visit
from rnn_callbacks.capture import Recorder
from rnn_callbacks.cells import cells
from rnn_callbacks.rebuild import traces_by_cell

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

INPUTS, UNITS, PROJECTED, SEQUENCES, STEPS = 3, 5, 2, 7, 11
LENGTHS = torch.tensor([4, 11, 1, 7, 2, 9, 5])
ROUNDING = 2e-6  # float32, sums of a dozen terms of size 1
FAMILIES = {
    "rnn": lambda *sizes, **options: nn.RNN(*sizes, **options),
    "lstm": lambda *sizes, **options: nn.LSTM(*sizes, **options),
    "projected": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=PROJECTED, **options),
    "gru": lambda *sizes, **options: nn.GRU(*sizes, **options),
}


def make(family, layers=1, **options):
    torch.manual_seed(0)
    return FAMILIES[family](INPUTS, UNITS, layers, **options)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def visit_while(model, run, **options):
    """What was visited while the only recurrent module of a model ran."""
    with Recorder(model) as recorder, torch.no_grad():
        run()
    assert not recorder.faults
    (tape,) = recorder.tapes.values()
    return visit(traces_by_cell(tape), **options)


def walked(module, x, initial=None):
    """Whole states ``(B, T, D)``, every cell of the stack stepped by hand; the initial ones are zeros."""
    reading, found = x, []
    for cell in cells(module):
        state, states = x.new_zeros(len(x), cell.state_size) if initial is None else initial, []
        for step in reading.unbind(1):
            state = cell.step(step, state)
            states.append(state)
        found.append(torch.stack(states, dim=1))
        reading = found[-1][..., : cell.output_size]
    return torch.cat(found, dim=2)


def far(one, other):
    assert one.shape == other.shape
    return (one - other).abs().max()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_cells_side_by_side(family, layers):
    module, x = make(family, layers, batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    found, truth = visit_while(module, lambda: module(x)), walked(module, x)
    assert far(found.states, truth.flatten(0, 1)) < ROUNDING
    assert far(found.ends, truth[:, -1]) < ROUNDING
    assert found.rebuild_error < ROUNDING < found.tolerance
    assert found.states.dtype == torch.float64
    offset = 0
    for part, cell in zip(found.per_cell, cells(module), strict=True):
        assert far(part, truth.flatten(0, 1)[:, offset : offset + cell.state_size]) < ROUNDING
        offset += cell.state_size


def test_the_ends_of_an_lstm_are_what_the_module_returns():
    module, x = make("lstm", 2), draw(STEPS, SEQUENCES, INPUTS)
    found = visit_while(module, lambda: module(x))
    with torch.no_grad():
        _, (hidden, memory) = module(x)
    assert far(found.ends, torch.cat([hidden[0], memory[0], hidden[1], memory[1]], dim=1)) < ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_axes_does_not_matter(family):
    first, x = make(family, 2, batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    second = make(family, 2)
    one = visit_while(first, lambda: first(x))
    other = visit_while(second, lambda: second(x.transpose(0, 1)))
    assert far(one.states, other.states) < ROUNDING
    assert far(one.ends, other.ends) < ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_no_state_and_no_input(family):
    module, x = make(family, 2), draw(SEQUENCES, STEPS, INPUTS)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    found, truth = visit_while(module, lambda: module(packed)), walked(module, x)
    valid = torch.arange(STEPS) < LENGTHS[:, None]
    assert far(found.states, truth[valid]) < ROUNDING
    assert far(found.ends, truth[torch.arange(SEQUENCES), LENGTHS - 1]) < ROUNDING
    assert far(found.mean_input, x[valid].double().mean(0)) < 1e-7
    for row, path in enumerate(found.trajectories):
        assert far(path[1:], hidden_part(found.cells, truth[row, : LENGTHS[row]])) < ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_trajectories_are_sequences_from_their_initial_state_on(family):
    module, x = make(family, batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    width = PROJECTED if family == "projected" else UNITS
    hidden = draw(1, SEQUENCES, width, seed=2)
    given = (hidden, draw(1, SEQUENCES, UNITS, seed=3)) if isinstance(module, nn.LSTM) else hidden
    found = visit_while(module, lambda: module(x, given))
    with torch.no_grad():
        outputs = module(x, given)[0]
    assert found.sequences == tuple((0, row) for row in range(SEQUENCES))
    for row, path in enumerate(found.trajectories):
        assert torch.equal(path[0].float(), hidden[0, row])
        assert torch.equal(path[1:].float(), outputs[row])


class Looped(nn.Module):
    """A loop over a single-step cell."""

    def __init__(self, cell, lengths=None):
        super().__init__()
        self.cell, self.lengths = cell, lengths

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


@pytest.mark.parametrize("family", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_loops_over_a_cell_are_sequences(family):
    torch.manual_seed(0)
    model, x = Looped(family(INPUTS, UNITS)), draw(SEQUENCES, STEPS, INPUTS)
    found, truth = visit_while(model, lambda: model(x)), walked(model.cell, x)
    assert far(found.states, truth.flatten(0, 1)) < ROUNDING
    assert far(found.ends, truth[:, -1]) < ROUNDING
    assert far(found.mean_input, x.double().mean((0, 1))) < 1e-7
    assert [len(path) for path in found.trajectories] == [STEPS + 1] * SEQUENCES


class Twice(nn.Module):
    """Two passages through one module in every batch."""

    def __init__(self, module):
        super().__init__()
        self.rnn = module

    def forward(self, x, y):
        return self.rnn(x), self.rnn(y)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_calls_of_all_batches_are_kept_each_with_its_number(family):
    model = Twice(make(family, 2, batch_first=True))
    xs = [draw(SEQUENCES, STEPS, INPUTS, seed=seed) for seed in range(4)]
    xs[1], xs[3] = xs[1][:, :5], xs[3][:2]

    def run():
        model(xs[0], xs[1])
        model(xs[2], xs[3])

    found = visit_while(model, run, most_states=10_000)
    truth = [walked(model.rnn, x) for x in xs]
    assert far(found.states, torch.cat([states.flatten(0, 1) for states in truth])) < ROUNDING
    assert far(found.ends, torch.cat([states[:, -1] for states in truth])) < ROUNDING
    everything = [(0, row) for row in range(SEQUENCES)] * 2 + [(1, row) for row in range(SEQUENCES)]
    assert len(found.trajectories) == MOST_TRAJECTORIES
    assert found.sequences == tuple(everything[:MOST_TRAJECTORIES])
    assert far(found.trajectories[SEQUENCES][1:], hidden_part(found.cells, truth[1][0])) < ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_followed_as_far_as_it_goes(family):
    module, x = make(family, batch_first=True).bfloat16(), draw(SEQUENCES, STEPS, INPUTS).bfloat16()
    found = visit_while(module, lambda: module(x))
    with torch.no_grad():
        outputs = module(x)[0]
    assert torch.equal(hidden_part(found.cells, found.states).bfloat16(), outputs.flatten(0, 1))
    assert 0 < found.rebuild_error < found.tolerance


@pytest.mark.parametrize("family", ["rnn", "gru"])
def test_states_that_are_not_finite_are_left_out(family):
    module, x = make(family, 2, batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    x[2, 4:] = torch.nan
    x[3, 0, 1] = torch.inf if family == "gru" else torch.nan
    found = visit_while(module, lambda: module(x))
    truth = walked(module, x)
    sound = truth.isfinite().all(2)
    assert far(found.states, truth[sound]) < ROUNDING
    assert far(found.ends, truth[:, -1][sound[:, -1]]) < ROUNDING
    assert far(found.mean_input, x[x.isfinite().all(2)].double().mean(0)) < 1e-7


def test_trajectories_that_are_not_finite_are_left_out():
    module, x = make("gru", batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    x[2, 4:] = torch.nan
    found = visit_while(module, lambda: module(x))
    assert all(path.isfinite().all() for path in found.trajectories)
    assert len(found.trajectories) == len(found.sequences) == SEQUENCES - 1
    assert (0, 2) not in found.sequences


def test_nothing_finite_is_said():
    module = make("gru")
    with pytest.raises(ValueError, match="no finite state was heard"):
        visit_while(module, lambda: module(torch.full((STEPS, SEQUENCES, INPUTS), torch.nan)))


def test_kept_states_are_spread_evenly():
    module, x = make("rnn", batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    everything = walked(module, x).flatten(0, 1)
    found = visit_while(module, lambda: module(x), most_states=13)
    rows = torch.cdist(found.states.float(), everything).argmin(1)
    assert far(found.states, everything[rows]) < ROUNDING
    assert rows[0] == 0
    assert rows[-1] == SEQUENCES * STEPS - 1
    gaps = rows.diff().float()
    assert gaps.max() - gaps.min() <= 1
    assert len(found.ends) == SEQUENCES


def test_spread_is_the_root_of_the_total_variance_of_hidden_states():
    module, x = make("lstm", 2, batch_first=True), draw(SEQUENCES, STEPS, INPUTS)
    found = visit_while(module, lambda: module(x))
    with torch.no_grad():
        upper, _ = module(x)
    parts = hidden_part(found.cells, found.states)
    assert far(parts[:, UNITS:], upper.flatten(0, 1)) < ROUNDING
    assert found.spread**2 == pytest.approx(float(parts.var(0, correction=0).sum()), rel=1e-12)


def test_spread_of_states_that_never_move_is_not_zero():
    module = make("rnn")
    torch.nn.init.zeros_(module.weight_hh_l0)
    assert 0 < visit_while(module, lambda: module(torch.zeros(STEPS, SEQUENCES, INPUTS))).spread < 1e-6
