"""What each shard came to, on the output store: how the finalizer knows what is done and missing.

A report is written when a shard has been through all of its units, and replaced when it runs again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.scale.shards import Shard
from geosam_stac.scale.work import UnitResult
from geosam_stac.scale.worklist import FOLDER
from geosam_stac.storage import Store


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A unit of a shard. `href` of its Item; `error` in words and `exit_code` where it failed."""

    scene: int
    part: int
    parts: int
    name: str
    item_id: str | None
    href: str | None
    error: str | None
    exit_code: int

    @classmethod
    def of(cls, result: UnitResult) -> Entry:
        """The entry of a result."""
        return cls(
            scene=result.unit.scene,
            part=result.unit.part,
            parts=result.unit.parts,
            name=result.name,
            item_id=result.item_id,
            href=result.href,
            error=None if result.error is None else str(result.error),
            exit_code=0 if result.error is None else result.error.exit_code,
        )

    @property
    def is_open(self) -> bool:
        """Whether it failed in a way that another try may mend."""
        return self.exit_code not in (0, DataError.exit_code)


def exit_code(entries: Sequence[Entry]) -> int:
    """A shard's exit code: 0, 75 where another try may help, else 65.

    Not 3, as for several scenes elsewhere: a Job controller must know whether to try again.
    """
    if any(entry.is_open for entry in entries):
        return TemporaryError.exit_code
    return DataError.exit_code if any(entry.exit_code for entry in entries) else 0


class Reports:
    """The reports of one run. `digest`: of the run, as `work.digest_of`."""

    def __init__(self, store: Store, digest: str, count: int) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{digest[:16]}"
        self._count = count

    def write(self, shard: Shard, entries: Sequence[Entry]) -> None:
        """Write, or replace, a shard's report."""
        document = {
            "shard": shard.index,
            "shards": shard.count,
            "units": [dataclasses.asdict(entry) for entry in entries],
        }
        self._store.put(self._key(shard), json.dumps(document, indent=1).encode())

    def read(self) -> dict[int, list[Entry]]:
        """Shard index -> its entries, of the shards that have reported.

        Raises DataError when a report cannot be read.
        """
        there = set(self._store.keys(self._folder))
        found = {}
        for index in range(self._count):
            key = self._key(Shard(index=index, count=self._count))
            if key in there:
                found[index] = self._parse(key, self._store.get(key))
        return found

    def _parse(self, key: str, data: bytes) -> list[Entry]:
        try:
            document: dict[str, Any] = json.loads(data)
            return [Entry(**unit) for unit in document["units"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "a shard's report cannot be read",
                href=self._store.href(key),
                hint="Delete it, and run the shard again",
            ) from error

    def _key(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}.json"
