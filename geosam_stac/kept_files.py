"""Raster files that stay open, and the driver by which odc-loader reads from them.

odc-loader's own driver opens a file anew for each band of each window. So a file whose pixels lie
interleaved is fetched and decoded once a band, and every window costs an open, which in rasterio
1.4 holds the interpreter for as long as the network takes. Here a file stays open between windows,
and the bands that are wanted of it are read in one go: each of its blocks is decoded once.
Knows nothing of scenes; `odc_loading` alone reads with it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.loader import RioDriver, RioReader
from odc.loader.types import RasterLoadParams, RasterSource
from rasterio import DatasetReader
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window as RioWindow

from geosam_stac.claims import check_claims
from geosam_stac.errors import DataError
from geosam_stac.fence import open_fenced
from geosam_stac.turns import TURNS
from geosam_stac.types import Window
from geosam_stac.warp import offset_in

# Files that are open and not in use; beyond this the one that waited longest is closed.
MAX_IDLE = 64

# For what stays open: decoded blocks are kept by us, in the scene's own tiles, and GDAL's default
# is 5 % of the machine's memory. Bytes, of the whole process. And most headers in one request.
GDAL_CACHE = {"GDAL_CACHEMAX": 64_000_000, "GDAL_INGESTED_BYTES_AT_OPEN": "32768"}


class KeptFiles:
    """Open files for any number of threads; each file object serves one thread at a time."""

    def __init__(self) -> None:
        self._idle: list[tuple[tuple[str, int | None], DatasetReader]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(
        self,
        uri: str,
        *,
        overview: int | None = None,
        fresh: bool = False,
        is_fenced: bool = False,
    ) -> Iterator[DatasetReader]:
        """A file, or the overview of that index (0 is the finest), for one reader.

        One that fails is closed, and with it all that are open under that name: what GDAL
        remembers of them may be what is wrong. `fresh` opens it anew in any case; `is_fenced`: by
        `fence`, for a stranger named it.
        """
        dataset = None if fresh else self._take((uri, overview))
        try:
            if dataset is None:
                with TURNS.opening(uri):
                    dataset = _opened(uri, overview, is_fenced=is_fenced)
                    check_claims(dataset)  # overviews have headers of their own, and files change
                    _read_directories(dataset)
            with TURNS.reading(uri):
                yield dataset
        except BaseException:
            if dataset is not None:
                dataset.close()
            self._drop(uri)
            raise
        self._give((uri, overview), dataset)

    def close(self) -> None:
        """Close all that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, dataset in idle:
            dataset.close()

    def _take(self, key: tuple[str, int | None]) -> DatasetReader | None:
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == key:
                    return self._idle.pop(place)[1]
        return None

    def _give(self, key: tuple[str, int | None], dataset: DatasetReader) -> None:
        with self._lock:
            self._idle.append((key, dataset))
            over = self._idle.pop(0)[1] if len(self._idle) > MAX_IDLE else None
        if over is not None:
            over.close()

    def _drop(self, uri: str) -> None:
        with self._lock:
            gone = [dataset for key, dataset in self._idle if key[0] == uri]
            self._idle = [entry for entry in self._idle if entry[0][0] != uri]
        for dataset in gone:
            dataset.close()


def _opened(uri: str, overview: int | None, *, is_fenced: bool) -> DatasetReader:
    if is_fenced:
        return open_fenced(uri, overview=overview)
    options = {} if overview is None else {"overview_level": overview}
    return rasterio.open(uri, sharing=False, **options)


def _read_directories(dataset: DatasetReader) -> None:
    """Have GDAL read all headers of the file in this thread's turn; `read` would later, alone."""
    _ = dataset.mask_flag_enums, dataset.overviews(1)


class KeptDriver(RioDriver):
    """What `odc.stac.load` reads one window with: all wanted bands of a file at once.

    The pixels are taken from here (`pixels`), as they came from the files: odc-loader's own arrays
    are more copies of them, which nothing needs.

    Parameters
    ----------
    files
        Where files are kept open.
    bands
        Of each file (as it is opened) the 1-based numbers of the bands that are wanted.
    window, geobox
        The window in px of the file, or of its overview where `level` is not 1; and its geobox.
    level
        How many pixels of the file, a side, become one: a power of two.
    fresh
        Open the files anew.
    is_fenced
        A stranger named the files.

    Attributes
    ----------
    failed
        The files that could not be read, as they were opened; odc-loader's error names none.
    """

    def __init__(
        self,
        files: KeptFiles,
        bands: Mapping[str, Sequence[int]],
        *,
        window: Window,
        geobox: GeoBox,
        level: int,
        fresh: bool = False,
        is_fenced: bool = False,
    ) -> None:
        super().__init__()
        self.failed: list[str] = []
        self._files = files
        self._bands = bands
        self._window, self._geobox = window, geobox
        self._level = level
        self._how = {"fresh": fresh, "is_fenced": is_fenced}
        self._pixels: dict[str, NDArray[Any]] = {}

    def pixels(self, wanted: Sequence[tuple[str, int]]) -> NDArray[Any]:
        """(n, h, w) of these files' bands, once odc-stac has had all of them read; hands them over.

        Those of one file in its own order are not copied.
        """
        read, self._pixels = self._pixels, {}
        uri = wanted[0][0]
        if [*wanted] == [(uri, band) for band in self._bands[uri]]:
            return read[uri]
        return np.stack([read[uri][self._bands[uri].index(band)] for uri, band in wanted])

    def open(self, src: RasterSource, ctx: Any) -> _BandReader:
        """The reader of one band of one file."""
        return _BandReader(self, src, ctx)

    def band(self, src: RasterSource, part: GeoBox, cfg: RasterLoadParams) -> NDArray[Any]:
        """(h, w): one band of a file on a part of the window; the first asked for reads all."""
        if src.uri not in self._pixels:
            try:
                self._pixels[src.uri] = self._read(src.uri, cfg)
            except (RasterioError, OSError, DataError):
                self.failed.append(src.uri)
                raise
        row, col = offset_in(self._geobox, part)
        place = self._bands[src.uri].index(src.band)
        whole: NDArray[Any] = self._pixels[src.uri][place]
        return whole[row : row + part.height, col : col + part.width]

    def _read(self, uri: str, cfg: RasterLoadParams) -> NDArray[Any]:
        bands = list(self._bands[uri])
        window = self._window
        place = RioWindow(window.col_off, window.row_off, window.width, window.height)
        with self._files.open(uri, **self._how) as dataset:
            nodata = [dataset.nodatavals[band - 1] for band in bands]
            if self._level == 1:
                pixels = dataset.read(bands, window=place)
                return _with_nodata(pixels, nodata, cfg)
            factors = dataset.overviews(bands[0])
            fine = [factor for factor in factors if factor <= self._level]
            if not fine:
                return _averaged(dataset, bands, self._geobox, nodata, cfg)
            shape = dataset.shape
        finest = factors.index(max(fine))
        with self._files.open(uri, overview=finest, **self._how) as small:
            whole = tuple(size * self._level for size in small.shape)
            if max(fine) == self._level and whole == shape:
                return _with_nodata(small.read(bands, window=place), nodata, cfg)
            return _averaged(small, bands, self._geobox, nodata, cfg)


class _BandReader(RioReader):
    """One band of one file, as odc-loader asks for it."""

    def __init__(self, driver: KeptDriver, src: RasterSource, ctx: Any) -> None:
        super().__init__(src, ctx)
        self._driver = driver

    def read(
        self,
        cfg: RasterLoadParams,
        dst_geobox: GeoBox,
        *,
        dst: NDArray[Any] | None = None,
        selection: Any = None,
    ) -> tuple[tuple[slice, slice], NDArray[Any]]:
        """The band's pixels, and where they lie on `dst_geobox`: all over it.

        odc-stac asks for a window of more than 2048 px in several parts.
        """
        assert dst is None  # odc-stac asks so for dask alone
        assert selection is None
        height, width = dst_geobox.shape
        return (slice(0, height), slice(0, width)), self._driver.band(self._src, dst_geobox, cfg)


def leave(dst: NDArray[Any], src: NDArray[Any]) -> None:
    """How odc-loader lays pixels onto its own window: not at all, for `KeptDriver` has them."""


def _with_nodata(
    pixels: NDArray[Any], nodata: list[float | None], cfg: RasterLoadParams
) -> NDArray[Any]:
    """Where the file's nodata is another than the one asked for, the latter; as odc-loader does."""
    wanted = cfg.fill_value
    if wanted is None and pixels.dtype.kind == "f":
        wanted = math.nan
    for band, value in zip(pixels, nodata, strict=True):
        if value is None or wanted is None or math.isnan(value) or value == wanted:
            continue
        np.copyto(band, wanted, where=band == value, casting="unsafe")
    return pixels


def _averaged(
    dataset: DatasetReader,
    bands: list[int],
    geobox: GeoBox,
    nodata: list[float | None],
    cfg: RasterLoadParams,
) -> NDArray[Any]:
    """(n, H, W) on `geobox` of a file without such an overview: averages, or nearest."""
    pixels = np.empty((len(bands), *geobox.shape), dtype=cfg.dtype or dataset.dtypes[0])
    for band, value, out in zip(bands, nodata, pixels, strict=True):
        src_nodata = cfg.src_nodata_fallback if value is None else value
        fill = cfg.fill_value
        if fill is None:
            fill = math.nan if pixels.dtype.kind == "f" else src_nodata
        reproject(
            rasterio.band(dataset, band),
            out,
            src_nodata=src_nodata,
            dst_crs=str(geobox.crs),
            dst_transform=geobox.transform,
            dst_nodata=fill,
            resampling=Resampling[cfg.resampling],
        )
    return pixels
