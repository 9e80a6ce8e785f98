"""What the tests of probes share: samples of states with labels planted into them, or not."""

import numpy as np

from rnn_callbacks.analysis.concepts import read_concepts, split_sequences
from rnn_callbacks.analysis.probe_fits import ProbeSettings
from rnn_callbacks.analysis.probes import probe
from rnn_callbacks.analysis.state_samples import StateSamples

SITE = "l0/hidden"


def rows_of(sequences):
    """All of one batch."""
    return np.stack([np.zeros(sequences, np.int64), np.arange(sequences)], axis=1)


def samples_of(states, lengths=None, steps=None, **sites):
    """Samples of states ``(N, H)``, the same at two columns, or ``(N, S + 1, H)``."""
    states = np.asarray(states, np.float32)
    if states.ndim == 2:
        states = np.repeat(states[:, None], 2, axis=1)
    count, columns = states.shape[:2]
    steps = np.arange(columns - 1) if steps is None else np.asarray(steps)
    lengths = np.full(count, columns - 1) if lengths is None else np.asarray(lengths)
    return StateSamples(steps, {SITE: states, **sites}, lengths, rows_of(count), {}, 1e-4)


def concept_of(labels, name="digit"):
    (concept,) = read_concepts(name, {0: np.asarray(labels)}, rows_of(len(labels)))
    return concept


def read(states, labels, *, lengths=None, seed=0, fitted=None, shuffles=3, sites=None, **settings):
    """The probe of one concept at one site."""
    samples, concept = samples_of(states, lengths, **(sites or {})), concept_of(labels)
    fitted = split_sequences([concept], 2 / 3, seed=seed) if fitted is None else fitted
    (found,) = probe(samples, [concept], fitted, ProbeSettings(seed=seed, shuffles=shuffles, **settings), sites=[SITE])
    return found
