"""What `WeightTrajectoryLogger` costs: a snapshot of a large model late in training, the geometry, a training run."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.decomposition import PCA
from torch import nn

from examples.digits import DigitReader, Digits
from rnn_callbacks import WeightTrajectoryLogger
from rnn_callbacks.analysis.phate_embedding import phate_embedding
from rnn_callbacks.analysis.step_gram import path_steps
from rnn_callbacks.analysis.weight_trajectory import weight_trajectory
from rnn_callbacks.callbacks.weight_recorder import WeightRecorder
from rnn_callbacks.weight_snapshots import SnapshotFile

PARAMETERS = 10_000_000
EPOCHS = 1000
ROUNDS = 15


def large_model():
    """An LSTM and a readout of about ten million weights."""
    model = nn.Module()
    model.rnn = nn.LSTM(512, 1024, 1)
    model.readout = nn.Linear(1024, 3600)
    return model


def cpu(function, *arguments, **options):
    begin = time.process_time()
    found = function(*arguments, **options)
    return time.process_time() - begin, found


def forget_rows(file):
    """Make a path of so many snapshots look long without its bytes: the file has a hole where they would be."""
    row = file.row_width(len(file.columns)) * file.dtype.itemsize
    with file.path.with_name(file.path.name + ".bin").open("r+b") as data:
        data.truncate(row * EPOCHS)
    with file.path.with_name(file.path.name + ".jsonl").open("a") as index:
        index.writelines(f'{{"epoch": {n}, "step": {n}, "value": 0.5}}\n' for n in range(EPOCHS))
    return SnapshotFile(file.path)


def late_snapshot(storage, folder):
    """Median CPU time of a snapshot after a thousand others, over that of writing its bytes."""
    torch.set_num_threads(1)
    model = large_model()
    recorder = WeightRecorder(model, {"rnn": model.rnn}, storage=storage, max_megabytes=1e9)
    recorder.begin(Path(folder) / "snapshots", resumed=None, step=0)
    recorder._file = forget_rows(recorder.file)
    content = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    taken, written = [], []
    for number in range(ROUNDS):
        taken.append(cpu(recorder.take, epoch=number, step=number)[0])
        with (Path(folder) / "plain.bin").open("ab") as plain:
            written.append(cpu(plain.write, content.data)[0])
    return statistics.median(taken), statistics.median(written), content.nbytes


def resident(field):
    """Bytes: ``VmRSS`` of this process now, ``VmHWM`` at most since the last reset."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def resident_snapshots(folder):
    """Resident memory that taking snapshots adds to a model, in snapshots; run in a process of its own, on Linux."""
    torch.set_num_threads(1)
    model = large_model()
    recorder = WeightRecorder(model, {"rnn": model.rnn}, storage="exact")
    recorder.begin(Path(folder) / "snapshots", resumed=None, step=0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = resident("VmRSS")
    for number in range(5):
        recorder.take(epoch=number, step=number)
    return (resident("VmHWM") - before) / sum(p.nbytes for p in model.parameters())


def training(**options):
    """CPU seconds of a run of the demo, and the callback's own count of what it spent."""
    with tempfile.TemporaryDirectory() as folder:
        pl.seed_everything(0, verbose=False)
        callback = WeightTrajectoryLogger(**options)
        trainer = pl.Trainer(
            max_epochs=60, accelerator="cpu", logger=TensorBoardLogger(folder), callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(DigitReader("gru"), Digits())
        schedule = callback._schedule
        return schedule.training_seconds, schedule.numbers.spent, schedule.figures.spent, callback._looks


def rows():
    with tempfile.TemporaryDirectory() as folder:
        taken, written, size = late_snapshot("exact", folder)
    yield (
        f"snapshot of {size / 4e6:.1f} M weights after {EPOCHS} others / writing its bytes, CPU",
        (f"{taken / written:.2f} ({1000 * taken:.0f} ms)"),
        "<= 3",
    )
    with tempfile.TemporaryDirectory() as folder:
        taken, written, _ = late_snapshot("sketch", folder)
    yield "the same as a sketch", f"{taken / written:.2f} ({1000 * taken:.0f} ms)", ""
    with tempfile.TemporaryDirectory() as folder:
        code = f"from tests.benchmarks.weight_trajectory import resident_snapshots as r; print(r({folder!r}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    yield "resident memory above the model, in snapshots", f"{float(found.stdout.split()[-1]):.2f}", "<= 2"

    weights = np.cumsum(np.random.default_rng(0).normal(size=(EPOCHS, 5000)), axis=0)
    steps = path_steps(weights, most=EPOCHS)
    ours = statistics.median(cpu(weight_trajectory, steps)[0] for _ in range(5))
    theirs = statistics.median(cpu(PCA(10, svd_solver="full").fit_transform, weights)[0] for _ in range(3))
    yield f"geometry of {EPOCHS} snapshots from their Gram matrix, random walk included", f"{ours:.2f} s", "<= 0.2 s"
    yield "scikit-learn's PCA of the same snapshots, 5000 weights / ours", f"{theirs / ours:.1f} times", ""

    long = np.cumsum(np.random.default_rng(1).normal(size=(200, 200_000)).astype(np.float32), axis=0)
    gram = statistics.median(cpu(path_steps, long)[0] for _ in range(3))
    yield "products of all steps of 200 snapshots, 200 000 weights", f"{gram:.2f} s", ""
    for count in (50, 200):
        distances = weight_trajectory(path_steps(long[:count])).distances
        phate_embedding(distances)
        taken = statistics.median(cpu(phate_embedding, distances)[0] for _ in range(3))
        yield f"PHATE of {count} snapshots", f"{1000 * taken:.0f} ms", ""

    spent, numbers, figures, looks = training()
    yield (
        f"default callback, {looks} looks and 61 snapshots in a training of {spent:.0f} s, without figures",
        (f"{numbers / spent:.1%}"),
        "<= 1 %",
    )
    yield "its figures, the import of PHATE included", f"{figures / spent:.1%} ({figures:.1f} s)", ""
