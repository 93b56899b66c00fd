"""Points and boxes of a user's CRS in the scene's: longitude and latitude unless said."""

from __future__ import annotations

import math
from typing import Any

import shapely
from odc.geo.crs import CRS
from odc.geo.geom import box
from pyproj.exceptions import CRSError

from geosam_stac.errors import UsageError
from geosam_stac.sources.extent import project

LONLAT = "EPSG:4326"
NATIVE = "native"


def find_crs(text: str, scene_crs: CRS) -> CRS:
    """A CRS by its name; "native" is the scene's own.

    Raises UsageError where PROJ knows no such CRS.
    """
    if text.lower() == NATIVE:
        return scene_crs
    try:
        return CRS(text)
    except (CRSError, ValueError) as error:
        raise UsageError(
            "--crs is no CRS that PROJ knows", expected="native, or as EPSG:32610", got=repr(text)
        ) from error


def points_in(points: list[tuple[float, float]], crs: str, scene_crs: CRS) -> list[Any]:
    """Shapely points in the scene's CRS.

    Raises UsageError for what is no number, no place in degrees, or cannot be projected.
    """
    own = find_crs(crs, scene_crs)
    for x, y in points:
        _check(own, [(x, y)], f"{x:g},{y:g}")
    if own == scene_crs:
        return [shapely.Point(x, y) for x, y in points]
    xs, ys = own.transformer_to_crs(scene_crs)(
        [float(x) for x, _ in points], [float(y) for _, y in points]
    )
    found = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    for (x, y), point in zip(found, points, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            raise UsageError(
                f"the point cannot be projected to {scene_crs}", got=f"{point[0]:g},{point[1]:g}"
            )
    return [shapely.Point(x, y) for x, y in found]


def point_in(point: tuple[float, float], crs: str, scene_crs: CRS) -> Any:
    """One point, as `points_in`."""
    return points_in([point], crs, scene_crs)[0]


def box_in(bounds: tuple[float, float, float, float], crs: str, scene_crs: CRS) -> Any:
    """A box W,S,E,N as a shapely polygon in the scene's CRS, its edges densified.

    Raises UsageError where it is empty, upside down, no place in degrees, or cannot be projected.
    """
    own = find_crs(crs, scene_crs)
    west, south, east, north = bounds
    said = ",".join(f"{value:g}" for value in bounds)
    _check(own, [(west, south), (east, north)], said)
    if own.geographic and west > east:
        east += 360.0  # across the antimeridian
    if west >= east or south >= north:
        raise UsageError("the box is empty", expected="W,S,E,N", got=said)
    area = project(box(west, south, east, north, own), scene_crs).geom
    if area.is_empty or not all(map(math.isfinite, area.bounds)):
        raise UsageError(f"the box cannot be projected to {scene_crs}", got=said)
    return area


def _check(crs: CRS, points: list[tuple[float, float]], said: str) -> None:
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise UsageError("a coordinate is no number", got=said)
        if crs.geographic and not (-360 <= x <= 360 and -90 <= y <= 90):
            raise UsageError(
                f"a coordinate is not in degrees, but {crs} is",
                expected="longitude, latitude",
                got=said,
                hint="Check the order, or give --crs (native is the scene's own)",
            )
