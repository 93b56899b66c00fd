from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
import requests
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from gcsfs.retry import HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from s3fs.errors import translate_boto_error

from geosam_stac import object_backend
from geosam_stac.errors import ConfigurationError, DataError, StorageError, TemporaryError
from geosam_stac.retry import Retries
from geosam_stac.storage import Store, read_bytes, read_text
from tests.quick import quick


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_local_round_trip(tmp_path):
    store = Store(f"file://{tmp_path}/out/")
    assert store.is_local
    assert store.url == f"{tmp_path}/out"
    assert store.href("a/b.bin") == f"{tmp_path}/out/a/b.bin"
    assert store.size("a/b.bin") is None
    assert not store.exists("a/b.bin")
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"three")
    assert store.get("a/b.bin") == b"three"
    assert store.size("a/b.bin") == 5
    assert not store.exists("a")
    assert _names(tmp_path / "out" / "a") == ["b.bin"]
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")


def test_of_many_who_create_one_file_one_is_told_so(tmp_path):
    store = Store(str(tmp_path))
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda n: store.create(f"d/{number}", b"%d" % n), range(8)))  # noqa: B023
        assert told.count(True) == 1
        assert store.get(f"d/{number}") == b"%d" % told.index(True)
    assert _names(tmp_path / "d") == sorted(map(str, range(20)))  # nothing half-done is left


@pytest.mark.parametrize(("stored", "ours"), [(b"1", True), (b"2", False), (None, True)])
def test_a_create_whose_answer_was_lost_knows_its_own_object(tmp_path, monkeypatch, stored, ours):
    retries = Retries(wait=lambda seconds: None)
    store = Store(str(tmp_path), retries=retries)
    create = type(store._backend).create
    asked = []

    def lossy(self, key, data):
        asked.append(key)
        if len(asked) == 1:
            if stored is not None:
                create(self, key, stored)
            raise TimeoutError("no answer")
        return create(self, key, data)

    monkeypatch.setattr(type(store._backend), "create", lossy)
    assert store.create("a", b"1") is ours
    assert store.get("a") == (stored or b"1")
    assert (len(asked), retries.counts()) == (2, {"write": 1})


def test_a_file_is_created_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def link(source, target, **_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    assert [store.create("a", b"1"), store.create("a", b"2")] == [True, False]
    assert store.get("a") == b"1"
    assert _names(tmp_path) == ["a"]


def test_a_folder_where_a_file_is_to_be_created(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        Store(str(tmp_path)).create("file/a", b"1")


def test_files_are_readable_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        Store(str(tmp_path)).put("a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_relative_root_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("out").url == str(tmp_path / "out")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/", ".", "a\0b", "a\\b"])
def test_malformed_keys_are_refused(tmp_path, key):
    store = Store(str(tmp_path))
    for call in (store.get, store.size, store.delete, store.delete_tree, store.href):
        with pytest.raises(StorageError, match="malformed"):
            call(key)
    with pytest.raises(StorageError, match="malformed"):
        store.put(key, b"")


def test_missing_object(tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        Store(str(tmp_path)).get("a/b")
    assert caught.value.href == f"{tmp_path}/a/b"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch, number):
    store = Store(str(tmp_path))
    store.put("a", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        store.put("a", b"new")
    assert caught.value.exit_code == 74
    assert not caught.value.retryable
    assert caught.value.hint
    assert _names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_rename_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        Store(str(tmp_path)).put("a", b"new")
    assert _names(tmp_path) == []


KILLED = """
import os, signal, sys
from geosam_stac.storage import Store
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
data = [] if sys.argv[2] == "check_writable" else ["a", b"new"]
getattr(Store(sys.argv[1]), sys.argv[2])(*data)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="there are no files without a name")
@pytest.mark.parametrize("operation", ["put", "create", "check_writable"])
def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path, operation):
    argv = [sys.executable, "-c", KILLED, str(tmp_path), operation]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert _names(tmp_path) == []


def test_a_file_system_that_knows_no_files_without_a_name(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, mode=0o777):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    if hasattr(os, "O_TMPFILE"):
        monkeypatch.setattr(os, "open", refuse)
    store = Store(str(tmp_path))
    assert [store.create("a", b"1"), store.create("a", b"2")] == [True, False]
    store.put("b", b"3")
    store.put("b", b"4")
    assert (store.get("a"), store.get("b")) == (b"1", b"4")
    assert _names(tmp_path) == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0: real("/dev/full", os.O_WRONLY))
    with pytest.raises(StorageError, match="the disk is full"):
        Store(str(tmp_path)).put("a", b"x" * 100_000)


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = Store(str(tmp_path / "file" / "out"))
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        store.check_writable()
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        store.put("a", b"")
    assert not store.exists("a")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        Store(str(tmp_path / "file")).check_writable()


def test_check_writable_leaves_nothing_behind(tmp_path):
    Store(str(tmp_path / "new" / "folder")).check_writable()
    Store(str(tmp_path)).check_writable()
    assert _names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_proc_is_not_writable():
    store = Store("/proc/geosam-stac")
    with pytest.raises(StorageError):
        store.check_writable()
    with pytest.raises(StorageError):
        store.put("a", b"")


def test_delete_tree(tmp_path):
    store = Store(str(tmp_path / "out"))
    for key in ("a/x", "a/b/y", "ab/z"):
        store.put(key, b"")
    store.delete_tree("a")
    store.delete_tree("a")
    assert [store.exists(key) for key in ("a/x", "a/b/y", "ab/z")] == [False, False, True]


def test_delete_tree_does_not_follow_links_out_of_the_root(tmp_path):
    outside = tmp_path / "outside" / "folder"
    outside.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "outside")
    store = Store(str(tmp_path / "out"))
    for key in ("link", "link/folder"):
        with pytest.raises(StorageError, match="outside the output root"):
            store.delete_tree(key)
    assert outside.is_dir()


def test_eight_threads_write_and_readers_see_whole_objects(tmp_path):
    store = Store(str(tmp_path))
    contents = [bytes([value]) * 200_000 for value in range(8)]
    store.put("shared", contents[0])
    done = threading.Event()
    torn: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            data = store.get("shared")
            if data not in contents:
                torn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        for index in range(160):
            pool.submit(store.put, "shared", contents[index % 8])
            pool.submit(store.put, f"deep/{index % 5}/{index}", contents[index % 8])
    done.set()
    reader.join()
    assert torn == []
    assert sum(store.exists(f"deep/{index % 5}/{index}") for index in range(160)) == 160
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s4://bucket", "no driver for s4://"),
        ("https://host/x", "not a place for objects"),
        ("s3://", "names no bucket"),
        ("simplecache::s3://b/x", "chained"),
        ("/vsis3/b/x", "chained"),
        ("s3://key:S3CRET@bucket/x", "holds a secret"),
    ],
)
def test_urls_that_cannot_be_an_output(url, text):
    with pytest.raises(ConfigurationError, match=text) as caught:
        Store(url)
    assert caught.value.exit_code == 78
    assert "S3CRET" not in str(caught.value)


def test_a_missing_driver_names_its_package(monkeypatch):
    def no_driver(protocol: str) -> None:
        raise ImportError("Install adlfs to access Azure")

    monkeypatch.setattr(object_backend.fsspec, "get_filesystem_class", no_driver)
    with pytest.raises(ConfigurationError, match="adlfs"):
        Store("az://container/x")


def _boto_error(code: str, status: int) -> OSError:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "PutObject"))


# What the drivers raise, and what it comes to: checked with s3fs 2026.9 and gcsfs 2026.10.
DRIVER_ERRORS = [
    (_boto_error("AccessDenied", 403), StorageError),
    (_boto_error("NoSuchBucket", 404), StorageError),
    (_boto_error("InvalidAccessKeyId", 403), ConfigurationError),
    (_boto_error("ExpiredToken", 400), ConfigurationError),
    (_boto_error("SlowDown", 503), TemporaryError),
    (_boto_error("InternalError", 500), TemporaryError),
    (_boto_error("RequestTimeout", 400), TemporaryError),
    (NoCredentialsError(), ConfigurationError),
    (EndpointConnectionError(endpoint_url="http://h"), TemporaryError),
    (ReadTimeoutError(endpoint_url="http://h"), TemporaryError),
    (OSError("Forbidden: https://h/b/o\nno"), StorageError),
    (HttpError({"code": 401, "message": "Anonymous caller"}), ConfigurationError),
    (HttpError({"code": "503", "message": "busy"}), TemporaryError),
    (HttpError({"code": 429, "message": "slow"}), TemporaryError),
    (requests.exceptions.ProxyError(), TemporaryError),
    (DefaultCredentialsError("none"), ConfigurationError),
    (RefreshError("gone"), ConfigurationError),
    (aiohttp.ClientPayloadError("short"), TemporaryError),
    (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), TemporaryError),
    (TimeoutError(), TemporaryError),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TemporaryError),
    (ValueError("Bad Request: invalid bucket"), StorageError),
]


@pytest.mark.parametrize(
    ("error", "kind"),
    DRIVER_ERRORS,
    ids=[f"{type(e).__name__}-{n}" for n, (e, _) in enumerate(DRIVER_ERRORS)],
)
def test_errors_of_the_drivers(monkeypatch, error, kind):
    retries = quick(2)
    store = Store("memory://bucket/x", retries=retries)

    def fail(path: str, data: bytes) -> None:
        raise error

    monkeypatch.setattr(store._backend.fs, "pipe_file", fail)
    with pytest.raises(kind) as caught:
        store.put("a", b"")
    assert type(caught.value) is kind
    assert caught.value.href == "memory://bucket/x/a"
    assert caught.value.__cause__ is error
    assert retries.counts() == ({"write": 1} if kind is TemporaryError else {})


def test_a_drivers_message_with_a_signature_is_not_repeated(monkeypatch):
    store = Store("memory://bucket/x")

    def fail(path: str, data: bytes) -> None:
        raise OSError(f"cannot reach https://h/{path}?X-Amz-Signature=S3CRET")

    monkeypatch.setattr(store._backend.fs, "pipe_file", fail)
    with pytest.raises(StorageError) as caught:
        store.put("a", b"")
    assert "S3CRET" not in str(caught.value)


def test_read_helpers(tmp_path):
    path = tmp_path / "a b.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_bytes(str(path)) == b"\xef\xbb\xbf{}"
    assert read_text(f"file://{tmp_path}/a%20b.json") == "{}"
    with pytest.raises(DataError, match="no such file"):
        read_text(str(tmp_path / "none"))
    path.write_bytes(b"a\xff")
    with pytest.raises(DataError, match="byte 0xff at 1"):
        read_text(str(path))


def test_keys_below_a_key(tmp_path):
    store = Store(str(tmp_path))
    assert store.keys("t") == []
    for key in ("t/b", "t/a/1", "t/a/2", "tt"):
        store.put(key, b"1")
    (tmp_path / "t" / ".left-over.tmp").write_bytes(b"")
    assert store.keys("t") == ["t/a/1", "t/a/2", "t/b"]
    assert store.keys("t/a") == ["t/a/1", "t/a/2"]


def test_a_put_that_fails_leaves_no_folders(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "out"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        store.put("a/b/c.pt", b"data")
    assert list(tmp_path.iterdir()) == []
