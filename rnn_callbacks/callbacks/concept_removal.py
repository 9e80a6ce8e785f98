"""What the model's own loss loses with a concept's directions taken out of its states: decodable is not yet used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..analysis.erasure import Erasure, fit_erasure, random_erasure
from ..analysis.probe_findings import Finding
from ..analysis.probes import headline_samples
from ..analysis.state_samples import StateSamples
from ..capture import recurrent_modules
from ..cells import Cell
from .look import Look, rehearsal
from .rehearsed_loss import HeardBatch, validation_loss
from .untrained import Place

RANDOM = 4  # erasures that stand for nothing, to compare with


def remove_concepts(
    look: Look,
    module: str,
    cells: Sequence[Cell],
    samples: StateSamples,
    found: Mapping[Place, Finding],
    batches: list[HeardBatch],
    *,
    seed: int,
) -> dict[Place, Finding]:
    """What the loss does without each concept in the states that leave a module, and without random directions.

    Args:
        look: whose model.
        module: name of the recurrent module.
        cells: all of its cells.
        samples: its states.
        found: findings to complete; those of other sites than the top cells' hidden states are left out.
        batches: to compute the loss on.
        seed: of the random directions.
    """
    removed: dict[Place, Finding] = {}
    for cell in top_cells(cells):
        for place, finding in found.items():
            if place[1] != f"{cell.name}/hidden" or finding.probed.headline.why_not:
                continue
            concept = finding.probed.concept
            chosen = headline_samples(samples, place[1], concept, seed=seed)
            labels = chosen.labels.astype(np.int64) if len(concept.classes) else chosen.labels
            own = fit_erasure(chosen.states, labels)
            others = [random_erasure(chosen.states, own.rank, seed=seed + number) for number in range(RANDOM)]
            erasures = [(cell, erasure) for erasure in (own, *others)]
            changes = losses_without(look, module, cells, erasures, batches, at_end=not concept.of_steps)
            removed[place] = replace(finding, removal=changes[0], removal_random=float(np.mean(changes[1:])))
    return removed


def top_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose hidden states leave the module: only there can something be taken out of them."""
    return [cell for cell in cells if cell.place.layer == cells[-1].place.layer]


def losses_without(
    look: Look,
    module: str,
    cells: Sequence[Cell],
    erasures: Sequence[tuple[Cell, Erasure]],
    batches: list[HeardBatch],
    *,
    at_end: bool,
) -> list[float]:
    """Change of the validation loss with each erasure applied to what the module returns; on a copy of the model.

    Whatever reads the module's output sees the changed states; inside a fused module the recurrence goes on unchanged,
    in a loop over single steps it goes on from the changed state.

    Args:
        look: whose model.
        module: name of the recurrent module.
        cells: all of its cells.
        erasures: what to take out, of the hidden states of which cell.
        batches: to compute the loss on.
        at_end: only of the state that each cell reads last, instead of all.

    Raises:
        RuntimeError: when ``validation_step`` gives no loss.
    """
    model = rehearsal(look.pl_module)
    found = recurrent_modules(model)[module]
    whole = validation_loss(look.trainer, model, batches, setting="causal")
    changes = []
    for cell, erasure in erasures:
        handle = found.register_forward_hook(_Eraser(cell, cells, erasure, at_end=at_end))
        try:
            changes.append(validation_loss(look.trainer, model, batches, setting="causal") - whole)
        finally:
            handle.remove()
    return changes


class _Eraser:
    """A forward hook that takes a concept out of what a module returns."""

    def __init__(self, cell: Cell, cells: Sequence[Cell], erasure: Erasure, *, at_end: bool) -> None:
        top = top_cells(cells)
        self.cell = cell
        self.row = [other.name for other in cells].index(cell.name)  # of the states returned last
        self.begin = sum(other.output_size for other in top[: [other.name for other in top].index(cell.name)])
        self.mean = torch.from_numpy(erasure.mean)
        self.left, self.right = torch.from_numpy(erasure.left), torch.from_numpy(erasure.right)
        self.at_end = at_end

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.cell.place.stepwise:
            return self._erase(output) if isinstance(output, Tensor) else (self._erase(output[0]), *output[1:])
        states, last = output
        last = (self._erase_row(last[0]), *last[1:]) if isinstance(last, tuple) else self._erase_row(last)
        return self._erase_steps(states, getattr(module, "batch_first", False)), last

    def _erase(self, states: Tensor) -> Tensor:
        mean, left, right = (part.to(states.device, states.dtype) for part in (self.mean, self.left, self.right))
        return states - (states - mean) @ left @ right

    def _erase_row(self, last: Tensor) -> Tensor:
        changed = last.clone()
        changed[self.row] = self._erase(last[self.row])
        return changed

    def _erase_steps(self, states: Any, batch_first: bool) -> Any:
        part = slice(self.begin, self.begin + self.cell.output_size)
        if isinstance(states, PackedSequence):
            data = states.data.clone()
            rows = self._packed_rows(states) if self.at_end else slice(None)
            data[rows, part] = self._erase(data[rows, part])
            return states._replace(data=data)
        changed = states.clone()
        steps: Any = (0 if self.cell.place.reverse else -1) if self.at_end else slice(None)
        where = (slice(None), steps, part) if batch_first and states.dim() == 3 else (steps, ..., part)
        changed[where] = self._erase(changed[where])
        return changed

    def _packed_rows(self, states: PackedSequence) -> Tensor:
        """Rows of each sequence's last step, or of its first for a reversed cell."""
        sizes = states.batch_sizes
        if self.cell.place.reverse:
            return torch.arange(int(sizes[0]))
        begins = torch.cumsum(sizes, 0) - sizes
        lengths = (torch.arange(int(sizes[0])) < sizes[:, None]).sum(0)
        return begins[lengths - 1] + torch.arange(int(sizes[0]))
