"""Bytes of compressed tiles that have flipped: a checksum catches each; without one none crashes.

GDAL finds out most of them by itself. The rest are wrong pixels without an error, which is the
documented limit of what can be done without `file:checksum`: here it is counted.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.kept_files import KeptDriver
from geosam_stac.pipeline import encode_scene
from tests import rasters
from tests.fakes import fake_session

CASES = 100
SIZE, TILE = 128, 64


def write_clean(folder: Path) -> list[bytes]:
    """The same scene as deflate, with and without a predictor."""
    rng = np.random.default_rng(0)
    # Fields and noise: a picture that compresses to a third, as imagery does.
    fields = np.kron(rng.integers(20, 200, (3, 16, 16)), np.ones((1, 8, 8)))
    data = (fields + rng.integers(0, 8, (3, SIZE, SIZE))).astype("uint8")
    found = []
    for predictor in (1, 2):
        options = {"compress": "deflate", "predictor": predictor, "interleave": "pixel"}
        path = rasters.write_tif(folder / "clean.tif", data, blocksize=TILE, **options)
        found.append(path.read_bytes())
    return found


def places(path: Path) -> list[tuple[int, int]]:
    """Offset and length of the file's tiles, in bytes."""
    found = []
    with rasterio.open(path) as dataset:
        for row in range(SIZE // TILE):
            for col in range(SIZE // TILE):
                offset, size = (
                    int(dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
                    for what in ("OFFSET", "SIZE")
                )
                found.append((offset, size))
    return found


class Damaged:
    """Copies of a clean file, each with another byte of a tile flipped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clean = write_clean(folder)
        self.tif = folder / "scene.tif"

    def item(self, seed: int) -> Path:
        """Write the case of a seed, and its Item, which tells the clean file's checksum."""
        clean = self.clean[seed % 2]
        self.tif.write_bytes(clean)
        rng = random.Random(seed)
        offset, size = rng.choice(places(self.tif))
        data = bytearray(clean)
        at = offset + rng.randrange(size)
        data[at] ^= rng.randrange(1, 256)
        assert data != clean
        self.tif.write_bytes(data)
        told = {
            "file:checksum": "1220" + hashlib.sha256(clean).hexdigest(),
            "file:size": len(clean),
        }
        return rasters.write_item(
            self.folder / "scene.json",
            {
                "image": rasters.asset(
                    self.tif, **rasters.named_bands("red", "green", "blue"), **told
                )
            },
            item_id=f"scene-{seed}",
        )


def pixels(data: bytes) -> np.ndarray:
    """What GDAL reads of a file."""
    with rasterio.MemoryFile(data) as memory, memory.open() as dataset:
        found: np.ndarray = dataset.read()
        return found


@pytest.fixture
def damaged(tmp_path) -> Damaged:
    return Damaged(tmp_path)


def test_with_a_checksum_every_flipped_byte_is_caught_before_a_pixel_is_used(
    tmp_path, damaged, fake_model, monkeypatch
):
    read: list[str] = []
    original = KeptDriver._read
    monkeypatch.setattr(
        KeptDriver, "_read", lambda self, uri, cfg: read.append(uri) or original(self, uri, cfg)
    )
    with fake_session(tmp_path, verify_source=True) as session:
        for seed in range(CASES):
            path = damaged.item(seed)
            with pytest.raises(DataError, match="its sha256 is another") as caught:
                encode_scene(session, session.scene(str(path)), session.config)
            assert caught.value.exit_code == 65
            assert (caught.value.item, caught.value.href) == (f"scene-{seed}", str(damaged.tif))
            assert "asset image" in str(caught.value)
        assert read == []
        assert [encoder.batches for encoder in fake_model.loaded] in ([], [[]])
        assert not list((tmp_path / "out").rglob("chip_*"))
        # The rule does not refuse all: the clean file passes.
        path = damaged.item(0)
        damaged.tif.write_bytes(damaged.clean[0])
        assert encode_scene(session, session.scene(str(path)), session.config).chips_encoded == 9


def test_without_a_checksum_no_flipped_byte_crashes(tmp_path, damaged, fake_model, record_property):
    clean = [pixels(data) for data in damaged.clean]
    counts = {"refused": 0, "wrong pixels without an error": 0, "harmless": 0}
    with fake_session(tmp_path) as session:
        for seed in range(CASES):
            path = damaged.item(seed)
            items = set((tmp_path / "out").glob("*.json"))
            try:
                result = encode_scene(session, session.scene(str(path)), session.config)
            except GeosamStacError as error:
                assert error.exit_code in (65, 75), seed
                assert (error.item, error.href) == (f"scene-{seed}", str(damaged.tif)), seed
                assert set((tmp_path / "out").glob("*.json")) == items, seed
                counts["refused"] += 1
                continue
            assert result.chips_encoded == 9, seed
            same = np.array_equal(pixels(damaged.tif.read_bytes()), clean[seed % 2])
            counts["harmless" if same else "wrong pixels without an error"] += 1
    print(counts)
    record_property("counts", counts)
    assert sum(counts.values()) == CASES
    # Most are found out, by GDAL alone; were all, the checksum would be for nothing.
    assert counts["refused"] > CASES / 2
