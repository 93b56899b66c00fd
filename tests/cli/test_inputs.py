"""What `encode` works on: files of Items, groups, conflicts, failures that are tried again."""

from __future__ import annotations

import io
import json
import types
from pathlib import Path

import pytest

from geosam_stac.cli.inputs import Inputs, api_headers, bbox_wgs84, scenes
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import ConfigurationError, DataError, UsageError
from geosam_stac.sources import parse_item
from geosam_stac.sources.itemfiles import Found
from tests import rasters
from tests.cli.conftest import make_item
from tests.cli.test_encode import assert_error

pytestmark = pytest.mark.usefixtures("fake_model")


@pytest.fixture
def options(tmp_path):
    """Options of an encode with the fake model, without an input."""
    return [
        *("encode", "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained"),
        *("--device", "cpu", "--stride", "64", "--out", str(tmp_path / "out")),
    ]


@pytest.fixture
def three(tmp_path):
    """Three Items, the second's raster missing, as ndjson."""
    documents = []
    for number, name in enumerate(("one", "two", "three")):
        document = json.loads(make_item(tmp_path, name).read_text())
        document["properties"]["datetime"] = f"2024-08-{15 + number // 2}T12:00:00Z"
        document["properties"]["tile"] = "east" if number else "west"
        document["bbox"] = [0, 46, 1, 47]
        documents.append(document)
    (tmp_path / "two.tif").unlink()
    path = tmp_path / "items.ndjson"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def failed_ids(tmp_path):
    lines = (tmp_path / "out" / "failed.ndjson").read_text().splitlines()
    return [json.loads(line).get("id") for line in lines]


def output_names(done):
    return [Path(line).name.partition("_")[0] for line in done.lines]


def stdin_of(monkeypatch, text: str) -> None:
    buffer = io.BufferedReader(io.BytesIO(text.encode()))
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))


class TestFiles:
    def test_each_fails_alone_and_is_tried_again(self, cli, options, three, tmp_path):
        done = cli(*options, "--items", three)
        assert done.code == 3
        assert output_names(done) == ["one", "three"]
        assert failed_ids(tmp_path) == ["two"]
        assert "error: 1 of 3 scenes failed: see " in done.err

        failed = tmp_path / "out" / "failed.ndjson"
        again = cli(*options, "--items", failed)
        assert_error(again, 65, "two.tif")  # it is alone: its own code
        assert failed_ids(tmp_path) == ["two"]

        rasters.write_tif(tmp_path / "two.tif", rasters.values((3, 96, 96), "uint8"))
        mended = cli(*options, "--items", failed)
        assert (mended.code, output_names(mended)) == (0, ["two"])
        assert not failed.exists()

        whole = cli(*options, "--items", three)
        assert (whole.code, output_names(whole)) == (0, ["one", "two", "three"])
        assert whole.err.count("nothing to do") == 3

    def test_standard_input(self, cli, options, three, monkeypatch):
        text = three.read_text()
        features = [json.loads(line) for line in text.splitlines()]
        for given in (text, json.dumps({"type": "FeatureCollection", "features": features})):
            stdin_of(monkeypatch, given)
            done = cli(*options, "--items", "-")
            assert (done.code, output_names(done)) == (3, ["one", "three"])

    @pytest.mark.parametrize("text", ["", '{"type": "FeatureCollection", "features": []}'])
    def test_nothing_found(self, cli, options, tmp_path, text):
        path = tmp_path / "none.json"
        path.write_text(text)
        done = cli(*options, "--items", path, "-q")
        assert (done.code, done.out) == (0, "")
        assert done.err == f"warning: nothing found: {path} has no Items\n"
        assert not (tmp_path / "out").exists()

    def test_a_broken_line_is_one_failure(self, cli, options, three, tmp_path):
        lines = three.read_text().splitlines()
        three.write_text("\n".join([lines[0], "{broken", str(tmp_path / "three.json")]))
        done = cli(*options, "--items", three)
        assert (done.code, output_names(done)) == (3, ["one", "three"])
        assert "line 2: not a STAC Item" in done.err

    def test_no_such_file(self, cli, options, tmp_path):
        assert_error(cli(*options, "--items", tmp_path / "x"), 65, "no such file")

    def test_the_first_scene_is_encoded_before_the_rest_is_read(
        self, cli, options, three, tmp_path, monkeypatch
    ):
        item = parse_item(json.loads(three.read_text().splitlines()[0]), href=None)

        def read_items(*args, **kwargs):
            yield Found(item=item, error=None, href=None)
            assert len(list((tmp_path / "out").glob("one*/one*.json"))) == 1
            raise DataError("the rest is lost")

        monkeypatch.setattr("geosam_stac.sources.itemfiles.read_items", read_items)
        done = cli(*options, "--items", three)
        assert (done.code, output_names(done)) == (65, ["one"])
        assert "the rest is lost" in done.err

    def test_what_failed_is_kept_when_the_source_breaks_off(
        self, cli, options, three, tmp_path, monkeypatch
    ):
        from geosam_stac.sources import itemfiles

        read_items = itemfiles.read_items

        def breaking(*args, **kwargs):
            yield from read_items(*args, **kwargs)
            raise DataError("the next page is lost")

        monkeypatch.setattr("geosam_stac.sources.itemfiles.read_items", breaking)
        done = cli(*options, "--items", three)
        assert (done.code, output_names(done)) == (65, ["one", "three"])
        assert failed_ids(tmp_path) == ["two"]

    def test_dry_run(self, cli, options, three, tmp_path):
        done = cli(*options, "--items", three, "--dry-run")
        assert done.code == 3
        scenes = [line for line in done.lines if line.startswith("scene ")]
        assert scenes == ["scene    one", "scene    three"]
        assert done.lines[-1].startswith("total    2 scenes, 8 chips, 0.1 MB to read, ")
        assert " in 16 objects, about " in done.lines[-1]
        assert not (tmp_path / "out").exists()
        lines = cli(*options, "--items", three, "--dry-run", "--json").lines
        assert [json.loads(line)["scene"] for line in lines] == ["one", "three"]

    def test_dry_run_of_one_has_no_total(self, cli, options, tmp_path):
        done = cli(*options, "--item", make_item(tmp_path, "one"), "--dry-run")
        assert not [line for line in done.lines if line.startswith("total")]


class TestGroups:
    def test_by_property(self, cli, options, three, tmp_path):
        rasters.write_tif(tmp_path / "two.tif", rasters.values((3, 96, 96), "uint8", seed=2))
        done = cli(*options, "--items", three, "--groupby", "tile")
        assert done.code == 0, done.err
        west, east = (json.loads(Path(line).read_text()) for line in done.lines)
        assert west["properties"]["geosam:source_items"] == ["one"]
        assert sorted(east["properties"]["geosam:source_items"]) == ["three", "two"]

    def test_a_group_fails_with_all_its_members(self, cli, options, three, tmp_path):
        done = cli(*options, "--items", three, "--groupby", "tile")
        assert (done.code, output_names(done)) == (3, ["one"])
        assert sorted(failed_ids(tmp_path)) == ["three", "two"]

    def test_an_item_without_the_property_fails_alone(self, cli, options, three, tmp_path):
        lines = three.read_text().splitlines()
        document = json.loads(lines[1])
        del document["properties"]["tile"]
        three.write_text("\n".join([lines[0], json.dumps(document), lines[2]]))
        done = cli(*options, "--items", three, "--groupby", "tile")
        assert (done.code, output_names(done)) == (3, ["one", "three"])
        assert "no property 'tile'" in done.err
        assert failed_ids(tmp_path) == ["two"]

    def test_gathered_lazily_only_by_id(self):
        def found():
            yield Found(item=None, error=DataError("x"), href="a")
            raise AssertionError("read too far")

        assert next(scenes(found(), "id")).href == "a"


class TestConflicts:
    @pytest.mark.parametrize(
        ("given", "texts"),
        [
            (("--item", "a", "--items", "b"), ("--item and --items",)),
            (("--item", "a", "--search", "https://b"), ("--item and --search",)),
            (("--items", "a", "--search", "https://b"), ("--items and --search",)),
            (("--item", "a", "--limit", "3"), ("--limit belongs to a search",)),
            (("--items", "a", "--collection", "c"), ("--collection belongs to a search",)),
            (("--items", "a", "--catalog", "earth-search", "--ids", "c"), ("--ids belongs",)),
            (("--search", "https://b"), ("every Item", "--collection")),
            (("--catalog", "earth-search"), ("every Item",)),
            (("--search", "b", "--limit", "3"), ("URL of a STAC API",)),
            (("--search", "https://b", "--ids", "c", "--datetime", "noon"), ("--datetime",)),
            (("--search", "https://b", "--filter", "a = "), ("--filter is no CQL2",)),
            (("--search", "https://b", "--limit", "0"), ("--limit",)),
            (("--search", "https://b", "--limit", "x"), ("--limit",)),
            (("--item", "a", "--anonymous-source", "--signer", "token"), ("contradict",)),
        ],
    )
    def test_usage(self, cli, options, given, texts):
        assert_error(cli(*options, *given), 2, *texts)

    def test_unknown_catalog(self, cli, options):
        done = cli(*options, "--catalog", "earth-serch", "--limit", "1")
        assert_error(done, 78, "Did you mean 'earth-search'?")

    def test_the_extent_is_the_search_s(self):
        inputs = Inputs(search="https://b", collection=("a, b", "c"), sortby=("-datetime,id",))
        query = inputs.search_query(
            EncodeConfig(bbox=(500_000, 5_200_000, 510_000, 5_210_000), bbox_crs="EPSG:32614")
        )
        assert query.collections == ("a", "b", "c")
        assert query.sortby == ("-datetime", "id")
        assert query.bbox == pytest.approx((-99.0, 46.9535, -98.868, 47.0435), abs=1e-3)
        area = '{"type": "Point", "coordinates": [1, 2]}'
        assert inputs.search_query(EncodeConfig(geometry=area)).intersects == json.loads(area)

    def test_a_catalog_gives_the_url(self):
        query = Inputs(catalog="earth-search", ids=("a",)).search_query(EncodeConfig())
        assert query.url == "https://earth-search.aws.element84.com/v1"

    def test_the_catalog_of_an_item_gives_its_presets(self, cli, options, tmp_path):
        path = make_item(tmp_path, "one")
        document = json.loads(path.read_text()) | {"collection": "sentinel-2-c1-l2a"}
        tif = rasters.write_tif(tmp_path / "scl.tif", rasters.values((1, 96, 96), "uint8"))
        document["assets"]["scl"] = rasters.asset(tif)
        path.write_text(json.dumps(document))
        given = (*options, "--item", path, "--preset", "true-color", "--dry-run")
        assert_error(cli(*given), 78, "no catalog profile knows this Item")
        done = cli(*given, "--catalog", "earth-search")
        assert done.code == 0, done.err
        assert "bands    red, green, blue" in done.lines


@pytest.mark.parametrize(
    ("bbox", "crs", "expected"),
    [
        ((10, 50, 11, 51), "EPSG:4326", (10, 50, 11, 51)),
        ((170, 0, 190, 5), "EPSG:4326", (170, 0, -170, 5)),
        ((170, 0, -170, 5), "EPSG:4326", (170, 0, -170, 5)),
        ((-190, 0, -170, 5), "OGC:CRS84", (170, 0, -170, 5)),
        ((-180, 0, 180, 5), "EPSG:4326", (-180, 0, 180, 5)),
        ((-200, 0, 200, 5), "EPSG:4326", (-180, 0, 180, 5)),
        ((1113194.9, 0, 1224514.4, 111325.1), "EPSG:3857", (10, 0, 11, 1)),
    ],
)
def test_bbox_wgs84(bbox, crs, expected):
    assert bbox_wgs84(bbox, crs) == pytest.approx(expected, abs=1e-4)


def test_bbox_of_no_crs():
    with pytest.raises(UsageError, match="--bbox-crs"):
        bbox_wgs84((0, 0, 1, 1), "EPSG:999999")


class TestHeaders:
    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({}, {}),
            ({"GEOSAM_STAC_API_TOKEN": " abc\n"}, {"Authorization": "Bearer abc"}),
            ({"GEOSAM_STAC_API_HEADERS": '{"X-Key": "a:b"}'}, {"X-Key": "a:b"}),
            ({"GEOSAM_STAC_API_HEADERS": "X-Key: a:b\nY: c\n"}, {"X-Key": "a:b", "Y": "c"}),
        ],
    )
    def test_understood(self, environ, expected):
        assert api_headers(environ) == expected

    @pytest.mark.parametrize(
        "environ",
        [
            {"GEOSAM_STAC_API_HEADERS": "hunter2"},
            {"GEOSAM_STAC_API_HEADERS": '{"hunter2'},
            {"GEOSAM_STAC_API_HEADERS": '{"X": "hunter2\\r\\nY: z"}'},
            {"GEOSAM_STAC_API_TOKEN": "hunter2\nX: y"},
        ],
    )
    def test_refused_without_the_value(self, environ):
        with pytest.raises(ConfigurationError) as caught:
            api_headers(environ)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


# What run.json says of it


def test_what_was_given_is_told_by_its_options_names():
    asked = Inputs(
        catalog="earth-search",
        collection=("a,b",),
        query=("eo:cloud_cover<10",),
        filter="platform = 'x'",
        datetime="2024-03",
        limit=3,
        signer="token",
        anonymous_source=False,
    )
    assert asked.as_dict() == {
        "catalog": "earth-search",
        "collection": ["a", "b"],
        "query": ["eo:cloud_cover<10"],
        "filter": "platform = 'x'",
        "datetime": "2024-03",
        "limit": 3,
        "signer": "token",
    }
    assert Inputs(item=("a.json", "-")).as_dict() == {"item": ["a.json", "-"]}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"search": "https://u:SECRET@api/v1?a=1"}, {"search": "https://api/v1?a=1"}),
        ({"search": "https://api/v1?token=SECRET"}, {"search": "https://api/v1"}),
        ({"items": "s3://b/i.json?X-Amz-Signature=SECRET"}, {"items": "s3://b/i.json"}),
        ({"item": ("https://h/i?sig=SECRET&v=1",)}, {"item": ["https://h/i?v=1"]}),
        (
            {"search": "https://api", "filter": "href = 'https://h/a?sig=SECRET'"},
            {"search": "https://api", "filter": "href = 'https://h/a'"},
        ),
        (
            {"search": "https://api", "ids": ("a;token=SECRET",)},
            {"search": "https://api", "ids": ["..."]},
        ),
    ],
)
def test_what_was_given_is_told_unsigned(given, told):
    assert Inputs(**given).as_dict() == told


def test_run_json_names_the_file_and_the_digest_does_not(cli, options, three, tmp_path):
    done = cli(*options, "--items", three)
    assert done.code == 3
    runs = sorted((tmp_path / "out").glob("*/run.json"))
    assert len(runs) == 2
    for path in runs:
        assert json.loads(path.read_text())["inputs"] == {"items": str(three)}
    first = json.loads(runs[0].read_text())["run"]["config_digest"]
    again = cli(*options, "--item", tmp_path / "one.json", "--overwrite")
    assert again.code == 0, again.err
    (found,) = (tmp_path / "out").glob("one_*/run.json")
    run = json.loads(found.read_text())
    assert run["inputs"] == {"item": [str(tmp_path / "one.json")]}
    assert run["run"]["config_digest"] == first
