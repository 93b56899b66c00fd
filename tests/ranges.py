"""Byte ranges, as the tests' HTTP servers answer them."""

from __future__ import annotations

import re


def asked_range(header: str | None) -> tuple[int, int] | None:
    """First and last byte of a Range header; None where it asks for the whole."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return (int(match[1]), int(match[2] or 1 << 40)) if match else None


def ranged(body: bytes, span: tuple[int, int] | None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of the answer to `asked_range`."""
    headers = {"Accept-Ranges": "bytes"}
    if span is None:
        return 200, headers, body
    if span[0] >= len(body):
        return 416, {}, b""
    last = min(span[1], len(body) - 1)
    headers["Content-Range"] = f"bytes {span[0]}-{last}/{len(body)}"
    return 206, headers, body[span[0] : last + 1]
