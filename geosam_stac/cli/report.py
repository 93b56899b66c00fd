"""`geosam-stac report`: one HTML page about an output."""

from __future__ import annotations

from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import Quiet, Verbose


def report(
    *,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="The --out of encode, local or on a bucket; or one feature Item."
        ),
    ],
    html: Annotated[str, typer.Option("--html", metavar="FILE", help="Where to: path or URL.")],
    details: Annotated[
        int,
        typer.Option(
            "--details", metavar="N", min=0, help="Scenes with pictures and chips; all are listed."
        ),
    ] = 20,
    pca_chips: Annotated[
        int,
        typer.Option(
            "--pca-chips",
            metavar="N",
            min=0,
            help="Chips whose features are read, at most, for pictures of embeddings that are not "
            "stored (see preview --asset).",
        ),
    ] = 500,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write one self-contained HTML page: footprints, chips, pictures, provenance, time, size.

    It needs no network to be looked at. Prints its href.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    from geosam_stac.report import Limits, gather, render
    from geosam_stac.storage import put_file

    found = gather(out, Limits(details=details, pca_chips=pca_chips))
    page = render(found).encode()
    console.result(put_file(html, page))
    for scene in found.scenes:
        for problem in scene.problems:
            console.warn(f"{scene.id}: {problem}")
    count = len(found.scenes)
    console.note(f"{len(page) / 1e6:,.1f} MB, {count:,} scene{'' if count == 1 else 's'}")
