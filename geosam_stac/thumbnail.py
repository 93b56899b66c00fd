"""The scene as the encoder saw it, small, with the chip grid drawn. Memory does not grow with it.

Pure numpy and Pillow: tiles go in as uint8 RGB, a PNG comes out.
"""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from geosam_stac.types import ChipRef, Window

LONGER_SIDE_PX = 768
CHIP_COLOUR = (255, 214, 10, 150)
SKIPPED_COLOUR = (255, 69, 58, 255)
_OPAQUE = 255


def factor_of(shape: tuple[int, int]) -> int:
    """Px of a scene of this shape to a side of one px of its thumbnail."""
    return max(1, -(-max(shape) // LONGER_SIDE_PX))


def valid_of(data: bytes, scene_shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Which px of a scene's thumbnail hold a valid pixel: (H, W) bool, True = valid.

    None where it does not say so, or is of another scene. A px is `factor_of` px of the scene.
    """
    factor = factor_of(scene_shape)
    size = (-(-scene_shape[1] // factor), -(-scene_shape[0] // factor))
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.mode != "RGBA" or picture.size != size:
                return None
            valid: NDArray[np.bool_] = np.asarray(picture.getchannel("A")) == _OPAQUE
            return valid
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def cut(data: bytes, scene_shape: tuple[int, int], window: Window) -> bytes | None:
    """The thumbnail of a part of a scene, as of a scene of its own; None where `data` is none.

    Parameters
    ----------
    data
        The whole scene's thumbnail.
    scene_shape
        Height and width of the scene in px.
    window
        The part, in px of the scene.
    """
    factor = factor_of((window.height, window.width))
    cols, rows = -(-window.width // factor), -(-window.height // factor)
    own = factor_of(scene_shape)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            whole = (-(-scene_shape[1] // own), -(-scene_shape[0] // own))
            if picture.size != whole:
                return None
            left, top = window.col_off / own, window.row_off / own
            right = min(left + cols * factor / own, picture.width)
            bottom = min(top + rows * factor / own, picture.height)
            # Nearest: what is transparent tells nodata.
            part = picture.resize(
                (cols, rows), Image.Resampling.NEAREST, (left, top, right, bottom)
            )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    out = io.BytesIO()
    part.save(out, format="PNG", optimize=True)
    return out.getvalue()


def is_picture(data: bytes) -> bool:
    """Whether this is a whole PNG: each of its parts has a checksum."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


class Thumbnail:
    """Averages tiles into a canvas of at most `LONGER_SIDE_PX` a side.

    Parameters
    ----------
    shape
        Height and width of the scene in px.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.scene_shape = shape
        height, width = shape
        self.factor = factor_of(shape)
        self.shape = (-(-height // self.factor), -(-width // self.factor))
        self._sum = np.zeros((3, *self.shape), dtype=np.float64)
        self._count = np.zeros(self.shape, dtype=np.float64)
        self._lock = threading.Lock()

    def add(
        self, rgb8: NDArray[np.uint8], window: Window, valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Take in one tile: (3, H, W) uint8 at `window`. Any number of threads may do so at once.

        Tiles may overlap: they are averaged. `valid`: (H, W), True = valid, where not all is;
        the other pixels must be 0.
        """
        rows, row_starts = self._cells(window.row_off, window.height)
        cols, col_starts = self._cells(window.col_off, window.width)
        # Exact: of 255 a pixel, and at most 2**24 pixels in a cell. A row of cells at a time,
        # in the processor's cache: 30 times as fast as `reduceat` along the rows.
        # 257 times 255 fit into 16 bits, which are summed at twice the pace.
        narrow = np.uint16 if self.factor <= 257 else np.uint32
        tall = np.empty((3, len(row_starts), window.width), dtype=narrow)
        ends = [*row_starts[1:], window.height]
        for cell, (start, end) in enumerate(zip(row_starts, ends, strict=True)):
            np.add.reduce(rgb8[:, start:end], axis=1, dtype=narrow, out=tall[:, cell])
        sums = np.add.reduceat(tall, col_starts, axis=2, dtype=np.uint32)
        if valid is None:
            counts = np.outer(
                np.diff(row_starts, append=window.height), np.diff(col_starts, append=window.width)
            )
        else:
            tall_counts = np.add.reduceat(valid.astype(np.uint32), row_starts, axis=0)
            counts = np.add.reduceat(tall_counts, col_starts, axis=1)
        with self._lock:
            self._sum[:, rows, cols] += sums
            self._count[rows, cols] += counts

    def _cells(self, offset: int, size: int) -> tuple[slice, NDArray[np.intp]]:
        first, last = offset // self.factor, (offset + size - 1) // self.factor
        starts = np.arange(first, last + 1, dtype=np.intp) * self.factor - offset
        return slice(first, last + 1), np.maximum(starts, 0)

    def to_bytes(self) -> bytes:
        """The sums so far, for `add_bytes` of another process. They are exact: integers."""
        out = io.BytesIO()
        np.savez_compressed(out, sum=self._sum, count=self._count)
        return out.getvalue()

    def add_bytes(self, data: bytes) -> None:
        """Take in what another thumbnail of the same scene has seen. Raises ValueError."""
        sums, counts = _sums(data)
        if sums.shape != self._sum.shape or counts.shape != self._count.shape:
            raise ValueError("the thumbnail is of another scene")
        self._sum += sums
        self._count += counts

    def is_same(self, data: bytes) -> bool:
        """Whether `to_bytes` of another thumbnail tells of the same pixels."""
        try:
            sums, counts = _sums(data)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            return False
        return np.array_equal(sums, self._sum) and np.array_equal(counts, self._count)

    def png(self, chips: Iterable[ChipRef], *, skipped: Iterable[ChipRef] = ()) -> bytes:
        """Draw the outlines of the chips, and of those without a feature in red; PNG bytes.

        Transparent where the scene has no valid pixel, but for the outlines; opaque elsewhere, so
        that `valid_of` can tell.
        """
        mean = np.rint(self._sum / np.maximum(self._count, 1)).astype(np.uint8).transpose(1, 2, 0)
        valid = self._count > 0
        image = Image.fromarray(np.dstack([mean, np.where(valid, _OPAQUE, 0).astype(np.uint8)]))
        lines = Image.new("RGBA", image.size)
        draw = ImageDraw.Draw(lines)
        for refs, colour in ((chips, CHIP_COLOUR), (skipped, SKIPPED_COLOUR)):
            for ref in refs:
                draw.rectangle(self._box(ref.window), outline=colour)
        out = io.BytesIO()
        drawn = Image.alpha_composite(image, lines)
        if valid.all():
            drawn = drawn.convert("RGB")
        else:
            least = np.minimum(np.asarray(drawn.getchannel("A")), np.where(valid, 255, _OPAQUE - 1))
            drawn.putalpha(Image.fromarray(least.astype(np.uint8)))
        drawn.save(out, format="PNG", optimize=True)
        return out.getvalue()

    def _box(self, window: Window) -> tuple[int, int, int, int]:
        return (
            window.col_off // self.factor,
            window.row_off // self.factor,
            (window.col_off + window.width - 1) // self.factor,
            (window.row_off + window.height - 1) // self.factor,
        )


def _sums(data: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return arrays["sum"], arrays["count"]
