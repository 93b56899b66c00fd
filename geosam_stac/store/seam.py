"""Outlines on a map that ends at a meridian, as Mercator's do at 180 degrees: cut there.

What is projected point by point jumps from one edge of such a map to the other. Maps that go on
beyond that meridian, as polar ones, are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import Transformer

from geosam_stac.errors import UsageError
from geosam_stac.store.degrees import within_180

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray
    from odc.geo.crs import CRS

# So near to the meridian, 0.1 mm, rounding cannot put a point on the other edge of the map.
_EDGE = 180.0 - 1e-9
# A side along the meridian may be an arc on the map; of 1 km it stays within centimetres of it.
_SIDE_DEGREES = 0.01
_MIDDLES = ("Longitude of natural origin", "Longitude of false origin")


def projected(shapes: gpd.GeoSeries, target: CRS) -> gpd.GeoSeries:
    """Polygons and MultiPolygons in a projected CRS.

    Their sides must be short: one that is longer than 180 degrees is taken for a jump.

    Raises UsageError where one that is cut holds a pole that has no place in the CRS.
    """
    result = shapes.to_crs(target.proj)
    middle = _middle(target)
    if middle is None:
        return result
    # Of the same datum: a shift from another one would move the meridian.
    lonlat = target.proj.geodetic_crs
    to_map = Transformer.from_crs(lonlat, target.proj, always_xy=True)

    def turned(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([(xy[:, 0] - middle + 180.0) % 360.0 - 180.0, xy[:, 1]])

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        lon = np.clip(xy[:, 0], -_EDGE, _EDGE) + middle
        return np.column_stack(to_map.transform(lon, xy[:, 1]))

    for number, shape in enumerate(shapes.to_crs(lonlat)):
        flat = shapely.transform(shape, turned)
        cut = within_180(flat)
        if cut is not flat and _has_edges(placed, flat):
            outline = shapely.transform(shapely.segmentize(cut, _SIDE_DEGREES), placed)
            if not np.isfinite(shapely.get_coordinates(outline)).all():
                raise UsageError(
                    f"a mask holds a pole, which has no place in {target}",
                    hint="Choose another --out-crs",
                )
            result.iloc[number] = outline
    return result


def _middle(crs: CRS) -> float | None:
    """The longitude in the middle of a map, opposite to its edges."""
    operation = crs.proj.coordinate_operation
    for parameter in () if operation is None else operation.params:
        if parameter.name in _MIDDLES and parameter.unit_name.lower() == "degree":
            return float(parameter.value)
    return None


def _has_edges(placed: Any, shape: Any) -> bool:
    """Whether the meridian opposite to the middle is at two places of the map, where a shape is."""
    _, south, _, north = shape.bounds
    lat = (south + north) / 2
    west, east = placed(np.array([[-180.0, lat], [180.0, lat]]))
    distance = np.hypot(*(east - west))
    return bool(np.isfinite(distance) and distance > 1.0)
