"""How far back gradient reaches: total gradient by step, credit by distance, and the memory horizon that follows.

A loss at every step hides vanishing: each ``dL/dh_t`` is then full of what nearby steps say (measured on a fresh GRU:
first over last step 1.99, while an impulse keeps 3e-8 of itself over the same 39 steps). So credit is measured with
impulses, the direct gradient of one step alone, and how much of them is left k steps before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rebuild import flip
from .adjoint import CellGradients

LONGEST = 1e6  # steps; a horizon beyond is endless, as far as anybody can tell
REACH = 0.01  # share of credit below which a step is out of reach
FITTED = 1e-4  # share of credit down to which the horizon is fitted: what is left below trains nothing
BEYOND = 10.0  # times the longest lag heard, above which horizons cannot be told apart
DEEPEST = -690.0  # log of credit that counts as none; nearly the smallest number there is


@final
@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Gradient through time in one cell, over N sequences of up to T steps."""

    cell: str
    sequences: int
    lengths: NDArray[np.int64]  # (N,)
    times: NDArray[np.int64]  # (T,), sequences heard at each position
    hidden: NDArray[np.float64]  # (T,), root mean square over sequences of |dL/dh_t|, the total gradient
    memory: NDArray[np.float64]  # (T,), the same of dL/dc_t; empty without a memory
    gain: NDArray[np.float64]  # (T,), |gradient handed to the state before| / |gradient of the state|; 0 at the first
    contribution: NDArray[np.float64]  # (T,), |dL/dU| from each position, U the recurrent matrix; first few sequences
    credit: NDArray[np.float64]  # (L + 1,), log of the share of an impulse that is left at lags 0 ... L
    heard: NDArray[np.int64]  # (L + 1,), impulses that were followed so far
    horizon: float  # lags in which credit falls by a factor e, of a line fitted to its log; up to `LONGEST`
    rebuild_error: float  # largest difference of rebuilt and recorded hidden state, relative to max(1, |h|)
    tolerance: float  # what rounding may explain of it
    reverse: bool = False  # whether the cell reads from the end
    changed: bool = False  # whether a user's own loop changes the state between steps: credit beyond is not known

    @property
    def fitted(self) -> NDArray[np.float64]:
        """Log of the fitted line at lags 0, 1, ... as far as it was fitted; too few lags give none."""
        end = _fitted_lags(self.credit)
        if end < 2:
            return np.empty(0)
        slope, start = np.polyfit(np.arange(end), self.credit[:end], 1)
        return np.asarray(start + slope * np.arange(end), dtype=np.float64)

    @property
    def endless(self) -> bool:
        """Whether the horizon is beyond what can be told from the distances heard."""
        return self.horizon >= BEYOND * max(1, len(self.credit) - 1)

    @property
    def reach(self) -> float:
        """Lag at which one hundredth of the credit is left, in time steps; at most the longest that was heard."""
        below = np.flatnonzero(self.credit < np.log(REACH))
        if not len(below):
            return float(len(self.credit) - 1)
        upper, lower = self.credit[below[0] - 1], self.credit[below[0]]
        return float(below[0] - 1 + (upper - np.log(REACH)) / (upper - lower))

    @property
    def growth(self) -> float:
        """How much an impulse grows per step, at most, over any stretch from lag 0 on; 1 where it never grows."""
        lags = np.arange(1, len(self.credit))
        return float(np.exp(max(0.0, (self.credit[1:] / lags).max()))) if len(lags) else 1.0

    def scalars(self) -> dict[str, float]:
        """Headline numbers."""
        way = -1 if self.reverse else 1
        felt = np.flatnonzero(self.hidden > 0)[::way]
        first = self.hidden[np.flatnonzero(self.times)[::way][0]] if len(felt) else 0.0
        last = self.hidden[felt[-1]] if len(felt) else 0.0
        passed = self.gain[self.gain > 0]
        whole = self.contribution.sum()
        early = self.contribution[::way][: len(self.contribution) // 2].sum()
        followed = len(self.credit) > 1  # otherwise nobody knows how far
        credit = {"horizon": min(self.horizon, BEYOND * (len(self.credit) - 1)), "reach": self.reach}
        return (credit if followed else {}) | {
            "gain": float(np.exp(np.log(passed).mean())) if len(passed) else 0.0,
            "first_over_last": float(first / last) if last > 0 else 0.0,
            "early_contribution": float(early / whole) if whole > 0 else 0.0,
        }


def gradient_flow(parts: Sequence[CellGradients]) -> GradientFlow:
    """Statistics of one cell over several calls.

    Raises:
        ValueError: when there is nothing to describe.
    """
    if not parts:
        raise ValueError("there are no gradients to describe")
    cell = parts[0].trace.cell
    steps = max(len(part.total) for part in parts)
    width = cell.output_size

    def total_of_squares(sizes: list[Tensor]) -> Tensor:
        """``(T,)``, over sequences ``(T, B)`` of each part, at positions as the user counts them."""
        whole = torch.zeros(steps, dtype=torch.float64)
        for part, size in zip(parts, sizes, strict=True):
            valid = torch.arange(len(size))[:, None] < part.trace.lengths
            squares = (size.double() ** 2).where(valid, 0.0)
            if cell.place.reverse:
                squares = flip(squares.T[..., None], part.trace.lengths)[..., 0].T.where(valid, 0.0)
            whole[: len(size)] += squares.sum(1)
        return whole

    lengths = torch.cat([part.trace.lengths for part in parts])
    times = (torch.arange(steps)[:, None] < lengths).sum(1)
    hidden = total_of_squares([part.total[..., :width].norm(dim=2, dtype=torch.float64) for part in parts])
    memory = total_of_squares([part.total[..., width:].norm(dim=2, dtype=torch.float64) for part in parts])
    # The first step that is read has no state of the cell before it to hand anything on to.
    sent = total_of_squares([part.sent * (torch.arange(len(part.sent)) > 0)[:, None] for part in parts])
    received = total_of_squares([part.received for part in parts])
    contribution = torch.zeros(steps, dtype=torch.float64)
    for part in parts:
        contribution[: len(part.contribution)] += part.contribution.double()
    credit, heard = _credit(parts)
    return GradientFlow(
        cell=cell.name,
        sequences=len(lengths),
        lengths=lengths.numpy(),
        times=times.numpy(),
        hidden=(hidden / times.clamp(min=1)).sqrt().numpy(),
        memory=(memory / times.clamp(min=1)).sqrt().numpy() if cell.memory_size else np.empty(0),
        gain=torch.where(sent > 0, (received / sent).sqrt(), 0.0).numpy(),
        contribution=contribution.numpy(),
        credit=credit,
        heard=heard,
        horizon=horizon(credit),
        rebuild_error=max(part.rebuild_error for part in parts),
        tolerance=max(part.trace.tolerance for part in parts),
        reverse=cell.place.reverse,
        changed=any(part.changed for part in parts),
    )


def _credit(parts: Sequence[CellGradients]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log of the share of credit by lag, and how many impulses say so.

    Impulses end at different lags, so that a plain mean would jump where one ends: the change from each lag to the next
    is taken over those that were heard at both (root mean square, since gradients of sequences add up).
    """
    lags = torch.cat([part.impulses.lags for part in parts])
    longest = max(int(lags.max()), 0) if len(lags) else 0
    sizes = torch.full((len(lags), longest + 1), -torch.inf, dtype=torch.float64)
    row = 0
    for part in parts:
        own = part.impulses.sizes[:, : longest + 1]
        sizes[row : row + len(own), : own.shape[1]] = own
        row += len(own)
    alive = lags[:, None] >= torch.arange(longest + 1)
    heard = alive.sum(0)
    now = torch.logsumexp((2 * sizes[:, :-1]).where(alive[:, 1:], -torch.inf), 0)
    after = torch.logsumexp((2 * sizes[:, 1:]).where(alive[:, 1:], -torch.inf), 0)
    # What is lost is lost, even if a saturated unit shows some of it again further back.
    change = torch.where(torch.isneginf(after) | torch.isneginf(now), -torch.inf, (after - now) / 2)
    credit = torch.cat([torch.zeros(1, dtype=torch.float64), change.cumsum(0)])
    return credit.clamp(min=DEEPEST).numpy(), heard.numpy()


def horizon(credit: NDArray[np.float64]) -> float:
    """Time steps in which credit falls by a factor e: from the slope of its log over lags that still train something.

    Args:
        credit: log of the share of credit at lags 0, 1, ...
    """
    end = _fitted_lags(credit)
    if end < 2:  # nothing is left one step before
        return float(-1.0 / credit[1]) if len(credit) > 1 and credit[1] > DEEPEST else 0.0
    slope = np.polyfit(np.arange(end), credit[:end], 1)[0]
    return float(min(LONGEST, -1.0 / slope)) if slope < 0 else LONGEST


def _fitted_lags(credit: NDArray[np.float64]) -> int:
    """How many lags, from 0 on, still train something."""
    below = np.flatnonzero(credit < np.log(FITTED))
    return int(below[0]) if len(below) else len(credit)
