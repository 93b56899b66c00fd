"""Bands' files -> pixels on the files' own grid or an overview of it. The only user of odc-stac.

GDAL's errors leave as ours, and name the asset.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import odc.stac
import pystac
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from geosam_stac.band_source import BandSource
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.kept_files import GDAL_CACHE, KeptDriver, KeptFiles, leave
from geosam_stac.raster_errors import heard_statuses, read_error
from geosam_stac.types import Band, Scene, Window
from geosam_stac.warp import wkt
from geosam_stac.windows import slices

# Member of our own on the Item that odc-stac gets: the asset's href without its signature.
UNSIGNED = "geosam:unsigned"


def load(
    sources: list[BandSource],
    window: Window,
    scene: Scene,
    files: KeptFiles,
    settings: dict[str, str],
    *,
    fresh: bool,
) -> NDArray[Any]:
    """(n, h, w) pixels of a window of the sources' own grid, which all of them share.

    `settings` are GDAL's; `fresh`: nothing that is open or kept is trusted.

    Raises
    ------
    DataError, TemporaryError
        They name the asset.
    """
    item, names = _load_item(scene, sources)
    hrefs = {asset.href: asset.extra_fields[UNSIGNED] for asset in item.assets.values()}
    options = sources[0].access.options(sources[0].band.source_href)
    keys = (name.rpartition(".") for name in names)
    wanted = [(item.assets[key].href, int(number)) for key, _, number in keys]
    bands: dict[str, list[int]] = {}
    for uri, number in dict.fromkeys(wanted):
        bands.setdefault(uri, []).append(number)
    geobox = sources[0].grid[slices(window)]
    driver = KeptDriver(
        files,
        bands,
        window=window,
        geobox=geobox,
        level=sources[0].level,
        fresh=fresh,
        is_fenced=any(source.band.fenced for source in sources),
    )
    resampling = sources[0].resampling
    with heard_statuses() as statuses, rasterio.Env(**(settings | GDAL_CACHE | dict(options))):
        try:
            odc.stac.load(
                [item],
                bands=list(dict.fromkeys(names)),
                geobox=geobox,
                resampling=resampling if resampling == "nearest" else "average",
                driver=driver,
                fuse_func=f"{leave.__module__}.{leave.__name__}",
            )
        except (RasterioError, OSError, DataError) as error:
            named = [hrefs[uri] for uri in driver.failed]
            href = ", ".join(dict.fromkeys(named or hrefs.values()))
            raise _named(error, scene.id, href, statuses) from error
    return driver.pixels(wanted)


def block_shape(
    source: BandSource, scene: Scene, files: KeptFiles, settings: dict[str, str], *, fresh: bool
) -> tuple[int, int]:
    """Height and width in px of the blocks of a band's file; opens it. Raises as `load`."""
    options = source.access.options(source.band.source_href)
    uri = source.access.sign(source.band.source_href)
    with heard_statuses() as statuses, rasterio.Env(**(settings | GDAL_CACHE | dict(options))):
        try:
            with files.open(uri, fresh=fresh, is_fenced=source.band.fenced) as dataset:
                # Overviews are taken to have the same; if not, blocks are cut, no more.
                height, width = dataset.block_shapes[source.band.index - 1]
                return height, width
        except (RasterioError, OSError, DataError) as error:
            raise _named(error, scene.id, source.band.href, statuses) from error


def _named(error: Exception, item: str, href: str, statuses: list[int]) -> GeosamStacError:
    """An error of ours that names the asset: as `claims` raises it, or made of GDAL's."""
    if isinstance(error, GeosamStacError):
        return error.at(item=item, href=href)
    return read_error(error, item=item, href=href, statuses=statuses)


def _load_item(scene: Scene, sources: list[BandSource]) -> tuple[pystac.Item, list[str]]:
    """A fresh Item with just what odc-stac needs, and the band names that it resolves.

    odc-stac 0.5.3 knows a band inside a multi-band asset only as `asset.N`, guesses dtypes that the
    Item does not tell, and leaves out assets by role; a source Item may trip over each.
    """
    item = pystac.Item(
        id="scene",
        geometry=None,
        bbox=None,
        datetime=scene.datetime or datetime(1970, 1, 1, tzinfo=UTC),
        properties={},
        collection="scene",
    )
    keys: dict[str, str] = {}
    for source in sources:
        band = source.band
        key = keys.setdefault(band.source_href, f"asset{len(keys)}")
        if key not in item.assets:
            grid = band.geobox
            assert grid is not None
            same_file = [
                other.band for other in sources if other.band.source_href == band.source_href
            ]
            item.add_asset(
                key,
                pystac.Asset(
                    source.access.sign(band.source_href),
                    media_type="image/tiff; application=geotiff",
                    roles=["data"],
                    extra_fields={
                        "proj:wkt2": wkt(grid),
                        "proj:shape": list(grid.shape),
                        "proj:transform": list(grid.affine)[:6],
                        "raster:bands": _raster_bands(same_file),
                        UNSIGNED: band.href,
                    },
                ),
            )
    item.stac_extensions = [
        "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
        "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    ]
    names = [f"{keys[source.band.source_href]}.{source.band.index}" for source in sources]
    return item, names


def _raster_bands(bands: list[Band]) -> list[dict[str, Any]]:
    """`raster:bands` of one file, as far as its last band that is wanted."""
    # Two entries at least: of a single one odc-stac makes no `asset.N`.
    count = max(2, *(band.index for band in bands))
    fields: list[dict[str, Any]] = [{"data_type": bands[0].dtype} for _ in range(count)]
    for band in bands:
        if band.nodata is not None:
            nodata = band.nodata if math.isfinite(band.nodata) else str(band.nodata)
            fields[band.index - 1]["nodata"] = nodata
    return fields
