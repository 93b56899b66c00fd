"""Objects that are replaced only at the version that was read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from geosam_stac.errors import GeosamStacError, StorageError
from geosam_stac.versioned import VersionedStore, settle
from tests.servers import (
    gcs_endpoint,  # noqa: F401  (a fixture)
    s3_endpoint,  # noqa: F401  (a fixture)
    use_gcs,
    use_s3,
)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path, monkeypatch):
    """An empty store on a disk, and on S3."""
    if request.param == "local":
        yield VersionedStore(str(tmp_path / "out"))
        return
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    made = VersionedStore("s3://bucket/versioned")
    yield made
    VersionedStore("s3://bucket").delete_tree("versioned")


def test_an_object_is_replaced_only_at_its_version(store):
    assert store.version("a/b.json") is None
    assert store.read("a/b.json") is None
    assert store.put_if("a/b.json", b"one", None)
    first = store.version("a/b.json")
    assert not store.put_if("a/b.json", b"two", None)
    assert store.put_if("a/b.json", b"two", first)
    assert not store.put_if("a/b.json", b"three", first)
    assert store.read("a/b.json") == b"two"
    assert store.versions("a") == {"a/b.json": store.version("a/b.json")}
    store.delete("a/b.json")
    assert not store.put_if("a/b.json", b"four", first)
    assert store.versions("a") == {}


def test_one_of_many_wins(store):
    store.put("a.json", b"0")
    version = store.version("a.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if("a.json", b"%d" % n, version), range(1, 9)))
    assert won.count(True) == 1
    assert store.read("a.json") == b"%d" % (won.index(True) + 1)


def test_a_counter_loses_no_count(store):
    store.put("count", b"0")

    def add(_):
        for _ in settle(200, "count"):
            version = store.version("count")
            if store.put_if("count", b"%d" % (int(store.read("count")) + 1), version):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    assert store.read("count") == b"12"


def test_folders_and_files(store):
    assert store.folders() == store.files() == []
    for key in ("b/x.json", "a/y/z.json", "top.json", ".hidden/x"):
        store.put(key, b"1")
    assert store.folders() == ["a", "b"]
    assert store.files() == ["top.json"]


def test_no_such_bucket(s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    with pytest.raises(StorageError):
        VersionedStore("s3://no-such-bucket/a").put_if("b", b"1", None)


def test_google_is_asked_for_the_generation(gcs_endpoint, monkeypatch):  # noqa: F811
    """The emulator knows no conditions, so what is sent to it is looked at."""
    use_gcs(monkeypatch, gcs_endpoint)
    store = VersionedStore("gs://bucket/versioned")
    sent = []
    call = store._fs.call
    monkeypatch.setattr(
        store._fs,
        "call",
        lambda *args, **kw: sent.append(kw["ifGenerationMatch"]) or call(*args, **kw),
    )
    assert store.put_if("a b/ü.json", b"one", None)
    version = store.version("a b/ü.json")
    assert version.isdigit()
    assert store.put_if("a b/ü.json", b"\x00two\n--==0==", version)
    assert store.read("a b/ü.json") == b"\x00two\n--==0=="
    assert sent == [version]
    assert list(store.versions("a b")) == ["a b/ü.json"]

    def refuse(*args, **kw):
        error = RuntimeError("Precondition Failed")
        error.code = 412
        raise error

    monkeypatch.setattr(store._fs, "call", refuse)
    assert not store.put_if("a b/ü.json", b"three", version)


def test_what_never_settles_is_said():
    with pytest.raises(GeosamStacError, match="3 tries were in vain"):
        for _ in settle(3, "a"):
            pass
