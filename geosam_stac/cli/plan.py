"""`geosam-stac plan`: what `encode --dry-run` says, and what a fleet would take for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.encode import plan_all
from geosam_stac.cli.inputs import Inputs, takes_inputs
from geosam_stac.cli.options import InForce, Json, takes_config
from geosam_stac.cli.plan_text import fleet_lines
from geosam_stac.cli.sessions import opened
from geosam_stac.errors import UsageError

if TYPE_CHECKING:
    from geosam_stac.planning import Plan
    from geosam_stac.scale.fleet import Fleet

PANEL = "Fleet"
EPILOG = (
    "Example: geosam-stac plan --catalog earth-search --collection sentinel-2-c1-l2a "
    "--bbox=6,47,15,55 --datetime 2024-06 --limit 2000 --fleet 32 --rate 40 --price 2.50"
)


def _fleet_option(name: str, metavar: str, help: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, help=help, show_default=False, rich_help_panel=PANEL
    )
    return found


@takes_config
@takes_inputs
def plan(
    *,
    ctx: typer.Context,
    inputs: Inputs,
    fleet: Annotated[
        int | None, _fleet_option("--fleet", "N", "Also: time and cost on N such devices.")
    ] = None,
    rate: Annotated[
        float | None,
        _fleet_option(
            "--rate",
            "CHIPS/S",
            "Chips a second of one device: your assumption, which is printed as such. Without it "
            "the time is guessed from this machine's: no GPU's rate has been measured.",
        ),
    ] = None,
    price: Annotated[
        float | None, _fleet_option("--price", "PRICE", "Of one device for an hour.")
    ] = None,
    json_lines: Json = False,
    in_force: InForce,
) -> None:
    """Say what encoding would take: chips, bytes, objects, time; with --fleet for N machines.

    Reads no pixels. What it assumes is printed.
    """
    if fleet is None and (rate is not None or price is not None):
        raise UsageError("--rate and --price belong to --fleet", hint="Give --fleet N")
    with opened(inputs, in_force) as (session, works):
        plans = plan_all(session, works, inputs=inputs, json_lines=json_lines)
    if fleet is None or not plans:
        return
    estimate = _estimate(plans, fleet, rate, price)
    if json_lines:
        console.result_json({"fleet": estimate.as_dict()})
        return
    for line in fleet_lines(estimate):
        console.result(line)


def _estimate(plans: list[Plan], workers: int, rate: float | None, price: float | None) -> Fleet:
    from geosam_stac.scale.fleet import estimate

    source = "your assumption, given with --rate"
    if rate is None:
        first = plans[0]
        seconds = sum(plan.estimated_seconds or 0.0 for plan in plans)
        rate = sum(plan.chips for plan in plans) / seconds if seconds else 0.0
        source = (
            f"a guess from matrix products timed just now on this machine's {first.device} in "
            f"{first.precision}, NOT a measured rate"
        )
        console.warn(
            "no rate of a GPU has been measured by this project: time and cost of the fleet are "
            "guessed from this machine's arithmetic. Encode a scene on one of the fleet's "
            "machines, and give its chips a second as --rate"
        )
    return estimate(plans, workers=workers, rate=rate, rate_source=source, price=price)
