"""sources.itemfiles, content, json_documents, geoparquet: each shape that a file of Items has."""

from __future__ import annotations

import functools
import http.server
import io
import json
import sys
import threading
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import shapely

from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.sources.geoparquet import BATCH_ROWS
from geosam_stac.sources.itemfiles import failed_line, read_items
from geosam_stac.sources.items import read_item
from tests.quick import quick

SIGNED = "https://x.test/a.tif?sv=2024&sig=topsecret"


def item(name="one", *, href="./a.tif", **changes):
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": "c",
        "geometry": {"type": "Point", "coordinates": [1.5, 2.5]},
        "bbox": [1.5, 2.5, 1.5, 2.5],
        "links": [],
        "properties": {"datetime": "2024-03-11T10:00:00Z", "gsd": 10},
        "assets": {"a": {"href": href, "type": "image/tiff; application=geotiff"}},
    } | changes


def collection(*items, **changes):
    return {"type": "FeatureCollection", "features": list(items)} | changes


def read(source, *, sink=lambda event: None, store=None):
    def read_bytes(href):
        return store[href]

    return list(
        read_items(
            str(source),
            read_text=lambda href: read_bytes(href).decode(),
            read_bytes=read_bytes,
            sink=sink,
            retries=quick(2),
        )
    )


def ids(found):
    return [one.item.id if one.item else None for one in found]


def lines(*documents, end="\n"):
    return end.join(json.dumps(document) for document in documents) + end


ONE, TWO = item("one"), item("two")
PRETTY = json.dumps(ONE, indent=2) + "\n"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (json.dumps(ONE), ["one"]),
        (PRETTY, ["one"]),
        (json.dumps(collection(ONE, TWO)), ["one", "two"]),
        (json.dumps(collection(ONE, TWO), indent=1), ["one", "two"]),
        (json.dumps([ONE, TWO]), ["one", "two"]),
        (json.dumps([ONE, TWO], indent=4), ["one", "two"]),
        (lines(ONE, TWO), ["one", "two"]),
        (lines(ONE, TWO).rstrip(), ["one", "two"]),
        (lines(ONE, TWO, end="\r\n"), ["one", "two"]),
        ("\n\n" + lines(ONE, TWO, end="\n \r\n"), ["one", "two"]),
        (lines(collection(ONE), collection(TWO)), ["one", "two"]),
        ("\x1e" + lines(ONE, end="\n\x1e") + lines(TWO), ["one", "two"]),
        (PRETTY + json.dumps(TWO, indent=2), ["one", "two"]),
        (PRETTY + PRETTY, ["one", "one"]),
        (json.dumps(collection()), []),
        ("[]", []),
        ("", []),
        (" \n\r\n", []),
    ],
)
def test_shapes(tmp_path, content, names):
    path = tmp_path / "items"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(content.encode(encoding))
        found = read(path)
        assert ids(found) == names
        for one in found:
            assert one.error is None
            assert one.item.assets["a"].href == str(tmp_path / "a.tif")


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("broken", ['{"type": "Feature", "id": "x', "12", '"text"', "null", "<a/>"])
def test_a_broken_line_is_alone(tmp_path, position, broken):
    path = tmp_path / "items.ndjson"
    content = [json.dumps(ONE), json.dumps(TWO)]
    content.insert(position, broken)
    path.write_text("\n".join(content))
    found = read(path)
    names = ["one", "two"]
    names.insert(position, None)
    assert ids(found) == names
    bad = found[position]
    assert isinstance(bad.error, DataError) and bad.href == str(path)
    assert str(bad.error).startswith(f"line {position + 1}: not a STAC Item: this is not JSON")


def test_a_broken_feature_is_alone(tmp_path):
    path = tmp_path / "items.json"
    no_assets = item("bare", assets={})
    no_assets["links"] = [{"rel": "self", "href": "https://x.test/bare?sig=topsecret"}]
    path.write_text(json.dumps(collection(ONE, no_assets, 7, item("", links=3), TWO)))
    found = read(path)
    assert ids(found) == ["one", None, None, None, "two"]
    assert found[1].href == "https://x.test/bare"
    assert found[1].error.item == "bare"
    assert "topsecret" not in str(found[1].error)
    assert str(found[1].error).startswith("features[1]: not a STAC Item: $.assets is wrong")
    assert str(found[2].error).startswith("features[2]: not a STAC Item: $ is wrong")
    assert [found[2].href, found[2].error.href] == [str(path)] * 2
    path.write_text(lines(ONE, collection(ONE, 7)))
    assert str(read(path)[2].error).startswith("line 2, features[1]: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html></html>", "no JSON but HTML or XML"),
        (b"hello", "no JSON"),
        (PRETTY[:-4].encode(), "no JSON"),
        (b"\x89PNG\r\n\x1a\n\x00", "no utf-8"),
        (b"PAR1 and then nothing", "parquet file cannot be read"),
    ],
)
def test_no_file_of_items(tmp_path, content, words):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert caught.value.href == str(path)


@pytest.mark.parametrize(
    "document", [{"type": "Collection"}, {"type": "FeatureCollection", "features": 3}, {"a": 1}]
)
def test_another_document(tmp_path, document):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    (one,) = read(path)
    assert one.item is None and isinstance(one.error, DataError)


def test_missing_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="this is a folder"):
        read(tmp_path)


def test_an_items_self_link_is_kept(tmp_path):
    path = tmp_path / "items.ndjson"
    links = [{"rel": "self", "href": "https://x.test/items/two?sig=topsecret"}]
    path.write_text(lines(ONE, item("two", links=links), item("three", href=SIGNED)))
    found = read(path)
    assert [one.href for one in found] == [str(path), "https://x.test/items/two", str(path)]
    assert found[1].item.get_self_href() == links[0]["href"]
    # Still beside the file, and still signed: signatures are taken out where things are written.
    assert found[1].item.assets["a"].href == str(tmp_path / "a.tif")
    assert found[2].item.assets["a"].href == SIGNED


def test_lines_of_hrefs(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.json").write_text(PRETTY)
    (tmp_path / "sub" / "two.json").write_text(json.dumps(TWO))
    path = tmp_path / "items.txt"
    path.write_text(
        f"sub/one.json\nsub/nothing.json\n{lines({'href': 'sub/two.json'})}file:///no\n"
    )
    found = read(path)
    assert ids(found) == ["one", None, "two", None]
    assert found[0].href == str(tmp_path / "sub" / "one.json")
    assert found[0].item.get_self_href() == found[0].href
    assert "line 2: no such file" in str(found[1].error)
    assert found[1].href == str(tmp_path / "sub" / "nothing.json")


def test_the_next_page_is_spoken_of(tmp_path):
    path = tmp_path / "page.json"
    path.write_text(json.dumps(collection(ONE, links=[{"rel": "next", "href": "https://x.test"}])))
    heard = []
    assert ids(read(path, sink=heard.append)) == ["one"]
    assert [event.level for event in heard] == ["warning"]
    assert "--search" in heard[0].message


# Other places


def stdin(monkeypatch, content: bytes, *, seekable=True):
    class Pipe(io.BytesIO):
        def seekable(self):
            return seekable

    text = io.TextIOWrapper(io.BufferedReader(Pipe(content)))
    monkeypatch.setattr(sys, "stdin", text)
    return text


def test_standard_input(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    links = [{"rel": "self", "href": "https://x.test/items/two"}]
    text = stdin(monkeypatch, lines(ONE, item("two", links=links)).encode())
    one, two = read("-")
    assert not text.buffer.closed
    assert (one.href, one.item.get_self_href()) == (None, None)
    assert one.item.assets["a"].href == str(tmp_path / "a.tif")
    assert two.href == "https://x.test/items/two"
    assert two.item.assets["a"].href == "https://x.test/items/a.tif"


def test_lines_are_read_as_they_come(monkeypatch):
    class Endless(io.RawIOBase):
        count = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            line = lines(item(f"i{self.count}")).encode()
            self.count += 1
            buffer[: len(line)] = line
            return len(line)

    raw = Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))
    found = read_items("-", read_text=str, read_bytes=str.encode)
    assert [next(found).item.id for _ in range(3)] == ["i0", "i1", "i2"]
    assert raw.count < 100
    found.close()
    sys.stdin.detach().detach()  # the test's own: else its finalizer reads on


def test_an_object_store():
    store = {
        "s3://b/x/items.json": json.dumps(collection(ONE, TWO)).encode(),
        "s3://b/x/list.txt": b"s3://b/x/one.json\n../x/one.json\n/x/one.json\n",
        "s3://b/x/one.json": PRETTY.encode(),
    }
    found = read("s3://b/x/items.json", store=store)
    assert ids(found) == ["one", "two"]
    assert found[0].item.assets["a"].href == "s3://b/x/a.tif"
    assert [one.href for one in read("s3://b/x/list.txt", store=store)] == ["s3://b/x/one.json"] * 3


def test_a_remote_file_names_no_local_self_link():
    links = [{"rel": "self", "href": "/home/somebody/one.json"}]
    other = [{"rel": "self", "href": "file:///home/somebody/one.json"}]
    content = lines(item(links=other), item(links=links))
    found = read("s3://b/items.ndjson", store={"s3://b/items.ndjson": content.encode()})
    assert [one.href for one in found] == ["s3://b/items.ndjson", "s3://b/home/somebody/one.json"]


@pytest.fixture
def web(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            status = int(self.path.strip("/")) if self.path.strip("/").isdigit() else 200
            self.send_error(status) if status != 200 else super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_http(web, tmp_path):
    (tmp_path / "items.ndjson").write_text(lines(ONE, TWO))
    write_parquet(tmp_path / "items.parquet", [row("p")])
    found = read(f"{web}/items.ndjson?sig=topsecret")
    assert ids(found) == ["one", "two"]
    assert found[0].href == f"{web}/items.ndjson"
    assert found[0].item.assets["a"].href == f"{web}/a.tif"
    assert ids(read(f"{web}/items.parquet")) == ["p"]
    with pytest.raises(DataError, match="HTTP 404"):
        read(f"{web}/404")
    with pytest.raises(DataError, match="asks for credentials"):
        read(f"{web}/403")


def test_http_without_answer(web):
    with pytest.raises(TemporaryError, match="HTTP 503"):
        read(f"{web}/503")
    with pytest.raises(TemporaryError, match="did not answer"):
        read("http://127.0.0.1:1/?sig=topsecret")


# stac-geoparquet

MOMENT = datetime(2024, 3, 11, 10, 0, 0, 123456, UTC)
RANGE = {"datetime": None, "start_datetime": MOMENT, "end_datetime": MOMENT}


def row(name, **changes):
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": ["https://x.test/schema.json"],
        "id": name,
        "geometry": shapely.to_wkb(shapely.box(0, 1, 2, 3)),
        "bbox": {"xmin": 0.0, "ymin": 1.0, "xmax": 2.0, "ymax": 3.0},
        "links": [{"rel": "self", "href": f"https://x.test/{name}", "title": None}],
        "assets": {"a": {"href": "./a.tif", "roles": ["data"], "title": None}, "b": None},
        "collection": "c",
        "datetime": MOMENT,
        "start_datetime": None,
        "end_datetime": None,
        "proj:shape": [10, 20],
        "proj:transform": [10.0, 0.0, 5.0, 0.0, -10.0, 6.0],
        "eo:cloud_cover": None,
        "proj:geometry": shapely.to_wkb(shapely.Point(1, 2)),
    } | changes


def write_parquet(path, rows, **fields):
    table = pa.Table.from_pylist(rows)
    for name, kind in fields.items():
        index = table.schema.get_field_index(name)
        values = pa.array([each[name] for each in rows], kind)
        table = table.set_column(index, name, values)
    pq.write_table(table, path)


def test_a_row_is_an_item(tmp_path):
    path = tmp_path / "items.parquet"
    write_parquet(path, [row("p"), row("q", **{"eo:cloud_cover": 5.0} | RANGE)])
    p, q = read(path)
    assert isinstance(p.item, pystac.Item)
    assert p.href == "https://x.test/p"
    assert p.item.to_dict(transform_hrefs=False) == {
        "type": "Feature",
        "stac_version": pystac.get_stac_version(),
        "stac_extensions": ["https://x.test/schema.json"],
        "id": "p",
        "geometry": json.loads(json.dumps(shapely.geometry.mapping(shapely.box(0, 1, 2, 3)))),
        "bbox": [0, 1, 2, 3],
        "links": [{"rel": "self", "href": "https://x.test/p", "type": "application/json"}],
        "assets": {"a": {"href": str(tmp_path / "a.tif"), "roles": ["data"]}},
        "collection": "c",
        "properties": {
            "datetime": "2024-03-11T10:00:00.123456Z",
            "proj:shape": [10, 20],
            "proj:transform": [10, 0, 5, 0, -10, 6],
            "proj:geometry": {"type": "Point", "coordinates": [1, 2]},
        },
    }
    assert q.item.properties["eo:cloud_cover"] == 5
    assert q.item.datetime is None
    assert q.item.properties["end_datetime"] == "2024-03-11T10:00:00.123456Z"


def test_other_writers_parquet(tmp_path):
    path = tmp_path / "items.parquet"
    naive = row("p", datetime=MOMENT.replace(tzinfo=None), assets=json.dumps(ONE["assets"]))
    naive["bbox"] = [0.0, 1.0, 2.0, 3.0]
    naive["tags"] = [("k", "v")]
    del naive["type"], naive["stac_version"], naive["links"]
    write_parquet(path, [naive], tags=pa.map_(pa.string(), pa.string()))
    (one,) = read(path)
    assert one.error is None
    assert one.item.assets["a"].href == str(tmp_path / "a.tif")
    assert one.item.bbox == [0, 1, 2, 3]
    assert one.item.properties["tags"] == {"k": "v"}
    assert one.item.properties["datetime"] == "2024-03-11T10:00:00.123456Z"
    assert one.href == str(path)


def test_many_rows_one_broken(tmp_path):
    path = tmp_path / "items.parquet"
    rows = [row(f"i{number}") for number in range(BATCH_ROWS + 2)]
    rows[BATCH_ROWS]["assets"] = None
    write_parquet(path, rows)
    found = read(path)
    assert len(found) == BATCH_ROWS + 2
    assert found[-1].item.id == f"i{BATCH_ROWS + 1}"
    assert str(found[BATCH_ROWS].error).startswith(f"row {BATCH_ROWS}: not a STAC Item")


def test_parquet_from_standard_input(monkeypatch, tmp_path):
    path = tmp_path / "items.parquet"
    write_parquet(path, [row("p")])
    stdin(monkeypatch, path.read_bytes(), seekable=False)
    assert ids(read("-")) == ["p"]


def test_an_empty_table_and_another_one(tmp_path):
    path = tmp_path / "items.parquet"
    write_parquet(path, [row("p")])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert read(path) == []
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match=r"no STAC Items.*got a"):
        read(path)


# failed.ndjson


def test_a_failed_line_is_read_again(tmp_path):
    source = tmp_path / "in" / "items.ndjson"
    source.parent.mkdir()
    links = [{"rel": "self", "href": "https://x.test/two?sig=topsecret"}]
    content = [ONE, item("two", links=links, href=SIGNED), item("bare", assets={})]
    source.write_text(lines(*content))
    found = read(source)
    error = TemporaryError("no answer", href="https://x.test/a.tif")
    written = [failed_line(one.item or one.href, one.error or error) for one in found]
    failed = tmp_path / "out" / "failed.ndjson"
    failed.parent.mkdir()
    failed.write_text("\n".join(written) + "\n")
    assert "topsecret" not in failed.read_text()
    assert [json.loads(line)["geosam:failed"]["exit_code"] for line in written] == [75, 75, 65]
    assert json.loads(written[0])["geosam:failed"]["error"] == str(error)

    again = read(failed)
    assert ids(again[:2]) == ["one", "two"]
    assert [one.href for one in again[:2]] == [str(source), "https://x.test/two"]
    assert again[0].item.assets["a"].href == str(source.parent / "a.tif")
    assert again[1].item.assets["a"].href == "https://x.test/a.tif"
    assert "geosam:failed" not in again[0].item.extra_fields
    assert again[0].item.to_dict() == found[0].item.to_dict()


def test_a_failed_line_of_an_href(tmp_path):
    (tmp_path / "one.json").write_text(PRETTY)
    error = DataError("no band")
    line = failed_line(str(tmp_path / "one.json"), error)
    assert json.loads(line) == {
        "href": str(tmp_path / "one.json"),
        "geosam:failed": {"exit_code": 65, "error": "no band."},
    }
    (tmp_path / "failed.ndjson").write_text(line)
    assert ids(read(tmp_path / "failed.ndjson")) == ["one"]


def test_a_failed_line_with_a_hidden_secret_is_an_href():
    properties = ONE["properties"] | {"description": f"See {SIGNED} for more"}
    source = pystac.Item.from_dict(item(properties=properties))
    source.set_self_href("https://x.test/one?sig=topsecret")
    line = json.loads(failed_line(source, DataError("no")))
    assert line["href"] == "https://x.test/one" and "topsecret" not in json.dumps(line)


def test_a_failed_line_takes_relative_hrefs_along(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.json").write_text(PRETTY)
    source = read_item(str(tmp_path / "in" / "one.json"))
    assert source.assets["a"].href == "./a.tif"
    (tmp_path / "failed.ndjson").write_text(failed_line(source, DataError("no")))
    (one,) = read(tmp_path / "failed.ndjson")
    assert one.item.assets["a"].href == str(tmp_path / "in" / "a.tif")
    assert source.assets["a"].href == "./a.tif"


def test_a_failed_line_of_local_files_says_what_to_do_where_the_list_lies_elsewhere():
    local = item("local") | {"geosam:failed": {"exit_code": 75, "error": "no"}}
    local["assets"]["a"]["href"] = "/data/a.tif"
    named = {"href": "/data/one.json", "geosam:failed": {"exit_code": 75, "error": "no"}}
    remote = json.loads(json.dumps(local)) | {"id": "remote"}
    remote["assets"]["a"]["href"] = "https://x.test/a.tif"
    href = "s3://b/out/failed.ndjson"
    first, second, third = read(href, store={href: lines(local, named, remote).encode()})
    for one, name, document in ((first, "local", local), (second, "/data/one.json", named)):
        assert one.error.exit_code == 65
        assert one.error.item == name
        assert "Copy the list to the machine that has the files" in one.error.hint
        assert json.loads(one.line) == document  # it stays what it was
    assert third.item.assets["a"].href == "https://x.test/a.tif"
