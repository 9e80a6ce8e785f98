"""Pictures of trajectories through the states, the looks side by side on the same axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from ..analysis.state_embedding import StateEmbedding
from .probe_panels import cut, site_name
from .style import house_style, say

CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#000000", "#999933", "#6A3D9A",
)  # fmt: skip
MOST_COLOURINGS = 3
METHODS = {"phate": "PHATE", "pca": "PCA"}
WIDE, HIGH, HEAD = 2.7, 2.95, 1.35  # inches of a panel with its words, and above all panels
LINE = 0.17  # inches from a line of words to the next
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
        low, high = self.ends
        return Normalize(low, high if high > low else low + 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the first and the last colour."""
        if self.classes:
            return 0.0, len(self.classes) - 1.0
        known = self.values[np.isfinite(self.values)]
        return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)

    @property
    def named(self) -> bool:
        """Whether each class has a colour of its own."""
        return 0 < len(self.classes) <= len(CLASS_COLOURS)

    @property
    def cmap(self) -> Colormap:
        """Colours; named ones for few classes."""
        if self.named:
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
        lines = max(row for colouring in [by_step, *others] for _, row in _places(colouring, 0.0, WIDE, 0.06)) + 1
        foot = 0.15 + LINE * max(lines, 2)
        wide, height = max(WIDE * columns, 7.0), HEAD + HIGH * len(rows) - 0.5 + foot
        figure = Figure(figsize=(wide, height))
        figure.subplots_adjust(
            left=0.12 / wide, right=1 - 0.12 / wide, top=1 - HEAD / height, bottom=foot / height, wspace=0.06,
            hspace=0.24,
        )  # fmt: skip
        figure.suptitle(
            f"trajectories of {site_name(place, 32)}: {title}", x=0.12 / wide, y=1 - 0.1 / height, ha="left", va="top",
            fontsize=12, fontweight="bold",
        )  # fmt: skip
        words = "A line is a sequence, read from the square to the ring. In a row all looks share their axes."
        figure.text(0.12 / wide, 1 - 0.37 / height, words, fontsize=9, va="top")
        _draw_key(figure, first)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for (state, embedded), panels in zip(rows, grid, strict=True):
            _draw_row(panels, state, embedded, first, others)
        for axes, colouring in zip(grid[-1, looks:], others, strict=True):
            _draw_scale(axes, colouring)
    return figure


def _draw_row(
    panels: Sequence[Axes], state: str, embedded: StateEmbedding, first: Colouring, others: Sequence[Colouring]
) -> None:
    """One embedding: its looks, and the latest in further colours."""
    looks = len(panels) - len(others)
    for look, axes in enumerate(panels[:looks]):
        if look >= len(embedded.epochs):
            axes.set_axis_off()
            continue
        labels = [] if look else [f"{state}, {METHODS[embedded.method]}"]
        labels += [_epoch(embedded.epochs[look])] if looks > 1 else []  # of a single one the title says it
        _draw_look(axes, embedded, look, first, ": ".join(labels))
    for axes, colouring in zip(panels[looks:], others, strict=True):
        _draw_look(axes, embedded, len(embedded.epochs) - 1, colouring, f"by {cut(colouring.name, 24)}")
    if embedded.method == "pca":
        one, two = embedded.explained
        panels[0].set_xlabel(f"component 1 ({one:.0%}), 2 ({two:.0%})", fontsize=8)
    if embedded.remark:
        panels[0].text(
            0.02, 0.02, textwrap.fill(embedded.remark, 40), transform=panels[0].transAxes, fontsize=8, color="0.3"
        )


def _epoch(epoch: int) -> str:
    return "before training" if epoch < 0 else f"epoch {epoch}"


def _draw_look(axes: Axes, embedded: StateEmbedding, look: int, colouring: Colouring, title: str) -> None:
    axes.set_title(title)
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
    axes.set_box_aspect(1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _draw_key(figure: Figure, colouring: Colouring) -> None:
    """What the colours of the looks mean."""
    wide, height = figure.get_size_inches()
    level, across = 1 - 0.62 / height, 0.12
    if not colouring.named:
        low, high = _ends(colouring)
        figure.text(across / wide, level, f"{cut(colouring.name, 24)}:  {low}", fontsize=9, va="top")
        across += 0.4 + 0.08 * len(f"{cut(colouring.name, 24)}{low}")
        axes = figure.add_axes((across / wide, level - 0.13 / height, 1.4 / wide, 0.11 / height), label="<colorbar>")
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=colouring.cmap, aspect="auto")
        axes.set_axis_off()
        figure.text((across + 1.5) / wide, level, high, fontsize=9, va="top")
        return
    figure.text(across / wide, level, f"{cut(colouring.name, 24)}:", fontsize=9, va="top")
    begin = across + 0.2 + 0.08 * len(cut(colouring.name, 24))
    for code, (right, row) in enumerate(_places(colouring, begin, wide, 0.085)):
        figure.text(right / wide, level - LINE * row / height, fontsize=9, va="top", **_name(colouring, code))


def _draw_scale(axes: Axes, colouring: Colouring) -> None:
    """What a further colouring's colours mean, below its column."""
    if not colouring.named:
        low, high = _ends(colouring)
        axes.text(0, -0.03, f"dark: {low}, bright: {high}", transform=axes.transAxes, fontsize=8, va="top")
        return
    for code, (right, row) in enumerate(_places(colouring, 0.0, WIDE, 0.06)):
        move = ScaledTranslation(right, -LINE * row - 0.06, axes.figure.dpi_scale_trans)
        axes.text(0, 0, transform=axes.transAxes + move, fontsize=8, va="top", **_name(colouring, code))


def _places(colouring: Colouring, begin: float, room: float, letter: float) -> list[tuple[float, int]]:
    """Inches from the left and line of the name of each class, with letters so wide; one place without classes."""
    across, row, found = begin, 0, []
    for name in colouring.classes if colouring.named else ("",):
        need = 0.2 + letter * (len(_short(name)) + 1)
        if across > begin and across + need > room:
            across, row = begin, row + 1
        found.append((across, row))
        across += need
    return found


def _name(colouring: Colouring, code: int) -> dict[str, Any]:
    """A class and its colour, for a text."""
    return {"s": f"● {_short(colouring.classes[code])}", "color": colouring.cmap(colouring.norm(code))}


def _ends(colouring: Colouring) -> tuple[str, str]:
    """Words for the darkest and the brightest colour."""
    if colouring.classes:
        return _short(colouring.classes[0]), _short(colouring.classes[-1])
    low, high = colouring.ends
    return f"{low:.3g}", f"{high:.3g}"


def _short(name: str) -> str:
    """Both ends of a long name, of which either may tell it from others."""
    return name if len(name) <= 12 else f"{name[:5]}..{name[-5:]}"
