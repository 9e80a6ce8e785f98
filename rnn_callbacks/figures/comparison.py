"""Runs side by side: a panel for each quantity, over the course of their training."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .style import DPI, OTHER_COLOURS, house_style, logarithmic

# At least 3:1 on white (WCAG 2.2, 1.4.11), and apart for colour-blind readers; after the last one dashes begin.
COLOURS = ("#0072B2", "#D55E00", "#009E73", OTHER_COLOURS[0], "#1F3A93", "#7A4A1E")
DASHES = ("-", "--", ":", "-.")
GREY, BLACK = "#7F7F7F", "#000000"
WIDE, HIGH = 3.6, 2.3  # inches of a panel
MOST_ENTRIES = 24  # of a legend
LEAST_RATIO = 4.0  # from the lowest to the highest value of a logarithmic axis
LONGEST = 80
_SHOWN = "\u200c\u200d"  # joiners: they belong to words


@final
@dataclass(frozen=True, eq=False)
class Line:
    """One run, or the middle of a group."""

    x: NDArray[np.float64]  # (n,)
    y: NDArray[np.float64]  # (n,), NaN where there is nothing to draw
    key: str  # whose it is: ``run3``, ``group0``, ``rest``
    colour: str
    dash: str = "-"
    strong: bool = False
    band: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))  # (n, 2), lowest and highest; or none


@final
@dataclass(frozen=True, eq=False)
class Panel:
    """One quantity of all runs."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    logarithmic: bool = False
    whole: bool = False


@final
@dataclass(frozen=True)
class Entry:
    """One line of a legend."""

    label: str
    colour: str
    dash: str = "-"
    marker: str = ""  # instead of a line
    filled: bool = True


def printable(text: object, longest: int = LONGEST) -> str:
    """Words that can be put anywhere: one line, no control characters or lone surrogates, not endless."""
    words = " ".join(str(text)[: 4 * longest].split())
    shown = "".join(
        "\ufffd" if (unicodedata.category(sign) in ("Cc", "Cf", "Cs") and sign not in _SHOWN) or sign in "\ufffe\uffff"
        else sign
        for sign in words
    )  # fmt: skip
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}\u2026"


def drawable(text: object, longest: int = LONGEST) -> str:
    """The same with what the font has no sign for replaced, about which matplotlib would warn at every drawing."""
    font = get_font(findfont(FontProperties()))
    words = "".join(sign if font.get_char_index(ord(sign)) else "?" for sign in printable(text, longest))
    return f" {words}" if words.startswith("_") else words  # a legend passes over names that begin with _


def draw_small_multiples(
    panels: Sequence[Panel],
    *,
    x_label: str,
    x_limits: tuple[float, float] | None = None,
    columns: int = 3,
    titled: bool = True,
    legend: Sequence[Entry] = (),
) -> Figure:
    """A panel for each quantity, one horizontal axis for all; what is not finite or has no logarithm is left out.

    Args:
        panels: what to draw.
        x_label: of the shared axis, with its unit.
        x_limits: of the shared axis; by default as far as the lines reach.
        columns: panels side by side.
        titled: whether panels carry their titles, or the page around them does.
        legend: whose colours these are, where the page around does not say it.
    """
    places = [line.x[np.isfinite(line.x)] for panel in panels for line in panel.lines]
    known = np.concatenate([*places, np.zeros(0)])
    low, high = x_limits or ((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))
    margin = 0.03 * (high - low) or 0.5

    def draw(axes: Axes, number: int) -> None:
        panel = panels[number]
        for line in panel.lines:
            _draw_line(axes, line, panel.logarithmic)
        if panel.logarithmic and _is_wide(panel):
            logarithmic(axes)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=panel.whole, min_n_ticks=1))
        axes.set(xlim=(low - margin, high + margin))
        axes.set_xlabel(x_label, parse_math=False, labelpad=1)
        axes.set_ylabel(drawable(panel.unit), parse_math=False, labelpad=2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low >= 1, min_n_ticks=1))

    return grid_of([panel.title if titled else "" for panel in panels], draw, columns=columns, high=HIGH, legend=legend)


def grid_of(
    titles: Sequence[str],
    draw: Callable[[Axes, int], None],
    *,
    columns: int,
    high: float,
    wide: float = WIDE,
    legend: Sequence[Entry] = (),
) -> Figure:
    """Panels of one size; measured by hand, since a layout engine takes longer than the drawing."""
    columns = max(min(columns, len(titles)), 1)
    rows = max(-(-len(titles) // columns), 1)
    top = 0.3 if any(titles) else 0.08
    left, right, bottom = 0.62, 0.08, 0.42
    width, height = columns * wide, rows * (high + top)
    across = max(int(width / 3), 1)
    head = (0.12 + 0.22 * -(-min(len(legend), MOST_ENTRIES) // across)) if legend else 0.0
    height += head
    with house_style():
        figure = Figure(figsize=(width, height), dpi=DPI)
        if legend:
            _add_legend(figure, legend, across)
        for number, title in enumerate(titles):
            row, column = divmod(number, columns)
            x, y = column * wide + left, height - head - (row + 1) * (high + top) + bottom
            box = (x / width, y / height, (wide - left - right) / width, (high - bottom) / height)
            axes = figure.add_axes(box)
            axes.set_title(drawable(title, 50 if wide < 4 else 80), parse_math=False)
            draw(axes, number)
            axes.tick_params(labelsize=9, pad=2)
    return figure


def _drawn(line: Line, logarithmic: bool) -> NDArray[np.float64]:
    """Heights, and limits of the band, ``(3, n)`` or ``(1, n)``, NaN where an axis has no place for them."""
    rows = np.vstack([line.y, line.band.T]) if len(line.band) else line.y[None]
    shown = np.isfinite(rows) & (rows > 0 if logarithmic else True)
    return np.where(shown, rows, np.nan)


def _is_wide(panel: Panel) -> bool:
    """Whether a logarithmic axis shows anything else than a linear one, and has more than one plain number."""
    rows = np.concatenate([_drawn(line, True).ravel() for line in panel.lines] + [np.zeros(0)])
    rows = rows[np.isfinite(rows)]
    return len(rows) > 0 and float(rows.max() / rows.min()) >= LEAST_RATIO


def _draw_line(axes: Axes, line: Line, logarithmic: bool) -> None:
    y, *band = _drawn(line, logarithmic)
    if band:
        axes.fill_between(line.x, *band, color=line.colour, alpha=0.18, linewidth=0, gid=line.key, zorder=1)
    known = np.concatenate(([False], np.isfinite(y), [False]))
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    axes.plot(
        line.x, y, color=line.colour, ls=line.dash, lw=2.4 if line.strong else 1.0, gid=line.key,
        alpha=1.0 if line.strong else 0.75, zorder=3 if line.strong else 2,
        marker="o" if len(alone) else "", markevery=alone.tolist(), ms=5 if line.strong else 3.5,
    )  # fmt: skip


def _add_legend(figure: Figure, entries: Sequence[Entry], columns: int) -> None:
    shown = entries[:MOST_ENTRIES]
    handles = [
        Line2D(
            [], [], color=entry.colour, ls="" if entry.marker else entry.dash, lw=2, marker=entry.marker,
            mfc=entry.colour if entry.filled else "white",
        )
        for entry in shown
    ]  # fmt: skip
    more = f" (and {len(entries) - len(shown)} more)" if len(entries) > len(shown) else ""
    names = [drawable(entry.label, 40) for entry in shown]
    names[-1] += more
    legend = figure.legend(handles, names, loc="upper left", ncols=columns, borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_parse_math(False)
