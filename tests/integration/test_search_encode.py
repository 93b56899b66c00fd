"""`encode` from a search of a real STAC API: 20 Items, one of them broken, in one line.

The rasters come from a web server in a process of its own; the model is the fake one.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from geosam_stac.errors import DataError
from geosam_stac.pipeline import encode_scene
from geosam_stac.sources.query import SearchQuery
from geosam_stac.sources.search import search
from tests import rasters
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.fakes import fake_session
from tests.integration.test_pgstac import (
    ALL,
    BROKEN,
    COUNT,
    SIZE_PX,
    collection,
    document,
    files,  # noqa: F401  (a fixture)
    grid,
    names,
)
from tests.integration.test_signed import SECRET as STORE_SECRET
from tests.integration.test_signed import store  # noqa: F401  (a fixture)
from tests.pgstac import pgstac  # noqa: F401  (a fixture)

COLLECTION = "encode-twenty"
MALFORMED = "encode-malformed"
SECRET = "hunter2-is-no-password"

pytestmark = pytest.mark.usefixtures("fake_model")


def write(folder: Path, number: int) -> None:
    data = rasters.values((3, SIZE_PX, SIZE_PX), "uint8", seed=number)
    geobox = grid(number)
    rasters.write_tif(
        folder / f"{ALL[number]}.tif", data, transform=geobox.affine, crs=str(geobox.crs), nodata=0
    )


@pytest.fixture(scope="module")
def api(pgstac, files):  # noqa: F811
    """(URL, folder of the rasters): 20 Items, the raster of one not there; one more malformed."""
    folder, url = files
    for number in set(range(COUNT)) - {BROKEN}:
        write(folder, number)
    items = [
        document(number, f"{url}/{ALL[number]}.tif") | {"collection": COLLECTION}
        for number in range(COUNT)
    ]
    pgstac.post_collection(collection(COLLECTION))
    pgstac.post_items(COLLECTION, items)
    pgstac.post_collection(collection(MALFORMED))
    pgstac.post_items(MALFORMED, [items[0] | {"collection": MALFORMED}])
    pgstac.insert_unchecked(
        items[1] | {"collection": MALFORMED, "assets": {"visual": {"title": "no href"}}}
    )
    return pgstac.url, folder


@pytest.fixture
def options(tmp_path):
    return [
        *("encode", "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained"),
        *("--device", "cpu", "--chip-size", "64", "--stride", "64"),
        *("--out", str(tmp_path / "out")),
    ]


def ids(done):
    return sorted(Path(line).name.partition("_")[0] for line in done.lines)


def failed_ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_twenty_items_one_broken(cli, api, options, tmp_path, monkeypatch):  # noqa: F811
    url, folder = api
    monkeypatch.setenv("GEOSAM_STAC_API_TOKEN", SECRET)
    # A process of its own would not know of the 404 that this one has met.
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/http://127.0.0.1")
    search = (*options, "--search", url, "--collection", COLLECTION, "-v")
    good = sorted(set(ALL) - {ALL[BROKEN]})
    failed = tmp_path / "out" / "failed.ndjson"

    first = cli(*search)
    assert first.code == 3, first.err
    assert ids(first) == good
    assert first.err.count("1 chip encoded in ") == 19
    assert failed_ids(failed) == [ALL[BROKEN]]
    assert f"error: 1 of 20 scenes failed: see {failed}" in first.err

    second = cli(*search)
    assert (second.code, ids(second)) == (3, good)
    assert second.err.count("nothing to do") == 19
    assert "encoded in" not in second.err

    again = cli(*options, "--items", failed)
    assert (again.code, again.out) == (65, "")
    assert again.err.count("error: ") == 1
    assert failed_ids(failed) == [ALL[BROKEN]]

    write(folder, BROKEN)
    try:
        mended = cli(*options, "--items", failed)
    finally:
        (folder / f"{ALL[BROKEN]}.tif").unlink()
    assert (mended.code, ids(mended)) == (0, [ALL[BROKEN]])
    assert not failed.exists()

    said = "".join(done.out + done.err for done in (first, second, again, mended))
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert SECRET not in said
    assert SECRET.encode() not in written


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("--limit", "3"), names(19, 18, 17)),
        (("--limit", "3", "--sortby", "id"), names(0, 1, 2)),
        (("--ids", "item-03,item-05", "--ids", "item-04"), names(5, 4, 3)),
        (("--datetime", "2024-01-03/2024-01-05"), names(4, 3, 2)),
        (("--filter", "platform = 'north' AND \"eo:cloud_cover\" < 18"), names(1, 0)),
        (("--query", "platform=south", "--query", "eo:cloud_cover>=82"), names(19, 18)),
        (("--bbox", "-99,46.9,-98.73,47"), names(1, 0)),
        (
            ("--bbox", "520000,5199000,521000,5200000", "--bbox-crs", "EPSG:32614"),
            names(1),
        ),
    ],
)
def test_what_a_search_finds(cli, api, options, asked, expected):  # noqa: F811
    search = ("--search", api[0], "--collection", COLLECTION, "--dry-run", "--json")
    done = cli(*options, *search, *asked)
    assert done.code == 0, done.err
    assert [json.loads(line)["scene"] for line in done.lines] == expected


def test_a_geometry_narrows_the_search(cli, api, options, tmp_path):  # noqa: F811
    box = [[-99, 46.9], [-98.99, 46.9], [-98.99, 47], [-99, 47], [-99, 46.9]]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "Polygon", "coordinates": [box]}))
    search = ("--search", api[0], "--collection", COLLECTION)
    done = cli(*options, *search, "--geometry", area)
    assert (done.code, ids(done)) == (0, names(0)), done.err


def test_a_mosaic(cli, api, options):  # noqa: F811
    search = ("--search", api[0], "--collection", COLLECTION, "--ids", "item-00,item-01")
    done = cli(*options, *search, "--groupby", "platform")
    assert done.code == 0, done.err
    (href,) = done.lines
    item = json.loads(Path(href).read_text())
    assert item["properties"]["geosam:source_items"] == names(0, 1)
    assert item["properties"]["table:row_count"] > 0


def test_nothing_found(cli, api, options, tmp_path):  # noqa: F811
    search = ("--search", api[0], "--collection", COLLECTION, "--datetime", "1999")
    done = cli(*options, *search)
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        f"warning: nothing found: {api[0]} has no Items for --collection {COLLECTION}, "
        "--datetime 1999 and the extent, if one was given\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_malformed_item_fails_alone(cli, api, options, tmp_path):  # noqa: F811
    done = cli(*options, "--search", api[0], "--collection", MALFORMED)
    assert (done.code, ids(done)) == (3, names(0))
    assert "$.assets.visual.href" in done.err
    (line,) = (tmp_path / "out" / "failed.ndjson").read_text().splitlines()
    assert json.loads(line)["href"].endswith(f"/collections/{MALFORMED}/items/item-01")
    again = cli(*options, "--items", tmp_path / "out" / "failed.ndjson")
    assert (again.code, again.out) == (65, "")


def test_after_stac_client(cli, api, options, monkeypatch):  # noqa: F811
    stac_client = Path(sys.executable).with_name("stac-client")
    found = subprocess.run(
        [stac_client, "search", api[0], "-c", COLLECTION, "--ids", "item-02", "item-03"],
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    buffer = io.BufferedReader(io.BytesIO(found))
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=buffer))
    done = cli(*options, "--items", "-")
    assert (done.code, ids(done)) == (0, names(2, 3)), done.err


def test_twenty_items_one_broken_one_behind_an_expired_signature(
    pgstac,  # noqa: F811
    files,  # noqa: F811
    store,  # noqa: F811
    tmp_path,
):
    """The catalog hands out a signature that has run out: a new one is made before the read."""
    folder, url = files
    signed = BROKEN + 1
    for number in set(range(COUNT)) - {BROKEN, signed}:
        write(folder, number)
    hrefs = {number: f"{url}/{ALL[number]}.tif" for number in range(COUNT)}
    write(tmp_path / "served", signed)
    hrefs[signed] = store.href("signed", f"{ALL[signed]}.tif") + f"?sv=2024&sig={SECRET}"
    name = "encode-signed"
    pgstac.post_collection(collection(name))
    pgstac.post_items(name, [document(n, href) | {"collection": name} for n, href in hrefs.items()])

    session = fake_session(
        tmp_path, chip_size=64, stride=64, value_range="0,3000", allow_private_hosts=True
    )
    signer = store.signer()
    session.access = lambda item: signer
    encoded, failed = [], []
    with session:
        for found in search(SearchQuery(url=pgstac.url, collections=(name,))):
            try:
                result = encode_scene(session, session.scene(found.item), session.config)
            except DataError as error:
                failed.append((found.item.id, str(error)))
            else:
                encoded.append(result.item.properties["geosam:source_items"][0])

    assert sorted(encoded) == sorted(set(ALL) - {ALL[BROKEN]})
    assert [name for name, _ in failed] == [ALL[BROKEN]]
    assert "is not there" in failed[0][1]
    assert store.stats()["tokens"] == ["/token/acct/signed"]
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert SECRET.encode() not in written
    assert STORE_SECRET.encode() not in written
