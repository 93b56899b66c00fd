from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geosam_stac.errors import UsageError
from geosam_stac.grid import (
    blocks,
    blocks_of,
    chip_count,
    chip_refs,
    chip_shape,
    chip_starts,
    grid_shape,
    make_grid,
    union,
)
from geosam_stac.types import Part, Window

AFFINE = Affine(10, 0, 500_000, 0, -10, 5_200_000)


def geobox(height: int, width: int) -> GeoBox:
    return GeoBox((height, width), AFFINE, "EPSG:32614")


axis = st.integers(1, 300).flatmap(
    lambda chip: st.tuples(st.integers(1, 1500), st.just(chip), st.integers(1, chip))
)
grids = st.tuples(
    st.integers(1, 90), st.integers(1, 90), st.integers(4, 40), st.integers(1, 8)
).map(lambda v: make_grid(geobox(v[0], v[1]), chip_px=v[2], stride_px=max(1, v[2] // v[3])))


@pytest.mark.parametrize(
    ("size", "chip", "stride", "starts"),
    [
        (1024, 1024, 512, [0]),
        (700, 1024, 512, [0]),
        (1025, 1024, 512, [0, 1]),
        (1536, 1024, 512, [0, 512]),
        (1537, 1024, 512, [0, 512, 513]),
        (10980, 1024, 1024, [*range(0, 9217, 1024), 9956]),
        (10, 4, 4, [0, 4, 6]),
        (8, 4, 4, [0, 4]),
    ],
)
def test_starts(size, chip, stride, starts):
    assert chip_starts(size, chip, stride) == starts
    assert chip_count(size, chip, stride) == len(starts)


@given(axis)
def test_starts_follow_the_rule(values):
    size, chip, stride = values
    starts = chip_starts(size, chip, stride)
    covered = np.zeros(size, dtype=bool)
    for start in starts:
        covered[start : start + chip] = True
    assert covered.all()
    assert starts[0] == 0
    assert max(starts) + min(chip, size) == size, "flush with the edge, never beyond it"
    assert all(start == index * stride for index, start in enumerate(starts[:-1]))
    assert starts == sorted(set(starts))
    assert chip_count(size, chip, stride) == len(starts)


def test_counting_does_not_list():
    assert chip_count(10**12, 1024, 512) == 1_953_124_999
    assert grid_shape(make_grid(geobox(10**9, 10**9), chip_px=1024, stride_px=1)) == (
        10**9 - 1023,
        10**9 - 1023,
    )


@settings(max_examples=25, deadline=None)
@given(grids)
def test_refs_are_row_major_and_lie_in_the_scene(grid):
    rows, cols = grid_shape(grid)
    refs = list(chip_refs(grid))
    height, width = grid.geobox.shape
    assert len(refs) == rows * cols
    assert [ref.chip_id for ref in refs] == [f"chip_{i:06d}" for i in range(rows * cols)]
    assert [(r.row, r.col) for r in refs] == [(i // cols, i % cols) for i in range(rows * cols)]
    for ref in refs:
        assert (ref.window.height, ref.window.width) == chip_shape(grid) == ref.geobox.shape
        assert 0 <= ref.window.row_off <= height - ref.window.height
        assert 0 <= ref.window.col_off <= width - ref.window.width
        assert ref.geobox.affine == AFFINE * Affine.translation(
            ref.window.col_off, ref.window.row_off
        )


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(1, 5))
def test_blocks_hold_every_chip_once(grid, side):
    found = list(blocks(grid, chips_a_side=side))
    chips = [chip for block in found for chip in block.chips]
    assert sorted(c.chip_id for c in chips) == [c.chip_id for c in chip_refs(grid)]
    assert len(found) == -(-grid_shape(grid)[0] // side) * -(-grid_shape(grid)[1] // side)
    for block in found:
        assert 1 <= len(block.chips) <= side**2
        assert block.window == union([chip.window for chip in block.chips])
        assert block.geobox.shape == (block.window.height, block.window.width)
        assert (
            block.geobox
            == grid.geobox[
                block.window.row_off : block.window.row_off + block.window.height,
                block.window.col_off : block.window.col_off + block.window.width,
            ]
        )


def test_union():
    one = Window(row_off=2, col_off=7, height=3, width=4)
    two = Window(row_off=4, col_off=1, height=5, width=2)
    assert union([one, two]) == Window(row_off=2, col_off=1, height=7, width=10)


@pytest.mark.parametrize("stride", [0, -1, 65])
def test_a_stride_outside_the_chip_is_refused(stride):
    with pytest.raises(UsageError, match="expected 1 to 64"):
        make_grid(geobox(9, 9), chip_px=64, stride_px=stride)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 40])
def test_every_block_is_in_one_part(count):
    grid = make_grid(geobox(900, 700), chip_px=64, stride_px=32)
    every = list(blocks(grid))
    parts = [blocks_of(every, Part(index=index, count=count)) for index in range(count)]
    assert [block for part in parts for block in part] == every
    chips = [sum(len(block.chips) for block in part) for part in parts]
    largest = max(len(block.chips) for block in every)
    assert max(chips) <= sum(chips) / count + largest
