"""`geosam-stac encode`: Items in, features and new Items out."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.guard import failed
from geosam_stac.cli.inputs import (
    FATAL,
    SEARCH_FIELDS,
    Inputs,
    Work,
    is_file,
    takes_inputs,
)
from geosam_stac.cli.options import InForce, flag, takes_config
from geosam_stac.cli.plan_text import chips_text, plan_lines, total_line
from geosam_stac.cli.sessions import opened
from geosam_stac.credentials import api_headers
from geosam_stac.errors import EXIT_PARTIAL, GeosamStacError, UsageError

if TYPE_CHECKING:
    import pystac

    from geosam_stac.catalog import Publisher
    from geosam_stac.planning import Plan
    from geosam_stac.session import Session
    from geosam_stac.sources.groups import Group
    from geosam_stac.sources.hosts import Hosts
    from geosam_stac.types import EncodeResult

FAILED = "failed.ndjson"
EPILOG = (
    "Example: geosam-stac encode --item https://.../items/S2B_... --bands red,green,blue "
    "--bbox 10.0,53.0,10.1,53.1 --out features/\n\n"
    "Or a search: geosam-stac encode --catalog earth-search --collection sentinel-2-c1-l2a "
    "--preset true-color --datetime 2024-07 --bbox 10.0,53.0,10.1,53.1 --out features/\n\n"
    "Each option can also come from the environment (GEOSAM_STAC_STRIDE=512) or from --config; the "
    "command line wins."
)


@takes_config
@takes_inputs
def encode(
    *,
    ctx: typer.Context,
    inputs: Inputs,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Say what it would take; read no pixels.")
    ] = False,
    json_lines: Annotated[bool, flag("--json", help="Results as JSON, one line each.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Encode shard I (from 0 on) of the N that the work is cut into; N alone takes I "
            "from JOB_COMPLETION_INDEX. `finalize` ends the run.",
            envvar="GEOSAM_STAC_SHARD",
            show_envvar=False,
            rich_help_panel="Run",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Encode on the workers of this Dask scheduler, as tcp://host:8786.",
            envvar="GEOSAM_STAC_DASK",
            show_envvar=False,
            rich_help_panel="Run",
        ),
    ] = None,
    in_force: InForce,
) -> None:
    """Encode STAC Items into SAM features, a manifest and a new STAC Item each.

    Prints the href of each new Item on stdout, one a line; progress and errors go to stderr.
    """
    config = in_force.config
    if config.out is None and not dry_run:
        raise UsageError("--out is missing", hint="Give a folder, or an s3:// or gs:// URL")
    given = {"--shard": shard, "--dask": dask, "--dry-run": dry_run}
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise UsageError(f"{' and '.join(several)} contradict each other", hint="Give one of them")
    if dask is not None:
        from geosam_stac.cli.dask import encode_on_dask

        encode_on_dask(dask, inputs, in_force, json_lines=json_lines)
        return
    with opened(inputs, in_force) as (session, works):
        if dry_run:
            plan_all(session, works, inputs=inputs, json_lines=json_lines)
        elif shard is not None:
            from geosam_stac.cli.shards import encode_shard
            from geosam_stac.scale.shards import Shard

            which = Shard.parse(shard, os.environ)
            encode_shard(session, list(works), which, json_lines=json_lines)
        else:
            _encode_all(session, works, inputs=inputs, json_lines=json_lines)


def publisher_of(session: Session) -> Publisher:
    """What publishes the Items of a run to `--publish`; nothing where it was not given."""
    from geosam_stac.catalog import Publisher

    to = session.config.publish
    headers = api_headers(os.environ) if to else None
    return Publisher(to, headers=headers, sink=session.sink)


def _encode_all(
    session: Session, works: Iterator[Work], *, inputs: Inputs, json_lines: bool
) -> None:
    publisher = publisher_of(session)

    def encode_one(source: pystac.Item | Group) -> None:
        _encode_one(session, source, publisher, json_lines)

    try:
        each(works, encode_one, inputs=inputs, hosts=session.hosts, out=session.config.out)
    except SystemExit:  # some scenes failed; the others are published
        publisher.finish()
        raise
    publisher.finish()


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
        from geosam_stac.storage import Store

        self._inputs = inputs
        self._hosts = hosts
        self._store = None if out is None else Store(out)
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
        except FATAL:
            raise
        except GeosamStacError as error:
            self._held = error
            self._failures += 1
            self._lines += work.failed_lines(error, self._hosts)

    def tell(self) -> None:
        """Print the error that was held back."""
        if self._held is not None:
            failed(self._held)
            self._held = None

    def broken_off(self) -> None:
        """Keep what has failed so far."""
        self.tell()
        # What of that very file was not yet tried must not be lost.
        if not self._tries_again():
            with contextlib.suppress(GeosamStacError):
                self._write()

    def finish(self) -> None:
        """Say what failed; raises SystemExit, or the error of the last of scenes that all did."""
        if self._count == 0:
            console.warn(f"nothing found: {self._inputs.place} has no Items{_asked(self._inputs)}")
        if self._count > 1 or self._tries_again():
            self._write()
        if self._store is not None and not self._lines and self._tries_again():
            self._store.delete(FAILED)  # it has had its day
        if self._failures == 0:
            return
        see = "" if self._store is None else f": see {self._store.href(FAILED)}"
        if self._failures == self._count and self._held is not None:
            if self._count > 1:
                console.warn(f"all {self._count:,} scenes failed{see}")
            raise self._held
        self.tell()
        console.error(f"{self._failures:,} of {self._count:,} scenes failed{see}")
        raise SystemExit(EXIT_PARTIAL)

    def _tries_again(self) -> bool:
        return self._store is not None and is_file(self._inputs.items, self._store.href(FAILED))

    def _write(self) -> None:
        if self._store is not None and self._lines:
            text = "\n".join(self._lines) + "\n"
            self._store.put(FAILED, text.encode("utf-8", "backslashreplace"))


def _asked(inputs: Inputs) -> str:
    """What was asked of a search, in words."""
    if not inputs.is_search:
        return ""
    said = [f"--{name}" for name in SEARCH_FIELDS if getattr(inputs, name) and name != "limit"]
    return f" for {', '.join(said)} and the extent given" if said else " in the extent given"


def _encode_one(
    session: Session, source: pystac.Item | Group, publisher: Publisher, json_lines: bool
) -> None:
    from geosam_stac.pipeline import encode_scene

    result = encode_scene(session, session.scene(source), session.config)
    publisher.add(result.href)
    if json_lines:
        console.result_json(result_document(result))
    else:
        console.result(result.href)
    if result.chips_encoded or result.chips_skipped:
        for line in _summary(result):
            console.note(line)


def _summary(result: EncodeResult) -> list[str]:
    """What a scene came to, and a table of its stages: the busiest one has set the pace."""
    skipped = f", {result.chips_skipped:,} skipped" if result.chips_skipped else ""
    lines = [
        f"{chips_text(result.chips_encoded)} encoded{skipped} in {result.seconds['total']:.1f} s: "
        f"{result.bytes_read / 1e6:,.1f} MB of pixels read, "
        f"{result.bytes_written / 1e6:,.1f} MB written{_tried_again(result)}"
    ]
    for name, busy in result.busy.items():
        pace = ", sets the pace" if name == result.slowest else ""
        lines.append(f"{name:<7} at work {result.seconds[name]:,.1f} s, busy {busy:.0%}{pace}")
    return lines


def _tried_again(result: EncodeResult) -> str:
    counts = ", ".join(f"{count:,} {kind}" for kind, count in result.retries.items())
    return f"; tried again: {counts}" if counts else ""


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


def plan_all(
    session: Session, works: Iterator[Work], *, inputs: Inputs, json_lines: bool
) -> list[Plan]:
    """Print what each scene would take; returns the plans of those that have one."""
    from geosam_stac.encoders.rate import encoder_tflops

    plans: list[Plan] = []
    # Measured once: every measurement differs a little.
    rate = functools.cache(lambda: encoder_tflops(session.device, session.precision))

    def plan_one(source: pystac.Item | Group) -> None:
        plan = session.plan(source, device_tflops=rate())
        plans.append(plan)
        if json_lines:
            console.result_json(plan.as_dict())
            return
        for line in plan_lines(plan):
            console.result(line)
        for notice in plan.notices:
            console.note(notice)

    try:
        each(works, plan_one, inputs=inputs, hosts=session.hosts, out=None)
    finally:
        if len(plans) > 1 and not json_lines:
            console.result(total_line(plans))
    return plans
