"""Prompts of a user, on the scene's grid; and files of them."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

import geosam_stac as gs
from geosam_stac.errors import DataError, UsageError
from geosam_stac.store.prompting import from_arguments, from_layer
from tests import rasters
from tests.store.seeing import SeeingDecoder, painted

LONLAT = Transformer.from_crs(rasters.UTM14, "EPSG:4326", always_xy=True)
FIELDS = ((4, 4, 24, 24, 200), (40, 100, 60, 140, 150), (92, 20, 120, 60, 90))


def at(col: float, row: float, crs: str | None = None) -> tuple[float, float]:
    x, y = rasters.NORTH_UP @ (col, row)
    return LONLAT.transform(x, y) if crs is None else (x, y)


@pytest.fixture
def scene(encoded) -> gs.FeatureItem:
    return gs.open_features(encoded(painted(128, 160, *FIELDS)))


def test_degrees_and_metres_mean_the_same(scene):
    plain = from_arguments(scene, points=[at(10.25, 12.5)], labels=[1])
    native = from_arguments(scene, points=[at(10.25, 12.5, "native")], crs="native")
    assert plain[0].points[0] == pytest.approx((10.25, 12.5), abs=1e-4)
    assert native[0].points[0] == pytest.approx((10.25, 12.5), abs=1e-9)
    assert (native[0].labels, native[0].box, native[0].mask) == ((1,), None, None)


def test_boxes(scene):
    (west, north), (east, south) = at(4, 4, "n"), at(24, 24, "n")
    first, second = from_arguments(
        scene, boxes=[(west, south, east, north), (west, south, east + 100, north)], crs="native"
    )
    assert first.box == pytest.approx((4, 4, 24, 24))
    assert (first.id, second.id) == (1, 2)
    assert first.anchor == pytest.approx((14, 14))
    # What lies beyond the scene is cut off.
    (cut,) = from_arguments(scene, boxes=[(0, south, east, 9e6)], crs="native")
    assert cut.box == pytest.approx((0, 0, 24, 24))
    # In degrees a box is the bounds of what it covers.
    (w, n), (e, s) = at(4, 4), at(24, 24)
    (degrees,) = from_arguments(scene, boxes=[(w, s, e, n)])
    assert degrees.box == pytest.approx((4, 4, 24, 24), abs=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a prompt is missing"),
        ({"points": [(0, 0)]}, "outside the scene"),
        ({"points": [(-99, 91)]}, "not in degrees"),
        ({"boxes": [(0, 0, 1, 1)]}, "outside the scene"),
        ({"points": [(1, 1)], "labels": [2]}, "needs a label"),
        ({"points": [(1, 1)], "labels": []}, "needs a label"),
        ({"points": [(1, 1)], "boxes": [(0, 0, 1, 1)] * 2}, "several boxes are several objects"),
        ({"mask": "no such file.tif"}, "--mask: no such file"),
        ({"mask": shapely.Point(1, 1)}, "the mask is empty"),
        ({"mask": shapely.box(0, 0, 1, 1)}, "outside the scene"),
    ],
)
def test_what_is_wrong(scene, given, message):
    with pytest.raises(UsageError, match=message):
        from_arguments(scene, **given)


def test_masks_of_all_kinds(scene, tmp_path):
    shape = shapely.box(500_100, 5_199_800, 500_300, 5_199_900)
    frame = geopandas.GeoDataFrame(geometry=[shape], crs=rasters.UTM14)
    vector, table = tmp_path / "mask.gpkg", tmp_path / "mask.parquet"
    frame.to_file(vector)
    frame.to_parquet(table)
    values = np.zeros((1, 128, 160), "uint8")
    values[0, 10:20, 10:30] = 7
    raster = rasters.write_tif(tmp_path / "mask.tif", values, nodata=0)
    degrees = frame.to_crs("EPSG:4326")
    for given, crs in (
        (shape, "native"),
        (frame, None),
        (degrees, None),
        (degrees.geometry[0], None),
        (vector, None),
        (str(table), None),
        (raster, None),
    ):
        (found,) = from_arguments(scene, mask=given, crs=crs)
        assert found.mask_box == pytest.approx((10, 10, 30, 20), abs=0.05)
        assert found.anchor == pytest.approx((20, 15), abs=0.05)
    decoder = SeeingDecoder()
    found = scene.segment(mask=str(raster), decoder=decoder)
    told = decoder.asked[0][1]
    assert told.points == () and told.box is None
    # 4 px of the scene are one value of the prompt: rows 10 to 20 are 2.5 to 5 of them.
    expected = np.full((16, 16), -10.0)
    expected[3:5, 3:7] = 10
    expected[2, 3:7] = expected[3:5, 2] = expected[3:5, 7] = 0
    expected[2, 2] = expected[2, 7] = -5
    np.testing.assert_allclose(told.mask, expected)


def test_a_raster_that_is_no_mask(scene, tmp_path):
    path = rasters.write_tif(tmp_path / "mask.tif", np.zeros((1, 8, 8), "uint8"))
    with pytest.raises(UsageError, match="the mask is empty"):
        from_arguments(scene, mask=path)
    nowhere = tmp_path / "nowhere.tif"
    with rasterio.open(
        nowhere, "w", driver="GTiff", height=4, width=4, count=1, dtype="uint8"
    ) as raster:
        raster.write(np.ones((1, 4, 4), "uint8"))
    with pytest.raises(UsageError, match="--mask has no CRS"):
        from_arguments(scene, mask=nowhere)
    text = tmp_path / "mask.txt"
    text.write_text("nothing")
    with pytest.raises(UsageError, match="--mask cannot be read"):
        from_arguments(scene, mask=text)


# --- Files of prompts --------------------------------------------------------------------------


def layer(path, geometries, crs=rasters.UTM14, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)
    if path is not None:
        frame.to_file(path)
    return frame


def point(col, row):
    return shapely.Point(at(col, row, "native"))


def box(left, top, right, bottom):
    (west, north), (east, south) = at(left, top, "n"), at(right, bottom, "n")
    return shapely.box(west, south, east, north)


def test_points_of_a_file(scene, tmp_path):
    path = tmp_path / "clicks.gpkg"
    layer(path, [point(10, 10), point(120, 50), point(40, 100)], id=["a", "b", "c"])
    decoder = SeeingDecoder()
    found = scene.segment(prompts=path, decoder=decoder, follow=False)
    frame = found.polygons
    assert list(frame["id"]) == ["a", "b", "c"]
    assert [round(shape.area / 100) for shape in frame.geometry] == [400, 800, 1120]
    assert not found.failed


def test_batched_by_chip(scene, monkeypatch):
    """Each chip is read once, however the file is sorted; the answers keep the file's order."""
    cols = [10, 120, 12, 121, 14, 122, 16, 123]
    rows = [10, 50] * 4
    frame = layer(None, [point(c, r) for c, r in zip(cols, rows, strict=True)])
    small = gs.FeatureItem(scene.item, cache_chips=1)
    reads: list[str] = []
    read = gs.FeatureItem.read_object

    def counted(self, chip):
        reads.append(chip.id)
        return read(self, chip)

    monkeypatch.setattr(gs.FeatureItem, "read_object", counted)
    found = small.segment(prompts=frame, decoder=SeeingDecoder(), follow=False)
    assert len(reads) == len(set(reads)) == 2
    assert [one.id for one in found.objects] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [int(one.mask.sum()) for one in found.objects] == [400, 800] * 4


def test_groups_and_labels(scene):
    frame = layer(
        None,
        [point(10, 10), point(40, 40), point(12, 12), point(120, 50), box(20, 90, 60, 120)],
        group=["x", "x", "x", None, "y"],
        label=[1, 0, 1, None, None],
        id=[7, 8, 9, 10, None],
    )
    decoder = SeeingDecoder()
    found = scene.segment(prompts=frame, decoder=decoder, follow=False)
    assert [one.id for one in found.objects] == [7, 10, "y"]
    prompts = dict(decoder.asked)
    assert prompts["chip_000000"].labels == (1, 0, 1)
    assert prompts["chip_000000"].points[1] == pytest.approx((40, 40))
    assert [int(one.mask.sum()) for one in found.objects] == [400, 800, 1120]


def test_a_group_of_number_0_is_no_other(scene):
    places = [shapely.Point(*at(x, y, "n")) for x, y in ((10, 10), (120, 50), (12, 12))]
    layer = geopandas.GeoDataFrame({"group": [0, 1, 0]}, geometry=places, crs=scene.crs.proj)
    prompts, _ = from_layer(scene, layer)
    assert [(one.id, len(one.points)) for one in prompts] == [(0, 2), (1, 1)]


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({"id": ["a", "b", "a"]}, "a in rows 1 and 3"),
        ({"id": [2, None, 5]}, "2 in rows 1 and 2"),  # the second has its row's number
        ({"group": ["1", "b", None], "id": [None, 1, None]}, "1 in rows 1 and 2"),
    ],
)
def test_two_objects_of_one_id_are_refused(scene, columns, got):
    frame = layer(None, [point(10, 10), point(120, 50), point(40, 100)], **columns)
    with pytest.raises(UsageError, match=f"have the same id; got {got}"):
        from_layer(scene, frame)


def test_rows_of_one_group_may_repeat_their_id(scene):
    places = [point(10, 10), point(12, 12), point(120, 50), point(120, 52)]
    frame = layer(None, places, group=["x", "x", None, None], id=[7, 7, 8, None])
    prompts, _ = from_layer(scene, frame)
    assert [(repr(one.id), len(one.points)) for one in prompts] == [("7", 2), ("8", 1), ("4", 1)]


def test_degrees_in_a_file(scene, tmp_path):
    path = tmp_path / "clicks.geojson"
    layer(None, [point(10, 10)]).to_crs("EPSG:4326").to_file(path)
    found = scene.segment(prompts=path, decoder=SeeingDecoder())
    assert int(found.masks.sum()) == 400


def test_one_that_lies_outside_does_not_stop_the_others(scene):
    frame = layer(
        None,
        [point(10, 10), point(1000, 10), box(0, 0, 5, 5), box(1, 1, 9, 9), point(40, 40)],
        id=["in", "out", "two", "two", "odd"],
        group=["in", "out", "g", "g", "odd"],
        label=[1, 1, 1, 1, 5],
    )
    found = scene.segment(prompts=frame, decoder=SeeingDecoder())
    assert [one.id for one in found.objects] == ["in"]
    assert set(found.failed) == {"out", "two", "odd"}
    assert "outside the scene" in str(found.failed["out"])
    assert "two boxes" in str(found.failed["two"])
    assert "label" in str(found.failed["odd"])
    with pytest.raises(UsageError, match="outside the scene"):
        scene.segment(prompts=frame[1:2], decoder=SeeingDecoder())
    with pytest.raises(UsageError, match="cannot be mixed"):
        scene.segment([(1, 1)], prompts=frame, decoder=SeeingDecoder())


def test_the_embedding_alone_is_refused_before_weights_are_loaded(encoded):
    path = encoded(painted(64, 64), format="safetensors", levels="embedding")
    with pytest.raises(DataError, match=r"cannot be prompted.*--levels all"):
        gs.open_features(path).segment([at(10, 10)])
