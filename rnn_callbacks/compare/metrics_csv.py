"""What ``metrics.csv`` of Lightning's `CSVLogger` says: a row for each logging, empty where a number was not logged."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .series import Series, epochs_of, joined


def read_csv(content: bytes) -> tuple[dict[str, Series], list[str]]:
    """Read every column, by its name, and tell what was left out.

    Nothing is raised, and no number is guessed: a row with more or fewer cells than there are columns, and a last line
    without an end, which may be half of one, are left out whole; of cells that are no numbers only these.

    Args:
        content: of the file.
    """
    whole, end, half = content.decode("utf-8-sig", errors="replace").replace("\0", "").rpartition("\n")
    rows, problems = _rows(whole + end)
    if half.strip():
        problems.append("its last line has no end and was left out: still being written, or cut off")
    if not rows:
        return {}, problems
    head = rows[0]
    if "step" not in head:
        return {}, [*problems, f"has no column `step`, its columns are {', '.join(head)[:200]}"]
    uneven = [number for number, row in enumerate(rows) if row and len(row) != len(head)]
    if uneven:
        problems.append(f"{len(uneven)} rows do not have {len(head)} cells, first row {uneven[0]}; they were left out")
    cells, bad = _cells(rows)
    if bad:
        problems.append(f"{len(bad)} cells are no numbers, first {bad[0]}; they were left out")
    found: dict[str, Series] = {}
    for tag, numbers in cells.items():
        steps, values, epochs = (np.array(column) for column in zip(*numbers, strict=True))
        found[tag] = joined([Series(steps, values, np.full(len(steps), np.nan), epochs)])
    return {tag: _dated(known, found.get("epoch")) for tag, known in found.items()}, problems


def _rows(text: str) -> tuple[list[list[str]], list[str]]:
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:  # a quote that is never closed
        return rows, [f"row {len(rows)} cannot be read: {error}; what follows was left out"]
    return rows, []


def _cells(rows: Sequence[Sequence[str]]) -> tuple[dict[str, list[tuple[int, float, float]]], list[str]]:
    """Step, value and epoch of all cells that hold a number, by column; and what the others hold."""
    head = rows[0]
    cells: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    bad: list[str] = []
    for number, row in enumerate(rows):
        if number == 0 or len(row) != len(head):
            continue
        texts = {tag: text.strip() for tag, text in zip(head, row, strict=True)}
        step = _step(texts["step"])
        if step is None:
            bad += [f"row {number}, step: {texts['step'][:40]!r}"] if any(texts.values()) else []
            continue
        epoch = _number(texts.get("epoch", ""))
        for tag, text in texts.items():
            if tag != "step" and text:
                value = _number(text)
                if value is None:
                    bad.append(f"row {number}, {tag}: {text[:40]!r}")
                else:
                    cells[tag].append((step, value, math.nan if epoch is None else epoch))
    return cells, bad


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None  # Python would read 1_0 as ten
    except ValueError:
        return None


def _step(text: str) -> int | None:
    """A whole number that an int64 can hold."""
    try:
        step = int(text)
    except ValueError:
        number = _number(text)
        if number is None or not number.is_integer():
            return None
        step = int(number)
    return step if abs(step) < 2**63 and "_" not in text else None


def _dated(known: Series, epochs: Series | None) -> Series:
    """Rows without an epoch of their own, as learning rates have none, take that of their step."""
    filled = np.where(np.isnan(known.epochs), epochs_of(known.steps, epochs), known.epochs)
    return Series(known.steps, known.values, known.walls, filled)
