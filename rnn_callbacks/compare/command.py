"""``rnn-callbacks compare`` and ``rnn-callbacks show``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from .comparison import Comparison, compare
from .runs import Run, load_runs
from .series import AXES
from .tables import as_csv, as_json, as_markdown, long_table, quantities_as_table, runs_as_table, terminal
from .words import headline

FORMATS = ("table", "json", "csv", "markdown")
COMPARE = """\
Put runs side by side: what they were set to, how they went, and what of it is more than chance.

  rnn-callbacks compare lightning_logs                      every run under a folder
  rnn-callbacks compare lightning_logs/version_{0,3,7}      some of them
  rnn-callbacks compare logs --group-by cell,lr             runs with the same cell and lr are seeds of one another
  rnn-callbacks compare logs --html report.html             a page to look at, or to send to a colleague
  rnn-callbacks compare logs --report report.md             a field report with flags and what to try
  rnn-callbacks compare logs --format csv > runs.csv        for pandas: a row for each quantity of each run
  rnn-callbacks compare logs --tensorboard by_epoch         the same runs for TensorBoard, with epochs as axis
"""
EXITS = """\
exit codes: 0 done; 1 something differs beyond the spread between seeds (only with --exit-code); 2 wrong usage, or no
run was found. What could not be read is named on the error stream and left out.
"""
SHOW = """\
One run (or several, one after the other) in the same form as a comparison.

  rnn-callbacks show lightning_logs/version_3
  rnn-callbacks show lightning_logs/version_3 --report version_3.md
"""


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``compare``."""
    parser.add_argument("places", nargs="+", metavar="FOLDER", help="run folders, folders of runs, or patterns")
    parser.add_argument(
        "--group-by",
        default="",
        metavar="NAME,...",
        help="hyperparameters that make a configuration; runs alike in them are seeds of one another. Also "
        "'experiment' (the folder above a run) or 'none' (each run for itself). Default: all but seeds and paths",
    )
    parser.add_argument("--align", choices=AXES, default=None, help="axis on which runs meet (default: epoch)")
    parser.add_argument("--metric", default=None, help="metric that says which epoch of a run is best")
    parser.add_argument("--mode", choices=("min", "max"), default=None, help="whether its least or its most is best")
    parser.add_argument(
        "--tags",
        action="append",
        default=[],
        metavar="PATTERN",
        help="compare only numbers whose tag is like this, 'probes/*' or '*/norm'; can be repeated",
    )
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 if something differs beyond chance")
    _add_outputs(parser)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``show``."""
    parser.add_argument("places", nargs="+", metavar="RUN", help="a run's folder")
    _add_outputs(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    parser.add_argument("--all", action="store_true", help="also print the numbers that are details")
    parser.add_argument("--html", type=Path, default=None, metavar="FILE", help="write a page that stands alone")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="write a field report, Markdown")
    parser.add_argument(
        "--tensorboard", type=Path, default=None, metavar="DIR", help="write event files by epoch into a new folder"
    )


def run_compare(options: argparse.Namespace) -> int:
    """``rnn-callbacks compare``; the exit code."""
    runs = _with_numbers(load_runs(*options.places))
    comparison = compare(
        runs,
        group_by=[name.strip() for name in options.group_by.split(",") if name.strip()],
        axis=options.align,
        metric=options.metric,
        mode=options.mode,
        tags=options.tags,
    )
    _write(comparison, options)
    return int(options.exit_code and bool(comparison.claimed))


def _with_numbers(runs: list[Run]) -> list[Run]:
    """Without runs that have logged nothing yet, which are named."""
    empty = [run for run in runs if not run.series]
    if len(empty) == len(runs):
        raise ValueError("no run has logged any number")
    for run in empty:
        _say(f"{run.name}: has logged no number; left out")
        _say_problems([run])
    return [run for run in runs if run.series]


def run_show(options: argparse.Namespace) -> int:
    """``rnn-callbacks show``; the exit code."""
    runs = load_runs(*options.places)
    if len(runs) > 1 and any((options.html, options.report, options.tensorboard)):
        raise ValueError(f"show writes files of one run, got {len(runs)}: name one, or use compare")
    for number, run in enumerate(runs):
        if number:
            _print("")
        _write(compare([run]), options)
    return 0


def _write(comparison: Comparison, options: argparse.Namespace) -> None:
    """Files first, so that a closed pipe loses nothing; then what is printed."""
    if options.html is not None or options.tensorboard is not None:
        _write_pictures(comparison, options)
    if options.report is not None:
        from .field_report import field_report

        options.report.write_text(field_report(comparison), encoding="utf-8")
    _print(_printed(comparison, options))
    for path in (options.html, options.report, options.tensorboard):
        if path is not None:
            _say(f"written: {path}")
    _say_problems(comparison.runs)


def _write_pictures(comparison: Comparison, options: argparse.Namespace) -> None:
    from .embeddings import joint_embeddings  # with what they bring, only for those who want pictures
    from .hindsight import hindsight, with_hindsight
    from .page import write_page
    from .pictures import figures_of
    from .to_tensorboard import write_tensorboard

    whole, embeddings = with_hindsight(comparison, hindsight(comparison)), joint_embeddings(comparison)
    if options.html is not None:
        write_page(whole, options.html, embeddings=embeddings, headline=headline(comparison))
    if options.tensorboard is not None:
        write_tensorboard(whole, options.tensorboard, figures_of(whole, embeddings))


def _printed(comparison: Comparison, options: argparse.Namespace) -> str:
    if options.format == "json":
        return as_json(comparison)
    if options.format == "csv":
        return as_csv(long_table(comparison)).rstrip("\n")
    if options.format == "markdown":
        tables = [runs_as_table(comparison), *quantities_as_table(comparison, details=options.all)]
        return "\n\n".join(as_markdown(table) for table in tables)
    rich = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    return terminal(comparison, details=options.all, rich=rich)


def _print(words: str) -> None:
    """To the output, in the letters that it has; a reader who has seen enough (``| head``) is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(words.encode(encoding, "replace").decode(encoding), flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_problems(runs: list[Run]) -> None:
    for run in runs:
        for problem in run.problems:
            _say(f"{run.name}: {problem}")


def _say(words: Any) -> None:
    plain = "".join(sign if sign.isprintable() else " " for sign in str(words))
    encoding = sys.stderr.encoding or "utf-8"
    print(plain.encode(encoding, "replace").decode(encoding), file=sys.stderr)  # noqa: T201
