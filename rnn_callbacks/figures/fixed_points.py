"""The attractor landscape: where the state can rest, what is unstable there, and how real runs move between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.fixed_point_findings import Findings
from ..analysis.landscape import Landscape
from .style import house_style, say

# In the order in which they are drawn: what attracts lies on top.
KINDS = {"repeller": ("#D55E00", "X"), "saddle": ("#E69F00", "D"), "attractor": ("#0072B2", "o")}
COLUMNS = {"attractor": 1, "saddle": 2, "repeller": 3}  # of the story
LABEL_COLOURS = (
    "#CC79A7",
    "#009E73",
    "#56B4E9",
    "#8C6D31",
    "#000000",
    "#7B4FA3",
    "#B5B500",
    "#E377C2",
    "#5254A3",
    "#637939",
)
MOST_EIGENVALUES = 2000


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """What goes into one picture."""

    findings: Findings
    landscape: Landscape
    labels: NDArray[np.float64] | None  # one for each trajectory
    story: NDArray[np.float64]  # (looks, 6): epoch, attractors, saddles, repellers, births, deaths


def draw_landscape(scene: Scene | Callable[[], Scene], *, title: str = "") -> Figure:
    """The landscape in the plane of the visited states; eigenvalues around the unit circle; counts over training.

    Args:
        scene: one look, or what makes it ready when somebody watches.
        title: what and when this was.
    """
    if not isinstance(scene, Scene):
        scene = scene()
    with house_style():
        figure = Figure(figsize=(10.4, 5.6))
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        grid = GridSpec(
            2, 2, figure=figure, width_ratios=(1.75, 1), left=0.075, right=0.985, top=0.83, bottom=0.1, hspace=0.5,
            wspace=0.2,
        )  # fmt: skip
        _draw_plane(figure.add_subplot(grid[:, 0]), scene)
        _draw_eigenvalues(figure.add_subplot(grid[0, 1]), scene)
        _draw_story(figure.add_subplot(grid[1, 1]), scene)
    return figure


def _draw_plane(axes: Axes, scene: Scene) -> None:
    landscape, points = scene.landscape, scene.findings.chapter.skeleton.points
    handles: list[Line2D] = []
    colours, label_handles = _colours(scene)
    for path, colour in zip(landscape.trajectories, colours, strict=True):
        axes.plot(path[:, 0], path[:, 1], color=colour, lw=0.9, alpha=0.5, zorder=1)
        axes.plot(path[-1:, 0], path[-1:, 1], color=colour, marker="s", ms=3.5, ls="", zorder=2)
    if len(landscape.continuum):
        axes.scatter(
            landscape.continuum[:, 0],
            landscape.continuum[:, 1],
            s=26,
            color="#F0E442",
            edgecolors="0.3",
            linewidths=0.4,
            zorder=3,
        )
        continuum = scene.findings.continuum
        dimension = continuum.dimension if continuum else 1
        name = {1: "line", 2: "plane"}.get(dimension, f"{dimension}-dimensional")
        handles.append(Line2D([], [], color="#F0E442", mec="0.3", marker="o", ls="", label=f"{name} attractor"))
    named: dict[str, Line2D] = {}
    for kind, (colour, marker) in KINDS.items():
        chosen = points.kind == kind
        if not chosen.any():
            continue
        place = landscape.points[chosen]
        axes.scatter(
            place[:, 0], place[:, 1], s=75, marker=marker, color=colour, edgecolors="white", linewidths=0.9, zorder=5
        )
        counted = f"{chosen.sum()} {kind}{'' if chosen.sum() == 1 else 's'}"
        if kind == "saddle":
            counted += " (number: unstable directions)"
            for at, count in zip(place, points.unstable[chosen], strict=True):
                axes.text(float(at[0]), float(at[1]), str(count), ha="center", va="center", fontsize=7, zorder=6)
        named[kind] = Line2D([], [], color=colour, marker=marker, ls="", ms=7, mec="white", label=counted)
    handles += [named[kind] for kind in COLUMNS if kind in named]
    if not len(points) and not len(landscape.continuum):
        handles.append(Line2D([], [], ls="", label="no fixed point found"))
    if landscape.trajectories:
        handles.append(Line2D([], [], color="0.5", marker="s", ms=3.5, lw=0.9, label="real runs (square: end)"))
    everything = np.concatenate([landscape.points, landscape.continuum, *landscape.trajectories])
    everything = everything if len(everything) else np.zeros((1, 2))
    low, high = everything.min(0), everything.max(0)
    size = max(float((high - low).max()), 1e-6)
    _set_limits(axes, (low + high) / 2, (high - low) / 2 + 0.06 * size)
    if landscape.arrows:
        tails = landscape.points[[row for row, _ in landscape.arrows]]
        arms = np.array([direction for _, direction in landscape.arrows])
        arms *= 0.075 * size / np.maximum(np.linalg.norm(arms, axis=1, keepdims=True), 1e-12)
        for sign in (-1, 1):
            axes.quiver(
                tails[:, 0], tails[:, 1], sign * arms[:, 0], sign * arms[:, 1], angles="xy", scale_units="xy", scale=1,
                color="#8A3A00", width=0.0028, headwidth=4, headlength=4, headaxislength=4, zorder=4,
            )  # fmt: skip
    if landscape.arrows:
        handles.append(Line2D([], [], color="#8A3A00", lw=1.2, marker=">", ms=4, label="unstable direction"))
    if (points.kind == "attractor").any() or len(landscape.continuum):
        distance = scene.findings.reach.end_distance
        words = f"runs end {distance:.2f} of their spread away from an attractor (median)"
        axes.text(0.01, 0.01, words, transform=axes.transAxes, fontsize=8, color="0.3", va="bottom")
    shares = landscape.plane.explained
    axes.set_xlabel(f"principal component of the visited states ({shares[0]:.0%} of their variance)")
    axes.set_ylabel(f"another one ({shares[1]:.0%})")
    legend = axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.2, handletextpad=0.4,
        borderaxespad=0.1,
    )  # fmt: skip
    if label_handles:
        axes.legend(
            handles=label_handles, loc="upper right", title="label", handlelength=1, labelspacing=0.25, fontsize=8,
            title_fontsize=8, frameon=True, framealpha=0.8, edgecolor="none",
        )  # fmt: skip
        axes.add_artist(legend)


def _set_limits(axes: Axes, middle: NDArray[np.float64], half: NDArray[np.float64]) -> None:
    """One scale for both axes, within the panel as it is: distances in the picture are distances."""
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()  # type: ignore[union-attr]
    panel = np.array([box.width * width, box.height * height])
    half = (half / panel).max() * panel
    axes.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] - half[1], middle[1] + half[1]))


def _colours(scene: Scene) -> tuple[list[str], list[Line2D]]:
    """A colour for each trajectory, and what the colours mean."""
    labels = scene.labels
    if labels is None:
        return ["0.6"] * len(scene.landscape.trajectories), []
    values = np.unique(labels)
    if len(values) > len(LABEL_COLOURS):
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        low, high = float(values[0]), float(values[-1])
        ramp = colormaps["viridis"]
        end = 0.85  # its yellow is hardly seen on white
        shades = [to_hex(ramp(end * (float(value) - low) / (high - low))) for value in labels]
        ends = [
            Line2D([], [], color=to_hex(ramp(share)), label=f"{value:.3g}")
            for share, value in ((0.0, low), (end, high))
        ]
        return shades, ends
    colour = dict(zip(values.tolist(), LABEL_COLOURS, strict=False))
    return (
        [colour[value] for value in labels.tolist()],
        [Line2D([], [], color=colour[value], label=f"{value:g}") for value in values.tolist()],
    )


def _draw_eigenvalues(axes: Axes, scene: Scene) -> None:
    points = scene.findings.chapter.skeleton.points
    axes.set_title("stability: eigenvalues at the points")
    if not len(points):
        say(axes, "no fixed point found" if scene.findings.continuum is None else "no point stands alone")
        return
    circle = np.linspace(0, 2 * np.pi, 200)
    axes.fill(np.cos(circle), np.sin(circle), color="0.94", zorder=0)
    axes.plot(np.cos(circle), np.sin(circle), color="0.4", lw=1, zorder=1)
    kinds = points.kind
    reach = 1.25
    for kind, (colour, marker) in KINDS.items():
        values = points.eigenvalues[kinds == kind].ravel()[:MOST_EIGENVALUES]
        axes.scatter(values.real, values.imag, s=9, marker=marker, color=colour, linewidths=0, alpha=0.8, zorder=3)
        reach = max(reach, 1.1 * float(np.abs(values).max(initial=0.0)))
    _set_limits(axes, np.zeros(2), np.full(2, reach))
    axes.set(xlabel="real part", ylabel="imaginary part")
    axes.text(0.98, 0.02, "outside the circle: grows", transform=axes.transAxes, ha="right", fontsize=8, color="0.3")


def _draw_story(axes: Axes, scene: Scene) -> None:
    epochs = scene.story[:, 0]
    highest = max(float(scene.story[:, 1:4].max(initial=0)), 1.0)
    for kind, column in COLUMNS.items():
        colour, marker = KINDS[kind]
        if kind != "attractor" and not scene.story[:, column].any():
            continue
        axes.plot(
            epochs, scene.story[:, column], color=colour, marker=marker if len(epochs) <= 40 else "", ms=4, lw=1.6,
            label=f"{kind}s",
        )  # fmt: skip
    for column, marker, words in ((4, "^", "appeared"), (5, "v", "vanished")):
        when = scene.story[:, column] > 0
        if when.any():
            axes.plot(
                epochs[when], np.full(when.sum(), -0.1 * highest), color="0.25", marker=marker, ls="", ms=5,
                label=words, clip_on=False,
            )  # fmt: skip
    axes.set(ylim=(-0.18 * highest, 1.5 * highest), xlabel="epoch", ylabel="fixed points")
    axes.set_yticks(
        [tick for tick in MaxNLocator(4, integer=True).tick_values(0, highest) if 0 <= tick <= highest * 1.2]
    )
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_title("over training")
    axes.legend(loc="upper left", ncols=3, handlelength=1.2, columnspacing=0.8, fontsize=8)
