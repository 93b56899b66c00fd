"""Embeddings of overlapping chips on one grid: where each lies, blended without seams. Pure.

The grid has the scene's origin and CRS, and cells of one step of the embedding (16 px of the
model's input). What is blended is any (K, h, w) array that is linear in the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geosam_stac.types import Window

FloatArray = NDArray[np.float32]

# Offsets are whole px: a thousandth of a cell is rounding.
_CLOSE = 1e-3
# Of a chip's outermost cells, so that what one chip alone covers is covered.
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How the cells of an embedding lie on a chip, and the scene's grid made of such cells.

    `cell_px`: (rows, columns) of a cell in px of the scene. `content`: (rows, columns) of cells
    that the chip fills, not whole where its edge falls inside a cell; what lies beyond is padding.
    `shape`: of the scene in cells, `geobox` its grid: the scene's own origin, ends within half a
    cell of the scene's.
    """

    cell_px: tuple[float, float]
    content: tuple[float, float]
    shape: tuple[int, int]
    geobox: GeoBox


def make_cells(
    scene: GeoBox, chip_shape: tuple[int, int], *, content_px: tuple[int, int], stride_px: float
) -> Cells:
    """Lay the cells out.

    Parameters
    ----------
    scene
        The scene's grid.
    chip_shape
        Rows and columns of every chip in px of the scene.
    content_px
        Rows and columns that such a chip fills of the model's input (`radiometry.fit_shape`).
    stride_px
        Px of the model's input per cell of the embedding.
    """
    step_y = stride_px * chip_shape[0] / content_px[0]
    step_x = stride_px * chip_shape[1] / content_px[1]
    shape = (max(1, round(scene.shape[0] / step_y)), max(1, round(scene.shape[1] / step_x)))
    affine = scene.affine
    scaled = type(affine)(
        *(affine.a * step_x, affine.b * step_y, affine.c),
        *(affine.d * step_x, affine.e * step_y, affine.f),
    )
    return Cells(
        cell_px=(step_y, step_x),
        content=(content_px[0] / stride_px, content_px[1] / stride_px),
        shape=shape,
        geobox=GeoBox(shape, scaled, scene.crs),
    )


def content_of(embedding: NDArray[np.generic], cells: Cells) -> NDArray[np.generic]:
    """The part of a chip's (C, h, w) embedding that is image: cells whose centre is no padding."""
    rows, cols = (_filled(size) for size in cells.content)
    return embedding[:, :rows, :cols]


def blend(
    cells: Cells, chips: Iterable[tuple[Window, FloatArray]], *, bands: int = 3
) -> Iterator[tuple[int, FloatArray, NDArray[np.bool_]]]:
    """Put the chips together, a strip of rows at a time.

    A chip weighs most in its middle and next to nothing at its edge; where one chip alone covers a
    cell, it counts alone. Between the centres of its cells a chip is interpolated linearly, so
    chips that do not start on a whole cell are in their place too.

    Parameters
    ----------
    cells
        The grid.
    chips
        Windows in px of the scene, sorted by `row_off`, each with its (bands, h, w) array.
    bands
        Planes of each array.

    Yields
    ------
    row, values, covered
        The strip's first row; (bands, n, W) float32, 0 where nothing is; (n, W) bool, True =
        covered. Strips follow each other without gap, from the first row to the last. Memory
        holds one row of chips.
    """
    height, width = cells.shape
    done = 0
    total: FloatArray = np.zeros((bands, 0, width), dtype=np.float32)
    weight: FloatArray = np.zeros((0, width), dtype=np.float32)
    for window, values in chips:
        rows, row_weights, row_matrix = _axis(window.row_off, window.height, cells, 0)
        cols, col_weights, col_matrix = _axis(window.col_off, window.width, cells, 1)
        ready = rows.start - done
        if ready < 0:
            raise ValueError("chips are not sorted by row")
        if ready > 0:
            total, weight = _grown(total, weight, ready)
            yield done, *_normalized(total[:, :ready], weight[:ready])
            total, weight, done = total[:, ready:], weight[ready:], rows.start
        total, weight = _grown(total, weight, rows.stop - done)
        weights = np.outer(row_weights, col_weights)
        here = slice(0, rows.stop - done)
        total[:, here, cols] += (row_matrix @ values @ col_matrix.T) * weights
        weight[here, cols] += weights
    if done < height:
        yield done, *_normalized(*_grown(total, weight, height - done))


def _axis(
    offset_px: int, size_px: int, cells: Cells, axis: int
) -> tuple[slice, FloatArray, FloatArray]:
    """Along one axis: the grid's cells under a chip, their weights, and how to interpolate them.

    The matrix is (cells of the grid, cells of the embedding that hold image).
    """
    cell, length = cells.cell_px[axis], cells.shape[axis]
    filled = _filled(cells.content[axis])
    # Cells whose centre lies in the chip, its edges included: chips without overlap leave no gap.
    start = max(0, int(np.ceil(offset_px / cell - 0.5 - _CLOSE)))
    stop = min(length, int(np.floor((offset_px + size_px) / cell + 0.5 + _CLOSE)))
    stop = max(stop, min(length, start + 1))
    start = min(start, stop - 1)  # a chip of less than half a cell
    at = np.arange(start, stop) + 0.5 - offset_px / cell  # in cells of the chip, 0.5 = first centre
    inside = np.clip(at - 0.5, 0, filled - 1)
    left = np.floor(inside + _CLOSE).astype(int)
    right = np.minimum(left + 1, filled - 1)
    share = np.clip(inside - left, 0, 1)
    matrix = np.zeros((stop - start, filled), dtype=np.float32)
    index = np.arange(stop - start)
    matrix[index, left] += (1 - share).astype(np.float32)
    matrix[index, right] += share.astype(np.float32)
    half = cells.content[axis] / 2
    weights = 1 - np.abs(at - half) / half
    return slice(start, stop), np.maximum(weights, _LEAST_WEIGHT).astype(np.float32), matrix


def _filled(content: float) -> int:
    return max(1, round(content))


def _normalized(total: FloatArray, weight: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    covered = weight > 0
    return np.divide(total, np.where(covered, weight, 1), dtype=np.float32), covered


def _grown(total: FloatArray, weight: FloatArray, rows: int) -> tuple[FloatArray, FloatArray]:
    """At least so many rows, the new ones empty."""
    missing = max(0, rows - len(weight))
    return (
        np.pad(total, ((0, 0), (0, missing), (0, 0))),
        np.pad(weight, ((0, missing), (0, 0))),
    )
