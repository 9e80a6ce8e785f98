"""The path of the weights: of all together, of a recurrent cell and its gates, of every other module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..analysis.trajectory_findings import PathTimes, PlaceFindings
from ..analysis.weight_trajectory import WeightTrajectory
from .path_panels import (
    LINES,
    Embedded,
    draw_colour_bar,
    draw_eigenvalues,
    draw_over_time,
    draw_pca,
    draw_phate,
    draw_radius,
    draw_random_walk,
)
from .style import gate_colour, house_style, logarithmic, say

MOST_LINES = 6  # places with a line of their own beside that of all weights
MOST_OTHERS = 8
BARS = 5
WIDE = 14.0  # inches
Lines = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def draw_weight_trajectory(
    whole: WeightTrajectory,
    embedded: Embedded,
    places: Sequence[PlaceFindings],
    *,
    times: PathTimes,
    error: float = 0.0,
    title: str = "",
) -> Figure:
    """The path of all weights, what a random walk would look like, and how each place moves over time.

    Args:
        whole: of all weights.
        embedded: drawn snapshots and where PHATE puts them.
        places: of the model.
        times: of the snapshots.
        error: relative standard error of distances.
        title: when this was, for example ``epoch 3``.
    """
    with house_style():
        figure = _figure(2, f"path of all weights: {title}{_error(error)}", times)
        top, bottom = figure.subplots(2, 4)
        draw_pca(top[0], whole, times, title="PCA")
        draw_phate(top[1], embedded, whole, times, title="PHATE")
        draw_random_walk(top[2], whole)
        _draw_explained(top[3], whole)
        shown = {"all weights": whole} | {found.place: found.path for found in places[:MOST_LINES]}
        colour = dict(zip(shown, ("#000000", *LINES), strict=False))
        left_out = f" ({MOST_LINES} of {len(places)} parts)" if len(places) > MOST_LINES else ""
        draw_over_time(bottom[0], _distances(shown), times, colour=colour)
        bottom[0].set(ylabel="% of the size at the start", ylim=(0, None))
        bottom[0].set_title(f"distance from the start{left_out}")
        _draw_steps(bottom[1], shown, times, colour)
        _draw_turning(bottom[2], shown, times, colour)
        _draw_distances(bottom[3], whole, times)
    return figure


def draw_cell_path(
    found: PlaceFindings,
    embedded: Embedded,
    gates_embedded: Mapping[str, Embedded],
    *,
    times: PathTimes,
    error: float = 0.0,
    title: str = "",
) -> Figure:
    """The path of a recurrent cell's weights and of each of its gates', and how its eigenvalues move.

    Args:
        found: the cell.
        embedded: drawn snapshots and where PHATE puts them.
        gates_embedded: the same of each gate; empty for a cell without gates.
        times: of the snapshots.
        error: relative standard error of distances.
        title: when this was.
    """
    gates = list(gates_embedded)
    rows = 1 + (2 + (found.spectrum is not None)) * bool(gates)
    with house_style():
        figure = _figure(0.25 + 0.75 * rows, f"path of {found.place}: {title}{_error(error)}", times)
        grid = figure.subplots(rows, 4, squeeze=False, height_ratios=[1.0] + [0.65] * (rows - 1))
        draw_pca(grid[0, 0], found.path, times, title="PCA")
        draw_phate(grid[0, 1], embedded, found.path, times, title="PHATE")
        parts = found.gates or {found.place: found.path}
        colour = {part: gate_colour(part, place) for place, part in enumerate(parts)}
        draw_over_time(grid[0, 2], _distances(parts), times, colour=colour)
        grid[0, 2].set(ylabel="% of the size at the start", ylim=(0, None))
        grid[0, 2].set_title("distance from the start")
        draw_radius(grid[0, 3], found.spectrum)
        for column in range(4 if gates else 0):
            if column >= len(gates):
                for axes in grid[1:, column]:
                    axes.set_axis_off()
                continue
            gate = gates[column]
            draw_pca(grid[1, column], found.gates[gate], times, title=f"{gate}: PCA", brief=True)
            draw_phate(
                grid[2, column], gates_embedded[gate], found.gates[gate], times, title=f"{gate}: PHATE", brief=True
            )
            if found.spectrum is not None:
                draw_eigenvalues(grid[3, column], found.spectrum, gate, colour[gate])
    return figure


def draw_other_paths(
    others: Sequence[tuple[PlaceFindings, Embedded]], *, times: PathTimes, error: float = 0.0, title: str = ""
) -> Figure:
    """The paths of modules that are not recurrent, two in a row.

    Args:
        others: of each the path, and where PHATE puts its drawn snapshots.
        times: of the snapshots.
        error: relative standard error of distances.
        title: when this was.
    """
    shown = others[:MOST_OTHERS]
    left_out = f", first {len(shown)} of {len(others)}" if len(shown) < len(others) else ""
    with house_style():
        figure = _figure((len(shown) + 1) // 2, f"paths of other modules: {title}{left_out}{_error(error)}", times)
        grid = figure.subplots((len(shown) + 1) // 2, 4, squeeze=False)
        for number, (found, embedded) in enumerate(shown):
            row, column = number // 2, 2 * (number % 2)
            draw_pca(grid[row, column], found.path, times, title=f"{found.place[-40:]}\nPCA")
            draw_phate(grid[row, column + 1], embedded, found.path, times, title="PHATE")
        for axes in grid.flat[2 * len(shown) :]:
            axes.set_axis_off()
    return figure


def _error(error: float) -> str:
    return f" (sketched, distances to {error:.1%})" if error else ""


def _figure(rows: float, title: str, times: PathTimes) -> Figure:
    """A figure of so many rows of panels, with its title, what the marks mean, and the metric's colours."""
    height = 0.95 + 3.05 * rows
    figure = Figure(figsize=(WIDE, height))
    figure.subplots_adjust(left=0.055, right=0.985, top=1 - 0.95 / height, bottom=0.5 / height, wspace=0.3, hspace=0.42)
    figure.suptitle(title, x=0.01, y=1 - 0.12 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    marks = "square: start   ring: last" + ("   star: best" if times.best is not None else "")
    figure.text(0.5, 1 - 0.16 / height, marks, ha="left", va="top", fontsize=9)
    draw_colour_bar(figure, times, (0.8, 1 - 0.27 / height, 0.18, 0.12 / height))
    return figure


def _draw_explained(axes: Axes, path: WeightTrajectory) -> None:
    real, random = 100 * path.components.explained[:BARS], 100 * path.random.explained[:BARS]
    if not path.components.total > 0:
        say(axes, "no variance to explain")
        return
    places = np.arange(1, len(real) + 1)
    axes.bar(places - 0.2, real, width=0.4, color="#0072B2", label="this path", lw=0)
    axes.bar(places + 0.2, random, width=0.4, color="0.7", label="random walk", lw=0)
    axes.set(ylim=(0, 100), xlim=(0.4, BARS + 0.6), xlabel="principal component", ylabel="% of the variance")
    axes.set_xticks(range(1, BARS + 1))
    axes.legend(loc="upper right")
    words = f"dimensions {path.components.dimension:.1f} (walk {path.random.dimension:.1f})"
    words += f"\nstraightness {path.straightness:.2f} (walk {path.random_straightness:.2f})"
    axes.text(0.98, 0.52, words, transform=axes.transAxes, ha="right", fontsize=8)
    axes.set_title("more than a random walk?")


def _distances(paths: Mapping[str, WeightTrajectory]) -> Lines:
    """In percent of the weights at the start."""
    return {
        name: (path.steps.points, 100 * path.from_start / path.steps.norms[0])
        for name, path in paths.items()
        if path.steps.norms[0] > 0
    }


def _draw_steps(axes: Axes, paths: Mapping[str, WeightTrajectory], times: PathTimes, colour: Mapping[str, str]) -> None:
    lines: Lines = {}
    for name, path in paths.items():
        lengths, norms = path.steps.lengths, path.steps.norms[:-1]
        moved = np.flatnonzero((lengths > 0) & (norms > 0))
        if len(moved):
            lines[name] = (moved + 1, 100 * lengths[moved] / norms[moved])
    if not lines:
        say(axes, "length of each step:\nthe weights have not moved")
        return
    draw_over_time(axes, lines, times, colour=colour, legend=False)
    logarithmic(axes)
    axes.set_ylabel("% of the size before it")
    axes.set_title("length of each step")


def _draw_turning(
    axes: Axes, paths: Mapping[str, WeightTrajectory], times: PathTimes, colour: Mapping[str, str]
) -> None:
    lines = {
        name: (np.arange(2, len(path.steps.norms)), path.steps.cosines)
        for name, path in paths.items()
        if path.steps.cosines.any()
    }
    if not lines:
        say(axes, "turning: needs two steps\nwith a length")
        return
    axes.axhline(0.0, color="0.6", lw=1, ls="--")
    draw_over_time(axes, lines, times, colour=colour, legend=False)
    axes.set(ylim=(-1.25, 1.25), yticks=(-1, -0.5, 0, 0.5, 1), ylabel="cosine with the step before")
    axes.text(0.98, 0.99, "straight on", transform=axes.transAxes, ha="right", va="top", fontsize=8, color="0.35")
    axes.text(0.98, 0.02, "back again", transform=axes.transAxes, ha="right", fontsize=8, color="0.35")
    axes.set_title("turning")


def _draw_distances(axes: Axes, path: WeightTrajectory, times: PathTimes) -> None:
    if not path.distances.any():
        say(axes, "distance between snapshots:\nthere is none")
        return
    image = axes.imshow(path.distances, cmap="cividis", origin="lower", aspect="auto", interpolation="nearest")
    labels = times.labels
    shown = np.unique(np.linspace(0, len(path.distances) - 1, 4).round().astype(int))
    names = [labels[path.steps.points[place]] for place in shown]
    axes.set_xticks(shown, names)
    axes.set_yticks(shown, names)
    axes.set_xlabel(times.unit)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    axes.set_title("distance between snapshots")
