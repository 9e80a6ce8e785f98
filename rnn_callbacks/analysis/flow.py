"""A stack of cells under one held input, as the one map that takes its whole state to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .fixed_point_equations import Equation


@final
@dataclass(frozen=True, eq=False)
class Flow:
    """``s -> F(x, s)`` with x held; each layer reads the new hidden state of the one below."""

    equations: tuple[Equation, ...]
    inputs: Tensor  # (I,)

    @property
    def state_size(self) -> int:
        """D, of all layers."""
        return sum(equation.state_size for equation in self.equations)

    def _split(self, states: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split_with_sizes(states, [equation.state_size for equation in self.equations], dim=1))

    def hidden(self, states: Tensor) -> Tensor:
        """Hidden states ``(N, P)`` within whole states ``(N, D)``."""
        parts = zip(self.equations, self._split(states), strict=True)
        return torch.cat([part[:, : equation.output_size] for equation, part in parts], dim=1)

    def step(self, states: Tensor) -> Tensor:
        """``(N, D)`` to ``(N, D)``."""
        below, after = self.inputs[None], []
        for equation, part in zip(self.equations, self._split(states), strict=True):
            after.append(equation.step(equation.drive_of(below), part))
            below = after[-1][:, : equation.output_size]
        return torch.cat(after, dim=1)

    def jacobian(self, states: Tensor) -> Tensor:
        """``(N, D, D)``, block-triangular: no layer feels the ones above."""
        found = states.new_zeros(len(states), states.shape[1], states.shape[1])
        below, at, before = self.inputs[None], 0, slice(0, 0)
        for equation, part in zip(self.equations, self._split(states), strict=True):
            drive = equation.drive_of(below)
            rows = slice(at, at + equation.state_size)
            found[:, rows, rows] = equation.jacobian(drive, part)
            if at:
                found[:, rows, :at] = equation.input_jacobian(drive, part) @ found[:, before, :at]
            below = equation.step(drive, part)[:, : equation.output_size]
            before, at = slice(at, at + equation.output_size), at + equation.state_size
        return found

    def run(self, states: Tensor, steps: int) -> Tensor:
        """The states after so many steps."""
        for _ in range(steps):
            states = self.step(states)
        return states


def flow_of(equations: Sequence[Equation], inputs: Tensor) -> Flow:
    """The joint map of a cascade of equations."""
    return Flow(tuple(equations), inputs)
