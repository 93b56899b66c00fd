"""Objects within a chip and across borders, with a decoder whose answer is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

import geosam_stac as gs
from geosam_stac.errors import UsageError
from geosam_stac.store import follow
from tests.rasters import NORTH_UP
from tests.store.seeing import SeeingDecoder, painted


def at(col: float, row: float) -> tuple[float, float]:
    """A pixel's place in the scene's CRS."""
    return NORTH_UP @ (col, row)


def whole(found: gs.Segmentation, number: int = 0) -> np.ndarray:
    """A mask on the whole of the scene's grid."""
    height, width = found.scene_geobox.shape
    canvas = np.zeros((height, width), dtype=bool)
    one = found.objects[number]
    rows = slice(one.window.row_off, one.window.row_off + one.window.height)
    canvas[rows, one.window.col_off : one.window.col_off + one.window.width] = one.mask
    return canvas


def prompt(path, *points, **options) -> tuple[gs.Segmentation, SeeingDecoder]:
    decoder = SeeingDecoder()
    scene = gs.open_features(path)
    return scene.segment(list(points), crs="native", decoder=decoder, **options), decoder


def test_within_a_chip(encoded):
    data = painted(128, 160, (16, 16, 40, 40, 200), (80, 80, 100, 100, 200))
    found, decoder = prompt(encoded(data), at(20, 20))
    assert [chip for chip, _ in decoder.asked] == ["chip_000000"]
    np.testing.assert_array_equal(whole(found), (data[0] == 200) & (np.indices((128, 160))[0] < 64))
    assert found.objects[0].chips == ("chip_000000",)
    assert found.objects[0].complete
    assert found.scores == pytest.approx([0.9])
    # `masks` is on the chip's own grid, as a predictor's mask is.
    assert found.masks.shape == (1, 64, 64)
    assert found.geobox == gs.open_features(encoded(data)).chip("chip_000000").geobox
    np.testing.assert_array_equal(found.masks[0], data[0, :64, :64] == 200)


@pytest.mark.parametrize("stride", [32, 48, 64])
def test_across_borders(encoded, stride):
    """A bar over four columns of chips, and down three rows: each pixel once, none too many."""
    data = painted(
        192, 256, (20, 8, 40, 248, 200), (20, 228, 180, 248, 200), (100, 8, 120, 120, 200)
    )
    data[:, 28:32, 60:68] = 10  # a hole on a border
    rows, cols = np.indices((192, 256))
    expected = (data[0] == 200) & ~((rows >= 100) & (cols < 200))  # the other bar is apart
    found, decoder = prompt(encoded(data, stride=stride), at(12, 30))
    np.testing.assert_array_equal(whole(found), expected)
    one = found.objects[0]
    assert one.complete
    assert len(set(one.chips)) == len(one.chips) > 4
    assert len(decoder.asked) < 20
    frame = found.polygons
    assert len(frame) == 1
    assert frame.geometry[0].area == expected.sum() * 100.0
    assert len(frame.geometry[0].interiors) == 1


def test_neighbours_are_told_what_is_known(encoded):
    data = painted(64, 128, (20, 8, 40, 120, 200))
    _, decoder = prompt(encoded(data), at(12, 30), at(100, 50), at(100, 30), labels=[1, 0, 1])
    # Three points cannot be in one chip: the one of the first is asked, with the points in it.
    (first, told), (second, asked), *_ = decoder.asked
    assert (first, told.points, told.labels) == ("chip_000000", ((12.0, 30.0),), (1,))
    assert told.mask is None
    assert second == "chip_000001"  # its centre is on the border that was reached
    # Within what both see of it, rows 20 to 40 and columns 32 to 64; and beyond the border.
    (inner, beyond) = asked.points[:2]
    assert 0 < inner[0] < 32 and 20 < inner[1] < 40
    assert beyond == (32.5, pytest.approx(30, abs=1))
    assert asked.labels[:2] == (1, 1)
    # Row 7 (of 4 px) is on the object as far as it was seen, and open from there on.
    assert asked.mask.shape == (16, 16)
    np.testing.assert_array_equal(asked.mask[7], [10.0] * 8 + [0.0] * 8)
    np.testing.assert_array_equal(asked.mask[1], [-10.0] * 8 + [0.0] * 8)
    third, later = decoder.asked[2]
    assert third == "chip_000002"
    assert ((36.0, 50.0), 0) in list(zip(later.points, later.labels, strict=True))
    assert ((36.0, 30.0), 1) in list(zip(later.points, later.labels, strict=True))


def test_not_followed_when_not_asked(encoded):
    data = painted(64, 128, (20, 8, 40, 120, 200))
    path = encoded(data)
    for options in ({"follow": False}, {"multimask": True}):
        found, decoder = prompt(path, at(12, 30), **options)
        assert len(decoder.asked) == 1
        assert all(one.chips == ("chip_000000",) for one in found.objects)
    assert found.scores == pytest.approx([0.9, 0.8, 0.7])
    assert found.masks.shape == (3, 64, 64)


def test_a_neighbour_that_sees_another_object_is_left_out(encoded, monkeypatch):
    data = painted(64, 128, (20, 8, 40, 120, 200))
    decoder = SeeingDecoder()
    honest = SeeingDecoder.predict

    def astray(self, chip, prompts):
        found = honest(self, chip, prompts)
        return (
            found
            if chip.id == "chip_000000"
            else type(found)(logits=-found.logits, scores=found.scores)
        )

    monkeypatch.setattr(SeeingDecoder, "predict", astray)
    scene = gs.open_features(encoded(data))
    found = scene.segment([at(12, 30)], crs="native", decoder=decoder)
    assert found.objects[0].chips == ("chip_000000",)
    assert not found.objects[0].complete
    assert whole(found).sum() == 20 * (64 - 8)


def test_it_ends_somewhere(encoded, monkeypatch):
    monkeypatch.setattr(follow, "MAX_CHIPS", 3)
    data = painted(64, 320, (20, 8, 40, 312, 200))
    found, decoder = prompt(encoded(data), at(12, 30))
    assert len(decoder.asked) == 3
    assert found.objects[0].chips == ("chip_000000", "chip_000001", "chip_000002")
    assert not found.objects[0].complete


def test_skipped_neighbours(encoded):
    """The object goes on where nothing was encoded: said, and not invented."""
    data = painted(64, 192, (20, 8, 40, 64, 200))
    data[:, :, 64:] = 0
    found, _ = prompt(encoded(data, nodata=0, stride=64), at(12, 30))
    assert found.objects[0].chips == ("chip_000000",)
    assert not found.objects[0].complete
    np.testing.assert_array_equal(whole(found), data[0] == 200)


def test_a_box_over_several_chips(encoded):
    data = painted(128, 192, (20, 20, 100, 180, 200))
    scene = gs.open_features(encoded(data))
    decoder = SeeingDecoder()
    west, north = at(16, 16)
    east, south = at(184, 104)
    found = scene.segment(boxes=[(west, south, east, north)], crs="native", decoder=decoder)
    np.testing.assert_array_equal(whole(found), data[0] == 200)
    # No chip covers it: the one nearest to its centre is asked, with as much of the box.
    chip, asked = decoder.asked[0]
    assert chip == "chip_000007"
    assert asked.box == (0.0, 0.0, 64.0, 64.0)
    assert all(told.box is not None for _, told in decoder.asked)


def test_a_small_box_stays_with_its_chip(encoded):
    data = painted(64, 128, (20, 8, 40, 120, 200))
    scene = gs.open_features(encoded(data))
    decoder = SeeingDecoder()
    (west, north), (east, south) = at(8, 20), at(36, 40)
    scene.segment(boxes=[(west, south, east, north)], crs="native", decoder=decoder)
    assert decoder.asked[0][1].box == pytest.approx((8, 20, 36, 40))
    assert [told.box for _, told in decoder.asked[1:]] == [None, None]


def test_a_chip_smaller_than_the_models_input(encoded):
    data = painted(24, 48, (6, 6, 18, 30, 200))
    found, decoder = prompt(encoded(data), at(9, 9))
    np.testing.assert_array_equal(decoder.asked[0][1].points, [(12.0, 12.0)])
    assert decoder.asked[0][1].labels == (1,)
    assert found.masks.shape == (1, 24, 48)


def test_where_there_is_nothing(encoded):
    data = painted(128, 160)
    data[:, :, :96] = 0
    path = encoded(data, nodata=0)
    with pytest.raises(UsageError, match=r"chip was skipped.*chip_000000.*no valid pixel"):
        prompt(path, at(10, 10))
    with pytest.raises(UsageError, match="outside the scene"):
        prompt(path, at(200, 10))
    with pytest.raises(UsageError, match="outside the scene"):
        prompt(path, at(100, 20), at(1e6, 20))
