"""Do nearby states come together or drift apart along what the network really reads? Finite-time Lyapunov exponents.

Tangents are pushed along with the states and made orthogonal again and again (Benettin et al. 1980); the mean log of
how much each direction stretches per step is its exponent. Above 0 small differences grow (and so do
gradients, on the way back); -1/exponent is a memory in time steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rebuild import Trace
from .linearisation import linearise

SPREAD = {torch.float32: 8.0, torch.float64: 16.0}  # nats between directions before the smallest is lost in rounding
LONGEST_STRETCH = 10  # steps between two orthogonalisations
COLLAPSED = -100.0  # per step: a direction of which nothing is left


@final
@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """The k leading finite-time exponents of one cell, in nats per step."""

    cell: str
    exponents: NDArray[np.float64]  # (k,), mean over sequences and steps, largest first
    by_sequence: NDArray[np.float64]  # (N, k)
    steps: int  # over all sequences

    def scalars(self) -> dict[str, float]:
        """Headline number."""
        return {"lyapunov": float(self.exponents[0])}


def lyapunov_exponents(
    traces: Sequence[Trace], *, count: int = 8, sequences: int = 8, warm_up: float = 0.1, seed: int = 0
) -> LyapunovSpectrum:
    """Leading exponents of one cell along its first sequences.

    Args:
        traces: of one cell.
        count: how many exponents; at most the width of the state.
        sequences: along how many sequences.
        warm_up: share of the longest sequence at the start in which tangents only find their directions.
        seed: of the directions to start from.

    Raises:
        ValueError: when there is nothing to follow.
    """
    grown: list[Tensor] = []
    taken: list[Tensor] = []
    for trace in traces:
        left = sequences - sum(map(len, taken))
        if left > 0 and len(trace.lengths):
            sums, steps = _follow(trace, min(left, len(trace.lengths)), count, warm_up, seed)
            grown.append(sums)
            taken.append(steps)
    if not taken or int(torch.cat(taken).sum()) == 0:
        raise ValueError("there are no steps to follow")
    sums, steps = torch.cat(grown), torch.cat(taken)
    heard = steps > 0
    by_sequence = (sums[heard] / steps[heard, None]).clamp(min=COLLAPSED)
    exponents = (sums.sum(0) / steps.sum()).clamp(min=COLLAPSED)
    return LyapunovSpectrum(
        cell=traces[0].cell.name,
        exponents=exponents.sort(descending=True).values.numpy(),
        by_sequence=by_sequence.numpy(),
        steps=int(steps.sum()),
    )


def _follow(trace: Trace, rows: int, count: int, warm_up: float, seed: int) -> tuple[Tensor, Tensor]:
    """Log of the stretch of each direction, ``(N, k)``, and over how many steps, ``(N,)``."""
    flow = linearise(trace, slice(rows))
    lengths, dtype = trace.lengths[:rows], trace.inputs.dtype
    width = trace.cell.state_size
    count = min(count, width)
    random = torch.Generator().manual_seed(seed)
    start = torch.linalg.qr(torch.randn(rows, width, count, dtype=torch.float64, generator=random)).Q
    tangents = start.permute(2, 0, 1).to(dtype).contiguous()
    skipped = int(warm_up * int(lengths.max()))
    sums = torch.zeros(rows, count, dtype=torch.float64)
    shortest, longest = int(lengths.min()), int(lengths.max())
    latest, due = 0, 1
    for step in range(longest):
        moved = flow.push(step, tangents)
        tangents = moved if step < shortest else torch.where((step < lengths)[:, None], moved, tangents)
        if step + 1 in (due, skipped, longest):
            tangents, grown = _orthogonal(tangents)
            if step + 1 == skipped:
                sums.zero_()
            else:
                sums += grown
            spread = float((grown.amax(1) - grown.amin(1))[step < lengths].max()) / (step + 1 - latest)
            # Infinite, or no number at all, where a direction or every direction has collapsed.
            stretch = max(1, int(min(LONGEST_STRETCH, SPREAD[dtype] / max(spread, 1e-9)))) if spread < torch.inf else 1
            latest, due = step + 1, step + 1 + stretch
    return sums, (lengths - skipped).clamp(min=0)


def _orthogonal(tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal directions with the same leading spans, ``(k, B, D)``, and the log of what each had grown."""
    found = torch.linalg.qr(tangents.permute(1, 2, 0))
    grown = found.R.diagonal(dim1=1, dim2=2).abs().double().log()
    return found.Q.permute(2, 0, 1).contiguous(), grown
