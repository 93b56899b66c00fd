"""Pictures of a scene for its report: decoded, made small, encoded anew, as `data:` URIs.

A file is never embedded as it is: it comes from a stranger.
"""

from __future__ import annotations

import base64
import io
import tempfile
import warnings
from pathlib import Path

import rasterio
from PIL import Image
from rasterio.errors import RasterioError

from geosam_stac import preview
from geosam_stac.errors import DataError
from geosam_stac.report.facts import Picture
from geosam_stac.store import FeatureItem
from geosam_stac.thumbnail import factor_of

MOST_PX = 64 << 20
PNG_BYTES = 250_000
"""A larger picture is written as WebP, which is a fifth of it where pixels differ."""
_WEBP_QUALITY = 82


def side_px(scenes: int) -> int:
    """The longer side of each picture: the more scenes, the smaller."""
    return 768 if scenes <= 4 else 512 if scenes <= 12 else 384


def thumbnail(features: FeatureItem, most_px: int) -> Picture | None:
    """The scene's thumbnail; None where it has none.

    Raises
    ------
    DataError
        It is missing, is another one than was written, or no picture.
    """
    if "thumbnail" not in features.item.assets:
        return None
    data = features.read_asset("thumbnail")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["PNG"])
            image.load()
    except (OSError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise DataError(
            "the thumbnail is no picture", item=features.item.id, got=type(error).__name__
        ) from error
    height, width = features.geobox.shape
    # It holds whole cells of so many px of the scene: the last ones may reach beyond its end.
    factor = factor_of((height, width))
    whole = image.size == (-(-width // factor), -(-height // factor))
    scene_px = (image.width * factor, image.height * factor) if whole else (width, height)
    return _picture(image.convert("RGBA"), most_px, scene_px, "As the encoder saw it.")


def embeddings(features: FeatureItem, most_px: int, chips: int) -> tuple[Picture | None, str, int]:
    """The embeddings as colours: the stored picture, else made of the features.

    Parameters
    ----------
    features
        The scene.
    most_px
        Longer side of the picture.
    chips
        A picture is made of at most so many chips.

    Returns
    -------
    tuple
        The picture, or why there is none; and of how many chips features were read.

    Raises
    ------
    DataError
        A file is missing, or another one than was written.
    """
    if preview.OVERVIEW in features.item.assets:
        data = features.read_asset(preview.OVERVIEW)
        with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
            path = Path(folder) / preview.OVERVIEW_NAME
            path.write_bytes(data)
            return _of_cog(features, path, most_px, "The overview stored beside the Item."), "", 0
    count = len(features.manifest)
    if count > chips:
        return None, "It is not stored, and the scene has too many chips to make it here.", 0
    colours = preview.projection(features)
    with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
        path = Path(folder) / preview.OVERVIEW_NAME
        preview.cog(features, colours, path)
        shares = ", ".join(f"{100 * share:.0f} %" for share in colours.explained)
        note = f"Red, green and blue hold {shares} of the variance."
        return _of_cog(features, path, most_px, note), "", count


def _of_cog(features: FeatureItem, path: Path, most_px: int, note: str) -> Picture:
    try:
        with rasterio.open(path, driver="GTiff") as dataset:
            if dataset.count != 3 or dataset.width * dataset.height > MOST_PX:
                raise DataError(
                    "the overview is not one of `geosam-stac preview`",
                    item=features.item.id,
                    got=f"{dataset.count} bands of {dataset.width} x {dataset.height} px",
                )
            image = preview.image_of(dataset, most_px)
            # Both grids have the scene's corner and axes.
            cell_px = dataset.transform.a / features.geobox.affine.a
            scene_px = (dataset.width * cell_px, dataset.height * cell_px)
    except RasterioError as error:
        raise DataError(
            "the overview is no picture", item=features.item.id, got=type(error).__name__
        ) from error
    return _picture(image, most_px, scene_px, note)


def _picture(image: Image.Image, most_px: int, scene_px: tuple[float, float], note: str) -> Picture:
    if max(image.size) > most_px:
        image = image.copy()
        image.thumbnail((most_px, most_px), Image.Resampling.BOX)
    if image.getextrema()[-1] == (255, 255):  # opaque: the plane would cost something
        image = image.convert("RGB")
    out = io.BytesIO()
    kind = "png"
    image.save(out, format="PNG", optimize=True)
    if out.tell() > PNG_BYTES:
        out, kind = io.BytesIO(), "webp"
        image.save(out, format="WEBP", quality=_WEBP_QUALITY, method=4)
    return Picture(
        uri=f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}",
        width=image.width,
        height=image.height,
        scene_px=scene_px,
        note=note,
    )
