"""One look at the states of one site: measured, compared with earlier looks, and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.cka import Similarity, compare_fingerprints, fingerprint, geometry
from ..analysis.class_geometry import ClassGeometry, class_geometry
from ..analysis.concepts import Concept
from ..analysis.representation import representation
from ..analysis.representation_findings import SiteFindings
from ..analysis.state_samples import StateSamples, is_reversed
from ..analysis.step_clusters import StepClusters, step_clusters
from .representation_history import BEFORE, NOTHING, Half, SiteHistory

PRINTED = 256  # sequences that are compared between looks and layers
CLUSTERED = 6  # steps at which sequences are clustered
CURVES = ("cka_untrained", "cka_previous", "participation_ratio")  # that are drawn over the looks

States = NDArray[np.float32]


@final
@dataclass(frozen=True, eq=False)
class Others:
    """States of other networks for the same sequences, ``(N, S + 1, H)``."""

    untrained: States | None
    random: Sequence[States]
    comparable: bool  # whether the sequences are those of earlier looks


@final
@dataclass(frozen=True, eq=False)
class SiteLook:
    """The states of one site, and when they were seen."""

    samples: StateSamples
    site: str
    epoch: int
    shown: Sequence[int]  # sequences in pictures

    @property
    def states(self) -> States:
        """``(N, S + 1, H)``."""
        return self.samples.states[self.site]

    def at(self, history: SiteHistory, others: Others, concepts: Sequence[Concept], *, clustered: bool) -> SiteFindings:
        """Measure everything, and add it to the history.

        Args:
            history: of this site; grows by this look.
            others: to compare with.
            concepts: labels of the sequences.
            clustered: whether sequences are to be clustered.
        """
        present = self.samples.present
        shape = representation(geometry(self.states[:, :-1], present[:, :-1]))
        untrained, end, previous = self._compare(history, others)
        compared = others.comparable and len(history.now) > 0
        columns = _spread(len(self.samples.steps), CLUSTERED)
        clusters = self._clusters(columns) if clustered else None
        classes = {c.name: one for c in concepts if (one := self._classes(c)) is not None}
        found = SiteFindings(
            shape=shape,
            untrained=untrained,
            untrained_end=end,
            previous=previous,
            random=history.random,
            clusters=clusters,
            cluster_columns=columns,
            classes=classes,
            epochs=np.array(history.epochs if compared else [], np.int64),
            matrix=history.matrix() if compared else np.zeros((0, 0)),
        )
        scalars = found.scalars()
        history.curves.append(
            {"epoch": float(self.epoch)} | {name: scalars[name] for name in CURVES if name in scalars}
        )
        return found

    def _compare(self, history: SiteHistory, others: Others) -> tuple[Similarity | None, float, float]:
        """CKA with the untrained network, the same at the ends, and with the look before."""
        present = self.samples.present[:PRINTED]
        print_, end = self._print(self.states), self._print_end(self.states)
        history.now = print_
        if not others.comparable:
            return None, np.nan, np.nan
        if others.untrained is not None and not history.untrained.size:
            history.untrained, history.untrained_end = self._print(others.untrained), self._print_end(others.untrained)
            if history.untrained.size:
                history.add_print(BEFORE, history.untrained)
                history.latest = history.untrained
            history.add_scene(BEFORE, self._scene(others.untrained))
        prints = [random.astype(np.float64) for states in others.random if (random := self._print(states)).any()]
        if len(prints) > 1:
            likeness = [float(a @ b) for a, b in combinations(prints, 2)]
            history.random = float(np.mean(likeness)), max(likeness)
        if not len(print_):
            return None, np.nan, np.nan
        counts = present[:, :-1].sum(0)
        fits = len(history.untrained) == len(print_)
        untrained = compare_fingerprints(print_, history.untrained, counts) if fits else None
        at_end = (
            compare_fingerprints(end, history.untrained_end, present[:, -1:].sum(0)).cka
            if fits and len(end) == len(history.untrained_end)
            else np.nan
        )
        previous = (
            compare_fingerprints(print_, history.latest, counts).cka if len(history.latest) == len(print_) else np.nan
        )
        history.latest = print_
        history.add_print(self.epoch, print_)
        history.add_scene(self.epoch, self._scene(self.states))
        return untrained, at_end, previous

    def _print(self, states: States) -> Half:
        """The fingerprint of all steps; nothing where a state is not finite, or there are too few sequences."""
        return _half_print(states[:PRINTED, :-1], self.samples.present[:PRINTED, :-1])

    def _print_end(self, states: States) -> Half:
        return _half_print(states[:PRINTED, -1:], self.samples.present[:PRINTED, -1:])

    def _scene(self, states: States) -> States:
        """Trajectories for pictures, ``(Q, S, H)``; NaN where a sequence has ended."""
        rows = np.array(self.shown, dtype=int)
        return np.where(self.samples.present[rows, :-1, None], states[rows, :-1], np.float32(np.nan))

    def _clusters(self, columns: NDArray[np.int64]) -> StepClusters:
        """At these columns, and where sequences end."""
        chosen = [*columns.tolist(), self.states.shape[1] - 1]
        states, present = self.states[:, chosen], self.samples.present[:, chosen]
        return step_clusters(states, present & np.isfinite(states).all(2))

    def _classes(self, concept: Concept) -> ClassGeometry | None:
        """Distances between classes; columns in the order of the steps, as everywhere. None of a quantity."""
        if not len(concept.classes):
            return None
        reverse = is_reversed(self.site)
        labels, positions = concept.at(self.samples, reverse=reverse), self.samples.positions(reverse=reverse)
        read = self.samples.lengths[:, None] - positions if reverse else positions + 1
        count = labels.shape[1] - 1
        order = [*(reversed(range(count)) if reverse else range(count)), count]
        found = class_geometry(self.states[:, order], labels[:, order], read[:, order])
        back = np.argsort(order)
        return ClassGeometry(
            found.separation[back],
            found.nearest_mean[back],
            found.committed[back],
            np.nan if concept.of_steps else found.commitment,
        )


def _half_print(states: States, present: NDArray[np.bool_]) -> Half:
    if not np.isfinite(states[present]).all():
        return NOTHING
    found: Half = fingerprint(geometry(states, present)).astype(np.float16)
    return found


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def shown_rows(samples: StateSamples, concepts: Sequence[Concept], most: int) -> list[int]:
    """Sequences for pictures, up to so many states: classes in turn, where a concept has some for sequences.

    Args:
        samples: of the first look.
        concepts: labels.
        most: states.
    """
    count = max(1, min(most // max(len(samples.steps), 1), len(samples.lengths)))
    rows: NDArray[Any] = np.flatnonzero(samples.lengths > 0)
    labels = next((c.labels[:, 0] for c in concepts if len(c.classes) and not c.of_steps), None)
    if labels is not None:
        turn = np.zeros(len(labels))
        for label in np.unique(labels):
            members = labels == label
            turn[members] = np.arange(members.sum())
        rows = rows[np.lexsort((labels[rows], turn[rows]))]
    return sorted(rows[:count].tolist())
