"""Functions that a constructor takes as they are, or by an import path where YAML can only name them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def function_of(setting: str, given: object) -> Callable[..., Any]:
    """The function itself.

    Args:
        setting: what the constructor calls it, for messages.
        given: a function, or ``package.module.function``.

    Raises:
        ValueError: when it is neither.
    """
    if callable(given):
        return given
    if not isinstance(given, str):
        raise ValueError(f"{setting} must be a function of a batch or its import path, got {type(given).__name__}")
    module, _, name = given.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{setting}: cannot import {given!r} ({error}); expected 'package.module.function'") from error
    if not callable(found):
        raise ValueError(f"{setting}: {given!r} is no function but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function
