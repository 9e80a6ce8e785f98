"""Runs side by side: what they were set to, how they went, where they ended, and what of it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from .claims import ALPHA, Difference, claim, find_differences, grain
from .groups import Group, differing, find_groups
from .hyperparameters import Value
from .metric_choice import Mode, choose_metric
from .quantities import METRICS, Quantity, common_names, common_series, quantity_of
from .resumption import NOT_METRICS
from .runs import Run
from .series import AXES, Axis, Series

Moment = Literal["final", "matched", "best"]
MOMENTS: dict[Moment, str] = {
    "final": "at each run's own end",
    "matched": "at the last place that all runs reached",
    "best": "where each run's metric was best",
}


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """R runs compared by Q quantities."""

    runs: list[Run]
    names: list[Mapping[str, str]]  # of each run its layers that have another name here; see `common_names`
    series: list[dict[str, Series]]  # of each run, under names that all have in common
    groups: list[Group]
    axis: Axis
    metric: str  # by which the best place of a run is chosen; empty without any
    mode: Mode
    quantities: list[Quantity]  # (Q,), in the order of their sections
    values: dict[Moment, NDArray[np.float64]]  # each (Q, R); NaN where a run does not have the quantity
    places: dict[Moment, NDArray[np.float64]]  # each (R,): epoch, step or seconds at which the values were taken
    settings: dict[str, list[Value]]  # hyperparameters that are not alike everywhere, of each run
    differences: list[Difference]  # everything that was tested; `claimed` where it is more than seeds explain

    @property
    def claimed(self) -> list[Difference]:
        """What differs beyond the spread between seeds, largest effects first."""
        return sorted((found for found in self.differences if found.claimed), key=lambda found: -abs(found.effect))

    @property
    def testable(self) -> bool:
        """Whether there are seeds enough to tell anything from chance."""
        return any(np.isfinite(found.p_value) for found in self.differences)

    def starts(self) -> list[float]:
        """When each run began, in seconds since 1970."""
        return [run.start for run in self.runs]

    def runs_table(self) -> dict[str, list[Value]]:
        """A row for each run: name, group, settings that differ, and where it ended; made for ``pandas.DataFrame``."""
        of_run = {number: group.name for group in self.groups for number in group.runs}
        table: dict[str, list[Value]] = {
            "run": [run.name for run in self.runs],
            "group": [of_run[number] for number in range(len(self.runs))],
        }
        table |= {_unlike(table, name, "setting"): values for name, values in self.settings.items()}
        table[_unlike(table, "last epoch")] = [as_jsonable(run.last_epoch) for run in self.runs]
        table[_unlike(table, "last step")] = [run.last_step for run in self.runs]
        if self.metric:
            rows = [number for number, quantity in enumerate(self.quantities) if quantity.tag == self.metric]
            table[_unlike(table, f"best {self.axis}")] = [as_jsonable(place) for place in self.places["best"]]
            table[_unlike(table, f"best {self.metric}")] = [
                as_jsonable(value) for value in self.values["best"][rows[0]]
            ]
        return table

    def values_table(self, moment: Moment = "final", *, details: bool = False) -> dict[str, list[Value]]:
        """A row for each quantity, a column for each run; made for ``pandas.DataFrame``."""
        rows = [number for number, quantity in enumerate(self.quantities) if quantity.headline or details]
        table: dict[str, list[Value]] = {
            "section": [self.quantities[row].section for row in rows],
            "quantity": [self.quantities[row].label for row in rows],
            "unit": [self.quantities[row].unit for row in rows],
            "tag": [self.quantities[row].tag for row in rows],
        }
        for number, run in enumerate(self.runs):
            name = _unlike(table, run.name, "run")
            table[name] = [as_jsonable(self.values[moment][row, number]) for row in rows]
        return table

    def differences_table(self) -> dict[str, list[Value]]:
        """A row for each quantity in each pair of groups; made for ``pandas.DataFrame``."""
        rows = self.differences
        return {
            "quantity": [found.quantity.label for found in rows],
            "tag": [found.quantity.tag for found in rows],
            "moment": [found.moment for found in rows],
            "group_a": [self.groups[found.groups[0]].name for found in rows],
            "group_b": [self.groups[found.groups[1]].name for found in rows],
            "mean_a": [as_jsonable(found.means[0]) for found in rows],
            "mean_b": [as_jsonable(found.means[1]) for found in rows],
            "spread_a": [as_jsonable(found.spreads[0]) for found in rows],
            "spread_b": [as_jsonable(found.spreads[1]) for found in rows],
            "runs_a": [found.counts[0] for found in rows],
            "runs_b": [found.counts[1] for found in rows],
            "effect": [as_jsonable(found.effect) for found in rows],
            "p_value": [as_jsonable(found.p_value) for found in rows],
            "p_adjusted": [as_jsonable(found.adjusted) for found in rows],
            "claimed": [found.claimed for found in rows],
        }


def compare(
    runs: Sequence[Run],
    *,
    group_by: Sequence[str] = (),
    axis: Axis | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    tags: Sequence[str] = (),
    alpha: float = ALPHA,
) -> Comparison:
    """Compare runs, from the same numbers that TensorBoard shows.

    Args:
        runs: from `load_runs`.
        group_by: hyperparameters that tell configurations apart; see `find_groups`.
        axis: ``epoch``, ``step`` or ``time`` (seconds since the run began) by which runs are put side by side; epochs
            where all runs have logged them, else steps.
        metric: the metric that says which epoch of a run is its best; by default the one that
            `WeightTrajectoryLogger` followed, else a validation loss, else whatever all runs have.
        mode: whether ``min`` or ``max`` of it is best; by default as its name suggests.
        tags: patterns as of file names (``probes/*``); with any, just the numbers that are like one of them are
            compared, also those that are details otherwise.
        alpha: chance of any false claim, over everything that is compared.

    Raises:
        ValueError: without runs, for a hyperparameter, axis, metric, mode or tag that does not exist, or for an alpha
            that is no chance.
    """
    if not runs:
        raise ValueError("nothing to compare: got no run")
    if axis is not None and axis not in AXES:
        raise ValueError(f"axis must be one of {', '.join(AXES)}, got {axis!r}")
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    groups = find_groups(runs, group_by)
    names = common_names(runs)
    series = common_series(runs, names)
    axis = axis or _best_axis(runs)
    metric, mode = choose_metric(runs, metric, mode)
    quantities = _quantities(series, tags, metric)
    starts = [run.start for run in runs]
    ends = np.array([_end(found, axis, start) for found, start in zip(series, starts, strict=True)])
    best = [_best_place(found.get(metric), mode, axis, start) for found, start in zip(series, starts, strict=True)]
    common = float(np.nanmin(ends)) if np.isfinite(ends).any() else np.nan
    places: dict[Moment, NDArray[np.float64]] = {
        "final": ends,
        "matched": np.full(len(runs), common),
        "best": np.array(best),
    }
    values = {
        moment: np.array(
            [
                [_value(found.get(quantity.tag), quantity, place, axis, start) for found, place, start in sides]
                for quantity in quantities
            ]
        ).reshape(len(quantities), len(runs))
        for moment, at in places.items()
        for sides in [list(zip(series, at, starts, strict=True))]
    }
    headline = [row for row, quantity in enumerate(quantities) if quantity.headline]
    tested: list[Difference] = []
    for moment in ("matched", "best"):
        rows = [row for row in headline if moment == "matched" or quantities[row].section == METRICS]
        tested += find_differences(
            values[moment][rows],
            [quantities[row] for row in rows],
            groups,
            moment=moment,
            grains=[_grain(values[moment][row], quantities[row].tag, series) for row in rows],
        )
    return Comparison(
        list(runs),
        names,
        series,
        groups,
        axis,
        metric,
        mode,
        quantities,
        values,
        places,
        differing(runs),
        claim(tested, alpha),
    )


def _quantities(series: Sequence[dict[str, Series]], patterns: Sequence[str], metric: str) -> list[Quantity]:
    having = dict.fromkeys(tag for found in series for tag in found if tag not in NOT_METRICS)
    chosen = [tag for tag in having if any(fnmatchcase(tag, pattern) for pattern in patterns)]
    if patterns and not chosen:
        raise ValueError(
            f"no tag is like {' or '.join(patterns)}; there are, among others: {', '.join(list(having)[:8]) or 'none'}"
        )
    kept = dict.fromkeys([*chosen, metric] if patterns and metric else chosen or having)
    quantities = [quantity_of(tag) for tag in kept]
    if patterns:
        quantities = [
            replace(quantity, headline=quantity.tag in chosen and not quantity.is_diagnostic) for quantity in quantities
        ]
    return sorted(quantities, key=lambda found: (found.rank, found.label))


def as_jsonable(value: float) -> float | None:
    """A number, None where it is none: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _unlike(table: Mapping[str, object], name: str, kind: str = "result") -> str:
    """A name for another column, so that what a run calls its settings or itself replaces none."""
    while name in table:
        name = f"{name} ({kind})"
    return name


def _grain(row: NDArray[np.float64], tag: str, series: Sequence[Mapping[str, Series]]) -> float:
    """Distance between the values that a quantity can have, from all that were logged."""
    if not grain(row):
        return 0.0
    return grain(np.concatenate([found[tag].values for found in series if tag in found]))


def _best_axis(runs: Sequence[Run]) -> Axis:
    return "epoch" if all(np.isfinite(run.last_epoch) for run in runs if run.series) else "step"


def _end(series: dict[str, Series], axis: Axis, start: float) -> float:
    ends = [float(np.nanmax(found.on(axis, start))) for found in series.values() if _known(found.on(axis, start))]
    return max(ends, default=np.nan)


def _known(places: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(places).any())


def _best_place(series: Series | None, mode: Mode, axis: Axis, start: float) -> float:
    if series is None:
        return np.nan
    places = series.on(axis, start)
    known = np.flatnonzero(np.isfinite(series.values) & np.isfinite(places))
    if not len(known):
        return np.nan
    values = series.values[known]
    return float(places[known[int(values.argmin() if mode == "min" else values.argmax())]])


def _value(series: Series | None, quantity: Quantity, place: float, axis: Axis, start: float) -> float:
    if series is None or not np.isfinite(place):
        return np.nan
    if quantity.total:
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.nansum(series.values[series.on(axis, start) <= place]))
    value = series.at(place, axis, start)
    return np.nan if value == quantity.missing else value
