"""The equation whose roots are the fixed points of a cell under a held input, and the Jacobians around them.

The equation is smaller than ``F(x, state) = state``. In a GRU the update gate cancels: ``n(h) = h`` has the same roots,
and none of the phantoms that a closed gate makes of any state at all. In an LSTM the memory follows from the hidden
state, ``c = i g / (1 - f)``, so that H unknowns remain of 2 H. The reduction keeps the sign of ``det(I - J)``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from ..cells import Cell


class Equation(ABC):
    """``g(k; x) = 0`` for the unknowns k of one cell, N independent rows at a time.

    ``drive`` is what a held input adds to the pre-activations, from `drive_of`.

    Args:
        tensors: weights, all of one dtype.
        unknowns: K, the hidden state's width P, or the whole state's where nothing is known of the cell.
        output_size: P, how many of the unknowns come first and are what the next layer reads.
        state_size: D.
        limit: ``(K,)``, the largest size that any state after one step can have; None where there is no bound.
    """

    says_all: bool = True  # whether the tensors are all there is to know
    exact: bool = True  # whether float64 can be had

    def __init__(
        self, tensors: dict[str, Tensor], *, unknowns: int, output_size: int, state_size: int, limit: Tensor | None
    ) -> None:
        self.tensors = tensors
        self.unknowns = unknowns
        self.output_size = output_size
        self.state_size = state_size
        self.limit = limit

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and states."""
        return self.tensors["ih"].dtype

    def to(self, dtype: torch.dtype) -> Equation:
        """The same equation in another precision."""
        return (
            self if dtype == self.dtype else self.with_tensors({name: t.to(dtype) for name, t in self.tensors.items()})
        )

    def between(self, other: Equation, share: float) -> Equation:
        """The equation with weights that lie a share of the way to those of another."""
        return self.with_tensors({name: torch.lerp(t, other.tensors[name], share) for name, t in self.tensors.items()})

    def with_tensors(self, tensors: dict[str, Tensor]) -> Equation:
        """The same equation with other weights of the same shapes."""
        twin = copy.copy(self)
        twin.tensors = tensors
        if self.limit is not None:
            twin.limit = twin._limit()
        return twin

    def _limit(self) -> Tensor:
        return self.tensors["ih"].new_ones(self.unknowns)

    def drive_of(self, inputs: Tensor) -> Tensor:
        """What held inputs ``(N, I)`` add to the pre-activations, ``(N, gates * H)``."""
        return torch.addmm(self.tensors["bias"], inputs.to(self.dtype), self.tensors["ih"].T)

    @abstractmethod
    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        """``g``, ``(N, K)``."""

    @abstractmethod
    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """``g``, ``(N, K)``, and its Jacobian ``dg/dk``, ``(N, K, K)``."""

    def resolved(self, drive: Tensor, unknown: Tensor) -> Tensor:
        """Whether a root is a fixed point of the whole state too, as far as rounding lets one tell, ``(N,)``."""
        return torch.ones(len(unknown), dtype=torch.bool)

    @abstractmethod
    def state(self, drive: Tensor, unknown: Tensor) -> Tensor:
        """The whole state ``(N, D)`` that goes with the unknowns at a fixed point."""

    @abstractmethod
    def step(self, drive: Tensor, state: Tensor) -> Tensor:
        """``F(x, state)``, ``(N, D)``."""

    @abstractmethod
    def jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        """``dF/dstate``, ``(N, D, D)``, at any state."""

    @abstractmethod
    def input_jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        """``dF/dx``, ``(N, D, I)``."""


def less_identity(matrices: Tensor) -> Tensor:
    """``A - I`` for each of N matrices, in place."""
    matrices.diagonal(dim1=1, dim2=2).sub_(1.0)
    return matrices


@final
class _Unknown(Equation):
    """``F(x, s) = s`` for a cell that only says how it steps; Jacobians by automatic differentiation.

    Between two such cells lies the mixture of what they do, because their weights are their own affair.
    """

    says_all = False
    mixture: tuple[tuple[float, Cell], ...]

    def to(self, dtype: torch.dtype) -> Equation:
        return self  # in whatever precision the cell computes

    def between(self, other: Equation, share: float) -> Equation:
        assert isinstance(other, _Unknown)
        twin = copy.copy(self)
        first = [(weight * (1 - share), cell) for weight, cell in self.mixture]
        twin.mixture = (*first, *((weight * share, cell) for weight, cell in other.mixture))
        return twin

    def drive_of(self, inputs: Tensor) -> Tensor:
        return inputs.double()

    def residual(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return self.step(drive, unknown) - unknown

    def linearised(self, drive: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
        after, jacobian = self._derivative(drive, unknown, by=1)
        return after - unknown, less_identity(jacobian)

    def state(self, drive: Tensor, unknown: Tensor) -> Tensor:
        return unknown

    def step(self, drive: Tensor, state: Tensor) -> Tensor:
        precision = torch.float64 if self.exact else torch.float32
        drive, state = drive.expand(len(state), -1).to(precision), state.to(precision)
        steps = [weight * cell.step(drive, state).double() for weight, cell in self.mixture]
        return torch.stack(steps).sum(0)

    def jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        return self._derivative(drive, state, by=1)[1]

    def input_jacobian(self, drive: Tensor, state: Tensor) -> Tensor:
        return self._derivative(drive, state, by=0)[1]

    def _derivative(self, drive: Tensor, state: Tensor, *, by: int) -> tuple[Tensor, Tensor]:
        """One step and its derivative by the input (0) or the state (1)."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (drive.expand(len(state), -1), state)]
            after = self.step(*leaves)
            rows = [
                torch.autograd.grad(after[:, row].sum(), leaves[by], retain_graph=True, allow_unused=True)[0]
                for row in range(self.state_size)
            ]
        blank = torch.zeros_like(leaves[by])
        return after.detach(), torch.stack([blank if row is None else row for row in rows], dim=1)


@torch.no_grad()
def unknown_equation(cell: Cell) -> Equation:
    """The equation of a cell that only says how it steps, in float64 where its weights can be had in it.

    Raises:
        ValueError: when its step from a state of zeros is not finite.
    """
    start = torch.zeros(1, cell.input_size), torch.zeros(1, cell.state_size)
    with torch.inference_mode(False):
        double = _in_double(cell)
        try:
            after, exact = double.step(start[0].double(), start[1].double()), True
        except RuntimeError:  # weights of another dtype, out of reach
            after, exact = cell.step(*start), False
    if not bool(after.isfinite().all()):
        raise ValueError(f"a step of {type(cell).__name__} from zeros must be finite, got NaN or infinity")
    found = _Unknown(
        {"ih": torch.zeros(0, dtype=torch.float64)},
        unknowns=cell.state_size,
        output_size=cell.output_size,
        state_size=cell.state_size,
        limit=None,
    )
    found.exact = exact
    found.mixture = ((1.0, double if exact else cell),)
    return found


def _in_double(cell: Cell) -> Cell:
    """A copy whose tensors are float64, as deep as dicts, lists and modules reach."""
    twin = copy.copy(cell)
    for name, value in vars(cell).items():
        setattr(twin, name, _doubled(value))
    return twin


def _doubled(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().to(torch.float64, copy=True) if value.is_floating_point() else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double().requires_grad_(False)
    if isinstance(value, dict):
        return {key: _doubled(item) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(_doubled(item) for item in value)
    return value
