"""Windows against tiles and against each other: rectangles of pixels, nothing else. Pure."""

from __future__ import annotations

from geosam_stac.types import Window


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


def tiles_under(window: Window, shape: tuple[int, int], tile_px: int) -> list[Window]:
    """The tiles of a grid of `shape` (H, W) that a window touches, row-major."""
    height, width = shape
    return [
        Window(
            row_off=row,
            col_off=col,
            height=min(tile_px, height - row),
            width=min(tile_px, width - col),
        )
        for row in _steps(window.row_off, window.height, tile_px)
        for col in _steps(window.col_off, window.width, tile_px)
    ]


def _steps(offset: int, size: int, tile_px: int) -> range:
    return range(offset // tile_px * tile_px, offset + size, tile_px)


def within(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Slices of a window inside another one that holds it."""
    rows, cols = slices(inner)
    return (
        slice(rows.start - outer.row_off, rows.stop - outer.row_off),
        slice(cols.start - outer.col_off, cols.stop - outer.col_off),
    )


def overlap(target: Window, tile: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a tile and a target window meet: slices into the target, slices into the tile."""
    top = max(target.row_off, tile.row_off)
    left = max(target.col_off, tile.col_off)
    bottom = min(target.row_off + target.height, tile.row_off + tile.height)
    right = min(target.col_off + target.width, tile.col_off + tile.width)
    common = Window(row_off=top, col_off=left, height=bottom - top, width=right - left)
    return within(common, target), within(common, tile)


def rectangles(missing: list[Window]) -> list[Window]:
    """Join tiles into few rectangles: runs along a row, then equal runs of neighbouring rows."""
    runs: list[Window] = []
    for tile in sorted(missing, key=lambda window: (window.row_off, window.col_off)):
        last = runs[-1] if runs else None
        if last and last.row_off == tile.row_off and last.col_off + last.width == tile.col_off:
            runs[-1] = Window(
                row_off=last.row_off,
                col_off=last.col_off,
                height=last.height,
                width=last.width + tile.width,
            )
        else:
            runs.append(tile)
    regions: list[Window] = []
    for run in runs:
        above = next(
            (
                region
                for region in regions
                if (region.col_off, region.width) == (run.col_off, run.width)
                and region.row_off + region.height == run.row_off
            ),
            None,
        )
        if above is None:
            regions.append(run)
        else:
            regions[regions.index(above)] = Window(
                row_off=above.row_off,
                col_off=above.col_off,
                height=above.height + run.height,
                width=above.width,
            )
    return regions
