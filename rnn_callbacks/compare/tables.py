"""Tables of a comparison: for a terminal, for a document, for a machine."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .claims import mean_of
from .comparison import MOMENTS, Comparison, Moment, as_jsonable
from .hindsight import concepts_in_order, emergence_epochs, settled_places
from .hyperparameters import Value
from .quantities import SECTIONS
from .words import headline, listed, mean_and_spread, number

MOST_COLUMNS = 6  # groups beside each other; the best ones by the metric
MOST_ROWS = 40  # runs below each other
WIDEST = 60  # characters of a cell
LONGEST = 400  # characters of a sentence


@final
@dataclass(frozen=True)
class Table:
    """Words in rows and columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def runs_as_table(comparison: Comparison) -> Table:
    """A row for each run, the best ones first."""
    found = comparison.runs_table()
    order = list(range(len(comparison.runs)))
    if comparison.metric:
        best = comparison.values["best"][_row(comparison, comparison.metric)]
        order.sort(key=lambda run: np.nan_to_num(best[run] if comparison.mode == "min" else -best[run], nan=np.inf))
    if found["group"] == found["run"]:
        del found["group"]
    title = ("Runs" if len(order) > 1 else "Run") + (f" by their best {comparison.metric}" if comparison.metric else "")
    if len(order) > MOST_ROWS:
        title += f" (first {MOST_ROWS} of {len(order)})"
    settings = [name for name in found if name in comparison.settings or name.endswith(" (setting)")]
    words = {name: [(_setting if name in settings else _cell)(value) for value in found[name]] for name in found}
    rows = tuple(tuple(words[name][run] for name in found) for run in order[:MOST_ROWS])
    return Table(title, tuple(found), rows)


def quantities_as_table(comparison: Comparison, *, details: bool = False) -> list[Table]:
    """Of each section a table: a row for each quantity, a column for each group (mean ± spread of its runs).

    Without details only what at least two groups have and is not zero everywhere, and no flags.
    """
    shown = _best_groups(comparison)
    claimed = {found.quantity.tag for found in comparison.claimed if found.moment == "matched"}
    tables = []
    for section, words in SECTIONS.items():
        rows = []
        for row, quantity in enumerate(comparison.quantities):
            if quantity.section != section or not (details or _is_shown(comparison, row)):
                continue
            cells = [_of_group(comparison, row, group) for group in shown]
            rows.append((quantity.label, quantity.unit, *cells, "differs" if quantity.tag in claimed else ""))
        if rows:
            names = tuple(comparison.groups[group].name for group in shown)
            tables.append(Table(words, ("", "unit", *names, ""), tuple(rows)))
    return tables


def _is_shown(comparison: Comparison, row: int) -> bool:
    quantity = comparison.quantities[row]
    if quantity.is_flag or not (quantity.headline or quantity.tag.endswith("/overhead")):
        return False
    values = comparison.values["matched"][row]
    if not np.nan_to_num(values).any():
        return False
    having = [group for group in comparison.groups if np.isfinite(values[list(group.runs)]).any()]
    return len(having) >= min(2, len(comparison.groups))


def _best_groups(comparison: Comparison) -> list[int]:
    groups = list(range(len(comparison.groups)))
    if len(groups) <= MOST_COLUMNS or not comparison.metric:
        return groups[:MOST_COLUMNS]
    values = comparison.values["best"][_row(comparison, comparison.metric)]
    sign = 1 if comparison.mode == "min" else -1
    known = [values[list(comparison.groups[group].distinct)] for group in groups]
    known = [found[np.isfinite(found)] for found in known]
    means = [sign * mean_of(found)[0] if len(found) else np.nan for found in known]
    return sorted(sorted(groups, key=lambda group: np.nan_to_num(means[group], nan=np.inf))[:MOST_COLUMNS])


def _row(comparison: Comparison, tag: str) -> int:
    return next(row for row, quantity in enumerate(comparison.quantities) if quantity.tag == tag)


def _of_group(comparison: Comparison, row: int, group: int, moment: Moment = "matched") -> str:
    values = comparison.values[moment][row, list(comparison.groups[group].distinct)]
    known = values[np.isfinite(values)]
    if not len(known):
        return "-"
    return mean_and_spread(*mean_of(known), comparison.quantities[row])


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    return number(value) if isinstance(value, float) else str(value)


def _setting(value: Value) -> str:
    """As it was set: two that differ in their last digit must not look alike."""
    return "-" if value is None else str(value)


# ---- ways to write them --------------------------------------------------------------------------------------------


def as_text(table: Table) -> str:
    """Aligned columns of plain text."""
    rows = [[_printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_printable(table.title, LONGEST), *(f"  {line}" for line in lines)])


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    rows = [[plain_markdown(cell) for cell in row] for row in table.rows]
    head = [plain_markdown(cell) or " " for cell in table.columns]
    lines = [head, ["---"] * len(head), *rows]
    return f"## {plain_markdown(table.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_markdown(text: str) -> str:
    """Words of a run in Markdown: on one line, and nothing in them is markup."""
    shown = _printable(text, 10**6).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", shown)


def _printable(text: str, widest: int = WIDEST) -> str:
    """On one line, without control characters: what names hold must not steer a terminal."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= widest else plain[: widest - 3] + "..."


def long_table(comparison: Comparison) -> dict[str, list[Value]]:
    """A row for each quantity of each run; made for ``pandas.DataFrame``."""
    of_run = {number: group.name for group in comparison.groups for number in group.runs}
    settled = settled_places(comparison)
    rows = []
    for row, quantity in enumerate(comparison.quantities):
        for run, found in enumerate(comparison.runs):
            values = [as_jsonable(comparison.values[moment][row, run]) for moment in MOMENTS]
            if any(value is not None for value in values):
                named = (found.name, of_run[run], quantity.section, quantity.label, quantity.tag, quantity.unit)
                rows.append((*named, *values, as_jsonable(settled[row, run])))
    names = ("run", "group", "section", "quantity", "tag", "unit", *MOMENTS, "settled_at")
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) or [() for _ in names]
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def as_csv(table: Mapping[str, Sequence[Value]]) -> str:
    """Comma-separated values, a header first; empty where there is none. Control characters become spaces."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(_printable(name, 10**6) for name in table)
    for row in zip(*table.values(), strict=True):
        writer.writerow(_printable(value, 10**6) if isinstance(value, str) else value for value in row)
    return content.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything that the tables hold, for programs; numbers that are none are null."""
    emerged = emergence_epochs(comparison)
    return json.dumps(
        {
            "headline": headline(comparison),
            "axis": comparison.axis,
            "metric": comparison.metric or None,
            "mode": comparison.mode,
            "groups": [
                {"name": group.name, "runs": [comparison.runs[run].name for run in group.runs]}
                for group in comparison.groups
            ],
            "runs": [
                {
                    "name": run.name,
                    "folder": run.folder,
                    "hyperparameters": _jsonable(run.hyperparameters),
                    "places": {moment: as_jsonable(comparison.places[moment][number]) for moment in MOMENTS},
                    "concepts_in_order": concepts_in_order(emerged, number),
                    "problems": run.problems,
                }
                for number, run in enumerate(comparison.runs)
            ],
            "values": long_table(comparison),
            "differences": comparison.differences_table(),
        },
        indent=1,
        allow_nan=False,
    )


def _jsonable(settings: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name: str(value) if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in settings.items()
    }


def terminal(comparison: Comparison, *, details: bool = False, rich: bool = False) -> str:
    """Headline and tables for a terminal; without colours where they could not be seen."""
    tables = [runs_as_table(comparison), *quantities_as_table(comparison, details=details)]
    if len(comparison.groups) > MOST_COLUMNS:
        shown = [comparison.groups[group].name for group in _best_groups(comparison)]
        tables[0] = Table(f"{tables[0].title}; columns below: {listed(shown)}", tables[0].columns, tables[0].rows)
    words = [_printable(line, LONGEST) for line in headline(comparison)]
    if rich:
        return _coloured(words, tables)
    return "\n".join(words) + "\n\n" + "\n\n".join(as_text(table) for table in tables)


def _coloured(words: Sequence[str], tables: Sequence[Table]) -> str:
    from rich import box  # an extra
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as captured:
        for line in words:
            console.print(Text(line, style="" if line.startswith("- ") else "bold"))
        for table in tables:
            drawn = RichTable(
                title=Text(_printable(table.title, LONGEST), style="bold"),
                title_justify="left",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
            )
            for name in table.columns:
                drawn.add_column(Text(_printable(name)), overflow="fold")
            for row in table.rows:
                cells = [Text(_printable(cell)) for cell in row]
                drawn.add_row(*cells, style="green" if row[-1] == "differs" else None)
            console.print(drawn)
    return captured.get()
