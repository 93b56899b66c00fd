"""A STAC Item from a URL, a file or standard input: read, checked, and its hrefs made absolute.

Imports no raster library. Reading from an object store is handed in as `read_text`, because
storage is a sibling.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pystac
import requests

from geosam_stac.errors import DataError, GeosamStacError, TemporaryError, UsageError
from geosam_stac.hrefs import is_local, to_local_path, unsigned
from geosam_stac.retry import Retries
from geosam_stac.sources.checks import check_document
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import http_session, not_now

ReadText = Callable[[str], str]

# What pystac raises of documents that pass our checks and are none all the same.
_UNREADABLE = (pystac.STACError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def read_item(
    source: str,
    *,
    read_text: ReadText | None = None,
    retries: Retries | None = None,
    hosts: Hosts | None = None,
) -> pystac.Item:
    """Read one Item from a URL, a file, or `-` for standard input.

    Parameters
    ----------
    source
        http(s) URL, local path, `-`, or an object-store URL (then `read_text` reads it).
    read_text
        href -> text, for schemes other than http(s) and local files.
    retries
        How an http(s) request is tried again.
    hosts
        Which hosts a redirect may lead to; default: public ones, and the source's own.

    Raises
    ------
    DataError
        Not found, not JSON, or not a STAC Item: says what it is instead, with the JSON path.
    TemporaryError
        The server did not answer, or answered with an error that may pass.
    """
    if source == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise DataError("standard input is not UTF-8 text") from error
        item = parse_item(_json(text, "standard input"), href=None)
        if hosts is not None:
            hosts.own(item)
        return item
    if source.lower().startswith(("http://", "https://")):
        text = _read_http(source, retries or Retries(), hosts or Hosts(source))
    elif is_local(source):
        text, source = _read_file(source)
    elif read_text is not None:
        text = read_text(source)
    else:
        raise UsageError("no reader for this kind of href", href=unsigned(source))
    return parse_item(_json(text, unsigned(source)), href=source)


def parse_item(document: Any, *, href: str | None) -> pystac.Item:
    """Check a JSON document and make it an Item whose self link is `href`.

    Raises DataError that names the JSON path at fault.
    """
    where = unsigned(href) if href else None
    check_document(document, where)
    item_id = document["id"]
    try:
        with warnings.catch_warnings():
            # pystac warns about extensions that it cannot migrate; none of them is ours to mend.
            warnings.simplefilter("ignore")
            item = pystac.Item.from_dict(document, href=href)
    except _UNREADABLE as error:
        raise DataError(
            f"not a STAC Item: $ cannot be read: {type(error).__name__}: {error}",
            item=str(item_id),
            href=where,
            hint="Check it with a STAC validator",
        ) from error
    return item


def self_href(item: pystac.Item) -> str:
    """The Item's unsigned self link, or its id where it has none."""
    href = item.get_self_href()
    return unsigned(href) if href else item.id


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))  # some editors put a byte order mark first
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        start = text.lstrip()[:1]
        raise DataError(
            "not a STAC Item: this is not JSON"
            + (" but HTML or XML" if start == "<" else "" if start else " but empty"),
            href=where,
            got=str(error) if start and start != "<" else None,
            hint="Give the Item's JSON",
        ) from error


def _read_file(source: str) -> tuple[str, str]:
    path = Path(to_local_path(source)).resolve()
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except FileNotFoundError as error:
        raise DataError("no such file", href=str(path), hint="Check the path") from error
    except IsADirectoryError as error:
        raise DataError(
            "this is a folder, not a STAC Item", href=str(path), hint="Name the Item's JSON file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "not a STAC Item: this is no text", href=str(path), hint="Give the Item's JSON file"
        ) from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", href=str(path)) from error


def _read_http(url: str, retries: Retries, hosts: Hosts) -> str:
    href = unsigned(url)
    with http_session(hosts, retries, "item", is_document=True) as session:
        try:
            response = session.get(
                url,
                timeout=retries.policy.http_timeout_s,
                headers={"Accept": "application/geo+json, application/json"},
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise DataError("not a valid URL", href=href) from error
        except requests.RequestException as error:
            raise TemporaryError(
                f"the server did not answer ({type(error).__name__})",
                href=href,
                hint="Try again; check the host name and the network",
            ) from error
    return _checked_text(response, href)


def _checked_text(response: requests.Response, href: str) -> str:
    status = f"HTTP {response.status_code}"
    if response.ok:
        response.encoding = "utf-8"
        return response.text
    if response.status_code == 429 or response.status_code >= 500:
        raise not_now(response, href)
    error: GeosamStacError = DataError("the Item cannot be had", href=href, got=status)
    if response.status_code in (401, 403):
        error.hint = "The server asks for credentials or a signature"
    raise error
