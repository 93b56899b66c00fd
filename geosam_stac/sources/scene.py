"""Item + config -> Scene: the bands that are read and the grid that they are read on.

Owns the processing extent, the target CRS and the resolution (SPEC-geosam section 1). Reads
headers, never pixels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

import pystac
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from pyproj.exceptions import CRSError

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, UsageError
from geosam_stac.grid import crop
from geosam_stac.sources.bands import select_bands
from geosam_stac.sources.headers import Header, read_header
from geosam_stac.sources.items import self_href
from geosam_stac.types import Band, Scene, Window

WGS84 = CRS("EPSG:4326")

# Points an edge when an extent is projected: its edges become curves.
EDGE_POINTS = 32

# A resolution that is so many times the native one (in degrees) was meant in metres: 10 m written
# as 10 against a native 0.00009 degrees is 100,000 times; a coarser grid in degrees never is.
METRES_RATIO = 1000.0

# A pixel counts as covered when more than this fraction of it is: rounding of coordinates is less.
PIXEL_TOLERANCE = 1e-4


def open_scene(item: pystac.Item, config: EncodeConfig, *, read_headers: bool = True) -> Scene:
    """Choose bands and grid of one Item.

    Parameters
    ----------
    item
        The source Item, hrefs unsigned or as given.
    config
        `bands`, `bbox`, `geometry`, `crs` and `resolution` are used.
    read_headers
        False trusts the Item's metadata and opens a file only where they are not enough to know
        the grid, as a dry run does. True opens every asset and lets the files have the last word.

    Raises
    ------
    DataError
        Band not there, file missing or not georeferenced, extent outside the Item.
    UsageError
        An unknown CRS, more than three bands.
    """
    bands = select_bands(item, config.bands)
    if read_headers or any(band.geobox is None for band in bands):
        bands = _with_headers(item, bands)
    base = _finest(bands)
    notices: list[str] = []
    geobox, area = _output_grid(item, base, config, notices)
    return Scene(
        id=item.id,
        collection=item.collection_id,
        href=self_href(item),
        items=(item,),
        bands=bands,
        geobox=geobox,
        nodata=bands[0].nodata,
        datetime=item.datetime,
        area=area,
        notices=tuple(notices),
    )


def _with_headers(item: pystac.Item, bands: tuple[Band, ...]) -> tuple[Band, ...]:
    headers: dict[str, Header] = {}
    complete = []
    for band in bands:
        if band.source_href not in headers:
            headers[band.source_href] = read_header(band.source_href, item=item.id)
        header = headers[band.source_href]
        if band.index > len(header.dtypes):
            raise DataError(
                f"no band {band.name!r}",
                item=item.id,
                href=band.href,
                expected=f"a band number of 1 to {len(header.dtypes)}",
                got=str(band.index),
            )
        in_file = header.nodata[band.index - 1]
        complete.append(
            dataclasses.replace(
                band,
                dtype=header.dtypes[band.index - 1],
                # The file's own nodata is what GDAL and odc-loader go by; the Item fills the gap.
                nodata=in_file if in_file is not None else band.nodata,
                geobox=header.geobox,
            )
        )
    return tuple(complete)


def _finest(bands: tuple[Band, ...]) -> GeoBox:
    grids = [band.geobox for band in bands if band.geobox is not None]
    return min(grids, key=_pixel_size)


def _pixel_size(geobox: GeoBox) -> float:
    return math.sqrt(abs(geobox.affine.determinant))


def _output_grid(
    item: pystac.Item, base: GeoBox, config: EncodeConfig, notices: list[str]
) -> tuple[GeoBox, Geometry | None]:
    region = _region(config)
    crs = _target_crs(item, base, region, config)
    resolution = config.resolution
    if (
        crs.geographic
        and resolution is not None
        and resolution / _size_in_degrees(base) > METRES_RATIO
    ):
        centre = base.extent if region is None else region
        utm = _utm(centre)
        notices.append(
            f"{crs} is geographic and a resolution of {resolution:g} is meant in metres: "
            f"{utm} is used"
        )
        crs = utm
    full = _full_grid(base, crs, resolution)
    if region is None:
        return full, None
    area = _project(region, crs)
    wanted = area & _project(base.extent, crs)
    if wanted.is_empty or wanted.area == 0:
        raise DataError(
            "the processing extent lies outside the Item",
            item=item.id,
            expected=f"within W,S,E,N {_wgs84_bounds(base.extent)}",
            got=_wgs84_bounds(region),
            hint="Check --bbox and --bbox-crs",
        )
    geobox = crop(full, _window_of(full, wanted.boundingbox))
    return geobox, area if config.geometry is not None else None


def _region(config: EncodeConfig) -> Geometry | None:
    if config.geometry is not None:
        return Geometry(_polygon(config.geometry), WGS84)
    if config.bbox is None:
        return None
    crs = _parse_crs("--bbox-crs", config.bbox_crs)
    west, south, east, north = config.bbox
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
        polygons: list[object] = []
        for shape in shapes:
            if shape["type"] == "Polygon":
                polygons.append(shape["coordinates"])
            elif shape["type"] == "MultiPolygon":
                polygons.extend(shape["coordinates"])
            else:
                raise UsageError("--geometry must hold polygons", got=str(shape["type"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("--geometry is no GeoJSON", got=f"{type(error).__name__}") from error
    if not polygons:
        raise UsageError("--geometry holds no polygon")
    return {"type": "MultiPolygon", "coordinates": polygons}


def _parse_crs(flag: str, text: str) -> CRS:
    try:
        return CRS(text)
    except (CRSError, ValueError) as error:
        raise UsageError(
            f"{flag} is no CRS that PROJ knows", expected="as EPSG:32610", got=repr(text)
        ) from error


def _target_crs(
    item: pystac.Item, base: GeoBox, region: Geometry | None, config: EncodeConfig
) -> CRS:
    if config.crs.lower() == "native":
        if base.crs is None:
            raise DataError("the Item's bands have no CRS", item=item.id)
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


def _size_in_degrees(base: GeoBox) -> float:
    """The native pixel size in degrees; of a projected grid, its metres over 111,320 a degree."""
    size = _pixel_size(base)
    return size if base.crs is not None and base.crs.geographic else size / 111_320.0


def _full_grid(base: GeoBox, crs: CRS, resolution: float | None) -> GeoBox:
    """The grid of the whole Item in the target CRS.

    In the native CRS it starts at the source's own corner. In another one its edges lie on
    multiples of the resolution, so that neighbouring scenes share a grid.
    """
    north_up = base.affine.e < 0 and base.affine.a > 0 and base.affine.b == base.affine.d == 0
    if crs == base.crs and north_up:
        if resolution is None or (resolution == base.affine.a == -base.affine.e):
            return base
        bounds = base.boundingbox
        shape = (
            max(1, math.ceil((bounds.top - bounds.bottom) / resolution - PIXEL_TOLERANCE)),
            max(1, math.ceil((bounds.right - bounds.left) / resolution - PIXEL_TOLERANCE)),
        )
        affine = Affine(resolution, 0, bounds.left, 0, -resolution, bounds.top)
        return GeoBox(shape, affine, crs)
    if resolution is None:
        resolution = abs(base.to_crs(crs).affine.a)
    extent = _project(base.extent, crs)
    return GeoBox.from_bbox(extent.boundingbox, crs, resolution=resolution)


def _project(geometry: Geometry, crs: CRS) -> Geometry:
    if geometry.crs == crs:
        return geometry
    bounds = geometry.boundingbox
    step = max(bounds.span_x, bounds.span_y) / EDGE_POINTS
    return geometry.to_crs(crs, resolution=step)


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
    bounds = _project(extent, WGS84).boundingbox
    return ",".join(f"{value:.6g}" for value in bounds.bbox)
