"""The Python API, as a notebook calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pystac
import pytest
from odc.geo.geom import box

import geosam_stac as gs
from geosam_stac.errors import ConfigurationError, DataError, UsageError
from geosam_stac.sources.itemfiles import Found
from tests import rasters
from tests.catalog import features

pytestmark = pytest.mark.usefixtures("fake_model")

FAKE = {"model": "sam2.1-hiera-tiny", "checkpoint": "untrained", "device": "cpu", "stride": 32}


@pytest.fixture
def item(tmp_path):
    return item_at(tmp_path, "one")


def item_at(tmp_path, name):
    rasters.write_tif(tmp_path / f"{name}.tif", rasters.values((3, 96, 96), "uint8"))
    bands = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(
        tmp_path / f"{name}.json", {"image": rasters.asset(f"{name}.tif", **bands)}, item_id=name
    )


def test_encode(tmp_path, item):
    events = []
    result = gs.encode(item, **FAKE, out=tmp_path / "out", sink=events.append)
    assert isinstance(result, gs.EncodeResult)
    assert isinstance(result.item, pystac.Item)
    assert result.href == str(tmp_path / "out" / result.item.id / f"{result.item.id}.json")
    assert (result.chips_encoded, result.chips_resumed, result.chips_skipped) == (4, 0, 0)
    assert result.chips_failed == 0
    assert result.bytes_read == 3 * 96 * 96
    assert result.bytes_written > 0
    assert result.seconds["total"] > 0
    assert events
    run = json.loads((tmp_path / "out" / result.item.id / "run.json").read_text())
    assert run["config_sources"] == dict.fromkeys([*FAKE, "out"], "Python")
    assert run["inputs"] == {"item": [str(item)]}


def test_run_json_names_each_scene_of_a_session_by_itself(tmp_path, item):
    read = pystac.Item.from_file(str(item_at(tmp_path, "two")))
    document = json.loads(item.read_text()) | {"id": "three"}
    document["assets"]["image"]["href"] = str(tmp_path / "one.tif")
    told = []
    with gs.Session(**FAKE, out=tmp_path / "out") as session:
        for source in (str(item), read, document):
            result = session.encode(source)
            run = tmp_path / "out" / result.item.id / "run.json"
            told.append(json.loads(run.read_text())["inputs"])
    assert told == [{"item": [str(item)]}, {"item": [read.get_self_href()]}, {}]


def test_sources(tmp_path, item):
    pystac_item = pystac.Item.from_file(str(item))
    document = json.loads(item.read_text())
    document["assets"]["image"]["href"] = str(tmp_path / "one.tif")
    results = [
        gs.encode(source, **FAKE, out=str(tmp_path / f"out{index}"))
        for index, source in enumerate([str(item), item, pystac_item, document])
    ]
    assert {result.chips_encoded for result in results} == {4}
    assert len({result.item.id for result in results}) == 1


def test_a_config_and_options_over_it(tmp_path, item):
    config = gs.EncodeConfig.of(FAKE | {"out": str(tmp_path / "out")})
    assert gs.encode(item, config).chips_encoded == 4
    assert gs.encode(item, config, stride=64).chips_encoded == 4
    assert gs.encode(item, config, bands=["red"], stride=64).item.properties["geosam:bands"] == [
        "red"
    ]


def test_an_unknown_option_names_the_nearest(tmp_path, item):
    with pytest.raises(UsageError, match=r"unknown option 'strides'.*Did you mean 'stride'"):
        gs.encode(item, out=str(tmp_path), strides=32)
    with pytest.raises(UsageError, match="strid"):
        gs.Session(strid=3)


def test_errors_are_of_one_tree(tmp_path, item):
    for error, options in (
        (UsageError, {"stride": 0}),
        (UsageError, {"out": None}),
        (ConfigurationError, {"model": "sam9"}),
        (DataError, {"bands": "infrared"}),
    ):
        with pytest.raises(gs.GeosamStacError) as raised:
            gs.encode(item, **(FAKE | {"out": str(tmp_path / "out")} | options))
        assert isinstance(raised.value, error)
    assert not (tmp_path / "out").exists()


def test_session_of_two_scenes(tmp_path, item, fake_model):
    with gs.Session(**FAKE, out=tmp_path / "a") as session:
        first = session.encode(item)
        second = session.encode(item_at(tmp_path, "two"), out=tmp_path / "b")
    assert len(fake_model.loaded) == 1
    assert first.href.startswith(str(tmp_path / "a"))
    assert second.href.startswith(str(tmp_path / "b"))
    assert second.item.id.startswith("two_")


def test_plan(tmp_path, item, fake_model):
    plan = gs.plan(item, **FAKE)
    assert (plan.chips, plan.width, plan.device) == (4, 96, "cpu")
    assert plan.estimated_seconds is None
    assert fake_model.loaded == []


def test_geometry_as_a_shape_a_mapping_text_and_a_file(tmp_path, item):
    x, y = rasters.NORTH_UP.c, rasters.NORTH_UP.f
    shape = box(x + 10, y - 300, x + 300, y - 10, rasters.UTM14).to_crs("EPSG:4326")
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(shape.json))
    sizes = set()
    for geometry in (shape.geom, shape.json, json.dumps(shape.json), path, str(path)):
        plan = gs.plan(item, **FAKE, geometry=geometry)
        sizes.add((plan.width, plan.height))
    config = gs.EncodeConfig.of(FAKE | {"geometry": str(path)})
    plan = gs.plan(item, config)
    sizes.add((plan.width, plan.height))
    assert len(sizes) == 1
    assert 29 <= plan.width <= 32


def test_the_package_lists_its_names():
    assert set(gs.__all__) <= set(dir(gs))
    for name in gs.__all__:
        assert getattr(gs, name).__name__ == name
    import geosam_stac.planning  # noqa: F401 - a submodule must not hide the function

    assert callable(gs.plan)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gs.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, geosam_stac, geosam_stac.cli, geosam_stac.config, geosam_stac.types\n"
        "heavy = {'torch', 'rasterio', 'odc', 'pystac', 'numpy', 'pandas', 'requests'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_publish_and_search_features(tmp_path):
    made = [features.feature_item(number) for number in range(2)]
    hrefs = features.write(tmp_path / "out", *made)
    catalog = str(tmp_path / "out" / "catalog.json")
    assert gs.publish(hrefs[0], catalog, rebuild=False) == 1
    assert gs.publish(hrefs, catalog) == 2
    found = gs.search_features(catalog=catalog, model="sam2.1_t", resolution=10)
    assert [item.id for item in found] == [made[1].id, made[0].id]
    assert [item.self_href for item in found] == hrefs[::-1]
    assert found[0].properties == made[1].properties
    bbox = list(made[0].bbox)
    assert [item.id for item in gs.search_features(catalog=catalog, bbox=bbox)] == [made[0].id]
    with pytest.raises(gs.GeosamStacError, match="Give one of"):
        gs.search_features()


def test_what_a_search_cannot_read_becomes_a_warning(tmp_path):
    hrefs = features.write(tmp_path / "out", features.feature_item(0), features.feature_item(1))
    catalog = tmp_path / "out" / "catalog.json"
    gs.publish(hrefs, str(catalog))
    shutil.rmtree(tmp_path / "out" / "index")
    (tmp_path / "out" / "items.parquet").unlink()
    next((tmp_path / "out" / "collections").glob("*/scene-00*.json")).unlink()
    with pytest.warns(UserWarning, match="no such file"):
        assert len(gs.search_features(catalog=str(catalog))) == 1


def test_a_session_publishes_and_rebuilds_when_it_is_closed(item, tmp_path, fake_model):
    catalog = tmp_path / "out" / "catalog.json"
    options = {"checkpoint": "untrained", "device": "cpu", "stride": 32, "publish": str(catalog)}
    with gs.Session(model="sam2.1-hiera-tiny", out=tmp_path / "out", **options) as session:
        result = session.encode(item)
        assert not catalog.exists()
        assert [one.id for one in gs.search_features(catalog=str(catalog))] == [result.item.id]
    assert catalog.is_file()


def test_search_gives_items_for_encode(monkeypatch):
    source = pystac.Item("a", None, None, datetime(2024, 1, 1, tzinfo=UTC), {})
    asked = {}

    def search(query, *, headers, sink):
        asked.update(query=query, headers=headers)
        yield Found(item=source, error=None, href="https://h/a")
        yield Found(item=None, error=DataError("broken", item="b"), href="https://h/b")

    monkeypatch.setattr("geosam_stac.sources.search.search", search)
    monkeypatch.setenv("GEOSAM_STAC_API_TOKEN", "secret")
    with pytest.warns(UserWarning, match="broken"):
        found = list(gs.search("https://h", collections=["s2"], bbox=[1, 2, 3, 4], limit=5))
    assert found == [source]
    assert asked["query"].url == "https://h"
    assert (asked["query"].collections, asked["query"].bbox) == (("s2",), (1, 2, 3, 4))
    assert asked["headers"] == {"Authorization": "Bearer secret"}
    with pytest.warns(UserWarning):
        list(gs.search(catalog="earth-search", ids=["x"], query=["eo:cloud_cover<10"]))
    assert asked["query"].url.startswith("https://earth-search")
    for places in ({}, {"url": "https://h", "catalog": "earth-search"}):
        with pytest.raises(gs.GeosamStacError, match="needs one place"):
            gs.search(**places)
