from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from geosam_stac import cube
from geosam_stac.config import EncodeConfig
from geosam_stac.cube import CubeReader
from geosam_stac.errors import DataError
from geosam_stac.grid import blocks, crop, make_grid
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.types import BlockRef, Scene, Window
from geosam_stac.warp import kernel_shrink, source_part
from geosam_stac.windows import slices
from tests.rasters import NORTH_UP, asset, document, named_bands, values, write_tif

RGB = ("red", "green", "blue")
KEEP = 1 << 30


def scene_of(folder: Path, files: dict[str, Path], **options) -> Scene:
    """A scene of one-file-per-key assets; a file of several bands is `image`."""
    assets = {}
    for key, path in files.items():
        with rasterio.open(path) as dataset:
            names = RGB[: dataset.count] if dataset.count > 1 else (key,)
        assets[key] = asset(path, **named_bands(*names))
    item = parse_item(document(assets), href=str(folder / "item.json"))
    return open_scene(item, EncodeConfig.of(options))


def whole(scene: Scene) -> Window:
    height, width = scene.geobox.shape
    return Window(row_off=0, col_off=0, height=height, width=width)


def reader_of(scene, windows, *, resampling="bilinear", keep_bytes=KEEP):
    refs = [BlockRef(window=w, geobox=crop(scene.geobox, w), chips=()) for w in windows]
    return CubeReader(scene, refs, resampling=resampling, keep_bytes=keep_bytes), refs


def read(scene, window=None, resampling="bilinear"):
    reader, (ref,) = reader_of(scene, [window or whole(scene)], resampling=resampling)
    return reader.read(ref)


@pytest.fixture
def loads(monkeypatch):
    """The windows that were loaded, in px of the scene."""
    seen = []
    original = CubeReader._load

    def counted(self, window):
        seen.append(window)
        return original(self, window)

    monkeypatch.setattr(CubeReader, "_load", counted)
    return seen


# On the source's own grid


@pytest.mark.parametrize("tile_px", [1024, 32])
@pytest.mark.parametrize(
    "window", [(0, 0, 90, 130), (5, 7, 40, 33), (31, 64, 59, 66), (89, 129, 1, 1)]
)
def test_native_pixels_are_the_files_own(tmp_path, monkeypatch, window, tile_px):
    monkeypatch.setattr(cube, "TILE_PX", tile_px)
    path = write_tif(tmp_path / "a.tif", values((3, 90, 130)), nodata=0)
    scene = scene_of(tmp_path, {"image": path})
    row, col, height, width = window
    block = read(scene, Window(row_off=row, col_off=col, height=height, width=width))
    with rasterio.open(path) as dataset:
        expected = dataset.read(window=RioWindow(col, row, width, height))
    assert block.data.dtype == np.uint16
    assert (block.data == expected).all()
    assert block.valid.all()


def test_a_bbox_of_pixels_edges_gives_these_pixels(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((3, 90, 130)))
    bbox = (500_200.0, 5_199_500.0, 500_900.0, 5_199_800.0)
    scene = scene_of(tmp_path, {"image": path}, bbox=bbox, bbox_crs="EPSG:32614")
    with rasterio.open(path) as dataset:
        expected = dataset.read(window=dataset.window(*bbox))
    assert expected.shape == (3, 30, 70)
    assert (read(scene).data == expected).all()


def test_validity_is_nodata_in_every_band(tmp_path):
    data = values((3, 20, 20))
    data[:, 3, 4] = 0
    data[1, 5, 6] = 0
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", data, nodata=0)})
    reader, (ref,) = reader_of(scene, [whole(scene)])
    block = reader.read(ref)
    assert not block.valid[3, 4]
    assert block.valid.sum() == 399
    assert (~block.band_valid).sum(axis=(1, 2)).tolist() == [1, 2, 1]


def test_float_nan_is_nodata(tmp_path):
    data = values((1, 20, 20), "float32")
    data[0, 2, 3] = np.nan
    for number, nodata in enumerate((None, float("nan"), -9999.0)):
        path = write_tif(tmp_path / f"{number}.tif", data, nodata=nodata)
        block = read(scene_of(tmp_path, {"nir": path}, bands="nir"))
        assert not block.valid[2, 3]
        assert block.valid.sum() == 399
        assert (block.data[:, block.valid] == data[0][block.valid]).all()


def test_one_and_two_bands_are_widened(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((3, 12, 12)))
    with rasterio.open(path) as dataset:
        data = dataset.read()
    two = read(scene_of(tmp_path, {"image": path}, bands="blue,red")).data
    assert (two == data[[2, 0, 0]]).all()
    again = read(scene_of(tmp_path, {"image": path}, bands="red,red,blue")).data
    assert (again == data[[0, 0, 2]]).all()


def test_bands_of_several_files_dtypes_and_resolutions_share_the_finest_grid(tmp_path):
    fine = values((1, 40, 60), "uint8", seed=1)
    coarse = values((1, 20, 30), "int16", seed=2) - 400
    files = {
        "red": write_tif(tmp_path / "r.tif", fine),
        "green": write_tif(
            tmp_path / "g.tif", coarse, transform=NORTH_UP * Affine.scale(2), nodata=-999
        ),
        "blue": write_tif(tmp_path / "b.tif", fine[:, ::-1]),
    }
    scene = scene_of(tmp_path, files)
    assert scene.geobox.shape == (40, 60)
    block = read(scene, resampling="nearest")
    assert block.data.dtype == np.int16
    assert (block.data[0] == fine[0]).all()
    assert (block.data[2] == fine[0, ::-1]).all()
    assert (block.data[1] == coarse[0].repeat(2, axis=0).repeat(2, axis=1)).all()
    assert block.valid.all()


def test_a_band_that_covers_less_is_not_valid_beyond(tmp_path):
    files = {
        "red": write_tif(tmp_path / "r.tif", values((1, 40, 60))),
        "green": write_tif(tmp_path / "g.tif", values((1, 20, 60))),
        "blue": write_tif(
            tmp_path / "b.tif", values((1, 10, 15)), transform=NORTH_UP * Affine.scale(2)
        ),
    }
    scene = scene_of(tmp_path, files)
    reader, (ref,) = reader_of(scene, [whole(scene)])
    valid = np.concatenate([valid for _, _, valid in reader.scan()])
    assert valid[0].all()
    assert valid[1, :20].all()
    assert not valid[1, 20:].any()
    assert valid[2, :20, :30].all()
    assert not valid[2, 20:].any()
    assert not valid[2, :, 30:].any()
    assert reader.read(ref).valid.all()


def test_bands_without_a_header_are_refused(tmp_path):
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", values((3, 9, 9)))})
    bare = dataclasses.replace(scene.bands[0], dtype=None)
    with pytest.raises(DataError, match="header is not known"):
        reader_of(dataclasses.replace(scene, bands=(bare,), members=()), [])


# Tiles


def test_each_tile_is_loaded_once_and_freed(tmp_path, monkeypatch, loads):
    monkeypatch.setattr(cube, "TILE_PX", 32)
    data = values((3, 150, 170))
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", data)})
    refs = list(blocks(make_grid(scene.geobox, chip_px=40, stride_px=20), chips_a_side=2))
    reader = CubeReader(scene, refs, resampling="bilinear", keep_bytes=0)
    most = 0
    for ref in refs:
        assert (reader.read(ref).data == data[:, *slices(ref.window)]).all()
        most = max(most, len(reader._tiles))
    count = np.zeros((150, 170), dtype=int)
    for window in loads:
        count[slices(window)] += 1
    assert (count == 1).all()
    assert reader.bytes_read == data.nbytes
    assert reader._tiles == {}
    assert most < reader.tile_count, "what no block needs any more is freed on the way"


def test_a_scan_gives_every_pixel_once_and_is_not_read_again(tmp_path, monkeypatch, loads):
    monkeypatch.setattr(cube, "TILE_PX", 32)
    data = values((3, 90, 70))
    data[0, 10, 10] = 0
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", data, nodata=0)})
    window = whole(scene)
    reader, (ref,) = reader_of(scene, [window])
    assert reader.fits
    seen = np.zeros_like(data)
    count = np.zeros(data.shape[1:], dtype=int)
    invalid = 0
    for tile, pixels, valid in reader.scan():
        seen[:, *slices(tile)] = pixels
        count[slices(tile)] += 1
        invalid += (~valid).sum()
    assert (seen == data).all()
    assert (count == 1).all()
    assert invalid == 1
    assert len(loads) == reader.tile_count == 9
    assert (reader.read(ref).data == data).all()
    assert len(loads) == 9
    assert reader.bytes_read == data.nbytes
    assert reader._tiles == {}


def test_a_scene_too_big_to_keep_is_read_twice(tmp_path, monkeypatch, loads):
    monkeypatch.setattr(cube, "TILE_PX", 32)
    data = values((1, 64, 64))
    scene = scene_of(tmp_path, {"nir": write_tif(tmp_path / "a.tif", data)}, bands="nir")
    reader, (ref,) = reader_of(scene, [whole(scene)], keep_bytes=64 * 64 * 3 - 1)
    assert not reader.fits
    assert sum(1 for _ in reader.scan()) == 4
    assert reader._tiles == {}
    reader.read(ref)
    assert reader.bytes_read == 2 * data.nbytes


# Onto another grid


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("overviews", [(), (2, 4)])
def test_whole_factors_average_the_source(tmp_path, factor, overviews):
    data = values((1, 64, 96))
    path = write_tif(tmp_path / "a.tif", data, overviews=overviews)
    scene = scene_of(tmp_path, {"nir": path}, bands="nir", resolution=10 * factor)
    assert scene.geobox.shape == (64 // factor, 96 // factor)
    block = read(scene)
    cells = data[0].reshape(64 // factor, factor, 96 // factor, factor)
    # Overviews are averages of averages, each rounded to a whole number.
    assert np.abs(block.data[0] - cells.mean(axis=(1, 3))).max() <= 1
    assert block.valid.all()


def test_averages_leave_nodata_out(tmp_path):
    data = np.full((1, 32, 32), 100, dtype="uint16")
    data[0, 0, 0] = 0
    data[0, 8:10, 8:10] = 0
    path = write_tif(tmp_path / "a.tif", data, nodata=0)
    block = read(scene_of(tmp_path, {"nir": path}, bands="nir", resolution=20))
    assert (block.data[0][block.valid] == 100).all()
    assert np.argwhere(~block.valid).tolist() == [[4, 4]]


TARGETS = {
    "mercator": {"crs": "EPSG:3857"},
    "mercator, coarser": {"crs": "EPSG:3857", "resolution": 24},
    "next zone": {"crs": "EPSG:32613", "resolution": 16},
    "next zone, much coarser": {"crs": "EPSG:32613", "resolution": 37},
    "own CRS, odd size": {"resolution": 13},
}


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("target", TARGETS)
def test_pixels_do_not_depend_on_the_cut(tmp_path, monkeypatch, target, resampling):
    nodata = 0 if "coarser" in target else None
    path = write_tif(tmp_path / "a.tif", values((3, 200, 230)), nodata=nodata)
    scene = scene_of(tmp_path, {"image": path}, **TARGETS[target])
    height, width = scene.geobox.shape
    expected = read(scene, resampling=resampling)
    monkeypatch.setattr(cube, "TILE_PX", 40)
    different = 0
    for row, col in itertools.product((0, height - 25), (width // 3, width - 31)):
        window = Window(row_off=row, col_off=col, height=25, width=31)
        part = read(scene, window, resampling)
        assert (part.valid == expected.valid[slices(window)]).all()
        step = np.abs(part.data.astype(int) - expected.data[:, *slices(window)])
        # A value half way between two whole numbers may be rounded either way.
        assert step.max() <= 1
        different += (step > 0).sum()
    assert different <= 5


def test_outside_a_source_without_nodata_is_not_valid(tmp_path):
    data = values((3, 60, 80), "uint8")
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", data)}, crs="EPSG:32613")
    block = read(scene, resampling="nearest")
    corners = block.valid[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any(), "a turned rectangle leaves its corners empty"
    assert (block.data[:, ~block.valid] == 0).all()
    assert 0.7 < block.valid.mean() < 1
    assert (block.data[:, block.valid] > 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_every_dtype_is_warped(tmp_path, dtype, nodata):
    path = write_tif(tmp_path / "a.tif", values((1, 60, 80), dtype), nodata=nodata)
    block = read(scene_of(tmp_path, {"nir": path}, bands="nir", crs="EPSG:3857"))
    assert block.data.dtype == dtype
    inside = block.data[0][block.valid]
    assert 0 < inside.min() < inside.max() <= 250
    assert block.valid[5:-5, 5:-5].all()


def test_nodata_does_not_bleed(tmp_path):
    data = np.full((3, 60, 60), 200, dtype="uint16")
    data[1, 20:30, 20:30] = 65535
    path = write_tif(tmp_path / "a.tif", data, nodata=65535)
    for resampling in ("nearest", "bilinear", "cubic", "average"):
        scene = scene_of(tmp_path, {"image": path}, crs="EPSG:3857")
        reader, (ref,) = reader_of(scene, [whole(scene)], resampling=resampling)
        block = reader.read(ref)
        valid = block.band_valid
        assert set(np.unique(block.data[valid])) == {200}, resampling
        assert valid[[0, 2]].sum() > valid[1].sum() * 2


# Odd rasters


@pytest.mark.parametrize("flip", [(1, -1), (-1, 1), (-1, -1)])
def test_rasters_that_run_south_up_or_east_to_west_come_out_upright(tmp_path, flip):
    data = values((3, 40, 50))
    x, y = flip
    flipped = data[:, ::y, ::x]
    corner = Affine.translation(500_003 + (500 if x < 0 else 0), 5_199_993 - (400 if y < 0 else 0))
    transform = corner * Affine.scale(10 * x, -10 * y)
    scene = scene_of(
        tmp_path, {"image": write_tif(tmp_path / "a.tif", flipped, transform=transform)}
    )
    assert scene.geobox == GeoBox((40, 50), Affine(10, 0, 500_003, 0, -10, 5_199_993), "EPSG:32614")
    for resampling in ("nearest", "bilinear"):
        block = read(scene, resampling=resampling)
        assert (block.data == data).all()
        assert block.valid.all()


def test_a_rotated_raster_is_warped_north_up(tmp_path):
    transform = Affine.translation(500_000, 5_200_000) * Affine.rotation(30) * Affine.scale(10, -10)
    path = write_tif(tmp_path / "a.tif", values((3, 60, 60)), transform=transform)
    scene = scene_of(tmp_path, {"image": path})
    affine = scene.geobox.affine
    assert (affine.b, affine.d) == (0, 0)
    assert affine.a == -affine.e == pytest.approx(10)
    block = read(scene, resampling="nearest")
    assert block.valid.mean() == pytest.approx(3600 / np.prod(scene.geobox.shape), abs=0.02)
    row, col = scene.geobox.height // 2, scene.geobox.width // 2
    x, y = affine * (col + 0.5, row + 0.5)
    with rasterio.open(path) as dataset:
        assert (block.data[:, row, col] == next(dataset.sample([(x, y)]))).all()


def test_oblong_pixels_stay(tmp_path):
    data = values((3, 20, 20))
    transform = Affine(10, 0, 500_000, 0, -5, 5_200_000)
    path = write_tif(tmp_path / "a.tif", data, transform=transform)
    scene = scene_of(tmp_path, {"image": path})
    assert scene.geobox.affine == transform
    assert (read(scene).data == data).all()


# The part of the source that a window needs


def test_a_window_over_the_pole_needs_the_last_row():
    source = GeoBox((360, 720), Affine(0.5, 0, -180, 0, -0.5, 90), "EPSG:4326")
    polar = GeoBox((100, 100), Affine(20_000, 0, -950_000, 0, -20_000, 1_050_000), "EPSG:3413")
    part = source_part(source, polar)
    assert part.boundingbox.top == 90
    assert (part.boundingbox.left, part.boundingbox.right) == (-180, 180)
    far = GeoBox((10, 10), Affine(10, 0, 500_000, 0, -10, 1_000_000), "EPSG:32614")
    assert source_part(source[:20], far) is None


@pytest.mark.parametrize(
    ("scale", "shrink"),
    [(0, 1), (0.4, 1), (0.99, 1), (1.04, 1), (1.06, 1.06), (1.6, 1.6), (1.97, 2), (2.02, 2)],
)
def test_kernel_shrink(scale, shrink):
    assert kernel_shrink(scale) == shrink


# Failures


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_read_that_fails_names_its_asset_once(tmp_path, capfd, caplog, how):
    data = values((1, 200, 200), seed=1)
    files = {name: write_tif(tmp_path / f"{name}.tif", data) for name in RGB}
    scene = scene_of(tmp_path, files)
    bad = files["green"]
    if how == "gone":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[: 200 * 200])
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as caught:
        read(scene)
    assert caught.value.href == str(bad)
    assert caught.value.item == "scene-1"
    assert ("is not there" if how == "gone" else "damaged") in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not caplog.records
