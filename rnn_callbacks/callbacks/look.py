"""What a callback is given to analyse, and when in the run that is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging

from ..rebuild import Trace, traces_by_cell
from ..tape import Tape


@final
@dataclass(frozen=True, eq=False)
class Look:
    """What a callback is given to analyse."""

    trainer: pl.Trainer
    pl_module: pl.LightningModule
    tapes: dict[str, Tape]  # by module; only modules that were called
    epoch: int
    step: int

    def cells(self, module: str) -> dict[str, list[Trace]]:
        """Traces of every cell of a module, by cell name."""
        return traces_by_cell(self.tapes[module])


def rehearsal(pl_module: pl.LightningModule) -> pl.LightningModule:
    """A copy on which everything may be tried: what it logs goes nowhere, its metrics are its own."""
    model = copy.deepcopy(pl_module)
    model.trainer = pl_module.trainer
    model.eval()
    for method in ("log", "log_dict"):
        object.__setattr__(model, method, _say_nothing)
    return model


def _say_nothing(*args: object, **options: object) -> None:
    """In place of a copy's ``log``."""


def only_averages(trainer: pl.Trainer) -> bool:
    """Whether this is the epoch after training in which `StochasticWeightAveraging` renews batch norms.

    The weights are averages then, no step of training led to them, and no gradient comes back.
    """
    swa = [c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging)]  # type: ignore[attr-defined]
    return any(trainer.current_epoch > callback.swa_end for callback in swa)


def logging_step(trainer: pl.Trainer) -> int:
    """Optimizer steps as Lightning's own loggers count them.

    ``trainer.global_step`` counts every optimizer on its own, so pictures would part from their scalars; the loop's
    checkpoint is where Lightning publishes the count it uses.
    """
    return int(trainer.fit_loop.epoch_loop.on_save_checkpoint()["_batches_that_stepped"])
