"""A shard of a run, and the end of a run of shards: `encode --shard` and `finalize`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.failures import Failures, scene_keys
from geosam_stac.cli.guard import failed
from geosam_stac.cli.inputs import FATAL, Inputs, Work, takes_inputs
from geosam_stac.cli.options import NO_METAVAR, InForce, takes_config
from geosam_stac.cli.plan_text import count_text
from geosam_stac.cli.sessions import opened
from geosam_stac.cli.tally import publisher_of
from geosam_stac.errors import (
    EXIT_PARTIAL,
    DataError,
    GeosamStacError,
    TemporaryError,
    UsageError,
)

if TYPE_CHECKING:
    from geosam_stac.scale.reports import Entry, Reports
    from geosam_stac.scale.shards import Shard, Unit
    from geosam_stac.scale.work import UnitResult
    from geosam_stac.session import Session

POLL_S = 15.0


def encode_shard(
    session: Session, works: Sequence[Work], shard: Shard, *, json_lines: bool
) -> None:
    """Encode what falls to one shard, and report it; leaves with 65 or 75 where a unit failed.

    What would fail every unit alike ends the shard without a report.
    """
    from geosam_stac.scale.reports import Entry, exit_code
    from geosam_stac.scale.shards import balance

    cut, reports = _cut(session, works, shard.count)
    units = cut[shard.index]
    least, most = balance(cut)
    console.note(
        f"shard {shard.index} of {shard.count}: {len(units):,} of "
        f"{sum(map(len, cut)):,} units, about {sum(unit.chips for unit in units):,} chips "
        f"(the shards have {least:,} to {most:,})"
    )
    entries = []
    for unit in units:
        result = _try_unit(session, works[unit.scene], unit)
        if result.error is not None:
            failed(result.error)
        elif result.href is not None:
            _tell(result.href, json_lines)
        entries.append(Entry.of(result))
    reports.write(shard, entries)
    if code := exit_code(entries):
        raise SystemExit(code)


def _try_unit(session: Session, work: Work, unit: Unit) -> UnitResult:
    from geosam_stac.scale.work import UnitResult, encode_unit

    try:
        if work.error is not None:
            raise work.error
        assert work.source is not None
        return encode_unit(session, work.source, unit, session.config)
    except FATAL:
        raise
    except GeosamStacError as error:
        return UnitResult(unit=unit, name=_name(work), error=error)


def _cut(session: Session, works: Sequence[Work], count: int) -> tuple[list[list[Unit]], Reports]:
    from geosam_stac.scale.reports import Reports
    from geosam_stac.scale.shards import cut
    from geosam_stac.scale.work import digest_of, estimated_chips
    from geosam_stac.storage import Store

    config = session.config
    assert config.out is not None
    chips = [estimated_chips(session, work.source) for work in works]
    digest = digest_of([work.source or work.href or "-" for work in works], config, count)
    return cut(chips, count), Reports(Store(config.out), digest, count)


def _name(work: Work) -> str:
    return work.source.id if work.source is not None else work.href or "-"


def _tell(href: str, json_lines: bool) -> None:
    if json_lines:
        console.result_json({"item": href})
    else:
        console.result(href)


@takes_config
@takes_inputs
def finalize(
    *,
    ctx: typer.Context,
    inputs: Inputs,
    shards: Annotated[
        int, typer.Option("--shards", metavar="N", help="As many as the run was cut for.", min=1)
    ],
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="S", help="Seconds to wait for shards that are missing."),
    ] = 0.0,
    json_lines: Annotated[
        bool,
        typer.Option("--json", metavar=NO_METAVAR, help="Results as JSON, one line each."),
    ] = False,
    in_force: InForce,
) -> None:
    """End a run of shards: put split scenes together, and say what failed or is missing.

    Takes the options that the shards were given; --publish takes place here. Safe to run again.
    Prints the href of every Item of the run; failed scenes are written to failed.ndjson, an input
    for --items.
    """
    config = in_force.config
    if config.out is None:
        raise UsageError("--out is missing", hint="Give the output of the shards")
    # No model is needed: a machine without the shards' device will do.
    with opened(inputs, in_force, device="cpu") as (session, found):
        works = list(found)
        cut, reports = _cut(session, works, shards)
        entries = _wait(reports, cut, time.monotonic() + wait)
        _Finalizer(session, works, json_lines=json_lines).run(entries, cut)


def _wait(reports: Reports, cut: list[list[Unit]], end_s: float) -> dict[int, list[Entry]]:
    """The reports of all shards, or of those that have come until then."""
    told = -1
    while True:
        found = reports.read()
        open_shards = [
            index
            for index, units in enumerate(cut)
            if units and (index not in found or any(entry.is_open for entry in found[index]))
        ]
        left_s = end_s - time.monotonic()
        if not open_shards or left_s <= 0:
            return found
        if len(open_shards) != told:
            told = len(open_shards)
            console.note(f"waiting for {told:,} of {len(cut):,} shards: {_some(open_shards)}")
        time.sleep(min(POLL_S, left_s))


class _Finalizer:
    """Scene by scene: what the shards have finished, what is to be put together, what failed."""

    def __init__(self, session: Session, works: Sequence[Work], *, json_lines: bool) -> None:
        self._session, self._works, self._config = session, works, session.config
        self._publisher = publisher_of(session)
        self._json_lines = json_lines
        self._failures: dict[int, GeosamStacError] = {}

    def run(self, entries: dict[int, list[Entry]], cut: list[list[Unit]]) -> None:
        """Raises SystemExit with 3 where some scenes failed; the error where all did."""
        by_scene: dict[int, list[Entry]] = {}
        for shard in entries.values():
            for entry in shard:
                by_scene.setdefault(entry.scene, []).append(entry)
        missing = [index for index, units in enumerate(cut) if units and index not in entries]
        for number in range(len(self._works)):
            try:
                href = self._scene(number, by_scene.get(number, []), missing)
                self._publisher.add(href)
                _tell(href, self._json_lines)
            except FATAL:
                raise
            except GeosamStacError as error:
                self._failures[number] = error
                failed(error)
        self._publisher.finish()
        self._end(missing)

    def _scene(self, number: int, entries: list[Entry], missing: list[int]) -> str:
        from geosam_stac.scale.finalize import finalize_scene

        name = _name(self._works[number])
        for entry in entries:
            if entry.error is not None:
                kind = TemporaryError if entry.is_open else DataError
                raise kind(entry.error.rstrip("."))
        if not entries:
            raise TemporaryError(
                "no shard has reported the scene",
                item=name,
                hint=f"Run the shards that are missing: {_some(missing)}",
            )
        first = entries[0]
        if first.href is not None:
            return first.href
        ids = sorted({entry.item_id for entry in entries if entry.item_id is not None})
        if len(ids) > 1:
            raise DataError(
                "machines of several kinds made parts of one scene, and these do not match",
                item=name,
                got=", ".join(ids),
                hint="Give --precision, so that all compute alike",
            )
        source = self._works[number].source
        assert source is not None and first.item_id is not None
        _, href = finalize_scene(
            self._session, source, self._config, item_id=first.item_id, parts=first.parts
        )
        return href

    def _end(self, missing: list[int]) -> None:
        assert self._config.out is not None
        failures = Failures(self._config.out)
        lines = [
            line
            for number, error in self._failures.items()
            for line in self._works[number].failed_lines(error, self._session.hosts)
        ]
        tried = {key for work in self._works for key in scene_keys(work)}
        failures.settle(tried, lines)
        if not self._failures:
            console.note(f"{count_text(len(self._works), 'scene')}, all done")
            return
        console.error(
            f"{len(self._failures):,} of {len(self._works):,} scenes are not done: see "
            f"{failures.href}"
        )
        if missing:
            console.error(f"shards that have not reported: {_some(missing)}")
            raise SystemExit(TemporaryError.exit_code)
        if len(self._failures) == len(self._works):
            raise SystemExit(next(iter(self._failures.values())).exit_code)
        raise SystemExit(EXIT_PARTIAL)


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown + (f" and {len(numbers) - 20:,} more" if len(numbers) > 20 else "")
