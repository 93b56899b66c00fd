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
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    text = str(value)
    return text if text.lstrip().startswith("{") else _read(Path(text))


def _read(path: Path) -> str:
    import geopandas

    if not path.is_file():
        raise UsageError("--geometry: no such file", href=str(path))
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # pyogrio raises errors of its own, GDAL's and ValueError
        raise UsageError(f"--geometry cannot be read: {error}", href=str(path)) from error
    if frame.crs is None:
        raise UsageError("--geometry has no CRS", href=str(path), hint="Add it, as with a .prj")
    area = frame.to_crs("EPSG:4326").union_all()
    return json.dumps(area.__geo_interface__, sort_keys=True)
