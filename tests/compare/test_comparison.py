import json

import numpy as np
import pytest

from rnn_callbacks.compare import compare, load_runs
from rnn_callbacks.compare.metric_choice import choose_metric
from rnn_callbacks.compare.words import headline

from .known_runs import run, seeds, series, write_run, write_snapshots


def tags(found):
    return [one.quantity.tag for one in found]


def test_a_run_against_itself_differs_nowhere():
    one = seeds(1, np.random.default_rng(0))[0]
    comparison = compare([one, run("again", one.series, one.hyperparameters)])
    assert comparison.claimed == []
    assert not comparison.settings
    np.testing.assert_array_equal(comparison.values["final"][:, 0], comparison.values["final"][:, 1])
    assert "Nothing differs anywhere: every number is the same in all runs." in headline(comparison)


def test_two_planted_differences_are_found_and_nothing_else():
    generator = np.random.default_rng(1)
    runs = seeds(4, generator, cell="gru") + seeds(4, generator, cell="lstm", shift=(12, -12))
    comparison = compare(runs)
    assert set(tags(comparison.claimed)) == {"m0", "m1"}
    assert {one.quantity.tag: np.sign(one.effect) for one in comparison.claimed} == {"m0": 1, "m1": -1}


def test_splits_of_twenty_runs_of_one_configuration_claim_nothing():
    runs = seeds(20, np.random.default_rng(2))
    generator = np.random.default_rng(3)
    claims = 0
    for _ in range(40):
        sides = generator.permutation(20) < generator.integers(3, 18)
        for one, side in zip(runs, sides, strict=True):
            one.hyperparameters["side"] = bool(side)
        claims += bool(compare(runs, group_by=["side"]).claimed)
    assert claims <= 2


def test_values_are_those_that_were_logged():
    runs = [run("long", {"val_loss": [3, 1, 2, 5]}), run("short", {"val_loss": [4, 6]})]
    comparison = compare(runs)
    np.testing.assert_array_equal(comparison.values["final"], [[5, 6]])
    np.testing.assert_array_equal(comparison.values["matched"], [[1, 6]])  # the short run ends after epoch 1
    np.testing.assert_array_equal(comparison.values["best"], [[1, 4]])
    np.testing.assert_array_equal(comparison.places["best"], [1, 0])


@pytest.mark.parametrize("axis, matched", [("epoch", [3, 30]), ("step", [2, 40]), ("time", [3, 20])])
def test_runs_meet_on_the_axis_that_was_asked_for(axis, matched):
    minutes = 1.5e9 + 60 * np.arange(4)
    runs = [
        run("a", {"loss": series([1, 2, 3], steps=[10, 20, 30], walls=minutes[:3])}),
        run("b", {"loss": series([10, 20, 30, 40], steps=[5, 10, 20, 25], walls=1e5 + 2 * minutes)}),
    ]
    assert compare(runs, axis=axis).values["matched"][0].tolist() == matched


def test_epochs_are_the_axis_where_all_runs_know_them():
    known, unknown = {"loss": [1, 2]}, {"loss": series([1, 2], epochs=False)}
    assert compare([run("a", known), run("b", known), run("empty")]).axis == "epoch"
    assert compare([run("a", known), run("b", unknown)]).axis == "step"


def test_the_last_number_counts_where_a_metric_ends_as_none():
    comparison = compare([run("a", {"loss": [3, 2, np.nan]}), run("b", {"loss": [3, 2, np.inf]})])
    np.testing.assert_array_equal(comparison.values["final"], [[2, 2]])


def test_events_are_added_up_and_states_are_not():
    numbers = {"fixed_points/m/zero/births": [1, 2, 4], "fixed_points/m/zero/saddles": [1, 2, 4]}
    comparison = compare([run("a", numbers)])
    assert comparison.values_table()["a"] == [4, 7]


def test_what_stands_for_none_is_none():
    comparison = compare([run("a", {"probes/concepts/x/emergence_epoch": [-1, -1]})])
    assert comparison.values_table()["a"] == [None]


def test_a_metric_that_only_some_runs_have_can_be_followed():
    runs = [run("a", {"loss": [1, 2], "extra": [5, 4]}), run("b", {"loss": [2, 1]})]
    comparison = compare(runs, metric="extra")
    assert comparison.places["best"][0] == 1
    assert np.isnan(comparison.places["best"][1])


def test_unlike_networks_are_compared_by_what_they_share():
    runs = [run("a", {"gates/lstm.l0/forget/mean": [0.9]}), run("b", {"gates/gru.l0/update/mean": [0.2]})]
    table = compare(runs).values_table()
    row = table["tag"].index("gates/recurrent.l0/retention/mean")
    assert (table["a"][row], table["b"][row]) == (0.9, 0.8)


def test_patterns_choose_what_is_compared():
    numbers = {"val_loss": [1], "probes/concepts/x/share": [0.5], "probes/odd": [2], "gates/a/b/mean": [1]}
    comparison = compare([run("a", numbers)], tags=["probes/*"])
    assert {quantity.tag for quantity in comparison.quantities if quantity.headline} == {
        "probes/concepts/x/share",
        "probes/odd",
    }
    assert comparison.metric == "val_loss"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"axis": "epochs"}, "axis must be one of epoch, step, time, got 'epochs'"),
        ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
        ({"metric": "acc"}, "no run has a metric 'acc'; there are: loss"),
        ({"tags": ["gates/*", "x"]}, r"no tag is like gates/\* or x; there are, among others: loss"),
        ({"group_by": ["lr"]}, "no run has a hyperparameter 'lr'"),
        ({"alpha": 0.0}, "alpha must lie between 0 and 1, got 0.0"),
    ],
)
def test_what_does_not_exist_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        compare([run("a", {"loss": [1]})], **options)


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="nothing to compare: got no run"):
        compare([])


def test_nothing_to_choose_from_is_said():
    with pytest.raises(ValueError, match="there are, among others: none"):
        compare([run("a")], tags=["*"])
    with pytest.raises(ValueError, match="there are: none"):
        compare([run("a")], metric="loss")


@pytest.mark.parametrize(
    "metrics, expected",
    [
        ("train_loss val_acc val_loss", ("val_loss", "min")),
        ("train_loss val_acc", ("val_acc", "max")),
        ("interval_loss eval_err value_loss", ("eval_err", "min")),
        ("speed train_acc", ("train_acc", "max")),
        ("speed", ("", "min")),
        ("speed valAcc", ("valAcc", "max")),
    ],
)
def test_a_validation_loss_is_followed_before_all_else(metrics, expected):
    assert choose_metric([run("empty"), run("a", {tag: [1] for tag in metrics.split()})]) == expected


def test_the_metric_that_the_weights_followed_is_the_one(tmp_path):
    write_snapshots(tmp_path, np.eye(4), facts={"metric": "score", "mode": "min"})
    one = run("a", {"val_loss": [1], "score": [1]}, folder=tmp_path)
    assert choose_metric([one]) == ("score", "min")
    assert choose_metric([one], "score") == ("score", "min")
    assert choose_metric([one], None, "max") == ("score", "max")
    assert choose_metric([one, run("b", {"val_loss": [2]})]) == ("val_loss", "min")


def test_settings_replace_no_column_of_a_table():
    settings = {"run": "x", "group": 3, "last epoch": 9}
    table = compare([run("a", {"loss": [1, 2]}, settings), run("unit", {"loss": [3, 4]})]).runs_table()
    assert table["run"] == ["a", "unit"]
    assert table["run (setting)"] == ["x", None]
    assert table["last epoch"] == [9, None]
    assert table["last epoch (result)"] == [1, 1]


def test_a_run_called_like_a_column_replaces_none():
    table = compare([run("unit", {"loss": [1]}), run("tag", {"loss": [2]})]).values_table()
    assert table["unit"] == [""]
    assert table["tag"] == ["loss"]
    assert (table["unit (run)"], table["tag (run)"]) == ([1], [2])


def test_every_column_of_a_table_has_as_many_rows():
    comparison = compare(seeds(3, np.random.default_rng(0)) + seeds(3, np.random.default_rng(1), cell="gru"))
    for table in (
        comparison.runs_table(),
        comparison.values_table("best", details=True),
        comparison.differences_table(),
    ):
        assert len({len(column) for column in table.values()}) == 1
        assert json.dumps(table, allow_nan=False)
    assert len(comparison.differences_table()["tag"]) == 8


def test_runs_on_disk_are_compared_as_runs_in_memory(tmp_path):
    for number, cell in enumerate(["gru", "lstm"]):
        write_run(tmp_path / f"version_{number}", {"val_loss": [2.0, 1.0 + number]}, {"cell": cell, "seed": number})
    comparison = compare(load_runs(tmp_path))
    np.testing.assert_array_equal(comparison.values["final"], [[1, 2]])
    assert [group.name for group in comparison.groups] == ["cell=gru", "cell=lstm"]
    assert comparison.settings["cell"] == ["gru", "lstm"]


def test_a_solved_task_is_told_from_one_that_is_not():
    """All seeds of each end at the very same accuracy; how coarse it is, the curves before tell."""
    solved = [run(f"s{n}", {"acc": [0.51 + n / 100, 0.9, 1.0]}, {"cell": "lstm", "seed": n}) for n in range(3)]
    failed = [run(f"f{n}", {"acc": [0.51, 0.49 - n / 100, 0.5]}, {"cell": "rnn", "seed": n}) for n in range(3)]
    assert "acc" in tags(compare(solved + failed).claimed)


def test_numbers_without_places_are_not_compared():
    runs = [run(name, {"loss": series([1, 2], walls=False)}) for name in "ab"]
    assert np.isnan(compare(runs, axis="time").values["final"]).all()


def test_two_values_of_a_coarse_metric_are_no_difference():
    runs = [
        run(f"{cell}{n}", {"acc": [0.9, 0.95, end], "m": [n + (cell == "b") / 2]}, {"cell": cell, "seed": n})
        for cell, end in (("a", 0.9), ("b", 0.95))
        for n in range(3)
    ]
    assert compare(runs, metric="acc").claimed == []


def test_numbers_about_a_look_are_never_claimed():
    generator = np.random.default_rng(0)
    runs = []
    for cell, level in (("gru", 1.0), ("lstm", 2.0)):
        for seed in range(3):
            numbers = {"gates/a.l0/rebuild_error": [level + 0.01 * generator.normal()], "gates/seconds": [level]}
            runs.append(run(f"{cell}{seed}", numbers, {"cell": cell}))
    assert compare(runs, tags=["gates/*"]).differences == []
