"""Our pixels and places against rasterio's own: WarpedVRT on the same grid, windows of the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RioWindow

from geosam_stac.config import EncodeConfig
from geosam_stac.cube import CubeReader
from geosam_stac.grid import chip_refs, make_grid
from geosam_stac.sources import open_scene, parse_item, read_item
from geosam_stac.types import Scene
from geosam_stac.windows import slices
from tests.rasters import asset, document, named_bands, values, write_tif

NAIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "naip"
needs_naip = pytest.mark.skipif(not NAIP.is_dir(), reason="../shared/data/naip is not here")
RESAMPLINGS = ("nearest", "bilinear", "cubic", "average")
RGB = ("red", "green", "blue")


def ours(scene: Scene, resampling: str, tile_px: int = 64) -> np.ndarray:
    """The scene's pixels, put together from its tiles; invalid ones are 0."""
    reader = CubeReader(scene, resampling=resampling, tile_area_px=tile_px**2)
    tiles = reader.tiling().all()
    assert len(tiles) > 3
    reader.plan(tiles)
    data = np.zeros((3, *scene.geobox.shape), dtype=scene.bands[0].dtype)
    with ThreadPoolExecutor(4) as pool:
        for tile, (values, valid) in zip(tiles, pool.map(reader.read, tiles), strict=True):
            data[:, *slices(tile)] = np.where(valid, values, 0)
    return data


def rasterios(path: Path, geobox: GeoBox, resampling: str) -> np.ndarray:
    """What GDAL gives for the same grid with an exact transformer; outside is 0."""
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=str(geobox.crs),
            transform=geobox.affine,
            width=geobox.width,
            height=geobox.height,
            resampling=Resampling[resampling],
            tolerance=1e-9,
            nodata=0,
        ) as vrt,
    ):
        return vrt.read([1, 2, 3])


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("options", [{"crs": "EPSG:3857"}, {"crs": "EPSG:32613", "resolution": 7}])
def test_reprojected_pixels_equal_warpedvrts(tmp_path, options, resampling):
    path = write_tif(tmp_path / "a.tif", values((3, 120, 170)), nodata=0)
    item = parse_item(document({"image": asset(path, **named_bands(*RGB))}), href=None)
    scene = open_scene(item, EncodeConfig.of(options))
    expected = rasterios(path, scene.geobox, resampling)
    assert (expected > 0).mean() > 0.7
    assert (ours(scene, resampling) == expected).all()


@needs_naip
@pytest.mark.shared
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_naip_into_mercator_equals_warpedvrt(resampling):
    """At 3 m; there is no tolerance: every pixel is equal. Whole by the default, else a corner."""
    options = {"bands": "red,green,blue", "crs": "EPSG:3857", "resolution": 3}
    if resampling != "bilinear":
        options |= {"bbox": "484000,5207500,487500,5210000", "bbox_crs": "EPSG:26914"}
    scene = open_scene(read_item(str(NAIP / "item.json")), EncodeConfig.of(options))
    assert (scene.geobox.crs.epsg, scene.geobox.affine.a) == (3857, 3)
    expected = rasterios(next(NAIP.glob("*.tif")), scene.geobox, resampling)
    assert (ours(scene, resampling, tile_px=512) == expected).all()


def _chips_equal_windows(path: Path, scene: Scene, chip_px: int, stride_px: int) -> int:
    refs = list(chip_refs(make_grid(scene.geobox, chip_px=chip_px, stride_px=stride_px)))
    with rasterio.open(path) as dataset:
        for ref in refs:
            w = ref.window
            window = RioWindow(w.col_off, w.row_off, w.width, w.height)
            assert ref.geobox.affine == dataset.window_transform(window)
            assert ref.geobox.boundingbox.bbox == dataset.window_bounds(window)
            assert rasterio.crs.CRS.from_wkt(ref.geobox.crs.to_wkt()) == dataset.crs
    return len(refs)


def test_chips_lie_where_rasterios_windows_do(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((3, 120, 170)))
    item = parse_item(document({"image": asset(path, **named_bands(*RGB))}), href=None)
    assert _chips_equal_windows(path, open_scene(item, EncodeConfig()), 64, 30) == 3 * 5


@needs_naip
@pytest.mark.shared
def test_naips_chips_lie_where_rasterios_windows_do():
    scene = open_scene(read_item(str(NAIP / "item.json")), EncodeConfig())
    assert _chips_equal_windows(next(NAIP.glob("*.tif")), scene, 512, 256) == 2 * 3
