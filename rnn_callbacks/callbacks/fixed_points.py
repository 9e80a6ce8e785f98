"""FixedPointTracker: where can the network's state rest, what is stable, and when in training did that come about?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..analysis.fixed_point_cells import equation_of
from ..analysis.fixed_point_equations import Equation
from ..analysis.fixed_point_findings import Findings, examine
from ..analysis.fixed_point_flags import RULES, WARNED, check_thresholds, find_flags
from ..analysis.fixed_point_history import History, begin, go_on, pack, unpack
from ..analysis.fixed_point_search import search
from ..analysis.flow import Flow
from ..analysis.landscape import Plane, lay_out, principal_plane
from ..analysis.visited import Visited, hidden_part, visit
from ..cells import cells
from ..figures.fixed_points import Scene, draw_landscape
from ..rebuild import Trace
from ..report import Report
from ..sinks import Layout
from .base import EpochCallback, Observe
from .contexts import Context, check_sizes, held_input, read_contexts
from .guard import check_whole_number
from .importing import function_of
from .labels import SequenceLabels
from .look import Look
from .summary import MOST_CELLS


@final
class FixedPointTracker(EpochCallback):
    """Finds the fixed points of every ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` under held inputs, and follows them.

    At every look: all points that can be found, whether they are attractors, saddles or repellers, how fast the state
    moves around them, and which appeared, vanished or changed since the last look. The points are those of the
    equations with the weights of that moment; the model itself is not run (except for a context that is a function).

    Args:
        module: dotted name, or names, of the modules to watch; all recurrent modules by default.
        contexts: inputs of the layer to hold: ``zero`` (the default), ``mean`` (of the inputs that were heard), or a
            dict by name: one of these, a list of numbers, or a function (or its import path) from the first batch heard
            to raw inputs, which a copy of the model carries to the layer; what arrives there is averaged over
            sequences and steps.
        labels: a function from a batch to one number per sequence, or its import path, for the colours of the
            trajectories; by default the targets of an ``(input, target)`` batch, where they are classes.
        flags: thresholds of the flags; null switches one off.
        slow_points: look for ghosts too: minima of the speed above zero.
        basins: look which attractor each visited state flows to, and whether attractors survive small kicks.
        max_starts: of each search of one layer, asked after every round of about a hundred.
        max_seconds: what the numbers of one look may take; it says when it stopped early.
        observe: ``validation`` or ``train``.
        every_n_epochs: period of looks; by default as often as `max_overhead` allows.
        figure_every_n_epochs: period of pictures; by default as often as `max_overhead` allows.
        max_overhead: share of the training time that looking may take, of all callbacks together, pictures included.
        max_sequences: sequences whose states serve as starts, the same first ones at every look.
        on_error: ``warn`` or ``raise``.
        summary: say at the run's end what was seen.

    Logged, with ``{module}`` the module's name and ``{context}`` the name of the held input; 0 where there is nothing
    to measure:

    - `fixed_points/{module}/{context}/attractors`: points at which every direction is stable.
    - `fixed_points/{module}/{context}/saddles`: points with stable and unstable directions.
    - `fixed_points/{module}/{context}/repellers`: points at which every direction is unstable.
    - `fixed_points/{module}/{context}/index_sum`: sum of the points' indices; 1 if none is missing (not relu).
    - `fixed_points/{module}/{context}/complete`: 1 if the sum is 1 and a last round of starts found nothing new.
    - `fixed_points/{module}/{context}/largest_modulus`: of all eigenvalues at all points; above 1: unstable.
    - `fixed_points/{module}/{context}/slowest_timescale`: steps in which the slowest mode of an attractor falls to 1/e.
    - `fixed_points/{module}/{context}/drift`: mean move of the points since the last look, in units of the spread
      of the visited states (root mean square distance from their mean), as all distances here.
    - `fixed_points/{module}/{context}/births`: points that appeared since the last look.
    - `fixed_points/{module}/{context}/deaths`: points that vanished since the last look.
    - `fixed_points/{module}/{context}/stability_changes`: points whose number of unstable directions changed.
    - `fixed_points/{module}/{context}/found_late`: points that were there at the last look and had been overlooked.
    - `fixed_points/{module}/{context}/starts`: starts tried.
    - `fixed_points/{module}/{context}/phantoms`: starts that ended where closed gates hold any state; no fixed points.
    - `fixed_points/{module}/{context}/stopped_early`: 1 if time, starts or room for points ran out.
    - `fixed_points/{module}/{context}/end_distance`: distance of a sequence's last state from the nearest attractor,
      median, in units of the spread.
    - `fixed_points/{module}/{context}/end_speed`: how far that state would move in one step, in units of the spread.
    - `fixed_points/{module}/{context}/continuum_dimension`: 1 for a line or ring attractor, 2 for a plane.
    - `fixed_points/{module}/{context}/continuum_extent`: its size in units of the spread.
    - `fixed_points/{module}/{context}/moving`: share of visited states that never rest, where there is no attractor.
    - `fixed_points/{module}/{context}/diverging`: share of them that leave for infinity.
    - `fixed_points/{module}/{context}/period`: steps after which they return, if they do.
    - `fixed_points/{module}/{context}/ghosts`: minima of the speed that are no fixed points; with `slow_points`.
    - `fixed_points/{module}/{context}/ghost_speed`: smallest speed q among them.
    - `fixed_points/{module}/{context}/basin_entropy`: how evenly attractors are used, in bits; with `basins`.
    - `fixed_points/{module}/{context}/largest_basin`: share of visited states that flow to the most used one.
    - `fixed_points/{module}/{context}/unresolved`: share of visited states that reach none in 2000 steps, or in time.
    - `fixed_points/{module}/{context}/returned`: share of small kicks after which the state comes back.
    - `fixed_points/{module}/{context}/flags/{flag}`: 1 when the flag is raised, else 0.
    - `fixed_points/{module}/rebuild_error`: difference of rebuilt and real hidden states, relative; about 1e-6.
    - `fixed_points/failed_looks`: looks whose analysis raised or that could not all be handed over, so far.
    - `fixed_points/seconds`: what the numbers of this look took.
    - `fixed_points/overhead`: seconds spent looking per second of other training, so far.
    """

    noun: ClassVar[str] = "fixed_points"

    def __init__(
        self,
        module: str | list[str] | None = None,
        contexts: str | list[str] | dict[str, Any] | None = None,
        *,
        labels: Any = None,
        flags: dict[str, float | None] | None = None,
        slow_points: bool = False,
        basins: bool = False,
        max_starts: int = 1024,
        max_seconds: float = 10.0,
        observe: Observe = "validation",
        every_n_epochs: int | None = None,
        figure_every_n_epochs: int | None = None,
        max_overhead: float = 0.05,
        max_sequences: int = 64,
        on_error: Literal["warn", "raise"] = "warn",
        summary: bool = True,
    ) -> None:
        super().__init__(
            module=module,
            observe=observe,
            every_n_epochs=every_n_epochs,
            figure_every_n_epochs=figure_every_n_epochs,
            max_overhead=max_overhead,
            max_sequences=max_sequences,
            on_error=on_error,
            summary=summary,
        )
        self.contexts = contexts
        self.labels = labels
        self.flags = flags
        self.slow_points = slow_points
        self.basins = basins
        self.max_starts = max_starts
        self.max_seconds = max_seconds
        self._batch: Any = None  # the first one heard, for contexts that are functions
        self._needs_batch = False
        self._labels = SequenceLabels(labels)

    # ---- what is remembered ----------------------------------------------------------------------------------------

    def distinction(self) -> dict[str, Any]:
        return {"contexts": sorted(map(str, self.contexts))} if isinstance(self.contexts, dict) else {}

    def remember(self, memory: dict[str, Any]) -> None:
        self._packed: dict[str, Any] = dict(memory.get("histories", {}))  # of the run that is resumed
        self._histories: dict[str, History] = {}
        self._story: dict[str, list[list[float]]] = {key: list(rows) for key, rows in memory.get("story", {}).items()}
        self._planes: dict[str, Plane] = {}

    def memory(self) -> dict[str, Any]:
        histories = self._packed | {key: pack(history) for key, history in self._histories.items()}
        return {"histories": histories, "story": self._story}

    # ---- before training -------------------------------------------------------------------------------------------

    def check(self, modules: dict[str, nn.Module]) -> None:
        if self.flags is not None and not isinstance(self.flags, dict):
            raise ValueError(f"flags must be a dict of thresholds by name, got {self.flags!r}")
        check_thresholds(self.flags or {})
        check_whole_number(type(self).__name__, "max_starts", self.max_starts)
        if (
            isinstance(self.max_seconds, bool)
            or not isinstance(self.max_seconds, (int, float))
            or not self.max_seconds > 0
        ):
            raise ValueError(f"max_seconds must be a number above 0, got {self.max_seconds!r}")
        for name in ("slow_points", "basins"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.labels is not None:
            function_of("labels", self.labels)
        two_ways = [name for name, module in modules.items() if any(cell.place.reverse for cell in cells(module))]
        if two_ways:
            reason = (
                "its reverse cells read the future, so it has no state that goes on by itself and no fixed points as a "
                "whole. The forward direction can be searched alone, with rnn_callbacks.analysis.fixed_point_search."
                "find_all_fixed_points(cell, states) and a cell of rnn_callbacks.cells.cells(module)."
            )
            names = ", ".join(two_ways)
            if self.module is not None or len(two_ways) == len(modules):
                raise ValueError(f"{names} is bidirectional: {reason}")
            self._guard.say("bidirectional", f"FixedPointTracker leaves out {names}, which is bidirectional: {reason}")
        check_sizes(
            read_contexts(self.contexts), {name: module for name, module in modules.items() if name not in two_ways}
        )

    # ---- listening -------------------------------------------------------------------------------------------------

    def begin_hearing(self) -> None:
        self._batch, self._needs_batch = None, any(map(callable, read_contexts(self.contexts).values()))
        self._labels.begin()

    def on_heard_batch(self, number: int, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._needs_batch:  # the first one
            self._batch, self._needs_batch = batch, False
        self._labels.hear(number, batch)

    def heard(self) -> tuple[dict[int, NDArray[np.float64]], str | None]:
        return self._labels.heard

    def join(self, heard: Sequence[tuple[dict[int, NDArray[np.float64]], str | None]]) -> None:
        for labels, fault in heard:
            self._labels.join(labels, fault)

    # ---- looking ---------------------------------------------------------------------------------------------------

    def analyse(self, look: Look) -> Report:
        end = time.perf_counter() + self.max_seconds
        contexts = read_contexts(self.contexts)
        scalars: dict[str, float] = {}
        arrays: dict[str, NDArray[Any]] = {}
        texts: dict[str, str] = {}
        figures = {}
        left = len(look.tapes) * len(contexts)
        if self._labels.fault is not None:
            self._leave_out("labels", "labels raised on a batch; trajectories stay grey", self._labels.fault)
        for name in look.tapes:
            traces = look.cells(name)
            equations = [equation_of(of_cell[0].cell) for of_cell in traces.values()]
            visited = self._visit(name, traces, equations)
            if visited is not None:
                scalars[f"fixed_points/{name}/rebuild_error"] = visited.rebuild_error
            if visited is None or not self._guard.believes(name, "a cell", visited.rebuild_error, visited.tolerance):
                left -= len(contexts)
                continue
            for context, given in contexts.items():
                where, now = f"fixed_points/{name}/{context}", time.perf_counter()
                with self._guard:
                    inputs = self._hold(look, name, context, given, visited)
                    if inputs is None:
                        left -= 1
                        continue
                    deadline = now + max(end - now, 0.0) / left
                    findings = self._find(f"{name}/{context}", look, equations, inputs, visited, deadline)
                    scalars |= {f"{where}/{key}": value for key, value in findings.scalars().items()}
                    arrays |= {f"{where}/{key}": value for key, value in findings.arrays().items()}
                    self._tell(where, findings, scalars, texts)
                    scene = partial(
                        self._scene, f"{name}/{context}", Flow(tuple(equations), inputs), findings, visited,
                        self._labels.of(visited),
                    )  # fmt: skip
                    title = f"{name}, {context} input held: epoch {look.epoch}"
                    figures[where] = partial(draw_landscape, scene, title=title)
                left -= 1
        return Report(scalars, arrays, {}, texts, figures)

    def _visit(self, name: str, traces: dict[str, list[Trace]], equations: list[Equation]) -> Visited | None:
        if any(of_cell[0].cell.place.reverse for of_cell in traces.values()):
            return None  # said before training
        if not all(bool(t.isfinite().all()) for equation in equations for t in equation.tensors.values()):
            self._guard.say(
                f"nonfinite {name}",
                f"FixedPointTracker: the weights of {name} hold NaN or infinite values, so it has no fixed points to "
                "find. Look at the loss, the learning rate and half precision.",
            )
            return None
        try:
            return visit(traces)
        except ValueError as error:
            self._guard.say(f"unvisited {name}", f"FixedPointTracker: {name} is left out for now, because {error}.")
            return None

    def _hold(self, look: Look, name: str, context: str, given: Context, visited: Visited) -> Tensor | None:
        try:
            inputs = held_input(given, visited, look.pl_module, name, self._batch)
            if inputs.shape != visited.mean_input.shape or not bool(inputs.isfinite().all()):
                raise ValueError(f"it must hold {len(visited.mean_input)} finite numbers for {name}")
        except Exception as error:
            self._leave_out(f"{name}/{context}", f"context {context!r} could not be made for {name}", error)
            return None
        return inputs

    def _leave_out(self, key: str, words: str, error: Exception) -> None:
        """A fault in a function of the user's: what it was, without our own lines around it."""
        if self.on_error == "raise":
            raise RuntimeError(words) from error
        self._guard.failures += 1
        self._guard.say(key, f"FixedPointTracker: {words} ({type(error).__name__}: {error}). Training goes on.")

    def _find(
        self, key: str, look: Look, equations: list[Equation], inputs: Tensor, visited: Visited, deadline: float
    ) -> Findings:
        pools = [s[:, : e.unknowns].to(e.dtype) for s, e in zip(visited.per_cell, equations, strict=True)]
        if key in self._packed:
            resumed = unpack(self._packed.pop(key), equations)
            if resumed is not None:
                self._histories[key] = resumed
        options = {"max_starts": self.max_starts, "deadline": deadline, "seed": look.epoch}
        before = self._histories.get(key)
        if before is None or not before.fits(equations):
            after, chapter = begin(equations, inputs, search(equations, inputs, pools, **options))  # type: ignore[arg-type]
        else:
            after, chapter = go_on(before, equations, inputs, pools, **options)  # type: ignore[arg-type]
        findings = examine(
            equations, inputs, visited, chapter, ghosts=self.slow_points, basins=self.basins, deadline=deadline
        )
        self._histories[key] = after
        kinds = chapter.skeleton.points.kind
        counts = [float((kinds == kind).sum()) for kind in ("attractor", "saddle", "repeller")]
        born, dead = chapter.count("birth"), chapter.count("death")
        self._story.setdefault(key, []).append([float(look.epoch), *counts, float(born), float(dead)])
        return findings

    def _tell(self, where: str, findings: Findings, scalars: dict[str, float], texts: dict[str, str]) -> None:
        place = where.removeprefix("fixed_points/")
        skeleton = findings.chapter.skeleton
        if findings.chapter.events:
            texts[f"{where}/events"] = "\n".join(f"- {event.words}" for event in findings.chapter.events)
        if skeleton.stopped in ("seconds", "starts", "points"):
            self._guard.say(
                f"stopped {where}",
                f"{place}: the search for fixed points stopped early (out of {skeleton.stopped}) with "
                f"{len(skeleton.points)} found; there may be more. Raise max_seconds or max_starts.",
            )
        for flag in find_flags(findings, self.flags):
            scalars[f"{where}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                texts[f"{where}/flags/{flag.name}"] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                if flag.name in WARNED:
                    self._guard.say(f"{where} {flag.name}", f"{place}, flag {flag.name}: {flag.meaning}")

    def _scene(
        self, key: str, flow: Flow, findings: Findings, visited: Visited, labels: NDArray[np.float64] | None
    ) -> Scene:
        plane = principal_plane(hidden_part(visited.cells, visited.states), self._planes.get(key))
        self._planes[key] = plane
        landscape = lay_out(flow, findings.chapter.skeleton.points, plane, visited.trajectories, findings.continuum)
        return Scene(findings, landscape, labels, np.array(self._story[key]))

    def headlines(self) -> dict[str, str]:
        found: dict[str, str] = {}
        one_way = [name for name, module in self.watched.items() if not any(c.place.reverse for c in cells(module))]
        held = [(name, context) for name in one_way for context in read_contexts(self.contexts)]
        for name, context in held[-MOST_CELLS:]:
            where, called = f"fixed_points/{name}/{context}", f"{name}, {context} input held"
            found[f"{where}/attractors"] = f"{called}: attractors (states to rest in) {{value:.0f}}"
            found[f"{where}/slowest_timescale"] = f"{called}: slowest return to one {{value:.3g}} steps (0: none)"
        return found

    def layout(self) -> Layout:
        def chart(*patterns: str) -> list[Any]:
            return ["Multiline", [rf"^fixed_points/.*/{pattern}$" for pattern in patterns]]

        return {
            "Fixed points": {
                "attractors": chart("attractors"),
                "saddles and repellers": chart("saddles", "repellers"),
                "appeared and vanished since the last look": chart("births", "deaths"),
                "slowest mode of an attractor, in time steps": chart("slowest_timescale"),
                "largest modulus of an eigenvalue": chart("largest_modulus"),
                "distance of a sequence's end from an attractor": chart("end_distance"),
                "drift of the points": chart("drift"),
                "are all found (index sum 1)": chart("complete"),
                "flags raised": chart("flags/(" + "|".join(RULES) + ")"),
                "time spent looking, share of training": ["Multiline", [r"^fixed_points/overhead$"]],
            }
        }
