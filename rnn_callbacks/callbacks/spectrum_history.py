"""Eigenvalues of recurrent weights at the looks so far, kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.spectra import recurrent_sizes, recurrent_spectra
from ..analysis.trajectory_findings import Spectrum
from ..analysis.weight_parts import GATES
from ..cells import cells

LOOKS = 40  # of more, that one goes whose neighbours are closest
EIGENVALUES = 64  # of each gate


@final
class SpectrumHistory:
    """Grows by one spectrum of every cell at each look.

    Args:
        memory: of an earlier history, to go on with.
    """

    def __init__(self, memory: Mapping[str, Any]) -> None:
        # By cell: epoch, and real and imaginary parts (G, K, 2).
        self._looks: dict[str, list[tuple[int, Tensor]]] = {
            where: [(int(epoch), values) for epoch, values in looks] for where, looks in memory.items()
        }
        self.scalars: dict[str, float] = {}  # of the latest look, by cell and quantity

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {where: [list(look) for look in looks] for where, looks in self._looks.items()}

    def look(self, modules: Mapping[str, nn.Module], epoch: int) -> dict[str, Spectrum]:
        """Take the weights in as they are now, and give all looks so far, by cell (``rnn.l0``)."""
        self.scalars = {}
        spectra: dict[str, Spectrum] = {}
        for name, module in modules.items():
            if not isinstance(module, tuple(GATES)) or not all(p.isfinite().all() for p in module.parameters()):
                continue
            for cell in cells(module):
                found, sizes = recurrent_spectra(cell), recurrent_sizes(cell)
                if found is None or sizes is None:
                    continue
                where = f"{name}.{cell.name}"
                self.scalars |= {
                    f"{where}/{part}/spectral_radius": float(radius)
                    for part, radius in zip(found.parts, found.radius, strict=True)
                }
                self.scalars |= {f"{where}/{key}": value for key, value in sizes.scalars().items()}
                spectra[where] = self._append(where, epoch, found.parts, found.eigenvalues[:, :EIGENVALUES])
        return spectra

    def _append(self, where: str, epoch: int, parts: tuple[str, ...], values: np.ndarray[Any, Any]) -> Spectrum:
        looks = [known for known in self._looks.get(where, []) if known[0] < epoch]
        looks.append((epoch, torch.view_as_real(torch.from_numpy(values.copy()))))
        if len(looks) > LOOKS:
            del looks[min(range(1, LOOKS), key=lambda k: looks[k + 1][0] - looks[k - 1][0])]
        self._looks[where] = looks
        eigenvalues = np.stack([torch.view_as_complex(known).numpy() for _, known in looks])
        return Spectrum(parts, np.array([when for when, _ in looks]), eigenvalues)
