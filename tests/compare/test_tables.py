import csv
import io
import json
import re

import numpy as np
import pytest

from rnn_callbacks.compare import compare
from rnn_callbacks.compare.tables import (
    MOST_COLUMNS,
    MOST_ROWS,
    Table,
    as_csv,
    as_json,
    as_markdown,
    as_text,
    long_table,
    plain_markdown,
    quantities_as_table,
    runs_as_table,
    terminal,
)

from .known_runs import HOSTILE, run, seeds


def some(count=2):
    generator = np.random.default_rng(0)
    return compare(
        seeds(3, generator, cell="gru", quantities=count) + seeds(3, generator, quantities=count, shift=(40,))
    )


def hostile():
    numbers = {"val_loss": [2, 1], HOSTILE: [1, 2], f"probes/concepts/{HOSTILE.replace('/', '')}/flags/x\x1b": [1, 1]}
    runs = [run(HOSTILE + str(n), numbers | {"val_loss": [2, n]}, {HOSTILE: HOSTILE, "n": n}) for n in range(2)]
    return compare(runs, metric=HOSTILE)


def test_csv_holds_every_number_to_the_last_digit():
    comparison = some()
    rows = list(csv.DictReader(io.StringIO(as_csv(long_table(comparison)))))
    assert len(rows) == 2 * 6
    for row in rows:
        number = [one.name for one in comparison.runs].index(row["run"])
        assert float(row["final"]) == comparison.series[number][row["tag"]].values[-1]
        assert row["group"] == ("cell=gru" if number < 3 else "cell=lstm")


def test_csv_of_nothing_is_a_header():
    assert as_csv(long_table(compare([run("a")]))).splitlines() == [
        "run,group,section,quantity,tag,unit,final,matched,best,settled_at"
    ]


def test_json_says_what_the_comparison_knows():
    comparison = some()
    found = json.loads(as_json(comparison))
    assert [one["name"] for one in found["runs"]] == [one.name for one in comparison.runs]
    assert found["runs"][0]["hyperparameters"] == {"cell": "gru", "seed": 0}
    assert found["groups"][0] == {"name": "cell=gru", "runs": ["gru-0", "gru-1", "gru-2"]}
    assert found["differences"]["p_value"] == [one.p_value for one in comparison.differences]
    assert found["differences"]["claimed"] == [True, False]
    assert found["values"]["final"][0] == comparison.values["final"][0, 0]


def test_json_has_null_for_what_is_no_number():
    runs = [run("a", {"loss": [np.nan]}, {"x": float("nan"), "y": float("inf")}), run("b", {"loss": [np.inf]})]
    found = json.loads(as_json(compare(runs)), parse_constant=pytest.fail)
    assert found["runs"][0]["hyperparameters"] == {"x": "nan", "y": "inf"}
    assert found["values"]["final"] == []
    assert found["runs"][0]["places"]["best"] is None


def test_markdown_holds_the_same_cells():
    (table,) = quantities_as_table(some())
    lines = as_markdown(table).splitlines()
    assert lines[0] == "## Metrics"
    cells = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines[4:]]
    assert cells == list(table.rows)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),  # or the backslash escapes ours, and the cell ends there
        ("![x](http://t)", r"!\[x\](http://t)"),
        ("<b>&amp;", "&lt;b>&amp;amp;"),
        ("`*a*`\n# b", r"\`\*a\*\` # b"),
        ("val_loss", "val_loss"),
    ],
)
def test_nothing_in_a_name_is_markup(text, expected):
    assert plain_markdown(text) == expected


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("rich", [False, True])
def test_control_characters_never_reach_the_terminal(details, rich):
    words = terminal(hostile(), details=details, rich=rich)
    assert "title" in words
    assert all(sign.isprintable() or sign == "\n" for sign in re.sub(r"\x1b\[[0-9;]*m", "", words) if not rich) or rich
    assert "\x1b]" not in words
    assert "\x07" not in words
    assert "\x1b[31m" not in words
    assert words.encode("utf-8")


def test_control_characters_reach_no_file_either():
    comparison = hostile()
    for table in (as_csv(long_table(comparison)), *map(as_markdown, [runs_as_table(comparison)])):
        assert all(sign.isprintable() or sign == "\n" for sign in table)
    assert json.loads(as_json(comparison))["runs"][0]["name"] == HOSTILE + "0"


def test_columns_stand_below_each_other():
    words = as_text(Table("T", ("a", "bb"), (("long", "x"), ("s", "yy"))))
    assert words == "T\n  a     bb\n  long  x\n  s     yy"


def test_long_cells_are_cut():
    line = as_text(Table("T", ("a",), (("x" * 100,),))).splitlines()[2]
    assert line == "  " + "x" * 57 + "..."


def test_the_best_runs_come_first():
    values = {"a": [3, 2], "b": [9, 1], "c": [np.nan, np.nan], "d": [0.5, 8]}
    for mode, order in (("min", "dbac"), ("max", "bdac")):
        table = runs_as_table(compare([run(name, {"val_loss": row}) for name, row in values.items()], mode=mode))
        assert "".join(row[0] for row in table.rows) == order
        assert table.title == "Runs by their best val_loss"


def test_settings_are_shown_to_the_last_digit():
    rates = [0.12345678, 0.12345679]
    table = runs_as_table(compare([run(str(n), {"m": [n]}, {"lr": rate, "x": None}) for n, rate in enumerate(rates)]))
    column = table.columns.index("lr")
    assert [float(row[column]) for row in table.rows] == rates


def test_many_runs_are_cut_and_it_is_said():
    table = runs_as_table(compare([run(str(n), {"m": [n]}) for n in range(MOST_ROWS + 1)]))
    assert len(table.rows) == MOST_ROWS
    assert table.title.endswith(f"(first {MOST_ROWS} of {MOST_ROWS + 1})")


def test_of_many_groups_the_best_are_columns():
    """One seed that diverged does not hide its group."""
    runs = []
    for group in range(MOST_COLUMNS + 2):
        for seed in range(2):
            value = np.nan if group == 7 and seed else 10.0 - group
            runs.append(run(f"g{group}s{seed}", {"val_loss": [value], "m": [1.0 + group]}, {"g": group, "seed": seed}))
    tables = quantities_as_table(compare(runs))
    assert tables[0].columns[2:-1] == tuple(f"g={group}" for group in range(2, 8))
    assert "columns below: g=2" in terminal(compare(runs))


def test_means_and_spreads_are_those_of_the_group():
    runs = [run(str(n), {"m": [value]}, {"x": 1}) for n, value in enumerate([1.0, 2.0, 4.5])]
    (table,) = quantities_as_table(compare(runs))
    assert table.rows == (("m", "", "2.50 ± 1.80", ""),)


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_huge_and_tiny_numbers_have_a_mean(size):
    runs = [run(str(n), {"m": [size * n]}, {"x": 1}) for n in (1, 2, 3)]
    (table,) = quantities_as_table(compare(runs))
    assert table.rows[0][2] == f"{2 * size:.3g} ± {size:.1g}"


def test_details_are_shown_when_asked_for():
    numbers = {"loss": [1], "lr-Adam": [0.1], "gates/seconds": [2], "gates/m.l0/flags/dead": [1]}
    comparison = compare([run("a", numbers)])
    shown = [row[0] for table in quantities_as_table(comparison) for row in table.rows]
    every = [row[0] for table in quantities_as_table(comparison, details=True) for row in table.rows]
    assert shown == ["loss"]
    assert every == ["loss", "lr-Adam", "m.l0: flag dead", "gates: seconds of a look"]


def test_what_differs_is_marked():
    (table,) = quantities_as_table(some())
    assert [row[-1] for row in table.rows] == ["differs", ""]
    assert "\x1b[" in terminal(some(), rich=True) or "differs" in terminal(some(), rich=True)
