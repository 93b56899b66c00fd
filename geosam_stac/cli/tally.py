"""What came of each scene, and what is told of it: for a command that goes through several.

Knows no command: encode, its shards and its Dask runs all use it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from geosam_stac.cli import console
from geosam_stac.cli.failures import Failures, Key, scene_keys
from geosam_stac.cli.guard import failed
from geosam_stac.cli.inputs import FATAL, SEARCH_FIELDS, Inputs, Work, is_file
from geosam_stac.credentials import api_headers
from geosam_stac.errors import EXIT_PARTIAL, GeosamStacError

if TYPE_CHECKING:
    import pystac

    from geosam_stac.catalog import Publisher
    from geosam_stac.session import Session
    from geosam_stac.sources.groups import Group
    from geosam_stac.sources.hosts import Hosts
    from geosam_stac.types import EncodeResult


def publisher_of(session: Session) -> Publisher:
    """What publishes the Items of a run to `--publish`; nothing where it was not given.

    It tries again as the run does, with a count of its own: the scenes' summaries hold theirs.
    """
    from geosam_stac.catalog import Publisher
    from geosam_stac.retry import Retries

    to = session.config.publish
    headers = api_headers(os.environ) if to else None
    retries = Retries(session.retries.policy, sink=session.sink)
    return Publisher(to, headers=headers, sink=session.sink, retries=retries)


def each(
    works: Iterator[Work],
    do: Callable[[pystac.Item | Group], None],
    *,
    inputs: Inputs,
    hosts: Hosts,
    out: str | None,
) -> None:
    """Each scene succeeds or fails alone; of several, those that failed are written to `out`.

    What would fail every other scene as well, an output that is full or a model that does not
    load, ends the run. So does a search that breaks off.
    """
    tally = _Tally(inputs, hosts, out)
    try:
        for work in works:
            tally.tell()
            tally.try_one(work, do)
    except BaseException:
        tally.broken_off()
        raise
    tally.finish()


class _Tally:
    """What came of the scenes: counts, and the lines of `failed.ndjson` (None: nowhere)."""

    def __init__(self, inputs: Inputs, hosts: Hosts, out: str | None) -> None:
        self._inputs = inputs
        self._hosts = hosts
        self._failed = None if out is None else Failures(out)
        self._tried: set[Key] = set()
        self._lines: list[str] = []
        self._count = self._failures = 0
        # Told when the next scene comes, or at the end: a scene that is alone raises its error.
        self._held: GeosamStacError | None = None

    def try_one(self, work: Work, do: Callable[[pystac.Item | Group], None]) -> None:
        """Do one scene; raises only what ends the run."""
        self._count += 1
        try:
            if work.error is not None:
                raise work.error
            assert work.source is not None
            do(work.source)
            self._tried |= scene_keys(work)
        except FATAL:
            raise
        except GeosamStacError as error:
            self._tried |= scene_keys(work)
            self._held = error
            self._failures += 1
            self._lines += work.failed_lines(error, self._hosts)

    def tell(self) -> None:
        """Print the error that was held back."""
        if self._held is not None:
            failed(self._held)
            self._held = None

    def broken_off(self) -> None:
        """Keep what has failed so far; what was not tried stands as it did."""
        self.tell()
        with contextlib.suppress(GeosamStacError):
            self._write()

    def finish(self) -> None:
        """Say what failed; raises SystemExit, or the error of the last of scenes that all did."""
        if self._count == 0:
            console.warn(f"nothing found: {self._inputs.place} has no Items{_asked(self._inputs)}")
        # A scene that is alone tells its own error.
        if self._count > 1 or not self._failures or self._tries_again():
            self._write()
        if self._failures == 0:
            return
        see = "" if self._failed is None else f": see {self._failed.href}"
        if self._failures == self._count and self._held is not None:
            if self._count > 1:
                console.warn(f"all {self._count:,} scenes failed{see}")
            raise self._held
        self.tell()
        console.error(f"{self._failures:,} of {self._count:,} scenes failed{see}")
        raise SystemExit(EXIT_PARTIAL)

    def _tries_again(self) -> bool:
        return self._failed is not None and is_file(self._inputs.items, self._failed.href)

    def _write(self) -> None:
        if self._failed is not None and (self._tried or self._tries_again()):
            self._failed.settle(self._tried, self._lines)


def _asked(inputs: Inputs) -> str:
    """What was asked of a search, in words."""
    if not inputs.is_search:
        return ""
    given = {name: value for name, value in inputs.as_dict().items() if name in SEARCH_FIELDS}
    given.pop("limit", None)
    said = [
        f"--{name} {','.join(value) if isinstance(value, list) else value}"
        for name, value in given.items()
    ]
    # With their values: a Collection's id that is misspelt is found by reading it.
    extent = "and the extent, if one was given"
    return f" for {', '.join(said)} {extent}" if said else " in the extent given"


def result_document(result: EncodeResult) -> dict[str, Any]:
    """A scene's result, for `--json`."""
    return {
        "item": result.href,
        "id": result.item.id,
        "chips_encoded": result.chips_encoded,
        "chips_resumed": result.chips_resumed,
        "chips_skipped": result.chips_skipped,
        "chips_failed": result.chips_failed,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "seconds": dict(result.seconds),
        "busy": {name: round(value, 3) for name, value in result.busy.items()},
        "slowest": result.slowest,
        "retries": dict(result.retries),
    }
