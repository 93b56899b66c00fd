"""`geosam-stac pull`: features into a local folder that Geo-SAM opens."""

from __future__ import annotations

from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import Json, Quiet, Verbose
from geosam_stac.errors import UsageError


def numbers(flag: str, text: str, counts: tuple[int, ...], expected: str) -> tuple[float, ...]:
    """Numbers between commas; UsageError where there are others than that."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        raise UsageError(f"{flag} is malformed", expected=expected, got=repr(text))
    return values


def pull(
    *,
    item: Annotated[
        str, typer.Argument(metavar="ITEM", help="A feature Item, or its folder: URL or path.")
    ],
    # No Path: it would make s3:/x of s3://x, which is local.
    dest: Annotated[
        str, typer.Option("--dest", metavar="DIR", help="Local folder; ITEM gets one of its own.")
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="pt: as Geo-SAM reads them, converted if need be. safetensors: as they are.",
        ),
    ] = "pt",
    bbox: Annotated[
        str | None,
        typer.Option("--bbox", metavar="W,S,E,N", help="Only the chips that this box touches."),
    ] = None,
    bbox_crs: Annotated[
        str,
        typer.Option("--bbox-crs", metavar="CRS", help="CRS of --bbox; native is the scene's own."),
    ] = "EPSG:4326",
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy features into a local folder that the Geo-SAM plugin opens as it is.

    Every chip is checked against its sha256; those that are there already are not fetched again.
    Prints the folder.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    box = None
    if bbox is not None:
        west, south, east, north = numbers("--bbox", bbox, (4,), "W,S,E,N")
        box = (west, south, east, north)
    from geosam_stac.store import FeatureItem, open_item, pull_features

    with console.ProgressSink() as sink:
        result = pull_features(
            FeatureItem(open_item(item)), dest, format=format, bbox=box, crs=bbox_crs, sink=sink
        )
    if json_lines:
        console.result_json(
            {
                "folder": str(result.folder),
                "item": result.href,
                "id": result.item.id,
                "chips_pulled": result.chips_pulled,
                "chips_there": result.chips_there,
                "bytes_read": result.bytes_read,
                "bytes_written": result.bytes_written,
            }
        )
    else:
        console.result(str(result.folder))
    there = f", {result.chips_there:,} were there already" if result.chips_there else ""
    console.note(
        f"{result.chips_pulled:,} chip{'' if result.chips_pulled == 1 else 's'} pulled{there}: "
        f"{result.bytes_read / 1e6:,.1f} MB read"
    )
