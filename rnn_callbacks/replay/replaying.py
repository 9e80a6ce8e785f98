"""The same analyses on checkpoints of a run that nobody watched, so that it joins the comparison."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from ..callbacks.base import EpochCallback
from ..callbacks.fixed_points import FixedPointTracker
from ..callbacks.gates import GateMonitor
from ..callbacks.guard import undisturbed_rng
from ..callbacks.probes import ProbeTracker
from ..callbacks.representation import RepresentationTracker
from ..callbacks.weight_trajectory import WeightTrajectoryLogger
from .checkpoints import Checkpoint, find_checkpoints, read_checkpoints
from .past_run import PastRun, set_up_for_fit

EVENTS, SUFFIX = "events.out.tfevents.*", ".replay"  # the suffix of ours


def replay(
    checkpoints: str | Path | Sequence[str | Path],
    model: pl.LightningModule,
    callbacks: Sequence[EpochCallback] | None = None,
    *,
    datamodule: pl.LightningDataModule | None = None,
    dataloaders: Any = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    model_is_start: bool = False,
    trusted: bool = False,
    accelerator: str = "auto",
    precision: Any = None,
    limit_val_batches: int | float | None = None,
) -> str:
    """Let callbacks look at each checkpoint of a run as if they had watched it.

    The model is validated as it is, once, as the untrained network, and then with the weights of each checkpoint in
    the order of training; in the end it has its own weights again. Every checkpoint is looked at, whatever
    ``every_n_epochs`` and ``max_overhead`` say; pictures are drawn of the first and the last one unless
    ``figure_every_n_epochs`` is set. Epochs, steps and file names are those that the run would have had.

    Args:
        checkpoints: files, folders with ``*.ckpt`` in them, or patterns, of one run. Order does not matter; of those of
            one step, one is taken; a damaged one is left out with a warning.
        model: built as for that run, with any weights.
        callbacks: by default `GateMonitor`, `FixedPointTracker`, `WeightTrajectoryLogger`, `ProbeTracker` and
            `RepresentationTracker`, without those that cannot be set up for the model.
        datamodule: with the run's validation data; its ``setup`` is told that a fit begins.
        dataloaders: validation dataloaders instead; by default those of the model.
        folder: for the results; by default that of the run, where all checkpoints lie in ``<run>/checkpoints``, else
            ``replayed/<name>`` beside their folder.
        overwrite: whether results of these callbacks that are there already are thrown away.
        model_is_start: whether the model has the very weights that training began with, which are then the first point
            of the path that `WeightTrajectoryLogger` follows. A checkpoint of step 0 says it by itself.
        trusted: whether to read checkpoints with an unrestricted pickle, which runs any code in them, if need be.
        accelerator: as in Lightning's trainer; one device of it is used.
        precision: as in Lightning's trainer.
        limit_val_batches: as in Lightning's trainer.

    Returns:
        The folder, which is a run's: with ``rnn_callbacks/`` and an event file ``*.replay`` in it. What the model logs
        in its validation is kept too, unless the run's own event files are there. A new folder also gets the
        ``hparams.yaml`` that the checkpoints know of.

    Raises:
        FileNotFoundError: when there are no checkpoints.
        FileExistsError: when there are results already.
        ValueError: when a checkpoint or a callback does not fit, or nothing is left to replay.
    """
    _refuse_listeners(callbacks or ())
    paths = find_checkpoints([checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints)
    place = Path(folder).expanduser() if folder is not None else _results_folder(paths)
    watching = [*callbacks] if callbacks is not None else default_callbacks()
    nouns = sorted({callback.noun for callback in watching})
    if not overwrite:
        _refuse_results(place, nouns)
    made_here = not place.exists()
    found = read_checkpoints(paths, trusted=trusted)
    _check_some_trained(found)
    past = PastRun(found, watching, choosy=callbacks is None, model_is_start=model_is_start, trusted=trusted)
    with quiet():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,
            limit_val_batches=limit_val_batches,
            logger=False,
            inference_mode=False,  # what is heard is computed with later
            max_epochs=-1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=place,
        )
    rank_zero_info(_announce(found, model_is_start=model_is_start))
    own = [path for path in place.glob(EVENTS) if path.suffix != SUFFIX]
    past.attach(trainer, ReplayLogger(place.absolute()), metrics=not own, clear=lambda: _clear(place, nouns))
    with undisturbed_rng(), set_up_for_fit(model, datamodule), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own
        trainer.validate(model, dataloaders, datamodule=datamodule, verbose=False)
    if made_here and found[-1].settings:  # runs are told apart by them
        save_hparams_to_yaml(place / "hparams.yaml", dict(found[-1].settings))
    return str(place)


@final
class ReplayLogger(TensorBoardLogger):
    """TensorBoard's event file beside what a run left, and no other file.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name="", version=folder.name, filename_suffix=SUFFIX)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        """They are the run's; it has said them."""

    def save(self) -> None:
        self.experiment.flush()


def default_callbacks() -> list[EpochCallback]:
    """What is looked at where nobody says it."""
    # `RepresentationTracker` before `ProbeTracker`: it holds the recorder of both, and the other may be left out.
    return [GateMonitor(), FixedPointTracker(), WeightTrajectoryLogger(), RepresentationTracker(), ProbeTracker()]


def hears_training(callback: EpochCallback) -> bool:
    """Whether it needs what only a training has."""
    return callback.listens and (callback.hears_gradients or callback.observe == "train")


def _refuse_listeners(callbacks: Sequence[EpochCallback]) -> None:
    for callback in callbacks:
        if not isinstance(callback, EpochCallback):
            raise TypeError(f"callbacks must be rnn_callbacks' own, got {type(callback).__name__}")
    deaf = [type(callback).__name__ for callback in callbacks if hears_training(callback)]
    if deaf:
        raise ValueError(
            f"{' and '.join(deaf)} would hear nothing: training batches and their gradients are not in a checkpoint. "
            'Leave it out (or observe="validation", where it can).'
        )


def _announce(found: Sequence[Checkpoint], *, model_is_start: bool) -> str:
    trained = [checkpoint for checkpoint in found if checkpoint.global_step]
    first, last = trained[0].epoch, trained[-1].epoch
    epochs = f"epoch {first}" if first == last else f"epochs {first} to {last}"
    words = f"Replaying {len(trained)} checkpoint{'s' if len(trained) > 1 else ''} of {epochs}."
    if len(trained) < len(found):  # a checkpoint has them
        return words
    if model_is_start:
        words += " The run is taken to have begun with the weights that the model came with (a seed's, or given)."
    else:
        words += (
            " The weights that training began with are not known: the path of the weights begins at the first "
            "checkpoint, and what is called untrained is the model as it came."
        )
    return words


def _check_some_trained(found: Sequence[Checkpoint]) -> None:
    if not any(checkpoint.global_step for checkpoint in found):
        raise ValueError(f"{found[0].path} was saved before training, and nothing later was given to replay")


# ---- where results go ------------------------------------------------------------------------------------------------


def _results_folder(paths: Sequence[Path]) -> Path:
    homes = list(dict.fromkeys(path.resolve().parent for path in paths))
    if len(homes) > 1:
        raise ValueError(
            f"the checkpoints lie in {len(homes)} folders ({homes[0]}, {homes[1]}, ...). A replay is of one run: "
            "replay each by itself, or, if they are of one run, name the folder for the results (folder=, --into)."
        )
    home = homes[0]
    return home.parent if home.name == "checkpoints" else home.parent / "replayed" / home.name


def _refuse_results(folder: Path, nouns: Sequence[str]) -> None:
    if (folder / "rnn_callbacks").exists():
        replayed = any(folder.glob(EVENTS + SUFFIX))
        there = "results of a replay" if replayed else "what was seen while the run was training"
        raise FileExistsError(
            f"{folder} already has {there} (rnn_callbacks/). Name another folder (folder=, --into), or throw away "
            f"those of {', '.join(nouns)} (overwrite=True, --overwrite)."
        )


def _clear(folder: Path, nouns: Sequence[str]) -> None:
    """Remove earlier results, and nothing else: what the run wrote itself stays."""
    for noun in nouns:
        if (folder / "rnn_callbacks" / noun).exists():
            shutil.rmtree(folder / "rnn_callbacks" / noun)
    for path in folder.glob(EVENTS + SUFFIX):
        path.unlink()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Lightning says of hardware and seeds when things are built."""
    # Where the package of the other name was imported too, it is the one that speaks.
    names = ("lightning.pytorch", "pytorch_lightning", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
