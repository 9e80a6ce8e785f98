"""One look for every picture: colours that colour-blind people can tell apart, the same colour for the same gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, Locator, NullLocator

# Okabe and Ito 2008. The gate that keeps the state is blue in every cell.
GATE_COLOURS = {
    "forget": "#0072B2",
    "update": "#0072B2",
    "input": "#009E73",
    "output": "#E69F00",
    "reset": "#D55E00",
    "cell": "#7F7F7F",
    "new": "#7F7F7F",
    "hidden": "#7F7F7F",
}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#000000", "#F0E442")
DPI = 80


def gate_colour(part: str, place: int) -> str:
    """The colour of a gate; gates of a user's own cell take the spare ones in turn."""
    return GATE_COLOURS.get(part, OTHER_COLOURS[place % len(OTHER_COLOURS)])


@contextmanager
def house_style() -> Iterator[None]:
    """Settings for the duration of a drawing; the user's own are back afterwards."""
    settings: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "axes.titlelocation": "left",
        "axes.titley": 1.0,  # otherwise every label is measured to find it: a third of the time of a picture
    }
    with mpl.rc_context(settings):
        yield


class _FewPowers(Locator):
    """Up to six powers of ten, or 1, 2 and 5 times them where there are less than two."""

    def __call__(self) -> list[float]:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        low, high = sorted((max(vmin, 1e-300), max(vmax, 1e-300)))
        first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
        if last - first >= 1:
            return [10.0**power for power in range(first, last + 1, 1 + (last - first) // 6)]
        finer = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1.0, 2.0, 5.0)]
        return [tick for tick in finer if low <= tick <= high]


def logarithmic(axes: Axes, way: str = "y") -> None:
    """A logarithmic axis with few ticks and plain numbers: powers in mathematical type take longer than the plot."""
    axes.set(**{f"{way}scale": "log"})
    axis = axes.yaxis if way == "y" else axes.xaxis
    axis.set_major_locator(_FewPowers())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def say(axes: Axes, words: str) -> None:
    """Put words where a plot would be."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, wrap=True)
