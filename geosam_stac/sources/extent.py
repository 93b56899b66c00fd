"""The output grid of a scene: processing extent, target CRS and resolution (SPEC-geosam section 1).

Arithmetic on grids alone: opens nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from pyproj.exceptions import CRSError, ProjError

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, UsageError
from geosam_stac.grid import crop
from geosam_stac.types import Window

WGS84 = CRS("EPSG:4326")

# Equatorial radius of WGS84.
EARTH_RADIUS_M = 6_378_137.0

# Points an edge when an extent is projected: its edges become curves.
EDGE_POINTS = 32

# A resolution that is so many times the native one (in degrees) was meant in metres: 10 m written
# as 10 against a native 0.00009 degrees is 100,000 times; a coarser grid in degrees never is.
METRES_RATIO = 1000.0

# Where EPSG:3857 ends, by its area of use; GDAL would go on to 242,500 km.
MERCATOR_LATITUDE = 85.06

# A pixel counts as covered when more than this fraction of it is: rounding of coordinates is less.
PIXEL_TOLERANCE = 1e-4


def output_grid(
    base: GeoBox, config: EncodeConfig, *, item_id: str
) -> tuple[GeoBox, Geometry | None, tuple[str, ...]]:
    """The grid that is encoded, the area that narrows it, and what the user should be told.

    Parameters
    ----------
    base
        Grid of the Item's finest band.
    config
        `bbox`, `bbox_crs`, `geometry`, `crs` and `resolution` are used.
    item_id
        For messages.

    Raises
    ------
    DataError
        The extent lies outside the Item, or the Item cannot be projected.
    UsageError
        An unknown CRS, a geometry that is none.
    """
    if base.crs is None:
        raise DataError("the Item's bands have no CRS", item=item_id)
    if not is_of_earth(base.crs):
        raise DataError(
            "the Item is not of the Earth",
            item=item_id,
            got=base.crs.proj.name,
            hint="Footprints in longitude and latitude would name places on the Earth",
        )
    notices: tuple[str, ...] = ()
    region = _region(config)
    crs = _target_crs(base, region, config)
    if not is_of_earth(crs):
        raise UsageError("--crs is not of the Earth", got=crs.proj.name)
    resolution = config.resolution
    if resolution is not None and crs.geographic and _in_metres(resolution, base):
        utm = _utm(base.extent if region is None else region)
        notices = (
            f"{crs} is geographic and a resolution of {resolution:g} is meant in metres: "
            f"{utm} is used",
        )
        crs = utm
    base = _upright(base)
    try:
        # In the source's CRS: a region of a global grid may have no place in the target's.
        wanted = base.extent if region is None else meet(region, base)
        if wanted.is_empty or wanted.area == 0:
            raise _outside(base, region, config, item_id)
        if crs == base.crs and not (base.affine.b or base.affine.d):
            full = _native_grid(base, resolution)
            geobox = crop(full, _window_of(full, wanted.boundingbox))
        else:
            wanted, geobox = _other_grid(base, wanted, region, crs, resolution)
    except (ProjError, ValueError, OverflowError, shapely.errors.ShapelyError) as error:
        raise DataError(
            f"the extent cannot be projected to {crs}",
            item=item_id,
            got=f"W,S,E,N {_wgs84_bounds(base.extent if region is None else region)}",
            hint="Choose a --crs whose area of use covers it, or narrow --bbox",
        ) from error
    return geobox, wanted if config.geometry is not None else None, notices


def is_of_earth(crs: CRS) -> bool:
    """Whether a CRS's ellipsoid has the Earth's size: within 1 %, where Venus is 5 % off."""
    ellipsoid = crs.proj.ellipsoid
    if ellipsoid is None:
        return True
    return bool(abs(ellipsoid.semi_major_metre / EARTH_RADIUS_M - 1.0) < 0.01)


def _outside(
    base: GeoBox, region: Geometry | None, config: EncodeConfig, item_id: str
) -> DataError:
    return DataError(
        "the processing extent lies outside the Item",
        item=item_id,
        expected=f"within W,S,E,N {_wgs84_bounds(base.extent)}",
        got=None if region is None else _wgs84_bounds(region),
        hint="Check --bbox and --bbox-crs" if config.geometry is None else "Check --geometry",
    )


def _region(config: EncodeConfig) -> Geometry | None:
    if config.geometry is not None:
        return Geometry(_polygon(config.geometry), WGS84)
    if config.bbox is None:
        return None
    crs = _parse_crs("--bbox-crs", config.bbox_crs)
    west, south, east, north = config.bbox
    in_degrees = min(south + 90, 90 - north, west + 360, 360 - east) >= 0
    if crs.geographic and not in_degrees:
        raise UsageError(
            f"--bbox is not in degrees, but {crs} is",
            expected="W,S,E,N: longitude, latitude, longitude, latitude",
            got=f"{west:g},{south:g},{east:g},{north:g}",
            hint="Check the order, or give --bbox-crs",
        )
    if crs.geographic and west > east:
        east += 360.0  # across the antimeridian
    return box(west, south, east, north, crs)


def _polygon(text: str) -> Mapping[str, object]:
    """The Polygon or MultiPolygon of a GeoJSON text: bare, a Feature's, or a collection's."""
    try:
        document = json.loads(text)
        if document.get("type") == "FeatureCollection":
            shapes = [feature["geometry"] for feature in document["features"]]
        else:
            shapes = [document["geometry"] if document.get("type") == "Feature" else document]
        kinds = [shape["type"] for shape in shapes]
        if wrong := [kind for kind in kinds if kind not in ("Polygon", "MultiPolygon")]:
            raise UsageError("--geometry must hold polygons", got=str(wrong[0]))
        # Mended and joined: a bow tie or overlapping features would fail later.
        area = shapely.union_all([shapely.make_valid(shapely.geometry.shape(s)) for s in shapes])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError("--geometry is no GeoJSON", got=f"{type(error).__name__}") from error
    except (shapely.errors.ShapelyError, IndexError) as error:
        raise UsageError("--geometry is not valid", got=str(error)) from error
    polygons = [
        part
        for part in shapely.get_parts(shapely.get_parts(area))
        if part.geom_type == "Polygon" and part.area > 0
    ]
    if not polygons:
        raise UsageError("--geometry holds no polygon")
    bounds = area.bounds
    if not (bounds[1] >= -90 and bounds[3] <= 90 and bounds[0] >= -360 and bounds[2] <= 360):
        raise UsageError(
            "--geometry is not in degrees",
            expected="GeoJSON: longitude, latitude",
            got="W,S,E,N " + ",".join(f"{value:g}" for value in bounds),
            hint="Give a file that names its CRS",
        )
    result: Mapping[str, object] = shapely.geometry.mapping(shapely.MultiPolygon(polygons))
    return result


def _parse_crs(flag: str, text: str) -> CRS:
    try:
        crs = CRS(text)
    except (CRSError, ValueError) as error:
        raise UsageError(
            f"{flag} is no CRS that PROJ knows", expected="as EPSG:32610", got=repr(text)
        ) from error
    if not (crs.projected or crs.geographic):
        raise UsageError(
            f"{flag} is no CRS of maps", expected="projected or geographic", got=repr(text)
        )
    return crs


def _target_crs(base: GeoBox, region: Geometry | None, config: EncodeConfig) -> CRS:
    if config.crs.lower() == "native":
        assert base.crs is not None
        return base.crs
    if config.crs.lower() == "utm":
        return _utm(base.extent if region is None else region)
    return _parse_crs("--crs", config.crs)


def _utm(extent: Geometry) -> CRS:
    """The WGS84 UTM zone of an extent's centre."""
    ((lon, lat),) = extent.centroid.to_crs(WGS84).coords
    lon = (lon + 180.0) % 360.0 - 180.0
    zone = min(int((lon + 180.0) // 6.0) + 1, 60)
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + zone}")


def _in_metres(resolution: float, base: GeoBox) -> bool:
    """Whether a resolution for a geographic CRS must have been meant in metres."""
    size = _pixel_size(base)
    if base.crs is None or not base.crs.geographic:
        size /= 111_320.0  # metres a degree
    whole = size * max(base.shape)
    return resolution / size > METRES_RATIO or (resolution > 1 and resolution > whole)


def _pixel_size(geobox: GeoBox) -> float:
    return math.sqrt(abs(geobox.affine.determinant))


def _upright(base: GeoBox) -> GeoBox:
    """The same pixels with north up and west left, where rows and columns run along the axes."""
    affine = base.affine
    if affine.b or affine.d or (affine.a > 0 > affine.e):
        return base
    bounds = base.boundingbox
    affine = Affine(abs(affine.a), 0, bounds.left, 0, -abs(affine.e), bounds.top)
    return GeoBox(base.shape, affine, base.crs)


def _native_grid(base: GeoBox, resolution: float | None) -> GeoBox:
    """The grid of the whole Item in its own CRS: it starts at the source's own corner."""
    if resolution is None or _same_resolution(base, resolution):
        return base
    bounds = base.boundingbox
    shape = (
        max(1, math.ceil((bounds.top - bounds.bottom) / resolution - PIXEL_TOLERANCE)),
        max(1, math.ceil((bounds.right - bounds.left) / resolution - PIXEL_TOLERANCE)),
    )
    affine = Affine(resolution, 0, bounds.left, 0, -resolution, bounds.top)
    return GeoBox(shape, affine, base.crs)


def _other_grid(
    base: GeoBox, wanted: Geometry, region: Geometry | None, crs: CRS, resolution: float | None
) -> tuple[Geometry, GeoBox]:
    """What is wanted, in another CRS (or north up), and its grid.

    Edges lie on multiples of the resolution, so that neighbouring scenes share a grid.
    """
    for latitude in (90.0, -90.0):
        pole = _pole_in(_crs(wanted), latitude)
        around = pole is not None and wanted.geom.contains(pole)
        if around and _pole_in(crs, latitude) is None:
            # Its outline is a ring around the pole there, and what it holds would be lost.
            raise ValueError("around a pole")
    area = project(wanted, crs)
    if not _is_finite(area) or (crs.epsg == 3857 and _beyond_mercator(wanted)):
        # The poles lie at infinity in Mercator: as far as the CRS goes.
        area = project(project(wanted, WGS84) & crs.valid_region, crs)
    if region is not None and region.crs == crs:
        area = area & region  # rounded less than there and back again
    if not _is_finite(area) or area.area == 0:
        raise ValueError("not finite")
    if resolution is None:
        resolution = _resolution_in(base, wanted, crs)
    return area, GeoBox.from_bbox(area.boundingbox, crs, resolution=resolution)


def _resolution_in(base: GeoBox, wanted: Geometry, crs: CRS) -> float:
    """The native pixel size: the same number in the same units, else that of a central pixel."""
    assert base.crs is not None
    if crs.units == base.crs.units:
        return _pixel_size(base)
    window = _window_of(base, wanted.boundingbox)
    row, col = window.row_off + window.height // 2, window.col_off + window.width // 2
    pixel = base[row : row + 1, col : col + 1].extent.to_crs(crs)
    return math.sqrt(pixel.area)


def _same_resolution(base: GeoBox, resolution: float) -> bool:
    """Equal, but for the rounding of a size such as 0.6 m: less than 0.01 px over the grid."""
    sizes = (base.affine.a, -base.affine.e)
    return all(abs(resolution / size - 1) * max(base.shape) < 0.01 for size in sizes)


def project(geometry: Geometry, crs: CRS) -> Geometry:
    """A geometry in another CRS, its edges densified first."""
    if geometry.crs == crs or geometry.is_empty:
        return geometry
    bounds = geometry.boundingbox
    step = max(bounds.span_x, bounds.span_y) / EDGE_POINTS
    return geometry.to_crs(crs, resolution=step)


def _pole_in(crs: CRS, latitude: float) -> shapely.Point | None:
    """Where a pole lies in a CRS; None where it is a line, or infinitely far."""
    xs, ys = WGS84.transformer_to_crs(crs)(np.array([0.0, 90.0]), np.array([latitude] * 2))
    if not np.isfinite([*xs, *ys]).all() or math.dist((xs[0], ys[0]), (xs[1], ys[1])) > 1.0:
        return None
    return shapely.Point(xs[0], ys[0])


def _beyond_mercator(extent: Geometry) -> bool:
    bounds = project(extent, WGS84).boundingbox
    return bool(max(-bounds.bottom, bounds.top) > MERCATOR_LATITUDE)


def _is_finite(geometry: Geometry) -> bool:
    return not geometry.is_empty and all(map(math.isfinite, geometry.boundingbox.bbox))


def meet(region: Geometry, base: GeoBox) -> Geometry:
    """Where a region and a grid, both with a CRS, meet, in the grid's CRS; empty where nowhere."""
    crs = _crs(base)
    if _returns(region, crs):
        met = _near(project(region, crs), base)
    else:
        # As a continent in the CRS of one UTM zone: it has no shape there, but the grid has here.
        met = project(project(base.extent, _crs(region)) & region, crs)
    if met.is_empty:  # it may have kept the CRS of the region
        return Geometry(shapely.Polygon(), crs)
    result: Geometry = met & base.extent
    return result


def _returns(region: Geometry, crs: CRS) -> bool:
    """Whether the corners of a region can be projected to a CRS and back again."""
    own = _crs(region)
    if own == crs:
        return True
    bounds = region.boundingbox
    xs = np.array([bounds.left, bounds.right, bounds.right, bounds.left])
    ys = np.array([bounds.bottom, bounds.bottom, bounds.top, bounds.top])
    there = own.transformer_to_crs(crs)(xs, ys)
    back = crs.transformer_to_crs(own)(*there)
    off = np.abs(np.stack(back) - (xs, ys))
    if own.geographic:
        off = np.minimum(off, np.abs(off - 360))
    return bool((off < 1e-3 * max(bounds.span_x, bounds.span_y)).all())  # false for inf and NaN


def _crs(place: GeoBox | Geometry) -> CRS:
    assert place.crs is not None  # `output_grid` and `_region` see to it
    return place.crs


def _near(area: Geometry, base: GeoBox) -> Geometry:
    """In degrees, an area's longitudes of 170 to 190 are a grid's of -190 to -170, too."""
    if not _crs(base).geographic:
        return area
    turns = [shapely.affinity.translate(area.geom, xoff=turn) for turn in (-360, 0, 360)]
    return Geometry(shapely.union_all(turns), area.crs)


def _window_of(geobox: GeoBox, bounds: BoundingBox) -> Window:
    """The pixels of a north-up grid that a bounding box touches, clipped to the grid."""
    inverse = ~geobox.affine
    corners = [
        inverse * (x, y) for x in (bounds.left, bounds.right) for y in (bounds.bottom, bounds.top)
    ]
    height, width = geobox.shape

    def span(values: list[float], size: int) -> tuple[int, int]:
        start = min(max(math.floor(min(values) + PIXEL_TOLERANCE), 0), size - 1)
        stop = min(max(math.ceil(max(values) - PIXEL_TOLERANCE), start + 1), size)
        return start, stop

    left, right = span([x for x, _ in corners], width)
    top, bottom = span([y for _, y in corners], height)
    return Window(row_off=top, col_off=left, height=bottom - top, width=right - left)


def _wgs84_bounds(extent: Geometry) -> str:
    bounds = project(extent, WGS84).boundingbox
    return ",".join(f"{value:.6g}" for value in bounds.bbox)
