"""storage.Store against real servers over loopback sockets: moto's S3 and a GCS emulator."""

from __future__ import annotations

import errno
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from geosam_stac.errors import ConfigurationError, DataError, StorageError, TemporaryError
from geosam_stac.storage import Store, read_bytes, read_text
from tests.quick import quick
from tests.servers import (
    gcs_endpoint,  # noqa: F401  (a fixture)
    s3_denied,
    s3_endpoint,  # noqa: F401  (a fixture)
    s3_keys,
    s3_uploads,
    use_gcs,
    use_s3,
)


@pytest.fixture(params=["s3", "gs"])
def store(request, monkeypatch):
    endpoint = request.getfixturevalue({"s3": "s3_endpoint", "gs": "gcs_endpoint"}[request.param])
    {"s3": use_s3, "gs": use_gcs}[request.param](monkeypatch, endpoint)
    root = Store(f"{request.param}://bucket/{request.node.originalname}/")
    yield root
    root.delete_tree("t")


def test_round_trip(store):
    assert not store.is_local
    assert store.url.endswith("://bucket/test_round_trip")
    assert store.href("t/a b") == f"{store.url}/t/a b"
    assert store.size("t/a") is None
    store.put("t/a", b"one")
    assert store.size("t/a") == 3
    store.put("t/a", b"three")
    assert store.size("t/a") == 5
    assert store.get("t/a") == b"three"
    assert not store.exists("t")
    assert read_bytes(store.href("t/a")) == b"three"
    assert read_text(store.href("t/a")) == "three"
    store.delete("t/a")
    store.delete("t/a")
    assert not store.exists("t/a")
    with pytest.raises(DataError, match="no such file"):
        store.get("t/a")


def test_what_another_writer_did_is_seen(store):
    other = Store(store.url)
    assert not store.exists("t/a")
    other.put("t/a", b"1")
    assert store.exists("t/a")
    other.put("t/a", b"12")
    assert store.size("t/a") == 2
    other.delete("t/a")
    assert not store.exists("t/a")


def test_an_object_that_is_there_is_not_created(store):
    other = Store(store.url)
    assert store.create("t/a", b"1") is True
    assert other.create("t/a", b"12") is False
    assert store.get("t/a") == b"1"
    store.delete("t/a")
    assert other.create("t/a", b"12") is True


def test_of_many_who_create_one_object_one_is_told_so(s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    for number in range(5):
        with ThreadPoolExecutor(8) as pool:
            stores = [Store("s3://bucket/race") for _ in range(8)]
            told = list(
                pool.map(
                    lambda pair: pair[1].create(f"t/{number}", b"%d" % pair[0]),  # noqa: B023
                    enumerate(stores),
                )
            )
        assert told.count(True) == 1
        assert stores[0].get(f"t/{number}") == b"%d" % told.index(True)


def test_a_store_without_conditions(s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    store = Store("s3://bucket/odd")
    pipe = store._backend.fs.pipe_file

    def refusing(path, value, mode="overwrite"):
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality")
        return pipe(path, value)

    monkeypatch.setattr(store._backend.fs, "pipe_file", refusing)
    assert [store.create("t/a", b"1"), store.create("t/a", b"2")] == [True, False]
    assert store.get("t/a") == b"1"


def test_keys_below_a_key(store):
    assert store.keys("t") == []
    for key in ("t/b", "t/a/1", "t/a/2", "tt"):
        store.put(key, b"1")
    assert store.keys("t") == ["t/a/1", "t/a/2", "t/b"]
    assert store.keys("t/a") == ["t/a/1", "t/a/2"]
    store.delete("tt")


def test_delete_tree_spares_the_neighbours(store):
    for key in ("t/a/x", "t/a/b/y", "t/ab/z"):
        store.put(key, b"1")
    store.delete_tree("t/a")
    store.delete_tree("t/a")
    assert [store.exists(key) for key in ("t/a/x", "t/a/b/y", "t/ab/z")] == [False, False, True]


def test_eight_threads(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"t/{n}", _content(n)), range(40)))
    assert [store.get(f"t/{n}") == _content(n) for n in range(40)] == [True] * 40


def _content(seed: int) -> bytes:
    return random.Random(seed).randbytes(50_000) + b"."


def test_a_body_that_arrives_changed_is_an_error(gcs_endpoint, monkeypatch):  # noqa: F811
    # The emulator itself drops a carriage return at the end of a body.
    use_gcs(monkeypatch, gcs_endpoint)
    with pytest.raises(TemporaryError, match="MD5"):
        Store("gs://bucket/x", retries=quick(2)).put("t/changed", b"abc\r")


def test_an_empty_object(store):
    store.put("t/empty", b"")
    assert store.size("t/empty") == 0
    assert store.exists("t/empty")


def test_no_such_bucket(store):
    bad = Store(store.url.replace("bucket", "no-such-bucket", 1))
    with pytest.raises(StorageError, match="no such bucket") as caught:
        bad.check_writable()
    assert caught.value.exit_code == 74
    with pytest.raises(DataError):
        bad.get("t/a")


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert not store.exists(".geosam-stac-probe")


def test_large_objects_go_in_parts_and_leave_no_upload(s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    store = Store("s3://bucket/large")
    data = bytes(range(256)) * (101 * 4096)
    store.put("t/big", data)
    assert s3_keys(s3_endpoint)["large/t/big"] == len(data) == 101 * 2**20
    assert s3_uploads(s3_endpoint) == []
    store.delete("t/big")


def test_no_credentials_is_a_configuration_error(s3_endpoint, monkeypatch, tmp_path):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="credentials") as caught:
        Store("s3://bucket/x").check_writable()
    assert caught.value.exit_code == 78


def test_an_endpoint_that_is_down_is_temporary(monkeypatch):
    use_s3(monkeypatch, "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(TemporaryError) as caught:
        Store("s3://bucket/x", retries=quick(2)).put("a", b"")
    assert caught.value.retryable
    assert time.monotonic() - begun < 120


def test_a_bucket_that_denies_access(s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    with s3_denied(s3_endpoint), pytest.raises(StorageError, match="access is denied") as caught:
        Store("s3://bucket/x").check_writable()
    assert caught.value.exit_code == 74
