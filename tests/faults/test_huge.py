"""Headers that claim more than a machine holds: refused before a pixel is read, in little RAM."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from geosam_stac.claims import MAX_BLOCK_BYTES, MAX_BLOCKS, MAX_SIDE_PX
from geosam_stac.errors import DataError
from geosam_stac.sources.headers import read_header
from tests import rasters
from tests.rasters import NORTH_UP, UTM14

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, SAMPLES, TILE_WIDTH, TILE_HEIGHT = 256, 257, 277, 322, 323
GB = 1_000_000_000

# Of the process: an encode with the fake model of what the header claims, then its peak memory.
ENCODE = """
import re, sys
from pathlib import Path
import pytest
from geosam_stac.cli import app
from geosam_stac.cli.guard import run
from tests import fakes
# A child's ru_maxrss begins with its parent's: the peak is taken from here on (proc(5)).
Path("/proc/self/clear_refs").write_text("5")
with pytest.MonkeyPatch.context() as patch:
    fakes.install(patch)
    code = run(app(), sys.argv[1:])
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print("PEAK", int(peak) * 1024)
sys.exit(code)
"""


def sparse(path: Path, size: int = 512, **profile: object) -> Path:
    """A GeoTIFF without a byte of pixels: no tile is stored."""
    fixed = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": UTM14, "SPARSE_OK": True}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    given = fixed | tiles | {"width": size, "height": size, "transform": NORTH_UP} | profile
    with rasterio.open(path, "w", **given):
        pass
    return path


def edit(path: Path, tags: dict[int, int]) -> Path:
    """Overwrite numbers in the first directory of a TIFF (classic or BigTIFF, little-endian)."""
    data = bytearray(path.read_bytes())
    assert data[:2] == b"II"
    is_big = struct.unpack_from("<H", data, 2)[0] == 43
    count_format, entry, value_at = ("<Q", 20, 12) if is_big else ("<H", 12, 8)
    (at,) = struct.unpack_from("<Q" if is_big else "<I", data, 8 if is_big else 4)
    (count,) = struct.unpack_from(count_format, data, at)
    at += struct.calcsize(count_format)
    left = dict(tags)
    for place in range(at, at + count * entry, entry):
        (tag,) = struct.unpack_from("<H", data, place)
        if tag in left:
            struct.pack_into("<HQ" if is_big else "<HI", data, place + 2, 4, 1)  # one LONG
            struct.pack_into("<I", data, place + value_at, left.pop(tag))
    assert not left
    path.write_bytes(data)
    return path


def wider_than_the_earth(path: Path) -> None:
    sparse(path, width=MAX_SIDE_PX + 512, height=1, tiled=False, blockxsize=None, blockysize=1)


def two_billion_px_a_side(path: Path) -> None:
    edit(sparse(path, BIGTIFF="YES"), {WIDTH: 2**31 - 1, HEIGHT: 2**31 - 1})


def a_tile_of_2_to_the_30_px(path: Path) -> None:
    edit(sparse(path, compress="deflate"), {TILE_WIDTH: 2**15, TILE_HEIGHT: 2**15})


def one_band_of_16_gb(path: Path) -> None:
    edit(
        sparse(path, 131_072, compress="deflate", BIGTIFF="YES"),
        {TILE_WIDTH: 131_072, TILE_HEIGHT: 131_072},
    )


def bands_of_16_gb_in_one_tile(path: Path) -> None:
    edit(sparse(path, count=1, BIGTIFF="YES"), {SAMPLES: 65_535})


def an_overview_of_one_tile_of_2_to_the_30_px(path: Path) -> None:
    """The file itself is fine; what a coarser --resolution reads is not."""
    rasters.write_tif(path, rasters.values((1, 256, 256), "uint8"), overviews=[4])
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    assert second
    struct.pack_into("<I", data, 4, second)  # for a moment, the overview comes first
    path.write_bytes(data)
    edit(path, {TILE_WIDTH: 2**15, TILE_HEIGHT: 2**15})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, first)
    path.write_bytes(data)


CASES = {
    "wider than the Earth": (wider_than_the_earth, "a size that no raster has"),
    "two billion px a side": (two_billion_px_a_side, "zero number of tiles"),
    "a tile of 2^30 px": (a_tile_of_2_to_the_30_px, "1,073,741,824 bytes"),
    "one band of 16 GB": (one_band_of_16_gb, "17,179,869,184 bytes"),
    "bands of 16 GB in one tile": (bands_of_16_gb_in_one_tile, "of 65,535 bands: 17,179,607,040"),
    "an overview's tile": (an_overview_of_one_tile_of_2_to_the_30_px, "1,073,741,824 bytes"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_from_the_header_in_little_memory(tmp_path, name):
    make, words = CASES[name]
    tif, out = tmp_path / "huge.tif", tmp_path / "out"
    make(tif)
    item = rasters.write_item(tmp_path / "item.json", {"image": rasters.asset(tif)})
    command = [
        *("encode", "--item", item, "--out", out, "--model", "sam2.1-hiera-tiny"),
        *("--checkpoint", "untrained", "--device", "cpu", "--stride", "32"),
        *(("--resolution", "40") if "overview" in name else ("--max-chips", "1000000000")),
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENCODE, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 65, done.stderr
    assert words in done.stderr
    assert str(tif) in done.stderr
    assert "scene-1" in done.stderr
    assert "Traceback" not in done.stderr
    (peak,) = [int(line.split()[1]) for line in done.stdout.splitlines() if "PEAK" in line]
    assert peak < GB
    assert not list(out.rglob("*.json"))


def test_too_many_tiles(tmp_path):
    """GDAL opens it: it reads the index, 16 bytes a tile, only when a pixel is wanted."""
    tif = sparse(tmp_path / "a.tif", 128, blockxsize=16, blockysize=16, BIGTIFF="YES")
    edit(tif, {WIDTH: 131_072, HEIGHT: 131_072})
    with pytest.raises(DataError) as caught:
        read_header(str(tif), item="scene-1")
    assert caught.value.message == "the raster has too many tiles"
    assert caught.value.got == "67,108,864 of 16 x 16 px"
    assert caught.value.expected == f"at most {MAX_BLOCKS:,}"
    assert (caught.value.item, caught.value.href) == ("scene-1", str(tif))


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param({"count": 4, "dtype": "uint16", "interleave": "pixel"}, id="a large COG"),
        pytest.param({"count": 4, "dtype": "uint16", "interleave": "band"}, id="band by band"),
        pytest.param({"tiled": False, "blockxsize": None, "blockysize": 1}, id="strips of a row"),
    ],
)
def test_what_is_large_and_common_is_read(tmp_path, profile):
    tif = sparse(tmp_path / "a.tif", 200_000, BIGTIFF="YES", **profile)
    header = read_header(str(tif))
    assert header.geobox.shape == (200_000, 200_000)
    assert header.dtypes == (profile.get("dtype", "uint8"),) * profile.get("count", 1)


def test_one_strip_as_high_as_the_file_is_read_row_by_row(tmp_path):
    """Old files are written so. GDAL says blocks of a row, and the limit holds for these."""
    size = 25_000
    assert size**2 > MAX_BLOCK_BYTES
    shape = {"tiled": False, "blockxsize": None, "blockysize": size, "compress": "lzw"}
    tif = sparse(tmp_path / "a.tif", size, **shape)
    with rasterio.open(tif) as dataset:
        assert dataset.block_shapes == [(1, size)]
    assert read_header(str(tif)).geobox.shape == (size, size)
