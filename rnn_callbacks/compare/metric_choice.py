"""The metric that says which epoch of a run is its best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from .quantities import direction
from .runs import Run

Mode = Literal["min", "max"]
# `val_loss`, `loss/valid`, `eval/acc`, `valLoss`; not `value_loss`, `interval`
_VALIDATION = re.compile(r"(?i:(?<![a-z])(?:e?val|valid|validation|val(?:loss|acc|err).*)(?![a-z]))|[a-z]Val")


def choose_metric(runs: Sequence[Run], metric: str | None = None, mode: Mode | None = None) -> tuple[str, Mode]:
    """The metric, empty where runs share none, and whether its least or most is best.

    By default it is the one that `WeightTrajectoryLogger` followed, else a validation loss, else another validated
    metric, else whatever has a name that tells which way is better. Runs without any metric have no say.

    Args:
        runs: all that are compared.
        metric: what was asked for.
        mode: what was asked for.

    Raises:
        ValueError: when no run has the metric.
    """
    measured = [run for run in runs if run.metrics]
    shared = [tag for run in measured[:1] for tag in run.metrics if all(tag in other.series for other in measured)]
    facts = next((saved.facts for run in measured if (saved := run.snapshots()) is not None), {})
    if metric is None:
        followed = [tag for tag in shared if tag == facts.get("metric")]
        validated = sorted(filter(_VALIDATION.search, shared), key=lambda tag: ("loss" not in tag.lower(), tag))
        metric = next(iter([*followed, *validated, *filter(direction, shared)]), "")
    else:
        having = sorted({tag for run in runs for tag in run.metrics})
        if metric not in having:
            raise ValueError(f"no run has a metric {metric!r}; there are: {', '.join(having) or 'none'}")
    if mode is None and metric and metric == facts.get("metric") and facts.get("mode") in ("min", "max"):
        mode = facts["mode"]
    return metric, mode or ("max" if direction(metric) == "high" else "min")
