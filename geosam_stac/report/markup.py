"""Text as HTML: escaped, in the words and units of the page. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def esc(value: object) -> str:
    """Any text as HTML, in one line; control characters and marks of direction are spelled out."""
    words = " ".join(str(value).split())
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in words))


def size(value: float | None) -> str:
    """Bytes as text."""
    if value is None:
        return "unknown"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Seconds as text."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def counted(many: int, one: str, more: str = "") -> str:
    """`1 chip`, `2 chips`."""
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, which are HTML already; those without a value are left out."""
    rows = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in pairs.items() if value
    )
    return f'<dl class="facts">{rows}</dl>'


def table(
    caption: str,
    head: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    numbers: Iterable[int] = (),
    attributes: str = "",
    body: str = "",
) -> str:
    """A table that scrolls sideways by itself where the page is narrow.

    Cells are HTML already; the first of each row is its header. `numbers`: columns that are set
    flush right. `body`: rows that are HTML already, before `rows`.
    """
    right = {*numbers}

    def marked(index: int) -> str:
        return ' class="number"' if index in right else ""

    names = "".join(
        f'<th scope="col"{marked(index)}>{esc(name)}</th>' for index, name in enumerate(head)
    )
    for row in rows:
        first, *others = row
        cells = "".join(
            f"<td{marked(index)}>{cell}</td>" for index, cell in enumerate(others, start=1)
        )
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>'
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}">'
        f"<table{attributes}><caption>{esc(caption)}</caption><thead><tr>{names}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def notice(kind: str, title: str, words: str) -> str:
    """A box that stands out; `kind` is warning or error, `words` are HTML already."""
    return f'<div class="notice {kind}"><strong>{esc(title)}</strong> {words}</div>'
