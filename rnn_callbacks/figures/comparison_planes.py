"""Runs side by side in planes: their eigenvalues, their fixed points, and their paths in a common space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .comparison import GREY, WIDE, Entry, drawable, grid_of

MARKERS = {"attractor": ("o", True), "saddle": ("D", False), "repeller": ("X", True)}  # shape, filled
SQUARE = 3.3  # inches of a panel
KIND_ENTRIES = tuple(Entry(kind, GREY, "-", marker, filled) for kind, (marker, filled) in MARKERS.items())


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """What is seen at some positions of a slider."""

    points: NDArray[np.float64]  # (m, 2)
    first: int  # position, from 0
    last: int
    kinds: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))  # (m,), keys of MARKERS; or none


@final
@dataclass(frozen=True, eq=False)
class Track:
    """One run in a plane."""

    key: str
    colour: str
    frames: Sequence[Frame]
    dash: str = "-"
    path: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))  # (p, 2), always seen; NaN breaks it


@final
@dataclass(frozen=True, eq=False)
class Scatter:
    """Runs that share a plane."""

    title: str
    tracks: Sequence[Track]
    labels: tuple[str, str] = ("", "")  # of both axes


def draw_eigenvalues_of_runs(
    panels: Sequence[Scatter],
    *,
    reach: float | None = None,
    columns: int = 3,
    titled: bool = True,
    legend: Sequence[Entry] = (),
) -> Figure:
    """Eigenvalues at fixed points around the unit circle: what lies outside grows. Alike for any architecture.

    Args:
        panels: one for each group; points are real and imaginary parts.
        reach: how far the axes go; by default as far as the farthest point of any panel.
        columns: panels side by side.
        titled: whether panels carry their titles.
        legend: whose colours these are.
    """
    reach = reach or reach_of(panels)
    turn = np.linspace(0, 2 * np.pi, 73)

    def draw(axes: Axes, number: int) -> None:
        axes.fill(np.cos(turn), np.sin(turn), color="0.94", zorder=0)
        axes.plot(np.cos(turn), np.sin(turn), color="0.4", lw=1, zorder=1)
        for track in panels[number].tracks:
            for frame in track.frames:
                _draw_dots(axes, frame, track, 0.004 * reach)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="real part", ylabel="imaginary part")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return grid_of(
        [panel.title if titled else "" for panel in panels], draw, columns=columns, high=SQUARE, legend=legend
    )


def reach_of(panels: Sequence[Scatter]) -> float:
    """How far the axes of eigenvalues must go, at least a little beyond the unit circle."""
    frames = [frame.points for panel in panels for track in panel.tracks for frame in track.frames]
    return max([1.2, *(1.1 * float(np.abs(points).max()) for points in frames if len(points))])


def draw_skeletons(
    panels: Sequence[Scatter], *, columns: int = 3, titled: bool = True, legend: Sequence[Entry] = ()
) -> Figure:
    """Fixed points of each run in a plane of its own: filled circles attract, open diamonds are saddles, crosses repel.

    Args:
        panels: one for each run, or for each group that shares a plane.
        columns: panels side by side.
        titled: whether panels carry their titles.
        legend: whose colours these are.
    """

    def draw(axes: Axes, number: int) -> None:
        panel = panels[number]
        for track in panel.tracks:
            axes.plot(*track.path.T, color="0.75", lw=0.8, zorder=1)
            for frame in track.frames:
                _draw_kinds(axes, frame, track)
        _draw_plane(axes, panel)

    return grid_of(
        [panel.title if titled else "" for panel in panels], draw, columns=columns, high=SQUARE, legend=legend
    )


def draw_joint_embedding(panel: Scatter, *, titled: bool = True, legend: Sequence[Entry] = ()) -> Figure:
    """Paths of several runs in one plane, each with a dot for where it is; a ring marks its beginning.

    Args:
        panel: paths in order of time.
        titled: whether the panel carries its title.
        legend: whose colours these are.
    """

    def draw(axes: Axes, _: int) -> None:
        for track in panel.tracks:
            axes.plot(*track.path.T, color=track.colour, ls=track.dash, lw=1.3, alpha=0.7, gid=track.key, zorder=2)
            axes.plot(
                *track.path[:1].T, color=track.colour, marker="o", mfc="white", ms=5, ls="", gid=track.key, zorder=3
            )
            for frame in track.frames:
                axes.plot(
                    *frame.points.T, color=track.colour, marker="o", mec="white", mew=0.8, ms=8, ls="", zorder=4,
                    gid=_gid(track, frame), visible=_is_last(track, frame),
                )  # fmt: skip
        _draw_plane(axes, panel)

    titles = [panel.title if titled else ""]
    return grid_of(titles, draw, columns=1, high=1.15 * SQUARE, wide=1.35 * WIDE, legend=legend)


def _draw_dots(axes: Axes, frame: Frame, track: Track, size: float) -> None:
    """Many dots as one path of very short strokes with round ends: a fifth of the size of markers in a page."""
    x, y = np.round(frame.points, 3).T
    strokes = np.stack([[x - size, x + size, np.full(len(x), np.nan)], [y, y, np.full(len(x), np.nan)]])
    (dots,) = axes.plot(
        *strokes.transpose(0, 2, 1).reshape(2, -1), color=track.colour, lw=3, solid_capstyle="round", alpha=0.7,
        gid=_gid(track, frame), visible=_is_last(track, frame), zorder=3,
    )  # fmt: skip
    dots.get_path().should_simplify = False


def _draw_kinds(axes: Axes, frame: Frame, track: Track) -> None:
    seen = _is_last(track, frame)
    for kind, (marker, filled) in MARKERS.items():
        chosen = frame.points[frame.kinds == kind]
        if len(chosen):
            axes.plot(
                *chosen.T, marker=marker, ls="", ms=7, color=track.colour, mfc=track.colour if filled else "white",
                mec="white" if filled else track.colour, mew=0.6 if filled else 1.6, zorder=3 if filled else 2,
                gid=_gid(track, frame), visible=seen,
            )  # fmt: skip
    if not len(frame.points):
        axes.text(
            0.5, 0.5, "no fixed point found", ha="center", transform=axes.transAxes, color="0.3",
            gid=_gid(track, frame), visible=seen,
        )  # fmt: skip


def _draw_plane(axes: Axes, panel: Scatter) -> None:
    axes.set_xlabel(drawable(panel.labels[0]), parse_math=False, labelpad=1)
    axes.set_ylabel(drawable(panel.labels[1]), parse_math=False, labelpad=1)
    everything = [np.concatenate([track.path, *(frame.points for frame in track.frames)]) for track in panel.tracks]
    points = np.concatenate([*everything, np.zeros((0, 2))])
    points = points[np.isfinite(points).all(1)]
    if len(points):
        low, high = points.min(0), points.max(0)
        box, (width, height) = axes.get_position(), axes.figure.get_size_inches()  # type: ignore[union-attr]
        room = np.array([box.width * width, box.height * height])
        half = max(float(((high - low) / 2 * 1.15 / room).max()), 1e-6) * room  # distances in it are distances
        middle = (low + high) / 2
        axes.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] - half[1], middle[1] + half[1]))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _gid(track: Track, frame: Frame) -> str:
    return f"{track.key}-frame-{frame.first}-{frame.last}"


def _is_last(track: Track, frame: Frame) -> bool:
    """Where no slider is, the last frame is seen."""
    return frame.last == max(other.last for other in track.frames)
