"""What probes found at one look, held against what the controls read, and the course of it over the looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .probe_scores import NONE, Interval, Tally, draws, interval, p_value
from .probes import Probed
from .unit_information import UnitInformation

COURSE = (
    "score",
    "score_low",
    "score_high",
    "bits",
    "bits_low",
    "bits_high",
    "untrained",
    "untrained_bits",
    "shuffled_low",
    "shuffled_high",
    "input",
    "control",
)


@final
@dataclass(frozen=True, eq=False)
class Baseline:
    """The same probe on something that the training had no part in: the untrained network, or the input itself."""

    columns: NDArray[np.float64]  # (S + 1,), scores
    score: float  # of the headline
    bits: float  # its V-information
    tally: Tally | None
    whole: bool = True  # False: only the layers are untrained, and what lies in front of them has learned

    @classmethod
    def of(cls, probed: Probed, *, whole: bool = True) -> Baseline:
        """What was read there."""
        head = probed.headline
        return cls(probed.column("score"), head.score, head.v_information, head.tally, whole)


@final
@dataclass(frozen=True, eq=False)
class Finding:
    """One concept at one site, beside its controls. NaN: that control does not exist."""

    probed: Probed
    untrained: Baseline | None
    input: Baseline | None
    score: Interval  # of balanced accuracy or R^2
    bits: Interval  # of V-information
    over_untrained: float  # score minus the untrained network's
    over_untrained_interval: Interval
    over_shuffled: float  # minus the mean of the shuffled
    over_input: float  # minus the input's at the same step
    p_value: float  # of the gain in bits
    q_value: float = NONE  # the same among all that were asked at this look (Benjamini and Hochberg 1995)
    information: UnitInformation | None = None
    compression: float = NONE  # of the labels by their description length
    removal: float = NONE  # change of the loss without the concept's directions
    removal_random: float = NONE  # without as many random ones

    @property
    def gain(self) -> float:
        """Score over the best of the controls that exist; over chance where none does."""
        gains = [g for g in (self.over_untrained, self.over_shuffled, self.over_input) if np.isfinite(g)]
        return min(gains) if gains else self.probed.headline.score - self.probed.chance

    @property
    def share(self) -> float:
        """V-information as a share of the concept's entropy; R^2 for a quantity, whose entropy has no zero."""
        head = self.probed.headline
        if not len(self.probed.concept.classes):
            return head.score
        return head.v_information / head.entropy if head.entropy > 0 else 0.0


def judge(probed: Probed, untrained: Baseline | None, source: Baseline | None, *, seed: int = 0) -> Finding:
    """Hold one concept at one site against its controls.

    Args:
        probed: the probes of the network as it is.
        untrained: of the network before training, at the same site.
        source: of the module's input, at the same steps.
        seed: of the bootstrap.
    """
    head, wide = probed.headline, Interval(-np.inf, np.inf)
    score, bits, over, p = wide, wide, wide, 1.0
    if head.tally is not None:
        sequences = len(head.tally.samples)
        weights = draws(sequences, seed)
        own = head.tally.scores(weights)
        score = interval(own, head.tally.counts)
        bits = interval(head.tally.information(weights), np.array([float(sequences)]))
        p = p_value(head.tally)
        if untrained is not None and untrained.tally is not None:
            theirs = untrained.tally
            paired = theirs.all.shape == head.tally.all.shape and np.allclose(theirs.all, head.tally.all)
            again = weights if paired else draws(len(theirs.samples), seed + 1)
            over = interval(own - theirs.scores(again), head.tally.counts)
    shuffled = float(probed.shuffled.mean()) if len(probed.shuffled) else NONE
    return Finding(
        probed,
        untrained,
        source,
        score,
        bits,
        over_untrained=head.score - untrained.score if untrained is not None else NONE,
        over_untrained_interval=over,
        over_shuffled=head.score - shuffled,
        over_input=head.score - source.score if source is not None else NONE,
        p_value=p,
    )


def correct(findings: Sequence[Finding]) -> list[Finding]:
    """Fill in the false discovery rate over everything that was asked at one look."""
    if not findings:
        return []
    q = stats.false_discovery_control([finding.p_value for finding in findings])
    return [replace(finding, q_value=float(value)) for finding, value in zip(findings, q, strict=True)]


@final
@dataclass(eq=False)
class Course:
    """One concept at one site over the looks so far; NaN where a control does not exist."""

    epochs: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)  # one for each look, in the order of `COURSE`

    def add(self, epoch: int, finding: Finding) -> None:
        """One more look; an epoch that is looked at again takes its own place."""
        if self.epochs and self.epochs[-1] == epoch:
            del self.epochs[-1], self.rows[-1]
        head, shuffled = finding.probed.headline, finding.probed.shuffled
        untrained, source = finding.untrained, finding.input
        self.epochs.append(epoch)
        self.rows.append(
            [
                head.score,
                finding.score.low,
                finding.score.high,
                head.v_information,
                finding.bits.low,
                finding.bits.high,
                NONE if untrained is None else untrained.score,
                NONE if untrained is None else untrained.bits,
                *(np.quantile(shuffled, [0.025, 0.975]).tolist() if len(shuffled) else [NONE, NONE]),
                NONE if source is None else source.score,
                finding.probed.control_headline,
            ]
        )

    def __getitem__(self, quantity: str) -> NDArray[np.float64]:
        """One quantity of `COURSE` at every look, ``(E,)``."""
        return np.array(self.rows, dtype=np.float64).reshape(-1, len(COURSE))[:, COURSE.index(quantity)]


def best_site(findings: Mapping[str, Finding]) -> str:
    """The site with the most V-information, of the concept at hand."""
    return max(findings, key=lambda site: np.nan_to_num(findings[site].probed.headline.v_information, nan=-np.inf))


def arrays(finding: Finding) -> dict[str, NDArray[Any]]:
    """What is kept of a finding: only what exists, and 0 at columns where it does not."""
    probed, head = finding.probed, finding.probed.headline
    kept: dict[str, Any] = {
        name: probed.column(name)
        for name in ("score", "accuracy", "macro_f1", "auc", "calibration_error", "v_information", "fitted", "tested")
    }
    kept |= {"control": probed.control, "shuffled": probed.shuffled}
    kept |= {f"headline/{name}": getattr(head, name) for name in (*_READ, "confusion")}
    kept |= {"headline/score_interval": [finding.score.low, finding.score.high]}
    kept |= {"headline/v_information_interval": [finding.bits.low, finding.bits.high]}
    kept |= {"headline/p_value": finding.p_value, "headline/q_value": finding.q_value}
    if finding.untrained is not None:
        kept |= {"untrained/score": finding.untrained.columns, "untrained/v_information": finding.untrained.bits}
    if finding.input is not None:
        kept |= {"input/score": finding.input.columns, "input/v_information": finding.input.bits}
    if finding.information is not None:
        kept |= {"units/bits": finding.information.bits, "units/noise": finding.information.noise}
    if len(probed.concept.classes):
        kept["classes"] = probed.concept.classes  # the rows and columns of the confusion matrix
    found = {name: np.asarray(value) for name, value in kept.items()}
    there = {name: v for name, v in found.items() if v.dtype.kind != "f" or not v.size or np.isfinite(v).any()}
    return {name: _finite(value) for name, value in there.items()}


_READ = (
    "fitted",
    "tested",
    "score",
    "accuracy",
    "macro_f1",
    "auc",
    "calibration_error",
    "v_information",
    "entropy",
)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if values.dtype.kind == "f" else values
