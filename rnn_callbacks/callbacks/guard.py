"""How not to be in the way: settings refused before training, random states given back, warnings told from others'."""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import final

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from ..capture import recurrent_modules, why_unheard


class RecurrentHealthWarning(UserWarning):
    """Something about the watched network, or about watching it, that a person should know."""


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Give every global random generator back as it was, whatever happens inside."""
    state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_gpu else []
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def on_host() -> AbstractContextManager[object]:
    """New tensors lie on the host, as recordings do, whatever device the user made the default.

    Nothing is done where that is so anyway, for torch would ask a Python function at every operation.
    """
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@final
class Guard:
    """Lets nothing that goes wrong in an analysis reach the training, unless asked to, and says everything once.

    Args:
        owner: who says it.
        counter: the tag under which failures are counted.
        on_error: ``warn`` or ``raise``.
    """

    def __init__(self, owner: str, counter: str, on_error: str) -> None:
        self.owner = owner
        self.counter = counter
        self.on_error = on_error
        self.silent = False  # on ranks other than zero
        self.failures = 0
        self.said: set[str] = set()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures += 1
        if self.on_error == "raise":
            return False
        self.say(
            "fault",
            f"{self.owner} failed and training goes on; later failures are only counted in {self.counter}.\n"
            + "".join(traceback.format_exception(error)).rstrip(),
        )
        return True

    def say(self, key: str, words: str) -> None:
        """Warn once per key."""
        if key not in self.said:
            self.said.add(key)
            if self.silent:
                return
            # A registry of its own: Python's would swallow the same words in a second run of one process.
            warnings.warn_explicit(words, RecurrentHealthWarning, "rnn_callbacks", 1, "rnn_callbacks", registry={})

    def believes(self, name: str, where: str, error: float, tolerance: float) -> bool:
        """Whether rebuilt states are those of a module; if not, says why nothing that rests on them is reported."""
        if error <= tolerance:
            return True
        if error == float("inf"):
            self.say(
                f"refused {name}", f"{self.owner}: {name} is left out: there are NaN or infinite values in {where}."
            )
            return False
        self.say(
            f"refused {name}",
            f"{self.owner}: {name} is left out, because its hidden states cannot be rebuilt from its weights ({where} "
            f"differs by {error:.2g}, rounding explains {tolerance:.0e}). Usual reasons: weights that changed while it "
            "was being heard, a forward method of its own, or dropout between layers on an accelerator (listen to "
            "validation instead).",
        )
        return False


def check_whole_number(owner: str, name: str, value: object, *, optional: bool = False) -> None:
    """Refuse anything but a whole number from 1 (or None)."""
    if not (type(value) is int and value >= 1) and not (optional and value is None):
        raise MisconfigurationException(
            f"{owner}: {name} must be a whole number from 1{' or None' if optional else ''}, got {value!r}"
        )


def check_share(owner: str, name: str, value: object) -> None:
    """Refuse anything but a number above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise MisconfigurationException(f"{owner}: {name} must be a share, above 0 and up to 1, got {value!r}")


def check_choice(owner: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse anything but one of the choices."""
    if value not in choices:
        raise MisconfigurationException(
            f"{owner}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def check_seed(seed: object) -> None:
    """Refuse what starts no generator, with a ValueError: for `EpochCallback.check`, which names the callback."""
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")


def check_size(megabytes: object) -> None:
    """Refuse a limit in which nothing could be kept, as `check_seed` does."""
    if isinstance(megabytes, bool) or not isinstance(megabytes, (int, float)) or not megabytes > 0:
        raise ValueError(f"max_megabytes must be a number above 0, got {megabytes!r}")


def find_modules(owner: str, model: nn.Module, wanted: Sequence[str] | None) -> tuple[dict[str, nn.Module], str]:
    """The modules to watch, by name, and a remark on those that cannot be watched (or an empty string).

    Raises:
        MisconfigurationException: when a wanted module does not exist, with the names that do, or when there is none.
    """
    names = wanted if isinstance(wanted, (list, tuple)) else [None]
    if wanted is not None and not (wanted and all(isinstance(name, str) for name in names)):
        raise MisconfigurationException(f"{owner}: module must be a name, a list of names or None, got {wanted!r}")
    known = recurrent_modules(model)
    unheard = {name: reason for name, module in model.named_modules() if (reason := why_unheard(module)) is not None}
    remark = "".join(f" {name}: {reason}." for name, reason in unheard.items())
    missing = [name for name in wanted or [] if name not in known]
    if missing:
        raise MisconfigurationException(
            f"{owner}: no recurrent module is called {' or '.join(map(repr, missing))}; "
            f"this model has: {', '.join(known) or 'none'}.{remark}"
        )
    if not known:
        raise MisconfigurationException(
            f"{owner} found no recurrent module in {type(model).__name__}: expected nn.RNN, nn.LSTM, nn.GRU, one of "
            f"their cells, or a type of your own registered with @rnn_callbacks.cells.cells.register.{remark}"
        )
    return (known if wanted is None else {name: known[name] for name in wanted}), remark if wanted is None else ""
