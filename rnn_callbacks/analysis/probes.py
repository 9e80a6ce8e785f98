"""Linear probes of one module: every concept at every layer and time step, with controls that make them mean something.

``probe`` takes states and labels as arrays; nothing of Lightning or torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from .concepts import Concept
from .control_tasks import control_labels, input_types
from .probe_fits import Case, Floats, ProbeSettings, Samples, Target, prepare_case, read_samples, shuffled_targets
from .probe_scores import Reading
from .state_samples import StateSamples, is_reversed

POOLED = 10_000  # samples to which a probe of all steps together is fitted; more change little and cost much


@final
@dataclass(frozen=True, eq=False)
class Probed:
    """One concept at one site. Columns are the S probed steps and the step that the cell reads last.

    The headline is the last column for a label of the sequence, and one probe of all steps together for labels of
    steps.
    """

    site: str
    concept: Concept
    readings: tuple[Reading, ...]  # (S + 1,)
    headline: Reading
    control: NDArray[np.float64]  # (S + 1,), score of the control task; NaN where there is none
    control_headline: float
    shuffled: NDArray[np.float64]  # (R,), scores of the headline's probe with shuffled labels

    @property
    def chance(self) -> float:
        """The score of a headline that knows nothing: of the classes that its probe knows, not of those too rare."""
        tally = self.headline.tally
        return self.concept.chance if tally is None or not tally.of_classes else 1 / tally.all.shape[1]

    def column(self, quantity: str) -> NDArray[np.float64]:
        """One number of `Reading` at every column, ``(S + 1,)``."""
        return np.array([getattr(reading, quantity) for reading in self.readings], dtype=np.float64)


def probe(
    samples: StateSamples,
    concepts: Sequence[Concept],
    fitted: NDArray[np.bool_],
    settings: ProbeSettings | None = None,
    *,
    sites: Sequence[str] | None = None,
    types: Sequence[NDArray[np.int64]] | None = None,
) -> list[Probed]:
    """Read every concept at every site and column.

    Args:
        samples: states of N sequences.
        concepts: their labels.
        fitted: which sequences probes are fitted to, ``(N,)``, from `split_sequences`; the others are held out.
        settings: engine, shuffles, seed.
        sites: which sites; all by default.
        types: types of input for the control task, ``(N, S + 1)``, for cells that read forwards and for reversed ones;
            by default those of `input_types`.

    Raises:
        ValueError: when sequences, labels and split do not match, or a site is not there.
    """
    settings = settings or ProbeSettings()
    count = len(samples.lengths)
    if fitted.shape != (count,) or any(len(concept.labels) != count for concept in concepts):
        raise ValueError(
            f"expected one label and one side of the split for each of {count} sequences, got {fitted.shape} and "
            f"{[concept.labels.shape for concept in concepts]}"
        )
    missing = [site for site in sites or () if site not in samples.states]
    if missing:
        raise ValueError(f"no states of {', '.join(missing)}; there are {', '.join(samples.states)}")
    questions: dict[bool, _Questions] = {}
    found: list[Probed] = []
    for site in samples.states if sites is None else sites:
        reverse = is_reversed(site)
        if reverse not in questions:
            questions[reverse] = _ask(samples, concepts, settings, types, reverse=reverse)
        found += _Site(samples, site, concepts, questions[reverse], fitted, settings).probed()
    return found


@final
@dataclass(frozen=True, eq=False)
class _Questions:
    """What is asked at every site whose cell reads in one direction."""

    labels: list[NDArray[np.float64]]  # of each concept, (N, S + 1)
    controls: list[NDArray[np.float64]]  # of each control task, the same
    cases: dict[tuple[int, bytes], list[Case | str]]  # of a column, prepared at the first site of those that share it


def _ask(
    samples: StateSamples,
    concepts: Sequence[Concept],
    settings: ProbeSettings,
    types: Sequence[NDArray[np.int64]] | None,
    *,
    reverse: bool,
) -> _Questions:
    labels = [concept.at(samples, reverse=reverse) for concept in concepts]
    source = samples.states.get("input_reverse" if reverse else "input")
    if types is not None:
        kinds = types[int(reverse)]
    elif source is None:
        kinds = np.full(samples.present.shape, -1)
    else:
        kinds = input_types(source, seed=settings.seed)
    controls = [control_labels(kinds, label, seed=settings.seed + place) for place, label in enumerate(labels)]
    return _Questions(labels, controls, {})


@final
class _Site:
    """All probes of one site."""

    def __init__(
        self,
        samples: StateSamples,
        site: str,
        concepts: Sequence[Concept],
        questions: _Questions,
        fitted: NDArray[np.bool_],
        settings: ProbeSettings,
    ) -> None:
        self.site = site
        self.concepts = concepts
        self.questions = questions
        self.settings = settings
        self.fitted = fitted
        self.states = samples.states[site]
        self.usable = samples.present & np.isfinite(self.states).all(2)
        self.sharpness = [1.0] * (2 * len(concepts))  # of the targets at the column before

    def probed(self) -> list[Probed]:
        """Every concept at every column, and its headline."""
        columns = [self._read_column(column) for column in range(self.states.shape[1])]
        controls = np.array([[r.score for r in read[len(self.concepts) :]] for read in columns])
        heads: dict[int, tuple[Reading, float, NDArray[np.float64]]] = {}
        for places in self._alike():
            heads |= self._read_heads(places, columns[-1])
        return [
            Probed(
                self.site, concept, tuple(read[place] for read in columns), head, controls[:, place], control, shuffled
            )
            for place, concept in enumerate(self.concepts)
            for head, control, shuffled in [heads[place]]
        ]

    def _alike(self) -> list[list[int]]:
        """Concepts whose headlines are of the same samples, so that they can share a basis."""
        groups: dict[bytes, list[int]] = {}
        for place, concept in enumerate(self.concepts):
            labelled = np.isfinite(self.questions.labels[place])
            groups.setdefault(labelled.tobytes() if concept.of_steps else b"", []).append(place)
        return list(groups.values())

    def _read_heads(
        self, places: Sequence[int], at_end: Sequence[Reading]
    ) -> dict[int, tuple[Reading, float, NDArray[np.float64]]]:
        """Headline, its control task's score and its shuffled labels' scores, of concepts that share their samples."""
        count, classes = len(self.concepts), [len(self.concepts[place].classes) for place in places]
        of_steps = self.concepts[places[0]].of_steps
        if of_steps:
            rows = _thin(self.usable & np.isfinite(self.questions.labels[places[0]]), self.settings.seed)
            everything = np.ones(len(rows[0]), dtype=bool)
            samples = Samples(self.states[rows], everything, self.fitted[rows[0]], rows[0])
        else:
            rows, samples = (np.arange(len(self.states)), np.full(len(self.states), -1)), self._samples(-1)
        truths = [Target(self.questions.labels[p][rows], k, tallied=True) for p, k in zip(places, classes, strict=True)]
        tricks = [
            Target(self.questions.controls[p][rows], k, control=True) for p, k in zip(places, classes, strict=True)
        ]
        own = [*truths, *tricks] if of_steps else []
        deals = [target for truth in truths for target in shuffled_targets(truth, samples, self.settings)]
        read = read_samples(samples, [*own, *deals], self.settings, grouped=of_steps)
        head = read[: len(own)] or [at_end[p] for p in places] + [at_end[count + p] for p in places]
        shuffled = np.array([r.score for r in read[len(own) :]]).reshape(len(places), -1)
        return {
            place: (head[row], head[len(places) + row].score, shuffled[row][np.isfinite(shuffled[row])])
            for row, place in enumerate(places)
        }

    def _samples(self, column: int) -> Samples:
        return Samples(self.states[:, column], self.usable[:, column], self.fitted, np.arange(len(self.states)))

    def _target(self, place: int, column: int) -> Target:
        concept = self.concepts[place]
        headline = column == self.states.shape[1] - 1 and not concept.of_steps
        return Target(self.questions.labels[place][:, column], len(concept.classes), tallied=headline)

    def _read_column(self, column: int) -> list[Reading]:
        """Readings of all concepts, then of all their control tasks."""
        samples = self._samples(column)
        targets = [self._target(place, column) for place in range(len(self.concepts))]
        targets += [
            Target(label[:, column], target.classes, control=True)
            for label, target in zip(self.questions.controls, targets, strict=True)
        ]
        key = column, samples.usable.tobytes()
        if key not in self.questions.cases:
            self.questions.cases[key] = [prepare_case(place, target, samples) for place, target in enumerate(targets)]
        return read_samples(samples, targets, self.settings, cases=self.questions.cases[key], sharpness=self.sharpness)


@final
@dataclass(frozen=True, eq=False)
class HeadlineSamples:
    """The labelled samples behind a headline, fitted and held out together."""

    states: Floats  # (M, D)
    labels: NDArray[np.float64]  # (M,), the class by its place, or the value
    sequences: NDArray[np.int64]  # (M,)


def headline_samples(samples: StateSamples, site: str, concept: Concept, *, seed: int = 0) -> HeadlineSamples:
    """States and labels of a headline: at the end of sequences, or at all steps together (thinned, if many)."""
    states, reverse = samples.states[site], is_reversed(site)
    labels = concept.at(samples, reverse=reverse)
    usable = samples.present & np.isfinite(states).all(2)
    usable &= np.isfinite(labels)
    if concept.of_steps:
        sequence, column = _thin(usable, seed)
    else:
        sequence = np.flatnonzero(usable[:, -1])
        column = np.full(len(sequence), states.shape[1] - 1)
    return HeadlineSamples(states[sequence, column], labels[sequence, column], sequence)


def _thin(usable: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequence and column of the samples of all steps together, at most one and a half times `POOLED` of them."""
    sequence, column = np.nonzero(usable[:, :-1])
    most = POOLED * 3 // 2
    if len(sequence) > most:
        kept = np.sort(np.random.default_rng(seed).choice(len(sequence), most, replace=False))
        sequence, column = sequence[kept], column[kept]
    return sequence, column
