"""What the backward pass itself gives the recurrent biases, for the rebuilt gradients to be held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

from torch import Tensor, nn

from ..analysis.adjoint import CellGradients
from ..analysis.gradient_check import relative_error
from ..tape import Tape


@final
class OwnGradients:
    """Gradients of the recurrent biases of some modules, as single backward passes add them."""

    def __init__(self) -> None:
        self.scales: dict[int, float] = {}  # by batch: what a gradient scaler multiplied the loss with
        self._heard: dict[int, dict[int, Tensor]] = {}  # by batch, by id of the parameter
        self._resting: set[tuple[int, int]] = set()  # batch and parameter, where a backward pass left it out
        self._before: dict[int, Tensor | None] = {}

    def clear(self) -> None:
        """Forget what was heard."""
        self.scales.clear()
        self._heard.clear()
        self._resting.clear()
        self._before.clear()

    def before(self, modules: Iterable[nn.Module]) -> None:
        """A backward pass is about to add to what is there, of earlier parts of an accumulated batch."""
        biases = _biases(modules).items()
        self._before = {key: None if p.grad is None else p.grad.clone() for key, p in biases if p.requires_grad}

    def after(self, modules: Iterable[nn.Module], batch: int) -> None:
        """It has."""
        own = self._heard.setdefault(batch, {})
        for key, parameter in _biases(modules).items():
            if not parameter.requires_grad:  # as while another optimizer has its turn
                self._resting.add((batch, key))
            if parameter.grad is not None and key in self._before:
                before = self._before[key]
                change = parameter.grad.detach().clone() if before is None else parameter.grad - before
                own[key] = own[key] + change if key in own else change
        self._before.clear()

    def errors(
        self,
        modules: Mapping[str, nn.Module],
        rebuilt: Mapping[str, Mapping[str, Sequence[CellGradients]]],
        tapes: Mapping[str, Tape],
        cut: set[int],
    ) -> dict[tuple[str, str], float]:
        """Relative difference of rebuilt bias gradients to the modules' own, by module and cell, the worst batch.

        Only for batches of which every call of every sequence was heard. Modules that share a bias share its gradient.
        """
        whole = {call.batch for tape in tapes.values() for call in tape.calls} - cut
        for tape in tapes.values():
            whole -= {call.batch for call in tape.calls if not all(part.complete for part in call.boundaries)}
        sums: dict[int, dict[int, Tensor]] = {}
        owners: dict[tuple[str, str], int] = {}
        for name, by_cell in rebuilt.items():
            for cell, parts in by_cell.items():
                bias = recurrent_bias(modules[name], cell)
                if bias is None:
                    continue
                owners[name, cell] = id(bias)
                for part in parts:
                    of_batch = sums.setdefault(part.trace.batch, {})
                    of_batch[id(bias)] = part.bias.double().sum(0) + of_batch.get(id(bias), 0.0)
        errors: dict[int, float] = {}
        for batch in whole & sums.keys() & self._heard.keys():
            for key in sums[batch].keys() & self._heard[batch].keys():
                if (batch, key) in self._resting:
                    continue
                true = self._heard[batch][key].cpu().double() / self.scales.get(batch, 1.0)
                errors[key] = max(relative_error(sums[batch][key], true), errors.get(key, 0.0))
        return {place: errors[key] for place, key in owners.items() if key in errors}


def recurrent_bias(module: nn.Module, cell: str) -> nn.Parameter | None:
    """The recurrent bias of one cell, where it is a plain parameter that is trained."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return None
    bias = module._parameters.get("bias_hh" if isinstance(module, nn.RNNCellBase) else f"bias_hh_{cell}")
    return bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None


def _biases(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            own = [p for name, p in module.named_parameters(recurse=False) if name.startswith("bias_hh")]
            found |= {id(parameter): parameter for parameter in own}
    return found
