"""Probes of one lot of samples: rows that a label leaves, a basis for all that share them, fit, calibration, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from .concepts import deal
from .discriminant import Basis, ClassProbe, ValueProbe, basis, best_sharpness, best_slope, fit_classes, fit_values
from .logistic import fit_logistic
from .probe_scores import Reading, no_reading, read_classes, read_values, score_classes

Engine = Literal["discriminant", "logistic"]
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
class Samples:
    """The samples of one column, or of several together."""

    states: Floats  # (M, D)
    usable: NDArray[np.bool_]  # (M,)
    fitted: NDArray[np.bool_]  # (M,)
    sequences: NDArray[np.int64]  # (M,)


@final
@dataclass(frozen=True, eq=False)
class Target:
    """Labels to fit and to be tested with; the concept's own, or a control's."""

    labels: NDArray[np.float64]  # (M,)
    classes: int  # K; 0 for a quantity
    control: bool = False  # of which only the score is wanted
    tallied: bool = False


def shuffled_targets(truth: Target, samples: Samples, settings: ProbeSettings) -> list[Target]:
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
class Case:
    """A target whose probe can be fitted."""

    place: int  # among the targets
    fit: NDArray[np.int64]  # rows of the samples
    test: NDArray[np.int64]
    labels: NDArray[np.float64]  # (M,), classes numbered from 0 without gaps
    kept: NDArray[np.int64]  # classes of the concept that are left
    of_classes: bool
    control: bool


def prepare_case(place: int, target: Target, samples: Samples) -> Case | str:
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
    return Case(place, np.flatnonzero(fit), np.flatnonzero(test), labels, kept, target.classes > 0, target.control)


def _occurs(sequences: NDArray[np.int64], codes: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """In which sequences each class occurs, ``(K, n)``, of the n sequences that have samples."""
    _, place = np.unique(sequences, return_inverse=True)
    found = np.zeros((classes, place.max(initial=-1) + 1), dtype=bool)
    found[codes, place] = True
    return found


def read_samples(
    samples: Samples,
    targets: Sequence[Target],
    settings: ProbeSettings,
    *,
    grouped: bool = False,
    cases: Sequence[Case | str] | None = None,
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
    shared: dict[bytes, list[Case]] = {}
    if cases is None:
        cases = [prepare_case(place, target, samples) for place, target in enumerate(targets)]
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


def _score(case: Case, fitted: ClassProbe | ValueProbe, held: Floats, samples: Samples, target: Target) -> Reading:
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
    cases: Sequence[Case],
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
    samples: Samples, cases: Sequence[Case], probes: Sequence[ClassProbe | ValueProbe], settings: ProbeSettings
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
