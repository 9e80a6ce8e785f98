"""What the landscape shows is what was found, in every situation, without a warning (warnings are errors here)."""

import io
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from torch import nn

from rnn_callbacks.analysis.fixed_point_cells import equation_of
from rnn_callbacks.analysis.fixed_point_findings import examine
from rnn_callbacks.analysis.fixed_point_history import begin
from rnn_callbacks.analysis.fixed_point_search import search
from rnn_callbacks.analysis.flow import Flow
from rnn_callbacks.analysis.landscape import lay_out, principal_plane
from rnn_callbacks.analysis.visited import hidden_part, visit
from rnn_callbacks.capture import Recorder
from rnn_callbacks.figures.fixed_points import KINDS, LABEL_COLOURS, Scene, draw_landscape
from rnn_callbacks.rebuild import traces_by_cell

INPUTS, SEQUENCES, STEPS = 3, 11, 7


def recurrent(weight, bias=None, *, nonlinearity="tanh"):
    """An nn.RNN with these recurrent weights, that is moved a little by what it reads."""
    torch.manual_seed(0)
    weight = torch.as_tensor(weight, dtype=torch.float32)
    module = nn.RNN(INPUTS, len(weight), nonlinearity=nonlinearity)
    with torch.no_grad():
        module.weight_hh_l0.copy_(weight)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.zero_() if bias is None else module.bias_hh_l0.copy_(torch.as_tensor(bias))
    return module


def story(*looks):
    return np.array([[epoch, *counts] for epoch, counts in enumerate(looks)], dtype=float)


def scene_of(module, *, labels=None, looks=None, sequences=SEQUENCES):
    """One look at a real module."""
    x = torch.randn(STEPS, sequences, INPUTS, generator=torch.Generator().manual_seed(1))
    with Recorder(module) as recorder, torch.no_grad():
        module(x)
    (tape,) = recorder.tapes.values()
    visited = visit(traces_by_cell(tape))
    equations, held = [equation_of(cell) for cell in visited.cells], torch.zeros(INPUTS).double()
    pools = [states[:, : e.unknowns] for states, e in zip(visited.per_cell, equations, strict=True)]
    _, chapter = begin(equations, held, search(equations, held, pools))
    findings = examine(equations, held, visited, chapter)
    plane = principal_plane(hidden_part(visited.cells, visited.states))
    flow = Flow(tuple(equations), held)
    landscape = lay_out(flow, chapter.skeleton.points, plane, visited.trajectories, findings.continuum)
    kinds = chapter.skeleton.points.kind
    counts = [(kinds == kind).sum() for kind in KINDS]
    return Scene(findings, landscape, labels, story((*counts, 0, 0)) if looks is None else looks)


def drawn(figure):
    """As TensorBoard gets it: rendered, which is where matplotlib complains."""
    figure.savefig(io.BytesIO())
    return figure


def panels(figure):
    return figure.axes


def words(axes):
    legends = [child for child in axes.get_children() if hasattr(child, "get_texts")]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


TURN = [[0.0, -1.0], [1.0, 0.0]]
BITS = (2 * torch.eye(3)).tolist()
SITUATIONS = {
    "eight attractors": lambda: scene_of(recurrent(BITS)),
    "one point": lambda: scene_of(recurrent([[0.5, 0.1], [0.0, 0.3]])),
    "one unit": lambda: scene_of(recurrent([[2.0]])),
    "one unit without a point": lambda: scene_of(recurrent([[2.0]], [1.0], nonlinearity="relu")),
    "a line": lambda: scene_of(recurrent([[0.5, 0.5], [0.5, 0.5]], nonlinearity="relu")),
    "a plane": lambda: scene_of(recurrent(torch.eye(5).tolist(), nonlinearity="relu")),
    "a cycle": lambda: scene_of(recurrent((1.5 * torch.tensor(TURN)).tolist())),
    "growth": lambda: scene_of(recurrent((3 * torch.eye(2)).tolist(), [1.0, 1.0], nonlinearity="relu")),
    "one run": lambda: scene_of(recurrent(BITS), sequences=1),
    "states that never move": lambda: scene_of(silent()),
    "a stack of lstms": lambda: scene_of(nn.LSTM(INPUTS, 5, 2)),
    "a gru": lambda: scene_of(nn.GRU(INPUTS, 5)),
}


def silent():
    module = recurrent(BITS)
    torch.nn.init.zeros_(module.weight_ih_l0)
    return module


@cache
def scene(situation):
    """Found once: a drawing does not change it."""
    return SITUATIONS[situation]()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_is_drawn_with_labelled_axes(situation):
    figure = drawn(draw_landscape(scene(situation), title=situation))
    plane, eigenvalues, over_training = panels(figure)
    assert figure.get_suptitle() == situation
    assert "principal component" in plane.get_xlabel()
    assert plane.get_ylabel()
    assert over_training.get_xlabel() == "epoch"
    assert over_training.get_ylabel() == "fixed points"
    assert eigenvalues.get_xlabel() == "real part" or not eigenvalues.axison


def width_and_height(axes):
    """Data units per inch along both axes."""
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()
    return np.ptp(axes.get_xlim()) / (box.width * width), np.ptp(axes.get_ylim()) / (box.height * height)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_distances_in_the_picture_are_distances(situation):
    plane, eigenvalues, _ = panels(drawn(draw_landscape(scene(situation))))
    assert np.divide(*width_and_height(plane)) == pytest.approx(1)
    if eigenvalues.axison:
        assert np.divide(*width_and_height(eigenvalues)) == pytest.approx(1)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_everything_lies_within_the_frame(situation):
    found = scene(situation).landscape
    plane, _, _ = panels(draw_landscape(scene(situation)))
    low, high = np.transpose([plane.get_xlim(), plane.get_ylim()])
    for coordinates in (found.points, found.continuum, *found.trajectories):
        assert ((low <= coordinates) & (coordinates <= high)).all()


@pytest.mark.parametrize("situation", ["eight attractors", "a line", "growth"])
def test_no_word_is_cut_off_at_the_edge(situation):
    figure = drawn(draw_landscape(scene(situation)))
    frame = figure.bbox
    for axes in panels(figure):
        if axes.axison:
            for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
                box = label.get_window_extent()
                assert frame.x0 <= box.x0
                assert frame.y0 <= box.y0
                assert box.x1 <= frame.x1
                assert box.y1 <= frame.y1


def test_epochs_are_whole_numbers():
    _, _, over_training = panels(drawn(draw_landscape(SITUATIONS["one unit"]())))
    assert all(tick == int(tick) for tick in over_training.get_xticks())


def test_points_are_drawn_by_kind_where_they_are_and_counted():
    scene = SITUATIONS["eight attractors"]()
    kinds = scene.findings.chapter.skeleton.points.kind
    assert [(kinds == kind).sum() for kind in KINDS] == [1, 18, 8]
    plane, _, _ = panels(draw_landscape(scene))
    markers = [c for c in plane.collections if not isinstance(c, Quiver)]
    for kind, drawn_points in zip(KINDS, markers, strict=True):
        np.testing.assert_allclose(drawn_points.get_offsets(), scene.landscape.points[kinds == kind])
        assert to_hex(drawn_points.get_facecolor()[0]) == KINDS[kind][0].lower()
    assert words(plane)[:3] == ["8 attractors", "18 saddles (number: unstable directions)", "1 repeller"]
    numbers = [text.get_text() for text in plane.texts if text.get_text().isdigit()]
    assert sorted(numbers) == ["1"] * 12 + ["2"] * 6


def test_every_unstable_direction_has_its_two_ends():
    scene = SITUATIONS["eight attractors"]()
    plane, _, _ = panels(draw_landscape(scene))
    out, back = [c for c in plane.collections if isinstance(c, Quiver)]
    assert len(out.U) == len(scene.landscape.arrows) == 12 + 2 * 6 + 3
    np.testing.assert_allclose(np.array([back.U, back.V]), -np.array([out.U, out.V]))
    for arm, place, (row, direction) in zip(
        zip(out.U, out.V, strict=True), out.XY, scene.landscape.arrows, strict=True
    ):
        np.testing.assert_allclose(place, scene.landscape.points[row])
        assert abs(arm[0] * direction[1] - arm[1] * direction[0]) < 1e-12
    lengths = np.hypot(out.U, out.V)
    np.testing.assert_allclose(lengths, lengths[0])  # longer than the markers, whatever the angle to the plane


def test_runs_are_lines_with_a_square_at_their_end():
    scene = SITUATIONS["a gru"]()
    plane, _, _ = panels(draw_landscape(scene))
    lines = plane.get_lines()
    for path, line, end in zip(scene.landscape.trajectories, lines[::2], lines[1::2], strict=True):
        np.testing.assert_allclose(line.get_xydata(), path)
        np.testing.assert_allclose(end.get_xydata(), path[-1:])
        assert end.get_marker() == "s"
    assert "real runs (square: end)" in words(plane)


def test_nothing_found_is_said():
    plane, eigenvalues, _ = panels(draw_landscape(SITUATIONS["one unit without a point"]()))
    assert "no fixed point found" in words(plane)
    assert [text.get_text() for text in eigenvalues.texts] == ["no fixed point found"]


def test_a_scene_without_points_and_runs_is_drawn():
    scene = SITUATIONS["one unit without a point"]()
    landscape = scene.landscape
    bare = type(landscape)(landscape.plane, landscape.points[:0], (), (), landscape.continuum[:0])
    drawn(draw_landscape(Scene(scene.findings, bare, None, scene.story)))


@pytest.mark.parametrize(("situation", "name"), [("a line", "line attractor"), ("a plane", "5-dimensional attractor")])
def test_a_continuum_is_named(situation, name):
    plane, _, _ = panels(draw_landscape(scene(situation)))
    assert name in words(plane)


def test_the_share_of_the_variance_is_on_the_axes():
    scene = SITUATIONS["one unit"]()
    plane, _, _ = panels(draw_landscape(scene))
    assert "(100% of" in plane.get_xlabel()
    assert "(0%)" in plane.get_ylabel()


def test_labels_colour_the_runs():
    labels = np.arange(SEQUENCES) % 3.0
    scene = scene_of(recurrent(BITS), labels=labels)
    plane, _, _ = panels(drawn(draw_landscape(scene)))
    colours = [line.get_color() for line in plane.get_lines()[::2]]
    assert colours == [LABEL_COLOURS[int(label)] for label in labels]
    assert words(plane)[-3:] == ["0", "1", "2"] or words(plane)[:3] == ["0", "1", "2"]
    assert len(set(LABEL_COLOURS)) == len(LABEL_COLOURS)
    assert not set(LABEL_COLOURS) & {colour for colour, _ in KINDS.values()}


def test_labels_of_many_values_are_a_ramp_with_its_ends_named():
    labels = np.linspace(-2.5, 7.5, SEQUENCES)
    plane, _, _ = panels(drawn(draw_landscape(scene_of(recurrent(BITS), labels=labels))))
    colours = [line.get_color() for line in plane.get_lines()[::2]]
    assert len(set(colours)) == SEQUENCES
    assert {"-2.5", "7.5"} <= set(words(plane))


def test_one_label_for_all_is_drawn():
    plane, _, _ = panels(drawn(draw_landscape(scene_of(recurrent(BITS), labels=np.full(SEQUENCES, 4.0)))))
    assert "4" in words(plane)


def test_eigenvalues_are_around_the_unit_circle_by_kind():
    scene = SITUATIONS["eight attractors"]()
    points = scene.findings.chapter.skeleton.points
    _, axes, _ = panels(draw_landscape(scene))
    for kind, dots in zip(KINDS, axes.collections, strict=True):
        values = points.eigenvalues[points.kind == kind].ravel()
        np.testing.assert_allclose(dots.get_offsets(), np.stack([values.real, values.imag], axis=1))
    circle = axes.get_lines()[0].get_xydata()
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1)


def test_eigenvalues_far_outside_are_within_the_frame():
    scene = scene_of(recurrent([[-9.0, 0.0], [0.0, 0.5]]))
    _, axes, _ = panels(draw_landscape(scene))
    assert axes.get_xlim()[0] < -9
    assert axes.get_ylim()[1] > 1


@pytest.mark.parametrize("looks", [1, 2, 39, 200])
def test_counts_over_training_are_the_story(looks):
    rng = np.random.default_rng(0)
    told = story(*[(*rng.integers(0, 9, 3), looks > 1 and epoch == 1, epoch == 5) for epoch in range(looks)])
    told[:, 0] *= 3  # looks are not at every epoch
    _, _, axes = panels(drawn(draw_landscape(scene_of(recurrent([[2.0]]), looks=told))))
    for line, column in zip(axes.get_lines(), (1, 2, 3), strict=False):
        np.testing.assert_allclose(line.get_xydata(), told[:, [0, column]])
    marks = {line.get_label(): line.get_xdata().tolist() for line in axes.get_lines()[3:]}
    assert marks == ({"appeared": [3]} if looks > 1 else {}) | ({"vanished": [15]} if looks > 5 else {})
    assert all(tick == int(tick) for tick in axes.get_yticks())


def test_a_story_without_a_point_is_drawn():
    drawn(draw_landscape(scene_of(recurrent([[2.0]]), looks=story((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)))))


def test_a_scene_may_be_made_when_it_is_looked_at():
    asked = []

    def make():
        asked.append(1)
        return SITUATIONS["one unit"]()

    assert len(panels(draw_landscape(make))) == 3
    assert asked == [1]


def test_the_users_style_is_left_as_it_is():
    before = dict(rcParams)
    draw_landscape(SITUATIONS["one unit"]())
    assert dict(rcParams) == before


def test_a_chaotic_network_gets_few_arrows_for_each_point():
    scene = scene_of(chaotic(48))
    points = scene.findings.chapter.skeleton.points
    assert points.unstable.max() > 10
    assert len(scene.landscape.arrows) <= 3 * len(points)


def chaotic(units, gain=3.0):
    torch.manual_seed(0)
    return recurrent(torch.randn(units, units) * gain / units**0.5)
