"""The static catalog: valid, repeatable, and whole whoever else is writing."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pystac
import pytest

from geosam_stac.catalog import StaticCatalog, publish, root_of
from geosam_stac.catalog.index import read_index
from geosam_stac.catalog.members import collection_id, link
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.events import Notice
from geosam_stac.versioned import VersionedStore
from tests.catalog import features
from tests.servers import s3_endpoint, s3_keys, use_s3  # noqa: F401  (a fixture)
from tests.stac_schemas import validate

TINY = "sam2.1-hiera-tiny"


@pytest.fixture
def root(tmp_path):
    """Four Items in three Collections: two models, one of them with random weights."""
    made = [
        features.feature_item(0),
        features.feature_item(1),
        features.feature_item(2, collection="naip", resolution=0.6),
        features.feature_item(3, weights="untrained:0"),
    ]
    features.write(tmp_path / "out", *made)
    return tmp_path / "out"


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read(path):
    return json.loads(Path(path).read_text())


def test_a_rebuild_makes_all_of_what_is_there(root):
    before = files(root)
    done = StaticCatalog(str(root)).rebuild()
    assert (done.items, done.collections, done.dropped) == (4, 3, 0)
    assert done.href == str(root / "catalog.json")
    after = files(root)
    assert {key: after[key] for key in before} == before, "Items stay as encode wrote them"
    sha256 = features.document(3, weights="untrained:0")["properties"]["geosam:weights_sha256"]
    untrained = f"{TINY}-untrained-{sha256[:8]}"
    assert sorted(key for key in after if key.endswith("collection.json")) == sorted(
        [
            f"collections/{TINY}-naip/collection.json",
            f"collections/{TINY}-sentinel-2-l2a/collection.json",
            f"collections/{untrained}-sentinel-2-l2a/collection.json",
            "models/collection.json",
        ]
    )
    assert sorted(read(path)["id"] for path in (root / "models").glob("sam*.json")) == [
        TINY,
        untrained,
    ]


def test_every_document_is_valid(root):
    StaticCatalog(str(root)).rebuild()
    used = set()
    for path in sorted(root.rglob("*.json")):
        used.update(validate(read(path)))
    assert any("mlm" in url for url in used)
    assert any("table" in url for url in used)


def test_pystac_walks_it(root):
    StaticCatalog(str(root)).rebuild()
    catalog = pystac.Catalog.from_file(str(root / "catalog.json"))
    ids = sorted(item.id for item in catalog.get_items(recursive=True))
    assert len(ids) == 4 + 2
    for item in catalog.get_items(recursive=True):
        assert item.get_collection().id == item.collection_id
        assert item.get_root() is catalog
        for asset in item.assets.values():
            assert asset.href.startswith("http") or str(root) in asset.get_absolute_href()


def test_the_collection_says_what_its_items_share(root):
    StaticCatalog(str(root)).rebuild()
    place = root / "collections" / f"{TINY}-sentinel-2-l2a" / "collection.json"
    collection = read(place)
    items = [features.document(0), features.document(1)]
    boxes = [item["bbox"] for item in items]
    assert collection["extent"]["spatial"]["bbox"] == [
        [boxes[0][0], min(b[1] for b in boxes), boxes[1][2], max(b[3] for b in boxes)]
    ]
    assert collection["extent"]["temporal"]["interval"] == [
        [item["properties"]["datetime"] for item in items]
    ]
    summaries = collection["summaries"]
    assert summaries["mlm:name"] == [TINY]
    assert summaries["geosam:resolution"] == [10.0]
    assert summaries["geosam:source_collections"] == ["sentinel-2-l2a"]
    assert summaries["platform"] == ["north", "south"]
    columns = collection["item_assets"]["manifest"]["table:columns"]
    assert columns == items[0]["assets"]["manifest"]["table:columns"]
    rels = {(one["rel"], one["href"]) for one in collection["links"]}
    assert {
        ("self", str(place)),
        ("root", "../../catalog.json"),
        ("parent", "../../catalog.json"),
        ("emb:model", f"../../models/{TINY}.json"),
        ("derived_from", f"../../models/{TINY}.json"),
        ("emb:source-data", f"{features.API}/collections/sentinel-2-l2a"),
        ("item", f"./{items[0]['id']}.json"),
        ("item", f"./{items[1]['id']}.json"),
    } <= rels


def test_a_member_is_the_item_with_links(root):
    StaticCatalog(str(root)).rebuild()
    item = features.document(1)
    path = root / "collections" / f"{TINY}-sentinel-2-l2a" / f"{item['id']}.json"
    member = read(path)
    same = ("type", "stac_version", "id", "geometry", "bbox", "properties", "stac_extensions")
    assert {key: member[key] for key in same} == {key: item[key] for key in same}
    assert member["collection"] == f"{TINY}-sentinel-2-l2a"
    assert link(member, "self") == str(path)
    assert link(member, "canonical") == f"../../{item['id']}/{item['id']}.json"
    assert link(member, "emb:model") == f"../../models/{TINY}.json"
    assert member["assets"]["manifest"]["href"] == f"../../{item['id']}/manifest.parquet"
    derived = [one["href"] for one in member["links"] if one["rel"] == "derived_from"]
    source = f"{features.API}/collections/sentinel-2-l2a/items/scene-01"
    assert source in derived
    assert f"../../models/{TINY}.json" in derived


def test_random_weights_are_not_linked_to_upstream(root):
    StaticCatalog(str(root)).rebuild()
    (path,) = root.glob("models/*untrained*.json")
    model = read(path)
    assert "untrained (random) weights" in model["properties"]["title"]
    assert model["properties"]["mlm:pretrained"] is False
    assert (model["assets"], model["stac_extensions"]) == ({}, [])
    assert "http" not in json.dumps(model["links"])
    upstream = read(root / "models" / f"{TINY}.json")
    weights = upstream["assets"]["weights"]
    assert weights["file:checksum"] == "1220" + upstream["properties"]["geosam:weights_sha256"]
    assert upstream["properties"]["license"] == "Apache-2.0"
    assert upstream["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, 1024, 1024]
    assert [one["result"]["shape"] for one in upstream["properties"]["mlm:output"]] == [
        [-1, 256, 64, 64],
        [-1, 32, 256, 256],
        [-1, 64, 128, 128],
    ]


def test_a_second_rebuild_changes_nothing(root):
    catalog = StaticCatalog(str(root))
    catalog.rebuild()
    first, versions = files(root), VersionedStore(str(root)).versions("collections")
    catalog.rebuild()
    StaticCatalog(str(root)).rebuild()
    assert files(root) == first
    assert VersionedStore(str(root)).versions("collections") == versions, "not even written again"


def test_two_catalogs_of_the_same_items_have_the_same_documents(root, tmp_path):
    """Whoever publishes first: the order of the rows is not the order of their times."""
    other = tmp_path / "other" / "out"
    shutil.copytree(root, other)
    StaticCatalog(str(root)).rebuild()
    hrefs = sorted((str(path) for path in other.glob("scene*/*.json")), reverse=True)
    for href in hrefs:
        publish([href], f"{other}/catalog.json")
    for key, data in files(root).items():
        if key.endswith(".json"):
            assert files(other)[key].decode() == data.decode().replace(str(root), str(other)), key


def test_what_is_gone_is_dropped(root):
    catalog = StaticCatalog(str(root))
    catalog.rebuild()
    gone = features.document(2, collection="naip", resolution=0.6)["id"]
    shutil.rmtree(root / gone)
    told = []
    done = catalog.rebuild(sink=told.append)
    assert (done.items, done.collections, done.dropped) == (3, 2, 1)
    assert f"{gone} is dropped from the catalog" in told[0].message
    assert not [key for key in files(root) if "naip" in key or gone in key]
    assert len(read_index((root / "items.parquet").read_bytes())) == 3
    for path in list(root.glob("scene*")):
        shutil.rmtree(path)
    assert catalog.rebuild().items == 0
    assert [*files(root)] == ["catalog.json"]
    assert [one["rel"] for one in read(root / "catalog.json")["links"]] == ["self", "root"]


def test_an_item_of_elsewhere_can_be_a_member(root, tmp_path):
    (href,) = features.write(tmp_path / "elsewhere", features.feature_item(7))
    assert publish([href], f"{root}/catalog.json") == 1
    item_id = features.document(7)["id"]
    member = read(root / "collections" / f"{TINY}-sentinel-2-l2a" / f"{item_id}.json")
    assert link(member, "canonical") == href
    manifest = member["assets"]["manifest"]["href"]
    assert manifest == str(Path(href).with_name("manifest.parquet"))
    # Published as the member that it is, it is still the same Item.
    again = tmp_path / "again"
    publish([link(member, "self")], f"{again}/catalog.json")
    assert link(read(next(again.glob("collections/*/scene*.json"))), "canonical") == href
    Path(href).unlink()
    told = []
    assert StaticCatalog(str(root)).rebuild(sink=told.append).dropped == 1
    assert isinstance(told[0], Notice)


def test_an_item_that_was_encoded_again_is_taken_over(root):
    catalog = StaticCatalog(str(root))
    catalog.rebuild()
    item = features.feature_item(0)
    item.properties["table:row_count"] = 77
    features.write(root, item)
    catalog.rebuild()
    (row,) = (
        one for one in read_index((root / "items.parquet").read_bytes()) if one["id"] == item.id
    )
    assert row["properties"]["table:row_count"] == 77
    path = root / "collections" / f"{TINY}-sentinel-2-l2a" / f"{item.id}.json"
    assert read(path)["properties"]["table:row_count"] == 77


def test_the_index_holds_the_members_exactly(root):
    StaticCatalog(str(root)).rebuild()
    rows = read_index((root / "items.parquet").read_bytes())
    alone = [read_index(path.read_bytes())[0] for path in (root / "index").iterdir()]
    assert rows == sorted(alone, key=lambda one: (one["collection"], one["id"]))
    assert [
        row["properties"]["geosam:value_range"] for row in rows if row["id"].startswith("scene-00")
    ] == [None]
    for row in rows:
        validate(row)


def test_what_is_no_feature_item_is_refused(tmp_path, root):
    other = tmp_path / "item.json"
    other.write_text(json.dumps({"type": "Feature", "id": "a", "properties": {}}))
    with pytest.raises(DataError, match="not an Item of SAM features"):
        publish([str(other)], f"{root}/catalog.json")
    with pytest.raises(DataError, match="no such file"):
        publish([str(tmp_path / "none.json")], f"{root}/catalog.json")


def test_a_signature_is_refused(tmp_path):
    item = features.feature_item()
    document = item.to_dict(transform_hrefs=False)
    document["assets"]["manifest"]["href"] = "https://example.org/m.parquet?sig=hunter2"
    with pytest.raises(GeosamStacError, match="holds a signature") as caught:
        StaticCatalog(str(tmp_path)).add(document, str(tmp_path / "item.json"))
    assert "hunter2" not in str(caught.value)


def test_folders_that_hold_no_feature_item_are_left_alone(root):
    (root / "notes").mkdir()
    (root / "notes" / "notes.json").write_text("{}")
    (root / "broken").mkdir()
    (root / "broken" / "broken.json").write_text("{")
    assert StaticCatalog(str(root)).rebuild().items == 4
    assert (root / "notes" / "notes.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("s3://b/out/catalog.json", "s3://b/out"),
        ("s3://b/out/", "s3://b/out/"),
        ("catalog.json", "."),
        ("/a/b", "/a/b"),
    ],
)
def test_the_folder_of_a_catalog(target, expected):
    assert root_of(target) == expected


# Many at once


def _work(root, hrefs, rebuilds):
    catalog = StaticCatalog(root)
    for number, href in enumerate(hrefs):
        publish([href], f"{root}/catalog.json", rebuild=False)
        if rebuilds and number % 2:
            catalog.rebuild()


def _items_of(root):
    catalog = pystac.Catalog.from_file(f"{root}/catalog.json")
    return sorted(item.id for item in catalog.get_items(recursive=True) if "scene" in item.id)


def test_eighty_items_of_sixteen_processes(tmp_path):
    root = tmp_path / "out"
    made = [features.feature_item(number) for number in range(80)]
    hrefs = features.write(root / "deep", *made)  # not where a rebuild would look for them
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_work, args=(str(root), hrefs[number::16], number % 8 == 0))
        for number in range(16)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 16
    assert len(list((root / "index").glob("*.parquet"))) == 80
    assert StaticCatalog(str(root)).rebuild().items == 80
    expected = sorted(item.id for item in made)
    assert _items_of(root) == expected
    assert (
        sorted(row["id"] for row in read_index((root / "items.parquet").read_bytes())) == expected
    )


def test_an_older_rebuild_never_replaces_a_newer_one(root, monkeypatch):
    """One rebuild has listed the rows and made its documents when another one overtakes it."""
    first, second = StaticCatalog(str(root)), StaticCatalog(str(root))
    made_of = first._made_of
    (href,) = features.write(root / "deep", features.feature_item(9))
    overtaken = []

    def slow(members, rows):
        outputs = made_of(members, rows)
        if not overtaken:
            overtaken.append(True)
            publish([href], f"{root}/catalog.json", rebuild=False)
            assert second.rebuild().items == 5
        return outputs

    monkeypatch.setattr(first, "_made_of", slow)
    assert first.rebuild().items == 5
    assert features.document(9)["id"] in _items_of(root)


def test_a_rebuild_ends_while_others_go_on_publishing(root, monkeypatch):
    catalog = StaticCatalog(str(root))
    numbers = itertools.count(10)
    made_of = catalog._made_of

    def busy(members, rows):
        (href,) = features.write(root / "deep", features.feature_item(next(numbers)))
        publish([href], f"{root}/catalog.json", rebuild=False)
        return made_of(members, rows)

    monkeypatch.setattr(catalog, "_made_of", busy)
    told = []
    assert catalog.rebuild(sink=told.append).items == 6
    assert "rebuild again" in told[-1].message
    monkeypatch.undo()
    assert catalog.rebuild().items == 7


# On a bucket


def test_on_a_bucket(root, s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    url = "s3://bucket/static"
    store = VersionedStore(url)
    for path in root.rglob("*.json"):
        store.put(path.relative_to(root).as_posix(), path.read_bytes())
    made = [features.feature_item(number) for number in range(20, 26)]
    hrefs = features.write(root / "local", *made)
    with ThreadPoolExecutor(3) as pool:
        parts = [hrefs[number::3] for number in range(3)]
        assert list(pool.map(_work, [url] * 3, parts, [True] * 3)) == [None] * 3
    done = StaticCatalog(url).rebuild()
    assert (done.items, done.href) == (10, f"{url}/catalog.json")
    versions = {**store.versions("collections"), "c": store.version("catalog.json")}
    assert StaticCatalog(url).rebuild().items == 10
    assert versions == {**store.versions("collections"), "c": store.version("catalog.json")}
    keys = s3_keys(s3_endpoint)
    assert f"static/collections/{collection_id(features.document(0))}/collection.json" in keys
    catalog = json.loads(store.get("catalog.json"))
    assert {one["href"] for one in catalog["links"] if one["rel"] == "child"} >= {
        "./models/collection.json"
    }
