"""One run with every exported callback and its twin with none, for `tests/test_gauntlet.py`."""

import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

import rnn_callbacks
from rnn_callbacks.report import load

from .gauntlet_models import training_data, validation_data
from .models import Classifier
from .test_laws import everything_after

CALLBACKS = {name: getattr(rnn_callbacks, name) for name in rnn_callbacks.__all__}
# Little work, where a callback can be told so: how much is analysed is not what is asked here.
SMALL = {"steps": 2, "shuffles": 2}


def make(name, settings):
    """A callback that looks at every epoch, with those of the settings that it knows."""
    known = inspect.signature(CALLBACKS[name]).parameters
    chosen = {key: value for key, value in (SMALL | settings).items() if key in known}
    return CALLBACKS[name](every_n_epochs=1, figure_every_n_epochs=1000, on_error="raise", **chosen)


class Memory(Logger):
    """Keeps what it is given: (step, metrics)."""

    def __init__(self, root, version):
        super().__init__()
        self.root, self._version, self.kept = root, version, []

    name = property(lambda self: "run")
    version = property(lambda self: self._version)
    save_dir = property(lambda self: self.root)

    def log_metrics(self, metrics, step=None):
        self.kept.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Referee(pl.Callback):
    """Counts what there was to look at, and draws lots as a user's code may, so that disturbed ones change the run."""

    def __init__(self, watchers):
        self.watchers, self.headlines = watchers, {}
        self.ended, self.trained = {"validation": 0, "train": 0}, False

    def on_train_start(self, trainer, pl_module):
        self.headlines = {name: sorted(watcher.headlines()) for name, watcher in self.watchers.items()}

    def on_validation_epoch_end(self, trainer, pl_module):
        self.ended["validation"] += trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_before_backward(self, trainer, pl_module, loss):
        self.trained = True

    def on_train_epoch_end(self, trainer, pl_module):
        self.ended["train"] += self.trained  # or else only batch norms were renewed
        self.trained = False
        torch.rand(1), np.random.rand()  # noqa: NPY002


@dataclass(frozen=True)
class Situation:
    """What is out of the ordinary in a run."""

    model: Callable[[], Any] = Classifier
    options: dict[str, Any] = field(default_factory=dict)  # of the Trainer
    train: Callable[[], Any] = training_data
    validate: Callable[[], Any] = validation_data
    settings: dict[str, Any] = field(default_factory=dict)  # of our callbacks
    before: Callable[[], list[Any]] = list  # other callbacks, listed before ours
    after: Callable[[], list[Any]] = list
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    fit: Callable[["Bench"], Any] = lambda bench: bench.fit()
    trainer: Callable[..., Any] = pl.Trainer
    refuses: dict[str, str] = field(default_factory=dict)  # by callback, what it says
    says: dict[str, str] = field(default_factory=dict)  # by callback, a warning that is right
    files: bool = True  # whether there is a folder to write to
    same_as: str = ""  # the situation in which the same numbers are seen


class Bench:
    """Sets up the trainers of a run, all in one folder."""

    def __init__(self, situation, names, root):
        self.situation, self.root, self.names = situation, root, names
        self.model, self.train, self.validate = situation.model(), situation.train(), situation.validate()
        self.loggers, self.hooks_at_break, self.watching = [], 0, []
        self.watchers = self.fresh()
        self.referee = Referee(self.watchers)

    def fresh(self):
        return {name: make(name, self.situation.settings) for name in self.names}

    def trainer(self, *last, ours=True, **options):
        self.loggers.append(Memory(str(self.root), len(self.loggers)))
        self.referee.watchers = self.watchers
        ours = list(self.watchers.values()) if ours else []
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": self.loggers[-1],
            "default_root_dir": self.root,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
        }
        settings |= self.situation.options | options
        if callable(settings["logger"]):
            settings["logger"] = settings["logger"](self.root)
        others = [*self.situation.before(), *ours, *self.situation.after(), self.referee, *last]
        return self.situation.trainer(callbacks=others, **settings)

    def fit(self, *last, **options):
        trainer = self.trainer(*last, **options)
        trainer.fit(self.model, self.train, self.validate)
        return trainer

    def break_and_resume(self, *last, error):
        """Run into an error, and go on from the last checkpoint with all things made anew."""
        kept = ModelCheckpoint(self.root / "kept", every_n_train_steps=2, save_last=True)
        try:
            self.fit(kept, *last, enable_checkpointing=True)
        except error:
            self.hooks_at_break = hooks(self.model)
            self.watching = watching(self.watchers)
        else:
            raise AssertionError("nothing broke")
        self.model, self.watchers = self.situation.model(), self.fresh()
        trainer = self.trainer()
        trainer.fit(self.model, self.train, self.validate, ckpt_path=self.root / "kept" / "last.ckpt")
        return trainer


def watching(watchers):
    return [name for name, watcher in watchers.items() if watcher.watched]


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds) + sum(
        len(parameter._backward_hooks or ()) + len(parameter._post_accumulate_grad_hooks or ())
        for parameter in model.parameters()
    )


@dataclass(frozen=True)
class Ended:
    """What is left of a run."""

    state: list[torch.Tensor]
    facts: list[Any]
    hooks: int
    ended: dict[str, int]  # epochs of validation and of training
    warned: list[str]
    looks: dict[str, list[Any]]  # by callback, what was written
    logged: list[tuple[int, dict[str, float]]]
    metrics: dict[str, float]
    headlines: dict[str, list[str]]
    watching: list[str]  # callbacks that still are


def run(situation, names):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as heard, situation.within():
        warnings.simplefilter("always")
        pl.seed_everything(3, verbose=False)
        bench = Bench(situation, names, Path(folder))
        trainer = situation.fit(bench)
        state, facts = everything_after(trainer)
        facts += [trainer.global_step, trainer.current_epoch, torch.get_default_dtype(), torch.is_grad_enabled()]
        facts += [torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()]
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            facts.append(trainer.precision_plugin.scaler.state_dict())
        return Ended(
            state,
            facts,
            hooks(trainer.lightning_module) + bench.hooks_at_break,
            bench.referee.ended,
            [str(warning.message).replace(folder, "") for warning in heard],
            {name: read(Path(folder), CALLBACKS[name].noun) for name in names},
            [line for logger in bench.loggers for line in logger.kept],
            {tag: float(value) for tag, value in trainer.callback_metrics.items()},
            bench.referee.headlines,
            bench.watching + watching(bench.watchers),
        )


def read(root, noun):
    """Every look of a kind, oldest first."""
    paths = sorted(root.rglob(f"rnn_callbacks/{noun}/*.npz"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [load(str(path)) for path in paths]


class Runs:
    """Each run once."""

    def __init__(self, situations):
        self.situations = situations
        self.watched = functools.cache(lambda name: run(situations[name], self.names(name)))
        self.unwatched = functools.cache(lambda name: run(situations[name], ()))

    def names(self, situation):
        return tuple(name for name in CALLBACKS if name not in self.situations[situation].refuses)
