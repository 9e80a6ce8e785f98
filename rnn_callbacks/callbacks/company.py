"""What callbacks of one run have to do with each other, and with those who read their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from .schedule import NEVER

if TYPE_CHECKING:  # which calls this
    from .base import EpochCallback


def say_rivals(callback: EpochCallback, callbacks: Sequence[EpochCallback]) -> None:
    """Two callbacks of one kind that would log different numbers under the same names."""
    title = type(callback).__name__
    kin = [other for other in callbacks if type(other) is type(callback)]
    for other in kin[: kin.index(callback)]:
        both = sorted(set(callback.watched) & set(other.watched))
        if both and other.distinction() == callback.distinction():
            callback._guard.say(
                "rivals",
                f"{title}: another {title} watches {', '.join(both)} too, and both log under the same names; give them "
                "different modules.",
            )


def serve_monitors(callback: EpochCallback, trainer: pl.Trainer) -> None:
    """Whoever stops or saves by one of our tags reads it at every epoch, and takes a missing one for an old one."""
    monitors = [getattr(other, "monitor", None) for other in trainer.callbacks]  # type: ignore[attr-defined]
    ours = [tag for tag in monitors if isinstance(tag, str) and tag.startswith(f"{callback.noun}/")]
    if ours and callback.every_n_epochs is None:
        callback._schedule.every_n_epochs = 1
    elif ours and callback.every_n_epochs != 1:
        callback._guard.say(
            "monitored",
            f"{type(callback).__name__}: {ours[0]} is monitored by another callback, but every_n_epochs="
            f"{callback.every_n_epochs} leaves epochs without it; write every_n_epochs=1.",
        )


def say_spacing(trainer: pl.Trainer, callbacks: Sequence[EpochCallback]) -> None:
    """Once in a run, for all callbacks together: how rare looks have to be."""
    said = callbacks[0]._guard.said
    free = [callback for callback in callbacks if callback._looks and callback._schedule.every_n_epochs is None]
    rare = {type(callback).__name__: callback._schedule.spacing for callback in free if callback._schedule.spacing > 1}
    if not rare or "spacing" in said or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    left = (trainer.max_epochs or 0) - trainer.current_epoch
    if left == 1:  # the epoch that begins is the last one, and looked at
        return
    said.add("spacing")
    periods = ", ".join(
        f"{name} {'not' if every >= NEVER or 0 < left <= every else f'about every {every} epochs'}"
        for name, every in rare.items()
    )
    share = max(callback.max_overhead for callback in free)
    rank_zero_info(
        f"Looks are spaced out so that watching stays near {share:.0%} of the training time: after the first epoch and "
        f"before the last one {periods}; every_n_epochs=1 looks at each, whatever it costs."
    )
