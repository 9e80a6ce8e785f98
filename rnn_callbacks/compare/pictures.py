"""From a comparison to what its pictures show: which quantities get a panel, where lines run, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..figures.comparison import Line, Panel, draw_small_multiples
from ..figures.comparison_planes import KIND_ENTRIES, draw_eigenvalues_of_runs, draw_joint_embedding, draw_skeletons
from .cast import REST, Cast, choose_cast
from .comparison import Comparison
from .embeddings import JointEmbedding
from .planes import choose_planes
from .quantities import METRICS, SECTIONS, Quantity
from .series import Axis, Series, evenly

MOST_THICK = 8  # groups of a single run, beyond which their lines are thin
MOST_POINTS = 300  # of a line; of longer ones the lowest and highest of each stretch remain
MOST_PANELS = 36  # of a section
FAR = 8.0  # times its lowest value
X_LABELS: dict[Axis, str] = {"epoch": "epoch", "step": "step", "time": "seconds since the start"}
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


@final
@dataclass(frozen=True, eq=False)
class Picture:
    """One quantity: its panel, and what must be said about it."""

    quantity: Quantity
    panel: Panel
    words: str  # what the lines show, for those who do not see them
    note: str  # what is not drawn of it; empty where everything is


@final
@dataclass(frozen=True, eq=False)
class Section:
    """Pictures of one kind."""

    key: str
    name: str
    pictures: list[Picture]
    constant: list[str]  # quantities that never change in any run, with their value
    left_out: list[str]  # quantities for which there was no room


def choose_sections(comparison: Comparison, cast: Cast) -> list[Section]:
    """A panel for each headline quantity that changes at all; flags have their own table."""
    claimed = {found.quantity.tag for found in comparison.claimed}
    starts = comparison.starts()  # each looks at every number of a run
    sections = []
    for key, name in SECTIONS.items():
        found = [quantity for quantity in comparison.quantities if quantity.section == key and not quantity.is_flag]
        found = [quantity for quantity in found if quantity.headline]
        ranges = {quantity.tag: _range(comparison, quantity) for quantity in found}
        moving = [quantity for quantity in found if ranges[quantity.tag][0] < ranges[quantity.tag][1]]
        constant = [
            f"{quantity.label} ({ranges[quantity.tag][0]:.4g})"
            for quantity in found
            if ranges[quantity.tag][0] == ranges[quantity.tag][1]
        ]
        order = sorted(moving, key=lambda quantity: quantity.tag not in claimed)  # stable
        shown = {quantity.tag for quantity in order[:MOST_PANELS]}
        pictures = [_picture(comparison, cast, quantity, starts) for quantity in moving if quantity.tag in shown]
        left_out = [quantity.label for quantity in moving if quantity.tag not in shown]
        if found:
            sections.append(Section(key, name, pictures, constant, left_out))
    return sections


def limits(comparison: Comparison, sections: Sequence[Section]) -> tuple[float, float]:
    """From the first to the last place of any line of any section."""
    lines = [line.x for section in sections for picture in section.pictures for line in picture.panel.lines]
    places = np.concatenate([*lines, np.zeros(0)])
    places = places[np.isfinite(places)]
    return (float(places.min()), float(places.max())) if len(places) else (0.0, 1.0)


def points_of(series: Series, quantity: Quantity, axis: Axis, start: float) -> Points:
    """Where a series is drawn: as logged, but events added up, and what stands for "none" left out.

    Several numbers of one epoch are spread over it, the last one at its end, where those of whole epochs are.
    """
    x, y = series.on(axis, start).astype(np.float64), series.values.astype(np.float64)
    if quantity.total:
        y = np.nancumsum(y)
    y = np.where(y == quantity.missing, np.nan, y) if quantity.missing is not None else y
    if axis == "epoch":
        x = _spread(x, series.steps)
    known = np.isfinite(x)
    return x[known], y[known]


def thin(x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS) -> Points:
    """At most so many points, and no spike lost: lowest and highest of each stretch, in their order, and both ends."""
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for rows in np.array_split(np.arange(1, len(x) - 1), (most - 2) // 2):
        known = rows[np.isfinite(y[rows])]
        kept |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])} if len(known) else {int(rows[0])}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def middle(lines: Sequence[Points], logarithmic: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean ``(n,)``, geometric on a logarithmic axis, and range ``(n, 2)`` of runs, at places of `places_of`.

    NaN where one of them has no value: a mean must not jump because a run ends.
    """
    grid = places_of(lines)
    rows = np.array([_at(grid, *line) for line in lines])
    with np.errstate(invalid="ignore", divide="ignore"):
        usual = np.exp(np.log(np.where(rows > 0, rows, np.nan)).mean(0)) if logarithmic else rows.mean(0)
    return usual, np.stack([rows.min(0), rows.max(0)], 1)


def places_of(lines: Sequence[Points]) -> NDArray[np.float64]:
    """Every place where one of the lines has a point; of too many, evenly chosen ones."""
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    chosen: NDArray[np.float64] = grid[evenly(len(grid), MOST_POINTS)]
    return chosen


def figures_of(comparison: Comparison, embeddings: Sequence[JointEmbedding] = ()) -> dict[str, Figure]:
    """Every picture of a comparison as it stands alone, by tag; planes at the last look."""
    cast = choose_cast(comparison)
    legend = cast.legend(comparison)
    sections = choose_sections(comparison, cast)
    at, x_label = limits(comparison, sections), X_LABELS[comparison.axis]
    figures = {
        section.key: draw_small_multiples(
            [picture.panel for picture in section.pictures], x_label=x_label, x_limits=at, legend=legend
        )
        for section in sections
        if section.pictures
    }
    planes = choose_planes(comparison, cast, embeddings)
    for found in planes.landscapes:
        figures[f"eigenvalues/{found.context}"] = draw_eigenvalues_of_runs(found.eigenvalues, legend=legend)
        figures[f"skeletons/{found.context}"] = draw_skeletons(found.skeletons, legend=[*legend, *KIND_ENTRIES])
    for number, (joint, panels) in enumerate(planes.embeddings):
        for panel in panels:
            colours = {track.colour for track in panel.tracks}
            own = [entry for entry in legend if entry.colour in colours]
            figures[f"{joint.kind}/{number}/{panel.title.lower()}"] = draw_joint_embedding(panel, legend=own)
    return figures


def _at(grid: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A line at other places; a gap stays a gap."""
    known = np.where(np.isfinite(y), y, np.nan)
    found: NDArray[np.float64] = np.interp(grid, x, known, left=np.nan, right=np.nan)
    return found


def _spread(epochs: NDArray[np.float64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.flatnonzero(np.isfinite(epochs))
    if len(known) < 2 or len(np.unique(epochs[known])) == len(known):
        return epochs
    ends = known[np.append(np.diff(epochs[known]) != 0, True)]  # the last number of each epoch
    first = int((epochs[known] == epochs[known[0]]).sum())
    before = (steps[known[first - 1]] - steps[known[0]]) / max(first - 1, 1) if first > 1 else 0.0
    at = np.append(steps[known[0]] - before, steps[ends]) if first > 1 else steps[ends].astype(np.float64)
    to = np.append(epochs[known[0]] - 1, epochs[ends]) if first > 1 else epochs[ends]
    if (np.diff(to) < 0).any():  # epochs that were counted anew
        return epochs
    return np.where(np.isfinite(epochs), np.interp(steps, at, to), np.nan)


def _range(comparison: Comparison, quantity: Quantity) -> tuple[float, float]:
    known = [found[quantity.tag].values for found in comparison.series if quantity.tag in found]
    values = np.concatenate([*known, np.zeros(0)])
    values = values[np.isfinite(values) & (values != quantity.missing)]
    return (float(values.min()), float(values.max())) if len(values) else (np.nan, np.nan)


def _picture(comparison: Comparison, cast: Cast, quantity: Quantity, starts: Sequence[float]) -> Picture:
    points = {
        number: points_of(found[quantity.tag], quantity, comparison.axis, starts[number])
        for number, found in enumerate(comparison.series)
        if quantity.tag in found
    }
    points = {number: found for number, found in points.items() if len(found[0])}
    lines = _rest_line(points, cast)
    for group in cast.groups:
        lines += _group_lines(comparison, cast, group, points, quantity.logarithmic)
    logarithmic = quantity.logarithmic or _falls_far(points, quantity)
    panel = Panel(quantity.label, lines, quantity.unit, logarithmic, quantity.whole)
    return Picture(quantity, panel, _words(comparison, cast, quantity), _note(points, quantity))


def _falls_far(points: dict[int, Points], quantity: Quantity) -> bool:
    """A loss that falls by so much that its end would lie flat on the axis: drawn by its logarithm."""
    values = np.concatenate([*(y for _, y in points.values()), np.zeros(0)])
    values = values[np.isfinite(values)]
    falls = quantity.section == METRICS and quantity.better == "low" and len(values) > 0 and values.min() > 0
    return bool(falls and values.max() >= FAR * values.min())


def _rest_line(points: dict[int, Points], cast: Cast) -> list[Line]:
    rest = [points[number] for number in cast.rest if number in points]
    if not rest:
        return []
    grid = places_of(rest)
    rows = np.array([_at(grid, *line) for line in rest])
    kept = np.isfinite(rows).any(0)
    rows = rows[:, kept]
    band = np.stack([np.nanmin(rows, 0), np.nanmax(rows, 0)], 1)
    return [Line(grid[kept], np.nanmedian(rows, 0), "rest", *REST, band=band)]


def _group_lines(
    comparison: Comparison, cast: Cast, group: int, points: dict[int, Points], logarithmic: bool
) -> list[Line]:
    having = [number for number in comparison.groups[group].runs if number in points]
    distinct = [points[number] for number in comparison.groups[group].distinct if number in points]
    alone = len(comparison.groups[group].runs) == 1 and len(cast.groups) <= MOST_THICK
    lines = []
    if cast.singly:
        for number in having:
            lines.append(Line(*thin(*points[number]), f"run{number}", *cast.run_styles[number], strong=alone))
    if len(distinct) > 1 or (having and not cast.singly):
        usual, band = middle(distinct, logarithmic)
        shown = band if not cast.singly and len(distinct) > 1 else np.zeros((0, 2))
        lines.append(
            Line(
                places_of(distinct),
                usual,
                f"group{group}",
                *cast.group_styles[group],
                strong=len(distinct) > 1,
                band=shown,
            )
        )
    return lines


def _words(comparison: Comparison, cast: Cast, quantity: Quantity) -> str:
    """Where each group ended."""
    row = next(number for number, other in enumerate(comparison.quantities) if other is quantity)
    said = []
    for group in cast.groups[:8]:
        values = comparison.values["final"][row, list(comparison.groups[group].distinct)]
        values = values[np.isfinite(values)]
        if len(values):
            said.append(f"{comparison.groups[group].name} ends at {values.mean():.3g}")
    return f"{quantity.label}: {'; '.join(said) or 'no value at the end'}."


def _note(points: dict[int, Points], quantity: Quantity) -> str:
    values = np.concatenate([*(y for _, y in points.values()), np.zeros(0)])
    endless = int(np.isinf(values).sum()) + (int(np.isnan(values).sum()) if quantity.missing is None else 0)
    said = [f"{endless} not finite"] if endless else []
    if quantity.logarithmic and (below := int((values <= 0).sum())):
        said.append(f"{below} of 0 or less, which have no logarithm")
    thinned = max((len(x) for x, _ in points.values()), default=0)
    words = f"Not drawn: {', '.join(said)}." if said else ""
    if thinned > MOST_POINTS:
        words += f" Of up to {thinned} points, the lowest and highest of each stretch."
    return words.strip()
