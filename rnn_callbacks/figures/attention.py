"""Pictures of attention: which step each head looks at from which."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ..analysis.attention import AttentionMaps
from .probe_panels import site_name
from .style import house_style

MOST_HEADS = 8
ACROSS = 4
GAMMA = 1 / 3  # of the colours, which are the same at all looks: 1 / 200 of a weight is seen, 1 is not blinding


def draw_attention(name: str, maps: AttentionMaps, *, title: str = "") -> Figure:
    """The mean map of every head.

    Args:
        name: of the attention module.
        maps: its weights.
        title: when this was.
    """
    heads = min(len(maps.entropy), MOST_HEADS)
    columns = min(heads, ACROSS)
    rows = -(-heads // columns)
    with house_style():
        height, wide = 1.3 + 3.0 * rows, 1.5 + 3.1 * max(columns, 2)
        figure = Figure(figsize=(wide, height))
        figure.subplots_adjust(
            left=0.6 / wide, right=1 - 1.1 / wide, top=1 - 1.2 / height, bottom=0.55 / height, wspace=0.25, hspace=0.45
        )
        figure.suptitle(
            f"where {site_name(name, 32)} looks: {title}", x=0.01, y=1 - 0.1 / height, ha="left", va="top",
            fontsize=12, fontweight="bold",
        )  # fmt: skip
        left_out = f" (first {heads} of {len(maps.entropy)} heads)" if heads < len(maps.entropy) else ""
        note = (
            f"Mean over {maps.sequences} sequences{left_out}. Bits: how widely a head looks,\n"
            f"from 0 (at one step) to {maps.highest:.1f} (everywhere alike)."
        )
        figure.text(0.01, 1 - 0.4 / height, note, fontsize=9, va="top")
        grid = figure.subplots(rows, columns, squeeze=False)
        norm = PowerNorm(GAMMA, 0, 1)
        queries, keys = maps.mean.shape[1:]
        for head, axes in enumerate(grid.flat):
            if head >= heads:
                axes.set_axis_off()
                continue
            image = axes.imshow(
                maps.mean[head], norm=norm, cmap="magma", aspect="auto", interpolation="nearest",
                extent=(0.5, keys + 0.5, queries + 0.5, 0.5),
            )  # fmt: skip
            _tick(axes, queries, keys)
            axes.set(
                xlabel="looked at: time step" if head + columns >= heads else "",
                ylabel="" if head % columns else "from time step",
            )
            kind = f"head {head}" if maps.by_head else "mean of the heads"
            axes.set_title(f"{kind}: {maps.entropy[head]:.1f} bits")
        bar_axes = figure.add_axes((1 - 0.95 / wide, 0.55 / height, 0.15 / wide, 1 - 1.75 / height))
        figure.colorbar(image, cax=bar_axes, ticks=(0, 0.01, 0.1, 0.5, 1), format="{x:g}", label="weight")
    return figure


def _tick(axes: Axes, queries: int, keys: int) -> None:
    """The first step, the last one, and some between."""
    axes.set_xticks(np.unique(np.linspace(1, keys, 5).round()))
    axes.set_yticks(np.unique(np.linspace(1, queries, 5).round()))
