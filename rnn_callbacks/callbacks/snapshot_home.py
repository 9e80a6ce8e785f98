"""Where a run's snapshots lie: beside its other files, or in a temporary place until the run ends."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.utilities import rank_zero_info

from ..report import PART
from .guard import Guard

NEEDED = 2**16  # bytes that a folder must take, to be one in which snapshots can be begun


@final
class SnapshotHome:
    """The place of the snapshots of one callback.

    Args:
        folder: of the run, a path or a URL; None where it keeps no files.
        noun: of the callback.
        part: among the callbacks of this kind in the run.
    """

    def __init__(self, folder: str | None, *, noun: str, part: int) -> None:
        self._target: str | None = None  # where they go when the run ends
        self._temporary: Path | None = None
        name = "snapshots" if part == 1 else f"snapshots-part={part}"
        why_not = None
        if folder is not None:
            files, place = fsspec.core.url_to_fs(folder)
            if isinstance(files, LocalFileSystem):
                self.path = Path(place) / "rnn_callbacks" / noun / name
                why_not = _why_not_writable(self.path.parent)
                if why_not is None:
                    return
            self._target = f"{folder}/rnn_callbacks/{noun}"
        self._temporary = Path(tempfile.mkdtemp(prefix="rnn_callbacks-"))
        self.path = self._temporary / name
        if self._target is not None:
            words = (
                f"WeightTrajectoryLogger keeps its snapshots in {self._temporary} until the run ends, and then copies "
                f"them to {self._target}"
            )
            if why_not is None:
                rank_zero_info(f"{words}.")
            else:
                guard = Guard("WeightTrajectoryLogger", f"{noun}/failed_looks", "warn")
                guard.say("home", f"{words}, which cannot be written to now: {why_not}.")

    def leave(self) -> None:
        """The run is over: bring temporary files to where they belong. What cannot be brought stays, and is told.

        Raises:
            OSError: with the place where the files still are.
        """
        if self._temporary is None:
            return
        if self._target is not None:
            files, target = fsspec.core.url_to_fs(self._target)
            try:
                files.makedirs(target, exist_ok=True)
                for path in sorted(self._temporary.iterdir()):
                    files.put_file(str(path), f"{target}/{path.name}")
            except Exception as error:
                raise OSError(f"the snapshots could not be copied to {self._target}; {self.path} has them") from error
        shutil.rmtree(self._temporary)
        self._temporary = None


def _why_not_writable(folder: Path) -> str | None:
    probe = folder / f"{uuid.uuid4().hex}{PART}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(NEEDED))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None
