"""What a TensorBoard event file says in numbers, many times as fast as TensorBoard's own reader.

A file is a row of records: length (8 bytes), its checksum (4), an `Event` message, the message's checksum (4). Records
are laid side by side as the rows of a matrix: checksums are then taken all at once, and of those that differ in nothing
but time, step and value, as all of one tag do, only one needs to be parsed.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from .checksums import WIDTH, checked, is_intact
from .summaries import SCALARS, SESSION, is_number, session, unwrapped

HEAD = 12  # bytes before each message: its length and a checksum of that
LONG = 1024  # bytes; longer messages are mostly pictures: parsed one by one, their checksums taken only of numbers
BLOCK = 2**14  # messages that are looked at together
BLOCK_BYTES = 2**20  # and their bytes, as eight bytes of memory are taken for each
FEW = 16  # messages that are parsed faster one by one
TIME, STEP = 0x09, 0x10  # first bytes of wall_time and step in a message

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Points:
    """One tag, in the order in which it was written."""

    steps: Numbers  # (n,)
    walls: NDArray[np.float64]  # (n,), seconds since 1970
    values: NDArray[np.float64]  # (n,)


@final
@dataclass(frozen=True, eq=False)
class EventFile:
    """All scalars of a file."""

    points: dict[str, Points]
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    complaint: str = ""  # what is wrong with the file; what came before it is there


def read_events(content: bytes) -> EventFile:
    """Read the scalars and hyperparameters of an event file.

    Nothing is raised: a file that is cut, damaged or no event file at all gives what comes before the damage.

    Args:
        content: of the file.
    """
    begins, lengths = _frames(content)
    read = _Reading(content, begins)
    end = int(begins[-1] + lengths[-1]) + WIDTH if len(begins) else 0  # of the last whole record
    if len(content) >= end + HEAD and not is_intact(content, end, 8):
        read.damage(len(begins))
    order = np.argsort(lengths, kind="stable")
    broken = order[~_intact(np.frombuffer(content, np.uint8), begins[order], lengths[order])]
    if len(broken):
        read.damage(int(broken.min()))
        order = order[order < broken.min()]
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []:
        length = int(lengths[group[0]])
        block = max(1, min(BLOCK, BLOCK_BYTES // max(1, length)))
        for at in range(0, len(group), block):
            if length > LONG:
                read.one_by_one(group[at : at + block], length)
            else:
                read.together(group[at : at + block], length)
    return EventFile(read.points(), read.hyperparameters(), _complaint(read.damaged, len(content) - end, len(begins)))


def _frames(content: bytes) -> tuple[Numbers, Numbers]:
    """Where the message of each whole record begins, and how long it is."""
    begins: list[int] = []
    lengths: list[int] = []
    at, size = 0, len(content)
    unpack = struct.Struct("<Q").unpack_from
    while at + HEAD <= size:
        (length,) = unpack(content, at)
        after = at + HEAD + length + WIDTH
        if after > size:
            break
        begins.append(at + HEAD)
        lengths.append(length)
        at = after
    return np.array(begins, np.int64), np.array(lengths, np.int64)


def _complaint(damaged: int | None, left: int, records: int) -> str:
    """What is wrong with a file that has so many bytes after its last whole record."""
    if damaged == 0 or (left and not records):
        return "is no event file, or damaged from its beginning"
    if damaged is not None:
        return f"record {damaged + 1} is damaged; it and what follows were left out"
    return "ends within a record: still being written, or cut off" if left else ""


class _Reading:
    """Takes in records in any order."""

    def __init__(self, content: bytes, begins: Numbers) -> None:
        self.damaged: int | None = None  # the first such record
        self._content, self._begins = content, begins
        self._data = np.frombuffer(content, np.uint8)
        self._found: dict[str, list[tuple[Numbers, ...]]] = defaultdict(list)  # record, step, time, value
        self._singles: dict[str, list[tuple[int, int, float, float]]] = defaultdict(list)
        self._wrapped: dict[str, list[tuple[int, int, float, float]]] = defaultdict(list)  # tensors of one number
        self._scalar_tags: set[str] = set()  # whose tensors are scalars: said once, by the first record of a tag
        self._sessions: dict[int, dict[str, Any]] = {}  # hyperparameters, by record

    def together(self, records: Numbers, length: int) -> None:
        """Records of one length, at most `BLOCK`."""
        if len(records) < FEW:
            self.one_by_one(records, length)
            return
        messages = self._data[self._begins[records, None] + np.arange(length)]
        for chosen in _alike(messages):
            tag = _plain_tag(messages[chosen[0]].tobytes()) if len(chosen) >= FEW else None
            if tag is None:
                self.one_by_one(records[chosen], length)
                continue
            alike = messages[chosen]
            times, values = (alike[:, part].copy().view(kind)[:, 0] for part, kind in _FIELDS)
            self._found[tag].append((records[chosen], _steps(alike), times, values))

    def one_by_one(self, records: Numbers, length: int) -> None:
        """Records of one length, however they are made."""
        for record in records.tolist():
            begin = int(self._begins[record])
            try:
                event = Event.FromString(self._content[begin : begin + length])
                told = [value for value in event.summary.value if value.tag == SESSION or is_number(value)]
                if length > LONG and told and not is_intact(self._content, begin, length):
                    self.damage(record)
                    continue
                for value in told:
                    self._take(record, event, value)
            except Exception:  # protobuf's own class differs between its implementations
                self.damage(record)

    def _take(self, record: int, event: Event, value: Any) -> None:
        if value.tag == SESSION:
            self._sessions[record] = session(value)
        elif value.WhichOneof("value") == "simple_value":
            self._singles[value.tag].append((record, event.step, event.wall_time, value.simple_value))
        elif (number := unwrapped(value.tensor)) is not None:
            self._wrapped[value.tag].append((record, event.step, event.wall_time, number))
            if value.metadata.plugin_data.plugin_name == SCALARS:
                self._scalar_tags.add(value.tag)

    def points(self) -> dict[str, Points]:
        """Every tag as far as the file can be believed."""
        wrapped = {tag: rows for tag, rows in self._wrapped.items() if tag in self._scalar_tags}
        for tag, rows in [*self._singles.items(), *wrapped.items()]:
            numbers = np.array([row[:2] for row in rows], np.int64), np.array([row[2:] for row in rows], np.float64)
            self._found[tag].append((*numbers[0].T, *numbers[1].T))
        found: dict[str, Points] = {}
        for tag, parts in self._found.items():
            order, steps, walls, values = (np.concatenate(column) for column in zip(*parts, strict=True))
            kept = np.argsort(order, kind="stable")
            kept = kept[: np.searchsorted(order[kept], self.damaged)] if self.damaged is not None else kept
            if len(kept):
                found[tag] = Points(steps[kept], walls[kept], values[kept].astype(np.float64))
        return found

    def hyperparameters(self) -> dict[str, Any]:
        """Those of all sessions, where they differ the last one's."""
        found: dict[str, Any] = {}
        for record in sorted(self._sessions):
            if self.damaged is None or record < self.damaged:
                found |= self._sessions[record]
        return found

    def damage(self, record: int) -> None:
        self.damaged = record if self.damaged is None else min(self.damaged, record)


def _plain_tag(message: bytes) -> str | None:
    """The tag of a message that is a time, a step and one number, in this order and nothing else; None of any other."""
    try:
        event = Event.FromString(message)
        (value,) = event.summary.value
    except Exception:  # as above
        return None
    bare = Summary(value=[Summary.Value(tag=value.tag, simple_value=value.simple_value)])
    bare_message = Event(wall_time=event.wall_time, step=event.step, summary=bare).SerializeToString()
    return str(value.tag) if message[0] == TIME and message == bare_message else None


_FIELDS = ((slice(1, 9), "<f8"), (slice(-4, None), "<f4"))  # where time and value stand


def _alike(messages: Bytes) -> Iterable[Numbers]:
    """Rows that are equal but for time, step and value, as numbers of rows."""
    count, length = messages.shape
    if length < 16:
        return [np.array([row]) for row in range(count)]
    key = np.zeros((count, -(-length // 8) * 8), np.uint8)
    key[:, :length] = messages
    has_step = messages[:, 9] == STEP
    going = has_step[:, None] & (np.cumprod(messages[:, 10:20] >= 0x80, axis=1) > 0)
    width = np.where(has_step, 1 + going.sum(1), 0)
    key[:, 10 : 10 + going.shape[1]][np.arange(going.shape[1]) < width[:, None]] = 0
    key[:, 1:9] = 0
    key[:, 1] = width  # steps of unlike length leave the rest in unlike places
    key[:, length - 4 : length] = 0
    sums = key.view("<u8") @ _MIXERS[: key.shape[1] // 8]
    _, first, which = np.unique(sums, return_index=True, return_inverse=True)
    alike = (key == key[first[which]]).all(1)  # two kinds could have one sum
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    return [group for group in groups if alike[group].all()] + [
        np.array([row]) for group in groups if not alike[group].all() for row in group
    ]


_MIXERS = np.random.default_rng(0).integers(1, 2**63, LONG // 8 + 1, dtype=np.uint64) * 2 + 1


def _steps(messages: Bytes) -> Numbers:
    """Steps of alike messages, varints of one width."""
    found = np.zeros(len(messages), np.uint64)
    if messages.shape[1] > 10 and messages[0, 9] == STEP:
        for place in range(10):
            byte = messages[:, 10 + place]
            found |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * place)
            if byte[0] < 0x80:
                break
    return found.view(np.int64)


def _intact(data: Bytes, begins: Numbers, lengths: Numbers) -> NDArray[np.bool_]:
    """Whether the checksums of records, sorted by length, are right."""
    found = np.ones(len(begins), bool)
    for at in range(0, len(begins), BLOCK):
        part = slice(at, at + BLOCK)
        found[part] = checked(data, begins[part] - HEAD, np.full(len(begins[part]), 8))
        short = int(np.searchsorted(lengths[part], LONG, side="right"))
        found[at : at + short] &= checked(data, begins[part][:short], lengths[part][:short])
    return found
