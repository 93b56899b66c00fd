"""`failed.ndjson` is kept by all runs that write to one output."""

from __future__ import annotations

import json
import uuid

import pytest

from geosam_stac.cli.failures import FAILED, Failures, scene_keys
from geosam_stac.cli.inputs import Work
from geosam_stac.errors import DataError
from geosam_stac.sources import parse_item
from geosam_stac.sources.groups import Group
from geosam_stac.storage import Store
from tests import rasters, servers
from tests.cli.conftest import make_item
from tests.scale.main import start

A, B, C = (("c", name) for name in "abc")


def line(key, error="no"):
    return json.dumps({"id": key[1], "collection": key[0], "geosam:failed": {"error": error}})


def href_line(href):
    return json.dumps({"href": href, "geosam:failed": {}})


def lines(out):
    store = Store(str(out))
    return store.get(FAILED).decode().splitlines() if store.exists(FAILED) else None


@pytest.fixture(scope="module")
def s3():
    with servers.s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path, monkeypatch):
    if request.param == "local":
        return str(tmp_path / "out")
    servers.use_s3(monkeypatch, request.getfixturevalue("s3"))
    return f"s3://bucket/{uuid.uuid4().hex}"


def test_lines_of_other_scenes_stay(out):
    Failures(out).settle([A, B], [line(A)])
    assert lines(out) == [line(A)]
    Failures(out).settle([C], [line(C)])
    assert lines(out) == [line(A), line(C)]
    Failures(out).settle([A], [line(A, "again")])
    assert lines(out) == [line(C), line(A, "again")]
    Failures(out).settle([A, B], [])
    assert lines(out) == [line(C)]
    Failures(out).settle([C], [])
    assert lines(out) is None
    Failures(out).settle([C], [])
    assert lines(out) is None


def test_of_an_item_that_could_not_be_read_the_href_names_it(out):
    first, other = href_line("https://h/a.json"), href_line("https://h/b.json")
    broken = "{"
    Store(out).put(FAILED, "\n".join([first, other, broken, ""]).encode())
    Failures(out).settle([("", "https://h/a.json")], [])
    assert lines(out) == [other, broken]
    # What cannot be read is of the file itself, and goes when that was an input.
    failures = Failures(out)
    failures.settle([("", failures.href)], [])
    assert lines(out) == [other]


@pytest.mark.parametrize("action", ["write", "delete"])
def test_another_run_s_line_is_not_lost_whenever_it_comes(out, action, monkeypatch):
    """Between reading and writing of one run, another has written."""
    if action == "delete":
        Failures(out).settle([A], [line(A)])
    mine = Failures(out)
    read, raced = mine._store.read, []

    def reading(key):
        data = read(key)
        if len(raced) < 3:
            raced.append(("c", f"raced-{len(raced)}"))
            Failures(out).settle([raced[-1]], [line(raced[-1])])
        return data

    monkeypatch.setattr(mine._store, "read", reading)
    version = mine._store.version
    # Without a file nothing would be read.
    monkeypatch.setattr(
        mine._store, "version", lambda key: version(key) if reading(key) is not False else None
    )
    mine.settle([A], [line(A)] if action == "write" else [])
    expected = {line(key) for key in raced} | ({line(A)} if action == "write" else set())
    assert len(raced) == 3
    assert set(lines(out)) == expected


def test_the_names_of_a_scene():
    item = parse_item(
        rasters.document({"a": rasters.asset("/a.tif")}, item_id="one", collection="c"),
        href="https://h/one.json",
    )
    assert scene_keys(Work(source=item, href="/items.ndjson")) == {
        ("c", "one"),
        ("", "one"),
        ("", "https://h/one.json"),
        ("", "/items.ndjson"),
    }
    assert ("c", "one") in scene_keys(Work(source=Group(id="day", items=(item,))))
    error = DataError("no", item="x")
    assert scene_keys(Work(error=error, href="/x.json")) == {("", "/x.json"), ("", "x")}


def test_two_runs_at_once_and_a_third_that_mends_both(runs, out, tmp_path):
    options = [
        *("encode", "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "--device", "cpu"),
        *("--stride", 64, "--out", out),
    ]
    tifs, running = {}, []
    for run in ("a", "b"):
        documents = []
        for name in (f"{run}-good", f"{run}-bad"):
            documents.append(json.loads(make_item(tmp_path, name).read_text()))
        tif = tmp_path / f"{run}-bad.tif"
        tifs[tif] = tif.read_bytes()
        tif.unlink()
        items = tmp_path / f"{run}.ndjson"
        items.write_text("".join(json.dumps(document) + "\n" for document in documents))
        running.append(start(runs, *options, "--items", items))
    for process in running:
        ended = process.wait()
        assert ended.code == 3, ended.err
        assert len(ended.out.splitlines()) == 1
    assert sorted(json.loads(text)["id"] for text in lines(out)) == ["a-bad", "b-bad"]

    for tif, data in tifs.items():
        tif.write_bytes(data)
    failed = Failures(out).href
    if failed.startswith("s3:"):
        # A list on a store may not name rasters of this machine; nor is a copy the run's own list.
        before = lines(out)
        refused = start(runs, *options, "--items", failed).wait()
        assert refused.code == 65, refused.err
        assert "Copy the list to the machine that has the files" in refused.err
        assert sorted(lines(out)) == sorted(before)
        copy = tmp_path / "copy.ndjson"
        copy.write_bytes(Store(out).get(FAILED))
        failed = str(copy)
    again = start(runs, *options, "--items", failed).wait()
    assert again.code == 0, again.err
    assert len(again.out.splitlines()) == 2
    assert lines(out) is None
