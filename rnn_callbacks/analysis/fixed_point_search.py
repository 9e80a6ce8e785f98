"""All fixed points of a cell, or of a cascade of cells, and how sure one can be that they are all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ..cells import Cell
from .distinct import ROUNDED, SAME, distinct
from .fixed_point_cells import equation_of
from .fixed_point_equations import Equation
from .fixed_point_result import CREEPING, FixedPoints, Spectra, describe, index_of
from .fixed_points import check_inputs, check_starts, damped, deadline_in, require_finite
from .newton import COARSE, FINE, LONGEST_STEP, SHORTER_STEP, late, newton

FRESH = 16  # visited states tried per round, and as many midpoints between visited states
PAIRS = 64  # midpoints between found points tried per round
PLACES = 4  # anywhere in the box, from where Newton's method takes long; more where few states were visited
FRUITLESS = 6  # rounds in a row without anything new, after which a search is given up as incomplete
BLURRED = 1e-3  # distance between roots at which Newton's step does not exist that count as one
ASTRAY = 0.01  # from any root: nearer, a start that has not converged was on its way there
TRUSTED = 24  # starts in a row that must converge without anything new before a search is done
MANY = 8  # degenerate points: more of them are a sample of a line or plane of fixed points


@final
@dataclass(frozen=True, eq=False)
class Skeleton:
    """The distinct fixed points of one cell, or of a stack of cells, under one held input.

    Where they fill a line or a plane, those on it are left out: see `slow_points.find_continuum`.
    """

    points: FixedPoints
    index_sum: int | None  # over the isolated points; 1 when none is missing, None where no such law holds
    complete: bool  # the sum is 1 and a last round of starts found nothing new: necessary for all points, not proof
    starts: int  # how many were tried
    phantoms: int  # starts refused though their state hardly moves: closed gates hold it, and there is no root
    stopped: str  # why the search ended early: "seconds", "starts", "points", "continuum", or nothing


@torch.no_grad()
def find_all_fixed_points(
    cells: Cell | Sequence[Cell],
    visited: Tensor | Sequence[Tensor],
    inputs: Tensor | None = None,
    *,
    known: Tensor | None = None,
    max_starts: int = 1024,
    max_points: int = 256,
    max_seconds: float | None = None,
    seed: int = 0,
) -> Skeleton:
    """Every fixed point that can be found, with a test of completeness.

    Starts are visited states, midpoints between them, and midpoints between points that were found, round after round
    until a round finds nothing new. A network with bounded states maps a box into itself, so the indices
    sign det(I - J) of its isolated fixed points sum to 1 (Lefschetz; Hopf 1929): while they do not, starts are added.
    A stack is a cascade: each layer is searched with its input held at every fixed point of the layer below.

    Args:
        cells: one cell, or the cells of a stack from the lowest layer up.
        visited: ``(S, P)`` or ``(S, D)``, states seen in the network's own runs; one tensor for each cell.
        inputs: ``(I,)``, held; zeros by default.
        known: ``(M, K)``, unknowns of points from an earlier search, tried first.
        max_starts: for each search of one layer.
        max_points: more are not looked for.
        max_seconds: when to stop with what was found.
        seed: of the choice of starts.

    Raises:
        ValueError: as `find_fixed_points`, and for cells that read backwards or do not belong together.
    """
    stack = [cells] if isinstance(cells, Cell) else list(cells)
    seen = [visited] if isinstance(visited, Tensor) else list(visited)
    if not stack or any(cell.place.reverse for cell in stack):
        raise ValueError("cells must be one or more cells of one direction, forward, from the lowest layer up")
    if len(stack) != len(seen):
        raise ValueError(f"visited must hold one tensor for each of {len(stack)} cells, got {len(seen)}")
    equations = [equation_of(cell) for cell in stack]
    held = check_inputs(stack[0], inputs)
    if known is not None:
        size = sum(equation.unknowns for equation in equations)
        if known.dim() != 2 or known.shape[1] != size:
            raise ValueError(f"known must be (M, {size}), got shape {tuple(known.shape)}")
        known = known.detach().double()
    pools = [check_starts(*parts) for parts in zip(stack, seen, equations, strict=True)]
    return search(
        equations, held, pools, known=known, max_starts=max_starts, max_points=max_points,
        deadline=deadline_in(max_seconds), seed=seed,
    )  # fmt: skip


def search(
    equations: Sequence[Equation],
    inputs: Tensor,
    pools: Sequence[Tensor],
    *,
    known: Tensor | None = None,
    spectra: Spectra | None = None,
    max_starts: int = 1024,
    max_points: int = 256,
    deadline: float | None = None,
    seed: int = 0,
) -> Skeleton:
    """`find_all_fixed_points` for equations that are at hand."""
    generator = torch.Generator().manual_seed(seed)
    below = inputs.new_empty(1, 0)  # unknowns of the layers that are done
    if known is None:
        known = inputs.new_empty(0, sum(equation.unknowns for equation in equations))
    tally = _Tally()
    for level, equation in enumerate(equations):
        at = below.shape[1]
        found: list[Tensor] = []
        for row in below:
            source = (
                inputs if level == 0 else row[at - equations[level - 1].unknowns :][: equations[level - 1].output_size]
            )
            drive = equation.drive_of(source[None])
            require_finite(equation, drive, pools[level])
            here = known[(known[:, :at] - row).abs().amax(1) <= ROUNDED] if at else known
            if sum(map(len, found)) >= max_points:
                break
            run = _Layer(equation, drive, pools[level], generator, deadline, tally)
            roots = run.search(here[:, at : at + equation.unknowns], max_starts, max_points)
            found.append(torch.cat([row.expand(len(roots), -1), roots], dim=1))
        below = torch.cat(found) if found else below.new_empty(0, at + equation.unknowns)
        if len(below) >= max_points:
            tally.stopped = "points"
            below = below[:max_points]
    everywhere = torch.ones(len(below), dtype=torch.bool)
    points = describe(equations, inputs, below, everywhere, spectra=spectra, deadline=deadline)
    if not points.converged.all():
        tally.stopped, points = "seconds", points[points.converged]
    isolated = not points.degenerate.any()
    if points.degenerate.sum() > MANY:
        tally.stopped, points = "continuum", points[~points.degenerate]
    bounded = all(equation.limit is not None for equation in equations)
    index_sum = int(points.index.sum()) if bounded and isolated else None
    complete = index_sum == 1 and not tally.stopped and tally.settled
    return Skeleton(points, index_sum, complete, tally.starts, tally.phantoms, tally.stopped)


@dataclass
class _Tally:
    """What a search has cost so far, over all layers."""

    starts: int = 0
    phantoms: int = 0
    stopped: str = ""
    settled: bool = True


@dataclass
class _Layer:
    """The search of one layer under one held input."""

    equation: Equation
    drive: Tensor
    pool: Tensor
    generator: torch.Generator
    deadline: float | None
    tally: _Tally
    found: Tensor = field(init=False)
    scant: bool = False  # whether hardly any state was visited
    index_sum: float = 0.0
    hits: int = 0  # starts of the last round that converged
    loose: int = 0  # roots at which Newton's step does not exist

    def search(self, known: Tensor, max_starts: int, max_points: int) -> Tensor:
        """Roots ``(M, K)``."""
        self.found = self.pool.new_empty(0, self.equation.unknowns)
        if len(known):
            self._add(known)
        order = torch.randperm(len(self.pool), generator=self.generator)
        used = quiet = fruitless = rounds = 0
        self.scant = len(distinct(self.pool[:64], BLURRED)) < FRESH  # little to start from, so many more are asked
        enough = 10 * TRUSTED if self.scant else TRUSTED
        lawless = self.equation.limit is None
        while quiet < enough and not (lawless and fruitless >= 2):
            starts = self._starts(order, rounds)
            before = len(self.found)
            self._try(starts, (LONGEST_STEP, SHORTER_STEP)[rounds % 2])  # each finds what the other misses
            rounds, used = rounds + 1, used + len(starts)
            fresh = len(self.found) > before
            quiet = 0 if fresh or not (lawless or self.index_sum == 1) else quiet + self.hits
            fruitless = 0 if fresh else fruitless + 1
            if len(self.found) >= max_points:
                self.tally.stopped = "points"
            elif self.loose > 3 * MANY:
                self.tally.stopped = "continuum"
            elif late(self.deadline):
                self.tally.stopped = "seconds"
            elif quiet < enough and (used >= max_starts or fruitless >= FRUITLESS):
                self.tally.stopped = "starts"
            else:
                continue
            break
        self.tally.starts += used
        self.tally.settled &= quiet >= enough
        return self.found

    def _starts(self, order: Tensor, rounds: int) -> Tensor:
        visited = self.pool[order[torch.arange(rounds * FRESH, (rounds + 1) * FRESH) % len(order)]]
        if rounds * FRESH >= len(order):  # seen before: go beside it
            noise = torch.randn(visited.shape, generator=self.generator, dtype=visited.dtype)
            visited = visited + 0.3 * noise * self.pool.std(0, correction=0).clamp(min=0.1)
        parts = [visited, self._midpoints(self.pool, FRESH), self._midpoints(self.found, PAIRS)]
        if self.equation.limit is not None:  # what was visited may lie all on one side
            places = torch.rand(
                4 * PLACES if self.scant else PLACES,
                self.equation.unknowns,
                generator=self.generator,
                dtype=visited.dtype,
            )
            parts.append(self.equation.limit * (2 * places - 1))
        return torch.cat(parts)

    def _midpoints(self, states: Tensor, count: int) -> Tensor:
        if len(states) < 2:
            return states[:0]
        pairs = torch.randint(len(states), (2, count), generator=self.generator)
        pairs = pairs[:, pairs[0] != pairs[1]]
        return (states[pairs[0]] + states[pairs[1]]) / 2

    def _try(self, starts: Tensor, longest: float) -> None:
        quick = self.equation.to(torch.float32)
        drive = self.drive.to(quick.dtype)
        coarse = newton(quick, drive, starts.to(quick.dtype), COARSE, longest=longest, deadline=self.deadline)
        self.hits = int(coarse.converged.sum())
        hits = coarse.unknown[coarse.converged].to(self.pool.dtype)
        hits = hits[distinct(hits, ROUNDED)]
        if len(self.found) and len(hits):
            hits = hits[torch.cdist(hits, self.found, p=torch.inf).amin(1) > ROUNDED]
        if len(hits):
            self._add(hits)
        # Without a box a root may lie beyond the reach of clipped steps.
        lost = coarse.singular if self.equation.limit is not None else ~coarse.converged
        if bool(lost.any()):
            slow = damped(self.equation, self.drive, starts[lost], deadline=self.deadline)
            roots = slow.unknown[slow.converged]
            roots = roots[distinct(roots, BLURRED)]  # where a pair is about to part, a small residual says little
            if len(self.found) and len(roots):
                roots = roots[torch.cdist(roots, self.found, p=torch.inf).amin(1) > BLURRED]
            before = len(self.found)
            self._keep(roots)
            self.loose += len(self.found) - before
            self.hits += int(slow.converged.sum())
        self._count_phantoms(quick, drive, coarse.unknown[~coarse.converged])

    def _count_phantoms(self, quick: Equation, drive: Tensor, astray: Tensor) -> None:
        """States that lead to no root, and yet hardly move."""
        if not len(astray):
            return
        state = quick.state(drive, astray)
        still = (quick.step(drive, state) - state).square().sum(1) / 2 <= CREEPING
        if len(self.found):
            still &= torch.cdist(astray.to(self.found.dtype), self.found, p=torch.inf).amin(1) > ASTRAY
        self.tally.phantoms += int(still.sum())

    def _add(self, near: Tensor) -> None:
        fine = newton(self.equation, self.drive, near, FINE, deadline=self.deadline)
        self._keep(fine.unknown[fine.converged])

    def _keep(self, roots: Tensor) -> None:
        roots = roots[self.equation.resolved(self.drive, roots)]
        both = torch.cat([self.found, roots])
        both = both[distinct(both, SAME)]
        new = both[len(self.found) :]
        self.index_sum += float(index_of(self.equation, self.drive, new).sum())
        self.found = both
