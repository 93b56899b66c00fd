from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from geosam_stac.errors import DataError, TemporaryError, UsageError
from geosam_stac.sources import list_bands, parse_item, read_item
from geosam_stac.sources.items import self_href
from tests.quick import quick
from tests.rasters import asset, document, write_item

GOOD = document({"x": asset("./x.tif")})


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


# What it is instead


def changed(**top):
    return GOOD | top


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


def with_asset(**fields):
    return changed(assets={"x": asset("x.tif") | fields})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(type="FeatureCollection", features=[]), "$.type is FeatureCollection"),
        (changed(type="Collection"), "$.type is Collection"),
        (changed(type="Catalog"), "$.type is Catalog"),
        (changed(type="Point"), "$.type is wrong; expected 'Feature'; got \"Point\""),
        (without("type"), "$.type is wrong"),
        ([GOOD], "$ is wrong; expected a JSON object; got ["),
        ("text", "$ is wrong"),
        (None, "$ is wrong"),
        (without("stac_version"), "$.stac_version is wrong"),
        (changed(stac_version=1.0), "$.stac_version is wrong"),
        (changed(id=""), "$.id is wrong"),
        (changed(id=7), "$.id is wrong; expected a text; got 7"),
        (changed(properties=[]), "$.properties is wrong"),
        (without("properties"), "$.properties is wrong"),
        (changed(properties={}), "$.properties.start_datetime is wrong"),
        (changed(properties={"datetime": "yesterday"}), "$.properties.datetime is wrong"),
        (changed(properties={"datetime": 20240815}), "$.properties.datetime is wrong"),
        (changed(properties={"datetime": {}}), "$.properties.datetime is wrong"),
        (
            changed(properties={"datetime": None, "start_datetime": "2024-01-01T00:00:00Z"}),
            "$.properties.end_datetime is wrong",
        ),
        (without("assets"), "$.assets is wrong; expected an object with at least one asset"),
        (changed(assets={}), "$.assets is wrong"),
        (changed(assets=[asset("x.tif")]), "$.assets is wrong"),
        (changed(assets={"x": "x.tif"}), "$.assets.x is wrong"),
        (changed(assets={"x": {"title": "no href"}}), "$.assets.x.href is wrong"),
        (with_asset(href=5), "$.assets.x.href is wrong; expected a text; got 5"),
        (with_asset(href=""), "$.assets.x.href is wrong"),
        (with_asset(type=["image/tiff"]), "$.assets.x.type is wrong"),
        (with_asset(roles="data"), "$.assets.x.roles is wrong"),
        (with_asset(roles=[{"a": 1}]), "$.assets.x.roles is wrong"),
        (changed(links={}), "$.links is wrong"),
        (changed(links=[{"rel": "self", "href": "a"}, {"rel": "x"}]), "$.links[1] is wrong"),
        (changed(links=[5]), "$.links[0] is wrong"),
        (changed(collection=5), "$.collection is wrong"),
        (changed(geometry="POINT (1 2)"), "$.geometry is wrong"),
        (changed(stac_extensions=[1]), "$.stac_extensions is wrong"),
    ],
)
def test_a_document_that_is_no_item(tmp_path, content, words):
    path = tmp_path / "item.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_item(str(path))
    for part in words.split("; "):
        assert part in str(caught.value)
    assert caught.value.href == str(path)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is not JSON"),
        ("{", "this is not JSON"),
        ("<!DOCTYPE html><html></html>", "this is not JSON but HTML or XML"),
        ("  <?xml version='1.0'?>", "not JSON but HTML or XML"),
        (nested(100_000), "this is not JSON"),
    ],
)
def test_a_text_that_is_no_json(tmp_path, text, words):
    path = tmp_path / "item.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_item(str(path))


def test_deep_nesting_is_no_traceback(tmp_path):
    deep: dict = {}
    for _ in range(900):
        deep = {"a": deep}
    with pytest.raises(
        DataError, match=r"\$\.properties\.deep\.a\.a is wrong; expected at most 64 levels"
    ):
        parse_item(changed(properties=GOOD["properties"] | {"deep": deep}), href=None)


# Files


def test_a_file_is_read_and_its_hrefs_are_of_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    write_item(folder / "item.json", {"x": asset("./x.tif"), "y": asset("../y.tif")})
    monkeypatch.chdir(tmp_path)
    for source in (
        "a b/item.json",
        str(folder / "item.json"),
        f"file://{tmp_path}/a%20b/item.json",
    ):
        item = read_item(source)
        assert self_href(item) == str(folder / "item.json")
        assert [band.href for band in list_bands(item)] == [
            str(folder / "x.tif"),
            str(tmp_path / "y.tif"),
        ]


def test_a_byte_order_mark_is_no_trouble(tmp_path):
    path = tmp_path / "item.json"
    path.write_text("\ufeff" + json.dumps(GOOD), encoding="utf-8")
    assert read_item(str(path)).id == "scene-1"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_item(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="this is a folder"):
        read_item(str(tmp_path))
    (tmp_path / "item.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="this is no text"):
        read_item(str(tmp_path / "item.json"))
    with pytest.raises(DataError, match="another host"):
        read_item("file://elsewhere/item.json")


def test_other_stores_are_read_by_who_knows_them():
    seen = []

    def read_text(href: str) -> str:
        seen.append(href)
        return json.dumps(GOOD)

    item = read_item("s3://bucket/a/item.json", read_text=read_text)
    assert seen == ["s3://bucket/a/item.json"]
    assert list_bands(item)[0].href == "s3://bucket/a/x.tif"
    with pytest.raises(UsageError, match="no reader"):
        read_item("s3://bucket/a/item.json")


def test_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(GOOD)))
    item = read_item("-")
    assert self_href(item) == "scene-1"
    assert list_bands(item)[0].href == str(tmp_path / "x.tif")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(DataError, match="standard input"):
        read_item("-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_item("-")


def test_standard_input_with_a_self_link(monkeypatch):
    links = [{"rel": "self", "href": "https://h/items/a?token=secret"}]
    item = parse_item(changed(links=links), href=None)
    assert self_href(item) == "https://h/items/a"
    assert list_bands(item)[0].href == "https://h/items/x.tif"


def test_naive_and_offset_datetimes_are_read():
    for text in ("2024-08-15T12:00:00", "2024-08-15", "2024-08-15T14:00:00+02:00"):
        assert parse_item(changed(properties={"datetime": text}), href=None).datetime.day == 15


# http


class Server:
    """Answers each path as `answers` says: a list of (status, body), the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.requests.append(self.path)
                todo = server.answers[path]
                status, body = todo.pop(0) if len(todo) > 1 else todo[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def _server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(_server):
    _server.answers, _server.requests = {}, []
    return _server


def test_http_and_relative_hrefs_of_the_url(server):
    good = document({"x": asset("./x.tif"), "y": asset("/top/y.tif"), "z": asset("s3://b/z.tif")})
    server.answers["/c/items/a"] = [(200, json.dumps(good).encode())]
    item = read_item(server.url + "/c/items/a?sig=secret")
    assert server.requests == ["/c/items/a?sig=secret"]
    assert self_href(item) == server.url + "/c/items/a"
    assert [band.href for band in list_bands(item)] == [
        server.url + "/c/items/x.tif",
        server.url + "/top/y.tif",
        "s3://b/z.tif",
    ]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server, status):
    server.answers["/a"] = [(status, b""), (status, b""), (200, json.dumps(GOOD).encode())]
    retries = quick(5)
    assert read_item(server.url + "/a", retries=retries).id == "scene-1"
    assert len(server.requests) == 3
    assert retries.counts() == {"item": 2}


@pytest.mark.parametrize("status", [429, 500])
def test_what_does_not_pass_is_temporary(server, status):
    server.answers["/a"] = [(status, b"")]
    with pytest.raises(TemporaryError, match=f"cannot answer now .*got HTTP {status}"):
        read_item(server.url + "/a?token=secret", retries=quick(5))
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "hint"), [(404, ""), (401, "credentials"), (403, "credentials")]
)
def test_what_is_not_there_is_not_tried_again(server, status, hint):
    server.answers["/a"] = [(status, b"")]
    with pytest.raises(DataError, match=f"HTTP {status}.*{hint}") as caught:
        read_item(server.url + "/a?token=secret")
    assert caught.value.href == server.url + "/a"
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_html_in_a_200(server):
    page = (200, b"<html>Please sign in</html>")
    server.answers["/a"] = [page, (200, json.dumps(GOOD).encode())]
    assert read_item(server.url + "/a", retries=quick(5)).id == "scene-1"
    server.answers["/a"] = [page]
    with pytest.raises(DataError, match="not JSON but HTML"):
        read_item(server.url + "/a", retries=quick(5))
    assert len(server.requests) == 5


def test_a_server_that_is_not_there(server):
    with pytest.raises(TemporaryError, match="did not answer"):
        read_item("http://127.0.0.1:1/item.json?sig=secret", retries=quick(2))


@pytest.mark.parametrize("url", ["http://", "https:///a", "http://[::1/a", "http://a b/c"])
def test_no_url(server, url):
    with pytest.raises((DataError, TemporaryError)):
        read_item(url, retries=quick(2))
