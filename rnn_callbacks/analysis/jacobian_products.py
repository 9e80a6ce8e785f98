"""How a small change of the state at one step moves the state at the next, along real sequences.

The Jacobian of every step is kept as the few elementwise factors it is made of, and only ever multiplied with vectors:
`Linearisation.pull` takes gradients back in time, `Linearisation.push` takes tangents forward. A step then costs one
product with the recurrent matrix, as the step itself does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Linearisation(ABC):
    """The Jacobians of T steps of B sequences, in the order in which the cell reads.

    The state is ``[h, c]``, of width D. K gradients or tangents of each sequence travel together, ``(K, B, D)``.

    Args:
        before: ``(T, B, P)``, hidden state before each step.
        error: largest difference of the rebuilt hidden states to the recorded ones, relative to max(1, |h|).
        width: of what `pull` leaves behind at each step: the gradient of the cell's pre-activations as the recurrent
            matrix sees them, in torch's row order, G * H.
    """

    memory: Tensor | None = None  # (T, B, M), after each step, of cells with a memory in a user's own loop
    knows_weights = True  # whether what `pull` leaves behind is the gradient of pre-activations

    def __init__(self, before: Tensor, *, error: float, width: int, state_size: int) -> None:
        self.before = before
        self.error = error
        self.width = width
        self.state_size = state_size

    @abstractmethod
    def pull(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        """Take gradients back through the steps from ``end - 1`` to ``begin``.

        Args:
            gradients: ``(T, K, B, D)``, of the state after each step; holds the direct gradients and is completed in
                place: afterwards the rows from ``begin`` to ``end`` hold all that the later ones send back.
            inner: ``(end - begin, K, B, width)``, written to.
            begin: first step.
            end: one past the last.

        Returns:
            What goes back into the state before ``begin``, ``(K, B, D)``.
        """

    @abstractmethod
    def push(self, step: int, tangents: Tensor) -> Tensor:
        """Take tangents ``(K, B, D)`` of the state before a step to those after it."""

    @abstractmethod
    def input_gradients(self, gradients: Tensor, inner: Tensor, begin: int, end: int) -> Tensor:
        """Gradients of the cell's inputs, ``(end - begin, B, I)``, of the first of the K, after the same `pull`."""

    def memory_gradients(self, gradients: Tensor) -> Tensor:
        """Total gradient of the memory, ``(T, K, B, M)``, after `pull`: with what it does through ``h`` of its step."""
        return gradients[..., self.before.shape[2] :]

    def shown(self, hidden: Tensor) -> Tensor:
        """What gradients of the hidden state after each step, ``(T, B, P)``, are for the memory through it alone.

        Raises:
            ValueError: for cells whose equations are not known so far.
        """
        raise ValueError(
            "gradients through time of a cell of your own with a memory need the gradient of its memory apart from "
            "that of its hidden state, which a loop over single steps does not give"
        )


def difference(rebuilt: Tensor, hidden: Tensor, lengths: Tensor) -> float:
    """Largest difference relative to max(1, |h|), padding left out; infinite where a number is not finite."""
    valid = torch.arange(len(hidden))[:, None] < lengths
    apart = ((rebuilt - hidden).abs_() / hidden.abs().clamp(min=1)).amax(2).masked_fill_(~valid, 0.0)
    worst = float(apart.max()) if apart.numel() else 0.0
    return worst if worst == worst else float("inf")
