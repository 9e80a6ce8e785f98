"""What all examples share: how one is set, trained and started."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from rnn_callbacks.compare import load_runs
from rnn_callbacks.report import SavedReport, load

HINTS = ("GPU available", "TPU available", "💡 Tip")


def parser(description: str | None, *, epochs: int) -> argparse.ArgumentParser:
    """The settings that all examples have: ``--epochs``, ``--seed`` and ``--logs``."""
    settings = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_argument("--epochs", type=int, default=epochs)
    settings.add_argument("--seed", type=int, default=0)
    settings.add_argument("--logs", default="lightning_logs", help="folder for what is logged (%(default)s)")
    return settings


def trainer(options: argparse.Namespace, name: str, callbacks: Sequence[pl.Callback], **settings: Any) -> pl.Trainer:
    """A trainer on the CPU, everything seeded, logging to ``<logs>/<name>/version_N``; made before the model."""
    quiet(summary=False)
    pl.seed_everything(options.seed, verbose=False)
    return pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.logs, name=name),
        callbacks=list(callbacks),
        enable_model_summary=False,
        log_every_n_steps=10,
        **settings,
    )


def looks(run: pl.Trainer, noun: str) -> list[SavedReport]:
    """What the callback of that noun has left in the run's folder, a report for each look, by epoch."""
    return [load(str(path)) for path in sorted(Path(str(run.log_dir), "rnn_callbacks", noun).glob("*.npz"))]


def metric(run: pl.Trainer, name: str) -> float:
    """The last value of what the model itself has logged under that name, from the run's event file."""
    (logged,) = load_runs(str(run.log_dir))
    return float(logged.series[name].values[-1])


def start(main: Callable[[], int], model: type[pl.LightningModule], data: type[pl.LightningDataModule]) -> None:
    """As a script; or, after the word ``fit``, by Lightning's command line and YAML (needs the extra ``cli``)."""
    if "fit" not in sys.argv[1:2]:
        sys.exit(main())
    from lightning.pytorch.cli import LightningCLI  # which needs jsonargparse

    quiet(summary=True)
    LightningCLI(model, data, args=sys.argv[1:])


def quiet(*, summary: bool) -> None:
    """Keep hints back, and all that Lightning's channel says unless the callbacks' summary is to be read there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO if summary else logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_hint)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter.*")


def _is_no_hint(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(HINTS)
