"""`geosam-stac publish`: feature Items into a catalog, an index, or a STAC API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.folders import named_item
from geosam_stac.cli.options import NO_METAVAR, Quiet, Verbose
from geosam_stac.credentials import TOKEN_VARIABLE, api_headers


def publish(
    *,
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="ITEM...",
            help="Feature Items, as `encode` prints them, or their folders; - reads hrefs.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="catalog.json of a static catalog (made if need be), a .parquet file "
            "(stac-geoparquet), or the URL of a STAC API with Transactions. A token for it is read "
            f"from {TOKEN_VARIABLE}.",
        ),
    ],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild/--no-rebuild",
            metavar=NO_METAVAR,
            help="Make the static catalog's Collections anew. Without it, as for one of many "
            "workers, a search finds the Items all the same.",
        ),
    ] = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Publish feature Items where `geosam-stac search` and others find them; safe to repeat."""
    import sys

    from geosam_stac.catalog import publish as publish_items

    console.set_verbosity(quiet=quiet, verbose=verbose)
    hrefs = [
        named_item(href.strip())
        for item in items
        for href in (sys.stdin.read().split("\n") if item == "-" else [item])
        if href.strip()
    ]
    with console.ProgressSink() as sink:
        count = publish_items(
            hrefs, to, headers=api_headers(os.environ), rebuild=rebuild, sink=sink
        )
    console.note(f"{count:,} Item{'' if count == 1 else 's'} published to {to}")
