"""What was seen in a run, in a few lines at its end: a few numbers, what was raised, and where to see more."""

from __future__ import annotations

import math
import posixpath
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ..cells import Cell, cells
from .guard import on_host
from .progress import close_bar

if TYPE_CHECKING:  # which calls this
    from .base import EpochCallback

MOST_CELLS, MOST_ALL = 4, 3  # that get headlines; up to so many all of a model's, else those of its top layers
MOST_LINES, MOST_FLAGS = 6, 4  # of a summary
WIDTH = 110  # characters that a line may have before the rest of its things is only counted


def headline_cells(modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, Cell]]:
    """The few cells of a model that sum it up, with what they are called in words; by ``{module}.{cell}``.

    All of up to three, else those of the top layer of each module, of the last modules where these are many.
    """
    by_module = {name: cells(module) for name, module in modules.items()}
    many = sum(map(len, by_module.values())) > MOST_ALL
    found = {
        f"{name}.{cell.name}": (name if len(own) == 1 else f"{name}.{cell.name}", cell)
        for name, own in by_module.items()
        for cell in own
        if not many or cell.place.layer == max(other.place.layer for other in own)
    }
    return dict(list(found.items())[-MOST_CELLS:])


def say_summary(trainer: pl.Trainer, callbacks: Sequence[EpochCallback]) -> None:
    """Print one short block on what callbacks saw in a run that is over or broke off; nothing where none of them did.

    Through Lightning's own channel: who silences Lightning silences this.

    Args:
        trainer: of the run.
        callbacks: those of this package in it, before they leave their modules.
    """
    told = [callback for callback in callbacks if callback.summary and callback.watched and callback._seen]
    if not told or not trainer.is_global_zero or trainer.state.fn != "fit":
        return
    lines = [_overview(trainer, callbacks)]
    lines += [_row(type(callback).__name__, _in_words(trainer, callback)) for callback in told[:MOST_LINES]]
    if len(told) > MOST_LINES:
        lines.append(_row(f"and {len(told) - MOST_LINES} more", listed(type(c).__name__ for c in told[MOST_LINES:])))
    lines.append(_row("flags raised", _flags(told)))
    failed = [f"{type(callback).__name__} {callback._guard.failures}" for callback in told if callback._guard.failures]
    if failed:
        lines.append(_row("failed looks", f"{listed(failed)}; a warning above says why"))
    lines += _where(trainer, told[0]._folder)
    close_bar(trainer)
    rank_zero_info("\n".join(lines))


def listed(items: Iterable[str], most: int = MOST_FLAGS) -> str:
    """With commas, and how many are left out."""
    every = list(items)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def _row(title: str, words: str) -> str:
    return f"  {title:<23} {words}"


def _overview(trainer: pl.Trainer, callbacks: Sequence[EpochCallback]) -> str:
    done = _counted(trainer.current_epoch, "epoch") if trainer.current_epoch else _counted(trainer.global_step, "step")
    until = ", before the run broke off" if trainer.interrupted else ""
    spent = sum(callback._schedule.spent for callback in callbacks)
    training = callbacks[0]._schedule.training_seconds
    share = (
        f", {spent / training:.1%} of the training time"
        if spent < training
        else f" beside {_duration(training)} of training"
    )
    return f"What was seen in {done}{until} (watching took {_duration(spent)}{share}):"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _in_words(trainer: pl.Trainer, callback: EpochCallback) -> str:
    """The headlines of a callback, those about one thing together."""
    by_thing: dict[str, list[str]] = {}
    with on_host():
        headlines = callback.headlines()
    for tag, words in headlines.items():
        value = callback._seen.get(tag, math.nan)
        if math.isfinite(value):
            thing, _, what = words.format(value=value).partition(": ")
            by_thing.setdefault(thing, []).append(what)
    parts = [f"{thing}: {', '.join(said)}" for thing, said in by_thing.items()]
    fit = [number for number in range(1, len(parts) + 1) if len("; ".join(parts[:number])) <= WIDTH]
    kept = max(fit, default=1)
    more = f"; and {len(parts) - kept} more" if len(parts) > kept else ""
    words = "; ".join(parts[:kept]) + more if parts else "looked, and measured none of its main numbers"
    late = 0 <= callback._looked_in < trainer.current_epoch - 1
    return words + (f" (after {_counted(callback._looked_in + 1, 'epoch')})" if late else "")


def _flags(callbacks: Sequence[EpochCallback]) -> str:
    """What stood at the last look of each callback, and where."""
    places: dict[str, list[str]] = {}
    for callback in callbacks:
        for tag, value in callback._seen.items():
            where, is_flag, flag = tag.partition("/flags/")
            if is_flag and value:
                place = where.removeprefix(f"{callback.noun}/").removeprefix("concepts/")
                places.setdefault(flag, []).append(place)
    return listed(f"{flag} ({listed(found, 2)})" for flag, found in places.items()) or "none at the last look"


def _where(trainer: pl.Trainer, folder: str | None) -> list[str]:
    """Files and the command that shows them; a fast_dev_run leaves none."""
    if folder is None:
        return []
    lines = [_row("numbers and pictures", posixpath.join(folder, "rnn_callbacks"))]
    for logger in trainer.loggers:
        if callable(getattr(getattr(logger, "experiment", None), "add_custom_scalars", None)):  # TensorBoard
            root = str(getattr(logger, "root_dir", None) or logger.log_dir)
            lines.append(_row("charts, flags explained", f"tensorboard --logdir {shlex.quote(root)}"))
            break
    return lines
