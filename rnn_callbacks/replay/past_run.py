"""A run that is over, gone through once more: validation over each of its checkpoints, for callbacks of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..callbacks.base import EpochCallback
from ..callbacks.concepts import ConceptLabels, read_sources
from ..callbacks.guard import find_modules, undisturbed_rng
from ..callbacks.probes import ProbeTracker
from .checkpoints import Checkpoint, check_fit, load_weights, say


@final
class PastTrainer:
    """The trainer as callbacks see it in a fit: everything is that of a trainer that only validates, but for this.

    Args:
        trainer: that validates.
        callbacks: that listen; they are nobody else's.
        logger: where their results go.
    """

    def __init__(self, trainer: pl.Trainer, callbacks: list[EpochCallback], logger: Logger) -> None:
        self._trainer = trainer
        self.callbacks = callbacks
        self.loggers = [logger]
        self.sanity_checking = False
        self.should_stop = False  # true in the last epoch; how many the run had, nobody knows

    def __getattr__(self, name: str) -> Any:
        if name == "_trainer":
            raise AttributeError(name)
        return getattr(self._trainer, name)


@final
class PastRun(pl.Callback):
    """Goes through a run in one call of ``trainer.validate``, and hands its hooks on as those of a fit.

    Lightning's validation loop is run once for the untrained network and once for each checkpoint, as a fit would; all
    that Lightning does around it (data, model, devices) is done once.

    Args:
        checkpoints: in the order of training.
        callbacks: that listen.
        choosy: whether callbacks that cannot be set up are left out with a warning, instead of refused.
        model_is_start: whether the model has the weights that training began with.
        trusted: whether checkpoints may be read with an unrestricted pickle.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        callbacks: Sequence[EpochCallback],
        *,
        choosy: bool,
        model_is_start: bool,
        trusted: bool,
    ) -> None:
        self.checkpoints = list(checkpoints)
        self.callbacks = list(callbacks)
        self.choosy = choosy
        self.model_is_start = model_is_start
        self.trusted = trusted

    def attach(self, trainer: pl.Trainer, logger: Logger, *, metrics: bool, clear: Callable[[], None]) -> None:
        """Make a trainer go through the run when it validates.

        Args:
            trainer: with no loggers of its own.
            logger: for the results.
            metrics: whether what the model logs goes there too.
            clear: makes room for the results; called when all has been checked that can be.
        """
        self._clear = clear
        self._seen = PastTrainer(trainer, self.callbacks, logger)
        self._past = cast(pl.Trainer, self._seen)
        self._model_loggers: list[Logger] = [logger] if metrics else [DummyLogger()]
        trainer.loggers = [DummyLogger()]  # a model may write to its logger whenever it likes
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        self._validate = trainer.validate_loop.run
        trainer.validate_loop.run = self._go_through  # type: ignore[method-assign]

    # ---- the run ---------------------------------------------------------------------------------------------------

    def _go_through(self) -> list[Any]:
        trainer, model = self._seen._trainer, self._seen._trainer.lightning_module
        self._check_model(model)
        initial = {n: v.detach().clone() for n, v in model.state_dict().items() if _can_be_kept(v)}
        try:
            self._clear()
            self._begin(trainer, model)
            for number, checkpoint in enumerate(self._trained):
                load_weights(checkpoint, model, trusted=self.trusted)
                self._seen.should_stop = number == len(self._trained) - 1
                self._pass_epoch(trainer, model, checkpoint)
            for callback in self.callbacks:
                callback.on_train_end(self._past, model)
        finally:
            model.load_state_dict(initial, strict=False)
        return []

    @property
    def _trained(self) -> list[Checkpoint]:
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.global_step]

    def _check_model(self, model: pl.LightningModule) -> None:
        """What can be refused before the first pass."""
        if not is_overridden("on_load_checkpoint", model):  # which may change them
            for checkpoint in self.checkpoints:
                check_fit(checkpoint, checkpoint.shapes, model)
        for callback in [*self.callbacks] if self.choosy else []:
            try:
                wanted = [callback.module] if isinstance(callback.module, str) else callback.module
                callback.check(find_modules(type(callback).__name__, model, wanted)[0])
            except (MisconfigurationException, ValueError) as error:
                self._leave_out(callback, str(error), model)

    def _begin(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """With the network that training began with, or one that is built like it."""
        starts = [checkpoint for checkpoint in self.checkpoints if not checkpoint.global_step]
        for start in starts[:1]:
            load_weights(start, model, trusted=self.trusted)
        _set_clock(trainer, epoch=0, steps=0, global_step=0)
        for callback in self.callbacks:
            callback.on_fit_start(self._past, model)
        self._seen.sanity_checking = True
        with undisturbed_rng():
            for callback in self.callbacks:
                callback.on_sanity_check_start(self._past, model)
            self._validate()
            for callback in self.callbacks:
                callback.on_sanity_check_end(self._past, model)
        self._seen.sanity_checking = False
        trainer.loggers = self._model_loggers
        for callback in self.callbacks:
            callback.on_train_start(self._past, model)
            if (starts or self.model_is_start) and not callback.listens:
                callback.on_train_batch_start(self._past, model, None, 0)

    def _pass_epoch(self, trainer: pl.Trainer, model: pl.LightningModule, checkpoint: Checkpoint) -> None:
        _set_clock(trainer, epoch=checkpoint.epoch, steps=checkpoint.step, global_step=checkpoint.global_step)
        with undisturbed_rng():  # what is drawn is drawn alike at every look, and the caller's generators do not move
            self._validate()
        _set_clock(trainer, epoch=checkpoint.epoch, steps=checkpoint.steps_done, global_step=checkpoint.global_step)
        for callback in self.callbacks:
            callback.on_train_epoch_end(self._past, model)

    def _leave_out(self, callback: EpochCallback, why: str, model: pl.LightningModule) -> None:
        title = type(callback).__name__
        say(f"{title} is left out: {why.removeprefix(title).lstrip(': ')}")
        callback.teardown(self._past, model, "fit")
        self.callbacks.remove(callback)
        if not self.callbacks:
            raise ValueError("no callback can be set up for this model, so there is nothing to replay")

    # ---- hooks of the validation -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "a replay runs the validation over each checkpoint, and there is none: it needs a validation_step and "
                "a validation dataloader"
            )
        for callback in [*self.callbacks]:
            try:
                callback.setup(self._past, pl_module, "fit")
            except MisconfigurationException as error:
                if not self.choosy:
                    raise
                self._leave_out(callback, str(error), pl_module)
            callback.look_every_epoch()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self.callbacks:
            callback.on_validation_epoch_start(self._past, pl_module)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.choosy and self._seen.sanity_checking and (batch_idx, dataloader_idx) == (0, 0):
            self._check_labels(batch, pl_module)
        for callback in self.callbacks:
            callback.on_validation_batch_start(self._past, pl_module, batch, batch_idx, dataloader_idx)

    def _check_labels(self, batch: Any, model: pl.LightningModule) -> None:
        for callback in [c for c in self.callbacks if isinstance(c, ProbeTracker)]:
            labels = ConceptLabels(read_sources(callback.concepts))
            labels.hear(0, batch)
            for fault in labels.faults.values():
                self._leave_out(callback, str(fault), model)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for callback in self.callbacks:
            callback.on_validation_batch_end(self._past, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self.callbacks:
            callback.on_validation_epoch_end(self._past, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave(pl_module)

    def _leave(self, pl_module: pl.LightningModule) -> None:
        for callback in self.callbacks:
            callback.teardown(self._past, pl_module, "fit")
        for logger in self._seen.loggers:
            logger.finalize("replayed")


def _set_clock(trainer: pl.Trainer, *, epoch: int, steps: int, global_step: int) -> None:
    """Let a trainer, and all who ask it, know when in the run it is."""
    fit = trainer.fit_loop
    fit.epoch_progress.current.completed = epoch
    fit.epoch_loop.on_load_checkpoint({"_batches_that_stepped": steps})
    fit.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = global_step
    fit.epoch_loop.manual_optimization.optim_step_progress.total.completed = global_step


def _can_be_kept(value: object) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)


@contextmanager
def set_up_for_fit(*owners: pl.LightningModule | pl.LightningDataModule | None) -> Iterator[None]:
    """Whoever builds in ``setup`` what the fit needs builds it now, though Lightning announces a validation."""
    shadowed = [owner for owner in owners if owner is not None and is_overridden("setup", owner)]
    for owner in shadowed:
        _shadow_setup(owner)
    try:
        yield
    finally:
        for owner in shadowed:
            object.__delattr__(owner, "setup")


def _shadow_setup(owner: pl.LightningModule | pl.LightningDataModule) -> None:
    original = owner.setup

    def setup(stage: str) -> None:
        original(stage=TrainerFn.FITTING)

    object.__setattr__(owner, "setup", setup)
