"""Which chips lie where: the chips of a manifest on the pixel grid that they share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geosam_stac.errors import DataError
from geosam_stac.footprint import crs_code
from geosam_stac.types import Window

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray


_ROUNDING_PX = 1e-3


class ChipIndex:
    """The places of a manifest's chips.

    `crs` is the scene's; `geobox` its grid, as far as chips, with and without a feature, cover it.
    `windows` (N, 4) int64: row and column offset, height and width in px of that grid, one line a
    row of the manifest; `skipped_windows` (M, 4) those of the chips without a feature. `boxes` (N,)
    the chips' outlines, `centres` (N, 2) their x and y, in `crs`.
    """

    def __init__(self, manifest: gpd.GeoDataFrame, skipped: gpd.GeoDataFrame) -> None:
        if manifest.empty:
            raise DataError(
                "the Item has no chip with a feature",
                hint="All its chips were skipped: see skipped.parquet",
            )
        if manifest.crs is None:
            raise DataError("the manifest names no CRS", hint="Encode the scene again")
        crs = CRS(manifest.crs)
        self.crs = CRS(crs_code(crs) or crs)  # by its code it reads better in messages
        affine = chip_transform(manifest.iloc[0])
        self.boxes: NDArray[Any] = manifest.geometry.to_numpy()
        self.centres = manifest[["chip_center_x", "chip_center_y"]].to_numpy(dtype=float)
        corners = _pixels(self.boxes, affine)
        every = corners
        if not skipped.empty:
            every = np.vstack([corners, _pixels(skipped.geometry.to_numpy(), affine)])
        left, top = every[:, :2].min(axis=0)
        right, bottom = every[:, 2:].max(axis=0)
        self.geobox = GeoBox(
            (int(bottom - top), int(right - left)),
            affine * Affine.translation(float(left), float(top)),
            self.crs,
        )
        x0, y0, x1, y1 = every.T
        windows = np.column_stack([y0 - top, x0 - left, y1 - y0, x1 - x0])
        self.windows, self.skipped_windows = np.split(windows, [len(corners)])

    def window(self, row: int) -> Window:
        """The window of a row of the manifest."""
        row_off, col_off, height, width = (int(value) for value in self.windows[row])
        return Window(row_off=row_off, col_off=col_off, height=height, width=width)

    def extent(self, rows: list[int], skipped: NDArray[np.bool_]) -> Window:
        """The smallest window that holds these chips, with and without a feature."""
        held = np.concatenate([self.windows[rows], self.skipped_windows[skipped]])
        row_off, col_off = (int(value) for value in held[:, :2].min(axis=0))
        row_stop, col_stop = (int(value) for value in (held[:, :2] + held[:, 2:]).max(axis=0))
        return Window(
            row_off=row_off, col_off=col_off, height=row_stop - row_off, width=col_stop - col_off
        )

    def covering(self, geometry: Any) -> NDArray[np.intp]:
        """Rows of the manifest whose chips cover a geometry in the scene's CRS."""
        return np.flatnonzero(shapely.covers(self.boxes, geometry))

    def covering_px(self, box: tuple[float, float, float, float]) -> NDArray[np.intp]:
        """Rows of the manifest whose chips cover a box, in px of the scene's grid.

        A thousandth of a pixel beyond the edge still counts: projecting rounds.
        """
        left, top, right, bottom = box
        row_off, col_off, height, width = self.windows.T
        return np.flatnonzero(
            (left >= col_off - _ROUNDING_PX)
            & (right <= col_off + width + _ROUNDING_PX)
            & (top >= row_off - _ROUNDING_PX)
            & (bottom <= row_off + height + _ROUNDING_PX)
        )

    def holding(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> list[int]:
        """Rows of the manifest whose chips hold any of these pixels of the scene's grid."""
        row_off, col_off, height, width = self.windows.T
        near = np.flatnonzero(
            (row_off <= rows.max())
            & (row_off + height > rows.min())
            & (col_off <= cols.max())
            & (col_off + width > cols.min())
        )
        return [int(row) for row in near]

    def touching(self, geometry: Any) -> NDArray[np.intp]:
        """Rows of the manifest whose chips share more than a border with a geometry."""
        return np.flatnonzero(overlaps(self.boxes, geometry))

    def nearest(self, rows: NDArray[np.intp], x: float, y: float) -> int:
        """Of these rows, the one whose centre is nearest; of equals the first, as Geo-SAM does."""
        # geosam 0.1.3, FeatureQueryEngine._nearest_candidate_index.
        off = self.centres[rows] - (x, y)
        return int(rows[np.argmin((off**2).sum(axis=1))])


def overlaps(boxes: NDArray[Any], geometry: Any) -> NDArray[np.bool_]:
    """Which boxes share more than a border with a geometry."""
    found: NDArray[np.bool_] = shapely.intersects(boxes, geometry) & ~shapely.touches(
        boxes, geometry
    )
    return found


def chip_transform(row: Any) -> Affine:
    """The affine of a manifest's row; DataError where it holds none."""
    values = _numbers(row, "transform", 6)
    affine = Affine(*values)
    if not np.isfinite(values).all() or affine.is_degenerate:
        raise _malformed(row, "transform")
    return affine


def chip_shape(row: Any) -> tuple[int, int]:
    """Rows and columns of a manifest's chip in px; DataError where it holds none."""
    return _size(row, "shape")


def chip_input_px(row: Any) -> int:
    """Side of the model's input in px; DataError where it is no square."""
    height, width = _size(row, "dst_shape")
    if height != width:
        raise _malformed(row, "dst_shape")
    return height


def _size(row: Any, name: str) -> tuple[int, int]:
    height, width = _numbers(row, name, 2)
    if not (height >= 1 and width >= 1 and height == int(height) and width == int(width)):
        raise _malformed(row, name)
    return int(height), int(width)


def _numbers(row: Any, name: str, count: int) -> list[float]:
    try:
        values = json.loads(row[name])
        numbers = [float(value) for value in values]
    except (ValueError, TypeError, RecursionError) as error:
        raise _malformed(row, name) from error
    if len(numbers) != count:
        raise _malformed(row, name)
    return numbers


def _malformed(row: Any, name: str) -> DataError:
    return DataError(
        f"the manifest's {name} is malformed", chip=str(row["chip_id"]), got=repr(row[name])[:120]
    )


def _pixels(boxes: NDArray[Any], affine: Affine) -> NDArray[np.int64]:
    """Outlines as left, top, right, bottom in px of a grid, (N, 4) int64."""
    back = ~affine

    def to_px(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy[:, 0], xy[:, 1]
        return np.column_stack([back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f])

    corners = shapely.bounds(shapely.transform(boxes, to_px))
    if not np.isfinite(corners).all():
        raise DataError("the manifest has a chip without a place")
    whole: NDArray[np.int64] = np.rint(corners).astype(np.int64)
    return whole
