"""Findings of the real probes on states into which labels were planted, with as much strength as a picture needs."""

from dataclasses import replace

import numpy as np

from rnn_callbacks.analysis.concepts import Concept, split_sequences
from rnn_callbacks.analysis.probe_findings import Baseline, Course, judge
from rnn_callbacks.analysis.probe_fits import ProbeSettings
from rnn_callbacks.analysis.probes import probe
from rnn_callbacks.analysis.state_samples import StateSamples
from rnn_callbacks.analysis.unit_information import as_classes, unit_information

SEQUENCES, LENGTH, UNITS = 211, 23, 7
NUMBERS = 3  # what the classes are called: 3, 4, ...


def planted_labels(classes, *, of_steps=False, sequences=SEQUENCES, length=LENGTH, name="digit"):
    """A class for each sequence, or each of its steps, dealt evenly; a quantity where there are no classes."""
    generator = np.random.default_rng(1)
    shape = (sequences, length) if of_steps else (sequences, 1)
    if not classes:
        return Concept(name, np.empty(0, np.int64), of_steps, generator.normal(size=shape))
    codes = generator.permutation(np.arange(np.prod(shape)) % classes).reshape(shape)
    return Concept(name, np.arange(classes) + NUMBERS, of_steps, codes.astype(float))


def planted_states(concept, strengths, *, steps, units=UNITS, length=LENGTH, seed=0):
    """Noise plus the label of the step, stronger from the first probed step to the last one; the input is noise."""
    generator = np.random.default_rng(seed)
    count, steps = len(concept.labels), np.asarray(steps, dtype=np.int64)
    columns = np.append(steps, length - 1)
    ramp = np.linspace(0.1, 1.0, len(columns))[:, None]
    labels = concept.labels[:, columns] if concept.of_steps else np.repeat(concept.labels, len(columns), axis=1)
    known = np.nan_to_num(labels)
    directions = generator.normal(size=(max(len(concept.classes), 1), units)).astype(np.float32)
    code = directions[known.astype(int)] if len(concept.classes) else known[..., None] * directions
    states = {
        site: (generator.normal(size=code.shape) + strength * ramp * code).astype(np.float32)
        for site, strength in strengths.items()
    }
    states["input"] = generator.normal(size=(count, len(columns), 5)).astype(np.float32)
    rows = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return StateSamples(steps, states, np.full(count, length), rows, {}, 0.0)


def look(strengths, *, classes=2, steps=(0, 5, 11, 16, 22), of_steps=False, controls=True, concept=None, **sizes):
    """Findings by site at one look; the untrained network reads a little, the input nothing."""
    if concept is None:
        concept = planted_labels(classes, of_steps=of_steps)
    fitted = split_sequences([concept], 0.6)
    settings = ProbeSettings(shuffles=10 if controls else 0)

    def read(samples):
        return {probed.site: probed for probed in probe(samples, [concept], fitted, settings)}

    trained = planted_states(concept, strengths, steps=steps, **sizes)
    if not controls:
        del trained.states["input"]
        return {site: judge(probed, None, None) for site, probed in read(trained).items()}
    untrained = read(planted_states(concept, dict.fromkeys(strengths, 0.35), steps=steps, **sizes))
    return {
        site: judge(probed, Baseline.of(untrained[site]), Baseline.of(untrained["input"]))
        for site, probed in read(trained).items()
        if site != "input"
    }


def looks(course_of, epochs, **options):
    """Findings of the last look and the courses, where ``course_of(share of training)`` gives strengths by site."""
    courses = {site: Course() for site in course_of(0.0)}
    found = {}
    for place, epoch in enumerate(epochs):
        found = look(course_of(place / max(len(epochs) - 1, 1)), **options)
        for site, finding in found.items():
            courses[site].add(epoch, finding)
    return found, courses


def course(found, epoch=3):
    """Courses of one look."""
    courses = {site: Course() for site in found}
    for site, finding in found.items():
        courses[site].add(epoch, finding)
    return courses


def with_units(finding, states):
    """A finding that knows what single units ``(N, H)`` say, with the labels of the sequences."""
    concept = finding.probed.concept
    labels = concept.labels[:, 0]
    codes = labels.astype(np.int64) if len(concept.classes) else as_classes(labels)
    return replace(finding, information=unit_information(states, codes))
