"""Parts of a page of HTML: words, tables, lines of a legend. Every word that comes from a run passes through here."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from ..figures.comparison import printable
from .cast import Style

LONGEST = 120  # characters of a name
DASH_ARRAYS = {"-": "", "--": "7 3", ":": "2 3", "-.": "7 3 2 3"}
NONE = "\u2013"
Cell = str | float | int | bool | None


def words(text: object, longest: int = LONGEST) -> str:
    """Text as it can stand in HTML, also in an attribute; on one line, not endless."""
    return html.escape(printable(text, longest), quote=True)


def name(text: object, longest: int = LONGEST) -> str:
    """A name from a run: its writing direction does not reach beyond it; the whole of a long one as a hint."""
    shown = words(text, longest)
    whole = words(text, 600)
    hint = f' title="{whole}"' if whole != shown else ""
    return f"<bdi{hint}>{shown or NONE}</bdi>"


def cell(value: Cell, tag: str = "td") -> str:
    """One cell; numbers are sorted by all their digits and shown with few."""
    scope = ' scope="row"' if tag == "th" else ""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"<{tag}{scope}>{NONE}</{tag}>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        sort = value if math.isfinite(value) else math.copysign(1e308, value)
        return f'<{tag}{scope} class="number" data-value="{sort!r}">{number(value)}</{tag}>'
    return f"<{tag}{scope}>{name(value, 400)}</{tag}>"


def number(value: float) -> str:
    """Four digits."""
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e7 if math.isfinite(value) else False):
        return str(int(value))
    return f"{value:.4g}"


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, classes: Sequence[str] = (), note: str = ""
) -> str:
    """A table that scrolls by itself; the first column names its rows.

    Args:
        caption: what it holds.
        columns: headings.
        rows: cells, as many as headings.
        classes: of each row.
        note: below the caption.
    """
    head = "".join(f'<th scope="col">{name(column)}</th>' for column in columns)
    body = []
    for place, row in enumerate(rows):
        of_row = f' class="{classes[place]}"' if classes and classes[place] else ""
        body.append(f"<tr{of_row}>{cell(row[0], 'th')}{''.join(cell(value) for value in row[1:])}</tr>")
    small = f"<br><small>{words(note, 400)}</small>" if note else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{words(caption)}"><table class="sortable">'
        f"<caption>{words(caption)}{small}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{chr(10).join(body)}</tbody></table></div>"
    )


def swatch(style: Style) -> str:
    """A piece of line in somebody's colour."""
    colour, dash = style
    dashes = f' stroke-dasharray="{DASH_ARRAYS[dash]}"' if DASH_ARRAYS[dash] else ""
    return (
        '<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path d="M0 5H28" stroke="{colour}" stroke-width="3"{dashes}/></svg>'
    )


def figure(title: str, svg: str, *, note: str = "", classes: str = "") -> str:
    """A picture with its title above."""
    small = f"<br><small>{words(note, 300)}</small>" if note else ""
    of_figure = f' class="{classes}"' if classes else ""
    return f"<figure{of_figure}><figcaption>{name(title)}{small}</figcaption>{svg}</figure>"


def paragraphs(lines: Sequence[str]) -> str:
    """Sentences, those that begin with a dash as a list."""
    parts: list[str] = []
    for line in lines:
        if line.startswith("- "):
            item = f"<li>{words(line[2:], 600)}</li>"
            if parts and parts[-1].endswith("</ul>"):
                parts[-1] = f"{parts[-1].removesuffix('</ul>')}{item}</ul>"
            else:
                parts.append(f"<ul>{item}</ul>")
        else:
            parts.append(f"<p>{words(line, 1200)}</p>")
    return "\n".join(parts)
