"""What was heard for a look, in this process and in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from ..capture import Recorder
from ..tape import Tape
from .ranks import join_tapes, without_equations

if TYPE_CHECKING:  # which asks for it
    from .base import EpochCallback


@final
@dataclass(frozen=True, eq=False)
class Brought:
    """What a rank brings to rank zero."""

    tapes: dict[str, Tape]
    heard: Any
    fault: str = ""


def bring(callback: EpochCallback, recorder: Recorder | None) -> Brought:
    """On ranks other than zero: everything heard there; what goes wrong is said by rank zero."""
    tapes: dict[str, Tape] = {}
    if recorder is not None and not callback.takes_batches:
        heard = recorder.tapes
        tapes = without_equations({name: heard[name].head(callback._share) for name in callback.watched})
    try:
        return Brought(tapes, callback.heard())
    except Exception as error:
        return Brought(tapes, None, repr(error))


def join_heard(callback: EpochCallback, own: dict[str, Tape], brought: Sequence[Brought]) -> dict[str, Tape]:
    """On rank zero: tapes of all ranks; whatever else they heard goes to the callback."""
    if not brought:
        return own
    faults = [other.fault for other in brought if other.fault]
    if faults:
        with callback._guard:
            raise RuntimeError(f"another rank could not hand over what it heard: {faults[0]}")
    callback.join([other.heard for other in brought if not other.fault])
    return join_tapes(own, [other.tapes for other in brought])


def heard_here(callback: EpochCallback, recorder: Recorder | None) -> dict[str, Tape]:
    """Tapes of the watched modules that were called; what is missing is said once."""
    tapes: dict[str, Tape] = {}
    if recorder is None:
        return tapes
    heard, guard, title = recorder.tapes, callback._guard, type(callback).__name__
    for name in callback.watched:
        if name in recorder.faults:
            with guard:
                raise RuntimeError(f"listening to {name} failed") from recorder.faults[name]
        elif recorder.sequences[name]:
            if heard[name].calls:
                tapes[name] = heard[name].head(callback._share)
        elif "silent" not in guard.said:
            guard.say(f"silent {name}", f"{title}: {name} is left out; it {why_silent(recorder, name)}")
    return tapes


def why_silent(recorder: Recorder, name: str | None = None) -> str:
    """Why nothing was heard of a module, or of any."""
    if recorder.without_gradient if name is None else name in recorder.without_gradient:
        return (
            "ran, but without gradients (frozen with all below it, inside torch.no_grad() or in a reentrant "
            "checkpoint; use_reentrant=False can be listened to)."
        )
    return "was not called."
