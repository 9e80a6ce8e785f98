"""A comparison in plain words: what differs, what does not, and what cannot be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .claims import FEWEST, Difference
from .comparison import Comparison
from .flags import FlagSeen, flags_seen
from .hyperparameters import Value, matters
from .quantities import COST, METRICS, Quantity

MOST = 12  # items of a list in words


def headline(comparison: Comparison) -> list[str]:
    """The comparison in sentences, the most important ones first; plain text."""
    said = [_overview(comparison)]
    if len(comparison.runs) > 1:
        said += _settings(comparison)
        said += _repeats(comparison)
        said += _placeless(comparison) + _unlike_ends(comparison) + _unlike_audiences(comparison)
        said += _replayed(comparison)
        said += _verdict(comparison)
    return said + _diverged(comparison) + _flags(comparison)


def differs(comparison: Comparison) -> list[str]:
    """One line for each difference that is claimed."""
    return [_difference(comparison, found) for found in comparison.claimed]


def differs_not(comparison: Comparison) -> list[str]:
    """One line for each metric in which nothing is claimed."""
    tested = [found for found in comparison.differences if found.quantity.section == METRICS and not found.claimed]
    return [_difference(comparison, found) for found in tested if np.isfinite(found.p_value)]


def number(value: float, quantity: Quantity | None = None) -> str:
    """Three digits; whole numbers whole."""
    if not np.isfinite(value):
        return "-"
    if quantity is not None and quantity.whole and value == round(value):
        return f"{value:.0f}"
    if abs(value) < 1e7 and (value == round(value) or abs(value) >= 1000):
        return f"{value:.0f}"
    return f"{value:.3g}"


def mean_and_spread(mean: float, spread: float, quantity: Quantity) -> str:
    """``0.623 ± 0.005``, with as many decimals on both sides; alone where all are alike, or there is one."""
    if not np.isfinite(spread) or not np.isfinite(mean) or spread == 0:
        return number(mean, quantity)
    if not 1e-4 <= max(abs(mean), spread) < 1e5:
        return f"{mean:.3g} ± {spread:.1g}"
    decimals = max(0, 2 - int(np.floor(np.log10(max(abs(mean), spread)))))
    if round(spread, decimals) == 0:
        decimals = -int(np.floor(np.log10(spread)))
    if decimals > 6:
        return f"{mean:.6g} ± {spread:.1g}"
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def listed(items: Iterable[str], most: int = MOST) -> str:
    """With commas, and how many are left out."""
    every = list(items)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def place(comparison: Comparison, value: float) -> str:
    """A place on the comparison's axis in words."""
    if comparison.axis == "time":
        return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
    return f"{comparison.axis} {value:.0f}" if value == round(value) else f"{comparison.axis} {value:.6g}"


def _overview(comparison: Comparison) -> str:
    runs, groups = comparison.runs, comparison.groups
    ends = comparison.places["final"]
    known = ends[np.isfinite(ends)]
    until = ""
    if len(known):
        low, high = place(comparison, float(known.min())), place(comparison, float(known.max()))
        until = f", up to {high}" if low == high else f", up to {low} (the shortest) or {high} (the longest)"
        until += " (counted from 0)" if comparison.axis == "epoch" else ""
    if len(runs) == 1:
        return f"One run, {runs[0].name}{until}."
    if len(groups) == 1:
        return f"{len(runs)} runs of one configuration{until}."
    if len(groups) == len(runs):
        return f"{len(runs)} runs, each with a configuration of its own{until}."
    return f"{len(runs)} runs in {len(groups)} configurations{until}."


def _settings(comparison: Comparison) -> list[str]:
    if not comparison.settings:
        known = any(run.hyperparameters for run in comparison.runs)
        return ["Their hyperparameters are alike." if known else "No hyperparameters of theirs are known."]
    words = [f"{name} ({listed(_values(values), 6)})" for name, values in comparison.settings.items()]
    return [f"They differ in {listed(words)}."]


def _values(values: Sequence[Value]) -> list[str]:
    """Each once; in quotation marks where a number and its name look alike."""
    words = dict.fromkeys(map(str, values))
    return list(words if len(words) == len(set(map(repr, values))) else dict.fromkeys(map(repr, values)))


def _repeats(comparison: Comparison) -> list[str]:
    said = []
    for group in comparison.groups:
        again = [comparison.runs[run].name for run in group.runs if run not in group.distinct]
        if again:
            one = len(again) == 1
            verb, so = ("repeats another run", "does not count") if one else ("repeat other runs", "do not count")
            said.append(f"{listed(again)} {verb} to the last digit (the same seed?) and {so}.")
    return said


def _unlike_ends(comparison: Comparison) -> list[str]:
    ends = comparison.places["final"]
    known = ends[np.isfinite(ends)]
    if not len(known) or not known.max() > known.min():
        return []
    where = place(comparison, float(comparison.places["matched"][0]))
    return [
        f"They are compared at {where}, the last that all of them reached, and where {_best(comparison)} is best, for "
        "which longer runs had more time."
    ]


def _placeless(comparison: Comparison) -> list[str]:
    """Runs that have numbers, but nowhere on the axis."""
    ends = comparison.places["final"]
    lost = [run.name for run, end in zip(comparison.runs, ends, strict=True) if run.series and not np.isfinite(end)]
    if not lost:
        return []
    return [f"No {comparison.axis} of {listed(lost, 4)} is known, so nothing of theirs can be compared by it."]


def _unlike_audiences(comparison: Comparison) -> list[str]:
    """Scores of probes rise with the sequences that they are fitted to."""
    counts = [series["probes/sequences"].last for series in comparison.series if "probes/sequences" in series]
    if len(set(counts)) < 2:
        return []
    low, high = number(min(counts)), number(max(counts))
    return [f"Their probes saw unlike numbers of sequences ({low} to {high}), so scores of probes are not comparable."]


def _replayed(comparison: Comparison) -> list[str]:
    names = [run.name for run in comparison.runs if run.replayed]
    if not names or len(names) == len(comparison.runs):
        return []
    return [
        f"Only from checkpoints known: {listed(names, 4)}. A path of weights may begin at the first one there, so that "
        "its distances are smaller, and nothing is known of gradients."
    ]


def _best(comparison: Comparison) -> str:
    return comparison.metric or "their metric"


def _verdict(comparison: Comparison) -> list[str]:
    if not comparison.quantities:
        return ["No number of theirs is known, so there is nothing to compare."]
    if _alike_everywhere(comparison):
        return ["Nothing differs anywhere: every number is the same in all runs."]
    if len(comparison.groups) == 1:
        if any(matters(name) for name in comparison.settings):
            return ["They were put into one group all the same, so nothing is compared with anything."]
        return ["All runs are of one configuration, so what differs between them is their seeds' doing."]
    if not comparison.testable:
        return [
            f"Nothing can be told from chance: that takes {FEWEST} seeds of each configuration, {_seeds(comparison)}. "
            "What follows is what these runs did, which need not be what their settings do."
        ]
    claimed = differs(comparison)
    same = differs_not(comparison)
    said = _untold(comparison)
    if claimed:
        count = len({(found.quantity.tag, found.moment) for found in comparison.claimed})
        said.append(f"Beyond what seeds explain, {_counted(count, 'number differs', 'numbers differ')}:")
        said += [f"- {line}" for line in claimed[:MOST]]
        if len(claimed) > MOST:
            said.append(f"- and {len(claimed) - MOST} more")
    else:
        said.append("No difference can be told from chance with these seeds.")
    if same:
        said.append("Not beyond what seeds may explain:")
    said += [f"- {line}" for line in same[:MOST]]
    return said


def _seeds(comparison: Comparison) -> str:
    """Why there are too few."""
    counts = sorted((len(group.distinct) for group in comparison.groups), reverse=True)
    if counts[1] >= FEWEST:
        return "and a number that they share and that is not the same everywhere"
    if counts[0] >= FEWEST:
        return f"here only {_most_seeds(comparison)} has as many"
    return "here there is one" if counts[0] == 1 else f"here there are at most {counts[0]}"


def _most_seeds(comparison: Comparison) -> str:
    return max(comparison.groups, key=lambda group: len(group.distinct)).name


def _untold(comparison: Comparison) -> list[str]:
    few = [group.name for group in comparison.groups if len(group.distinct) < FEWEST]
    if not few:
        return []
    verb = "has" if len(few) == 1 else "have"
    return [f"{listed(few, 4)} {verb} fewer than {FEWEST} seeds, of which nothing can be told from chance."]


def _diverged(comparison: Comparison) -> list[str]:
    """Runs whose metrics were no numbers at last, of which every table shows the last that was one."""
    said: dict[str, list[str]] = {}
    for run in comparison.runs:
        ends = {tag: run.series[tag].values[-1:] for tag in run.metrics}
        tags = [tag for tag, end in ends.items() if not np.isfinite(end).all()]
        if tags:
            said.setdefault(listed(tags, 4), []).append(run.name)
    return [
        f"At the end of {listed(names, 4)}, {tags} {'were' if ',' in tags else 'was'} no number (NaN or infinite); "
        "what is shown is the last that was one."
        for tags, names in said.items()
    ][:MOST]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _alike_everywhere(comparison: Comparison) -> bool:
    """Whether all that was logged is the same, but for what watching cost."""
    tags = [quantity.tag for quantity in comparison.quantities if quantity.section != COST]
    first, *others = [{tag: found[tag].values for tag in tags if tag in found} for found in comparison.series]
    return any(np.isfinite(values).any() for values in first.values()) and all(
        first.keys() == other.keys()
        and all(np.array_equal(first[tag], values, equal_nan=True) for tag, values in other.items())
        for other in others
    )


def _difference(comparison: Comparison, found: Difference) -> str:
    quantity = found.quantity
    one, other = (
        f"{mean_and_spread(mean, spread, quantity)} ({comparison.groups[group].name})"
        for mean, spread, group in zip(found.means, found.spreads, found.groups, strict=True)
    )
    unit = f" {quantity.unit}" if quantity.unit else ""
    at = f", where {comparison.metric} is best" if found.moment == "best" else ""
    return f"{quantity.label}{at}: {one} against {other}{unit}"


def _flags(comparison: Comparison) -> list[str]:
    standing = [flag for flag in flags_seen(comparison) if flag.at_end]
    if not standing:
        watched = any(quantity.is_flag for quantity in comparison.quantities)
        return ["No flag stands at the end of any run."] if watched else []
    return ["Flags at the end: " + listed(flag_in_words(comparison, flag) for flag in standing) + "."]


def flag_in_words(comparison: Comparison, flag: FlagSeen) -> str:
    """Which flag, where, and in which runs."""
    return f"{flag.name} in {flag.place} ({run_names(comparison, flag.at_end)})"


def run_names(comparison: Comparison, numbers: Sequence[int]) -> str:
    """The runs by name, ``all runs``, or a whole group by its name."""
    if len(numbers) == len(comparison.runs):
        return "all runs" if len(numbers) > 1 else comparison.runs[0].name
    for group in comparison.groups:
        if len(group.runs) > 1 and set(group.runs) == set(numbers):
            return group.name
    if len(numbers) > 4:
        return f"{len(numbers)} of {len(comparison.runs)} runs"
    return listed(comparison.runs[number].name for number in numbers)
