"""Which runs are seeds of one configuration, and how configurations differ."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .hyperparameters import Value, is_seed, matters
from .quantities import COST, quantity_of
from .runs import Run

EXPERIMENT = "experiment"  # the folder above a run's own
SINGLY = "none"  # each run for itself
MOST_SETTINGS = 4  # in the name of a group, unless they were asked for


@final
@dataclass(frozen=True)
class Group:
    """Runs of one configuration; what they differ by is their seed."""

    name: str
    runs: tuple[int, ...]  # their numbers
    distinct: tuple[int, ...]  # without those that are another one once more, the same to the last digit


def differing(runs: Sequence[Run]) -> dict[str, list[Value]]:
    """Hyperparameters that are not alike everywhere: by name the value of each run, None where it has none.

    Those that only say where files go are left out.
    """
    names = dict.fromkeys(name for run in runs for name in run.hyperparameters)
    table = {name: [run.hyperparameters.get(name) for run in runs] for name in names if matters(name) or is_seed(name)}
    return {name: values for name, values in table.items() if len({_alike(value) for value in values}) > 1}


def _alike(value: Value) -> str:
    """The same for 32 and 32.0, as an event file and a YAML file call the same setting, but not for True, 1 and '1'."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return repr(int(value) if whole and value is not None else value)


def find_groups(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Put runs of one configuration together.

    Args:
        runs: all that are compared.
        by: hyperparameters that tell configurations apart, or `EXPERIMENT`, or `SINGLY`; by default all but seeds. A
            run of which no hyperparameter is known then stands alone, since nothing tells what it is a seed of.

    Raises:
        ValueError: for a hyperparameter that no run has.
    """
    known = {name for run in runs for name in run.hyperparameters}
    unknown = [name for name in by if name not in known and name not in (EXPERIMENT, SINGLY)]
    if unknown:
        raise ValueError(
            f"no run has a hyperparameter {unknown[0]!r}; there are: {', '.join(sorted(known)) or 'none'}, and "
            f"{EXPERIMENT} (the folder above) or {SINGLY} (each run for itself)"
        )
    keys: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        keys[_key(run, number, by)].append(number)
    names = _names(runs, list(keys.values()), by)
    return [
        Group(name, tuple(numbers), _distinct(runs, numbers))
        for name, numbers in zip(names, keys.values(), strict=True)
    ]


def _key(run: Run, number: int, by: Sequence[str]) -> tuple[object, ...]:
    if SINGLY in by:
        return (number,)
    if by:
        return tuple(
            posixpath.dirname(run.folder.rstrip("/")) if name == EXPERIMENT else _alike(run.hyperparameters.get(name))
            for name in by
        )
    known = {name: value for name, value in run.hyperparameters.items() if matters(name)}
    return tuple((name, _alike(known[name])) for name in sorted(known)) if known else ("unknown", number)


def _experiment(run: Run) -> str:
    return posixpath.basename(posixpath.dirname(run.folder.rstrip("/"))) or run.folder


def _names(runs: Sequence[Run], groups: Sequence[Sequence[int]], by: Sequence[str]) -> list[str]:
    """What tells each group from the others; the run's own name where that is nothing, or it is alone with it."""
    if len(groups) == 1:
        return ["all runs" if len(groups[0]) > 1 else runs[groups[0][0]].name]
    heads = [runs[numbers[0]] for numbers in groups]
    asked = [name for name in by if name not in (EXPERIMENT, SINGLY)]
    settings = asked or [name for name in differing(heads) if matters(name)]
    found = []
    for head, numbers in zip(heads, groups, strict=True):
        words = [_experiment(head)] if EXPERIMENT in by else []
        own = [f"{name}={head.hyperparameters[name]}" for name in settings if name in head.hyperparameters]
        words += own if asked or len(own) <= MOST_SETTINGS else [*own[:MOST_SETTINGS], "..."]
        alone = SINGLY in by or not words
        found.append(head.name if alone and len(numbers) == 1 else ", ".join(words) or f"like {head.name}")
    return [
        name if found.count(name) == 1 else f"{name} ({head.name})" for name, head in zip(found, heads, strict=True)
    ]


def _distinct(runs: Sequence[Run], numbers: Sequence[int]) -> tuple[int, ...]:
    """Without runs that repeat another one to the last digit, which would feign that seeds make no difference."""
    kept: dict[object, list[int]] = defaultdict(list)
    for number in numbers:
        content = _content(runs[number]) or ("nothing", number)
        if not any(_same(runs[number], runs[other]) for other in kept[content]):
            kept[content].append(number)
    distinct = sorted(number for alike in kept.values() for number in alike)
    others = [number for number in distinct if not runs[number].replayed]
    return tuple(
        number
        for number in distinct
        if not (runs[number].replayed and any(_is_replay(runs[number], runs[other]) for other in others))
    )


def _is_replay(one: Run, run: Run) -> bool:
    """Whether a run that was replayed into another folder has the metrics of this one, to rounding."""
    shared = [(one.series[tag], run.series[tag]) for tag in set(one.metrics) & set(run.metrics)]
    agree = []
    for mine, other in shared:
        _, here, there = np.intersect1d(mine.steps, other.steps, return_indices=True)
        agree += np.isclose(mine.values[here], other.values[there], rtol=1e-4, atol=0, equal_nan=True).tolist()
    return bool(agree) and all(agree)


def _content(run: Run) -> tuple[tuple[str, bytes, bytes], ...]:
    """All metrics, to the last digit."""
    return tuple(
        (tag, run.series[tag].steps.tobytes(), run.series[tag].values.tobytes()) for tag in sorted(run.metrics)
    )


def _same(one: Run, other: Run) -> bool:
    """Whether all else that both runs have is alike too, but for what watching cost."""
    return all(
        np.array_equal(one.series[tag].values, other.series[tag].values, equal_nan=True)
        for tag in one.series.keys() & other.series.keys()
        if quantity_of(tag).section != COST
    )
