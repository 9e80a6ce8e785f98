"""The life of fixed points over training: which appeared, vanished or changed their stability, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .distinct import ROUNDED
from .fixed_point_continuation import follow
from .fixed_point_equations import Equation
from .fixed_point_events import Event, What, tell
from .fixed_point_result import FixedPoints, Spectra
from .fixed_point_search import Skeleton, search
from .newton import late as out_of_time


@final
@dataclass(frozen=True, eq=False)
class Chapter:
    """One look at the fixed points of one module under one held input, with their identities."""

    skeleton: Skeleton
    ids: NDArray[np.int64]  # (M,), the same number for the same point at every look; -1 where time ran out
    events: tuple[Event, ...]
    moved: NDArray[np.float64]  # (M,), distance to where the point was at the last look; NaN for newcomers

    def count(self, what: What) -> int:
        """Points to which this happened."""
        return sum(len(event.ids) for event in self.events if event.what == what)


@final
@dataclass(eq=False)
class History:
    """What is remembered from one look to the next."""

    equations: list[Equation]
    inputs: Tensor  # (I,)
    unknown: Tensor  # (M, K)
    unstable: NDArray[np.int64]  # (M,)
    eigenvalues: NDArray[np.complex128]  # (M, D)
    ids: NDArray[np.int64]  # (M,)
    next_id: int

    def fits(self, equations: Sequence[Equation]) -> bool:
        """Whether it is about cells of these kinds and sizes."""
        return [_shape(equation) for equation in self.equations] == [_shape(equation) for equation in equations]


def _shape(equation: Equation) -> tuple[object, ...]:
    sizes = {name: tuple(value.shape) for name, value in equation.tensors.items()}
    return type(equation), equation.unknowns, equation.state_size, sizes


def pack(history: History) -> dict[str, Any]:
    """A history as plain tensors and numbers, for a checkpoint."""
    return {
        "weights": [equation.tensors if equation.says_all else {} for equation in history.equations],
        "inputs": history.inputs,
        "unknown": history.unknown,
        "unstable": torch.as_tensor(history.unstable),
        "eigenvalues": torch.as_tensor(history.eigenvalues),
        "ids": torch.as_tensor(history.ids),
        "next_id": history.next_id,
    }


def unpack(packed: dict[str, Any], equations: Sequence[Equation]) -> History | None:
    """A history from a checkpoint; None where it is about other cells.

    Args:
        packed: from `pack`.
        equations: of the cells now. A cell that says nothing of its weights is taken to have had the same then.
    """
    if len(packed["weights"]) != len(equations) or packed["unknown"].shape[1] != sum(e.unknowns for e in equations):
        return None
    old = [e.with_tensors(weights) if weights else e for e, weights in zip(equations, packed["weights"], strict=True)]
    history = History(
        old,
        packed["inputs"],
        packed["unknown"],
        packed["unstable"].numpy(),
        packed["eigenvalues"].numpy(),
        packed["ids"].numpy(),
        packed["next_id"],
    )
    return history if history.fits(equations) else None


def begin(equations: Sequence[Equation], inputs: Tensor, skeleton: Skeleton) -> tuple[History, Chapter]:
    """The first look: every point is given a number."""
    count = len(skeleton.points)
    ids = np.arange(count)
    chapter = Chapter(skeleton, ids, (), np.full(count, np.nan))
    return _remember(equations, inputs, skeleton.points, ids, count), chapter


def go_on(
    history: History,
    equations: Sequence[Equation],
    inputs: Tensor,
    pools: Sequence[Tensor],
    *,
    max_starts: int = 1024,
    max_points: int = 256,
    deadline: float | None = None,
    seed: int = 0,
) -> tuple[History, Chapter]:
    """The next look: follow the known points to the new weights, search for others, and say what happened.

    A newcomer is a birth only if it cannot be followed back to the old weights; one that can be was overlooked before.

    Args:
        history: of the last look.
        equations: of the same cells, now.
        inputs: ``(I,)``, held now.
        pools: visited unknowns ``(S, K)`` of every layer.
        max_starts: of each search of a layer.
        max_points: more are not looked for.
        deadline: `time.perf_counter` at which to stop.
        seed: of the choice of starts.
    """
    ahead = follow(history.equations, equations, history.inputs, inputs, history.unknown, deadline=deadline)
    skeleton = search(
        equations, inputs, pools, known=ahead.unknown[ahead.alive], spectra=_unchanged(history, equations, inputs),
        max_starts=max_starts, max_points=max_points, deadline=deadline, seed=seed,
    )  # fmt: skip
    here = unknowns_of(equations, skeleton.points)
    old = np.full(len(here), -1)  # row of the same point at the last look
    _assign(old, here, ahead.unknown, ahead.alive.numpy())
    if skeleton.stopped == "seconds" or out_of_time(deadline):
        # What was not looked at has not vanished: the story waits for a whole look.
        ids = np.where(old >= 0, history.ids[old] if len(history.ids) else -1, -1)
        return history, Chapter(skeleton, ids, (), np.full(len(here), np.nan))
    late: list[int] = []
    newcomers = np.flatnonzero(old < 0)
    if len(newcomers):
        back = follow(
            equations, history.equations, inputs, history.inputs, here[newcomers], around_folds=False, deadline=deadline
        )
        lost = np.ones(len(history.ids), dtype=bool)
        lost[old[old >= 0]] = False
        known = np.full(len(newcomers), -1)
        _assign(known, back.unknown, history.unknown, np.ones(len(lost), dtype=bool))
        for row, before, alive in zip(newcomers, known, back.alive.tolist(), strict=True):
            if alive and before < 0:
                late.append(int(row))
            elif alive and lost[before]:
                old[row], lost[before] = before, False
    ids = np.where(old >= 0, history.ids[old] if len(history.ids) else -1, -1)
    fresh = np.flatnonzero(old < 0)
    ids[fresh] = history.next_id + np.arange(len(fresh))
    moved = np.full(len(here), np.nan)
    same = np.flatnonzero(old >= 0)
    moved[same] = (here[same] - history.unknown[old[same]]).norm(dim=1).numpy()
    gone = np.setdiff1d(np.flatnonzero(~ahead.alive.numpy()), old)  # those that a full search left out live on
    events = tell(history.ids, history.unstable, history.eigenvalues, skeleton.points, ids, old, set(late), gone)
    remembered = _remember(equations, inputs, skeleton.points, ids, history.next_id + len(fresh))
    return remembered, Chapter(skeleton, ids, events, moved)


def unknowns_of(equations: Sequence[Equation], points: FixedPoints) -> Tensor:
    """The unknowns ``(M, K)`` within the states of points."""
    states, parts, at = torch.as_tensor(points.states), [], 0
    for equation in equations:
        parts.append(states[:, at : at + equation.unknowns])
        at += equation.state_size
    return torch.cat(parts, dim=1)


def _remember(
    equations: Sequence[Equation], inputs: Tensor, points: FixedPoints, ids: NDArray[np.int64], next_id: int
) -> History:
    unknown = unknowns_of(equations, points)
    return History(list(equations), inputs, unknown, points.unstable, points.eigenvalues, ids, next_id)


def _unchanged(history: History, equations: Sequence[Equation], inputs: Tensor) -> Spectra | None:
    """The known eigenvalues, where neither weights nor input have moved."""
    if not torch.equal(history.inputs, inputs):
        return None
    for old, new in zip(history.equations, equations, strict=True):
        if old.tensors.keys() != new.tensors.keys() or not old.says_all or not new.says_all:
            return None
        if not all(torch.equal(value, new.tensors[name]) for name, value in old.tensors.items()):
            return None
    return Spectra(history.unknown, history.eigenvalues)


def _assign(found: NDArray[np.int64], here: Tensor, there: Tensor, usable: NDArray[np.bool_]) -> None:
    """Row of the equal point in ``there`` for every point of ``here``; -1 where there is none."""
    if not len(here) or not len(there):
        return
    distances = torch.cdist(here, there, p=torch.inf).numpy()
    distances[:, ~usable] = np.inf
    nearest = distances.argmin(1)
    equal = distances[np.arange(len(here)), nearest] <= ROUNDED
    found[equal] = nearest[equal]
