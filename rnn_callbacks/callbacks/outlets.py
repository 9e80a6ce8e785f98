"""Where the report of a look goes, one outlet after the other: what one of them cannot take, the others still get."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

import lightning.pytorch as pl

from .. import sinks
from ..report import Report
from .guard import Guard

# By run, for all callbacks together: a full disk is the same one for each of them.
_SAID: WeakKeyDictionary[pl.Trainer, set[str]] = WeakKeyDictionary()

_CAUSES = {
    errno.ENOSPC: ("no space is left there", "make room"),
    errno.EDQUOT: ("the quota there is used up", "make room"),
    errno.EROFS: ("the file system there is read-only", "log to another folder"),
    errno.EACCES: ("writing there is not permitted", "log to another folder, or allow it"),
    errno.EPERM: ("writing there is not permitted", "log to another folder, or allow it"),
    errno.EFBIG: ("files may not become that large here", "raise that limit (`ulimit -f`)"),
}


@final
@dataclass(frozen=True)
class Place:
    """Which look it was, and where its files go."""

    folder: str | None  # of the run
    noun: str
    epoch: int
    step: int
    part: int  # among the callbacks of this kind in the run


def publish(trainer: pl.Trainer, report: Report, place: Place, guard: Guard) -> None:
    """Everything but scalars, which go through Lightning, and pictures."""
    before = guard.failures
    if place.folder is not None:
        with delivery(trainer, guard):
            sinks.save_report(
                report, place.folder, noun=place.noun, epoch=place.epoch, step=place.step, part=place.part
            )
    with delivery(trainer, guard):
        sinks.log_histograms(trainer, report.histograms, place.step)
    with delivery(trainer, guard):
        sinks.log_texts(trainer, report.texts, place.step)
    guard.failures = min(guard.failures, before + 1)  # it was one look


def publish_figures(trainer: pl.Trainer, report: Report, place: Place, guard: Guard) -> None:
    """Draw, and give to every logger that takes pictures and to the run's folder."""
    with delivery(trainer, guard):
        sinks.log_figures(
            trainer, report.figures, place.folder, noun=place.noun, epoch=place.epoch, step=place.step, part=place.part
        )


@contextmanager
def delivery(trainer: pl.Trainer, guard: Guard) -> Iterator[None]:
    """What outlets refuse is counted and said, once for each cause in a run, and training goes on.

    It is tried again at every look: a disk may have room again, a server may be back.
    """
    with guard:
        try:
            yield
        except sinks.OutletError as error:
            if guard.on_error == "raise":
                raise error.refusals[0].error from None
            guard.failures += 1
            said = _SAID.setdefault(trainer, set())
            for refusal in error.refusals:
                key = _cause(refusal)
                if key not in said:
                    said.add(key)
                    guard.say(key, _words(refusal, guard))


def _cause(refusal: sinks.Refusal) -> str:
    kind = getattr(refusal.error, "errno", None) or type(refusal.error).__name__
    return f"outlet {refusal.where or refusal.what} {kind}"


def _words(refusal: sinks.Refusal, guard: Guard) -> str:
    error, where = refusal.error, refusal.where
    ending = f"Training goes on, and every look tries again; more of this is only counted, in {guard.counter}."
    begin = f"{guard.owner}: {refusal.what}" + (f" {where}" if where else "")
    if isinstance(error, OSError) and where is not None:
        cause, advice = _CAUSES.get(error.errno or 0, (str(error), ""))
        return f"{begin}: {cause}. {ending}" + (f" To have them, {advice}." if advice else "")
    return f"{begin}. {ending}\n" + "".join(traceback.format_exception(error)).rstrip()
