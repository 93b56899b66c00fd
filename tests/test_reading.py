"""Blocks read ahead by several threads: what is fetched, in which order, within which memory."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import numpy as np
import pytest

from geosam_stac.budget import Budget
from geosam_stac.config import EncodeConfig
from geosam_stac.crew import Crew, Stopped
from geosam_stac.cube import CubeReader
from geosam_stac.grid import blocks, make_grid
from geosam_stac.radiometry import RangeEstimator, cut
from geosam_stac.reading import Reading
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.stages import Stage
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.value_range import ValueRange
from geosam_stac.windows import slices
from tests.benchmarks.scenes import nginx
from tests.rasters import asset, document, named_bands, values, write_tif

BUDGET = Budget(
    readers=4,
    writers=1,
    tile_area_px=64 * 64,
    loading_bytes=1e9,
    tiles_bytes=1e9,
    scan_bytes=1e9,
    chips_queue=1,
    features_queue=1,
)


def scene_of(href, **options):
    assets = {"image": asset(href, **named_bands("red", "green", "blue"))}
    return open_scene(parse_item(document(assets), href="file:///i.json"), EncodeConfig(**options))


def reading_of(scene, budget=BUDGET):
    cube = CubeReader(scene, resampling="nearest", tile_area_px=budget.tile_area_px)
    refs = list(blocks(make_grid(scene.geobox, chip_px=64, stride_px=32), chips_a_side=2))
    return Reading(cube, refs, budget, Stage(budget.readers)), cube, refs


def run(target, threads=4):
    crew = Crew()
    for _ in range(threads):
        crew.start(lambda: target(crew.stop))
    crew.finish()


def read_all(reading, scene, limits=None):
    taken = []
    reading.begin(limits, Thumbnail((scene.geobox.height, scene.geobox.width)))
    run(lambda stop: reading.work(taken.append, stop))
    return taken


def test_blocks_come_in_order_with_the_files_pixels(tmp_path):
    data = values((3, 200, 260), "uint8")
    data[:, 50:60, 70:80] = 0
    scene = scene_of(write_tif(tmp_path / "a.tif", data, nodata=0, blocksize=32))
    reading, cube, refs = reading_of(scene)
    taken = read_all(reading, scene)
    assert [block.ref for block in taken] == refs
    for block in taken:
        part = data[:, *slices(block.ref.window)]
        pixels, valid_fraction = cut(block, block.ref.window)
        assert (pixels == part).all()
        assert valid_fraction == (part > 0).any(axis=0).mean()
    assert cube.bytes_read == data.nbytes
    assert not reading._tiles, "freed with the last block that needs them"


@pytest.mark.parametrize("tiles_bytes", [1, 40_000, 1e9])
def test_nothing_is_read_ahead_beyond_the_budget(tmp_path, monkeypatch, tiles_bytes):
    data = values((3, 64, 3000), "uint8")
    scene = scene_of(write_tif(tmp_path / "a.tif", data, blocksize=32))
    budget = dataclasses.replace(BUDGET, tiles_bytes=tiles_bytes)
    reading, _, refs = reading_of(scene, budget)
    gate, loaded = threading.Event(), []
    real = CubeReader.read

    def read(self, window):
        loaded.append(window)
        return real(self, window)

    monkeypatch.setattr(CubeReader, "read", read)
    seen = []

    def take(block):
        if not seen:
            gate.wait(1.0)  # the others read ahead meanwhile, as far as they may
            seen.append(sum(tile.height * tile.width * 3 for tile in loaded))

    reading.begin(None, Thumbnail((64, 3000)))
    run(lambda stop: reading.work(take, stop))
    one_block = refs[0].window.height * refs[0].window.width * 3
    tile = 64 * 64 * 3
    # The next block's tiles are always allowed; beyond that two blocks, or the budget.
    assert seen[0] <= 2 * one_block + max(min(tiles_bytes, 3 * one_block), 0) + 4 * tile
    assert sum(window.width for window in loaded) == 3000, "and all is read in the end"


def test_what_the_blocks_share_does_not_stop_reading_ahead(tmp_path):
    """Of a wide scene that is more than the budget: it would be read by fewer threads."""
    data = values((3, 200, 3000), "uint8")
    scene = scene_of(write_tif(tmp_path / "a.tif", data, blocksize=32))
    tile_bytes = 64 * 64 * 4
    reading, _, _ = reading_of(scene, dataclasses.replace(BUDGET, tiles_bytes=1.5 * tile_bytes))
    reading.begin(None, Thumbnail((200, 3000)))
    for window, first in reading._first.items():
        if first <= reading._next_block + 40:
            reading._tiles[window] = None
    reading._next_block = 40
    later = [window for window, first in reading._first.items() if first > 40][:2]
    assert reading._may_load(later[0], 41)
    reading._loading.add(later[0])
    assert not reading._may_load(later[1], 41)


@pytest.mark.parametrize(("tiles", "dtype"), [(1, "uint16"), (2, "uint16"), (2, "float64")])
def test_tiles_that_are_loaded_at_once_stay_within_the_budget(tmp_path, monkeypatch, tiles, dtype):
    """Blocks of 4096 px and wide types took more than all of --max-memory."""
    data = values((3, 200, 260), dtype)
    scene = scene_of(write_tif(tmp_path / "a.tif", data, blocksize=32))
    budget = dataclasses.replace(BUDGET, loading_bytes=tiles * 64 * 64 * 18)
    reading, _, refs = reading_of(scene, budget)
    real, at_once, most = CubeReader.read, [], []
    lock, others = threading.Lock(), threading.Event()

    def read(self, window):
        with lock:
            at_once.append(window)
            most.append(sum(each.height * each.width for each in at_once))
        others.wait(0.02)  # for those that should not come
        try:
            return real(self, window)
        finally:
            with lock:
                at_once.remove(window)

    monkeypatch.setattr(CubeReader, "read", read)
    estimator = RangeEstimator(ValueRange.parse("auto"), shape=(200, 260), bands=3)
    reading.begin_scan()
    run(lambda stop: reading.scan(estimator, stop, lambda: None))
    reading._sources.clear()  # read again
    assert [block.ref for block in read_all(reading, scene, (0.0, 255.0))] == refs
    allowed = 1 if dtype == "float64" else tiles
    assert max(most) <= allowed * 64 * 64


@pytest.mark.parametrize("fits", [True, False])
def test_a_scan_sees_each_pixel_once_and_keeps_what_fits(tmp_path, fits):
    data = values((3, 200, 260))
    data[0, :10] = 0
    data[1, 100, 100], data[2, 20, 30] = 900, 65535
    scene = scene_of(write_tif(tmp_path / "a.tif", data, nodata=0, blocksize=32))
    budget = dataclasses.replace(BUDGET, scan_bytes=1e9 if fits else 1000)
    reading, cube, _ = reading_of(scene, budget)
    assert reading.fits is fits
    estimator = RangeEstimator(ValueRange.parse("auto"), shape=(200, 260), bands=3)
    done = []
    total = reading.begin_scan()
    run(lambda stop: reading.scan(estimator, stop, lambda: done.append(1)))
    assert len(done) == total
    assert estimator.result() == (float(data[data > 0].min()), 65535.0)
    taken = read_all(reading, scene, limits=(0.0, 255.0))
    assert cube.bytes_read == data.nbytes * (1 if fits else 2)
    for block in taken:
        part = data[:, *slices(block.ref.window)]
        pixels, _ = cut(block, block.ref.window)
        assert (pixels == np.minimum(part, 255)).all()


def test_a_kept_source_is_not_taken_while_they_are_counted(tmp_path):
    """It ended runs of the default value range: "dictionary changed size during iteration"."""
    scene = scene_of(write_tif(tmp_path / "a.tif", values((3, 64, 1000)), blocksize=32))
    reading, _, _ = reading_of(scene)
    estimator = RangeEstimator(ValueRange.parse("auto"), shape=(64, 1000), bands=3)
    reading.begin_scan()
    reading.scan(estimator, threading.Event(), lambda: None)
    reading.begin((0.0, 255.0), Thumbnail((64, 1000)))
    last, *_, first = reading._todo
    other = threading.Thread(target=lambda: reading._load(first[0]))

    class Slow:
        """Pixels whose size another thread does not wait for."""

        @property
        def nbytes(self):
            other.start()
            other.join(0.2)
            return 1

    kept = reading._sources[first[0]]
    reading._sources = {None: (Slow(), None), **reading._sources}
    reading._loading.add(first[0])
    with reading._changed:
        assert reading._may_load(last[0], 1)
    other.join()
    assert first[0] not in reading._sources
    assert (reading._tiles[first[0]].pixels == np.minimum(kept[0], 255)).all()


def test_threads_leave_when_they_are_to_stop(tmp_path):
    scene = scene_of(write_tif(tmp_path / "a.tif", values((3, 200, 260), "uint8")))
    reading, _, _ = reading_of(scene)
    reading.begin(None, Thumbnail((200, 260)))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        reading.work(lambda block: None, stop)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("target", [{}, {"crs": "EPSG:3857"}])
def test_over_http_no_byte_is_fetched_twice(tmp_path, interleave, target):
    data = values((3, 700, 900), "uint8")
    served = tmp_path / "served"
    served.mkdir()
    write_tif(served / "a.tif", data, interleave=interleave, blocksize=64, compress="deflate")
    with nginx(served, tmp_path / "nginx") as server:
        scene = scene_of(f"{server.url}/a.tif", **target)
        reading, _, _ = reading_of(scene, dataclasses.replace(BUDGET, tile_area_px=256 * 256))
        server.ranges()
        read_all(reading, scene)
        ranges = server.ranges()
    fetched = np.zeros((served / "a.tif").stat().st_size + 100_000, dtype=int)
    for _, first, last in ranges:
        fetched[first : last + 1] += 1
    size = (served / "a.tif").stat().st_size
    # The header is asked for by whoever opens the file; a read ends on 16 KiB in places.
    assert (fetched[65_536:size] > 1).mean() < 0.05
    assert (fetched[65_536:size] >= 1).mean() > 0.9
