"""What one outlet refuses, the others get; and what is said of it."""

import errno
import warnings

import fsspec
import lightning.pytorch as pl
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure

from rnn_callbacks import GateMonitor
from rnn_callbacks.callbacks.guard import Guard, RecurrentHealthWarning
from rnn_callbacks.callbacks.outlets import Place, delivery, publish, publish_figures
from rnn_callbacks.report import Histogram, Report, load
from rnn_callbacks.sinks import log_layout, log_scalars

METHODS = ("add_histogram_raw", "add_text", "add_image", "add_custom_scalars")


class Takes(Logger):
    """Takes what TensorBoard takes and keeps it, but for what it is told to refuse."""

    name, version = "takes", 0

    def __init__(self, *refused):
        super().__init__()
        self.refused = refused
        self.taken = []
        self.rounds = 0

    @property
    def experiment(self):
        if "experiment" in self.refused:
            raise RuntimeError("experiment: not today")
        return self

    def _take(self, method, what):
        if method in self.refused:
            raise RuntimeError(f"{method}: not today")
        self.taken.append((method, what))

    def __getattr__(self, name):
        if name in METHODS:
            return lambda what, *arguments, **options: self._take(name, what)
        raise AttributeError(name)

    def log_metrics(self, metrics, step=None):
        self._take("log_metrics", sorted(metrics))

    def log_hyperparams(self, *arguments, **options):
        pass


def square():
    return Figure(figsize=(1, 1), dpi=20)


def no_square():
    raise ZeroDivisionError("no picture of nothing")


REPORT = Report(
    scalars={"gates/a": 1.0},
    histograms={"gates/h": Histogram(np.array([0.0, 1.0]), np.array([3]))},
    texts={"gates/t": "text"},
    figures={"gates/first": square, "gates/second": square},
)
ALL = [
    ("add_histogram_raw", "gates/h"),
    ("add_text", "gates/t"),
    ("add_image", "gates/first"),
    ("add_image", "gates/second"),
]


def run(*loggers):
    return pl.Trainer(accelerator="cpu", logger=list(loggers) or False, enable_checkpointing=False, barebones=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def look(trainer, guard, folder, *, report=REPORT, epoch=0):
    """Publish as a look does, and give what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        place = Place(str(folder), "gates", epoch, 3 * epoch, 1)
        publish(trainer, report, place, guard)
        publish_figures(trainer, report, place, guard)
    assert all(warning.category is RecurrentHealthWarning for warning in said)
    return [str(warning.message) for warning in said]


def guard(on_error="warn", owner="GateMonitor"):
    return Guard(owner, "gates/failed_looks", on_error)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = [
    "rnn_callbacks/gates/epoch=0000-step=00000000.npz",
    "rnn_callbacks/gates/figures/first-epoch=0000-step=00000000.png",
    "rnn_callbacks/gates/figures/second-epoch=0000-step=00000000.png",
]

# ---- a logger that raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["experiment", "add_histogram_raw", "add_text", "add_image"])
def test_what_one_logger_refuses_all_others_and_the_disk_get(tmp_path, method):
    bad, good = Takes(method), Takes()
    mine = guard()
    said = look(run(bad, good), mine, tmp_path)
    assert good.taken == ALL
    assert files(tmp_path) == WHOLE
    assert bad.taken == [pair for pair in ALL if pair[0] != method and method != "experiment"]
    (words,) = said
    assert words.startswith("GateMonitor: ")
    assert "did not get to Takes. Training goes on, and every look tries again" in words
    assert "only counted, in gates/failed_looks" in words
    assert f"RuntimeError: {method}: not today" in words
    assert mine.failures == (2 if method == "experiment" else 1)  # numbers and pictures, each once
    assert look(run(bad, good), guard(), tmp_path)  # another run says it anew


def test_scalars_and_the_page_of_charts_get_to_the_others_too(tmp_path):
    bad, good = Takes("log_metrics", "add_custom_scalars"), Takes()
    trainer, mine = run(bad, good), guard()
    with (
        pytest.warns(RecurrentHealthWarning, match="GateMonitor: scalars did not get to Takes"),
        delivery(trainer, mine),
    ):
        log_scalars(trainer, {"gates/a": 1.0}, epoch=0, step=3)
    with delivery(trainer, mine):  # the same logger for the same cause: only counted
        log_layout(trainer, {"Gates": {}})
    assert good.taken == [("log_metrics", ["epoch", "gates/a"]), ("add_custom_scalars", {"Gates": {}})]
    assert mine.failures == 2


def test_asked_to_raise_it_raises_what_the_logger_raised(tmp_path):
    with pytest.raises(RuntimeError, match="add_text: not today"):
        look(run(Takes("add_text")), guard("raise"), tmp_path)
    assert files(tmp_path) == WHOLE[:1]


def test_a_picture_that_cannot_be_drawn_does_not_take_the_others_with_it(tmp_path):
    logger, mine = Takes(), guard()
    report = Report({}, figures={"gates/bad": no_square, **REPORT.figures})
    (words,) = look(run(logger), mine, tmp_path, report=report)
    assert logger.taken == ALL[2:]
    assert files(tmp_path) == WHOLE
    assert words.startswith("GateMonitor: the picture gates/bad could not be drawn. Training goes on")
    assert "no_square" in words  # where it happened
    assert mine.failures == 1


# ---- a disk that is full, or not for us ------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """A folder in memory, on a disk that refuses with ``disk.fault`` to open a file, or to write it to its end."""

    class Disk:
        fault, when, folder = None, "open", "memory://outlets/run"

        @property
        def files(self):
            return sorted(path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/outlets"))

    state, opened, write = Disk(), MemoryFileSystem._open, MemoryFile.write

    def open_or_refuse(self, path, mode="rb", **options):
        if state.fault and state.when == "open" and "w" in mode:
            raise OSError(state.fault, "refused", path)
        return opened(self, path, mode, **options)

    def write_half(self, content):
        if state.fault and state.when == "write":
            write(self, bytes(content)[: len(content) // 2])
            raise OSError(state.fault, "refused")
        return write(self, content)

    monkeypatch.setattr(MemoryFileSystem, "_open", open_or_refuse)
    monkeypatch.setattr(MemoryFile, "write", write_half)
    yield state
    if fsspec.filesystem("memory").exists("/outlets"):
        fsspec.filesystem("memory").rm("/outlets", recursive=True)


@pytest.mark.parametrize("when", ["open", "write"])
@pytest.mark.parametrize(
    "fault, cause, advice",
    [
        (errno.ENOSPC, "no space is left there", "make room"),
        (errno.EROFS, "the file system there is read-only", "log to another folder"),
        (errno.EACCES, "writing there is not permitted", "log to another folder, or allow it"),
        (errno.EFBIG, "files may not become that large here", "raise that limit"),
    ],
)
def test_a_disk_that_refuses_is_named_in_plain_words_once_for_all_callbacks(disk, when, fault, cause, advice):
    disk.fault, disk.when = fault, when
    logger = Takes()
    trainer, first, second = run(logger), guard(), guard(owner="ProbeTracker")
    numbers, pictures = look(trainer, first, disk.folder)
    assert numbers == (
        f"GateMonitor: the numbers of a look did not get to {disk.folder}/rnn_callbacks/gates: {cause}. Training goes "
        "on, and every look tries again; more of this is only counted, in gates/failed_looks. To have them, "
        f"{numbers.rpartition('To have them, ')[2]}"
    )
    assert numbers.rpartition("To have them, ")[2].startswith(advice)
    assert f"{disk.folder}/rnn_callbacks/gates/figures: {cause}" in pictures
    assert not any("Traceback" in words for words in (numbers, pictures))
    assert look(trainer, first, disk.folder, epoch=1) == look(trainer, second, disk.folder, epoch=1) == []
    assert (first.failures, second.failures) == (4, 2)
    assert logger.taken == 3 * ALL
    assert disk.files == []  # and nothing by halves


def test_when_the_disk_has_room_again_looks_are_written_again(disk):
    trainer, mine = run(), guard()
    disk.fault = errno.ENOSPC
    assert look(trainer, mine, disk.folder)
    disk.fault = None
    assert look(trainer, mine, disk.folder, epoch=1) == []
    assert [name for name in disk.files if name.endswith(".npz")] == ["epoch=0001-step=00000003.npz"]
    assert len(disk.files) == 3
    assert load(f"{disk.folder}/rnn_callbacks/gates/epoch=0001-step=00000003.npz").report.scalars == {"gates/a": 1.0}


# ---- in a training ---------------------------------------------------------------------------------------------------


def test_a_run_with_a_broken_logger_ends_and_the_others_have_everything(fit, tmp_path):
    bad, good = Takes(*METHODS[:3]), Takes()
    with pytest.warns(RecurrentHealthWarning) as said:
        trainer = fit(
            GateMonitor(every_n_epochs=1, figure_every_n_epochs=2, flags={"update_mean_above": 0.0}),
            logger=[bad, good],
        )
    assert trainer.current_epoch == 2
    assert sum("did not get to Takes" in str(warning.message) for warning in said) == 1
    folder = tmp_path / "lightning_logs" / "version_0" / "rnn_callbacks" / "gates"
    looks = [load(str(path)).report for path in sorted(folder.glob("*.npz"))]
    counts = [report.scalars["gates/failed_looks"] for report in looks]
    assert counts == [0, 1]  # what the first could not hand over
    assert len(list((folder / "figures").glob("*.png"))) == 1
    assert {method for method, _ in good.taken} == {*METHODS, "log_metrics"}
