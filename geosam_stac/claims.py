"""What a raster's header may claim: a small file can ask for more memory than there is.

A header of 400 bytes can describe a tile of a terabyte. GDAL allocates whatever it is told when it
reads the first pixel of it, so these limits are checked before that. Opens nothing.
"""

from __future__ import annotations

import re
from typing import Protocol

from geosam_stac.errors import DataError

#: Longest side of a raster: once around the equator at 2.4 m a pixel. The largest known are global
#: mosaics of 10 m, 4,300,000 px wide.
MAX_SIDE_PX = 1 << 24

#: Most tiles or strips: GDAL may hold 16 bytes of index for each, 512 MiB. A COG of 200,000 px a
#: side has 152,881 tiles of 512 px; one of 10 m of the whole Earth 28 million.
MAX_BLOCKS = 1 << 25

#: Most bytes of one tile or strip, decoded, with all bands that are stored together in it: 512 MiB.
#: GDAL decodes it as a whole, and several threads read. Common tiles are below 8 MiB; a
#: Sentinel-2 band as a single tile of 10,980 px takes 230 MiB. (Of one compressed strip as high as
#: the file GDAL reads row by row: it calls that a block of one row.)
MAX_BLOCK_BYTES = 1 << 29

# By the number in the name of a type. complex_int16 is two of them; there it counts for little.
_BITS = re.compile(r"\d+$")


class Claims(Protocol):
    """The part of rasterio's dataset that says how large it is."""

    shape: tuple[int, int]
    count: int
    dtypes: tuple[str, ...]
    block_shapes: list[tuple[int, int]]
    interleaving: object


def check_claims(dataset: Claims) -> None:
    """Refuse a raster, or an overview, that is larger than this package takes on.

    Raises
    ------
    DataError
        Without item and href: the caller knows them.
    """
    height, width = dataset.shape
    if max(height, width) > MAX_SIDE_PX:
        raise DataError(
            "the raster's header claims a size that no raster has",
            expected=f"at most {MAX_SIDE_PX:,} px a side",
            got=f"{width:,} x {height:,} px",
            hint="The file is damaged or made to do harm; or cut it into several",
        )
    stored_together = "pixel" in str(dataset.interleaving).lower()
    for index, (block_h, block_w) in enumerate(dataset.block_shapes):
        together = dataset.dtypes if stored_together else dataset.dtypes[index : index + 1]
        block_bytes = block_h * block_w * sum(map(_item_bytes, together))
        if block_bytes > MAX_BLOCK_BYTES:
            bands = f" of {len(together):,} bands" if len(together) > 1 else ""
            raise DataError(
                "the raster's tiles are too large to read one",
                expected=f"at most {MAX_BLOCK_BYTES:,} bytes",
                got=f"{block_w:,} x {block_h:,} px{bands}: {block_bytes:,} bytes",
                hint="Write it in small tiles, as with `gdal_translate -of COG`",
            )
        if stored_together:
            break  # all bands lie in the same blocks
    block_h, block_w = dataset.block_shapes[0]
    blocks = -(-height // block_h) * -(-width // block_w)
    blocks *= 1 if stored_together else dataset.count
    if blocks > MAX_BLOCKS:
        raise DataError(
            "the raster has too many tiles",
            expected=f"at most {MAX_BLOCKS:,}",
            got=f"{blocks:,} of {block_w:,} x {block_h:,} px",
            hint="Write it in larger tiles, as with `gdal_translate -of COG`",
        )


def _item_bytes(dtype: str) -> int:
    """Bytes of one value, by the name of its type: "uint16", "float32", "complex64"."""
    bits = _BITS.search(dtype)
    assert bits is not None  # rasterio's names all have it
    return int(bits[0]) // 8
