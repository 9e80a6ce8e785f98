"""Several runs in one picture: the paths of their weights, or of what they measure, in one common space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.phate_embedding import phate_embedding
from ..analysis.step_gram import StepGram
from ..analysis.weight_trajectory import path_components, squared_distances
from ..weight_snapshots import SnapshotFile
from .comparison import Comparison
from .series import Axis, evenly

MOST_POINTS = 240  # of all runs together; PHATE's cost grows with the cube
FEWEST = 3  # points of a run
MOST_RUNS = MOST_POINTS // FEWEST
CHUNK = 2**21  # numbers read at a time
Where = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class JointEmbedding:
    """Points of several runs in one plane, run after run, in order of time within each."""

    kind: Literal["weights", "metrics"]  # what lies near to each other
    runs: NDArray[np.int64]  # (n,), numbers of runs
    epochs: Where  # (n,), or steps where epochs are unknown; -1 before training
    components: Where  # (n, 2), principal components
    explained: Where  # (2,), share of the variance of each
    phate: Where  # (n, 2), or (0, 2) where it was not made
    why_not: str  # why PHATE was not made; empty where it was
    left_out: dict[int, str]  # runs that are not in it, and why


def joint_embeddings(comparison: Comparison) -> list[JointEmbedding]:
    """All that can be made: the weights of each architecture that has several runs, and the metrics of all runs.

    Weights of unlike shapes have no common space (padding them with zeros would only draw the padding), so unlike
    architectures share the space of what they measure. Two seeds lie far from each other in weight space whatever they
    have learned, because hidden units may be permuted: look at the shapes of their paths, not at the gap between them.
    """
    return [*joint_weights(comparison), *joint_metrics(comparison)]


# ---- weights -------------------------------------------------------------------------------------------------------


def joint_weights(comparison: Comparison) -> list[JointEmbedding]:
    """Paths of the weights of each architecture in one space, exact from the products of their steps."""
    files: dict[int, SnapshotFile] = {}
    left_out: dict[int, str] = {}
    for number, run in enumerate(comparison.runs):
        saved = run.snapshots()
        if saved is None:
            left_out[number] = "it has no snapshots of its weights (WeightTrajectoryLogger keeps them)"
        elif any(entry.columns < len(saved.columns) for entry in saved.entries):
            left_out[number] = "some of its parameters joined the path later"
        elif len(saved) < FEWEST:
            left_out[number] = f"it has {len(saved)} snapshots, fewer than {FEWEST}"
        elif not len(finite_rows(saved, np.array([len(saved) - 1]))):
            left_out[number] = "its last weights are no numbers (NaN or infinite)"
        else:
            files[number] = saved
    architectures: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, saved in files.items():
        architectures[_layout(saved)].append(number)
    found = []
    for numbers in architectures.values():
        others = {number: "its weights have other shapes" for number in files if number not in numbers}
        if len(numbers) > 1:
            kept, crowd = _some(numbers)
            said = left_out | others | crowd
            found.append(_join({number: files[number] for number in kept}, comparison.axis, said))
    return found


def finite_rows(saved: SnapshotFile, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some snapshots in which all weights are numbers."""
    kept = np.ones(len(rows), bool)
    for part in dict.fromkeys(column.part for column in saved.columns):
        for numbers in saved.read(part, rows, most=CHUNK):
            kept &= np.isfinite(numbers).all(1)
    return rows[kept]


def _some(numbers: Sequence[int]) -> tuple[list[int], dict[int, str]]:
    """Runs evenly spread over many, and why the others are left out."""
    kept = [numbers[place] for place in evenly(len(numbers), MOST_RUNS)]
    why = f"of {len(numbers)} runs {MOST_RUNS} are shown"
    return kept, dict.fromkeys(set(numbers).difference(kept), why)


def _layout(saved: SnapshotFile) -> tuple[object, ...]:
    sketch = saved.facts.get("sketch")
    return (*saved.columns, repr(sketch), repr(saved.facts.get("seed")) if sketch else None)


def _join(files: dict[int, SnapshotFile], axis: Axis, left_out: dict[int, str]) -> JointEmbedding:
    most = max(FEWEST, MOST_POINTS // len(files))
    shown = {number: finite_rows(saved, evenly(len(saved), most)) for number, saved in files.items()}
    counts = [len(rows) for rows in shown.values()]
    ends = np.cumsum(counts)

    def read(part: str, wanted: NDArray[np.int64]) -> Iterable[NDArray[np.floating]]:
        """Columns of a part in some points of all runs, one run below the other."""
        width = max(1, CHUNK // len(wanted))
        blocks = []
        for saved, rows, end in zip(files.values(), shown.values(), ends, strict=True):
            own = wanted[(wanted >= end - len(rows)) & (wanted < end)] - (end - len(rows))
            if len(own):
                blocks.append(saved.read(part, rows[own], most=width * len(own)))
        return (np.concatenate(parallel) for parallel in zip(*blocks, strict=True))

    parts = list(dict.fromkeys(column.part for column in next(iter(files.values())).columns))
    gram = StepGram(parts, most=int(ends[-1]) + 1)
    gram.extend(read, int(ends[-1]))
    squared = squared_distances(gram.of(parts).products)
    runs = np.repeat(list(files), counts)
    entries = [files[number].entries[row] for number, rows in shown.items() for row in rows]
    when = np.array([entry.step if axis == "step" else entry.epoch for entry in entries], np.float64)
    return _embedded("weights", runs, when, squared, left_out)


# ---- what runs measure ---------------------------------------------------------------------------------------------


def joint_metrics(comparison: Comparison) -> list[JointEmbedding]:
    """Paths of all runs in the space of the headline quantities that they share, each with the same weight.

    Every quantity is standardised over all points (logarithms where ratios count); time is none of them. Flags, counts
    of events and what never changes are left out.
    """
    rows: list[Where] = []
    runs: list[int] = []
    when: list[float] = []
    having, left_out = _some([number for number, series in enumerate(comparison.series) if series])
    tags = [
        quantity
        for quantity in comparison.quantities
        if quantity.headline and not (quantity.is_flag or quantity.total or quantity.missing is not None)
        if all(quantity.tag in comparison.series[number] for number in having)
    ]
    for number in having:
        series, start = comparison.series[number], comparison.runs[number].start
        looks = {quantity.tag: series[quantity.tag].on(comparison.axis, start) for quantity in tags}
        known = np.unique(np.concatenate([*looks.values(), np.zeros(0)]))
        known = known[np.isfinite(known)]
        for place in known[evenly(len(known), max(FEWEST, MOST_POINTS // max(1, len(having))))]:
            values = np.array([series[quantity.tag].at(place, comparison.axis, start) for quantity in tags])
            for column, quantity in enumerate(tags):
                if quantity.logarithmic:
                    values[column] = np.log(values[column]) if values[column] > 0 else np.nan
            if np.isfinite(values).all():
                rows.append(values)
                runs.append(number)
                when.append(float(place))
    for number in set(range(len(comparison.runs))).difference(runs, left_out):
        left_out[number] = "it never had all quantities that the others have"
    points = np.array(rows).reshape(len(rows), len(tags))
    sizes = np.abs(points).max(0, initial=0)
    points = points / np.where(sizes > 0, sizes, 1)  # squares of huge and tiny numbers are no numbers
    spreads = points.std(0) if len(points) else np.zeros(len(tags))
    moving = spreads > 1e-9
    if moving.sum() < 2 or len(points) < FEWEST or len(set(runs)) < 2:
        return []
    standard = (points[:, moving] - points[:, moving].mean(0)) / spreads[moving]
    squared = np.square(standard[:, None] - standard[None]).sum(2)
    return [_embedded("metrics", np.array(runs), np.array(when), squared, left_out)]


# ---- both ----------------------------------------------------------------------------------------------------------


def _embedded(
    kind: Literal["weights", "metrics"], runs: NDArray[np.int64], when: Where, squared: Where, left_out: dict[int, str]
) -> JointEmbedding:
    parts = path_components(squared)
    laid = phate_embedding(np.sqrt(squared))
    why_not = laid.why_not or ("" if laid.connected else "the paths lie too far apart for one graph of neighbours")
    scores = np.zeros((len(runs), 2))
    scores[:, : parts.scores.shape[1]] = parts.scores[:, :2]
    explained = np.zeros(2)
    explained[: len(parts.explained)] = parts.explained[:2]
    phate = np.zeros((0, 2)) if why_not else laid.points
    return JointEmbedding(kind, runs, when, scores, explained, phate, why_not, left_out)
