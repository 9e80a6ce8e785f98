"""Settings of `ProbeTracker` that are refused before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis.probe_flags import check_thresholds
from .concepts import read_source, read_sources
from .guard import check_seed, check_size, check_whole_number

TYPES = "control_types"


def check_settings(settings: Any) -> None:
    """Refuse what cannot be meant.

    Args:
        settings: a `ProbeTracker`.

    Raises:
        ValueError: with what was expected and what came.
    """
    sources = read_sources(settings.concepts)
    if TYPES in sources:
        raise ValueError(f"concepts: {TYPES!r} is the name of a setting; give the concept another")
    if settings.control_types is not None:
        read_source(TYPES, settings.control_types)
    _check_required(settings.required, sources)
    check_steps(settings.steps)
    if settings.engine not in ("discriminant", "logistic"):
        raise ValueError(f"engine must be 'discriminant' or 'logistic', got {settings.engine!r}")
    check_whole_number("ProbeTracker", "shuffles", settings.shuffles)
    for name in ("description_length", "causal"):
        if not isinstance(getattr(settings, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(settings, name)!r}")
    check_seed(settings.seed)
    check_size(settings.max_megabytes)
    if settings.flags is not None and not isinstance(settings.flags, dict):
        raise ValueError(f"flags must be a dict of thresholds by name, got {settings.flags!r}")
    check_thresholds(settings.flags or {})
    if settings.causal and settings.observe != "validation":
        raise ValueError('causal computes the validation loss and so needs observe="validation"')


def _check_required(required: object, sources: Mapping[str, object]) -> None:
    if required is None:
        return
    if not isinstance(required, dict) or any(
        isinstance(v, bool) or not isinstance(v, (int, float)) or not v <= 1 for v in required.values()
    ):
        raise ValueError(f"required must be a dict of scores up to 1 by concept, got {required!r}")
    unknown = [name for name in required if name not in sources and name.rpartition("_")[0] not in sources]
    if unknown:
        raise ValueError(f"required names {', '.join(map(repr, unknown))}; the concepts are {', '.join(sources)}")


def check_steps(steps: object) -> None:
    """Refuse what names no time steps."""
    listed = steps if isinstance(steps, (list, tuple)) else [steps]
    fits = bool(listed) and all(type(step) is int for step in listed)
    if not fits or (type(steps) is int and steps < 1):
        raise ValueError(f"steps must be a whole number from 1 or a list of time steps, got {steps!r}")
