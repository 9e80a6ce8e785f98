"""Snapshots of the weights on disk: appended while the network trains, read column by column afterwards.

Two files: ``NAME.bin`` holds the numbers, a row for each snapshot; ``NAME.jsonl`` says in its first line what the
columns are and then, a line for each snapshot, when it was taken. A row counts once its line is written, so a process
that is killed at any moment leaves a path that is whole up to then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # raised when an older reader could not read a newer file
COPIED = 2**24  # bytes at a time


@final
@dataclass(frozen=True)
class Column:
    """Consecutive numbers of one parameter in every row."""

    part: str  # to which they belong, `place/gate` or `place`
    parameter: str
    first: int  # of the parameter's numbers, row by row
    last: int  # the first after it
    width: int  # numbers kept: all of them, or those of a sketch


@final
@dataclass(frozen=True)
class Entry:
    """When a snapshot was taken."""

    epoch: int  # counted from 0 as Lightning does; -1 before training
    step: int  # optimizer steps that were done
    value: float | None  # of the metric, where there was one
    columns: int  # how many of the columns it has: those of parameters that were frozen at first came later


class SnapshotFile:
    """A path through weight space, on disk.

    Args:
        path: of the files, without their ending.

    Raises:
        FileNotFoundError: where there is none; `create` makes one.
        ValueError: when the file is no such file, or of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._load()

    def _load(self) -> None:
        self.columns: list[Column] = []
        self.entries: list[Entry] = []
        self._offsets = [0]  # where each row begins, in numbers, and where the next one will
        self._lines = 0  # bytes of the index that count
        lines = self._index.read_bytes().splitlines(keepends=True)
        held = self._data.stat().st_size if self._data.exists() else 0
        for number, line in enumerate(lines):
            facts = _parsed(line)
            if facts is None:
                break  # written by halves when the process ended
            try:
                if number == 0:
                    self._read_head(facts)
                else:
                    self._read_line(facts)
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._index} is no index of weight snapshots: line {number + 1}: {error}"
                ) from error
            if self.nbytes > held:  # its row is not there: the data file was cut, or copied by halves
                self.entries.pop()
                self._offsets.pop()
                break
            self._lines += len(line)
        if not self._lines:
            raise ValueError(f"{self._index} is no index of weight snapshots: its first line cannot be read")

    def _read_head(self, facts: dict[str, Any]) -> None:
        if facts.get("format", 0) > FORMAT:
            raise ValueError(
                f"{self._index} has format {facts['format']}, this version of rnn-callbacks reads up to {FORMAT}"
            )
        self.dtype = np.dtype(facts["dtype"])
        self.facts: dict[str, Any] = facts["facts"]
        self.columns = [Column(**column) for column in facts["columns"]]
        if self.dtype.kind != "f" or not isinstance(self.facts, dict):
            raise TypeError(f"numbers are {self.dtype}, facts {type(self.facts).__name__}")

    def _read_line(self, facts: dict[str, Any]) -> None:
        if "columns_added" in facts:
            self.columns += [Column(**column) for column in facts["columns_added"]]
        elif "facts" in facts:
            self.facts |= facts["facts"]
        else:
            self._enter(Entry(columns=len(self.columns), **facts))

    @classmethod
    def create(
        cls, path: str | Path, columns: Sequence[Column], *, dtype: str = "float32", facts: dict[str, Any] | None = None
    ) -> SnapshotFile:
        """A new path without snapshots; one that was there is overwritten.

        Args:
            path: without ending.
            columns: of every row.
            dtype: of the numbers.
            facts: what readers should know beside, as JSON can say it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "format": FORMAT,
            "dtype": np.dtype(dtype).newbyteorder("<").str,
            "facts": facts or {},
            "columns": [asdict(column) for column in columns],
        }
        _ended(path, ".bin").write_bytes(b"")  # an index that is still there has no rows from here on
        _replace(_ended(path, ".jsonl"), (json.dumps(head) + "\n").encode())
        return cls(path)

    @property
    def _index(self) -> Path:
        return _ended(self.path, ".jsonl")

    @property
    def _data(self) -> Path:
        return _ended(self.path, ".bin")

    def __len__(self) -> int:
        return len(self.entries)

    def row_width(self, columns: int) -> int:
        """Numbers in a row that has so many columns."""
        return sum(column.width for column in self.columns[:columns])

    def _enter(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._offsets.append(self._offsets[-1] + self.row_width(entry.columns))

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots."""
        return self._offsets[-1] * int(self.dtype.itemsize)

    def append(
        self, columns: Iterable[NDArray[np.floating]], *, epoch: int, step: int, value: float | None = None
    ) -> None:
        """Add a snapshot. When anything fails on the way, the path is as it was.

        Args:
            columns: the numbers of every column, in order.
            epoch: of the snapshot.
            step: of the snapshot.
            value: of the metric.

        Raises:
            ValueError: when there are more or fewer numbers than the columns have.
            OSError: when the disk does not take them.
        """
        begin = self.nbytes
        with self._data.open("r+b") as file:
            file.seek(begin)
            for numbers in columns:
                file.write(np.asarray(numbers, self.dtype).ravel().data.cast("B"))
            written = file.tell() - begin
        expected = self.row_width(len(self.columns)) * self.dtype.itemsize
        if written != expected:
            raise ValueError(f"a row has {expected} bytes, got {written}")
        self._write_line({"epoch": epoch, "step": step, "value": value})
        self._enter(Entry(epoch, step, value, len(self.columns)))

    def widen(self, columns: Sequence[Column]) -> None:
        """From now on rows have these columns too; in earlier ones they stood where they first are."""
        self._write_line({"columns_added": [asdict(column) for column in columns]})
        self.columns += columns

    def note(self, **facts: Any) -> None:
        """Add to what readers should know."""
        self._write_line({"facts": facts})
        self.facts |= facts

    def _write_line(self, facts: dict[str, Any]) -> None:
        line = (json.dumps(facts) + "\n").encode()
        with self._index.open("r+b") as file:
            file.truncate(self._lines)  # a line that was written by halves
            file.seek(self._lines)
            file.write(line)
        self._lines += len(line)

    def cut(self, count: int) -> None:
        """Forget all but the first snapshots."""
        lines = self._index.read_bytes()[: self._lines].splitlines(keepends=True)
        kept, rows = [lines[0]], 0
        for line in lines[1:]:
            is_row = line.startswith(b'{"epoch"')
            if is_row and rows == count:
                break
            rows += is_row
            kept.append(line)
        _replace(self._index, b"".join(kept))
        self._load()

    def copy(self, path: str | Path, count: int) -> SnapshotFile:
        """The first snapshots once more, in another place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        left = self._offsets[count] * self.dtype.itemsize
        _ended(path, ".jsonl").unlink(missing_ok=True)  # at no moment is there an index beside the rows of another path
        with self._data.open("rb") as source, _ended(path, ".bin").open("wb") as target:
            while left and (block := source.read(min(left, COPIED))):
                target.write(block)
                left -= len(block)
        _replace(_ended(path, ".jsonl"), self._index.read_bytes())
        copied = SnapshotFile(path)
        copied.cut(count)
        return copied

    def rename(self, path: str | Path) -> None:
        """Take the place of another path, or a new one."""
        path = Path(path)
        _ended(path, ".jsonl").unlink(missing_ok=True)  # as in copy
        self._data.replace(_ended(path, ".bin"))
        self._index.replace(_ended(path, ".jsonl"))
        self.path = path

    def delete(self) -> None:
        """Leave nothing on disk."""
        self._index.unlink(missing_ok=True)
        self._data.unlink(missing_ok=True)

    def row(self, number: int) -> NDArray[np.floating]:
        """All columns in one snapshot; those that came later as they first were."""
        begin, known = self._offsets[number], self.entries[number].columns
        parts = [
            np.fromfile(
                self._data, self.dtype, self._offsets[number + 1] - begin, offset=begin * int(self.dtype.itemsize)
            )
        ]
        for column in range(known, len(self.columns)):
            parts += [part[0] for part in self.read_column(column, np.array([number]), 2**62)]
        return np.concatenate(parts)

    def read(self, part: str, rows: NDArray[np.int64], *, most: int = 2**21) -> Iterator[NDArray[np.floating]]:
        """The columns of a part in some snapshots, at most so many numbers at a time: ``(n, p)`` each.

        A snapshot from before a column was there has it as it first was.
        """
        for number, column in enumerate(self.columns):
            if column.part == part:
                yield from self.read_column(number, rows, most)

    def read_column(self, number: int, rows: NDArray[np.int64], most: int = 2**21) -> Iterator[NDArray[np.floating]]:
        """One column in some snapshots, as `read` gives those of a part."""
        first = next((k for k, entry in enumerate(self.entries) if entry.columns > number), None)
        width = self.columns[number].width
        if first is None or not width:
            return  # added, and no snapshot was taken since
        flat = np.memmap(self._data, self.dtype, "r", shape=(self._offsets[-1],))
        begins = np.array(self._offsets)[np.maximum(rows, first)] + self.row_width(number)
        wide = max(1, most // max(1, len(rows)))
        for begin in range(0, width, wide):
            found = np.empty((len(rows), min(wide, width - begin)), self.dtype)
            for row, place in zip(found, begins + begin, strict=True):
                row[:] = flat[place : place + found.shape[1]]
            yield found


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line of an index."""
    try:
        facts = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was, whenever the process is killed."""
    part = _ended(path, ".part")
    part.write_bytes(content)
    part.replace(path)


def _ended(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
