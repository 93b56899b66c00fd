"""`info`: what it says of source Items and of our own, in text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from affine import Affine

from tests import rasters
from tests.cli.conftest import make_item
from tests.cli.test_encode import assert_error

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "items"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def catalog_item(tmp_path, **properties):
    """A Sentinel-2 Item of Earth Search's form: two resolutions, nothing on this disk."""
    fine = rasters.projection(rasters.NORTH_UP, (10980, 10980))
    coarse = rasters.projection(Affine(20, 0, 500_000, 0, -20, 5_200_000), (5490, 5490))
    facts = {"data_type": "uint16", "nodata": 0, "raster:scale": 0.0001, "raster:offset": -0.1}
    assets = {
        name: rasters.asset(
            f"https://data.invalid/{name}.tif",
            bands=[{"name": code, "eo:common_name": name}],
            **facts,
            **fine,
        )
        for name, code in (("red", "B04"), ("green", "B03"), ("blue", "B02"), ("nir", "B08"))
    }
    scl = {"bands": [{"name": "scl"}], "data_type": "uint8", "nodata": 0}
    assets["scl"] = rasters.asset("https://data.invalid/scl.tif", **scl, **coarse)
    self_link = {
        "rel": "self",
        "href": "https://earth-search.aws.element84.com/v1/collections/sentinel-2-c1-l2a/items/s2",
    }
    return rasters.write_item(
        tmp_path / "s2.json",
        assets,
        item_id="s2",
        collection="sentinel-2-c1-l2a",
        bbox=[-99.0, 45.96, -97.57, 46.95],
        links=[self_link | {"rel": "canonical"}],
    )


class TestSource:
    def test_text(self, cli, tmp_path):
        done = cli("info", catalog_item(tmp_path))
        assert (done.code, done.err) == (0, "")
        assert done.lines == [
            "item        s2",
            "collection  sentinel-2-c1-l2a",
            "datetime    2024-08-15T12:00:00Z",
            "bounds      -99,45.96,-97.57,46.95 (W,S,E,N)",
            "catalog     earth-search",
            "presets     true-color (default), false-color, ndvi",
            "",
            "  band   name  common name  dtype   nodata  scale   offset",
            "10,980 x 10,980 px of 10 m in EPSG:32614",
            "  red    B04   red          uint16  0       0.0001  -0.1",
            "  green  B03   green        uint16  0       0.0001  -0.1",
            "  blue   B02   blue         uint16  0       0.0001  -0.1",
            "  nir    B08   nir          uint16  0       0.0001  -0.1",
            "5,490 x 5,490 px of 20 m in EPSG:32614",
            "  scl                       uint8   0",
            "note        expressions take stored values; --scaled applies scale and offset",
            "",
            "A default encode",
            "bands       B04, B03, B02",
            "grid        10,980 x 10,980 px of 10 m in EPSG:32614",
            "chips       441 (21 x 21) of 1024 px at stride 512",
            "model       sam2.1-hiera-base-plus",
        ]

    def test_json(self, cli, tmp_path):
        found = json.loads(cli("info", catalog_item(tmp_path), "--json").out)
        assert found["kind"] == "source"
        assert found["bands"][3] == {
            "key": "nir",
            "name": "B08",
            "common_name": "nir",
            "dtype": "uint16",
            "nodata": 0.0,
            "shape": [10980, 10980],
            "resolution": 10.0,
            "unit": "m",
            "crs": "EPSG:32614",
            "scale": 0.0001,
            "offset": -0.1,
            "href": "https://data.invalid/nir.tif",
        }
        assert (found["catalog"], found["default_preset"]) == ("earth-search", "true-color")
        assert found["encode"]["chips"] == 441
        assert found["not_told"] == {}

    def test_headers_tell_what_the_item_does_not(self, cli, tmp_path):
        path = make_item(tmp_path, "scene", (96, 80))
        document = json.loads(path.read_text())
        del document["assets"]["image"]["bands"]
        path.write_text(json.dumps(document))
        found = json.loads(cli("info", path, "--json").out)
        assert [band["key"] for band in found["bands"]] == ["image.1", "image.2", "image.3"]
        assert {(b["dtype"], *b["shape"], b["crs"]) for b in found["bands"]} == {
            ("uint8", 96, 80, "EPSG:32614")
        }
        assert found["bbox"] == pytest.approx([-99.0, 46.9449, -98.9895, 46.9535], abs=1e-4)
        assert found["encode"]["chips"] == 1
        assert found["catalog"] is None

    def test_headers_that_cannot_be_read(self, cli, tmp_path):
        path = make_item(tmp_path, "scene")
        (tmp_path / "scene.tif").unlink()
        done = cli("info", path)
        assert done.code == 0
        assert "grid not told by the Item" in done.lines
        assert "  image.1  red    red          not told" in done.lines
        text = " ".join(done.out.split())
        assert "note headers not read of image: " in text
        assert "A default encode fails the bands' grid is not told by the Item" in text
        found = json.loads(cli("info", path, "--json").out)
        assert found["encode"] is None
        assert list(found["not_told"]) == ["image"]

    def test_a_nodata_of_nan_is_json(self, cli, tmp_path):
        tif = rasters.write_tif(
            tmp_path / "f.tif", rasters.values((1, 8, 8), "float32"), nodata=float("nan")
        )
        path = rasters.write_item(tmp_path / "f.json", {"dem": rasters.asset(tif)})
        (band,) = json.loads(cli("info", path, "--json").out)["bands"]
        assert (band["nodata"], band["dtype"]) == ("nan", "float32")

    @pytest.mark.shared
    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/items is not here")
    @pytest.mark.parametrize(
        ("name", "catalog", "grid", "chips"),
        [
            ("landsat", "usgs-landsat", "8,331 x 8,271 px of 30 m in EPSG:3031", 256),
            ("naip", None, "9,704 x 12,666 px of 0.6 m in EPSG:26919", 432),
            ("sentinel", "earth-search", "10,980 x 10,980 px of 10 m in EPSG:32720", 441),
        ],
    )
    def test_real_items(self, cli, monkeypatch, name, catalog, grid, chips):
        from geosam_stac.errors import TemporaryError

        def unreachable(href, **options):
            raise TemporaryError("no network in this test")

        monkeypatch.setattr("geosam_stac.sources.headers.read_header", unreachable)
        (path,) = SHARED.glob(f"{name}*.json")
        done = cli("info", path)
        assert done.code == 0, done.err
        assert f"grid        {grid}" in done.lines
        assert grid in done.lines
        assert f"catalog     {catalog or 'none that is known'}" in done.lines
        assert any(line.startswith(f"chips       {chips} ") for line in done.lines)
        assert max(map(len, done.lines)) <= 80

    def test_errors(self, cli, tmp_path):
        assert_error(cli("info", tmp_path / "x.json"), 65, "no such file")
        assert_error(cli("info"), 2, "ITEM")
        path = make_item(tmp_path, "scene")
        assert_error(cli("info", path, "--catalog", "x"), 78, "no catalog 'x'")


@pytest.mark.usefixtures("fake_model")
class TestFeatures:
    def test_text_and_json(self, cli, fake):
        (href,) = cli(*fake, "--value-range", "10,200").lines
        done = cli("info", href)
        assert (done.code, done.err) == (0, "")
        folder = Path(href).parent
        facts = {line[:12].strip(): line[12:] for line in done.lines}
        assert facts["item"] == folder.name
        assert facts["model"] == "sam2.1-hiera-tiny"
        assert facts["weights"].startswith("untrained, sha256 ")
        assert facts["values"] == "10 to 200 became 0 to 255"
        assert facts["grid"] == "10 m in EPSG:32614"
        assert facts["chips"] == "4 of 64 px at stride 32"
        assert facts["manifest"] == str(folder / "manifest.parquet")
        assert facts["source"].endswith("scene.json")
        assert cli("info", folder).lines == done.lines
        found = json.loads(cli("info", href, "--json").out)
        assert found["kind"] == "features"
        assert found["feature_bytes"] == 4 * (3 * 16 + 3 * 256 + 3 * 64) * 2
        assert found["bands"] == ["red", "green", "blue"]
