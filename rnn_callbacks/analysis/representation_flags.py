"""Plain words for what the geometry of states shows. A flag describes; whether it is a fault, the task decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from .gate_flags import Flag, check_names

FIRST = 5  # epochs before a network is told to have stayed as it was
NEAR = 0.5  # of the way to another random network, within which a network has hardly moved
FALLEN = 0.5  # of the first loss: a network whose loss is below has learned something


@final
@dataclass(frozen=True, eq=False)
class Shape:
    """What the rules need to know of one site. None where it could not be measured."""

    untrained: float | None  # CKA with the untrained network
    random: float | None  # highest CKA of two random networks, on the same sequences
    loss: float | None  # of training, in units of that of the first epoch
    epochs: int  # of training so far
    between: float | None  # share of the mean square of the states that lies between sequences
    dead: float  # share of the units


def _lazy(shape: Shape) -> float | None:
    if shape.untrained is None or shape.random is None or shape.loss is None:
        return None
    moved, apart = 1 - shape.untrained, 1 - shape.random
    if not shape.loss < FALLEN or shape.epochs < FIRST or moved > NEAR * apart:
        return 0.0
    return shape.untrained


@dataclass(frozen=True)
class _Rule:
    threshold: float
    measure: Callable[[Shape], float | None]  # None where the rule does not apply
    meaning: str  # of {untrained}, {random}, {loss}, {between}, {dead}
    below: bool = False  # whether it is raised below its threshold


RULES: dict[str, _Rule] = {
    "lazy": _Rule(
        0.5,
        _lazy,
        "the loss has come down to {loss:.0%} of its start, yet the states are still those of the untrained network "
        "(CKA {untrained:.2f}; two random networks have up to {random:.2f} here): the layers after it have learned, "
        "this one hardly (lazy training, as in a reservoir). If memory matters, look at its gradients, its learning "
        "rate and the scale of its initial weights.",
    ),
    "collapsed": _Rule(
        0.001,
        lambda shape: shape.between,
        "all sequences are in nearly the same state: only {between:.1e} of the mean square of the states lies between "
        "sequences at the same step. What was read is lost. Look for saturated or closed gates, inputs that are too "
        "small, a learning rate that is too high.",
        below=True,
    ),
    "dead_units": _Rule(
        0.5,
        lambda shape: shape.dead,
        "{dead:.0%} of the units hardly move, whatever is read. Usual with relu after a large step; the layer is as "
        "good as that much smaller.",
    ),
}


def check_thresholds(thresholds: Mapping[str, float | None]) -> None:
    """Refuse thresholds of flags that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    check_names(thresholds, RULES)


def find_flags(shape: Shape, thresholds: Mapping[str, float | None] | None = None) -> tuple[Flag, ...]:
    """Apply every rule; one that does not apply is not raised.

    Args:
        shape: of the states at one site.
        thresholds: other thresholds for the rules; `None` switches one off.
    """
    found = []
    for name, rule in RULES.items():
        threshold = (thresholds or {}).get(name, rule.threshold)
        if threshold is None:
            continue
        value = rule.measure(shape)
        raised = value is not None and (value < threshold if rule.below else value > threshold)
        words = {
            "untrained": shape.untrained or 0.0,
            "random": shape.random or 0.0,
            "loss": shape.loss or 0.0,
            "between": shape.between or 0.0,
            "dead": shape.dead,
        }
        found.append(Flag(name, 0.0 if value is None else value, threshold, raised, rule.meaning.format(**words)))
    return tuple(found)
