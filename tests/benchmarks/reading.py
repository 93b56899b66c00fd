"""Benchmark 4: bytes fetched and pixels a second over HTTP, against one plain rasterio read.

    python -m tests.benchmarks.reading [--size 10980] [--repeat 3]

Starts nginx on the loopback. Bytes are those of nginx's access log, against the bytes of the file
blocks that the extent touches. Rates are of decoded source pixels, runs taken in turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from geosam_stac.budget import Budget, share_out
from geosam_stac.config import EncodeConfig
from geosam_stac.crew import Crew
from geosam_stac.cube import CubeReader
from geosam_stac.grid import blocks, make_grid
from geosam_stac.radiometry import make_chip
from geosam_stac.reading import Reading
from geosam_stac.sources import open_scene
from geosam_stac.stages import Stage
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import GDAL_SETTINGS, Block
from tests.benchmarks.scenes import (
    CopyingEncoder,
    Nginx,
    copying_entry,
    item_of,
    machine,
    nginx,
    one_file,
    one_file_a_band,
    table,
    write_cog,
)

_RUNS = itertools.count()


def read_all(item: Any, config: EncodeConfig) -> tuple[float, int]:
    """Read a scene as `encode` does, up to the chips; seconds and decoded bytes."""
    started = time.perf_counter()
    scene = open_scene(item, config)
    grid = make_grid(scene.geobox, chip_px=1024, stride_px=512)
    spec = CopyingEncoder(
        copying_entry(), None, device="cpu", precision="fp32", feature_dtype="float16"
    ).spec
    budget: Budget = share_out(config, spec, batch_size=8)
    cube = CubeReader(scene, resampling=config.resampling, tile_area_px=budget.tile_area_px)
    reading = Reading(cube, list(blocks(grid)), budget, Stage(budget.readers))
    limits = None if cube.dtype == "uint8" else (0.0, 3000.0)
    reading.begin(limits, Thumbnail((scene.geobox.height, scene.geobox.width)))

    def cut_chips(block: Block) -> None:
        for ref in block.ref.chips:
            make_chip(block, ref, input_px=spec.input_px)

    crew = Crew()
    for _ in range(budget.readers):
        crew.start(lambda: reading.work(cut_chips, crew.stop))
    crew.finish()
    cube.close()
    return time.perf_counter() - started, cube.bytes_read


def plain(urls: list[str]) -> tuple[float, int]:
    """One `rasterio` read of each file, whole."""
    started = time.perf_counter()
    size = 0
    for url in urls:
        with rasterio.Env(**GDAL_SETTINGS), rasterio.open(url) as dataset:
            size += dataset.read().nbytes
    return time.perf_counter() - started, size


def touched(path: Path, geobox: GeoBox) -> int:
    """Bytes of a file's blocks that an extent touches, as the file's own table has them."""
    with rasterio.open(path) as dataset:
        rows = np.linspace(0, geobox.height, 65)
        cols = np.linspace(0, geobox.width, 65)
        x, y = geobox.affine @ tuple(np.meshgrid(cols, rows))
        assert geobox.crs is not None
        source = f"EPSG:{dataset.crs.to_epsg()}"
        if str(geobox.crs) != source:
            x, y = geobox.crs.transformer_to_crs(source)(x, y)
        col, row = ~dataset.transform @ (np.asarray(x), np.asarray(y))
        height, width = dataset.block_shapes[0]
        inside = (row >= 0) & (row <= dataset.height) & (col >= 0) & (col <= dataset.width)
        top, bottom = row[inside].min() // height, (row[inside].max() - 1e-6) // height
        left, right = col[inside].min() // width, (col[inside].max() - 1e-6) // width
        total = 0
        for block_row in range(int(top), int(bottom) + 1):
            for block_col in range(int(left), int(right) + 1):
                name = f"BLOCK_SIZE_{block_col}_{block_row}"
                total += int(dataset.get_tag_item(name, "TIFF", bidx=1) or 0)
        return total


def fresh() -> str:
    """A query that no run had: GDAL remembers what it has fetched by its URL."""
    return f"?run={next(_RUNS)}"


def bytes_row(server: Nginx, label: str, assets: Any, files: list[Path], config: Any) -> list[Any]:
    """Fetch a scene once; what was sent for it against what it touches."""
    item = item_of(assets(server.url, fresh()))
    geobox = open_scene(item, config).geobox
    server.sent()
    seconds, decoded = read_all(item, config)
    requests, sent = server.sent()
    needed = sum(touched(path, geobox) for path in files)
    return [
        label,
        f"{geobox.width} x {geobox.height}",
        requests,
        f"{needed / 1e6:,.1f}",
        f"{sent / 1e6:,.1f}",
        f"{sent / needed:.3f}",
        f"{seconds:.1f}",
        f"{decoded / 1e6:,.0f}",
    ]


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", type=int, default=10980)
    arguments.add_argument("--blocksize", type=int, default=1024)
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--keep", type=Path, help="where the scene is kept between runs")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        root = folder / f"scene-{options.size}-{options.blocksize}"
        root.mkdir(parents=True, exist_ok=True)
        for name, bands, dtype in (
            *((name, 1, "uint16") for name in ("red", "green", "blue")),
            ("image", 3, "uint8"),
        ):
            path = root / f"{name}.tif"
            if not path.exists():
                write_cog(path, options.size, bands=bands, dtype=dtype, blocksize=options.blocksize)
        with nginx(root, Path(temporary) / "nginx") as server:
            run(server, root, options.size, options.repeat)


def run(server: Nginx, root: Path, size_px: int, repeat: int) -> None:
    """Measure and print."""
    print(f"{machine()}; rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")
    band_files = [root / f"{name}.tif" for name in ("red", "green", "blue")]
    image_files = [root / "image.tif"]
    middle = 499_980 + size_px * 10 * 0.31, 5_500_020 - size_px * 10 * 0.63
    side = size_px * 10 * 0.3
    bbox = (middle[0], middle[1], middle[0] + side, middle[1] + side)
    small = {"bbox": bbox, "bbox_crs": "EPSG:32633"}
    mercator = {"crs": "EPSG:3857", "resolution": 15}
    rows = []
    for label, assets, files in (
        ("a file a band, uint16", one_file_a_band, band_files),
        ("3 bands interleaved, uint8", one_file, image_files),
    ):
        for extent, fields in (
            ("whole", {}),
            ("bbox", small),
            ("EPSG:3857, 15 m", mercator),
            ("bbox, EPSG:3857, 15 m", small | mercator),
        ):
            if "crs" in fields and "bbox" not in fields and files is image_files:
                continue  # the warp takes minutes, and is the same
            config = EncodeConfig.of(fields)
            rows.append(bytes_row(server, f"{label}: {extent}", assets, files, config))
    table(
        ["scene", "px", "requests", "touched, MB", "fetched, MB", "ratio", "s", "decoded, MB"], rows
    )
    print()
    rates = []
    for label, assets, files in (
        ("a file a band, uint16", one_file_a_band, band_files),
        ("3 bands interleaved, uint8", one_file, image_files),
    ):
        ours, theirs = [], []
        for _ in range(repeat):
            for taken, (seconds, size) in (
                (theirs, plain([f"{server.url}/{path.name}{fresh()}" for path in files])),
                (ours, read_all(item_of(assets(server.url, fresh())), EncodeConfig())),
            ):
                taken.append(size / seconds / 1e6)
        pairs = [one / other for one, other in zip(ours, theirs, strict=True)]
        rates.append(
            [
                label,
                f"{statistics.median(theirs):,.0f}",
                f"{statistics.median(ours):,.0f}",
                f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})",
            ]
        )
    table(["scene", "plain rasterio, MB/s", "geosam-stac, MB/s", "ratio, paired"], rates)


if __name__ == "__main__":
    main()
