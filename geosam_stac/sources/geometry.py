"""A processing area from a vector file or a GeoJSON document, as GeoJSON text in WGS84."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geosam_stac.errors import UsageError


def as_geojson(value: str | Path | Mapping[str, Any] | Any) -> str:
    """GeoJSON text (longitude, latitude) of a file, a text, a mapping or a shape.

    Parameters
    ----------
    value
        Path of a vector file that GDAL reads (its CRS is honoured), GeoJSON text or mapping, or
        anything with `__geo_interface__` (longitude, latitude).

    Raises
    ------
    UsageError
        The file is missing, unreadable, or has no CRS.
    """
    if hasattr(value, "__geo_interface__"):
        value = value.__geo_interface__
    if not isinstance(value, Mapping):
        text = str(value)
        if not text.lstrip().startswith("{"):
            return _read(Path(text))
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError("--geometry is no GeoJSON", got=str(error)) from error
    _check_crs(value)
    return json.dumps(value, sort_keys=True)


def _check_crs(document: Mapping[str, Any]) -> None:
    """GeoJSON of before 2016 may name a CRS; in a text it is not honoured, so it is not ignored."""
    crs = document.get("crs")
    if crs is not None and not any(name in json.dumps(crs) for name in ("CRS84", "4326")):
        raise UsageError(
            "--geometry is not in longitude and latitude",
            got=json.dumps(crs)[:80],
            hint="Give it as a file: then its CRS is honoured",
        )


def _read(path: Path) -> str:
    import geopandas

    try:
        found = path.is_file()
    except (OSError, ValueError):  # too long for a name, a zero byte
        found = False
    if not found:
        raise UsageError("--geometry: no such file", href=str(path)[:200])
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio raises errors of its own, GDAL's and ValueError
        raise UsageError(f"--geometry cannot be read: {error}", href=str(path)) from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.empty:
        raise UsageError("--geometry holds no geometry", href=str(path))
    if frame.crs is None:
        raise UsageError("--geometry has no CRS", href=str(path), hint="Add it, as with a .prj")
    shapes = frame.geometry[frame.geometry.notna()].make_valid()
    area = shapes.to_crs("EPSG:4326").union_all()
    return json.dumps(area.__geo_interface__, sort_keys=True)
