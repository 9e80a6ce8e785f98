"""Pictures of representations show the numbers they are given, in every situation, without a warning."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_hex

from rnn_callbacks.analysis.cka import Similarity, cka, fingerprint, geometry, similarities
from rnn_callbacks.analysis.class_geometry import class_geometry
from rnn_callbacks.analysis.representation import representation
from rnn_callbacks.analysis.representation_findings import SiteFindings
from rnn_callbacks.analysis.step_clusters import step_clusters
from rnn_callbacks.figures.representation import COLOURS, draw_representation

SEQUENCES, STEPS, UNITS = 24, 7, 5
AT = np.arange(STEPS) * 3
COLUMNS = np.array([0, 3, 6])


def states_of(look, looks, classes, seed):
    """Walks that bend towards the place of their class."""
    generator = np.random.default_rng(seed)
    place, walks = generator.normal(size=(max(classes, 1), UNITS)), generator.normal(size=(SEQUENCES, STEPS, UNITS))
    towards = 3 * look / max(looks - 1, 1) * np.linspace(0, 1, STEPS)[:, None]
    return np.tanh(walks.cumsum(1) / 5 + towards * place[np.arange(SEQUENCES) % max(classes, 1)][:, None])


@cache
def findings(seed=0, looks=4, classes=3, constant=False, clusters=True):
    """What a run of so many looks, the first one before training, has shown."""
    every = [states_of(look, looks, classes, seed) for look in range(looks)]
    every = [np.full_like(states, 0.3) for states in every] if constant else every
    geometries = [geometry(states) for states in every]
    matrix = np.clip(similarities([fingerprint(one) for one in geometries]), -1, 1)
    ended = np.concatenate([every[-1], every[-1][:, -1:]], 1)
    labels = np.repeat((np.arange(SEQUENCES) % max(classes, 1))[:, None], STEPS + 1, 1).astype(float)
    read = np.broadcast_to([*range(1, STEPS + 1), STEPS], labels.shape)
    chosen, epochs = [*COLUMNS, STEPS], np.arange(looks) - 1
    likeness = {"cka_untrained": (epochs[1:], matrix[0, 1:]), "cka_previous": (epochs[1:], matrix.diagonal(1))}
    return SiteFindings(
        shape=representation(geometries[-1]),
        untrained=cka(geometries[-1], geometries[0]),
        untrained_end=0.5,
        previous=0.9,
        random=(0.25, 0.4),
        clusters=step_clusters(ended[:, chosen], np.ones((SEQUENCES, len(chosen)), bool)) if clusters else None,
        cluster_columns=COLUMNS,
        classes={"digit": class_geometry(ended, labels, read)} if classes else {},
        epochs=epochs,
        matrix=matrix,
        curves={
            name: (x.astype(float)[np.isfinite(y)], y[np.isfinite(y)]) for name, (x, y) in likeness.items()
        },
    )  # fmt: skip


def stack(*names, **options):
    """Sites, of which those of the last layer have clusters."""
    last = names[-1].partition("/")[0]
    return {name: findings(seed, clusters=name.partition("/")[0] == last, **options) for seed, name in enumerate(names)}


def drawn(sites, layers=None, *, steps=AT, **options):
    layers = np.eye(len(sites)) if layers is None else layers
    figure = draw_representation("encoder.rnn", sites, layers, steps=steps, **options)
    figure.draw_without_rendering()
    return figure


@cache
def usual(*names):
    """For tests that only read it."""
    return drawn(stack(*names))


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def words(axes):
    return [text.get_text() for text in axes.texts]


def lines(axes, colour, style=None):
    return [
        line
        for line in axes.get_lines()
        if to_hex(line.get_color()) == to_hex(colour) and (style is None or line.get_linestyle() == style)
    ]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


SIX = [f"l{layer}/{state}" for layer in range(3) for state in ("hidden", "memory")]
TWELVE = [f"l{layer}{way}/{state}" for layer in range(3) for way in ("", "_reverse") for state in ("hidden", "memory")]


def test_likeness_is_drawn_above_that_of_random_networks():
    found = findings()
    axes = panels(usual("l0/hidden"))[0]
    line, before = lines(axes, COLOURS[0], "-")[0], lines(axes, COLOURS[0], ":")[0]
    np.testing.assert_array_equal(line.get_xydata().T, found.curves["cka_untrained"])
    np.testing.assert_array_equal(before.get_xydata().T, found.curves["cka_previous"])
    assert lines(axes, COLOURS[0], "--")[0].get_ydata() == [0.25, 0.25]
    assert legend(axes) == ["with the untrained network", "with the look before", "of two random networks"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "likeness (CKA)")


def test_legends_have_room_of_their_own_above_the_shares():
    figure = usual("l0/hidden", "l0/memory")
    for axes in (panels(figure)[0], panels(figure)[3]):
        box = axes.get_legend().get_window_extent().transformed(axes.transData.inverted())
        assert box.y0 > 1
        assert box.x1 <= axes.get_xlim()[1]
        assert axes.get_yticks()[-1] == 1


@pytest.mark.parametrize("seed", [0, 3])
def test_limits_of_shares_are_the_same_at_all_looks(seed):
    early, late = (panels(drawn(stack("l0/hidden", "l0/memory", looks=looks))) for looks in (2, 9))
    for one, other in zip(early, late, strict=True):
        assert one.get_ylim() == other.get_ylim() or one.get_images()
    for axes in (early[1], early[2], late[1]):
        assert axes.get_images()[0].get_clim() == (0, 1)
    assert [axes.get_xlim() for axes in early[3:5]] == [axes.get_xlim() for axes in late[3:5]]


def test_looks_are_compared_by_epoch():
    found = findings()
    axes = panels(usual("l0/hidden"))[1]
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), found.matrix)
    assert axes.get_images()[0].origin == "lower"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["start", "0", "1", "2"]
    assert axes.get_title(loc="left") == "l0/hidden: how alike are epochs?"
    many = panels(drawn({"l0/hidden": findings(looks=100)}))[1]
    assert [text.get_text() for text in many.get_yticklabels()] == ["start", "19", "39", "58", "78", "98"]


def test_layers_are_compared_with_each_other_and_numbered_while_there_is_room():
    layers = np.array([[1, 0.25, np.nan], [0.25, 1, 0.75], [np.nan, 0.75, 1]])
    axes = panels(drawn(stack("l0/hidden", "l1/hidden", "l2/hidden"), layers))[2]
    np.testing.assert_array_equal(axes.get_images()[0].get_array().filled(-9), np.nan_to_num(layers, nan=-9))
    assert words(axes) == ["1.00", "0.25", "0.25", "1.00", "0.75", "0.75", "1.00"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["l0/hidden", "l1/hidden", "l2/hidden"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["l0\nhidden", "l1\nhidden", "l2\nhidden"]
    assert not words(panels(drawn(stack(*TWELVE)))[2])


def test_one_site_is_compared_with_the_untrained_network_step_by_step():
    found = replace(findings(), untrained=Similarity(0.5, np.linspace(1, 0, STEPS)))
    axes = panels(drawn({"l0/hidden": found}))[2]
    np.testing.assert_allclose(lines(axes, COLOURS[0])[0].get_xydata(), np.stack([AT + 1, np.linspace(1, 0, STEPS)], 1))
    assert (axes.get_xlabel(), axes.get_ylim()) == ("time step", (-0.05, 1.05))


def test_classes_of_the_top_layer_part_over_the_steps():
    sites = stack("l0/hidden", "l1/hidden")
    classes = sites["l1/hidden"].classes["digit"]
    axes = panels(drawn(sites))[3]
    assert not lines(axes, COLOURS[0])
    apart, settled = lines(axes, COLOURS[1])
    np.testing.assert_array_equal(apart.get_xydata(), np.stack([AT + 1, classes.separation[:-1]], 1))
    np.testing.assert_array_equal(settled.get_ydata(), classes.committed[:-1])
    assert (apart.get_linestyle(), settled.get_linestyle()) == ("-", "--")
    assert legend(axes) == ["variance between classes", f"settled on a class (median: step {classes.commitment:g})"]
    assert axes.get_title(loc="left") == "when do classes of digit part?"


def test_classes_of_steps_settle_nowhere_and_only_some_sites_may_have_them():
    one, other = findings(), findings(1)
    never = {"digit": replace(one.classes["digit"], commitment=np.nan)}
    axes = panels(drawn({"l0/hidden": replace(one, classes=never)}))[3]
    assert legend(axes) == ["variance between classes"]
    axes = panels(drawn({"l0/hidden": replace(one, classes={}), "l0/memory": other}))[3]
    assert [bool(lines(axes, colour)) for colour in COLOURS[:2]] == [False, True]


def test_without_classes_dimensions_are_shown_step_by_step():
    found = findings(classes=0)
    axes = panels(drawn({"l0/hidden": found}))[3]
    np.testing.assert_array_equal(lines(axes, COLOURS[0])[0].get_ydata(), found.shape.participation_by_step)
    assert axes.get_ylim() == pytest.approx((0.9, 1.1 * UNITS))
    assert axes.get_ylabel() == f"participation ratio (1 to {UNITS})"


def test_groups_are_drawn_at_their_steps_and_equal_ones_are_both_seen():
    sites = stack("l0/hidden", "l0/memory")
    axes = panels(usual("l0/hidden", "l0/memory"))[4]
    first, second = axes.get_lines()
    np.testing.assert_array_equal(
        first.get_xydata(), np.stack([AT[COLUMNS] + 1, sites["l0/hidden"].clusters.count[:-1]], 1)
    )
    assert first.get_linewidth() > second.get_linewidth()
    assert axes.get_ylim() == (0, 12.9)


def test_dimensions_are_cumulated_and_numbered():
    found = findings()
    axes = panels(usual("l0/hidden"))[5]
    spectrum = found.shape.spectrum
    np.testing.assert_allclose(
        lines(axes, COLOURS[0])[0].get_xydata(),
        np.stack([np.arange(1, UNITS + 1), np.cumsum(spectrum) / spectrum.sum()], 1),
    )
    assert legend(axes) == [f"l0/hidden: {found.shape.participation_ratio:.1f} of {UNITS}"]
    assert axes.get_ylim() == (0, 1.03)


@pytest.mark.parametrize("names", [["cell/hidden"], SIX, TWELVE])
def test_sites_have_colours_of_their_own_that_all_panels_and_looks_share(names):
    for looks in (2, 4):
        figure = drawn(stack(*names, looks=looks))
        said = [text for text in figure.texts if text.get_text().startswith("●")]
        assert [text.get_text()[2:] for text in said] == [name.replace("_reverse", "_rev") for name in names]
        assert [text.get_color() for text in said] == list(COLOURS[: len(names)])
        assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in said)
        for place in range(len(names)):
            assert lines(panels(figure)[0], COLOURS[place], "-")
            assert lines(panels(figure)[5], COLOURS[place])


def test_first_look_says_what_later_ones_will_show():
    found = replace(findings(looks=1), curves={}, untrained=None, random=None)
    figure = drawn({"l0/hidden": found})
    assert words(panels(figure)[0]) == ["likeness to the untrained network and to the look before:\nnot known"]
    assert words(panels(figure)[1]) == ["likeness of looks to each other:\nneeds two looks at the same sequences"]
    assert words(panels(figure)[2]) == ["likeness to the untrained network, step by step:\nnot known"]


def test_run_without_an_untrained_network_still_shows_the_look_before():
    found = findings()
    known = {"cka_previous": found.curves["cka_previous"]}
    axes = panels(drawn({"l0/hidden": replace(found, untrained=None, random=None, curves=known)}))[0]
    assert legend(axes) == ["with the look before"]


def test_states_that_are_constant_are_said_to_be():
    figure = drawn(stack("l0/hidden", "l0/memory", constant=True, classes=0))
    assert words(panels(figure)[1]) == ["likeness of looks to each other:\nthe states are all the same"]
    assert words(panels(figure)[5]) == ["dimensions:\nthe states do not vary"]


def test_too_few_sequences_for_groups_are_said():
    none = step_clusters(np.zeros((3, 4, UNITS)), np.ones((3, 4), bool))
    for clusters in (None, none):
        axes = panels(drawn({"l0/hidden": replace(findings(), clusters=clusters)}))[4]
        assert words(axes) == ["groups of sequences:\nneeds eight sequences"]


def test_one_step_and_one_look_have_whole_numbers_on_their_axes():
    found = findings(looks=2)
    shape = replace(found.shape, participation_by_step=np.array([2.0]))
    classes = {
        name: replace(one, **{part: getattr(one, part)[-2:] for part in ("separation", "nearest_mean", "committed")})
        for name, one in found.classes.items()
    }
    clusters = replace(
        found.clusters, **{part: getattr(found.clusters, part)[-2:] for part in ("count", "silhouette", "reference")}
    )
    one = replace(
        found,
        shape=shape,
        classes=classes,
        clusters=clusters,
        cluster_columns=np.array([0]),
        untrained=Similarity(0.5, np.array([0.5])),
    )
    figure = drawn({"l0/hidden": one}, steps=np.array([16]))
    for axes, place in ((panels(figure)[0], 0), *((panels(figure)[panel], 17) for panel in (2, 3, 4))):
        inside = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        assert inside == [place]


def test_long_names_are_cut():
    concept = "a_very_long_name_of_a_concept_indeed"
    found = findings()
    figure = drawn({"l0/hidden": replace(found, classes={concept: found.classes["digit"]})})
    title = panels(figure)[3].title if panels(figure)[3].get_title() else panels(figure)[3]._left_title
    assert title.get_text() == "when do classes of a_very_long_nam... part?"
    long = draw_representation(
        "a." * 99 + "rnn", {"l0/hidden": found}, np.eye(1), steps=AT, title="epoch 7"
    ).get_suptitle()
    assert len(long) < 90
    assert long.endswith(".a.rnn look like: epoch 7")


def test_settings_of_the_user_stay_and_the_title_says_when():
    before = dict(rcParams)
    assert (
        drawn({"l0/hidden": findings()}, title="epoch 7").get_suptitle()
        == "what the states of encoder.rnn look like: epoch 7"
    )
    assert dict(rcParams) == before
