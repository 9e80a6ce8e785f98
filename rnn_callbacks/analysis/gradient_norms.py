"""Sizes of parameter gradients at every step, kept where the gradients are and fetched only now and then.

Asking for a number (``.item()``) makes a GPU finish its work first. So each step writes one row of norms into a buffer
on the gradients' own device, and `NormMeter.drain` copies all rows at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .gradient_sizes import dense

WAITING = 64  # rows of single numbers on their device before they are put together
ABSENT = -1.0  # in place of a norm, where a parameter had no gradient


@final
@dataclass(frozen=True, eq=False)
class GradientNorms:
    """L2 norms of the gradients of P parameters and Q gate blocks at n optimizer steps; `ABSENT` without a gradient."""

    steps: NDArray[np.int64]  # (n,), as the loggers count them
    parameters: tuple[str, ...]
    blocks: tuple[str, ...]  # parts of some of the parameters: the rows of one gate
    norm: NDArray[np.float64]  # (n, P), before clipping
    clipped: NDArray[np.float64]  # (n, P), after clipping
    block_norm: NDArray[np.float64]  # (n, Q), before clipping

    @property
    def total(self) -> NDArray[np.float64]:
        """Norm of all gradients of a step together, before clipping, ``(n,)``."""
        return _together(self.norm)

    @property
    def clipped_total(self) -> NDArray[np.float64]:
        """The same after clipping."""
        return _together(self.clipped)

    @property
    def was_clipped(self) -> NDArray[np.bool_]:
        """Whether clipping shrank a step's gradients, by more than a thousandth, ``(n,)``."""
        before, after = self.total, self.clipped_total
        return np.isfinite(before) & (after < 0.999 * before)

    def since(self, step: int) -> GradientNorms:
        """The rows from a step on."""
        return self._rows(self.steps >= step)

    def real(self) -> GradientNorms:
        """The rows with a gradient at all: a training step may give no loss."""
        return self._rows((self.norm != ABSENT).any(axis=1))

    def _rows(self, kept: NDArray[np.bool_]) -> GradientNorms:
        rows = (self.norm[kept], self.clipped[kept], self.block_norm[kept])
        return GradientNorms(self.steps[kept], self.parameters, self.blocks, *rows)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all of a step's gradients are finite numbers, ``(n,)``."""
        found: NDArray[np.bool_] = np.all(np.isfinite(self.norm), axis=1)
        return found

    def scalars(self) -> dict[str, float]:
        """Medians over the steps; a NaN counts as infinite, since no plot shows it."""
        if not len(self.steps):
            return {}
        total = _beyond_all(self.total)
        found = {
            "total/norm": float(np.median(total)),
            "total/norm_max": float(total.max()),
            "total/norm_clipped": float(np.median(_beyond_all(self.clipped_total))),
            "total/clipped": float(self.was_clipped.mean()),
            "total/non_finite": float(1 - self.finite.mean()),
        }
        for name, norms in zip(self.parameters, self.norm.T, strict=True):
            found[f"parameters/{name}/norm"] = _median(norms)
        return found | {
            f"{name}/norm": _median(norms) for name, norms in zip(self.blocks, self.block_norm.T, strict=True)
        }


def _together(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.hypot.reduce(np.where(norms == ABSENT, 0.0, norms), axis=1)  # squares may overflow
    return found


def _beyond_all(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(norms), np.inf, norms)


def _median(norms: NDArray[np.float64]) -> float:
    there = _beyond_all(norms[norms != ABSENT])
    return float(np.median(there)) if len(there) else 0.0


def joined(parts: Sequence[GradientNorms]) -> GradientNorms:
    """Several stretches of steps as one."""
    first = parts[0]
    return GradientNorms(
        np.concatenate([part.steps for part in parts]),
        first.parameters,
        first.blocks,
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("norm", "clipped", "block_norm")),
    )


class NormMeter:
    """Takes the norms of all gradients, a row at a time.

    Args:
        parameters: by name.
        blocks: of some parameters, names of the equal parts into which their rows fall, one for each gate.
        capacity: rows between two fetches; more are taken, at the price of a larger buffer.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], blocks: Mapping[str, Sequence[str]], capacity: int
    ) -> None:
        self.parameters = dict(parameters)
        self.blocks = {name: tuple(parts) for name, parts in blocks.items()}
        self.capacity = capacity
        self._columns: list[tuple[int, int]] = []  # of each column: parameter and part
        for number, name in enumerate(self.parameters):
            self._columns += [(number, part) for part in range(len(self.blocks.get(name, (name,))))]
        self._first = {number: column for column, (number, part) in enumerate(self._columns) if part == 0}
        self._plan = [(parameter, len(self.blocks.get(name, (name,)))) for name, parameter in self.parameters.items()]
        self._rings: dict[torch.device, Tensor] = {}  # (2, capacity, columns): before and after clipping
        self._steps: list[int] = []
        self._shares: list[float | None] = []  # clipping limit of each row, where what it does is known
        self._measured: list[bool] = []
        self._waiting: list[tuple[int, int, Sequence[Tensor]]] = []  # layer, row and norms not in the ring yet

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def full(self) -> bool:
        """Whether it is time to fetch."""
        return len(self._steps) >= self.capacity

    def take(self, step: int, *, members: Collection[int] | None = None, limit: float | None = None) -> None:
        """Add a row: the norms as they are now.

        Args:
            step: as the loggers count.
            members: ``id`` of the parameters whose gradients mean something now; all by default.
            limit: the norm to which the gradients will be clipped, as ``torch.nn.utils.clip_grad_norm_`` does it.
        """
        row = len(self._steps)
        if any(row >= ring.shape[1] for ring in self._rings.values()):
            self._settle()
            self._rings = {
                device: torch.cat([ring, torch.full_like(ring, ABSENT)], 1) for device, ring in self._rings.items()
            }
        self._write(0, row, members)
        self._steps.append(step)
        self._shares.append(limit)
        self._measured.append(False)

    def take_clipped(self, row: int, *, members: Collection[int] | None = None) -> None:
        """Measure a row again, after clipping."""
        self._write(1, row, members)
        self._measured[row] = True

    def _write(self, layer: int, row: int, members: Collection[int] | None) -> None:
        if members is None and self._write_all(layer, row):
            return
        gradients: dict[torch.device, list[Tensor]] = {}
        columns: dict[torch.device, list[int]] = {}
        for number, (name, parameter) in enumerate(self.parameters.items()):
            gradient = parameter.grad
            if gradient is None or (members is not None and id(parameter) not in members):
                continue
            gradient = dense(gradient)
            parts = gradient.chunk(len(self.blocks[name])) if name in self.blocks else (gradient,)
            gradients.setdefault(gradient.device, []).extend(parts)
            first = self._first[number]
            columns.setdefault(gradient.device, []).extend(range(first, first + len(parts)))
        for device, tensors in gradients.items():
            wide = any(tensor.dtype == torch.float64 for tensor in tensors)
            dtype = torch.float64 if wide else torch.float32  # half precision would overflow
            norms = torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))
            ring = self._rings.get(device)
            if ring is None or (wide and ring.dtype != dtype):
                ring = self._new_ring(device, dtype)
            if len(norms) == len(self._columns):
                ring[layer, row] = norms
            else:
                ring[layer, row, torch.tensor(columns[device], device=device)] = norms

    def _write_all(self, layer: int, row: int) -> bool:
        """The usual case, without a wasted moment: every parameter has a plain gradient, all on one device."""
        if len(self._rings) != 1:
            return False
        (device,) = self._rings
        tensors: list[Tensor] = []
        for parameter, parts in self._plan:
            gradient = parameter.grad
            if gradient is None or gradient.dtype != torch.float32 or gradient.is_sparse or gradient.device != device:
                return False
            if parts == 1:
                tensors.append(gradient)
            else:
                tensors += gradient.detach().chunk(parts)
        # After a backward pass each further operation finds cold caches: 30 us instead of 3. So rows are put in later.
        self._waiting.append((layer, row, torch._foreach_norm(tensors, 2)))
        if len(self._waiting) >= WAITING:
            self._settle()
        return True

    def _settle(self) -> None:
        """Put the rows that wait into the ring."""
        if self._waiting:
            (ring,) = self._rings.values()
            rows = torch.stack([norm for _, _, norms in self._waiting for norm in norms])
            layers, numbers, _ = zip(*self._waiting, strict=True)
            at = torch.tensor([layers, numbers], device=ring.device)
            ring[at[0], at[1]] = rows.view(len(self._waiting), -1).to(ring.dtype)
            self._waiting.clear()

    def _new_ring(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        self._settle()
        rows = max([self.capacity, len(self._steps) + 1, *(ring.shape[1] for ring in self._rings.values())])
        ring = torch.full((2, rows, len(self._columns)), ABSENT, device=device, dtype=dtype)
        if device in self._rings:
            ring.copy_(self._rings[device])
        self._rings[device] = ring
        return ring

    def drain(self) -> GradientNorms:
        """All rows since the last time, and an empty buffer."""
        self._settle()
        rows = len(self._steps)
        found = np.full((2, rows, len(self._columns)), ABSENT)
        for ring in self._rings.values():
            copied = ring[:, :rows].cpu().double().numpy()
            found = np.where(copied == ABSENT, found, copied)
            ring.fill_(ABSENT)
        before = self._by_parameter(found[0])
        after = self._by_parameter(found[1])
        for row, (limit, measured) in enumerate(zip(self._shares, self._measured, strict=True)):
            if not measured:
                whole = _together(before[row : row + 1])[0]
                share = 1.0 if limit is None else min(1.0, limit / (whole + 1e-6)) if np.isfinite(whole) else 1.0
                after[row] = np.where(before[row] == ABSENT, ABSENT, before[row] * share)
        steps = np.array(self._steps, dtype=np.int64)
        self._steps, self._shares, self._measured = [], [], []
        blocks = [(column, self._block(column)) for column in range(len(self._columns))]
        return GradientNorms(
            steps=steps,
            parameters=tuple(self.parameters),
            blocks=tuple(name for _, name in blocks if name is not None),
            norm=before,
            clipped=after,
            block_norm=found[0][:, [column for column, name in blocks if name is not None]],
        )

    def _block(self, column: int) -> str | None:
        number, part = self._columns[column]
        parts = self.blocks.get(list(self.parameters)[number])
        return None if parts is None else parts[part]

    def _by_parameter(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(n, P)``: the parts of a parameter put together."""
        found = np.full((len(columns), len(self.parameters)), ABSENT)
        for number in range(len(self.parameters)):
            own = columns[:, [column for column, (owner, _) in enumerate(self._columns) if owner == number]]
            found[:, number] = np.where((own == ABSENT).all(1), ABSENT, _together(own))
        return found
