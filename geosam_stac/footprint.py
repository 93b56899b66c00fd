"""Where a grid lies on the Earth, and what its CRS is called. Pure geometry.

Owns the WGS84 footprint of RFC 7946: densified, wound counter-clockwise, split at the antimeridian.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import antimeridian
import numpy as np
import shapely
from pyproj import Transformer
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from geosam_stac.errors import DataError

if TYPE_CHECKING:
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

# Points on each side of the extent before it is projected. 64 keep the outline of a 110 km UTM
# tile within 1 m; what turns out straight within 1 m is dropped again.
_POINTS_PER_SIDE = 64
_SIMPLIFY_DEG = 1e-5


def footprint_wgs84(geobox: GeoBox) -> BaseGeometry:
    """Extent of a grid in WGS84 degrees, counter-clockwise, split at the antimeridian (RFC 7946).

    The outline is densified before it is projected. An extent around a pole reaches to the pole.

    Returns
    -------
    shapely.Polygon or shapely.MultiPolygon

    Raises
    ------
    DataError
        The grid has no CRS, or its extent has no place on the Earth.
    """
    if geobox.crs is None:
        raise DataError("the grid has no CRS", hint="Name one with --crs")
    outline = geobox.extent.geom
    ring = shapely.get_coordinates(
        outline.segmentize(outline.exterior.length / 4 / _POINTS_PER_SIDE)
    )
    transformer = Transformer.from_crs(geobox.crs.proj, "OGC:CRS84", always_xy=True)
    lon, lat = transformer.transform(ring[:, 0], ring[:, 1])
    # Corners of a swath or of a world map may lie beyond the Earth: the rest of the ring stands.
    on_earth = np.isfinite(lon) & np.isfinite(lat)
    lon, lat = lon[on_earth], lat[on_earth]
    if len(lon) < 4:
        raise DataError("the extent has no place on the Earth", got=f"{outline.bounds}")
    if geobox.crs.geographic and np.ptp(lon) >= 360:
        return shapely.box(-180.0, lat.min(), 180.0, lat.max())  # 0 to 360 goes around as well
    fixed = antimeridian.fix_polygon(
        shapely.Polygon(np.column_stack([lon, lat])),
        force_north_pole=_holds_pole(geobox, transformer, 90.0),
        force_south_pole=_holds_pole(geobox, transformer, -90.0),
        fix_winding=True,  # grids with y downwards, or south up, are wound the other way
        great_circle=False,
    )
    # Of what is smaller than a metre, the shape must stay too.
    tolerance = min(_SIMPLIFY_DEG, 1e-4 * math.sqrt(fixed.area))
    parts = shapely.get_parts(shapely.make_valid(fixed.simplify(tolerance)))
    polygons = [orient(part, sign=1.0) for part in parts if isinstance(part, shapely.Polygon)]
    if not polygons:
        raise DataError("the extent has no place on the Earth", got=f"{outline.bounds}")
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def resolution(geobox: GeoBox) -> float:
    """Pixel width of a grid in units of its CRS; of a rotated grid too."""
    affine = geobox.affine
    return math.hypot(affine.a, affine.d)


def crs_code(crs: CRS | None) -> str | None:
    """`EPSG:n`, or another authority's code; None for a CRS that no authority names."""
    if crs is None:
        return None
    if crs.epsg is not None:
        return f"EPSG:{crs.epsg}"
    authority = crs.proj.to_authority()
    return ":".join(authority) if authority is not None else None


def _holds_pole(geobox: GeoBox, transformer: Transformer, latitude: float) -> bool:
    # In a cylindrical projection the pole is a line or infinitely far: no ring goes around it.
    if geobox.crs is None or geobox.crs.geographic:
        return False
    x, y = transformer.transform([0.0, 90.0], [latitude] * 2, direction="INVERSE")
    is_point = np.isfinite([*x, *y]).all() and math.dist((x[0], y[0]), (x[1], y[1])) < 1.0
    return bool(is_point and geobox.extent.geom.contains(shapely.Point(x[0], y[0])))
