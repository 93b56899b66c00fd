"""`geosam-stac search`: feature Items of a STAC API, a static catalog or an index."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import NO_METAVAR, Quiet, Verbose
from geosam_stac.credentials import TOKEN_VARIABLE, api_headers
from geosam_stac.errors import UsageError
from geosam_stac.hrefs import unsigned

EPILOG = (
    "Example: geosam-stac search --catalog s3://bucket/features/catalog.json --model sam2.1-tiny "
    "--bbox 10,53,11,54 --datetime 2024-07\n\n"
    "Property names in --filter stand bare, in double quotes: \"mlm:name\" = 'sam3' AND "
    "a_contains(\"geosam:source_collections\", ('sentinel-2-l2a'))"
)


def _place(name: str, metavar: str, text: str) -> Any:
    return typer.Option(
        name, metavar=metavar, help=text, rich_help_panel="Where", show_default=False
    )


def _asked(name: str, metavar: str, text: str) -> Any:
    return typer.Option(
        name, metavar=metavar, help=text, rich_help_panel="What", show_default=False
    )


def search(
    *,
    catalog: Annotated[
        str | None,
        _place("--catalog", "PATH|URL", "catalog.json of a static catalog, or its folder."),
    ] = None,
    index: Annotated[
        str | None, _place("--index", "PATH|URL", "items.parquet: a stac-geoparquet file.")
    ] = None,
    api: Annotated[
        str | None,
        _place("--api", "URL", f"A STAC API. A token for it is read from {TOKEN_VARIABLE}."),
    ] = None,
    model: Annotated[
        str | None, _asked("--model", "NAME", "Model name or alias; see `models list`.")
    ] = None,
    resolution: Annotated[
        float | None,
        _asked("--resolution", "SIZE", "Pixel size that was encoded, in units of the CRS."),
    ] = None,
    bbox: Annotated[
        str | None,
        _asked("--bbox", "W,S,E,N", "In degrees; W > E crosses the antimeridian."),
    ] = None,
    datetime: Annotated[
        str | None,
        _asked("--datetime", "TIME", "2024, 2024-03, 2024-03-11, or an interval as 2024-03/.."),
    ] = None,
    source_collection: Annotated[
        str | None,
        _asked("--source-collection", "ID", "Collection of the imagery that was encoded."),
    ] = None,
    cql2: Annotated[
        str | None, _asked("--filter", "CQL2", "CQL2 text or JSON, with bare property names.")
    ] = None,
    limit: Annotated[int | None, _asked("--limit", "N", "Items at most.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=NO_METAVAR, help="A FeatureCollection.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find features that are encoded already: prints the href of each Item, newest first.

    Give one of --catalog, --index and --api: all three give the same answer.
    """
    from geosam_stac.catalog import FeatureQuery, canonical, search_features

    console.set_verbosity(quiet=quiet, verbose=verbose)
    query = FeatureQuery(
        model=model,
        resolution=resolution,
        bbox=None if bbox is None else _numbers(bbox),
        datetime=datetime,
        source_collection=source_collection,
        filter=cql2,
        limit=limit,
    )
    with console.ProgressSink() as sink:
        found = search_features(
            query,
            catalog=catalog,
            index=index,
            api=api,
            headers=api_headers(os.environ) if api else None,
            sink=sink,
        )
    if as_json:
        console.result_json({"type": "FeatureCollection", "features": found})
    else:
        for document in found:
            console.result(canonical(document))
    if not found:
        place = unsigned(str(catalog or index or api))
        console.note(f"nothing found: {place} has no features for what was asked")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError("--bbox takes four numbers", expected="W,S,E,N", got=text) from None
