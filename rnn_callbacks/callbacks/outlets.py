"""Where the report of a look goes, one outlet after the other: what one of them cannot take, the others still get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import lightning.pytorch as pl

from .. import sinks
from ..report import Report
from .guard import Guard


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
    with guard:
        sinks.log_histograms(trainer, report.histograms, place.step)
        sinks.log_texts(trainer, report.texts, place.step)
        if place.folder is not None:
            sinks.save_report(
                report, place.folder, noun=place.noun, epoch=place.epoch, step=place.step, part=place.part
            )


def publish_figures(trainer: pl.Trainer, report: Report, place: Place, guard: Guard) -> None:
    """Draw, and give to every logger that takes pictures and to the run's folder."""
    with guard:
        sinks.log_figures(
            trainer, report.figures, place.folder, noun=place.noun, epoch=place.epoch, step=place.step, part=place.part
        )
