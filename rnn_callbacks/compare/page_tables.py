"""The tables of a comparison's page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cast import MOST_GROUPS, Cast
from .claims import FEWEST
from .comparison import MOMENTS, Comparison, Moment
from .flags import flags_seen
from .likeness import likeness_of_runs
from .markup import Cell, name, paragraphs, table, words
from .quantities import METRICS, Quantity
from .words import listed, mean_and_spread, place, run_names

MOST_ROWS = 300
MOST_VALUES = 8  # of a setting
MOST_SETTINGS = 6  # beside each run
MOST_METRICS = 4
MOST_COLUMNS = 24


def settings(comparison: Comparison) -> str:
    """A row for each hyperparameter that is not alike everywhere, and which runs have which value."""
    if not comparison.settings:
        known = any(run.hyperparameters for run in comparison.runs)
        alone = "There is one run only." if len(comparison.runs) == 1 else "They are alike in all runs."
        return paragraphs([alone if known else "None are known: no hparams.yaml or config.yaml beside the runs."])
    rows: list[list[Cell]] = []
    for setting, values in list(comparison.settings.items())[:MOST_ROWS]:
        having: dict[str, list[str]] = {}
        for run, value in zip(comparison.runs, values, strict=True):
            having.setdefault("not set" if value is None else str(value), []).append(run.name)
        said = [f"{value} ({_runs(names)})" for value, names in list(having.items())[:MOST_VALUES]]
        more = f"; {len(having) - MOST_VALUES} more" if len(having) > MOST_VALUES else ""
        rows.append([setting, "; ".join(said) + more, len(having)])
    return table("Settings that are not alike in all runs", ["setting", "values (runs)", "values"], rows)


def _runs(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} runs"


def runs(comparison: Comparison, cast: Cast) -> str:
    """A row for each run: where it ended, and where it was best."""
    shown = list(comparison.settings)[:MOST_SETTINGS]
    metrics = [(row, q) for row, q in enumerate(comparison.quantities) if q.section == METRICS and q.headline]
    metrics = sorted(metrics, key=lambda pair: pair[1].tag != comparison.metric)[:MOST_METRICS]
    of_run = {number: group.name for group in comparison.groups for number in group.runs}
    columns = ["run", "group", *shown, f"last {comparison.axis}"]
    columns += [f"{quantity.label}, last" for _, quantity in metrics]
    if comparison.metric:
        columns += [f"best {comparison.axis}", *(f"{quantity.label}, best" for _, quantity in metrics)]
    rows: list[list[Cell]] = []
    for number, run in enumerate(comparison.runs):
        cells: list[Cell] = [run.name, of_run[number], *(comparison.settings[setting][number] for setting in shown)]
        for moment in ("final", "best") if comparison.metric else ("final",):
            cells.append(float(comparison.places[_moment(moment)][number]))
            cells += [float(comparison.values[_moment(moment)][row, number]) for row, _ in metrics]
        rows.append(cells)
    classes = [f"item {_classes(cast, number)}" for number in range(len(comparison.runs))]
    best = f'"Best" is where {comparison.metric} was at its {comparison.mode}imum.' if comparison.metric else ""
    return table("Every run", columns, rows, classes=classes, note=best)


def _moment(moment: str) -> Moment:
    return next(known for known in MOMENTS if known == moment)


def _classes(cast: Cast, run: int) -> str:
    return cast.classes(f"run{run}") if run in cast.run_styles else "rest"


def claims(comparison: Comparison) -> str:
    """What differs beyond the spread between seeds, and what was compared without that."""
    if not comparison.testable:
        return paragraphs(
            [
                f"Nothing can be told from chance here: that takes {FEWEST} runs with unlike seeds of each of two "
                "configurations. What the runs did is shown below."
            ]
        )
    rows: list[list[Cell]] = []
    several = len(comparison.groups) > 2
    for found in comparison.claimed[:MOST_ROWS]:
        names = [comparison.groups[group].name for group in found.groups]
        sides = [
            f"{label}: {mean_and_spread(mean, spread, found.quantity)}"
            if several
            else mean_and_spread(mean, spread, found.quantity)
            for label, mean, spread in zip(names, found.means, found.spreads, strict=True)
        ]
        when = "best" if found.moment == "best" else place(comparison, float(comparison.places["matched"][0]))
        rows.append([_label(found.quantity), when, *sides, float(found.effect), float(found.adjusted)])
    heads = ["one", "other"] if several else [group.name for group in comparison.groups]
    columns = ["quantity", "compared at", *heads, "difference / spread", "p, corrected"]
    note = (
        "Mean ± standard deviation between seeds. Student's test with few seeds, Welch's with five or more of each: "
        "p is the chance of such a difference between seeds alone, corrected for everything that was compared (Holm)."
    )
    parts = [table("What differs beyond the spread between seeds", columns, rows, note=note)] if rows else []
    told = {found.quantity.label for found in comparison.claimed}
    tested = [found.quantity.label for found in comparison.differences if np.isfinite(found.p_value)]
    others = [label for label in dict.fromkeys(tested) if label not in told]
    if not rows:
        parts.append(paragraphs(["Nothing differs beyond the spread between seeds."]))
    if others:
        parts.append(
            f"<details><summary>No difference beyond chance in {len(others)} other quantities</summary>"
            f"<p>{words(listed(others, MOST_ROWS), 20_000)}. With few seeds, a difference may still be there.</p>"
            "</details>"
        )
    return "\n".join(parts)


def likeness(comparison: Comparison) -> str:
    """How alike the states of runs are to each other."""
    rows: list[list[Cell]] = []
    for found in likeness_of_runs(comparison):
        for first, one in enumerate(comparison.groups[:MOST_GROUPS]):
            for other in comparison.groups[first:MOST_GROUPS]:
                values = found.between(one.distinct, other.distinct)
                values = values[np.isfinite(values)]
                if len(values):
                    pair = f"seeds of {one.name}" if one is other else f"{one.name} and {other.name}"
                    ends = [float(values.mean()), float(values.min()), float(values.max())]
                    rows.append([found.place, found.epoch, pair, *ends, len(values)])
    note = (
        "Centred kernel alignment of the states on the same sequences: 1, the same geometry. Compare what lies between "
        "configurations with what lies between seeds of one."
    )
    columns = ["states of", "epoch", "between", "CKA, mean", "lowest", "highest", "pairs"]
    return table("How alike are the states of the runs?", columns, rows[:MOST_ROWS], note=note) if rows else ""


def flags(comparison: Comparison) -> str:
    """Which flag was raised where, by which runs, and what it means."""
    watched = [quantity for quantity in comparison.quantities if quantity.is_flag]
    seen, starts = flags_seen(comparison), comparison.starts()
    if not watched:
        return paragraphs(["No callback that raises flags was watching."])
    rows: list[list[Cell]] = [
        [
            flag.name,
            flag.place,
            run_names(comparison, flag.at_end) if flag.at_end else "none",
            _when(comparison, f"{flag.noun}/{flag.place}/flags/{flag.name}", flag.ever, starts),
            " ".join(flag.meaning.replace("**", "").replace("`", "").split()),
        ]
        for flag in seen[:MOST_ROWS]
    ]
    columns = ["flag", "where", "stands at the end of", f"raised at ({comparison.axis})", "what it means"]
    silent = f"{len(watched) - len(seen)} flags were watched and never raised."
    return (table("Flags that were raised", columns, rows) if rows else "") + paragraphs([silent])


def _when(comparison: Comparison, tag: str, numbers: Sequence[int], starts: Sequence[float]) -> str:
    said = []
    for number in numbers[:MOST_VALUES]:
        series = comparison.series[number][tag]
        at = series.on(comparison.axis, starts[number])[series.values > 0]
        said.append(f"{comparison.runs[number].name}: {listed((f'{value:g}' for value in at), 6)}")
    more = f"; {len(numbers) - MOST_VALUES} more runs" if len(numbers) > MOST_VALUES else ""
    return "; ".join(said) + more


def numbers(comparison: Comparison, moment: Moment) -> str:
    """Every headline quantity of every run; of many runs the means of groups."""
    rows = [row for row, quantity in enumerate(comparison.quantities) if quantity.headline and not quantity.is_flag]
    values = comparison.values[moment]
    if len(comparison.runs) <= MOST_COLUMNS:
        names, columns, note = [run.name for run in comparison.runs], values, ""
    else:
        groups = comparison.groups[: min(MOST_COLUMNS, MOST_GROUPS)]
        names = [group.name for group in groups]
        known = [np.ma.masked_invalid(values[:, list(group.distinct)]) for group in groups]
        columns = np.stack([of_group.mean(1).filled(np.nan) for of_group in known], 1)
        note = f"Means of {len(groups)} of {len(comparison.groups)} groups; rnn-callbacks compare --format csv has all."
    cells: list[list[Cell]] = [
        [_label(comparison.quantities[row]), *(float(value) for value in columns[row])] for row in rows[:MOST_ROWS]
    ]
    if len(rows) > MOST_ROWS:
        note += f" The first {MOST_ROWS} of {len(rows)} quantities."
    return table(f"Values {MOMENTS[moment]}", ["quantity", *names], cells, note=note.strip())


def _label(quantity: Quantity) -> str:
    return f"{quantity.label} [{quantity.unit}]" if quantity.unit else quantity.label


def problems(comparison: Comparison) -> str:
    """What could not be read."""
    lines = [(run.name, problem) for run in comparison.runs for problem in run.problems]
    if not lines:
        return paragraphs(["Everything was read."])
    items = "".join(f"<li>{name(of_run)}: {words(problem, 400)}</li>" for of_run, problem in lines[:MOST_ROWS])
    more = f"<p>{len(lines) - MOST_ROWS} more.</p>" if len(lines) > MOST_ROWS else ""
    return f"<ul>{items}</ul>{more}"
