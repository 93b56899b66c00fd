"""A shard of a run, and the end of a run of shards: `encode --shard` and `finalize`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.failures import Failures, scene_keys
from geosam_stac.cli.guard import failed
from geosam_stac.cli.inputs import FATAL, Inputs, Work, takes_inputs
from geosam_stac.cli.options import InForce, Json, takes_config
from geosam_stac.cli.plan_text import count_text, duration_text
from geosam_stac.cli.sessions import opened
from geosam_stac.cli.tally import publisher_of
from geosam_stac.errors import (
    EXIT_PARTIAL,
    ConfigurationError,
    DataError,
    GeosamStacError,
    TemporaryError,
    UsageError,
)

if TYPE_CHECKING:
    from geosam_stac.scale.clock import Clock
    from geosam_stac.scale.reports import Entry, Report, Reports
    from geosam_stac.scale.shards import Shard, Unit
    from geosam_stac.scale.work import UnitResult
    from geosam_stac.session import Session

POLL_S = 15.0


def run_shard(inputs: Inputs, in_force: InForce, shard: Shard, *, json_lines: bool) -> None:
    """Open a Session and encode one shard in it.

    A machine that cannot open one (no such device) ends a Job at once: its report says so, or the
    finalizer would wait for all the others to the end of its clock.
    """
    with contextlib.ExitStack() as stack:
        try:
            session, works = stack.enter_context(opened(inputs, in_force))
        except ConfigurationError as error:
            with contextlib.suppress(GeosamStacError):
                _report_unopened(inputs, in_force, shard, error)
            raise
        encode_shard(session, list(works), shard, json_lines=json_lines)


def _report_unopened(
    inputs: Inputs, in_force: InForce, shard: Shard, error: GeosamStacError
) -> None:
    # The report's name does not depend on the device.
    with opened(inputs, in_force, device="cpu") as (session, works):
        _, reports = _cut(session, list(works), shard.count)
        reports.fail(shard, reports.begin(shard), error)


def encode_shard(
    session: Session, works: Sequence[Work], shard: Shard, *, json_lines: bool
) -> None:
    """Encode what falls to one shard, and report it; leaves as `reports.exit_code` says.

    What would fail every unit alike ends the shard.
    """
    from geosam_stac.scale.reports import exit_code
    from geosam_stac.scale.shards import balance

    cut, reports = _cut(session, works, shard.count)
    units = cut[shard.index]
    least, most = balance(cut)
    console.note(
        f"shard {shard.index} of {shard.count}: {len(units):,} of "
        f"{sum(map(len, cut)):,} units, about {sum(unit.chips for unit in units):,} chips "
        f"(the shards have {least:,} to {most:,})"
    )
    begun = reports.begin(shard)
    try:
        entries = _encode_units(session, works, units, json_lines=json_lines)
    except ConfigurationError as error:  # ends a Job at once: the finalizer must not wait
        with contextlib.suppress(GeosamStacError):
            reports.fail(shard, begun, error)
        raise
    reports.end(shard, begun, entries)
    broken = sum(entry.exit_code != 0 for entry in entries)
    if code := exit_code(entries):
        raise SystemExit(code)
    if broken:
        console.warn(
            f"{broken:,} of {count_text(len(entries), 'unit')} of the shard failed for good: "
            "another try would not mend them. `finalize` says them again, and exits with 3"
        )


def _encode_units(
    session: Session, works: Sequence[Work], units: Sequence[Unit], *, json_lines: bool
) -> list[Entry]:
    from geosam_stac.scale.reports import Entry

    entries = []
    for unit in units:
        result = _try_unit(session, works[unit.scene], unit)
        if result.error is not None:
            failed(result.error)
        elif result.href is not None:
            _tell(result.href, json_lines)
        entries.append(Entry.of(result))
    return entries


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
        typer.Option(
            "--wait",
            metavar="S",
            help="Seconds to wait for shards that are missing, from the first one's start.",
        ),
    ] = 0.0,
    attempt: Annotated[
        str | None,
        typer.Option(
            "--attempt",
            metavar="NAME",
            help="Goes on with the wait of an earlier process of that name.",
            envvar="GEOSAM_STAC_ATTEMPT",
            show_envvar=False,
        ),
    ] = None,
    json_lines: Json = False,
    in_force: InForce,
) -> None:
    """End a run of shards: put split scenes together, and say what failed or is missing.

    Takes the options that the shards were given; --publish takes place here. Safe to run again.
    Prints the href of every Item of the run; failed scenes are written to failed.ndjson, an input
    for --items.
    """
    from geosam_stac.scale.clock import Clock

    if in_force.config.out is None:
        raise UsageError("--out is missing", hint="Give the output of the shards")
    # No model is needed: a machine without the shards' device will do.
    with opened(inputs, in_force, device="cpu") as (session, found):
        works = list(found)
        cut, reports = _cut(session, works, shards)
        clock = Clock(reports, attempt=attempt, wait_s=wait)
        found_reports = _wait(reports, cut, clock)
        clock.end()
        _Finalizer(session, works, found_reports, cut, json_lines=json_lines).run()


def _wait(reports: Reports, cut: list[list[Unit]], clock: Clock) -> dict[int, Report]:
    """The reports of all shards, or of those that have come when the clock has run down."""
    found: dict[int, Report] = {}
    told = -1
    while True:
        found = reports.read(found)
        ended = {index: report for index, report in found.items() if not clock.is_old(report)}
        to_come = [
            index
            for index, units in enumerate(cut)
            if units and (index not in ended or not ended[index].is_settled)
        ]
        for index, report in ended.items():
            if report.fatal is not None:
                console.note(f"shard {index} has ended the run: no shard is waited for")
                return found
        left_s = clock.left_s(found.values())
        if not to_come or left_s <= 0:
            return found
        if len(to_come) != told:
            told = len(to_come)
            console.note(
                f"waiting for {told:,} of {len(cut):,} shards, {duration_text(left_s)} at most: "
                f"{_some(to_come)}"
            )
        time.sleep(min(POLL_S, left_s))


class _Finalizer:
    """Scene by scene: what the shards have finished, what is to be put together, what failed."""

    def __init__(
        self,
        session: Session,
        works: Sequence[Work],
        reports: Mapping[int, Report],
        cut: Sequence[Sequence[Unit]],
        *,
        json_lines: bool,
    ) -> None:
        self._session, self._works, self._config = session, works, session.config
        self._reports, self._shards = reports, len(cut)
        self._missing = [
            index
            for index, units in enumerate(cut)
            if units and (index not in reports or not _has_units(reports[index]))
        ]
        self._publisher = publisher_of(session)
        self._json_lines = json_lines
        self._failures: dict[int, GeosamStacError] = {}

    def run(self) -> None:
        """Raises SystemExit with 3 where some scenes failed; the error where all did."""
        by_scene: dict[int, list[Entry]] = {}
        for report in self._reports.values():
            for entry in report.entries:
                by_scene.setdefault(entry.scene, []).append(entry)
        for number in range(len(self._works)):
            try:
                href = self._scene(number, by_scene.get(number, []))
                self._publisher.add(href)
                _tell(href, self._json_lines)
            except FATAL:
                raise
            except GeosamStacError as error:
                self._failures[number] = error
                failed(error)
        self._publisher.finish()
        self._end()

    def _scene(self, number: int, entries: list[Entry]) -> str:
        from geosam_stac.scale.finalize import committed_href, finalize_scene

        name = _name(self._works[number])
        for entry in entries:
            if entry.error is not None:
                kind = TemporaryError if entry.is_open else DataError
                raise kind(entry.error.rstrip("."))
        if not entries:
            raise TemporaryError(
                "no shard has reported the scene",
                item=name,
                hint=f"Run the shards that are missing: {_some(self._missing)}",
            )
        first = entries[0]
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
        if first.href is not None:
            there = committed_href(self._session, source, self._config, item_id=first.item_id)
            if there is None:
                raise TemporaryError(
                    "a shard has reported the scene as done, but its Item is not there",
                    item=name,
                    href=first.href,
                    hint="It was deleted since: run the shards again",
                )
            return there
        _, href = finalize_scene(
            self._session, source, self._config, item_id=first.item_id, parts=first.parts
        )
        return href

    def _end(self) -> None:
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
        self._tell_shards()
        if self._missing:
            raise SystemExit(TemporaryError.exit_code)
        if len(self._failures) == len(self._works):
            raise SystemExit(next(iter(self._failures.values())).exit_code)
        raise SystemExit(EXIT_PARTIAL)

    def _tell_shards(self) -> None:
        """Which shards another try may help, and how."""
        for index, report in self._reports.items():
            if report.fatal is not None:
                console.error(f"shard {index} has ended the run: {report.fatal}")
        begun = [index for index in self._missing if index in self._reports]
        parts = {
            "shards that have not reported": self._missing,
            "of these have begun, and have not come to their end": begun,
            "shards that another try may help": [
                index
                for index, report in self._reports.items()
                if _has_units(report) and not report.is_settled
            ],
        }
        for said, numbers in parts.items():
            if numbers:
                console.error(f"{said}: {_some(numbers)}")
        if any(parts.values()):
            console.error(
                f"run them again: `encode --shard I/{self._shards}` with the same options, then "
                "finalize. On Kubernetes delete both Jobs and apply the same file: what is done is "
                "not encoded twice"
            )


def _has_units(report: Report) -> bool:
    return report.ended is not None and report.fatal is None


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown + (f" and {len(numbers) - 20:,} more" if len(numbers) > 20 else "")
