"""`SnapshotHome`: where a run's snapshots lie, and how they come to where they belong."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rnn_callbacks.callbacks.snapshot_home import SnapshotHome
from rnn_callbacks.weight_snapshots import SnapshotFile

from .test_weight_trajectory import temporary
from .weight_paths import Keeps, logger, rows, watch


def home(folder, part=1):
    return SnapshotHome(folder, noun="weight_trajectory", part=part)


@pytest.fixture
def remote():
    """A folder in memory, gone afterwards."""
    yield "memory://snapshot_home"
    files = fsspec.filesystem("memory")
    if files.exists("/snapshot_home"):
        files.rm("/snapshot_home", recursive=True)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_in_a_local_folder_snapshots_lie_beside_the_reports_from_the_beginning(tmp_path, prefix):
    before = temporary()
    assert home(f"{prefix}{tmp_path}/run").path == tmp_path / "run/rnn_callbacks/weight_trajectory/snapshots"
    second = home(f"{prefix}{tmp_path}/run", part=2)
    assert second.path == tmp_path / "run/rnn_callbacks/weight_trajectory/snapshots-part=2"
    second.path.parent.mkdir(parents=True, exist_ok=True)
    second.path.write_text("kept")
    second.leave()
    assert second.path.read_text() == "kept"
    assert temporary() == before


def test_a_run_that_keeps_no_files_leaves_none():
    nowhere = home(None)
    nowhere.path.write_text("snapshots")
    nowhere.leave()
    nowhere.leave()  # once more, as when an exception and the teardown both end a run
    assert not nowhere.path.parent.exists()


def test_files_of_a_remote_folder_are_brought_there_at_the_end(remote):
    far = home(f"{remote}/run", part=2)
    for ending in ("bin", "jsonl"):
        far.path.with_name(f"{far.path.name}.{ending}").write_text(f"snapshots, {ending}")
    files = fsspec.filesystem("memory")
    assert not files.exists("/snapshot_home/run")
    far.leave()
    for ending in ("bin", "jsonl"):
        copied = files.cat(f"/snapshot_home/run/rnn_callbacks/weight_trajectory/snapshots-part=2.{ending}")
        assert copied == f"snapshots, {ending}".encode()
    assert not far.path.parent.exists()


def fails(self, *args, **options):
    raise PermissionError("no room in memory")


def test_files_that_cannot_be_brought_stay_and_can_be_brought_later(remote, monkeypatch):
    far = home(remote)
    far.path.write_text("snapshots")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", fails)
        with pytest.raises(OSError, match=f"could not be copied to {remote}/rnn_.*; {far.path} has them"):
            far.leave()
    assert far.path.read_text() == "snapshots"
    far.leave()
    assert fsspec.filesystem("memory").cat("/snapshot_home/rnn_callbacks/weight_trajectory/snapshots") == b"snapshots"


def test_the_path_of_a_run_with_a_remote_folder_is_read_from_there(fit, remote, tmp_path):
    before, keeps = temporary(), Keeps()
    fit(logger(), keeps, logger=False, default_root_dir=remote)
    assert temporary() == before
    (folder,) = fsspec.filesystem("memory").glob("/snapshot_home/lightning_logs/*/rnn_callbacks/weight_trajectory")
    fsspec.filesystem("memory").get(f"{folder}/snapshots.*", f"{tmp_path}/")
    assert (rows(SnapshotFile(tmp_path / "snapshots")) == keeps.weights()).all()


def test_a_copy_that_fails_is_told_with_the_place_of_the_files_even_after_another_fault(fit, remote, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "put_file", fails)
    before, watcher = temporary(), logger(on_error="warn")
    analyse = type(watcher).analyse
    monkeypatch.setattr(type(watcher), "analyse", lambda self, look: (analyse(self, look), 1 / 0))
    _, said = watch(fit, watcher, logger=False, default_root_dir=remote)
    assert len(said) == 2
    (left,) = temporary() - before
    assert "ZeroDivisionError" in said[0]
    assert said[1].startswith("WeightTrajectoryLogger: the snapshots could not be copied to memory://snapshot_home/")
    assert f"{left}/snapshots has them" in said[1]
    assert len(SnapshotFile(left / "snapshots")) == 3
    for path in left.iterdir():
        path.unlink()
    left.rmdir()
