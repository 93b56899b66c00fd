"""Points and boxes of a user's CRS in the scene's: longitude and latitude unless said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from pyproj.exceptions import CRSError

from geosam_stac.errors import UsageError
from geosam_stac.sources.extent import meet

LONLAT = "EPSG:4326"
NATIVE = "native"


def find_crs(text: str, scene_crs: CRS, *, flag: str = "--crs") -> CRS:
    """A CRS by its name; "native" is the scene's own.

    Raises UsageError, which names the option, where PROJ knows no such CRS.
    """
    if text.lower() == NATIVE:
        return scene_crs
    try:
        return CRS(text)
    except (CRSError, ValueError) as error:
        raise UsageError(
            f"{flag} is no CRS that PROJ knows", expected="native, or as EPSG:32610", got=repr(text)
        ) from error


def points_in(points: Sequence[tuple[float, float]], crs: str, scene: GeoBox) -> list[Any]:
    """Shapely points in a scene's CRS; an empty one for what lies too far off to be projected.

    Raises UsageError for what is no number, or no place in degrees.
    """
    own = find_crs(crs, _crs(scene))
    for x, y in points:
        _check(own, [(x, y)], f"{x:g},{y:g}")
    xs: Any = [float(x) for x, _ in points]
    ys: Any = [float(y) for _, y in points]
    if own != scene.crs:
        xs, ys = own.transformer_to_crs(_crs(scene))(xs, ys)
    return [_near(float(x), float(y), scene) for x, y in zip(xs, ys, strict=True)]


def point_in(point: tuple[float, float], crs: str, scene: GeoBox) -> Any:
    """One point, as `points_in`."""
    return points_in([point], crs, scene)[0]


def box_in(bounds: tuple[float, float, float, float], crs: str, scene: GeoBox) -> Any:
    """Where a box W,S,E,N and a scene meet: a shapely geometry in its CRS; empty where nowhere.

    Raises UsageError where it is empty, upside down, or no place in degrees.
    """
    own = find_crs(crs, _crs(scene))
    if len(bounds) != 4:
        raise UsageError("a box has four numbers", expected="W,S,E,N", got=str(tuple(bounds)))
    west, south, east, north = bounds
    said = ",".join(f"{value:g}" for value in bounds)
    _check(own, [(west, south), (east, north)], said)
    if own.geographic and west > east:
        east += 360.0  # across the antimeridian
        if east - west > 180.0:
            raise UsageError(
                "the box goes around the far side of the Earth",
                expected="W,S,E,N; W > E crosses the antimeridian",
                got=said,
                hint="Check the order of W and E",
            )
    if west >= east or south >= north:
        raise UsageError("the box is empty", expected="W,S,E,N", got=said)
    return meet(box(west, south, east, north, own), scene).geom


def _near(x: float, y: float, scene: GeoBox) -> Any:
    if not (math.isfinite(x) and math.isfinite(y)):
        return shapely.Point()
    if _crs(scene).geographic:
        # A longitude of -175 is one of 185, where the grid has that.
        centre = scene.boundingbox.left + scene.boundingbox.span_x / 2
        x += 360.0 * round((centre - x) / 360.0)
    return shapely.Point(x, y)


def _crs(scene: GeoBox) -> CRS:
    assert scene.crs is not None  # `ChipIndex` sees to it
    return scene.crs


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
