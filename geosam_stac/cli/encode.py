"""`geosam-stac encode`: Items in, features and new Items out."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.guard import fail, guarded
from geosam_stac.cli.options import InForce, takes_config
from geosam_stac.encoders.checkpoints import default_cache_dir
from geosam_stac.errors import EXIT_PARTIAL, GeosamStacError, Interrupted, UsageError
from geosam_stac.hrefs import unsigned
from geosam_stac.pipeline import encode_scene
from geosam_stac.plan import Plan
from geosam_stac.session import Session
from geosam_stac.sources import as_geojson
from geosam_stac.storage import Store
from geosam_stac.types import EncodeResult

FAILED = "failed.ndjson"


@guarded
@takes_config
def encode(
    *,
    ctx: typer.Context,
    item: Annotated[
        list[str] | None,
        typer.Option(
            "--item",
            help="A STAC Item: URL, file, or - for standard input. Repeatable.",
            show_default=False,
            rich_help_panel="What",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what it would take; read no pixels.", rich_help_panel="Run"
        ),
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Results as JSON lines.", rich_help_panel="Run")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Errors only.", rich_help_panel="Run")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Tracebacks too.", rich_help_panel="Run")
    ] = False,
    in_force: InForce,
) -> None:
    """Encode STAC Items into SAM features, a manifest and a new STAC Item each.

    stdout: the href of each new Item, a line each.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    if not item:
        raise UsageError("--item is missing", hint="Give the URL or the file of a STAC Item")
    config = in_force.config
    if config.geometry is not None:
        config = config.replace({"geometry": as_geojson(config.geometry)})
    if config.out is None and not dry_run:
        raise UsageError("--out is missing", hint="Give a folder, or an s3:// or gs:// URL")
    with (
        console.ProgressSink() as sink,
        Session(config, cache_dir=default_cache_dir(os.environ), sink=sink) as session,
    ):
        session.config_sources = in_force.sources
        if dry_run:
            for source in item:
                _show_plan(session, source, json_lines=json_lines)
        else:
            _encode_all(session, item, json_lines=json_lines)


def _encode_all(session: Session, sources: list[str], *, json_lines: bool) -> None:
    """Each scene succeeds or fails alone; with several, those that failed are written down."""
    failed: list[tuple[str, GeosamStacError]] = []
    for source in sources:
        try:
            result = encode_scene(session, session.scene(source), session.config)
        except Interrupted:
            raise
        except GeosamStacError as error:
            if len(sources) == 1:
                raise
            console.error(str(error))
            failed.append((source, error))
            continue
        _show_result(result, json_lines=json_lines)
    if not failed:
        return
    lines = [
        json.dumps({"item": unsigned(source), "exit_code": error.exit_code, "error": str(error)})
        for source, error in failed
    ]
    if len(failed) == len(sources):
        fail(failed[-1][1])
    assert session.config.out is not None
    store = Store(session.config.out)
    store.put(FAILED, ("\n".join(lines) + "\n").encode())
    console.error(f"{len(failed)} of {len(sources)} Items failed: see {store.href(FAILED)}")
    raise SystemExit(EXIT_PARTIAL)


def _show_result(result: EncodeResult, *, json_lines: bool) -> None:
    if json_lines:
        console.result_json(_result_document(result))
    else:
        console.result(result.href)
    seconds = result.seconds
    if result.chips_encoded:
        stages = {name: value for name, value in seconds.items() if name != "total"}
        console.note(
            f"{result.chips_encoded:,} chips encoded, {result.chips_skipped:,} skipped, "
            f"{result.bytes_read / 1e6:,.1f} MB of pixels read, "
            f"{result.bytes_written / 1e6:,.1f} MB written in {seconds['total']:.1f} s "
            f"(busy: {', '.join(f'{name} {value:.1f} s' for name, value in stages.items())})"
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


def _show_plan(session: Session, source: str, *, json_lines: bool) -> None:
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
    return [
        f"scene     {plan.scene}: {', '.join(plan.bands)}",
        f"grid      {plan.width:,} x {plan.height:,} px of {plan.resolution:g} in {plan.crs}",
        f"chips     {plan.chips:,} = {plan.rows:,} rows x {plan.cols:,} columns of "
        f"{plan.chip_px} px at stride {plan.stride_px}",
        f"read      {plan.bytes_to_read / 1e6:,.1f} MB of decoded pixels",
        f"write     {plan.objects:,} objects, {plan.bytes_to_write / 1e6:,.1f} MB",
        f"encoder   {plan.model} on {plan.device} in {plan.precision}"
        + (f": about {_duration(seconds)}" if seconds is not None else ""),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
