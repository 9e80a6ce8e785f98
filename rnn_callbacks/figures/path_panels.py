"""Panels of the path of the weights: the path itself, lines over time, eigenvalues as they move."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.phate_embedding import Embedding
from ..analysis.trajectory_findings import PathTimes, Spectrum
from ..analysis.weight_trajectory import WeightTrajectory
from .style import gate_colour, say

ARROWS = 3  # on a path; between them snapshots are named
BEST, LAST = "#D55E00", "#000000"
GREY = "0.6"
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")

Embedded = tuple[NDArray[np.int64], Embedding]  # which of the drawn snapshots, and where they lie


def colours(times: PathTimes) -> tuple[Normalize, Colormap]:
    """How the metric becomes a colour: the better, the darker."""
    known = times.values[np.isfinite(times.values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    norm = LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)
    return norm, mpl.colormaps["viridis" if times.mode == "min" else "viridis_r"]


def draw_colour_bar(figure: Figure, times: PathTimes, place: tuple[float, float, float, float]) -> None:
    """The metric's colours, in figure coordinates (left, bottom, width, height)."""
    known = times.values[np.isfinite(times.values)]
    if not len(known):
        return
    left, bottom, _, height = place
    if not known.max() > known.min():
        figure.text(left, bottom + height, f"{times.metric}: {known[0]:.4g}", va="top", fontsize=9)
        return
    axes = figure.add_axes(place)
    norm, cmap = colours(times)
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes, orientation="horizontal")
    bar.set_label(times.metric, fontsize=8, labelpad=1)
    bar.ax.xaxis.set_major_locator(MaxNLocator(3) if not isinstance(norm, LogNorm) else log_ticks(norm))
    digits = 2 + max(1, int(np.ceil(np.log10(np.abs(known).max() / np.ptp(known)))))
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:.{digits}g}")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, length=2)


def log_ticks(norm: Normalize) -> mpl.ticker.FixedLocator:
    """The ends of a logarithmic range and its middle."""
    low, high = float(norm.vmin or 1), float(norm.vmax or 1)
    return mpl.ticker.FixedLocator([low, float(np.sqrt(low * high)), high])


def draw_pca(axes: Axes, path: WeightTrajectory, times: PathTimes, *, title: str, brief: bool = False) -> None:
    """The path in its first two principal components, to scale; briefly: without numbers and names of snapshots."""
    scores = path.components.scores
    if not path.components.total > 0:
        say(axes, f"{title}\nthe weights have not moved" if len(scores) > 1 else f"{title}\none snapshot so far")
        return
    if scores.shape[1] < 2:
        scores = np.column_stack([scores[:, 0], np.zeros(len(scores))])
    _draw_path(axes, scores[:, :2], path.steps.points, times, brief=brief)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=_axis(path, 0), ylabel=_axis(path, 1))
    if brief:
        axes.set(xticks=[], yticks=[])
    elif len(scores) > 3:
        title += f": shows {path.components.first_two:.0%} (of a random walk {path.random.first_two:.0%})"
    axes.set_title(title)


def _axis(path: WeightTrajectory, number: int) -> str:
    share = path.components.explained[number] if number < len(path.components.explained) else 0.0
    return f"component {number + 1} ({share:.0%})"


def draw_phate(
    axes: Axes, embedded: Embedded, path: WeightTrajectory, times: PathTimes, *, title: str, brief: bool = False
) -> None:
    """The path as PHATE lays it out, or why there is none."""
    chosen, embedding = embedded
    why_not = embedding.why_not or ("" if embedding.connected else "the path falls into pieces: PCA alone")
    if why_not:
        say(axes, f"{title}\n" + textwrap.fill(why_not, 30))
        return
    _draw_path(axes, embedding.points, path.steps.points[chosen], times, brief=brief)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="PHATE 1" if brief else "PHATE 1 (bends mean little)", ylabel="PHATE 2")
    axes.set_title(title)


def draw_random_walk(axes: Axes, path: WeightTrajectory) -> None:
    """What the same step lengths would draw without any direction."""
    scores = path.random.scores
    if not path.random.total > 0 or scores.shape[1] < 2:
        say(axes, "a random walk to compare with\nneeds two steps")
        return
    axes.plot(scores[:, 0], scores[:, 1], color=GREY, lw=1.2, marker="o", ms=2.5)
    axes.plot(*scores[0, :2], marker="s", color="white", mec="black", ms=7)
    axes.plot(*scores[-1, :2], marker="o", color="white", mec="black", ms=7)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel="component 1", ylabel="component 2")
    axes.set_title("a random walk with these step lengths")


def _draw_path(
    axes: Axes, points: NDArray[np.float64], snapshots: NDArray[np.int64], times: PathTimes, *, brief: bool
) -> None:
    norm, cmap = colours(times)
    x, y = points.T
    axes.plot(x, y, color="0.75", lw=1.0, zorder=1)
    values = times.values[snapshots]
    known = np.isfinite(values)
    size = 22 if len(x) <= 60 else 12
    if not known.all():
        axes.scatter(x[~known], y[~known], s=size, color="0.75", zorder=2, lw=0)
    axes.scatter(x[known], y[known], s=size, c=values[known], cmap=cmap, norm=norm, zorder=2, lw=0)
    axes.plot(x[0], y[0], marker="s", color="white", mec="black", ms=7, ls="", zorder=3)
    axes.plot(x[-1], y[-1], marker="o", color="white", mec=LAST, mew=1.5, ms=8, ls="", zorder=3)
    if times.best is not None:
        near = int(np.argmin(np.abs(snapshots - times.best)))  # a long path shows some of its snapshots
        axes.plot(x[near], y[near], marker="*", color=BEST, ms=12, mec="white", mew=0.6, ls="", zorder=4)
    axes.margins(0.14)
    if not brief:
        _draw_direction(axes, points)
        _draw_labels(axes, points, [times.labels[snapshot] for snapshot in snapshots])


def _draw_direction(axes: Axes, points: NDArray[np.float64]) -> None:
    """Arrow heads at equal lengths along the path."""
    steps = np.diff(points, axis=0)
    along = np.concatenate([[0], np.cumsum(np.hypot(*steps.T))])
    if not along[-1] > 0:
        return
    targets = along[-1] * (np.arange(ARROWS) + 0.5) / ARROWS  # between the labels
    at = np.minimum(np.searchsorted(along, targets), len(steps)) - 1
    middles, ways = points[at] + 0.5 * steps[at], steps[at] / np.hypot(*steps[at].T)[:, None]
    axes.quiver(
        *middles.T, *ways.T, angles="xy", pivot="mid", units="dots", width=1.5, scale=0.11, headwidth=7, headlength=8,
        headaxislength=8, color="0.35", zorder=3,
    )  # fmt: skip


def _draw_labels(axes: Axes, points: NDArray[np.float64], labels: list[str]) -> None:
    """When some snapshots were taken, at equal lengths along the path, so that names do not crowd where it is slow."""
    steps = np.diff(points, axis=0)
    along = np.concatenate([[0], np.cumsum(np.hypot(*steps.T))])
    chosen = np.unique(np.searchsorted(along, along[-1] * np.arange(1, ARROWS) / ARROWS))
    for place in chosen[(chosen > 0) & (chosen < len(points) - 1)]:
        way = points[place + 1] - points[place - 1]
        x, y = 9 * np.array([-way[1], way[0]]) / max(float(np.hypot(*way)), 1e-300)  # to the left of the path
        axes.annotate(labels[place], points[place], xytext=(x, y), textcoords="offset points", fontsize=8,
                      ha="center", va="center")  # fmt: skip
    axes.annotate(labels[-1], points[-1], xytext=(7, 7), textcoords="offset points", fontsize=8)


def draw_over_time(
    axes: Axes,
    lines: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    times: PathTimes,
    *,
    colour: Mapping[str, str],
    legend: bool = True,
) -> None:
    """Lines over epochs or steps: of each its snapshots and its values."""
    few = len(times.axis) <= 25
    for name, (snapshots, values) in lines.items():
        axes.plot(
            times.axis[snapshots], values, color=colour[name], lw=2.2 if name == "all weights" else 1.4,
            marker="o" if few else "", ms=3, label=name,
        )  # fmt: skip
    axes.set_xlabel(times.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if times.by_epoch:
        axes.xaxis.set_major_formatter(lambda value, _: "start" if value == -1 else f"{value:g}")
    if legend and lines:
        axes.legend(loc="best", fontsize=8, handlelength=1.2, borderpad=0.1, labelspacing=0.2)


def draw_radius(axes: Axes, spectrum: Spectrum | None) -> None:
    """Moduli of eigenvalues over the looks: the largest of each gate thick, some more thin."""
    if spectrum is None:
        say(axes, "eigenvalues: weights of this\ncell are not known")
        return
    moduli = np.abs(spectrum.eigenvalues)  # (L, G, K)
    axes.axhline(1.0, color="0.6", lw=1, ls="--")
    for place, part in enumerate(spectrum.parts):
        colour = gate_colour(part, place)
        for k in range(1, min(5, moduli.shape[2])):
            axes.plot(spectrum.epochs, moduli[:, place, k], color=colour, lw=0.6, alpha=0.5, ls=":")
        axes.plot(spectrum.epochs, moduli[:, place, 0], color=colour, lw=1.2, ls=":", marker="o", ms=4, label=part)
    axes.set(xlabel="epoch (dots: looks)", ylabel="|eigenvalue| (five largest)")
    axes.set_ylim(0, 1.25 * max(1.0, float(moduli[:, :, 0].max())))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(loc="upper left", ncols=4, fontsize=8, handlelength=1, columnspacing=0.8, borderpad=0.1)
    axes.set_title("recurrent eigenvalues by epoch")


def draw_eigenvalues(axes: Axes, spectrum: Spectrum, part: str, colour: str) -> None:
    """Eigenvalues of one gate in the complex plane: at the first look, between, and now."""
    values = spectrum.eigenvalues[:, spectrum.parts.index(part)]  # (L, K)
    around = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(around), np.sin(around), color="0.6", lw=0.8)
    for number, row in enumerate(values[:-1]):
        shade = 0.15 + 0.35 * number / max(1, len(values) - 1)
        axes.scatter(row.real, row.imag, s=5, color=colour, alpha=shade, lw=0)
    if len(values) > 1:
        axes.scatter(values[0].real, values[0].imag, s=12, facecolors="none", edgecolors="0.4", lw=0.7)
    axes.scatter(values[-1].real, values[-1].imag, s=14, color=colour, lw=0)
    size = max(1.2, 1.1 * float(np.abs(values).max()))
    axes.set(xlim=(-1.4 * size, 1.4 * size), ylim=(-size, size), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{part}: eigenvalues (hollow: first look)", fontsize=9)
