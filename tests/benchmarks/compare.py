"""What `compare` costs: reading runs back and comparing them, against TensorBoard's own reader; the page."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from rnn_callbacks.compare import compare, load_runs
from rnn_callbacks.compare.page import page

from ..compare.page_runs import add_looks, comparison_of, runs_of
from .weight_trajectory import resident

RUNS, STEPS, TAGS = 20, 2000, 50
ROUNDS = 3


def write_runs(folder, runs=RUNS, steps=STEPS, tags=TAGS):
    """Runs as `SummaryWriter` writes them; the first is written, the others are its copies."""
    writer = SummaryWriter(f"{folder}/version_0", max_queue=10_000)
    for step in range(steps):
        for tag in range(tags):
            writer.add_scalar(f"gates/reader.l0/gate{tag:02d}/mean", step / (tag + 1), step)
    writer.close()
    (path,) = Path(folder).glob("version_0/*")
    for run in range(1, runs):
        copied = Path(folder, f"version_{run}", path.name)
        copied.parent.mkdir()
        copied.write_bytes(path.read_bytes())


def read_as_we_do(folder):
    comparison = compare(load_runs(folder))  # TensorBoard's reader below only reads
    return sum(len(found.steps) for series in comparison.series for found in series.values())


def read_as_tensorboard_does(folder):
    count, kept = 0, []
    for run in sorted(Path(folder).iterdir()):
        kept.append(EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload())
        count += sum(len(kept[-1].Scalars(tag)) for tag in kept[-1].Tags()["scalars"])
    return count


def spent(reader, folder):
    """CPU seconds, and bytes of resident memory at most above those before; run in a process of its own, on Linux."""
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, begin = resident("VmRSS"), time.process_time()
    count = globals()[reader](folder)
    return time.process_time() - begin, resident("VmHWM") - before, count


def alternating(folder, rounds=ROUNDS):
    """Medians of CPU time and memory of both readers, each time in a new process."""
    found = {"read_as_we_do": [], "read_as_tensorboard_does": []}
    for _ in range(rounds):
        for reader, rows in found.items():
            code = f"from tests.benchmarks.compare import spent; print(*spent({reader!r}, {str(folder)!r}))"
            output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            rows.append([float(number) for number in output.split()[-3:]])
    return [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in found.values()]


def rows(steps=STEPS):
    with tempfile.TemporaryDirectory() as folder:
        write_runs(folder, steps=steps)
        ours, theirs = alternating(folder, rounds=1)
    assert ours[2] == theirs[2] == RUNS * steps * TAGS
    what = f"{RUNS} runs of {steps} steps of {TAGS} tags, loaded and compared"
    yield (
        f"CPU time of TensorBoard's EventAccumulator / {what}",
        f"{theirs[0] / ours[0]:.1f} ({ours[0]:.1f} s)",
        ">= 5",
    )
    yield (
        f"peak resident memory of EventAccumulator / {what}",
        f"{theirs[1] / ours[1]:.1f} ({ours[1] / 2**20:.0f} MiB)",
        ">= 1",
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = [add_looks(run, Path(folder), range(0, 20, 2)) for run in runs_of(5, ("gru",), epochs=20)]
        comparison = comparison_of(runs)
        begin = time.process_time()
        written = page(comparison)
        seconds = time.process_time() - begin
    yield "page of 5 runs, CPU time", f"{seconds:.1f} s", "<= 10 s"
    yield "page of 5 runs, size", f"{len(written.encode()) / 1e6:.2f} MB", "<= 5 MB"
