"""Replaying a run by the YAML of Lightning's command line: what it trained with, built again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..callbacks.base import EpochCallback
from ..callbacks.fixed_points import FixedPointTracker
from ..callbacks.gates import GateMonitor
from ..callbacks.gradient_flow import GradientFlowMonitor
from ..callbacks.guard import undisturbed_rng
from ..callbacks.probes import ProbeTracker
from ..callbacks.representation import RepresentationTracker
from ..callbacks.weight_trajectory import WeightTrajectoryLogger
from .checkpoints import say
from .replaying import hears_training, quiet, replay

KNOWN = (
    FixedPointTracker,
    GateMonitor,
    GradientFlowMonitor,
    ProbeTracker,
    RepresentationTracker,
    WeightTrajectoryLogger,
)
LISTS = ("callbacks", "callbacks+")  # with a plus, jsonargparse adds to those of the files before


def replay_from_config(
    config: str | Path,
    checkpoints: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    data: str | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    trusted: bool = False,
    accelerator: str = "auto",
) -> str:
    """Replay a run by the YAML of Lightning's command line, saved beside it or written by hand.

    The model and the data are built as it says, after ``seed_everything`` if that is in it; then the model is the
    network that training began with. Of ``trainer`` the callbacks of this package, ``precision`` and
    ``limit_val_batches`` are taken, of the rest nothing.

    Args:
        config: path of the YAML.
        checkpoints: as for `replay`.
        model: import path of the model's class, where the configuration has its settings only.
        data: import path of the data module's class, likewise.
        folder: as for `replay`.
        overwrite: as for `replay`.
        trusted: as for `replay`.
        accelerator: as for `replay`.

    Returns:
        The folder of the results.

    Raises:
        ModuleNotFoundError: without jsonargparse.
        ValueError: when the configuration cannot be followed; else as for `replay`.
    """
    if find_spec("jsonargparse") is None:
        raise ModuleNotFoundError(
            "a configuration is read with jsonargparse, which is not installed: pip install 'rnn-callbacks[cli]'"
        )
    facts = _read_config(Path(config))
    options = facts.get("trainer") or {}
    with undisturbed_rng(), _environment_restored():
        built = _build(facts, Path(config), model, data)
        return replay(
            checkpoints,
            built.model,
            _fit_for_replay([c for c in built.trainer.callbacks if isinstance(c, EpochCallback)]),
            datamodule=built.datamodule,
            folder=folder,
            overwrite=overwrite,
            model_is_start=_seed(facts) is not None,
            trusted=trusted,
            accelerator=accelerator,
            precision=options.get("precision"),
            limit_val_batches=options.get("limit_val_batches"),
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        facts = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    facts = facts.get("fit", facts) if isinstance(facts, dict) else facts
    if not isinstance(facts, dict) or not ({"model", "trainer"} & facts.keys()):
        raise ValueError(f"{path} is no configuration of Lightning's command line: it has no model and no trainer")
    return facts


def _build(facts: Mapping[str, Any], path: Path, model: str | None, data: str | None) -> Any:
    """What the run's own command line would build, with callbacks of ours alone and a trainer that is not used."""
    from jsonargparse import ArgumentError  # an extra
    from lightning.pytorch.cli import LightningCLI

    wanted: dict[str, Any] = {"seed_everything": _seed(facts) if _seed(facts) is not None else False}
    classes: dict[str, type | None] = {}
    for name, given in (("model", model), ("data", data)):
        section = facts.get(name)
        classes[name] = None if given is None else _class_at(given, name)
        if section is not None:
            if given is None and not (isinstance(section, str) or "class_path" in section):
                raise ValueError(
                    f"{path} has settings of the {name} and not its class, as LightningCLI(Model, Data) saves it: name "
                    f'that ({name}="package.module.Class", --{name} package.module.Class)'
                )
            named = not isinstance(section, str) and "class_path" in section
            wanted[name] = section.get("init_args", {}) if given is not None and named else section
    if classes["model"] is None and "model" not in wanted:
        raise ValueError(f'{path} has no model: name it (model="package.module.Class", --model package.module.Class)')
    told = facts.get("trainer") or {}
    wanted["trainer"] = {"callbacks": [ours for key in LISTS for ours in _our_callbacks(told.get(key))]}
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # there may be a command line: ours
        warnings.simplefilter("ignore", DeprecationWarning)  # Lightning's own use of jsonargparse
        try:
            return LightningCLI(
                classes["model"],
                classes["data"],
                save_config_callback=None,
                seed_everything_default=False,
                trainer_defaults={
                    "accelerator": "cpu",
                    "devices": 1,
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                },
                parser_kwargs={"exit_on_error": False},
                auto_configure_optimizers=False,
                args=wanted,
                run=False,
            )
        except ArgumentError as error:
            raise ValueError(f"{path} cannot be followed: {error}") from error


def _seed(facts: Mapping[str, Any]) -> int | None:
    """Of the run; None where it had none, or a random one that nobody knows."""
    seed = facts.get("seed_everything")
    return seed if type(seed) is int else None


def _class_at(path: str, setting: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{setting}: cannot import {path!r} ({error}); expected 'package.module.Class'") from error


def _our_callbacks(given: Any) -> list[Any]:
    """Those entries of ``trainer.callbacks`` that look at epochs."""
    entries = given if isinstance(given, list) else [given] if given else []
    return [entry for entry in entries if _is_ours(entry if isinstance(entry, str) else entry.get("class_path", ""))]


def _is_ours(path: str) -> bool:
    if "." not in path:
        return any(kind.__name__ == path for kind in KNOWN)  # a configuration may use short names
    try:
        found = _class_at(path, "callbacks")
    except ValueError:  # somebody's who is not here now
        return path.startswith("rnn_callbacks.")  # then the reader of the configuration says what is wrong
    return isinstance(found, type) and issubclass(found, EpochCallback)


def _fit_for_replay(callbacks: Sequence[EpochCallback]) -> list[EpochCallback] | None:
    """Without those that need a training, which is said; None where there are none left."""
    deaf = [type(callback).__name__ for callback in callbacks if hears_training(callback)]
    if deaf:
        say(f"{' and '.join(deaf)} is left out: training batches and their gradients are not in a checkpoint.")
    return [callback for callback in callbacks if not hears_training(callback)] or None


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Lightning leaves its seed to subprocesses; this run's is of no concern to what comes after."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
