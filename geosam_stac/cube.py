"""Scene + window -> pixels on the scene's grid: Items laid over each other, masked and derived."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geosam_stac.band_groups import BandGroup, Opening, by_grid, read_groups
from geosam_stac.band_source import BandSource
from geosam_stac.grid import crop
from geosam_stac.kept_files import KeptFiles
from geosam_stac.radiometry import band_valid
from geosam_stac.retry import Retries
from geosam_stac.types import Access, Member, PlainAccess, Scene, Window
from geosam_stac.warp import offset_in
from geosam_stac.windows import Tiling, tile_shape

# What is read at once, unless the caller says otherwise: of three bands of uint16 12 MB.
TILE_AREA_PX = 2 << 20


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
                Opening(access=its, files=self._files, retries=again, tile_area_px=tile_area_px),
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

    def _groups(self) -> list[BandGroup]:
        return [group for member in self._members for group in member.groups]


class _MemberReader:
    """One Item's bands on the scene's grid: nodata, masks and scaling dealt with."""

    def __init__(self, scene: Scene, member: Member, resampling: str, opening: Opening) -> None:
        self.scene = scene
        self.member = member
        self._bands = [BandSource(scene, band, resampling, opening.access) for band in member.bands]
        # Classes and bit fields have no values in between.
        self._masks = [BandSource(scene, band, "nearest", opening.access) for band in member.masks]
        self.dtype = np.result_type(*[source.dtype for source in self._bands])
        self._band_groups, self._mask_groups = (
            [BandGroup(scene, group, opening) for group in by_grid(sources)]
            for sources in (self._bands, self._masks)
        )
        self.groups = [*self._band_groups, *self._mask_groups]

    def read(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(B, H, W) values and (B, H, W) validity."""
        data, known = read_groups(self._bands, self._band_groups, geobox, self.dtype)
        valid = band_valid(data, [source.band.nodata for source in self._bands])
        valid &= known
        if self._masks:
            masks, known = read_groups(self._masks, self._mask_groups, geobox, np.dtype(np.int64))
            for mask, values, inside in zip(self.scene.masks, masks, known, strict=True):
                valid &= ~(mask.hits(values) & inside)
        if not self.scene.scaled:
            return data, valid
        scaled = np.empty(data.shape, dtype=np.float32)
        for index, source in enumerate(self._bands):
            scaled[index] = data[index] * source.band.scale + source.band.offset
        return scaled, valid
