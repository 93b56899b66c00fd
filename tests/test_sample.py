"""The project's own sample: what its documents say is what its file is."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio

from tests import stac_schemas

SAMPLE = Path(__file__).parent.parent / "catalogs" / "sample"


@pytest.fixture(scope="module")
def item():
    return json.loads((SAMPLE / "item.json").read_text())


def test_the_file_is_a_small_cloud_optimized_geotiff():
    path = SAMPLE / "landscape.tif"
    assert path.stat().st_size < 2_000_000
    with rasterio.open(path) as dataset:
        assert (dataset.count, dataset.shape, dataset.nodata) == (4, (2048, 2048), 0)
        assert set(dataset.dtypes) == {"uint8"}
        assert dataset.block_shapes == [(512, 512)] * 4
        assert dataset.overviews(1) == [2, 4]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_the_item_says_what_the_file_is(item):
    asset = item["assets"]["image"]
    data = (SAMPLE / asset["href"]).read_bytes()
    assert asset["file:size"] == len(data)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    with rasterio.open(SAMPLE / asset["href"]) as dataset:
        assert asset["proj:shape"] == list(dataset.shape)
        assert asset["proj:transform"] == list(dataset.transform)[:6]
        assert item["properties"]["proj:code"] == f"EPSG:{dataset.crs.to_epsg()}"
        assert [band["name"] for band in asset["bands"]] == list(dataset.descriptions)


def test_nodata_is_a_corner_and_no_valid_pixel_is_black():
    with rasterio.open(SAMPLE / "landscape.tif") as dataset:
        pixels = dataset.read()
    empty = (pixels == 0).all(axis=0)
    assert 0.02 < empty.mean() < 0.2
    assert empty[0, -1]
    assert not empty[-1, 0]
    # Nodata means all four bands: in no valid pixel is one of them 0.
    np.testing.assert_array_equal((pixels == 0).any(axis=0), empty)
    # And none was left unpainted, which shows as 1, the least that a valid pixel is clipped to.
    assert pixels[:, ~empty].min() > 1


def test_vegetation_is_bright_and_water_dark_in_the_near_infrared():
    with rasterio.open(SAMPLE / "landscape.tif") as dataset:
        red, green, blue, nir = dataset.read().astype(int)
    water = (blue > red + 15) & (blue > green)
    crops = green > red + 25
    assert water.mean() > 0.01
    assert crops.mean() > 0.1
    assert nir[water].mean() < 60
    assert nir[crops].mean() > 120


def test_the_script_makes_these_pixels(monkeypatch):
    monkeypatch.syspath_prepend(str(SAMPLE))
    spec = importlib.util.spec_from_file_location("landscape", SAMPLE / "landscape.py")
    landscape = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "landscape", landscape)
    spec.loader.exec_module(landscape)
    with rasterio.open(SAMPLE / "landscape.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), landscape.paint())


def test_links_resolve():
    catalog = pystac.Catalog.from_file(str(SAMPLE / "catalog.json"))
    (collection,) = catalog.get_children()
    (found,) = collection.get_items()
    assert (collection.id, found.id) == ("sample", "landscape")
    assert Path(found.assets["image"].get_absolute_href()).is_file()
    for name in ("catalog.json", "collection.json", "item.json"):
        links = json.loads((SAMPLE / name).read_text())["links"]
        assert all(link["href"].startswith("./") for link in links if link["rel"] != "self")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["item.json", "collection.json", "catalog.json"])
def test_the_documents_are_valid(name):
    assert stac_schemas.validate(json.loads((SAMPLE / name).read_text()))
