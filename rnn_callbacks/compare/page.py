"""A comparison as one page of HTML that stands alone: nothing is fetched, and it opens from disk."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import final

from matplotlib.figure import Figure

from ..figures.comparison import draw_small_multiples
from ..figures.comparison_planes import draw_eigenvalues_of_runs, draw_joint_embedding, draw_skeletons, reach_of
from . import page_tables as tables
from .cast import REST, Cast, choose_cast
from .comparison import MOMENTS, Comparison
from .embeddings import JointEmbedding
from .markup import figure, name, paragraphs, swatch, words
from .pictures import X_LABELS, Section, choose_sections, limits
from .planes import Landscapes, Planes, choose_planes
from .svg import inline_svg
from .words import listed

SHAPES = "Filled circle: attractor. Open diamond: saddle. Cross: repeller. Grey: how a point moved between looks."
PATHS = {
    "weights": "Paths of the weights in one common space. Seeds lie apart whatever they have learned, since hidden "
    "units may be permuted: compare the shapes of paths, not the gaps between them.",
    "metrics": "Paths of all runs in the space of the quantities that they share, each with the same weight.",
}


def write_page(
    comparison: Comparison,
    path: str | Path,
    *,
    embeddings: Sequence[JointEmbedding] = (),
    headline: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write a comparison as one page of HTML.

    Args:
        comparison: from `compare`.
        path: of the file; it is replaced.
        embeddings: from `joint_embeddings`.
        headline: the comparison in words, from `headline`; lines that begin with ``- `` become a list.
        title: of the page; by default how many runs are compared.
    """
    path = Path(path)
    written = page(comparison, embeddings=embeddings, headline=headline, title=title)
    path.write_text(written, encoding="utf-8", errors="replace")
    return path


def page(
    comparison: Comparison,
    *,
    embeddings: Sequence[JointEmbedding] = (),
    headline: Sequence[str] = (),
    title: str = "",
    made: str | None = None,
) -> str:
    """The page as text, the same one for the same arguments.

    Args:
        comparison: from `compare`.
        embeddings: from `joint_embeddings`.
        headline: the comparison in words.
        title: of the page.
        made: when it was made; by default now.
    """
    count = len(comparison.runs)
    title = title or (f"Comparison of {count} runs" if count > 1 else f"The run {comparison.runs[0].name}")
    made = made or datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    drawing = _Drawing(comparison, choose_cast(comparison))
    sections = drawing.sections(embeddings, headline, title, made)
    content = "\n".join(f'<section aria-labelledby="{key}">{part}</section>' for key, (_, part) in sections.items())
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0].replace("$$", "$")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(
        script_hash=f"sha256-{digest}",
        title=words(title),
        legend=_legend(comparison, drawing.cast),
        contents="".join(f'<li><a href="#{key}">{words(heading)}</a></li>' for key, (heading, _) in sections.items()),
        content=content,
    )


@final
@dataclass
class _Drawing:
    """What the figures of a page have in common."""

    comparison: Comparison
    cast: Cast
    drawn: int = 0  # figures so far
    last_position: int = 0  # of the slider

    def sections(
        self, embeddings: Sequence[JointEmbedding], headline: Sequence[str], title: str, made: str
    ) -> dict[str, tuple[str, str]]:
        """Heading and content of each part of the page."""
        comparison, cast = self.comparison, self.cast
        chosen = choose_sections(comparison, cast)
        planes = choose_planes(comparison, cast, embeddings)
        self.last_position = max(len(planes.places) - 1, 0)
        parts = {
            "short": ("In short", f'<div class="short">{paragraphs(headline)}</div>' if headline else ""),
            "settings": ("Settings that differ", tables.settings(comparison)),
            "runs": ("Runs", tables.runs(comparison, cast)),
            "claims": ("What differs beyond chance", tables.claims(comparison)),
        }
        at = limits(comparison, chosen)
        parts |= {f"section-{found.key}": (found.name, self._multiples(found, at)) for found in chosen}
        parts["likeness"] = ("Likeness of runs", tables.likeness(comparison))
        parts["flags"] = ("Flags", tables.flags(comparison))
        moving = self._landscapes(planes) + self._embeddings(planes)
        if moving:
            parts["moving"] = ("Landscapes and paths", _slider(planes, comparison.axis) + moving)
        folded = "".join(
            f"<details><summary>Values {words(said)}</summary>{tables.numbers(comparison, moment)}</details>"
            for moment, said in MOMENTS.items()
        )
        parts["numbers"] = ("All numbers", folded)
        parts["problems"] = ("What could not be read", tables.problems(comparison))
        headed = {
            key: (heading, f'<h2 id="{key}">{words(heading)}</h2>{part}')
            for key, (heading, part) in parts.items()
            if part
        }
        top = f'<h1 id="top">{name(title)}</h1>{_origin(comparison, made)}'
        first = next(iter(headed))
        headed[first] = (headed[first][0], top + headed[first][1])
        return headed

    def _svg(self, drawn: Figure, label: str) -> str:
        self.drawn += 1
        return inline_svg(drawn, f"f{self.drawn}", label=label, named=self._named, last_position=self.last_position)

    def _named(self, key: str) -> tuple[str, str]:
        kind, number = key.rstrip("0123456789"), key.lstrip("rungopest")
        if kind == "rest":
            return "item rest", f"the other {len(self.cast.rest)} runs"
        runs, groups = self.comparison.runs, self.comparison.groups
        label = runs[int(number)].name if kind == "run" else f"mean of {groups[int(number)].name}"
        return f"item {self.cast.classes(key)}", words_of_hint(label)

    def _multiples(self, section: Section, at: tuple[float, float]) -> str:
        figures = []
        for picture in section.pictures:
            unit = f" [{picture.panel.unit}]" if picture.panel.unit else ""
            drawn = draw_small_multiples(
                [picture.panel], x_label=X_LABELS[self.comparison.axis], x_limits=at, columns=1, titled=False
            )
            figures.append(figure(f"{picture.panel.title}{unit}", self._svg(drawn, picture.words), note=picture.note))
        said = []
        if section.constant:
            said.append(f"The same in all runs at all times: {', '.join(section.constant)}.")
        if section.left_out:
            said.append(f"No room for: {', '.join(section.left_out)}; see the numbers below.")
        return self._keys() + f'<div class="figures">{"".join(figures)}</div>' + paragraphs(said)

    def _keys(self) -> str:
        """Colours of groups, above each section, so that nobody must look for them, also on paper."""
        several = any(len(group.distinct) > 1 for group in self.comparison.groups)
        entries = self.cast.legend(self.comparison)
        items = "".join(f"<li>{swatch((entry.colour, entry.dash))}{name(entry.label, 60)}</li>" for entry in entries)
        lines = "Thick: mean of a group's seeds, as far as all of them reach. Thin: single runs."
        said = self.cast.left_out or (lines if several else "")
        return f'<ul class="keys">{items}</ul><p class="soft">{words(said, 600)}</p>'

    def _landscapes(self, planes: Planes) -> str:
        return "".join(self._landscape(found) for found in planes.landscapes)

    def _landscape(self, found: Landscapes) -> str:
        reach = reach_of(found.eigenvalues)
        rings, maps = [], []
        for panel in found.eigenvalues:
            drawn = draw_eigenvalues_of_runs([panel], reach=reach, columns=1, titled=False)
            label = f"Eigenvalues at the fixed points of {panel.title} around the unit circle"
            rings.append(figure(panel.title, self._svg(drawn, label)))
        for panel in found.skeletons:
            drawn = draw_skeletons([panel], columns=1, titled=False)
            label = f"Fixed points of {panel.title} in the plane of their principal components"
            classes = f"item {self.cast.classes(panel.tracks[0].key)}"
            maps.append(figure(panel.title, self._svg(drawn, label), classes=classes))
        return (
            f"<h3>Stability in {name(found.context)}: eigenvalues at fixed points</h3>"
            f'<p class="soft">Outside the circle: grows. Comparable between unlike networks. '
            f"{words(found.left_out, 600)}</p>"
            f'<div class="figures">{"".join(rings)}</div>'
            f"<h3>Fixed points in {name(found.context)}, each run in its own plane</h3>"
            f'<p class="soft">{SHAPES}</p><div class="figures">{"".join(maps)}</div>'
        )

    def _embeddings(self, planes: Planes) -> str:
        parts = []
        for joint, panels in planes.embeddings:
            shown = sorted(set(joint.runs.tolist()) & set(self.cast.run_styles))
            who = ", ".join(self.comparison.runs[run].name for run in shown[:12])
            more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
            drawn = [
                figure(panel.title, self._svg(draw_joint_embedding(panel, titled=False), f"{panel.title} of {who}"))
                for panel in panels
            ]
            missing = f"No PHATE: {joint.why_not}. " if joint.why_not else ""
            out = self._left_out(joint)
            parts.append(
                f"<h3>Paths of the {joint.kind}: {words(who, 300)}{more}</h3>"
                f'<p class="soft">{PATHS[joint.kind]} Ring: the beginning. Dot: the chosen moment. {words(missing)}'
                f"{words(f'Not in it: {out}.' if out else '', 500)}</p>"
                f'<div class="figures large">{"".join(drawn)}</div>'
            )
        return "".join(parts)

    def _left_out(self, joint: JointEmbedding) -> str:
        """Runs by the reason why they are not in a space."""
        runs, reasons = self.comparison.runs, joint.left_out
        said = (
            f"{listed(runs[run].name for run in reasons if reasons[run] == why)} ({why})"
            for why in dict.fromkeys(reasons.values())
        )
        return "; ".join(said)


def words_of_hint(label: str) -> str:
    """A name for a hint over a line; the writer of the picture escapes it."""
    return html.unescape(words(label, 60))


def _origin(comparison: Comparison, made: str) -> str:
    folders = [run.folder for run in comparison.runs]
    listed = "".join(f"<li>{name(folder, 300)}</li>" for folder in folders)
    return (
        f'<p class="soft">Made {words(made)} by rnn-callbacks, from the logs of {len(folders)} '
        f"run{'s' if len(folders) > 1 else ''}, side by side by {words(comparison.axis)}.</p>"
        f"<details><summary>Folders</summary><ul>{listed}</ul></details>"
    )


def _legend(comparison: Comparison, cast: Cast) -> str:
    def entry(key: str, label: str, mark: str, small: str = "", inside: str = "") -> str:
        box = f'<input type="checkbox" class="only-js" checked data-key="{key}">'
        more = f"<small>{words(small)}</small>" if small else ""
        return f"<li><label>{box}{mark}<span>{name(label, 80)} {more}</span></label>{inside}</li>"

    items = []
    for group in cast.groups:
        found = comparison.groups[group]
        if len(found.runs) == 1:
            run = comparison.runs[found.runs[0]].name
            items.append(
                entry(f"group{group}", found.name, swatch(cast.group_styles[group]), run * (run != found.name))
            )
            continue
        inner = [entry(f"run{run}", comparison.runs[run].name, swatch(cast.run_styles[run])) for run in found.runs]
        inside = f"<ul>{''.join(inner)}</ul>" if cast.singly else ""
        items.append(
            entry(f"group{group}", found.name, swatch(cast.group_styles[group]), f"{len(found.runs)} runs", inside)
        )
    if cast.rest:
        items.append(entry("rest", f"the other {len(cast.rest)} runs", swatch(REST)))
    return f"<ul>{''.join(items)}</ul>"


def _slider(planes: Planes, axis: str) -> str:
    still = '<p class="no-js soft">Shown: the last look of each run.</p>'
    if len(planes.places) < 2:
        return still
    unit = "step" if axis == "step" else "epoch"
    last = len(planes.places) - 1
    places = "|".join(f"{place:.0f}" for place in planes.places)
    return (
        f'{still}<div class="slider only-js"><label for="position">{unit.capitalize()}</label>'
        f'<input type="range" id="position" min="0" max="{last}" step="1" value="{last}" data-unit="{unit}" '
        f'data-places="{places}" data-labels="{words("|".join(planes.labels), 10_000)}" '
        f'aria-valuetext="{words(planes.labels[-1])}">'
        f'<output id="position-now" for="position">{words(planes.labels[-1])}</output></div>'
    )
