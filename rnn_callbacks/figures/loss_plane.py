"""The loss around the path of the weights."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..analysis.loss_plane import LossPlane
from ..analysis.trajectory_findings import PathTimes
from .path_panels import BEST, log_ticks
from .style import house_style

LEVELS = 14
STEEP = 1e3  # times the lowest loss, above which all is one colour


def draw_loss_plane(plane: LossPlane, snapshots: NDArray[np.int64], *, times: PathTimes, title: str = "") -> Figure:
    """Contours of the loss on the plane of the first two principal components, and the path above it.

    Args:
        plane: the losses.
        snapshots: ``(n,)``, numbers of those that are drawn.
        times: of the snapshots.
        title: when this was.
    """
    with house_style():
        tall = float(np.clip(5.9 * np.ptp(plane.y) / max(float(np.ptp(plane.x)), 1e-300), 2.4, 6.5))
        height = tall + 1.6
        figure = Figure(figsize=(7.6, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.98, top=1 - 1.05 / height, bottom=0.55 / height)
        figure.suptitle(f"validation loss around the path: {title}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        finite = plane.losses[np.isfinite(plane.losses)]
        if len(finite):
            low, high = float(finite.min()), float(finite.max())
            logarithmic = low > 0 and high > 5 * low
            high = min(high, STEEP * low) if logarithmic else high
            high = high if high > low else low + 1e-9 + abs(low) * 1e-6
            norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
            levels = np.geomspace(low, high, LEVELS) if logarithmic else np.linspace(low, high, LEVELS)
            shown = np.ma.masked_invalid(np.minimum(plane.losses, high))
            filled = axes.contourf(plane.x, plane.y, shown, levels=levels, norm=norm, cmap="viridis")
            axes.contour(plane.x, plane.y, shown, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
            bar = figure.colorbar(filled, ax=axes, pad=0.02)
            bar.set_label("validation loss" + (", logarithmic" if logarithmic else ""))
            if logarithmic:
                bar.locator = log_ticks(norm)
                bar.update_ticks()
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            bar.ax.minorticks_off()
        x, y = plane.path.T
        axes.plot(x, y, color="white", lw=2.4)
        axes.plot(x, y, color="black", lw=1.2, marker="o", ms=2.5)
        axes.plot(x[0], y[0], marker="s", color="white", mec="black", ms=8, ls="")
        axes.plot(x[-1], y[-1], marker="o", color="white", mec="black", mew=1.5, ms=9, ls="")
        if times.best is not None:
            near = int(np.argmin(np.abs(snapshots - times.best)))
            axes.plot(x[near], y[near], marker="*", color=BEST, ms=13, mec="white", mew=0.6, ls="")
        axes.set(xlabel="component 1", ylabel="component 2", aspect="equal")
        words = "Square: start; ring: last" + ("; star: best" if times.best is not None else "")
        if len(finite) < plane.losses.size:
            words += ". White: the loss is no number."
        words += "\nThe plane goes through the last snapshot; the others lie beside it, where the loss was another."
        axes.set_title(words, fontsize=9)
    return figure
