"""What a look at the path of the weights reports: scalars, files, pictures, flags and a table in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.gate_flags import Flag
from ..analysis.loss_plane import LossPlane
from ..analysis.phate_embedding import Embedding, phate_embedding
from ..analysis.step_gram import StepGram
from ..analysis.trajectory_findings import PathTimes, PlaceFindings, Spectrum
from ..analysis.trajectory_flags import QUIET, path_flags, unmoved_flag
from ..analysis.weight_trajectory import WeightTrajectory, weight_trajectory
from ..figures.loss_plane import draw_loss_plane
from ..figures.weight_trajectory import draw_cell_path, draw_other_paths, draw_weight_trajectory
from ..report import Report
from ..weight_snapshots import SnapshotFile
from .gradient_report import NO_NUMBER
from .guard import Guard

GATE_NUMBERS = ("relative_distance", "relative_step", "turning")
PLACE_NUMBERS = (*GATE_NUMBERS, "straightness", "dimension", "explained")
MOST_EMBEDDED = 100  # points of a PHATE picture


@final
class TrajectoryReport:
    """One look, as it is put together.

    Args:
        guard: says what a person should know, once.
        times: of the snapshots.
        whole: the path of all weights.
        places: of each cell and of each other module.
        epoch: from 0.
        thresholds: of the flags.
        error: relative standard error of distances; 0 where they are exact.
        seed: of the embeddings.
    """

    def __init__(
        self,
        guard: Guard,
        times: PathTimes,
        whole: WeightTrajectory,
        places: Sequence[PlaceFindings],
        *,
        epoch: int,
        thresholds: Mapping[str, float | None],
        error: float,
        seed: int,
    ) -> None:
        self._guard = guard
        self._times = times
        self._whole = whole
        self._places = places
        self._title = f"epoch {epoch}"
        self._thresholds = thresholds
        self._error = error
        self._seed = seed
        self._scalars: dict[str, float] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, str] = {}
        self._figures: dict[str, Callable[[], Any]] = {}

    def finished(self, unmoved: Sequence[str]) -> Report:
        """Everything in tags.

        Args:
            unmoved: trainable parameters that are where they were.
        """
        times = self._times
        known = np.isfinite(times.values)
        self._arrays |= {
            "weight_trajectory/epochs": times.epochs,
            "weight_trajectory/steps": times.steps,
            "weight_trajectory/metric": np.array(times.metric),
            "weight_trajectory/has_value": known,
            "weight_trajectory/values": np.where(known, times.values, 0.0),
        }
        self._describe("total", self._whole)
        for found in self._places:
            self._describe(found.place, found.path)
            if found.spectrum is not None:
                values = found.spectrum.eigenvalues[-1]
                self._arrays[f"weight_trajectory/{found.place}/eigenvalues"] = np.stack([values.real, values.imag], -1)
            for gate, path in found.gates.items():
                where = f"weight_trajectory/{found.place}/{gate}"
                numbers = path.scalars()
                self._scalars |= {f"{where}/{name}": numbers[name] for name in GATE_NUMBERS}
                self._arrays |= _arrays(where, path)
        flag = unmoved_flag(unmoved, self._thresholds, nothing_moved=not self._whole.path_length)
        if flag is not None:
            self._raise("total", [flag])
        self._texts["weight_trajectory/summary"] = self._summary()
        self._draw()
        return Report(self._scalars, self._arrays, {}, self._texts, self._figures)

    def add(self, scalars: Mapping[str, float]) -> None:
        """More numbers, by tag."""
        self._scalars |= scalars

    def describe_plane(self, plane: LossPlane) -> None:
        """The loss around the path."""
        where = "weight_trajectory/loss_plane"
        losses = np.nan_to_num(plane.losses, nan=NO_NUMBER, posinf=NO_NUMBER, neginf=-NO_NUMBER)
        self._arrays |= {f"{where}/x": plane.x, f"{where}/y": plane.y, f"{where}/losses": losses}
        self._figures[where] = partial(
            draw_loss_plane, plane, self._whole.steps.points, times=self._times, title=self._title
        )

    def _describe(self, place: str, path: WeightTrajectory) -> None:
        where = f"weight_trajectory/{place}"
        numbers = path.scalars()
        kept = numbers if place == "total" else PLACE_NUMBERS
        self._scalars |= {f"{where}/{name}": numbers[name] for name in kept}
        self._arrays |= _arrays(where, path)
        self._raise(place, path_flags(path, self._thresholds))

    def _raise(self, place: str, flags: Iterable[Flag]) -> None:
        for flag in flags:
            where = f"weight_trajectory/{place}/flags/{flag.name}"
            self._scalars[where] = float(flag.raised)
            if flag.raised:
                self._texts[where] = f"**{flag.name}** in `{place}`: {flag.meaning}"
                if flag.name not in QUIET and place == "total":  # parts of few weights swing by chance
                    self._guard.say(where, f"{place}, flag {flag.name}: {flag.meaning}")

    def _summary(self) -> str:
        rows = [_row("all weights", self._whole), *(_row(found.place, found.path) for found in self._places)]
        error = f" Distances are those of sketches, exact to {self._error:.1%}." if self._error else ""
        return _TABLE + "".join(rows) + "\n" + _NOTE + error

    # ---- pictures --------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if len(self._times.epochs) < 3:
            return  # a line between two points is no picture
        self._figures["weight_trajectory/total"] = self._draw_whole
        for found in self._places:
            if found.gates:
                self._figures[f"weight_trajectory/{found.place}"] = partial(self._draw_cell, found)
        others = [found for found in self._places if not found.gates]
        if others:
            self._figures["weight_trajectory/others"] = partial(self._draw_others, others)

    def _draw_whole(self) -> Any:
        embedded = self._embed(self._whole)
        return draw_weight_trajectory(
            self._whole, embedded, self._places, times=self._times, error=self._error, title=self._title
        )

    def _draw_cell(self, found: PlaceFindings) -> Any:
        gates = {gate: self._embed(path) for gate, path in found.gates.items() if len(found.gates) > 1}
        embedded = self._embed(found.path)
        return draw_cell_path(found, embedded, gates, times=self._times, error=self._error, title=self._title)

    def _draw_others(self, others: Sequence[PlaceFindings]) -> Any:
        embedded = [(found, self._embed(found.path)) for found in others]
        return draw_other_paths(embedded, times=self._times, error=self._error, title=self._title)

    def _embed(self, path: WeightTrajectory) -> tuple[NDArray[np.int64], Embedding]:
        """Which of the drawn snapshots are embedded, and where."""
        n = len(path.steps.points)
        chosen = np.unique(np.linspace(0, n - 1, min(n, MOST_EMBEDDED)).round().astype(np.int64))
        return chosen, phate_embedding(path.distances[np.ix_(chosen, chosen)], seed=self._seed)


def path_times(file: SnapshotFile) -> PathTimes:
    """When snapshots were taken."""
    entries = file.entries
    return PathTimes(
        np.array([entry.epoch for entry in entries]),
        np.array([entry.step for entry in entries]),
        np.array([np.nan if entry.value is None else entry.value for entry in entries]),
        str(file.facts.get("metric", "no metric yet")),
        file.facts.get("mode", "min"),
    )


def path_places(gram: StepGram, spectra: Mapping[str, Spectrum]) -> list[PlaceFindings]:
    """The path of each place, and of each gate where there are gates."""
    parts: dict[str, list[str]] = {}
    for part in gram.parts:
        parts.setdefault(part.partition("/")[0], []).append(part)
    return [
        PlaceFindings(
            place,
            weight_trajectory(gram.of(own)),
            {part.partition("/")[2]: weight_trajectory(gram.of([part])) for part in own if "/" in part},
            spectra.get(place),
        )
        for place, own in parts.items()
    ]


def unmoved(file: SnapshotFile, trainable: set[str]) -> list[str]:
    """Trainable parameters that are where they were when they were first seen, two snapshots ago at least."""
    first, last, at = file.row(0), file.row(len(file) - 1), 0
    moved: set[str] = set()
    seen_twice: set[str] = set()
    for number, column in enumerate(file.columns):
        if len(file) > 1 and file.entries[-2].columns > number:
            seen_twice.add(column.parameter)
        if not np.array_equal(first[at : at + column.width], last[at : at + column.width]):
            moved.add(column.parameter)
        at += column.width
    names = dict.fromkeys(column.parameter for column in file.columns)
    return [name for name in names if name in trainable & seen_twice - moved]


def _arrays(where: str, path: WeightTrajectory) -> dict[str, NDArray[Any]]:
    return {
        f"{where}/points": path.steps.points,
        f"{where}/scores": path.components.scores,
        f"{where}/explained": path.components.explained,
        f"{where}/explained_random": path.random.explained,
        f"{where}/lengths": path.steps.lengths,
        f"{where}/cosines": path.steps.cosines,
        f"{where}/norms": path.steps.norms,
        f"{where}/from_start": path.from_start,
    }


def _row(name: str, path: WeightTrajectory) -> str:
    numbers = path.scalars()
    cells = [
        name,
        f"{numbers['relative_distance']:.1%}",
        f"{numbers['relative_step']:.2%}",
        f"{numbers['straightness']:.2f}",
        f"{numbers['straightness_random']:.2f}",
        f"{numbers['explained']:.0%}",
        f"{numbers['explained_random']:.0%}",
        f"{numbers['dimension']:.1f}",
    ]
    return f"| {' | '.join(cells)} |\n"


_TABLE = (
    "| weights | distance from the start / size | latest step / size | straightness | of a random walk "
    "| in two components | of a random walk | dimensions |\n|---|---|---|---|---|---|---|---|\n"
)
_NOTE = (
    "A random walk with the same step lengths also draws a smooth curve. What lies above its numbers is more than "
    "steps in random directions would give; noise that lives in few directions gives it too. Weights of two seeds "
    "cannot be compared like this: hidden units may be permuted and their signs turned without any change of what the "
    "network does, and that moves the weights further than training does."
)
