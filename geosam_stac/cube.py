"""Scene + window -> pixels on the scene's grid. The only user of odc-stac.

Pixels are loaded with odc-stac on the source's own grid (or on an overview of it), in tiles of the
file's own blocks, each once; then they are warped in memory by GDAL with an exact transformer. So a
pixel's value does not depend on how the scene is cut: `odc.stac.load` into another CRS uses GDAL's
approximate one, and gave other pixels for other windows (up to 10 of 255 with bilinear, measured on
NAIP into EPSG:3857), and fetched what two windows share twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import odc.stac
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from rasterio.errors import RasterioError

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.grid import crop
from geosam_stac.kept_files import GDAL_CACHE, KeptDriver, KeptFiles, leave
from geosam_stac.radiometry import band_valid
from geosam_stac.raster_errors import heard_statuses, read_error
from geosam_stac.retry import Retries
from geosam_stac.source_tiles import SourceTiles
from geosam_stac.types import Access, Band, Member, PlainAccess, Scene, Window, gdal_settings
from geosam_stac.warp import (
    inside_of,
    is_aligned,
    kernel_shrink,
    offset_in,
    overview_grid,
    source_part,
    warp,
    wkt,
)
from geosam_stac.windows import Tiling, slices, tile_shape, tiles_over, union

# What is read at once, unless the caller says otherwise: of three bands of uint16 12 MB.
TILE_AREA_PX = 2 << 20

# Member of our own on the Item that odc-stac gets: the asset's href without its signature.
UNSIGNED = "geosam:unsigned"

T = TypeVar("T")


class CubeReader:
    """Reads windows of a scene, from any number of threads.

    A source pixel is fetched and decoded once for all windows of a `plan`. Whoever reads along
    `tiling` also decodes each block of a file on the scene's own grid once, and keeps nothing.

    Parameters
    ----------
    scene
        Bands with their `geobox` and `dtype` known (headers read).
    resampling
        nearest, bilinear, cubic or average.
    access
        How the assets of each of the scene's Items are opened: signatures, GDAL options. Default:
        as they are.
    retries
        How reads that fail are tried again.
    tile_area_px
        About how many pixels are read at once.

    Attributes
    ----------
    dtype, band_count
        Of what `read` gives.
    bytes_read
        Decoded source pixels so far, in bytes.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        resampling: str,
        access: Callable[[pystac.Item], Access] | None = None,
        retries: Retries | None = None,
        tile_area_px: int = TILE_AREA_PX,
    ) -> None:
        self.scene = scene
        again = retries or Retries()
        self._files = KeptFiles()
        self._tile_area_px = tile_area_px
        self._tiling: Tiling | None = None
        self._lock = threading.Lock()
        members = scene.members or (Member(item_id=scene.id, bands=scene.bands),)
        # Each Item has credentials of its own: one mosaic may lie in several accounts.
        opened = [access(item) for item in scene.items] if access is not None else []
        opened = opened or [PlainAccess() for _ in members]
        self._members = [
            _MemberReader(
                scene,
                member,
                resampling,
                _Opening(access=its, files=self._files, retries=again, tile_area_px=tile_area_px),
            )
            for member, its in zip(members, opened, strict=True)
        ]
        computed = scene.expression is not None or scene.scaled
        self.dtype = np.result_type(
            *[np.float32] if computed else [member.dtype for member in self._members]
        )
        self.band_count = 1 if scene.expression is not None else len(scene.bands)

    @property
    def bytes_read(self) -> int:
        """Decoded source pixels so far, in bytes."""
        return sum(group.bytes_read for group in self._groups())

    @property
    def bytes_kept(self) -> int:
        """Source pixels that are kept for a window to come, in bytes."""
        return sum(group.tiles.bytes for group in self._groups())

    def tiling(self) -> Tiling:
        """How to cut the scene so that no block of its (first) file is cut. Opens that file.

        Raises as `read` does.
        """
        with self._lock:
            if self._tiling is None:
                shape = self.scene.geobox.shape
                whole: tuple[int, int] = (shape[0], shape[1])
                on_grid = [group for group in self._groups() if group.aligned]
                if on_grid:
                    group = on_grid[0]
                    row, col = offset_in(group.grid, self.scene.geobox)
                    of_file = group.tiling()
                    top, left = of_file.origin
                    self._tiling = Tiling(
                        shape=whole, tile=of_file.tile, origin=(top - row, left - col)
                    )
                else:
                    tile = tile_shape((1, 1), whole, area_px=self._tile_area_px)
                    self._tiling = Tiling(shape=whole, tile=tile)
        return self._tiling

    def plan(self, windows: Iterable[Window]) -> None:
        """These windows will be read, each once: what several of them need is kept for them."""
        geoboxes = [crop(self.scene.geobox, window) for window in windows]
        for group in self._groups():
            group.plan(geoboxes)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels of one window: members laid over each other, then derived.

        Returns
        -------
        (B, H, W) values, and (B, H, W) bool, True = valid (inside the source, not nodata, not
        masked). What is not valid has any value.

        Raises
        ------
        DataError, TemporaryError
            They name the asset.
        """
        geobox = crop(self.scene.geobox, window)
        try:
            data, valid = self._mosaic(geobox)
        finally:
            for group in self._groups():
                group.release(geobox)
        if self.scene.expression is None:
            return data, valid
        bands = {
            name: np.where(valid[index], data[index], np.float32(np.nan))
            for index, name in enumerate(band.name for band in self.scene.bands)
        }
        derived = self.scene.expression.evaluate(bands)[np.newaxis]
        return derived, np.isfinite(derived)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _mosaic(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if len(self._members) == 1:
            return self._members[0].read(geobox)
        data = np.zeros((len(self.scene.bands), *geobox.shape), dtype=self.dtype)
        valid = np.zeros(data.shape, dtype=bool)
        for member in self._members:
            # Whole pixels: bands of two Items are never mixed in one.
            free = ~valid.any(axis=0)
            if not free.any():
                break
            values, member_valid = member.read(geobox)
            np.copyto(data, values, where=free, casting="unsafe")
            np.copyto(valid, member_valid, where=free)
        return data, valid

    def _groups(self) -> list[_Group]:
        return [group for member in self._members for group in member.groups]


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """How an Item's files are opened, kept open and cut."""

    access: Access
    files: KeptFiles
    retries: Retries
    tile_area_px: int


class _MemberReader:
    """One Item's bands on the scene's grid: nodata, masks and scaling dealt with."""

    def __init__(self, scene: Scene, member: Member, resampling: str, opening: _Opening) -> None:
        self.scene = scene
        self.member = member
        self._bands = [_Source(scene, band, resampling, opening) for band in member.bands]
        # Classes and bit fields have no values in between.
        self._masks = [_Source(scene, band, "nearest", opening) for band in member.masks]
        self.dtype = np.result_type(*[source.dtype for source in self._bands])
        self._band_groups, self._mask_groups = (
            [_Group(scene, group, opening) for group in _by_grid(sources)]
            for sources in (self._bands, self._masks)
        )
        self.groups = [*self._band_groups, *self._mask_groups]

    def read(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(B, H, W) values and (B, H, W) validity."""
        data, known = _read_groups(self._bands, self._band_groups, geobox, self.dtype)
        valid = band_valid(data, [source.band.nodata for source in self._bands])
        valid &= known
        if self._masks:
            masks, known = _read_groups(self._masks, self._mask_groups, geobox, np.dtype(np.int64))
            for mask, values, inside in zip(self.scene.masks, masks, known, strict=True):
                valid &= ~(mask.hits(values) & inside)
        if not self.scene.scaled:
            return data, valid
        scaled = np.empty(data.shape, dtype=np.float32)
        for index, source in enumerate(self._bands):
            scaled[index] = data[index] * source.band.scale + source.band.offset
        return scaled, valid


def _read_groups(
    sources: list[_Source], groups: list[_Group], geobox: GeoBox, dtype: np.dtype[Any]
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


class _Source:
    """One band's way onto the scene's grid: the level to read, and whether it must be warped."""

    def __init__(self, scene: Scene, band: Band, resampling: str, opening: _Opening) -> None:
        if band.geobox is None or band.dtype is None:
            raise DataError("the band's header is not known", item=scene.id, href=band.href)
        self.band = band
        self.dtype = np.dtype(band.dtype)
        self.resampling = resampling
        self.access = opening.access
        whole = compute_reproject_roi(band.geobox, scene.geobox)
        # The scale is taken of the whole scene: taken of each window, windows would disagree.
        self.level = 2 ** int(math.log2(max(1, whole.read_shrink)))
        self.grid = overview_grid(band.geobox, self.level)
        scale = whole.scale2
        self.shrink = (kernel_shrink(scale.x / self.level), kernel_shrink(scale.y / self.level))


class _Group:
    """Sources that are loaded together: one grid, one dtype, opened in one way."""

    def __init__(self, scene: Scene, sources: list[_Source], opening: _Opening) -> None:
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
                    block=self._tried(self.sources[:1], self._block_shape),
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

    def _block_shape(self, settings: dict[str, str], fresh: bool) -> tuple[int, int]:
        source = self.sources[0]
        options = source.access.options(source.band.source_href)
        uri = source.access.sign(source.band.source_href)
        with heard_statuses() as statuses, rasterio.Env(**(settings | GDAL_CACHE | dict(options))):
            try:
                with self._files.open(uri, fresh=fresh, is_fenced=source.band.fenced) as dataset:
                    # Overviews are taken to have the same; if not, blocks are cut, no more.
                    height, width = dataset.block_shapes[source.band.index - 1]
                    return height, width
            except (RasterioError, OSError, DataError) as error:
                raise _named(error, self.scene.id, source.band.href, statuses) from error

    def _load(self, window: Window) -> NDArray[Any]:
        """(n, h, w) pixels of a window of the grid."""
        pixels = self._tried(
            self.sources, lambda settings, fresh: self._load_once(window, settings, fresh)
        )
        with self._lock:
            self.bytes_read += pixels.nbytes
        return pixels

    def _tried(self, sources: list[_Source], do: Callable[[dict[str, str], bool], T]) -> T:
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

    def _load_once(self, window: Window, settings: dict[str, str], fresh: bool) -> NDArray[Any]:
        sources = self.sources
        item, names = _load_item(self.scene, sources)
        hrefs = {asset.href: asset.extra_fields[UNSIGNED] for asset in item.assets.values()}
        options = sources[0].access.options(sources[0].band.source_href)
        keys = (name.rpartition(".") for name in names)
        wanted = [(item.assets[key].href, int(number)) for key, _, number in keys]
        bands: dict[str, list[int]] = {}
        for uri, number in dict.fromkeys(wanted):
            bands.setdefault(uri, []).append(number)
        geobox = self.grid[slices(window)]
        driver = KeptDriver(
            self._files,
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
                raise _named(error, self.scene.id, href, statuses) from error
        return driver.pixels(wanted)


def _named(error: Exception, item: str, href: str, statuses: list[int]) -> GeosamStacError:
    """An error of ours that names the asset: as `claims` raises it, or made of GDAL's."""
    if isinstance(error, GeosamStacError):
        return error.at(item=item, href=href)
    return read_error(error, item=item, href=href, statuses=statuses)


def _load_item(scene: Scene, sources: list[_Source]) -> tuple[pystac.Item, list[str]]:
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


def _by_grid(sources: list[_Source]) -> list[list[_Source]]:
    """Sources that can be loaded together: one grid, one dtype, opened in one way."""
    groups: dict[tuple[Any, ...], list[_Source]] = {}
    for source in sources:
        options = tuple(sorted(source.access.options(source.band.source_href).items()))
        groups.setdefault((source.grid, source.dtype, options), []).append(source)
    return list(groups.values())


def _by_nodata(sources: list[_Source]) -> list[tuple[float | None, list[int]]]:
    groups: dict[str, tuple[float | None, list[int]]] = {}
    for index, source in enumerate(sources):
        nodata = source.band.nodata
        if nodata is None and source.dtype.kind == "f":
            nodata = math.nan
        groups.setdefault(repr(nodata), (nodata, []))[1].append(index)
    return list(groups.values())
