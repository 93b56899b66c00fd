"""open_features: what is read, when, and how it is checked."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pystac
import pytest
import torch
from pyproj import Transformer

import geosam_stac as gs
from geosam_stac import features as files
from geosam_stac import manifest
from geosam_stac.errors import DataError, UsageError
from geosam_stac.store.objects import ObjectFolder, confined
from geosam_stac.versioned import VersionedStore
from tests import rasters
from tests.fakes import INPUT_PX
from tests.servers import (
    s3_endpoint,  # noqa: F401  (a fixture)
    use_s3,
)

LONLAT = Transformer.from_crs(rasters.UTM14, "EPSG:4326", always_xy=True)


def lonlat(col: float, row: float) -> tuple[float, float]:
    """Of a pixel of the synthetic scenes."""
    return LONLAT.transform(*(rasters.NORTH_UP @ (col, row)))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the objects that are read."""
    seen: list[str] = []
    get = ObjectFolder.get

    def counted(self: ObjectFolder, key: str) -> bytes:
        seen.append(key.rpartition("/")[2])
        return get(self, key)

    monkeypatch.setattr(ObjectFolder, "get", counted)
    return seen


def test_only_what_is_needed_is_read(encoded, pixels, reads):
    scene = gs.open_features(encoded(pixels))
    assert reads == []
    assert scene.item.properties["mlm:name"] == "sam2.1-hiera-tiny"
    assert len(scene.manifest) == 12
    assert reads == ["manifest.parquet"]
    chips = list(scene.chips())
    assert [chip.id for chip in chips] == [f"chip_{n:06d}" for n in range(12)]
    assert scene.geobox.shape == (128, 160)
    assert scene.geobox.affine == rasters.NORTH_UP
    assert reads == ["manifest.parquet"]
    chips[5].tensors, chips[5].to_torch(), chips[5].to_xarray(), chips[5].metadata
    assert reads == ["manifest.parquet", "chip_000005.pt"]


def test_the_cache_is_bounded(encoded, pixels, reads):
    item = pystac.Item.from_file(encoded(pixels))
    scene = gs.FeatureItem(item, cache_chips=2)
    chips = list(scene.chips())
    for number in (0, 1, 0, 2, 0, 1):
        _ = chips[number].tensors
    assert [int(name[5:11]) for name in reads[1:]] == [0, 1, 2, 1]


def test_tensors_are_those_of_the_file(encoded, pixels):
    path = encoded(pixels)
    scene = gs.open_features(str(path))
    chip = scene.chip("chip_000006")
    stored, _ = files.read((path.parent / chip.feature_href).read_bytes())
    assert list(chip.tensors) == ["image_embed", "high_res_feats_0", "high_res_feats_1"]
    for name, tensor in stored.items():
        assert chip.tensors[name].dtype == np.float16
        np.testing.assert_array_equal(chip.tensors[name], tensor.numpy())
        assert torch.equal(chip.to_torch()[name], tensor)
    # Row 1, column 2: the fake's finest level has means of 4 x 4 px of the raster.
    assert (chip.row, chip.col) == (1, 2)
    assert (chip.window.row_off, chip.window.col_off) == (32, 64)
    own = pixels[:, 32:96, 64:128].reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(chip.tensors["high_res_feats_0"], own, rtol=1e-3)
    assert chip.bounds == (500_640.0, 5_199_040.0, 501_280.0, 5_199_680.0)


def test_the_cache_cannot_be_spoiled(encoded, pixels):
    chip = gs.open_features(encoded(pixels)).chip("chip_000000")
    before = chip.tensors["image_embed"].copy()
    with pytest.raises(ValueError, match="read-only"):
        chip.tensors["image_embed"][:] = 0
    chip.to_torch()["image_embed"].zero_()
    np.testing.assert_array_equal(chip.tensors["image_embed"], before)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_other_dtypes_come_as_float32(encoded, pixels, dtype):
    path = encoded(pixels, format="safetensors", feature_dtype=dtype)
    chip = gs.open_features(path).chip("chip_000006")
    own = pixels[:, 32:96, 64:128].reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    values = chip.tensors["high_res_feats_0"]
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, own, atol={"int8": 1.0, "bfloat16": 1.0}.get(dtype, 1e-3))
    assert chip.metadata.model == "sam2.1-hiera-tiny"


def test_the_embedding_alone(encoded, pixels):
    path = encoded(pixels, format="safetensors", levels="embedding")
    chip = gs.open_features(path).chip("chip_000000")
    assert list(chip.tensors) == ["image_embed"]
    with pytest.raises(DataError, match=r"no tensor 'high_res_feats_0' .*chip_000000"):
        chip.to_xarray("high_res_feats_0")


def test_xarray_has_the_cells_places(encoded, pixels):
    chip = gs.open_features(encoded(pixels)).chip("chip_000006")
    for name, size in (("image_embed", 16), ("high_res_feats_0", 4), ("high_res_feats_1", 8)):
        array = chip.to_xarray(name)
        assert array.dims == ("channel", "y", "x")
        assert array.name == name
        np.testing.assert_array_equal(array.values, chip.tensors[name])
        cells = np.arange(64 // size)
        np.testing.assert_allclose(array.x, 500_640 + (cells + 0.5) * size * 10)
        np.testing.assert_allclose(array.y, 5_199_680 - (cells + 0.5) * size * 10)
        assert array.odc.geobox.crs == "EPSG:32614"
    assert array.attrs["chip_id"] == "chip_000006"


def test_xarray_leaves_padding_out(encoded):
    """A scene of 48 x 24 px fills the upper half of the model's input."""
    scene = gs.open_features(encoded(rasters.values((3, 24, 48), "uint8")))
    (chip,) = scene.chips()
    assert chip.content_px == (32, 64)
    array = chip.to_xarray("high_res_feats_0")
    assert array.shape == (3, 8, 16)
    np.testing.assert_array_equal(array.values, chip.tensors["high_res_feats_0"][:, :8])
    # 4 px of the input are 3 px of the scene.
    np.testing.assert_allclose(array.x, 500_000 + (np.arange(16) + 0.5) * 30)
    np.testing.assert_allclose(array.y, 5_200_000 - (np.arange(8) + 0.5) * 30)


# --- Chips by place ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("col", "row", "chip"),
    [
        (5, 5, 0),
        (47.5, 5, 0),  # chips 0 and 1 cover it, centred at 32 and 64
        (48.5, 5, 1),
        (159, 127, 11),
        (80, 64, 5),  # as near to 5 as to 6: the first
        (64.1, 63.9, 5),
        (0, 0, 0),  # on the border still
    ],
)
def test_chip_at_is_the_nearest_that_covers(encoded, pixels, col, row, chip):
    scene = gs.open_features(encoded(pixels))
    x, y = rasters.NORTH_UP @ (col, row)
    assert scene.chip_at(x, y, crs="native").id == f"chip_{chip:06d}"
    if col > 0:
        # A millimetre inside: projecting there and back again rounds.
        assert scene.chip_at(*lonlat(col, row + 1e-4)).id == f"chip_{chip:06d}"


def test_chip_at_is_geosams_choice(encoded, pixels):
    """The rule of geosam 0.1.3, written out: `covers`, then argmin of the squared distances."""
    scene = gs.open_features(encoded(pixels))
    rng = np.random.default_rng(0)
    frame = scene.manifest
    for col, row in rng.uniform((0, 0), (160, 128), (40, 2)):
        x, y = rasters.NORTH_UP @ (col, row)
        covering = frame[frame.geometry.apply(lambda g, x=x, y=y: g.covers(gs_point(x, y)))]
        off = (covering.chip_center_x - x) ** 2 + (covering.chip_center_y - y) ** 2
        expected = covering.iloc[int(np.argmin(off.to_numpy()))].chip_id
        assert scene.chip_at(x, y, crs="EPSG:32614").id == expected


def gs_point(x, y):
    import shapely

    return shapely.Point(x, y)


def test_outside_the_scene(encoded, pixels):
    scene = gs.open_features(encoded(pixels))
    with pytest.raises(UsageError, match="outside the scene") as error:
        scene.chip_at(-99.2, 46.9)
    assert error.value.item == scene.item.id
    assert error.value.got == "-99.2,46.9"
    assert "within W,S,E,N -99," in str(error.value)
    with pytest.raises(UsageError, match="outside the scene"):
        scene.chip_at(1, 2)  # too far to be projected
    with pytest.raises(UsageError, match="not in degrees"):
        scene.chip_at(500_100, 5_199_900)
    with pytest.raises(UsageError, match="no number"):
        scene.chip_at(float("nan"), 46.9)
    with pytest.raises(UsageError, match="no CRS that PROJ knows"):
        scene.chip_at(1, 2, crs="EPSG:nothing")


def test_on_a_skipped_chip(encoded, pixels):
    pixels = pixels.copy()
    pixels[:, :, :96] = 0  # columns 0 and 1 have no valid pixel
    scene = gs.open_features(encoded(pixels, nodata=0))
    assert len(scene.manifest) == 6
    assert len(scene.skipped) == 6
    assert scene.geobox.shape == (128, 160)
    assert scene.geobox.affine == rasters.NORTH_UP
    assert [chip.window.col_off for chip in scene.chips()] == [64, 96] * 3
    with pytest.raises(UsageError, match=r"chip was skipped.*no valid pixel"):
        scene.chip_at(*lonlat(10, 10))


def test_chips_in_a_box(encoded, pixels):
    scene = gs.open_features(encoded(pixels))
    west, north = rasters.NORTH_UP @ (0, 0)
    east, south = rasters.NORTH_UP @ (32, 32)
    ids = [chip.id for chip in scene.chips((west, south, east, north), crs="native")]
    assert ids == ["chip_000000"]  # the others touch its border alone
    east += 1
    ids = [chip.id for chip in scene.chips((west, south, east, north), crs="EPSG:32614")]
    assert ids == ["chip_000000", "chip_000001"]
    (w, n), (e, s) = lonlat(100, 10), lonlat(110, 20)
    assert [chip.col for chip in scene.chips((w, s, e, n))] == [2, 3]
    for empty in ((-98, 46, -97, 47), (0, 0, 1, 1)):
        assert list(scene.chips(empty)) == []
    assert len(list(scene.chips((-180, -90, 180, 90)))) == 12
    assert len(list(scene.chips((170, 40, -90, 50)))) == 12  # across the antimeridian
    with pytest.raises(UsageError, match="far side of the Earth"):
        scene.chips((-98.9, 46.9, -99.1, 47.1))
    with pytest.raises(UsageError, match="a box has four numbers"):
        scene.chips((170, 40, -90))
    with pytest.raises(UsageError, match="the box is empty"):
        list(scene.chips((e, n, w, s), crs="EPSG:32614"))


# --- What is wrong ------------------------------------------------------------------------------


def test_a_damaged_chip_is_named(encoded, pixels):
    path = encoded(pixels)
    scene = gs.open_features(path)
    chip = scene.chip("chip_000003")
    file = path.parent / chip.feature_href
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(DataError, match="not the one that was written") as error:
        _ = chip.tensors
    assert error.value.chip == "chip_000003"
    assert error.value.href == str(file)
    assert chip.sha256 in str(error.value)
    file.unlink()
    with pytest.raises(DataError, match=r"no such file.*chip_000003"):
        _ = chip.tensors
    assert scene.chip("chip_000004").tensors["image_embed"].shape == (3, 4, 4)


def test_another_manifest_than_the_items(encoded, pixels):
    path = encoded(pixels)
    table = path.parent / "manifest.parquet"
    frame = manifest.read(table.read_bytes())
    table.write_bytes(manifest.from_frame(frame.iloc[:3]))
    with pytest.raises(DataError, match=r"not the one that was written.*manifest.parquet"):
        _ = gs.open_features(path).manifest


@pytest.mark.parametrize(
    "href", ["../secret.pt", "a/../../b.pt", "/etc/passwd", "file:///etc/passwd", "a//b", "..\\b",
             "http://example.com/x.pt", "", 3, "a/./b"],
)  # fmt: skip
def test_hrefs_stay_in_the_folder(href):
    with pytest.raises(DataError, match=r"leads out of the Item's folder.*chip_7"):
        confined(href, chip="chip_7")


def test_a_manifest_that_leads_out(encoded, pixels):
    path = encoded(pixels)
    table = path.parent / "manifest.parquet"
    frame = manifest.read(table.read_bytes())
    frame["feature_href"] = "../../secret.pt"
    table.write_bytes(manifest.from_frame(frame))
    item = pystac.Item.from_file(path)
    del item.assets["manifest"].extra_fields["file:checksum"]
    with pytest.raises(DataError, match=r"leads out of the Item's folder.*chip_000000"):
        list(gs.open_features(item).chips())


@pytest.mark.parametrize("column", ["transform", "shape", "dst_shape"])
@pytest.mark.parametrize("value", ["[]", "nonsense", "[0, 0, 0, 0, 0, 0]", "[1, -1]"])
def test_a_malformed_manifest(encoded, pixels, column, value):
    path = encoded(pixels)
    table = path.parent / "manifest.parquet"
    frame = manifest.read(table.read_bytes())
    frame[column] = value
    table.write_bytes(manifest.from_frame(frame))
    item = pystac.Item.from_file(path)
    del item.assets["manifest"].extra_fields["file:checksum"]
    with pytest.raises(DataError, match=f"{column} is malformed.*chip_000000"):
        list(gs.open_features(item).chips())


def test_an_item_from_elsewhere_names_no_local_file(encoded, pixels):
    item = pystac.Item.from_file(encoded(pixels))
    item.assets["manifest"].href = "/etc/manifest.parquet"
    item.set_self_href("s3://bucket/item.json")
    with pytest.raises(DataError, match="names a file of this machine"):
        gs.open_features(item)


def test_no_feature_item(tmp_path):
    tif = rasters.write_tif(tmp_path / "a.tif", rasters.values((3, 8, 8), "uint8"))
    path = rasters.write_item(tmp_path / "item.json", {"image": rasters.asset(tif)})
    with pytest.raises(DataError, match="describes no features"):
        gs.open_features(path)
    with pytest.raises(DataError, match="no such file"):
        gs.open_features(tmp_path / "missing.json")
    with pytest.raises(DataError, match="no feature Item in this folder"):
        gs.open_features(tmp_path / "..")


# --- Where it lies ------------------------------------------------------------------------------


def test_a_folder_that_was_moved(encoded, pixels, tmp_path):
    path = encoded(pixels)
    moved = tmp_path / "elsewhere"
    shutil.copytree(path.parent, moved)
    shutil.rmtree(path.parent)
    scene = gs.open_features(moved)
    assert scene.item.id == path.stem
    (moved / "pca.json").write_text("{}")
    assert gs.open_features(moved).item.id == path.stem
    assert scene.chip("chip_000000").tensors["image_embed"].shape == (3, 4, 4)
    assert gs.open_features(json.loads(next(moved.glob("scene*.json")).read_text())).item.id


def test_in_an_object_store(encoded, pixels, s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    href = encoded(pixels, out="s3://bucket/opened")
    folder = f"s3://bucket/opened/{href.parent.name}"
    for source in (f"{folder}/{href.name}", folder, f"{folder}/"):
        scene = gs.open_features(source)
        assert scene.chip_at(*lonlat(5, 5)).tensors["image_embed"].shape == (3, 4, 4)
    whole, store = VersionedStore("s3://bucket/opened"), VersionedStore("s3://bucket/renamed")
    for key in whole.versions(href.parent.name):
        store.put(key.partition("/")[2], whole.get(key))
    store.put("pca.json", b"{}")
    scene = gs.open_features("s3://bucket/renamed")
    assert len(scene.manifest) == 12
    store.delete(scene.chip("chip_000000").feature_href)
    with pytest.raises(DataError, match="verify ITEM --repair"):
        _ = scene.chip("chip_000000").tensors
    with pytest.raises(DataError, match="no feature Item in this folder"):
        gs.open_features("s3://bucket/nothing")


def test_over_http(encoded, pixels):
    folder = encoded(pixels).parent
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{folder.name}/"
            for source in (url, f"{url}{folder.name}.json"):
                scene = gs.open_features(source)
                chip = scene.chip_at(*lonlat(5, 5))
                assert chip.tensors["high_res_feats_0"].shape == (3, 16, 16)
            (Path(folder) / chip.feature_href).unlink()
            with pytest.raises(DataError, match=r"cannot be had.*chip_000000.*HTTP 404"):
                _ = gs.open_features(url).chip("chip_000000").tensors
        finally:
            server.shutdown()


def test_a_mosaic_of_another_crs_keeps_its_grid(encoded, pixels):
    scene = gs.open_features(encoded(pixels, crs="EPSG:32614", stride=64))
    assert INPUT_PX == 64
    assert [chip.window.col_off for chip in scene.chips()] == [0, 64, 96] * 2
