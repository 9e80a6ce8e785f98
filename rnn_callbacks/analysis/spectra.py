"""Eigenvalues of recurrent matrices: what each gate's weights alone would do to the state, step after step."""

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


def recurrent_spectra(cell: Cell) -> RecurrentSpectra | None:
    """Eigenvalues of ``U`` of each gate, ``R U`` where an LSTM is projected; None for cells with unknown weights.

    A GRU's update rows are turned so that they are those of the share of *new* content, as everywhere here; moduli and
    timescales do not change by that.
    """
    if not isinstance(cell, (RNNCell, LSTMCell, GRUCell)):
        return None
    weights = cell.weights
    blocks = weights.hh.double().view(-1, cell.units, cell.output_size)
    if weights.hr is not None:
        blocks = weights.hr.double() @ blocks
    parts = PARTS[type(cell)]
    if isinstance(cell, GRUCell):
        blocks = blocks * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[:, None, None]
    found = torch.linalg.eigvals(blocks)
    order = found.abs().argsort(dim=1, descending=True, stable=True)
    return RecurrentSpectra(cell.name, parts, found.gather(1, order).numpy())
