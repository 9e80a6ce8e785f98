"""From a comparison to what its planes show: eigenvalues, fixed points and joint paths, with a frame for each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis.landscape import principal_plane
from ..figures.comparison_planes import Frame, Scatter, Track
from .cast import Cast
from .comparison import Comparison
from .embeddings import JointEmbedding
from .quantities import renamed
from .series import evenly

MOST_FRAMES = 24  # positions of the slider
MOST_TRACKS = 24  # runs whose fixed points are drawn
MOST_CONTEXTS = 3  # places and held inputs
MOST_STATES = 40  # fixed points of a look that are drawn
ALL_EIGENVALUES = 20_000  # of all looks of all runs together
Where = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class _Look:
    """Fixed points of one run at one look."""

    place: float
    states: Where  # (M, D)
    eigenvalues: NDArray[np.complex128]  # (M, D)
    kinds: NDArray[np.str_]  # (M,)
    ids: NDArray[np.int64]  # (M,), alike for the same point at other looks


@final
@dataclass(frozen=True, eq=False)
class Landscapes:
    """Fixed points of all runs at one place of the model with one held input."""

    context: str
    eigenvalues: list[Scatter]  # one for each group
    skeletons: list[Scatter]  # one for each run
    left_out: str  # in words


@final
@dataclass(frozen=True, eq=False)
class Planes:
    """Everything that a slider moves."""

    labels: list[str]  # (P,), of the slider's positions
    places: Where  # (P,)
    landscapes: list[Landscapes]
    embeddings: list[tuple[JointEmbedding, list[Scatter]]]  # principal components, and PHATE where it was made


def choose_planes(comparison: Comparison, cast: Cast, embeddings: Sequence[JointEmbedding] = ()) -> Planes:
    """Read the looks at fixed points of the runs that are drawn, and lay out frames for one slider."""
    shown = _in_turn(comparison, cast)
    looks = {run: _read_looks(comparison, run) for run in shown}
    looked = [look.place for found in looks.values() for context in found.values() for look in context]
    timed = [found for found in embeddings if not _untimed(comparison, found)]
    places = _slider(np.unique(looked), np.unique(np.concatenate([found.epochs for found in timed] + [np.zeros(0)])))
    contexts = list(dict.fromkeys(context for found in looks.values() for context in found))
    landscapes = []
    for context in contexts[:MOST_CONTEXTS]:
        having = {run: found[context] for run, found in looks.items() if context in found}
        found = _landscapes(comparison, cast, context, having, places)
        landscapes.append(found)
    if len(contexts) > MOST_CONTEXTS and landscapes:
        words = f" Of {len(contexts)} places and held inputs, the first {MOST_CONTEXTS} are drawn."
        last = landscapes[-1]
        landscapes[-1] = Landscapes(last.context, last.eigenvalues, last.skeletons, last.left_out + words)
    joint = [(found, _joint(comparison, cast, found, places)) for found in embeddings]
    return Planes([_label(comparison, place) for place in places], places, landscapes, joint)


def _in_turn(comparison: Comparison, cast: Cast) -> list[int]:
    """Runs with looks at fixed points, one of each group after the other, until there are enough."""
    rounds = [
        (turn, run)
        for group in cast.groups
        for turn, run in enumerate(run for run in comparison.groups[group].runs if comparison.runs[run].looks)
    ]
    having = [run for _, run in sorted(rounds) if "fixed_points" in comparison.runs[run].looks]
    return sorted(having[:MOST_TRACKS])


def _read_looks(comparison: Comparison, number: int) -> dict[str, list[_Look]]:
    """Looks by context, under the names that all runs have in common."""
    run = comparison.runs[number]
    files = run.looks["fixed_points"]
    files = [files[row] for row in evenly(len(files), MOST_FRAMES)]
    found: dict[str, list[_Look]] = {}
    for file in files:
        saved = run.read_look(file)
        arrays = {} if saved is None else saved.report.arrays
        for key in [key for key in arrays if key.endswith("/kind")]:
            place = float(file.step if comparison.axis == "step" else file.epoch)
            base = key.removesuffix("kind")
            try:
                parts = [arrays[f"{base}{part}"] for part in ("states", "eigenvalues", "kind", "ids")]
                look = _Look(place, np.atleast_2d(parts[0]), np.atleast_2d(parts[1]), parts[2], parts[3])
            except KeyError:  # of another version
                continue
            if len({len(part) for part in parts}) == 1:
                context = renamed(base.rstrip("/"), comparison.names[number]).removeprefix("fixed_points/")
                found.setdefault(context, []).append(look)
    return found


def _slider(looked: Where, others: Where) -> Where:
    """Positions: every look at fixed points if there is room, and as many others between as fit."""
    looked = looked[evenly(len(looked), MOST_FRAMES)]
    others = np.setdiff1d(others, looked)
    return np.union1d(looked, others[evenly(len(others), max(MOST_FRAMES - len(looked), 2))] if len(others) else others)


def _label(comparison: Comparison, place: float) -> str:
    unit = "step" if comparison.axis == "step" else "epoch"
    return "before training" if place < 0 else f"{unit} {place:g}"


def _spans(places: Where, when: Sequence[float]) -> list[tuple[int, int]]:
    """First and last position at which each of some moments is seen: until the next one; first > last for never."""
    starts = np.searchsorted(places, np.asarray(when), side="left")
    ends = np.append(starts[1:], len(places)) - 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _landscapes(
    comparison: Comparison, cast: Cast, context: str, looks: dict[int, list[_Look]], places: Where
) -> Landscapes:
    most = max(ALL_EIGENVALUES // max(sum(map(len, looks.values())), 1), 24)
    by_group: dict[int, list[Track]] = {}
    skeletons = []
    for run, found in looks.items():
        spans = _spans(places, [look.place for look in found])
        seen = [(look, first, last) for look, (first, last) in zip(found, spans, strict=True) if first <= last]
        frames = [Frame(_largest(look.eigenvalues, most), first, last) for look, first, last in seen]
        by_group.setdefault(cast.group_of[run], []).append(Track(f"run{run}", cast.run_styles[run][0], frames))
        skeletons.append(_skeleton(comparison, cast, run, found, seen))
    eigenvalues = [Scatter(comparison.groups[group].name, tracks) for group, tracks in sorted(by_group.items())]
    said = []
    if any(look.eigenvalues.size > most for found in looks.values() for look in found):
        said.append(f"Of each look's eigenvalues the {most} of largest modulus are drawn.")
    if any(len(look.states) > MOST_STATES for found in looks.values() for look in found):
        said.append(f"Of more than {MOST_STATES} fixed points the attractors come first, others are left out.")
    having = sum("fixed_points" in run.looks for run in comparison.runs)
    if having > len(looks):
        said.append(f"{len(looks)} of {having} runs are drawn.")
    if any(len(comparison.runs[run].looks["fixed_points"]) > MOST_FRAMES for run in looks):
        said.append(f"Of more than {MOST_FRAMES} looks, evenly chosen ones are drawn.")
    return Landscapes(context, eigenvalues, skeletons, " ".join(said))


def _largest(eigenvalues: NDArray[np.complex128], most: int) -> Where:
    values = eigenvalues[np.isfinite(eigenvalues)]
    values = values[np.argsort(-np.abs(values), kind="stable")[:most]]
    return np.stack([values.real, values.imag], 1)


def _skeleton(
    comparison: Comparison, cast: Cast, run: int, looks: Sequence[_Look], seen: Sequence[tuple[_Look, int, int]]
) -> Scatter:
    """Fixed points in the plane of all of them over all looks, and how each one moved."""
    sizes = [look.states.shape[1] for look in looks if len(look.states)]
    size = sizes[-1] if sizes else 1
    usable = [look for look in looks if len(look.states) and look.states.shape[1] == size]
    states = np.concatenate([*(look.states for look in usable), np.zeros((0, size))]).astype(np.float64)
    states = states[np.isfinite(states).all(1)]
    if not len(states):
        plane = principal_plane(torch.zeros(1, size, dtype=torch.float64))
    else:
        plane = principal_plane(torch.from_numpy(states))
    frames, paths = [], []
    for look, first, last in seen:
        kept = [row for kind in ("attractor", "saddle", "repeller") for row in np.flatnonzero(look.kinds == kind)]
        rows = np.array(kept[:MOST_STATES], np.int64)
        fits = look.states.shape[1] == size and len(rows) > 0
        points = plane.project(look.states[rows]) if fits else np.zeros((0, 2))
        frames.append(Frame(points, first, last, look.kinds[rows] if fits else np.zeros(0, np.str_)))
    for number in np.unique(np.concatenate([look.ids for look in usable])) if usable else []:
        path = [plane.project(look.states[look.ids == number][:1]) for look in usable if (look.ids == number).any()]
        if len(path) > 1:
            paths += [*path, np.full((1, 2), np.nan)]
    labels = tuple(f"principal component {n} ({share:.0%})" for n, share in zip((1, 2), plane.explained, strict=True))
    joined = np.concatenate([*paths, np.zeros((0, 2))])
    track = Track(f"run{run}", cast.run_styles[run][0], frames, path=joined)
    return Scatter(comparison.runs[run].name, [track], (labels[0], labels[1]))


def _untimed(comparison: Comparison, embedding: JointEmbedding) -> bool:
    """Whether its places are seconds, which the slider does not count."""
    return comparison.axis == "time" and embedding.kind == "metrics"


def _joint(comparison: Comparison, cast: Cast, embedding: JointEmbedding, places: Where) -> list[Scatter]:
    labels = tuple(f"principal component {n} ({s:.0%})" for n, s in zip((1, 2), embedding.explained, strict=True))
    found = [_paths(comparison, cast, embedding, embedding.components, places, "PCA", (labels[0], labels[1]))]
    if len(embedding.phate):
        found.append(_paths(comparison, cast, embedding, embedding.phate, places, "PHATE", ("PHATE 1", "PHATE 2")))
    return found


def _paths(
    comparison: Comparison,
    cast: Cast,
    embedding: JointEmbedding,
    points: Where,
    places: Where,
    title: str,
    labels: tuple[str, str],
) -> Scatter:
    tracks = []
    for run in [run for run in cast.runs if run in embedding.runs]:
        rows = np.flatnonzero(embedding.runs == run)
        if _untimed(comparison, embedding) or not len(places):
            frames = [Frame(points[rows[-1:]], 0, max(len(places) - 1, 0))]
        else:
            spans = _spans(places, embedding.epochs[rows].tolist())
            frames = [
                Frame(points[row : row + 1], first, last)
                for row, (first, last) in zip(rows.tolist(), spans, strict=True)
                if first <= last
            ]
        colour, dash = cast.run_styles[run]
        tracks.append(Track(f"run{run}", colour, frames, dash, points[rows]))
    return Scatter(title, tracks, labels)
