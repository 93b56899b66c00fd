"""Grids against each other, and GDAL's warp between them, such that no pixel depends on the cut.

A pixel must come out the same whichever window of a scene it is made in: the transformer is
exact, and the kernel's width is given for the whole scene. Knows nothing of scenes and bands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

# Source pixels around a window: of the level that is read, at most 2 become one, so that bicubic
# needs 4 on each side of a sample; one more for rounding.
PADDING_PX = 5

# Points a side at which a window is looked up in the source.
WINDOW_POINTS = 17

# GDAL's error threshold in source pixels. 0 means "default" to rasterio, so "none" is written thus.
EXACT = 1e-9


def warp(
    data: NDArray[Any],
    src: GeoBox,
    dst: GeoBox,
    *,
    nodata: float | None,
    resampling: str,
    shrink: tuple[float, float],
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Resample with GDAL, transforming every pixel exactly.

    Parameters
    ----------
    data
        (n, h, w) on `src`.
    src, dst
        The grids.
    nodata
        Of `data`, taken for outside too; None: what lies outside becomes 0.
    resampling
        nearest, bilinear, cubic or average.
    shrink
        Source pixels a target pixel along x and y, as `kernel_shrink` gives them, for the whole
        scene.

    Returns
    -------
    (n, H, W) on `dst`, and (1, H, W) bool, True where `dst` lies inside `src`; with a nodata it is
    True everywhere, and the values tell.
    """
    profile = {
        "driver": "GTiff",
        "height": src.height,
        "width": src.width,
        "count": data.shape[0],
        "dtype": data.dtype,
        "crs": wkt(src),
        "transform": src.affine,
        "nodata": nodata,
        "BIGTIFF": "IF_SAFER",
    }
    target: dict[str, Any] = {
        "crs": wkt(dst),
        "transform": dst.affine,
        "height": dst.height,
        "width": dst.width,
        "resampling": Resampling[resampling],
        "tolerance": EXACT,
        # Else a pixel counts as data in all bands when it is in one, and nodata values of the
        # others are blended in: 65535 would become 65534, a brightness.
        "UNIFIED_SRC_NODATA": "NO",
        # Left out, GDAL takes the kernel's width of each chunk's own shape, and the pixels
        # differ with the way the scene is cut (up to 21 of 250, measured at 10 m into 16 m).
        "XSCALE": repr(1 / shrink[0]),
        "YSCALE": repr(1 / shrink[1]),
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(data)
        if nodata is not None:
            with (
                memory.open() as dataset,
                WarpedVRT(dataset, src_nodata=nodata, nodata=nodata, **target) as vrt,
            ):
                return vrt.read(), np.ones((1, *dst.shape), dtype=bool)
        # Without nodata a pixel outside the source cannot be told by its value: ask for alpha.
        with memory.open() as dataset, WarpedVRT(dataset, add_alpha=True, **target) as vrt:
            values = vrt.read()
            return values[:-1], values[-1:] > 0


def kernel_shrink(scale: float) -> float:
    """Source pixels a target pixel, as GDAL takes it for its kernel: 1 at least.

    Next to a whole number it is that number, as in GDAL's gdalwarpoperation.cpp.
    """
    whole = round(scale)
    return max(1.0, float(whole) if abs(scale - whole) < 0.05 else scale)


def source_part(grid: GeoBox, geobox: GeoBox) -> GeoBox | None:
    """The part of `grid` that a warp onto `geobox` needs; None where they do not meet.

    Looked up at points all over `geobox`, since its edges may be curves in the source and a pole
    may lie inside; what may bulge out between the points is added to the padding.
    """
    rows, cols = (np.linspace(0, size, WINDOW_POINTS) for size in geobox.shape)
    x, y = _apply(geobox.affine, *np.meshgrid(cols, rows))
    if geobox.crs is not None and grid.crs is not None and grid.crs != geobox.crs:
        x, y = geobox.crs.transformer_to_crs(grid.crs)(x, y)
    x, y = _apply(~grid.affine, x, y)
    spans = []
    with np.errstate(invalid="ignore"):
        for values, size in zip((y, x), grid.shape, strict=True):
            known = values[np.isfinite(values)]
            if not known.size:
                return None
            bends = [np.abs(np.diff(values, 2, axis=axis)) / 8 for axis in (0, 1)]
            bulge = max(float(bend[np.isfinite(bend)].max(initial=0)) for bend in bends)
            pad = PADDING_PX + bulge
            start = max(math.floor(known.min() - pad), 0)
            stop = min(math.ceil(known.max() + pad), size)
            if start >= stop:
                return None
            spans.append(slice(start, stop))
    return grid[tuple(spans)]


def _apply(
    affine: Affine, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def overview_grid(geobox: GeoBox, factor: int) -> GeoBox:
    """The grid of an overview: every `factor` pixels become one, as GDAL rounds its size."""
    if factor == 1:
        return geobox
    height, width = geobox.shape
    shape = (math.ceil(height / factor), math.ceil(width / factor))
    return GeoBox(shape, geobox.affine * Affine.scale(factor), geobox.crs)


def is_aligned(grid: GeoBox, geobox: GeoBox) -> bool:
    """Whether pixels of `grid` are pixels of `geobox`: then nothing is resampled."""
    if grid.crs != geobox.crs:
        return False
    to_grid = ~grid.affine * geobox.affine
    linear = (to_grid.a - 1, to_grid.b, to_grid.d, to_grid.e - 1)
    shift = (to_grid.c - round(to_grid.c), to_grid.f - round(to_grid.f))
    return bool(max(map(abs, linear)) < 1e-9 and max(map(abs, shift)) < 1e-4)


def offset_in(grid: GeoBox, geobox: GeoBox) -> tuple[int, int]:
    """Row and column in px of `grid` where `geobox`, aligned with it, begins; may lie outside."""
    offset = ~grid.affine * geobox.affine
    return round(offset.f), round(offset.c)


def inside_of(grid: GeoBox, geobox: GeoBox) -> NDArray[np.bool_]:
    """Which pixels of `geobox` lie on `grid`, which is aligned with it."""
    row, col = offset_in(grid, geobox)
    rows = np.arange(geobox.height) + row
    cols = np.arange(geobox.width) + col
    inside: NDArray[np.bool_] = np.logical_and.outer(
        (rows >= 0) & (rows < grid.height), (cols >= 0) & (cols < grid.width)
    )
    return inside


def wkt(geobox: GeoBox) -> str:
    """The CRS of a grid as WKT, which every GDAL reads."""
    assert geobox.crs is not None  # sources refuse a grid without one
    return str(geobox.crs.to_wkt())
