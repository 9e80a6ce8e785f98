import numpy as np
import pytest
import torch
from torch import nn

from rnn_callbacks.analysis.gate_phases import GatePhases
from rnn_callbacks.analysis.gates import gate_statistics
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.gates import MOST_ROWS, draw_gates
from rnn_callbacks.rebuild import traces

UNITS, STEPS = 5, 7


def look(module, x=None):
    torch.manual_seed(0)
    with Recorder(module) as recorder, torch.no_grad():
        module(torch.randn(STEPS, 11, 3) if x is None else x)
    (call,) = recorder.tapes[type(module).__name__.lower()].calls
    return [gate_statistics([trace]) for trace in traces(call)]


def panels(figure):
    """Axes by row, colour bars left out."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_lines_are_the_profile_of_each_gate():
    (statistics,) = look(nn.GRU(3, UNITS))
    _, over_steps, _ = panels(draw_gates("a.rnn", [statistics]))
    lines = over_steps.get_lines()
    assert len(lines) == 3
    for line, profile in zip(lines, statistics.profile, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, STEPS + 1))
        np.testing.assert_allclose(line.get_ydata(), profile)


def test_the_distribution_is_in_percent_of_steps_and_units():
    (statistics,) = look(nn.LSTM(3, UNITS))
    distribution = panels(draw_gates("a.rnn", [statistics]))[0]
    stairs = [patch for patch in distribution.patches if hasattr(patch, "get_data")]
    assert len(stairs) == 4
    for patch, histogram in zip(stairs, statistics.histogram, strict=True):
        assert patch.get_data().values.sum() == pytest.approx(100)
        np.testing.assert_allclose(patch.get_data().values, 100 * histogram.sum(0) / histogram.sum())


@pytest.mark.parametrize(("family", "gate", "kept"), [(nn.LSTM, 1, lambda f: f), (nn.GRU, 1, lambda u: 1 - u)])
def test_the_heat_map_shows_what_is_kept_with_the_longest_memory_on_top(family, gate, kept):
    module = family(3, UNITS)
    torch.nn.init.normal_(module.bias_ih_l0, std=2.0)
    (statistics,) = look(module)
    (image,) = panels(draw_gates("a.rnn", [statistics]))[2].get_images()
    order = np.argsort(statistics.timescale)
    np.testing.assert_allclose(image.get_array(), kept(statistics.unit_profile[gate])[order], rtol=1e-6)
    assert image.get_clim() == (0, 1)
    assert image.origin == "lower"


def test_an_lstm_shows_its_cell_state_beside_its_hidden_state():
    (statistics,) = look(nn.LSTM(3, UNITS))
    cell, hidden = panels(draw_gates("a.rnn", [statistics]))[3].get_lines()
    np.testing.assert_allclose(cell.get_ydata(), statistics.state_profile[2])
    np.testing.assert_allclose(hidden.get_ydata(), statistics.state_profile[0])


def test_bounded_quantities_have_fixed_limits():
    (statistics,) = look(nn.LSTM(3, UNITS))
    distribution, over_steps, _, _ = panels(draw_gates("a.rnn", [statistics]))
    assert distribution.get_xlim() == (0, 1)
    assert over_steps.get_ylim() == (0, 1)


def test_a_deep_stack_shows_its_first_cells_and_says_so():
    statistics = look(nn.RNN(3, UNITS, MOST_ROWS + 2))
    figure = draw_gates("a.rnn", statistics, title="epoch 3")
    assert len(panels(figure)) == 3 * MOST_ROWS
    assert figure.get_suptitle() == f"a.rnn: epoch 3, first {MOST_ROWS} of {MOST_ROWS + 2} cells"


def test_a_cell_without_a_finite_step_is_said():
    module = nn.GRU(3, UNITS)
    torch.nn.init.constant_(module.weight_ih_l0, torch.nan)
    figure = draw_gates("a.rnn", look(module))
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"no finite step heard"}


def test_phases_are_bars_of_the_mean_gate_labelled_with_the_share_they_explain():
    (statistics,) = look(nn.GRU(3, UNITS))
    mean = np.array([0.25, 0.5])[:, None, None] * np.ones((2, 3, UNITS))
    eta = np.ones((3, UNITS))
    phases = GatePhases("l0", statistics.parts, np.array([3, 4]), mean, eta, np.array([0.9, 0.5, 0.01]))
    axes = panels(draw_gates("a.rnn", [statistics], phases=[phases]))[-1]
    assert sorted(bar.get_height() for bar in axes.patches) == pytest.approx([0.25] * 3 + [0.5] * 3)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["reset 90%", "update 50%", "new 1%"]


def test_each_row_shows_the_phases_of_its_own_cell():
    first, second = look(nn.GRU(3, UNITS, bidirectional=True))
    shape = (2, 3, UNITS)
    none = GatePhases("l0", first.parts, np.array([0, 0]), np.zeros(shape), np.zeros(shape[1:]), np.zeros(3))
    some = GatePhases(
        "l0_reverse", first.parts, np.array([3, 4]), np.full(shape, 0.25), np.zeros(shape[1:]), np.zeros(3)
    )
    upper, lower = panels(draw_gates("a.rnn", [first, second], phases=[none, some]))[3::4]
    assert [text.get_text() for text in upper.texts] == ["no labelled step heard"]
    assert [bar.get_height() for bar in lower.patches] == [0.25] * 6
