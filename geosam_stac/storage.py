"""Where outputs lie: a local folder or an object store, behind one small class.

Every failure is a `GeosamStacError` that says if another try helps, and what may pass is tried
again. How an object is written whole is `local_backend`'s and `object_backend`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from geosam_stac import hrefs
from geosam_stac.errors import ConfigurationError, DataError, StorageError
from geosam_stac.local_backend import LocalBackend
from geosam_stac.object_backend import PLACES, SCHEME, ObjectBackend, filesystem, s3_settings
from geosam_stac.retry import Retries, RetryPolicy
from geosam_stac.storage_errors import translated

T = TypeVar("T")


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
        self._backend: LocalBackend | ObjectBackend
        if hrefs.is_local(url):
            if url.startswith("/vsi") or ("://" in url and not SCHEME.match(url)):
                raise ConfigurationError(
                    "GDAL's and fsspec's chained names are no output", href=url, expected=PLACES
                )
            local = LocalBackend(hrefs.to_local_path(url))
            self._backend, self.url, self.is_local = local, str(local.root), True
        else:
            self._backend = ObjectBackend(url, self._retries.policy.timeout_s)
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


def _checked(key: str) -> str:
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            "a key would leave the output's folder or is malformed",
            expected="relative/posix/path",
            got=repr(key),
        )
    return key


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
        return bytes(filesystem(href, retries.policy.timeout_s).cat_file(href))

    return _tried(retries, "fetch", "reading", hrefs.unsigned(href), read)


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
            store = filesystem(href, timeout_s, **s3_settings(href, options))
            file = store.open(href, "rb", block_size=max(chunk_bytes, 8 << 20))
        with file:
            while chunk := file.read(chunk_bytes):
                yield chunk


def put_file(href: str, data: bytes) -> str:
    """Write one file by its local path or URL; returns its href. Raises as `Store.put`."""
    folder, _, key = href.rpartition("/")
    store = Store(folder if folder else "/" if href.startswith("/") else ".")
    store.put(key, data)
    return store.href(key)
