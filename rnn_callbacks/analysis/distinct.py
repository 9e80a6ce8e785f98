"""Which of many states are the same."""

from __future__ import annotations

import torch
from torch import Tensor

SAME = 1e-5  # largest component of the distance between two roots that count as one
ROUNDED = 2e-4  # the same for roots found in float32
BLOCK = 512  # rows compared with each other at a time


def distinct(unknown: Tensor, tolerance: float) -> Tensor:
    """Rows of ``(N, K)`` that no earlier row is equal to, within a tolerance for every component."""
    return groups(unknown, tolerance)[0]


def groups(unknown: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """First row of every group of equal rows, and for each row the number of its group."""
    if not len(unknown):
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    kept: list[Tensor] = []
    for at in range(0, len(unknown), BLOCK):
        rows = torch.arange(at, min(at + BLOCK, len(unknown)))
        if kept:
            rows = rows[torch.cdist(unknown[rows], unknown[torch.cat(kept)], p=torch.inf).amin(1) > tolerance]
        kept.append(rows[_leaders(unknown[rows], tolerance)])
    first = torch.cat(kept)
    member = [torch.cdist(part, unknown[first], p=torch.inf).argmin(1) for part in torch.split(unknown, BLOCK)]
    return first, torch.cat(member)


def _leaders(unknown: Tensor, tolerance: float) -> Tensor:
    """Rows of a block that no earlier kept row is equal to."""
    near = torch.cdist(unknown, unknown, p=torch.inf) <= tolerance
    near.diagonal().fill_(True)  # also of rows that are not finite
    kept = near.to(torch.uint8).argmax(1) == torch.arange(len(unknown))
    while len(left := (~near[:, kept].any(1)).nonzero()):  # near to rows only that are near to others
        kept[left[0]] = True
    return kept.nonzero()[:, 0]


def alone(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Every row a group of its own, where each has an input of its own."""
    return torch.arange(len(rows)), torch.arange(len(rows))
