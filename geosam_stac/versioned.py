"""Objects that several processes change: each has a version, and is replaced only at that one.

The version is S3's ETag, Google's generation, or a local file's time and size. Above `storage`,
whose drivers it asks for what plain objects have no need of. Must not import fsspec.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.storage import Store
from geosam_stac.storage_errors import translated

# What S3 answers when another was quicker, and what a store does that knows no conditions.
_LOST = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409"})
_UNKNOWN = frozenset({"NotImplemented", "501"})
_SINGLE_PUT_BYTES = 1 << 32
AGREE_TRIES = 8


class VersionedStore(Store):
    """A Store whose objects can be replaced under a condition. Safe to use from many threads."""

    def versions(self, prefix: str) -> dict[str, str]:
        """Key -> version of all objects below a key, in the keys' order."""
        look = self._local if self.is_local else self._remote
        found = self._do("list", "listing", self.href(prefix), lambda: look(prefix))
        return dict(sorted(found.items()))

    def version(self, key: str) -> str | None:
        """The version of one object; None when it is not there."""
        return self._do("look-up", "looking up", self.href(key), lambda: self._version(key))

    def read(self, key: str) -> bytes | None:
        """Content of an object; None when it is not there."""
        try:
            return self.get(key)
        except DataError:
            return None

    def folders(self) -> list[str]:
        """Names of the folders right below the root, sorted; hidden ones are left out."""
        return self._below("directory")

    def files(self) -> list[str]:
        """Names of the objects right below the root, sorted; hidden ones are left out."""
        return self._below("file")

    def _below(self, kind: str) -> list[str]:
        with translated("listing", self.url):
            try:
                if self.is_local:
                    is_kind = Path.is_dir if kind == "directory" else Path.is_file
                    names = [path.name for path in Path(self.url).iterdir() if is_kind(path)]
                else:
                    entries = self._fs.ls(self.url, detail=True)
                    names = [
                        str(entry["name"]).rstrip("/").rpartition("/")[2]
                        for entry in entries
                        if entry["type"] == kind
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if not name.startswith("."))

    def put_if(self, key: str, data: bytes, version: str | None) -> bool:
        """Write an object if its version is still this one (None: if it is not there).

        False when another has been quicker. Local files are compared and replaced under a lock of
        their folder. A store that knows no conditions writes all the same: who must be sure reads
        again what he built on.
        """
        if version is None:
            return self.create(key, data)
        return self._decided(key, data, lambda: self._replace(key, data, version))

    def _replace(self, key: str, data: bytes, version: str) -> bool:
        protocol = self.url.partition("://")[0].lower()
        if self.is_local:
            return self._put_local(key, data, version)
        if protocol in ("s3", "s3a"):
            return self._put_s3(key, data, version)
        if protocol in ("gs", "gcs"):
            return self._put_gcs(key, data, version)
        self._backend.put(key, data)
        return True

    def _version(self, key: str) -> str | None:
        if self.is_local:
            return _local_version(Path(self.href(key)))
        try:
            info = self._fs.info(self.href(key))
        except FileNotFoundError:
            return None
        return _remote_version(info) if info.get("type") == "file" else None

    def delete_at(self, key: str, version: str | None) -> bool:
        """Delete an object if its version is still this one; False where it is not.

        Asked first: no store deletes under a condition everywhere, which leaves a moment.
        """
        if version is None or self.version(key) != version:
            return False
        self.delete(key)
        return True

    @property
    def _fs(self) -> Any:
        return self._backend.fs  # type: ignore[union-attr]

    def _local(self, prefix: str) -> dict[str, str]:
        root = Path(self.url)
        found = {}
        for path in (root / prefix).rglob("*"):
            if not path.name.startswith(".") and (version := _local_version(path)):
                found[path.relative_to(root).as_posix()] = version
        return found

    def _remote(self, prefix: str) -> dict[str, str]:
        try:
            entries = self._fs.find(self.href(prefix), detail=True)
        except FileNotFoundError:
            return {}
        root = self._fs._strip_protocol(self.url).rstrip("/") + "/"
        return {
            str(path).removeprefix(root): _remote_version(info) for path, info in entries.items()
        }

    def _put_local(self, key: str, data: bytes, version: str) -> bool:
        path = Path(self.href(key))
        with _locked(path.parent):
            if _local_version(path) != version:
                return False
            self._backend.put(key, data)
        return True

    def _put_s3(self, key: str, data: bytes, version: str) -> bool:
        try:
            # In one request: the condition is of a PUT, not of the parts of an upload.
            self._fs.pipe_file(self.href(key), data, chunksize=_SINGLE_PUT_BYTES, IfMatch=version)
        except OSError as error:
            answer = getattr(error.__cause__, "response", None) or {}
            code = str(answer.get("Error", {}).get("Code", ""))
            if code in _LOST:
                return False
            if code not in _UNKNOWN:
                raise
            self._backend.put(key, data)
        return True

    def _put_gcs(self, key: str, data: bytes, version: str) -> bool:
        # gcsfs knows only "create": any other generation is asked for in a request of our own.
        fs = self._fs
        bucket, name, _ = fs.split_path(self.href(key))
        boundary = hashlib.sha256(data).hexdigest()  # which the data cannot hold
        line = f"--{boundary}".encode()
        head = line + b"\nContent-Type: application/json; charset=UTF-8\n\n"
        head += json.dumps({"name": name}).encode() + b"\n" + line
        head += b"\nContent-Type: application/octet-stream\n\n"
        try:
            fs.call(
                "POST",
                f"{fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
                uploadType="multipart",
                headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
                data=head + data + b"\n" + line + b"--",
                json_out=True,
                ifGenerationMatch=version,
            )
        except Exception as error:
            # gcsfs raises HttpError, which cannot be imported where it is not installed.
            if str(getattr(error, "code", "")) == "412":
                return False
            raise
        return True


def put_agreed(
    store: VersionedStore,
    key: str,
    data: bytes,
    *,
    is_as_good: Callable[[bytes, str], bool],
) -> bytes:
    """Write an object, unless one that is as good is there already; returns what stands there.

    Of two writers the first one's object stays, and both know its bytes. `is_as_good` is given
    another object's content and version, and says whether it stays.
    """
    if store.put_if(key, data, None):
        return data
    for _ in settle(AGREE_TRIES, store.href(key)):
        version = store.version(key)
        there = None if version is None else store.read(key)
        if there is not None and (there == data or is_as_good(there, version or "")):
            return there
        if store.put_if(key, data, version):
            return data
    raise AssertionError  # settle has raised


def settle(attempts: int, href: str) -> Iterator[int]:
    """Count the tries of a change that others may undo; raises when they never end."""
    yield from range(attempts)
    raise GeosamStacError(
        f"others change this all the time: {attempts} tries were in vain",
        href=href,
        hint="Run it again when fewer workers write there",
    )


def _local_version(path: Path) -> str | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # The inode too: a replaced file of the same size may have the time of the old one.
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}" if path.is_file() else None


def _remote_version(info: dict[str, Any]) -> str:
    for name in ("generation", "ETag", "etag", "mtime", "LastModified", "updated"):
        if info.get(name):
            return str(info[name])
    return str(info.get("size", ""))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: no file is left behind, and a process that dies lets go of it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows has neither
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
