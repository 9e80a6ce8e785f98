"""A run that is killed leaves whole files; a disk that refuses does not end one."""

import errno
import os
import random
import shutil
import signal
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from matplotlib.figure import Figure
from PIL import Image

from rnn_callbacks import GateMonitor, WeightTrajectoryLogger, sinks
from rnn_callbacks.callbacks.guard import RecurrentHealthWarning
from rnn_callbacks.callbacks.snapshot_home import SnapshotHome
from rnn_callbacks.report import Report, load
from rnn_callbacks.weight_snapshots import Column, SnapshotFile

from .callbacks.test_outlets import Takes
from .test_weight_snapshots import files_up_to

NOBODY = SimpleNamespace(loggers=[])

# ---- kill -9 ---------------------------------------------------------------------------------------------------------


def write_on(folder, told):
    """Looks, pictures and snapshots, without end; each is of one number, which tells which parts belong together."""
    columns, picture = [Column("net", "w", 0, 30_011, 30_011)], Figure(figsize=(4, 3), dpi=50)
    k = 0
    while True:
        k += 1
        report = Report({"k": float(k)}, arrays={"k": np.full((300, 401), k)})
        os.write(told, b"n")
        sinks.save_report(report, folder, noun="gates", epoch=k % 3, step=0)
        os.write(told, b"p")
        sinks.log_figures(NOBODY, {"gates/p": lambda: picture}, folder, noun="gates", epoch=k % 2, step=0)
        path = f"{folder}/rnn_callbacks/gates/snapshots"
        os.write(told, b"s")
        file = SnapshotFile.create(path, columns)
        file.append([np.full(30_011, k)], epoch=0, step=k)
        file.append([np.full(30_011, k)], epoch=1, step=k)
        file.copy(path + "-part=2", 1).cut(1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_killed_at_any_moment_a_run_leaves_whole_files_and_the_next_one_removes_the_halves(tmp_path):
    chance = random.Random(0)
    kinds, halves = set(), 0
    folder = tmp_path / "rnn_callbacks" / "gates"
    for _ in range(25):
        hears, told = os.pipe()
        child = os.fork()
        if child == 0:  # warm: it costs what it writes
            try:
                write_on(str(tmp_path), told)
            finally:
                os._exit(1)
        os.close(told)
        for _ in range(chance.randint(1, 6)):
            os.read(hears, 1)
        time.sleep(0.02 * chance.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(hears)
        assert os.WTERMSIG(status) == signal.SIGKILL  # it did not fail on its own
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            kinds.add(path.suffix)
            if path.suffix == ".npz":
                found = load(str(path)).report
                assert (found.arrays["k"] == found.scalars["k"]).all()
            elif path.suffix == ".png":
                assert Image.open(path).convert("RGB").size == (200, 150)
            elif path.suffix == ".jsonl":
                snapshots = SnapshotFile(path.with_suffix(""))
                for number, entry in enumerate(snapshots.entries):
                    assert (snapshots.row(number) == entry.step).all()
        halves += len(list(folder.rglob("*.part")))
        sinks.clean_folder(str(tmp_path), noun="gates")
        assert not list(folder.rglob("*.part"))
    assert {".npz", ".png", ".jsonl", ".bin"} <= kinds
    assert halves > 0  # else nothing was tried


def test_no_file_is_ever_written_under_its_own_name(tmp_path, monkeypatch):
    opened, open_file = [], LocalFileSystem._open

    def listen(self, path, *arguments, **options):
        opened.append(path)
        return open_file(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "_open", listen)
    sinks.save_report(Report({"k": 1.0}), str(tmp_path), noun="gates", epoch=0, step=0)
    sinks.log_figures(NOBODY, {"gates/p": Figure}, str(tmp_path), noun="gates", epoch=0, step=0)
    assert [path.endswith(".part") for path in opened] == [True, True]
    assert sorted(path.suffix for path in tmp_path.rglob("*.*")) == [".npz", ".png"]


def test_only_halves_of_this_callback_are_removed(tmp_path):
    kept = ["gates/look.npz", "gates/part", "probes/look.npz.0.part", "gates/figures/p.png"]
    for name in [*kept, "gates/look.npz.0.part", "gates/figures/p.png.0.part", "gates/snapshots.jsonl.part"]:
        path = tmp_path / "[run]" / "rnn_callbacks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    sinks.clean_folder(str(tmp_path / "[run]"), noun="gates")
    left = {
        str(path.relative_to(tmp_path / "[run]" / "rnn_callbacks")) for path in tmp_path.rglob("*") if path.is_file()
    }
    assert left == set(kept)
    sinks.clean_folder(str(tmp_path / "not there"), noun="gates")


def test_halves_that_cannot_be_removed_are_told_and_the_others_go(tmp_path, monkeypatch):
    remove = LocalFileSystem.rm

    def refuse(self, path, **options):
        if "figures" not in path:
            raise PermissionError(errno.EACCES, "refused", path)
        remove(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "rm", refuse)
    for name in ("look.npz.0.part", "figures/p.png.0.part"):
        path = tmp_path / "rnn_callbacks" / "gates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with pytest.raises(sinks.OutletError, match=r"half-written could not be removed from .*gates: PermissionError"):
        sinks.clean_folder(str(tmp_path), noun="gates")
    assert [path.name for path in tmp_path.rglob("*.part")] == ["look.npz.0.part"]


# ---- a disk that refuses ---------------------------------------------------------------------------------------------


def said_in(run):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RecurrentHealthWarning)
        run()
    return [str(warning.message) for warning in said]


def test_a_run_goes_on_while_its_disk_is_full_and_writes_again_when_it_has_room(fit, tmp_path):
    full = ExitStack()

    class Clear(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                full.close()

    with full:
        full.enter_context(files_up_to(1500))
        said = said_in(
            lambda: fit(GateMonitor(every_n_epochs=1, figure_every_n_epochs=1), Clear(), logger=False, max_epochs=2)
        )
    assert len(said) == 2  # numbers and pictures
    assert all("files may not become that large here. Training goes on" in words for words in said)
    assert not any("Traceback" in words for words in said)
    written = sorted(path.name for path in tmp_path.rglob("rnn_callbacks/gates/**/*") if path.is_file())
    assert written == ["encoder.rnn-epoch=0001-step=00000005.png", "epoch=0001-step=00000005.npz"]


def test_a_run_whose_folder_cannot_be_made_ends_and_its_snapshots_are_where_it_says(fit, tmp_path):
    (tmp_path / "file").write_text("in the way, for root as well")

    class Nowhere(Takes):
        save_dir = str(tmp_path / "file")

    monitors = [GateMonitor(figure_every_n_epochs=1000), WeightTrajectoryLogger(figure_every_n_epochs=1000)]
    trainers = []
    said = said_in(lambda: trainers.append(fit(*monitors, logger=Nowhere())))
    assert trainers[0].current_epoch == 2
    target = tmp_path / "file" / "takes" / "0" / "rnn_callbacks"
    assert sum(f"to {target}/weight_trajectory, which cannot be written to now: " in words for words in said) == 1
    (last,) = [words for words in said if "could not be copied to" in words]
    place = Path(last.rpartition("; ")[2].removesuffix(" has them."))
    assert len(SnapshotFile(place)) == 3
    shutil.rmtree(place.parent)
    assert any(f"did not get to {target}/gates" in words for words in said)
    assert not any("Traceback" in words for words in said)


def test_snapshots_return_to_a_folder_that_can_be_written_again(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RecurrentHealthWarning, match=r"cannot be written to now: Not a directory\.$"):
        home = SnapshotHome(str(tmp_path / "file"), noun="weight_trajectory", part=1)
    SnapshotFile.create(home.path, [Column("net", "w", 0, 3, 3)]).append([np.arange(3)], epoch=0, step=1)
    (tmp_path / "file").unlink()
    home.leave()
    assert not home.path.parent.exists()
    assert SnapshotFile(tmp_path / "file" / "rnn_callbacks" / "weight_trajectory" / "snapshots").row(0).tolist() == [
        0,
        1,
        2,
    ]
