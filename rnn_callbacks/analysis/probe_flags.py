"""Plain words for what probes show. A flag describes what was read; whether that is a fault, the task decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from .emergence import Emergence
from .gate_flags import Flag, check_names
from .probe_findings import Baseline, Finding

FIRST = 5  # epochs before a missing concept is spoken of: no network has learned anything at once
PRESENT = 0.05  # share of a concept's entropy that is no trace any more
CONFIDENT = 0.05  # rate of false discoveries

Encoding = Literal["linear", "nonlinear", "absent"]


@final
@dataclass(frozen=True, eq=False)
class ConceptStory:
    """One concept in the whole model: where it is read best, and how that came."""

    site: str  # of the module, as it is said to the user
    best: Finding
    course: Emergence
    epochs: int  # of training so far
    last: bool  # whether this is the run's last epoch
    required: float | None  # score that the user asked for


def encoding(finding: Finding) -> Encoding:
    """How a concept lies in the states: read by a line, told by single units but by no line, or neither.

    "Absent" means absent for these two readers: a product of two units (exclusive or) is seen by neither.
    """
    if finding.q_value < CONFIDENT and finding.share > PRESENT:
        return "linear"
    units = finding.information
    if units is not None and units.entropy > 0 and units.share.max() > PRESENT:
        return "nonlinear"
    return "absent"


@dataclass(frozen=True)
class _Rule:
    threshold: float
    measure: Callable[[ConceptStory], float | None]  # None where the rule does not apply
    meaning: str  # of {value}, {site}, {score}, {bits}, {untrained}, {source}, {kind}, {asked}, {caveat}
    unit: str = "{:.0%}"


def _of_bits(story: ConceptStory, control: Baseline | None) -> float | None:
    """Share of the bits that are read which a control reads too; None where nothing is read or there is no control."""
    bits = story.best.probed.headline.v_information
    if control is None or not np.isfinite(control.bits) or story.best.q_value >= CONFIDENT or bits <= 0:
        return None
    return float(np.clip(control.bits / bits, 0.0, 1.0))


def _bits(control: Baseline | None) -> str:
    return "?" if control is None else f"{control.bits:.2f}"


_NOT_WHOLE = (
    " (Untrained are only the recurrent layers; something in front of them may have learned before they were heard. "
    "Trainer(num_sanity_val_steps=-1) settles it.)"
)


def _missing(story: ConceptStory) -> float | None:
    if story.required is None or not (story.last or story.epochs >= FIRST):
        return None
    score = story.best.probed.headline.score
    return story.required - score if np.isfinite(score) else story.required


RULES: dict[str, _Rule] = {
    "missing": _Rule(
        0.0,
        _missing,
        "{kind} is {score:.2f} at best (in {site}), and {asked:g} was asked for: the network does not encode what it "
        "should, or not where a linear reader finds it. Look whether the loss needs it and whether the inputs tell it "
        "(`over_input`), then at gradients and gates.",
        unit="{:.2f}",
    ),
    "forgotten": _Rule(
        0.5,
        lambda story: story.course.lost,
        "{value} of the bits that could once be read in {site} are gone. What a task does not need is often forgotten; "
        "if it is needed, look at what happened at that epoch.",
    ),
    "already_there": _Rule(
        0.9,
        lambda story: _of_bits(story, story.best.untrained),
        "the untrained network gives {untrained} bits of it, where this one gives {bits:.2f} in {site} ({kind} "
        "{score:.2f}): random recurrence hands on what comes in, so this is not learned.{caveat}",
    ),
    "in_the_input": _Rule(
        0.9,
        lambda story: _of_bits(story, story.best.input),
        "the input of that same step alone gives {source} bits of it, where the state gives {bits:.2f} in {site} "
        "({kind} {score:.2f}): memory is not needed for it.",
    ),
}
WARNED = ("missing",)  # the others are how many networks are


def check_thresholds(thresholds: Mapping[str, float | None]) -> None:
    """Refuse thresholds of flags that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    check_names(thresholds, RULES)


def find_flags(story: ConceptStory, thresholds: Mapping[str, float | None] | None = None) -> tuple[Flag, ...]:
    """Apply every rule; one that does not apply is not raised.

    Args:
        story: of one concept.
        thresholds: other thresholds for the rules; `None` switches one off.
    """
    given = dict(thresholds or {})
    found = []
    for name, rule in RULES.items():
        threshold = given.get(name, rule.threshold)
        if threshold is None or (name == "missing" and story.required is None):
            continue
        measured = rule.measure(story)
        value = 0.0 if measured is None else measured
        meaning = rule.meaning.format(
            value=rule.unit.format(value),
            site=story.site,
            score=story.best.probed.headline.score,
            bits=story.best.probed.headline.v_information,
            untrained=_bits(story.best.untrained),
            source=_bits(story.best.input),
            caveat="" if story.best.untrained is None or story.best.untrained.whole else _NOT_WHOLE,
            kind="balanced accuracy" if len(story.best.probed.concept.classes) else "R²",
            asked=story.required or 0.0,
        )
        found.append(Flag(name, value, threshold, measured is not None and value > threshold, meaning))
    return tuple(found)
