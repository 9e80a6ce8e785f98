"""Looks at the checkpoints of a run that nobody watched: ``replay``, or ``rnn-callbacks replay``.

What is here is resolved on first use, so that the command line answers without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .from_config import replay_from_config
    from .replaying import replay

__all__ = ["replay", "replay_from_config"]

_HOMES = {"replay": ".replaying", "replay_from_config": ".from_config"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
