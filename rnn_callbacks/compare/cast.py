"""Who appears in the pictures of a comparison, and in which colour: the same one everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..figures.comparison import BLACK, COLOURS, DASHES, GREY, Entry
from .comparison import Comparison

MOST_LINES = 40  # runs that are drawn one by one
MOST_GROUPS = len(COLOURS) * len(DASHES)  # that can be told apart
Style = tuple[str, str]  # colour and dash
REST: Style = (GREY, "-")


@final
@dataclass(frozen=True)
class Cast:
    """Runs and groups as they are drawn."""

    groups: tuple[int, ...]  # that have a colour, in the order of the comparison
    rest: tuple[int, ...]  # runs of all other groups, together in grey
    singly: bool  # whether runs have lines of their own, or only their groups
    group_styles: dict[int, Style]
    run_styles: dict[int, Style]
    group_of: dict[int, int]
    left_out: str  # what is not drawn, in words; empty where everything is

    def legend(self, comparison: Comparison) -> list[Entry]:
        """Names and colours, for a picture that stands alone."""
        if len(comparison.groups) == 1 and len(self.run_styles) > 1 and self.singly:
            return [Entry(comparison.runs[run].name, *style) for run, style in self.run_styles.items()]
        entries = [Entry(comparison.groups[group].name, *style) for group, style in self.group_styles.items()]
        return entries + ([Entry(f"the other {len(self.rest)} runs", *REST)] if self.rest else [])

    @property
    def runs(self) -> list[int]:
        """Those of the groups that have a colour."""
        return sorted(self.run_styles)

    def classes(self, key: str) -> str:
        """Of which run and which group a key speaks, as classes of a page."""
        number = key.removeprefix("run")
        return f"{key} group{self.group_of[int(number)]}" if number != key else key


def choose_cast(comparison: Comparison) -> Cast:
    """One hue for each group; where all runs are seeds of one configuration, one for each run.

    Of more groups than can be told apart those are drawn whose metric became best, the others as one grey band.
    """
    groups, runs = comparison.groups, comparison.runs
    kept = sorted(_best_first(comparison)[:MOST_GROUPS])
    group_of = {run: number for number, group in enumerate(groups) for run in group.runs}
    styles = {group: _style(place) for place, group in enumerate(kept)}
    of_runs = {run: styles[group] for run, group in sorted(group_of.items()) if group in styles}
    if len(groups) == 1 and 1 < len(runs) <= MOST_GROUPS:
        of_runs = {run: _style(run) for run in range(len(runs))}
        styles = {0: (BLACK, "-")}
    rest = tuple(run for run in range(len(runs)) if run not in of_runs)
    singly = len(runs) <= MOST_LINES
    words = []
    if rest:
        first = f"whose best {comparison.metric} is best" if comparison.metric else "that come first"
        words.append(
            f"Of {len(groups)} groups the {len(kept)} {first} are in colour; the middle and the range of the other "
            f"{len(rest)} runs are grey."
        )
    if not singly:
        words.append(
            f"With more than {MOST_LINES} runs, groups are drawn as their mean and the range from their lowest to "
            "their highest run, single runs are not."
        )
    return Cast(tuple(kept), rest, singly, styles, of_runs, group_of, " ".join(words))


def _style(place: int) -> Style:
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _best_first(comparison: Comparison) -> list[int]:
    """Groups by the best value of the metric that any of their runs had."""
    rows = [row for row, quantity in enumerate(comparison.quantities) if quantity.tag == comparison.metric]
    if not rows:
        return list(range(len(comparison.groups)))
    sign = 1.0 if comparison.mode == "min" else -1.0
    worth = np.nan_to_num(sign * comparison.values["best"][rows[0]], nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return sorted(
        range(len(comparison.groups)), key=lambda group: (min(worth[list(comparison.groups[group].runs)]), group)
    )
