"""What a callback leaves in checkpoints, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which calls this
    from .base import EpochCallback

FORMAT = 1  # another one is not read


def kept_state(callback: EpochCallback) -> dict[str, Any]:
    """Tensors, numbers, strings, lists and dicts."""
    return {
        "format": FORMAT,
        "looks": callback._looks,
        "failed_looks": callback._guard.failures,
        "said": sorted(callback._guard.said),
        "memory": callback.memory(),
    }


def restore_state(callback: EpochCallback, state: Mapping[str, Any]) -> None:
    """Go on from what was kept; what cannot be read is said, and histories begin anew."""
    written = state.get("format", FORMAT)
    try:
        if written != FORMAT:
            raise ValueError(f"its format is {written}, and {FORMAT} can be read")
        memory = state.get("memory", {})
        if not isinstance(memory, dict):
            raise TypeError(f"memory must be a dict, got {type(memory).__name__}")
        callback.remember(memory)
        callback._looks = int(state.get("looks", 0))
        callback._guard.failures = int(state.get("failed_looks", 0))
        callback._guard.said = set(state.get("said", ()))
    except Exception as error:
        callback.remember({})
        callback._guard.say(
            "format",
            f"{type(callback).__name__}: what it had seen before this checkpoint cannot be read ({error!r}), perhaps "
            "because another version of rnn_callbacks wrote it; the training is resumed, and its histories begin anew.",
        )


def adopt_state(checkpoint: Mapping[str, Any], key: str, kin: str, *, claimed: Set[str]) -> None:
    """Let a callback that now looks for something more (a concept) go on from what it had seen.

    Args:
        checkpoint: whose state of a callback of the same kind, with the same modules, is put under the new key.
        key: of the callback's state.
        kin: the key as it is without what tells callbacks apart that watch the same modules.
        claimed: keys of the callbacks of the run.
    """
    states = checkpoint.get("callbacks", {})
    if key in states:
        return
    found = [
        other
        for other in states
        if isinstance(other, str) and other.startswith(kin.removesuffix("}")) and other not in claimed
    ]
    if len(found) == 1:
        states[key] = states[found[0]]
