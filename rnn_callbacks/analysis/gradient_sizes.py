"""Sizes of single gradient elements, in powers of two, and how far an optimizer step moves the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def dense(gradient: Tensor) -> Tensor:
    """The values of a gradient, real and without gaps."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient.detach()


# Of each precision: integers of the same width, bits of the fraction, mask of the exponent, and its bias.
_BITS = {
    torch.float32: (torch.int32, 23, 0xFF, 127),
    torch.float64: (torch.int64, 52, 0x7FF, 1023),
    torch.float16: (torch.int16, 10, 0x1F, 15),
    torch.bfloat16: (torch.int16, 7, 0xFF, 127),
}
LOWEST, HIGHEST = -127, 128  # exponents that are told apart; the ends take all that lies beyond


def together(parts: Sequence[GradientSizes]) -> GradientSizes:
    """Sizes of several sets of parameters as one."""
    fields = ("elements", "zeros", "subnormal", "nan", "infinite", "counts")
    return GradientSizes(
        tuple(name for part in parts for name in part.parameters),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in fields),
    )


@final
@dataclass(frozen=True, eq=False)
class GradientSizes:
    """How large single elements of P gradients are, at one step, in powers of two."""

    parameters: tuple[str, ...]
    elements: NDArray[np.int64]  # (P,)
    zeros: NDArray[np.int64]  # (P,), exactly zero
    subnormal: NDArray[np.int64]  # (P,), not zero, and too small for the full precision of their type
    nan: NDArray[np.int64]  # (P,)
    infinite: NDArray[np.int64]  # (P,)
    counts: NDArray[np.int64]  # (P, HIGHEST - LOWEST + 1), of floor(log2 |g|), of all others

    @property
    def zero_share(self) -> NDArray[np.float64]:
        """Share of elements that are exactly zero, ``(P,)``, in [0, 1]."""
        found: NDArray[np.float64] = self.zeros / np.maximum(self.elements, 1)
        return found


def gradient_sizes(gradients: Mapping[str, Tensor]) -> GradientSizes:
    """Count elements by the bits of their exponent: exact, in one pass, without a logarithm."""
    rows = []
    for gradient in gradients.values():
        values = dense(gradient).contiguous().flatten()
        integer, fraction, mask, bias = _BITS[values.dtype]
        bits = values.view(integer)
        exponents = (bits >> fraction).bitwise_and_(mask).to(torch.int32)
        found = torch.bincount(exponents, minlength=mask + 1)
        counts = found.new_zeros(HIGHEST - LOWEST + 1)
        at = (torch.arange(1, mask, device=values.device) - bias).clamp(LOWEST, HIGHEST) - LOWEST
        counts.index_add_(0, at, found[1:mask])
        zeros = values.numel() - values.count_nonzero()
        nan = values.isnan().sum()
        facts = torch.stack([found.sum(), zeros, found[0] - zeros, nan, found[mask] - nan])
        rows.append(torch.cat([facts, counts]).cpu())
    table = torch.stack(rows).numpy() if rows else np.zeros((0, 6 + HIGHEST - LOWEST), dtype=np.int64)
    elements, zeros, subnormal, nan, infinite = table[:, :5].T
    return GradientSizes(tuple(gradients), elements, zeros, subnormal, nan, infinite, table[:, 5:])


def update_ratios(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """|change| / |weights before| of each parameter by one step of the optimizer; 0 for weights that are all zero.

    Infinite where a weight is no number, before or after.
    """
    if not before:
        return {}
    changes = torch.stack([_norm(after[name].detach() - value) for name, value in before.items()])
    sizes = torch.stack([_norm(value) for value in before.values()])
    ratios = torch.where(sizes == 0, 0.0, changes / sizes).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return dict(zip(before, ratios.tolist(), strict=True))


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float64))
    return norm.cpu()
