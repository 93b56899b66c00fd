"""What each shard came to, on the output store: how the finalizer knows what is done and missing.

A shard's report says that it has begun, and later what its units came to; when the shard runs
again, the new report takes the old one's place at once, so that nothing stale is believed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from geosam_stac.errors import DataError, GeosamStacError, TemporaryError, UsageError
from geosam_stac.scale.shards import Shard
from geosam_stac.scale.work import UnitResult
from geosam_stac.scale.worklist import FOLDER
from geosam_stac.storage import Store

# A scene that failed so is as broken the next time: a band that it has not, an asset that is gone.
FOR_GOOD = (UsageError.exit_code, DataError.exit_code)


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
        return self.exit_code not in (0, *FOR_GOOD)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A shard's: when it began, and when it had been through `entries`, its units (None: not yet).

    `fatal` is what ended it before that and would end every other shard alike.
    """

    begun: datetime
    ended: datetime | None = None
    entries: tuple[Entry, ...] = ()
    fatal: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether another try would change nothing."""
        has_units = self.ended is not None and self.fatal is None
        return has_units and not any(entry.is_open for entry in self.entries)

    @property
    def has_failures(self) -> bool:
        """Whether some unit has failed, or the shard as a whole."""
        return self.fatal is not None or any(entry.exit_code for entry in self.entries)


def exit_code(entries: Sequence[Entry]) -> int:
    """A shard's exit code, which tells a Job controller whether to start it again.

    0: nothing is left that another try may mend. Units that are broken for good may be among
    them: they stand in the report, and the finalizer says them, writes them to `failed.ndjson`
    and exits with 3. An index that failed for a broken scene would count against
    `maxFailedIndexes`, and a few broken scenes would end the whole Job.
    65: every unit is broken for good: more likely the data, or the access to it, as a whole.
    75: another try may help, with some unit at least.
    """
    if any(entry.is_open for entry in entries):
        return TemporaryError.exit_code
    failed = sum(entry.exit_code != 0 for entry in entries)
    return DataError.exit_code if failed and failed == len(entries) else 0


class Reports:
    """The reports of one run. `digest`: of the run, as `work.digest_of`."""

    def __init__(self, store: Store, digest: str, count: int) -> None:
        self.store = store
        self.folder = f"{FOLDER}/{digest[:16]}"
        self._count = count

    def begin(self, shard: Shard) -> Report:
        """Say that a shard begins: what it reported before is no longer true."""
        report = Report(begun=now())
        self._put(shard, report)
        return report

    def end(self, shard: Shard, begun: Report, entries: Sequence[Entry]) -> None:
        """Say what the units of a shard came to."""
        self._put(shard, dataclasses.replace(begun, ended=now(), entries=tuple(entries)))

    def fail(self, shard: Shard, begun: Report, error: GeosamStacError) -> None:
        """Say what ended a shard, and would end every other one."""
        self._put(shard, dataclasses.replace(begun, ended=now(), fatal=str(error)))

    def read(self, known: Mapping[int, Report] | None = None) -> dict[int, Report]:
        """Shard index -> its report, of the shards that have begun.

        Of `known` ones those that are settled are not read again.

        Raises DataError when a report cannot be read.
        """
        there = set(self.store.keys(self.folder))
        found = {}
        for index in range(self._count):
            key = self._key(Shard(index=index, count=self._count))
            if key not in there:
                continue
            before = (known or {}).get(index)
            found[index] = before if before and before.is_settled else self._read(key)
        return found

    def _put(self, shard: Shard, report: Report) -> None:
        document = {
            "shard": shard.index,
            "shards": shard.count,
            "begun": report.begun.isoformat(),
            "ended": None if report.ended is None else report.ended.isoformat(),
            "fatal": report.fatal,
            "units": [dataclasses.asdict(entry) for entry in report.entries],
        }
        self.store.put(self._key(shard), json.dumps(document, indent=1).encode())

    def _read(self, key: str) -> Report:
        try:
            document: dict[str, Any] = json.loads(self.store.get(key))
            ended = document["ended"]
            return Report(
                begun=datetime.fromisoformat(document["begun"]),
                ended=None if ended is None else datetime.fromisoformat(ended),
                fatal=document["fatal"],
                entries=tuple(Entry(**unit) for unit in document["units"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "a shard's report cannot be read",
                href=self.store.href(key),
                hint="Delete it, and run the shard again",
            ) from error

    def _key(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}.json"


def now() -> datetime:
    """The clock of the run: UTC, as each machine has it."""
    return datetime.now(UTC)
