"""`--verify-source`: source files against the size and checksum that their Items tell.

A flipped byte in a compressed tile can be read as other pixels and no error. Where the Item has
`file:checksum` (https://github.com/stac-extensions/file) the whole file is read once more and
hashed, a piece at a time; where it has none, that is said. Imports no raster library.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

import pystac
import requests
from urllib3.exceptions import HTTPError

from geosam_stac.crew import Channel, Crew
from geosam_stac.errors import DataError, ForbiddenError, GeosamStacError, TemporaryError
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.sources.guard import Guarded
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import http_session
from geosam_stac.storage import read_chunks
from geosam_stac.types import Access, PlainAccess, Scene

READERS = 4
CHUNK_BYTES = 1 << 20
TIMEOUT_S = (10, 60)  # connect, between two bytes
MAX_REDIRECTS = 5
# Multihash codes: https://github.com/multiformats/multicodec/blob/master/table.csv
ALGORITHMS = {
    0x11: "sha1",
    0x12: "sha256",
    0x13: "sha512",
    0x14: "sha3_512",
    0x15: "sha3_384",
    0x16: "sha3_256",
    0x17: "sha3_224",
    0x20: "sha384",
    0x1013: "sha224",
    0xD5: "md5",
}

_HEADER = re.compile(r"\s*([^:\s]+)\s*:\s*(.*?)\s*")


@dataclass(frozen=True, kw_only=True)
class Multihash:
    """A digest that says its algorithm: `algorithm` as hashlib names it, `digest` hex."""

    algorithm: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Multihash | None:
        """Read a multihash in hex; None for what is none, or of an algorithm that is not known."""
        try:
            data = bytes.fromhex(text)
            code, rest = _varint(data)
            length, digest = _varint(rest)
        except (ValueError, IndexError):
            return None
        algorithm = ALGORITHMS.get(code)
        if algorithm is None or len(digest) != length:
            return None
        # A shorter digest is a cut one, which would match far too much.
        if length != hashlib.new(algorithm, usedforsecurity=False).digest_size:
            return None
        return cls(algorithm=algorithm, digest=digest.hex())


@dataclass(frozen=True, kw_only=True)
class _File:
    """A source file, and what its Item tells of it. `href` is unsigned."""

    item: str
    asset: str
    href: str
    source_href: str
    access: Access
    hash: Multihash
    size_bytes: int | None


def verify_sources(
    scene: Scene,
    *,
    access: Callable[[pystac.Item], Access] | None = None,
    sink: Sink = ignore,
) -> int:
    """Read every file of a scene that has a checksum, and compare; returns how many had one.

    Parameters
    ----------
    scene
        Its members' bands and masks name the files.
    access
        How the assets of each of the scene's Items are opened; default: as they are.
    sink
        Hears of files without a checksum that can be checked.

    Raises
    ------
    DataError
        A file has another size or checksum than its Item tells: names asset, expected and got.
    ForbiddenError, TemporaryError, ConfigurationError
        A file cannot be read.
    """
    files = list(_files(scene, access, sink))
    crew = Crew()
    todo: Channel[_File] = Channel(len(files) + READERS, crew.stop)

    def check() -> None:
        for file in todo:
            _check(file)

    for file in files:
        todo.put(file)
    todo.close(READERS)
    for _ in range(READERS):
        crew.start(check)
    crew.join()
    crew.raise_first()
    return len(files)


def _files(
    scene: Scene, access: Callable[[pystac.Item], Access] | None, sink: Sink
) -> Iterator[_File]:
    seen: set[tuple[str, str]] = set()
    for item, member in zip(scene.items, scene.members, strict=True):
        opened = access(item) if access is not None else PlainAccess()
        for band in (*member.bands, *member.masks):
            if (item.id, band.asset) in seen:
                continue
            seen.add((item.id, band.asset))
            fields = item.assets[band.asset].extra_fields
            told = fields.get("file:checksum")
            multihash = Multihash.parse(told) if isinstance(told, str) else None
            if multihash is None:
                why = "no file:checksum" if told is None else "a file:checksum of no known kind"
                sink(
                    Notice(
                        message=f"--verify-source: asset {band.asset} of {item.id} has {why}: "
                        "it is read unverified",
                        level="warning",
                    )
                )
                continue
            size = fields.get("file:size")
            yield _File(
                item=item.id,
                asset=band.asset,
                href=band.href,
                source_href=band.source_href,
                access=opened,
                hash=multihash,
                size_bytes=size if type(size) is int and size >= 0 else None,
            )


def _check(file: _File) -> None:
    try:
        try:
            size, digest = _digest(file)
        except (ForbiddenError, TemporaryError):
            if not file.access.renew(file.source_href):
                raise
            size, digest = _digest(file)
    except GeosamStacError as error:
        error.at(item=file.item, href=file.href)
        raise
    what = f"asset {file.asset} is not the file that the Item describes: its"
    hint = "Get the file again, or ask its provider; without --verify-source it is read as it is"
    if file.size_bytes is not None and size != file.size_bytes:
        raise DataError(
            f"{what} size is another",
            item=file.item,
            href=file.href,
            expected=f"{file.size_bytes:,} bytes",
            got=f"{size:,} bytes" if size < file.size_bytes else "more",
            hint=hint,
        )
    if digest != file.hash.digest:
        raise DataError(
            f"{what} {file.hash.algorithm} is another",
            item=file.item,
            href=file.href,
            expected=file.hash.digest,
            got=digest,
            hint=hint,
        )


def _digest(file: _File) -> tuple[int, str]:
    """Size and digest; of a file longer than it should be no more than that is read."""
    digest = hashlib.new(file.hash.algorithm, usedforsecurity=False)
    size = 0
    for chunk in _chunks(file.source_href, file.access):
        digest.update(chunk)
        size += len(chunk)
        if file.size_bytes is not None and size > file.size_bytes:
            break
    return size, digest.hexdigest()


def _chunks(source_href: str, access: Access) -> Iterator[bytes]:
    """The file's bytes. GDAL's names of places are understood; of containers they are not."""
    href = access.sign(source_href)
    for prefix, scheme in (("/vsicurl/", ""), ("/vsis3/", "s3://"), ("/vsigs/", "gs://")):
        if href.startswith(prefix):
            href = scheme + href.removeprefix(prefix)
    if href.startswith("/vsi"):
        raise DataError("a file inside GDAL's virtual file systems cannot be verified")
    if href.lower().startswith(("http://", "https://")):
        return _http_chunks(href, access)
    return read_chunks(href, access.options(source_href), CHUNK_BYTES)


def _http_chunks(url: str, access: Access) -> Iterator[bytes]:
    hosts = access.hosts if isinstance(access, Guarded) else Hosts(allow_private=True)
    with http_session(hosts) as session:
        try:
            for _ in range(MAX_REDIRECTS):
                # By hand: the headers of one host are not for the next one.
                response = session.get(
                    url,
                    headers=_headers(access.options(url)),
                    timeout=TIMEOUT_S,
                    stream=True,
                    allow_redirects=False,
                )
                if not response.is_redirect:
                    break
                url = urljoin(url, response.headers["Location"])
                response.close()
            with response:
                _raise_for_status(response)
                expected = response.headers.get("Content-Length")
                size = 0
                # Raw: a file that is stored compressed has the checksum of what is stored.
                while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
                    size += len(chunk)
                    yield chunk
                if expected is not None and size < int(expected):
                    raise requests.ConnectionError("the body ends early")
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise TemporaryError(
                f"the asset could not be read ({type(error).__name__})", hint="Try again"
            ) from error


def _raise_for_status(response: requests.Response) -> None:
    status = response.status_code
    got = f"HTTP {status}"
    if status in (401, 403):
        raise ForbiddenError("the asset may not be read", got=got)
    if status in (408, 425, 429) or status >= 500:
        raise TemporaryError("the server cannot answer now", got=got, hint="Try again")
    if status != 200:
        raise DataError("the asset cannot be had", got=got)


def _headers(options: Mapping[str, str]) -> dict[str, str]:
    """GDAL_HTTP_HEADERS as requests takes them."""
    lines = options.get("GDAL_HTTP_HEADERS", "").splitlines()
    found = [match for line in lines if (match := _HEADER.fullmatch(line))]
    return {"Accept-Encoding": "identity", **{match[1]: match[2] for match in found}}


def _varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for index in range(9):
        value |= (data[index] & 0x7F) << (7 * index)
        if not data[index] & 0x80:
            return value, data[index + 1 :]
    raise ValueError("a number of more than nine bytes")
