"""How many bits it takes to send the labels to someone who has the states: quality and effort of a probe in one number.

The online code of Voita and Titov 2020 (section 3.2): labels are sent portion by portion, each twice as many as before,
coded by a probe that sender and receiver fit to what was sent so far. A concept that lies open is learned from few
samples and costs little; one that must be dug out costs much even if a probe gets there in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .discriminant import ClassProbe, basis, best_sharpness, fit_classes

PORTIONS = 64  # the first is 1/64 of the samples, so that six probes are fitted
FEWEST = 16  # samples in the first portion, which no probe could be fitted to with profit


@final
@dataclass(frozen=True, eq=False)
class DescriptionLength:
    """Length of the code of N labels of K classes."""

    bits: float  # of all labels, for a receiver who has the states
    labels_only: float  # the same code without states: each portion by the frequencies in those before
    samples: int  # N
    classes: int  # K, those that occur

    @property
    def bits_per_label(self) -> float:
        """Mean length of a label's code, in bits."""
        return self.bits / self.samples

    @property
    def compression(self) -> float:
        """How many times the states shorten the code: 1 when they say nothing about the labels, 1 for a single class.

        Departs from the source, which divides the uniform code (`uniform_compression`): classes that are unequally
        frequent compress without any states.
        """
        return self.labels_only / self.bits if self.bits else 1.0

    @property
    def uniform_compression(self) -> float:
        """N log2 K / bits, as in the source; 1 for a single class."""
        return float(self.samples * np.log2(self.classes) / self.bits) if self.bits else 1.0


def description_length(
    states: NDArray[np.floating[Any]],
    codes: NDArray[np.integer[Any]],
    *,
    seed: int = 0,
    first: int | None = None,
    groups: NDArray[np.integer[Any]] | None = None,
) -> DescriptionLength:
    """Length of the labels' code for a receiver who has the states; `description_lengths` for one concept."""
    return description_lengths(states, [codes], seed=seed, first=first, groups=groups)[0]


def description_lengths(
    states: NDArray[np.floating[Any]],
    concepts: Sequence[NDArray[np.integer[Any]]],
    *,
    seed: int = 0,
    first: int | None = None,
    groups: NDArray[np.integer[Any]] | None = None,
) -> list[DescriptionLength]:
    """Length of the code of several concepts' labels, each for a receiver who has the states.

    A label costs ``-log2((n q + 1 / K) / (n + 1))``, with q the probability that the probe gives to its class and n the
    samples that it was fitted to: one sample more, spread evenly over all K classes. So a class not met before can be
    coded, no label costs more than log2(K (n + 1)), and a probe that learned nothing costs what frequencies cost. The
    first portion costs log2 K a label, so compression ends near N / ``first``: compare codes of equal N and ``first``.
    Below about 200 samples a probe may trust itself too much: noise then compresses to 0.6 at worst.

    Args:
        states: ``(N, H)``, finite.
        concepts: for each the class ``(N,)`` of every sample.
        seed: of the order in which samples are sent.
        first: samples in the first portion, at least 2; by default 1/64 of them, but 16 or more.
        groups: sequence ``(N,)`` that each sample comes from. A sequence is sent within one portion, so that no probe
            has seen a part of what it codes. Then the sharpness of a probe is fitted to the portion before, as coded
            by the probe before: samples that were left out singly would have their neighbours in the probe.

    Raises:
        ValueError: when shapes do not fit, a state is not finite, labels are not integers or ``first`` is below 2.
    """
    _check(states, concepts, groups, first)
    samples = len(states)
    order, ends = _portions(samples, first or max(-(-samples // PORTIONS), FEWEST), seed, groups)
    states = states[order] if states.dtype.kind == "f" else states[order].astype(np.float64)
    codes = [np.unique(labels, return_inverse=True)[1].reshape(-1)[order] for labels in concepts]
    classes = [int(code.max()) + 1 for code in codes]
    bits = [float(ends[0] * np.log2(count)) for count in classes]
    labels_only = bits.copy()
    sharpness: list[float | None] = [None] * len(codes)
    for begin, end in pairwise(ends):
        base = basis(states[:begin])
        new = base.standardised(states[begin:end])
        known = [np.unique(code[:begin], return_inverse=True) for code in codes]
        probes = fit_classes(base, [place.reshape(-1) for _, place in known])
        for at, (probe, (seen, _), code, count) in enumerate(zip(probes, known, codes, classes, strict=True)):
            logits, sharp, sent = new @ probe.weights + probe.offsets, sharpness[at], code[begin:end]
            told = np.zeros((end - begin, count))
            told[:, seen] = _softmax(probe.log_priors + (probe.sharpness if sharp is None else sharp) * logits)
            usual = np.broadcast_to(np.bincount(code[:begin], minlength=count) / begin, told.shape)
            bits[at] += _cost(told, sent, begin)
            labels_only[at] += _cost(usual, sent, begin)
            if groups is not None:
                sharpness[at] = _next_sharpness(probe, logits, seen, sent)
    return [
        DescriptionLength(coded, usual, samples, count)
        for coded, usual, count in zip(bits, labels_only, classes, strict=True)
    ]


def _check(
    states: NDArray[np.floating[Any]],
    concepts: Sequence[NDArray[np.integer[Any]]],
    groups: NDArray[np.integer[Any]] | None,
    first: int | None,
) -> None:
    if states.ndim != 2 or not len(states):
        raise ValueError(f"states must be (N, H) with N of at least 1, got shape {states.shape}")
    if not np.isfinite(states).all():
        raise ValueError("states must be finite")
    if first is not None and first < 2:
        raise ValueError(f"first must be at least 2, got {first}")
    named = [("labels", labels) for labels in concepts] + ([] if groups is None else [("groups", groups)])
    for what, codes in named:
        if codes.shape != states.shape[:1] or codes.dtype.kind not in "iu":
            raise ValueError(f"{what} must be ({len(states)},) integers, got shape {codes.shape} of {codes.dtype}")


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities ``(n, K)``, each row adds up to 1."""
    told = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(told / told.sum(1, keepdims=True))


def _cost(told: NDArray[np.float64], code: NDArray[np.int64], before: int) -> float:
    """Bits for labels ``(n,)`` with these probabilities ``(n, K)`` of all classes, from so many samples before."""
    own = told[np.arange(len(code)), code]
    return float(-np.log2((before * own + 1 / told.shape[1]) / (before + 1)).sum())


def _next_sharpness(
    probe: ClassProbe, logits: NDArray[np.float64], seen: NDArray[np.int64], code: NDArray[np.int64]
) -> float:
    """Sharpness that would have suited a portion, of the samples whose class the probe knew; 0 when there is none."""
    rows = np.isin(code, seen)
    return best_sharpness(logits[rows], probe.log_priors, np.searchsorted(seen, code[rows])) if rows.any() else 0.0


def _portions(
    samples: int, first: int, seed: int, groups: NDArray[np.integer[Any]] | None
) -> tuple[NDArray[np.int64], list[int]]:
    """Order ``(N,)`` in which samples are sent, and where each portion ends: a group is never cut."""
    group = np.arange(samples) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    place = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group]
    order = np.argsort(place, kind="stable")
    last = np.cumsum(np.bincount(place))
    sought = first * 2 ** np.arange(max(samples // first, 1).bit_length() + 1)
    found = np.searchsorted(last, np.minimum(sought, samples))
    return order, np.unique(last[found]).tolist()
