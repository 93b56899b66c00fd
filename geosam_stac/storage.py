"""Where outputs lie: a local folder or an object store, behind one small class.

The only user of fsspec. Writes are whole or not there at all; every failure is a
`GeosamStacError` that says if another try helps. Imports `errors` and `hrefs` only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from geosam_stac import hrefs
from geosam_stac.errors import ConfigurationError, DataError, StorageError, TemporaryError
from geosam_stac.retry import Retries, RetryPolicy
from geosam_stac.storage_errors import translated

T = TypeVar("T")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://(.*)$", re.DOTALL)
_PROBE_KEY = ".geosam-stac-probe"

_EXPECTED = "a local folder, s3:// or gs://"

# What fsspec offers for these is no place for objects: they cannot be written, or only partly.
_READ_ONLY = frozenset({"http", "https", "ftp", "zip", "tar", "github", "data", "reference"})


class Store:
    """Objects under one root, addressed by POSIX keys relative to it.

    What may pass, network faults, throttling and a server's own failure, is tried again.

    Safe to use from many threads at once. Nothing is cached: `exists` and `size` ask each time.
    `url` is the root, an absolute local path or the URL, without a trailing slash.

    Parameters
    ----------
    url
        A local folder (need not exist), `file://`, `s3://`, `gs://`, or any other URL whose fsspec
        driver is installed. Credentials and endpoints come from the environment, as the drivers
        read them (`AWS_ENDPOINT_URL`, `STORAGE_EMULATOR_HOST`, ...).
    retries
        How operations are tried again.

    Raises
    ------
    ConfigurationError
        The URL's scheme is unknown, its driver is not installed, or the URL holds a secret.
    """

    def __init__(self, url: str, *, retries: Retries | None = None) -> None:
        self._retries = retries or Retries()
        self._backend: _LocalBackend | _ObjectBackend
        if hrefs.is_local(url):
            if url.startswith("/vsi") or ("://" in url and not _SCHEME.match(url)):
                raise ConfigurationError(
                    "GDAL's and fsspec's chained names are no output", href=url, expected=_EXPECTED
                )
            local = _LocalBackend(hrefs.to_local_path(url))
            self._backend, self.url, self.is_local = local, str(local.root), True
        else:
            self._backend = _ObjectBackend(url, self._retries.policy.timeout_s)
            self.url, self.is_local = url.rstrip("/"), False

    def href(self, key: str) -> str:
        """Absolute local path or URL of a key."""
        return self._backend.href(_checked(key))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all; an older one of this key is replaced.

        Local: a file that has no name, flushed to disk, then named and renamed; a hidden temporary
        one beside it where the file system knows no such files. Object stores: one request, or a
        multipart upload that the driver aborts when it fails.

        Raises StorageError when it cannot be written (no such bucket, access denied, read-only,
        full, over quota), ConfigurationError without credentials, TemporaryError on network
        faults, throttling and a server's own failure.
        """
        self._do("write", "writing", self.href(key), lambda: self._backend.put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object, unless there is one of this key: of two writers one gets True.

        Local: a hard link, which fails where the name is taken. Object stores: a conditional
        request (S3's If-None-Match, GCS's ifGenerationMatch). A store that knows neither is asked
        first, which leaves a moment in which two can both be told True.

        Raises as `put`.
        """
        return self._decided(key, data, lambda: self._backend.create(key, data))

    def get(self, key: str) -> bytes:
        """Read an object; DataError when it is not there, else as `put`."""
        return self._do("fetch", "reading", self.href(key), lambda: self._backend.get(key))

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a key, sorted; none being there is no error."""
        href = self.href(prefix)
        return self._do("list", "listing", href, lambda: sorted(self._backend.keys(prefix)))

    def exists(self, key: str) -> bool:
        """True when there is an object (not a folder) of this key."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None when it is not there."""
        return self._do("look-up", "looking up", self.href(key), lambda: self._backend.size(key))

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        self._do("delete", "deleting", self.href(key), lambda: self._backend.delete(key))

    def delete_tree(self, key: str) -> None:
        """Delete all objects below a key, never the root itself; none being there is no error."""
        self._do("delete", "deleting", self.href(key), lambda: self._backend.delete_tree(key))

    def check_writable(self) -> None:
        """Write and delete a small object, so that a bad output is found before a pixel is read.

        Local: probes the root, or its nearest existing parent, so that no folder is left behind.
        Raises as `put`.
        """
        self._do("write", "writing", self.url, self._backend.check_writable)

    def _decided(self, key: str, data: bytes, write: Callable[[], bool]) -> bool:
        """Write under a condition, by `write`: False when the condition did not hold.

        A try whose answer was lost may have written all the same, and the next one then meets its
        own object.
        """

        def once(tries: int) -> bool:
            with translated("writing", self.href(key)):
                return write() or (tries > 0 and self._holds(key, data))

        return self._retries.run("write", once)

    def _holds(self, key: str, data: bytes) -> bool:
        return self._backend.size(key) == len(data) and self._backend.get(key) == data

    def _do(self, kind: str, action: str, href: str, do: Callable[[], T]) -> T:
        return _tried(self._retries, kind, action, href, do)


def _tried(retries: Retries, kind: str, action: str, href: str, do: Callable[[], T]) -> T:
    def once(_: int) -> T:
        with translated(action, href):
            return do()

    return retries.run(kind, once)


def read_bytes(href: str, *, retries: Retries | None = None) -> bytes:
    """Content of a local path, `file://` or object-store URL (not http: `sources` fetches those).

    Raises DataError when there is nothing, otherwise as `Store.put`.
    """
    retries = retries or Retries()

    def read() -> bytes:
        if hrefs.is_local(href):
            return hrefs.to_local_path(href).read_bytes()
        return bytes(_filesystem(href, retries.policy.timeout_s).cat_file(href))

    return _tried(retries, "fetch", "reading", hrefs.unsigned(href), read)


def put_file(href: str, data: bytes) -> str:
    """Write one file by its local path or URL; returns its href. Raises as `Store.put`."""
    folder, _, key = href.rpartition("/")
    store = Store(folder if folder else "/" if href.startswith("/") else ".")
    store.put(key, data)
    return store.href(key)


def read_chunks(
    href: str,
    options: Mapping[str, str],
    chunk_bytes: int,
    *,
    timeout_s: float = RetryPolicy.timeout_s,
) -> Iterator[bytes]:
    """As `read_bytes`, a piece at a time. `options` are GDAL's, which decide how S3 is asked."""
    with translated("reading", hrefs.unsigned(href)):
        if hrefs.is_local(href):
            file: Any = hrefs.to_local_path(href).open("rb")
        else:
            filesystem = _filesystem(href, timeout_s, **_s3_settings(href, options))
            file = filesystem.open(href, "rb", block_size=max(chunk_bytes, 8 << 20))
        with file:
            while chunk := file.read(chunk_bytes):
                yield chunk


def _s3_settings(href: str, options: Mapping[str, str]) -> dict[str, Any]:
    """GDAL's options for an S3 href, as s3fs takes them."""
    if not href.lower().startswith("s3://"):
        return {}
    settings: dict[str, Any] = {
        "anon": options.get("AWS_NO_SIGN_REQUEST", "").upper() == "YES",
        "requester_pays": options.get("AWS_REQUEST_PAYER", "").lower() == "requester",
    }
    if endpoint := options.get("AWS_S3_ENDPOINT"):
        scheme = "http" if options.get("AWS_HTTPS", "YES").upper() == "NO" else "https"
        settings["endpoint_url"] = f"{scheme}://{endpoint}"
    if region := options.get("AWS_REGION"):
        settings["client_kwargs"] = {"region_name": region}
    return settings


def read_text(href: str, *, retries: Retries | None = None) -> str:
    """As `read_bytes`, decoded from UTF-8, with or without a mark; DataError if it is not."""
    try:
        return read_bytes(href, retries=retries).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "a text file is not UTF-8",
            href=hrefs.unsigned(href),
            got=f"byte 0x{error.object[error.start]:02x} at {error.start}",
        ) from error


class _LocalBackend:
    def __init__(self, root: Path) -> None:
        # Not resolve(): hrefs keep the name that the user gave, symbolic links included.
        self.root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100

    def href(self, key: str) -> str:
        return str(self.root / key)

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, is_new=False)

    def create(self, key: str, data: bytes) -> bool:
        if os.path.lexists(self.root / key):
            return False
        try:
            self._write(key, data, is_new=True)
        except FileExistsError:
            if not (self.root / key).is_file():
                raise
            return False
        return True

    def _write(self, key: str, data: bytes, *, is_new: bool) -> None:
        """Write a file under its own name when it is whole; `is_new`: if the name is free."""
        target = self.root / key
        new = [folder for folder in target.parents if not folder.exists()]
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (is_new and _write_unnamed(target, data)):
                _write_durably(temporary, data)
                (_link if is_new else Path.replace)(temporary, target)
        except BaseException:  # a signal too must leave nothing half-written behind
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
                for folder in new:  # innermost first; one that others have filled stays
                    folder.rmdir()
            raise
        _sync_folder(target.parent)

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def size(self, key: str) -> int | None:
        path = self.root / key
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:  # deleted in between
            return None

    def keys(self, prefix: str) -> list[str]:
        return [
            path.relative_to(self.root).as_posix()
            for path in (self.root / prefix).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def delete_tree(self, key: str) -> None:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(
                "refusing to delete outside the output root",
                href=str(path),
                hint="A folder of the output is a symbolic link; delete it by hand",
            )
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def check_writable(self) -> None:
        folder = self.root
        while not os.path.lexists(folder):
            folder = folder.parent
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            _write_durably(probe, b"geosam-stac")
        finally:
            # Where the folder is a file, unlink fails as the write did: keep the first error.
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


class _ObjectBackend:
    def __init__(self, url: str, timeout_s: float) -> None:
        secret = hrefs.find_secret(url)
        if secret is not None:
            raise ConfigurationError(
                f"the output URL holds a secret ({secret}), which would stand in every document",
                hint="Give credentials through the environment",
            )
        self.root = url.rstrip("/")
        self.fs = _filesystem(url, timeout_s)

    def href(self, key: str) -> str:
        return f"{self.root}/{key}"

    def put(self, key: str, data: bytes) -> None:
        try:
            self.fs.pipe_file(self.href(key), data)
        except FileNotFoundError as error:
            raise self._no_bucket(key) from error

    def create(self, key: str, data: bytes) -> bool:
        # Asked first as well: there are stores that ignore the condition.
        if self.size(key) is not None:
            return False
        try:
            self.fs.pipe_file(self.href(key), data, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise self._no_bucket(key) from error
        except OSError as error:
            if error.errno == errno.ENOSYS:  # S3's 501: this store knows no conditions
                self.put(key, data)
                return True
            # s3fs tells of a 412 as EINVAL, and of a 409 (two at the same moment) as EBUSY.
            if error.errno in (errno.EINVAL, errno.EBUSY) and self.size(key) is not None:
                return False
            raise
        return True

    def get(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(self.href(key)))

    def _no_bucket(self, key: str) -> StorageError:
        # Keys need no folders in an object store: what is missing is the bucket.
        return StorageError(
            "there is no such bucket", href=self.href(key), hint="Create it, or correct --out"
        )

    def size(self, key: str) -> int | None:
        try:
            info = self.fs.info(self.href(key))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info.get("type") == "file" else None

    def keys(self, prefix: str) -> list[str]:
        try:
            found = self.fs.find(self.href(prefix))
        except FileNotFoundError:
            return []
        root = self.fs._strip_protocol(self.root).rstrip("/") + "/"
        return [str(path).removeprefix(root) for path in found]

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.href(key))

    def delete_tree(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.href(key), recursive=True)

    def check_writable(self) -> None:
        # One name for all: were deleting forbidden, this one object stays, not one a run.
        self.put(_PROBE_KEY, b"geosam-stac")
        with contextlib.suppress(PermissionError):
            self.delete(_PROBE_KEY)


def _filesystem(url: str, timeout_s: float, **settings: Any) -> Any:
    match = _SCHEME.match(url)
    protocol = match[1].lower() if match else ""
    if match is None or protocol in _READ_ONLY:
        raise ConfigurationError(
            f"{protocol or url}:// is not a place for objects",
            expected=_EXPECTED,
        )
    if not match[2].strip("/"):
        raise ConfigurationError("the URL names no bucket", href=url, expected=f"{protocol}://NAME")
    try:
        driver = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        known = known_implementations.get(protocol, {})
        raise ConfigurationError(
            f"no driver for {protocol}:// URLs is installed",
            href=hrefs.unsigned(url),
            hint=known.get("err") or f"Known are {_EXPECTED}",
        ) from error
    with translated("opening", hrefs.unsigned(url)):
        # A fresh instance without listings: fsspec's caches would answer for objects that other
        # workers have written or deleted since, and with credentials that have expired.
        options = {"use_listings_cache": False, "skip_instance_cache": True, **settings}
        if protocol in ("s3", "s3a"):
            return _s3(driver, options, timeout_s)
        if protocol in ("gs", "gcs"):
            return _gcs(driver, options, timeout_s)
        return driver(**options)


def _s3(driver: Any, options: dict[str, Any], timeout_s: float) -> Any:
    """s3fs and botocore try nothing again, and an upload is done when S3's own words say so."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    # After "100 Continue" aiohttp's timeout no longer runs: a store that then says nothing would
    # be waited for without end.
    session.unregister("before-call.s3", add_expect_header)
    for operation in ("PutObject", "UploadPart", "CompleteMultipartUpload"):
        session.register(f"after-call.s3.{operation}", _check_etag)
    fs = driver(
        session=session,
        config_kwargs={
            "connect_timeout": min(10.0, timeout_s),
            "read_timeout": timeout_s,
            "retries": {"total_max_attempts": 1},
        },
        **options,
    )
    fs.retries = 1
    return fs


def _check_etag(http_response: Any, parsed: Any, **_: Any) -> None:
    # botocore takes any answer of status 200 for "stored": a sign-in page, an empty one.
    if http_response.status_code < 300 and not parsed.get("ETag"):
        raise TemporaryError(
            "writing failed: the answer is not the store's",
            expected="the ETag of what was stored",
            got=f"HTTP {http_response.status_code} without one",
            hint="Check the endpoint (AWS_ENDPOINT_URL), and try again",
        )


def _gcs(driver: Any, options: dict[str, Any], timeout_s: float) -> Any:
    # gcsfs compares the server's md5 with its own only when asked; s3fs sends a checksum.
    fs = driver(consistency="md5", requests_timeout=timeout_s, **options)
    # Its six tries of every request would multiply with ours.
    fs._request = functools.partial(inspect.unwrap(type(fs)._request), fs)
    return fs


def _checked(key: str) -> str:
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            "a key would leave the output's folder or is malformed",
            expected="relative/posix/path",
            got=repr(key),
        )
    return key


def _write_unnamed(path: Path, data: bytes) -> bool:
    """Write a new file that gets its name when it is whole; False where that cannot be done.

    It goes with a process that is killed, where a hidden file would stay. FileExistsError where
    the name is taken.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # NFS and FAT have none; what else is wrong a file with a name meets as well
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        try:
            # As open(2) says; with a descriptor given Python follows the link to the file itself.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
        except FileExistsError:
            raise
        except OSError:  # no /proc, no hard links
            return False
    return True


def _write_durably(path: Path, data: bytes) -> None:
    if _write_unnamed(path, data):
        return
    # Not tempfile: it creates files of mode 0600, which other users' tools cannot read.
    descriptor = os.open(
        path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # a file system without hard links, as FAT: the name is taken first, then filled
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.replace(target)
        return
    temporary.unlink()


def _sync_folder(folder: Path) -> None:
    # The Item must not survive a power cut that its features do not: the rename itself is synced.
    # Some file systems and Windows cannot do this to a folder; the file's own fsync must do there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
