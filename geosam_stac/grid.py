"""A scene's grid cut into chips, and chips gathered into the blocks that are read. Pure arithmetic.

Owns the chip rule of SPEC-geosam section 2. Reads no pixels and imports no rasterio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from odc.geo.geobox import GeoBox

from geosam_stac.errors import UsageError
from geosam_stac.types import BlockRef, ChipGrid, ChipRef, Part, Window
from geosam_stac.windows import slices, union

# Chips a side of a read block: 4 x 4 chips of 1024 px at stride 512 are 2560 px square, which
# is 40 MB of uint16 in three bands, and covers a COG's 512 or 1024 px tiles with little waste.
BLOCK_CHIPS = 4


def chip_starts(size_px: int, chip_px: int, stride_px: int) -> list[int]:
    """Offsets of the chips along an axis, in px.

    0, stride, 2 * stride ... while a whole chip fits; if the last one does not reach the edge,
    one more is added flush with it. An axis of at most one chip has the single offset 0.
    """
    if size_px <= chip_px:
        return [0]
    starts = list(range(0, size_px - chip_px + 1, stride_px))
    if starts[-1] + chip_px < size_px:
        starts.append(size_px - chip_px)
    return starts


def chip_count(size_px: int, chip_px: int, stride_px: int) -> int:
    """How many chips lie along an axis, without listing them: a wrong resolution asks for 1e9."""
    if size_px <= chip_px:
        return 1
    return 1 + -(-(size_px - chip_px) // stride_px)


def make_grid(geobox: GeoBox, *, chip_px: int, stride_px: int) -> ChipGrid:
    """Check the numbers and make a ChipGrid; UsageError when the stride exceeds the chip."""
    if not 1 <= stride_px <= chip_px:
        raise UsageError(
            "--stride must lie between 1 and the chip size",
            expected=f"1 to {chip_px}",
            got=str(stride_px),
        )
    return ChipGrid(geobox=geobox, chip_px=chip_px, stride_px=stride_px)


def grid_shape(grid: ChipGrid) -> tuple[int, int]:
    """Rows and columns of chips."""
    height, width = grid.geobox.shape
    return (
        chip_count(height, grid.chip_px, grid.stride_px),
        chip_count(width, grid.chip_px, grid.stride_px),
    )


def chip_shape(grid: ChipGrid) -> tuple[int, int]:
    """Height and width in px of every chip: the chip size, or the axis where it is shorter."""
    height, width = grid.geobox.shape
    return min(height, grid.chip_px), min(width, grid.chip_px)


def chip_refs(grid: ChipGrid) -> Iterator[ChipRef]:
    """All chips, row-major: `chip_000000`, `chip_000001`, ..."""
    height, width = grid.geobox.shape
    chip_h, chip_w = chip_shape(grid)
    rows = chip_starts(height, grid.chip_px, grid.stride_px)
    cols = chip_starts(width, grid.chip_px, grid.stride_px)
    for row, row_off in enumerate(rows):
        for col, col_off in enumerate(cols):
            window = Window(row_off=row_off, col_off=col_off, height=chip_h, width=chip_w)
            yield ChipRef(
                chip_id=f"chip_{row * len(cols) + col:06d}",
                row=row,
                col=col,
                window=window,
                geobox=crop(grid.geobox, window),
            )


def blocks(grid: ChipGrid, *, chips_a_side: int = BLOCK_CHIPS) -> Iterator[BlockRef]:
    """Gather neighbouring chips into blocks of at most `chips_a_side` squared, row-major.

    Every chip is in exactly one block, and lies inside it.
    """
    band: list[ChipRef] = []
    for chip in chip_refs(grid):
        if band and chip.row // chips_a_side != band[0].row // chips_a_side:
            yield from _split_columns(grid, band, chips_a_side)
            band = []
        band.append(chip)
    yield from _split_columns(grid, band, chips_a_side)


def blocks_of(every: Sequence[BlockRef], part: Part) -> Sequence[BlockRef]:
    """A part's blocks: contiguous, balanced by their chips; each block is in exactly one part."""
    total = sum(len(block.chips) for block in every)
    bounds, done = [0], 0
    for number, block in enumerate(every):
        # A block belongs to the part in which its middle lies.
        middle = 2 * done + len(block.chips)
        while len(bounds) < part.count and middle * part.count >= 2 * total * len(bounds):
            bounds.append(number)
        done += len(block.chips)
    bounds += [len(every)] * (part.count + 1 - len(bounds))
    return every[bounds[part.index] : bounds[part.index + 1]]


def _split_columns(grid: ChipGrid, band: list[ChipRef], chips_a_side: int) -> Iterator[BlockRef]:
    groups: dict[int, list[ChipRef]] = {}
    for chip in band:
        groups.setdefault(chip.col // chips_a_side, []).append(chip)
    for chips in groups.values():
        window = union([chip.window for chip in chips])
        yield BlockRef(window=window, geobox=crop(grid.geobox, window), chips=tuple(chips))


def crop(geobox: GeoBox, window: Window) -> GeoBox:
    """The part of a geobox that a window of it covers."""
    return geobox[slices(window)]
