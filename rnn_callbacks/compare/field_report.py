"""A field report: what a colleague would write after an hour with the runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .comparison import MOMENTS, Comparison
from .flags import FlagSeen, flags_seen
from .hindsight import Hindsight, hindsight
from .likeness import likeness_in_words, likeness_of_runs
from .quantities import SECTIONS
from .tables import as_markdown, plain_markdown, quantities_as_table, runs_as_table
from .words import headline, listed, place, run_names

_NO_FLAG = "No flag was raised. That is no proof of health: look at the numbers above in units of the task."


def field_report(comparison: Comparison, title: str = "Field report") -> str:
    """Markdown: what was compared, what differs, then gates, gradients, fixed points, probes, weights, flags, advice.

    Args:
        comparison: of any number of runs.
        title: of the page.
    """
    looked_back = hindsight(comparison)
    lines = [f"# {plain_markdown(title)}", ""]
    said = headline(comparison)
    lines += [f"- {plain_markdown(line[2:])}" if line.startswith("- ") else plain_markdown(line) for line in said]
    lines = _with_gaps(lines)
    lines += ["", as_markdown(runs_as_table(comparison)), ""]
    if len(comparison.groups) > 1:
        lines += [f"Values below are taken {MOMENTS['matched']}; ± is the spread between seeds.", ""]
    tables = {table.title: table for table in quantities_as_table(comparison)}
    for section, words in SECTIONS.items():
        remarks = _remarks(comparison, looked_back, section)
        if words in tables:
            lines += [as_markdown(tables[words]), ""]
        elif remarks:
            lines += [f"## {words}", ""]
        lines += [f"- {plain_markdown(remark)}" for remark in remarks] + [""] * bool(remarks)
    lines += ["## Flags and what to try", "", *_advice(comparison)]
    problems = [f"{run.name}: {problem}" for run in comparison.runs for problem in run.problems]
    if problems:
        lines += ["", "## What could not be read", "", *(f"- {plain_markdown(problem)}" for problem in problems)]
    return "\n".join(lines) + "\n"


def _remarks(comparison: Comparison, looked_back: Hindsight, section: str) -> list[str]:
    """What only looking back tells of a section."""
    said = []
    runs = comparison.runs
    if section == "metrics":
        for number, run in enumerate(runs[:12]):
            best, end = comparison.places["best"][number], _last_place(comparison, number)
            if np.isfinite(best) and best < end:
                said.append(f"{run.name}: {comparison.metric} was best at {place(comparison, best)}, not at the end")
    elif section == "probes":
        for number, run in enumerate(runs[:12]):
            order = looked_back.order(number)
            if order:
                when = [f"{name} (epoch {looked_back.emerged[name][number]:.1f})" for name in order]
                said.append(f"{run.name}: concepts in the order in which half of their gain was there: {listed(when)}")
    elif section == "representation":
        for found in likeness_of_runs(comparison):
            said += likeness_in_words(comparison, found)[:12]
    elif section == "weight_trajectory":
        for number, run in enumerate(runs[:12]):
            left = looked_back.to_final[number]
            half = np.flatnonzero(left.values <= 0.5)
            if len(half):
                said.append(
                    f"{run.name}: half of the way to its last weights was done by epoch {left.epochs[half[0]]:g}"
                )
    return said


def _last_place(comparison: Comparison, number: int) -> float:
    """Where a run last had a number for the metric; others may have been logged later."""
    series = comparison.series[number].get(comparison.metric)
    if series is None:
        return np.nan
    places = series.on(comparison.axis, comparison.runs[number].start)
    return float(places[np.isfinite(places) & np.isfinite(series.values)].max(initial=-np.inf))


def _advice(comparison: Comparison) -> list[str]:
    flags = flags_seen(comparison)
    if not flags:
        watched = any(quantity.is_flag for quantity in comparison.quantities)
        return [_NO_FLAG if watched else "No flags are known: none of our callbacks watched these runs."]
    return [_flag(comparison, flag) for flag in flags]


def _flag(comparison: Comparison, flag: FlagSeen) -> str:
    runs: Sequence[int] = flag.at_end or flag.ever
    since = place(comparison, flag.first)
    when = f"since {since}" if flag.at_end else f"at {since}, not at the end"
    words = _with_code(flag.meaning.partition(": ")[2] or flag.meaning)
    who = f"{plain_markdown(run_names(comparison, runs))}, {when}"
    return f"- **{plain_markdown(flag.name)}** in `{_code(flag.place)}` ({who})" + (f": {words}" if words else "")


def _with_gaps(lines: list[str]) -> list[str]:
    """Paragraphs apart, items of a list together."""
    spaced: list[str] = []
    for line in lines:
        if spaced and spaced[-1] and not (line.startswith("- ") and spaced[-1].startswith("- ")):
            spaced.append("")
        spaced.append(line)
    return spaced


def _with_code(text: str) -> str:
    """Words of ours, with names between backticks; as they come from a file, no other markup."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain_markdown(text)
    return "".join(f"`{_code(part)}`" if number % 2 else plain_markdown(part) for number, part in enumerate(parts))


def _code(text: str) -> str:
    """Words of a run between backticks, where nothing but these is markup."""
    return "".join(sign if sign.isprintable() and sign != "`" else "'" for sign in text)
