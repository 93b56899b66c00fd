"""`geosam-stac encode`: Items in, features and new Items out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import InForce, env_name, flag, takes_config
from geosam_stac.errors import (
    EXIT_PARTIAL,
    ConfigurationError,
    GeosamStacError,
    Interrupted,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from geosam_stac.planning import Plan
    from geosam_stac.session import Session
    from geosam_stac.types import EncodeResult

FAILED = "failed.ndjson"
EPILOG = (
    "Example: geosam-stac encode --item https://.../items/S2B_... --bands red,green,blue "
    "--bbox 10.0,53.0,10.1,53.1 --out features/\n\n"
    "Each option can also come from the environment (GEOSAM_STAC_STRIDE=512) or from --config; the "
    "command line wins."
)


@takes_config
def encode(
    *,
    ctx: typer.Context,
    item: Annotated[
        list[str] | None,
        typer.Option(
            "--item",
            metavar="URL|FILE|-",
            help="A STAC Item; - reads standard input. Repeatable.",
            envvar=env_name("item"),
            show_envvar=False,
            show_default=False,
            rich_help_panel="What",
        ),
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Say what it would take; read no pixels.")
    ] = False,
    json_lines: Annotated[bool, flag("--json", help="Results as JSON, one line each.")] = False,
    in_force: InForce,
) -> None:
    """Encode STAC Items into SAM features, a manifest and a new STAC Item each.

    Prints the href of each new Item on stdout, one a line; progress and errors go to stderr.
    """
    if not item:
        raise UsageError("--item is missing", hint="Give the URL or the file of a STAC Item")
    config = in_force.config
    if config.out is None and not dry_run:
        raise UsageError("--out is missing", hint="Give a folder, or an s3:// or gs:// URL")
    # Here, not above: these bring torch and GDAL, and take seconds.
    from geosam_stac.encoders.checkpoints import default_cache_dir
    from geosam_stac.session import Session
    from geosam_stac.sources import as_geojson

    if config.geometry is not None:
        config = config.replace({"geometry": as_geojson(config.geometry)})
    with (
        console.ProgressSink() as sink,
        Session(config, cache_dir=default_cache_dir(os.environ), sink=sink) as session,
    ):
        session.config_sources = in_force.sources
        work = _plan_one if dry_run else _encode_one
        _each(
            item,
            lambda source: work(session, source, json_lines),
            out=None if dry_run else config.out,
        )


def _each(sources: list[str], work: Callable[[str], None], *, out: str | None) -> None:
    """Each Item succeeds or fails alone; of several, those that failed are written to `out`.

    What would fail every other Item as well, an output that is full or a model that does not
    load, ends the run.
    """
    failed: list[tuple[str, GeosamStacError]] = []
    for source in sources:
        try:
            work(source)
        except (Interrupted, StorageError, ConfigurationError):
            raise
        except GeosamStacError as error:
            if len(failed) + 1 == len(sources):
                raise
            console.error(str(error))
            failed.append((source, error))
    if failed:
        where = f": see {_write_failed(failed, out)}" if out is not None else ""
        console.error(f"{len(failed)} of {len(sources)} Items failed{where}")
        raise SystemExit(EXIT_PARTIAL)


def _write_failed(failed: list[tuple[str, GeosamStacError]], out: str) -> str:
    from geosam_stac.hrefs import is_local, to_local_path, unsigned
    from geosam_stac.storage import Store

    def place(source: str) -> str:
        local = source != "-" and is_local(source)
        return str(Path(to_local_path(source)).absolute()) if local else unsigned(source)

    lines = [
        json.dumps({"item": place(source), "exit_code": error.exit_code, "error": str(error)})
        for source, error in failed
    ]
    store = Store(out)
    store.put(FAILED, ("\n".join(lines) + "\n").encode())
    return store.href(FAILED)


def _encode_one(session: Session, source: str, json_lines: bool) -> None:
    from geosam_stac.pipeline import encode_scene

    result = encode_scene(session, session.scene(source), session.config)
    if json_lines:
        console.result_json(_result_document(result))
    else:
        console.result(result.href)
    if result.chips_encoded or result.chips_skipped:
        console.note(_summary(result))


def _summary(result: EncodeResult) -> str:
    seconds = result.seconds
    stages = ", ".join(f"{name} {seconds[name]:.1f} s" for name in ("read", "encode", "write"))
    skipped = f", {result.chips_skipped:,} skipped" if result.chips_skipped else ""
    return (
        f"{_chips(result.chips_encoded)} encoded{skipped} in {seconds['total']:.1f} s: "
        f"{result.bytes_read / 1e6:,.1f} MB of pixels read, "
        f"{result.bytes_written / 1e6:,.1f} MB written (busy: {stages})"
    )


def _result_document(result: EncodeResult) -> dict[str, Any]:
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
    }


def _plan_one(session: Session, source: str, json_lines: bool) -> None:
    from geosam_stac.encoders.rate import encoder_tflops

    plan = session.plan(source, device_tflops=encoder_tflops(session.device, session.precision))
    if json_lines:
        console.result_json(plan.as_dict())
        return
    for line in _plan_lines(plan):
        console.result(line)
    for notice in plan.notices:
        console.note(notice)


def _plan_lines(plan: Plan) -> list[str]:
    seconds = plan.estimated_seconds
    outside = f", less {plan.chips_outside:,} outside --geometry" if plan.chips_outside else ""
    return [
        f"scene    {plan.scene}",
        f"bands    {', '.join(plan.bands)}",
        f"grid     {plan.width:,} x {plan.height:,} px of {plan.resolution:g} {plan.unit} in "
        f"{plan.crs}",
        f"chips    {plan.chips:,} ({_count(plan.rows, 'row')} x {_count(plan.cols, 'column')}"
        f"{outside}) of {plan.chip_px} px at stride {plan.stride_px}",
        f"read     {plan.bytes_to_read / 1e6:,.1f} MB of pixels, decoded",
        f"write    {plan.bytes_to_write / 1e6:,.1f} MB in {plan.objects:,} objects",
        f"encoder  {plan.model} on {plan.device} in {plan.precision}"
        + (f", about {_duration(seconds)}" if seconds is not None else ""),
    ]


def _chips(count: int) -> str:
    return _count(count, "chip")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
