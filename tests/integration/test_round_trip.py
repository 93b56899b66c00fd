"""The round trip: scenes encoded to a bucket, published, found by each search, and used again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import geosam_stac as gs
from geosam_stac.storage import Store
from tests import rasters
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.pgstac import pgstac  # noqa: F401  (a fixture)
from tests.servers import s3_endpoint, s3_keys, use_s3  # noqa: F401  (a fixture)
from tests.stac_schemas import validate

NAIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "naip" / "item.json"
NAIP_BBOX = "-99.160,47.015,-99.155,47.018"
NAIP_ID = "nd_m_4709963_se_14_1_20200831_5m"
OUT = "s3://bucket/round"
CATALOG = f"{OUT}/catalog.json"
TINY = "sam2.1-hiera-tiny"
# The API is shared with other tests, whose Items are of other chips.
MINE = '"geosam:weights" = \'untrained\' AND "geosam:chip_size" = 64 AND "geosam:stride" = 32'

pytestmark = [
    pytest.mark.shared,
    pytest.mark.usefixtures("fake_model"),
    pytest.mark.skipif(not NAIP.is_file(), reason="../shared/data/naip is not here"),
]


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):  # noqa: F811
    """A bucket of S3 for the features."""
    use_s3(monkeypatch, s3_endpoint)
    yield s3_endpoint
    Store("s3://bucket").delete_tree("round")


def written(bucket: str) -> dict[str, int]:
    """Sizes by key of this test's own objects: the bucket is shared with other tests."""
    return {key: size for key, size in s3_keys(bucket).items() if key.startswith("round/")}


def synthetic(folder: Path, number: int) -> Path:
    """A 96 px scene of 10 m, 100 km east and a day later than the one before it."""
    name = f"synthetic-{number}"
    data = rasters.values((3, 96, 96), "uint16", seed=number, hi=3000)
    affine = rasters.NORTH_UP.translation(100_000.0 * number, 0) @ rasters.NORTH_UP
    tif = rasters.write_tif(folder / f"{name}.tif", data, transform=affine)
    bands = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(
        folder / f"{name}.json",
        {"image": rasters.asset(tif, **bands)},
        item_id=name,
        collection="synthetic",
        properties={"datetime": f"2024-08-{15 + number}T12:00:00.5Z", "platform": "made"},
    )


@pytest.fixture
def encoded(cli, bucket, tmp_path):  # noqa: F811
    """hrefs by scene: two synthetic scenes and NAIP, on a bucket, published into its catalog."""
    options = ("--model", TINY, "--checkpoint", "untrained", "--device", "cpu", "--stride", "32")
    hrefs = {}
    for number in range(2):
        source = synthetic(tmp_path, number)
        done = cli("encode", "--item", source, *options, "--out", OUT, "--publish", CATALOG)
        assert done.code == 0, done.err
        hrefs[f"synthetic-{number}"] = done.out.strip()
    done = cli("encode", "--item", NAIP, *options, "--out", OUT, "--bbox", NAIP_BBOX)
    assert done.code == 0, done.err
    hrefs[NAIP_ID] = done.out.strip()
    return hrefs


def test_round_trip(cli, encoded, bucket, pgstac):  # noqa: F811
    hrefs = [encoded[name] for name in ("synthetic-1", "synthetic-0", NAIP_ID)]
    keys = written(bucket)
    # One was not published as it was encoded; the others were, and once more does no harm.
    done = cli("publish", *hrefs, "--to", pgstac.url)
    assert done.code == 0, done.err
    done = cli("catalog", "rebuild", OUT)
    assert (done.code, done.lines) == (0, [CATALOG]), done.err
    assert {key: size for key, size in written(bucket).items() if "scene" in key} == {
        key: size for key, size in keys.items() if "scene" in key
    }
    rebuilt = written(bucket)
    places = (
        ("--api", pgstac.url),
        ("--catalog", CATALOG),
        ("--index", f"{OUT}/items.parquet"),
    )
    # The API is shared with other tests: these weights are this one's alone.
    weights = '"geosam:weights" = \'untrained\' AND "geosam:chip_size" = 64'
    only = ("--filter", weights)
    synthetic_only = ("--source-collection", "synthetic")
    for place in places:
        assert cli("search", *place, "--model", TINY, *only).lines == hrefs
        assert cli("search", *place, "--resolution", "10", *only).lines == hrefs[:2]
        assert cli("search", *place, "--bbox", NAIP_BBOX, *only).lines == hrefs[2:]
        assert cli("search", *place, "--datetime", "2024-08-16", *only).lines == hrefs[:1]
        assert cli("search", *place, *synthetic_only, *only).lines == hrefs[:2]
        nothing = cli("search", *place, "--model", "sam3", *only)
        assert (nothing.code, nothing.out) == (0, "")
        assert "nothing found" in nothing.err
        found = json.loads(cli("search", *place, *only, "--json").out)["features"]
        for document in found:
            validate(document)
            assert document["assets"]["manifest"]["href"].startswith(f"{OUT}/")
    store = Store(OUT)
    documents = [key for key in rebuilt if key.endswith(".json") and "run.json" not in key]
    for key in documents:
        validate(json.loads(store.get(key.removeprefix("round/"))))
    assert sum(key.endswith("collection.json") for key in documents) == 3
    _use(encoded[NAIP_ID], pgstac.url)


def _use(href: str, api: str) -> None:
    """What each search found is opened: `pull` and `segment` of the same go on from here."""
    bbox = [float(part) for part in NAIP_BBOX.split(",")]
    for place in ({"api": api}, {"catalog": CATALOG}, {"index": f"{OUT}/items.parquet"}):
        (found,) = gs.search_features(**place, bbox=bbox, model=TINY, filter=MINE)
        assert found.self_href == href
        features = gs.open_features(found)
        assert len(features.manifest) == found.properties["table:row_count"]
        assert features.chip_at(-99.1575, 47.0165).tensors["image_embed"].shape == (3, 4, 4)
