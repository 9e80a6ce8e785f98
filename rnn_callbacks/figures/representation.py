"""Pictures of the geometry of states: likeness over training, layers, classes and clusters step by step, dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.representation_findings import SiteFindings
from .probe_panels import DOTTED, cut, site_name
from .style import house_style, say

COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
    "#000000", "#8C6D31", "#6A3D9A", "#999933", "#882255", "#44AA99",
)  # fmt: skip
FEW = 4  # sites, up to which their names have room
MISSING = "0.88"
Floats = NDArray[np.float64]


def draw_representation(
    module: str,
    sites: Mapping[str, SiteFindings],
    layers: Floats,
    *,
    steps: NDArray[np.int64],
    title: str = "",
) -> Figure:
    """What the states of one module look like, and since when.

    Args:
        module: its name.
        sites: findings by site, lowest layer first.
        layers: CKA of sites with each other, ``(L, L)``; empty where unknown.
        steps: ``(S,)``, that the columns of the findings are at, from 0.
        title: when this was.
    """
    colours = {site: COLOURS[place % len(COLOURS)] for place, site in enumerate(sites)}
    top = [site for site, found in sites.items() if found.clusters is not None] or list(sites)[-1:]
    with house_style():
        figure = Figure(figsize=(13.0, 7.6))
        figure.subplots_adjust(left=0.055, right=0.985, top=0.86, bottom=0.08, wspace=0.3, hspace=0.42)
        figure.suptitle(
            f"what the states of {site_name(module, 40)} look like: {title}", x=0.01, y=0.985, ha="left", va="top",
            fontsize=12, fontweight="bold",
        )  # fmt: skip
        _name_sites(figure, colours)
        grid = figure.subplots(2, 3)
        _draw_likeness(grid[0, 0], sites, colours)
        _draw_looks(grid[0, 1], top[0], sites[top[0]])
        if len(layers) > 1:
            _draw_layers(grid[0, 2], layers, list(sites))
        else:
            _draw_likeness_by_step(grid[0, 2], {site: sites[site] for site in top}, colours, steps)
        _draw_classes(grid[1, 0], {site: sites[site] for site in top}, colours, steps)
        _draw_clusters(grid[1, 1], {site: sites[site] for site in top}, colours, steps)
        _draw_dimensions(grid[1, 2], sites, colours)
    return figure


def _name_sites(figure: Figure, colours: Mapping[str, str]) -> None:
    """The colour of each site, under the title."""
    across, level = 0.012, 0.945
    for site, colour in list(colours.items())[: len(COLOURS)]:
        need = 0.02 + 0.0075 * len(site_name(site))
        if across + need > 1:
            across, level = 0.012, level - 0.027
        figure.text(across, level, f"● {site_name(site)}", color=colour, fontsize=10, va="top")
        across += need


def _draw_likeness(axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str]) -> None:
    """CKA with the untrained network over the looks, above what two random networks have in common."""
    kinds = (("cka_untrained", "-", "with the untrained network"), ("cka_previous", ":", "with the look before"))
    known = []
    for name, style, words in kinds:
        for site, found in sites.items():
            epochs, values = found.curves.get(name, (np.zeros(0), np.zeros(0)))
            if np.isfinite(values).any():
                dot, (size, width) = "o" if len(epochs) <= DOTTED else "", (4, 2.0) if style == "-" else (3, 1.4)
                axes.plot(epochs, values, color=colours[site], ls=style, lw=width, marker=dot, ms=size)
                known.append((words, style, epochs))
    if not known:
        say(axes, "likeness to the untrained network and to the look before:\nnot known")
        return
    for site, found in sites.items():
        if found.random is not None:
            axes.axhline(found.random[0], color=colours[site], lw=1.2, ls="--", alpha=0.8)
            known.append(("of two random networks", "--", np.zeros(0)))
    _key(axes, {words: style for words, style, _ in known})
    _set_across(axes, np.concatenate([epochs for *_, epochs in known]), "epoch")
    axes.set_ylabel("likeness (CKA)")
    axes.set_title("still the random network?")


def _key(axes: Axes, styles: Mapping[str, str]) -> None:
    """What lines mean, in room of its own above shares."""
    for words, style in styles.items():
        axes.plot([], [], color="0.3", ls=style, lw=1.5, label=words)
    axes.legend(loc="upper left", fontsize=8, borderpad=0, labelspacing=0.2, borderaxespad=0.2)
    axes.set(ylim=(-0.05, 1.08 + 0.12 * len(styles)), yticks=(0, 0.2, 0.4, 0.6, 0.8, 1))


def _set_across(axes: Axes, places: NDArray[Any], words: str) -> None:
    """The same limits for all of these panels, whole numbers only."""
    margin = 0.03 * float(np.ptp(places)) or 0.5
    axes.set(xlim=(places.min() - margin, places.max() + margin), xlabel=words)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_looks(axes: Axes, site: str, found: SiteFindings) -> None:
    """CKA of the looks with each other: blocks on the diagonal are phases of the training."""
    if len(found.epochs) < 2:
        say(axes, "likeness of looks to each other:\nneeds two looks at the same sequences")
        return
    if not np.isfinite(found.matrix).any():
        say(axes, "likeness of looks to each other:\nthe states are all the same")
        return
    _heat(axes, found.matrix)
    names = ["start" if epoch < 0 else str(epoch) for epoch in found.epochs]
    shown = np.unique(np.linspace(0, len(names) - 1, 6).round().astype(int))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(shown, [names[place] for place in shown])
    axes.set(xlabel="epoch", ylabel="epoch")
    axes.set_title(f"{site_name(site)}: how alike are epochs?")


def _draw_layers(axes: Axes, layers: Floats, sites: Sequence[str]) -> None:
    _heat(axes, layers)
    size = 9 if len(sites) <= FEW else 8 if len(sites) <= 6 else 7
    axes.set_yticks(range(len(sites)), [site_name(site) for site in sites], fontsize=size)
    if len(sites) <= FEW:
        axes.set_xticks(range(len(sites)), [site_name(site).replace("/", "\n") for site in sites], fontsize=size)
    else:
        axes.set(xticks=[], xlabel="the same, from left to right")
    if len(sites) <= 8:
        for (row, column), value in np.ndenumerate(layers):
            if np.isfinite(value):
                colour = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title("how alike are layers?")


def _heat(axes: Axes, values: Floats) -> None:
    axes.set_facecolor(MISSING)
    image = axes.imshow(
        np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.tick_params(length=2)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, pad=0.03, label="CKA", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=8)


def _draw_likeness_by_step(
    axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str], steps: NDArray[np.int64]
) -> None:
    """Where in the sequence the states are still those of the untrained network."""
    drawn = False
    for site, found in sites.items():
        if found.untrained is not None and np.isfinite(found.untrained.by_step).any():
            _line(axes, steps, found.untrained.by_step, color=colours[site])
            drawn = True
    if not drawn:
        say(axes, "likeness to the untrained network, step by step:\nnot known")
        return
    _set_across(axes, steps + 1, "time step")
    axes.set(ylim=(-0.05, 1.05), ylabel="likeness to the untrained (CKA)")
    axes.set_title("at which step is it still random?")


def _draw_classes(
    axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str], steps: NDArray[np.int64]
) -> None:
    """When classes part, and when a sequence is settled on its own."""
    concept = next((name for found in sites.values() for name in found.classes), None)
    if concept is None:
        _draw_participation(axes, sites, colours, steps)
        return
    medians = []
    for site, found in sites.items():
        classes = found.classes.get(concept)
        if classes is None:
            continue
        _line(axes, steps, classes.separation[:-1], color=colours[site])
        if np.isfinite(classes.commitment):
            _line(axes, steps, classes.committed[:-1], color=colours[site], ls="--")
            medians.append(f"{classes.commitment:g}")
    words = "settled on a class" + (f" (median: step {', '.join(medians[:FEW])})" if medians else "")
    _key(axes, {"variance between classes": "-"} | ({words: "--"} if medians else {}))
    _set_across(axes, steps + 1, "time step")
    axes.set_ylabel("share")
    axes.set_title(f"when do classes of {cut(concept)} part?")


def _draw_participation(
    axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str], steps: NDArray[np.int64]
) -> None:
    for site, found in sites.items():
        _line(axes, steps, found.shape.participation_by_step, color=colours[site])
    most = max(len(found.shape.spectrum) for found in sites.values())
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(ylabel=f"participation ratio (1 to {most})", ylim=(0.9, 1.1 * most))
    _set_across(axes, steps + 1, "time step")
    axes.set_title("dimensions that tell sequences apart")


def _draw_clusters(
    axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str], steps: NDArray[np.int64]
) -> None:
    """Into how many groups sequences split."""
    drawn = False
    for place, (site, found) in enumerate(sites.items()):
        if found.clusters is None or not np.isfinite(found.clusters.count[:-1]).any():
            continue
        width = 2 + 2 * (len(sites) - 1 - place)  # lines on top of each other are seen
        _line(
            axes, steps[found.cluster_columns], found.clusters.count[:-1], color=colours[site], ms=5 + width, lw=width
        )
        drawn = True
    if not drawn:
        say(axes, "groups of sequences:\nneeds eight sequences")
        return
    axes.set(ylim=(0, 12.9), yticks=(1, 3, 6, 9, 12), ylabel="groups (12: or more)")
    _set_across(axes, steps + 1, "time step")
    axes.grid(axis="y", color="0.9")
    axes.set_title("into how many groups do sequences split?")


def _draw_dimensions(axes: Axes, sites: Mapping[str, SiteFindings], colours: Mapping[str, str]) -> None:
    """How much of the variance the first principal components hold."""
    drawn = False
    for site, found in sites.items():
        total = found.shape.spectrum.sum()
        if not total > 0:
            continue
        share = np.cumsum(found.shape.spectrum) / total
        label = f"{site_name(site)}: {found.shape.participation_ratio:.1f} of {len(share)}"
        axes.plot(np.arange(1, len(share) + 1), share, color=colours[site], lw=2, label=label)
        drawn = True
    if not drawn:
        say(axes, "dimensions:\nthe states do not vary")
        return
    axes.axhline(0.9, color="0.6", lw=1, ls="--")
    axes.set(ylim=(0, 1.03), xlabel="principal components", ylabel="share of the variance")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(
        loc="lower right", fontsize=8 if len(sites) <= 6 else 6.5, title="dimensions used (participation ratio)",
        title_fontsize=8, labelspacing=0.2, borderaxespad=0.1,
    )  # fmt: skip
    axes.set_title("how many dimensions?")


def _line(axes: Axes, steps: NDArray[np.int64], values: Floats, **style: Any) -> None:
    axes.plot(steps + 1, values, marker="o", **{"ms": 3, "lw": 2} | style)
