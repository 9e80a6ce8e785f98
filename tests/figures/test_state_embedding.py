"""Pictures of trajectories show the points they are given, in every situation, without a warning."""

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_hex

from rnn_callbacks.analysis.state_embedding import StateEmbedding
from rnn_callbacks.figures.state_embedding import CLASS_COLOURS, Colouring, draw_embedding

SEQUENCES, STEPS = 5, 4
AT = np.arange(STEPS) * 2
EPOCHS = (-1, 3, 12)


def embedded(method="pca", epochs=EPOCHS, *, seed=0, remark="", steps=STEPS):
    points = np.random.default_rng(seed).normal(size=(len(epochs), SEQUENCES, steps, 2)) * [3, 1]
    return StateEmbedding(epochs, points, method, remark, (0.625, 0.25) if method == "pca" else (0.0, 0.0))


def classes(count=2, name="digit", long=""):
    codes = np.repeat((np.arange(SEQUENCES) % count)[:, None], STEPS, 1).astype(float)
    return Colouring(name, codes, tuple(f"{long}{code}" for code in range(count)))


def quantity(name="ink"):
    return Colouring(name, np.linspace(0.5, 2, SEQUENCES * STEPS).reshape(SEQUENCES, STEPS), ())


def drawn(laid=None, colourings=(), *, steps=AT, **options):
    laid = {"hidden": [embedded("phate"), embedded(seed=1)]} if laid is None else laid
    figure = draw_embedding("rnn.l0", laid, colourings, steps=steps, **options)
    figure.draw_without_rendering()
    return figure


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def title(axes):
    return axes.get_title(loc="left")


def words(axes):
    return [text.get_text() for text in axes.texts]


def said(figure):
    return [text.get_text() for text in figure.texts[2:]]


def dots(axes):
    """Places and colours of the states, those of unknown colour first."""
    unknown, known = axes.collections
    return known.get_offsets().data, known.get_facecolor(), unknown.get_offsets().data


def test_every_state_and_trajectory_of_every_look_is_drawn():
    one = embedded()
    axes = panels(drawn({"hidden": [one]}, [classes()]))
    for look, panel in enumerate(axes[:3]):
        np.testing.assert_array_equal(dots(panel)[0], one.points[look].reshape(-1, 2))
        paths = [line.get_xydata() for line in panel.get_lines() if to_hex(line.get_color()) == "#cccccc"]
        np.testing.assert_array_equal(paths, one.points[look])
    np.testing.assert_array_equal(dots(axes[3])[0], one.points[-1].reshape(-1, 2))


def test_looks_of_a_row_share_limits_that_hold_all_their_states():
    one, other = embedded("phate"), embedded(seed=1)
    axes = panels(drawn({"hidden": [one, other]}, [classes()]))
    for row, points in ((axes[:4], one.points), (axes[4:], other.points)):
        assert len({(panel.get_xlim(), panel.get_ylim()) for panel in row}) == 1
        (left, right), (low, high) = row[0].get_xlim(), row[0].get_ylim()
        assert right - left == pytest.approx(high - low)  # one length in both directions
        assert row[0].get_box_aspect() == 1
        assert left < points[..., 0].min() < points[..., 0].max() < right
        assert low < points[..., 1].min() < points[..., 1].max() < high
    assert axes[0].get_xlim() != axes[4].get_xlim()


def test_titles_say_whose_states_how_and_when():
    laid = {state: [embedded("phate"), embedded()] for state in ("hidden", "memory")}
    figure = drawn(laid, [classes()], title="epoch 12")
    titles = [title(axes) for axes in panels(figure)]
    assert titles[:4] == ["hidden, PHATE: before training", "epoch 3", "epoch 12", "by time step"]
    assert titles[4::4] == [f"{name}: before training" for name in ("hidden, PCA", "memory, PHATE", "memory, PCA")]
    assert figure.get_suptitle() == "trajectories of rnn.l0: epoch 12"


def test_components_say_their_shares_once():
    axes = panels(drawn({"hidden": [embedded("phate"), embedded()]}, [classes()]))
    assert [panel.get_xlabel() for panel in axes] == [*[""] * 4, "component 1 (62%), 2 (25%)", *[""] * 3]
    alone = panels(drawn({"hidden": [embedded(epochs=(0,))]}, [classes()]))
    assert alone[0].get_title(loc="left") == "hidden, PCA"  # the title of the whole says which look it is
    assert [panel.get_xlabel() for panel in alone] == ["component 1 (62%), 2 (25%)", ""]


def test_remark_is_said_beside_its_row():
    axes = panels(drawn({"hidden": [embedded(remark="PHATE needs at least 6 distinct points, got 5: PCA alone")]}))
    assert words(axes[0])[0].replace("\n", " ") == "PHATE needs at least 6 distinct points, got 5: PCA alone"
    assert not words(axes[1])


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_few_classes_have_colours_of_their_own_that_are_named(count):
    figure = drawn(colourings=[classes(count)])
    assert said(figure) == ["digit:", *(f"● {code}" for code in range(count))]
    assert [to_hex(text.get_color()) for text in figure.texts[3:]] == [one.lower() for one in CLASS_COLOURS[:count]]
    colours = [to_hex(colour) for colour in dots(panels(figure)[0])[1]]
    assert colours == [CLASS_COLOURS[code % count].lower() for code in range(SEQUENCES) for _ in range(STEPS)]


def test_colours_of_classes_do_not_depend_on_which_are_there():
    every, some = classes(3), classes(3)
    some.values[1:] = 2.0
    one, other = (dots(panels(drawn(colourings=[each]))[0])[1] for each in (every, some))
    np.testing.assert_array_equal(one[:STEPS], other[:STEPS])
    assert to_hex(other[-1]) == CLASS_COLOURS[2].lower()


def test_many_classes_and_quantities_have_a_scale_with_its_ends():
    figure = drawn(colourings=[classes(30)])
    assert said(figure) == ["digit:  0", "29"]
    figure = drawn(colourings=[quantity()])
    assert said(figure) == ["ink:  0.5", "2"]
    assert [axes.get_label() for axes in figure.axes].count("<colorbar>") == 1
    colours = dots(panels(figure)[0])[1]
    np.testing.assert_allclose(colours[[0, -1]], quantity().cmap([0.0, 1.0]))


def test_without_concepts_colour_is_the_time_step():
    figure = drawn()
    assert said(figure) == ["time step:  1", "7"]
    assert len(panels(figure)) == 6


def test_latest_look_is_shown_by_further_concepts_whose_colours_are_named():
    others = [quantity(), classes(2, "parity", "is"), quantity("never shown")]
    axes = panels(drawn({"hidden": [embedded("phate"), embedded()]}, [classes(), *others]))
    assert [title(panel) for panel in axes[3:6]] == ["by ink", "by parity", "by time step"]
    assert [words(panel) for panel in axes[9:]] == [
        ["dark: 0.5, bright: 2"], ["● is0", "● is1"], ["dark: 1, bright: 7"]
    ]  # fmt: skip
    assert [to_hex(text.get_color()) for text in axes[10].texts] == [one.lower() for one in CLASS_COLOURS[:2]]


def test_constant_quantity_has_two_equal_ends():
    one = Colouring("ink", np.full((SEQUENCES, STEPS), 3.0), ())
    assert said(drawn(colourings=[one])) == ["ink:  3", "3"]
    assert one.norm(3.0) == 0


def test_states_without_a_label_are_grey():
    colouring = quantity()
    colouring.values[0] = np.nan
    axes = panels(drawn({"hidden": [embedded()]}, [colouring]))[0]
    places, colours, unknown = dots(axes)
    assert (len(places), len(colours), len(unknown)) == (16, 16, 4)
    np.testing.assert_array_equal(unknown, embedded().points[0, 0])
    nothing = Colouring("ink", np.full((SEQUENCES, STEPS), np.nan), ())
    assert len(dots(panels(drawn({"hidden": [embedded()]}, [nothing]))[0])[2]) == 20


def test_trajectory_runs_from_a_square_to_a_ring_where_it_begins_and_ends():
    one = embedded()
    one.points[:, 1, 2:] = one.points[:, 2, :1] = one.points[:, 3] = np.nan
    axes = panels(drawn({"hidden": [one]}, [classes()]))[1]
    ends = {
        marker: [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == marker] for marker in "so"
    }
    np.testing.assert_array_equal(ends["s"], one.points[1, [0, 1, 2, 4], [0, 0, 1, 0]])
    np.testing.assert_array_equal(ends["o"], one.points[1, [0, 1, 2, 4], [3, 1, 3, 3]])
    rings = [to_hex(line.get_markeredgecolor()) for line in axes.get_lines() if line.get_marker() == "o"]
    assert rings == [CLASS_COLOURS[sequence % 2].lower() for sequence in (0, 1, 2, 4)]


def test_look_without_a_finite_state_says_so():
    one = embedded()
    one.points[0] = np.nan
    axes = panels(drawn({"hidden": [one]}))
    assert words(axes[0]) == ["no finite state"]
    assert title(axes[0]) == "hidden, PCA: before training"
    assert dots(axes[1])[0].shape == (SEQUENCES * STEPS, 2)


def test_states_that_never_moved_are_one_point():
    one = embedded()
    one.points[:] = 0.0
    axes = panels(drawn({"hidden": [one]}))[0]
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]


def test_one_step_of_one_look_is_drawn():
    colouring = Colouring("digit", np.zeros((SEQUENCES, 1)), ("a", "b"))
    figure = drawn({"hidden": [embedded(epochs=(0,), steps=1)]}, [colouring], steps=np.array([6]))
    assert words(panels(figure)[1]) == ["dark: 7, bright: 7"]


def test_rows_of_fewer_looks_leave_room():
    laid = {"hidden": [embedded()], "memory": [embedded(epochs=(12,))]}
    axes = panels(drawn(laid, [classes()]))
    assert [panel.axison for panel in axes[4:]] == [True, False, False, True]


@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("long", ["", "a long name of class "])
def test_no_word_leaves_the_picture(looks, long):
    colourings = [classes(10, "a very long name of a concept", long), classes(10, "another very long name", long)]
    before = dict(rcParams)
    figure = draw_embedding(
        "a." * 50 + "rnn", {"hidden": [embedded(epochs=EPOCHS[:looks])]}, colourings, steps=AT, title="epoch 1234"
    )
    figure.draw_without_rendering()
    inside = figure.bbox.padded(1)
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, text.get_text()
        assert inside.y0 <= box.y0, text.get_text()
    names = [text.get_text() for text in figure.texts[3:]]
    assert len(set(names)) == 10  # what tells them apart is at their end
    assert dict(rcParams) == before
