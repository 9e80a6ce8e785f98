"""Plain words for what gate statistics show. A flag describes what was seen; whether it is a fault, the task decides.

"Most of a gate is saturated" is no flag: a chrono-initialised LSTM is saturated by design and learns. The rules below
stayed silent on every healthy and every chrono-initialised network tried, and fired on gates stuck by their biases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ..cells import Cell
from .gates import GateStatistics

STUCK_SHARE, STUCK_STD = 0.99, 0.02  # a unit is stuck when its gate sits at one end for 99 % of steps and hardly moves
NO_WRITE = 0.05  # input / (1 - forget) below which a unit's memory is not replaced as it fades; chrono has 1
SHORTEST = 4  # steps; in shorter sequences any memory outlasts the sequence


@final
@dataclass(frozen=True)
class Flag:
    """One rule, applied to one cell."""

    name: str
    value: float  # what was measured, in the unit of the threshold
    threshold: float
    raised: bool
    meaning: str  # what was seen, what it usually means and what to try


@dataclass(frozen=True)
class _Rule:
    threshold: float
    measure: Callable[[GateStatistics], float | None]  # None where the rule does not apply to the cell
    meaning: str  # of {value}, {threshold} and {length}
    unit: str = "{:.0%}"


def _stuck(statistics: GateStatistics, part: str, *, high: bool) -> float:
    row = statistics.parts.index(part)
    at_end = (statistics.open if high else statistics.closed)[row]
    return float(np.mean((at_end > STUCK_SHARE) & (statistics.std[row] < STUCK_STD)))


def _overwritten(statistics: GateStatistics) -> float | None:
    if statistics.retention is None:
        return None
    return _stuck(statistics, statistics.retention, high=not statistics.retains_when_open)


def _frozen(statistics: GateStatistics) -> float | None:
    length = float(np.median(statistics.lengths))
    if not len(statistics.log_retention) or length < SHORTEST:
        return None
    return float(np.median(statistics.timescale)) / length


def _cannot_write(statistics: GateStatistics) -> float | None:
    return float(np.mean(statistics.write_balance < NO_WRITE)) if len(statistics.write_balance) else None


def _closed_output(statistics: GateStatistics) -> float | None:
    return _stuck(statistics, "output", high=False) if "output" in statistics.parts[:-1] else None


def _blown_up(statistics: GateStatistics) -> float | None:
    return float(statistics.blown_up.max()) if len(statistics.blown_up) else None


# Thresholds were chosen on small adding and flip-flop tasks; a user can set each of them.
RULES: dict[str, _Rule] = {
    "overwritten": _Rule(
        0.5,
        _overwritten,
        "{value} of the units replace their whole state at every step: this layer acts as a vanilla RNN. If the task "
        "needs memory, start with a larger forget-gate bias (LSTM: 1 or more; GRU: a larger bias of torch's z rows).",
    ),
    "frozen": _Rule(
        2.0,
        _frozen,
        "the median unit keeps its state for {value} times the length of a sequence ({length:.0f} steps): it hardly "
        "takes in anything new. Check the forget/update bias and whether the learning rate threw the weights far off.",
        unit="{:.1f}",
    ),
    "cannot_write": _Rule(
        0.5,
        _cannot_write,
        "in {value} of the units the input gate lets in less than a twentieth of what the forget gate drops: the cell "
        "state stays near zero. Raise the input-gate bias.",
    ),
    "closed_output": _Rule(
        0.5,
        _closed_output,
        "{value} of the units never show their cell state (output gate closed on every step): neither the next layer "
        "nor the gradient sees them. Raise the output-gate bias.",
    ),
    "blown_up": _Rule(
        0.25,
        _blown_up,
        "{value} of a gate's pre-activations lie beyond 12, where a sigmoid passes no gradient: the gate cannot be "
        "learned any more. Lower the learning rate, clip gradients, or scale the inputs.",
    ),
    "nonfinite": _Rule(
        0.0,
        lambda statistics: statistics.nonfinite,
        "{value} of the steps hold NaN or infinite values and were left out. Look at the inputs and the loss first, "
        "then at the learning rate and at half precision.",
        unit="{:.2%}",
    ),
}


def scalar_names(cell: Cell) -> tuple[str, ...]:
    """What `GateStatistics.scalars` reports for a cell."""
    names = [f"{gate}/{quantity}" for gate in cell.gates for quantity in ("mean", "std", "closed", "open")]
    names += [f"{cell.candidate}/mean_abs", f"{cell.candidate}/near_zero"]
    names += [f"{cell.candidate}/saturated"] if cell.bounded else []
    names += [f"timescale/{quantile}" for quantile in ("q10", "q50", "q90")] if cell.retention else []
    if cell.memory_size:
        names += ["memory/mean_abs", "memory/drift", "memory/saturated"]
    names += ["write_balance/q50"] if {"input", "forget"} <= set(cell.gates) else []
    return tuple(names)


def check_thresholds(thresholds: Mapping[str, float | None], cells: Sequence[Cell]) -> None:
    """Refuse thresholds that no cell could ever meet.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    own = {name.replace("/", "_") for cell in cells for name in scalar_names(cell)}
    for name, value in thresholds.items():
        quantity, _, side = name.rpartition("_")
        if name not in RULES and not (side in ("below", "above") and quantity in own):
            raise ValueError(
                f"flags: {name!r} is none of {', '.join(RULES)}, nor a quantity of these layers followed by _below or "
                f"_above; the quantities are {', '.join(sorted(own))}"
            )
        check_number(name, value)
        if value is None and name not in RULES:
            raise ValueError(f"flags: {name!r} needs a number; null only switches off a built-in rule")


def check_number(name: str, value: float | None) -> None:
    """Refuse a threshold that is neither a number nor null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
        raise ValueError(f"flags: the threshold of {name!r} must be a number or null, got {value!r}")


def check_names(thresholds: Mapping[str, float | None], rules: Collection[str]) -> None:
    """Refuse thresholds of rules that do not exist.

    Raises:
        ValueError: with the names that exist, or when a threshold is no number.
    """
    for name, value in thresholds.items():
        if name not in rules:
            raise ValueError(f"flags: {name!r} is none of {', '.join(rules)}")
        check_number(name, value)


def find_flags(statistics: GateStatistics, thresholds: Mapping[str, float | None] | None = None) -> tuple[Flag, ...]:
    """Apply every rule that fits the cell.

    Args:
        statistics: of one cell.
        thresholds: other thresholds for the built-in rules (`None` switches one off), and rules of your own by
            quantity: ``{"update_mean_below": 0.1}``.
    """
    given = dict(thresholds or {})
    found: list[Flag] = []
    for name, rule in RULES.items():
        threshold = given.pop(name, rule.threshold)
        measured = rule.measure(statistics)
        if threshold is None or measured is None:
            continue
        if not statistics.steps and name != "nonfinite":
            measured = 0.0  # nothing was heard that could speak for it
        length = float(np.median(statistics.lengths))
        meaning = rule.meaning.format(value=rule.unit.format(measured), length=length)
        reached = measured > threshold if name in ("nonfinite", "frozen", "blown_up") else measured >= threshold
        found.append(Flag(name, measured, threshold, reached, meaning))
    scalars = {key.replace("/", "_"): value for key, value in statistics.scalars().items()}
    for name, limit in given.items():
        quantity, _, side = name.rpartition("_")
        if limit is not None and quantity in scalars:
            value = scalars[quantity]
            meaning = f"{quantity} is {value:.3g}, {side} the limit of {limit:.3g} that was set."
            found.append(Flag(name, value, limit, value < limit if side == "below" else value > limit, meaning))
    return tuple(found)
