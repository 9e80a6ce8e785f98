"""Pictures of attention show the maps they are given, at any size, without a warning."""

import numpy as np
import pytest
from matplotlib import rcParams

from rnn_callbacks.analysis.attention import AttentionMaps
from rnn_callbacks.figures.attention import MOST_HEADS, draw_attention


def maps_of(heads=2, queries=5, keys=7, *, by_head=True):
    mean = np.random.default_rng(0).dirichlet(np.ones(keys), (heads, queries))
    return AttentionMaps(mean, np.arange(heads) + 0.25, np.log2(keys), by_head, 31)


def drawn(maps, **options):
    figure = draw_attention("decoder.attention", maps, **options)
    figure.draw_without_rendering()
    return figure


def panels(figure):
    return [axes for axes in figure.axes if axes.get_images()]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12])
def test_each_of_the_first_heads_has_its_map_and_its_entropy(heads):
    maps = maps_of(heads)
    axes = panels(drawn(maps))
    assert len(axes) == min(heads, MOST_HEADS)
    for head, panel in enumerate(axes):
        np.testing.assert_array_equal(panel.get_images()[0].get_array(), maps.mean[head])
        assert panel.get_title(loc="left") == f"head {head}: {head + 0.25:.1f} bits"


def test_heads_that_are_left_out_are_counted():
    assert "(first 8 of 12 heads)" in drawn(maps_of(12)).texts[1].get_text()
    assert "first" not in drawn(maps_of(8)).texts[1].get_text()


def test_mean_over_heads_is_named_so():
    (axes,) = panels(drawn(maps_of(1, by_head=False)))
    assert axes.get_title(loc="left") == "mean of the heads: 0.2 bits"


def test_queries_run_down_and_keys_across_from_one():
    (axes,) = panels(drawn(maps_of(1, 3, 9)))
    assert axes.get_xlim() == (0.5, 9.5)
    assert axes.get_ylim() == (3.5, 0.5)
    assert axes.get_images()[0].get_extent() == [0.5, 9.5, 3.5, 0.5]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("looked at: time step", "from time step")


@pytest.mark.parametrize("heads, bottom", [(1, [0]), (4, [0, 1, 2, 3]), (6, [2, 3, 4, 5]), (8, [4, 5, 6, 7])])
def test_lowest_panel_of_each_column_names_its_axis(heads, bottom):
    axes = panels(drawn(maps_of(heads)))
    assert [place for place, panel in enumerate(axes) if panel.get_xlabel()] == bottom
    assert [place for place, panel in enumerate(axes) if panel.get_ylabel()] == list(range(0, heads, 4))


def test_colours_are_the_same_at_all_looks_and_small_weights_are_seen():
    sharp, even = np.zeros((1, 4, 4)), np.full((1, 200, 200), 1 / 200)
    sharp[0, :, 1] = 1
    norms = []
    for mean in (sharp, even):
        (axes,) = panels(drawn(AttentionMaps(mean, np.zeros(1), 2.0, True, 3)))
        norms.append(axes.get_images()[0].norm)
        assert (norms[-1].vmin, norms[-1].vmax) == (0, 1)
    assert 0.1 < norms[1](1 / 200) < 0.3
    assert norms[0](0.3) == norms[1](0.3)


@pytest.mark.parametrize("queries, keys", [(1, 1), (2, 1), (1, 3), (200, 200), (5, 90)])
def test_ticks_are_steps_with_the_first_and_the_last(queries, keys):
    (axes,) = panels(drawn(maps_of(1, queries, keys)))
    for ticks, last in ((axes.get_xticks(), keys), (axes.get_yticks(), queries)):
        assert (ticks[0], ticks[-1]) == (1, last)
        assert (ticks == np.round(ticks)).all()
        assert len(ticks) == min(last, 5)


def test_note_says_how_many_sequences_and_what_the_bits_mean():
    figure = drawn(maps_of(2, keys=8), title="epoch 3")
    assert figure.get_suptitle() == "where decoder.attention looks: epoch 3"
    assert figure.texts[1].get_text() == (
        "Mean over 31 sequences. Bits: how widely a head looks,\nfrom 0 (at one step) to 3.0 (everywhere alike)."
    )


@pytest.mark.parametrize("heads", [1, 2, 8, 12])
def test_no_word_leaves_the_picture(heads):
    before = dict(rcParams)
    figure = draw_attention("a." * 50 + "attention", maps_of(heads, 200, 200), title="epoch 1234")
    figure.draw_without_rendering()
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= figure.get_size_inches()[0]
    assert dict(rcParams) == before
