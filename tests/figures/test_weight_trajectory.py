"""The pictures show the numbers they are given, in every situation, without a warning (warnings are errors here)."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib import rcParams
from matplotlib.colors import LogNorm, to_hex

from rnn_callbacks.analysis.loss_plane import LossPlane
from rnn_callbacks.analysis.phate_embedding import phate_embedding
from rnn_callbacks.analysis.step_gram import path_steps
from rnn_callbacks.analysis.trajectory_findings import PathTimes, PlaceFindings, Spectrum
from rnn_callbacks.analysis.weight_trajectory import weight_trajectory
from rnn_callbacks.figures.loss_plane import STEEP, draw_loss_plane
from rnn_callbacks.figures.path_panels import BEST, colours
from rnn_callbacks.figures.style import GATE_COLOURS
from rnn_callbacks.figures.weight_trajectory import (
    MOST_LINES,
    MOST_OTHERS,
    draw_cell_path,
    draw_other_paths,
    draw_weight_trajectory,
)
from rnn_callbacks.sinks import _render

SNAPSHOTS, WEIGHTS = 13, 37
GATES = ("reset", "update", "new")


@cache
def walk(snapshots=SNAPSHOTS, *, seed=0, most=500):
    """A path that goes somewhere and wanders a little; read only."""
    rng = np.random.default_rng(seed)
    weights = 3 + np.linspace(0, 2, snapshots)[:, None] * rng.normal(size=WEIGHTS)
    return weight_trajectory(path_steps(weights + 0.1 * rng.normal(size=weights.shape).cumsum(0), most=most))


def taken(snapshots=SNAPSHOTS, *, best=7, mode="min", values=None):
    """One snapshot before training and one after each epoch, with a metric that is best at one of them."""
    if values is None:
        values = 1.0 + np.abs(np.arange(snapshots) - best)
        values = values if mode == "min" else -values
    values = np.array(values, dtype=np.float64)
    values[:1] = np.nan
    return PathTimes(np.arange(-1, snapshots - 1), 5 * np.arange(snapshots), values, "val_loss", mode)


@cache
def embedded(path):
    return np.arange(len(path.distances)), phate_embedding(path.distances)


def spectrum(looks=4):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(looks, 3, 11)) + 1j * rng.normal(size=(looks, 3, 11))
    order = np.abs(values).argsort(axis=2)[..., ::-1]
    return Spectrum(GATES, np.arange(looks) * 3, np.take_along_axis(values, order, 2))


def cell(snapshots=SNAPSHOTS, **changes):
    gates = {gate: walk(snapshots, seed=number + 1) for number, gate in enumerate(GATES)}
    return dataclasses.replace(PlaceFindings("rnn.l0", walk(snapshots), gates, spectrum()), **changes)


def cell_drawn(found, times):
    gates = {gate: embedded(path) for gate, path in found.gates.items()}
    return rendered(draw_cell_path(found, embedded(found.path), gates, times=times, title="epoch 3"))


def whole_drawn(path, times, places=(), **options):
    return rendered(draw_weight_trajectory(path, embedded(path), places, times=times, title="epoch 3", **options))


@cache
def usual():
    """For tests that only read it."""
    return whole_drawn(walk(), taken())


@cache
def usual_cell():
    """For tests that only read it."""
    found = cell()
    return found, cell_drawn(found, taken())


def rendered(figure):
    """A figure is only known to be drawable once it is drawn."""
    figure.draw_without_rendering()
    return figure


def panel(figure, title):
    """The one panel whose title begins so."""
    (found,) = [axes for axes in figure.axes if axes.get_title("left").startswith(title)]
    return found


def words(axes):
    return " ".join(text.get_text() for text in axes.texts)


def marks(axes):
    """Where each kind of mark stands."""
    return {line.get_marker(): line.get_xydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1}


def test_path_is_drawn_in_its_principal_components_to_scale():
    path = walk()
    axes = panel(usual(), "PCA")
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), path.components.scores[:, :2])
    assert axes.get_aspect() == 1.0
    share = path.components.explained
    assert axes.get_xlabel() == f"component 1 ({share[0]:.0%})"
    assert axes.get_ylabel() == f"component 2 ({share[1]:.0%})"
    expected = f"PCA: shows {path.components.first_two:.0%} (of a random walk {path.random.first_two:.0%})"
    assert axes.get_title("left") == expected


@pytest.mark.parametrize("mode", ["min", "max"])
def test_start_last_and_best_are_marked_where_they_are(mode):
    path = walk()
    axes = panel(whole_drawn(path, taken(best=4, mode=mode)), "PCA")
    found, scores = marks(axes), path.components.scores[:, :2]
    np.testing.assert_array_equal(found["s"], scores[0])
    np.testing.assert_array_equal(found["o"], scores[-1])
    np.testing.assert_array_equal(found["*"], scores[4])
    assert {to_hex(line.get_color()).upper() for line in axes.get_lines() if line.get_marker() == "*"} == {BEST}


def test_best_snapshot_of_a_thinned_path_is_marked_at_the_nearest_drawn_one():
    path = walk(29, most=8)
    assert path.steps.points.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    axes = panel(whole_drawn(path, taken(29, best=17)), "PCA")
    np.testing.assert_array_equal(marks(axes)["*"], path.components.scores[4, :2])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_better_is_darker(mode):
    norm, cmap = colours(taken(best=7, mode=mode))
    times = taken(best=7, mode=mode)
    light = np.array([sum(cmap(norm(value))[:3]) for value in times.values[1:]])
    assert light.argmin() == 6
    assert light.argmax() == 0


def test_colours_are_logarithmic_where_the_metric_falls_by_a_power_of_ten():
    assert isinstance(colours(taken(values=np.geomspace(1, 0.05, SNAPSHOTS)))[0], LogNorm)
    assert not isinstance(colours(taken(values=np.linspace(1, 0.5, SNAPSHOTS)))[0], LogNorm)
    assert not isinstance(colours(taken(values=np.linspace(-1, 0.5, SNAPSHOTS)))[0], LogNorm)


def test_labels_name_epochs_and_arrows_show_the_direction():
    axes = panel(usual(), "PCA")
    names = [text.get_text() for text in axes.texts]
    assert names[-1] == str(SNAPSHOTS - 2)  # the last epoch, counted from 0
    assert [int(name) for name in names] == sorted(map(int, names))
    (arrows,) = [c for c in axes.collections if type(c).__name__ == "Quiver"]
    path = walk().components.scores[:, :2]
    along = path[-1] - path[0]
    assert (arrows.U * along[0] + arrows.V * along[1] > 0).all()  # a path that goes somewhere


def test_steps_name_snapshots_within_epochs():
    times = taken()
    times = dataclasses.replace(times, epochs=times.epochs // 2)
    figure = whole_drawn(walk(), times)
    assert panel(figure, "distance from").get_xlabel() == "optimizer step"
    assert panel(figure, "PCA").texts[-1].get_text() == "60"


def test_numbers_over_time_are_those_of_the_path():
    path = walk()
    figure = usual()
    distance = panel(figure, "distance from").get_lines()[0]
    np.testing.assert_array_equal(distance.get_xdata(), np.arange(-1, SNAPSHOTS - 1))
    np.testing.assert_allclose(distance.get_ydata(), 100 * path.from_start / path.steps.norms[0])
    step = panel(figure, "length of each").get_lines()[0]
    np.testing.assert_array_equal(step.get_xdata(), np.arange(SNAPSHOTS - 1))
    np.testing.assert_allclose(step.get_ydata(), 100 * path.steps.lengths / path.steps.norms[:-1])
    turning = panel(figure, "turning").get_lines()[1]
    np.testing.assert_array_equal(turning.get_xdata(), np.arange(1, SNAPSHOTS - 1))
    np.testing.assert_array_equal(turning.get_ydata(), path.steps.cosines)
    (image,) = panel(figure, "distance between").get_images()
    np.testing.assert_array_equal(image.get_array(), path.distances)


def test_random_walk_is_drawn_beside():
    path = walk()
    figure = usual()
    line = panel(figure, "a random walk").get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), path.random.scores[:, :2])
    found = marks(panel(figure, "a random walk"))
    np.testing.assert_array_equal(found["s"], path.random.scores[0, :2])
    np.testing.assert_array_equal(found["o"], path.random.scores[-1, :2])
    bars = panel(figure, "more than").containers
    np.testing.assert_allclose([bar.get_height() for bar in bars[0]], 100 * path.components.explained[:5])
    np.testing.assert_allclose([bar.get_height() for bar in bars[1]], 100 * path.random.explained[:5])
    assert f"straightness {path.straightness:.2f} (walk {path.random_straightness:.2f})" in words(panel(figure, "more"))


def test_phate_of_a_thinned_path_names_its_snapshots_rightly():
    path = walk(29, most=8)
    axes = panel(whole_drawn(path, taken(29, best=17)), "PHATE")
    assert axes.texts[-1].get_text() == "27"
    np.testing.assert_array_equal(marks(axes)["*"], embedded(path)[1].points[4])


def test_phate_is_drawn_or_its_absence_explained():
    path = walk()
    chosen, found = embedded(path)
    line = panel(usual(), "PHATE").get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), found.points)
    few = walk(4)
    assert any("PHATE needs at least 6" in words(axes) for axes in whole_drawn(few, taken(4)).axes)
    torn = dataclasses.replace(found, connected=False)
    figure = rendered(draw_weight_trajectory(path, (chosen, torn), [], times=taken()))
    assert any("falls into pieces" in words(axes) for axes in figure.axes)


@pytest.mark.parametrize("snapshots", [1, 2, 3])
def test_few_snapshots_are_drawn_or_explained(snapshots):
    figure = whole_drawn(walk(snapshots), taken(snapshots, best=1), [cell(snapshots)])
    said = " ".join(words(axes) for axes in figure.axes)
    assert ("one snapshot so far" in said) == (snapshots == 1)
    assert ("turning: needs two steps" in said) == (snapshots < 3)
    cell_drawn(cell(snapshots), taken(snapshots, best=1))


def test_weights_that_stand_still_are_explained():
    still = weight_trajectory(path_steps(np.ones((SNAPSHOTS, WEIGHTS))))
    figure = whole_drawn(still, taken())
    said = " ".join(words(axes) for axes in figure.axes)
    assert "the weights have not moved" in said
    assert "length of each step:\nthe weights have not moved" in said
    assert "needs two steps\nwith a length" in said
    assert "distance between snapshots:\nthere is none" in said
    assert "nothing moved" in said


def test_weights_that_begin_at_zero_have_no_relative_distance():
    rng = np.random.default_rng(0)
    path = weight_trajectory(path_steps(np.concatenate([np.zeros((1, 5)), rng.normal(size=(8, 5)).cumsum(0)])))
    figure = whole_drawn(path, taken(9))
    assert panel(figure, "distance from").get_lines() == []


def test_a_path_without_a_metric_is_grey_and_has_no_best():
    figure = whole_drawn(walk(), taken(values=np.full(SNAPSHOTS, np.nan)))
    assert "*" not in marks(panel(figure, "PCA"))
    assert "star: best" not in " ".join(text.get_text() for text in figure.texts)
    assert not any(axes.get_xlabel() == "val_loss" for axes in figure.axes)


def test_many_places_share_the_lines_there_are():
    places = [PlaceFindings(f"m{number}", walk(seed=number), {}) for number in range(MOST_LINES + 2)]
    axes = panel(whole_drawn(walk(), taken(), places), "distance from")
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["all weights", *(f"m{number}" for number in range(MOST_LINES))]
    assert axes.get_title("left") == f"distance from the start ({MOST_LINES} of {MOST_LINES + 2} parts)"
    assert len({to_hex(line.get_color()) for line in axes.get_lines()}) == MOST_LINES + 1


def test_a_single_value_of_the_metric_is_written_and_close_ones_are_told_apart():
    figure = whole_drawn(walk(), taken(values=np.full(SNAPSHOTS, 1.25)))
    assert "val_loss: 1.25" in [text.get_text() for text in figure.texts]
    figure = whole_drawn(walk(), taken(values=1.61 + 0.001 * np.arange(SNAPSHOTS)))
    (bar,) = [axes for axes in figure.axes if axes.get_xlabel() == "val_loss"]
    ticks = [text.get_text() for text in bar.get_xticklabels()]
    assert len(set(ticks)) == len(ticks) > 1


def test_error_of_sketches_is_in_the_title():
    figure = whole_drawn(walk(), taken(), error=0.011)
    assert figure.get_suptitle() == "path of all weights: epoch 3 (sketched, distances to 1.1%)"


def test_each_gate_has_its_paths_and_its_colour():
    found, figure = usual_cell()
    lines = {line.get_label(): line for line in panel(figure, "distance from").get_lines()}
    for gate in GATES:
        scores = panel(figure, f"{gate}: PCA").get_lines()[0].get_xydata()
        np.testing.assert_array_equal(scores, found.gates[gate].components.scores[:, :2])
        layout = panel(figure, f"{gate}: PHATE").get_lines()[0].get_xydata()
        np.testing.assert_array_equal(layout, phate_embedding(found.gates[gate].distances).points)
        assert lines[gate].get_color() == GATE_COLOURS[gate]


def test_eigenvalues_are_drawn_over_the_looks_and_in_the_plane():
    found, figure = usual_cell()
    axes = panel(figure, "recurrent eigenvalues")
    lines = {line.get_label(): line for line in axes.get_lines()}
    for number, gate in enumerate(GATES):
        values = found.spectrum.eigenvalues[:, number]
        np.testing.assert_array_equal(lines[gate].get_xdata(), [0, 3, 6, 9])
        np.testing.assert_allclose(lines[gate].get_ydata(), np.abs(values[:, 0]))
        plane = panel(figure, f"{gate}: eigenvalues")
        now = plane.collections[-1].get_offsets()
        np.testing.assert_allclose(now, np.stack([values[-1].real, values[-1].imag], 1))
        (first,) = [c for c in plane.collections if not len(c.get_facecolors())]
        np.testing.assert_allclose(first.get_offsets(), np.stack([values[0].real, values[0].imag], 1))
        assert max(plane.get_ylim()) > np.abs(values).max()


def test_a_cell_without_gates_or_with_unknown_weights_is_drawn():
    figure = cell_drawn(cell(gates={}), taken())
    assert len([axes for axes in figure.axes if axes.get_subplotspec()]) == 4
    figure = cell_drawn(cell(spectrum=None), taken())
    assert any("weights of this" in words(axes) for axes in figure.axes)


def test_other_modules_are_drawn_in_pairs_and_left_out_beyond_the_most():
    others = [(PlaceFindings(f"m{number}", walk(), {}), embedded(walk())) for number in range(MOST_OTHERS + 1)]
    figure = rendered(draw_other_paths(others, times=taken(), title="epoch 3"))
    assert f"first {MOST_OTHERS} of {MOST_OTHERS + 1}" in figure.get_suptitle()
    assert panel(figure, f"m{MOST_OTHERS - 1}")
    three = rendered(draw_other_paths(others[:3], times=taken()))
    assert [axes.axison for axes in three.axes if axes.get_subplotspec()][:8] == [True] * 6 + [False] * 2


def plane(losses=None):
    x, y = np.linspace(-2, 2, 7), np.linspace(-1, 1, 5)
    losses = 0.1 + x**2 + 10 * y[:, None] ** 2 if losses is None else losses
    return LossPlane(x, y, losses, np.array([[-1.5, 0.5], [0.0, -0.5], [1.0, 0.1]]))


def test_loss_plane_has_the_path_above_its_contours():
    figure = rendered(draw_loss_plane(plane(), np.arange(3), times=taken(3, best=1), title="epoch 3"))
    axes, bar = figure.axes
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), plane().path)
    np.testing.assert_array_equal(marks(axes)["*"], plane().path[1])
    assert axes.get_aspect() == 1.0
    low, high = bar.get_ylim()
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(14.1)
    assert bar.get_yscale() == "log"
    assert "White" not in axes.get_title("left")


def test_loss_plane_shows_where_the_loss_is_no_number_and_stops_where_it_is_steep():
    losses = plane().losses.copy()
    losses[0, 0], losses[1, 1], losses[2, 2] = np.nan, np.inf, 1e30
    figure = draw_loss_plane(plane(losses), np.arange(3), times=taken(3))
    pixels = _render(figure)
    x, y = figure.axes[0].transData.transform((plane().x[2], plane().y[2]))
    assert pixels[pixels.shape[0] - round(y), round(x)].min() < 200  # beyond the range is no hole
    assert "White: the loss is no number." in figure.axes[0].get_title("left")
    assert figure.axes[1].get_ylim()[1] == pytest.approx(STEEP * losses[np.isfinite(losses)].min())


@pytest.mark.parametrize("losses", [np.full((5, 7), 0.3), np.full((5, 7), np.nan), np.zeros((5, 7)), -np.ones((5, 7))])
def test_a_flat_or_missing_plane_is_drawn(losses):
    rendered(draw_loss_plane(plane(losses), np.arange(3), times=taken(3)))


def test_drawing_leaves_pyplot_and_settings_alone():
    before, style = plt.get_fignums(), dict(rcParams)
    whole_drawn(walk(), taken())
    assert plt.get_fignums() == before
    assert dict(rcParams) == style
