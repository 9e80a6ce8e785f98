"""Plain words for what the dynamics show. A flag describes what was seen; whether it is a fault, the task decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .fixed_point_findings import Findings
from .gate_flags import Flag, check_names

RESTLESS = 0.99  # share of the visited states


@dataclass(frozen=True)
class _Rule:
    threshold: float
    measure: Callable[[Findings], float]
    meaning: str  # of {value}
    unit: str = "{:.0f}"


def _without_rest(findings: Findings) -> float:
    """1 where no attractor was found by a search that ran its course, or where no visited state comes to rest."""
    skeleton, motion = findings.chapter.skeleton, findings.motion
    if (skeleton.points.kind == "attractor").any() or findings.continuum is not None:
        return 0.0
    restless = motion is not None and motion.moving + motion.diverging > RESTLESS
    return float(restless or not skeleton.stopped)


RULES: dict[str, _Rule] = {
    "no_attractor": _Rule(
        0.0,
        _without_rest,
        "no state is stable while the input is held: the network circles, wanders or grows (see `moving`, `period` and "
        "`diverging`). A network that is to hold something needs an attractor; one that counts or oscillates does not.",
    ),
    "explosion": _Rule(
        100.0,
        lambda findings: float(len(findings.chapter.skeleton.points)),
        "{value} fixed points: more than a task of a few stored values needs. Often the weights have grown large; "
        "regularise, or look whether the points lie on a line or plane.",
    ),
    "saturated": _Rule(
        0.9,
        lambda findings: findings.saturated,
        "in an attractor {value} of the units sit at their limit (|h| above 0.99): what is stored there is held fast, "
        "and hardly any gradient passes. Large weights are the usual reason.",
        unit="{:.0%}",
    ),
    "bifurcation": _Rule(
        0.0,
        lambda findings: float(sum(len(e.ids) for e in findings.chapter.events if e.what != "found late")),
        "{value} of the fixed points appeared, vanished or changed their stability since the last look: the network "
        "changed in kind, not only in degree. Compare with the loss at this epoch.",
    ),
    "transient": _Rule(
        0.75,
        lambda findings: findings.reach.end_distance,
        "at a sequence's end the state is still {value} the states' spread away from the nearest attractor: the "
        "fixed points are a skeleton of the dynamics, and not where this network lives.",
        unit="{:.2g} times",
    ),
}

WARNED = ("no_attractor", "explosion", "saturated")  # the others are how most networks are, or grow


def check_thresholds(thresholds: Mapping[str, float | None]) -> None:
    """Refuse thresholds of flags that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    check_names(thresholds, RULES)


def find_flags(findings: Findings, thresholds: Mapping[str, float | None] | None = None) -> tuple[Flag, ...]:
    """Apply every rule.

    Args:
        findings: of one module under one held input.
        thresholds: other thresholds for the rules; `None` switches one off.
    """
    given = dict(thresholds or {})
    found = []
    for name, rule in RULES.items():
        threshold = given.get(name, rule.threshold)
        if threshold is not None:
            value = rule.measure(findings)
            meaning = rule.meaning.format(value=rule.unit.format(value))
            found.append(Flag(name, value, threshold, value > threshold, meaning))
    return tuple(found)
