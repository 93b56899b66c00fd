"""Documents of STAC by href: local, object store or http, as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

from geosam_stac import hrefs
from geosam_stac.catalog.members import Document, absolute, canonical, is_feature_item, link
from geosam_stac.errors import DataError
from geosam_stac.retry import Retries
from geosam_stac.sources.content import read_source
from geosam_stac.storage import read_bytes


def read_file(href: str, *, retries: Retries | None = None) -> bytes:
    """Content of a local file, http(s) or object-store URL.

    Raises DataError when it is not there, TemporaryError or StorageError when it cannot be had.
    """
    if href.lower().startswith(("http://", "https://")):
        return read_source(href, read_bytes=read_bytes, retries=retries)
    return read_bytes(href, retries=retries)


def read_document(href: str, *, retries: Retries | None = None) -> Document:
    """A JSON document.

    Raises
    ------
    DataError
        It is not there, or no JSON object.
    TemporaryError, StorageError
        It cannot be had now, or from here.
    """
    data = read_file(href, retries=retries)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError("this is not JSON", href=hrefs.unsigned(href), got=str(error)) from error
    if not isinstance(document, dict):
        raise DataError("this is no STAC document", href=hrefs.unsigned(href))
    return document


def read_feature_item(href: str, *, retries: Retries | None = None) -> tuple[Document, str]:
    """A feature Item and where it lies; of a catalog's member, the Item that it is a copy of.

    The href is made absolute. DataError where there is none, or it is another kind of document.
    """
    place = absolute_href(href)
    document = read_document(place, retries=retries)
    if is_feature_item(document) and link(document, "emb:model") is not None:
        original = canonical(absolute(document, place))
        if original != place:
            return read_document(original, retries=retries), original
    return document, place


def absolute_href(href: str) -> str:
    """A local path as an absolute one; a URL as it is."""
    if not hrefs.is_local(href):
        return href
    # Not resolve(): the name that the user gave, symbolic links included.
    return str(Path.cwd() / hrefs.to_local_path(href).expanduser())
