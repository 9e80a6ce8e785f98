"""Eigenvalues and singular values of recurrent matrices: what each gate's weights alone would do to the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from ..cells import Cell, GRUCell, LSTMCell, RNNCell
from .gradient_flow import LONGEST

# torch's order of rows.
PARTS: dict[type[Cell], tuple[str, ...]] = {
    RNNCell: ("hidden",),
    LSTMCell: ("input", "forget", "cell", "output"),
    GRUCell: ("reset", "update", "new"),
}


@final
@dataclass(frozen=True, eq=False)
class RecurrentSpectra:
    """Eigenvalues of one cell's recurrent matrix, gate by gate."""

    cell: str
    parts: tuple[str, ...]
    eigenvalues: NDArray[
        np.complex128
    ]  # (G, H), largest modulus first; of a projected LSTM (G, P), projection included

    @property
    def radius(self) -> NDArray[np.float64]:
        """Spectral radius of each gate's matrix, ``(G,)``."""
        found: NDArray[np.float64] = np.abs(self.eigenvalues).max(1)
        return found

    @property
    def timescales(self) -> NDArray[np.float64]:
        """-1 / ln |lambda| of every eigenvalue, ``(G, H)``, in time steps; `LONGEST` where it does not decay."""
        modulus = np.abs(self.eigenvalues)
        decays = (modulus > 0) & (modulus < 1)
        logs = np.log(np.where(decays, modulus, 0.5))
        return np.where(decays, np.minimum(-1 / logs, LONGEST), np.where(modulus > 0, LONGEST, 0.0))

    def scalars(self) -> dict[str, float]:
        """Headline numbers."""
        found = {f"{part}/spectral_radius": float(r) for part, r in zip(self.parts, self.radius, strict=True)}
        slowest = self.timescales.max(1)
        return found | {f"{part}/timescale": float(t) for part, t in zip(self.parts, slowest, strict=True)}


@final
@dataclass(frozen=True, eq=False)
class RecurrentSizes:
    """Singular values of one cell's recurrent matrix, gate by gate."""

    cell: str
    parts: tuple[str, ...]
    singular_values: NDArray[np.float64]  # (G, H), largest first; of a projected LSTM (G, P), projection included

    @property
    def norm(self) -> NDArray[np.float64]:
        """Spectral norm, the largest factor by which a matrix stretches a state, ``(G,)``."""
        return self.singular_values[:, 0].copy()

    @property
    def stable_rank(self) -> NDArray[np.float64]:
        """Squared Frobenius over squared spectral norm, ``(G,)``: from 1 (one direction) to H; 0 for a zero matrix."""
        largest = self.singular_values[:, :1]
        shares = np.divide(self.singular_values, largest, out=np.zeros_like(self.singular_values), where=largest > 0)
        found: NDArray[np.float64] = np.square(shares).sum(1)
        return found

    def scalars(self) -> dict[str, float]:
        """Headline numbers."""
        found = {f"{part}/spectral_norm": float(norm) for part, norm in zip(self.parts, self.norm, strict=True)}
        ranks = zip(self.parts, self.stable_rank, strict=True)
        return found | {f"{part}/stable_rank": float(rank) for part, rank in ranks}


def recurrent_sizes(cell: Cell) -> RecurrentSizes | None:
    """Singular values of the matrices of which `recurrent_spectra` gives the eigenvalues; None as there."""
    if not isinstance(cell, (RNNCell, LSTMCell, GRUCell)):
        return None
    return RecurrentSizes(cell.name, PARTS[type(cell)], torch.linalg.svdvals(_blocks(cell)).numpy())


def _blocks(cell: RNNCell | LSTMCell | GRUCell) -> torch.Tensor:
    """The matrices that act on the state, in torch's order of gates, ``(G, H, H)``."""
    blocks = cell.weights.hh.double().view(-1, cell.units, cell.output_size)
    return blocks if cell.weights.hr is None else cell.weights.hr.double() @ blocks


def recurrent_spectra(cell: Cell) -> RecurrentSpectra | None:
    """Eigenvalues of ``U`` of each gate, ``R U`` where an LSTM is projected; None for cells with unknown weights.

    A GRU's update rows are turned so that they are those of the share of *new* content, as everywhere here; moduli and
    timescales do not change by that.
    """
    if not isinstance(cell, (RNNCell, LSTMCell, GRUCell)):
        return None
    blocks = _blocks(cell)
    parts = PARTS[type(cell)]
    if isinstance(cell, GRUCell):
        blocks = blocks * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[:, None, None]
    found = torch.linalg.eigvals(blocks)
    order = found.abs().argsort(dim=1, descending=True, stable=True)
    return RecurrentSpectra(cell.name, parts, found.gather(1, order).numpy())
