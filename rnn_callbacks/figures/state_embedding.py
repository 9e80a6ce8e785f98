"""Pictures of trajectories through the states, the looks side by side on the same axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..analysis.state_embedding import StateEmbedding
from .style import house_style, say

CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#000000", "#999933", "#6A3D9A",
)  # fmt: skip
MOST_COLOURINGS = 3
METHODS = {"phate": "PHATE", "pca": "PCA"}
Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Colouring:
    """What colours the states of a picture."""

    name: str
    values: Floats  # (Q, S), codes of classes or a quantity; NaN: none
    classes: tuple[str, ...]  # names of the codes; empty for a quantity

    @property
    def norm(self) -> Normalize:
        """How a value becomes a colour."""
        if self.classes:
            return Normalize(0, max(len(self.classes) - 1, 1))
        known = self.values[np.isfinite(self.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        return Normalize(low, high if high > low else low + 1)

    @property
    def cmap(self) -> Colormap:
        """Colours; named ones for few classes."""
        if self.classes and len(self.classes) <= len(CLASS_COLOURS):
            return mpl.colors.ListedColormap(CLASS_COLOURS[: len(self.classes)])
        return mpl.colormaps["viridis"]


def draw_embedding(
    place: str,
    laid: Mapping[str, Sequence[StateEmbedding]],
    colourings: Sequence[Colouring],
    *,
    steps: NDArray[np.int64],
    title: str = "",
) -> Figure:
    """Trajectories of some sequences at a few looks, and the latest once more by time step and further concepts.

    Args:
        place: whose states.
        laid: by state (``hidden``, ``memory``) one embedding for each method, of the same looks.
        colourings: of the states; the first one colours all looks.
        steps: ``(S,)``, from 0.
        title: when this was.
    """
    rows = [(state, embedded) for state, several in laid.items() for embedded in several]
    looks = max(len(embedded.epochs) for _, embedded in rows)
    shape = next(embedded.points.shape[1:3] for _, embedded in rows)
    by_step = Colouring("time step", np.broadcast_to(steps + 1.0, shape), ())
    first = colourings[0] if colourings else by_step
    others = [*colourings[1:MOST_COLOURINGS], by_step] if colourings else []
    columns = looks + len(others)
    with house_style():
        height = 1.15 + 2.9 * len(rows)
        figure = Figure(figsize=(max(3.2 * columns, 7.0), height))
        figure.subplots_adjust(
            left=0.02, right=0.98, top=1 - 1.05 / height, bottom=0.25 / height, wspace=0.06, hspace=0.22
        )
        figure.suptitle(
            f"trajectories of {place}: {title}", x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=12,
            fontweight="bold",
        )  # fmt: skip
        words = "A line is a sequence, read from the square to the ring. In a row all looks share their axes."
        figure.text(0.01, 1 - 0.37 / height, words, fontsize=9, va="top")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for row, (state, embedded) in enumerate(rows):
            for column in range(columns):
                axes = grid[row, column]
                if column < len(embedded.epochs):
                    name = _epoch(embedded.epochs[column])
                    label = f"{state}, {METHODS[embedded.method]}" if not column else ""
                    _draw_look(axes, embedded, column, first, f"{label}  {name}".strip())
                elif column >= looks:
                    colouring = others[column - looks]
                    _draw_look(axes, embedded, len(embedded.epochs) - 1, colouring, f"by {colouring.name}")
                else:
                    axes.set_axis_off()
            if embedded.remark:
                grid[row, 0].text(
                    0.02, 0.02, textwrap.fill(embedded.remark, 44), transform=grid[row, 0].transAxes, fontsize=8,
                    color="0.3",
                )  # fmt: skip
        _draw_key(figure, first, height)
        for place_, colouring in enumerate(others):
            _draw_bar(figure, grid[0, looks + place_], colouring)
    return figure


def _epoch(epoch: int) -> str:
    return "before training" if epoch < 0 else f"epoch {epoch}"


def _draw_look(axes: Axes, embedded: StateEmbedding, look: int, colouring: Colouring, title: str) -> None:
    points = embedded.points[look]
    if not np.isfinite(points).any():
        say(axes, "no finite state")
        return
    for path in points:
        axes.plot(*path.T, color="0.8", lw=0.7, zorder=1)
    flat, values = points.reshape(-1, 2), colouring.values.reshape(-1)
    known = np.isfinite(values)
    cmap, norm = colouring.cmap, colouring.norm
    axes.scatter(flat[~known, 0], flat[~known, 1], s=6, color="0.7", lw=0, zorder=2)
    axes.scatter(flat[known, 0], flat[known, 1], s=12, c=values[known], cmap=cmap, norm=norm, lw=0, zorder=3)
    there = np.isfinite(points).all(-1)
    for path, reached, shade in zip(points, there, colouring.values, strict=True):
        if reached.any():
            begin, end = np.flatnonzero(reached)[[0, -1]]
            colour = "0.4" if np.isnan(shade[end]) else cmap(norm(shade[end]))
            axes.plot(*path[begin], marker="s", ms=4, color="white", mec="0.3", mew=0.7, zorder=4)
            axes.plot(*path[end], marker="o", ms=6, color="white", mec=colour, mew=1.8, zorder=5)
    whole = embedded.points[np.isfinite(embedded.points).all(-1)]
    middle, reach = (whole.max(0) + whole.min(0)) / 2, max(float(np.ptp(whole, axis=0).max()) / 2, 1e-12) * 1.08
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    axes.set(xticks=[], yticks=[])
    if embedded.method == "pca" and look == 0:
        axes.set_xlabel(f"component 1 ({embedded.explained[0]:.0%}), 2 ({embedded.explained[1]:.0%})", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    axes.set_title(title)


def _draw_key(figure: Figure, colouring: Colouring, height: float) -> None:
    """What the colours of the looks mean."""
    level = 1 - 0.62 / height
    if not colouring.classes or len(colouring.classes) > len(CLASS_COLOURS):
        axes = figure.add_axes((0.01 + 0.12, level - 0.1 / height, 0.2, 0.1 / height))
        bar = figure.colorbar(ScalarMappable(colouring.norm, colouring.cmap), cax=axes, orientation="horizontal")
        bar.ax.tick_params(labelsize=8, length=2, pad=1)
        figure.text(0.01, level, colouring.name[:24], fontsize=9, va="top")
        return
    wide = figure.get_size_inches()[0]
    figure.text(0.01, level, f"{colouring.name[:24]}:", fontsize=9, va="top")
    across = 0.01 + (0.2 + 0.075 * min(len(colouring.name), 24)) / wide
    for code, name in enumerate(colouring.classes):
        colour = colouring.cmap(colouring.norm(code))
        figure.text(across, level, f"● {name[:12]}", color=colour, fontsize=9, va="top")
        across += (0.3 + 0.085 * min(len(name), 12)) / wide


def _draw_bar(figure: Figure, axes: Axes, colouring: Colouring) -> None:
    """The ends of a further colouring's scale, above its column."""
    norm = colouring.norm
    names = colouring.classes or (f"{norm.vmin:g}", f"{norm.vmax:g}")
    words = f"{colouring.name[:16]}: {names[0]} (dark) to {names[-1]} (bright)"
    if colouring.classes and len(colouring.classes) <= len(CLASS_COLOURS):
        return
    axes.text(1.0, 1.09, words, transform=axes.transAxes, fontsize=8, ha="right")
