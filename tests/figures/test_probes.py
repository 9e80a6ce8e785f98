"""Pictures of probes show the numbers they are given, in every situation, without a warning (warnings are errors)."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_hex

from rnn_callbacks.analysis.probe_findings import COURSE, Baseline, Course
from rnn_callbacks.analysis.probe_scores import Interval, no_reading
from rnn_callbacks.analysis.unit_information import UnitInformation
from rnn_callbacks.figures.probe_panels import BLUE, MOST_NAMED, cut, site_name
from rnn_callbacks.figures.probes import MOST_SITES, MOST_UNITS, draw_probes, draw_units

from .known_probes import NUMBERS, UNITS, course, look, looks, planted_labels, with_units

STEPS = np.array([0, 5, 11, 16, 22])
EPOCHS = [0, 2, 3, 7]


@cache
def stack(classes=3, of_steps=False):
    """Two layers over four looks, the upper one better at the end."""
    return looks(
        lambda share: {"l1/hidden": 0.2 + 1.5 * share, "l0/hidden": 0.5}, EPOCHS, classes=classes, of_steps=of_steps
    )


def drawn(found, courses, *, concept="digit", best="l1/hidden", **options):
    return draw_probes(concept, found, courses, steps=STEPS, best=best, **options)


def rendered(figure):
    """A figure is only known to be drawable once it is drawn."""
    figure.draw_without_rendering()
    return figure


def panels(figure):
    """Axes without the colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def lines(axes, colour, least=0.0):
    return [line for line in axes.get_lines() if to_hex(line.get_color()) == to_hex(colour) and line.get_lw() >= least]


def words(axes):
    return [text.get_text() for text in axes.texts]


def bounds(band):
    """Lower and upper ends of a band at each of its looks."""
    (path,) = band.get_paths()
    times = sorted(set(path.vertices[:, 0]))
    ends = [path.vertices[path.vertices[:, 0] == at, 1] for at in times]
    return times, [end.min() for end in ends], [end.max() for end in ends]


def rows_of(courses, **changes):
    """Courses with other numbers."""
    return {
        site: Course(
            list(one.epochs),
            [[changes.get(name, value) for name, value in zip(COURSE, row, strict=True)] for row in one.rows],
        )
        for site, one in courses.items()
    }


def silenced(finding, why="one class only"):
    """A finding at whose site no probe could be fitted."""
    none = no_reading(why)
    probed = replace(
        finding.probed, readings=(none,) * len(finding.probed.readings), headline=none, shuffled=np.empty(0)
    )
    wide = Interval(-np.inf, np.inf)
    return replace(finding, probed=probed, untrained=None, input=None, score=wide, bits=wide)


# ---- over epochs -----------------------------------------------------------------------------------------------------


def test_score_of_the_best_site_is_drawn_with_its_interval():
    found, courses = stack()
    axes = panels(drawn(found, courses))[0]
    (line,) = lines(axes, BLUE)
    np.testing.assert_array_equal(line.get_xdata(), EPOCHS)
    np.testing.assert_array_equal(line.get_ydata(), courses["l1/hidden"]["score"])
    (band,) = [band for band in axes.collections if band.get_alpha()]
    at, low, high = bounds(band)
    assert at == EPOCHS
    np.testing.assert_allclose(low, courses["l1/hidden"]["score_low"])
    np.testing.assert_allclose(high, courses["l1/hidden"]["score_high"])
    assert axes.get_ylim() == (0, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "balanced accuracy")
    assert f"l1/hidden {courses['l1/hidden']['score'][-1]:.2f}" in words(axes)


@pytest.mark.parametrize(
    ("quantity", "name", "colour", "style"),
    [
        ("untrained", "untrained", "black", "--"),
        ("input", "input", "#D55E00", ":"),
        ("control", "control task", "#CC79A7", "-"),
    ],
)
def test_each_control_has_its_line_and_its_name_and_neither_where_it_does_not_exist(quantity, name, colour, style):
    found, courses = stack()
    axes = panels(drawn(found, courses))[0]
    (line,) = lines(axes, colour)
    np.testing.assert_array_equal(line.get_ydata(), courses["l1/hidden"][quantity])
    assert line.get_linestyle() == style
    assert f"{name} {courses['l1/hidden'][quantity][-1]:.2f}" in words(axes)
    axes = panels(drawn(found, rows_of(courses, **{quantity: np.nan})))[0]
    assert not lines(axes, colour)
    assert not [text for text in words(axes) if text.startswith(name)]


def test_shuffled_labels_are_a_grey_band_or_else_chance_a_line():
    found, courses = stack()
    axes = panels(drawn(found, courses))[0]
    (band,) = [band for band in axes.collections if not band.get_alpha()]
    _, low, high = bounds(band)
    np.testing.assert_allclose(low, courses["l1/hidden"]["shuffled_low"])
    np.testing.assert_allclose(high, courses["l1/hidden"]["shuffled_high"])
    assert "shuffled" in words(axes)
    axes = panels(drawn(found, rows_of(courses, shuffled_low=np.nan, shuffled_high=np.nan)))[0]
    assert "shuffled" not in words(axes)
    assert "chance 0.33" in words(axes)
    assert [list(line.get_ydata()) for line in lines(axes, "0.85")] == [[1 / 3, 1 / 3]]


def test_other_sites_are_thin_and_light():
    found, courses = stack()
    axes = panels(drawn(found, courses))[0]
    (line,) = lines(axes, "0.78")
    np.testing.assert_array_equal(line.get_ydata(), courses["l0/hidden"]["score"])
    assert line.get_linewidth() < 1
    assert "other sites" in words(axes)
    alone = {"l1/hidden": found["l1/hidden"]}, {"l1/hidden": courses["l1/hidden"]}
    assert "other sites" not in words(panels(drawn(*alone))[0])


def test_names_keep_apart_and_in_the_order_of_their_values():
    found, courses = stack()
    axes = panels(drawn(found, rows_of(courses, untrained=0.5, input=0.51, control=0.49, shuffled_low=0.4)))[0]
    height = {text.get_text().split(" 0")[0]: text.get_position()[1] for text in axes.texts}
    assert height["control task"] < height["untrained"] < height["input"]
    assert np.diff(sorted(height.values())).min() > 0.079
    assert max(height.values()) <= 1.03


def test_bits_of_every_site_lie_between_nothing_and_the_entropy():
    found, courses = stack()
    axes = panels(drawn(found, courses))[1]
    (best,) = lines(axes, BLUE)
    np.testing.assert_array_equal(best.get_ydata(), courses["l1/hidden"]["bits"])
    (other,) = [line for line in axes.get_lines() if line.get_lw() == 1.1]
    np.testing.assert_array_equal(other.get_ydata(), courses["l0/hidden"]["bits"])
    assert best.get_linewidth() > 2 * other.get_linewidth()
    entropy = found["l1/hidden"].probed.headline.entropy
    levels = {line.get_ydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert levels == {0, entropy}
    assert f"all: {entropy:.2f} bits" in words(axes)
    (band,) = axes.collections
    np.testing.assert_allclose(bounds(band)[1], courses["l1/hidden"]["bits_low"])
    (untrained,) = lines(axes, "black")
    np.testing.assert_array_equal(untrained.get_ydata(), courses["l1/hidden"]["untrained_bits"])
    assert axes.get_ylim() == pytest.approx((-0.1 * entropy, 1.12 * entropy))
    assert {"l0/hidden", "l1/hidden", "untrained"} <= set(words(axes))


def test_one_look_is_visible_as_dots_strokes_and_levels():
    found = stack()[0]
    figure = rendered(drawn(found, course(found)))
    for axes, quantity in zip(panels(figure), ("score", "bits"), strict=False):
        (dot,) = lines(axes, BLUE)
        assert (dot.get_marker(), list(dot.get_xdata())) == ("o", [3])
        assert dot.get_ydata()[0] == course(found)["l1/hidden"][quantity][0]
        (stroke,) = [band for band in axes.collections if band.get_alpha()]
        assert stroke.get_linewidth()[0] > 1
        (untrained,) = lines(axes, "black")
        assert list(untrained.get_xdata()) == [2.5, 3.5]
        assert axes.get_xlim() == (2.5, 3.5)


def test_look_between_two_without_a_probe_is_a_dot_however_many_there_are():
    found, _ = stack()
    row = course(found)["l1/hidden"].rows[0]
    silent = [np.nan] * len(COURSE)
    many = {"l1/hidden": Course(list(range(100)), [row if epoch == 50 else silent for epoch in range(100)])}
    for axes in panels(rendered(drawn(found, many)))[:2]:
        (line,) = lines(axes, BLUE)
        assert (line.get_marker(), line.get_markevery()) == ("o", [50])
        assert lines(axes, "black")[0].get_markevery() == [50]
    whole = {"l1/hidden": Course(list(range(100)), [row] * 100)}
    assert [line.get_marker() for line in lines(panels(drawn(found, whole))[0], BLUE)] == [""]


def test_more_sites_than_colours_are_grey_and_counted_and_those_with_most_bits_are_named():
    one = stack()[0]["l1/hidden"]
    names = [
        f"l{layer}{way}/{part}" for layer in (2, 0, 1) for way in ("", "_reverse") for part in ("hidden", "memory")
    ]
    courses = {}
    for place, site in enumerate(names):
        courses[site] = rows_of(course({site: one}), bits=0.1 * place)[site]
    figure = drawn(dict.fromkeys(names, one), courses, best="l0/hidden")
    axes = panels(figure)[1]
    named = [text for text in words(axes) if "/" in text]
    assert sorted(named) == sorted([site_name(site) for site in names[-MOST_NAMED:]] + ["l0/hidden"])
    assert axes.get_title(loc="left") == f"how much is read, by layer ({len(names) - 1 - MOST_NAMED} more in grey)"
    assert len(lines(axes, "0.8")) == len(names) - 1 - MOST_NAMED
    ticks = [text.get_text() for text in panels(figure)[2].get_yticklabels()]
    assert [tick[:2] for tick in ticks] == ["l0"] * 4 + ["l1"] * 4 + ["l2"] * 4


# ---- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_steps", [False, True])
def test_heat_map_is_the_score_of_every_site_and_step_with_the_lowest_layer_at_the_bottom(of_steps):
    found, courses = stack(3, of_steps)
    axes = panels(drawn(found, courses))[2]
    steps, end = axes.get_images()
    scores = np.stack([found[site].probed.column("score") for site in ("l0/hidden", "l1/hidden")])
    np.testing.assert_array_equal(steps.get_array(), scores[:, :-1])
    np.testing.assert_array_equal(end.get_array(), scores[:, -1:])
    assert steps.get_clim() == end.get_clim() == (1 / 3, 1)
    assert steps.origin == end.origin == "lower"
    assert end.get_extent()[0] > steps.get_extent()[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "6", "12", "17", "23", "end"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["l0/hidden", "l1/hidden"]
    assert [text.get_fontweight() for text in axes.get_yticklabels()] == ["normal", "bold"]
    assert sorted(words(axes)) == sorted(f"{score:.2f}" for score in scores.ravel())


def test_columns_without_a_probe_are_grey_and_said():
    found, courses = stack()
    upper = found["l1/hidden"]
    readings = (no_reading("too few sequences"), *upper.probed.readings[1:])
    found = found | {"l1/hidden": replace(upper, probed=replace(upper.probed, readings=readings))}
    axes = panels(rendered(drawn(found, courses)))[2]
    assert axes.get_images()[0].get_array().mask.tolist() == [[False] * 5, [True] + [False] * 4]
    assert axes.get_xlabel() == "time step (end: read last); grey: no probe"
    assert to_hex(axes.get_facecolor()) == to_hex("0.88")


# ---- classes and quantities ------------------------------------------------------------------------------------------


def test_confusion_is_a_share_of_each_true_class_with_the_users_numbers():
    found, courses = stack()
    axes = panels(drawn(found, courses))[3]
    (image,) = axes.get_images()
    confusion = found["l1/hidden"].probed.headline.confusion
    np.testing.assert_allclose(image.get_array(), confusion / confusion.sum(1)[:, None])
    assert image.get_clim() == (0, 1)
    assert image.origin == "upper"
    names = [str(NUMBERS + place) for place in range(3)]
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert words(axes) == [f"{share:.2f}" for share in (confusion / confusion.sum(1)[:, None]).ravel()]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class told (share of each true class)", "true class")


def test_class_that_was_not_held_out_has_an_empty_row():
    found, courses = stack()
    upper = found["l1/hidden"]
    confusion = np.array([[2, 2, 0], [0, 0, 0], [0, 1, 3]])
    probed = replace(upper.probed, headline=replace(upper.probed.headline, confusion=confusion))
    axes = panels(drawn(found | {"l1/hidden": replace(upper, probed=probed)}, courses))[3]
    assert axes.get_images()[0].get_array().mask.all(1).tolist() == [False, True, False]
    assert len(words(axes)) == 6


def test_many_classes_have_a_colour_bar_and_fewer_ticks_in_place_of_numbers():
    found = look({"l1/hidden": 1.0}, classes=64, concept=planted_labels(64, sequences=431))
    figure = rendered(drawn(found, course(found)))
    axes = panels(figure)[3]
    assert not words(axes)
    assert 5 <= len(axes.get_xticks()) <= 12
    assert 5 <= len(axes.get_yticks()) <= 12
    assert [axes.get_label() for axes in figure.axes].count("<colorbar>") == 2
    assert axes.get_xticklabels()[1].get_text() == str(NUMBERS + axes.get_xticks()[1])


def test_quantity_is_drawn_by_site_against_its_controls():
    found, courses = stack(0)
    figure = rendered(drawn(found, courses))
    axes, sites = panels(figure)[3], ["l0/hidden", "l1/hidden"]
    of = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(of["untrained"].get_xdata(), [found[site].untrained.score for site in sites])
    np.testing.assert_array_equal(of["input"].get_xdata(), [found[site].input.score for site in sites])
    np.testing.assert_allclose(of["shuffled"].get_xdata(), [found[site].probed.shuffled.mean() for site in sites])
    best = found["l1/hidden"]
    assert of["this network (95 %)"].get_xdata() == best.probed.headline.score
    bars = [list(line.get_xdata()) for line in axes.get_lines() if line.get_linewidth() == 3]
    assert bars[1] == [best.score.low, best.score.high]
    assert axes.get_xlim() == (-0.25, 1.05)
    assert (axes.get_xlabel(), panels(figure)[0].get_ylabel()) == ("R²", "R²")
    assert panels(figure)[2].get_images()[0].get_clim() == (0, 1)
    assert not [text for text in words(panels(figure)[1]) if text.startswith("all")]


def test_quantity_without_controls_is_drawn_alone():
    found = look({"l1/hidden": 1.0}, classes=0, controls=False)
    figure = rendered(drawn(found, course(found)))
    labels = [line.get_label() for line in panels(figure)[3].get_lines()]
    assert [label for label in labels if label[0] != "_"] == ["this network (95 %)"]
    assert [text.split()[0] for text in words(panels(figure)[0])] == ["chance", "l1/hidden"]


@pytest.mark.parametrize(("lowest", "limit"), [(-0.3, -0.5), (-40.0, -1.0)])
def test_r_squared_below_zero_widens_the_axis_but_not_without_end(lowest, limit):
    found, courses = stack(0)
    assert panels(drawn(found, rows_of(courses, untrained=lowest)))[0].get_ylim() == (limit, 1)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_heading_says_what_was_found_where_and_against_what():
    found, courses = stack()
    before = dict(rcParams)
    figure = rendered(drawn(found, courses, title="rnn, epoch 7"))
    assert dict(rcParams) == before
    assert figure.get_suptitle() == "digit: rnn, epoch 7"
    best = found["l1/hidden"]
    assert figure.texts[1].get_text() == (
        f"better than untrained: {best.probed.headline.score:.2f} from l1/hidden, at the end of the sequence "
        f"(untrained {best.untrained.score:.2f}, input {best.input.score:.2f}, chance 0.33)"
    )
    assert drawn(found, courses).get_suptitle() == "digit"
    assert "l1/hidden, all steps together" in drawn(*stack(3, True)).texts[1].get_text()
    assert drawn(*stack(0)).texts[1].get_text().startswith("better than untrained: R² 0.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q_value": 0.06, "p_value": 0.01}, "not readable"),
        ({"q_value": 0.04}, "better than untrained"),
        ({"p_value": np.nan}, "not readable"),
        ({"over_untrained_interval": Interval(-0.01, 0.2)}, "readable, but no better than untrained"),
        ({"over_untrained_interval": Interval(-np.inf, np.inf)}, "readable"),
        ({"untrained": None}, "readable"),
        ({"over_input": -0.01}, "readable, but no better than the input"),
        ({"over_input": np.nan}, "better than untrained"),
    ],
)
def test_judgement_holds_what_was_read_against_chance_and_controls(changes, said):
    found, courses = stack()
    found = found | {"l1/hidden": replace(found["l1/hidden"], **changes)}
    assert drawn(found, courses).texts[1].get_text().split(":")[0] == said


@pytest.mark.parametrize("classes", [0, 3])
def test_without_any_probe_every_panel_says_why(classes):
    found = {site: silenced(finding) for site, finding in stack(classes)[0].items()}
    figure = rendered(drawn(found, course(found)))
    assert [words(axes) for axes in figure.axes] == [["no probe of l1/hidden:\none class only"]] * 4
    assert figure.texts[1].get_text() == "no probe of l1/hidden, at the end of the sequence: one class only"


def test_earlier_looks_remain_where_the_last_one_has_no_probe():
    found, courses = stack()
    courses = {site: Course(list(one.epochs), list(one.rows)) for site, one in courses.items()}
    found = {site: silenced(finding) for site, finding in found.items()}
    for site, finding in found.items():
        courses[site].add(8, finding)
    figure = rendered(drawn(found, courses))
    (line,) = lines(panels(figure)[0], BLUE)
    assert np.isnan(line.get_ydata()).tolist() == [False] * 4 + [True]
    assert "untrained 0." in " ".join(words(panels(figure)[0]))
    assert words(panels(figure)[3]) == ["no probe of l1/hidden:\none class only"]


def test_control_without_a_score_is_not_mentioned():
    found, courses = stack()
    none = Baseline(np.full(6, np.nan), np.nan, np.nan, None)
    found = found | {"l1/hidden": replace(found["l1/hidden"], input=none, over_input=np.nan)}
    assert "input" not in drawn(found, courses).texts[1].get_text()


def test_long_names_are_cut():
    found, courses = stack()
    heading = drawn(found, courses, concept="x" * 200, title="rnn, epoch 7").get_suptitle()
    assert heading.endswith("...: rnn, epoch 7")
    assert len(heading) < 90
    assert site_name("l0_reverse/memory") == "l0_rev/memory"
    assert site_name("encoder.l10_reverse/memory") == "....l10_rev/memory"
    assert cut("x" * 19) == "x" * 15 + "..."


def test_mismatched_arguments_are_refused():
    found, courses = stack()
    with pytest.raises(ValueError, match=r"l7/hidden needs a finding and a course, got those of \['l1/hidden'"):
        draw_probes("digit", found, courses, steps=STEPS, best="l7/hidden")
    with pytest.raises(ValueError, match=r"4 steps and the end need 5 readings, got \[6\]"):
        draw_probes("digit", found, courses, steps=STEPS[1:], best="l1/hidden")


# ---- units -----------------------------------------------------------------------------------------------------------


def informed(*shares):
    """Findings of one site with these shares by concept, each (H,)."""
    one = stack()[0]["l1/hidden"]
    return [replace(one, information=UnitInformation(2 * np.array(s), np.zeros(len(s)), 2.0)) for s in shares]


def units(found, **options):
    return rendered(draw_units("rnn", found, **options))


def test_units_of_one_concept_stand_together_the_strongest_first():
    digit, speed = informed([0.1, 0.0, 0.9, 0.3, 0.02], [0.0, 0.8, 0.2, 0.5, 0.01])
    figure = units({("l0/hidden", "digit"): digit, ("l0/hidden", "speed"): speed}, title="epoch 3")
    axes = panels(figure)[0]
    (image,) = axes.get_images()
    order = [2, 0, 4, 1, 3]
    np.testing.assert_allclose(
        image.get_array(), np.stack([digit.information.share, speed.information.share])[:, order]
    )
    assert image.get_clim() == (0, 1)
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(unit) for unit in order]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["digit", "speed"]
    assert words(axes) == ["unit 2: 0.90", "unit 1: 0.80"]
    assert [tuple(line.get_xydata()[0]) for line in axes.get_lines()] == [(0, 0), (3, 1)]
    assert axes.get_title(loc="left") == "l0/hidden: 5 units"
    assert figure.get_suptitle() == "rnn: epoch 3"


def test_planted_unit_is_the_best_one():
    one = stack()[0]["l1/hidden"]
    states = np.random.default_rng(0).normal(size=(len(one.probed.concept.labels), UNITS))
    states[:, 4] += 3 * one.probed.concept.labels[:, 0]
    axes = panels(units({("l1/hidden", "digit"): with_units(one, states)}))[0]
    assert words(axes)[0].startswith("unit 4: 0.")
    assert axes.get_xticklabels()[0].get_text() == "4"


def test_units_that_tell_little_are_said_and_not_magnified():
    (weak,) = informed([0.07, 0.01, -0.02])
    axes = panels(units({("l0/hidden", "digit"): weak}))[0]
    assert axes.get_title(loc="left") == "l0/hidden: 3 units, none tells more than 7% of a concept"
    assert axes.get_images()[0].get_clim() == (0, 1)


def test_first_sites_are_shown_and_the_others_counted():
    (one,) = informed([0.5, 0.1])
    figure = units({(f"l{layer}/hidden", "digit"): one for layer in (5, 4, 3, 2, 1, 0)})
    titles = [axes.get_title(loc="left") for axes in panels(figure)]
    assert titles == [f"l{layer}/hidden: 2 units" for layer in range(MOST_SITES)]
    assert figure.texts[1].get_text().endswith(f"(first {MOST_SITES} of 6 sites)")


def test_many_units_have_no_numbers_below_them():
    (many,) = informed(np.linspace(0, 1, MOST_UNITS + 1))
    axes = panels(units({("l0/hidden", "digit"): many}))[0]
    assert not len(axes.get_xticks())
    assert words(axes) == [f"unit {MOST_UNITS}: 1.00"]


def test_findings_without_information_are_left_out():
    one = stack()[0]["l1/hidden"]
    (informative,) = informed([0.5, 0.1])
    figure = units({("l0/hidden", "digit"): one, ("l1/hidden", "digit"): informative, ("l1/hidden", "speed"): one})
    assert [text.get_text() for text in panels(figure)[0].get_yticklabels()] == ["digit"]
    assert len(panels(figure)) == 1
    for nothing in ({}, {("l0/hidden", "digit"): one}):
        assert words(panels(units(nothing))[0]) == ["no concept whose information in single units was measured"]
