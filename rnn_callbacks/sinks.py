"""The only exit: numbers and pictures to every logger that takes them, and to disk.

What one of them refuses, the others still get; then an `OutletError` says who refused what.
"""

from __future__ import annotations

import html
import itertools
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import fsspec
import lightning.pytorch as pl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from .report import Histogram, Report, save, sweep, write_whole

Layout = dict[str, dict[str, list[Any]]]  # TensorBoard's custom scalars: category -> chart -> [kind, tags]


@final
@dataclass(frozen=True)
class Refusal:
    """One thing that did not arrive."""

    what: str  # went wrong, in words that the place follows
    where: str | None  # a logger or a folder; None for a picture that could not be drawn
    error: Exception


class OutletError(Exception):
    """Some outlets did not take what they were given; all others have it."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__("; ".join(f"{one.what} {one.where or ''}: {one.error!r}" for one in refusals))
        self.refusals = list(refusals)


@contextmanager
def _round() -> Iterator[list[Refusal]]:
    """For what is refused in the course of it: told at its end, when everything has been tried."""
    refusals: list[Refusal] = []
    yield refusals
    if refusals:
        raise OutletError(refusals)


@contextmanager
def _noting(refusals: list[Refusal], what: str, where: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever kind a logger raises
        refusals.append(Refusal(what, where, error))


def to_loggers(trainer: pl.Trainer, what: str, give: Callable[[pl.loggers.Logger], None]) -> None:
    """Give one thing to one logger after the other, whatever some of them make of it."""
    with _round() as refusals:
        for logger in trainer.loggers:
            with _noting(refusals, f"{what} did not get to", type(logger).__name__):
                give(logger)


# ---- the run's folder ------------------------------------------------------------------------------------------------


def run_folder(trainer: pl.Trainer) -> str | None:
    """Where this run keeps its files: the logger's folder, or a version folder of its own where there is none.

    None in a ``fast_dev_run``, which leaves no files.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    for logger in trainer.loggers:
        if logger.log_dir:
            return str(logger.log_dir)
    for logger in trainer.loggers:  # W&B and MLflow have no folder per run
        if logger.save_dir:
            return posixpath.join(str(logger.save_dir), str(logger.name), str(logger.version))
    root = posixpath.join(str(trainer.default_root_dir), "lightning_logs")
    files, path = fsspec.core.url_to_fs(root)
    return next(
        f"{root}/version_{number}" for number in itertools.count() if not files.exists(f"{path}/version_{number}")
    )


def clean_folder(folder: str, *, noun: str) -> None:
    """Remove what a killed run left half-written in its folder, before the run goes on there."""
    with _round() as refusals:
        for place in (_folder(folder, noun), _folder(folder, noun, "figures")):
            with _noting(refusals, "what an earlier run left half-written could not be removed from", place):
                sweep(place)


def save_report(report: Report, folder: str, *, noun: str, epoch: int, step: int, part: int = 1) -> None:
    """Write one look to ``<folder>/rnn_callbacks/<noun>/epoch=0007-step=00001234.npz``.

    A second callback of the same kind in the same run adds ``-part=2``, and so on.
    """
    place, name = _folder(folder, noun), f"{_look_name(epoch, step, part)}.npz"
    with _round() as refusals, _noting(refusals, "the numbers of a look did not get to", place):
        save(report, posixpath.join(place, name), epoch=epoch, step=step)


def _folder(folder: str, noun: str, *below: str) -> str:
    return posixpath.join(folder, "rnn_callbacks", noun, *below)


def _look_name(epoch: int, step: int, part: int) -> str:
    return f"epoch={epoch:04d}-step={step:08d}" + (f"-part={part}" if part > 1 else "")


# ---- numbers and texts -----------------------------------------------------------------------------------------------


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float], *, epoch: int, step: int) -> None:
    """Straight to the loggers, for hooks in which Lightning's own ``log`` is not allowed."""

    def give(logger: pl.loggers.Logger) -> None:
        logger.log_metrics({**scalars, "epoch": float(epoch)}, step=step)
        logger.save()

    to_loggers(trainer, "scalars", give)


def log_histograms(trainer: pl.Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """Raw counts, to loggers that take them (TensorBoard and Weights & Biases)."""
    to_loggers(trainer, "histograms", partial(_log_histograms, histograms=histograms, step=step))


def log_texts(trainer: pl.Trainer, texts: Mapping[str, str], step: int) -> None:
    """Markdown, to loggers that take it (TensorBoard, Weights & Biases, MLflow)."""
    to_loggers(trainer, "texts", partial(_log_texts, texts=texts, step=step))


def log_layout(trainer: pl.Trainer, layout: Layout) -> None:
    """A curated page of charts, for loggers that have one (TensorBoard's *Custom Scalars*)."""

    def give(logger: pl.loggers.Logger) -> None:
        experiment = _experiment(logger)
        if hasattr(experiment, "add_custom_scalars"):
            experiment.add_custom_scalars(layout)

    to_loggers(trainer, "the page of charts", give)


# What a logger takes is told by what it can do, not by its class: ``lightning`` and ``pytorch_lightning`` have classes
# of their own, and other people's loggers wrap them.


def _experiment(logger: pl.loggers.Logger) -> Any:
    return getattr(logger, "experiment", None)


def _is_wandb(logger: pl.loggers.Logger) -> bool:
    return hasattr(logger, "log_image") and hasattr(logger, "log_table")


def _is_mlflow(logger: pl.loggers.Logger) -> bool:
    return hasattr(logger, "run_id") and hasattr(_experiment(logger), "log_text")


def _log_histograms(logger: pl.loggers.Logger, histograms: Mapping[str, Histogram], step: int) -> None:
    experiment = _experiment(logger)
    for tag, histogram in histograms.items():
        if hasattr(experiment, "add_histogram_raw"):  # TensorBoard
            middle = (histogram.edges[1:] + histogram.edges[:-1]) / 2
            experiment.add_histogram_raw(
                tag,
                min=histogram.edges[0],
                max=histogram.edges[-1],
                num=int(histogram.counts.sum()),
                sum=float((middle * histogram.counts).sum()),
                sum_squares=float((middle**2 * histogram.counts).sum()),
                bucket_limits=histogram.edges[1:].tolist(),
                bucket_counts=histogram.counts.tolist(),
                global_step=step,
            )
        elif _is_wandb(logger):
            import wandb  # type: ignore[import-not-found, unused-ignore]  # theirs who log to it

            counted = wandb.Histogram(np_histogram=(histogram.counts.tolist(), histogram.edges.tolist()))
            logger.log_metrics({tag: counted}, step=step)


def _log_texts(logger: pl.loggers.Logger, texts: Mapping[str, str], step: int) -> None:
    experiment = _experiment(logger)
    for tag, text in texts.items():
        if hasattr(experiment, "add_text"):  # TensorBoard
            experiment.add_text(tag, text, global_step=step)
        elif _is_wandb(logger):
            import wandb  # type: ignore[import-not-found, unused-ignore]  # theirs who log to it

            page = wandb.Html(f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>')
            logger.log_metrics({f"{tag}/text": page}, step=step)  # a flag's tag has its number already
        elif _is_mlflow(logger):
            experiment.log_text(logger.run_id, text, f"{tag}-step={step:08d}.md")  # type: ignore[attr-defined]


# ---- pictures --------------------------------------------------------------------------------------------------------


def log_figures(
    trainer: pl.Trainer,
    figures: Mapping[str, Callable[[], Figure]],
    folder: str | None,
    *,
    noun: str,
    epoch: int,
    step: int,
    part: int = 1,
) -> None:
    """Draw each picture once; give it to every logger that takes pictures, and keep it as PNG in the run's folder.

    TensorBoard's slider shows ten pictures of a run; the folder keeps them all.
    """
    with _round() as refusals:
        for tag, draw in figures.items():
            try:
                pixels = _render(draw())
            except Exception as error:
                refusals.append(Refusal(f"the picture {tag} could not be drawn", None, error))
                continue
            what = f"the picture {tag} did not get to"
            for logger in trainer.loggers:
                with _noting(refusals, what, type(logger).__name__):
                    _log_picture(logger, tag, pixels, step)
            if folder is not None:
                place = _folder(folder, noun, "figures")
                name = f"{tag.removeprefix(noun + '/').replace('/', '.')}-{_look_name(epoch, step, part)}.png"
                with _noting(refusals, what, place):
                    picture = Image.fromarray(pixels)
                    write_whole(posixpath.join(place, name), partial(picture.save, format="PNG", compress_level=3))


def _render(figure: Figure) -> NDArray[np.uint8]:
    """Pixels ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _log_picture(logger: pl.loggers.Logger, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
    experiment: Any = _experiment(logger)
    if hasattr(experiment, "add_image"):  # TensorBoard
        experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")
    elif _is_wandb(logger):
        logger.log_image(key=tag, images=[pixels], step=step)  # type: ignore[attr-defined]
    elif _is_mlflow(logger):
        experiment.log_image(logger.run_id, pixels, key=tag, step=step)  # type: ignore[attr-defined]
