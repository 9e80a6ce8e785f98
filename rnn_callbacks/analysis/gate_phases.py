"""How a cell's gates go with the phases of a task: the opening of a game, the delay of a memory trial, a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cells import Cell

MOST_PHASES = 64  # more distinct labels than that are no phases but a target


@final
@dataclass(frozen=True, eq=False)
class GatePhases:
    """Mean gates per phase, and how much of each gate's variance over steps the phase explains."""

    cell: str
    parts: tuple[str, ...]
    counts: NDArray[np.int64]  # (K,), steps in each phase
    mean: NDArray[np.float64]  # (K, G + 1, H); 0 for a phase without steps
    eta_squared: NDArray[
        np.float64
    ]  # (G + 1, H), variance between phases / variance over all labelled steps, in [0, 1]
    pooled: NDArray[np.float64]  # (G + 1,), the same with the variances of all units added up

    def scalars(self) -> dict[str, float]:
        """Share of variance explained, by ``part/phase_eta_squared``; empty when no labelled step was heard."""
        if not self.counts.any():
            return {}
        return {f"{part}/phase_eta_squared": float(v) for part, v in zip(self.parts, self.pooled, strict=True)}


class PhaseSums:
    """Sums of a cell's gates by phase.

    Args:
        cell: whose gates.
        labels: the phase of every step, by number of the batch: integers ``(B,)`` or ``(B, T)``; negative ones do not
            count.

    Raises:
        ValueError: when labels are not integers, have another shape, or are too many to be phases.
    """

    def __init__(self, cell: Cell, labels: Mapping[int, Tensor]) -> None:
        for label in labels.values():
            if label.dim() not in (1, 2) or label.is_floating_point() or label.is_complex():
                raise ValueError(
                    f"phases must be integers of shape (B,) or (B, T), got {label.dtype} of shape {tuple(label.shape)}"
                )
        wide = {n: (label[:, None] if label.dim() == 1 else label).long().cpu() for n, label in labels.items()}
        phases = 1 + max((int(label.max()) for label in wide.values() if label.numel()), default=-1)
        if phases > MOST_PHASES:
            raise ValueError(f"phases must be numbers from 0 to {MOST_PHASES - 1}, got one as large as {phases - 1}")
        self.cell = cell
        phases = max(phases, 0)  # labels of which none counts
        self._labels = wide
        self._counts = torch.zeros(phases, dtype=torch.int64)
        self._centre = torch.zeros(len(cell.parts), cell.units, dtype=torch.float64)  # sums are taken around it
        self._first = torch.zeros(phases, len(cell.parts), cell.units, dtype=torch.float64)
        self._second = torch.zeros(len(cell.parts), cell.units, dtype=torch.float64)

    def add(self, levels: Tensor, batch: int, sequences: Tensor, times: Tensor) -> None:
        """Take in the gates ``(n, G + 1, H)`` of n steps, given their batch, row and position."""
        labels = self._labels.get(batch)
        if labels is None or not len(times):
            return
        if len(labels) <= int(sequences.max()) or (labels.shape[1] > 1 and labels.shape[1] <= int(times.max())):
            raise ValueError(
                f"phases must label every sequence and step of a batch, got shape {tuple(labels.shape)} where the "
                f"layer saw sequence {int(sequences.max())} at step {int(times.max())} (both from 0)"
            )
        of_step = labels[sequences, times if labels.shape[1] > 1 else torch.zeros_like(times)]
        counted = of_step >= 0
        of_step, values = of_step[counted], levels[counted].double()
        if len(values) and not self._counts.any():
            self._centre = values[0].clone()  # gates near 1 lose no digits, and one that never moves has no variance
        values -= self._centre
        self._counts += torch.bincount(of_step, minlength=len(self._counts))
        self._first.index_add_(0, of_step, values)
        self._second += values.square().sum(0)

    def result(self) -> GatePhases:
        """Means and shares of variance of everything taken in."""
        counts = self._counts.double()[:, None, None]
        total = counts.sum().clamp(min=1)
        means = self._first / counts.clamp(min=1)
        grand = self._first.sum(0) / total
        between = (counts * (means - grand).square()).sum(0)
        within_and_between = (self._second - total * grand.square()).clamp(min=0)
        tiny = torch.finfo(torch.float64).tiny
        eta = (between / within_and_between.clamp(min=tiny)).clamp(0, 1)
        pooled = (between.sum(1) / within_and_between.sum(1).clamp(min=tiny)).clamp(0, 1)
        return GatePhases(
            cell=self.cell.name,
            parts=self.cell.parts,
            counts=self._counts.numpy(),
            mean=torch.where(counts > 0, means + self._centre, 0.0).numpy(),
            eta_squared=eta.numpy(),
            pooled=pooled.numpy(),
        )
