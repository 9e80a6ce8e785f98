"""GradientFlowMonitor: do gradients vanish or explode, where, and how many time steps back does credit still reach?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from .. import sinks
from ..analysis.adjoint import CellGradients, total_gradients
from ..analysis.gradient_flags import RULES, check_flags, listed
from ..analysis.gradient_norms import GradientNorms
from ..capture import Recorder
from ..report import Report
from ..sinks import Layout
from ..tape import Call
from .base import EpochCallback
from .briefly import Briefly
from .gradient_meter import StepMeter
from .gradient_report import GradientReport
from .look import Look, logging_step, only_averages
from .outlets import delivery
from .own_gradients import OwnGradients
from .summary import headline_cells

IMPULSES = 8  # sequences of a call in which single moments are followed


@final
class GradientFlowMonitor(EpochCallback):
    """Watches gradients: of every parameter and gate at each optimizer step, and through time in each recurrent layer.

    The total gradient ``dL/dh_t`` of a fused ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` is rebuilt from what the backward
    pass of training brings to the module's outputs; no pass is run for it. Credit is measured with impulses, the
    gradient of a single step's loss alone, since a loss at every step hides vanishing.

    Args:
        module: dotted name, or names, of the modules to watch; all recurrent modules by default. Norms are always those
            of all parameters.
        flags: thresholds of the flags by name; null switches one off.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: how many sequences to analyse, the first ones of each training epoch.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged every ``log_every_n_steps`` over the steps since, and at each look over the steps of the epoch;
    ``{parameter}`` is a parameter's name, ``{module}`` the module's, ``{cell}`` one of ``l0``, ``l0_reverse``,
    ``l1``, ... or ``cell``:

    - `gradient_flow/total/norm`: L2 norm of the whole gradient before clipping, median over steps.
    - `gradient_flow/total/norm_max`: the same, the largest.
    - `gradient_flow/total/norm_clipped`: after clipping, median over steps.
    - `gradient_flow/total/clipped`: share of steps that clipping changed, in [0, 1].
    - `gradient_flow/total/non_finite`: share of steps with a NaN or infinite gradient, in [0, 1].
    - `gradient_flow/parameters/{parameter}/norm`: L2 norm of its gradient before clipping, median over steps.
    - `gradient_flow/parameters/{parameter}/update_ratio`: |change of the weights| / |weights|, by one step.
    - `gradient_flow/parameters/{parameter}/zeros`: share of its gradient's elements that are exactly zero, at one step.
    - `gradient_flow/{module}.{cell}/{part}/norm`: the same as a parameter's norm, of one gate's recurrent weights.

    Logged at each look:

    - `gradient_flow/{module}.{cell}/horizon`: time steps back in which credit falls by a factor e, from a line fitted
      to its logarithm; at most ten times the longest distance heard.
    - `gradient_flow/{module}.{cell}/reach`: time steps back at which a hundredth of it is left; at most those heard.
    - `gradient_flow/{module}.{cell}/gain`: mean factor by which a step changes the size of the gradient passing it.
    - `gradient_flow/{module}.{cell}/first_over_last`: |dL/dh| at the step read first / at the last, from all losses.
    - `gradient_flow/{module}.{cell}/early_contribution`: share of the recurrent weights' gradient that comes from the
      half of the steps that is read first, in [0, 1].
    - `gradient_flow/{module}.{cell}/lyapunov`: largest Lyapunov exponent, in nats per step: above 0, small
      differences of the state grow.
    - `gradient_flow/{module}.{cell}/{part}/spectral_radius`: largest modulus of the eigenvalues of a gate's recurrent
      matrix.
    - `gradient_flow/{module}.{cell}/{part}/timescale`: of its slowest eigenvalue, in time steps; at most a million.
    - `gradient_flow/{module}.{cell}/gradient_error`: relative difference of the bias gradient rebuilt from all steps to
      the module's own; about 1e-6.
    - `gradient_flow/{module}.{cell}/rebuild_error`: difference of rebuilt and real hidden states, relative.
    - `gradient_flow/{module}.{cell}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `gradient_flow/total/flags/{flag}`: the same, of the whole gradient and of all parameters.
    - `gradient_flow/failed_looks`: looks whose analysis raised or that could not all be handed over, so far.
    - `gradient_flow/seconds`: what the numbers of this look took.
    - `gradient_flow/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "gradient_flow"
    hears_gradients: ClassVar[bool] = True
    needs_whole: ClassVar[str] = "gradients"

    def __init__(
        self,
        module: str | list[str] | None = None,
        *,
        flags: dict[str, float | None] | None = None,
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 64,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        super().__init__(
            module=module,
            observe="train",
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            max_sequences=max_sequences,
            on_error=on_error,
            summary=summary,
        )
        self.flags = flags

    def check(self, modules: dict[str, nn.Module]) -> None:
        if self.flags is not None and not isinstance(self.flags, dict):
            raise ValueError(f"flags must be a dict of thresholds by name, got {self.flags!r}")
        check_flags(self.flags or {})

    def memory(self) -> dict[str, Any]:
        return {"horizons": dict(self._horizons), "first_loss": self._first_loss}

    def remember(self, memory: dict[str, Any]) -> None:
        self._horizons: dict[str, float] = dict(memory.get("horizons", {}))  # the longest so far, by cell
        self._first_loss: float | None = memory.get("first_loss")
        self._meter: StepMeter | None = None
        self._own = OwnGradients()
        self._window: Recorder | None = None  # what hears Lightning's own backward pass alone
        self._briefly = Briefly(self)

    # ---- every step ------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._meter is None and not (trainer.is_global_zero and self._leads(trainer)):
            return
        with self._briefly, torch.no_grad():
            if self._meter is None:
                self._meter = self._new_meter(trainer, pl_module)
            self._meter.before_step(trainer.current_epoch, optimizer, logging_step(trainer))

    def _new_meter(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> StepMeter:
        if not pl_module.automatic_optimization:
            self._guard.say(
                "manual",
                "GradientFlowMonitor: in manual optimization gradients reach it after your own clipping, if any: norms "
                "are then those after clipping, and total/clipped stays 0.",
            )
        modules = {name: module for peer in self._peers(trainer) for name, module in peer.watched.items()}
        return StepMeter(trainer, pl_module, modules)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._meter is None:
            return
        with self._briefly, torch.no_grad():
            self._meter.after_batch(trainer.current_epoch, outputs)
            if self._meter.due or self._meter.meter.full:
                due = self._meter.due
                self._fetch()
                norms = self._meter.interval() if due else None
                if norms is not None:
                    scalars = {f"gradient_flow/{tag}": v for tag, v in self._meter.scalars(norms).items()}
                    with delivery(trainer, self._guard):
                        sinks.log_scalars(trainer, scalars, epoch=trainer.current_epoch, step=int(norms.steps[-1]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not only_averages(trainer):  # in which nothing is learned
            super().on_train_epoch_end(trainer, pl_module)

    def _fetch(self) -> GradientNorms | None:
        """What was measured since the last time; the first gradient that is no number is named."""
        assert self._meter is not None
        norms = self._meter.fetch()
        if norms is None or self._meter.scaled or norms.finite.all():
            return norms
        broken = np.flatnonzero(~norms.finite)
        row = norms.norm[broken[0]]
        names = [name for name, norm in zip(norms.parameters, row, strict=True) if not np.isfinite(norm)]
        what = "NaN" if np.isnan(row).any() else "infinite (or above 1e19)"
        self._guard.say(
            "non_finite",
            f"GradientFlowMonitor: at step {norms.steps[broken[0]]} the gradient of {listed(names)} is {what}. "
            "Look at the inputs and the loss of that batch first, then at the learning rate.",
        )
        return norms

    def finish(self, trainer: pl.Trainer) -> None:
        self._window = None
        if self._meter is not None:
            self._fetch()
            self._meter = None

    def has_heard_more(self) -> bool:
        return self._meter is not None and bool(len(self._meter.meter) or self._meter.epoch)

    # ---- the module's own gradient of its recurrent biases, to compare with ------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Only Lightning's own backward pass trains; a gradient that a training step asks for itself does not. In manual
        # optimization a plain loss.backward() is not announced, so everything is listened to.
        self._window = self._shared_recorder(trainer) if pl_module.automatic_optimization else None

    def begin_hearing(self) -> None:
        self._own.clear()

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._window is not None:
            self._window.gradients_wanted = False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        recorder = self._shared_recorder(trainer)
        if recorder is not None and recorder.listening:
            recorder.gradients_wanted = True
            with self._briefly, torch.no_grad():
                self._own.before(self._modules.values())
                scaler = getattr(trainer.precision_plugin, "scaler", None)
                self._own.scales[recorder.batch] = 1.0 if scaler is None else float(scaler.get_scale())

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        recorder = self._shared_recorder(trainer)
        if self._window is not None:
            self._window.gradients_wanted = False
        if recorder is not None and recorder.listening and trainer.world_size == 1:
            # With several processes gradients are by now those of all of them together.
            with self._briefly, torch.no_grad():
                self._own.after(self._modules.values(), recorder.batch)

    # ---- at a look ---------------------------------------------------------------------------------------------------

    def analyse(self, look: Look) -> Report:
        looks = self._looks + 1
        report = GradientReport(self._guard, epoch=look.epoch, looks=looks, thresholds=self.flags or {})
        if self._leads(look.trainer):
            self._describe_steps(report)
        rebuilt = {name: self._rebuild(look, name) for name in look.tapes}
        recorder = self._shared_recorder(look.trainer)
        assert recorder is not None
        own = self._own.errors(self._modules, rebuilt, look.tapes, recorder.cut | _left_out(look, recorder))
        loss = self._loss_so_far(look.trainer)
        for name, by_cell in rebuilt.items():
            if by_cell:
                report.describe_module(name, by_cell, own, horizons=self._horizons, loss=loss)
        return report.finished

    def _rebuild(self, look: Look, name: str) -> dict[str, list[CellGradients]]:
        """Gradients through time of a module's cells, over all calls to which some came back."""
        calls = [call for call in look.tapes[name].calls if any(boundary.arrived for boundary in call.boundaries)]
        finite = [call for call in calls if _finite(call)]  # others are named by their parameters
        if not calls:
            self._guard.say(
                f"no gradient {name}",
                f"GradientFlowMonitor: no gradient came back to {name}: its outputs do not reach the loss, or it runs "
                "inside a reentrant checkpoint (use_reentrant=False can be listened to).",
            )
        found: dict[str, list[CellGradients]] = {}
        for call in finite:
            for part in total_gradients(unscaled(call, self._own.scales.get(call.batch, 1.0)), impulses=IMPULSES):
                found.setdefault(part.trace.cell.name, []).append(part)
        return found

    def _loss_so_far(self, trainer: pl.Trainer) -> float | None:
        """Of the first look's loss; None where losses are unknown or not positive."""
        leader = self._peers(trainer)[0]
        assert isinstance(leader, GradientFlowMonitor)
        loss, first = leader._meter.loss if leader._meter is not None else None, leader._first_loss
        return None if loss is None or first is None or first <= 0 else loss / first

    def _describe_steps(self, report: GradientReport) -> None:
        """Norms over the steps of the epoch."""
        if self._meter is not None:
            self._fetch()
        norms, sizes = (self._meter.epoch, self._meter.sizes) if self._meter is not None else (None, None)
        if self._meter is None or norms is None or sizes is None:
            self._guard.say(
                "no step",
                "GradientFlowMonitor: no optimizer step was heard, so there are no norms of parameters. Lightning only "
                "tells of steps by its own optimizers: in manual optimization take them from self.optimizers(), "
                "without use_pl_optimizer=False.",
            )
            return
        if self._first_loss is None:
            self._first_loss = self._meter.loss
        report.describe_steps(self._meter, norms, sizes)

    def headlines(self) -> dict[str, str]:
        fades = "the gradient fades to a third in {value:.3g} steps (ten times the sequence: it does not)"
        found = {
            f"gradient_flow/{place}/horizon": f"{called}: {fades}"
            for place, (called, _) in headline_cells(self.watched).items()
        }
        return {**found, "gradient_flow/total/norm": "all weights: gradient of size {value:.3g}"}

    def layout(self) -> Layout:
        def chart(pattern: str) -> list[Any]:
            return ["Multiline", [pattern]]

        return {
            "Gradients": {
                "norm of the whole gradient, before and after clipping": chart(
                    r"^gradient_flow/total/(norm|norm_max|norm_clipped)$"
                ),
                "memory horizon, in time steps back": chart(r"^gradient_flow/.*/horizon$"),
                "reach: where 1 % of the credit is left, in time steps back": chart(r"^gradient_flow/.*/reach$"),
                "norm by gate (recurrent weights)": chart(
                    r"^gradient_flow/.*/(input|forget|cell|output|reset|update|new|hidden)/norm$"
                ),
                "update / weight, by parameter": chart(r"^gradient_flow/parameters/.*/update_ratio$"),
                "largest Lyapunov exponent": chart(r"^gradient_flow/.*/lyapunov$"),
                "gradient flags raised": chart(r"^gradient_flow/.*/flags/(" + "|".join(RULES) + r")$"),
            }
        }


def unscaled(call: Call, scale: float) -> Call:
    """The call with the gradients of the loss itself, where half precision multiplied it."""
    if scale == 1.0:
        return call
    return replace(
        call,
        boundaries=tuple(
            replace(boundary, outputs=boundary.outputs / scale, final=boundary.final / scale)
            for boundary in call.boundaries
        ),
    )


def _finite(call: Call) -> bool:
    return all(bool(part.outputs.isfinite().all() and part.final.isfinite().all()) for part in call.boundaries)


def _left_out(look: Look, recorder: Recorder) -> set[int]:
    """Batches of which calls were heard that this look does not analyse, for it has sequences enough."""
    heard = recorder.tapes
    return {call.batch for name, tape in look.tapes.items() for call in heard[name].calls[len(tape.calls) :]}
