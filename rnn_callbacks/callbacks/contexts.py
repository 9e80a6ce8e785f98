"""Inputs to hold: by name, as a vector, or as what the model makes of a chosen raw input."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ..analysis.visited import Visited
from ..capture import Recorder, recurrent_modules
from ..cells import cells
from .importing import function_of
from .look import rehearsal

Context = str | Sequence[float] | Callable[..., Any]
NAMED = ("zero", "mean")


def read_contexts(contexts: object) -> dict[str, Context]:
    """Contexts by name, functions imported.

    Raises:
        ValueError: when one is neither ``zero``, ``mean``, a list of numbers nor a function.
    """
    if contexts is None:
        return {"zero": "zero"}
    if isinstance(contexts, str):
        contexts = [contexts]
    if isinstance(contexts, (list, tuple)) and contexts and all(isinstance(name, str) for name in contexts):
        contexts = {name.rpartition(".")[2]: name for name in contexts}
    if not isinstance(contexts, dict) or not contexts:
        raise ValueError(f"contexts must be names or a dict of inputs by name, got {contexts!r}")
    found: dict[str, Context] = {}
    for name, given in contexts.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"contexts: {name!r} is no name; expected letters, digits, '_', '-' and '.'")
        found[name] = given if isinstance(given, str) and given in NAMED else _read(name, given)
    return found


def _read(name: str, given: object) -> Context:
    if isinstance(given, (Tensor, list, tuple)):
        try:
            vector = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"contexts: {name!r} must hold numbers, got {given!r}") from error
        if vector.dim() != 1 or not bool(vector.isfinite().all()):
            raise ValueError(f"contexts: {name!r} must be one vector of finite numbers, got {given!r}")
        values: list[float] = vector.tolist()
        return values
    if isinstance(given, str) and "." not in given:
        raise ValueError(
            f"contexts: {given!r} is none of {', '.join(map(repr, NAMED))}, nor the import path of a function"
        )
    return function_of("contexts", given)


def check_sizes(contexts: Mapping[str, Context], modules: Mapping[str, nn.Module]) -> None:
    """Refuse vectors that do not fit the modules.

    Raises:
        ValueError: with the size that was expected.
    """
    for name, given in contexts.items():
        if isinstance(given, list):
            for module, found in modules.items():
                size = cells(found)[0].input_size
                if len(given) != size:
                    raise ValueError(
                        f"contexts: {name!r} has {len(given)} numbers, but {module} takes inputs of {size}; "
                        "with several modules, name one with module="
                    )


def held_input(given: Context, visited: Visited, pl_module: pl.LightningModule, module: str, batch: Any) -> Tensor:
    """The vector ``(I,)`` to hold at the lowest layer of a module.

    A function is given the first batch that was heard and returns raw inputs. A copy of the model runs on them, and
    what reaches the recurrent module, averaged over sequences and steps, is held.

    Raises:
        RuntimeError: when those inputs did not reach the module.
    """
    if given == "mean":
        return visited.mean_input
    if given == "zero":
        return torch.zeros_like(visited.mean_input)
    if not callable(given):
        return torch.tensor(given, dtype=torch.float64)
    raw = given(batch)
    model = rehearsal(pl_module)
    with Recorder(model, modules={module: recurrent_modules(model)[module]}) as recorder, torch.no_grad():
        if isinstance(raw, dict):
            model(**raw)
        elif isinstance(raw, (tuple, list)):
            model(*raw)
        else:
            model(raw)
    heard = recorder.tapes[module].calls
    if not heard:
        reason = f" ({recorder.faults[module]})" if module in recorder.faults else ""
        raise RuntimeError(f"the inputs that this context's function returned did not reach {module}{reason}")
    masks = [torch.arange(call.inputs.shape[1]) < call.lengths[:, None] for call in heard]
    return torch.cat([call.inputs[mask] for call, mask in zip(heard, masks, strict=True)]).double().mean(0)
