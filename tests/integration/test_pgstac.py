"""Searches of a real STAC API: stac-fastapi-pgstac on PostgreSQL with PostGIS, on loopback.

20 Items with GeoTIFFs; `item-07` is broken. `item-18` and `item-19` lie on either side of the
antimeridian, the others 20 km apart on a line to the east.
"""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, TemporaryError, UsageError
from geosam_stac.sources import open_scene
from geosam_stac.sources.query import SearchQuery
from geosam_stac.sources.search import search
from tests import rasters
from tests.pgstac import pgstac  # noqa: F401  (a fixture)
from tests.quick import quick

SIZE_PX = 64
COUNT = 20
BROKEN = 7
COLLECTIONS = ("search-even", "search-odd")
ALL = [f"item-{number:02d}" for number in range(COUNT)]
NEWEST_FIRST = list(reversed(ALL))


def names(*numbers):
    return [ALL[number] for number in numbers]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A web server over a folder; yields (folder, URL)."""
    folder = tmp_path_factory.mktemp("tifs")
    # A process of its own: rasterio.open keeps the GIL while GDAL waits for the answer, so a thread
    # of this process would never give one.
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            port = re.search(r"port (\d+)", process.stdout.readline())[1]
            yield folder, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def grid(number):
    if number >= 18:
        west = 179.9 if number == 18 else -179.95
        return GeoBox((SIZE_PX, SIZE_PX), Affine(1e-4, 0, west, 0, -1e-4, 10.0), "EPSG:4326")
    affine = Affine(10.0, 0, 500_000.0 + number * 20_000.0, 0, -10.0, 5_200_000.0)
    return GeoBox((SIZE_PX, SIZE_PX), affine, rasters.UTM14)


def document(number, href):
    geobox = grid(number)
    footprint = geobox.extent.to_crs("EPSG:4326")
    moment = datetime(2024, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)
    properties = {
        "datetime": moment.isoformat().replace("+00:00", "Z"),
        # Two digits each: pgstac sorts a property that its queryables do not know as text.
        "eo:cloud_cover": 10 + number * 4,
        "platform": "north" if number < 10 else "south",
        "geosam:source_collections": ["s2", f"part-{number % 3}"],
        "proj:code": str(geobox.crs),
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.affine)[:6],
    }
    bands = [{"name": name, "eo:common_name": name} for name in ("red", "green", "blue")]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": ALL[number],
        "collection": COLLECTIONS[number % 2],
        "geometry": footprint.json,
        "bbox": list(footprint.boundingbox.bbox),
        "links": [],
        "properties": properties,
        "assets": {"visual": rasters.asset(href, bands=bands, data_type="uint8", nodata=0)},
    }


def collection(name):
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    document = {"type": "Collection", "stac_version": "1.1.0", "id": name, "description": "d"}
    return document | {"license": "other", "links": [], "extent": extent}


@pytest.fixture(scope="module")
def api(pgstac, files):  # noqa: F811
    """The API's URL, with all Items in it."""
    folder, url = files
    documents = {name: [] for name in COLLECTIONS}
    for number in range(COUNT):
        geobox = grid(number)
        path = folder / f"{ALL[number]}.tif"
        data = rasters.values((3, SIZE_PX, SIZE_PX), "uint8", seed=number)
        rasters.write_tif(path, data, transform=geobox.affine, crs=str(geobox.crs), nodata=0)
        one = document(number, f"{url}/{path.name}")
        documents[one["collection"]].append(one)
    for name, items in documents.items():
        pgstac.post_collection(collection(name))
        pgstac.post_items(name, [one for one in items if one["id"] != ALL[BROKEN]])
    broken = documents[COLLECTIONS[BROKEN % 2]][BROKEN // 2]
    assert broken["id"] == ALL[BROKEN]
    pgstac.insert_unchecked(broken | {"assets": {"visual": {"title": "no href"}}})
    return pgstac.url


def ask(api, **query):
    return list(
        search(SearchQuery(**{"url": api, "collections": COLLECTIONS} | query), retries=quick(1))
    )


def ids(found):
    return [one.item.id if one.item else one.error.item for one in found]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, NEWEST_FIRST),
        ({"page_size": 3}, NEWEST_FIRST),
        ({"limit": 5}, NEWEST_FIRST[:5]),
        ({"limit": 5, "page_size": 2}, NEWEST_FIRST[:5]),
        ({"collections": ("search-even",)}, NEWEST_FIRST[1::2]),
        ({"collections": ("search-odd",), "limit": 2}, names(19, 17)),
        ({"collections": ("no-such",)}, []),
        ({"ids": ("item-03", "item-12", "item-99")}, names(12, 3)),
        ({"collections": (), "ids": ("item-03",)}, names(3)),
        ({"datetime": "2024-01-05"}, names(4)),
        ({"datetime": "2024-01-05T12:00:00Z"}, names(4)),
        ({"datetime": "2024-01-05T12:00:01Z"}, []),
        ({"datetime": "2024-01-05/2024-01-07"}, names(6, 5, 4)),
        ({"datetime": "../2024-01-02"}, names(1, 0)),
        ({"datetime": "2024-01-19T00:00:00Z/.."}, names(19, 18)),
        ({"datetime": "2023"}, []),
        ({"sortby": ("id",), "limit": 3}, names(0, 1, 2)),
        ({"sortby": ("platform", "-properties.eo:cloud_cover"), "limit": 2}, names(9, 8)),
        ({"sortby": ("+eo:cloud_cover",), "limit": 2, "page_size": 1}, names(0, 1)),
        ({"query": ("eo:cloud_cover<20",)}, names(2, 1, 0)),
        ({"query": ("eo:cloud_cover>=82", "platform=south")}, names(19, 18)),
        ({"query": {"eo:cloud_cover": {"gt": 14, "lte": 22}}}, names(3, 2)),
        ({"filter": "eo:cloud_cover < 20"}, names(2, 1, 0)),
        ({"filter": '"eo:cloud_cover" BETWEEN 18 AND 26'}, names(4, 3, 2)),
        ({"filter": "platform LIKE 'n%' AND NOT (eo:cloud_cover < 42)"}, names(9, 8)),
        ({"filter": "id IN ('item-01', 'item-02')"}, names(2, 1)),
        (
            {
                "filter": "a_contains(\"geosam:source_collections\", ('part-1')) "
                'AND "eo:cloud_cover" <= 26'
            },
            names(4, 1),
        ),
        ({"filter": {"op": "<", "args": [{"property": "eo:cloud_cover"}, 20]}}, names(2, 1, 0)),
        (
            {"filter": '{"op": "=", "args": [{"property": "platform"}, "south"]}', "limit": 2},
            names(19, 18),
        ),
        (
            {"collections": (), "filter": "collection = 'search-odd' AND eo:cloud_cover > 74"},
            names(19, 17),
        ),
        ({"bbox": (175.0, 5.0, -175.0, 15.0)}, names(19, 18)),
        ({"bbox": (175.0, 5.0, 180.0, 15.0)}, names(18)),
        ({"bbox": (175.0, -90.0, 0, -175.0, 90.0, 9000)}, names(19, 18)),
        ({"bbox": (100.0, 5.0, 110.0, 15.0)}, []),
    ],
)
def test_every_parameter_finds_its_items(api, query, expected):
    assert ids(ask(api, **query)) == expected


def test_areas(api):
    bounds = grid(4).extent.to_crs("EPSG:4326").boundingbox
    assert ids(ask(api, bbox=bounds.bbox)) == names(4)
    triangle = {
        "type": "Polygon",
        "coordinates": [
            [
                [bounds.left, bounds.bottom],
                [bounds.right, bounds.bottom],
                [bounds.left, bounds.top],
                [bounds.left, bounds.bottom],
            ]
        ],
    }
    assert ids(ask(api, intersects=triangle)) == names(4)
    other = grid(9).extent.to_crs("EPSG:4326").centroid.json
    two = [{"type": "Feature", "geometry": each, "properties": {}} for each in (triangle, other)]
    both = {"type": "FeatureCollection", "features": two}
    assert ids(ask(api, intersects=both)) == names(9, 4)
    assert ids(ask(api, intersects=both, datetime="../2024-01-08")) == names(4)


def test_one_is_broken_and_the_others_are_scenes(api):
    found = ask(api)
    bad = [one for one in found if one.item is None]
    assert [one.error.item for one in bad] == names(BROKEN)
    assert isinstance(bad[0].error, DataError)
    assert bad[0].href == f"{api}/collections/search-odd/items/item-07"
    good = [one for one in found if one.item is not None]
    assert len(good) == COUNT - 1
    config = EncodeConfig(allow_private_hosts=True)
    for one in good:
        assert one.href == f"{api}/collections/{one.item.collection_id}/items/{one.item.id}"
        scene = open_scene(one.item, config, read_headers=one.item.id == "item-00")
        assert scene.geobox == grid(int(one.item.id[-2:]))
        assert [band.common_name for band in scene.bands] == ["red", "green", "blue"]


def test_the_servers_own_words(api):
    with pytest.raises(UsageError, match=r"HTTP 400: .*Input should be 'eq'"):
        ask(api, query={"eo:cloud_cover": {"near": 5}})
    # pgstac 0.9 knows no better than a 500 of an operator that it does not have.
    with pytest.raises(TemporaryError, match=r"HTTP 500.*check --filter"):
        ask(api, filter={"op": "near", "args": [{"property": "eo:cloud_cover"}, 5]})


def test_no_landing_page(api):
    for path in ("/collections/search-odd", "/search", "/conformance"):
        with pytest.raises(DataError, match="landing page"):
            ask(api + path)
    with pytest.raises(DataError, match="HTTP 404"):
        ask(f"{api}/nowhere")


@pytest.fixture
def proxy(api):
    """A proxy before the API: yields (URL, faults, log); each fault is (method, path, status)."""
    faults, log = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.forward(None)

        def do_POST(self):
            self.forward(self.rfile.read(int(self.headers["Content-Length"])))

        def forward(self, body):
            status, data = self.fault() or self.ask(body)
            log.append((self.command, self.path, status))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def fault(self):
            if faults and (self.command, self.path) == faults[0][:2]:
                return faults.pop(0)[2], b'{"description": "a fault of the tests"}'
            return None

        def ask(self, body):
            # With the proxy's own Host, the API's links lead back here.
            headers = {name: self.headers[name] for name in ("Host", "Content-Type", "Accept")}
            headers = {name: value for name, value in headers.items() if value}
            request = urllib.request.Request(api + self.path, data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", faults, log
        server.shutdown()
        thread.join()


def test_a_503_on_post_is_tried_again(proxy):
    url, faults, log = proxy
    faults.append(("POST", "/search", 503))
    query = SearchQuery(url=url, collections=COLLECTIONS, page_size=15)
    heard = []
    assert ids(search(query, sink=heard.append)) == NEWEST_FIRST
    assert [entry for entry in log if entry[1] == "/search"] == [
        ("POST", "/search", 503),
        ("POST", "/search", 200),
        ("POST", "/search", 200),
    ]
    assert [event.level for event in heard] == ["warning"]


def test_503s_without_end(proxy):
    url, faults, log = proxy
    faults += [("POST", "/search", 503)] * 3
    with pytest.raises(TemporaryError, match="HTTP 503: a fault of the tests"):
        list(search(SearchQuery(url=url), retries=quick(2)))
    assert len([entry for entry in log if entry[0] == "POST"]) == 2


def test_get_without_post(proxy):
    """The same Items by GET: the filter goes as text, pages by their links."""
    url, faults, log = proxy
    faults.append(("POST", "/search", 405))
    found = ask(url, filter="platform = 'north' AND eo:cloud_cover > 18", page_size=4)
    assert ids(found) == names(9, 8, 7, 6, 5, 4, 3)
    assert [method for method, path, _ in log if path.startswith("/search")] == [
        "POST",
        "GET",
        "GET",
    ]
