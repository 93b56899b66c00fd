"""What a raster's header says: grid, dtype, nodata. The only place that opens a file for it.

No pixels are read here. Uses rasterio; pixels are `cube`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.hrefs import unsigned
from geosam_stac.raster_errors import read_error


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file: its grid, and per band the numpy dtype name and nodata."""

    geobox: GeoBox
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]


def read_header(source_href: str, *, item: str | None = None) -> Header:
    """Open a raster and read its header.

    Raises
    ------
    DataError
        The file is missing, no raster, or not georeferenced.
    TemporaryError
        The store did not answer.
    """
    href = unsigned(source_href)
    try:
        with rasterio.open(source_href) as dataset:
            if dataset.crs is None or dataset.transform.is_identity:
                raise _not_georeferenced(dataset, item, href)
            # The short name where there is one: WKT differs from one GDAL version to the next.
            epsg = dataset.crs.to_epsg(confidence_threshold=100)
            crs = f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt()
            geobox = GeoBox(dataset.shape, dataset.transform, crs)
            return Header(
                geobox=geobox, dtypes=tuple(dataset.dtypes), nodata=tuple(dataset.nodatavals)
            )
    except RasterioError as error:
        raise read_error(error, item=item, href=href) from error


def _not_georeferenced(
    dataset: rasterio.DatasetReader, item: str | None, href: str
) -> GeosamStacError:
    has_gcps = bool(dataset.gcps[0])
    return DataError(
        "the raster is not georeferenced",
        item=item,
        href=href,
        expected="a CRS and a geotransform",
        got="ground control points" if has_gcps else "no CRS" if dataset.crs is None else "none",
        hint="Warp it to a CRS first, as with `gdalwarp -t_srs EPSG:n`",
    )
