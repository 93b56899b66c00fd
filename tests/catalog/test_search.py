"""Search: the same answer from an index, a static catalog and a real STAC API."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geosam_stac.catalog import FeatureQuery, StaticCatalog, canonical, publish, search_features
from geosam_stac.catalog.index import index_facts, read_index
from geosam_stac.catalog.transactions import publish_to_api
from geosam_stac.errors import ConfigurationError, DataError, UsageError
from tests.catalog import features
from tests.pgstac import pgstac  # noqa: F401  (a fixture)
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)
from tests.stac_schemas import validate

BASE = "sam2.1-hiera-base-plus"
COMMAND = (sys.executable, "-m", "geosam_stac", "search")
UNTRAINED = {"weights": "untrained:0"}


def made():
    """Eight Items: two models, three source collections, one over the antimeridian."""
    return [
        features.feature_item(0),
        features.feature_item(1),
        features.feature_item(2, collection="naip", resolution=0.6),
        features.feature_item(3, model=BASE),
        features.feature_item(4, model=BASE, resolution=20.0, days=5),
        features.feature_item(5),
        features.feature_item(6, collection=None, **UNTRAINED),
        features.feature_item(7, origin=(179.995, 10.0), days=40),
    ]


IDS = [item.id for item in made()]
EVERYTHING = [7, 6, 5, 4, 3, 2, 1, 0]
QUERIES = {
    "everything": ({}, EVERYTHING),
    "limit": ({"limit": 3}, [7, 6, 5]),
    "model": ({"model": "sam2.1-hiera-base-plus"}, [4, 3]),
    "alias": ({"model": "sam2.1_t"}, [7, 6, 5, 2, 1, 0]),
    "resolution": ({"resolution": 10}, [6, 5, 3, 1, 0]),
    "fraction": ({"resolution": 0.6}, [2]),
    "source collection": ({"source_collection": "naip"}, [2]),
    "bbox": ({"bbox": (-99.0, 46.9, -98.73, 47.0)}, [1, 0]),
    "antimeridian": ({"bbox": (179.9, 9.9, -179.9, 10.1)}, [7]),
    "west of it": ({"bbox": (179.99, 9.9, 180.0, 10.1)}, [7]),
    "east of it": ({"bbox": (-180.0, 9.9, -179.99, 10.1)}, [7]),
    "beside it": ({"bbox": (-179.9, 9.9, -179.0, 10.1)}, []),
    "month": ({"datetime": "2024-02"}, [7]),
    "day": ({"datetime": "2024-01-03"}, [2]),
    "interval": ({"datetime": "2024-01-02/2024-01-04T12:00:00Z"}, [2, 1]),
    "fraction of a second": ({"datetime": "2024-01-02T12:00:00.024Z/.."}, [7, 6, 5, 4, 3, 2, 1]),
    "until": ({"datetime": "../2024-01-02"}, [1, 0]),
    "CQL2": (
        {
            "filter": '"mlm:name" = \'sam2.1-hiera-base-plus\' AND "geosam:resolution" = 10 AND '
            "a_contains(\"geosam:source_collections\", ('sentinel-2-l2a'))"
        },
        [3],
    ),
    "CQL2 number": ({"filter": '"eo:cloud_cover" < 2'}, [1, 0]),
    "CQL2 text": ({"filter": "platform = 'north' AND NOT id LIKE 'scene-07%'"}, [5, 3, 1]),
    "CQL2 or": ({"filter": "platform = 'nowhere' OR \"geosam:resolution\" > 15"}, [4]),
    "CQL2 null": ({"filter": '"geosam:value_range" IS NULL'}, [6, 3, 0]),
    "CQL2 unknown": ({"filter": '"no:such" = 3'}, []),
    "CQL2 in": ({"filter": "\"geosam:weights\" IN ('untrained')"}, [6]),
    "CQL2 bands": ({"filter": "a_contains(\"geosam:bands\", ('red', 'blue'))"}, EVERYTHING),
    "CQL2 JSON": (
        {"filter": {"op": "=", "args": [{"property": "platform"}, "south"]}},
        [6, 4, 2, 0],
    ),
    "nothing": ({"model": "sam3"}, []),
    "all at once": (
        {
            "model": BASE,
            "resolution": 10,
            "bbox": (-99.0, 46.0, -97.0, 48.0),
            "datetime": "2024-01",
            "source_collection": "sentinel-2-l2a",
            "filter": "platform = 'north'",
            "limit": 5,
        },
        [3],
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A static catalog of the eight Items."""
    folder = tmp_path_factory.mktemp("static") / "out"
    features.write(folder, *made())
    StaticCatalog(str(folder)).rebuild()
    return folder


@pytest.fixture(scope="module")
def api(pgstac, root):  # noqa: F811
    """A real STAC API that the Items were published to by Transactions, and other Items in it."""
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    other = {"type": "Collection", "stac_version": "1.1.0", "id": "not-features", "links": []}
    pgstac.post_collection(other | {"description": "d", "license": "other", "extent": extent})
    item = features.document(0) | {"id": "no-feature", "collection": "not-features"}
    item["properties"] = {"datetime": "2024-01-01T12:00:00Z", "mlm:name": BASE}
    pgstac.post_items("not-features", [item])
    hrefs = [str(root / item_id / f"{item_id}.json") for item_id in IDS]
    assert publish(hrefs, pgstac.url) == len(IDS)
    return pgstac.url


def ids(found):
    return [one["id"] for one in found]


def names(numbers):
    return [IDS[number] for number in numbers]


@pytest.mark.parametrize("name", QUERIES)
def test_an_index_and_a_catalog_give_the_same_answer(root, name):
    options, expected = QUERIES[name]
    query = FeatureQuery(**options)
    assert ids(search_features(query, index=str(root / "items.parquet"))) == names(expected)
    assert ids(search_features(query, catalog=str(root / "catalog.json"))) == names(expected)


@pytest.mark.parametrize("name", QUERIES)
def test_a_stac_api_gives_the_same_answer(api, name):
    options, expected = QUERIES[name]
    assert ids(search_features(FeatureQuery(**options), api=api)) == names(expected)


def test_all_three_lead_to_the_item_that_was_encoded(root, api):
    query = FeatureQuery()
    expected = [str(root / name / f"{name}.json") for name in names(EVERYTHING)]
    for place in ({"api": api}, {"index": str(root / "items.parquet")}, {"catalog": str(root)}):
        found = search_features(query, **place)
        assert [canonical(one) for one in found] == expected
        for document in found:
            validate(document)
            manifest = document["assets"]["manifest"]["href"]
            assert manifest == str(root / document["id"] / "manifest.parquet")


def test_the_documents_are_the_same_from_all_three(root, api):
    static = search_features(FeatureQuery(), catalog=str(root))
    asked = search_features(FeatureQuery(), api=api)
    for one, other in zip(static, asked, strict=True):
        same = ("id", "collection", "geometry", "bbox", "assets", "stac_extensions", "properties")
        for key in same:
            assert _without_nulls(one[key]) == other[key], key


def _without_nulls(value):
    """pgstac keeps no null, as `geosam:value_range` of an 8-bit scene."""
    if not isinstance(value, dict):
        return value
    return {key: inner for key, inner in value.items() if inner is not None}


def test_a_catalog_without_its_index_reads_the_rows(root, tmp_path):
    copy = tmp_path / "copy"
    features.write(copy, *made()[:2])
    catalog = StaticCatalog(str(copy))
    catalog.rebuild()
    (copy / "items.parquet").unlink()
    assert ids(search_features(FeatureQuery(), catalog=str(copy))) == names([1, 0])
    catalog.rebuild()
    # Published since, and not rebuilt: found all the same.
    hrefs = features.write(copy, *made()[2:4])
    publish(hrefs, f"{copy}/catalog.json", rebuild=False)
    assert len(read_index((copy / "items.parquet").read_bytes())) == 2
    assert ids(search_features(FeatureQuery(), catalog=str(copy))) == names([3, 2, 1, 0])
    # Encoded again with the same id.
    item = made()[0]
    item.properties["platform"] = "elsewhere"
    publish(features.write(copy, item), f"{copy}/catalog.json", rebuild=False)
    elsewhere = FeatureQuery(filter="platform = 'elsewhere'")
    assert ids(search_features(elsewhere, catalog=str(copy))) == names([0])


def test_a_catalog_that_was_copied_elsewhere_leads_to_its_own_files(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    found = search_features(FeatureQuery(limit=2), catalog=str(copy))
    assert [canonical(one) for one in found] == [
        str(copy / name / f"{name}.json") for name in names([7, 6])
    ]
    assert found[0]["assets"]["manifest"]["href"] == str(copy / IDS[7] / "manifest.parquet")


def test_a_catalog_of_links_alone(root, tmp_path):
    """As on a web server that lists nothing, and without an index."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "index")
    (copy / "items.parquet").unlink()
    (copy / "collections" / "sam2.1-hiera-tiny-naip" / f"{IDS[2]}.json").unlink()
    told = []
    found = search_features(FeatureQuery(), catalog=str(copy), sink=told.append)
    assert ids(found) == names([7, 6, 5, 4, 3, 1, 0])
    assert IDS[2] in told[0].message


def test_on_a_bucket(root, s3_endpoint, monkeypatch):  # noqa: F811
    from geosam_stac.versioned import VersionedStore

    use_s3(monkeypatch, s3_endpoint)
    url = "s3://bucket/found"
    store = VersionedStore(url)
    for name in IDS[:3]:
        store.put(f"{name}/{name}.json", (root / name / f"{name}.json").read_bytes())
    StaticCatalog(url).rebuild()
    expected = [f"{url}/{name}/{name}.json" for name in names([2, 1, 0])]
    for place in ({"catalog": f"{url}/catalog.json"}, {"index": f"{url}/items.parquet"}):
        found = search_features(FeatureQuery(), **place)
        assert [canonical(one) for one in found] == expected
        assert found[0]["assets"]["manifest"]["href"] == f"{url}/{IDS[2]}/manifest.parquet"
    target = f"{url}/more/mine.parquet"
    for href in expected:
        publish([href], target)
    assert ids(search_features(FeatureQuery(), index=target)) == names([2, 1, 0])


def test_publishing_into_an_index(root, tmp_path):
    target = tmp_path / "new" / "mine.parquet"
    hrefs = [str(root / name / f"{name}.json") for name in IDS]
    assert publish(hrefs[:3], str(target)) == 3
    publish(hrefs[2:5], str(target))
    data = target.read_bytes()
    publish(hrefs[:5], str(target))
    assert target.read_bytes() == data
    found = search_features(FeatureQuery(), index=str(target))
    assert ids(found) == names([4, 3, 2, 1, 0])
    for document in found:
        validate(document)
        assert canonical(document) == str(root / document["id"] / f"{document['id']}.json")
    with pytest.raises(DataError, match="belongs to a static catalog"):
        publish(hrefs[:1], str(root / "items.parquet"))
    assert "rows" in index_facts((root / "items.parquet").read_bytes())


def _publish(hrefs, target):
    for href in hrefs:
        publish([href], target)


def test_many_processes_publish_into_one_index(tmp_path):
    import multiprocessing

    hrefs = features.write(tmp_path, *[features.feature_item(number) for number in range(24)])
    target = str(tmp_path / "mine.parquet")
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_publish, args=(hrefs[number::6], target)) for number in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(read_index(Path(target).read_bytes())) == 24
    assert not list(tmp_path.glob(".*"))


def test_others_read_the_index(root):
    import geopandas
    import pyarrow.parquet as pq

    frame = geopandas.read_parquet(root / "items.parquet")
    assert sorted(frame["id"]) == sorted(IDS)
    assert frame.crs == "OGC:CRS84"
    assert set(frame.geom_type) == {"Polygon", "MultiPolygon"}
    assert str(frame["datetime"].dtype).startswith("datetime64[us, UTC")
    table = pq.read_table(root / "items.parquet", columns=["id", "mlm:name", "bbox", "assets"])
    first = table.to_pylist()[0]
    assert first["mlm:name"] == BASE
    assert first["assets"]["manifest"]["type"] == "application/vnd.apache.parquet"


def test_others_read_the_index_with_duckdb(root):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    rows = duckdb.sql(
        f"""select id from '{root / "items.parquet"}' where "mlm:name" = '{BASE}'
        and bbox.xmin < -98.5 order by id"""
    ).fetchall()
    assert [row[0] for row in rows] == names([3])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": "sam9"}, ConfigurationError, "unknown model"),
        ({"resolution": 0}, UsageError, "--resolution must be a positive number"),
        ({"bbox": (1, 2, 3)}, UsageError, "bbox takes four numbers"),
        ({"datetime": "yesterday"}, UsageError, "--datetime is not understood"),
        ({"filter": "platform ="}, UsageError, "--filter is no CQL2"),
        ({"filter": '"mlm:name"'}, UsageError, "a part of --filter tests nothing.*got mlm:name"),
        ({"limit": 0}, UsageError, "--limit must be at least 1"),
    ],
)
def test_what_is_not_understood(options, error, text):
    with pytest.raises(error, match=text):
        FeatureQuery(**options)


def test_a_function_that_is_not_cql2s_is_no_empty_answer(root):
    with pytest.raises(UsageError, match="function that is not CQL2's; got upper"):
        search_features(FeatureQuery(filter="upper(platform) = 'NORTH'"), catalog=str(root))


def test_one_place_to_search(root):
    for places in ({}, {"index": "a", "api": "b"}):
        with pytest.raises(UsageError, match="Give one of --catalog, --index and --api"):
            search_features(FeatureQuery(), **places)
    with pytest.raises(DataError, match="no such file"):
        search_features(FeatureQuery(), catalog=str(root / "none" / "catalog.json"))
    with pytest.raises(DataError, match="no such file"):
        search_features(FeatureQuery(), index=str(root / "none.parquet"))


# Transactions


def test_publishing_again_replaces(api, root, pgstac):  # noqa: F811
    item = features.feature_item(0).to_dict(transform_hrefs=False)
    item["properties"]["platform"] = "again"
    href = str(root / IDS[0] / f"{IDS[0]}.json")
    asked = FeatureQuery(filter="platform = 'again'")
    assert ids(search_features(asked, api=api)) == []
    assert publish_to_api([(item, href)], api) == 1
    try:
        assert ids(search_features(asked, api=api)) == names([0])
    finally:
        publish([href], api)
    assert ids(search_features(FeatureQuery(), api=api)) == names(EVERYTHING)


def test_the_collection_of_the_api_grows(pgstac, tmp_path):  # noqa: F811
    import requests

    items = [features.feature_item(number, collection="grows") for number in (3, 1, 5)]
    hrefs = features.write(tmp_path, *items)
    for href in hrefs:
        publish([href], pgstac.url + "/")
    url = f"{pgstac.url}/collections/sam2.1-hiera-tiny-grows"
    collection = requests.get(url, timeout=30).json()
    validate(collection)
    boxes = [item.bbox for item in items]
    assert collection["extent"]["spatial"]["bbox"][0] == [
        boxes[1][0],
        min(box[1] for box in boxes),
        boxes[2][2],
        max(box[3] for box in boxes),
    ]
    interval = [items[1].properties["datetime"], items[2].properties["datetime"]]
    assert collection["extent"]["temporal"]["interval"] == [interval]
    rels = {(one["rel"], one["href"]) for one in collection["links"]}
    assert ("emb:model", f"{pgstac.url}/collections/geosam-models/items/sam2.1-hiera-tiny") in rels
    model = requests.get(
        f"{pgstac.url}/collections/geosam-models/items/sam2.1-hiera-tiny", timeout=30
    )
    validate(model.json())
    assert "mlm" in " ".join(model.json()["stac_extensions"])


def test_local_hrefs_are_warned_of(api, root):
    told = []
    publish([str(root / IDS[1] / f"{IDS[1]}.json")], api, sink=told.append)
    assert "nobody else can open" in told[0].message


def test_models_of_every_encoder_are_valid():
    from geosam_stac.catalog.members import ApiPlaces
    from geosam_stac.catalog.models import model_item, models_collection
    from geosam_stac.encoders.registry import MODELS

    places = ApiPlaces(root="https://stac.example.org")
    items = [model_item(features.document(model=entry.name), places) for entry in MODELS]
    for item, entry in zip(items, MODELS, strict=True):
        assert any("mlm" in url for url in validate(item))
        assert item["id"] == entry.name
        assert item["assets"]["weights"]["href"] == entry.url
        assert item["assets"]["weights"]["file:size"] == entry.size_bytes
    validate(models_collection(items, places))
    assert json.dumps(items)


def test_items_of_one_moment_have_one_order(pgstac, tmp_path):  # noqa: F811
    items = [
        features.feature_item(0, collection="ties", model=model, resolution=resolution)
        for model in ("sam-vit-base", BASE)
        for resolution in (10.0, 20.0)
    ]
    hrefs = features.write(tmp_path, *items)
    publish(hrefs, pgstac.url)
    publish(hrefs, f"{tmp_path}/catalog.json")
    expected = sorted((item.id for item in items), reverse=True)
    for limit in (1, 3, 4):
        query = FeatureQuery(source_collection="ties", limit=limit)
        assert ids(search_features(query, api=pgstac.url)) == expected[:limit]
        assert ids(search_features(query, catalog=str(tmp_path))) == expected[:limit]


def test_without_a_network(root):
    unshare = shutil.which("unshare")
    alone = [unshare, "-rn"] if unshare else []
    if not alone or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a process without a network cannot be made here (unshare -rn)")
    for place in (("--catalog", root / "catalog.json"), ("--index", root / "items.parquet")):
        done = subprocess.run(
            [*alone, *COMMAND, *map(str, place), "--model", BASE, "--bbox", "-99,46,-97,48"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [Path(line).stem for line in done.stdout.splitlines()] == names([4, 3])


def test_what_is_no_catalog_of_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="encode --catalog"):
        search_features(FeatureQuery(), catalog="earth-search")
    with pytest.raises(DataError, match="there are no feature Items here"):
        StaticCatalog(str(tmp_path / "typo")).rebuild()
    assert list(tmp_path.iterdir()) == []
