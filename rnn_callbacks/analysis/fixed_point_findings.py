"""What one look at the dynamics of one module under one held input found, and its headline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .basins import Basins, Reach, find_basins, measure_reach, return_rates
from .fixed_point_equations import Equation
from .fixed_point_history import Chapter
from .flow import Flow
from .slow_points import NEAR_ONE, Continuum, Ghosts, Motion, find_continuum, find_cycle, find_ghosts
from .visited import Visited

LONGEST = 1e6  # time steps; a timescale beyond that is reported as this
AT_THE_END = 0.99  # of the largest |h| there can be: a saturated unit
GHOST_STARTS = 64


@final
@dataclass(frozen=True, eq=False)
class Findings:
    """Fixed points with their identities, and what surrounds them."""

    chapter: Chapter
    spread: float  # of the visited hidden states
    saturated: float  # share of units with |h| within 1 % of their limit, in the attractor that has most of them
    reach: Reach
    continuum: Continuum | None
    motion: Motion | None  # looked at where there is no attractor
    ghosts: Ghosts | None  # on request, as the next two
    basins: Basins | None
    returns: NDArray[np.float64] | None  # (A,), share of small kicks that each attractor survives

    def scalars(self) -> dict[str, float]:
        """The headline, by quantity; 0 where there is nothing to measure."""
        skeleton, points = self.chapter.skeleton, self.chapter.skeleton.points
        kinds = points.kind
        stable = points[np.flatnonzero(kinds == "attractor")]
        moved = self.chapter.moved[np.isfinite(self.chapter.moved)]
        found = {
            "attractors": len(stable),
            "saddles": (kinds == "saddle").sum(),
            "repellers": (kinds == "repeller").sum(),
            "index_sum": skeleton.index_sum or 0,
            "complete": skeleton.complete,
            "largest_modulus": np.abs(points.eigenvalues).max(initial=0.0),
            "slowest_timescale": longest_timescale(stable.eigenvalues),
            "drift": moved.mean() / self.spread if len(moved) else 0.0,
            "births": self.chapter.count("birth"),
            "deaths": self.chapter.count("death"),
            "stability_changes": self.chapter.count("stability"),
            "found_late": self.chapter.count("found late"),
            "starts": skeleton.starts,
            "phantoms": skeleton.phantoms,
            "stopped_early": skeleton.stopped not in ("", "continuum"),
            "end_distance": self.reach.end_distance,
            "end_speed": self.reach.end_speed,
            "continuum_dimension": self.continuum.dimension if self.continuum else 0,
            "continuum_extent": self.continuum.extent if self.continuum else 0.0,
            "moving": self.motion.moving if self.motion else 0.0,
            "diverging": self.motion.diverging if self.motion else 0.0,
            "period": self.motion.period if self.motion else 0.0,
        }
        if self.ghosts is not None:
            found |= {"ghosts": len(self.ghosts.speed), "ghost_speed": self.ghosts.speed.min(initial=np.inf)}
            if not len(self.ghosts.speed):
                found["ghost_speed"] = 0.0
        if self.basins is not None:
            found |= {
                "basin_entropy": self.basins.entropy,
                "largest_basin": self.basins.shares.max(initial=0.0),
                "unresolved": self.basins.unresolved,
            }
        if self.returns is not None:
            tried = self.returns[np.isfinite(self.returns)]
            found["returned"] = tried.mean() if len(tried) else 0.0
        return {name: float(value) for name, value in found.items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of every point, by name."""
        points = self.chapter.skeleton.points
        found: dict[str, NDArray[Any]] = {
            name: getattr(points, name) for name in ("inputs", "states", "speed", "index", "eigenvalues", "unstable")
        }
        found |= {"ids": self.chapter.ids, "kind": points.kind.astype(np.str_)}
        if self.continuum is not None:
            found |= {f"continuum_{name}": getattr(self.continuum, name) for name in ("centre", "directions", "states")}
        if self.ghosts is not None:
            found |= {"ghost_states": self.ghosts.states, "ghost_speed": self.ghosts.speed}
        if self.basins is not None:
            found["basin_shares"] = self.basins.shares
        if self.returns is not None:
            found["returned"] = np.nan_to_num(self.returns, nan=-1.0)  # files hold no NaN; -1: not tried
        return found


def longest_timescale(eigenvalues: NDArray[np.complex128]) -> float:
    """-1 / ln of the largest modulus below 1, in time steps, at most a million; 0 without one."""
    moduli = np.abs(eigenvalues)
    moduli = moduli[(moduli > 0) & np.isfinite(moduli)]
    if not len(moduli):
        return 0.0
    return float(min(-1.0 / min(np.log(moduli.max()), -1.0 / LONGEST), LONGEST))


def examine(
    equations: Sequence[Equation],
    inputs: Tensor,
    visited: Visited,
    chapter: Chapter,
    *,
    ghosts: bool = False,
    basins: bool = False,
    deadline: float | None = None,
) -> Findings:
    """Look around the fixed points of one chapter.

    Args:
        equations: of the module's cells.
        inputs: ``(I,)``, held.
        visited: states of the module.
        chapter: its fixed points.
        ghosts: look for minima of the speed above zero too.
        basins: look where visited states flow, and kick the attractors.
        deadline: `time.perf_counter` at which to stop.
    """
    flow, points, spread = Flow(tuple(equations), inputs), chapter.skeleton.points, visited.spread
    attractors = torch.as_tensor(points.states[points.kind == "attractor"])
    continuum, motion = None, None
    slow = bool((np.abs(points.eigenvalues - 1) < NEAR_ONE).any()) or chapter.skeleton.stopped == "continuum"
    if slow:
        continuum = find_continuum(flow, visited.states, spread, deadline=deadline)
    if not len(attractors) and continuum is None:
        motion = find_cycle(flow, visited.states, spread, deadline=deadline)
    resting = attractors if continuum is None else torch.cat([attractors, torch.as_tensor(continuum.states)])
    limits = [equation.limit for equation in equations if equation.limit is not None]
    bounded = len(limits) == len(equations) and len(attractors) > 0
    ends = flow.hidden(attractors).abs() > AT_THE_END * torch.cat(limits) if bounded else None
    few = visited.states[:: max(1, len(visited.states) // GHOST_STARTS)]
    return Findings(
        chapter=chapter,
        spread=spread,
        saturated=0.0 if ends is None else float(ends.double().mean(1).max()),
        reach=measure_reach(flow, visited.ends, resting, spread),
        continuum=continuum,
        motion=motion,
        ghosts=find_ghosts(flow, few, points, spread, deadline=deadline) if ghosts else None,
        basins=find_basins(flow, visited.states, attractors, spread, deadline=deadline) if basins else None,
        returns=return_rates(flow, points, spread, deadline=deadline) if basins else None,
    )
