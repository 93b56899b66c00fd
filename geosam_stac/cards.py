"""What notebooks show of features, as HTML and as plain text. Everything is escaped.

Pure text: ids and hrefs come from strangers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def megabytes(size_bytes: float) -> str:
    """A size as text."""
    return f"{size_bytes / 1e6:,.1f} MB"


def plain(title: str, facts: Mapping[str, object]) -> str:
    """Title and facts, a line each; control characters of ids are spelled out."""
    lines = [title, *(f"  {name:<12}{value}" for name, value in facts.items())]
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in x) for x in lines)


def card(title: str, facts: Mapping[str, object], *, png: bytes | None = None) -> str:
    """Title, facts as a table, and a picture beside them."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    picture = (
        ""
        if png is None
        else f"<img alt='thumbnail of {escape(title)}' src='{data_uri(png)}' "
        "style='max-width:256px;max-height:256px;margin-right:1em'>"
    )
    return (
        f"<div style='display:flex;align-items:flex-start'>{picture}"
        f"<div><b>{escape(title)}</b><table>{rows}</table></div></div>"
    )
