import io
import json
import math
import tracemalloc
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard.summary import hparams

from rnn_callbacks.compare.runs import LookFile, Run, load_runs
from rnn_callbacks.compare.series import Series
from rnn_callbacks.report import Report, save
from rnn_callbacks.weight_snapshots import Column, SnapshotFile

from .event_records import content, scalars, write


def only(*places):
    (run,) = load_runs(*places)
    return run


def keep_look(folder, noun="gates", epoch=0, step=9, part=1, **numbers):
    name = f"epoch={epoch:04d}-step={step:08d}{f'-part={part}' if part > 1 else ''}.npz"
    path = f"{folder}/rnn_callbacks/{noun}/{name}"
    save(Report(numbers or {f"{noun}/rnn.l0/mean": 0.5}), path, epoch=epoch, step=step)
    return path


def test_a_run_has_what_its_files_say(tmp_path):
    events = [scalars(step, 100.0 + step, loss=1.0 / (1 + step), epoch=step // 2) for step in range(4)]
    write(tmp_path, *events, scalars(3, 103.5, **{"gates/rnn.l0/mean": 0.25, "hp_metric": -1.0}))
    (tmp_path / "hparams.yaml").write_text("lr: 0.1\nmodel: {units: 64}")
    look = keep_look(tmp_path, epoch=1, step=3)
    run = only(tmp_path)
    assert (run.name, run.folder, run.problems) == (tmp_path.name, str(tmp_path), [])
    assert run.series["loss"].values.tolist() == [1, 0.5, float(np.float32(1 / 3)), 0.25]
    assert run.series["loss"].epochs.tolist() == [0, 0, 1, 1]
    assert run.hyperparameters == {"lr": 0.1, "model.units": 64}
    assert run.looks == {"gates": [LookFile(look, 1, 3, 1)]}
    assert run.read_look(run.looks["gates"][0]).report.scalars == {"gates/rnn.l0/mean": 0.5}
    assert run.series["gates/rnn.l0/mean"].values.tolist() == [0.25]  # as logged; looks are for who logged nothing
    assert (run.start, run.last_epoch, run.last_step) == (100.0, 1.0, 3)
    assert run.metrics == ["loss"]


def test_numbers_of_looks_are_series_where_no_logger_kept_them(tmp_path):
    for epoch, step in ((3, 39), (0, 9), (10, 109)):
        keep_look(tmp_path, epoch=epoch, step=step, **{"gates/rnn.l0/mean": step / 2})
    keep_look(tmp_path, epoch=3, step=39, part=2, **{"gates/rnn.l1/mean": 7.0})
    run = only(tmp_path)
    assert [(look.step, look.part) for look in run.looks["gates"]] == [(9, 1), (39, 1), (39, 2), (109, 1)]
    assert run.series["gates/rnn.l0/mean"].steps.tolist() == [9, 39, 109]
    assert run.series["gates/rnn.l0/mean"].values.tolist() == [4.5, 19.5, 54.5]
    assert run.series["gates/rnn.l0/mean"].epochs.tolist() == [0, 3, 10]
    assert run.series["gates/rnn.l1/mean"].values.tolist() == [7]
    assert math.isnan(run.start)
    assert run.last_epoch == 10


def test_tables_and_event_files_of_one_run_are_one(tmp_path):
    write(tmp_path, *(scalars(step, loss=1.0) for step in range(3)))
    (tmp_path / "metrics.csv").write_text("epoch,step,loss,only_here\n0,0,5,6\n0,9,5,6\n")
    run = only(tmp_path)
    assert run.series["loss"].values.tolist() == [1, 1, 1]
    assert run.series["only_here"].steps.tolist() == [0, 9]


def test_hyperparameters_come_from_files_first_and_else_from_the_events(tmp_path):
    write(tmp_path, *(Event(summary=part) for part in hparams({"lr": 0.1, "cell": "gru"}, {})), scalars(1, loss=1.0))
    assert only(tmp_path).hyperparameters == {"lr": 0.1, "cell": "gru"}
    (tmp_path / "config.yaml").write_text("model: {lr: 0.3}\nlr: 0.5")
    assert only(tmp_path).hyperparameters == {"lr": 0.1, "cell": "gru", "model.lr": 0.3}
    (tmp_path / "hparams.yaml").write_text("lr: 0.2")
    assert only(tmp_path).hyperparameters == {"lr": 0.2, "model.lr": 0.3}


def npz(**entries):
    file = io.BytesIO()
    np.savez(file, **entries)
    return file.getvalue()


def facts(**said):
    return np.array(json.dumps({"format": 1, "epoch": 0, "step": 9, "texts": {}} | said))


class Trap:
    """What a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def whole_look(tmp_path):
    return Path(keep_look(tmp_path / "sound")).read_bytes()


NAMES = {"scalar_names": np.array(["gates/x"])}
BAD_LOOKS = {
    "empty": lambda folder: b"",
    "garbage": lambda folder: b"garbage" * 50,
    "truncated": lambda folder: whole_look(folder)[:-40],
    "newer": lambda folder: npz(facts=facts(format=99), scalar_values=np.ones(1), **NAMES),
    "pickle": lambda folder: npz(facts=facts(), scalar_values=np.array([Trap(folder / "trap")], object), **NAMES),
    "pickled facts": lambda folder: npz(facts=np.array(Trap(folder / "trap"), object), **NAMES),
    "two columns": lambda folder: npz(facts=facts(), scalar_values=np.ones((1, 2)), **NAMES),
    "words": lambda folder: npz(facts=facts(), scalar_values=np.array(["a"]), **NAMES),
    "too few": lambda folder: npz(facts=facts(), scalar_values=np.ones(0), **NAMES),
    "no facts": lambda folder: npz(scalar_values=np.ones(1), **NAMES),
    "facts of another kind": lambda folder: npz(facts=np.array("[1]"), scalar_values=np.ones(1), **NAMES),
    "vast": lambda folder: vast(),
}


def vast():
    """An array that says of itself to take a terabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
        archive.writestr("facts.npy", header.getvalue())
    return file.getvalue()


@pytest.mark.parametrize("kind", BAD_LOOKS)
def test_a_look_that_cannot_be_read_is_named_and_costs_itself_only(kind, tmp_path):
    run_folder = tmp_path / "run"
    keep_look(run_folder, epoch=0, step=9, **{"gates/x": 2.0})
    bad = run_folder / "rnn_callbacks/gates/epoch=0001-step=00000019.npz"
    bad.write_bytes(BAD_LOOKS[kind](tmp_path))
    run = only(run_folder)
    assert run.series["gates/x"].values.tolist() == [2]
    (problem,) = run.problems
    assert problem.startswith("rnn_callbacks/gates/epoch=0001-step=00000019.npz: ")
    assert len(problem) > 60
    assert not (tmp_path / "trap").exists()
    run.read_look(run.looks["gates"][1])
    assert run.problems == [problem]  # said once


@pytest.mark.parametrize(
    "index", [None, b"", b"garbage\n", b'{"format": 99}\n', b'{"format": 1, "dtype": "O"}\n', b"[1]\n"]
)
def test_snapshots_that_are_not_there_or_cannot_be_read_are_none(index, tmp_path):
    keep_look(tmp_path)
    path = tmp_path / "rnn_callbacks/weight_trajectory/snapshots.jsonl"
    if index is not None:
        path.parent.mkdir()
        path.write_bytes(index)
    run = only(tmp_path)
    assert run.snapshots() is None
    assert len(run.problems) == (index is not None)


def test_snapshots_are_found(tmp_path):
    path = tmp_path / "rnn_callbacks/weight_trajectory/snapshots"
    SnapshotFile.create(path, [Column("a", "b", 0, 2, 2)]).append([np.ones(2)], epoch=0, step=3)
    assert len(only(tmp_path).snapshots()) == 1


def test_each_damaged_file_is_named_and_the_others_are_read(tmp_path):
    sound = [scalars(step, loss=1.0) for step in range(3)]
    write(tmp_path, *sound)
    (tmp_path / "events.out.tfevents.2").write_bytes(content(*sound, scalars(3, loss=1.0))[:-3])
    (tmp_path / "events.out.tfevents.3").write_bytes(b"\0" * 100)
    (tmp_path / "metrics.csv").write_bytes(b"step,a\n1,2\n2,x\n3,4")
    (tmp_path / "hparams.yaml").write_bytes(b"a: \xff")
    (tmp_path / "config.yaml").write_bytes(b"a: [")
    run = only(tmp_path)
    assert run.series["loss"].steps.tolist() == [0, 1, 2]
    assert run.series["a"].values.tolist() == [2]
    assert [problem.partition(":")[0] for problem in sorted(run.problems)] == [
        "config.yaml", "events.out.tfevents.2", "events.out.tfevents.3", "hparams.yaml", "metrics.csv", "metrics.csv",
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read, also by root")
def test_a_file_that_the_disk_does_not_give_is_named(tmp_path):
    (tmp_path / "metrics.csv").symlink_to("/proc/self/mem")
    run = only(tmp_path)
    assert run.series == {}
    assert len(run.problems) == 1
    assert run.problems[0].startswith("metrics.csv: [Errno ")


def test_a_file_that_is_being_written_gives_what_is_there(tmp_path):
    whole = content(*(scalars(step, loss=step) for step in range(20)))
    path = tmp_path / "events.out.tfevents.1"
    seen = []
    with path.open("wb") as file:
        for at in range(0, len(whole), 100):
            file.write(whole[at : at + 100])
            file.flush()
            run = only(tmp_path)
            seen.append(len(run.series["loss"].steps) if run.series else 0)
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert run.problems == []


def test_a_run_that_has_only_just_begun_is_a_run(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    run = only(tmp_path)
    assert (run.series, run.problems, run.last_step) == ({}, [], 0)
    assert math.isnan(run.start)
    assert math.isnan(run.last_epoch)


def test_numbers_that_are_not_finite_are_no_start_and_no_last_epoch():
    known = Series(
        *(np.array(column) for column in ([1, 2, 3], [1.0] * 3, [-np.inf, 5.0, np.nan], [np.inf, 2, np.nan]))
    )
    run = Run("a", "a", {"loss": known})
    assert (run.start, run.last_epoch, run.last_step) == (5, 2, 3)


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0):
        write(tmp_path / f"version_{number}", scalars(1, loss=number))
    assert [run.name for run in load_runs(tmp_path)] == ["version_0", "version_9", "version_10"]
    assert [run.series["loss"].last for run in load_runs(str(tmp_path / "version_*"))] == [0, 9, 10]


def test_without_a_place_runs_are_looked_for_here(tmp_path, monkeypatch):
    write(tmp_path / "logs", scalars(1, loss=1.0))
    monkeypatch.chdir(tmp_path)
    assert only().folder == str(tmp_path / "logs")


def test_no_run_anywhere_says_what_was_expected(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no run under .*: expected folders with events.out.tfevents... files"):
        load_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run under this folder"):
        load_runs()
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_runs(tmp_path / "nowhere")


def test_a_list_of_places_says_how_they_are_given(tmp_path):
    with pytest.raises(TypeError, match=r"got a list; a list of them is given as \*places"):
        load_runs([tmp_path])


def test_a_run_on_a_remote_disk_is_the_same_run(tmp_path):
    write(tmp_path, *(scalars(step, loss=step) for step in range(5)))
    (tmp_path / "hparams.yaml").write_text("lr: 0.1")
    keep_look(tmp_path)
    files = fsspec.filesystem("memory")
    files.put(f"{tmp_path}/", "/far/run", recursive=True)
    near, far = only(tmp_path), only("memory://far")
    assert (far.name, far.folder, far.problems) == ("run", "memory:///far/run", [])
    assert far.hyperparameters == near.hyperparameters
    assert {tag: known.values.tolist() for tag, known in far.series.items()} == {
        tag: known.values.tolist() for tag, known in near.series.items()
    }
    assert far.looks["gates"][0].path.startswith("memory:///far/run/rnn_callbacks/gates/epoch=")
    assert far.read_look(far.looks["gates"][0]).report.scalars == {"gates/rnn.l0/mean": 0.5}
    assert far.snapshots() is None
    (files.pipe_file(far.looks["gates"][0].path, b"garbage"), far.read_look(far.looks["gates"][0]))
    assert far.problems[0].startswith("rnn_callbacks/gates/epoch=")
    files.rm("/far", recursive=True)


def test_a_thousand_runs_are_told_apart(tmp_path):
    whole = content(*(scalars(step, loss=step, epoch=step) for step in range(5)))
    for number in range(1000):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        (folder / "events.out.tfevents.1").write_bytes(whole)
        (folder / "hparams.yaml").write_bytes(b"lr: 0.1")
    runs = load_runs(tmp_path)
    assert len({run.name for run in runs}) == 1000
    assert runs[999].series["loss"].last == 4


def test_of_a_run_with_long_files_only_its_numbers_stay_in_memory(tmp_path):
    for number in range(3):
        write(tmp_path / f"version_{number}", *(scalars(step, loss=step) for step in range(5000)))
    tracemalloc.start()
    runs = load_runs(tmp_path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(run.series["loss"].steps) for run in runs) == 15_000
    assert kept < 15_000 * 40 + 2**18  # four arrays of eight bytes each, a file has 46 for each number
