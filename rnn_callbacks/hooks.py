"""Hooks that are harmless where they should not be: in copies and files of a model, and in compiled code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn


class Ear(partial[None]):
    """A hook that torch.compile leaves alone, and in whose place a copy or a saved file of the model has nothing.

    Args:
        hook: what to call; returns None.
    """

    def __new__(cls, hook: Callable[..., None]) -> Ear:
        # dynamo must not trace into the hook; without dynamo in play its import would cost seconds.
        shield: Callable[[Any], Any] = torch.compiler.disable if "torch._dynamo" in sys.modules else lambda f: f
        return super().__new__(cls, shield(hook))

    def __reduce__(self) -> tuple[Any, ...]:
        # The plainest method in the standard library that takes any arguments and returns None, so that a file saved
        # while somebody listens can be read where this package is not installed.
        return getattr, (nullcontext(), "__exit__")


_listeners: list[object] = []
_stance = ExitStack()


@contextmanager
def uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have compiled code run as it was written, if hooks on these modules would not be called otherwise.

    torch.compile does not look again at a module's hooks once it has compiled a call of it. It does not compile
    ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` unless told to. Several of these may overlap and end in any order.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or (
        all(isinstance(m, nn.RNNBase) for m in modules) and not getattr(dynamo.config, "allow_rnn", False)
    ):
        yield
        return
    listener = object()
    if not _listeners and hasattr(torch.compiler, "set_stance"):  # from torch 2.6
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        if not _listeners:
            _stance.close()
