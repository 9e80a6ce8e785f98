"""A path on disk: what goes in comes out, and whatever breaks off leaves what was whole before."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rnn_callbacks import weight_snapshots
from rnn_callbacks.weight_snapshots import Column, Entry, SnapshotFile

WIDTHS = (7, 3, 11)
WIDTH = sum(WIDTHS)


def columns(*widths, part="place/gate", parameter="weight"):
    """Consecutive pieces of one parameter, the first of another part than the others."""
    ends = np.cumsum([0, *widths]).tolist()
    return [
        Column("other" if number == 0 else part, parameter, first, last, last - first)
        for number, (first, last) in enumerate(pairwise(ends))
    ]


def numbers(count, width=WIDTH, dtype="float32", seed=0):
    """Rows of arbitrary bits, none of them NaN."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, width)) * 10.0 ** random.integers(-30, 30, (count, width))).astype(dtype)


def parts(row, widths=WIDTHS):
    """A row, cut into columns."""
    return np.split(row, np.cumsum(widths)[:-1])


def append(file, rows, *, begin=0):
    for number, row in enumerate(rows, begin):
        file.append(parts(row), epoch=number - 1, step=10 * number, value=number / 8)


def filled(path, rows, dtype="float32"):
    file = SnapshotFile.create(path, columns(*WIDTHS), dtype=dtype)
    append(file, rows)
    return file


def same_bits(found, true):
    found, true = np.asarray(found), np.asarray(true)
    assert (found.dtype, found.shape) == (true.dtype, true.shape)
    assert found.tobytes() == true.tobytes()


def holds(file, rows):
    """Whether a path is whole: these rows and no others, by row and by column, and after opening it once more."""
    for known in (file, SnapshotFile(file.path)):
        assert len(known) == len(known.entries) == len(rows)
        assert [entry.step for entry in known.entries] == [10 * k for k in range(len(rows))]
        if len(rows):
            same_bits([known.row(k) for k in range(len(rows))], rows)
            same_bits(whole(known, "place/gate", np.arange(len(rows))), rows[:, WIDTHS[0] :])


def whole(file, part, rows, **options):
    return np.concatenate(list(file.read(part, rows, **options)), axis=1)


# ---- what goes in comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_appended_reads_back_bit_for_bit(tmp_path, dtype):
    rows = numbers(5, dtype=dtype)
    rows[1, :4] = [-0.0, np.nan, np.inf, 5e-42]  # a file is no judge of numbers
    file = filled(tmp_path / "new" / "folder" / "path", rows, dtype)
    holds(file, rows)
    again = SnapshotFile(file.path)
    assert again.entries == [Entry(k - 1, 10 * k, k / 8, 3) for k in range(5)]
    assert again.columns == columns(*WIDTHS)
    assert again.nbytes == file.nbytes == rows.nbytes == file.path.with_name("path.bin").stat().st_size


def test_numbers_are_written_in_the_order_and_precision_of_the_file(tmp_path):
    file = SnapshotFile.create(tmp_path / "path", columns(6, 3))
    matrix = np.arange(6.0).reshape(3, 2).T  # float64, its numbers not one after another
    file.append([matrix, np.arange(6, dtype=np.float16)[::2]], epoch=0, step=0)
    assert file.row(0).tolist() == [0, 2, 4, 1, 3, 5, 0, 2, 4]
    assert file.row(0).dtype == np.float32


@pytest.mark.parametrize("most", [1, 2, 5, 13, 31, 10**9])
def test_columns_are_the_same_however_many_are_read_at_a_time(tmp_path, most):
    rows = numbers(5)
    file = filled(tmp_path / "path", rows)
    wanted = np.array([4, 0, 3])
    chunks = list(file.read("place/gate", wanted, most=most))
    same_bits(np.concatenate(chunks, axis=1), rows[wanted][:, WIDTHS[0] :])
    assert all(chunk.size <= max(most, len(wanted)) for chunk in chunks)
    same_bits(whole(file, "other", wanted, most=most), rows[wanted][:, : WIDTHS[0]])
    assert list(file.read("place", wanted, most=most)) == []


def test_columns_without_numbers_are_no_obstacle(tmp_path):
    file = SnapshotFile.create(tmp_path / "path", [*columns(0, 3), Column("none", "empty", 0, 0, 0)])
    for number in range(2):
        file.append([np.empty((0, 5)), np.full(3, number), np.empty(0)], epoch=number, step=number)
    again = SnapshotFile(file.path)
    assert again.row(1).tolist() == [1, 1, 1]
    assert list(again.read("none", np.arange(2))) == []
    assert whole(again, "place/gate", np.arange(2)).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_path_without_any_column_counts_its_snapshots(tmp_path):
    file = SnapshotFile.create(tmp_path / "path", [])
    for number in range(3):
        file.append([], epoch=number, step=number)
    again = SnapshotFile(file.path)
    assert (len(again), again.nbytes, again.row(2).tolist()) == (3, 0, [])


def test_a_thousand_snapshots_are_each_in_their_place(tmp_path):
    rows = numbers(1000)
    file = SnapshotFile.create(tmp_path / "path", columns(*WIDTHS))
    append(file, rows)
    holds(file, rows)


def test_names_of_any_letters_come_back(tmp_path):
    names = ['a"b', "ü\u2028\x85\r\nx", "{}\\n", "\ud800", '{"epoch": 1}\n{"epoch": 2}', ""]
    file = SnapshotFile.create(
        tmp_path / 'ü "x".y', [Column(name, name, 0, 1, 1) for name in names], facts={"x": names}
    )
    file.widen([Column("later\n", "later\r", 0, 1, 1)])
    file.note(**{name: name for name in names})
    file.append(np.arange(7.0)[:, None], epoch=0, step=0)
    again = SnapshotFile(file.path)
    assert [column.part for column in again.columns] == [*names, "later\n"]
    assert again.facts == {"x": names} | {name: name for name in names}
    assert [whole(again, name, np.array([0])).item() for name in names] == list(range(6))


def test_facts_are_kept_and_later_ones_replace_earlier_ones(tmp_path):
    file = SnapshotFile.create(tmp_path / "path", columns(*WIDTHS), facts={"seed": 3, "metric": None})
    file.note(metric="val_loss", mode="min")
    append(file, numbers(1))
    file.note(mode="max")
    true = {"seed": 3, "metric": "val_loss", "mode": "max"}
    assert SnapshotFile(file.path).facts == file.facts == true
    holds(file, numbers(1))


def test_creating_a_path_overwrites_the_one_that_was_there(tmp_path):
    filled(tmp_path / "path", numbers(5))
    file = SnapshotFile.create(tmp_path / "path", columns(2), dtype="float64")
    assert (len(file), len(SnapshotFile(file.path)), file.nbytes) == (0, 0, 0)
    file.append([np.array([1.0, 2.0])], epoch=0, step=0)
    assert SnapshotFile(file.path).row(0).tolist() == [1, 2]


# ---- columns that come later -----------------------------------------------------------------------------------------


def widened(path):
    """Two snapshots of two columns, two of three, one of four."""
    rows = numbers(5, WIDTH + 5)
    file = SnapshotFile.create(path, columns(*WIDTHS[:2]))
    later = [Column("place/gate", "thawed", 0, 11, 11), Column("late", "latest", 0, 5, 5)]
    for number, row in enumerate(rows):
        if number in (2, 4):
            file.widen([later[number // 4]])
        file.append(
            parts(row, (*WIDTHS, 5))[: 2 + (number >= 2) + (number >= 4)], epoch=number, step=10 * number, value=None
        )
    true = rows.copy()
    true[:2, 10:21] = rows[2, 10:21]
    true[:4, 21:] = rows[4, 21:]
    return file, true


def test_columns_that_came_later_read_as_they_first_were(tmp_path):
    file, true = widened(tmp_path / "path")
    for known in (file, SnapshotFile(file.path)):
        assert [entry.columns for entry in known.entries] == [2, 2, 3, 3, 4]
        same_bits([known.row(k) for k in range(5)], true)
        order = np.array([4, 1, 2, 0, 3])
        same_bits(whole(known, "place/gate", order, most=7), true[order][:, 7:21])
        same_bits(whole(known, "late", order), true[order][:, 21:])
        same_bits(whole(known, "other", order), true[order][:, :7])
    assert file.nbytes == 4 * (2 * 10 + 2 * 21 + 26)


def test_columns_of_which_no_snapshot_was_taken_give_no_numbers(tmp_path):
    rows = numbers(2)
    file = filled(tmp_path / "path", rows)
    file.widen([Column("late", "latest", 0, 5, 5)])
    for known in (file, SnapshotFile(file.path)):
        assert list(known.read("late", np.arange(2))) == []
        same_bits(known.row(1), rows[1])


@pytest.mark.parametrize("count", range(6))
def test_cut_forgets_all_but_the_first_and_the_columns_that_came_after_them(tmp_path, count):
    file, true = widened(tmp_path / "path")
    file.cut(count)
    for known in (file, SnapshotFile(file.path)):
        assert [entry.step for entry in known.entries] == [10 * k for k in range(count)]
        width = [10, 10, 10, 21, 21, 26][count]
        for row in range(count):
            same_bits(known.row(row), true[row, :width])
    added = sum(column.width for column in file.columns)
    file.append([np.arange(added)], epoch=99, step=99)
    assert SnapshotFile(file.path).row(count).tolist() == list(range(added))


@pytest.mark.parametrize("count", [0, 2, 5])
def test_copy_is_a_path_of_its_own(tmp_path, count, monkeypatch):
    monkeypatch.setattr(weight_snapshots, "COPIED", 33)  # bytes: neither a row nor a part of one
    rows = numbers(5)
    file = filled(tmp_path / "path", rows)
    file.note(metric="val_loss")
    filled(tmp_path / "new" / "copy", numbers(2, seed=1), "float64")  # which is overwritten
    copied = file.copy(tmp_path / "new" / "copy", count)
    holds(copied, rows[:count])
    append(copied, numbers(3, seed=1), begin=count)
    holds(copied, np.concatenate([rows[:count], numbers(3, seed=1)]))
    holds(file, rows)
    assert file.facts == {"metric": "val_loss"}


def test_renamed_path_takes_the_place_of_another_and_goes_on_there(tmp_path):
    rows = numbers(5)
    filled(tmp_path / "path", numbers(3, dtype="float64"), "float64")
    file = filled(tmp_path / "path.folded", rows[:4])
    file.rename(tmp_path / "path")
    append(file, rows[4:], begin=4)
    holds(file, rows)
    assert {path.name for path in tmp_path.iterdir()} == {"path.bin", "path.jsonl"}


def test_deleted_path_leaves_nothing_and_may_be_deleted_again(tmp_path):
    file = filled(tmp_path / "path", numbers(2))
    file.delete()
    file.delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["rename", "copy"])
def test_broken_off_while_it_takes_anothers_place_no_index_stands_beside_rows_of_the_other(tmp_path, monkeypatch, way):
    filled(tmp_path / "path", numbers(3, dtype="float32"))
    file = filled(tmp_path / "new", numbers(3, dtype="float64"), "float64")

    def broken_off(*arguments):
        raise KeyboardInterrupt

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: broken_off() if Path(b).suffix == ".jsonl" else replace(a, b))
    with pytest.raises(KeyboardInterrupt):
        getattr(file, way)(tmp_path / "path", *([3] if way == "copy" else []))
    with pytest.raises(FileNotFoundError):
        SnapshotFile(tmp_path / "path")


# ---- what breaks off -------------------------------------------------------------------------------------------------


def test_index_cut_at_any_byte_holds_the_rows_whose_lines_are_whole_and_goes_on(tmp_path):
    rows = numbers(4)
    file = filled(tmp_path / "path", rows[:3])
    index = tmp_path / "path.jsonl"
    text, data = index.read_bytes(), (tmp_path / "path.bin").read_bytes()
    head = text.index(b"\n") + 1
    for length in range(head, len(text) + 1):
        index.write_bytes(text[:length])
        (tmp_path / "path.bin").write_bytes(data)
        file = SnapshotFile(tmp_path / "path")
        count = text[head:length].count(b"\n")
        assert len(file) == count
        append(file, rows[3:], begin=count)
        holds(file, np.concatenate([rows[:count], rows[3:]]))


def test_data_cut_at_any_byte_holds_the_rows_that_are_whole_and_goes_on(tmp_path):
    rows = numbers(4)
    filled(tmp_path / "path", rows[:3])
    index, data = tmp_path / "path.jsonl", tmp_path / "path.bin"
    text, bytes_ = index.read_bytes(), data.read_bytes()
    for length in range(len(bytes_) + 1):
        index.write_bytes(text)
        data.write_bytes(bytes_[:length])
        file = SnapshotFile(tmp_path / "path")
        count = length // (4 * WIDTH)
        assert len(file) == count
        append(file, rows[3:], begin=count)
        holds(file, np.concatenate([rows[:count], rows[3:]]))


def test_what_was_said_after_a_row_that_is_missing_goes_with_it(tmp_path):
    rows = numbers(3)
    file = filled(tmp_path / "path", rows[:2])
    file.widen([Column("late", "latest", 0, 5, 5)])
    file.note(metric="val_loss")
    os.truncate(tmp_path / "path.bin", 2 * rows[0].nbytes - 1)
    file = SnapshotFile(tmp_path / "path")
    assert (file.columns, file.facts) == (columns(*WIDTHS), {})
    append(file, rows[2:], begin=1)
    holds(file, rows[[0, 2]])


def test_opening_changes_nothing_on_disk(tmp_path):
    filled(tmp_path / "path", numbers(3))
    index, data = tmp_path / "path.jsonl", tmp_path / "path.bin"
    index.write_bytes(index.read_bytes() + b'{"epo')
    whole_index, whole_data = index.read_bytes(), data.read_bytes()
    data.write_bytes(whole_data[:100])  # as a folder that is being copied
    assert len(SnapshotFile(tmp_path / "path")) == 1
    assert index.read_bytes() == whole_index
    data.write_bytes(whole_data)
    assert len(SnapshotFile(tmp_path / "path")) == 3


def test_row_without_its_line_does_not_count_and_is_overwritten(tmp_path):
    rows = numbers(3)
    file = filled(tmp_path / "path", rows[:1])
    with (tmp_path / "path.bin").open("ab") as data:
        data.write(rows[1].tobytes()[:-5])
    holds(file, rows[:1])
    append(file, rows[2:], begin=1)
    holds(file, rows[[0, 2]])


def test_what_stands_after_a_line_that_cannot_be_read_goes_with_the_next_append(tmp_path):
    rows = numbers(4)
    filled(tmp_path / "path", rows[:3])
    index = tmp_path / "path.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[:2], b"?" * (len(lines[2]) - 1) + b"\n", lines[3]]))
    file = SnapshotFile(tmp_path / "path")
    assert len(file) == 1
    append(file, rows[3:], begin=1)
    holds(file, rows[[0, 3]])


def test_cut_leaves_out_a_line_that_does_not_count(tmp_path):
    rows = numbers(3)
    filled(tmp_path / "path", rows)
    index = tmp_path / "path.jsonl"
    index.write_bytes(index.read_bytes() + b'{"facts": {"met')
    file = SnapshotFile(tmp_path / "path")
    file.cut(3)
    assert index.read_bytes().endswith(b"}\n")
    holds(file, rows)


@pytest.mark.parametrize("given", [WIDTHS[:2], (*WIDTHS, 1), (7, 3, 10), ()])
def test_row_of_another_width_is_refused_and_the_path_is_as_before(tmp_path, given):
    rows = numbers(2)
    file = filled(tmp_path / "path", rows[:1])
    with pytest.raises(ValueError, match=rf"a row has {4 * WIDTH} bytes, got {4 * sum(given)}"):
        file.append([np.ones(width) for width in given], epoch=1, step=1)
    holds(file, rows[:1])
    append(file, rows[1:], begin=1)
    holds(file, rows)


def test_numbers_that_fail_on_the_way_leave_the_path_as_before(tmp_path):
    def broken():
        yield np.ones(WIDTHS[0])
        raise RuntimeError("no more")

    rows = numbers(2)
    file = filled(tmp_path / "path", rows[:1])
    with pytest.raises(RuntimeError, match="no more"):
        file.append(broken(), epoch=1, step=1)
    holds(file, rows[:1])
    append(file, rows[1:], begin=1)
    holds(file, rows)


@contextmanager
def files_up_to(size):
    """A disk that takes no byte beyond a size; Python ignores the signal that comes with it."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_that_fills_amid_a_row_leaves_the_path_as_before(tmp_path):
    wide = 50_000  # numbers, more than Python keeps before it writes
    rows = numbers(3, wide)
    file = SnapshotFile.create(tmp_path / "path", columns(wide - 3, 3))
    file.append([rows[0]], epoch=0, step=0)
    for limit in (rows.nbytes // 3 + 1001, 2 * rows.nbytes // 3 - 1):
        with files_up_to(limit), pytest.raises(OSError, match="File too large"):
            file.append(parts(rows[1], (wide - 3, 3)), epoch=1, step=1)
        assert (tmp_path / "path.bin").stat().st_size == limit
        assert len(file) == len(SnapshotFile(file.path)) == 1
    file.append([rows[2]], epoch=1, step=2)
    for known in (file, SnapshotFile(file.path)):
        same_bits([known.row(k) for k in range(2)], rows[[0, 2]])


WAYS = {
    "append": lambda file: append(file, numbers(1), begin=1),
    "widen": lambda file: file.widen([Column("late", "latest", 0, 5, 5)]),
    "note": lambda file: file.note(metric="val_loss"),
}


@pytest.mark.parametrize("way", WAYS)
def test_disk_that_fills_amid_a_line_leaves_the_path_as_before(tmp_path, way):
    rows = numbers(2)
    file = filled(tmp_path / "path", rows[:1])
    size = (tmp_path / "path.jsonl").stat().st_size
    with files_up_to(size + 9), pytest.raises(OSError, match="File too large"):
        WAYS[way](file)
    assert (tmp_path / "path.jsonl").stat().st_size == size + 9
    assert (file.columns, file.facts) == (columns(*WIDTHS), {})
    holds(file, rows[:1])
    append(file, rows[1:], begin=1)
    holds(file, rows)


CHILD = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("weight_snapshots", sys.argv[1])
module = sys.modules["weight_snapshots"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
file = module.SnapshotFile(sys.argv[2])
while True:
    k = len(file)
    file.append((np.arange(c.first, c.last) * (k + 1) for c in file.columns), epoch=k, step=10 * k, value=None)
"""


def test_process_killed_at_any_moment_leaves_a_whole_path_that_goes_on(tmp_path):
    wide = 20_011
    file = SnapshotFile.create(tmp_path / "path", columns(wide, 3, wide), dtype="float64")
    total, known = 2 * wide + 3, 0
    for kill in range(4):
        command = [sys.executable, "-c", CHILD, weight_snapshots.__file__, str(file.path)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
            until = time.monotonic() + 60
            while (tmp_path / "path.bin").stat().st_size < (known + 3) * total * 8 and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(0.003 * kill)
            child.kill()
        again = SnapshotFile(file.path)
        assert len(again) >= known + 2
        known = len(again)
        for k in range(known):
            np.testing.assert_array_equal(again.row(k), np.arange(total) * (k + 1.0))
    again.append([np.ones(total)], epoch=0, step=0)
    assert len(SnapshotFile(file.path)) == known + 1


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_path_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path\.jsonl"):
        SnapshotFile(tmp_path / "path")


def test_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_snapshots, "FORMAT", 99)
    filled(tmp_path / "later", numbers(1)).rename(tmp_path / "path")
    monkeypatch.setattr(weight_snapshots, "FORMAT", 1)
    with pytest.raises(ValueError, match="has format 99, this version of rnn-callbacks reads up to 1"):
        SnapshotFile(tmp_path / "path")


HEAD = {"format": 1, "dtype": "<f4", "facts": {}, "columns": []}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"garbage\n",
        b"\x00\x01\xff\xfe\n\x80\n",
        b"[1, 2]\n",
        b"[" * 10**5 + b"\n",
        b'{"a": 1}\n',
        b'{"format": 1}',
        json.dumps(HEAD).encode(),  # without its end
        json.dumps(HEAD | {"format": "new"}).encode() + b"\n",
        json.dumps(HEAD | {"dtype": "zz"}).encode() + b"\n",
        json.dumps(HEAD | {"dtype": "O"}).encode() + b"\n",
        json.dumps(HEAD | {"facts": [3]}).encode() + b"\n",
        json.dumps(HEAD | {"columns": [{"part": "a"}]}).encode() + b"\n",
        json.dumps(HEAD | {"columns": 3}).encode() + b"\n",
        json.dumps(HEAD).encode() + b'\n{"neither": 1}\n',
        json.dumps(HEAD).encode() + b'\n{"facts": 1}\n',
        json.dumps(HEAD).encode() + b'\n{"columns_added": [3]}\n',
    ],
)
def test_file_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "path.jsonl").write_bytes(text)
    (tmp_path / "path.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"path\.jsonl is no index of weight snapshots"):
        SnapshotFile(tmp_path / "path")
