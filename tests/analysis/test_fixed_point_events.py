"""What is told of two looks, from eigenvalues written down by hand; modes; identities that only their index decides."""

import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_events import tell
from rnn_callbacks.analysis.fixed_point_history import begin, go_on
from rnn_callbacks.analysis.fixed_point_result import FixedPoints
from rnn_callbacks.analysis.fixed_point_search import find_all_fixed_points, search
from rnn_callbacks.analysis.fixed_points import find_modes
from rnn_callbacks.cells import cells


def points_with(*spectra):
    """Points that are only their eigenvalues."""
    rows = np.array([sorted(row, key=abs, reverse=True) for row in spectra], dtype=np.complex128)
    count = len(rows)
    return FixedPoints(
        inputs=np.zeros(1), states=np.zeros((count, rows.shape[1])), converged=np.ones(count, dtype=bool),
        phantom=np.zeros(count, dtype=bool), speed=np.zeros(count), index=np.ones(count, dtype=np.int64),
        eigenvalues=rows,
    )  # fmt: skip


def told(old, new):
    before, after = points_with(old), points_with(new)
    number = np.array([7])
    return tell(number, before.unstable, before.eigenvalues, after, number, np.array([0]), set(), np.array([], int))


PAIR = 0.6 + 0.6j  # modulus 0.85
OUTSIDE = 0.9 + 0.9j  # modulus 1.27
CROSSINGS = {
    "+1": ([0.9, 0.5, 0.1], [1.1, 0.5, 0.1]),
    "-1": ([-0.9, 0.5, 0.1], [-1.1, 0.5, 0.1]),
    "complex pair": ([PAIR, PAIR.conjugate(), 0.1], [OUTSIDE, OUTSIDE.conjugate(), 0.1]),
    "+1 coming back": ([1.1, 0.5, 0.1], [0.9, 0.5, 0.1]),
    # The index turns with a real eigenvalue at +1 alone, so that is the one to name.
    "+1 while a pair comes in": ([OUTSIDE, OUTSIDE.conjugate(), 0.9], [PAIR, PAIR.conjugate(), 1.1]),
    "-1 while a pair comes in": ([OUTSIDE, OUTSIDE.conjugate(), -0.9], [PAIR, PAIR.conjugate(), -1.1]),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_the_crossing_is_named_by_the_eigenvalue_that_crossed(name):
    (event,) = told(*CROSSINGS[name])
    assert event.what == "stability"
    assert event.ids == (7,)
    assert event.crossing == name.split(" while")[0].removesuffix(" coming back")


def test_words_say_what_happened_to_how_many():
    points = points_with([0.5, 0.1], [0.4, 0.1], [1.5, 0.1], [0.3, 0.1])
    ids, old = np.array([4, 5, 6, 3]), np.array([-1, -1, -1, 0])
    spectra = points_with([0.3, 0.1], [0.2, 0.1]).eigenvalues
    events = tell(np.array([3, 2]), np.array([0, 0]), spectra, points, ids, old, {1}, np.array([1]))
    assert [(event.what, event.ids, event.words) for event in events] == [
        ("birth", (4, 6), "1 attractor, 1 saddle appeared"),
        ("found late", (5,), "1 attractor had been overlooked before"),
        ("death", (2,), "1 point vanished"),
    ]


def one_unit(weight, bias):
    module = nn.RNN(1, 1).double()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(module.weight_hh_l0, weight)
    nn.init.constant_(module.bias_hh_l0, bias)
    return [equation_of(cell) for cell in cells(module)]


POOL = [torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]]
NOTHING = torch.zeros(1, dtype=torch.float64)


def test_near_a_pitchfork_the_point_goes_on_along_its_own_branch():
    # With a small bias the branch bends upwards and two new points appear below it: Newton's method alone, from 0.02,
    # would end on the middle one of them, which is unstable.
    first = one_unit(0.5, 0.01)
    history, _ = begin(first, NOTHING, search(first, NOTHING, POOL))
    _, chapter = go_on(history, one_unit(2.0, 0.01), NOTHING, POOL)
    states = chapter.skeleton.points.states[:, 0]
    assert sorted(states) == pytest.approx([-0.9565, -0.01, 0.9584], abs=2e-3)
    assert chapter.ids[states.argmax()] == 0
    assert chapter.count("stability") == 0
    assert chapter.count("birth") == 2


def test_a_point_has_moved_as_far_as_its_equation_says():
    first = one_unit(2.0, 0.0)
    history, _ = begin(first, NOTHING, search(first, NOTHING, POOL))
    _, chapter = go_on(history, one_unit(1.9, 0.0), NOTHING, POOL)
    far = float(chapter.moved.max())
    grid = np.linspace(0.5, 1, 2_000_001)  # a second road: the roots by tabulation, to 3e-7
    roots = [grid[np.abs(np.tanh(w * grid) - grid).argmin()] for w in (2.0, 1.9)]
    assert far == pytest.approx(roots[0] - roots[1], abs=1e-6)
    assert sorted(chapter.moved)[0] == pytest.approx(0, abs=1e-12)  # the middle stays where it is


def test_starts_that_closed_gates_hold_in_place_are_counted_and_not_believed():
    # Weights so large that Newton's method loses many starts, and an update gate that lets nothing new in: F(h) - h is
    # tiny everywhere, and a finder that trusts it would call every start a fixed point.
    torch.manual_seed(1)
    module = nn.GRU(1, 31, batch_first=True).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(25.0)
        module.bias_hh_l0[31:62] = 400.0
    (cell,) = cells(module)
    starts = 2 * torch.rand(64, 31, dtype=torch.float64) - 1
    moved = (cell.step(torch.zeros(64, 1, dtype=torch.float64), starts) - starts).square().sum(1) / 2
    assert float(moved.max()) < 1e-20
    found = find_all_fixed_points(cell, starts)
    assert found.phantoms > 0
    residual = torch.as_tensor(found.points.states)
    new = module(torch.zeros(1, 1, 1, dtype=torch.float64))  # the module itself runs on such weights
    assert bool(new[0].isfinite().all())
    gates = residual @ module.weight_hh_l0.T + module.bias_hh_l0 + module.bias_ih_l0
    reset, recurrent = torch.sigmoid(gates[:, :31]), gates[:, 62:] - module.bias_ih_l0[62:]
    candidate = torch.tanh(module.bias_ih_l0[62:] + reset * recurrent)
    assert float((candidate - residual).detach().abs().max()) < 1e-9  # points are roots of n(h) = h, not merely slow


@pytest.mark.parametrize("family", [nn.RNN, nn.LSTM, nn.GRU])
def test_modes_diagonalise_the_jacobian_and_the_input_acts_as_differences_say(family):
    torch.manual_seed(3)
    module = family(2, 5, batch_first=True).double()
    (cell,) = cells(module)
    points = find_all_fixed_points(cell, torch.rand(29, 5, dtype=torch.float64)).points
    modes = find_modes(cell, points)
    np.testing.assert_allclose(np.abs(modes.eigenvalues), np.abs(points.eigenvalues), atol=1e-10)
    identity = np.eye(points.states.shape[1])
    state, x = torch.tensor(points.states), torch.zeros(len(points), 2, dtype=torch.float64)
    with torch.no_grad():
        for row in range(len(points)):
            np.testing.assert_allclose(modes.left[row] @ modes.right[row], identity, atol=1e-8)
            jacobian = (modes.right[row] * modes.eigenvalues[row]) @ modes.left[row]
            small = 1e-6
            for column, direction in enumerate(torch.eye(len(identity), dtype=torch.float64)):
                there, back = (cell.step(x[:1], state[row : row + 1] + s * small * direction) for s in (1, -1))
                slope = ((there - back) / (2 * small)).numpy()[0]
                np.testing.assert_allclose(jacobian[:, column].real, slope, atol=1e-8)
            for column, direction in enumerate(torch.eye(2, dtype=torch.float64)):
                there, back = (cell.step(x[:1] + s * small * direction, state[row : row + 1]) for s in (1, -1))
                slope = ((there - back) / (2 * small)).numpy()[0]
                np.testing.assert_allclose(modes.input_jacobian[row, :, column], slope, atol=1e-8)


def test_modes_of_what_did_not_converge_are_refused():
    (cell,) = cells(nn.GRU(2, 5).double())
    points = points_with([0.5] * 5)
    with pytest.raises(ValueError, match=r"points must be converged states \(M, 5\), got shape \(1, 4\)"):
        find_modes(cell, points_with([0.5] * 4))
    unsure = FixedPoints(**{**vars(points), "converged": np.array([False])})
    with pytest.raises(ValueError, match=r"1 not converged; take \.unique"):
        find_modes(cell, unsure)
