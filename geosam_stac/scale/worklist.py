"""The work list: what a fleet encodes, frozen on the output store, named by its own digest.

A search gives other Items tomorrow; shards must all see the same. Items lie there unsigned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pystac

from geosam_stac.errors import DataError
from geosam_stac.hrefs import find_secret
from geosam_stac.sources.itemfiles import item_line
from geosam_stac.storage import Store

FOLDER = "runs"


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """A frozen list: its URL, the sha256 (hex) of its bytes, and how many Items it names."""

    href: str
    sha256: str
    items: int


def freeze(items: Iterable[pystac.Item], store: Store) -> WorkList:
    """Write Items as ndjson to `runs/<digest>.ndjson`, sorted by collection and id.

    The same Items make the same bytes in whatever order they come, and so the same name: freezing
    again changes nothing.

    Raises
    ------
    DataError
        There are no Items, or one of them holds a secret outside its query strings.
    """
    lines = {}
    for item in items:
        line = item_line(item)
        if (name := find_secret(line)) is not None:
            raise DataError(
                f"the Item holds a secret ({name}): it is not written down", item=item.id
            )
        lines[(item.collection_id or "", item.id, line)] = line
    if not lines:
        raise DataError("there are no Items to make a work list of")
    data = ("\n".join(lines[key] for key in sorted(lines)) + "\n").encode()
    digest = hashlib.sha256(data).hexdigest()
    key = f"{FOLDER}/{digest[:16]}.ndjson"
    if not store.exists(key):
        store.put(key, data)
    return WorkList(href=store.href(key), sha256=digest, items=len(lines))
