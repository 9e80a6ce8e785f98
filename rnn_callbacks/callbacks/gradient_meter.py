"""When parameter gradients are measured, and what the logger gets of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from ..analysis.gradient_norms import GradientNorms, NormMeter, joined
from ..analysis.gradient_sizes import GradientSizes, gradient_sizes, together, update_ratios
from ..analysis.spectra import PARTS
from ..cells import cells
from .training_loss import TrainingLoss

CAPACITY = 1000  # rows between two fetches, at most
KEPT = 10_000  # steps of an epoch that its look describes, the last ones
COPIED = 64 * 2**20  # bytes of weights that are copied to see how an optimizer step moves them


@final
class StepMeter:
    """Measures the gradients of every optimizer step of one run.

    Args:
        trainer: of the run.
        pl_module: its model.
        modules: the recurrent modules whose gates are told apart, by name.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, modules: Mapping[str, nn.Module]) -> None:
        self.parameters = {
            name.replace("_orig_mod.", ""): parameter for name, parameter in pl_module.named_parameters()
        }
        self.every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        capacity = min(CAPACITY, self.every) if self.every else CAPACITY
        self.meter = NormMeter(self.parameters, self._gates(modules), capacity)
        self.due = False  # whether the loggers are to get numbers after this batch
        self._sizes: dict[int, GradientSizes] = {}  # by optimizer, of its latest step that was looked at closely ...
        self.ratios: dict[str, float] = {}  # ... and how it moved the weights
        # With a gradient scaler some steps overflow by design.
        self.scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._limit, self._measures = _clipping(trainer, pl_module)
        self._epoch = -1
        self._first_step: int | None = None  # of the epoch
        self._history: list[GradientNorms] = []  # of the current epoch
        self._since: list[GradientNorms] = []  # the loggers got their last numbers
        self._loss = TrainingLoss()  # of the epoch
        self._rows: list[tuple[int, frozenset[int] | None]] = []  # of the current batch
        self._members: dict[int, tuple[int, frozenset[int] | None]] = {}  # by optimizer
        self._before: dict[str, Tensor] = {}

    def _gates(self, modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        found: dict[str, list[str]] = {}
        for module_name, module in modules.items():
            for cell in cells(module) if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) else ():
                weight = module._parameters.get("weight_hh" if cell.place.stepwise else f"weight_hh_{cell.name}")
                if weight is not None and id(weight) in names and type(cell) in PARTS:
                    found[names[id(weight)]] = [f"{module_name}.{cell.name}/{part}" for part in PARTS[type(cell)]]
        return found

    def before_step(self, epoch: int, optimizer: torch.optim.Optimizer, step: int) -> None:
        """An optimizer is about to step: gradients are whole, unscaled, and not clipped yet."""
        self._begin(epoch)
        if self._first_step is None:
            self._first_step = step
        members = self._members_of(optimizer)
        self._rows.append((len(self.meter), members))
        self.meter.take(step, members=members, limit=self._limit)
        self.due = bool(self.every) and (step + 1) % self.every == 0
        if self._before and not isinstance(optimizer, torch.optim.LBFGS):  # it steps a second time in this batch
            self._compare()
        if self.due or id(optimizer) not in self._sizes:
            sizes = self._look_closely(members)
            if sizes.parameters:
                self._sizes[id(optimizer)] = sizes

    def _begin(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._first_step = epoch, None
            self._history.clear()
            self._loss.clear()

    def _members_of(self, optimizer: torch.optim.Optimizer) -> frozenset[int] | None:
        """``id`` of an optimizer's parameters; None if they are all there are."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._members.get(id(optimizer))
        if known is None or known[0] != count:
            members = frozenset(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
            every = frozenset(map(id, self.parameters.values()))
            known = self._members[id(optimizer)] = (count, None if members >= every else members)
        return known[1]

    def _look_closely(self, members: frozenset[int] | None) -> GradientSizes:
        mine = {n: p for n, p in self.parameters.items() if members is None or id(p) in members}
        left = COPIED
        for name, parameter in mine.items():
            if parameter.grad is not None and parameter.nbytes <= left:
                left -= parameter.nbytes
                if name not in self._before:  # an optimizer may evaluate several times before it steps (LBFGS)
                    self._before[name] = parameter.detach().clone()
        return gradient_sizes({name: p.grad for name, p in mine.items() if p.grad is not None})

    def after_batch(self, epoch: int, outputs: Any) -> None:
        """A training batch is over: gradients are clipped, weights have moved."""
        self._begin(epoch)
        if self._rows and self._measures:
            for row, members in self._rows:
                self.meter.take_clipped(row, members=members)
        self._rows.clear()
        self._compare()
        self._loss.add(outputs)

    def _compare(self) -> None:
        if self._before:
            self.ratios |= update_ratios(self._before, self.parameters)
            self._before.clear()

    def fetch(self) -> GradientNorms | None:
        """What was measured since the last time."""
        self.due = False
        if not len(self.meter):
            return None
        norms = self.meter.drain().real()
        if not len(norms.steps):
            return None
        self._history.append(norms)
        self._since.append(norms)
        while sum(len(part.steps) for part in self._history[1:]) >= KEPT:
            del self._history[0]
        return norms

    def interval(self) -> GradientNorms | None:
        """All that was fetched since this was asked for last."""
        found = joined(self._since) if self._since else None
        self._since.clear()
        return found

    @property
    def epoch(self) -> GradientNorms | None:
        """All steps of the epoch, or its last `KEPT`; None without any."""
        if not self._history or self._first_step is None:
            return None
        norms = joined(self._history).since(self._first_step)
        return norms if len(norms.steps) else None

    @property
    def sizes(self) -> GradientSizes | None:
        """Of the latest step of each optimizer that was looked at closely."""
        return together(list(self._sizes.values())) if self._sizes else None

    @property
    def learning(self) -> set[str]:
        """Names of the parameters that belong to an optimizer and are not frozen."""
        members = [known for _, known in self._members.values()]
        every = None in members
        ours = {key for known in members if known is not None for key in known}
        return {name for name, p in self.parameters.items() if p.requires_grad and (every or id(p) in ours)}

    @property
    def loss(self) -> float | None:
        """Mean of the training loss over the epoch's batches, where the training step returns it."""
        return self._loss.mean

    def scalars(self, norms: GradientNorms) -> dict[str, float]:
        """Of some steps, and of the latest step that was looked at closely; frozen parameters are left out."""
        found = norms.scalars()
        found |= {f"parameters/{name}/update_ratio": ratio for name, ratio in self.ratios.items()}
        sizes = self.sizes
        if sizes is not None:
            shares = zip(sizes.parameters, sizes.zero_share, strict=True)
            found |= {f"parameters/{name}/zeros": float(share) for name, share in shares}
        frozen = {name for name, parameter in self.parameters.items() if not parameter.requires_grad}
        gates = {f"{gate}/norm" for name in frozen for gate in self.meter.blocks.get(name, ())}
        return {
            tag: value
            for tag, value in found.items()
            if tag not in gates and not (tag.startswith("parameters/") and tag.split("/", 2)[1] in frozen)
        }


def _clipping(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[float | None, bool]:
    """The norm to which Lightning will clip, and whether clipped gradients must be measured because nobody can know."""
    if not pl_module.automatic_optimization:  # clipped already, if at all
        return None, False
    own = ("configure_gradient_clipping", "on_before_optimizer_step")
    if any(is_overridden(method, pl_module, pl.LightningModule) for method in own):  # or `pytorch_lightning`'s
        return None, True
    limit = trainer.gradient_clip_val
    if not limit:
        return None, False
    by_value = str(trainer.gradient_clip_algorithm or "norm").rpartition(".")[2].lower() == "value"
    return (None, True) if by_value else (float(limit), False)
