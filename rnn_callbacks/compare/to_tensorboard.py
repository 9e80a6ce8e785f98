"""A comparison back into TensorBoard: every run with its epochs as horizontal axis, and the pictures of all of them."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from .comparison import Comparison
from .words import headline

OVERVIEW = "comparison"  # the run that holds pictures and words
MOST_EPOCHS = 2**53  # further ones, from a damaged file, are no whole numbers


def write_tensorboard(comparison: Comparison, folder: str | Path, figures: Mapping[str, Figure]) -> Path:
    """Write event files into a new folder: ``tensorboard --logdir FOLDER`` shows runs epoch by epoch.

    TensorBoard's own horizontal axes are steps and time, so runs of unlike batch size lie far apart in the original
    logs. Here a step is an epoch; of several values in an epoch the last one counts, and what has no epoch is left out.

    Args:
        comparison: what to write.
        folder: made new, so that nothing of an older comparison is mixed in.
        figures: by tag.

    Raises:
        FileExistsError: when the folder already holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already holds something; name a new folder for TensorBoard")
    taken = {OVERVIEW}
    for number, run in enumerate(comparison.runs):
        name = _folder_name(number, run.name)
        if name.casefold() in taken:  # of another run, but for signs that no folder has
            name = f"{name}_{number}"
        taken.add(name.casefold())
        _write_run(comparison, number, folder / name)
    writer = EventFileWriter(str(folder / OVERVIEW))
    words = "\n\n".join(line if line.startswith("- ") else f"**{line}**" for line in headline(comparison))
    writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[_text("comparison", words)])))
    for tag, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        image = Summary.Image(encoded_image_string=content.getvalue())
        value = Summary.Value(tag=f"comparison/{tag}", image=image)
        writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    writer.close()
    return folder


def _write_run(comparison: Comparison, number: int, folder: Path) -> None:
    writer = EventFileWriter(str(folder), max_queue_size=1000)
    for tag, series in comparison.series[number].items():
        known = np.flatnonzero(np.abs(series.epochs) < MOST_EPOCHS)
        epochs = series.epochs[known].astype(np.int64)
        last = known[np.append(epochs[1:] != epochs[:-1], True)] if len(known) else known
        if tag == "epoch":
            continue
        for place in last:
            wall = series.walls[place] if np.isfinite(series.walls[place]) else 0.0
            value = Summary.Value(tag=_encodable(tag), simple_value=_single(series.values[place]))
            step = int(series.epochs[place])
            writer.add_event(Event(wall_time=float(wall), step=step, summary=Summary(value=[value])))
    writer.close()


def _encodable(tag: str) -> str:
    return tag.encode("utf-8", "replace").decode()


def _single(value: float) -> float:
    """As event files hold it: 32 bits."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _text(tag: str, words: str) -> Summary.Value:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[words.encode("utf-8", "replace")])
    return Summary.Value(tag=tag, metadata=create_summary_metadata(display_name="", description=""), tensor=tensor)


def _folder_name(number: int, name: str) -> str:
    """A run's name as one that every file system takes and that leads nowhere else."""
    parts = [re.sub(r"[^\w.=,@+-]", "_", part)[:80] for part in name.split("/")]
    return "/".join(part for part in parts if part.strip(".")) or f"run_{number}"
