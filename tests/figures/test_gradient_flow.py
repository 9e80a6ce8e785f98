"""The pictures show the numbers they are given, in every situation, without a warning (warnings are errors here)."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib import rcParams
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from rnn_callbacks.analysis.adjoint import total_gradients
from rnn_callbacks.analysis.gradient_findings import CellFlow, StepSizes
from rnn_callbacks.analysis.gradient_flow import DEEPEST, LONGEST, gradient_flow
from rnn_callbacks.analysis.gradient_norms import ABSENT, GradientNorms
from rnn_callbacks.analysis.gradient_sizes import LOWEST, gradient_sizes
from rnn_callbacks.analysis.lyapunov import LyapunovSpectrum, lyapunov_exponents
from rnn_callbacks.analysis.spectra import recurrent_spectra
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.gradient_flow import MOST_LINES, MOST_ROWS, draw_gradient_flow, draw_gradient_norms
from rnn_callbacks.figures.style import GATE_COLOURS, logarithmic

INPUTS, UNITS, STEPS, SEQUENCES = 3, 5, 23, 2
UNKNOWN = "unknown: no two steps between which\nthe state is handed on as it is,\nor no loss after the first"


def look(module, *, steps=STEPS, loss=torch.sum):
    """What one backward pass shows of every cell."""
    x = torch.randn(steps, SEQUENCES, INPUTS, generator=torch.Generator().manual_seed(1))
    with Recorder(module, gradients=True) as recorder:
        loss(module(x)[0]).backward()
    (call,) = recorder.tapes[type(module).__name__.lower()].calls
    return [
        CellFlow(gradient_flow([part]), lyapunov_exponents([part.trace]), recurrent_spectra(part.trace.cell))
        for part in total_gradients(call)
    ]


def make(family=nn.GRU, *sizes, **options):
    torch.manual_seed(0)
    return family(INPUTS, UNITS, *sizes, **options)


def one(found, **changes):
    """The same cell with other numbers."""
    return dataclasses.replace(found, flow=dataclasses.replace(found.flow, **changes))


def rendered(figure):
    """A figure is only known to be drawable once it is drawn."""
    figure.draw_without_rendering()
    return figure


def drawn(*found, **options):
    return draw_gradient_flow("a.rnn", found, **options)


def words(axes):
    return " ".join(text.get_text() for text in axes.texts)


def line(axes, label):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def test_where_nothing_is_left_one_step_before_the_panel_says_so():
    (found,) = look(make())
    cut = drawn(one(found, credit=np.array([0.0, DEEPEST, DEEPEST]), horizon=0.0))
    assert "nothing is left one step before" in words(cut.axes[0])
    rendered(cut)
    assert "nothing is left" not in words(drawn(found).axes[0])


@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])
def test_credit_is_drawn_by_distance_with_its_horizon(family):
    (found,) = look(make(family))
    axes = drawn(found, title="epoch 3").axes[0]
    share = axes.get_lines()[0]
    shown = found.flow.credit >= np.log(1e-4) - 2.5
    np.testing.assert_array_equal(share.get_xdata(), np.flatnonzero(shown))
    np.testing.assert_allclose(share.get_ydata(), np.exp(found.flow.credit[shown]))
    line = np.log(axes.get_lines()[1].get_ydata())  # the fit, whose slope the horizon is
    np.testing.assert_allclose(np.diff(line), -1 / found.flow.horizon, rtol=1e-6)
    assert 2 <= len(line) <= shown.sum()
    assert axes.get_title(loc="left") == f"l0: gradient left (horizon: {found.flow.horizon:.1f} steps)"
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == pytest.approx((1e-4 * np.exp(-2.5), 3.0))
    assert axes.get_xlim() == (0, STEPS - 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "time steps back",
        "share of a step's gradient left",
    )


@pytest.mark.parametrize(
    ("horizon", "said"), [(0.0, "0.0 steps"), (123.44, "123.4 steps"), (10 * STEPS, "endless"), (LONGEST, "endless")]
)
def test_horizon_is_said_in_steps(horizon, said):
    axes = drawn(one(look(make())[0], horizon=horizon)).axes[0]
    assert axes.get_title(loc="left").endswith(f"(horizon: {said})")


def test_total_gradient_is_drawn_by_step_from_one_and_of_an_lstm_for_both_states():
    (found,) = look(make(nn.LSTM))
    axes = drawn(found).axes[1]
    for label, values in (("|dL/dh|, hidden state", found.flow.hidden), ("|dL/dc|, cell state", found.flow.memory)):
        np.testing.assert_array_equal(line(axes, label).get_xdata(), np.arange(1, STEPS + 1))
        np.testing.assert_allclose(line(axes, label).get_ydata(), values)
    assert axes.get_xlim() == (1, STEPS)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("time step", "L2 norm", "log")
    low, high = axes.get_ylim()
    assert low < min(found.flow.hidden.min(), found.flow.memory.min())
    assert high > max(found.flow.hidden.max(), found.flow.memory.max())
    (gru,) = look(make(nn.GRU))
    assert [one.get_label() for one in drawn(gru).axes[1].get_lines()] == ["|dL/dh|, hidden state"]


def test_flat_gradient_looks_flat():
    (found,) = look(make())
    low, high = drawn(one(found, hidden=np.linspace(1.0, 1.1, STEPS))).axes[1].get_ylim()
    assert high / low > 30


def test_share_of_each_step_in_training_the_matrix_is_in_percent():
    (found,) = look(make(nn.RNN))
    axes = drawn(found).axes[2]
    (steps,) = axes.get_lines()
    np.testing.assert_array_equal(steps.get_xdata(), np.arange(1, STEPS + 1))
    np.testing.assert_allclose(steps.get_ydata(), 100 * found.flow.contribution / found.flow.contribution.sum())
    assert steps.get_ydata().sum() == pytest.approx(100)
    early = found.flow.contribution[: STEPS // 2].sum() / found.flow.contribution.sum()
    assert axes.get_title(loc="left") == f"steps that train (first half: {early:.0%})"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time step", "% of their gradient")
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM, nn.RNN])
def test_eigenvalues_lie_in_the_plane_with_the_colour_of_their_gate_and_the_exponent_in_words(family):
    (found,) = look(make(family))
    axes = drawn(found).axes[3]
    assert len(axes.collections) == len(found.spectra.parts)
    for points, part, values in zip(axes.collections, found.spectra.parts, found.spectra.eigenvalues, strict=True):
        np.testing.assert_allclose(points.get_offsets(), np.stack([values.real, values.imag], 1))
        assert points.get_label() == part
        assert to_hex(points.get_facecolor()[0]) == GATE_COLOURS[part].lower()
    (circle,) = axes.get_lines()
    np.testing.assert_allclose(np.hypot(*circle.get_data()), 1.0)
    assert words(axes) == f"Lyapunov {found.lyapunov.exponents[0]:+.3f} per step; grey: unit circle"
    assert axes.get_aspect() == 1.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("real part", "imaginary part")


def test_eigenvalues_far_outside_are_counted_and_leave_the_circle_large():
    module = make(nn.RNN)
    with torch.no_grad():
        module.weight_hh_l0[:2] = 7.0 * torch.eye(UNITS)[:2]
    axes = drawn(*look(module)).axes[3]
    assert axes.get_ylim()[0] == pytest.approx(-1.3 * 2.2)
    assert words(axes).endswith("; 2 lie outside")


def test_cell_of_the_user_shows_its_exponent_in_place_of_eigenvalues_and_of_what_trains_it():
    (found,) = look(make())
    own = dataclasses.replace(one(found, contribution=np.zeros(STEPS)), spectra=None)
    figure = drawn(own)
    assert words(figure.axes[2]).startswith("weights of this cell are not known")
    assert f"largest Lyapunov exponent {found.lyapunov.exponents[0]:+.3f} per step" in words(figure.axes[3])


def test_one_cell_is_a_square_and_more_are_rows():
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in drawn(*look(make())).axes] == [(2, 2)] * 4
    found = look(make(nn.GRU, bidirectional=True))
    figure = drawn(*found, title="epoch 3")
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in figure.axes] == [(2, 4)] * 8
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes[::4]] == ["l0", "l0_reverse"]
    assert figure.get_suptitle() == "a.rnn: epoch 3"


def test_deep_stack_shows_its_first_cells_and_says_so():
    figure = drawn(*look(make(nn.RNN, MOST_ROWS + 1)), title="epoch 3")
    assert len(figure.axes) == 4 * MOST_ROWS
    assert figure.get_suptitle() == f"a.rnn: epoch 3, first {MOST_ROWS} of {MOST_ROWS + 1} cells"


def test_sequences_of_one_step_have_no_credit_to_show():
    (found,) = look(make(), steps=1)
    figure = rendered(drawn(found))
    assert words(figure.axes[0]) == UNKNOWN
    assert figure.axes[1].get_xlim() == (1, 2)


def test_gradient_of_zero_is_said():
    (found,) = look(make(nn.LSTM), loss=lambda outputs: 0.0 * outputs.sum())
    figure = rendered(drawn(found))
    assert words(figure.axes[0]) == UNKNOWN
    assert words(figure.axes[1]) == "no gradient came back"
    assert words(figure.axes[2]) == "weights of this cell are not known,\nor nothing trains them"


def test_loss_that_is_felt_at_the_first_step_only_is_drawn():
    (found,) = look(make(), loss=lambda outputs: outputs[0].sum())
    figure = rendered(drawn(found))
    assert words(figure.axes[0]) == UNKNOWN
    assert line(figure.axes[1], "|dL/dh|, hidden state").get_xdata().tolist() == [1]


def test_network_without_recurrence_is_drawn():
    module = make(nn.RNN)
    torch.nn.init.zeros_(module.weight_hh_l0)
    (found,) = look(module, loss=lambda outputs: outputs[-1].sum())
    assert found.flow.credit[1] == DEEPEST
    figure = rendered(drawn(found))
    assert figure.axes[0].get_title(loc="left").endswith("(horizon: 0.0 steps)")
    assert words(figure.axes[3]).startswith("Lyapunov -100.000 per step")


def test_credit_that_explodes_is_drawn_to_its_top():
    (found,) = look(make())
    credit = np.linspace(0.0, 200.0, STEPS)
    axes = rendered(drawn(one(found, credit=credit, horizon=LONGEST))).axes[0]
    assert axes.get_ylim()[1] == pytest.approx(3 * np.exp(200.0))
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), np.exp(credit))


def test_credit_beyond_the_largest_number_is_drawn():
    (found,) = look(make())
    rendered(drawn(one(found, credit=np.linspace(0.0, 762.0, STEPS))))  # 2^1100, as of 1100 doubling steps


def test_a_picture_leaves_the_users_settings_and_figures_alone():
    before = dict(rcParams)
    drawn(*look(make())).savefig(io.BytesIO())
    draw_gradient_norms(seen([[1.0, 2.0]])).savefig(io.BytesIO())
    assert dict(rcParams) == before
    assert plt.get_fignums() == []


# ---- steps -----------------------------------------------------------------------------------------------------------


def seen(norm, *, share=1.0, gradients=None, ratios=None, names=None):
    """Norms of n steps and P parameters, clipped to a share of themselves."""
    norm = np.array(norm, dtype=float)
    names = tuple(f"p{number}" for number in range(norm.shape[1])) if names is None else names
    clipped = np.where(norm == ABSENT, ABSENT, norm * np.broadcast_to(share, len(norm))[:, None])
    norms = GradientNorms(10 * np.arange(len(norm)) + 7, names, (), norm, clipped, np.empty((len(norm), 0)))
    sizes = gradient_sizes({"p0": torch.tensor([1.0, 0.0, -0.25])} if gradients is None else gradients)
    return StepSizes(norms, sizes, {"p0": 1e-3} if ratios is None else ratios)


def steps_of(found):
    return draw_gradient_norms(found, title="epoch 3")


def test_whole_gradient_is_drawn_before_and_after_clipping():
    figure = steps_of(seen([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]], share=[1.0, 0.5, 1.0]))
    axes = figure.axes[0]
    before, after = line(axes, "before clipping"), line(axes, "after clipping")
    assert before.get_xdata().tolist() == after.get_xdata().tolist() == [7, 17, 27]
    np.testing.assert_allclose(before.get_ydata(), [5.0, 10.0, 0.5])
    np.testing.assert_allclose(after.get_ydata(), [5.0, 5.0, 0.5])
    assert axes.get_ylim() == pytest.approx((0.25, 40.0))
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "optimizer step", "L2 norm")
    assert figure.get_suptitle() == "gradients of all parameters: epoch 3"


def test_nothing_is_said_of_clipping_where_nothing_was_clipped():
    assert [one.get_label() for one in steps_of(seen([[3.0], [4.0]])).axes[0].get_lines()] == ["before clipping"]


def test_steps_that_are_not_finite_are_gaps_marked_and_counted():
    axes = rendered(steps_of(seen([[1.0, 1.0], [np.nan, 1.0], [1.0, np.inf], [2.0, 2.0]]))).axes[0]
    assert axes.get_title(loc="left") == "whole gradient, not finite at 2 (dotted)"
    assert np.isnan(line(axes, "before clipping").get_ydata()).tolist() == [False, True, True, False]
    assert [list(mark.get_xdata()) for mark in axes.get_lines()[1:]] == [[17, 17], [27, 27]]


def test_lines_are_the_norms_of_parameters_recurrent_matrices_first_then_by_size():
    names = ("head.weight", "rnn.bias_hh_l0", "rnn.weight_hh_l0", "frozen.weight")
    axes = steps_of(seen([[5.0, 2.0, 0.1, ABSENT], [5.0, ABSENT, 0.2, ABSENT]], names=names)).axes[1]
    assert [one.get_label() for one in axes.get_lines()] == ["rnn.weight_hh_l0", "head.weight", "rnn.bias_hh_l0"]
    np.testing.assert_allclose(line(axes, "rnn.weight_hh_l0").get_ydata(), [0.1, 0.2])
    np.testing.assert_allclose(line(axes, "rnn.bias_hh_l0").get_ydata(), [2.0, np.nan])
    assert axes.get_ylabel() == "L2 norm before clipping"
    assert axes.get_ylim()[0] < 0.1
    assert axes.get_ylim()[1] > 5.0


def test_parameters_beyond_those_with_a_name_are_grey_and_counted():
    axes = steps_of(seen([np.arange(1.0, MOST_LINES + 4)])).axes[1]
    assert axes.get_title(loc="left") == "by parameter (3 more in grey)"
    greys = [one for one in axes.get_lines() if one.get_color() == "0.8"]
    assert sorted(one.get_ydata()[0] for one in greys) == [1.0, 2.0, 3.0]
    assert len(axes.get_legend().get_texts()) == MOST_LINES


def test_long_names_keep_their_end():
    name = "a.very.deep.module.of.the.users.weight_hh_l0"
    (text,) = steps_of(seen([[1.0]], names=(name,))).axes[1].get_legend().get_texts()
    assert text.get_text() == "..." + name[-25:]
    assert len(text.get_text()) == 28


def test_bars_are_the_share_of_elements_by_power_of_two():
    gradients = {"p0": torch.tensor([1.0, 1.5, -0.25, 0.0, 0.0]), "p1": torch.tensor([1e-40, np.nan, -np.inf])}
    axes = steps_of(seen([[1.0, 1.0]], gradients=gradients)).axes[2]
    two = math.log10(2.0)
    heights = {round((bar.get_x() + bar.get_width() / 2) / two - 0.5): bar.get_height() for bar in axes.patches}
    assert {exponent: height for exponent, height in heights.items() if height} == {0: 25.0, -2: 12.5}
    assert words(axes) == "25% exactly zero\n12.5% subnormal\n25.0% not finite"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("log10 |gradient element|", "% of elements")
    assert min(heights) > LOWEST


def test_updates_are_drawn_against_weights_recurrent_matrices_first():
    ratios = {"head.weight": 1e-2, "rnn.weight_hh_l0": 1e-4, "rnn.bias_hh_l0": 1e-3, "frozen": 0.0}
    axes = steps_of(seen([[1.0]], ratios=ratios)).axes[3]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rnn.weight_hh_l0", "head.weight", "rnn.bias_hh_l0"]
    places, top = axes.collections[-1].get_offsets(), axes.get_yticks()
    np.testing.assert_allclose(places[:, 0], [1e-4, 1e-2, 1e-3])
    assert (np.diff(top) < 0).all()  # the first on top
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((5e-5, 2e-2))


def test_most_updates_of_a_large_model_are_left_out_and_counted():
    axes = steps_of(seen([[1.0]], ratios={f"p{n}": 10.0 ** (-n) for n in range(17)})).axes[3]
    assert axes.get_title(loc="left") == "update against weight (12 of 17)"
    assert axes.get_xlim() == pytest.approx((5e-12, 2.0))


def test_steps_without_any_number_are_said():
    figure = rendered(steps_of(seen([[np.nan, np.nan]], gradients={"p0": torch.zeros(3)}, ratios={})))
    assert words(figure.axes[0]) == "no finite gradient"
    assert words(figure.axes[1]) == "no parameter had a gradient"
    assert words(figure.axes[2]) == "every element is zero or not finite"
    assert words(figure.axes[3]) == "no weights moved at the step that was measured"
    absent = rendered(steps_of(seen([[ABSENT]], gradients={}, ratios={"p0": np.nan})))
    assert [words(axes) for axes in absent.axes] == [words(axes) for axes in figure.axes]


def test_one_step_is_drawn_as_dots():
    axes = rendered(steps_of(seen([[1.0]]))).axes[0]
    assert line(axes, "before clipping").get_marker() == "o"
    assert line(steps_of(seen([[1.0]] * 21)).axes[0], "before clipping").get_marker() != "o"


def test_weights_that_became_infinite_are_drawn():
    rendered(steps_of(seen([[1.0]], ratios={"p0": np.inf, "p1": 1e-3})))


def test_norms_at_both_ends_of_double_precision_are_drawn():
    rendered(steps_of(seen([[1e-200, 1e290]])))


def test_exponent_that_is_no_number_is_drawn():
    (found,) = look(make())
    lyapunov = LyapunovSpectrum("l0", np.full(2, np.nan), np.full((1, 2), np.nan), 7)
    rendered(drawn(dataclasses.replace(found, lyapunov=lyapunov)))


def test_gradient_that_grows_is_not_called_an_endless_memory():
    (found,) = look(make())
    growing = drawn(one(found, credit=np.arange(STEPS) * np.log(2.0), horizon=LONGEST)).axes[0]
    assert growing.get_title(loc="left").endswith(f"(grows {2.0 ** (STEPS - 1):.3g} times)")


@pytest.mark.parametrize(
    ("limits", "ticks"),
    [
        ((0.3, 4.0), [0.5, 1.0, 2.0]),
        ((0.02, 30.0), [0.1, 1.0, 10.0]),
        ((1e-15, 1.0), [1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1.0]),
    ],
)
def test_logarithmic_axes_have_a_few_round_ticks(limits, ticks):
    axes = Figure().subplots()
    logarithmic(axes)
    axes.set_ylim(*limits)
    np.testing.assert_allclose(axes.yaxis.get_majorticklocs(), ticks)
