"""Windows and masks on a scene's pixel grid: what lies where, which parts hang together. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

from geosam_stac.types import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

Box = tuple[float, float, float, float]


def inside(window: Window, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> Mask:
    """Which pixels, by row and column, a window holds."""
    found: Mask = (
        (rows >= window.row_off)
        & (rows < window.row_off + window.height)
        & (cols >= window.col_off)
        & (cols < window.col_off + window.width)
    )
    return found


def holds(window: Window, x: float, y: float) -> bool:
    """Whether a place, (x, y) in px, lies in a window or on its border."""
    return (
        window.col_off <= x <= window.col_off + window.width
        and window.row_off <= y <= window.row_off + window.height
    )


def meet(one: Window, other: Window) -> bool:
    """Whether two windows share a pixel."""
    return (
        one.row_off < other.row_off + other.height
        and other.row_off < one.row_off + one.height
        and one.col_off < other.col_off + other.width
        and other.col_off < one.col_off + one.width
    )


def clipped(box: Box, window: Window) -> Box | None:
    """The part of a box (left, top, right, bottom) in a window; None where that is no pixel."""
    left, top = max(box[0], window.col_off), max(box[1], window.row_off)
    right = min(box[2], window.col_off + window.width)
    bottom = min(box[3], window.row_off + window.height)
    return (left, top, right, bottom) if right - left >= 1 and bottom - top >= 1 else None


def cropped(mask: Mask, window: Window) -> tuple[Mask, Window]:
    """A mask, and its window, cut to what is True; of nothing, one pixel stays."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)
    left, right = (int(cols[0]), int(cols[-1]) + 1) if len(cols) else (0, 1)
    place = Window(
        row_off=window.row_off + top,
        col_off=window.col_off + left,
        height=bottom - top,
        width=right - left,
    )
    return mask[top:bottom, left:right].copy(), place


def runs(line: Mask) -> list[tuple[int, int]]:
    """Start and stop of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def polygons(mask: Mask) -> list[shapely.Polygon]:
    """The parts of a mask, connected by edges, in px; holes kept."""
    from rasterio.features import shapes

    return [
        shapely.geometry.shape(geometry)
        for geometry, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    ]


def joined(mask: Mask, start: Mask) -> Mask:
    """The parts of a mask, connected by edges, that hold any pixel of `start`."""
    from rasterio.features import rasterize

    if not (mask & start).any():
        return np.zeros_like(mask)
    parts = rasterize(
        [(polygon, number) for number, polygon in enumerate(polygons(mask), start=1)],
        out_shape=mask.shape,
        dtype="int32",
    )
    wanted = np.unique(parts[mask & start])
    found: Mask = mask & np.isin(parts, wanted[wanted > 0])
    return found
