"""The grid of an asset from its `proj:` fields: checked, so that what is wrong is named. Pure."""

from __future__ import annotations

import re
from typing import Any

import pystac
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError

from geosam_stac.claims import MAX_SIDE_PX
from geosam_stac.errors import DataError
from geosam_stac.sources.checks import is_number, path_of, short

CRS_FIELDS = ("proj:code", "proj:epsg", "proj:wkt2", "proj:projjson")

# No place on the Earth has larger coordinates in any unit that maps are made in: millimetres around
# the equator come to 4e10. Beyond it floats lose the pixels.
MAX_COORDINATE = 1e11

# Authority and code. PROJ takes much more for a CRS, names of files on this machine among it.
_CODE = re.compile(r"[A-Za-z][\w.-]*:[\w.:+-]+|urn:ogc:def:crs:[\w.:,+-]+", re.ASCII)
_WKT = re.compile(r"\s*[A-Za-z_]+\s*[\[(]")


def asset_grid(item: pystac.Item, key: str, asset: pystac.Asset) -> GeoBox | None:
    """The asset's grid from `proj:*`, the asset's own fields before the Item's; None if unsaid.

    Raises DataError that names the JSON path.
    """
    places: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("assets", key), asset.extra_fields),
        (("properties",), item.properties),
    )

    def said(*names: str, falsy: bool = False) -> tuple[str, Any] | None:
        # All of the asset's own ways to say it come before the Item's.
        for prefix, fields in places:
            for name in names:
                value = fields.get(name)
                if value is not None and (value or falsy):
                    return path_of(*prefix, name), value
        return None

    shape, transform = said("proj:shape", falsy=True), said("proj:transform", falsy=True)
    crs = said(*CRS_FIELDS)
    if shape is None or transform is None or crs is None:
        return None
    grid = GeoBox(_shape(item, *shape), _affine(item, *transform), _crs(item, *crs))
    corners = [grid.affine * corner for corner in ((0, 0), (grid.width, grid.height))]
    if not all(abs(value) <= MAX_COORDINATE for corner in corners for value in corner):
        raise _wrong(item, transform[0], "a place on the Earth", transform[1])
    if grid.extent.area == 0:
        raise _wrong(item, transform[0], "pixels that have a size", transform[1])
    return grid


def _wrong(item: pystac.Item, path: str, expected: str, got: object) -> DataError:
    return DataError(f"{path} is wrong", item=item.id, expected=expected, got=short(got))


def _shape(item: pystac.Item, path: str, shape: Any) -> tuple[int, int]:
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        raise _wrong(item, path, "[height, width]", shape)
    for index, size in enumerate(shape):
        if not is_number(size) or size < 1 or size != int(size) or size > MAX_SIDE_PX:
            expected = f"a whole number of 1 to {MAX_SIDE_PX:,}"
            raise _wrong(item, f"{path}[{index}]", expected, size)
    return int(shape[0]), int(shape[1])


def _affine(item: pystac.Item, path: str, transform: Any) -> Affine:
    if not isinstance(transform, list | tuple) or len(transform) not in (6, 9):
        raise _wrong(item, path, "6 or 9 numbers", transform)
    for index, number in enumerate(transform):
        if not is_number(number):
            raise _wrong(item, f"{path}[{index}]", "a number", number)
    if len(transform) == 9 and list(transform[6:]) != [0, 0, 1]:
        raise _wrong(item, f"{path}[6:9]", "0, 0, 1", transform[6:])
    affine = Affine(*(float(number) for number in transform[:6]))
    if affine.determinant == 0:
        raise _wrong(item, path, "pixels that have a size", transform)
    return affine


def _crs(item: pystac.Item, path: str, said: Any) -> CRS:
    expected = "a CRS that PROJ knows, as 'EPSG:32614'"
    name = path.rpartition("proj:")[2]
    good = {
        "code": isinstance(said, str) and _CODE.fullmatch(said) is not None,
        "epsg": isinstance(said, int | float) and is_number(said) and said == int(said),
        "wkt2": isinstance(said, str) and _WKT.match(said) is not None,
        "projjson": isinstance(said, dict),
    }[name]
    if not good:
        raise _wrong(item, path, expected, said)
    try:
        crs = CRS(int(said) if name == "epsg" else said)
        is_of_maps = crs.projected or crs.geographic
    except (CRSError, TypeError, ValueError, RuntimeError, OverflowError, LookupError) as error:
        raise _wrong(item, path, expected, said) from error
    if not is_of_maps:
        raise _wrong(item, path, "a CRS of maps: projected or geographic", said)
    return crs
