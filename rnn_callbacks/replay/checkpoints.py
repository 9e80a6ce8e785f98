"""Checkpoints of a run that is over: found, put in the order of training, and checked before one is used."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, final

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Shapes = Mapping[str, tuple[int, ...] | None]  # by name in the state_dict; None of what is no tensor


class CheckpointWarning(UserWarning):
    """A checkpoint is left out, or there is a doubt about it."""


def say(words: str) -> None:
    """Warn, whoever has been told the same before."""
    warnings.warn_explicit(words, CheckpointWarning, "rnn_callbacks", 1, "rnn_callbacks", registry={})


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """When in the run a file was saved, and what it holds."""

    path: Path
    epoch: int  # that was running, from 0
    steps_done: int  # optimizer steps, as loggers count them: once for several optimizers
    global_step: int  # as Lightning counts them: each optimizer's
    shapes: Shapes
    settings: Mapping[str, Any]  # hyperparameters that the model was saved with

    @property
    def step(self) -> int:
        """Of a look at these weights, on the loggers' axis: Lightning validates before it counts the last batch."""
        return self.steps_done - 1


# ---- which ones ------------------------------------------------------------------------------------------------------


def find_checkpoints(given: Iterable[str | Path]) -> list[Path]:
    """Files, from files, folders (all ``*.ckpt`` in them, or in their ``checkpoints``) and patterns; each file once.

    Raises:
        FileNotFoundError: when a name or a pattern stands for nothing.
        ValueError: when one is a folder that is a checkpoint itself.
    """
    found: list[Path] = []
    for name in map(str, given):
        place = Path(name).expanduser()
        if place.is_dir() and not _is_sharded(place):
            paths = sorted(place.glob("*.ckpt")) or sorted(place.glob("checkpoints/*.ckpt"))
        elif place.exists():
            paths = [place]
        else:
            paths = sorted(map(Path, glob.glob(str(place))))  # noqa: PTH207 (a pattern may be absolute)
        if not paths:
            raise FileNotFoundError(
                f"no checkpoint at {name}: expected a file, a folder with *.ckpt in it or a pattern"
            )
        for path in paths:
            if path.is_dir():
                raise ValueError(
                    f"{path} is a folder: a checkpoint in pieces, as FSDP, ModelParallel and DeepSpeed save them. Make "
                    f"one file of it first: python -m lightning.pytorch.utilities.consolidate_checkpoint {path} (of "
                    "DeepSpeed: lightning.pytorch.utilities.deepspeed.convert_zero_checkpoint_to_fp32_state_dict)"
                )
        found += paths
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def _is_sharded(folder: Path) -> bool:
    return any((folder / name).exists() for name in (".metadata", "meta.pt", "zero_to_fp32.py"))


def read_checkpoints(paths: Sequence[Path], *, trusted: bool = False) -> list[Checkpoint]:
    """What these files hold, in the order of training; of several that were saved at one step, one.

    Args:
        paths: of files. One that is damaged is left out with a warning.
        trusted: whether to read them with an unrestricted pickle where nothing else reads them.

    Raises:
        ValueError: when a file needs a pickle, is no checkpoint of Lightning's, or when none is left.
    """
    known: dict[tuple[int, int], Checkpoint] = {}
    # A `last.ckpt` is the same as one with a better name.
    for path in sorted(paths, key=lambda path: (path.stem.startswith("last"), path.name)):
        try:
            content = load_checkpoint(path, trusted=trusted)
        except DamagedError as error:
            say(f"{path} is left out, because it cannot be read: {error}")
            continue
        found = _describe(path, content)
        twin = known.setdefault((found.global_step, found.epoch), found)
        if twin is not found and not _same(content, load_checkpoint(twin.path, trusted=trusted)):
            say(
                f"{path} is left out: {twin.path.name} was saved at the same step ({found.global_step}), with other "
                "weights. If they are of two runs, replay each run by itself."
            )
    if not known:
        raise ValueError(f"none of the {len(paths)} checkpoints can be read, so there is nothing to replay")
    return [known[moment] for moment in sorted(known)]


def _describe(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """When it was saved, from the progress of Lightning's loops or, where that is missing, from the plain numbers."""
    lacking = [key for key in ("state_dict", "epoch", "global_step") if key not in content]
    if lacking:
        raise ValueError(
            f"{path} is no checkpoint of a Lightning trainer: it has no {' and no '.join(lacking)}. Weights alone do "
            "not say when in the run they were saved; name files that ModelCheckpoint or trainer.save_checkpoint wrote."
        )
    epoch, total = int(content["epoch"]), int(content["global_step"])
    steps = total
    loop = content.get("loops", {}).get("fit_loop", {})
    progress, counted = loop.get("epoch_progress", {}).get("current", {}), loop.get("epoch_loop.state_dict", {})
    if total and progress.get("ready"):
        epoch = progress["ready"] - 1  # also where it was saved after `fit`, when the next one's number is saved
        if "_batches_that_stepped" in counted:
            # A hook within the epoch (that of validation, say) comes before Lightning counts its latest batch.
            over = progress["processed"] >= progress["ready"]
            steps = counted["_batches_that_stepped"] + (0 if over else 1)
    shapes = {name: tuple(v.shape) if isinstance(v, Tensor) else None for name, v in content["state_dict"].items()}
    settings = content.get("hyper_parameters") or {}
    return Checkpoint(path, epoch, steps, total, shapes, settings if isinstance(settings, Mapping) else {})


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether they hold the same weights."""
    ours, theirs = one["state_dict"], other["state_dict"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items() if isinstance(value, Tensor)
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


class DamagedError(ValueError):
    """A file that cannot be read."""


def load_checkpoint(path: Path, *, trusted: bool = False) -> dict[str, Any]:
    """All that a file holds, on the host; tensors are read from disk when they are used.

    Raises:
        ValueError: when it holds objects that only a pickle could make, and it is not trusted.
        DamagedError: when it cannot be read at all.
    """
    try:
        content = _load(path, safely=True)
    except Exception as error:
        needs = _needs_pickle(error)
        if needs is None:
            raise DamagedError(_in_short(error)) from error
        if not trusted:
            raise ValueError(
                f"{path} holds objects of {needs}, which only an unrestricted pickle can read, and that runs whatever "
                "code is in the file. If you know where it comes from, say trusted=True (--trusted)."
            ) from error
        try:
            content = _load(path, safely=False)
        except Exception as fault:
            raise DamagedError(_in_short(fault)) from fault
    if not isinstance(content, dict):
        raise DamagedError(f"it holds a {type(content).__name__}, expected a dict")
    return content


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")


def _load(path: Path, *, safely: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=safely, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=safely)  # a format of before torch 1.6


def _needs_pickle(error: Exception) -> str | None:
    """The type that a safe reading refused; None where it failed for another reason."""
    if not isinstance(error, UnpicklingError) or not re.search("nsupported (global|class)|Trying to", str(error)):
        return None
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else "unknown types"


# ---- into the model --------------------------------------------------------------------------------------------------


def check_fit(checkpoint: Checkpoint, shapes: Shapes, model: pl.LightningModule) -> None:
    """Refuse weights that are not those of this model.

    Args:
        checkpoint: for the message.
        shapes: that it has.
        model: as it will be when they are loaded.

    Raises:
        ValueError: with what differs, and what the model was built with when it was saved.
    """
    found = {_plain(name): shape for name, shape in shapes.items()}
    state = model.state_dict()
    expected = {_plain(name): _shape(value) for name, value in state.items()}
    lazy = {_plain(name) for name, value in state.items() if is_lazy(value)}
    unlike = [
        f"{name} is {found[name]} and should be {shape}"
        for name, shape in expected.items()
        if name in found and name not in lazy and found[name] != shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in found]
    more = [f"{name} is in it and not in the model" for name in found if name not in expected]
    wrong = unlike + (missing + more if model.strict_loading else [])
    if wrong:
        settings = ", ".join(f"{key}={value!r}" for key, value in checkpoint.settings.items() if _is_plain(value))
        saved = f" It was saved by a model with {settings}." if settings else ""
        and_more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{checkpoint.path} does not fit this {type(model).__name__}: {'; '.join(wrong[:4])}{and_more}.{saved} "
            "Build the model as it was built for that run."
        )


def load_weights(checkpoint: Checkpoint, model: pl.LightningModule, *, trusted: bool = False) -> None:
    """Give a model the weights of a checkpoint, through the model's own `on_load_checkpoint`, as Lightning does.

    Raises:
        ValueError: when they do not fit.
    """
    content = load_checkpoint(checkpoint.path, trusted=trusted)
    model.on_load_checkpoint(content)
    weights = content["state_dict"]
    check_fit(checkpoint, {name: _shape(value) for name, value in weights.items()}, model)
    names = {_plain(name): name for name in model.state_dict()}  # as they are now, compiled or not
    model.load_state_dict(
        {names.get(_plain(name), name): value for name, value in weights.items()}, strict=model.strict_loading
    )


def _plain(name: str) -> str:
    """Of a parameter, whether or not the model was compiled."""
    return name.replace("_orig_mod.", "")


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) and not is_lazy(value) else None


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
