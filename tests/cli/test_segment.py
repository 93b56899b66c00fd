"""`geosam-stac segment` on the command line, with a decoder whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import pytest
import rasterio
import shapely
from pyproj import Transformer

from geosam_stac.store.opened import FeatureItem
from tests import rasters
from tests.store.seeing import SeeingDecoder, painted

LONLAT = Transformer.from_crs(rasters.UTM14, "EPSG:4326", always_xy=True)


def lonlat(col: float, row: float) -> str:
    lon, lat = LONLAT.transform(*(rasters.NORTH_UP @ (col, row)))
    return f"{lon:.9f},{lat:.9f}"


@pytest.fixture
def href(fake_model, cli, tmp_path, monkeypatch) -> str:
    """A scene of 160 x 64 px with a bar of 100 x 20 px over three chips."""
    data = painted(64, 160, (20, 8, 40, 108, 200))
    tif = rasters.write_tif(tmp_path / "bar.tif", data)
    bands = rasters.named_bands("red", "green", "blue")
    item = rasters.write_item(
        tmp_path / "bar.json", {"image": rasters.asset(tif, **bands)}, item_id="bar"
    )
    done = cli(
        "encode", "--item", item, "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained",
        "--device", "cpu", "--stride", "32", "--out", tmp_path / "out",
    )  # fmt: skip
    monkeypatch.setattr(FeatureItem, "decoder", lambda self, *args, **kw: SeeingDecoder())
    (found,) = done.lines
    return found


def test_a_click(cli, href, tmp_path):
    out = tmp_path / "mask.geojson"
    done = cli("segment", href, "--point", lonlat(12, 30), "--out", out)
    assert done.code == 0, done.err
    assert done.lines == [str(out)]
    assert "RANDOM weights" in done.err
    frame = geopandas.read_file(out)
    assert frame.crs == "EPSG:4326"
    assert frame.area_m2[0] == pytest.approx(100 * 20 * 100, rel=2e-3)
    assert frame.chips[0].split(",")[0] == "chip_000000"
    assert frame.to_crs(rasters.UTM14).geometry[0].area == pytest.approx(200_000, rel=1e-4)


def test_json_and_stdout(cli, href):
    done = cli("segment", href, "--point", lonlat(12, 30), "-q")
    assert json.loads(done.out)["type"] == "FeatureCollection"
    document = json.loads(
        cli("segment", Path(href).parent, "--point", lonlat(12, 30), "--json").out
    )
    (mask,) = document["masks"]
    assert mask["score"] == 0.9
    assert mask["complete"] is True
    assert document["failed"] == []


def test_an_error_of_usage_stands_alone(cli, href):
    done = cli("segment", href, "--point", "10,10")
    assert done.code == 2
    assert done.err.startswith("error: this place lies outside the scene")


def test_box_raster_and_crs(cli, href, tmp_path):
    out = tmp_path / "mask.tif"
    box = "500050,5199550,501100,5199850"
    done = cli("segment", href, "--box", box, "--crs", "native", "--out", out, "--no-follow")
    assert done.code == 0, done.err
    with rasterio.open(out) as raster:
        assert raster.shape == (64, 160)
        assert raster.read(1).sum() > 0
    table = tmp_path / "mask.gpkg"
    done = cli(
        "segment", href, "--point", "500120,5199700", "--crs", "native", "--out", table,
        "--out-crs", "EPSG:3857", "--multimask",
    )  # fmt: skip
    assert done.code == 0, done.err
    frame = geopandas.read_file(table)
    assert frame.crs == "EPSG:3857"
    assert list(frame.score) == [0.9, 0.8, 0.7]


def test_a_file_with_one_that_fails(cli, href, tmp_path):
    places = [shapely.Point(500_120, 5_199_700), shapely.Point(400_000, 5_199_700)]
    frame = geopandas.GeoDataFrame({"id": ["a", "b"]}, geometry=places, crs=rasters.UTM14)
    frame.to_file(tmp_path / "clicks.gpkg")
    out = tmp_path / "masks.parquet"
    done = cli("segment", href, "--prompts", tmp_path / "clicks.gpkg", "--out", out)
    assert done.code == 3
    assert "object b: this place lies outside the scene" in done.err
    assert list(geopandas.read_parquet(out)["id"]) == ["a"]


def test_multimask_of_many_in_a_raster_is_refused_before_anything_is_opened(cli, tmp_path):
    """The Item does not exist: it would be the first to be told."""
    many = ["none/item.json", "--multimask", "--out", tmp_path / "out.tif"]
    places = [shapely.Point(10, 53), shapely.Point(11, 53)]
    for groups, code, message in (
        (["a", "b"], 2, "error: several masks of several objects cannot stand in one raster"),
        (["a", "a"], 65, "none/item.json"),
    ):
        frame = geopandas.GeoDataFrame({"group": groups}, geometry=places, crs="EPSG:4326")
        frame.to_file(tmp_path / "clicks.gpkg")
        done = cli("segment", *many, "--prompts", tmp_path / "clicks.gpkg")
        assert done.code == code, done.err
        assert message in done.err
    done = cli("segment", *many, "--box", "1,2,3,4", "--box", "5,6,7,8")
    assert done.code == 2
    assert "several masks of several objects" in done.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--point", "1,2,3"], "a label is 1"),
        (["--point", "a,b"], "--point is malformed"),
        (["--box", "1,2"], "--box is malformed"),
        ([], "a prompt is missing"),
        (["--point", "1,2"], "outside the scene"),
        (["--point", "1,2", "--out", "x.shp"], "names no format"),
        (["--point", "1,2", "--out-crs", "EPSG:3857"], "--out-crs is of a file"),
        (["--point", "1,2", "--crs", "nonsense"], "--crs is no CRS"),
        (["--mask", "none.tif"], "--mask: no such file"),
        (["--prompts", "none.gpkg"], "--prompts: no such file"),
    ],
)
def test_usage(cli, href, argv, message):
    done = cli("segment", href, *argv)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
