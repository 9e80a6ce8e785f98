"""What a look at gradients found, put together for pictures and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .gradient_flow import GradientFlow
from .gradient_norms import GradientNorms
from .gradient_sizes import GradientSizes
from .lyapunov import LyapunovSpectrum
from .spectra import RecurrentSpectra


@final
@dataclass(frozen=True, eq=False)
class CellFlow:
    """One cell at one look: gradient through time, and the dynamics it follows from."""

    flow: GradientFlow
    lyapunov: LyapunovSpectrum
    spectra: RecurrentSpectra | None  # None for cells with unknown weights


@final
@dataclass(frozen=True, eq=False)
class StepSizes:
    """Gradients of all parameters over the steps of an epoch, and one step of it closely."""

    norms: GradientNorms
    sizes: GradientSizes
    update_ratios: dict[str, float]  # by parameter
