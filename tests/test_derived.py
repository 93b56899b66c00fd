"""Mosaics, masks, scaling and derived bands, from Items to pixels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.cube import CubeReader
from geosam_stac.errors import DataError, UsageError
from geosam_stac.radiometry import widen
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.sources.groups import Group
from geosam_stac.types import Window
from tests.rasters import NORTH_UP, asset, document, named_bands, values, write_tif


def read(scene, window=None):
    height, width = scene.geobox.shape
    window = window or Window(row_off=0, col_off=0, height=height, width=width)
    data, valid = CubeReader(scene, resampling="nearest").read(window)
    return SimpleNamespace(data=widen(data), band_valid=widen(valid), valid=np.any(valid, axis=0))


def item_of(path, name, *bands, item_id="scene-1", **fields):
    assets = {name: asset(path, **(named_bands(*bands) if bands else {}), **fields)}
    return parse_item(document(assets, item_id=item_id), href=str(path.parent / f"{item_id}.json"))


# Derived bands


@pytest.fixture
def two_bands(tmp_path):
    data = values((2, 30, 40), seed=1)
    data[0, :5] = 0  # nodata in red alone
    path = write_tif(tmp_path / "a.tif", data, nodata=0)
    return item_of(path, "image", "red", "nir"), data.astype(np.float32)


@pytest.mark.parametrize(
    "options", [{"expression": "(nir - red) / (nir + red)"}, {"index": "NDVI"}]
)
def test_an_expression_and_an_index_give_the_same_one_band(two_bands, options):
    item, (red, nir) = two_bands
    block = read(open_scene(item, EncodeConfig(**options)))
    assert block.data.dtype == np.float32
    expected = (nir - red) / (nir + red)
    assert not block.band_valid[:, :5].any()
    assert block.valid[5:].all()
    for band in block.data:
        np.testing.assert_allclose(band[5:], expected[5:], rtol=1e-6)


def test_an_expression_over_more_than_three_bands(tmp_path):
    data = values((5, 20, 20), seed=2)
    path = write_tif(tmp_path / "a.tif", data)
    item = item_of(path, "x", "a", "b", "c", "d", "e")
    scene = open_scene(item, EncodeConfig(expression="a + b + c + d + `x.5`"))
    np.testing.assert_array_equal(read(scene).data[0], data.sum(axis=0).astype(np.float32))


def test_an_expression_of_a_band_that_is_not_there_lists_what_is(two_bands):
    with pytest.raises(DataError, match=r"no band 'swir'.*red.*nir"):
        open_scene(two_bands[0], EncodeConfig(expression="swir / red"))


def test_bands_expression_and_index_exclude_each_other():
    with pytest.raises(UsageError, match="contradict"):
        EncodeConfig(bands=("red",), expression="red * 2")
    with pytest.raises(UsageError, match="contradict"):
        EncodeConfig(index="NDVI", expression="red * 2")


def test_scale_and_offset_are_applied_when_asked(tmp_path):
    data = values((1, 20, 20), seed=3)
    path = write_tif(tmp_path / "a.tif", data)
    fields = {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
    item = item_of(path, "red", **fields)
    np.testing.assert_array_equal(read(open_scene(item, EncodeConfig())).data[0], data[0])
    scaled = read(open_scene(item, EncodeConfig(scaled=True)))
    np.testing.assert_allclose(scaled.data[0], data[0] * 0.0001 - 0.1, rtol=1e-5)


def test_scale_of_stac_1_1_stands_on_the_asset_or_the_band(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((1, 20, 20)))
    item = item_of(path, "red", **{"raster:scale": 2, "raster:offset": 1})
    assert [(band.scale, band.offset) for band in open_scene(item, EncodeConfig()).bands] == [
        (2, 1)
    ]


# Masks


def test_masked_classes_are_nodata_and_keep_their_edges_on_a_finer_grid(tmp_path):
    data = values((1, 40, 40), seed=4)
    red = write_tif(tmp_path / "red.tif", data)
    classes = np.full((1, 20, 20), 4, dtype="uint8")
    classes[0, 5:10, 5:10] = 9
    scl = write_tif(tmp_path / "scl.tif", classes, transform=NORTH_UP * Affine.scale(2), nodata=0)
    item = parse_item(
        document({"red": asset(red), "scl": asset(scl)}), href=str(tmp_path / "i.json")
    )
    block = read(open_scene(item, EncodeConfig(bands=("red",), mask="scl:3,8,9,10")))
    expected = np.ones((40, 40), dtype=bool)
    expected[10:20, 10:20] = False
    np.testing.assert_array_equal(block.valid, expected)


def test_mask_of_bits(tmp_path):
    red = write_tif(tmp_path / "red.tif", values((1, 4, 4)))
    bits = np.zeros((1, 4, 4), dtype="uint16")
    bits[0, 0, 0], bits[0, 1, 1], bits[0, 2, 2] = 0b1000, 0b10, 0b100
    qa = write_tif(tmp_path / "qa.tif", bits)
    item = parse_item(
        document({"red": asset(red), "qa_pixel": asset(qa)}), href=str(tmp_path / "i.json")
    )
    block = read(open_scene(item, EncodeConfig(bands=("red",), mask="qa_pixel:bits=1,3")))
    assert np.argwhere(~block.valid).tolist() == [[0, 0], [1, 1]]


# Mosaics


def beside(tmp_path, *, crs="EPSG:32614", shift_px=30):
    """Two Items of 30 x 40 px, the second so many px to the east of the first."""
    left, right = values((3, 30, 40), seed=5), values((3, 30, 40), seed=6)
    left[:, :, 35:] = 0
    first = write_tif(tmp_path / "l.tif", left, nodata=0)
    second = write_tif(
        tmp_path / "r.tif",
        right,
        nodata=0,
        crs=crs,
        transform=NORTH_UP * Affine.translation(shift_px, 0),
    )
    items = tuple(
        item_of(path, "image", "red", "green", "blue", item_id=name)
        for path, name in ((first, "left"), (second, "right"))
    )
    return Group(id="mosaic", items=items), left, right


def test_a_mosaic_covers_its_members_and_the_first_valid_pixel_stands(tmp_path):
    group, left, right = beside(tmp_path)
    scene = open_scene(group, EncodeConfig())
    assert (scene.id, [item.id for item in scene.items]) == ("mosaic", ["left", "right"])
    assert scene.geobox == GeoBox((30, 70), NORTH_UP, "EPSG:32614")
    block = read(scene)
    assert block.valid.all()
    np.testing.assert_array_equal(block.data[:, :, :35], left[:, :, :35])
    np.testing.assert_array_equal(block.data[:, :, 35:], right[:, :, 5:])


def test_a_mosaic_of_several_crss_needs_one(tmp_path):
    group, _, _ = beside(tmp_path, crs="EPSG:32615")
    with pytest.raises(DataError, match=r"several CRSs.*EPSG:32614, EPSG:32615.*--crs"):
        open_scene(group, EncodeConfig())


def test_a_mosaic_of_several_crss_on_one_grid(tmp_path):
    group, left, _ = beside(tmp_path)
    # The same place in the neighbouring zone, as a second Item.
    far = open_scene(group.items[1], EncodeConfig(crs="EPSG:32615")).geobox
    right = values((3, *far.shape), seed=7)
    path = write_tif(tmp_path / "z.tif", right, nodata=0, crs="EPSG:32615", transform=far.affine)
    other = item_of(path, "image", "red", "green", "blue", item_id="other")
    mosaic = Group(id="mosaic", items=(group.items[0], other))
    scene = open_scene(mosaic, EncodeConfig(crs="EPSG:32614"))
    assert scene.geobox.crs == "EPSG:32614"
    block = read(scene)
    box = scene.geobox.boundingbox
    assert box.left <= NORTH_UP.c
    assert box.right >= NORTH_UP.c + 690
    col = round((NORTH_UP.c - box.left) / 10)
    row = round((box.top - NORTH_UP.f) / 10)
    np.testing.assert_array_equal(block.data[:, row : row + 30, col : col + 35], left[:, :, :35])
    # East of the first Item's valid part there are pixels of the other.
    assert block.valid[row + 5 : row + 25, col + 36 : col + 60].all()
