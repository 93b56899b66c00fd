"""`geosam-stac preview`: a scene's embeddings as a picture."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import NO_METAVAR, Quiet, Verbose
from geosam_stac.errors import UsageError

SUFFIXES = (".tif", ".tiff", ".png")


def preview(
    *,
    item: Annotated[
        str, typer.Argument(metavar="ITEM", help="A feature Item, or its folder: URL or path.")
    ],
    pca: Annotated[
        list[str] | None,
        typer.Option(
            "--pca", metavar="FILE", help="Where to: .tif is a COG, .png a picture. Repeatable."
        ),
    ] = None,
    asset: Annotated[
        bool,
        typer.Option(
            "--asset",
            metavar=NO_METAVAR,
            help="Write the COG into the Item's folder, too, and name it in the Item.",
        ),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", metavar=NO_METAVAR, help="Find the colours anew, though some are stored."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the image embeddings as colours: their three principal components, chips blended.

    Beside FILE the colours are written as FILE.pca.json: a vector has one colour in every chip.
    Prints each picture's href.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    wanted = pca or []
    for name in wanted:
        if not name.lower().endswith(SUFFIXES):
            raise UsageError(
                "--pca does not say which kind of picture",
                expected="a name that ends with " + ", ".join(SUFFIXES),
                got=repr(name),
            )
    if not wanted and not asset:
        raise UsageError("there is nothing to do", hint="Give --pca FILE, or --asset")
    from geosam_stac import preview as pictures
    from geosam_stac.storage import put_file
    from geosam_stac.store import FeatureItem, open_item

    features = FeatureItem(open_item(item))
    colours = pictures.projection(features, refit=refit)
    with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
        path = Path(folder) / "overview.tif"
        pictures.cog(features, colours, path)
        for name in wanted:
            is_png = name.lower().endswith(".png")
            console.result(put_file(name, pictures.png(path) if is_png else path.read_bytes()))
            put_file(f"{name}.pca.json", colours.to_json())
        if asset:
            pictures.attach(features, colours, path.read_bytes())
            console.result(f"{features.href.rpartition('/')[0]}/{pictures.OVERVIEW_NAME}")
    shares = ", ".join(f"{100 * share:.0f} %" for share in colours.explained)
    console.note(f"red, green and blue hold {shares} of the variance")
