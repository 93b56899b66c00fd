"""What a raster's header says: grid, dtype, nodata. The only place that opens a file for it.

No pixels are read here. Uses rasterio; pixels are `cube`'s.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geosam_stac.claims import check_claims
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.fence import open_fenced
from geosam_stac.hrefs import unsigned
from geosam_stac.raster_errors import heard_statuses, read_error
from geosam_stac.retry import Retries
from geosam_stac.sources.guard import Guarded
from geosam_stac.sources.signing import guard_logs
from geosam_stac.turns import TURNS
from geosam_stac.types import Access, PlainAccess, gdal_settings


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file: its grid, and per band the numpy dtype name and nodata.

    `data_bands` is how many bands come before the first alpha band: those with pixels.
    """

    geobox: GeoBox
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    data_bands: int


def read_header(
    source_href: str,
    *,
    item: str | None = None,
    access: Access | None = None,
    retries: Retries | None = None,
) -> Header:
    """Open a raster and read its header.

    A file that may not be read is tried once more with a new signature, where one can be had; one
    whose server fails, as `retries` says. One that a stranger named (its access is `Guarded`) is
    opened by `fence`.

    Raises
    ------
    DataError
        The file is missing, no raster, not georeferenced, or claims more than `claims` allows.
    TemporaryError
        The store did not answer.
    """
    known, runner = access or PlainAccess(), retries or Retries()
    return runner.run(
        "header",
        lambda tries: _read(
            source_href, item, known, gdal_settings(runner.policy.timeout_s, fresh=tries > 0)
        ),
        renew=lambda: known.renew(source_href),
    )


def _read(source_href: str, item: str | None, access: Access, settings: dict[str, str]) -> Header:
    href = unsigned(source_href)
    guard_logs()
    opened = open_fenced if isinstance(access, Guarded) else rasterio.open
    try:
        with (
            heard_statuses() as statuses,
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.Env(**(settings | dict(access.options(source_href)))),
            TURNS.opening(source_href),
            opened(access.sign(source_href)) as dataset,
        ):
            check_claims(dataset)
            if dataset.crs is None or dataset.transform.is_identity:
                raise _not_georeferenced(dataset, item, href)
            return Header(
                geobox=GeoBox(dataset.shape, dataset.transform, _crs(dataset, item, href)),
                dtypes=_dtypes(dataset, item, href),
                nodata=tuple(dataset.nodatavals),
                data_bands=_data_bands(dataset),
            )
    except RasterioError as error:
        raise read_error(error, item=item, href=href, statuses=statuses) from error
    except DataError as error:
        raise error.at(item=item, href=href) from error.__cause__
    except ValueError as error:  # a text that is no file name: a zero byte, half a surrogate pair
        raise DataError("the asset's href cannot be opened", item=item, href=href) from error


def _crs(dataset: rasterio.DatasetReader, item: str | None, href: str) -> CRS:
    # The short name where there is one: WKT differs from one GDAL version to the next.
    epsg = dataset.crs.to_epsg(confidence_threshold=100)
    crs = None
    with contextlib.suppress(CRSError):
        crs = CRS(f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt())
    if crs is None or not (crs.projected or crs.geographic):
        raise _not_georeferenced(dataset, item, href)
    return crs


def _dtypes(dataset: rasterio.DatasetReader, item: str | None, href: str) -> tuple[str, ...]:
    for dtype in dataset.dtypes:
        if dtype.startswith("complex"):
            raise DataError(
                "the raster holds complex numbers, which are no picture",
                item=item,
                href=href,
                got=dtype,
                hint="Choose an asset of amplitudes or intensities",
            )
    return tuple(dataset.dtypes)


def _data_bands(dataset: rasterio.DatasetReader) -> int:
    kinds = list(dataset.colorinterp)
    alpha = kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds else len(kinds)
    return max(1, alpha)


def _not_georeferenced(
    dataset: rasterio.DatasetReader, item: str | None, href: str
) -> GeosamStacError:
    has_gcps = bool(dataset.gcps[0])
    return DataError(
        "the raster is not georeferenced",
        item=item,
        href=href,
        expected="a CRS and a geotransform",
        got="ground control points" if has_gcps else _found(dataset),
        hint="Warp it to a CRS first, as with `gdalwarp -t_srs EPSG:n`",
    )


def _found(dataset: rasterio.DatasetReader) -> str:
    if dataset.crs is None:
        return "no CRS"
    return "no geotransform" if dataset.transform.is_identity else "a CRS that is not of maps"
