"""A scene as one picture: its embeddings in colours, or a raster, with chips, prompts and polygons.

Pillow draws it. Reads features and the raster that is named; writes nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from PIL import Image, ImageDraw
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from geosam_stac import preview
from geosam_stac.errors import DataError, UsageError
from geosam_stac.store import FeatureItem
from geosam_stac.thumbnail import CHIP_COLOUR, SKIPPED_COLOUR

if TYPE_CHECKING:
    from numpy.typing import NDArray

PCA = "pca"
SIZE_PX, LEAST_PX, MOST_PX = 768, 64, 4096
POLYGON_COLOURS = ((0, 229, 255), (255, 0, 170), (57, 255, 20), (255, 145, 0), (255, 255, 255))
ON_COLOUR, OFF_COLOUR = (57, 255, 20, 255), (255, 69, 58, 255)
FILL_OPACITY = 70
# Pillow's lines have no soft edges: they are drawn larger, and reduced.
_FINER = 3
_LOW_PERCENT, _HIGH_PERCENT = 2, 98

Colour = tuple[int, int, int, int]


def pca_cog(features: FeatureItem) -> bytes:
    """The scene's embeddings in colours as a COG: the one that is stored, else drawn now.

    Raises
    ------
    DataError
        The scene has no chip with a feature, or a file is not the one that was written.
    """
    stored = features.item.assets.get(preview.OVERVIEW)
    if stored is not None:
        return features.read_key(stored.href)
    with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
        path = Path(folder) / preview.OVERVIEW_NAME
        preview.cog(features, preview.projection(features), path)
        return path.read_bytes()


def plot(
    features: FeatureItem,
    background: bytes | str | os.PathLike[str],
    *,
    polygons: gpd.GeoDataFrame | None = None,
    points: Sequence[tuple[float, float]] = (),
    labels: Sequence[int] | None = None,
    chips: bool = True,
    size_px: int = SIZE_PX,
) -> Image.Image:
    """Draw a scene; see `views.FeatureItem.plot`. `background`: a raster's bytes, or its name."""
    if not LEAST_PX <= size_px <= MOST_PX:
        raise UsageError("size_px is out of range", expected=f"{LEAST_PX} to {MOST_PX}")
    signs = list(labels) if labels is not None else [1] * len(points)
    if len(signs) != len(points) or not {0, 1}.issuperset(signs):
        raise UsageError(
            "labels do not fit the points", expected="0 or 1 for each point", got=f"{signs}"
        )
    grid = features.geobox
    shape = _fitted((grid.height, grid.width), size_px)
    crs = features.crs.proj
    if isinstance(background, bytes):
        with rasterio.MemoryFile(background) as memory:
            base = _read(memory.name, grid, crs.to_wkt(), shape)
    else:
        base = _read(os.fspath(background), grid, crs.to_wkt(), shape)
    drawing = _Drawing(base, grid)
    if chips:
        drawing.outlines(features.manifest.geometry, CHIP_COLOUR)
        drawing.outlines(features.skipped.geometry, SKIPPED_COLOUR)
    if polygons is not None:
        drawing.polygons(_in_scene(polygons, features))
    if len(points):
        clicks = gpd.GeoSeries(shapely.points(np.asarray(points, dtype=float)), crs="OGC:CRS84")
        placed = clicks.to_crs(crs)
        drawing.clicks(zip(placed.x, placed.y, strict=True), signs)
    return drawing.image()


class _Drawing:
    """A picture of a grid, and a finer layer upon it."""

    def __init__(self, base: Image.Image, grid: GeoBox) -> None:
        self._base = base
        self._layer = Image.new("RGBA", (base.width * _FINER, base.height * _FINER))
        self._to_layer = ~grid.zoom_to((self._layer.height, self._layer.width)).affine

    def image(self) -> Image.Image:
        """Both, one upon the other."""
        layer = self._layer.resize(self._base.size, Image.Resampling.LANCZOS)
        return Image.alpha_composite(self._base, layer)

    def outlines(self, shapes: Iterable[Any], colour: Colour) -> None:
        """Thin outlines."""
        draw = ImageDraw.Draw(self._layer)
        for shape in shapes:
            draw.line(self._ring(shape.exterior), fill=colour, width=_FINER)

    def polygons(self, shapes: Iterable[Any]) -> None:
        """Filled lightly, holes left out, a colour each in turn."""
        for number, shape in enumerate(shapes):
            colour = POLYGON_COLOURS[number % len(POLYGON_COLOURS)]
            inside = Image.new("L", self._layer.size)
            fill = ImageDraw.Draw(inside)
            rings = []
            for part in shapely.get_parts(shape):
                if part.geom_type != "Polygon":
                    continue
                rings.append(outer := self._ring(part.exterior))
                fill.polygon(outer, fill=FILL_OPACITY)
                for hole in part.interiors:
                    rings.append(inner := self._ring(hole))
                    fill.polygon(inner, fill=0)
            self._layer.alpha_composite(Image.merge("RGBA", (*_plain(colour, inside), inside)))
            draw = ImageDraw.Draw(self._layer)
            for ring in rings:
                draw.line(ring, fill=(*colour, 255), width=_FINER, joint="curve")

    def clicks(self, places: Iterable[tuple[float, float]], labels: Iterable[int]) -> None:
        """Dots with a dark rim: green on the object, red off it."""
        draw = ImageDraw.Draw(self._layer)
        for place, label in zip(places, labels, strict=True):
            x, y = self._ring(shapely.Point(place))[0]
            for radius, fill in ((7, (0, 0, 0, 255)), (5, ON_COLOUR if label else OFF_COLOUR)):
                r = radius * _FINER
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def _ring(self, line: Any) -> list[tuple[float, float]]:
        to = self._to_layer
        x, y = shapely.get_coordinates(line).T
        return list(zip(to.a * x + to.b * y + to.c, to.d * x + to.e * y + to.f, strict=True))


def _plain(colour: tuple[int, int, int], like: Image.Image) -> list[Image.Image]:
    return [Image.new("L", like.size, value) for value in colour]


def _fitted(shape: tuple[int, int], size_px: int) -> tuple[int, int]:
    height, width = shape
    scale = size_px / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _in_scene(polygons: gpd.GeoDataFrame, features: FeatureItem) -> Iterable[Any]:
    if polygons.crs is None:
        raise UsageError("polygons without a CRS cannot be placed", hint="Call .set_crs first")
    shapes: Iterable[Any] = polygons.to_crs(features.crs.proj).geometry.dropna()
    return shapes


def _read(name: str, grid: GeoBox, crs: str, shape: tuple[int, int]) -> Image.Image:
    """A raster on a grid, as RGBA of a shape: transparent where it has no data."""
    height, width = shape
    scaled = grid.zoom_to(shape)
    try:
        with rasterio.open(name) as source:
            finer = source.width * source.height > height * width
            with WarpedVRT(
                source,
                crs=crs,
                transform=scaled.affine,
                width=width,
                height=height,
                resampling=Resampling.average if finer else Resampling.cubic,
                add_alpha=ColorInterp.alpha not in source.colorinterp,
            ) as raster:
                coloured = sum(kind != ColorInterp.alpha for kind in source.colorinterp)
                bands = 3 if coloured >= 3 else 1
                pixels = raster.read(list(range(1, bands + 1)))
                alpha = raster.dataset_mask()
    except RasterioError as error:
        raise DataError(
            "the background cannot be read", href=name, got=str(error), expected="a raster"
        ) from error
    colours = [_stretched(band, alpha) for band in pixels]
    rgb = colours if bands == 3 else [colours[0]] * 3
    return Image.fromarray(np.dstack([*rgb, alpha]))


def _stretched(band: NDArray[Any], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 as it is; all else between 2 and 98 % of what is valid."""
    if band.dtype == np.uint8:
        return band
    values = band.astype(np.float64)
    valid = values[(alpha > 0) & np.isfinite(values)]
    low, high = np.percentile(valid, (_LOW_PERCENT, _HIGH_PERCENT)) if valid.size else (0, 1)
    scaled = np.nan_to_num((values - low) / max(high - low, np.finfo(float).tiny))
    shown: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return shown
