"""`geosam-stac segment`: prompts on cached features, masks and polygons out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import NO_METAVAR, Json, Quiet, Verbose
from geosam_stac.cli.pull import numbers
from geosam_stac.errors import EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from geosam_stac.store import FeatureItem, Segmentation

EPILOG = (
    "Example: geosam-stac segment features/ID --point 10.05,53.02 --point 10.06,53.02,0 "
    "--out field.geojson\n\n"
    "Many objects: geosam-stac segment features/ID --prompts clicks.gpkg --out fields.gpkg"
)


def segment(
    *,
    item: Annotated[
        str, typer.Argument(metavar="ITEM", help="A feature Item, or its folder: URL or path.")
    ],
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="LON,LAT[,0|1]",
            help="A click: 1 (the default) on the object, 0 off it. Repeatable, for one object.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="W,S,E,N", help="A box. Several are several objects."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="FILE", help="A rough shape: raster or vector file."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Many objects: points, or shapes whose bounds are boxes; columns id, label, group "
            "(rows of one group are one object).",
        ),
    ] = None,
    crs: Annotated[
        str,
        typer.Option("--crs", metavar="CRS", help="Of --point and --box; native: the scene's own."),
    ] = "EPSG:4326",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="PATH|URL",
            help=".geojson, .gpkg, .parquet: polygons. .tif: masks on the scene's grid. Default: "
            "GeoJSON on stdout.",
        ),
    ] = None,
    out_crs: Annotated[
        str | None,
        typer.Option(
            "--out-crs", metavar="CRS", help="Of a .gpkg or .parquet. Default: the scene's own."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="PATH|URL",
            help="The weights that encoded it. Default: the model's own.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where the decoder runs.")
    ] = "cpu",
    multimask: Annotated[
        bool,
        typer.Option("--multimask", metavar=NO_METAVAR, help="Three masks: part, whole, more."),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow",
            metavar=NO_METAVAR,
            help="Follow an object across its chip's border.",
        ),
    ] = True,
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prompt features that are encoded already: points, boxes, a mask, or a file of prompts.

    Needs the weights that encoded them, and a CPU; the raster is not read. Prints where the masks
    went, or the masks as GeoJSON.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    points, labels = _points(point or [])
    boxes = [_box(text) for text in box or []]
    from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
    from geosam_stac.store import FeatureItem, open_item
    from geosam_stac.store.prompting import count_objects, read_layer
    from geosam_stac.store.segmentation import check_format

    layer = None if prompts is None else read_layer(prompts, "--prompts")
    if out is not None:
        many = len(boxes) > 1 or (layer is not None and count_objects(layer) > 1)
        check_format(out, out_crs, several_of_each=multimask and many)
    elif out_crs is not None:
        raise UsageError("--out-crs is of a file", hint="Name one with --out")
    with console.ProgressSink() as sink:
        scene = FeatureItem(
            open_item(item),
            cache_dir=default_cache_dir(os.environ),
            token=hugging_face_token(os.environ),
            sink=sink,
        )
        found = scene.segment(
            points,
            labels,
            boxes,
            None if mask is None else str(mask),
            prompts=layer,
            crs=crs,
            multimask=multimask,
            follow=follow,
            checkpoint=checkpoint,
            device=device,
        )
    _warn_of_random_weights(scene)  # after usage errors, of which it would be no part
    _tell(found, None if out is None else found.write(out, crs=out_crs), json_lines)
    if found.failed:
        raise SystemExit(EXIT_PARTIAL)


def _points(texts: list[str]) -> tuple[list[tuple[float, float]], list[int]]:
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    for text in texts:
        x, y, *label = numbers("--point", text, (2, 3), "LON,LAT or LON,LAT,0|1")
        if label and label[0] not in (0, 1):
            raise UsageError("--point: a label is 1 (on the object) or 0 (off it)", got=repr(text))
        points.append((x, y))
        labels.append(int(label[0]) if label else 1)
    return points, labels


def _box(text: str) -> tuple[float, float, float, float]:
    west, south, east, north = numbers("--box", text, (4,), "W,S,E,N")
    return west, south, east, north


def _warn_of_random_weights(scene: FeatureItem) -> None:
    if str(scene.item.properties.get("geosam:weights")).startswith("untrained"):
        console.warn(
            f"{scene.item.id} was encoded with RANDOM weights: its masks are good for trying the "
            "pipeline, and for nothing else"
        )


def _tell(found: Segmentation, href: str | None, json_lines: bool) -> None:
    frame = found.polygons
    facts: dict[str, Any] = {
        "out": href,
        "item": found.item_id,
        "model": found.model,
        "masks": [
            {name: row[name] for name in ("id", "score", "area_m2", "chips", "complete")}
            for row in frame.drop(columns="geometry").to_dict("records")
        ],
        "failed": [{"id": name, "error": str(error)} for name, error in found.failed.items()],
    }
    if json_lines:
        console.result_json(facts)
    else:
        console.result(found.to_geojson() if href is None else href)
    for name, error in found.failed.items():
        console.warn(f"object {name}: {error}")
    for one in found.objects:
        if not one.mask.any():
            console.warn(f"object {one.id}: the mask is empty")
        if not one.complete:
            console.warn(
                f"object {one.id} goes on beyond the {len(one.chips):,} chips that it was "
                "followed through"
            )
    if len(frame):
        area = float(frame.area_m2.sum())
        console.note(
            f"{len(frame):,} mask{'' if len(frame) == 1 else 's'}, {area:,.0f} m2 on the ellipsoid"
        )
