"""The only exit: numbers and pictures to every logger that takes them, and to disk."""

from __future__ import annotations

import io
import itertools
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import fsspec
import lightning.pytorch as pl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from .report import Histogram, Report, save

Layout = dict[str, dict[str, list[Any]]]  # TensorBoard's custom scalars: category -> chart -> [kind, tags]


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


def save_report(report: Report, folder: str, *, noun: str, epoch: int, step: int, part: int = 1) -> None:
    """Write one look to ``<folder>/rnn_callbacks/<noun>/epoch=0007-step=00001234.npz``.

    A second callback of the same kind in the same run adds ``-part=2``, and so on.
    """
    name = _look_name(epoch, step, part) + ".npz"
    save(report, posixpath.join(folder, "rnn_callbacks", noun, name), epoch=epoch, step=step)


def _look_name(epoch: int, step: int, part: int) -> str:
    return f"epoch={epoch:04d}-step={step:08d}" + (f"-part={part}" if part > 1 else "")


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float], *, epoch: int, step: int) -> None:
    """Straight to the loggers, for hooks in which Lightning's own ``log`` is not allowed."""
    for logger in trainer.loggers:
        logger.log_metrics({**scalars, "epoch": float(epoch)}, step=step)
        logger.save()


def log_histograms(trainer: pl.Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """Raw counts, to loggers that take them (TensorBoard)."""
    for write, (tag, histogram) in itertools.product(_writers(trainer, "add_histogram_raw"), histograms.items()):
        middle = (histogram.edges[1:] + histogram.edges[:-1]) / 2
        write(
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


def log_texts(trainer: pl.Trainer, texts: Mapping[str, str], step: int) -> None:
    """Markdown, to loggers that take it (TensorBoard)."""
    for write, (tag, text) in itertools.product(_writers(trainer, "add_text"), texts.items()):
        write(tag, text, global_step=step)


def log_layout(trainer: pl.Trainer, layout: Layout) -> None:
    """A curated page of charts, for loggers that have one (TensorBoard's *Custom Scalars*)."""
    for write in _writers(trainer, "add_custom_scalars"):
        write(layout)


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
    for tag, draw in figures.items():
        pixels = _render(draw())
        for logger in trainer.loggers:
            _log_picture(logger, tag, pixels, step)
        if folder is not None:
            name = f"{tag.removeprefix(noun + '/').replace('/', '.')}-{_look_name(epoch, step, part)}.png"
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG", compress_level=3)
            files, target = fsspec.core.url_to_fs(posixpath.join(folder, "rnn_callbacks", noun, "figures", name))
            files.makedirs(posixpath.dirname(target), exist_ok=True)
            with files.open(target, "wb") as file:
                file.write(content.getvalue())


def _render(figure: Figure) -> NDArray[np.uint8]:
    """Pixels ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _log_picture(logger: pl.loggers.Logger, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
    """By what a logger can do, not by its class: ``lightning`` and ``pytorch_lightning`` have classes of their own."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):  # TensorBoard
        experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")
    elif hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=tag, images=[pixels], step=step)
    elif hasattr(experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow
        experiment.log_image(logger.run_id, pixels, artifact_file=f"{tag}-step={step:08d}.png")


def _writers(trainer: pl.Trainer, method: str) -> Iterable[Callable[..., None]]:
    found = (getattr(getattr(logger, "experiment", None), method, None) for logger in trainer.loggers)
    return [write for write in found if callable(write)]
