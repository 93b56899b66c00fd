"""Opening a stranger's raster: by the drivers that are meant for it, and nothing but that file.

GDAL finds the driver by what a file holds, and some formats name other files: VRT and WMS whatever
they like, and any TIFF an overview elsewhere, by its metadata (`OVERVIEW_FILE`). Uses rasterio.
"""

from __future__ import annotations

from urllib.parse import urlparse

import rasterio
from rasterio import DatasetReader
from rasterio.errors import RasterioIOError
from rasterio.session import DummySession

from geosam_stac.errors import DataError
from geosam_stac.hrefs import unsigned

# What satellite and aerial imagery is published as for reading by parts. The driver of COGs is
# GTiff's.
DRIVERS = ("GTiff", "JP2OpenJPEG")
# As GDAL's IdentifyDriver says it of another format, and rasterio after it.
_OTHER_FORMAT = "not recognized as being in a supported file format"


def open_fenced(source_href: str, *, overview: int | None = None) -> DatasetReader:
    """Open a raster, or its overview of that index; no other file is asked for meanwhile.

    Raises
    ------
    DataError
        The file names another one.
    RasterioIOError
        It cannot be opened, or not by these drivers.
    """
    # The credentials in force stay: a session of its own would look for them again.
    with rasterio.Env(DummySession(), CPL_VSIL_CURL_ALLOWED_FILENAME=_gdal_name(source_href)):
        dataset = _opened(source_href, {} if overview is None else {"overview_level": overview})
        if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
            dataset.close()
            raise DataError(
                "a remote Item's raster names another file for its overviews",
                href=unsigned(source_href),
                hint="If you trust this Item, give --allow-private-hosts",
            )
        return dataset


def _opened(source_href: str, options: dict[str, int]) -> DatasetReader:
    *others, last = DRIVERS
    for driver in others:
        try:
            return rasterio.open(source_href, driver=driver, sharing=False, **options)
        except RasterioIOError as error:
            if _OTHER_FORMAT not in str(error):
                raise
    return rasterio.open(source_href, driver=last, sharing=False, **options)


def _gdal_name(href: str) -> str:
    """The file's name as rasterio makes it: CPL_VSIL_CURL_ALLOWED_FILENAME compares all of it."""
    parts = urlparse(href)  # which leaves out what rasterio leaves out: `;...` and `#...`
    query = f"?{parts.query}" if parts.query else ""
    name = f"{parts.netloc}{parts.path}{query}"
    if parts.scheme in ("http", "https"):
        return f"/vsicurl/{parts.scheme}://{name}"
    return f"/vsi{parts.scheme}/{name}"
