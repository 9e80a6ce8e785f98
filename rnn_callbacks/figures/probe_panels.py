"""The panels of the pictures of probes: courses over epochs, heat maps, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..analysis.probe_findings import Course, Finding
from .style import say

BLUE, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"
MISSING = "0.88"  # colour of a cell without a probe
SITE_COLOURS = ("#E69F00", "#009E73", "#56B4E9", "#8C6D31", "#999933", "#6A3D9A")
MOST_NAMED = 5  # sites with a colour and a name of their own beside the best one
MOST_WRITTEN = 6  # classes, up to which a confusion matrix has its numbers written into it
DOTTED = 16  # looks up to which each is a dot
WORST = -1.0  # R^2 below which lines are cut off
GAP = 0.08  # of a panel's height between two names
Floats = NDArray[np.float64]


def cut(name: str, most: int = 18) -> str:
    """A name with its end left out where it is long."""
    return name if len(name) <= most else name[: most - 3] + "..."


def site_name(site: str, most: int = 18) -> str:
    """A site in few letters; where that is not enough, its end, which tells layers apart."""
    short = site.replace("_reverse", "_rev")
    return short if len(short) <= most else "..." + short[3 - most :]


def number(value: float) -> str:
    """Two digits, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def measure(finding: Finding) -> str:
    """What the score of a concept is."""
    return "balanced accuracy" if len(finding.probed.concept.classes) else "R²"


def reason(finding: Finding) -> str:
    """Why there is nothing to draw."""
    return f"no probe of {site_name(finding.probed.site)}:\n{finding.probed.headline.why_not or 'no finite score'}"


def _line(axes: Axes, epochs: Floats, values: Floats, *, dots: bool = True, **style: Any) -> None:
    """A line, with dots where there are few looks or where a look stands alone and would not be seen."""
    known = np.pad(np.isfinite(values), 1)
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    dotted = np.arange(len(epochs)) if dots and len(epochs) <= DOTTED else alone
    style = {"ms": 3} | style
    axes.plot(epochs, values, marker="o" if len(dotted) else "", markevery=dotted.tolist() or None, **style)


def _level(axes: Axes, epochs: Floats, values: Floats, **style: Any) -> None:
    """A control over the looks; across the panel where there is one look only."""
    if len(epochs) == 1:
        epochs, values = np.array([epochs[0] - 0.5, epochs[0] + 0.5]), np.repeat(values, 2)
    _line(axes, epochs, values, dots=False, **style)


def _band(axes: Axes, epochs: Floats, low: Floats, high: Floats, **style: Any) -> None:
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        edge = 2.0 if known.sum() == 1 else 0.0  # the band of one look is a stroke
        axes.fill_between(epochs, np.where(known, low, np.nan), np.where(known, high, np.nan), lw=edge, **style)


def _epochs(course: Course) -> Floats:
    return np.array(course.epochs, dtype=np.float64)


def _last(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _name_ends(axes: Axes, names: Sequence[tuple[float, str, str]]) -> None:
    """Write words in a colour at the height of a value, beside the panel, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted((name for name in names if np.isfinite(name[0])), key=lambda name: name[0])
    at = np.clip([(value - low) / (high - low) for value, _, _ in ordered], 0.0, 1.0)
    for place in range(1, len(at)):
        at[place] = max(at[place], at[place - 1] + GAP)
    ceiling = max(1.02, GAP * (len(at) - 1))
    for place in range(len(at)):
        at[place] = min(at[place], ceiling - GAP * (len(at) - 1 - place))
    for height, (_, words, colour) in zip(at, ordered, strict=True):
        axes.text(1.03, height, words, color=colour, fontsize=9, va="center", transform=axes.transAxes)


def _set_epochs(axes: Axes, epochs: Floats) -> None:
    margin = 0.5 if len(epochs) == 1 else 0.02 * (epochs[-1] - epochs[0])
    axes.set(xlim=(epochs[0] - margin, epochs[-1] + margin), xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _floor(values: Sequence[Floats]) -> float:
    """The lower limit of an axis of R^2, in steps that keep it the same over most looks."""
    everything = np.concatenate(values)
    lowest = float(np.min(everything, initial=0.0, where=np.isfinite(everything)))
    return max(float(np.floor(lowest * 4) / 4), WORST)


def draw_score(axes: Axes, found: Finding, courses: Mapping[str, Course], best: str) -> None:
    """Score of the best site over epochs, with its interval, against its controls and the other sites."""
    course, chance = courses[best], found.probed.chance
    epochs, score = _epochs(course), course["score"]
    if not np.isfinite(score).any():
        say(axes, reason(found))
        return
    names = [(_last(score), f"{site_name(best, 14)} {number(_last(score))}", BLUE)]
    others = {site: other["score"] for site, other in courses.items() if site != best}
    for site, values in others.items():
        _line(axes, _epochs(courses[site]), values, color="0.78", lw=0.9, ms=2)
    if others:
        names.append((max(np.nan_to_num([_last(v) for v in others.values()], nan=-np.inf)), "other sites", "0.6"))
    low, high = course["shuffled_low"], course["shuffled_high"]
    if not np.isfinite(low).any():
        axes.axhline(chance, color="0.85", lw=1)
        names.append((chance, f"chance {number(chance)}", "0.45"))
    elif len(epochs) == 1:
        axes.axhspan(low[0], high[0], color="0.85", lw=0)
    else:
        _band(axes, epochs, low, high, color="0.85")
    names.append(((_last(low) + _last(high)) / 2, "shuffled", "0.45"))
    names += _draw_controls(axes, course)
    _band(axes, epochs, course["score_low"], course["score_high"], color=BLUE, alpha=0.2)
    bottom = 0.0 if chance else _floor([score, course["untrained"], course["input"]])
    _line(axes, epochs, score, color=BLUE, lw=2, ms=5 if len(epochs) == 1 else 3, clip_on=not chance)
    axes.set(ylim=(bottom, 1.0), ylabel=measure(found))
    _set_epochs(axes, epochs)
    _name_ends(axes, names)
    axes.set_title("how well it is read")


def _draw_controls(axes: Axes, course: Course) -> list[tuple[float, str, str]]:
    """Lines of the controls that there are, and their names."""
    names = []
    for quantity, words, colour, style in (
        ("control", "control task", PINK, {"lw": 1.0}),
        ("input", "input", RED, {"lw": 1.8, "ls": ":"}),
        ("untrained", "untrained", "black", {"lw": 1.4, "ls": "--"}),
    ):
        values = course[quantity]
        if np.isfinite(values).any():
            _level(axes, _epochs(course), values, color=colour, **style)
            names.append((_last(values), f"{words} {number(_last(values))}", colour))
    return names


def draw_bits(axes: Axes, found: Finding, courses: Mapping[str, Course], best: str) -> None:
    """V-information of every site over epochs, between nothing and the entropy of the concept."""
    course, entropy = courses[best], found.probed.headline.entropy
    epochs, bits = _epochs(course), course["bits"]
    if not np.isfinite(bits).any():
        say(axes, reason(found))
        return
    axes.axhline(0, color="0.75", lw=0.8)
    colours = _site_colours({site: _last(other["bits"]) for site, other in courses.items()}, best)
    names = [(_last(bits), site_name(best, 15), BLUE)]
    for site, other in courses.items():
        if site == best:
            continue
        _line(axes, _epochs(other), other["bits"], color=colours.get(site, "0.8"), lw=1.1, ms=2)
        if site in colours:
            names.append((_last(other["bits"]), site_name(site, 15), colours[site]))
    untrained = course["untrained_bits"]
    if np.isfinite(untrained).any():
        _level(axes, epochs, untrained, color="black", lw=1.4, ls="--")
        names.append((_last(untrained), "untrained", "black"))
    _band(axes, epochs, course["bits_low"], course["bits_high"], color=BLUE, alpha=0.2)
    _line(axes, epochs, bits, color=BLUE, lw=2.5, ms=5 if len(epochs) == 1 else 3)
    drawn = np.array([bits, course["bits_high"], untrained])
    highest = np.max(drawn, initial=1.0, where=np.isfinite(drawn))
    if entropy > 0:
        axes.axhline(entropy, color="0.5", lw=1, ls=(0, (6, 3)))
        names.append((entropy, f"all: {entropy:.2f} bits", "0.5"))
        highest = entropy
    axes.set(ylim=(-0.1 * highest, 1.12 * highest), ylabel="bits read (V-information)")
    _set_epochs(axes, epochs)
    _name_ends(axes, names)
    unnamed = len(courses) - 1 - len(colours)
    axes.set_title(f"how much is read, by layer{f' ({unnamed} more in grey)' if unnamed else ''}")


def _site_colours(bits: Mapping[str, float], best: str) -> dict[str, str]:
    """Colours of the sites beside the best one: always the same while there are few, else of those with most bits."""
    if len(bits) <= MOST_NAMED + 1:
        return {site: SITE_COLOURS[place] for place, site in enumerate(bits) if site != best}
    ranked = sorted(set(bits) - {best}, key=lambda site: -np.nan_to_num(bits[site], nan=-np.inf))[:MOST_NAMED]
    return dict(zip([site for site in bits if site in ranked], SITE_COLOURS, strict=False))


def draw_where(
    axes: Axes, findings: Mapping[str, Finding], sites: Sequence[str], best: str, steps: NDArray[np.int64]
) -> None:
    """Score of every site at every probed step, and at the step that its cell reads last."""
    scores = np.stack([findings[site].probed.column("score") for site in sites])
    if not np.isfinite(scores).any():
        say(axes, reason(findings[best]))
        return
    chance, count = findings[best].probed.chance, len(steps)
    axes.set_facecolor(MISSING)  # seen where there is no probe
    left = count - 0.2 + 0.05 * count
    right = left + max(1.0, 0.08 * count)
    for values, ends in ((scores[:, :-1], (-0.5, count - 0.5)), (scores[:, -1:], (left, right))):
        image = axes.imshow(
            np.ma.masked_invalid(values), aspect="auto", origin="lower", vmin=chance, vmax=1, cmap="viridis",
            interpolation="nearest", extent=(*ends, -0.5, len(sites) - 0.5),
        )  # fmt: skip
    axes.axvspan(count - 0.5, left, color="white", lw=0)
    axes.set(xlim=(-0.5, right), ylim=(-0.5, len(sites) - 0.5))
    shown = np.unique(np.linspace(0, count - 1, min(count, 6)).round().astype(int))
    axes.set_xticks([*shown, (left + right) / 2], [*(str(steps[place] + 1) for place in shown), "end"])
    _tick_sites(axes, sites, best)
    if len(sites) * count <= 15:
        bright = (scores - chance) / (1 - chance) > 0.6
        write(axes, scores, bright, across=[*range(count), (left + right) / 2])
    axes.set_xlabel("time step (end: read last)" + ("; grey: no probe" if np.isnan(scores).any() else ""))
    ticks = [chance, (1 + chance) / 2, 1.0]
    colour_bar(axes, image, f"{measure(findings[best])}{', from chance' if chance else ''}", ticks)
    axes.set_title("where and when it is read")


def _tick_sites(axes: Axes, sites: Sequence[str], best: str) -> None:
    axes.tick_params(length=2)
    axes.set_yticks(range(len(sites)), [site_name(site) for site in sites], fontsize=8 if len(sites) > 8 else 9)
    axes.get_yticklabels()[sites.index(best)].set(color=BLUE, fontweight="bold")


def write(axes: Axes, values: Floats, black: NDArray[np.bool_], *, across: Sequence[float]) -> None:
    """Numbers into the cells of a heat map."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if black[row, column] else "white"
            axes.text(across[column], row, number(value), ha="center", va="center", fontsize=8, color=colour)


def colour_bar(axes: Axes, image: Any, words: str, ticks: Sequence[float], *, away: float = 0.1) -> None:
    """A colour bar beside a panel, so many inches away from it."""
    figure, box = axes.figure, axes.get_position()
    across = figure.get_size_inches()[0]  # type: ignore[union-attr]
    beside = figure.add_axes((box.x1 + away / across, box.y0, 0.12 / across, box.height), label="<colorbar>")
    figure.colorbar(image, cax=beside, label=words, ticks=ticks, format="%.2f")


def draw_confusion(axes: Axes, found: Finding) -> None:
    """What share of each true class is taken for what."""
    confusion, classes = found.probed.headline.confusion, found.probed.concept.classes
    if not confusion.any():
        say(axes, reason(found))
        return
    axes.set_facecolor(MISSING)
    seen = confusion.sum(1, keepdims=True)
    share = np.where(seen > 0, confusion / np.maximum(seen, 1), np.nan)
    image = axes.imshow(
        np.ma.masked_invalid(share), aspect="auto", vmin=0, vmax=1, cmap="Blues", interpolation="nearest"
    )
    longest = max(len(str(name)) for name in classes)
    apart = -(-len(classes) * (longest + 1) // 30)
    for axis, every in ((axes.xaxis, apart), (axes.yaxis, -(-len(classes) // 12))):
        shown = np.arange(0, len(classes), every)
        axis.set_ticks(shown, [str(classes[place]) for place in shown])
    axes.tick_params(length=2)
    axes.set(xlabel="class told (share of each true class)", ylabel="true class")
    if len(classes) <= MOST_WRITTEN:
        write(axes, share, share < 0.5, across=range(len(classes)))
    else:
        colour_bar(axes, image, "", [0, 0.5, 1])
    axes.set_title(f"{site_name(found.probed.site)}: what is taken for what")


def draw_sites(axes: Axes, findings: Mapping[str, Finding], sites: Sequence[str], best: str) -> None:
    """Score of every site at this look, with its interval and its controls."""
    score = np.array([findings[site].probed.headline.score for site in sites])
    if not np.isfinite(score).any():
        say(axes, reason(findings[best]))
        return
    rows = np.arange(len(sites))
    drawn = [score]
    axes.axvline(0, color="0.75", lw=0.8)
    for row, site in enumerate(sites):
        if np.isfinite(score[row]):
            low, high = findings[site].score.low, findings[site].score.high
            colour, label = (BLUE, "this network (95 %)") if site == best else ("0.45", None)
            ends = [max(low, WORST - 1), min(high, 1.0)]
            axes.plot(ends, [row, row], color=colour, lw=3, alpha=0.4, solid_capstyle="butt")
            axes.plot(score[row], row, "o", color=colour, ms=6, label=label)
    of_site = [findings[site] for site in sites]
    for words, style, values in (
        ("untrained", {"marker": "o", "color": "black", "mfc": "none", "ms": 8}, [f.untrained for f in of_site]),
        ("input", {"marker": "x", "color": RED, "ms": 6}, [f.input for f in of_site]),
    ):
        there = np.array([np.nan if value is None else value.score for value in values])
        if np.isfinite(there).any():
            axes.plot(there, rows, ls="", label=words, **style)  # type: ignore[arg-type]
            drawn.append(there)
    shuffled = np.array([f.probed.shuffled.mean() if len(f.probed.shuffled) else np.nan for f in of_site])
    if np.isfinite(shuffled).any():
        axes.plot(shuffled, rows, ls="", marker="|", ms=14, mew=2, color="0.6", label="shuffled", zorder=1)
    axes.set(xlim=(min(_floor(drawn), -0.25), 1.05), ylim=(-0.6, 1.4 * len(sites) - 0.4), xlabel="R²")
    _tick_sites(axes, sites, best)
    axes.legend(loc="upper center", ncols=2, handletextpad=0, columnspacing=0.6, fontsize=8, borderpad=0)
    axes.set_title("every site against its controls")
