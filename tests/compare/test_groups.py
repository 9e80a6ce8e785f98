import numpy as np
import pytest

from rnn_callbacks.compare.groups import differing, find_groups

from .known_runs import run, series


def named(runs, by=()):
    return {group.name: group.runs for group in find_groups(runs, by)}


def settings(**values):
    count = len(next(iter(values.values())))
    rows = [{name: column[number] for name, column in values.items()} for number in range(count)]
    return [run(f"r{number}", {"loss": [number]}, row) for number, row in enumerate(rows)]


def test_seeds_of_a_configuration_are_a_group():
    runs = settings(cell=["gru", "lstm", "gru", "lstm"], seed=[0, 0, 1, 1])
    assert named(runs) == {"cell=gru": (0, 2), "cell=lstm": (1, 3)}


def test_paths_make_no_configuration():
    runs = settings(cell=["gru", "gru"], default_root_dir=["/a", "/b"], seed=[0, 1])
    assert named(runs) == {"all runs": (0, 1)}


def test_group_by_looks_at_nothing_else():
    assert named(settings(cell=["gru", "lstm"] * 2, lr=[1, 1, 2, 2]), ["lr"]) == {"lr=1": (0, 1), "lr=2": (2, 3)}


def test_runs_of_unknown_settings_stand_alone():
    assert named([run("a", {"loss": [1]}), run("b", {"loss": [2]})]) == {"a": (0,), "b": (1,)}


def test_none_gives_each_run_a_group():
    assert named(settings(cell=["gru", "gru"]), ["none"]) == {"r0": (0,), "r1": (1,)}


def test_experiment_is_the_folder_above_and_not_only_its_name():
    runs = [run(f"r{n}", {"loss": [n]}, folder=f"/logs/{place}/version_{n}") for n, place in enumerate("aab")]
    assert named(runs, ["experiment"]) == {"a": (0, 1), "b": (2,)}
    twins = [run(f"r{n}", {"loss": [n]}, folder=f"/{n}/same/version_0") for n in range(2)]
    assert [group.runs for group in find_groups(twins, ["experiment"])] == [(0,), (1,)]


def test_an_unknown_hyperparameter_is_refused():
    with pytest.raises(
        ValueError, match=r"no run has a hyperparameter 'size'; there are: lr, and experiment .* or none"
    ):
        find_groups(settings(lr=[1, 2]), ["size"])
    with pytest.raises(ValueError, match="there are: none, and experiment"):
        find_groups([run("a")], ["size"])


def test_true_one_and_its_name_are_three_settings():
    values = [True, 1, "1", None, float("nan")]
    runs = settings(x=values)
    assert len(find_groups(runs)) == len(values)
    assert len({group.name for group in find_groups(runs)}) == len(values)
    assert differing(runs)["x"][:3] == [True, 1, "1"]


def test_a_whole_number_is_the_same_in_yaml_and_in_an_event_file():
    assert len(find_groups(settings(size=[32, 32.0, 32]))) == 1
    assert differing(settings(size=[32, 32.0])) == {}
    assert len(find_groups(settings(size=[float("nan"), float("nan")]))) == 1


@pytest.mark.parametrize("name", ["", "a b", "{x}", "\n\x1b", "a=b,c"])
def test_any_name_can_be_a_setting(name):
    assert [group.runs for group in find_groups(settings(**{name: [1, 2, 1]}), [name])] == [(0, 2), (1,)]


def test_names_of_groups_stay_short():
    runs = settings(**{f"s{number}": [0, 1, 0, 1] for number in range(9)})
    assert list(named(runs)) == ["s0=0, s1=0, s2=0, s3=0, ...", "s0=1, s1=1, s2=1, s3=1, ..."]


def test_a_group_without_the_setting_is_named_after_a_run():
    runs = [run("a", {"m": [1]}, {"x": 1}), run("b", {"m": [2]}, {"y": 0}), run("c", {"m": [3]}, {"y": 0})]
    assert named(runs, ["x"]) == {"x=1": (0,), "like b": (1, 2)}


def test_a_run_that_repeats_another_counts_once():
    rows = [[3.0, np.nan, 1], [3.0, np.nan, 1], [3.0, 2, 1]]
    (group,) = find_groups([run(str(n), {"loss": row}, {"x": 1}) for n, row in enumerate(rows)])
    assert group.distinct == (0, 2)


def test_a_run_that_differs_only_in_what_watching_cost_is_a_repeat():
    runs = [run(str(n), {"loss": [1, 2], "gates/overhead": [n], "gates/a/b/mean": [5]}, {"x": 1}) for n in range(2)]
    assert find_groups(runs)[0].distinct == (0,)


def test_equal_metrics_are_no_repeat_where_the_networks_differ():
    """All seeds that reach an accuracy of 1 in the first epoch are not one run."""
    runs = [run(str(n), {"acc": [1.0], "gates/a/b/mean": [n]}, {"x": 1}) for n in range(3)]
    assert find_groups(runs)[0].distinct == (0, 1, 2)


def test_runs_without_metrics_are_no_repeats():
    assert find_groups([run(str(n), {}, {"x": 1}) for n in range(3)])[0].distinct == (0, 1, 2)


def test_other_steps_are_no_repeat():
    runs = [run(str(n), {"loss": series([1, 2], steps=[1, 2 + n])}, {"x": 1}) for n in range(2)]
    assert find_groups(runs)[0].distinct == (0, 1)


def test_a_thousand_runs_are_told_apart():
    generator = np.random.default_rng(0)
    runs = [run(str(n), {f"m{k}": generator.normal(size=20) for k in range(5)}, {"x": 1}) for n in range(1000)]
    assert len(find_groups(runs)[0].distinct) == 1000
