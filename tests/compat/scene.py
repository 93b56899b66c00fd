"""The sample scene as both environments of `make compat` see it.

Finds the raster and its red, green and blue bands in the sample Item, and names the two extents
that are encoded. Imports rasterio only, so it runs in the project's environment and in
.venv-compat. As a script it prints the arguments of `geosam-stac encode` for an extent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import rasterio
from rasterio.windows import Window

CHIP_PX = 1024
STRIDE_PX = 512
#: 1536 px square: four full chips at stride 512, clear of the scene's edges.
FOUR_CHIPS = Window(col_off=256, row_off=256, width=1536, height=1536)
#: Smaller than a chip and not square: one chip, resized and padded.
SMALL = Window(col_off=700, row_off=500, width=640, height=480)
EXTENTS = {"four": FOUR_CHIPS, "small": SMALL}


def rgb_raster(item_path: Path) -> tuple[Path, tuple[int, int, int]]:
    """Path of the Item's raster, and the 1-based indexes of its red, green and blue bands."""
    item = json.loads(item_path.read_text())
    for asset in item["assets"].values():
        bands = asset.get("bands") or asset.get("eo:bands") or []
        names = [
            band.get("eo:common_name") or band.get("common_name") or band.get("name")
            for band in bands
        ]
        if {"red", "green", "blue"} <= set(names):
            path = item_path.parent / asset["href"].removeprefix("file://")
            red, green, blue = (names.index(name) + 1 for name in ("red", "green", "blue"))
            return path.resolve(), (red, green, blue)
    raise SystemExit(f"{item_path}: no asset has bands named red, green and blue")


def crop_rgb(item_path: Path, window: Window, target: Path) -> None:
    """Write the window's red, green and blue pixels, unchanged, as a GeoTIFF of their own."""
    source_path, indexes = rgb_raster(item_path)
    with rasterio.open(source_path) as source:
        pixels = source.read(indexes, window=window)
        if pixels.dtype != "uint8":
            raise SystemExit(f"{source_path}: expected uint8, got {pixels.dtype}")
        profile = {
            "driver": "GTiff",
            "count": 3,
            "dtype": "uint8",
            "height": int(window.height),
            "width": int(window.width),
            "crs": source.crs,
            "transform": source.window_transform(window),
        }
    with rasterio.open(target, "w", **profile) as crop:
        crop.write(pixels)


def main() -> None:
    """Print `--bbox` and `--bbox-crs` for an extent, one argument a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("item", type=Path)
    parser.add_argument("extent", choices=sorted(EXTENTS))
    arguments = parser.parse_args()
    source_path, _ = rgb_raster(arguments.item)
    with rasterio.open(source_path) as source:
        bounds = source.window_bounds(EXTENTS[arguments.extent])
        print("--bbox=" + ",".join(repr(float(edge)) for edge in bounds))
        print(f"--bbox-crs={source.crs.to_string()}")


if __name__ == "__main__":
    main()
