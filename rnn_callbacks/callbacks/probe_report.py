"""What a look of probes reports: scalars, files, pictures, flags and a table in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..analysis.emergence import emergence
from ..analysis.probe_findings import Course, Finding, arrays, best_site
from ..analysis.probe_flags import WARNED, ConceptStory, encoding, find_flags
from ..figures.probes import draw_probes, draw_units
from ..report import Report
from .guard import Guard
from .untrained import Place


def tag_of(place: Place) -> str:
    """Where the numbers of one concept at one site are logged."""
    module, site, concept = place
    return f"probes/{module}.{site}/{concept}"


@final
class ProbeReport:
    """One look, as it is put together.

    Args:
        guard: says what a person should know, once.
        findings: of all modules, sites and concepts.
        courses: over the looks, this one included; by the same keys.
        steps: probed steps, by module.
        epoch: from 0.
        last: whether this is the run's last epoch.
        required: scores that were asked for, by concept.
        thresholds: of the flags.
    """

    def __init__(
        self,
        guard: Guard,
        findings: Mapping[Place, Finding],
        courses: Mapping[Place, Course],
        *,
        steps: Mapping[str, NDArray[np.int64]],
        epoch: int,
        last: bool,
        required: Mapping[str, float],
        thresholds: Mapping[str, float | None],
    ) -> None:
        self._guard = guard
        self._findings = findings
        self._courses = courses
        self._steps = steps
        self._epoch = epoch
        self._last = last
        self._required = required
        self._thresholds = thresholds
        self._scalars: dict[str, float] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, str] = {}
        self._figures: dict[str, Callable[[], Any]] = {}

    def finished(self) -> Report:
        """Everything in tags."""
        for module, steps in self._steps.items():
            self._arrays[f"probes/{module}/steps"] = steps
        for place, finding in self._findings.items():
            self._describe(place, finding)
        self._say_unread()
        told = [self._tell(name) for name in dict.fromkeys(concept for _, _, concept in self._findings)]
        if told:
            self._texts["probes/summary"] = _TABLE + "".join(row for _, row in sorted(told))
        self._draw()
        return Report(self._scalars, self._arrays, {}, self._texts, self._figures)

    def _describe(self, place: Place, finding: Finding) -> None:
        tag, head = tag_of(place), finding.probed.headline
        self._arrays |= {f"{tag}/{name}": values for name, values in arrays(finding).items()}
        of_classes = len(finding.probed.concept.classes) > 0
        numbers = {
            "v_information": head.v_information,
            "balanced_accuracy" if of_classes else "r2": head.score,
            "accuracy": head.accuracy,
            "gain": finding.gain,
            "over_untrained": finding.over_untrained,
            "over_shuffled": finding.over_shuffled,
            "over_input": finding.over_input,
            "control_task": finding.probed.control_headline,
            "selectivity": head.score - finding.probed.control_headline,
            "unit_information": float(finding.information.bits.max()) if finding.information else np.nan,
            "compression": finding.compression,
            "removal": finding.removal,
            "removal_random": finding.removal_random,
        }
        self._scalars |= {f"{tag}/{name}": float(value) for name, value in numbers.items() if np.isfinite(value)}

    def _say_unread(self) -> None:
        """One warning for a module and a reason, however many layers and concepts there are."""
        unread: dict[tuple[str, str], list[Place]] = {}
        for place, finding in self._findings.items():
            if finding.probed.headline.why_not:
                unread.setdefault((place[0], finding.probed.headline.why_not), []).append(place)
        for (module, reason), places in unread.items():
            concepts = ", ".join(dict.fromkeys(concept for _, _, concept in places))
            sites = ", ".join(dict.fromkeys(site for _, site, _ in places))
            self._guard.say(
                f"unread {module} {concepts} {reason}",
                f"ProbeTracker: {concepts} cannot be probed in {module} ({sites}): {reason}. States with NaN and "
                "samples without a label do not count.",
            )

    def _tell(self, concept: str) -> tuple[float, str]:
        """One concept in the whole model: its scalars, its flags, and a row of the table with its place in it."""
        here = {f"{m}.{site}": f for (m, site, c), f in self._findings.items() if c == concept}
        courses = {f"{m}.{site}": course for (m, site, c), course in self._courses.items() if c == concept}
        site = best_site(here)
        best, came = here[site], emergence(courses[site])
        required = self._required.get(concept)
        story = ConceptStory(site, best, came, self._epoch + 1, self._last, required)
        where = f"probes/concepts/{concept}"
        head = best.probed.headline
        numbers = {
            "v_information": head.v_information,
            "share": best.share,
            "gain": best.gain,
            "emergence_epoch": came.epoch,
            "emergence_gain": came.gain,
        }
        self._scalars |= {f"{where}/{name}": float(value) for name, value in numbers.items() if np.isfinite(value)}
        for flag in find_flags(story, self._thresholds):
            self._scalars[f"{where}/flags/{flag.name}"] = float(flag.raised)
            if flag.raised:
                self._texts[f"{where}/flags/{flag.name}"] = f"**{flag.name}** `{concept}`: {flag.meaning}"
                if flag.name in WARNED or (flag.name == "forgotten" and required is not None):
                    self._guard.say(f"{where} {flag.name}", f"{concept}, flag {flag.name}: {flag.meaning}")
        if head.why_not:
            return np.inf, f"| {concept} | | {head.why_not} | | | | | | |\n"
        of_classes = len(best.probed.concept.classes) > 0
        score = f"{head.score:.2f}" if of_classes else f"R² {head.score:.2f}"
        chance = f"{best.probed.chance:.2f}" if of_classes else "0"
        untrained = "?" if best.untrained is None else f"{best.untrained.score:.2f}"
        untrained += "" if best.untrained is None or best.untrained.whole else "*"
        source = "?" if best.input is None else f"{best.input.score:.2f}"
        bits = f"{max(head.v_information, 0.0):.2f}" + (f" of {head.entropy:.2f}" if of_classes else "")
        before, after = came.looks
        since = (
            "-" if came.epoch < 0 else f"{after:.0f}" if before == after else f"between {before:.0f} and {after:.0f}"
        )
        row = (
            f"| {concept} | {site} | {score} | {chance} | {untrained} | {source} | {bits} | "
            f"{_WORDS[encoding(best)]} | {since} |\n"
        )
        return (came.epoch if came.epoch >= 0 else 1e9), row  # in the order in which they emerged

    def _draw(self) -> None:
        title = f"epoch {self._epoch}"
        for module in self._steps:
            here = {(site, c): f for (m, site, c), f in self._findings.items() if m == module}
            for concept in dict.fromkeys(c for _, c in here):
                of_concept = {site: f for (site, c), f in here.items() if c == concept}
                courses = {site: self._courses[module, site, concept] for site in of_concept}
                self._figures[f"probes/{module}/{concept}"] = partial(
                    draw_probes, concept, of_concept, courses, steps=self._steps[module], best=best_site(of_concept),
                    title=f"{module}, {title}",
                )  # fmt: skip
            self._figures[f"probes/{module}/units"] = partial(draw_units, module, here, title=title)


_WORDS = {
    "linear": "linear probe",
    "nonlinear": "single units only",
    "absent": "neither",
}
_TABLE = (
    "Score: balanced accuracy, or R². *: only the layers were untrained, behind an encoder that may have learned.\n\n"
    "| concept | read best in | score | chance | untrained | input | bits | found by | half of its gain by epoch |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)
