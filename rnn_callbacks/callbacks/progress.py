"""A look that takes long says so in the progress bar: a training that stands still without a word seems to hang.

What a bar can do counts, not its class: Lightning's two kinds, and a user's own that are made like one of them. A bar
of another kind is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Timer
from typing import Any, final

import lightning.pytorch as pl

STAGES = ("val", "train")  # whose lines may be live while somebody looks, the lower one first


@contextmanager
def shown(trainer: pl.Trainer, words: str, *, seconds: float = 1.0) -> Iterator[None]:
    """Name what takes longer than a second in the progress bar, which is then given back as it was.

    A thread of its own writes the words, for what happens inside keeps the main one busy; it is gone afterwards.

    Args:
        trainer: whose bar.
        words: what happens inside.
        seconds: what may pass without a word.
    """
    notice = _Notice(trainer.progress_bar_callback if trainer.is_global_zero else None, words)
    timer = Timer(seconds, notice.put_up)
    timer.daemon = True
    if notice.bar is not None:
        with suppress(RuntimeError):  # no thread to be had
            timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        notice.take_down()


def close_bar(trainer: pl.Trainer) -> None:
    """The run is over or broke off: what is printed from here on stands on lines of its own.

    Lightning closes its bars too, but tqdm's not where a run breaks off, and rich's only after all callbacks.
    """
    bar = trainer.progress_bar_callback
    progress = getattr(bar, "progress", None)
    with suppress(Exception):
        if progress is None:
            for line in _lines(bar):
                line.close()
        elif progress.live.is_started and progress.console.is_interactive:  # elsewhere it is drawn when it stops
            progress.stop()


@final
class _Notice:
    """Words in the line that is live, and the way back; nothing that goes wrong with them reaches the training."""

    def __init__(self, bar: Any, words: str) -> None:
        self.bar = bar
        self._words = words
        self._undo: Callable[[], object] | None = None

    def put_up(self) -> None:
        with suppress(Exception):
            self._undo = (_in_task if hasattr(self.bar, "progress") else _in_line)(self.bar, self._words)

    def take_down(self) -> None:
        if self._undo is not None:
            with suppress(Exception):
                self._undo()


def _in_line(bar: Any, words: str) -> Callable[[], object] | None:
    """Of tqdm, which locks while it writes."""
    for line in _lines(bar):
        before = line.desc
        line.set_description_str(f"{words}: ")
        return partial(line.set_description_str, before)
    return None


def _lines(bar: Any) -> Iterator[Any]:
    """Those of tqdm that are live."""
    for stage in STAGES:
        line = None
        with suppress(Exception):  # there was none yet
            line = getattr(bar, f"{stage}_progress_bar")
        if line is not None and not line.disable:  # a closed one is disabled
            yield line


def _in_task(bar: Any, words: str) -> Callable[[], object] | None:
    """Of rich, which locks while it changes a task and while it draws."""
    tasks = {task.id: task for task in bar.progress.tasks}
    for stage in STAGES:
        task = tasks.get(getattr(bar, f"{stage}_progress_bar_id", None))
        if task is not None and task.visible:
            before = task.description
            bar.progress.update(task.id, description=words, refresh=True)
            return partial(bar.progress.update, task.id, description=before, refresh=True)
    return None
