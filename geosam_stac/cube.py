"""Scene + window -> pixels on the scene's grid. The only user of odc-stac.

Pixels are loaded with odc-stac on the source's own grid (or on an overview of it), then warped
in memory by GDAL with an exact transformer. So a pixel's value does not depend on how the scene
is cut: `odc.stac.load` into another CRS uses GDAL's approximate one, and gave other pixels for
other windows (up to 10 of 255 with bilinear, measured on NAIP into EPSG:3857).
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import odc.stac
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geosam_stac.errors import DataError, ForbiddenError, TemporaryError
from geosam_stac.grid import crop, tiles
from geosam_stac.radiometry import band_valid, widen
from geosam_stac.raster_errors import read_error
from geosam_stac.types import (
    GDAL_SETTINGS,
    Access,
    Band,
    Block,
    BlockRef,
    Member,
    PlainAccess,
    Scene,
    Window,
)
from geosam_stac.warp import (
    inside_of,
    is_aligned,
    kernel_shrink,
    overview_grid,
    source_part,
    warp,
    wkt,
)
from geosam_stac.windows import overlap, rectangles, tiles_under, within

# Tiles are the unit in which pixels are read and kept: each is read once.
TILE_PX = 1024

# Member of our own on the Item that odc-stac gets: the asset's href without its signature.
UNSIGNED = "geosam:unsigned"

# Threads that odc-stac reads with: bands and parts of one window side by side.
READ_THREADS = 4


class CubeReader:
    """Reads a scene's blocks; every pixel is loaded once while `keep` allows it.

    Parameters
    ----------
    scene
        Bands with their `geobox` and `dtype` known (headers read).
    blocks
        All blocks in the order in which they will be read. A tile is kept until the last block
        that needs it has been read.
    resampling
        nearest, bilinear, cubic or average.
    keep_bytes
        Tiles that `scan` loads are kept for the blocks up to this many bytes.
    access
        How the assets of each of the scene's Items are opened: signatures, GDAL options. Default:
        as they are.

    Attributes
    ----------
    bytes_read
        Decoded source pixels so far, in bytes.
    """

    def __init__(
        self,
        scene: Scene,
        blocks: Iterable[BlockRef],
        *,
        resampling: str,
        keep_bytes: int,
        access: Callable[[pystac.Item], Access] | None = None,
    ) -> None:
        self.scene = scene
        self.bytes_read = 0
        self._keep_bytes = keep_bytes
        members = scene.members or (Member(item_id=scene.id, bands=scene.bands),)
        # Each Item has credentials of its own: one mosaic may lie in several accounts.
        opened = [access(item) for item in scene.items] if access is not None else []
        opened = opened or [PlainAccess() for _ in members]
        self._members = [
            _MemberReader(scene, member, resampling, its)
            for member, its in zip(members, opened, strict=True)
        ]
        computed = scene.expression is not None or scene.scaled
        self.dtype = np.result_type(
            *[np.float32] if computed else [member.dtype for member in self._members]
        )
        self.band_count = 1 if scene.expression is not None else len(scene.bands)
        self._tiles: dict[Window, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        self._uses: dict[Window, int] = {}
        for block in blocks:
            for tile in self._tiles_of(block.window):
                self._uses[tile] = self._uses.get(tile, 0) + 1

    @property
    def fits(self) -> bool:
        """Whether the scene's pixels can all be kept, so that a scan costs no second read."""
        height, width = self.scene.geobox.shape
        per_pixel = self.band_count * (self.dtype.itemsize + 1)
        return bool(height * width * per_pixel <= self._keep_bytes)

    @property
    def tile_count(self) -> int:
        """How many windows `scan` gives."""
        return sum(1 for _ in tiles(self.scene.geobox, TILE_PX))

    def scan(self) -> Iterable[tuple[Window, NDArray[Any], NDArray[np.bool_]]]:
        """Every pixel of the scene once, in windows: (window, (B, H, W) data, (B, H, W) valid)."""
        for tile in tiles(self.scene.geobox, TILE_PX):
            data, valid = self._tiles.get(tile) or self._load(tile)
            if self.fits and tile in self._uses:
                self._tiles[tile] = (data, valid)
            yield tile, data, valid

    def read(self, ref: BlockRef) -> Block:
        """Load one block: (3, H, W) source values and (H, W) validity on the scene's grid.

        Raises DataError or TemporaryError that names the asset when a read fails.
        """
        needed = self._tiles_of(ref.window)
        for region in rectangles([tile for tile in needed if tile not in self._tiles]):
            data, valid = self._load(region)
            for tile in self._tiles_of(region):
                part = within(tile, region)
                self._tiles[tile] = (data[:, *part], valid[:, *part])
        shape = (ref.window.height, ref.window.width)
        data = np.empty((self.band_count, *shape), dtype=self.dtype)
        valid = np.empty(data.shape, dtype=bool)
        for tile in needed:
            tile_data, tile_valid = self._tiles[tile]
            into, out = overlap(ref.window, tile)
            data[:, *into] = tile_data[:, *out]
            valid[:, *into] = tile_valid[:, *out]
            self._uses[tile] -= 1
            if not self._uses[tile]:
                del self._tiles[tile]
        anywhere: NDArray[np.bool_] = np.any(valid, axis=0)
        return Block(ref=ref, data=widen(data), band_valid=widen(valid), valid=anywhere)

    def _tiles_of(self, window: Window) -> list[Window]:
        height, width = self.scene.geobox.shape
        return tiles_under(window, (height, width), TILE_PX)

    def _load(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values and validity of one window: members laid over each other, then derived."""
        geobox = crop(self.scene.geobox, window)
        data = np.zeros((len(self.scene.bands), *geobox.shape), dtype=self.dtype)
        valid = np.zeros(data.shape, dtype=bool)
        for member in self._members:
            # Whole pixels: bands of two Items are never mixed in one.
            free = ~valid.any(axis=0)
            if not free.any():
                break
            values, member_valid, size = member.read(geobox)
            self.bytes_read += size
            np.copyto(data, values, where=free, casting="unsafe")
            np.copyto(valid, member_valid, where=free)
        if self.scene.expression is None:
            return data, valid
        bands = {
            name: np.where(valid[index], data[index], np.float32(np.nan))
            for index, name in enumerate(band.name for band in self.scene.bands)
        }
        derived = self.scene.expression.evaluate(bands)[np.newaxis]
        return derived, np.isfinite(derived)


class _MemberReader:
    """One Item's bands on the scene's grid: nodata, masks and scaling dealt with."""

    def __init__(self, scene: Scene, member: Member, resampling: str, access: Access) -> None:
        self.scene = scene
        self.member = member
        self._bands = [_Source(scene, band, resampling, access) for band in member.bands]
        # Classes and bit fields have no values in between.
        self._masks = [_Source(scene, band, "nearest", access) for band in member.masks]
        self.dtype = np.result_type(*[source.dtype for source in self._bands])

    def read(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
        """(B, H, W) values, (B, H, W) validity, and the bytes of source pixels read."""
        data = np.empty((len(self._bands), *geobox.shape), dtype=self.dtype)
        valid, size = _read_sources(self._bands, geobox, data)
        valid &= band_valid(data, [source.band.nodata for source in self._bands])
        if self._masks:
            masks = np.zeros((len(self._masks), *geobox.shape), dtype=np.int64)
            inside, mask_size = _read_sources(self._masks, geobox, masks)
            size += mask_size
            for mask, values, known in zip(self.scene.masks, masks, inside, strict=True):
                valid &= ~(mask.hits(values) & known)
        if not self.scene.scaled:
            return data, valid, size
        scaled = np.empty(data.shape, dtype=np.float32)
        for index, source in enumerate(self._bands):
            scaled[index] = data[index] * source.band.scale + source.band.offset
        return scaled, valid, size


def _read_sources(
    sources: list[_Source], geobox: GeoBox, out: NDArray[Any]
) -> tuple[NDArray[np.bool_], int]:
    """Read into `out` (n, H, W); returns (n, H, W) inside, and the bytes of source pixels."""
    inside = np.empty(out.shape, dtype=bool)
    total = 0
    for group in _by_grid(sources):
        members = [sources.index(source) for source in group]
        out[members], inside[members], size = group[0].read(geobox, group)
        total += size
    return inside, total


class _Source:
    """One band's way onto the scene's grid: the level to read, and whether it must be warped."""

    def __init__(self, scene: Scene, band: Band, resampling: str, access: Access) -> None:
        if band.geobox is None or band.dtype is None:
            raise DataError("the band's header is not known", item=scene.id, href=band.href)
        self.scene = scene
        self.band = band
        self.dtype = np.dtype(band.dtype)
        self.resampling = resampling
        self.access = access
        whole = compute_reproject_roi(band.geobox, scene.geobox)
        # The scale is taken of the whole scene: taken of each window, windows would disagree.
        level = 2 ** int(math.log2(max(1, whole.read_shrink)))
        self.grid = overview_grid(band.geobox, level)
        self.aligned = is_aligned(self.grid, scene.geobox)
        scale = whole.scale2
        self.shrink = (kernel_shrink(scale.x / level), kernel_shrink(scale.y / level))

    def read(
        self, geobox: GeoBox, group: list[_Source]
    ) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
        """Pixels of all sources of one grid on `geobox`: (n, H, W), (n, H, W) inside, bytes."""
        shape = (len(group), *geobox.shape)
        if self.aligned:
            data = _load_native(self.scene, group, geobox, self.resampling)
            return data, np.broadcast_to(inside_of(self.grid, geobox), shape), data.nbytes
        data = np.empty(shape, dtype=self.dtype)
        inside = np.zeros(shape, dtype=bool)
        src_geobox = source_part(self.grid, geobox)
        if src_geobox is None:
            for index, source in enumerate(group):
                data[index] = source.band.nodata or 0
            return data, inside, 0
        src_data = _load_native(self.scene, group, src_geobox, self.resampling)
        for nodata, members in _by_nodata(group):
            data[members], inside[members] = warp(
                src_data[members],
                src_geobox,
                geobox,
                nodata=nodata,
                resampling=self.resampling,
                shrink=self.shrink,
            )
        return data, inside, src_data.nbytes


def _load_native(
    scene: Scene, sources: list[_Source], geobox: GeoBox, resampling: str
) -> NDArray[Any]:
    """(n, H, W) pixels of bands that share a grid, on that grid: no warp takes place.

    A read that is forbidden is tried once more with a new signature, where one can be had.
    """
    try:
        return _load_once(scene, sources, geobox, resampling)
    except (ForbiddenError, TemporaryError):
        # Of a 403 in mid-read GDAL tells only "got 0 bytes": any failure may be one.
        # All are asked, not only the first: several containers may have expired.
        renewed = [source.access.renew(source.band.source_href) for source in sources]
        if not any(renewed):
            raise
        return _load_once(scene, sources, geobox, resampling)


def _load_once(
    scene: Scene, sources: list[_Source], geobox: GeoBox, resampling: str
) -> NDArray[Any]:
    item, names = _load_item(scene, sources)
    hrefs = {asset.href: asset.extra_fields[UNSIGNED] for asset in item.assets.values()}
    access = sources[0].access
    options = access.options(sources[0].band.source_href)
    with _failed_reads() as failed, rasterio.Env(**GDAL_SETTINGS, **options):
        try:
            cube = odc.stac.load(
                [item],
                bands=list(dict.fromkeys(names)),
                geobox=geobox,
                resampling=resampling if resampling == "nearest" else "average",
                pool=READ_THREADS,
            )
        except (RasterioError, OSError) as error:
            named = [href for source, href in hrefs.items() if source in failed]
            href = ", ".join(dict.fromkeys(named or hrefs.values()))
            raise read_error(error, item=scene.id, href=href) from error
    return np.stack([cube[name].values[0] for name in names])


@contextlib.contextmanager
def _failed_reads() -> Iterator[list[str]]:
    """The source hrefs that odc-loader logs as failed; its exception does not name them.

    The record goes no further: it holds the signed href, and the user hears of the failure from
    our own error. So does a warning of rasterio about its own scratch array.
    """
    failed: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and record.args:
            failed.append(str(record.args[0]))
        return False

    logger = logging.getLogger("odc.loader._rio")
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield failed
    finally:
        logger.removeFilter(keep)


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
