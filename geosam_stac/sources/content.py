"""Content of standard input, a local file, a URL or an object, as a stream of bytes.

Object stores are read through the function that is handed in.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import requests

from geosam_stac.errors import DataError, TemporaryError, UsageError
from geosam_stac.hrefs import is_local, to_local_path, unsigned
from geosam_stac.retry import ONCE, Retries
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import RETRY_STATUS, http_session, not_now

ReadBytes = Callable[[str], bytes]

CHUNK_BYTES = 1 << 20


def read_source(source: str, *, read_bytes: ReadBytes, retries: Retries | None = None) -> bytes:
    """Content of a local file, http(s) or object-store URL; raises as `opened`."""
    with opened(source, read_bytes, Hosts(source), retries or Retries()) as stream:
        return stream.read()


@contextlib.contextmanager
def opened(
    source: str, read_bytes: ReadBytes, hosts: Hosts, retries: Retries
) -> Iterator[BinaryIO]:
    """Open `-`, a local path, an http(s) URL (fetched whole) or what `read_bytes` reads.

    Raises
    ------
    DataError
        It is not there, or cannot be had.
    TemporaryError
        The server did not answer.
    """
    if source == "-":
        # Not closed: standard input is not ours.
        yield sys.stdin.buffer
        return
    if source.lower().startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            _download(source, cast(BinaryIO, file), hosts, retries)
            file.seek(0)
            yield cast(BinaryIO, file)
    elif is_local(source):
        path = to_local_path(source)
        try:
            local = path.open("rb")
        except FileNotFoundError as error:
            raise DataError(
                "no such file", href=str(path), hint="Check the path to --items"
            ) from error
        except IsADirectoryError as error:
            raise DataError(
                "this is a folder, not a file of Items", href=str(path), hint="Name the file in it"
            ) from error
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", href=str(path)) from error
        with local:
            yield local
    else:
        yield cast(BinaryIO, io.BufferedReader(io.BytesIO(read_bytes(source))))


def head(stream: BinaryIO, count: int) -> bytes:
    """The first bytes, which stay to be read."""
    return cast(io.BufferedReader, stream).peek(count)[:count]


def _download(url: str, file: BinaryIO, hosts: Hosts, retries: Retries) -> None:
    timeout_s = retries.policy.http_timeout_s
    retries.run("items", lambda _: _download_once(url, file, hosts, timeout_s))


def _download_once(url: str, file: BinaryIO, hosts: Hosts, timeout_s: tuple[float, float]) -> None:
    """One request; what came of an earlier one is dropped: its body may be cut off."""
    href = unsigned(url)
    file.seek(0)
    file.truncate()
    with http_session(hosts, Retries(ONCE), "items") as session:
        try:
            with session.get(url, timeout=timeout_s, stream=True) as response:
                _check_status(response, href)
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise UsageError("not a valid URL", href=href) from error
        except requests.RequestException as error:
            raise TemporaryError(
                f"the server did not answer ({type(error).__name__})",
                href=href,
                hint="Try again; check the host name and the network",
            ) from error


def _check_status(response: requests.Response, href: str) -> None:
    if response.ok:
        return
    status = f"HTTP {response.status_code}"
    if response.status_code in RETRY_STATUS or response.status_code >= 500:
        raise not_now(response, href)
    denied = response.status_code in (401, 403)
    hint = "The server asks for credentials or a signature" if denied else None
    raise DataError("the Items cannot be had", href=href, got=status, hint=hint)
