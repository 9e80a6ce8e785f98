"""What a look at gradients reports: judged, described, flagged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.adjoint import CellGradients
from ..analysis.gate_flags import Flag
from ..analysis.gradient_check import SLACK, replay_error
from ..analysis.gradient_findings import CellFlow, StepSizes
from ..analysis.gradient_flags import QUIET, SoFar, dead_parameters, flow_flags, norm_flags
from ..analysis.gradient_flow import gradient_flow
from ..analysis.gradient_norms import ABSENT, GradientNorms
from ..analysis.gradient_sizes import HIGHEST, LOWEST, GradientSizes
from ..analysis.lyapunov import lyapunov_exponents
from ..analysis.spectra import recurrent_spectra
from ..figures.gradient_flow import draw_gradient_flow, draw_gradient_norms
from ..report import Histogram, Report
from .gradient_meter import StepMeter
from .guard import Guard

NO_NUMBER = 1e300  # in files, in place of NaN and infinity


@final
class GradientReport:
    """One look, as it is put together.

    Args:
        guard: says what a person should know, once.
        epoch: from 0.
        looks: how many there were, with this one.
        thresholds: of the flags.
    """

    def __init__(self, guard: Guard, *, epoch: int, looks: int, thresholds: Mapping[str, float | None]) -> None:
        self._guard = guard
        self._title = f"epoch {epoch}"
        self._epochs = epoch + 1
        self._looks = looks
        self._thresholds = thresholds
        self._scalars: dict[str, float] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._texts: dict[str, str] = {}
        self._figures: dict[str, Callable[[], Any]] = {}

    @property
    def finished(self) -> Report:
        """All that was described."""
        return Report(self._scalars, self._arrays, self._histograms, self._texts, self._figures)

    def describe_steps(self, meter: StepMeter, norms: GradientNorms, sizes: GradientSizes) -> None:
        """Norms over the steps of an epoch, and the latest step that was looked at closely."""
        self._scalars |= {f"gradient_flow/{tag}": value for tag, value in meter.scalars(norms).items()}
        self._arrays |= {f"gradient_flow/{tag}": value for tag, value in _step_arrays(norms).items()}
        if sizes.counts.any():
            used = np.flatnonzero(sizes.counts.sum(0))
            inside = slice(used[0], used[-1] + 1)
            self._histograms["gradient_flow/total/log2_magnitude"] = Histogram(
                np.arange(LOWEST, HIGHEST + 2, dtype=np.float64)[used[0] : used[-1] + 2], sizes.counts.sum(0)[inside]
            )
        whole = norm_flags(norms, self._thresholds, looks=self._looks, scaled=meter.scaled)
        self._raise("gradient_flow/total", whole)
        # Norms of tiny gradients vanish in single precision; counted elements do not.
        alive = {name for name, share in zip(sizes.parameters, sizes.zero_share, strict=True) if share < 1}
        dead = dead_parameters(norms, self._thresholds, meter.learning - alive)
        if dead is not None:
            self._raise("gradient_flow/total", [dead[0]], about=",".join(dead[1]))
        seen = StepSizes(norms, sizes, dict(meter.ratios))
        self._figures["gradient_flow/parameters"] = partial(draw_gradient_norms, seen, title=self._title)

    def describe_module(
        self,
        name: str,
        by_cell: Mapping[str, Sequence[CellGradients]],
        own: Mapping[tuple[str, str], float],
        *,
        horizons: dict[str, float],
        loss: float | None,
    ) -> None:
        """Gradients through time of one module, if they are to be believed.

        Args:
            name: of the module.
            by_cell: gradients of its cells, over several calls.
            own: differences of bias gradients to the module's own, by module and cell, where they could be had.
            horizons: the longest so far, by cell; brought up to date.
            loss: now, in units of the first look's; None where it is not known.
        """
        where = f"gradient_flow/{name}"
        trusted = True
        for cell, parts in by_cell.items():
            tolerance = max(part.trace.tolerance for part in parts)
            rebuild_error = max(part.rebuild_error for part in parts)
            self._scalars[f"{where}.{cell}/rebuild_error"] = rebuild_error
            trusted &= self._guard.believes(name, f"cell {cell}", rebuild_error, tolerance)
            error, believed = self._judge(name, cell, own.get((name, cell)), parts, SLACK * tolerance)
            trusted &= believed
            if error is not None:
                self._scalars[f"{where}.{cell}/gradient_error"] = error
        if not trusted:
            return
        drawn = []
        for cell, parts in by_cell.items():
            found = CellFlow(
                gradient_flow(parts),
                lyapunov_exponents([part.trace for part in parts]),
                recurrent_spectra(parts[-1].trace.cell),
            )
            drawn.append(found)
            self._describe_cell(f"{where}.{cell}", found, horizons, loss)
        self._figures[where] = partial(draw_gradient_flow, name, drawn, title=self._title)

    def _judge(
        self, name: str, cell: str, own: float | None, parts: Sequence[CellGradients], limit: float
    ) -> tuple[float | None, bool]:
        """Difference of the bias gradient to the true one, and whether the gradients through time are to be believed.

        The true one is the module's own; where that cannot be had, or holds more, what torch's backward pass makes of
        the same gradients at the boundary. Neither exists for cells of a user's own, whose gradients are autograd's.
        """
        if not all(bool(part.total.isfinite().all()) for part in parts):
            self._guard.say(
                f"not finite {name}",
                f"GradientFlowMonitor: {name} is left out, because on the way back through its steps gradients became "
                "NaN or infinite.",
            )
            return None, False
        if own is not None and own <= limit:
            return own, True
        replayed = replay_error(parts[0])
        error = replayed if own is None else own
        if error is None or (own is None and error <= limit):
            return error, True
        if replayed is not None and replayed <= limit:
            self._guard.say(
                f"apart {name}",
                f"GradientFlowMonitor: the gradient of {name}'s bias is not only what comes back through its outputs "
                f"(cell {cell}: {error:.2g} of it is something else). A penalty on weights or gradients within "
                "the loss does that and is no fault; a hook that changes gradients would make the profile through time "
                "wrong.",
            )
            return error, True
        self._guard.say(
            f"refused {name}",
            f"GradientFlowMonitor: {name} is left out, because the gradient of its bias cannot be rebuilt (cell {cell} "
            f"differs by {error:.2g}). Usual reasons: weights or outputs that were changed in place between "
            "forward and backward pass, or a hook that changes gradients.",
        )
        return error, False

    def _describe_cell(self, where: str, found: CellFlow, horizons: dict[str, float], loss: float | None) -> None:
        flow = found.flow
        followed = len(flow.credit) > 1
        numbers = flow.scalars() | (found.lyapunov.scalars() if followed else {})
        numbers |= found.spectra.scalars() if found.spectra else {}
        if flow.changed:
            self._guard.say(
                f"unfollowed {where}",
                f"GradientFlowMonitor: how far back credit reaches in {where.removeprefix('gradient_flow/')} cannot be "
                "told: a loop of your own changes the state between two steps (by dropout or normalisation, say), and "
                "what goes through that is not heard. The total gradients at each step are right.",
            )
        self._scalars |= {f"{where}/{key}": value for key, value in numbers.items()}
        self._arrays |= {f"{where}/{key}": getattr(flow, key) for key in _FLOW_FIELDS}
        self._arrays[f"{where}/lyapunov_exponents"] = found.lyapunov.exponents
        if found.spectra is not None:
            eigenvalues = found.spectra.eigenvalues
            self._arrays[f"{where}/eigenvalues"] = np.stack([eigenvalues.real, eigenvalues.imag], -1)
        horizons[where] = max(flow.horizon, horizons.get(where, 0.0))
        so_far = SoFar(self._epochs, horizons[where], loss)
        self._raise(where, flow_flags(flow, so_far, self._thresholds))

    def _raise(self, where: str, flags: Iterable[Flag], *, about: str = "") -> None:
        place = where.removeprefix("gradient_flow/")
        for flag in flags:
            self._scalars[f"{where}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                self._texts[f"{where}/flags/{flag.name}"] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                told = flag.name == "non_finite" and "non_finite" in self._guard.said  # by parameter and step
                if flag.name not in QUIET and not told:
                    self._guard.say(
                        f"{where} {flag.name} {about}".rstrip(), f"{place}, flag {flag.name}: {flag.meaning}"
                    )


_FLOW_FIELDS = ("lengths", "times", "hidden", "memory", "gain", "contribution", "credit", "heard")


def _step_arrays(norms: GradientNorms) -> dict[str, NDArray[Any]]:
    """What is kept of an epoch: the whole gradient at every step, and quartiles of each parameter's over the steps."""

    def kept(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.nan_to_num(values, nan=NO_NUMBER, posinf=NO_NUMBER)

    levels = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    spread = [
        np.quantile(row[row != ABSENT], levels) if (row != ABSENT).any() else 0 * levels for row in kept(norms.norm).T
    ]
    return {
        "total/steps": norms.steps,
        "total/norms": kept(norms.total),
        "total/norms_clipped": kept(norms.clipped_total),
        "parameters/names": np.array(norms.parameters),
        "parameters/norm_quartiles": np.array(spread),
    }
