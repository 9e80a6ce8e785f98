"""Pictures as part of a page: one SVG, small, without identifiers that could meet those of another one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from ..figures.comparison import printable

_KEY = re.compile(r"(?P<key>run\d+|group\d+|rest)(?:-frame-(?P<first>\d+)-(?P<last>\d+))?")
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#(?P<name>[^)]+)\)")
_FONT = re.compile(r"font-family: [^;]*;?")
_NO_TURN = re.compile(r"rotate\(-?0 [^)]*\)")
_COORDINATES = ("d", "x", "y", "width", "height", "transform", "points")
Named = Callable[[str], tuple[str, str]]  # a key such as ``run3`` to classes and a name


def inline_svg(figure: Figure, prefix: str, *, label: str, named: Named, last_position: int = 0) -> str:
    """A figure as an ``<svg>`` element for a page of HTML.

    What belongs to a run carries the run's classes and name; frames carry the slider's positions at which they are
    seen, and are hidden unless they are the last one. Fonts are the reader's, colours and sizes the figure's.

    Args:
        figure: what to draw.
        prefix: unlike that of any other figure of the page.
        label: what the picture shows, for those who do not see it.
        named: classes and name of whom a key speaks.
        last_position: of the slider.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
        for artist in (*axes.lines, *axes.texts):  # findobj would make every tick first: a quarter of the time
            artist.set_visible(True)
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "text.usetex": False}):
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(content.getvalue())  # of our own making
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    _prune(root)
    needed = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        _shorten(element, prefix, needed, named, last_position)
    _unwrap(root)
    width, height = (float(number) for number in root.get("viewBox", "0 0 1 1").split()[2:])
    root.attrib = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": printable(label, 600)}
    root.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _prune(root: ElementTree.Element) -> None:
    """Without descriptions, style sheets (they would hold for the whole page) and white space."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
        for child in parent:
            child.tail = None
        if parent.tag not in ("text", "tspan"):
            parent.text = None


def _references(element: ElementTree.Element) -> list[str]:
    found = [match["name"] for value in element.attrib.values() for match in _REFERENCE.finditer(value)]
    return found + ([element.attrib["href"][1:]] if "href" in element.attrib else [])


def _shorten(element: ElementTree.Element, prefix: str, needed: set[str], named: Named, last_position: int) -> None:
    attributes = element.attrib
    identifier = attributes.pop("id", "")
    if identifier in needed:
        attributes["id"] = f"{prefix}-{identifier}"
    elif matched := _KEY.fullmatch(identifier):
        attributes["class"], name = named(matched["key"])
        attributes["data-key"] = matched["key"]
        if matched["first"] is not None:
            attributes |= {"data-first": matched["first"], "data-last": matched["last"]}
            attributes["class"] += " frame" + (" end" if int(matched["last"]) >= last_position else " off")
        title = ElementTree.Element("title")
        title.text = name
        element.insert(0, title)
    for name, value in list(attributes.items()):
        if name in _COORDINATES:
            value = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
            attributes[name] = _NO_TURN.sub("", " ".join(value.split()))
        elif name == "href":
            attributes[name] = f"#{prefix}-{value[1:]}"
        elif name == "style":
            attributes[name] = _FONT.sub("", value).replace(": ", ":").replace("; ", ";")
        elif name == "clip-path":
            attributes[name] = _REFERENCE.sub(rf"url(#{prefix}-\g<name>)", value)


def _unwrap(parent: ElementTree.Element) -> None:
    """Groups that say nothing are replaced by what they hold."""
    for child in list(parent):
        _unwrap(child)
    children: list[ElementTree.Element] = []
    for child in parent:
        empty = child.tag in ("g", "defs") and not len(child)
        children += [] if empty else list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = children
