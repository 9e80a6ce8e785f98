"""How Lightning's users run their trainings, for `tests/test_gauntlet.py`."""

from contextlib import contextmanager

import lightning.pytorch as pl
import torch
import torch._dynamo
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner

from . import gauntlet_models as models
from .models import Classifier


@contextmanager
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def any_algorithm_afterwards():
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]}


class Scaled(dict):
    """Options with a scaler of their own for every run."""

    def __or__(self, other):
        return dict(self) | scaled() | other


def averaged():
    return [EMAWeightAveraging(decay=0.5)]


def averaged_late():
    return [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]


def two_loggers(root):
    return [TensorBoardLogger(root, "tb"), CSVLogger(root, "csv")]


def validate_first(bench):
    trainer = bench.trainer()
    trainer.validate(bench.model, bench.validate, verbose=False)
    trainer.fit(bench.model, bench.train, bench.validate)
    return trainer


def find_rate_first(bench):
    trainer = bench.trainer()
    Tuner(trainer).lr_find(bench.model, bench.train, bench.validate, num_training=6, update_attr=True)
    trainer.fit(bench.model, bench.train, bench.validate)
    return trainer


def fit_twice(bench):
    """The same trainer and callbacks on a second model."""
    trainer = bench.fit(max_epochs=1)
    bench.model, trainer.fit_loop.max_epochs = Classifier(), 2
    trainer.fit(bench.model, bench.train, bench.validate)
    return trainer


def fit_data_module(bench):
    trainer = bench.trainer()
    trainer.fit(bench.model, datamodule=models.Sequences())
    return trainer


def fit_with_callbacks_of_the_model(bench):
    bench.model.callbacks = list(bench.watchers.values())
    trainer = bench.fit(ours=False)
    bench.model.callbacks = ()
    return trainer


class Stops(pl.Callback):
    """Raises in the second epoch."""

    def __init__(self, hook, error):
        self.error = error
        setattr(self, hook, self.stop)

    def stop(self, trainer, pl_module, *args):
        if trainer.current_epoch == 1 and args[-1 if len(args) == 3 else -2] == 1:
            raise self.error


def press_control_c(bench):
    return bench.break_and_resume(Stops("on_train_batch_end", KeyboardInterrupt()), error=SystemExit)


def fail_in(where):
    def fit(bench):
        bench.model.where = where
        return bench.break_and_resume(error=ArithmeticError)

    return fit


def fail_beside(bench):
    return bench.break_and_resume(Stops("on_validation_batch_end", ArithmeticError()), error=ArithmeticError)


def other_trainer(**options):
    import pytorch_lightning

    return pytorch_lightning.Trainer(**options)
