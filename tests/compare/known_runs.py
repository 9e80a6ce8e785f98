"""Runs whose every number is known, in memory or on disk."""

import numpy as np
import yaml

from rnn_callbacks.compare import Run
from rnn_callbacks.compare.groups import Group
from rnn_callbacks.compare.quantities import quantity_of
from rnn_callbacks.compare.run_folders import OURS
from rnn_callbacks.compare.series import Series
from rnn_callbacks.weight_snapshots import Column, SnapshotFile

from . import event_records

HOSTILE = "\x1b[31mred\x1b]0;title\x07\nnext|{place}<b>`x`[l](u)\\|*\ud800"


def series(values, *, steps=None, epochs=None, walls=None):
    """A value in each epoch, ten steps after one another; epochs or walls are False where they are unknown."""
    values = np.array(values, float)
    count = len(values)
    steps = np.arange(count) * 10 + 9 if steps is None else np.array(steps)
    unknown = np.full(count, np.nan)
    epochs = np.arange(count) if epochs is None else unknown if epochs is False else epochs
    walls = 1.5e9 + 60.0 * np.arange(count) if walls is None else unknown if walls is False else walls
    return Series(steps.astype(np.int64), values, np.array(walls, float), np.array(epochs, float))


def run(name, numbers=None, settings=None, folder=None):
    """A run with a series, or a list of values, for each tag."""
    found = {tag: known if isinstance(known, Series) else series(known) for tag, known in (numbers or {}).items()}
    return Run(name, str(folder or f"/logs/{name}"), found, dict(settings or {}))


def seeds(count, generator, *, cell="lstm", shift=(), quantities=8, first=0):
    """Seeds of one configuration: metrics ``m0``, ``m1``... of spread 1; `shift` is added to the first ones."""
    found = []
    for seed in range(first, first + count):
        ends = generator.normal(size=quantities)
        ends[: len(shift)] += shift
        numbers = {f"m{place}": [end + 2, end + 1, end] for place, end in enumerate(ends)}
        found.append(run(f"{cell}-{seed}", numbers, {"cell": cell, "seed": seed}))
    return found


def pair(one, other):
    """Values of two groups as ``(Q, R)``, and the groups."""
    values = np.concatenate([np.atleast_2d(one), np.atleast_2d(other)], axis=1)
    first = np.atleast_2d(one).shape[1]
    members = tuple(range(first)), tuple(range(first, values.shape[1]))
    return values, [Group(name, numbers, numbers) for name, numbers in zip("ab", members, strict=True)]


def metrics(count):
    return [quantity_of(f"m{number}") for number in range(count)]


def write_run(folder, numbers, settings=None):
    """A folder as Lightning's TensorBoardLogger leaves it: a value for each epoch."""
    length = max(map(len, numbers.values()), default=0)
    messages = [
        event_records.scalars(
            epoch * 10 + 9,
            1.5e9 + 60 * epoch,
            epoch=epoch,
            **{tag: values[epoch] for tag, values in numbers.items() if epoch < len(values)},
        )
        for epoch in range(length)
    ]
    event_records.write(folder, *messages)
    if settings is not None:
        (folder / "hparams.yaml").write_text(yaml.safe_dump(settings))
    return folder


def write_snapshots(folder, rows, *, values=None, facts=None, split=None):
    """The path of two parameters' weights, a row for each epoch."""
    rows = np.asarray(rows, np.float64)
    split = rows.shape[1] // 2 if split is None else split
    columns = [
        Column("l0/a", "a", 0, split, split),
        Column("l0/b", "b", 0, rows.shape[1] - split, rows.shape[1] - split),
    ]
    path = folder / OURS / "weight_trajectory" / "snapshots"
    saved = SnapshotFile.create(path, columns, dtype="float64", facts=facts or {})
    for epoch, row in enumerate(rows):
        value = None if values is None else values[epoch]
        saved.append([row[:split], row[split:]], epoch=epoch, step=epoch * 10 + 9, value=value)
    return folder
