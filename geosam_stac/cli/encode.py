"""`geosam-stac encode`: Items in, features and new Items out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.inputs import Inputs, Work, takes_inputs
from geosam_stac.cli.options import InForce, flag, takes_config
from geosam_stac.cli.plan_text import chips_text, plan_lines, total_line
from geosam_stac.cli.sessions import opened
from geosam_stac.cli.tally import each, publisher_of, result_document
from geosam_stac.errors import UsageError

if TYPE_CHECKING:
    import pystac

    from geosam_stac.catalog import Publisher
    from geosam_stac.planning import Plan
    from geosam_stac.session import Session
    from geosam_stac.sources.groups import Group
    from geosam_stac.types import EncodeResult

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
    if shard is not None:
        from geosam_stac.cli.shards import run_shard
        from geosam_stac.scale.shards import Shard

        run_shard(inputs, in_force, Shard.parse(shard, os.environ), json_lines=json_lines)
        return
    with opened(inputs, in_force) as (session, works):
        if dry_run:
            plan_all(session, works, inputs=inputs, json_lines=json_lines)
        else:
            _encode_all(session, works, inputs=inputs, json_lines=json_lines)


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
