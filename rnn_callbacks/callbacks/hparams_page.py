"""TensorBoard's *HParams* page: a run's headline numbers as columns beside its hyperparameters."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, is_dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from .. import sinks


def declare_headlines(trainer: pl.Trainer, pl_module: pl.LightningModule, tags: Iterable[str]) -> None:
    """Have the page show the latest values of these tags for the run that is about to begin.

    The columns of a run are those that were declared first in it, and Lightning declares ``hp_metric`` alone right
    after `on_fit_start`; so this is for `on_fit_start`. The values of the hyperparameters are left to Lightning to
    write, and no number is logged for the tags: they come with the looks.

    Nothing is declared where Lightning will write no hyperparameters, or where the logger was made with
    ``default_hp_metric=False``: whoever says so declares columns, and theirs would come too late. Of several runs in a
    folder TensorBoard shows the columns of one (the earliest, or with ``--load_fast=false`` the first by name).

    Args:
        trainer: of the run.
        pl_module: whose hyperparameters, with those of its data module.
        tags: of scalars.

    Raises:
        OutletError: when a logger does not take it; the others have it.
    """
    parameters, tags = _hyperparameters(trainer, pl_module), list(tags)
    if not tags or parameters is None or not trainer.is_global_zero:
        return

    def give(logger: pl.loggers.Logger) -> None:
        # Nothing public tells it, and a logger that does not know the name is none of TensorBoard's.
        if not getattr(logger, "_default_hp_metric", False):
            return
        writer: Any = getattr(
            getattr(logger, "experiment", None), "file_writer", None
        )  # None: closed by an earlier run
        if hasattr(writer, "add_summary"):
            from torch.utils.tensorboard.summary import hparams  # a second, which runs without TensorBoard do not wait

            columns = dict.fromkeys(["hp_metric", *tags], 0.0)
            declaration, _, _ = hparams(_flat(parameters), columns)  # type: ignore[no-untyped-call]
            writer.add_summary(declaration)

    sinks.to_loggers(trainer, "the columns of the HParams page", give)


def _hyperparameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any] | None:
    """What Lightning is about to log; None where that is nothing."""
    if not getattr(trainer, "enable_autolog_hparams", True):
        return None
    holders: list[Any] = [pl_module, getattr(trainer, "datamodule", None)]
    # The attribute is False for `save_hyperparameters(logger=False)`, and where nothing was saved.
    logged = [holder.hparams_initial for holder in holders if getattr(holder, "_log_hyperparams", False)]
    if not logged:
        return None
    return {name: value for one in logged for name, value in one.items() if name != "_class_path"}  # of LightningCLI


def _flat(parameters: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """By the names, and of the kinds, under which Lightning logs them: ``{"optimizer": {"lr": 1}}`` as optimizer/lr."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, Namespace):
            value = vars(value)
        elif isinstance(value, list) and all(isinstance(item, MutableMapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, MutableMapping):
            flat |= _flat(value, f"{name}/")
        elif isinstance(value, np.generic):
            flat[name] = value.item()
        else:
            flat[name] = value if isinstance(value, (bool, int, float, str, Tensor)) else str(value)
    return flat
