"""Object stores, through drivers that cache nothing and try nothing again. The only user of fsspec.

Keys are checked, errors translated and operations tried again in `storage`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from geosam_stac import hrefs
from geosam_stac.errors import ConfigurationError, StorageError, TemporaryError
from geosam_stac.storage_errors import translated

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://(.*)$", re.DOTALL)
PLACES = "a local folder, s3:// or gs://"

_PROBE_KEY = ".geosam-stac-probe"

# What fsspec offers for these is no place for objects: they cannot be written, or only partly.
_READ_ONLY = frozenset({"http", "https", "ftp", "zip", "tar", "github", "data", "reference"})


class ObjectBackend:
    """Objects below one URL; ConfigurationError where it holds a secret or has no driver."""

    def __init__(self, url: str, timeout_s: float) -> None:
        secret = hrefs.find_secret(url)
        if secret is not None:
            raise ConfigurationError(
                f"the output URL holds a secret ({secret}), which would stand in every document",
                hint="Give credentials through the environment",
            )
        self.root = url.rstrip("/")
        self.fs = filesystem(url, timeout_s)

    def href(self, key: str) -> str:
        """URL of a key."""
        return f"{self.root}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object; an older one is replaced."""
        try:
            self.fs.pipe_file(self.href(key), data)
        except FileNotFoundError as error:
            raise self._no_bucket(key) from error

    def create(self, key: str, data: bytes) -> bool:
        """As `put`, under the condition that there is none of this key: else False."""
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
        """Read an object."""
        return bytes(self.fs.cat_file(self.href(key)))

    def _no_bucket(self, key: str) -> StorageError:
        # Keys need no folders in an object store: what is missing is the bucket.
        return StorageError(
            "there is no such bucket", href=self.href(key), hint="Create it, or correct --out"
        )

    def size(self, key: str) -> int | None:
        """Size in bytes; None where there is no object of this key."""
        try:
            info = self.fs.info(self.href(key))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info.get("type") == "file" else None

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a key."""
        try:
            found = self.fs.find(self.href(prefix))
        except FileNotFoundError:
            return []
        root = self.fs._strip_protocol(self.root).rstrip("/") + "/"
        return [str(path).removeprefix(root) for path in found]

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.href(key))

    def delete_tree(self, key: str) -> None:
        """Delete all objects below a key; none being there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.href(key), recursive=True)

    def check_writable(self) -> None:
        """Write an object, and delete it where that is allowed."""
        # One name for all: were deleting forbidden, this one object stays, not one a run.
        self.put(_PROBE_KEY, b"geosam-stac")
        with contextlib.suppress(PermissionError):
            self.delete(_PROBE_KEY)


def filesystem(url: str, timeout_s: float, **settings: Any) -> Any:
    """The fsspec filesystem of a URL; ConfigurationError where it is no place for objects."""
    match = SCHEME.match(url)
    protocol = match[1].lower() if match else ""
    if match is None or protocol in _READ_ONLY:
        raise ConfigurationError(
            f"{protocol or url}:// is not a place for objects",
            expected=PLACES,
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
            hint=known.get("err") or f"Known are {PLACES}",
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


def s3_settings(href: str, options: Mapping[str, str]) -> dict[str, Any]:
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
