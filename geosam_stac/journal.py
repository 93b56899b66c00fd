"""Which chips of a scene are done: a small record beside the features, until the Item is written.

An object store cannot append, so each run writes parts of its own, and a part is never changed. A
chip counts as done when its object has the size and the sha256 that were recorded for it. A run
that replaces what is there leaves a mark first, by which others that are under way hear of it.
Imports storage and layout; starts no thread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from geosam_stac import manifest
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.layout import Layout
from geosam_stac.storage import Store

# A run that is killed loses what stands in no part yet: so many chips, or what so many seconds
# took, must be encoded again.
PART_CHIPS = 16
PART_S = 10.0
_MARK = ".overwrite"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A chip whose feature is stored: size in bytes, sha256 (hex), valid fraction 0 to 1."""

    chip_id: str
    bytes: int
    sha256: str
    valid_fraction: float


class Journal:
    """The record of one scene's finished chips. `add` may be called from many threads."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._run = uuid.uuid4().hex
        self._parts = 0
        self._pending: list[Done] = []
        self._last_s = time.monotonic()
        self._lock = threading.Lock()
        self._marks = self._all_marks()

    def mark_overwrite(self) -> str:
        """Tell other runs that what is there is going to be replaced; returns the mark's key."""
        key = f"{self._layout.journal}/{self._run}{_MARK}"
        self._store.put(key, b"")
        self._marks.add(key)
        return key

    def check_overwritten(self) -> None:
        """Raises TemporaryError when another run has begun to replace everything meanwhile."""
        if self._all_marks() - self._marks:
            raise TemporaryError(
                "another run with --overwrite is replacing this output",
                href=self._store.href(self._layout.item),
                hint="Let it end, then run this one again",
            )

    def _all_marks(self) -> set[str]:
        return {key for key in self._store.keys(self._layout.journal) if key.endswith(_MARK)}

    def recorded(self) -> dict[str, Done]:
        """Chip id -> what earlier runs recorded; what cannot be read is left out."""
        found: dict[str, Done] = {}
        for key in self._store.keys(self._layout.journal):
            if key.endswith(_MARK):
                continue
            try:
                text = self._store.get(key).decode("utf-8", "replace")
            except DataError:  # another run has finished the scene in between
                continue
            for done in _parse(text.splitlines()):
                found[done.chip_id] = done
        return found

    def is_there(self, done: Done) -> bool:
        """Whether a chip's object has the recorded size and sha256. Reads the object."""
        key = self._layout.feature(done.chip_id)
        if self._store.size(key) != done.bytes:
            return False
        try:
            return hashlib.sha256(self._store.get(key)).hexdigest() == done.sha256
        except DataError:
            return False

    def add(self, done: Done) -> None:
        """Record a chip whose object is stored."""
        with self._lock:
            self._pending.append(done)
            late = time.monotonic() - self._last_s >= PART_S
            if len(self._pending) >= PART_CHIPS or late:
                self._write()

    def flush(self) -> None:
        """Write what is not written yet; nothing where another run is replacing everything."""
        with self._lock:
            if self._pending and not self._all_marks() - self._marks:
                self._write()

    def drop(self) -> None:
        """Delete the record: the Item stands for it. A mark that came meanwhile stays."""
        self._drop(self._marks)

    def drop_records(self) -> None:
        """Delete what an ended run has left, and no mark: its run may be about to begin."""
        self._drop(set())

    def _drop(self, marks: set[str]) -> None:
        there = self._store.keys(self._layout.journal)
        stay = {key for key in there if key.endswith(_MARK)} - marks
        # Of a run that was killed right here the empty folder may be left.
        if not stay and (there or self._store.is_local):
            self._store.delete_tree(self._layout.journal)
        for key in there if stay else ():
            if key not in stay:
                self._store.delete(key)

    def _write(self) -> None:
        lines = [json.dumps(dataclasses.asdict(done)) for done in self._pending]
        key = f"{self._layout.journal}/{self._run}-{self._parts:06d}.ndjson"
        self._store.put(key, ("\n".join(lines) + "\n").encode())
        self._parts += 1
        self._pending.clear()
        self._last_s = time.monotonic()


def _parse(lines: Iterable[str]) -> Iterable[Done]:
    for line in lines:
        try:
            done = Done(**json.loads(line))
            if done.bytes < 0 or not 0 <= done.valid_fraction <= 1:
                continue
        except (ValueError, TypeError):
            continue
        yield done


def recorded_chips(store: Store, layout: Layout) -> dict[str, Done]:
    """Chip id -> what the manifest of a finished scene records; none where it cannot be read."""
    try:
        frame = manifest.read(store.get(layout.manifest))
    except DataError:
        return {}
    columns = ("chip_id", "bytes", "sha256", "valid_fraction")
    rows = zip(*(frame[column].tolist() for column in columns), strict=True)
    return {row[0]: Done(**dict(zip(columns, row, strict=True))) for row in rows}


def missing_chips(store: Store, layout: Layout, recorded: Iterable[str]) -> list[str]:
    """Ids of the recorded chips whose objects are not there, by one listing; reads no object."""
    there = set(store.keys(layout.features))
    return [chip_id for chip_id in recorded if layout.feature(chip_id) not in there]
