"""`geosam-stac catalog`: the catalog of what was encoded (`catalogs` are those of imagery)."""

from __future__ import annotations

from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import Json, Quiet, Verbose

app = typer.Typer(
    help="The static catalog of your own features. (`catalogs`: profiles of public STAC APIs.)",
    no_args_is_help=True,
)


@app.command("rebuild")
def rebuild(
    *,
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder or URL of the features, or its catalog.json."),
    ],
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make catalog.json, the Collections and items.parquet of the feature Items that are there.

    Safe to repeat, and safe while workers write; Items that are gone are dropped. Prints the href
    of catalog.json.
    """
    from geosam_stac.catalog import StaticCatalog, root_of
    from geosam_stac.hrefs import is_local, to_local_path

    console.set_verbosity(quiet=quiet, verbose=verbose)
    root = root_of(str(to_local_path(out)) if is_local(out) else out)
    with console.ProgressSink() as sink:
        done = StaticCatalog(root).rebuild(sink=sink)
    if json_lines:
        console.result_json(
            {
                "catalog": done.href,
                "items": done.items,
                "collections": done.collections,
                "dropped": done.dropped,
            }
        )
        return
    console.result(done.href)
    dropped = f", {done.dropped:,} dropped" if done.dropped else ""
    items = f"{done.items:,} Item{'' if done.items == 1 else 's'}"
    collections = f"{done.collections:,} Collection{'' if done.collections == 1 else 's'}"
    console.note(f"{items} in {collections}{dropped}")
