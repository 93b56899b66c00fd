"""Windows against tiles and against each other: rectangles of pixels, nothing else. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from geosam_stac.types import Window

# How many rows of pixels a tile has at most, unless the file's blocks are higher.
LOW_PX = 512
# And columns: what is in memory at once should not grow with the width of a file.
WIDE_PX = 2048


def union(windows: list[Window]) -> Window:
    """The smallest window that holds all of these."""
    row_off = min(window.row_off for window in windows)
    col_off = min(window.col_off for window in windows)
    return Window(
        row_off=row_off,
        col_off=col_off,
        height=max(window.row_off + window.height for window in windows) - row_off,
        width=max(window.col_off + window.width for window in windows) - col_off,
    )


def slices(window: Window) -> tuple[slice, slice]:
    """A window as numpy slices (rows, columns)."""
    return (
        slice(window.row_off, window.row_off + window.height),
        slice(window.col_off, window.col_off + window.width),
    )


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A grid of `shape` (H, W) px cut into tiles of `tile` (h, w) px without overlap.

    A corner of a tile lies at `origin` (row, column), which may lie outside of the grid; tiles at
    the edges are cut off there.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    def under(self, window: Window) -> list[Window]:
        """The tiles that a window of the grid touches, row-major."""
        rows = self._spans(0, window.row_off, window.height)
        cols = self._spans(1, window.col_off, window.width)
        return [
            Window(row_off=row, col_off=col, height=row_stop - row, width=col_stop - col)
            for row, row_stop in rows
            for col, col_stop in cols
        ]

    def all(self) -> list[Window]:
        """Every tile, row-major."""
        height, width = self.shape
        return self.under(Window(row_off=0, col_off=0, height=height, width=width))

    def _spans(self, axis: int, offset: int, size: int) -> list[tuple[int, int]]:
        length, tile, origin = self.shape[axis], self.tile[axis], self.origin[axis]
        first = (offset - origin) // tile * tile + origin
        starts = range(first, min(offset + size, length), tile)
        return [(max(start, 0), min(start + tile, length)) for start in starts]


def tile_shape(block: tuple[int, int], shape: tuple[int, int], *, area_px: int) -> tuple[int, int]:
    """Height and width of tiles of about `area_px`, made of a file's own blocks.

    At most `LOW_PX` high and `WIDE_PX` wide where the blocks allow it: of a scene that is read
    block row by block row a row of tiles stays in memory, which should not be more than the chips
    overlap.
    """
    block_h, block_w = (min(of_file, whole) for of_file, whole in zip(block, shape, strict=True))
    height = max(1, LOW_PX // block_h) * block_h
    if block_w * height > area_px:  # strips as wide as the file, above all
        height = max(1, area_px // (block_w * block_h)) * block_h
    wide_px = min(area_px // height, max(WIDE_PX, block_w))
    return height, max(1, wide_px // block_w) * block_w


def tiles_over(
    hull: Window, *, shape: tuple[int, int], block: tuple[int, int], area_px: int
) -> Tiling:
    """Tiles of a file of `shape` px over a part of it: no block that the part does not touch."""
    spans = [
        (offset // size * size, min(-(-(offset + length) // size) * size, whole))
        for offset, length, size, whole in zip(
            (hull.row_off, hull.col_off), (hull.height, hull.width), block, shape, strict=True
        )
    ]
    (top, bottom), (left, right) = spans
    tile = tile_shape(block, (bottom - top, right - left), area_px=area_px)
    return Tiling(shape=(bottom, right), tile=tile, origin=(top, left))


def within(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Slices of a window inside another one that holds it."""
    rows, cols = slices(inner)
    return (
        slice(rows.start - outer.row_off, rows.stop - outer.row_off),
        slice(cols.start - outer.col_off, cols.stop - outer.col_off),
    )


def meet(one: Window, other: Window) -> bool:
    """Whether two windows have a pixel in common."""
    return (
        max(one.row_off, other.row_off)
        < min(one.row_off + one.height, other.row_off + other.height)
    ) and (
        max(one.col_off, other.col_off) < min(one.col_off + one.width, other.col_off + other.width)
    )


def overlap(target: Window, tile: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a tile and a target window meet: slices into the target, slices into the tile."""
    top = max(target.row_off, tile.row_off)
    left = max(target.col_off, tile.col_off)
    bottom = min(target.row_off + target.height, tile.row_off + tile.height)
    right = min(target.col_off + target.width, tile.col_off + tile.width)
    common = Window(row_off=top, col_off=left, height=bottom - top, width=right - left)
    return within(common, target), within(common, tile)
