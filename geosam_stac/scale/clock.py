"""How long a finalizer waits for shards, and which of their failures have been told before.

The clock lies on the output store under the name of the attempt (on Kubernetes: of the Job), so
that a pod that takes over goes on with it: the wait is that of the run, not of a process.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from geosam_stac.errors import DataError
from geosam_stac.scale.reports import Report, Reports, now

NAME = "finalizer.json"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is kept of an attempt: its start, its first shard's, its end; when the last one ended.

    `told`: what had failed by then was told by the attempt before this one.
    """

    name: str | None
    since: datetime
    began: datetime | None = None
    ended: datetime | None = None
    told: datetime | None = None

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=datetime.isoformat).encode()

    @classmethod
    def parse(cls, data: bytes) -> Attempt | None:
        """What was stored; None where it cannot be read."""
        try:
            document = json.loads(data)
            since = datetime.fromisoformat(document["since"])
            later = {
                key: None if document[key] is None else datetime.fromisoformat(document[key])
                for key in ("began", "ended", "told")
            }
            return cls(name=document["name"], since=since, **later)
        except (ValueError, KeyError, TypeError):
            return None


class Clock:
    """Of one attempt to finalize a run.

    It runs from the attempt's start, and anew from the first shard that begins after that, which
    a queue may have held back: an attempt waits twice `wait_s` at most, whatever the number of
    its processes. Without a name of the attempt it is this process's own.
    """

    def __init__(
        self,
        reports: Reports,
        *,
        attempt: str | None,
        wait_s: float,
        time: Callable[[], datetime] = now,
    ) -> None:
        self._store, self._key = reports.store, f"{reports.folder}/{NAME}"
        self._wait_s = wait_s
        self._time = time
        before = self._read() if attempt is not None else None
        if before is not None and before.name == attempt:
            self._attempt = before
        else:
            told = None if before is None else before.ended or before.since
            self._attempt = Attempt(name=attempt, since=time(), told=told)
            self._save()

    def left_s(self, reports: Iterable[Report]) -> float:
        """Seconds to wait still; 0 or less at the end."""
        attempt = self._attempt
        began = [report.begun for report in reports if report.begun >= attempt.since]
        if attempt.began is None and began:
            self._attempt = attempt = dataclasses.replace(attempt, began=min(began))
            self._save()
        passed = self._time() - (attempt.began or attempt.since)
        return self._wait_s - passed.total_seconds()

    def is_old(self, report: Report) -> bool:
        """Whether a shard has failed before this attempt: it is tried again."""
        told = self._attempt.told
        is_before = told is not None and report.ended is not None and report.ended < told
        return is_before and report.has_failures

    def end(self) -> None:
        """The wait is over: what has failed by now is told by this attempt."""
        self._attempt = dataclasses.replace(self._attempt, ended=self._time())
        self._save()

    def _read(self) -> Attempt | None:
        try:
            return Attempt.parse(self._store.get(self._key))
        except DataError:  # the first attempt
            return None

    def _save(self) -> None:
        if self._attempt.name is not None:
            self._store.put(self._key, self._attempt.to_json())
