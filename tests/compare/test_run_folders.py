import os
from pathlib import Path

import fsspec
import pytest

from rnn_callbacks.compare.run_folders import by_number, run_folders, short_names

LOOK = "rnn_callbacks/gates/epoch=0001-step=00000010.npz"


def make(folder, *names):
    for name in names or ("metrics.csv",):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"step,a\n1,2\n")
    return str(folder)


def test_each_kind_of_file_makes_its_folder_a_run(tmp_path):
    kinds = ["metrics.csv", "events.out.tfevents.1.host", LOOK, "rnn_callbacks/weight_trajectory/snapshots.jsonl"]
    for number, name in enumerate(kinds):
        make(tmp_path / f"run{number}", name)
    assert run_folders([str(tmp_path)]) == {str(tmp_path / f"run{n}"): [name] for n, name in enumerate(kinds)}


@pytest.mark.parametrize(
    "name",
    ["hparams.yaml", "a.npz", "rnn_callbacks/a.npz", "rnn_callbacks/gates/other.npz", "metrics.csv.part", "x.jsonl",
     "rnn_callbacks/gates/deeper/epoch=0001-step=00000010.npz", "checkpoints/last.ckpt"],
)  # fmt: skip
def test_other_files_make_no_run(name, tmp_path):
    make(tmp_path, name)
    assert run_folders([str(tmp_path)]) == {}


def test_a_run_in_a_clone_of_this_project_is_where_its_looks_are(tmp_path):
    run = make(tmp_path / "rnn_callbacks" / "logs" / "version_0", LOOK, "metrics.csv")
    make(tmp_path / "rnn_callbacks", "data/numbers.npz")
    assert run_folders([str(tmp_path)]) == {run: ["metrics.csv", LOOK]}


def test_settings_come_with_their_run_also_where_a_file_is_the_place(tmp_path):
    run = make(tmp_path / "run", "metrics.csv", "hparams.yaml", "config.yaml", "events.out.tfevents.1")
    make(tmp_path, "hparams.yaml")
    assert set(run_folders([str(tmp_path)])[run]) == {path.name for path in Path(run).iterdir()}
    alone = run_folders([f"{run}/metrics.csv"])
    assert alone == {run: ["metrics.csv", "hparams.yaml", "config.yaml"]}


def test_a_run_is_there_once_however_often_it_is_named(tmp_path, monkeypatch):
    run = make(tmp_path / "logs" / "run", "metrics.csv", "events.out.tfevents.1", "hparams.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [run, f"{run}/", f"{run}/metrics.csv", "logs", "./logs/../logs/", "~/logs", "logs/r*", f"file://{run}"]
    found = run_folders(places)
    assert found.keys() == {run}
    assert sorted(found[run]) == ["events.out.tfevents.1", "hparams.yaml", "metrics.csv"]
    assert run_folders(reversed(places)).keys() == {run}
    for place in places:
        assert run_folders([place]).keys() == {run}


def test_links_are_followed_into_each_folder_once(tmp_path):
    run = make(tmp_path / "logs" / "run")
    outside = make(tmp_path / "outside" / "other")
    (tmp_path / "logs" / "latest").symlink_to(run)
    (tmp_path / "logs" / "a_first_name").symlink_to(run)
    (tmp_path / "logs" / "elsewhere").symlink_to(tmp_path / "outside")
    for name in "abcde":  # each would double the paths at each level
        (tmp_path / "logs" / "run" / name).symlink_to(tmp_path / "logs")
    (tmp_path / "logs" / "itself").symlink_to(tmp_path / "logs" / "itself")
    (tmp_path / "logs" / "broken").symlink_to(tmp_path / "nowhere")
    found = run_folders([str(tmp_path / "logs"), outside])
    assert list(found) == [run, f"{tmp_path}/logs/elsewhere/other"]
    assert list(run_folders([outside, str(tmp_path / "logs")])) == [outside, run]


def test_pipes_folders_and_broken_links_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    (tmp_path / "events.out.tfevents.1").mkdir()
    (tmp_path / "events.out.tfevents.2").symlink_to(tmp_path / "nowhere")
    assert run_folders([str(tmp_path)]) == {}


@pytest.mark.parametrize("name", ["run[1]", "run*", "what?", "a b", "Größe 学", "[", "{a,b}", "*[?"])
def test_a_folder_is_found_by_its_own_name_whatever_signs_are_in_it(name, tmp_path):
    run = make(tmp_path / name / "version_0")
    make(tmp_path / "run1" / "version_0")
    assert run_folders([str(tmp_path / name)]).keys() == {run}
    assert run_folders([f"{tmp_path}/{name}/version_*"]).keys() == {run}


def test_a_pattern_finds_all_that_match_it(tmp_path):
    runs = [make(tmp_path / name / "logs" / "version_0") for name in ("run1", "run2", "other")]
    assert run_folders([f"{tmp_path}/run*"]).keys() == set(runs[:2])
    assert run_folders([f"{tmp_path}/run[13-9]/*/version_?"]).keys() == {runs[0]}
    assert run_folders([f"{tmp_path}/**/version_0"]).keys() == set(runs)


@pytest.mark.parametrize("place", ["nowhere", "nowhere*", "run/[x]", "run/metrics.csv/deeper"])
def test_a_place_that_is_not_there_is_named(place, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run_folders([f"{tmp_path}/run", f"{tmp_path}/{place}"])


def test_runs_on_a_remote_disk_are_named_by_their_address(tmp_path):
    files = fsspec.filesystem("memory")
    for name in ("metrics.csv", "hparams.yaml", LOOK):
        files.pipe_file(f"/by_address/logs[1]/version_0/{name}", b"step,a\n1,2\n")
    local = make(tmp_path)
    expected = ["metrics.csv", LOOK, "hparams.yaml"]
    found = run_folders(
        ["memory://by_address", local, "memory:///by_address/logs[1]/version_0/", "memory://by_address/*"]
    )
    assert list(found) == ["memory:///by_address/logs[1]/version_0", local]
    assert sorted(found["memory:///by_address/logs[1]/version_0"]) == sorted(expected)
    files.rm("/by_address", recursive=True)


@pytest.mark.parametrize(
    "folders, names",
    [
        (["/a/logs/version_0"], ["version_0"]),
        (["/a/logs/version_0", "/a/logs/version_10"], ["version_0", "version_10"]),
        (["/a/x/version_0", "/a/y/version_0"], ["x/version_0", "y/version_0"]),
        (["/a/logs", "/a/logs/version_0"], ["logs", "logs/version_0"]),
        (["/a/logs", "/a/logs/logs"], ["logs", "logs/logs"]),
        (["/version_0", "/a/version_0"], ["version_0", "a/version_0"]),
        (["memory:///r/a", "memory:///r/b"], ["a", "b"]),
        (["memory:///r", "memory:///r/b"], ["r", "r/b"]),
        (["/r/a", "memory:///r/a"], ["/r/a", "memory:///r/a"]),
        (["s3://r/a", "memory:///r/a"], ["s3://r/a", "memory:///r/a"]),
        (["/a/b\nc", "/a/Größe 学"], ["b\\nc", "Größe 学"]),
        (["/a/\udcff", "/a/\udcfe"], ["\\udcff", "\\udcfe"]),  # bytes that are no text, as Python gives them
    ],
)
def test_names_are_short_and_all_different(folders, names):
    assert short_names(folders) == names


def test_numbers_in_names_are_in_their_order_and_signs_that_look_like_numbers_are_no_trouble():
    names = ["version_10", "version_9", "1²", "²", "version_9b", "", "٣"]
    assert sorted(names, key=by_number) == ["", "version_9", "version_9b", "version_10", "²", "1²", "٣"]
