"""Pictures of a comparison show its numbers, and say what they leave out."""

from pathlib import Path

import numpy as np
import pytest

from rnn_callbacks.compare.cast import MOST_GROUPS, MOST_LINES, choose_cast
from rnn_callbacks.compare.pictures import (
    MOST_PANELS,
    MOST_POINTS,
    choose_sections,
    figures_of,
    middle,
    points_of,
    thin,
)
from rnn_callbacks.compare.planes import MOST_FRAMES, choose_planes
from rnn_callbacks.compare.quantities import quantity_of
from rnn_callbacks.compare.series import Series
from rnn_callbacks.figures.comparison import BLACK

from .page_runs import PLACE, add_looks, comparison_of, embedding_of, run, runs_of, series

METRIC = quantity_of("val_loss")


def sections_of(comparison):
    return {section.key: section for section in choose_sections(comparison, choose_cast(comparison))}


def panel_of(comparison, tag):
    return next(
        p.panel for s in sections_of(comparison).values() for p in s.pictures if p.quantity.tag == tag
    )  # fmt: skip


def line_of(panel, key):
    return next(line for line in panel.lines if line.key == key)


# ---- who is drawn --------------------------------------------------------------------------------------------------


def test_a_group_has_one_colour_in_every_panel():
    comparison = comparison_of(runs_of())
    colours = {}
    for section in sections_of(comparison).values():
        for picture in section.pictures:
            for line in picture.panel.lines:
                colours.setdefault(line.key, set()).add(line.colour)
    assert set(colours) == {f"run{n}" for n in range(6)} | {"group0", "group1"}
    assert all(len(found) == 1 for found in colours.values())
    for number, group in enumerate(comparison.groups):
        assert {frozenset(colours[f"run{member}"]) for member in group.runs} == {frozenset(colours[f"group{number}"])}
    assert colours["group0"] != colours["group1"]


def test_seeds_of_one_configuration_have_a_colour_each():
    cast = choose_cast(comparison_of(runs_of(4, ("gru",))))
    assert len(set(cast.run_styles.values())) == 4
    assert cast.group_styles == {0: (BLACK, "-")}


def test_twenty_configurations_can_be_told_apart():
    cast = choose_cast(comparison_of([run(f"r{n}", seed=n, cell=f"c{n}") for n in range(20)]))
    assert len(set(cast.run_styles.values())) == 20
    assert not cast.rest
    assert cast.singly
    assert not cast.left_out


def test_of_too_many_configurations_the_best_are_in_colour():
    levels = np.random.default_rng(0).permutation(60) / 10
    comparison = comparison_of([run(f"r{n}", seed=n, cell=f"c{n}", level=level) for n, level in enumerate(levels)])
    cast = choose_cast(comparison)
    assert sorted(levels[cast.runs]) == sorted(levels)[:MOST_GROUPS]
    assert len(cast.rest) == 60 - MOST_GROUPS
    assert f"other {60 - MOST_GROUPS} runs" in cast.left_out
    (line,) = (line for line in panel_of(comparison, "val_loss").lines if line.key == "rest")
    others = np.array([comparison.series[number]["val_loss"].values for number in cast.rest])
    np.testing.assert_allclose(line.y, np.median(others, 0))
    np.testing.assert_allclose(line.band, np.stack([others.min(0), others.max(0)], 1))


def test_of_many_runs_groups_are_drawn_as_mean_and_range():
    comparison = comparison_of(runs_of(MOST_LINES))
    panel = panel_of(comparison, "val_loss")
    assert {line.key for line in panel.lines} == {"group0", "group1"}
    members = np.array([comparison.series[number]["val_loss"].values for number in comparison.groups[0].runs])
    line = line_of(panel, "group0")
    np.testing.assert_allclose(line.y, members.mean(0))
    np.testing.assert_allclose(line.band, np.stack([members.min(0), members.max(0)], 1))
    assert "mean" in choose_cast(comparison).left_out


# ---- what is drawn -------------------------------------------------------------------------------------------------


def test_lines_are_what_was_logged():
    comparison = comparison_of(runs_of())
    for number in range(6):
        line = line_of(panel_of(comparison, "val_loss"), f"run{number}")
        np.testing.assert_array_equal(line.y, comparison.runs[number].series["val_loss"].values)
        np.testing.assert_array_equal(line.x, np.arange(6))


def test_the_mean_of_a_logarithmic_quantity_is_the_geometric_one():
    comparison, tag = comparison_of(runs_of()), f"gates/{PLACE}/timescale/q50"
    members = np.array([comparison.series[number][tag].values for number in comparison.groups[1].runs])
    np.testing.assert_allclose(line_of(panel_of(comparison, tag), "group1").y, np.exp(np.log(members).mean(0)))


def test_ratios_and_losses_that_fall_far_are_drawn_by_their_logarithm():
    falls, stays = series(np.exp(-np.arange(6.0))), series(np.linspace(2, 1, 6))
    comparison = comparison_of([run("a", far_loss=falls, near_loss=stays, accuracy=falls)])
    tags = ("far_loss", "near_loss", "accuracy", f"gates/{PLACE}/timescale/q50")
    assert [panel_of(comparison, tag).logarithmic for tag in tags] == [True, False, False, True]


def test_a_run_that_repeats_another_does_not_count_in_the_mean():
    runs = [*runs_of(2, ("gru",)), run("again", seed=1)]
    comparison = comparison_of(runs)
    values = [found["val_loss"].values for found in comparison.series]
    np.testing.assert_allclose(line_of(panel_of(comparison, "val_loss"), "group0").y, (values[0] + values[1]) / 2)


def test_a_mean_ends_where_its_first_run_ends():
    usual, band = middle([(np.arange(4.0), np.ones(4)), (np.arange(2.0), np.full(2, 3.0))], False)
    np.testing.assert_array_equal(usual, [2, 2, np.nan, np.nan])
    np.testing.assert_array_equal(band[:2], [[1, 3], [1, 3]])


def test_what_never_changes_has_no_panel_but_is_named():
    found = sections_of(comparison_of(runs_of()))
    assert found["gradient_flow"].pictures == []
    assert found["gradient_flow"].constant == ["share of steps clipped (0)"]
    flags = [p for s in found.values() for p in s.pictures if p.quantity.is_flag]
    assert flags == []


def test_of_too_many_quantities_those_that_differ_stay():
    extra = {f"m{number:03}_loss": series(np.arange(6) + number) for number in range(MOST_PANELS + 5)}
    runs = runs_of(4, **extra)
    for number, found in enumerate(runs):
        shift = 5.0 * (found.hyperparameters["cell"] == "lstm")
        found.series["z_last_loss"] = series(np.arange(6) + shift + 0.01 * number)
    comparison = comparison_of(runs)
    metrics = sections_of(comparison)["metrics"]
    shown = [picture.quantity.tag for picture in metrics.pictures]
    assert len(shown) == MOST_PANELS
    assert "z_last_loss" in {found.quantity.tag for found in comparison.claimed} & set(shown)
    assert len(metrics.left_out) == len(extra) + 2 - MOST_PANELS


def test_nothing_infinite_is_drawn_and_it_is_said():
    bad = series([1.0, np.inf, np.nan, -np.inf, 2.0, 3.0])
    (picture,) = (p for p in sections_of(comparison_of([run("a", bad_loss=bad)]))["metrics"].pictures
                  if p.quantity.tag == "bad_loss")  # fmt: skip
    assert "3 not finite" in picture.note
    zero = {f"gates/{PLACE}/timescale/q90": series([0, 0, 1, 2, 30, 40])}
    (picture,) = (p for p in sections_of(comparison_of([run("a", **zero)]))["gates"].pictures
                  if p.quantity.tag.endswith("q90"))  # fmt: skip
    assert "2 of 0 or less" in picture.note


def test_events_are_added_up_and_what_stands_for_none_is_left_out():
    births = quantity_of("fixed_points/reader/zero/births")
    _, y = points_of(series([1, 0, 2, np.nan, 1]), births, "epoch", 0.0)
    np.testing.assert_array_equal(y, [1, 1, 3, 3, 4])
    emergence = quantity_of("probes/concepts/ink/emergence_epoch")
    _, y = points_of(series([-1, -1, 4]), emergence, "epoch", 0.0)
    np.testing.assert_array_equal(y, [np.nan, np.nan, 4])


def test_several_numbers_of_an_epoch_end_where_the_epoch_does():
    logged = series(np.arange(9), per_epoch=3)
    x, _ = points_of(logged, METRIC, "epoch", 0.0)
    np.testing.assert_allclose(x[[2, 5, 8]], [0, 1, 2])
    np.testing.assert_allclose(np.diff(x), 1 / 3)
    late = Series(logged.steps, logged.values, logged.walls, np.where(logged.epochs == 0, np.nan, logged.epochs))
    x, y = points_of(late, METRIC, "epoch", 0.0)
    assert len(x) == 6
    np.testing.assert_array_equal(y, np.arange(3, 9))


@pytest.mark.parametrize("axis", ["step", "time"])
def test_other_axes_are_those_of_the_series(axis):
    logged = series(np.arange(4))
    x, _ = points_of(logged, METRIC, axis, 1e9)
    np.testing.assert_array_equal(x, [0, 5, 10, 15])


@pytest.mark.parametrize("place", [0, 1, 4321, 9998, 9999])
def test_thinning_keeps_every_spike_and_both_ends(place):
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000) / 50)
    y[place] = 1e6
    at, values = thin(x, y)
    assert len(at) <= MOST_POINTS
    assert (at[0], at[-1]) == (0, 9999)
    assert values[at == place] == [1e6]
    assert (np.diff(at) > 0).all()
    np.testing.assert_array_equal(values, y[at.astype(int)])
    y[:] = np.nan
    assert np.isnan(thin(x, y)[1]).all()


def test_long_series_are_thinned_and_it_is_said():
    long = series(np.random.default_rng(0).normal(size=10_000), per_epoch=1000)
    comparison = comparison_of([run("a", long_loss=long)])
    (picture,) = (p for p in sections_of(comparison)["metrics"].pictures if p.quantity.tag == "long_loss")
    assert len(line_of(picture.panel, "run0").x) <= MOST_POINTS
    assert "10000 points" in picture.note


# ---- planes --------------------------------------------------------------------------------------------------------


def test_each_look_is_seen_until_the_next_one(tmp_path):
    runs = [add_looks(run("a"), tmp_path, [1, 3]), add_looks(run("b", seed=5), tmp_path, [2, 3, 5], shift=0.3)]
    comparison = comparison_of(runs)
    planes = choose_planes(comparison, choose_cast(comparison))
    assert planes.labels == ["epoch 1", "epoch 2", "epoch 3", "epoch 5"]
    (found,) = planes.landscapes
    spans = [[(f.first, f.last) for f in panel.tracks[0].frames] for panel in found.skeletons]
    assert spans == [[(0, 1), (2, 3)], [(1, 1), (2, 2), (3, 3)]]
    assert found.context == "reader/zero"


def test_eigenvalues_and_kinds_are_those_of_the_look(tmp_path):
    found = add_looks(run("a"), tmp_path, [1, 3], kinds=("saddle", "attractor", "repeller"))
    comparison = comparison_of([found])
    (landscape,) = choose_planes(comparison, choose_cast(comparison)).landscapes
    saved = found.read_look(found.looks["fixed_points"][1]).report.arrays
    frame = landscape.eigenvalues[0].tracks[0].frames[1]
    told = {complex(*np.round(point, 6)) for point in frame.points}
    assert told == {complex(np.round(v, 6)) for v in saved["fixed_points/reader/zero/eigenvalues"].ravel()}
    frame = landscape.skeletons[0].tracks[0].frames[1]
    states = saved["fixed_points/reader/zero/states"]
    kinds = saved["fixed_points/reader/zero/kind"].tolist()
    order = [kinds.index(kind) for kind in frame.kinds]
    assert sorted(order) == [0, 1, 2]
    everything = np.concatenate([
        found.read_look(look).report.arrays["fixed_points/reader/zero/states"] for look in found.looks["fixed_points"]
    ])  # fmt: skip
    centred = everything - everything.mean(0)
    axes = np.linalg.svd(centred)[2][:2]
    expected = (states[order] - everything.mean(0)) @ axes.T
    np.testing.assert_allclose(np.abs(frame.points), np.abs(expected), atol=1e-9)  # axes may be turned around


def test_a_layer_is_called_as_in_the_tables(tmp_path):
    runs = []
    for number, name in enumerate(("lstm", "gru")):
        found = add_looks(run(name, seed=number, cell=name), tmp_path, [1, 3], shift=0.01 * number, place=name)
        renamed = {tag.replace(PLACE, f"{name}.l0"): values for tag, values in found.series.items()}
        found.series = renamed | {f"fixed_points/{name}/zero/attractors": series(np.arange(6))}
        runs.append(found)
    comparison = comparison_of(runs)
    (landscape,) = choose_planes(comparison, choose_cast(comparison)).landscapes
    assert landscape.context == "recurrent/zero"
    assert len(landscape.skeletons) == 2


def test_damaged_looks_are_left_out_and_named(tmp_path):
    found = add_looks(run("a"), tmp_path, [1, 3, 4])
    Path(found.looks["fixed_points"][1].path).write_bytes(b"no archive")
    comparison = comparison_of([found])
    (landscape,) = choose_planes(comparison, choose_cast(comparison)).landscapes
    assert len(landscape.skeletons[0].tracks[0].frames) == 2
    assert len(found.problems) == 1


def test_a_look_without_points_is_a_frame_without_points(tmp_path):
    found = add_looks(add_looks(run("a"), tmp_path, [1]), tmp_path, [2], kinds=(), shift=0.5)
    comparison = comparison_of([found])
    (landscape,) = choose_planes(comparison, choose_cast(comparison)).landscapes
    assert [len(frame.points) for frame in landscape.skeletons[0].tracks[0].frames] == [2, 0]


def test_of_many_looks_some_are_drawn_with_the_first_and_the_last(tmp_path):
    found = add_looks(run("a"), tmp_path, range(60))
    comparison = comparison_of([found])
    planes = choose_planes(comparison, choose_cast(comparison))
    assert len(planes.places) == MOST_FRAMES
    assert (planes.labels[0], planes.labels[-1]) == ("epoch 0", "epoch 59")
    assert "evenly chosen" in planes.landscapes[0].left_out


def test_the_slider_stays_short_where_runs_have_unlike_looks(tmp_path):
    runs = [add_looks(run(f"r{n}", seed=n), tmp_path, range(n, 60, 3), shift=0.01 * n) for n in range(3)]
    comparison = comparison_of(runs)
    assert len(choose_planes(comparison, choose_cast(comparison)).places) == MOST_FRAMES


def test_dots_of_a_path_follow_the_slider():
    comparison = comparison_of(runs_of(2))
    joint = embedding_of(4, points=3)
    planes = choose_planes(comparison, choose_cast(comparison), [joint])
    assert planes.labels == ["before training", "epoch 0", "epoch 1"]
    ((_, (pca, phate)),) = planes.embeddings
    for number, track in enumerate(pca.tracks):
        np.testing.assert_array_equal(track.path, joint.components[3 * number : 3 * number + 3])
        np.testing.assert_array_equal(np.concatenate([frame.points for frame in track.frames]), track.path)
    np.testing.assert_array_equal(phate.tracks[1].path, joint.phate[3:6])


def test_pictures_stand_alone_as_well(tmp_path):
    comparison = comparison_of([add_looks(run("a"), tmp_path, [1, 3]), run("b", seed=2, cell="lstm")])
    figures = figures_of(comparison, [embedding_of(2)])
    assert set(figures) == {
        "metrics", "gates", "eigenvalues/reader/zero", "skeletons/reader/zero", "weights/0/pca", "weights/0/phate"
    }  # fmt: skip
    assert [text.get_text() for text in figures["metrics"].legends[0].get_texts()] == ["cell=gru", "cell=lstm"]


def test_a_joint_path_names_the_groups_that_are_in_it():
    comparison = comparison_of([run("a"), run("b", seed=2, cell="lstm")])
    figures = figures_of(comparison, [embedding_of(1, phate=False)])
    assert [text.get_text() for text in figures["weights/0/pca"].legends[0].get_texts()] == ["cell=gru"]
