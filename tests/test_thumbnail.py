from __future__ import annotations

import io

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from geosam_stac import thumbnail
from geosam_stac.grid import blocks, chip_refs, make_grid
from geosam_stac.thumbnail import Thumbnail, cut, valid_of
from geosam_stac.types import Window
from geosam_stac.windows import slices
from tests.rasters import values


def image(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_small_scene_is_shown_as_it_is():
    data = values((3, 50, 70), "uint8")
    thumb = Thumbnail((50, 70))
    thumb.add(data, Window(row_off=0, col_off=0, height=50, width=70))
    assert (image(thumb.png([])) == data.transpose(1, 2, 0)).all()


def test_a_big_scene_is_averaged_over_overlapping_blocks(monkeypatch):
    monkeypatch.setattr(thumbnail, "LONGER_SIDE_PX", 32)
    data = values((3, 90, 125), "uint8")
    geobox = GeoBox((90, 125), Affine(1, 0, 0, 0, -1, 0), "EPSG:32614")
    thumb = Thumbnail((90, 125))
    assert (thumb.factor, thumb.shape) == (4, (23, 32))
    whole = Window(row_off=0, col_off=0, height=90, width=125)
    thumb.add(data, whole)
    once = image(thumb.png([]))
    expected = data[:, :88, :124].reshape(3, 22, 4, 31, 4).mean(axis=(2, 4))
    assert np.abs(once[:22, :31] - expected.transpose(1, 2, 0)).max() <= 0.5
    edge = data[:, 88:, 124:].mean(axis=(1, 2))
    assert np.abs(once[22, 31] - edge).max() <= 0.5

    cut = Thumbnail((90, 125))
    for block in blocks(make_grid(geobox, chip_px=30, stride_px=23), chips_a_side=2):
        cut.add(data[:, *slices(block.window)], block.window)
    # Where blocks overlap, their pixels count more: the mean moves a little inside a cell.
    assert np.abs(image(cut.png([])).astype(int) - once).mean() < 2


def test_chips_are_outlined_and_skipped_ones_in_red():
    geobox = GeoBox((60, 60), Affine(1, 0, 0, 0, -1, 0), "EPSG:32614")
    first, *_, last = chip_refs(make_grid(geobox, chip_px=30, stride_px=30))
    thumb = Thumbnail((60, 60))
    thumb.add(np.zeros((3, 60, 60), np.uint8), Window(row_off=0, col_off=0, height=60, width=60))
    drawn = image(thumb.png([first], skipped=[last]))
    assert tuple(drawn[59, 59]) == tuple(drawn[30, 45]) == thumbnail.SKIPPED_COLOUR[:3]
    yellow = np.array(thumbnail.CHIP_COLOUR[:3]) * thumbnail.CHIP_COLOUR[3] / 255
    assert np.abs(drawn[0, 10] - yellow).max() <= 1
    assert tuple(drawn[29, 29]) == tuple(drawn[0, 0])
    assert not drawn[5:25, 5:25].any()


def test_a_scene_without_pixels_is_black():
    assert not image(Thumbnail((10, 10)).png([])).any()


def test_nodata_is_transparent_and_takes_no_part_in_the_mean(monkeypatch):
    monkeypatch.setattr(thumbnail, "LONGER_SIDE_PX", 15)
    data = np.full((3, 60, 60), 200, np.uint8)
    valid = np.ones((60, 60), dtype=bool)
    valid[:, :22] = False  # five px of the picture and half of the sixth
    thumb = Thumbnail((60, 60))
    for window in (
        Window(row_off=0, col_off=0, height=60, width=30),
        Window(row_off=0, col_off=30, height=60, width=30),
    ):
        here = slices(window)
        known = valid[here]
        thumb.add(data[:, *here] * known, window, None if known.all() else known)
    geobox = GeoBox((60, 60), Affine(1, 0, 0, 0, -1, 0), "EPSG:32614")
    refs = list(chip_refs(make_grid(geobox, chip_px=60, stride_px=60)))
    for png in (thumb.png(refs), thumb.png([], skipped=refs)):
        shown = valid_of(png, (60, 60))
        assert shown is not None
        assert shown.sum(axis=0).tolist() == [0] * 5 + [15] * 10
        assert (image(png)[5:10, 5:10] == 200).all()
    assert valid_of(thumb.png([]), (60, 90)) is None
    assert valid_of(b"no picture", (60, 60)) is None
    thumb.add(data, Window(row_off=0, col_off=0, height=60, width=60))
    assert Image.open(io.BytesIO(thumb.png(refs))).mode == "RGB"
    assert valid_of(thumb.png(refs), (60, 60)) is None


def test_a_part_of_a_thumbnail_covers_the_part(monkeypatch):
    monkeypatch.setattr(thumbnail, "LONGER_SIDE_PX", 40)
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, None], (3, 120, 160)).copy()
    valid = np.arange(160)[None] >= np.zeros((120, 1)) + 60
    thumb = Thumbnail((120, 160))
    assert thumb.factor == 4
    thumb.add(ramp * valid, Window(row_off=0, col_off=0, height=120, width=160), valid)
    part = Window(row_off=30, col_off=50, height=50, width=70)
    png = cut(thumb.png([]), (120, 160), part)
    assert image(png).shape == (25, 35, 3)  # its own factor is 2
    cols = 50 + np.arange(35) * 2 + 1  # centres, in px of the scene
    shown = valid_of(png, (50, 70))
    assert (shown[:, cols >= 62]).all()
    assert not shown[:, cols < 58].any()
    assert np.abs(image(png)[5, cols >= 62, 0] - cols[cols >= 62]).max() <= 3
    assert cut(png, (120, 160), part) is None
    assert cut(b"no picture", (120, 160), part) is None
