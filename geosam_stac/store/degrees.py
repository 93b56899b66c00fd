"""Outlines in longitude and latitude as RFC 7946 wants them: cut at 180 degrees. Pure geometry.

What was projected jumps by 360 degrees at the antimeridian, and around a pole it has no inside in
degrees. The package antimeridian mends outlines (`footprint`), but it fails on masks with holes, or
fills them: here each ring is laid out flat by itself, and the holes are taken out after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry.polygon import orient

if TYPE_CHECKING:
    from numpy.typing import NDArray


def wound(shape: Any) -> Any:
    """Outlines counter-clockwise, holes clockwise."""
    parts = [orient(part, sign=1.0) for part in shapely.get_parts(shape)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def within_180(shape: Any) -> Any:
    """A Polygon or MultiPolygon of longitudes and latitudes, between -180 and 180, cut there.

    Sides must be short: one that is longer than 180 degrees is taken for a jump.
    """
    west, _, east, _ = shape.bounds
    if west >= -180.0 and east <= 180.0 and east - west <= 180.0:
        return shape
    parts = [part for one in shapely.get_parts(shape) for part in _laid_out(one)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _laid_out(polygon: Any) -> list[Any]:
    inside = _cut(polygon.exterior)
    if polygon.interiors:
        inside = inside.difference(shapely.union_all([_cut(hole) for hole in polygon.interiors]))
    return [part for part in shapely.get_parts(inside) if part.geom_type == "Polygon"]


def _cut(ring: Any) -> Any:
    """What a ring holds, between -180 and 180."""
    flat = shapely.Polygon(_unwrapped(shapely.get_coordinates(ring)))
    west, _, east, _ = flat.bounds
    first, last = np.floor((west + 180.0) / 360.0), np.ceil((east + 180.0) / 360.0)
    worlds = [360.0 * number for number in np.arange(first, last)]
    if worlds == [0.0]:
        return flat
    strips = [shapely.box(world - 180.0, -90.0, world + 180.0, 90.0) for world in worlds]
    return shapely.union_all(
        [
            shapely.transform(strip.intersection(flat), lambda xy, world=world: xy - (world, 0.0))
            for strip, world in zip(strips, worlds, strict=True)
        ]
    )


def _unwrapped(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    """A ring without jumps; one around a pole is closed along the pole."""
    lon, lat = lonlat.T
    # np.unwrap rounds on the way, so that a ring's end would miss its start.
    turns = np.cumsum(np.round(np.diff(lon) / 360.0))
    lon = lon - 360.0 * np.concatenate([[0.0], turns])
    if turns[-1] != 0:
        pole = np.copysign(90.0, lat.mean())
        lon = np.concatenate([lon, [lon[-1], lon[0], lon[0]]])
        lat = np.concatenate([lat, [pole, pole, lat[0]]])
    return np.column_stack([lon, lat])
