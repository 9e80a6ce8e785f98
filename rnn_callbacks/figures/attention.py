"""Pictures of attention: which step each head looks at from which."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..analysis.attention import AttentionMaps
from .style import house_style

MOST_HEADS = 8
ACROSS = 4


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
        height, wide = 1.1 + 3.0 * rows, 1.5 + 3.1 * max(columns, 2)
        figure = Figure(figsize=(wide, height))
        figure.subplots_adjust(
            left=0.6 / wide, right=1 - 1.1 / wide, top=1 - 1.0 / height, bottom=0.55 / height, wspace=0.25, hspace=0.45
        )
        left_out = f", first {heads} of {len(maps.entropy)} heads" if heads < len(maps.entropy) else ""
        figure.suptitle(
            f"where {name} looks: {title}{left_out}", x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=12,
            fontweight="bold",
        )  # fmt: skip
        note = f"mean weight over {maps.sequences} sequences; looking everywhere alike: {maps.highest:.1f} bits"
        figure.text(0.01, 1 - 0.4 / height, note, fontsize=9, va="top")
        grid = figure.subplots(rows, columns, squeeze=False)
        top = float(maps.mean[:heads].max()) or 1.0
        for head in range(rows * columns):
            axes = grid[head // columns, head % columns]
            if head >= heads:
                axes.set_axis_off()
                continue
            queries, keys = maps.mean.shape[1:]
            image = axes.imshow(
                maps.mean[head], vmin=0, vmax=top, cmap="magma", aspect="auto", interpolation="nearest",
                extent=(0.5, keys + 0.5, queries + 0.5, 0.5),
            )  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set(
                xlabel="looked at: time step" if head // columns == rows - 1 else "",
                ylabel="" if head % columns else "from time step",
            )
            kind = f"head {head}" if maps.by_head else "mean of the heads"
            axes.set_title(f"{kind}: {maps.entropy[head]:.1f} bits")
        bar_axes = figure.add_axes((1 - 0.95 / wide, 0.55 / height, 0.15 / wide, 1 - 1.55 / height))
        figure.colorbar(image, cax=bar_axes, ticks=np.linspace(0, top, 3), format="%.2f", label="weight")
    return figure
