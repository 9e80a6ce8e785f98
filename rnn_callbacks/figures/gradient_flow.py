"""Gradients at one look: how far back they reach in each cell, and their size in every parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.gradient_findings import CellFlow, StepSizes
from ..analysis.gradient_flow import FITTED, REACH, GradientFlow
from ..analysis.gradient_norms import ABSENT
from ..analysis.gradient_sizes import LOWEST
from .style import gate_colour, house_style, logarithmic, say

MOST_ROWS = 6  # cells in one picture; a deeper stack shows its first ones
HIGHEST = 230.0  # log of the largest number that is drawn, about 1e100
MOST_LINES = 8  # parameters with a line and a name of their own
BLUE, ORANGE = "#0072B2", "#D55E00"
LINES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")


def draw_gradient_flow(module: str, cells: Sequence[CellFlow], *, title: str = "") -> Figure:
    """Of each cell: credit by distance, total gradient by step, which steps train, eigenvalues of recurrent matrices.

    Args:
        module: name for the title.
        cells: the module's cells, lowest layer first.
        title: when this was, for example ``epoch 3``.
    """
    shown = cells[:MOST_ROWS]
    panels = 4
    columns = 2 if len(shown) == 1 else panels
    rows = 2 if len(shown) == 1 else len(shown)
    with house_style():
        figure = Figure(figsize=(4.4 * 2 if columns == 2 else 3.7 * columns, 0.6 + 2.9 * rows))
        figure.subplots_adjust(
            left=(0.2 if columns == 2 else 0.26) / columns,
            right=1 - 0.1 / columns,
            top=1 - 0.75 / figure.get_figheight(),
            bottom=0.5 / figure.get_figheight(),
            wspace=0.3 if columns == 2 else 0.38,
            hspace=0.5,
        )
        left_out = f", first {len(shown)} of {len(cells)} cells" if len(shown) < len(cells) else ""
        figure.suptitle(f"{module}: {title}{left_out}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, found in enumerate(shown):
            axes = grid.flat[panels * place : panels * (place + 1)]
            _draw_credit(axes[0], found)
            _draw_total(axes[1], found)
            _draw_contribution(axes[2], found)
            _draw_eigenvalues(axes[3], found)
    return figure


def _steps(flow: GradientFlow) -> str:
    if flow.endless:
        return "endless"
    return f"{flow.horizon:.1f} steps" if flow.horizon < 1000 else f"{flow.horizon:.0f} steps"


def _time(flow: GradientFlow) -> str:
    return "time step (read from the right)" if flow.reverse else "time step"


def _draw_credit(axes: Axes, found: CellFlow) -> None:
    flow = found.flow
    if len(flow.credit) < 2:
        say(axes, "unknown: no two steps between which\nthe state is handed on as it is,\nor no loss after the first")
        return
    lags = np.arange(len(flow.credit))
    lowest = np.log(FITTED) - 2.5
    shown = flow.credit >= lowest
    axes.axhspan(np.exp(lowest), REACH, color="0.93", lw=0)
    axes.plot(
        lags[shown],
        np.exp(np.minimum(flow.credit[shown], HIGHEST)),
        color=BLUE,
        lw=2,
        marker="o" if len(lags) <= 16 else "",
        ms=3,
    )
    highest = float(np.exp(min(flow.credit.max(), HIGHEST)))
    logarithmic(axes)
    axes.set(ylim=(np.exp(lowest), 3 * highest), xlim=(0, max(1, len(lags) - 1)))
    axes.set(xlabel="time steps back", ylabel="share of a step's gradient left")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    line = flow.fitted
    if len(line) and highest <= 10:
        axes.plot(np.arange(len(line)), np.exp(line), color=ORANGE, lw=1.2, ls="--")
    axes.text(
        0.98, 0.03, "dashed: fit; grey: below 1 %", transform=axes.transAxes, ha="right", fontsize=8, color="0.35"
    )
    if not shown[1:].any():
        words = "nothing is left one step before:\na detached state, or units that forget at once"
        axes.text(0.5, 0.6, words, transform=axes.transAxes, ha="center", fontsize=9, color="0.35")
    grown = f"grows {highest:.3g} times" if highest > 10 else f"horizon: {_steps(flow)}"
    axes.set_title(f"{flow.cell}: gradient left ({grown})")


def _draw_total(axes: Axes, found: CellFlow) -> None:
    flow = found.flow
    heard = np.flatnonzero(flow.times)
    drawn = False
    for values, style, label in (
        (flow.hidden, "-", "|dL/dh|, hidden state"),
        (flow.memory, "--", "|dL/dc|, cell state"),
    ):
        drawable = np.isfinite(values) & (values > 1e-300) & (values < 1e300)
        if len(values) and drawable[heard].any():
            there = heard[drawable[heard]]
            colour = BLUE if style == "-" else ORANGE
            axes.plot(there + 1, values[there], color=colour, ls=style, lw=1.8, label=label,
                      marker="o" if len(heard) <= 16 else "", ms=3)  # fmt: skip
            drawn = True
    if not drawn:
        say(axes, "no gradient came back")
        return
    logarithmic(axes)
    both = np.concatenate([values[heard] for values in (flow.hidden, flow.memory) if len(values)])
    both = both[np.isfinite(both) & (both > 1e-300) & (both < 1e300)]
    low, high = both.min(), both.max()
    if high < 30 * low:  # a flat line should look flat
        middle = np.sqrt(low * high)
        low, high = middle / 6, middle * 6
    axes.set(ylim=(low / 1.5, high * 4), xlim=(1, max(2, len(flow.times))), xlabel=_time(flow), ylabel="L2 norm")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title("total gradient at each step")
    axes.legend(loc="upper left", ncols=1, handlelength=1.6, fontsize=8, borderpad=0)


def _draw_contribution(axes: Axes, found: CellFlow) -> None:
    flow = found.flow
    whole = flow.contribution.sum()
    if not whole > 0:
        say(axes, "weights of this cell are not known,\nor nothing trains them")
        return
    share = 100 * flow.contribution / whole
    axes.fill_between(np.arange(1, len(share) + 1), share, step="mid", color=BLUE, alpha=0.35, lw=0)
    axes.step(np.arange(1, len(share) + 1), share, where="mid", color=BLUE, lw=1.2)
    early = flow.scalars()["early_contribution"]
    axes.set(
        ylim=(0, 1.15 * share.max()), xlim=(0.5, len(share) + 0.5), xlabel=_time(flow), ylabel="% of their gradient"
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(f"steps that train (first half: {early:.0%})")


def _draw_eigenvalues(axes: Axes, found: CellFlow) -> None:
    spectra, largest = found.spectra, found.lyapunov.exponents[0]
    if spectra is None:
        say(axes, f"weights of this cell are not known\n\nlargest Lyapunov exponent {largest:+.3f} per step")
        return
    around = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(around), np.sin(around), color="0.6", lw=1)
    for place, (part, values) in enumerate(zip(spectra.parts, spectra.eigenvalues, strict=True)):
        axes.scatter(values.real, values.imag, s=9, color=gate_colour(part, place), alpha=0.75, lw=0, label=part)
    size = min(2.2, max(1.25, 1.1 * float(spectra.radius.max())))
    axes.set(xlim=(-1.75 * size, 1.75 * size), ylim=(-1.3 * size, 1.35 * size), aspect="equal", xlabel="real part")
    axes.set_ylabel("imaginary part")
    beyond = int((np.abs(spectra.eigenvalues) > size).sum())
    words = f"Lyapunov {largest:+.3f} per step; grey: unit circle" + (f"; {beyond} lie outside" if beyond else "")
    axes.text(0.5, 0.02, words, transform=axes.transAxes, ha="center", fontsize=7, color="0.35")
    axes.legend(loc="upper center", ncols=4, handletextpad=0, columnspacing=0.5, markerscale=1.8, borderpad=0)
    axes.set_title("eigenvalues of recurrent weights")


def draw_gradient_norms(seen: StepSizes, *, title: str = "") -> Figure:
    """Norm of the whole gradient and of single parameters over steps, sizes of their elements, sizes of updates."""
    with house_style():
        figure = Figure(figsize=(10, 6.8))
        figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.08, wspace=0.42, hspace=0.42)
        figure.suptitle(f"gradients of all parameters: {title}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        (whole, lines), (sizes, updates) = figure.subplots(2, 2)
        _draw_whole(whole, seen)
        _draw_lines(lines, seen)
        _draw_sizes(sizes, seen)
        _draw_updates(updates, seen)
    return figure


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    drawable = np.clip(np.where(np.isfinite(values), values, 1.0), np.exp(-HIGHEST), np.exp(HIGHEST))
    return np.where(np.isfinite(values) & (values > 0), drawable, np.nan)


def _draw_whole(axes: Axes, seen: StepSizes) -> None:
    norms = seen.norms
    total, clipped = _finite(norms.total), _finite(norms.clipped_total)
    if np.isnan(total).all():
        say(axes, "no finite gradient")
        return
    dots = "o" if len(norms.steps) <= 20 else ""
    axes.plot(norms.steps, total, color=BLUE, lw=1.6, marker=dots, ms=3, label="before clipping")
    if norms.was_clipped.any():
        axes.plot(norms.steps, clipped, color=ORANGE, lw=1.6, ls="--", marker=dots, ms=3, label="after clipping")
        axes.legend(loc="upper right", handlelength=1.4)
    broken = norms.steps[~norms.finite]
    for step in broken[:50]:
        axes.axvline(step, color="black", lw=1, ls=":")
    logarithmic(axes)
    axes.set(xlabel="optimizer step", ylabel="L2 norm")
    axes.set_ylim(np.nanmin([total, clipped]) / 2, 4 * np.nanmax(total))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    words = f", not finite at {len(broken)} (dotted)" if len(broken) else ""
    axes.set_title(f"whole gradient{words}")


def _draw_lines(axes: Axes, seen: StepSizes) -> None:
    norms = seen.norms
    values = np.where(norms.norm == ABSENT, np.nan, _finite(norms.norm))
    alive = np.flatnonzero(np.isfinite(values).any(0))
    if not len(alive):
        say(axes, "no parameter had a gradient")
        return
    level = np.nanmedian(values[:, alive], 0)
    recurrent = np.array(["weight_hh" in norms.parameters[column] for column in alive])
    order = alive[np.lexsort((-level, ~recurrent))]  # the recurrent matrices first, then by size
    for column in order[MOST_LINES:]:
        axes.plot(norms.steps, values[:, column], color="0.8", lw=0.8)
    dots = "o" if len(norms.steps) <= 20 else ""
    for place, column in enumerate(order[:MOST_LINES]):
        label = _short(norms.parameters[column])
        axes.plot(norms.steps, values[:, column], color=LINES[place], lw=1.4, marker=dots, ms=2.5, label=label)
    logarithmic(axes)
    axes.set(xlabel="optimizer step", ylabel="L2 norm before clipping")
    low, high = np.nanmin(values), np.nanmax(values)
    head_room = np.log10(high) + 0.45 * (np.log10(high) - np.log10(low)) + 0.5  # for the legend
    axes.set_ylim(low / 2, 10.0**head_room)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(loc="upper center", ncols=2, handlelength=1.2, columnspacing=0.8, fontsize=8)
    more = f" ({len(order) - MOST_LINES} more in grey)" if len(order) > MOST_LINES else ""
    axes.set_title(f"by parameter{more}")


def _short(name: str) -> str:
    return name if len(name) <= 28 else "..." + name[-25:]


def _draw_sizes(axes: Axes, seen: StepSizes) -> None:
    counts = seen.sizes.counts.sum(0)
    elements = max(1, int(seen.sizes.elements.sum()))
    used = np.flatnonzero(counts)
    if not len(used):
        say(axes, "every element is zero or not finite")
        return
    inside = np.arange(used[0], used[-1] + 1)
    two = np.log10(2.0)
    heights = 100 * counts[inside] / elements
    axes.bar((inside + LOWEST + 0.5) * two, heights, width=two, color=BLUE, alpha=0.6, lw=0)
    zeros = seen.sizes.zeros.sum() / elements
    tiny, broken = seen.sizes.subnormal.sum() / elements, (seen.sizes.nan + seen.sizes.infinite).sum() / elements
    words = (
        [f"{zeros:.0%} exactly zero"]
        + [f"{tiny:.1%} subnormal"] * bool(tiny)
        + [f"{broken:.1%} not finite"] * bool(broken)
    )
    axes.text(0.02, 0.96, "\n".join(words), transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xlabel="log10 |gradient element|", ylabel="% of elements")
    axes.set_ylim(0, 1.25 * 100 * counts.max() / elements)
    axes.set_title("sizes of single elements (one step)")


def _draw_updates(axes: Axes, seen: StepSizes) -> None:
    ratios = {name: ratio for name, ratio in seen.update_ratios.items() if 0 < ratio < np.inf}
    if not ratios:
        say(axes, "no weights moved at the step that was measured")
        return
    shown = sorted(ratios, key=lambda name: (("weight_hh" not in name), -ratios[name]))[:12]
    places = np.arange(len(shown))[::-1]
    values = [ratios[name] for name in shown]
    axes.axvspan(1e-4, 1e-2, color="0.93", lw=0)
    axes.hlines(places, 1e-12, values, color="0.8", lw=1)
    axes.scatter(values, places, color=BLUE, s=22, zorder=3)
    logarithmic(axes, "x")
    axes.set(xlim=(min(5e-5, min(values) / 2), max(2e-2, 2 * max(values))), ylim=(-0.7, len(shown) - 0.3))
    axes.set_yticks(places, [_short(name) for name in shown], fontsize=8)
    axes.set(xlabel="|change| / |weights| by one step (grey: usual range)")
    left_out = f" ({len(shown)} of {len(ratios)})" if len(ratios) > len(shown) else ""
    axes.set_title(f"update against weight{left_out}")
