"""GradientFlowMonitor: do gradients vanish or explode, where, and how many time steps back does credit still reach?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import sinks
from ..analysis.adjoint import CellGradients, total_gradients
from ..analysis.gate_flags import Flag
from ..analysis.gradient_check import SLACK, replay_error
from ..analysis.gradient_findings import CellFlow, StepSizes
from ..analysis.gradient_flags import QUIET, RULES, SoFar, check_flags, dead_parameters, flow_flags, norm_flags
from ..analysis.gradient_flow import gradient_flow
from ..analysis.gradient_norms import ABSENT, HIGHEST, LOWEST, GradientNorms
from ..analysis.lyapunov import lyapunov_exponents
from ..analysis.spectra import recurrent_spectra
from ..capture import Recorder
from ..figures.gradient_flow import draw_gradient_flow, draw_gradient_norms
from ..report import Histogram, Report
from ..sinks import Layout
from ..tape import Call
from .base import Briefly, EpochCallback
from .gradient_meter import StepMeter
from .look import Look, logging_step
from .own_gradients import OwnGradients

NAMED = 5  # parameters in one message
IMPULSES = 8  # sequences of a call in which single moments are followed
NO_NUMBER = 1e300  # in files, in place of NaN and infinity


@final
@dataclass(eq=False)
class _Draft:
    """What a look collects."""

    scalars: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Callable[[], Any]] = field(default_factory=dict)


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
        max_overhead: share of the training time that looking may take, pictures included.
        max_sequences: how many sequences to analyse, the first ones of each training epoch.
        on_error: ``warn`` or ``raise``.

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

    - `gradient_flow/{module}.{cell}/horizon`: time steps back after which credit falls to 1/e; at most a million.
    - `gradient_flow/{module}.{cell}/reach`: time steps back at which a hundredth of it is left; at most those heard.
    - `gradient_flow/{module}.{cell}/gain`: mean factor by which a step changes the size of the gradient passing it.
    - `gradient_flow/{module}.{cell}/first_over_last`: |dL/dh| at the first step / at the last, from all losses.
    - `gradient_flow/{module}.{cell}/early_contribution`: share of the recurrent weights' gradient that comes from the
      first half of the steps, in [0, 1].
    - `gradient_flow/{module}.{cell}/lyapunov`: largest Lyapunov exponent, in nats per step: above 0, small
      differences of the state grow.
    - `gradient_flow/{module}.{cell}/{part}/spectral_radius`: largest modulus of the eigenvalues of a gate's recurrent
      matrix.
    - `gradient_flow/{module}.{cell}/{part}/timescale`: of its slowest eigenvalue, in time steps; at most a million.
    - `gradient_flow/{module}.{cell}/gradient_error`: relative difference of the bias gradient rebuilt from all steps to
      the module's own; about 1e-6.
    - `gradient_flow/{module}.{cell}/rebuild_error`: difference of rebuilt and real hidden states, relative.
    - `gradient_flow/{module}.{cell}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `gradient_flow/total/flags/{flag}`: the same, of the whole gradient.
    - `gradient_flow/parameters/{parameter}/flags/dead`: 1 when it had no gradient in the epoch, else 0.
    - `gradient_flow/failed_looks`: looks whose analysis raised, so far.
    - `gradient_flow/seconds`: what the numbers of this look took.
    - `gradient_flow/overhead`: seconds spent looking per second of training, so far.
    """

    noun: ClassVar[str] = "gradient_flow"
    hears_gradients: ClassVar[bool] = True

    def __init__(
        self,
        module: str | list[str] | None = None,
        *,
        flags: dict[str, float | None] | None = None,
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.02,
        max_sequences: int = 64,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__(
            module=module,
            observe="train",
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            max_sequences=max_sequences,
            on_error=on_error,
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
        if self._meter is None:
            return
        with self._briefly, torch.no_grad():
            self._meter.after_batch(trainer.current_epoch, outputs)
            if self._meter.due or self._meter.meter.full:
                due, norms = self._meter.due, self._fetch()
                if due and norms is not None:
                    scalars = {f"gradient_flow/{tag}": v for tag, v in self._meter.scalars(norms).items()}
                    sinks.log_scalars(trainer, scalars, epoch=trainer.current_epoch, step=int(norms.steps[-1]))

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
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        self._guard.say(
            "non_finite",
            f"GradientFlowMonitor: at step {norms.steps[broken[0]]} the gradient of {', '.join(names[:NAMED])}{more} "
            f"is {what}. Look at the inputs and the loss of that batch first, then at the learning rate.",
        )
        return norms

    def finish(self, trainer: pl.Trainer) -> None:
        if self._meter is not None:
            self._fetch()
            self._meter = None

    # ---- the module's own gradient of its recurrent biases, to compare with ------------------------------------------

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if number == 0:
            self._own.clear()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        recorder = self._shared_recorder(trainer)
        if recorder is not None and recorder.listening:
            with self._briefly, torch.no_grad():
                self._own.before(self._modules.values())
                scaler = getattr(trainer.precision_plugin, "scaler", None)
                self._own.scales[recorder.batch] = 1.0 if scaler is None else float(scaler.get_scale())

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        recorder = self._shared_recorder(trainer)
        if recorder is not None and recorder.listening and trainer.world_size == 1:
            # With several processes gradients are by now those of all of them together.
            with self._briefly, torch.no_grad():
                self._own.after(self._modules.values(), recorder.batch)

    # ---- at a look ---------------------------------------------------------------------------------------------------

    def analyse(self, look: Look) -> Report:
        report = _Draft()
        if self._leads(look.trainer):
            self._describe_steps(look, report)
        rebuilt = {name: self._rebuild(look, name) for name in look.tapes}
        recorder = self._shared_recorder(look.trainer)
        assert recorder is not None
        own = self._own.errors(self._modules, rebuilt, look.tapes, recorder.cut | _left_out(look, recorder))
        for name, by_cell in rebuilt.items():
            if by_cell:
                self._describe_module(look, name, by_cell, own, report)
        return Report(report.scalars, report.arrays, report.histograms, report.texts, report.figures)

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

    def _describe_module(
        self,
        look: Look,
        name: str,
        by_cell: dict[str, list[CellGradients]],
        own: dict[tuple[str, str], float],
        report: _Draft,
    ) -> None:
        where = f"gradient_flow/{name}"
        trusted = True
        for cell, parts in by_cell.items():
            tolerance = max(part.trace.tolerance for part in parts)
            rebuild_error = max(part.rebuild_error for part in parts)
            report.scalars[f"{where}.{cell}/rebuild_error"] = rebuild_error
            trusted &= self._guard.believes(name, f"cell {cell}", rebuild_error, tolerance)
            error, believed = self._judge(name, cell, own.get((name, cell)), parts, SLACK * tolerance)
            trusted &= believed
            if error is not None:
                report.scalars[f"{where}.{cell}/gradient_error"] = error
        if not trusted:
            return
        drawn = []
        for cell, parts in by_cell.items():
            found = CellFlow(
                gradient_flow(parts),
                lyapunov_exponents([part.trace for part in parts]),
                recurrent_spectra(parts[-1].trace.cell),
            )
            drawn.append(found)
            self._describe_cell(look, f"{where}.{cell}", found, report)
        report.figures[where] = partial(draw_gradient_flow, name, drawn, title=f"epoch {look.epoch}")

    def _judge(
        self, name: str, cell: str, own: float | None, parts: list[CellGradients], limit: float
    ) -> tuple[float | None, bool]:
        """Difference of the bias gradient to the true one, and whether the gradients through time are to be believed.

        The true one is the module's own; where that cannot be had, or holds more, what torch's backward pass makes of
        the same gradients at the boundary. Neither exists for cells of a user's own, whose gradients are autograd's.
        """
        if not all(bool(part.total.isfinite().all()) for part in parts):
            self._guard.say(
                f"not finite {name}",
                f"GradientFlowMonitor: {name} is left out, because on the way back through its steps gradients became "
                "NaN or infinite.",
            )
            return None, False
        if own is not None and own <= limit:
            return own, True
        replayed = replay_error(parts[0])
        error = replayed if own is None else own
        if error is None or (own is None and error <= limit):
            return error, True
        if replayed is not None and replayed <= limit:
            self._guard.say(
                f"apart {name}",
                f"GradientFlowMonitor: the gradient of {name}'s bias is not only what comes back through its outputs "
                f"(cell {cell}: {error:.2g} of it is something else). A penalty on weights or gradients within "
                "the loss does that and is no fault; a hook that changes gradients would make the profile through time "
                "wrong.",
            )
            return error, True
        self._guard.say(
            f"refused {name}",
            f"GradientFlowMonitor: {name} is left out, because the gradient of its bias cannot be rebuilt (cell {cell} "
            f"differs by {error:.2g}). Usual reasons: weights or outputs that were changed in place between "
            "forward and backward pass, or a hook that changes gradients.",
        )
        return error, False

    def _describe_cell(self, look: Look, where: str, found: CellFlow, report: _Draft) -> None:
        flow = found.flow
        numbers = flow.scalars() | found.lyapunov.scalars() | (found.spectra.scalars() if found.spectra else {})
        report.scalars |= {f"{where}/{key}": value for key, value in numbers.items()}
        report.arrays |= {f"{where}/{key}": getattr(flow, key) for key in _FLOW_FIELDS}
        report.arrays[f"{where}/lyapunov_exponents"] = found.lyapunov.exponents
        if found.spectra is not None:
            eigenvalues = found.spectra.eigenvalues
            report.arrays[f"{where}/eigenvalues"] = np.stack([eigenvalues.real, eigenvalues.imag], -1)
        self._horizons[where] = max(flow.horizon, self._horizons.get(where, 0.0))
        so_far = SoFar(self._looks + 1, self._horizons[where], self._loss_so_far(look.trainer))
        self._raise_flags(where, flow_flags(flow, so_far, self.flags or {}), report)

    def _loss_so_far(self, trainer: pl.Trainer) -> float | None:
        """Of the first look's loss; None where losses are unknown or not positive."""
        leader = self._peers(trainer)[0]
        assert isinstance(leader, GradientFlowMonitor)
        loss, first = leader._meter.loss if leader._meter is not None else None, leader._first_loss
        return None if loss is None or first is None or first <= 0 else loss / first

    def _raise_flags(self, where: str, flags: Iterable[Flag], report: _Draft) -> None:
        place = where.removeprefix("gradient_flow/")
        for flag in flags:
            report.scalars[f"{where}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                report.texts[f"{where}/flags/{flag.name}"] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                if flag.name not in QUIET:
                    self._guard.say(f"{where} {flag.name}", f"{place}, flag {flag.name}: {flag.meaning}")

    def _describe_steps(self, look: Look, report: _Draft) -> None:
        """Norms over the steps of the epoch."""
        if self._meter is not None:
            self._fetch()
        norms = self._meter.epoch if self._meter is not None else None
        if self._meter is None or norms is None:
            self._guard.say(
                "no step",
                "GradientFlowMonitor: no optimizer step was heard, so there are no norms of parameters. Lightning only "
                "tells of steps by its own optimizers: in manual optimization use self.optimizers() and "
                "self.manual_backward(loss).",
            )
            return
        if self._first_loss is None:
            self._first_loss = self._meter.loss
        report.scalars |= {f"gradient_flow/{tag}": value for tag, value in self._meter.scalars(norms).items()}
        report.arrays |= {f"gradient_flow/{tag}": value for tag, value in _step_arrays(norms).items()}
        sizes = self._meter.sizes
        assert sizes is not None
        if sizes.counts.any():
            used = np.flatnonzero(sizes.counts.sum(0))
            inside = slice(used[0], used[-1] + 1)
            report.histograms["gradient_flow/total/log2_magnitude"] = Histogram(
                np.arange(LOWEST, HIGHEST + 2, dtype=np.float64)[used[0] : used[-1] + 2], sizes.counts.sum(0)[inside]
            )
        thresholds = self.flags or {}
        whole = norm_flags(norms, thresholds, looks=self._looks + 1, scaled=self._meter.scaled)
        self._raise_flags("gradient_flow/total", whole, report)
        optimized = self._meter.optimized
        for name, flag in dead_parameters(norms, thresholds).items():
            parameter = self._meter.parameters[name]
            if parameter.requires_grad and (optimized is None or id(parameter) in optimized):
                self._raise_flags(f"gradient_flow/parameters/{name}", [flag], report)
        seen = StepSizes(norms, sizes, dict(self._meter.ratios))
        report.figures["gradient_flow/parameters"] = partial(draw_gradient_norms, seen, title=f"epoch {look.epoch}")

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


_FLOW_FIELDS = ("lengths", "times", "hidden", "memory", "gain", "contribution", "credit", "heard")


def _step_arrays(norms: GradientNorms) -> dict[str, NDArray[Any]]:
    """What is kept of an epoch: the whole gradient at every step, and quartiles of each parameter's over the steps."""

    def kept(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.nan_to_num(values, nan=NO_NUMBER, posinf=NO_NUMBER)

    levels = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    spread = [
        np.quantile(row[row != ABSENT], levels) if (row != ABSENT).any() else 0 * levels for row in kept(norms.norm).T
    ]
    return {
        "total/steps": norms.steps,
        "total/norms": kept(norms.total),
        "total/norms_clipped": kept(norms.clipped_total),
        "parameters/names": np.array(norms.parameters),
        "parameters/norm_quartiles": np.array(spread),
    }
