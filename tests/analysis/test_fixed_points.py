"""Fixed points from given starts: closed forms first, then invariances, then what must be refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_points import find_fixed_points
from rnn_callbacks.cells import cells

from .known_dynamics import Linear, box, orthogonal, plain, training, turning, visited

EXACT = 1e-10  # roots are solved to 1e-11; isolated ones have Jacobians whose inverse is not far above 1
ROOT = 0.9575040240772688  # of tanh(2 h) = h
SPEED = 1e-20
FAMILIES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def same_set(found, truth, tolerance=EXACT):
    """Whether two arrays (N, D) hold the same rows in any order."""
    if found.shape != truth.shape:
        return False
    distances = np.abs(found[:, None] - truth[None]).max(2)
    return distances.min(0).max() <= tolerance and distances.min(1).max() <= tolerance


def spectrum_distance(one, other):
    """Largest distance between eigenvalues (D,) when each is given its nearest partner."""
    distances = np.abs(one[:, None] - other[None])
    return max(distances.min(0).max(), distances.min(1).max())


def test_linear_cell_rests_at_its_known_point_with_the_spectrum_of_its_weights():
    weight = 0.9 * orthogonal(5) @ torch.diag(torch.tensor([0.9, 0.5, -0.7, 0.2, 1.5])).double()
    bias, of_input = torch.arange(5).double() - 2, orthogonal(5)[:, :3]
    x = torch.tensor([0.5, -1.0, 2.0]).double()
    found = find_fixed_points(Linear(weight, bias, of_input), box(7, 5), x)
    truth = torch.linalg.solve(torch.eye(5) - weight, bias + of_input @ x)
    assert found.converged.all()
    assert np.abs(found.states - truth.numpy()).max() < EXACT
    assert spectrum_distance(found.eigenvalues[0], np.linalg.eigvals(weight.numpy())) < EXACT
    assert (found.index == np.sign(np.linalg.det(np.eye(5) - weight.numpy()))).all()


def test_relu_cell_where_all_units_are_on_is_linear():
    weight, bias = 0.3 * orthogonal(5).abs(), torch.ones(5).double()
    found = find_fixed_points(plain(weight, bias, nonlinearity="relu"), box(7, 5))
    truth = torch.linalg.solve(torch.eye(5) - weight, bias)
    assert found.converged.all()
    assert np.abs(found.states - truth.numpy()).max() < EXACT
    assert spectrum_distance(found.eigenvalues[3], np.linalg.eigvals(weight.numpy())) < EXACT


def test_far_away_points_of_an_unbounded_cell_are_reached():
    found = find_fixed_points(plain([[0.99]], [10.0], nonlinearity="relu"), box(3, 1).abs())
    assert np.abs(found.states - 1000).max() < 1e-8  # residual / (1 - 0.99)
    assert found.converged.all()


def test_doubled_tanh_rests_unstable_at_zero_and_stable_beside_it():
    found = find_fixed_points(plain([[2.0]]), box(64, 1)).unique()
    assert same_set(found.states, np.array([[-ROOT], [0.0], [ROOT]]))
    assert found.kind.tolist() == ["attractor", "attractor", "repeller"]
    slope = 2 * (1 - ROOT**2)
    assert np.abs(found.eigenvalues[:, 0] - [slope, slope, 2.0]).max() < EXACT
    assert found.index.tolist() == [1, 1, -1]
    assert np.abs(found.timescales[:, 0] + 1 / np.log([slope, slope, 2.0])).max() < EXACT


def line_of(direction):
    """A relu cell at rest on every positive multiple of a direction."""
    return plain(torch.outer(direction, direction) / direction.square().sum(), nonlinearity="relu")


@pytest.mark.parametrize("direction", [
    torch.ones(4).double(),  # its weights are exact, and exactly singular
    torch.tensor([0.3, 1.1, 0.7, 0.2, 0.9]).double(),
], ids=["exact", "rounded"])  # fmt: skip
def test_relu_line_attractor_is_found_all_along_and_none_of_it_is_isolated(direction):
    found = find_fixed_points(line_of(direction), box(64, len(direction)).abs())
    assert found.converged.all()
    assert found.degenerate.all()
    assert (found.index == 0).all()
    direction = (direction / direction.norm()).numpy()
    along = found.states @ direction
    assert np.abs(found.states - along[:, None] * direction).max() < EXACT
    assert len(found.unique()) > 8  # they end along the line, and not all where it begins


def test_rotation_with_gain_above_one_has_one_repeller():
    found = find_fixed_points(plain(1.3 * turning(0.7)), box(64, 2)).unique()
    assert found.kind.tolist() == ["repeller"]
    assert found.index.tolist() == [1]
    assert np.abs(found.states).max() < EXACT
    assert np.abs(found.periods - 2 * math.pi / 0.7).max() < EXACT
    assert np.abs(found.timescales + 1 / math.log(1.3)).max() < EXACT


def test_timescales_and_periods_of_modes_are_the_known_ones():
    weight = torch.zeros(5, 5, dtype=torch.float64)
    weight[:2, :2] = math.exp(-1 / 30) * turning(2 * math.pi / 12)
    weight[2:, 2:] = torch.diag(torch.tensor([math.exp(-1 / 7), -math.exp(-1 / 3), 0.0], dtype=torch.float64))
    found = find_fixed_points(plain(weight), box(3, 5))
    assert np.abs(found.timescales - [30, 30, 7, 3, 0]).max() < 1e-7  # 30 steps: an error in lambda counts 900-fold
    assert np.abs(found.periods[:, [0, 1, 3]] - [12, 12, 2]).max() < EXACT
    assert np.isinf(found.periods[:, 2]).all()


def test_a_mode_that_neither_falls_nor_grows_takes_infinitely_long():
    found = find_fixed_points(
        Linear(torch.diag(torch.tensor([-1.0, 0.5])).double(), torch.zeros(2).double()), box(3, 2)
    )
    assert (found.timescales[:, 0] == np.inf).all()
    assert (found.unstable == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_start_gives_its_row_in_order(family):
    cell = cells(training(family)[-1].rnn)[0]
    starts = visited(family)[::5][:97]
    together = find_fixed_points(cell, starts)
    assert len(together) == 97
    for row in range(0, 97, 12):
        alone = find_fixed_points(cell, starts[row : row + 1])
        assert alone.converged == together.converged[row]
        assert np.abs(alone.states - together.states[row]).max() < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_points_of_a_trained_network_rest_in_the_module(family):
    model = training(family)[-1]
    found = find_fixed_points(cells(model.rnn)[0], visited(family)[:256]).unique()
    assert len(found) >= 8
    assert found.speed.max() <= SPEED
    state = torch.tensor(found.states)[None].float()
    held = tuple(part.contiguous() for part in state.split(16, dim=2))
    with torch.no_grad():
        out, _ = model.rnn(torch.zeros(len(found), 1, 3), held if family == "lstm" else held[0])
    assert (out[:, 0] - held[0][0]).abs().max() < 2e-6  # float32, sums of 16 terms of size 1


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_units_have_permuted_points(family):
    module, units = training(family)[-1].rnn, 16
    order = torch.randperm(units, generator=torch.Generator().manual_seed(0))
    twin = FAMILIES[family](3, units)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            rows = torch.cat([part[order] for part in weight.split(units)])
            getattr(twin, name).copy_(rows[:, order] if "weight_hh" in name else rows)
    starts = visited(family)[::7][:64]
    ours = find_fixed_points(cells(module)[0], starts).unique()
    theirs = find_fixed_points(cells(twin)[0], starts[:, order]).unique()
    whole = torch.cat([order, units + order]) if family == "lstm" else order
    assert same_set(theirs.states, ours.states[:, whole.numpy()])
    assert np.abs(np.abs(np.sort(ours.eigenvalues)) - np.abs(np.sort(theirs.eigenvalues))).max() < 1e-6


def test_rotated_linear_cell_has_rotated_points_and_the_same_spectrum():
    weight, bias = 0.8 * orthogonal(5, seed=1) + 0.3 * torch.diag(torch.arange(5)).double(), torch.arange(5).double()
    turn = orthogonal(5, seed=2)
    ours = find_fixed_points(Linear(weight, bias), box(3, 5))
    theirs = find_fixed_points(Linear(turn @ weight @ turn.T, turn @ bias), box(3, 5) @ turn.T)
    assert np.abs(theirs.states - ours.states @ turn.numpy().T).max() < EXACT
    assert spectrum_distance(ours.eigenvalues[0], theirs.eigenvalues[0]) < EXACT


@pytest.mark.parametrize("seed", range(3))
def test_closed_update_gates_make_no_phantoms(seed):
    torch.manual_seed(seed)
    module = nn.GRU(3, 7).double()
    with torch.no_grad():
        module.weight_hh_l0.mul_(4)
        module.bias_ih_l0[7:14] = 5.0
    found = find_fixed_points(cells(module)[0], box(256, 7, size=10.0, seed=seed))
    assert found.converged.any()
    assert np.abs(found.states[found.converged]).max() <= 1
    with torch.no_grad():  # the trap is set: there the module hardly moves states that are no fixed points
        starts = box(256, 7, size=10.0, seed=seed)
        moved = (module(torch.zeros(1, 256, 3).double(), starts[None])[1][0] - starts).abs().amax(1)
        assert moved.min() < 1e-3 * starts.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_of_every_precision_are_solved_in_float64(family, dtype):
    torch.manual_seed(0)
    module = FAMILIES[family](3, 5).to(dtype)
    found = find_fixed_points(cells(module)[0], box(7, 5).to(dtype), torch.ones(3, dtype=dtype))
    assert found.converged.all()
    assert found.speed.max() <= SPEED


def test_one_unit_is_enough():
    for layer in (*FAMILIES.values(), lambda *sizes: nn.LSTM(*sizes[:-1], 2, proj_size=1)):
        found = find_fixed_points(cells(layer(1, 1))[0], torch.rand(3, 1))
        assert found.converged.all()


def test_512_units_are_solved():
    torch.manual_seed(0)
    found = find_fixed_points(cells(nn.GRU(3, 512))[0], torch.rand(2, 512))
    assert found.converged.all()
    assert found.speed.max() <= SPEED


def test_unreached_states_are_rows_that_did_not_converge():
    found = find_fixed_points(plain([[2.0]], [1.0], nonlinearity="relu"), box(5, 1))
    assert len(found) == 5
    assert not found.converged.any()
    assert (found.index == 0).all()
    assert np.isnan(found.eigenvalues).all()
    assert (found.kind == "").all()
    assert len(found.unique()) == 0


def test_no_time_gives_rows_that_did_not_converge():
    found = find_fixed_points(plain([[2.0]]), box(5, 1), max_seconds=0)
    assert len(found) == 5
    assert not found.converged.any()


def test_unique_points_are_the_converged_ones_without_copies():
    found = find_fixed_points(plain([[2.0]]), box(64, 1))
    kept = found.unique()
    distances = np.abs(kept.states - kept.states.T) + np.eye(len(kept))
    assert distances.min() > 0.5
    assert same_set(kept.states, np.unique(found.states[found.converged].round(9), axis=0), 1e-8)
    assert np.array_equal(np.sort(kept.unstable), kept.unstable)


def test_user_cell_under_inference_mode_is_differentiated():
    cell = Linear(0.5 * orthogonal(3), torch.ones(3).double())
    truth = find_fixed_points(cell, box(5, 3))
    with torch.inference_mode():  # Lightning's, while it validates
        found = find_fixed_points(cell, box(5, 3))
    assert np.abs(found.states - truth.states).max() < EXACT


def test_inputs_are_never_written_to():
    module = nn.LSTM(3, 5)
    starts, x = torch.rand(7, 10), torch.rand(3)
    before = [value.detach().clone() for value in (starts, x, *module.parameters())]
    find_fixed_points(cells(module)[0], starts, x)
    assert all(torch.equal(a, b) for a, b in zip(before, (starts, x, *module.parameters()), strict=True))


@pytest.mark.parametrize("wrong, message", [
    ({"starts": torch.rand(7)}, r"starts must be \(N, 8\) or \(N, 3\), got shape \(7,\)"),
    ({"starts": torch.rand(7, 5)}, r"starts must be \(N, 8\) or \(N, 3\), got shape \(7, 5\)"),
    ({"starts": torch.rand(0, 3)}, "starts holds no state to start from"),
    ({"starts": torch.full((2, 3), torch.nan)}, "starts must be finite, got NaN or infinity"),
    ({"inputs": torch.rand(3)}, r"inputs must be \(2,\), one held vector, got shape \(3,\)"),
    ({"inputs": torch.rand(1, 2)}, r"inputs must be \(2,\), one held vector, got shape \(1, 2\)"),
    ({"inputs": torch.tensor([0.0, torch.inf])}, "weights must be finite, got NaN or infinity"),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused(wrong, message):
    cell = cells(nn.LSTM(2, 5, proj_size=3))[0]
    with pytest.raises(ValueError, match=message):
        find_fixed_points(cell, **({"starts": torch.rand(7, 3)} | wrong))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_finite_are_refused(family):
    module = FAMILIES[family](3, 5)
    module.weight_hh_l0.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match="weights must be finite, got NaN or infinity"):
        find_fixed_points(cells(module)[0], torch.rand(7, 5))


def test_user_cell_whose_steps_are_not_finite_is_refused():
    weight = torch.tensor([[torch.nan, 0.0], [0.0, 0.5]])
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
        find_fixed_points(Linear(weight, torch.ones(2)), torch.rand(7, 2))
