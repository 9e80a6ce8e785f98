import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.embeddings import MOST_RUNS, joint_embeddings, joint_metrics, joint_weights
from rnn_callbacks.compare.series import evenly

from .known_runs import run, series, write_snapshots


def paths(tmp_path, *shapes, **facts):
    """Runs with random paths of their weights."""
    generator = np.random.default_rng(0)
    runs = []
    for number, shape in enumerate(shapes):
        rows = generator.normal(size=shape).cumsum(0)
        write_snapshots(tmp_path / str(number), rows, facts=facts)
        runs.append((run(f"r{number}", {"loss": [1.0, number]}, folder=tmp_path / str(number)), rows))
    return runs


def assert_alike_up_to_sign(found, expected):
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-9 * np.abs(expected).max())


def test_joint_weights_are_the_principal_components_of_all_weights(tmp_path):
    runs = paths(tmp_path, (7, 13), (11, 13))
    (found,) = joint_weights(compare([one for one, _ in runs]))
    referee = PCA(2).fit(np.concatenate([rows for _, rows in runs]))
    assert_alike_up_to_sign(found.components, referee.transform(np.concatenate([rows for _, rows in runs])))
    np.testing.assert_allclose(found.explained[1] / found.explained[0], np.divide(*referee.explained_variance_[::-1]))
    assert found.runs.tolist() == [0] * 7 + [1] * 11
    assert found.epochs.tolist() == [*range(7), *range(11)]
    assert found.phate.shape == (18, 2) or found.why_not


def test_weights_of_unlike_shapes_share_no_space(tmp_path):
    runs = [one for one, _ in paths(tmp_path, (5, 4), (5, 6), (5, 4), (5, 6), (5, 10))]
    found = joint_weights(compare(runs))
    assert [set(one.runs.tolist()) for one in found] == [{0, 2}, {1, 3}]
    assert found[0].left_out == dict.fromkeys([1, 3, 4], "its weights have other shapes")


@pytest.mark.parametrize("facts", [{"sketch": 4, "seed": [1, 2]}, {"sketch": {"width": 4}}])
def test_sketches_of_any_kind_are_told_apart(tmp_path, facts):
    (found,) = joint_weights(compare([one for one, _ in paths(tmp_path, (5, 4), (5, 4), **facts)]))
    assert set(found.runs.tolist()) == {0, 1}


def test_runs_without_a_path_are_left_out_with_the_reason(tmp_path):
    runs = [one for one, _ in paths(tmp_path, (5, 4), (5, 4), (2, 4), (5, 4))]
    spoilt = np.ones((5, 4))
    spoilt[-1, 2] = np.nan
    write_snapshots(tmp_path / "3", spoilt)
    (found,) = joint_weights(compare([*runs, run("none", {"loss": [1]})]))
    assert set(found.runs.tolist()) == {0, 1}
    assert found.left_out[2] == "it has 2 snapshots, fewer than 3"
    assert found.left_out[3] == "its last weights are no numbers (NaN or infinite)"
    assert found.left_out[4].startswith("it has no snapshots of its weights")


def test_a_snapshot_that_is_no_number_is_no_point(tmp_path):
    runs = paths(tmp_path, (5, 4), (5, 4))
    spoilt = runs[1][1].copy()
    spoilt[2, 3] = np.inf
    write_snapshots(tmp_path / "1", spoilt)
    (found,) = joint_weights(compare([one for one, _ in runs]))
    assert found.epochs.tolist() == [0, 1, 2, 3, 4, 0, 1, 3, 4]
    assert np.isfinite(found.components).all()


def test_one_run_alone_has_no_joint_path(tmp_path):
    assert joint_embeddings(compare([one for one, _ in paths(tmp_path, (5, 4))])) == []


def test_joint_metrics_are_the_principal_components_of_standardised_values():
    generator = np.random.default_rng(0)
    tags = ["loss", "acc", "gradient_flow/total/norm"]
    values = generator.lognormal(size=(2, 9, 3))
    runs = [run(str(n), dict(zip(tags, values[n].T, strict=True))) for n in range(2)]
    (found,) = joint_metrics(compare(runs))
    points = values.reshape(18, 3).copy()
    points[:, 2] = np.log(points[:, 2])
    assert_alike_up_to_sign(found.components, PCA(2).fit_transform(StandardScaler().fit_transform(points)))
    assert found.epochs.tolist() == [*range(9)] * 2


def test_flags_counts_and_constants_are_no_coordinates():
    generator = np.random.default_rng(0)
    dull = {"gates/m.l0/flags/dead": [0, 1, 1], "fixed_points/m/zero/births": [1, 2, 3], "constant": [5, 5, 5]}
    runs = [run(str(n), {"loss": generator.normal(size=3), **dull}) for n in range(2)]
    assert joint_metrics(compare(runs)) == []


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_huge_and_tiny_metrics_have_a_picture(size):
    generator = np.random.default_rng(0)
    runs = [run(str(n), {"a": size * generator.normal(size=5), "b": generator.normal(size=5)}) for n in range(2)]
    (found,) = joint_metrics(compare(runs))
    assert np.isfinite(found.components).all()
    assert found.components.std(0).min() > 0.1


def test_runs_without_the_shared_quantities_are_left_out():
    generator = np.random.default_rng(0)
    runs = [run(str(n), {"a": generator.normal(size=5), "b": generator.normal(size=5)}) for n in range(2)]
    late = {"a": series([1.0, 2]), "b": series([np.nan, np.nan])}
    (found,) = joint_metrics(compare([*runs, run("late", late), run("empty")]))
    assert set(found.runs.tolist()) == {0, 1}
    assert found.left_out == dict.fromkeys([2, 3], "it never had all quantities that the others have")


def test_of_a_crowd_some_are_shown():
    generator = np.random.default_rng(0)
    runs = [run(str(n), {"a": generator.normal(size=4), "b": generator.normal(size=4)}) for n in range(120)]
    (found,) = joint_metrics(compare(runs))
    assert len(set(found.runs.tolist())) == MOST_RUNS
    assert found.left_out[1] == f"of 120 runs {MOST_RUNS} are shown"
    assert len(found.components) <= 240


@pytest.mark.parametrize("count, most, expected", [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (0, 3, []), (1, 3, [0])])
def test_points_are_spread_evenly(count, most, expected):
    assert evenly(count, most).tolist() == expected
