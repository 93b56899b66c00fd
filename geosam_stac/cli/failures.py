"""`failed.ndjson` of an output: the scenes that failed, kept by all runs that write there.

Runs at once must not lose each other's lines, so each merges its own into what lies there and
replaces the file only at the version that it has read. A scene's line goes when the scene is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from geosam_stac.hrefs import unsigned

if TYPE_CHECKING:
    from geosam_stac.cli.inputs import Work

FAILED = "failed.ndjson"
# Each try is one read and one write: so many runs may end in the same moment.
TRIES = 32

# (collection, id) of an Item, or ("", href) of one that could not be read.
Key = tuple[str | None, str]


class Failures:
    """The failures of an output, in its `failed.ndjson`."""

    def __init__(self, out: str) -> None:
        from geosam_stac.versioned import VersionedStore

        self._store = VersionedStore(out)

    @property
    def href(self) -> str:
        """Where the file lies."""
        return self._store.href(FAILED)

    def settle(self, tried: Iterable[Key], lines: Sequence[str]) -> None:
        """Replace what is known of the scenes that were tried by the lines of those that failed.

        `tried` are the `scene_keys` of all that were tried, whatever came of them. Lines of other
        scenes stay as they are; a file without lines is deleted.

        Raises
        ------
        StorageError, TemporaryError
            The output cannot be read or written.
        GeosamStacError
            Others write there all the time.
        """
        from geosam_stac.versioned import settle

        own = [line.encode("utf-8", "backslashreplace") for line in lines]
        gone = set(tried)
        for _ in settle(TRIES, self.href):
            version = self._store.version(FAILED)
            there = (None if version is None else self._store.read(FAILED)) or b""
            kept = [line for line in there.splitlines() if line.strip()]
            merged = [line for line in kept if self._key(line) not in gone] + own
            if merged == kept and bool(version) == bool(merged):
                return
            if not merged:
                if self._store.delete_at(FAILED, version):
                    return
            elif self._store.put_if(FAILED, b"\n".join(merged) + b"\n", version):
                return

    def _key(self, line: bytes) -> Key:
        """Of what a line tells; of one that cannot be read, the file's own."""
        try:
            return _line_key(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            return ("", self.href)


def _line_key(line: str | bytes) -> Key:
    document = json.loads(line)
    if "id" in document:
        collection = document.get("collection")
        return (collection if isinstance(collection, str) else None, str(document["id"]))
    return ("", str(document["href"]))


def scene_keys(work: Work) -> set[Key]:
    """By which names a scene's lines may stand in the file."""
    keys: set[Key] = {("", work.href)} if work.href else set()
    if work.line is not None:
        return keys | {_line_key(work.line)}
    if work.source is None:
        return keys | ({("", work.error.item)} if work.error and work.error.item else set())
    from geosam_stac.sources.groups import Group

    for item in work.source.items if isinstance(work.source, Group) else (work.source,):
        keys.add((item.collection_id, item.id))
        keys |= {("", unsigned(name)) for name in (item.get_self_href(), item.id) if name}
    return keys
