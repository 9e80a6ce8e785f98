"""What one look found: numbers to log, arrays to keep, pictures to draw if somebody watches."""

from __future__ import annotations

import glob
import io
import json
import posixpath
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, final

import fsspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # reading reports does not wait for it

PART = ".part"  # ends the name of a file that is still being written
FORMAT = 1  # of the files; raised when an older reader could not read a newer file


@final
@dataclass(frozen=True, eq=False)
class Histogram:
    """Raw counts, so that a logger need not count again."""

    edges: NDArray[np.float64]  # (K + 1,)
    counts: NDArray[np.int64]  # (K,)


@final
@dataclass(frozen=True, eq=False)
class Report:
    """One look of one callback. Keys are tags."""

    scalars: Mapping[str, float]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)  # drawn on demand, never saved


def save(report: Report, path: str, *, epoch: int, step: int) -> None:
    """Write a report as one ``.npz`` without pickles; the file appears whole or not at all.

    Args:
        report: what to write; its figures are left out.
        path: a local path or any URL that fsspec knows; missing folders are made.
        epoch: counted from 0, as Lightning does.
        step: on the logger's horizontal axis.

    Raises:
        TypeError: when an array holds Python objects, which only a pickle could keep.
    """
    for name, array in report.arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{name} holds objects; only arrays of numbers, booleans and text can be saved")
    facts = {"format": FORMAT, "epoch": epoch, "step": step, "texts": dict(report.texts)}
    entries: dict[str, NDArray[Any]] = {
        "facts": np.array(json.dumps(facts)),
        "scalar_names": np.array(list(report.scalars), dtype=np.str_),
        "scalar_values": np.array(list(report.scalars.values()), dtype=np.float64),
    }
    entries |= {f"arrays/{name}": np.asarray(array) for name, array in report.arrays.items()}
    for name, histogram in report.histograms.items():
        entries |= {f"edges/{name}": histogram.edges, f"counts/{name}": histogram.counts}
    write_whole(path, lambda file: np.savez(file, **entries))  # type: ignore[arg-type]


def write_whole(path: str, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file that appears whole or not at all, whatever fails and whenever the process is killed.

    It is not forced out of the system's cache, so this does not hold for a power failure, as it does not for
    Lightning's checkpoints: that took 6 to 12 ms a file on a fast disk (0.2 to 0.8 without), and takes far more on a
    shared one.

    Args:
        path: a local path or any URL that fsspec knows; missing folders are made.
        write: puts the content into an open file.
    """
    files, target = fsspec.core.url_to_fs(path)
    files.makedirs(posixpath.dirname(target), exist_ok=True)
    part = f"{target}.{uuid.uuid4().hex}{PART}"
    try:
        with files.open(part, "wb") as file:
            write(file)
        files.mv(part, target)
    except BaseException:
        with suppress(Exception):  # it is the first fault that is told
            files.rm(part)
        raise


def sweep(folder: str) -> None:
    """Remove what a killed process left half-written in a folder, where now nobody else writes."""
    files, place = fsspec.core.url_to_fs(folder)
    for left in files.glob(f"{glob.escape(place)}/*{PART}"):
        files.rm(left)


@final
@dataclass(frozen=True, eq=False)
class SavedReport:
    """A report read back, and when it was made."""

    report: Report
    epoch: int
    step: int


def load(path: str) -> SavedReport:
    """Read what `save` wrote.

    Raises:
        ValueError: when the file is of a newer format.
    """
    with fsspec.open(path, "rb") as file:
        content = io.BytesIO(file.read())
    with np.load(content, allow_pickle=False) as entries:
        facts = json.loads(str(entries["facts"]))
        if facts["format"] > FORMAT:
            raise ValueError(f"{path} has format {facts['format']}, this version of rnn-callbacks reads up to {FORMAT}")
        found: dict[str, dict[str, NDArray[Any]]] = {"arrays": {}, "edges": {}, "counts": {}}
        for key in entries.files:
            kind, _, name = key.partition("/")
            if kind in found and name:
                found[kind][name] = entries[key]
        report = Report(
            scalars=dict(zip(entries["scalar_names"].tolist(), entries["scalar_values"].tolist(), strict=True)),
            arrays=found["arrays"],
            histograms={name: Histogram(edges, found["counts"][name]) for name, edges in found["edges"].items()},
            texts=facts["texts"],
        )
    return SavedReport(report, facts["epoch"], facts["step"])
