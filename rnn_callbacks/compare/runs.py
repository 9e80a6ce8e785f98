"""Runs on disk, read back: every number that was logged, what the run was set to, and the looks of our callbacks."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import fsspec
import numpy as np

from ..report import SavedReport, load
from ..weight_snapshots import SnapshotFile
from .event_files import EventFile, read_events
from .hyperparameters import Hyperparameters, flattened, read_yaml
from .metrics_csv import read_csv
from .resumption import is_metric, merged
from .run_folders import EVENTS, LOOK, METRICS, OURS, SETTINGS, by_number, run_folders, short_names
from .series import Series, joined

REPLAY = ".replay"  # how the event file of a replay ends


@final
@dataclass(frozen=True)
class LookFile:
    """Where one look of one callback is kept."""

    path: str  # any URL that fsspec knows
    epoch: int
    step: int
    part: int  # among the callbacks of its kind in the run


@final
@dataclass(eq=False)
class Run:
    """One training run, as its folder tells it."""

    name: str  # short, unlike those of the runs that were loaded with it
    folder: str
    series: dict[str, Series] = field(default_factory=dict)  # by tag
    hyperparameters: Hyperparameters = field(default_factory=dict)
    looks: dict[str, list[LookFile]] = field(default_factory=dict)  # by noun, in order of steps
    problems: list[str] = field(default_factory=list)  # what could not be read, and why
    replayed: bool = False  # whether its checkpoints were looked at afterwards

    @property
    def start(self) -> float:
        """When its first number was logged, in seconds since 1970; NaN where no time is known."""
        walls = [found.walls[np.isfinite(found.walls)] for found in self.series.values()]
        return min((float(known.min()) for known in walls if len(known)), default=np.nan)

    @property
    def last_epoch(self) -> float:
        """The last epoch of which anything is known, counted from 0; NaN where epochs were not logged."""
        epochs = [found.epochs[np.isfinite(found.epochs)] for found in self.series.values()]
        return max((float(known.max()) for known in epochs if len(known)), default=np.nan)

    @property
    def last_step(self) -> int:
        """The last step of which anything is known; 0 without any."""
        return max((int(found.steps[-1]) for found in self.series.values()), default=0)

    @property
    def metrics(self) -> list[str]:
        """Tags of what the model itself logged."""
        return [tag for tag in self.series if is_metric(tag)]

    def read_look(self, look: LookFile) -> SavedReport | None:
        """Everything that a look kept; None, and a line in `problems`, where it cannot be read."""
        try:
            saved = load(look.path)
            if not all(isinstance(value, (int, float)) for value in saved.report.scalars.values()):
                raise ValueError("its scalars are no numbers")
            return saved
        except Exception as error:  # whatever a damaged file makes its reader raise
            self.complain(posixpath.relpath(look.path, self.folder), str(error) or type(error).__name__)
            return None

    def snapshots(self) -> SnapshotFile | None:
        """The path of its weights, where `WeightTrajectoryLogger` kept one on this machine."""
        path = Path(self.folder) / OURS / "weight_trajectory" / "snapshots"
        if not path.with_name("snapshots.jsonl").exists():
            return None
        try:
            return SnapshotFile(path)
        except Exception as error:  # as above
            self.complain("weight snapshots", str(error) or type(error).__name__)
            return None

    def complain(self, what: str, why: str) -> None:
        """Note what could not be read, once."""
        line = f"{what}: {why}"
        if line not in self.problems:
            self.problems.append(line)


def load_runs(*places: str | Path) -> list[Run]:
    """Every run under some places, in the order of their names.

    A run is a folder with TensorBoard event files, a ``metrics.csv`` of Lightning's `CSVLogger`, or what our callbacks
    keep. Event files of a resumed run are put together, later ones count where they overlap. What is damaged is left
    out and named in `Run.problems`; nothing that is read can run code (no pickle, no Python objects in YAML).

    Args:
        places: folders or patterns (``lightning_logs/version_*``), local or any URL that fsspec knows.

    Raises:
        FileNotFoundError: when a place does not exist, or no run lies under any.
        TypeError: when a place is no path, as a list of them is not.
    """
    for place in places:
        if not isinstance(place, str | Path):
            raise TypeError(f"places must be paths, got a {type(place).__name__}; a list of them is given as *places")
    folders = run_folders(map(str, places or (".",)))
    if not folders:
        raise FileNotFoundError(
            f"no run under {', '.join(map(str, places)) or 'this folder'}: expected folders with {EVENTS}... files, "
            f"{METRICS} or {OURS}/, as a Trainer's logger leaves them (by default in lightning_logs/)"
        )
    ordered = sorted(folders, key=by_number)
    names = short_names(ordered)
    return [_read_run(name, folder, folders[folder]) for name, folder in zip(names, ordered, strict=True)]


def _read_run(name: str, folder: str, names: Iterable[str]) -> Run:
    run = Run(name, folder)
    files, root = fsspec.core.url_to_fs(folder)
    events: list[EventFile] = []
    replays: list[EventFile] = []
    table: dict[str, Series] = {}
    settings: dict[str, Hyperparameters] = {}
    for short in sorted(names, key=by_number):
        path = posixpath.join(root, short)
        try:
            if short.startswith(EVENTS):
                found = read_events(files.cat_file(path))
                (replays if short.endswith(REPLAY) else events).append(found)
                problems = [found.complaint] if found.complaint else []
            elif short == METRICS:
                table, problems = read_csv(files.cat_file(path))
            elif short in SETTINGS:
                settings[short], problems = read_yaml(files.cat_file(path).decode("utf-8")), []
            else:
                continue
        except Exception as error:  # whatever the disk, or the library of a remote one, raises
            problems = [str(error) or type(error).__name__]
        for problem in problems:
            run.complain(short, problem)
    run.looks = _looks(posixpath.join(folder, short) for short in names)
    run.replayed = bool(replays)
    run.series = table | merged(events, replays)
    _add_looks(run)
    said = flattened({key: value for file in events for key, value in file.hyperparameters.items()})
    run.hyperparameters = settings.get("config.yaml", {}) | (settings.get("hparams.yaml") or said)
    return run


def _looks(paths: Iterable[str]) -> dict[str, list[LookFile]]:
    """Files of looks by their noun, in order of steps."""
    found: dict[str, list[LookFile]] = defaultdict(list)
    for path in paths:
        folder, short = posixpath.split(path)
        if matched := LOOK.fullmatch(short):
            epoch, step, part = (int(group or 1) for group in matched.groups())
            found[posixpath.basename(folder)].append(LookFile(path, epoch, step, part))
    return {noun: sorted(found[noun], key=lambda look: (look.step, look.part)) for noun in sorted(found)}


def _add_looks(run: Run) -> None:
    """Numbers of looks that reached no logger which keeps them on disk."""
    logged = {tag.split("/")[0] for tag in run.series}
    for noun in [noun for noun in run.looks if noun not in logged]:
        rows: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
        for look in run.looks[noun]:
            saved = run.read_look(look)
            for tag, value in saved.report.scalars.items() if saved else ():
                rows[tag].append((look.step, value, float(look.epoch)))
        for tag, found in rows.items():
            steps, values, epochs = (np.array(column) for column in zip(*found, strict=True))
            unknown = np.full(len(steps), np.nan)
            run.series[tag] = joined([Series(steps.astype(np.int64), values, unknown, epochs)])
