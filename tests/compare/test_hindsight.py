import numpy as np
import pytest

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.hindsight import hindsight, settled_at, with_hindsight

from .known_runs import run, series, write_snapshots


@pytest.mark.parametrize(
    "values, epoch",
    [
        ([0, 5, 10, 10, 10], 2),
        ([0, 9.5, 10, 10, 10], 1),
        ([10, 10, 0, 0, 0, 0.5], 2),
        ([0, 1, 2, 3], np.nan),  # on its way until the end
        ([3, 3, 3], np.nan),
        ([3], np.nan),
        ([], np.nan),
        ([np.nan, np.inf], np.nan),
        ([0, np.nan, 10, 10, 10], 2),
        ([-1.5e308, 1.5e308, 1.5e308, 1.5e308], 1),
    ],
)
def test_a_quantity_has_settled_once_it_stays(values, epoch):
    assert settled_at(series(values)) == pytest.approx(epoch, nan_ok=True)


def test_it_settles_on_any_axis():
    one = series([0, 10, 10, 10], steps=[5, 6, 7, 9])
    assert settled_at(one, "step") == 6
    assert settled_at(one, "time", 1.5e9) == 60
    assert settled_at(series([0, 5, 6, 7, 10]), share=0.5) == 1


def test_concepts_are_ordered_by_their_emergence():
    epochs = {"shape": 4, "ink": 1, "never": -1}
    found = hindsight(
        compare([run("a", {f"probes/concepts/{name}/emergence_epoch": [at] for name, at in epochs.items()})])
    )
    assert found.order(0) == ["ink", "shape"]


def test_flags_and_events_do_not_settle():
    numbers = {"gates/a.l0/flags/dead": [1, 0, 0, 0], "fixed_points/m/zero/births": [1, 0, 0, 0], "loss": [1, 0, 0, 0]}
    comparison = compare([run("a", numbers)])
    settled = {one.tag: row[0] for one, row in zip(comparison.quantities, hindsight(comparison).settled, strict=True)}
    assert settled["loss"] == 1
    assert np.isnan([settled["gates/a.l0/flags/dead"], settled["fixed_points/m/zero/births"]]).all()


def test_distances_to_the_goals_are_those_of_the_weights(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 5)).cumsum(0)
    write_snapshots(tmp_path, rows, values=[5, 4, 1, 3, None, 2], facts={"mode": "min"})
    found = hindsight(compare([run("a", {"loss": [1]}, folder=tmp_path)]))
    for goal, left in ((5, found.to_final[0]), (2, found.to_best[0])):
        expected = np.linalg.norm(rows - rows[goal], axis=1)
        np.testing.assert_allclose(left.values, expected / expected[0], atol=1e-9)
        assert left.epochs.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_best_weights_are_those_of_the_highest_value_where_high_is_good(tmp_path):
    write_snapshots(tmp_path, np.eye(4), values=[1, 9, 2, np.nan], facts={"mode": "max"})
    assert hindsight(compare([run("a", folder=tmp_path)])).to_best[0].values[1] == 0


@pytest.mark.parametrize("rows", [np.ones((4, 4)), np.eye(4)[:2], np.full((4, 4), np.nan)])
def test_weights_that_do_not_move_have_no_way_to_go(tmp_path, rows):
    write_snapshots(tmp_path, rows)
    found = hindsight(compare([run("a", folder=tmp_path)]))
    assert len(found.to_final[0].values) == len(found.to_best[0].values) == 0


def test_without_snapshots_there_is_no_distance():
    assert len(hindsight(compare([run("a", {"loss": [1]})])).to_final[0].values) == 0


def test_the_way_that_is_left_joins_the_comparison_as_a_quantity(tmp_path):
    rows = np.array([[0.0], [3.0], [5.0], [4.0]])
    write_snapshots(tmp_path, rows, values=[5, 4, 1, 3], facts={"mode": "min"})
    comparison = compare([run("a", {"val_loss": [5, 4, 1, 3]}, folder=tmp_path), run("b", {"val_loss": [1]})])
    whole = with_hindsight(comparison, hindsight(comparison))
    assert len(whole.quantities) == len(comparison.quantities) + 2 == len(whole.values["best"])
    by_tag = {quantity.tag: row for row, quantity in enumerate(whole.quantities)}
    last, best = (by_tag[f"weight_trajectory/total/left_to_{goal}"] for goal in ("last", "best"))
    assert whole.places["best"][0] == 2
    assert whole.values["best"][last].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert whole.values["final"][[last, best], 0].tolist() == pytest.approx([0, 0.2])
    np.testing.assert_allclose(whole.series[0]["weight_trajectory/total/left_to_best"].values, [1, 0.4, 0, 0.2])
    assert "weight_trajectory/total/left_to_best" not in whole.series[1]
    assert whole.differences == comparison.differences


def test_without_snapshots_or_by_time_nothing_joins(tmp_path):
    comparison = compare([run("a", {"loss": [2, 1]})])
    assert with_hindsight(comparison, hindsight(comparison)) is comparison
    write_snapshots(tmp_path, np.array([[0.0], [3.0], [5.0]]), values=[3, 2, 1], facts={"mode": "min"})
    by_time = compare([run("a", {"loss": [2, 1]}, folder=tmp_path)], axis="time")
    assert with_hindsight(by_time, hindsight(by_time)) is by_time
