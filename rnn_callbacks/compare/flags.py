"""Flags that runs raised: which, when, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from .comparison import Comparison
from .quantities import renamed


@final
@dataclass(frozen=True)
class FlagSeen:
    """One flag at one place, in all runs."""

    noun: str
    place: str  # in the model
    name: str
    ever: tuple[int, ...]  # runs that raised it at any look
    at_end: tuple[int, ...]  # runs that raised it at their last look
    first: float  # place on the comparison's axis where it was first raised by any run
    meaning: str  # what was seen and what to try, as the last run that raised it was told; may be empty


def flags_seen(comparison: Comparison) -> list[FlagSeen]:
    """Every flag that any run raised, those that stand at the end first."""
    found = []
    starts = comparison.starts()
    for quantity in comparison.quantities:
        if not quantity.is_flag:
            continue
        ever, at_end, firsts = [], [], []
        for number, series in enumerate(comparison.series):
            raised = series[quantity.tag].values > 0 if quantity.tag in series else np.zeros(0, bool)
            if raised.any():
                ever.append(number)
                firsts.append(float(series[quantity.tag].on(comparison.axis, starts[number])[raised.argmax()]))
                if raised[-1]:
                    at_end.append(number)
        if ever:
            noun, _, rest = quantity.tag.partition("/")
            place, _, name = rest.rpartition("/flags/")
            known = [at for at in firsts if np.isfinite(at)]
            first = min(known, default=np.nan)
            meaning = _meaning(comparison, at_end[-1], noun, quantity.tag) if at_end else ""
            if meaning and len(at_end) > 1:  # its numbers are those of one run
                meaning = f"{comparison.runs[at_end[-1]].name}: {meaning}"
            found.append(FlagSeen(noun, place, name, tuple(ever), tuple(at_end), first, meaning))
    return sorted(found, key=lambda flag: (-len(flag.at_end), -len(flag.ever)))


def _meaning(comparison: Comparison, number: int, noun: str, tag: str) -> str:
    """What the run's last look said of it; its layer may be called otherwise there than in the comparison."""
    run = comparison.runs[number]
    for look in reversed(run.looks.get(noun, [])):
        saved = run.read_look(look)
        texts = {} if saved is None else saved.report.texts
        for own, text in texts.items():
            if renamed(own, comparison.names[number]) == tag:
                return text
    return ""
