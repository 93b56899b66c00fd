"""Turns at a file; and that threads which open and read one remote file never stop each other."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from geosam_stac.turns import Turns
from tests import rasters
from tests.faults.server import fault_server

THREADS = 8
# What a run's readers do, without the rest of it: every thread opens the file and reads a window,
# under GDAL's settings of a run, and finds nothing remembered.
READ = """
import sys, threading
import rasterio
from rasterio.windows import Window
from geosam_stac.kept_files import KeptFiles
from geosam_stac.raster_errors import heard_statuses
from geosam_stac.types import gdal_settings

url, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sums = set()

def read(number, files, start):
    start.wait()
    with heard_statuses() as statuses, rasterio.Env(**gdal_settings(30, fresh=True)):
        for turn in range(3):
            with files.open(url, fresh=True) as dataset:
                sums.add(int(dataset.read(1, window=Window(0, 0, 512, 512)).sum()))
    assert 206 in statuses, statuses

for _ in range(rounds):
    files, start = KeptFiles(), threading.Barrier(threads)
    crew = [threading.Thread(target=read, args=(n, files, start)) for n in range(threads)]
    [thread.start() for thread in crew]
    [thread.join() for thread in crew]
    files.close()
print(len(sums), sums.pop())
"""


def masked_tif(path: Path) -> int:
    """A GeoTIFF whose overviews and mask have their headers behind the pixels; its first sum."""
    data = np.random.default_rng(1).integers(1, 255, (1, 1024, 1024), dtype="uint8")
    profile = {
        "crs": "EPSG:32614",
        "transform": rasters.NORTH_UP,
        "driver": "GTiff",
        "width": 1024,
        "height": 1024,
        "count": 1,
        "dtype": "uint8",
    }
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", tiled=True, blockxsize=256, blockysize=256, **profile) as dataset,
    ):
        dataset.write(data)
        dataset.write_mask(data[0] > 3)
        dataset.build_overviews([2, 4], Resampling.nearest)
    return int(data[0, :512, :512].sum())


def test_threads_that_open_and_read_do_not_stop_each_other(tmp_path: Path) -> None:
    first = masked_tif(tmp_path / "scene.tif")
    with fault_server(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, "-c", READ, f"{server.url}/scene.tif", str(THREADS), "5"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.split() == ["1", str(first)]


def test_who_opens_is_alone_and_goes_first() -> None:
    turns, seen = Turns(), []
    reading, asked = threading.Event(), threading.Event()

    def reads(name: str, until: threading.Event) -> None:
        with turns.reading("f"):
            seen.append(f"{name} reads")
            reading.set()
            assert until.wait(30)
            seen.append(f"{name} has read")

    def opens() -> None:
        with turns.opening("f"):
            seen.append("opens")

    first = threading.Thread(target=reads, args=("first", asked))
    first.start()
    assert reading.wait(30)
    opener = threading.Thread(target=opens)
    opener.start()
    while not turns._turns["f"].waiting:
        pass
    # A reader that comes after the one that wants to open waits, though the file is being read.
    second = threading.Thread(target=reads, args=("second", asked))
    second.start()
    while turns._turns["f"].asked < 3:
        pass
    asked.set()
    for thread in (first, opener, second):
        thread.join(30)
    assert seen == ["first reads", "first has read", "opens", "second reads", "second has read"]
    assert not turns._turns


def test_who_is_interrupted_while_waiting_to_open_holds_up_nobody(monkeypatch) -> None:
    turns, opened = Turns(), threading.Event()

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def reads() -> None:
        with turns.reading("f"):
            opened.set()

    with turns.reading("f"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(turns._changed, "wait_for", interrupted)
            with turns.opening("f"):
                pass
        # The name is still asked for, so what the other left would count.
        second = threading.Thread(target=reads, daemon=True)
        second.start()
        assert opened.wait(30)
    second.join(30)
    with turns.opening("f"):
        pass
    assert not turns._turns


def test_readers_are_together_and_files_apart() -> None:
    turns = Turns()
    with turns.reading("f?X-Amz-Signature=a"), turns.opening("g"):
        together = threading.Thread(target=lambda: turns.reading("f").__enter__())
        together.start()
        together.join(30)
        assert not together.is_alive()
