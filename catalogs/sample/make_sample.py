"""Make the sample: the generated landscape as a COG, with its STAC Item, Collection and Catalog.

Run `python catalogs/sample/make_sample.py`; it writes beside itself. The pixels are the same each
time (tests/test_sample.py checks), the file's bytes may differ with GDAL's version.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pystac
import rasterio
from affine import Affine
from landscape import paint
from rasterio.io import MemoryFile
from rasterio.shutil import copy as rasterio_copy
from rasterio.warp import transform_geom

HERE = Path(__file__).parent
COG = HERE / "landscape.tif"
EPSG = 32632
PIXEL_M = 1.0
LEFT_M, TOP_M = 601_000.0, 5_342_000.0
NODATA = 0
BANDS = ("red", "green", "blue", "nir")
DATETIME = datetime(2026, 6, 21, 10, 30, tzinfo=UTC)
EXTENSIONS = (
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
)


def write_cog() -> None:
    """Lossless DEFLATE, which every GDAL reads; 512 px blocks.

    Generated texture repeats exactly, so no predictor (1.4 against 1.7 MB), and overviews of the
    nearest pixel (averages are new values: 0.7 MB more).
    """
    pixels = paint()
    count, height, width = pixels.shape
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": "uint8",
        "crs": f"EPSG:{EPSG}",
        "transform": Affine(PIXEL_M, 0, LEFT_M, 0, -PIXEL_M, TOP_M),
        "nodata": NODATA,
        "photometric": "RGB",
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(pixels)
            dataset.descriptions = BANDS
        rasterio_copy(
            memory.name,
            COG,
            driver="COG",
            compress="DEFLATE",
            level=9,
            predictor="NO",
            blocksize=512,
            overview_resampling="nearest",
            nodata=NODATA,
        )


def make_item() -> pystac.Item:
    """The Item, from what the file says."""
    with rasterio.open(COG) as dataset:
        left, bottom, right, top = dataset.bounds
        corners = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
        footprint = {"type": "Polygon", "coordinates": [corners]}
        geometry = transform_geom(dataset.crs, "EPSG:4326", footprint, precision=7)
        shape, transform = dataset.shape, list(dataset.transform)[:6]
    # The footprint leans: a box around it in WGS84 would claim 36 m more on each side.
    lons, lats = zip(*geometry["coordinates"][0], strict=True)
    item = pystac.Item(
        id="landscape",
        geometry=geometry,
        bbox=[min(lons), min(lats), max(lons), max(lats)],
        datetime=DATETIME,
        properties={"gsd": PIXEL_M, "proj:code": f"EPSG:{EPSG}", "title": "A generated landscape"},
        stac_extensions=list(EXTENSIONS),
    )
    data = COG.read_bytes()
    asset = pystac.Asset(
        COG.name,
        title="Red, green, blue and near infrared",
        media_type=pystac.MediaType.COG,
        roles=["data"],
        extra_fields={
            "proj:shape": list(shape),
            "proj:transform": transform,
            "file:size": len(data),
            "file:checksum": "1220" + hashlib.sha256(data).hexdigest(),
            "data_type": "uint8",
            "nodata": NODATA,
            "bands": [{"name": name, "eo:common_name": name} for name in BANDS],
        },
    )
    item.add_asset("image", asset)
    return item


def main() -> None:
    """Write the COG, then the Item, Collection and Catalog with relative links."""
    write_cog()
    item = make_item()
    collection = pystac.Collection(
        id="sample",
        title="geosam-stac sample",
        description="A generated landscape: fields, roads, a river, buildings, a nodata corner.",
        license="Apache-2.0",
        extent=pystac.Extent(
            pystac.SpatialExtent([list(item.bbox or ())]),
            pystac.TemporalExtent([[DATETIME, DATETIME]]),
        ),
    )
    collection.add_item(item)
    catalog = pystac.Catalog(id="geosam-stac", description="The sample catalog of geosam-stac.")
    catalog.add_child(collection)
    catalog.set_self_href(str(HERE / "catalog.json"))
    collection.set_self_href(str(HERE / "collection.json"))
    item.set_self_href(str(HERE / "item.json"))
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)


if __name__ == "__main__":
    main()
