"""Settings of `RepresentationTracker` that are refused before training."""

from __future__ import annotations

from typing import Any

from ..analysis.phate_embedding import MOST
from ..analysis.representation_flags import check_thresholds
from .concepts import read_sources
from .guard import check_seed, check_size, check_whole_number
from .probe_settings import check_steps


def check_settings(settings: Any) -> None:
    """Refuse what cannot be meant.

    Args:
        settings: a `RepresentationTracker`.

    Raises:
        ValueError: with what was expected and what came.
    """
    read_sources(settings.concepts)
    check_steps(settings.steps)
    check_seed(settings.seed)
    check_size(settings.max_megabytes)
    if settings.embedding not in ("phate", "pca", None):
        raise ValueError(f"embedding must be 'phate', 'pca' or None, got {settings.embedding!r}")
    check_whole_number("RepresentationTracker", "embed_every_n_epochs", settings.embed_every_n_epochs, optional=True)
    if type(settings.embed_states) is not int or not 12 <= settings.embed_states <= MOST:
        raise ValueError(f"embed_states must be a whole number from 12 to {MOST}, got {settings.embed_states!r}")
    if settings.flags is not None and not isinstance(settings.flags, dict):
        raise ValueError(f"flags must be a dict of thresholds by name, got {settings.flags!r}")
    check_thresholds(settings.flags or {})
