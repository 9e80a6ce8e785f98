"""What probes read: how well and since when, where in network and sequence, which classes, and in which units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..analysis.probe_findings import Course, Finding
from .probe_panels import (
    Floats,
    colour_bar,
    cut,
    draw_bits,
    draw_confusion,
    draw_score,
    draw_sites,
    draw_where,
    number,
    site_name,
)
from .style import house_style, say

WIDTH, HEIGHT = 8.8, 6.6  # inches
MOST_SITES = 4  # in one picture of units; of more sites the first ones are shown
MOST_UNITS = 24  # whose numbers are written below them
LOW = 0.2  # share of a concept below which no unit stands for it
LEAST = 0.02  # share that a unit must tell to be marked
SIGNIFICANT = 0.05  # of the false discovery rate, where that is known, else of the p-value


def draw_probes(
    concept: str,
    findings: Mapping[str, Finding],
    courses: Mapping[str, Course],
    *,
    steps: NDArray[np.int64],
    best: str,
    title: str = "",
) -> Figure:
    """How well one concept is read and how many bits that is, over epochs; where it is read; what it is taken for.

    Args:
        concept: name for the title.
        findings: by site, of the last look.
        courses: by site, over all looks.
        steps: the probed time steps ``(S,)``, from 0.
        best: the site that is shown with its controls and classes.
        title: which module and when this was, for example ``rnn, epoch 3``.

    Raises:
        ValueError: when the best site has no finding or no course, or there are other steps than readings.
    """
    if best not in findings or best not in courses:
        raise ValueError(f"{best} needs a finding and a course, got those of {list(findings)} and {list(courses)}")
    columns = {len(finding.probed.readings) for finding in findings.values()}
    if columns != {len(steps) + 1}:
        raise ValueError(f"{len(steps)} steps and the end need {len(steps) + 1} readings, got {sorted(columns)}")
    sites = sorted(findings, key=_layer)
    found, of_classes = findings[best], len(findings[best].probed.concept.classes) > 0
    names = _room(site_name(site) for site in sites)
    # Inches: the names of lines stand at the right of both upper panels, those of sites at the left of a lower one.
    left, tall = max(names, 0.65), 2.15
    wide = (WIDTH - left - 3.2) / 2
    middle = left + wide + 1.4 + 0.65
    with house_style():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        _head(figure, concept, title, _verdict(found))
        draw_score(_place(figure, left, 3.55, wide, tall), found, courses, best)
        ordered = {site: courses[site] for site in sites if site in courses}
        draw_bits(_place(figure, middle, 3.55, wide, tall), found, ordered, best)
        draw_where(_place(figure, left, 0.55, wide + 0.5, tall), findings, sites, best, steps)
        if of_classes:
            draw_confusion(_place(figure, middle, 0.55, WIDTH - 0.8 - middle, tall), found)
        else:
            begin = middle + max(names - 0.65, 0)
            draw_sites(_place(figure, begin, 0.55, WIDTH - 0.25 - begin, tall), findings, sites, best)
    return figure


def _layer(site: str) -> int:
    found = re.match(r"l(\d+)", site)
    return int(found[1]) if found else -1


def _room(names: Iterable[str]) -> float:
    """Inches that tick labels take."""
    return 0.22 + 0.075 * max((len(name) for name in names), default=0)


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches: measuring labels to find one takes longer than drawing."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _head(figure: Figure, name: str, title: str, words: str) -> None:
    height = figure.get_figheight()
    heading = f"{cut(name, max(20, 86 - len(title)))}: {title}" if title else cut(name, 86)
    figure.suptitle(heading, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    figure.text(
        0.01, 1 - 0.36 / height, words, ha="left", va="top", color="0.25", fontsize=10 if len(words) < 100 else 8
    )


def _verdict(finding: Finding) -> str:
    """The panels in one sentence."""
    probed, head = finding.probed, finding.probed.headline
    site, where = (
        site_name(probed.site),
        "all steps together" if probed.concept.of_steps else "at the end of the sequence",
    )
    if head.why_not:
        return f"no probe of {site}, {where}: {head.why_not}"
    controls = {"untrained": finding.untrained, "input": finding.input}
    known = [
        f"{name}{'' if value.whole else '*'} {number(value.score)}"
        for name, value in controls.items()
        if value and np.isfinite(value.score)
    ]
    chance = [f"chance {number(probed.chance)}"] if len(probed.concept.classes) else []
    beside = f" ({', '.join(known + chance)})" if known or chance else ""
    score = f"{'' if chance else 'R² '}{number(head.score)}"
    return f"{_judgement(finding)}: {score} from {site}, {where}{beside}"


def _judgement(finding: Finding) -> str:
    p = finding.q_value if np.isfinite(finding.q_value) else finding.p_value
    over_untrained = finding.over_untrained_interval.low
    if not p < SIGNIFICANT:
        return "not readable"
    if finding.untrained is None or not np.isfinite(over_untrained):
        return "readable"
    if over_untrained <= 0:
        return "readable, but no better than untrained"
    return "readable, but no better than the input" if finding.over_input <= 0 else "better than untrained"


def draw_units(module: str, findings: Mapping[tuple[str, str], Finding], *, title: str = "") -> Figure:
    """Which units tell which concept: share of its entropy for every concept and unit, units of one concept together.

    Args:
        module: name for the title.
        findings: by site and concept; those without information about units are left out.
        title: when this was, for example ``epoch 3``.
    """
    told: dict[str, dict[str, Floats]] = {}
    for (site, concept), finding in findings.items():
        if finding.information is not None:
            told.setdefault(site, {})[concept] = finding.information.share
    shown = sorted(told, key=_layer)[:MOST_SITES]
    heights = [0.2 + 0.28 * len(told[site]) for site in shown]
    left = max(_room(cut(concept, 24) for site in shown for concept in told[site]), 0.65)
    left_out = f" (first {MOST_SITES} of {len(told)} sites)" if len(told) > MOST_SITES else ""
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.5 + sum(heights) + 0.95 * len(shown) if shown else 2.0))
        words = f"colour: share of the concept that one unit tells by itself; ring: the unit that tells most{left_out}"
        _head(figure, module, title, words if shown else "")
        if not shown:
            say(figure.add_axes((0, 0, 1, 0.8)), "no concept whose information in single units was measured")
        top = figure.get_figheight() - 0.85
        for site, tall in zip(shown, heights, strict=True):
            axes = _place(figure, left, top - tall, WIDTH - left - 1.95, tall)
            _draw_share(axes, site, told[site], bar=site == shown[0])
            top -= tall + 0.95
    return figure


def _draw_share(axes: Axes, site: str, told: Mapping[str, Floats], *, bar: bool) -> None:
    share = np.stack(list(told.values()))
    order = np.lexsort((-share.max(0), share.argmax(0)))
    image = axes.imshow(share[:, order], aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(told)), [cut(concept, 24) for concept in told], fontsize=9)
    few = len(order) <= MOST_UNITS
    axes.set_xticks(range(len(order)) if few else [], [str(unit) for unit in order] if few else [], fontsize=8)
    axes.tick_params(length=2)
    axes.set_xlabel("units, grouped by the concept that they tell most")
    for row, unit in enumerate(share.argmax(1)):
        ring = "black" if share[row, unit] > 0.6 else "white"
        if share[row, unit] >= LEAST:
            axes.plot(np.flatnonzero(order == unit), row, "o", mfc="none", mec=ring, ms=5, mew=1.2, clip_on=False)
        words = f"unit {unit}: {number(share[row, unit])}"
        axes.text(1.01, row, words, fontsize=9, va="center", transform=axes.get_yaxis_transform())
    if bar:
        colour_bar(axes, image, "", [0, 0.5, 1], away=1.25)
    most = max(float(share.max()), 0.0)
    words = f", none tells more than {most:.0%} of a concept" if most < LOW else ""
    axes.set_title(f"{site_name(site)}: {len(order)} units{words}")
