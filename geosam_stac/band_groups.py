"""Bands that are loaded together, and warped onto the scene's grid.

They are loaded in tiles of the file's own blocks, each once; then they are warped in memory by GDAL
with an exact transformer. So a pixel's value does not depend on how the scene is cut:
`odc.stac.load` into another CRS uses GDAL's approximate one, and gave other pixels for other
windows (up to 10 of 255 with bilinear, measured on NAIP into EPSG:3857), and fetched what two
windows share twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geosam_stac.band_source import BandSource
from geosam_stac.grid import crop
from geosam_stac.kept_files import KeptFiles
from geosam_stac.odc_loading import block_shape, load
from geosam_stac.retry import Retries
from geosam_stac.source_tiles import SourceTiles
from geosam_stac.types import Access, Scene, Window, gdal_settings
from geosam_stac.warp import inside_of, is_aligned, offset_in, source_part, warp
from geosam_stac.windows import Tiling, tiles_over, union

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How an Item's files are opened, kept open and cut."""

    access: Access
    files: KeptFiles
    retries: Retries
    tile_area_px: int


class BandGroup:
    """Sources that are loaded together: one grid, one dtype, opened in one way."""

    def __init__(self, scene: Scene, sources: list[BandSource], opening: Opening) -> None:
        self.scene = scene
        self.sources = sources
        self.grid, self.dtype = sources[0].grid, sources[0].dtype
        self.aligned = is_aligned(self.grid, scene.geobox)
        self.tiles = SourceTiles(self._load, self.tiling)
        self.bytes_read = 0
        self._files = opening.files
        self._retries = opening.retries
        self._tile_area_px = opening.tile_area_px
        self._tiling: Tiling | None = None
        self._parts: dict[GeoBox, Window | None] = {}
        self._lock = threading.RLock()

    def tiling(self) -> Tiling:
        """The grid cut along the first file's blocks, as far as they are needed; opens it."""
        with self._lock:
            if self._tiling is None:
                self._tiling = tiles_over(
                    self._hull(),
                    shape=(self.grid.height, self.grid.width),
                    block=self._tried(
                        self.sources[:1],
                        lambda settings, fresh: block_shape(
                            self.sources[0], self.scene, self._files, settings, fresh=fresh
                        ),
                    ),
                    area_px=self._tile_area_px,
                )
            return self._tiling

    def _hull(self) -> Window:
        """What all windows together need of the grid."""
        if self.aligned:
            part = self._part(self.scene.geobox)
            parts = [] if part is None else [part]
        else:  # not the scene's own part: a window's may bulge out of it
            parts = [part for part in self._parts.values() if part is not None]
        whole = Window(row_off=0, col_off=0, height=self.grid.height, width=self.grid.width)
        return union(parts) if parts else whole

    def plan(self, geoboxes: list[GeoBox]) -> None:
        """What `read` will be asked for, and `release`."""
        with self._lock:
            self._parts = {geobox: self._part(geobox) for geobox in geoboxes}
            if not self.aligned:
                self._tiling = None
        self.tiles.plan([part for part in self._parts.values() if part is not None])

    def release(self, geobox: GeoBox) -> None:
        """Read or not, this is done with."""
        part = self._part(geobox)
        if part is not None:
            self.tiles.release(part)

    def read(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels of all sources on `geobox`: (n, H, W), and (n, H, W) inside the source.

        Neither is to be written to.
        """
        shape = (len(self.sources), *geobox.shape)
        part = self._part(geobox)
        if part is None:
            data = np.empty(shape, dtype=self.dtype)
            for index, source in enumerate(self.sources):
                data[index] = source.band.nodata or 0
            return data, np.zeros(shape, dtype=bool)
        pixels = self.tiles.read(part)
        if self.aligned:
            inside = np.broadcast_to(inside_of(self.grid, geobox), shape)
            if pixels.shape == shape:
                return pixels, inside
            data = np.zeros(shape, dtype=self.dtype)
            row, col = offset_in(self.grid, geobox)
            data[
                :,
                part.row_off - row : part.row_off - row + part.height,
                part.col_off - col : part.col_off - col + part.width,
            ] = pixels
            return data, inside
        data = np.empty(shape, dtype=self.dtype)
        known = np.empty(shape, dtype=bool)
        for nodata, members in _by_nodata(self.sources):
            data[members], known[members] = warp(
                pixels[members],
                crop(self.grid, part),
                geobox,
                nodata=nodata,
                resampling=self.sources[0].resampling,
                shrink=self.sources[0].shrink,
            )
        return data, known

    def _part(self, geobox: GeoBox) -> Window | None:
        """The window of the grid that `geobox` needs; None where they do not meet."""
        if geobox in self._parts:
            return self._parts[geobox]
        if not self.aligned:
            part = source_part(self.grid, geobox)
            if part is None:
                return None
            row, col = offset_in(self.grid, part)
            return Window(row_off=row, col_off=col, height=part.height, width=part.width)
        row, col = offset_in(self.grid, geobox)
        top, left = max(row, 0), max(col, 0)
        bottom = min(row + geobox.height, self.grid.height)
        right = min(col + geobox.width, self.grid.width)
        if top >= bottom or left >= right:
            return None
        return Window(row_off=top, col_off=left, height=bottom - top, width=right - left)

    def _load(self, window: Window) -> NDArray[Any]:
        """(n, h, w) pixels of a window of the grid."""
        pixels = self._tried(
            self.sources,
            lambda settings, fresh: load(
                self.sources, window, self.scene, self._files, settings, fresh=fresh
            ),
        )
        with self._lock:
            self.bytes_read += pixels.nbytes
        return pixels

    def _tried(self, sources: list[BandSource], do: Callable[[dict[str, str], bool], T]) -> T:
        """Do a read, with GDAL's settings, until it succeeds; tried again, everything is fresh."""
        retries = self._retries

        def once(tries: int) -> T:
            fresh = tries > 0
            return do(gdal_settings(retries.policy.timeout_s, fresh=fresh), fresh)

        def renew() -> bool:
            # All files are asked, not only the first: several containers may have expired.
            files = {source.band.source_href: source.access for source in sources}
            renewed = [access.renew(href) for href, access in files.items()]
            return any(renewed)

        return retries.run("read", once, renew=renew)


def by_grid(sources: list[BandSource]) -> list[list[BandSource]]:
    """Sources that can be loaded together: one grid, one dtype, opened in one way."""
    groups: dict[tuple[Any, ...], list[BandSource]] = {}
    for source in sources:
        options = tuple(sorted(source.access.options(source.band.source_href).items()))
        groups.setdefault((source.grid, source.dtype, options), []).append(source)
    return list(groups.values())


def read_groups(
    sources: list[BandSource], groups: list[BandGroup], geobox: GeoBox, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(n, H, W) of all sources, and (n, H, W) inside. Neither is to be written to."""
    if len(groups) == 1 and groups[0].sources == sources and groups[0].dtype == dtype:
        data, inside = groups[0].read(geobox)
        return data, inside
    data = np.empty((len(sources), *geobox.shape), dtype=dtype)
    known = np.empty(data.shape, dtype=bool)
    for group in groups:
        members = [sources.index(source) for source in group.sources]
        data[members], known[members] = group.read(geobox)
    return data, known


def _by_nodata(sources: list[BandSource]) -> list[tuple[float | None, list[int]]]:
    groups: dict[str, tuple[float | None, list[int]]] = {}
    for index, source in enumerate(sources):
        nodata = source.band.nodata
        if nodata is None and source.dtype.kind == "f":
            nodata = math.nan
        groups.setdefault(repr(nodata), (nodata, []))[1].append(index)
    return list(groups.values())
