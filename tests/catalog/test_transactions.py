"""Publishing into a STAC API that fails now and then, and one that refuses."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading

import pytest

from geosam_stac.catalog import publish
from geosam_stac.catalog.transactions import publish_to_api
from geosam_stac.errors import ConfigurationError, DataError, TemporaryError
from tests.catalog import features
from tests.quick import quick

TOKEN = "hunter2-is-no-password"
TINY = "sam2.1-hiera-tiny"


@contextlib.contextmanager
def server(script=None):
    """An API with Transactions in memory; `script(method, path)` may answer (status, text)."""
    held, log = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self):
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            log.append((self.command, self.path, self.headers.get("Authorization")))
            said = script(self.command, self.path) if script else None
            if said is not None:
                return self._say(*said)
            key = f"{self.path}/{body['id']}" if self.command == "POST" else self.path
            if self.command == "GET":
                return self._say(200, json.dumps(held[key])) if key in held else self._say(404)
            if (key in held) != (self.command == "PUT"):
                return self._say(409 if self.command == "POST" else 404)
            held[key] = body
            return self._say(201, json.dumps(body))

        def _say(self, status, text="{}"):
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", held, log
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda self, response=None: None)


ITEM = features.document(0)
HREF = "s3://bucket/out/item.json"
PLACE = f"/collections/{TINY}-sentinel-2-l2a/items/{ITEM['id']}"


def first_fail(*statuses):
    """Each kind of request fails so often before it is served."""
    left = {}

    def script(method, path):
        todo = left.setdefault((method, path), list(statuses))
        return (todo.pop(0), "") if todo else None

    return script


def test_collection_then_items_and_models():
    with server() as (url, held, log):
        assert publish_to_api([(ITEM, HREF)], url) == 1
        assert [path for _, path, _ in log] == [
            "/collections",
            "/collections/geosam-models/items",
            "/collections",
            f"/collections/{TINY}-sentinel-2-l2a/items",
        ]
        item = held[PLACE]
        rels = [one["rel"] for one in item["links"]]
        assert not {"self", "root", "parent", "collection"} & set(rels)
        links = {(one["rel"], one["href"]) for one in item["links"]}
        assert ("canonical", HREF) in links
        assert ("emb:model", f"{url}/collections/geosam-models/items/{TINY}") in links
        assert item["assets"]["manifest"]["href"] == "s3://bucket/out/manifest.parquet"
        once = dict(held)
        publish_to_api([(ITEM, HREF)], url)
        assert held == once


@pytest.mark.parametrize("statuses", [(429,), (503, 500, 502), (429, 504, 503, 500)])
def test_what_fails_for_now_is_tried_again(statuses):
    told = []
    with server(first_fail(*statuses)) as (url, held, _):
        assert publish_to_api([(ITEM, HREF)], url, sink=told.append) == 1
        assert PLACE in held
    assert "trying again in" in told[0].message


def test_an_answer_that_was_lost():
    """The Item has arrived, but the answer said 500: the next try meets it, and replaces it."""
    lost = []

    def script(method, path):
        if method == "POST" and path.endswith("l2a/items") and not lost:
            lost.append(True)
            again[1][PLACE] = {"id": "arrived"}
            return 500, ""
        return None

    with server(script) as again:
        publish_to_api([(ITEM, HREF)], again[0])
        assert again[1][PLACE]["id"] == ITEM["id"]


def test_an_api_that_stays_down():
    with server(lambda *_: (503, "maintenance")) as (url, _, log):
        with pytest.raises(TemporaryError, match="cannot take this now") as caught:
            publish_to_api([(ITEM, HREF)], url, retries=quick(3))
        assert "maintenance" in str(caught.value)
        assert len(log) == 3
    with pytest.raises(TemporaryError, match="did not answer"):
        publish_to_api([(ITEM, HREF)], url, retries=quick(1))


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (401, ConfigurationError, "GEOSAM_STAC_API_TOKEN"),
        (403, ConfigurationError, "refuses the ones given"),
        (404, DataError, "cannot be published into"),
        (405, DataError, "with the Transactions extension"),
        (400, DataError, "the API refuses this document"),
    ],
)
def test_an_api_that_refuses(status, error, text):
    said = json.dumps({"detail": "because"})
    with (
        server(lambda *_: (status, said)) as (url, _, log),
        pytest.raises(error, match=text) as caught,
    ):
        publish_to_api([(ITEM, HREF)], url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert f"HTTP {status}: because" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(log) == 1


def test_the_token_goes_to_the_api_alone(caplog):
    caplog.set_level("DEBUG")
    with server() as (url, held, log):
        publish_to_api([(ITEM, HREF)], url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert {authorization for _, _, authorization in log} == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text
    assert TOKEN not in json.dumps(held)


def test_a_secret_in_the_place_is_refused():
    with pytest.raises(ConfigurationError, match="holds a secret") as caught:
        publish([], f"https://user:{TOKEN}@stac.example.org")
    assert TOKEN not in str(caught.value)


def test_the_collection_is_widened_not_replaced():
    with server() as (url, held, _):
        publish_to_api([(features.document(3), HREF)], url)
        key = f"/collections/{TINY}-sentinel-2-l2a"
        held[key] |= {"title": "Ours", "keywords": ["kept"]}
        held[key]["links"].append({"rel": "license", "href": "https://example.org/l"})
        publish_to_api([(ITEM, HREF), (features.document(5), HREF)], url)
        collection = held[key]
    boxes = [features.document(number)["bbox"] for number in (0, 5)]
    box = collection["extent"]["spatial"]["bbox"][0]
    assert (box[0], box[2]) == (boxes[0][0], boxes[1][2])
    times = [features.document(number)["properties"]["datetime"] for number in (0, 5)]
    assert collection["extent"]["temporal"]["interval"] == [times]
    assert collection["summaries"]["platform"] == ["north", "south"]
    assert (collection["title"], collection["keywords"]) == ("Ours", ["kept"])
    assert {"license", "emb:model", "emb:source-data"} <= {
        one["rel"] for one in collection["links"]
    }
