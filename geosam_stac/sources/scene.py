"""Item + config -> Scene: the bands that are read and the grid that they are read on.

Reads headers, never pixels.
"""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime

import numpy as np
import pystac
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError
from geosam_stac.sources.bands import select_bands, tells_bands
from geosam_stac.sources.extent import output_grid
from geosam_stac.sources.headers import Header, read_header
from geosam_stac.sources.items import self_href
from geosam_stac.types import Band, Scene


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
        bands and grid, as a dry run does. True opens every asset and lets the files have the last
        word.

    Raises
    ------
    DataError
        Band not there, file missing or not georeferenced, extent outside the Item.
    UsageError
        An unknown CRS, more than three bands.
    """
    headers = _Headers(item.id)
    bands = _choose(item, config.bands, headers)
    if read_headers or any(band.geobox is None for band in bands):
        bands = tuple(headers.complete(band) for band in bands)
    geobox, area, notices = output_grid(_finest(bands), config, item_id=item.id)
    return Scene(
        id=item.id,
        collection=item.collection_id,
        href=self_href(item),
        items=(item,),
        bands=bands,
        geobox=geobox,
        nodata=bands[0].nodata,
        datetime=_utc(item.datetime),
        area=area,
        notices=notices,
    )


class _Headers:
    """The headers of an Item's files, each read once."""

    def __init__(self, item_id: str) -> None:
        self._item_id = item_id
        self._known: dict[str, Header] = {}

    def of(self, source_href: str) -> Header:
        if source_href not in self._known:
            self._known[source_href] = read_header(source_href, item=self._item_id)
        return self._known[source_href]

    def complete(self, band: Band) -> Band:
        """The band with the grid, dtype and nodata of its file."""
        header = self.of(band.source_href)
        if band.index > len(header.dtypes):
            raise DataError(
                f"no band {band.name!r}",
                item=self._item_id,
                href=band.href,
                expected=f"a band number of 1 to {len(header.dtypes)}",
                got=str(band.index),
            )
        dtype = header.dtypes[band.index - 1]
        in_file = header.nodata[band.index - 1]
        return dataclasses.replace(
            band,
            dtype=dtype,
            # The file's own nodata is what GDAL and odc-loader go by; the Item fills the gap.
            nodata=_representable(in_file if in_file is not None else band.nodata, dtype),
            geobox=header.geobox,
        )


def _choose(
    item: pystac.Item, names: tuple[str, ...] | None, headers: _Headers
) -> tuple[Band, ...]:
    """The bands; of an asset that the Item says nothing about, as many as its header tells."""
    bands = select_bands(item, names)
    silent = {
        band.asset: band.source_href
        for band in bands
        if not tells_bands(item.assets[band.asset]) and (names is None or band.asset in names)
    }
    counts = {key: headers.of(href).data_bands for key, href in silent.items()}
    return select_bands(item, names, counts=counts) if counts else bands


def _representable(nodata: float | None, dtype: str) -> float | None:
    """The value as the dtype holds it; None where it cannot: then no pixel ever is nodata.

    Items say -9999 or NaN of uint8 files, and GDAL refuses to warp with such a value.
    """
    kind = np.dtype(dtype)
    if nodata is None:
        return None
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            held = float(kind.type(nodata))
        return held if math.isfinite(held) or not math.isfinite(nodata) else None
    if not math.isfinite(nodata) or nodata != int(nodata):
        return None
    limits = np.iinfo(kind)
    return nodata if limits.min <= nodata <= limits.max else None


def _finest(bands: tuple[Band, ...]) -> GeoBox:
    grids = [band.geobox for band in bands if band.geobox is not None]
    return min(grids, key=lambda grid: abs(grid.affine.determinant))


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
