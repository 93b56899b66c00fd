from __future__ import annotations

import dataclasses
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from geosam_stac.config import EncodeConfig
from geosam_stac.cube import CubeReader
from geosam_stac.errors import DataError
from geosam_stac.kept_files import KeptDriver
from geosam_stac.radiometry import widen
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.sources.groups import Group
from geosam_stac.types import Scene, Window
from geosam_stac.warp import kernel_shrink, source_part
from geosam_stac.windows import slices
from tests.rasters import NORTH_UP, UTM14, asset, document, named_bands, values, write_tif

RGB = ("red", "green", "blue")


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


def read(scene, window=None, resampling="bilinear", **options):
    """Pixels of a window as RGB: `data` and `band_valid` (3, H, W), `valid` (H, W)."""
    data, valid = CubeReader(scene, resampling=resampling, **options).read(window or whole(scene))
    return SimpleNamespace(data=widen(data), band_valid=widen(valid), valid=np.any(valid, axis=0))


@pytest.fixture
def decoded(monkeypatch):
    """What was read of files: (base name, (row, column, height, width)), whole bands at once."""
    seen = []
    original = KeptDriver._read

    def noted(self, uri, cfg):
        w = self._window
        seen.append((Path(uri).stem, (w.row_off, w.col_off, w.height, w.width)))
        return original(self, uri, cfg)

    monkeypatch.setattr(KeptDriver, "_read", noted)
    return seen


# On the source's own grid


@pytest.mark.parametrize("area_px", [1 << 20, 64 * 64])
@pytest.mark.parametrize(
    "window", [(0, 0, 90, 130), (5, 7, 40, 33), (31, 64, 59, 66), (89, 129, 1, 1)]
)
def test_native_pixels_are_the_files_own(tmp_path, window, area_px):
    path = write_tif(tmp_path / "a.tif", values((3, 90, 130)), nodata=0)
    scene = scene_of(tmp_path, {"image": path})
    row, col, height, width = window
    part = Window(row_off=row, col_off=col, height=height, width=width)
    block = read(scene, part, tile_area_px=area_px)
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
    block = read(scene)
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
    valid = read(scene).band_valid
    assert valid[0].all()
    assert valid[1, :20].all()
    assert not valid[1, 20:].any()
    assert valid[2, :20, :30].all()
    assert not valid[2, 20:].any()
    assert not valid[2, :, 30:].any()
    assert read(scene).valid.all()


def test_bands_without_a_header_are_refused(tmp_path):
    scene = scene_of(tmp_path, {"image": write_tif(tmp_path / "a.tif", values((3, 9, 9)))})
    bare = dataclasses.replace(scene.bands[0], dtype=None)
    with pytest.raises(DataError, match="header is not known"):
        read(dataclasses.replace(scene, bands=(bare,), members=()))


# Tiles


def windows_of(size, count, px):
    return [
        Window(row_off=row, col_off=col, height=px, width=px)
        for row in np.linspace(0, size[0] - px, count).round().astype(int).tolist()
        for col in np.linspace(0, size[1] - px, count).round().astype(int).tolist()
    ]


def threaded(reader, windows, threads=4):
    """Read windows by several threads; the results in the windows' order."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(reader.read, windows))


def covered(reads, name, shape):
    """How often each pixel of a file was read."""
    count = np.zeros(shape, dtype=int)
    for stem, (row, col, height, width) in reads:
        if stem == name:
            count[row : row + height, col : col + width] += 1
    return count


@pytest.mark.parametrize("bbox", [None, "500330,5198700,501500,5199700"])
def test_tiles_are_the_files_own_blocks(tmp_path, decoded, bbox):
    data = values((3, 150, 170))
    path = write_tif(tmp_path / "a.tif", data, blocksize=32)
    options = {} if bbox is None else {"bbox": bbox, "bbox_crs": UTM14}
    scene = scene_of(tmp_path, {"image": path}, **options)
    reader = CubeReader(scene, resampling="bilinear", tile_area_px=64 * 64)
    tiles = reader.tiling().all()
    reader.plan(tiles)
    threaded(reader, tiles)
    assert len(decoded) == len(tiles) > 4
    count = covered(decoded, "a", (150, 170))
    if bbox is None:
        assert (count == 1).all()
        assert reader.bytes_read == data.nbytes
    else:
        row, col = 30, 33  # of 5_199_700 and 500_330
        for _, (top, left, _, _) in decoded:
            assert top % 32 == 0
            assert left % 32 == 0
        assert count.max() == 1
        assert (count[row : row + 100, col : col + 117] == 1).all()
    assert reader.bytes_kept == 0


def test_strips_are_decoded_once(tmp_path, decoded):
    data = values((1, 200, 300))
    path = tmp_path / "strips.tif"
    profile = {"height": 200, "width": 300, "count": 1, "dtype": "uint16", "crs": UTM14}
    with rasterio.open(path, "w", transform=NORTH_UP, blockysize=8, **profile) as dataset:
        dataset.write(data)
    reader = CubeReader(
        scene_of(tmp_path, {"nir": path}, bands="nir"), resampling="nearest", tile_area_px=64 * 64
    )
    tiles = reader.tiling().all()
    for tile in tiles:
        assert (reader.read(tile)[0] == data[:, *slices(tile)]).all()
    assert {(tile.height, tile.width) for tile in tiles} == {(8, 300)}
    assert (covered(decoded, "strips", (200, 300)) == 1).all()


@pytest.mark.parametrize("target", [{"crs": "EPSG:3857"}, {"crs": "EPSG:32613", "resolution": 16}])
def test_a_warp_reads_each_source_tile_once(tmp_path, decoded, target):
    path = write_tif(tmp_path / "a.tif", values((3, 200, 230)), blocksize=32, nodata=0)
    scene = scene_of(tmp_path, {"image": path}, **target)
    expected = read(scene)
    decoded.clear()
    reader = CubeReader(scene, resampling="bilinear", tile_area_px=32 * 32)
    windows = windows_of(scene.geobox.shape, 6, 40)  # they overlap
    reader.plan(windows)
    for window, (data, valid) in zip(windows, threaded(reader, windows), strict=True):
        assert (valid[0] == expected.valid[slices(window)]).all()
        assert np.abs(data.astype(int) - expected.data[:, *slices(window)]).max() <= 1
    assert covered(decoded, "a", (200, 230)).max() == 1
    assert len(decoded) > 20
    assert reader.bytes_read <= 200 * 230 * 6
    assert reader.bytes_kept == 0, "freed with the last window that needs it"


def test_the_bands_of_one_file_are_read_at_once(tmp_path, decoded):
    data = values((3, 90, 130), "uint8")
    path = write_tif(tmp_path / "a.tif", data, interleave="pixel", blocksize=32)
    scene = scene_of(tmp_path, {"image": path}, bands="blue,red,blue")
    block = read(scene)
    assert (block.data == data[[2, 0, 2]]).all()
    assert [name for name, _ in decoded] == ["a"]


def test_files_stay_open(tmp_path, monkeypatch):
    files = {name: write_tif(tmp_path / f"{name}.tif", values((1, 90, 130))) for name in RGB}
    scene = scene_of(tmp_path, files)
    opened = []
    real = rasterio.open
    monkeypatch.setattr(
        rasterio, "open", lambda path, *args, **kw: opened.append(path) or real(path, *args, **kw)
    )
    reader = CubeReader(scene, resampling="nearest", tile_area_px=64)
    for tile in reader.tiling().all():
        reader.read(tile)
    reader.close()
    assert sorted(opened) == sorted(map(str, files.values()))


def test_windows_that_nobody_reads_are_freed_too(tmp_path, decoded):
    """Of a mosaic: what a member that lies on top hides is not read, and nothing waits for it."""
    hidden = write_tif(tmp_path / "hidden.tif", values((1, 96, 96), seed=1), blocksize=32)
    top = write_tif(tmp_path / "top.tif", values((1, 96, 64)), nodata=0, blocksize=32)
    items = [
        parse_item(
            document({"nir": asset(path, **named_bands("nir"))}, item_id=path.stem), href="x"
        )
        for path in (top, hidden)
    ]
    scene = open_scene(Group(id="both", items=tuple(items)), EncodeConfig(bands="nir"))
    assert scene.geobox.shape == (96, 96)
    reader = CubeReader(scene, resampling="nearest", tile_area_px=32 * 32)
    tiles = reader.tiling().all()
    reader.plan(tiles)
    for tile in tiles:
        assert reader.read(tile)[1].all()
    assert (covered(decoded, "top", (96, 64)) == 1).all()
    hidden_reads = covered(decoded, "hidden", (96, 96))
    assert (hidden_reads[:, 64:] == 1).all()
    assert (hidden_reads[:, :64] == 0).all()
    assert reader.bytes_kept == 0


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
def test_pixels_do_not_depend_on_the_cut(tmp_path, target, resampling):
    nodata = 0 if "coarser" in target else None
    path = write_tif(tmp_path / "a.tif", values((3, 200, 230)), nodata=nodata)
    scene = scene_of(tmp_path, {"image": path}, **TARGETS[target])
    height, width = scene.geobox.shape
    expected = read(scene, resampling=resampling)
    different = 0
    for row, col in itertools.product((0, height - 25), (width // 3, width - 31)):
        window = Window(row_off=row, col_off=col, height=25, width=31)
        part = read(scene, window, resampling, tile_area_px=32 * 32)
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
        block = read(scene, resampling=resampling)
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
