"""Where runs lie: folders with files that a Trainer's logger or our callbacks leave, and short names for them."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

OURS = "rnn_callbacks"
EVENTS = "events.out.tfevents"
METRICS = "metrics.csv"
SETTINGS = ("hparams.yaml", "config.yaml")
LOOK = re.compile(r"epoch=(\d+)-step=(\d+)(?:-part=(\d+))?\.npz")
_KEPT = re.compile(rf"(?P<folder>.*)/(?P<name>{OURS}/[^/]+/(?:{LOOK.pattern}|snapshots\.jsonl))", re.DOTALL)


def run_folders(places: Iterable[str]) -> dict[str, list[str]]:
    """Names of the files of each run under some places, by the run's folder; no run stands here twice.

    Raises:
        FileNotFoundError: when a place does not exist.
    """
    found: dict[str, dict[str, None]] = defaultdict(dict)  # names in the folder; a set would not keep their order
    called: dict[str, str] = {}  # by what a folder is called without links, by what it was called first
    for place in places:
        files, root = fsspec.core.url_to_fs(place)
        if is_local(files) and ".." in root.split("/"):
            root = os.path.realpath(root)
        for folder, names in _found_under(files, _roots(files, root, place)).items():
            url = files.unstrip_protocol(folder) if not is_local(files) else folder
            url = called.setdefault(os.path.realpath(folder) if is_local(files) else url, url)
            found[url] |= dict.fromkeys(names)
    return {folder: list(names) for folder, names in found.items()}


def is_local(files: Any) -> bool:
    """Whether paths are those of this machine."""
    return isinstance(files, LocalFileSystem)


def by_number(name: str) -> list[tuple[int, int, str]]:
    """An order of names that puts ``version_10`` after ``version_9``."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def short_names(folders: Sequence[str]) -> list[str]:
    """What is left of folders without what all have in common, of a single one its own name; all different."""
    if len(folders) == 1:
        names = [posixpath.basename(folders[0].rstrip("/")) or folders[0]]
    elif len({"://" in folder for folder in folders}) == 1:
        common = posixpath.commonpath(folders)
        if any(
            posixpath.commonpath([folder]) == common for folder in folders
        ):  # a run within a run: it needs a name too
            common = posixpath.dirname(common)
        names = [posixpath.relpath(folder, common) if common else folder for folder in folders]
    else:
        names = list(folders)
    return ["".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name) for name in names]


def _roots(files: Any, root: str, place: str) -> list[str]:
    """A place as it is called, or else all that match it as a pattern."""
    if files.exists(root):
        return [root]
    literal = root  # the part that is there as it is called: signs in it mean themselves
    while literal and not files.exists(literal) and posixpath.dirname(literal) != literal:
        literal = posixpath.dirname(literal)
    matched = files.glob(glob.escape(literal) + root[len(literal) :]) if any(sign in root for sign in "*?[") else []
    roots = [str(found) for found in matched if files.exists(found)]
    if not roots:
        raise FileNotFoundError(f"{place} does not exist")
    return sorted(roots, key=by_number)


def _found_under(files: Any, roots: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    settings: dict[str, list[str]] = defaultdict(list)
    for root in roots:
        alone = files.isfile(root)
        for path in [root] if alone else _files_under(files, root):
            folder, name = posixpath.split(path)
            kept = _KEPT.fullmatch(path) if name.endswith((".npz", ".jsonl")) else None
            if kept:
                found[kept["folder"]].append(kept["name"])
            elif name.startswith(EVENTS) or name == METRICS:
                found[folder].append(name)
            elif name in SETTINGS:
                settings[folder].append(name)
            if alone:
                settings[folder] += [name for name in SETTINGS if files.isfile(posixpath.join(folder, name))]
    return {folder: names + settings[folder] for folder, names in found.items()}


def _files_under(files: Any, root: str) -> Iterator[str]:
    """Paths of all files under a folder; links to folders are followed, into each folder once."""
    if not is_local(files):
        yield from files.find(root)
        return
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort(key=lambda name: (Path(folder, name).is_symlink(), name))  # links last
        for name in names:
            wanted = name.startswith(EVENTS) or name in (METRICS, *SETTINGS) or name.endswith((".npz", ".jsonl"))
            if wanted and Path(folder, name).is_file():  # no pipe: reading it would wait forever
                yield posixpath.join(folder, name)
