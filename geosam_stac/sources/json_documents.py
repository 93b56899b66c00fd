"""JSON documents of a stream: one, one a line (ndjson), or several that go over many lines.

A line that is broken is an error in its place; the documents around it are read.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from geosam_stac.errors import DataError
from geosam_stac.sources.content import head

_HREF_LINE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+|\S+\.json")


def json_documents(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, document or the error in its stead); `name` is the stream's, for errors.

    A bare href is the document `{"href": ...}`. Raises DataError where nothing can be read.
    """
    lines = _lines(stream, name)
    two = list(itertools.islice(lines, 2))
    if not two:
        return
    rest = itertools.chain(two, lines)
    first = _parsed(two[0][1])
    # ndjson whose first line is broken: the second is an Item all the same. In a document over
    # many lines none of the first two is one.
    broken_first = first is None and len(two) > 1 and isinstance(_parsed(two[1][1]), dict)
    if first is None and not broken_first:
        yield from _long_documents("\n".join(line for _, line in rest), name)
        return
    many = len(two) > 1
    for number, line in rest:
        document = _parsed(line)
        if document is None:
            document = DataError(
                "not a STAC Item: this is not JSON", href=name, got=repr(line[:80])
            )
        yield (f"line {number}" if many else ""), document


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank; UTF-8 with or without BOM, or UTF-16 with one."""
    mark = head(stream, 2)
    # PowerShell's ">" writes UTF-16.
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = io.TextIOWrapper(stream, encoding=encoding)
    try:
        for number, line in enumerate(text, start=1):
            # \x1e: the record separator of GeoJSON text sequences (RFC 8142).
            if line := line.strip(" \t\r\n\x1e"):
                yield number, line
    except UnicodeDecodeError as error:
        raise _not_items(name, f"bytes that are no {error.encoding}") from error
    finally:
        with contextlib.suppress(ValueError):  # the file is closed: nobody reads to its end
            text.detach()  # else the wrapper closes standard input


def _parsed(line: str) -> Any:
    """A line's JSON object or list, `{"href": ...}` of a bare href, else None."""
    try:
        document = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return {"href": line} if _HREF_LINE.fullmatch(line) else None
    return document if isinstance(document, dict | list) else None


def _long_documents(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Documents over many lines, one after the other (as from `cat *.json`)."""
    decoder = json.JSONDecoder()
    position = 0
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            markup = " but HTML or XML" if text.startswith("<") else ""
            raise _not_items(name, f"no JSON{markup}: {error}") from error
        yield "", document
        while position < len(text) and text[position] in " \t\r\n\x1e,":
            position += 1


def _not_items(name: str, got: str) -> DataError:
    return DataError(
        "this is no file of STAC Items",
        href=name,
        expected="a FeatureCollection, Items, ndjson or stac-geoparquet",
        got=got,
    )
