"""Tilings: every pixel once, whole blocks, the size asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosam_stac.types import Window
from geosam_stac.windows import Tiling, slices, tile_shape, tiles_over

sizes = st.integers(1, 70)


@given(sizes, sizes, st.integers(1, 40), st.integers(1, 40), st.integers(-99, 99))
def test_tiles_cover_every_pixel_once(height, width, tile_h, tile_w, origin):
    tiling = Tiling(shape=(height, width), tile=(tile_h, tile_w), origin=(origin, -origin))
    count = np.zeros((height, width), dtype=int)
    for tile in tiling.all():
        assert 1 <= tile.height <= tile_h
        assert 1 <= tile.width <= tile_w
        assert tile.row_off == 0 or (tile.row_off - origin) % tile_h == 0
        assert tile.col_off == 0 or (tile.col_off + origin) % tile_w == 0
        count[slices(tile)] += 1
    assert (count == 1).all()


def test_the_tiles_under_a_window_are_those_it_touches():
    tiling = Tiling(shape=(100, 100), tile=(30, 40), origin=(-10, 0))
    window = Window(row_off=19, col_off=79, height=2, width=2)
    assert tiling.under(window) == [
        Window(row_off=0, col_off=40, height=20, width=40),
        Window(row_off=0, col_off=80, height=20, width=20),
        Window(row_off=20, col_off=40, height=30, width=40),
        Window(row_off=20, col_off=80, height=30, width=20),
    ]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ((512, 512), (512, 2048)),
        ((1024, 1024), (1024, 2048)),
        ((256, 256), (512, 2048)),
        ((1, 10980), (190, 10980)),  # strips: whole, and no more of them than fit
        ((16, 10980), (176, 10980)),
        ((10980, 10980), (10980, 10980)),  # one block: there is no smaller piece
        ((20000, 20000), (10980, 10980)),
        ((1, 1), (512, 2048)),
    ],
)
def test_tile_shapes_are_made_of_blocks(block, expected):
    assert tile_shape(block, (10980, 10980), area_px=2 << 20) == expected


@pytest.mark.parametrize("wide", [4096, 10980, 32768])
def test_tiles_are_no_wider_in_a_wider_file(wide):
    assert tile_shape((512, 512), (wide, wide), area_px=4 << 20) == (512, 2048)
    assert tile_shape((1024, 1024), (wide, wide), area_px=4 << 20) == (1024, 2048)


def test_rows_of_a_file_of_strips_stay_whole():
    assert tile_shape((16, 32768), (32768, 32768), area_px=4 << 20) == (128, 32768)


@given(
    st.integers(0, 60), st.integers(0, 60), sizes, sizes, st.integers(1, 30), st.integers(1, 9999)
)
def test_tiles_over_a_part_touch_no_other_block(row, col, height, width, block, area_px):
    shape = (131, 137)
    hull = Window(row_off=row, col_off=col, height=height, width=width)
    tiling = tiles_over(hull, shape=shape, block=(block, block), area_px=area_px)
    count = np.zeros(shape, dtype=int)
    for tile in tiling.under(hull):
        assert tile.row_off % block == tile.col_off % block == 0
        count[slices(tile)] += 1
    touched = np.zeros(shape, dtype=int)
    touched[
        row // block * block : -(-(row + height) // block) * block,
        col // block * block : -(-(col + width) // block) * block,
    ] = 1
    assert (count == touched).all()
