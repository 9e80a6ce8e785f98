"""What only the end of a run can tell: when each quantity had settled, and how near the weights were to their goal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from ..analysis.step_gram import StepGram
from ..analysis.weight_trajectory import squared_distances
from ..weight_snapshots import SnapshotFile
from .comparison import Comparison
from .embeddings import finite_rows
from .quantities import Quantity, quantity_of
from .series import Axis, Series, evenly

SETTLED = 0.1  # share of a quantity's whole range that it may still be off
MOST_POINTS = 200  # snapshots of a run
_EMERGENCE = re.compile(r"probes/concepts/(?P<concept>[^/]+)/emergence_epoch")


@final
@dataclass(frozen=True, eq=False)
class Hindsight:
    """Of R runs and Q quantities of a comparison, on its axis."""

    settled: NDArray[np.float64]  # (Q, R), place from which on a quantity stays near its last value; NaN: it does not
    emerged: dict[str, NDArray[np.float64]]  # by concept, (R,): epoch at which half of its final gain was there
    to_final: list[Series]  # (R,), distance of the weights to the last ones / that at the start; empty where unknown
    to_best: list[Series]  # the same to those of the best epoch

    def order(self, run: int) -> list[str]:
        """Concepts that a run gained, first ones first."""
        return concepts_in_order(self.emerged, run)


def hindsight(comparison: Comparison) -> Hindsight:
    """Look back from the end of each run."""
    pairs = [_to_goals(run.snapshots(), comparison.mode) for run in comparison.runs]
    return Hindsight(
        settled_places(comparison),
        emergence_epochs(comparison),
        [final for final, _ in pairs],
        [best for _, best in pairs],
    )


def settled_places(comparison: Comparison) -> NDArray[np.float64]:
    """`Hindsight.settled` alone, which needs no weights."""
    starts = comparison.starts()
    settled = np.full((len(comparison.quantities), len(comparison.runs)), np.nan)
    for row, quantity in enumerate(comparison.quantities):
        for number, series in enumerate(comparison.series):
            if quantity.tag in series and not (quantity.is_flag or quantity.total):
                settled[row, number] = settled_at(series[quantity.tag], comparison.axis, starts[number])
    return settled


def emergence_epochs(comparison: Comparison) -> dict[str, NDArray[np.float64]]:
    """`Hindsight.emerged` alone: what the last look of each run says, relative to its end."""
    return {
        found["concept"]: comparison.values["final"][row]
        for row, quantity in enumerate(comparison.quantities)
        if (found := _EMERGENCE.fullmatch(quantity.tag))
    }


def concepts_in_order(emerged: Mapping[str, NDArray[np.float64]], run: int) -> list[str]:
    """Concepts that a run gained, first ones first."""
    known = {name: epochs[run] for name, epochs in emerged.items() if np.isfinite(epochs[run])}
    return sorted(known, key=lambda name: known[name])


def with_hindsight(comparison: Comparison, looked_back: Hindsight) -> Comparison:
    """The comparison with two more quantities: the share of the way to the last and to the best weights that is left.

    They are curves and numbers like others; differences in them are not tested.
    """
    goals = {"last": looked_back.to_final, "best": looked_back.to_best}
    if comparison.axis == "time" or not any(len(found.steps) for curves in goals.values() for found in curves):
        return comparison  # when a snapshot was taken is known in epochs and steps
    series = [dict(known) for known in comparison.series]
    added, rows = [], {moment: [known] for moment, known in comparison.values.items()}
    for goal, curves in goals.items():
        tag = f"weight_trajectory/total/left_to_{goal}"
        rank = (quantity_of(tag).rank[0], 97)
        added.append(Quantity(tag, "weight_trajectory", f"way to the {goal} weights that is left", "share", rank=rank))
        for known, curve in zip(series, curves, strict=True):
            if len(curve.steps):
                known[tag] = curve
        for moment, places in comparison.places.items():
            found = [curve.at(at, comparison.axis) for curve, at in zip(curves, places, strict=True)]
            rows[moment].append(np.array([found]))
    return replace(
        comparison,
        series=series,
        quantities=[*comparison.quantities, *added],
        values={moment: np.concatenate(parts) for moment, parts in rows.items()},
    )


def settled_at(series: Series, axis: Axis = "epoch", start: float = np.nan, *, share: float = SETTLED) -> float:
    """Place of the first value from which on all lie within a share of the whole range of the last one.

    NaN for a quantity that never moved, has a single value, or is still outside just before its last value: what was on
    its way until the end has not settled.

    Args:
        series: a quantity over the training.
        axis: of the place.
        start: of the run, for ``time``.
        share: of the range.
    """
    places = series.on(axis, start)
    known = np.isfinite(series.values) & np.isfinite(places)
    values, places = series.values[known], places[known]
    if len(values) < 2 or not values.max() > values.min():
        return np.nan
    values = values / np.abs(values).max() / 2  # the range of huge numbers is no number
    outside = np.flatnonzero(np.abs(values - values[-1]) > share * np.ptp(values))
    first = outside[-1] + 1
    return float(places[first]) if first < len(values) - 1 else np.nan


def _to_goals(saved: SnapshotFile | None, mode: str) -> tuple[Series, Series]:
    """Share of the way to the last and to the best weights that was left at each snapshot."""
    nothing = Series(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0))
    if saved is None or len(saved) < 3:
        return nothing, nothing
    values = [np.nan if entry.value is None else entry.value for entry in saved.entries]
    known = np.flatnonzero(np.isfinite(values))
    better = np.argmax if saved.facts.get("mode", mode) == "max" else np.argmin
    best = int(known[better(np.array(values)[known])]) if len(known) else None
    rows = np.union1d(evenly(len(saved), MOST_POINTS), [] if best is None else [best]).astype(np.int64)
    rows = finite_rows(saved, rows)
    if len(rows) < 2 or rows[0] > 0 or rows[-1] < len(saved) - 1 or (best is not None and best not in rows):
        return nothing, nothing  # there is no start or no goal that is a number
    parts = list(dict.fromkeys(column.part for column in saved.columns))
    gram = StepGram(parts, most=len(rows) + 1)
    gram.extend(lambda part, wanted: saved.read(part, rows[wanted]), len(rows))
    distances = np.sqrt(squared_distances(gram.of(parts).products))
    steps = np.array([saved.entries[row].step for row in rows], np.int64)
    epochs = np.array([saved.entries[row].epoch for row in rows], np.float64)
    found = []
    for goal in (len(rows) - 1, None if best is None else int(np.searchsorted(rows, best))):
        if goal is None or not 0 < distances[0, goal] < np.inf:
            found.append(nothing)
        else:
            left = distances[:, goal] / distances[0, goal]
            found.append(Series(steps, left, np.full(len(rows), np.nan), epochs))
    return found[0], found[1]
