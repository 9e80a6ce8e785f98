"""What is drawn of several runs is what they measured, each in its own colour."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rnn_callbacks.figures.comparison import COLOURS, Entry, Line, Panel, draw_small_multiples, drawable, printable
from rnn_callbacks.figures.comparison_planes import (
    KIND_ENTRIES,
    Frame,
    Scatter,
    Track,
    draw_eigenvalues_of_runs,
    draw_joint_embedding,
    draw_skeletons,
)

X = np.arange(5.0)
KINDS = np.array(["attractor", "saddle", "repeller", "attractor"])


def drawn(axes, key):
    return [line for line in axes.lines if line.get_gid() == key]


def panel(*lines, **options):
    return Panel("loss", lines, **options)


def track(frames=3, **options):
    spots = np.random.default_rng(0).normal(size=(frames, 4, 2))
    made = [Frame(points, 2 * number, 2 * number + 1, KINDS) for number, points in enumerate(spots)]
    return Track("run3", COLOURS[1], made, **options)


def saved(figure):
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_lines_are_the_numbers_in_their_colour():
    y = np.array([3.0, 1.0, np.nan, -2.0, 0.5])
    figure = saved(draw_small_multiples([panel(Line(X, y, "run7", COLOURS[2]))], x_label="epoch"))
    (line,) = drawn(figure.axes[0], "run7")
    np.testing.assert_array_equal(line.get_xdata(), X)
    np.testing.assert_array_equal(line.get_ydata(), y)
    assert line.get_color() == COLOURS[2]


def test_panels_share_the_horizontal_axis():
    panels = [panel(Line(X, X, "run0", COLOURS[0])), panel(Line(X + 10, X, "run0", COLOURS[0]))]
    figure = draw_small_multiples(panels, x_label="epoch")
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_xlim()
    assert low <= 0
    assert high >= 14


def test_what_cannot_be_drawn_is_left_out():
    y = np.array([0.0, -1.0, np.inf, 1.0, 100.0])
    figure = saved(draw_small_multiples([panel(Line(X, y, "run0", COLOURS[0]), logarithmic=True)], x_label="epoch"))
    np.testing.assert_array_equal(drawn(figure.axes[0], "run0")[0].get_ydata(), [np.nan] * 3 + [1.0, 100.0])
    assert figure.axes[0].get_yscale() == "log"
    for values in (np.full(5, np.nan), np.full(5, -1.0), np.full(5, np.inf), np.zeros(5)):
        saved(draw_small_multiples([panel(Line(X, values, "run0", COLOURS[0]), logarithmic=True)], x_label="epoch"))


def test_a_logarithmic_axis_that_would_show_one_number_stays_linear():
    y = np.array([1.0, 1.1, 1.2, 1.3, 1.2])
    figure = draw_small_multiples([panel(Line(X, y, "run0", COLOURS[0]), logarithmic=True)], x_label="epoch")
    assert figure.axes[0].get_yscale() == "linear"


def test_a_point_without_neighbours_is_seen():
    y = np.array([np.nan, 1.0, np.nan, 2.0, 3.0])
    figure = draw_small_multiples([panel(Line(X, y, "run0", COLOURS[0]))], x_label="epoch")
    (line,) = drawn(figure.axes[0], "run0")
    assert line.get_marker() == "o"
    assert line.get_markevery() == [1]


def test_a_group_is_thicker_than_its_runs_and_has_its_band():
    band = np.stack([X - 1, X + 1], 1)
    lines = [Line(X, X, "run0", COLOURS[0]), Line(X, X, "group0", COLOURS[0], strong=True, band=band)]
    axes = draw_small_multiples([panel(*lines)], x_label="epoch").axes[0]
    assert drawn(axes, "group0")[0].get_linewidth() > 2 * drawn(axes, "run0")[0].get_linewidth()
    (filled,) = axes.collections
    edges = filled.get_paths()[0].vertices
    assert edges[:, 1].min() == -1
    assert edges[:, 1].max() == 5
    assert filled.get_gid() == "group0"


def test_empty_panels_and_no_panel_are_drawn():
    saved(draw_small_multiples([panel()], x_label="epoch"))
    saved(draw_small_multiples([], x_label="epoch"))
    saved(draw_eigenvalues_of_runs([]))
    saved(draw_skeletons([Scatter("x", [])]))


def test_eigenvalues_lie_where_they_are_and_axes_are_shared():
    far = Track("run1", COLOURS[0], [Frame(np.array([[2.0, -3.0]]), 0, 5)])
    near = Track("run0", COLOURS[1], [Frame(np.array([[0.5, 0.25], [-0.125, 0.0]]), 0, 5)])
    figure = saved(draw_eigenvalues_of_runs([Scatter("a", [near]), Scatter("b", [far])]))
    (dots,) = drawn(figure.axes[0], "run0-frame-0-5")
    places = np.array(dots.get_xydata()).reshape(-1, 3, 2)[:, :2].mean(1)
    np.testing.assert_allclose(places, near.frames[0].points, atol=1e-12)
    assert {axes.get_xlim() for axes in figure.axes} == {axes.get_ylim() for axes in figure.axes}
    assert figure.axes[0].get_xlim()[1] > 3


def test_a_kind_has_its_shape_and_a_run_its_colour():
    figure = saved(draw_skeletons([Scatter("a", [track(1)], ("one", "two"))]))
    shapes = {line.get_marker(): line for line in drawn(figure.axes[0], "run3-frame-0-1")}
    points = track(1).frames[0].points
    np.testing.assert_array_equal(shapes["o"].get_xydata(), points[[0, 3]])
    np.testing.assert_array_equal(shapes["D"].get_xydata(), points[[1]])
    np.testing.assert_array_equal(shapes["X"].get_xydata(), points[[2]])
    assert {line.get_color() for line in shapes.values()} == {COLOURS[1]}
    assert shapes["D"].get_markerfacecolor() == "white"
    assert figure.axes[0].get_xlabel() == "one"


@pytest.mark.parametrize("draw", [lambda p: draw_skeletons([p]), lambda p: draw_eigenvalues_of_runs([p]),
                                  draw_joint_embedding])  # fmt: skip
def test_of_the_frames_the_last_one_is_seen(draw):
    figure = draw(Scatter("a", [track(3, path=np.zeros((2, 2)))]))
    seen = {a.get_gid(): a.get_visible() for a in figure.findobj(lambda a: "frame" in (a.get_gid() or ""))}
    assert seen == {"run3-frame-0-1": False, "run3-frame-2-3": False, "run3-frame-4-5": True}


def test_distances_in_a_plane_are_distances():
    for figure in (draw_skeletons([Scatter("a", [track()])]), draw_joint_embedding(Scatter("a", [track()]))):
        axes, (width, height) = figure.axes[0], figure.get_size_inches()
        box = axes.get_position()
        per_inch = [np.ptp(limits) / inches for limits, inches in (
            (axes.get_xlim(), box.width * width), (axes.get_ylim(), box.height * height))]  # fmt: skip
        assert per_inch[0] == pytest.approx(per_inch[1])


def test_a_path_begins_with_a_ring_in_the_colour_of_its_run():
    path = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 4.0]])
    axes = draw_joint_embedding(Scatter("a", [track(1, path=path)])).axes[0]
    line, ring = drawn(axes, "run3")
    np.testing.assert_array_equal(line.get_xydata(), path)
    np.testing.assert_array_equal(ring.get_xydata(), path[:1])
    assert line.get_color() == ring.get_color() == COLOURS[1]


def test_no_fixed_point_is_said():
    nothing = Track("run0", COLOURS[0], [Frame(np.zeros((0, 2)), 0, 3)])
    figure = saved(draw_skeletons([Scatter("a", [nothing])]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["no fixed point found"]


@pytest.mark.parametrize("words", ["$\\frac{1$", "_hidden", "日本", "\x00\u202e\ud800", "x" * 5000, "", "a\nb"])
def test_any_name_can_be_drawn(words):
    picture = Panel(words, [Line(X, X, "run0", COLOURS[0])], unit=words)
    figure = saved(draw_small_multiples([picture], x_label="epoch", legend=[Entry(words, COLOURS[0]), *KIND_ENTRIES]))
    assert figure.axes[0].get_title(loc="left") == drawable(words, 50)
    assert len(figure.legends[0].get_texts()) == 4
    saved(draw_skeletons([Scatter(words, [track()], (words, words))]))


def test_printable_words_are_one_short_line_without_control_characters():
    assert printable("a\n\tb \u202ec\x07\ud800") == "a b \ufffdc\ufffd\ufffd"
    assert len(printable("x" * 10**6, 30)) == 30
    joined = "naïve 日本 \u0645\u06cc\u200c\u062e"
    assert printable(joined) == joined


def test_colours_stand_out_from_white_and_from_each_other():
    lights = []
    for colour in COLOURS:
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        lights.append(float(np.dot(channels, (0.2126, 0.7152, 0.0722))))  # WCAG 2.2: relative luminance
    assert min(1.05 / (light + 0.05) for light in lights) >= 3
    # Machado 2009, severity 1: linear RGB as people without red or green cones see it
    deutan = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
    protan = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.052]])
    for seen_as in (np.eye(3), deutan, protan):
        seen = [np.clip(seen_as @ np.array(to_rgb(colour)) ** 2.2, 0, 1) ** (1 / 2.2) for colour in COLOURS]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 0.15
