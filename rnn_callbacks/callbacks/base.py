"""When to look, what to listen to, and how not to be in the way: what all callbacks share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from .. import sinks
from ..capture import Recorder
from ..report import Report
from ..tape import Tape
from .checkpoint_state import adopt_state, kept_state, restore_state
from .company import say_rivals, say_spacing, serve_monitors
from .guard import Guard, check_choice, check_share, check_whole_number, find_modules, on_host, undisturbed_rng
from .heard import Brought, bring, heard_here, join_heard, why_silent
from .hparams_page import declare_headlines
from .look import Look, logging_step, only_averages
from .outlets import Place, delivery, publish, publish_figures
from .progress import shown
from .ranks import agree, collect, own_share
from .schedule import Schedule
from .summary import say_summary

Observe = Literal["validation", "train"]
# By name: those of `pytorch_lightning` are other classes.
SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class EpochCallback(pl.Callback, ABC):
    """Listens to passes that run anyway, and looks at what it heard when an epoch's validation is over.

    A subclass sets `noun` and writes `analyse`; it is then scheduled, logged, saved and guarded like the others.

    Args:
        module: dotted name, or names, of the recurrent modules to watch; all of them by default.
        observe: ``validation`` listens to validation batches; ``train`` to the first batches of each training epoch,
            for models without validation (dropout is then on, and weights move between batches).
        every_n_epochs: look at every n-th epoch; by default as often as `max_overhead` allows, at most every epoch,
            the first and the last one always.
        figure_every_n_epochs: draw at every n-th epoch; by default as often as `max_overhead` allows, at the first and
            the last look always.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: how many sequences to analyse, the same first ones at every look.
        on_error: ``warn`` says once that an analysis failed and lets the training go on; ``raise`` stops it.
        summary: say at the run's end what was seen.
    """

    noun: ClassVar[str]
    hears_gradients: ClassVar[bool] = False  # whether the backward pass is listened to as well; with observe="train"
    takes_batches: ClassVar[bool] = False  # whether it is given what was heard after every batch, not kept until a look
    needs_whole: ClassVar[str] = "weights"  # what no process may have only a part of
    listens: ClassVar[bool] = True  # to passes; else it has its own way of knowing, and says so by `has_heard_more`

    def __init__(
        self,
        *,
        module: str | list[str] | None = None,
        observe: Observe = "validation",
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 256,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        self.module = module
        self.observe = observe
        self.every_n_epochs = every_n_epochs
        self.figure_every_n_epochs = figure_every_n_epochs
        self.max_overhead = max_overhead
        self.max_sequences = max_sequences
        self.on_error = on_error
        self.summary = summary
        self._modules: dict[str, nn.Module] = {}
        self._recorder: Recorder | None = None
        self._forget_run()

    def _forget_run(self) -> None:
        self._folder: str | None = None
        self._part = 1  # among the callbacks of this kind in the run
        self._fresh = False  # whether something was heard that was not looked at yet
        self._heard_at = (0, 0)  # epoch and step of it
        self._listened_in = -1  # epoch
        self._due = False  # whether a look may follow what is being heard; with `takes_batches`, whether it does
        self._processes = 1
        self._share = self.max_sequences  # of the sequences, what this process has to hear
        self._taken_seconds = 0.0  # spent on them
        self._looks = 0
        self._looked_in = -1  # epoch, of the latest look that did not fail
        self._seen: dict[str, float] = {}  # by tag, as last looked at
        self._schedule = Schedule(self.every_n_epochs, self.figure_every_n_epochs, self.max_overhead)
        self._guard = Guard(type(self).__name__, f"{self.noun}/failed_looks", self.on_error)
        self.remember({})

    @abstractmethod
    def analyse(self, look: Look) -> Report:
        """Numbers, pictures and texts of one look. Runs without gradients and with the random state guarded."""

    def layout(self) -> sinks.Layout:
        """Charts for the curated page of TensorBoard."""
        return {}

    def headlines(self) -> dict[str, str]:
        """The few numbers that sum up a run, by tag, in words around ``{value}``; known once modules are found."""
        return {}

    def check(self, modules: dict[str, nn.Module]) -> None:
        """Refuse settings that cannot be met by these modules, with a ValueError; the default accepts all."""

    def memory(self) -> dict[str, Any]:
        """What later looks need of earlier ones, kept in checkpoints: tensors, numbers, strings, lists and dicts."""
        return {}

    def remember(self, memory: dict[str, Any]) -> None:
        """Take `memory` back from a checkpoint; an empty one when a run begins."""

    def has_heard_more(self) -> bool:
        """Whether there is something to look at beside what recurrent modules said."""
        return False

    def begin_hearing(self) -> None:
        """The first batch of those that a look will be at is about to come: forget earlier ones."""

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """A batch is about to pass that will be heard; ``number`` is what `Call.batch` will say."""

    def heard(self) -> Any:
        """On ranks other than zero: what was heard here beside tapes, to be sent to rank zero and forgotten."""

    def join(self, heard: Sequence[Any]) -> None:
        """On rank zero, before a look: what the other ranks `heard`."""

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run is about to begin, with the weights it begins with."""

    def on_taken_batch(self, tapes: dict[str, Tape], *, untrained: bool) -> None:
        """With `takes_batches`: what was heard of a batch that is over; in the sanity check it is ``untrained``."""

    def finish(self, trainer: pl.Trainer) -> None:
        """The run is over, or broke off: say what has not been said."""

    def look_every_epoch(self) -> None:
        """Look at each epoch from now on, whatever it costs: those of a replay were chosen by who saved them.

        Pictures are drawn as often as was asked for, or else of the first and the last look.
        """
        self._schedule = Schedule(1, self.figure_every_n_epochs, max_overhead=0.0)

    @property
    def watched(self) -> dict[str, nn.Module]:
        """The modules that are listened to, by name; none before a run and after it."""
        return dict(self._modules)

    def distinction(self) -> dict[str, Any]:
        """What tells callbacks of one class apart that watch the same modules; settings as YAML can say them."""
        return {}

    @property
    def state_key(self) -> str:
        """Tells apart several callbacks of one class."""
        return self._generate_state_key(module=self.module, observe=self.observe, **self.distinction())

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kin = self._generate_state_key(module=self.module, observe=self.observe)
        adopt_state(checkpoint, self.state_key, kin, claimed={callback.state_key for callback in everyone(trainer)})

    def state_dict(self) -> dict[str, Any]:
        return kept_state(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore_state(self, state_dict)

    # ---- before training -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._forget_run()
        self._check_settings()
        if any(kind.__name__ in SHARDED for kind in type(trainer.strategy).__mro__):
            raise MisconfigurationException(
                f"{type(self).__name__} needs whole {self.needs_whole}, and {type(trainer.strategy).__name__} leaves "
                'each process a part of them; train with strategy="ddp", or leave it out and look at the checkpoints '
                "afterwards (rnn-callbacks replay)."
            )
        if self.observe == "validation" and not trainer.enable_validation:
            raise MisconfigurationException(
                f"{type(self).__name__} listens to validation batches, and this run has none: it needs a validation "
                "dataloader, a validation_step and limit_val_batches above 0. To listen to training batches instead, "
                f'write {type(self).__name__}(observe="train").'
            )
        self._processes = trainer.world_size
        self._guard.silent = not trainer.is_global_zero
        # Modules may still be made: Lightning calls the model's own setup after this one.
        late = ("configure_model", "setup")  # the parent is named, for a module of `pytorch_lightning` has another one
        if not any(is_overridden(method, pl_module, pl.LightningModule) for method in late):
            self._find_modules(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._find_modules(pl_module)
        ours = everyone(trainer)
        say_rivals(self, ours)
        serve_monitors(self, trainer)
        self._schedule.share_with([callback._schedule for callback in ours])
        if self.listens and self._leads(trainer):
            peers = self._peers(trainer)
            for peer in peers:
                peer._find_modules(pl_module)
            self._recorder = Recorder(
                pl_module,
                modules={name: module for peer in peers for name, module in peer._modules.items()},
                max_megabytes=256.0 if self.takes_batches else 32.0,  # of a batch, or of all that is kept until a look
                gradients=self.hears_gradients,
                number=(trainer.global_rank, trainer.world_size),
            )
        with self._guard, undisturbed_rng(), on_host():
            self.prepare(trainer, pl_module)
        if ours[-1] is self:  # all have found their modules, and Lightning has not logged hyperparameters yet
            with delivery(trainer, self._guard), on_host():
                declare_headlines(trainer, pl_module, [tag for callback in ours for tag in callback.headlines()])

    def _check_settings(self) -> None:
        title = type(self).__name__
        check_choice(title, "observe", self.observe, ("validation", "train"))
        check_choice(title, "on_error", self.on_error, ("warn", "raise"))
        check_choice(title, "summary", self.summary, (True, False))
        check_whole_number(title, "every_n_epochs", self.every_n_epochs, optional=True)
        check_whole_number(title, "figure_every_n_epochs", self.figure_every_n_epochs, optional=True)
        check_whole_number(title, "max_sequences", self.max_sequences)
        check_share(title, "max_overhead", self.max_overhead)

    def _find_modules(self, pl_module: pl.LightningModule) -> None:
        title = type(self).__name__
        wanted = [self.module] if isinstance(self.module, str) else self.module
        self._modules, remark = find_modules(title, pl_module, wanted)
        if remark:
            self._guard.say("unheard", f"{title} cannot listen to every recurrent module.{remark}")
        try:
            with on_host():
                self.check(self._modules)
        except ValueError as error:
            raise MisconfigurationException(f"{title}: {error}") from error

    def _peers(self, trainer: pl.Trainer) -> list[EpochCallback]:
        """Callbacks that listen to the same passes; they share one recorder, held by the first."""
        return [callback for callback in everyone(trainer) if callback._hearing == self._hearing]

    @property
    def _hearing(self) -> tuple[str, bool, bool, bool]:
        return self.observe, self.hears_gradients, self.takes_batches, self.listens

    def _leads(self, trainer: pl.Trainer) -> bool:
        return self._peers(trainer)[0] is self

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._schedule.start()
        ours = everyone(trainer)
        if trainer.is_global_zero and ours[0] is self:
            layout: sinks.Layout = {}
            for callback in ours:
                layout |= callback.layout()
            with delivery(trainer, self._guard):
                sinks.log_layout(trainer, layout)
        if trainer.is_global_zero:
            with delivery(trainer, self._guard):
                self._folder = sinks.run_folder(trainer)
                if self._folder is not None:
                    sinks.clean_folder(self._folder, noun=self.noun)
            self._part = 1 + [callback for callback in ours if callback.noun == self.noun].index(self)

    # ---- listening -------------------------------------------------------------------------------------------------

    def _listen(self, trainer: pl.Trainer) -> None:
        self._listened_in = trainer.current_epoch
        if self._recorder is None or (trainer.sanity_checking and not self.takes_batches):
            return
        if self.hears_gradients and only_averages(trainer):
            return
        peers, last = self._peers(trainer), self._is_last(trainer)
        for peer in peers:
            peer._taken_seconds = 0.0
            peer._share = self._own_share(trainer, peer.max_sequences)
            peer._due = trainer.sanity_checking or peer._schedule.wants_epoch(trainer.current_epoch)
            if self.takes_batches and not trainer.sanity_checking:  # so many sequences that listening has its price
                peer._due = agree(trainer, peer._schedule.look_is_due(trainer.current_epoch, last=last))
        self._recorder.max_sequences = max(peer._share for peer in peers)
        if any(peer._due for peer in peers) and self._recorder.max_sequences:
            self._recorder.open()
            for peer in peers:
                if peer._due or not peer.takes_batches:
                    with peer._guard:
                        peer.begin_hearing()
        else:
            self._recorder.close()

    def _own_share(self, trainer: pl.Trainer, sequences: int) -> int:
        if self.hears_gradients:  # those of rank zero's own loss
            return sequences if trainer.is_global_zero else 0
        validating = self.observe == "validation"
        return own_share(sequences, trainer, trainer.val_dataloaders if validating else trainer.train_dataloader)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.observe == "validation":
            self._listen(trainer)
        elif self._recorder is not None:
            self._recorder.close()  # validation within a training epoch is not what was asked for

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._recorder is not None:
            self._recorder.close()  # training begins, and is not what was asked for

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.observe == "validation":
            self._next_batch(trainer, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.observe == "validation":
            self._hand_over(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ours = everyone(trainer)
        if trainer.is_global_zero and ours[0] is self:
            say_spacing(trainer, ours)
        if self.observe == "train":
            self._listen(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.observe == "train":
            if self._listened_in != trainer.current_epoch:  # resumed within an epoch: no epoch start was announced
                self._listen(trainer)
            self._next_batch(trainer, batch, batch_idx, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.observe == "train":
            self._hand_over(trainer)

    def _hand_over(self, trainer: pl.Trainer) -> None:
        """Give what was heard of a batch to all who take it batch by batch; whoever holds the recorder does it."""
        if not self.takes_batches or self._recorder is None:
            return
        tapes = self._recorder.take()
        for peer in self._peers(trainer) if tapes else []:
            if peer._due:
                begin = time.perf_counter()
                with peer._guard, undisturbed_rng(), torch.no_grad(), on_host():
                    own = {name: tape for name, tape in tapes.items() if name in peer._modules}
                    peer.on_taken_batch(own, untrained=bool(trainer.sanity_checking))
                if not trainer.sanity_checking:
                    peer._taken_seconds += time.perf_counter() - begin

    def _next_batch(self, trainer: pl.Trainer, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if not self.listens:
            return
        if self._recorder is not None:
            self._recorder.next_batch()
        recorder = self._shared_recorder(trainer)
        if recorder is not None and recorder.listening and (self._due or not self.takes_batches):
            begin = time.perf_counter()
            with self._guard, undisturbed_rng(), torch.no_grad():
                self.on_heard_batch(recorder.batch, batch, batch_idx, dataloader_idx)
            if self.takes_batches and not trainer.sanity_checking:
                self._taken_seconds += time.perf_counter() - begin

    def _shared_recorder(self, trainer: pl.Trainer) -> Recorder | None:
        return self._peers(trainer)[0]._recorder

    # ---- looking ---------------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # No modules: not in a run, but in a validation of its own.
        if self.observe == "validation" and self._modules and not trainer.sanity_checking:
            self._finish_epoch(trainer, pl_module, logging_step(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.observe == "train":
            # Lightning counts the epoch's last batch before this hook and logs epoch-end values one step earlier.
            self._finish_epoch(trainer, pl_module, logging_step(trainer) - 1)

    def _finish_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        heard = self._stop_listening(trainer) or self.has_heard_more()
        self._fresh, self._heard_at = heard, (trainer.current_epoch, step)
        last = self._is_last(trainer)
        due = heard and (self.takes_batches or self._schedule.look_is_due(trainer.current_epoch, last=last))
        scalars = self._look_together(trainer, pl_module, last=last) if agree(trainer, due) else {}
        if scalars:
            begin = time.perf_counter()
            if trainer.state.fn == "fit" and not trainer.barebones:
                pl_module.log_dict(scalars, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1)
            else:  # Lightning's own log is closed with barebones=True, and in a replay at some hooks
                with delivery(trainer, self._guard):
                    sinks.log_scalars(trainer, scalars, epoch=trainer.current_epoch, step=step)
            self._schedule.numbers.spent += time.perf_counter() - begin

    def _look_together(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, last: bool) -> dict[str, float]:
        """What rank zero sees in what all ranks heard; a fault that is to stop the training stops all of them."""
        scalars: dict[str, float] = {}
        fault: Exception | None = None
        brought = collect(trainer, None if trainer.is_global_zero else bring(self, self._shared_recorder(trainer)))
        if trainer.is_global_zero:
            try:
                with shown(trainer, f"{type(self).__name__} looks"):
                    scalars = self._look(trainer, pl_module, brought, last=last)
            except Exception as error:
                fault = error
        scalars, told = agree(trainer, (scalars, None if fault is None else repr(fault)))
        if fault is not None:
            raise fault
        if told is not None:
            raise RuntimeError(f"{type(self).__name__} failed on rank zero: {told}")
        return scalars

    def _stop_listening(self, trainer: pl.Trainer) -> bool:
        """Whether anything was heard in the epoch that is over."""
        recorder = self._shared_recorder(trainer)
        if recorder is None:
            return False
        recorder.close()
        heard = any(recorder.sequences.values()) or bool(recorder.faults)
        if self.takes_batches:
            heard &= self._due
        if not heard and self._due:
            self._guard.say(
                "silent", f"{type(self).__name__} heard nothing: {', '.join(self._modules)} {why_silent(recorder)}"
            )
        if self._leads(trainer):
            self._schedule.numbers.spent += recorder.seconds
        return heard

    def _is_last(self, trainer: pl.Trainer) -> bool:
        epochs, steps = trainer.max_epochs, trainer.max_steps
        period = (trainer.check_val_every_n_epoch or 1) if self.observe == "validation" else 1
        ends = epochs is not None and epochs > 0 and trainer.current_epoch + period >= epochs
        return ends or (steps > 0 and trainer.global_step >= steps) or trainer.should_stop

    def _look(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, brought: Sequence[Brought] = (), *, last: bool
    ) -> dict[str, float]:
        """Analyse, publish all but the scalars, and return those; after a fault only what can still be said."""
        begin = time.perf_counter()
        epoch, step = self._heard_at
        report = Report({})
        self._fresh = False
        with self._guard, undisturbed_rng(), torch.no_grad(), on_host():
            tapes = join_heard(self, heard_here(self, self._shared_recorder(trainer)), brought)
            report = self.analyse(Look(trainer, pl_module, tapes, epoch, step))
            self._looked_in = epoch
        self._looks += 1
        seconds = time.perf_counter() - begin
        before, self._taken_seconds = self._taken_seconds, 0.0
        own = self.noun if self._part == 1 else f"{self.noun}/part_{self._part}"
        scalars = {
            **report.scalars,
            f"{own}/failed_looks": float(self._guard.failures),
            f"{own}/seconds": before + seconds,
            f"{own}/overhead": self._schedule.overhead(before + seconds),
        }
        place = Place(self._folder, self.noun, epoch, step, self._part)
        with undisturbed_rng():
            publish(trainer, replace(report, scalars=scalars), place, self._guard)
        self._schedule.numbers.add(before + time.perf_counter() - begin)
        if report.figures and self._schedule.figure_is_due(epoch, last=last):
            begin = time.perf_counter()
            with undisturbed_rng():
                publish_figures(trainer, report, place, self._guard)
            self._schedule.figures.add(time.perf_counter() - begin)
        scalars[f"{own}/failed_looks"] = float(self._guard.failures)  # those of its outlets too
        self._seen |= scalars
        return scalars

    # ---- the end ---------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that stopped early is looked at where it stopped; Lightning's own log is closed by now.
        if agree(trainer, self._fresh and self._schedule.every_n_epochs is None):
            epoch, step = self._heard_at
            scalars = self._look_together(trainer, pl_module, last=True)
            if trainer.is_global_zero:
                with delivery(trainer, self._guard):
                    sinks.log_scalars(trainer, scalars, epoch=epoch, step=step)
        if trainer.is_global_zero and self._looks == 0 and "silent" not in self._guard.said:
            period = None if self.every_n_epochs is None else f"is due (every_n_epochs={self.every_n_epochs})"
            if self.listens:
                why = f"no {self.observe} batch was heard" + (f" in an epoch that {period}" if period else "")
            else:
                why = "no epoch " + (f"that {period} " if period else "") + "came to its end"
            self._guard.say("nothing", f"{type(self).__name__} saw nothing: {why}.")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._leave(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        ours = everyone(trainer)
        if ours and ours[0] is self:  # the others have not left their modules yet
            with self._guard:
                say_summary(trainer, ours)
        with self._guard:
            self.finish(trainer)
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        self._modules = {}


def everyone(trainer: pl.Trainer) -> list[EpochCallback]:
    """The callbacks of this package in a run, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, EpochCallback)]  # type: ignore[attr-defined]
