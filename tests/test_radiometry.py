from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from segment_anything.utils.transforms import ResizeLongestSide

from geosam_stac import radiometry
from geosam_stac.grid import crop
from geosam_stac.radiometry import (
    RangeEstimator,
    band_valid,
    cut,
    fit_shape,
    make_chip,
    to_rgb8,
    widen,
)
from geosam_stac.types import Block, BlockRef, ChipRef, Tile, Window
from geosam_stac.value_range import ValueRange
from geosam_stac.windows import slices
from tests.rasters import values

AUTO = ValueRange(kind="auto")


def estimate(data, valid, value_range=AUTO, cut=(7, 5)):
    """Measure in windows of `cut`, last window first."""
    _, height, width = data.shape
    estimator = RangeEstimator(value_range, shape=(height, width), bands=len(data))
    for row in reversed(range(0, height, cut[0])):
        for col in range(0, width, cut[1]):
            part = np.s_[:, row : row + cut[0], col : col + cut[1]]
            estimator.update(data[part], valid[part], row_off=row, col_off=col)
    return estimator.result()


def test_band_valid_knows_nodata_of_each_band_and_what_is_not_finite():
    data = np.array([[[0, 1, 2]], [[0, 1, 2]]], dtype="int16")
    assert band_valid(data, [0, 2]).tolist() == [[[False, True, True]], [[True, True, False]]]
    assert band_valid(data, [None, None]).all()
    floats = np.array([[[np.nan, np.inf, -np.inf, 5.0, -9999.0]]], dtype="float32")
    assert band_valid(floats, [-9999.0]).tolist() == [[[False, False, False, True, False]]]
    assert band_valid(floats, [float("nan")]).tolist() == [[[False, False, False, True, True]]]
    # The usual float32 nodata, as text of the header and as the pixel holds it.
    lowest = np.full((1, 1, 1), np.finfo("float32").min)
    assert not band_valid(lowest, [-3.4028234663852886e38]).any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_auto_is_min_and_max_of_what_is_valid(dtype):
    data = values((3, 23, 31), dtype, seed=1)
    if dtype == "int16":
        data -= 300
    data[0, 3, 3] = 251  # band 0: nodata
    data[1, 4, 4] = 0  # band 1: nodata
    if dtype == "float32":
        data[2, 5, 5], data[2, 6, 6], data[2, 7, 7] = np.nan, np.inf, -np.inf
    valid = band_valid(data, [251, 0, None])
    expected = float(data[valid].min()), float(data[valid].max())
    assert estimate(data, valid) == expected == estimate(data, valid, cut=(23, 31))
    assert expected[0] != 0
    assert expected[1] != 251


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_percentiles_equal_numpys_and_do_not_depend_on_the_cut(dtype):
    data = values((2, 40, 33), dtype, seed=2, hi=4000)
    valid = band_valid(data, [None, None])
    valid[0, :5] = False
    wanted = ValueRange.parse("p2,p98.5")
    expected = tuple(map(float, np.percentile(data[valid], [2, 98.5])))
    for step_px in ((40, 33), (7, 5), (1, 33), (13, 40)):
        assert estimate(data, valid, wanted, step_px) == expected


def test_a_big_scene_is_sampled_alike_however_it_is_cut(monkeypatch):
    monkeypatch.setattr(radiometry, "PERCENTILE_SAMPLES", 300)
    data = values((2, 64, 50), "uint16", seed=3, hi=4000)
    valid = np.ones(data.shape, dtype=bool)
    wanted = ValueRange.parse("p10,p90")
    step = RangeEstimator(wanted, shape=(64, 50), bands=2).step
    assert step == 5
    expected = tuple(map(float, np.percentile(data[:, ::step, ::step], [10, 90])))
    for step_px in ((64, 50), (7, 5), (3, 11)):
        assert estimate(data, valid, wanted, step_px) == expected


@pytest.mark.parametrize("text", ["auto", "p2,p98"])
def test_no_valid_pixel_has_no_range(text):
    data = np.zeros((1, 8, 8), dtype="uint16")
    assert estimate(data, band_valid(data, [0]), ValueRange.parse(text)) is None


def test_scaling_rounds_and_clips():
    data = np.array([[[-5, 0, 1, 10, 50, 99, 100, 3000]]] * 3, dtype="int16")
    valid = np.ones(data.shape, dtype=bool)
    valid[:, :, 4] = False
    # 255 * v / 100: 0, 2.55, 25.5 (to even), 252.45
    expected = [0, 0, 3, 26, 0, 252, 255, 255]
    assert to_rgb8(data, valid, (0.0, 100.0))[0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_scaling_equals_the_formula_in_float64(dtype):
    data = values((3, 20, 20), dtype, seed=4)
    valid = np.ones(data.shape, dtype=bool)
    lo, hi = 20.0, 220.0
    exact = np.clip((data.astype("float64") - lo) / (hi - lo) * 255, 0, 255)
    got = to_rgb8(data, valid, (lo, hi))
    assert got.dtype == np.uint8
    assert np.abs(got - exact).max() <= 0.5 + 1e-4


def test_wide_integers_keep_their_steps():
    data = np.array([[[2**30, 2**30 + 1, 2**30 + 2]]] * 3, dtype="int32")
    limits = (float(2**30), float(2**30 + 2))
    assert to_rgb8(data, np.ones(data.shape, bool), limits)[0, 0].tolist() == [0, 128, 255]


def test_uint8_passes_through_and_nodata_is_black():
    data = values((3, 9, 9), "uint8", seed=5)
    valid = data != data[0, 0, 0]
    out = to_rgb8(data, valid, None)
    assert (out[valid] == data[valid]).all()
    assert (out[~valid] == 0).all()
    with pytest.raises(TypeError, match="uint8"):
        to_rgb8(data.astype("uint16"), valid, None)


def test_one_value_and_values_that_are_not_finite_do_not_warn(recwarn):
    data = np.full((3, 4, 4), 7, dtype="uint16")
    assert (to_rgb8(data, np.ones(data.shape, bool), (7.0, 7.0)) == 0).all()
    floats = np.full((3, 2, 2), np.nan, dtype="float32")
    floats[:, 0, 0] = np.inf
    assert (to_rgb8(floats, np.isfinite(floats), (0.0, 1.0)) == 0).all()
    assert not [w for w in recwarn if "invalid" in str(w.message)]


def test_widening():
    one, two, three = (values((n, 2, 2), "uint8", seed=n) for n in (1, 2, 3))
    assert (widen(one) == np.stack([one[0]] * 3)).all()
    assert (widen(two) == np.stack([two[0], two[1], two[1]])).all()
    assert widen(three) is three


def _block(shape: tuple[int, int], *, at: tuple[int, int] = (0, 0)) -> Block:
    scene = GeoBox((4000, 4000), Affine(10, 0, 0, 0, -10, 0), "EPSG:32614")
    window = Window(row_off=at[0], col_off=at[1], height=shape[0], width=shape[1])
    ref = BlockRef(window=window, geobox=crop(scene, window), chips=())
    tile = Tile(window=window, pixels=values((3, *shape), "uint8", seed=6), valid=None)
    return Block(ref=ref, tiles=(tile,))


def _ref(block: Block, window: Window) -> ChipRef:
    return ChipRef(chip_id="chip_000000", row=0, col=0, window=window, geobox=block.ref.geobox)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33), (64, 64), (7, 50), (63, 64)])
def test_a_chip_is_resized_as_segment_anything_does(shape):
    block = _block(shape)
    window = Window(row_off=0, col_off=0, height=shape[0], width=shape[1])
    chip = make_chip(block, _ref(block, window), input_px=96)
    image = block.tiles[0].pixels.transpose(1, 2, 0)
    expected = ResizeLongestSide(96).apply_image(image).transpose(2, 0, 1)
    height, width = chip.content_px
    assert (height, width) == expected.shape[1:] == fit_shape(*shape, 96)
    assert (chip.pixels[:, :height, :width] == expected).all()
    assert not chip.pixels[:, height:].any()
    assert not chip.pixels[:, :, width:].any()
    assert chip.pixels.shape == (3, 96, 96)
    assert chip.pixels.flags.c_contiguous


def test_a_chip_is_cut_where_it_lies_in_its_block():
    block = _block((80, 90), at=(1000, 2000))
    window = Window(row_off=1005, col_off=2020, height=64, width=64)
    chip = make_chip(block, _ref(block, window), input_px=64)
    assert (chip.pixels == block.tiles[0].pixels[:, 5:69, 20:84]).all()
    assert chip.content_px == (64, 64)
    assert chip.valid_fraction == 1


@pytest.mark.parametrize("bands", [1, 2, 3])
def test_a_chip_is_put_together_of_the_tiles_that_it_meets(bands):
    """Any window, from tiles larger and smaller than it, those beside it among them."""
    whole = values((bands, 80, 90), "uint8", seed=7)
    known = values((1, 80, 90), "uint8", seed=8)[0] > 60
    known[40:, 50:] = True
    tiles = tuple(
        Tile(
            window=(place := Window(row_off=row, col_off=col, height=height, width=width)),
            pixels=whole[:, *slices(place)],
            valid=None if known[slices(place)].all() else known[slices(place)],
        )
        for row, height in ((0, 7), (7, 33), (40, 40))
        for col, width in ((0, 50), (50, 40))
    )
    assert tiles[-1].valid is None
    block = dataclasses.replace(_block((80, 90)), tiles=tiles)
    for row, col, height, width in [(0, 0, 80, 90), (0, 0, 7, 50), (6, 49, 2, 2), (50, 60, 9, 30)]:
        window = Window(row_off=row, col_off=col, height=height, width=width)
        pixels, valid_fraction = cut(block, window)
        assert (pixels == widen(whole)[:, *slices(window)]).all()
        assert valid_fraction == known[slices(window)].mean()


def test_a_sliver_keeps_a_pixel():
    assert fit_shape(1, 5000, 1024) == (1, 1024)
    assert fit_shape(600, 800, 1024) == (768, 1024)
