"""Linear probes of one module: every concept at every layer and time step, with controls that make them mean something.

``probe`` takes states and labels as arrays; nothing of Lightning or torch is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from .concepts import Concept, deal
from .control_tasks import control_labels, input_types
from .discriminant import Basis, ClassProbe, ValueProbe, basis, best_sharpness, best_slope, fit_classes, fit_values
from .logistic import fit_logistic
from .probe_scores import Reading, no_reading, read_classes, read_values, score_classes
from .state_samples import StateSamples, is_reversed

Engine = Literal["discriminant", "logistic"]
POOLED = 10_000  # samples to which a probe of all steps together is fitted; more change little and cost much
LEAST = 2  # sequences of a class without which it cannot be told from the others
Floats = NDArray[np.floating[Any]]


@final
@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted."""

    engine: Engine = "discriminant"
    shuffles: int = 10  # label shuffles at the headline; one alone ranged from 0.41 to 0.65 of a true 0.5
    shrinkage: float | None = None  # see `basis`
    seed: int = 0


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


@final
@dataclass(frozen=True, eq=False)
class _Samples:
    """The samples of one column, or of several together."""

    states: Floats  # (M, D)
    usable: NDArray[np.bool_]  # (M,)
    fitted: NDArray[np.bool_]  # (M,)
    sequences: NDArray[np.int64]  # (M,)


@final
@dataclass(frozen=True, eq=False)
class _Target:
    """Labels to fit and to be tested with; the concept's own, or a control's."""

    labels: NDArray[np.float64]  # (M,)
    classes: int  # K; 0 for a quantity
    control: bool = False  # of which only the score is wanted
    tallied: bool = False


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
    cases: dict[tuple[int, bytes], list[_Case | str]]  # of a column, prepared at the first site of those that share it


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
            samples = _Samples(self.states[rows], everything, self.fitted[rows[0]], rows[0])
        else:
            rows, samples = (np.arange(len(self.states)), np.full(len(self.states), -1)), self._samples(-1)
        truths = [
            _Target(self.questions.labels[p][rows], k, tallied=True) for p, k in zip(places, classes, strict=True)
        ]
        tricks = [
            _Target(self.questions.controls[p][rows], k, control=True) for p, k in zip(places, classes, strict=True)
        ]
        own = [*truths, *tricks] if of_steps else []
        deals = [target for truth in truths for target in _shuffle(truth, samples, self.settings)]
        read = _read(samples, [*own, *deals], self.settings, grouped=of_steps)
        head = read[: len(own)] or [at_end[p] for p in places] + [at_end[count + p] for p in places]
        shuffled = np.array([r.score for r in read[len(own) :]]).reshape(len(places), -1)
        return {
            place: (head[row], head[len(places) + row].score, shuffled[row][np.isfinite(shuffled[row])])
            for row, place in enumerate(places)
        }

    def _samples(self, column: int) -> _Samples:
        return _Samples(self.states[:, column], self.usable[:, column], self.fitted, np.arange(len(self.states)))

    def _target(self, place: int, column: int) -> _Target:
        concept = self.concepts[place]
        headline = column == self.states.shape[1] - 1 and not concept.of_steps
        return _Target(self.questions.labels[place][:, column], len(concept.classes), tallied=headline)

    def _read_column(self, column: int) -> list[Reading]:
        """Readings of all concepts, then of all their control tasks."""
        samples = self._samples(column)
        targets = [self._target(place, column) for place in range(len(self.concepts))]
        targets += [
            _Target(label[:, column], target.classes, control=True)
            for label, target in zip(self.questions.controls, targets, strict=True)
        ]
        key = column, samples.usable.tobytes()
        if key not in self.questions.cases:
            self.questions.cases[key] = [_prepare(place, target, samples) for place, target in enumerate(targets)]
        return _read(samples, targets, self.settings, cases=self.questions.cases[key], sharpness=self.sharpness)


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


def _shuffle(truth: _Target, samples: _Samples, settings: ProbeSettings) -> list[_Target]:
    """The same labels dealt anew among the fitted and among the held-out sequences.

    A sequence gets the labels of another one, from a random step on and round its end: labels that hardly change within
    a sequence still do so, and scores of such probes vary as much as those of a probe of no use do.
    """
    generator = np.random.default_rng(settings.seed)
    labelled = samples.usable & np.isfinite(truth.labels)
    found = []
    for _ in range(settings.shuffles):
        labels = truth.labels.copy()
        for side in (labelled & samples.fitted, labelled & ~samples.fitted):
            _, sequence, steps = np.unique(samples.sequences[side], return_inverse=True, return_counts=True)
            place = np.arange(len(sequence)) - (np.cumsum(steps) - steps)[sequence]
            turned = (place + generator.integers(0, steps)[sequence]) % steps[sequence]
            labels[side] = labels[side][np.lexsort((turned, generator.permutation(len(steps))[sequence]))]
        found.append(replace(truth, labels=labels, control=True, tallied=False))
    return found


@final
@dataclass(frozen=True, eq=False)
class _Case:
    """A target whose probe can be fitted."""

    place: int  # among the targets
    fit: NDArray[np.int64]  # rows of the samples
    test: NDArray[np.int64]
    labels: NDArray[np.float64]  # (M,), classes numbered from 0 without gaps
    kept: NDArray[np.int64]  # classes of the concept that are left
    of_classes: bool
    control: bool


def _prepare(place: int, target: _Target, samples: _Samples) -> _Case | str:
    """The rows to fit and to test with, or the reason why there is nothing to fit."""
    labelled = samples.usable & np.isfinite(target.labels)
    fit, test = labelled & samples.fitted, labelled & ~samples.fitted
    labels, kept = target.labels, np.arange(target.classes)
    if target.classes:
        codes = np.where(labelled, labels, 0).astype(np.int64)
        counts = _occurs(samples.sequences[fit], codes[fit], target.classes).sum(1)
        kept = np.flatnonzero(counts >= LEAST)
        if len(kept) < 2:
            several = (counts > 0).sum() > 1
            return "one class only" if counts.max(initial=0) >= LEAST and not several else "too few sequences"
        if len(kept) < target.classes:
            known = np.isin(codes, kept)
            fit, test = fit & known, test & known
            labels = np.searchsorted(kept, codes).astype(np.float64)
        if (np.bincount(labels[test].astype(np.int64)) > 0).sum() < 2:
            return "held-out sequences of one class only"
    elif len(np.unique(samples.sequences[fit])) < 3 or len(np.unique(samples.sequences[test])) < 2:
        return "too few sequences"
    elif np.ptp(labels[fit]) == 0 or np.ptp(labels[test]) == 0:
        return "the same value everywhere"
    else:
        # No score depends on unit and origin of a quantity; squares of very large or small numbers would.
        labels = labels - labels[fit][0]
        labels = labels / np.abs(labels[fit | test]).max()
    return _Case(place, np.flatnonzero(fit), np.flatnonzero(test), labels, kept, target.classes > 0, target.control)


def _occurs(sequences: NDArray[np.int64], codes: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """In which sequences each class occurs, ``(K, n)``, of the n sequences that have samples."""
    _, place = np.unique(sequences, return_inverse=True)
    found = np.zeros((classes, place.max(initial=-1) + 1), dtype=bool)
    found[codes, place] = True
    return found


def _read(
    samples: _Samples,
    targets: Sequence[_Target],
    settings: ProbeSettings,
    *,
    grouped: bool = False,
    cases: Sequence[_Case | str] | None = None,
    sharpness: list[float] | None = None,
) -> list[Reading]:
    """Fit and score; targets with the same samples share one basis.

    Args:
        samples: what the probes read.
        targets: what they are to read there.
        settings: how they are fitted.
        grouped: whether there are several samples of a sequence.
        cases: the targets, if they have been prepared.
        sharpness: of each target's probe at the column before; brought up to date.
    """
    readings: list[Reading | None] = [None] * len(targets)
    shared: dict[bytes, list[_Case]] = {}
    if cases is None:
        cases = [_prepare(place, target, samples) for place, target in enumerate(targets)]
    for place, case in enumerate(cases):
        if isinstance(case, str):
            readings[place] = no_reading(case)
        else:
            shared.setdefault(case.fit.tobytes(), []).append(case)
    for alike in shared.values():
        fit = alike[0].fit
        base = basis(samples.states[fit], shrinkage=settings.shrinkage)
        guesses = None if sharpness is None else [sharpness[case.place] for case in alike]
        probes = _fit(base, alike, settings, samples.sequences[fit], guesses)
        if sharpness is not None:
            for case, found in zip(alike, probes, strict=True):
                sharpness[case.place] = found.sharpness
        if grouped:
            true = [place for place, case in enumerate(alike) if not case.control]
            again = _calibrate(samples, [alike[p] for p in true], [probes[p] for p in true], settings) if true else []
            for place, calibrated in zip(true, again, strict=True):
                probes[place] = calibrated
        held: dict[bytes, Floats] = {}
        for case, fitted in zip(alike, probes, strict=True):
            key = case.test.tobytes()
            if key not in held:
                held[key] = base.standardised(samples.states[case.test])
            readings[case.place] = _score(case, fitted, held[key], samples, targets[case.place])
    return [reading for reading in readings if reading is not None]


def _score(case: _Case, fitted: ClassProbe | ValueProbe, held: Floats, samples: _Samples, target: _Target) -> Reading:
    labels, count = case.labels[case.test], len(case.fit)
    groups = np.unique(samples.sequences[case.test], return_inverse=True)[1] if target.tallied else None
    if isinstance(fitted, ValueProbe):
        return read_values(fitted, held, labels, fitted=count, groups=groups)
    codes = labels.astype(np.int64)
    if target.control:
        return replace(no_reading(""), fitted=count, tested=len(codes), score=score_classes(fitted, held, codes))
    reading = read_classes(fitted, held, codes, fitted=count, groups=groups)
    if len(case.kept) < target.classes:
        confusion = np.zeros((target.classes, target.classes), np.int64)
        confusion[np.ix_(case.kept, case.kept)] = reading.confusion
        reading = replace(reading, confusion=confusion)
    return reading


def _fit(
    base: Basis,
    cases: Sequence[_Case],
    settings: ProbeSettings,
    groups: NDArray[np.int64],
    guesses: Sequence[float] | None = None,
) -> list[ClassProbe | ValueProbe]:
    """Probes of cases that share their samples, in their order."""
    codes = [case.labels[case.fit].astype(np.int64) for case in cases if case.of_classes]
    values = [case.labels[case.fit] for case in cases if not case.of_classes]
    classifiers = []
    if codes:
        wanted = [not case.control for case in cases if case.of_classes]
        near = None if guesses is None else [g for g, case in zip(guesses, cases, strict=True) if case.of_classes]
        classifiers = fit_classes(base, codes, calibrated=wanted, guesses=near)
    if settings.engine == "logistic":
        classifiers = [
            fit_logistic(base, code, start=start, groups=groups) for code, start in zip(codes, classifiers, strict=True)
        ]
    of_classes, of_values = iter(classifiers), iter(fit_values(base, values) if values else [])
    return [next(of_classes) if case.of_classes else next(of_values) for case in cases]


def _calibrate(
    samples: _Samples, cases: Sequence[_Case], probes: Sequence[ClassProbe | ValueProbe], settings: ProbeSettings
) -> list[ClassProbe | ValueProbe]:
    """Sharpness from sequences that were left out, since a sequence's steps tell of each other.

    Each half of the sequences is read with probes fitted to the other. Where neither half has all classes, nobody knows
    how far a probe may be trusted, and its sharpness is 0.
    """
    fit = cases[0].fit
    sequences, row = np.unique(samples.sequences[fit], return_inverse=True)
    members = [np.ones(len(sequences), dtype=bool)]
    for case in cases:
        if case.of_classes:
            members += list(_occurs(samples.sequences[fit], case.labels[fit].astype(np.int64), len(case.kept)))
    first = deal(members, 0.5, seed=settings.seed)[row]
    told: list[list[NDArray[np.float64]]] = [[] for _ in cases]
    truth: list[list[NDArray[np.float64]]] = [[] for _ in cases]
    for half in (first, ~first):
        whole = [
            not case.of_classes
            or np.bincount(case.labels[fit[half]].astype(np.int64), minlength=len(case.kept)).min() > 0
            for case in cases
        ]
        fitting = [replace(case, fit=fit[half]) for case, can in zip(cases, whole, strict=True) if can]
        if half.sum() < 3 or not (~half).any() or not fitting:
            continue
        base = basis(samples.states[fit[half]], shrinkage=settings.shrinkage)
        other = base.standardised(samples.states[fit[~half]])
        places = [place for place, can in enumerate(whole) if can]
        for place, part in zip(places, _fit(base, fitting, settings, samples.sequences[fit[half]]), strict=True):
            logits = (other @ part.weights.astype(other.dtype)).astype(np.float64)
            told[place].append(logits + (part.offsets if isinstance(part, ClassProbe) else 0.0))
            labels = cases[place].labels[fit[~half]]
            truth[place].append(labels if isinstance(part, ClassProbe) else labels - part.mean)
    found: list[ClassProbe | ValueProbe] = []
    for fitted, parts, answers in zip(probes, told, truth, strict=True):
        if not parts:
            found.append(replace(fitted, sharpness=0.0))
        elif isinstance(fitted, ClassProbe):
            code = np.concatenate(answers).astype(np.int64)
            found.append(replace(fitted, sharpness=best_sharpness(np.concatenate(parts), fitted.log_priors, code)))
        else:
            read, deviation = np.concatenate(parts), np.concatenate(answers)
            sharpness, lost = best_slope(read, deviation)
            found.append(replace(fitted, sharpness=sharpness, noise=max(lost, 1e-12) * fitted.variance))
    return found
