"""Processes that train together: each hears its own share of the data, and rank zero looks at what all have heard.

Batches are numbered so that no two processes use a number: the n-th batch of rank r is ``n * world_size + r``, which is
also the order in which one process alone would have met their sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch.distributed
from torch.utils.data import DistributedSampler

from ..tape import Call, Tape

T = TypeVar("T")


def agree(trainer: pl.Trainer, value: T) -> T:
    """What rank zero says. Every rank has to ask."""
    if trainer.world_size == 1:
        return value
    agreed: T = trainer.strategy.broadcast(value, src=0)
    return agreed


def collect(trainer: pl.Trainer, own: Any) -> list[Any]:
    """On rank zero what the other ranks have, in their order; nothing elsewhere. Every rank has to bring its own.

    Strategies that are not built on ``torch.distributed`` leave rank zero with what it heard itself.
    """
    if trainer.world_size == 1 or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    brought: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(None if trainer.is_global_zero else own, brought, dst=0)
    return brought[1:] if brought is not None else []


def own_share(sequences: int, trainer: pl.Trainer, loaders: Any) -> int:
    """How many of the first sequences of the data this rank has to hear.

    Lightning deals them out in turn. It fills the last batches of a validation set up with its first sequences, so that
    all ranks have as many, and those do not count twice. Where it does not deal, all ranks may have the same data, and
    rank zero hears all that is wanted.
    """
    if trainer.world_size == 1:
        return sequences
    samplers = list(_samplers(loaders))
    if not samplers or not all(isinstance(sampler, DistributedSampler) for sampler in samplers):
        return sequences if trainer.is_global_zero else 0
    if len(samplers) == 1 and not samplers[0].drop_last:
        sequences = min(sequences, len(samplers[0].dataset))
    return max(-((trainer.global_rank - sequences) // trainer.world_size), 0)


def _samplers(loaders: Any) -> Iterator[Any]:
    """Of every loader, whatever the user's structure of them."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from _samplers(loader)
    elif loaders is not None:
        yield getattr(loaders, "sampler", None)


def without_equations(tapes: Mapping[str, Tape]) -> dict[str, Tape]:
    """Tapes to be sent to a rank that has the same weights."""
    return {name: Tape(name, tuple(replace(call, cells=()) for call in tape.calls)) for name, tape in tapes.items()}


def join_tapes(own: Mapping[str, Tape], others: Sequence[Mapping[str, Tape]]) -> dict[str, Tape]:
    """What all ranks heard, batch after batch, with the equations of rank zero at the same moment.

    Of a module that rank zero did not hear, its weights are not known, and it is left as it is.
    """
    joined: dict[str, Tape] = {}
    for name, tape in own.items():
        calls = list(tape.calls)
        if calls:
            calls += [_lend(call, tape.calls) for tapes in others if name in tapes for call in tapes[name].calls]
        joined[name] = Tape(name, tuple(sorted(calls, key=lambda call: call.batch)))
    return joined


def _lend(call: Call, own: Sequence[Call]) -> Call:
    earlier = [known for known in own if known.batch <= call.batch]
    return replace(call, cells=(earlier[-1] if earlier else own[0]).cells)
