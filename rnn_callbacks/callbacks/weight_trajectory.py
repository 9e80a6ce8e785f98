"""WeightTrajectoryLogger: which way do the weights go, is it still far, and is it more than a random walk?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ..analysis.loss_plane import NoPlaneError
from ..analysis.step_gram import StepGram
from ..analysis.trajectory_flags import RULES, check_flags
from ..analysis.weight_trajectory import WeightTrajectory, weight_trajectory
from ..report import Report
from ..sinks import Layout
from ..weight_snapshots import SnapshotFile
from .base import EpochCallback
from .briefly import Briefly
from .guard import check_choice, check_seed, check_size, check_whole_number
from .look import Look, logging_step, only_averages
from .loss_plane import loss_plane
from .path_metric import Mode, PathMetric
from .rehearsed_loss import HeardBatch
from .snapshot_home import SnapshotHome
from .spectrum_history import SpectrumHistory
from .trajectory_report import TrajectoryReport, path_places, path_times, unmoved
from .weight_recorder import NotFiniteError, Storage, WeightRecorder


@final
class WeightTrajectoryLogger(EpochCallback):
    """Follows the weights through training: how far, how straight, in how many directions, part by part.

    A snapshot of the trainable weights is written after every epoch. Distances, principal components, PHATE and all
    numbers follow exactly from the inner products of its steps, beside what a random walk with the same step lengths
    would give. No checkpoint is needed, and no pass is run.

    Args:
        module: dotted name, or names, of the recurrent modules whose layers and gates are told apart; all by default.
            The path is always that of all trainable weights.
        snapshot_every_n_steps: also every so many optimizer steps; by default after each epoch alone.
        monitor: the metric that colours the path and says which snapshot is best; by default what another callback
            monitors, else the validation loss, else the training loss; with `snapshot_every_n_steps` the training loss
            at once. Snapshots within an epoch have no other.
        mode: ``min`` or ``max`` of it; by default that of the other callback, else ``min``.
        storage: ``exact`` keeps the weights as they are, ``sketch`` folds each part into 4099 numbers (distances are
            then exact to about a hundredth), ``auto`` is exact while the run fits in `max_megabytes`.
        max_megabytes: of snapshots on disk, with ``auto``.
        loss_plane: points on each side of a picture of the validation loss around the path, drawn at the end; runs
            ``validation_step`` of a copy of the model that many times squared on up to `loss_plane_batches` batches.
        loss_plane_batches: validation batches on which it is computed.
        flags: thresholds of the flags by name; null switches one off.
        seed: of PHATE and of the sketch.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged, with ``{place}`` one of ``total`` (all weights), a recurrent cell (``rnn.l0``) or another module:

    - `weight_trajectory/{place}/relative_distance`: distance from the start / |weights at the start|; 0 if those are 0.
    - `weight_trajectory/{place}/relative_step`: length of the latest step, from snapshot to snapshot, / |weights before
      it|: the update-to-weight ratio.
    - `weight_trajectory/{place}/turning`: cosine between the latest step and the one before, in [-1, 1]; 0 where there
      are no two.
    - `weight_trajectory/{place}/straightness`: distance from the start / path length, in [0, 1].
    - `weight_trajectory/{place}/dimension`: participation ratio of the path, from 1 (a line); 0 if nothing moves.
    - `weight_trajectory/{place}/explained`: share of the path's variance in two components, in [0, 1].
    - `weight_trajectory/total/distance`: from the start, L2, in the units of the weights.
    - `weight_trajectory/total/step`: length of the latest step.
    - `weight_trajectory/total/path_length`: all steps together.
    - `weight_trajectory/total/straightness_random`: straightness of a random walk with the same step lengths.
    - `weight_trajectory/total/dimension_random`: dimension of that random walk; near 2.5 for a long one.
    - `weight_trajectory/total/explained_random`: what two components explain of it; near 0.76 for a long one.
    - `weight_trajectory/{place}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `weight_trajectory/{module}.{cell}/{part}/relative_distance`: as above, of one gate's weights and biases.
    - `weight_trajectory/{module}.{cell}/{part}/relative_step`: as above, of one gate.
    - `weight_trajectory/{module}.{cell}/{part}/turning`: as above, of one gate.
    - `weight_trajectory/{module}.{cell}/{part}/spectral_radius`: largest modulus of the eigenvalues of a gate's
      recurrent matrix.
    - `weight_trajectory/{module}.{cell}/{part}/spectral_norm`: its largest singular value.
    - `weight_trajectory/{module}.{cell}/{part}/stable_rank`: squared Frobenius / squared spectral norm, from 1.
    - `weight_trajectory/snapshots`: how many there are.
    - `weight_trajectory/failed_looks`: looks whose analysis raised, and snapshots that could not be taken, so far.
    - `weight_trajectory/seconds`: what the numbers of this look took.
    - `weight_trajectory/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "weight_trajectory"
    listens: ClassVar[bool] = False

    def __init__(
        self,
        module: str | list[str] | None = None,
        *,
        snapshot_every_n_steps: int | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        storage: Storage = "auto",
        max_megabytes: float = 1000,
        loss_plane: int | None = None,
        loss_plane_batches: int = 4,
        flags: dict[str, float | None] | None = None,
        seed: int = 0,
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.storage = storage
        self.max_megabytes = max_megabytes
        self.loss_plane = loss_plane
        self.loss_plane_batches = loss_plane_batches
        self.flags = flags
        self.seed = seed
        super().__init__(
            module=module,
            observe="train",  # a look belongs to the end of a training epoch, when no averaged weights are swapped in
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            on_error=on_error,
            summary=summary,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.loss_plane is not None and not trainer.enable_validation:
            raise MisconfigurationException(
                "WeightTrajectoryLogger: loss_plane computes the validation loss, and this run has no validation: it "
                "needs a validation dataloader, a validation_step and limit_val_batches above 0."
            )

    def check(self, modules: dict[str, nn.Module]) -> None:
        title = type(self).__name__
        check_whole_number(title, "snapshot_every_n_steps", self.snapshot_every_n_steps, optional=True)
        if self.loss_plane is not None and not (type(self.loss_plane) is int and self.loss_plane >= 2):
            raise ValueError(f"loss_plane must be a whole number from 2 or None, got {self.loss_plane!r}")
        check_whole_number(title, "loss_plane_batches", self.loss_plane_batches)
        check_choice(title, "storage", self.storage, ("auto", "exact", "sketch"))
        check_choice(title, "mode", self.mode, ("min", "max", None))
        if not (self.monitor is None or isinstance(self.monitor, str)):
            raise ValueError(f"monitor must be a name or None, got {self.monitor!r}")
        check_size(self.max_megabytes)
        check_seed(self.seed)
        if self.flags is not None and not isinstance(self.flags, dict):
            raise ValueError(f"flags must be a dict of thresholds by name, got {self.flags!r}")
        check_flags(self.flags or {})
        if self.loss_plane is not None and self.storage == "sketch":
            raise ValueError('loss_plane needs the weights themselves: leave out storage="sketch"')

    def memory(self) -> dict[str, Any]:
        return {"path": self._known_path, "metric": self._metric.memory(), "spectra": self._spectra.memory()}

    def remember(self, memory: dict[str, Any]) -> None:
        self._known_path: str | None = memory.get("path")  # of the snapshots
        self._metric = PathMetric(
            self.monitor,
            self.mode,
            within_epochs=self.snapshot_every_n_steps is not None,
            noun=self.noun,
            memory=memory.get("metric", {}),
        )
        self._spectra = SpectrumHistory(memory.get("spectra", {}))
        self._weights: WeightRecorder | None = None
        self._home: SnapshotHome | None = None
        self._gram: StepGram | None = None
        self._gram_of: tuple[SnapshotFile, int] | None = None  # and how many of its columns
        self._begins = False  # whether the path is still to be begun
        self._new = False  # whether a snapshot was taken since the last look
        self._checked_in = -1  # epoch in which thawed parameters were looked for
        self._batches: list[HeardBatch] = []  # of the latest validation, where a loss plane is wanted
        self._plane_due = self.loss_plane is not None
        self._briefly = Briefly(self)

    # ---- snapshots -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begins = trainer.is_global_zero

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, first: bool = True) -> None:
        """Open the file, as late as that can be: when a run is resumed, Lightning counts its steps right only then.

        Args:
            trainer: of the run.
            pl_module: whose weights.
            first: whether a new path begins here with a first snapshot; else that of this epoch's end is about to be
                taken.
        """
        self._begins = False
        with self._briefly, torch.no_grad():
            self._home = SnapshotHome(self._folder, noun=self.noun, part=self._part)
            weights = WeightRecorder(
                pl_module,
                self.watched,
                storage=self.storage,
                max_megabytes=self.max_megabytes,
                expected=_expected_snapshots(trainer, self.snapshot_every_n_steps),
                seed=self.seed,
            )
            known, step = self._known_path, logging_step(trainer)
            weights.begin(self._home.path, resumed=None if known is None else Path(known), step=step)
            self._weights, self._known_path = weights, str(self._home.path)
            if not weights.exact and self.storage == "auto":
                self._say_sketch(weights)
            if len(weights.file) and weights.file.entries[-1].step == step:
                self._metric.begin_step()  # a checkpoint of this step may be older than the snapshot
            if not len(weights.file):
                if known is not None and step:
                    self._guard.say(
                        "lost",
                        f"WeightTrajectoryLogger: the snapshots of the run so far are not at {known} any more, so the "
                        f"path begins at step {step}.",
                    )
                if first:
                    self._take(weights, trainer.current_epoch - 1, step, None)

    def _say_sketch(self, weights: WeightRecorder) -> None:
        rank_zero_info(
            "WeightTrajectoryLogger: snapshots of all weights would take more than max_megabytes="
            f"{self.max_megabytes:g}, so it keeps sketches, which know distances to {weights.distance_error:.1%}; "
            'storage="exact" keeps the weights as they are.'
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._begins:
            self._begin(trainer, pl_module)
        every = self.snapshot_every_n_steps
        if self._weights is None or (every is None and self._checked_in == trainer.current_epoch):
            return
        with self._briefly, torch.no_grad():
            # Here, not at the end of the batch before: Lightning has counted its step only now, and what follows an
            # epoch's last batch, wherever the epoch ends, is that epoch's snapshot.
            step, entries = logging_step(trainer), self._weights.file.entries
            if every is not None and step % every == 0 and step > (entries[-1].step if entries else -1):
                # A metric of the whole epoch says nothing of the weights within one.
                value = self._value(self._weights, trainer) if self._metric.hears_loss else None
                self._take(self._weights, trainer.current_epoch, step, value)
            if self._checked_in != trainer.current_epoch:
                self._checked_in = trainer.current_epoch
                wanted = self._weights.admit(epoch=trainer.current_epoch - 1, step=step)
                if wanted is not None:
                    self._take(self._weights, wanted.epoch, wanted.step, wanted.value)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._weights is not None and self._metric.hears_loss:
            with self._briefly, torch.no_grad():
                self._metric.hear(outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._begins:  # resumed from a checkpoint of this epoch's validation, or replayed without its start
            self._begin(trainer, pl_module, first=False)
        self._metric.end_epoch(trainer)
        self._say_missing_metric(trainer)
        if self._weights is not None and not only_averages(trainer):
            with self._briefly, torch.no_grad():
                now, entries = (trainer.current_epoch, logging_step(trainer)), self._weights.file.entries
                if entries and (entries[-1].epoch, entries[-1].step) == now:  # taken before the run was resumed
                    self._new = True
                else:
                    self._take(self._weights, *now, self._value(self._weights, trainer))
        super().on_train_epoch_end(trainer, pl_module)

    def _say_missing_metric(self, trainer: pl.Trainer) -> None:
        validated = trainer.current_epoch + 1 >= (trainer.check_val_every_n_epoch or 1)
        known = [name for name in self._metric.known if not name.startswith(f"{self.noun}/")]
        if trainer.is_global_zero and self.monitor is not None and validated and self.monitor not in known:
            self._guard.say(
                "metric",
                f"WeightTrajectoryLogger: monitor={self.monitor!r} was not logged in the first epoch, so the path has "
                f"no colours and no best snapshot; there are: {', '.join(known) or 'none'}.",
            )

    def _value(self, weights: WeightRecorder, trainer: pl.Trainer) -> float | None:
        """Of the metric now; the file is told its name."""
        value = self._metric.value(trainer)
        if self._metric.found is not None and "metric" not in weights.file.facts:
            weights.file.note(metric=self._metric.found[0], mode=self._metric.found[1])
        return value

    def _take(self, weights: WeightRecorder, epoch: int, step: int, value: float | None) -> None:
        """Take a snapshot; what stands in the way is said once and counted, and the path goes on after it."""
        exact = weights.exact
        try:
            weights.take(epoch=epoch, step=step, value=value)
        except (NotFiniteError, OSError) as error:
            if self.on_error == "raise":
                raise
            self._guard.failures += 1
            what = "is left out of the path" if isinstance(error, NotFiniteError) else "could not be written"
            self._guard.say(
                type(error).__name__,
                f"WeightTrajectoryLogger: the snapshot after step {step} {what} ({error}). Training goes on; more of "
                "them are only counted, in weight_trajectory/failed_looks.",
            )
            self._new = bool(len(weights.file))  # the count is for a look to tell
            return
        self._new = True
        self._metric.begin_step()
        if exact and not weights.exact:
            self._say_sketch(weights)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if self.loss_plane is not None and self._weights is not None:
            if batch_idx == 0 and dataloader_idx == 0:
                self._batches.clear()
            if len(self._batches) < self.loss_plane_batches:
                self._batches.append(HeardBatch(batch, batch_idx, dataloader_idx))

    # ---- looking ---------------------------------------------------------------------------------------------------

    def has_heard_more(self) -> bool:
        return self._new

    def analyse(self, look: Look) -> Report:
        weights = self._weights
        assert weights is not None, "a look follows a snapshot"
        self._new = False
        gram = self._up_to_date(weights.file)
        whole = weight_trajectory(gram.of(gram.parts))
        spectra = self._spectra.look(self.watched, look.epoch)
        report = TrajectoryReport(
            self._guard,
            path_times(weights.file),
            whole,
            path_places(gram, spectra),
            epoch=look.epoch,
            thresholds=self.flags or {},
            error=weights.distance_error,
            seed=self.seed,
        )
        numbers = {"snapshots": float(len(weights.file))} | self._spectra.scalars
        report.add({f"weight_trajectory/{tag}": value for tag, value in numbers.items()})
        if self._plane_due and self._is_last(look.trainer):
            self._plane_due = False
            with self._guard:
                self._draw_plane(look, whole, weights, report)
        return report.finished(unmoved(weights.file, weights.trainable))

    def _draw_plane(
        self, look: Look, whole: WeightTrajectory, weights: WeightRecorder, report: TrajectoryReport
    ) -> None:
        assert self.loss_plane is not None
        try:
            if not weights.exact:
                raise NoPlaneError('loss_plane needs the weights themselves: write storage="exact"')
            report.describe_plane(loss_plane(look, whole, weights.file, self._batches, points=self.loss_plane))
        except NoPlaneError as error:
            self._guard.say("plane", f"WeightTrajectoryLogger: no loss plane is drawn: {error}.")

    def _up_to_date(self, file: SnapshotFile) -> StepGram:
        """Products of all steps; made anew where the columns or the file are others than before."""
        wanted = (file, len(file.columns))
        if self._gram is None or self._gram_of != wanted:
            self._gram, self._gram_of = StepGram(tuple(dict.fromkeys(column.part for column in file.columns))), wanted
        self._gram.extend(file.read, len(file))
        return self._gram

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        follows = self._fresh and self._schedule.every_n_epochs is None  # a look
        if self._plane_due and not follows and self._weights is not None and len(self._weights.file):
            # The last look did not know that it was the last one (`EarlyStopping` decides after it), or was not due.
            self._look(trainer, pl_module, last=True)
        super().on_train_end(trainer, pl_module)

    def finish(self, trainer: pl.Trainer) -> None:
        self._batches.clear()
        self._weights = self._gram = self._gram_of = None
        home, self._home = self._home, None
        try:
            if home is not None:
                home.leave()
        except OSError as error:
            if self.on_error == "raise":
                raise
            self._guard.failures += 1
            self._guard.say("left", f"WeightTrajectoryLogger: {error}.")  # also after other faults: files lie somewhere

    def headlines(self) -> dict[str, str]:
        return {
            "weight_trajectory/total/relative_distance": "all weights: moved by {value:.2f} of their size at the start",
            "weight_trajectory/total/relative_step": "all weights: by {value:.2%} between the last two snapshots",
        }

    def layout(self) -> Layout:
        def chart(pattern: str) -> list[Any]:
            return ["Multiline", [pattern]]

        return {
            "Weights": {
                "distance from the start, relative to the weights": chart(
                    r"^weight_trajectory/[^/]*/relative_distance$"
                ),
                "length of the latest step, relative to the weights": chart(r"^weight_trajectory/[^/]*/relative_step$"),
                "turning: cosine between successive steps": chart(r"^weight_trajectory/[^/]*/turning$"),
                "dimensions of the path, and of a random walk": chart(r"^weight_trajectory/total/dimension(_random)?$"),
                "distance by gate, relative to the weights": chart(
                    r"^weight_trajectory/[^/]*/[^/]*/relative_distance$"
                ),
                "spectral radius of recurrent weights": chart(r"^weight_trajectory/.*/spectral_radius$"),
                "weight flags raised": chart(r"^weight_trajectory/.*/flags/(" + "|".join(RULES) + r")$"),
            }
        }


def _expected_snapshots(trainer: pl.Trainer, every: int | None) -> int | None:
    """How many the whole run will have; None where nobody knows."""
    batches = trainer.num_training_batches
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if trainer.max_steps > 0 and batches > 0:
        by_steps = max(1, math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / batches))
        epochs = by_steps if epochs is None else min(epochs, by_steps)
    if epochs is None or (every is not None and math.isinf(batches)):
        return None
    steps = epochs * batches / trainer.accumulate_grad_batches
    return epochs + 1 + (0 if every is None else int(steps) // every)
