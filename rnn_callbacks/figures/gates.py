"""Gates of one module at one look: how open, when in the sequence, and which units remember."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.gate_phases import GatePhases
from ..analysis.gates import BINS, CLOSED, LONGEST, OPEN, GateStatistics
from .style import gate_colour, house_style, say

MOST_ROWS = 6  # cells in one picture; a deeper stack shows its first ones


def draw_gates(
    module: str, cells: Sequence[GateStatistics], *, phases: Sequence[GatePhases] = (), title: str = ""
) -> Figure:
    """Of each cell: distribution of its gates, gates against time step, units against time step, an LSTM's memory.

    Args:
        module: name for the title.
        cells: statistics of the module's cells, lowest layer first.
        phases: of the same cells, where the task has phases: one more panel, gate against phase.
        title: when this was, for example ``epoch 3``.
    """
    shown = cells[:MOST_ROWS]
    with_memory = any(len(statistics.state_profile) == 4 for statistics in shown)
    panels = 3 + with_memory + bool(phases)
    # One cell fills rows of three panels, legible in a browser; several cells take a row each, one below the other.
    columns = 3 if len(shown) == 1 else panels
    rows = -(-panels // 3) if len(shown) == 1 else len(shown)
    with house_style():
        figure = Figure(figsize=(3.3 * columns, 0.5 + 2.5 * rows))
        figure.subplots_adjust(
            left=0.2 / columns,
            right=1 - 0.12 / columns,
            top=1 - 0.6 / figure.get_figheight(),
            bottom=0.5 / figure.get_figheight(),
            wspace=0.36,
            hspace=0.55,
        )
        left_out = f", first {len(shown)} of {len(cells)} cells" if len(shown) < len(cells) else ""
        figure.suptitle(f"{module}: {title}{left_out}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        grid = figure.subplots(rows, columns, squeeze=False)
        for spare in grid.flat[panels * len(shown) :]:
            spare.remove()
        for place, statistics in enumerate(shown):
            axes = grid.flat[panels * place : panels * (place + 1)]
            if statistics.steps == 0:
                for panel in axes:
                    say(panel, "no finite step heard")
                continue
            _draw_distribution(axes[0], statistics)
            _draw_over_steps(axes[1], statistics)
            _draw_units(axes[2], statistics)
            if with_memory:
                _draw_memory(axes[3], statistics)
            if phases:
                _draw_phases(axes[-1], phases[place])
    return figure


def _label(statistics: GateStatistics, part: str) -> str:
    if part != statistics.parts[-1]:
        return part
    return "|new content|" if statistics.parts[:-1] else f"|{part}|"


def _draw_distribution(axes: Axes, statistics: GateStatistics) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    axes.axvspan(0, CLOSED, color="0.93", lw=0)
    axes.axvspan(OPEN, 1, color="0.93", lw=0)
    highest = 1.0
    for row, part in enumerate(statistics.parts):
        share = 100 * statistics.histogram[row].sum(0) / (statistics.steps * statistics.histogram.shape[1])
        style = "--" if part == statistics.parts[-1] else "-"
        highest = max(highest, share.max())
        axes.stairs(share, edges, color=gate_colour(part, row), lw=1.8, ls=style, label=_label(statistics, part))
    # Head room for the legend.
    axes.set(xlim=(0, 1), ylim=(0, 1.45 * highest), xlabel="0 closed, 1 open (grey: saturated)")
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= min(100, 1.1 * highest)])
    axes.set_ylabel("% of steps and units")
    axes.set_title(f"{statistics.cell}: how open")
    axes.legend(loc="upper center", ncols=2, handlelength=1.2, columnspacing=0.8)


def _draw_over_steps(axes: Axes, statistics: GateStatistics) -> None:
    heard = np.flatnonzero(statistics.times)
    marker = "o" if len(heard) <= 16 else ""
    for row, part in enumerate(statistics.parts):
        style = "--" if part == statistics.parts[-1] else "-"
        axes.plot(
            heard + 1,
            statistics.profile[row, heard],
            color=gate_colour(part, row),
            ls=style,
            marker=marker,
            ms=3,
            lw=1.8,
        )
    axes.set(ylim=(0, 1), xlabel="time step", ylabel="mean over units")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title("when in the sequence")


def _kept(statistics: GateStatistics) -> tuple[NDArray[np.float32], str]:
    """Share of the old state kept, per unit and position, in a cell that has a gate for it; |h| otherwise."""
    if "forget" in statistics.parts:
        return statistics.unit_profile[statistics.parts.index("forget")], "share of state kept"
    if "update" in statistics.parts:
        return 1.0 - statistics.unit_profile[statistics.parts.index("update")], "share of state kept"
    return statistics.unit_profile[-1], f"size of {statistics.parts[-1]} state"


def _draw_units(axes: Axes, statistics: GateStatistics) -> None:
    kept, meaning = _kept(statistics)
    order = np.argsort(statistics.timescale if len(statistics.log_retention) else statistics.mean[-1])
    steps = len(statistics.times)
    image = axes.imshow(
        kept[order], aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest",
        extent=(0.5, steps + 0.5, 0.5, len(order) + 0.5),
    )  # fmt: skip
    axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06)
    axes.set(xlabel="time step", ylabel="unit, by memory")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(meaning)
    if len(statistics.log_retention):
        median = float(np.median(statistics.timescale))
        words = "endless" if median >= LONGEST else f"{median:.1f} steps" if median < 1000 else f"{median:.0f} steps"
        axes.set_title(f"state kept (median: {words})")
    else:
        axes.set_ylabel("unit, by mean")


def _draw_memory(axes: Axes, statistics: GateStatistics) -> None:
    if len(statistics.state_profile) < 4:
        axes.set_axis_off()
        return
    heard = np.flatnonzero(statistics.times)
    size, spread = statistics.state_profile[2, heard], statistics.state_profile[3, heard]
    axes.fill_between(
        heard + 1, 0, spread, color=gate_colour("forget", 0), alpha=0.15, lw=0, label="std of c over units"
    )
    axes.plot(heard + 1, size, color=gate_colour("forget", 0), lw=1.8, label="mean |c|, cell state")
    axes.plot(heard + 1, statistics.state_profile[0, heard], color="black", ls="--", lw=1.8, label="mean |h|, hidden")
    axes.set(ylim=(0, 1.5 * max(1e-6, size.max(), spread.max())), xlabel="time step")
    axes.set_title("size of cell and hidden state")
    axes.legend(loc="upper left", handlelength=1.4)


def _draw_phases(axes: Axes, phases: GatePhases) -> None:
    seen = np.flatnonzero(phases.counts)
    if not len(seen):
        say(axes, "no labelled step heard")
        return
    width = 0.8 / len(phases.parts)
    for row, part in enumerate(phases.parts):
        axes.bar(
            np.arange(len(seen)) + (row - (len(phases.parts) - 1) / 2) * width,
            phases.mean[seen, row].mean(1),
            width,
            color=gate_colour(part, row),
            label=f"{part} {phases.pooled[row]:.0%}",
        )
    axes.set(ylim=(0, 1.6), yticks=[0, 0.5, 1], xlabel="task phase", ylabel="mean over units")
    axes.set_xticks(np.arange(len(seen)), [str(phase) for phase in seen])
    axes.set_title("by phase (% of variance explained)")
    axes.legend(loc="upper center", ncols=2, handlelength=0.8, columnspacing=0.8)
