"""sources.search and sources.query against a small STAC API of the tests' own, over sockets.

What a real API answers is tested in integration/test_pgstac.py; here it is what one may do wrong.
"""

from __future__ import annotations

import http.server
import json
import logging
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from geosam_stac.errors import ConfigurationError, DataError, TemporaryError, UsageError
from geosam_stac.events import Notice
from geosam_stac.retry import Retries, RetryPolicy
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.query import SearchQuery
from geosam_stac.sources.search import search
from tests.quick import quick

SECRET = "topsecrettoken"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
API = "https://api.stacspec.org/v1.0.0"
CLASSES = ("core", "item-search", "item-search#filter", "item-search#query", "item-search#sort")


class Api:
    """A STAC API with Items `i0`, `i1`, ...; `answers` are given first, to searches only.

    An answer is (status, headers, body): the body a str or JSON.
    """

    def __init__(self, count=0, *, conforms=CLASSES, methods=("GET", "POST"), landing=None):
        self.items = [item(f"i{number}") for number in range(count)]
        self.conforms, self.methods, self.landing = conforms, methods, landing
        self.answers, self.requests = [], []
        self.next_host = None
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._do({k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self):
                self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _do(self, parameters):
                path = urlsplit(self.path).path
                api.requests.append((self.command, path, parameters, dict(self.headers)))
                status, headers, body = api.answer(self.command, path, parameters)
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, method, path, parameters):
        if path == "/":
            return 200, {}, self.landing or self._landing()
        if self.answers:
            return self.answers.pop(0)
        if method not in self.methods:
            return 405, {}, {"detail": "Method Not Allowed"}
        start, limit = int(parameters.get("token", 0)), int(parameters.get("limit", 2))
        page = self.items[start : start + limit]
        links = []
        if start + limit < len(self.items):
            links = [self._next(method, parameters, start + limit)]
        return 200, {}, {"type": "FeatureCollection", "features": page, "links": links}

    def _landing(self):
        links = [
            {"rel": "search", "type": "application/geo+json", "href": f"{self.url}/search"}
            | ({"method": method} if len(self.methods) == 1 else {})
            for method in self.methods[:1]
        ]
        document = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "d"}
        uris = {"conformsTo": [f"{API}/{name}" for name in self.conforms]} if self.conforms else {}
        return document | {"links": links} | uris

    def _next(self, method, parameters, token):
        host = self.next_host or self.url
        if method == "POST":
            body = parameters | {"token": token}
            return {"rel": "next", "href": f"{host}/search", "method": "POST", "body": body}
        return {"rel": "next", "href": f"{host}/search?token={token}&limit={parameters['limit']}"}

    def sent(self, path="/search"):
        """The parameters of the requests, in order."""
        return [parameters for _, at, parameters, _ in self.requests if at == path]


def item(name, **changes):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": None,
        "links": [],
        "properties": {"datetime": "2024-03-11T00:00:00Z"},
        "assets": {"a": {"href": "https://x.test/a.tif"}},
    } | changes


@pytest.fixture
def serve():
    started = []

    def start(*args, **options):
        started.append(Api(*args, **options))
        return started[-1]

    yield start
    for api in started:
        api.close()


def ids(found):
    return [one.item.id for one in found]


def ask(api, **query):
    options = {
        name: query.pop(name) for name in ("headers", "sink", "retries", "hosts") if name in query
    }
    return list(search(SearchQuery(url=api.url, **query), **{"retries": quick(1)} | options))


def test_pages_are_read_lazily_and_in_order(serve):
    api = serve(5)
    found = search(SearchQuery(url=api.url, page_size=2))
    assert api.requests == []
    assert next(found).item.id == "i0"
    assert len(api.sent()) == 1
    assert ids(found) == ["i1", "i2", "i3", "i4"]
    assert [body.get("token") for body in api.sent()] == [None, 2, 4]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6])
def test_limit_is_exact(serve, limit):
    api = serve(5)
    assert ids(ask(api, page_size=2, limit=limit)) == [f"i{n}" for n in range(min(limit, 5))]
    assert len(api.sent()) == -(-min(limit, 5) // 2)
    assert api.sent()[0]["limit"] == min(limit, 2)


def test_nothing_found(serve):
    assert ask(serve(0)) == []


def test_each_item_once(serve):
    api = serve(0)
    api.items = [item("a"), item("b"), item("a"), item("a", collection="d"), item("b"), item("e")]
    assert ids(ask(api, page_size=3)) == ["a", "b", "a", "e"]


def test_pages_in_a_circle_end(serve):
    api = serve(2)
    page = {"type": "FeatureCollection", "features": api.items}
    api.answers = [(200, {}, page | {"links": [api._next("POST", {}, 0)]}) for _ in range(9)]
    heard = []
    assert ids(ask(api, sink=heard.append)) == ["i0", "i1"]
    assert len(api.sent()) == 2
    (notice,) = heard
    assert "repeats a page" in notice.message and notice.level == "warning"


def test_a_broken_item_is_alone(serve):
    api = serve(3)
    api.items[1] = item("bad", assets={})
    api.items.append("no object")
    one, bad, other, worse = ask(api)
    assert (one.item.id, other.item.id) == ("i0", "i2")
    assert bad.item is None and isinstance(bad.error, DataError)
    assert bad.error.item == "bad"
    assert bad.href == f"{api.url}/collections/c/items/bad"
    assert "$.assets" in str(bad.error)
    assert worse.href is None and worse.error.href == api.url


def test_the_self_link_is_the_items_own(serve):
    api = serve(0)
    api.items = [
        item("a b/c", collection="k k"),
        item("s", links=[{"rel": "self", "href": "https://y.test/s?sig=abc"}]),
        item("r", links=[{"rel": "self", "href": "items/r"}]),
        item("f", links=[{"rel": "self", "href": "file:///etc/f"}]),
    ]
    found = ask(api)
    assert [one.href for one in found] == [
        f"{api.url}/collections/k%20k/items/a%20b%2Fc",
        "https://y.test/s",
        f"{api.url}/items/r",
        f"{api.url}/collections/c/items/f",
    ]
    assert found[1].item.get_self_href() == "https://y.test/s?sig=abc"


def test_retries_on_post(serve):
    api = serve(1)
    api.answers = [(503, {"Retry-After": "0"}, "busy"), (429, {}, "slow")]
    heard = []
    assert ids(ask(api, retries=quick(3, sink=heard.append))) == ["i0"]
    assert [method for method, path, *_ in api.requests if path == "/search"] == ["POST"] * 3
    assert [(one.message, one.level) for one in heard if isinstance(one, Notice)] == [
        (
            f"the server cannot answer now (href {api.url}/search); got HTTP {status}; "
            "trying again in 0.0 s",
            "warning",
        )
        for status in (503, 429)
    ]


def test_retries_end(serve):
    api = serve(1)
    api.answers = [(503, {}, {"description": "the database sleeps"})] * 3
    with pytest.raises(TemporaryError, match="HTTP 503: the database sleeps"):
        ask(api, retries=quick(2))
    assert len(api.sent()) == 2


def test_retry_after_is_heard(serve):
    api = serve(1)
    api.answers = [(429, {"Retry-After": "86400"}, "slow")]
    waits = []
    retries = Retries(RetryPolicy(deadline_s=50.0), wait=waits.append, clock=lambda: 0.0)
    assert ids(ask(api, retries=retries)) == ["i0"]
    assert waits == [50.0]
    assert retries.counts() == {"search": 1}


def test_get_where_there_is_no_post(serve):
    api = serve(3, methods=("GET",))
    query = {"filter": "a = 1", "bbox": (1, 2, 3, 4), "sortby": ("-id",), "page_size": 2}
    assert ids(ask(api, **query)) == ["i0", "i1", "i2"]
    assert {method for method, *_ in api.requests} == {"GET"}
    first = api.sent()[0]
    assert first["filter"] in ("a = 1", "(a = 1)")
    assert first | {"filter": ""} == {
        "filter": "",
        "filter-lang": "cql2-text",
        "bbox": "1.0,2.0,3.0,4.0",
        "sortby": "-id",
        "limit": "2",
    }


@pytest.mark.parametrize("status", [404, 405, 501])
def test_get_when_post_is_refused(serve, status):
    api = serve(1)
    api.answers = [(status, {}, "no")]
    assert ids(ask(api)) == ["i0"]
    assert [method for method, path, *_ in api.requests if path == "/search"] == ["POST", "GET"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_keeps_the_query(serve, status):
    api = serve(1)
    api.answers = [(status, {"Location": f"{api.url}/search/"}, "")]
    assert ids(ask(api, ids=("i0",))) == ["i0"]
    assert api.requests[-1][:3] == ("POST", "/search/", {"ids": ["i0"], "limit": 100})


def test_credentials_stay_with_the_host_and_out_of_logs(serve, caplog):
    api, other = serve(3), serve(3)
    api.next_host = other.url.replace("127.0.0.1", "localhost")
    with caplog.at_level(logging.DEBUG):
        found = ask(api, page_size=2, headers=HEADERS, hosts=Hosts(api.url, api.next_host))
        assert ids(found) == ["i0", "i1", "i2"]
    assert [headers.get("Authorization") for *_, headers in api.requests] == [
        HEADERS["Authorization"]
    ] * 2
    assert len(other.requests) == 1 and "Authorization" not in other.requests[0][3]
    assert "/search" in caplog.text and SECRET not in caplog.text


def test_credentials_do_not_follow_a_redirect(serve):
    api, other = serve(1), serve(1)
    api.answers = [(307, {"Location": f"{other.url}/search"}, "")]
    assert ids(ask(api, headers={"X-API-Key": SECRET})) == ["i0"]
    assert "X-API-Key" not in other.requests[0][3]


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_are_asked_for(serve, status):
    api = serve(1)
    api.answers = [(status, {}, {"message": "who are you", "more": f"?token={SECRET}"})]
    with pytest.raises(ConfigurationError, match=f"HTTP {status}: who are you") as caught:
        ask(api)
    assert "environment" in str(caught.value)
    api.answers = [(status, {}, f"denied: https://x.test/?token={SECRET}")]
    with pytest.raises(ConfigurationError) as caught:
        ask(api, headers=HEADERS)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"code": "BadRequest", "description": "no such field"}, "HTTP 400: no such field"),
        ({"title": "Bad", "detail": "worse"}, "HTTP 400: Bad: worse"),
        ("plain  words\n", "HTTP 400: plain words."),
        ("<html>no</html>", "got HTTP 400."),
        ("x" * 9000, "HTTP 400: " + "x" * 600 + r"\.\.\."),
    ],
)
def test_a_refused_search_says_the_servers_words(serve, body, words):
    api = serve(1)
    api.answers = [(400, {}, body)]
    with pytest.raises(UsageError, match=words):
        ask(api)


def test_a_refused_next_page_is_no_mistake_of_the_user(serve):
    api = serve(3)
    found = search(SearchQuery(url=api.url, page_size=2), retries=quick(1))
    assert [next(found).item.id, next(found).item.id] == ["i0", "i1"]
    api.answers = [(400, {}, "the token has expired")]
    with pytest.raises(DataError, match=r"next page of results.*the token has expired"):
        next(found)


@pytest.mark.parametrize(
    ("landing", "words"),
    [
        ("<html><body>Hello</body></html>", "this is no STAC API.*HTML"),
        ("[]", "this is no STAC API"),
        ({"hello": 1}, "this is no STAC API"),
        (item("x"), "landing page.*expected a Catalog.*got Feature"),
        (
            {"type": "Catalog", "stac_version": "1.0.0", "id": "s", "description": "", "links": []},
            "cannot be searched.*item-search; got a static catalog",
        ),
        (
            {"type": "Catalog", "stac_version": "1.0.0", "id": "s", "description": "", "links": []}
            | {"conformsTo": [f"{API}/core"]},
            "got a STAC API without item search",
        ),
    ],
)
def test_not_a_stac_api(serve, landing, words):
    api = serve(1, landing=landing)
    with pytest.raises(DataError, match=words) as caught:
        ask(api)
    assert caught.value.href == api.url
    assert api.sent() == []


@pytest.mark.parametrize("body", ["<html/>", "[]", {"features": 3}, {"features": [{}], "links": 1}])
def test_an_answer_that_is_no_page(serve, body):
    api = serve(1)
    api.answers = [(200, {}, body)]
    with pytest.raises(DataError, match="no page of Items"):
        ask(api)


@pytest.mark.parametrize("url", ["http://h:80x/", "http:///stac", "http://[::1/stac"])
def test_a_url_that_is_none(url):
    with pytest.raises(UsageError, match="not a valid URL"):
        list(search(SearchQuery(url=url)))


def test_nobody_there(serve):
    api = serve(0)
    api.close()
    url = f"{api.url}/?token={SECRET}"
    with pytest.raises(TemporaryError, match="did not answer") as caught:
        list(search(SearchQuery(url=url), retries=quick(1)))
    assert SECRET not in str(caught.value)
    api.__init__(0)  # for the fixture to close


@pytest.mark.parametrize(
    ("name", "query"),
    [("filter", {"filter": "a = 1"}), ("query", {"query": "a=1"}), ("sort", {"sortby": ("a",)})],
)
def test_an_extension_that_the_api_lacks(serve, name, query):
    api = serve(1, conforms=("core", "item-search"))
    with pytest.raises(UsageError, match=f"lacks the {name} extension"):
        ask(api, **query)
    assert api.sent() == []
    # One that declares nothing is asked.
    assert ids(ask(serve(1, conforms=()), **query)) == ["i0"]


def test_what_is_sent(serve):
    api = serve(0)
    ask(
        api,
        collections=("a", "b"),
        ids=("x",),
        bbox=(1, 2, 3, 4),
        datetime="2024-02",
        filter="\"eo:cloud_cover\" < 10 AND a_contains(k, ('s'))",
        query=("eo:cloud_cover>=1", "eo:cloud_cover<=2.5", "p=S2A", "q<>true", '{"r": {"eq": 1}}'),
        sortby=("-properties.datetime", "id"),
        limit=7,
    )
    assert api.sent() == [
        {
            "limit": 7,
            "collections": ["a", "b"],
            "ids": ["x"],
            "bbox": [1, 2, 3, 4],
            "datetime": "2024-02-01T00:00:00Z/2024-02-29T23:59:59Z",
            "filter-lang": "cql2-json",
            "filter": {
                "op": "and",
                "args": [
                    {"op": "<", "args": [{"property": "eo:cloud_cover"}, 10.0]},
                    {"op": "a_contains", "args": [{"property": "k"}, ["s"]]},
                ],
            },
            "query": {
                "eo:cloud_cover": {"gte": 1, "lte": 2.5},
                "p": {"eq": "S2A"},
                "q": {"neq": True},
                "r": {"eq": 1},
            },
            "sortby": [
                {"field": "properties.datetime", "direction": "desc"},
                {"field": "id", "direction": "asc"},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("2024", "2024-01-01T00:00:00Z/2024-12-31T23:59:59Z"),
        ("2024-03-11", "2024-03-11T00:00:00Z/2024-03-11T23:59:59Z"),
        ("2024-03-11T10:00:00Z", "2024-03-11T10:00:00Z"),
        ("2024-03-11T10:00:00.123+02:00", "2024-03-11T10:00:00.123+02:00"),
        ("2024-03/..", "2024-03-01T00:00:00Z/.."),
        ("../2024-03", "../2024-03-31T23:59:59Z"),
        ("/2024-03", "../2024-03-31T23:59:59Z"),
        ("2023/2024-03-11T10:00:00Z", "2023-01-01T00:00:00Z/2024-03-11T10:00:00Z"),
    ],
)
def test_datetime(serve, given, sent):
    api = serve(0)
    ask(api, datetime=given)
    assert api.sent()[0]["datetime"] == sent


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
NEXT = {"type": "Polygon", "coordinates": [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]]}


def test_areas():
    def sent(**query):
        return SearchQuery(url="https://x.test", **query).parameters()

    assert sent(intersects=SQUARE) == {"intersects": SQUARE}
    feature = {"type": "Feature", "geometry": SQUARE, "properties": {}}
    assert sent(intersects=feature) == {"intersects": SQUARE}
    two = {"type": "FeatureCollection", "features": [feature, feature | {"geometry": NEXT}]}
    union = sent(intersects=two)["intersects"]
    assert union["type"] == "Polygon"
    assert {tuple(point) for point in union["coordinates"][0]} >= {(0, 0), (2, 0), (2, 1), (0, 1)}
    crossing = sent(bbox=(170, -10, -175, 10))
    assert crossing == {
        "intersects": {
            "type": "MultiPolygon",
            "coordinates": [
                [[[170, -10], [180, -10], [180, 10], [170, 10], [170, -10]]],
                [[[-180, -10], [-175, -10], [-175, 10], [-180, 10], [-180, -10]]],
            ],
        }
    }
    # From the antimeridian on there is one side only.
    assert len(sent(bbox=(180, 0, -175, 1))["intersects"]["coordinates"]) == 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"url": "./catalog.json"}, "URL of a STAC API"),
        ({"limit": 0}, "--limit"),
        ({"page_size": 10_001}, "page size"),
        ({"bbox": (0, 0, 1)}, "four numbers"),
        ({"bbox": (0, 5, 1, 4)}, "no box"),
        ({"bbox": (0, 0, 190, 4)}, "no box"),
        ({"bbox": (0, 0, float("nan"), 4)}, "four numbers"),
        ({"bbox": (0, 0, 1, 1), "intersects": SQUARE}, "contradict"),
        ({"intersects": {"type": "Square"}}, "no GeoJSON geometry"),
        ({"intersects": {"type": "Polygon", "coordinates": []}}, "no GeoJSON geometry"),
        ({"intersects": {"type": "Feature"}}, "no GeoJSON geometry"),
        ({"intersects": []}, "no GeoJSON geometry"),
        ({"datetime": "yesterday"}, "--datetime is not understood"),
        ({"datetime": "2024-13"}, "--datetime is not understood"),
        ({"datetime": "2024-02-30"}, "--datetime is not understood"),
        ({"datetime": "../.."}, "--datetime is not understood"),
        ({"datetime": ""}, "--datetime is not understood"),
        ({"datetime": "2024/2025/2026"}, "--datetime is not understood"),
        ({"datetime": "2025/2024"}, "ends before it starts"),
        ({"filter": "eo:cloud_cover <<< 3"}, "no CQL2 from character 17 on.*<<< 3"),
        ({"filter": '{"foo": 1}'}, "no CQL2"),
        ({"filter": {"foo": 1}}, "no CQL2"),
        ({"filter": '{"op": '}, "--filter is no JSON"),
        ({"filter": '"mlm:name"'}, "tests nothing.*expected as eo:cloud_cover < 10.*got mlm:name"),
        ({"filter": "platform = 'a' OR NOT 'b'"}, "tests nothing.*got 'b'"),
        ({"filter": "eo:cloud_cover + 1"}, r"tests nothing.*got .*eo:cloud_cover.* \+ 1"),
        ({"filter": {"property": "platform"}}, "tests nothing.*got platform"),
        ({"filter": "0"}, "tests nothing.*got 0"),
        ({"filter": "true"}, "tests nothing.*got true"),
        ({"query": "cloudless"}, "--query is not understood"),
        ({"query": "{1}"}, "--query is no JSON"),
    ],
)
def test_a_query_that_cannot_be(query, words):
    with pytest.raises(UsageError, match=words):
        SearchQuery(**{"url": "https://x.test"} | query)


@pytest.mark.parametrize(
    "text",
    [
        "NOT (platform = 'a' AND eo:cloud_cover IS NULL)",
        "a_contains(names, ('a', 'b')) OR s_intersects(geometry, POINT(0 0))",
        "casei(platform) = casei('A') AND eo:cloud_cover + 1 < 3 AND true",
        "is_good(platform)",  # an API may have functions of its own
    ],
)
def test_every_kind_of_test_is_sent(text):
    assert SearchQuery(url="https://x.test", filter=text).parameters()["filter"]["op"]
