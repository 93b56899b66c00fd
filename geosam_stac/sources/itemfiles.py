"""Many Items from one source: JSON, ndjson or stac-geoparquet; a file, a URL or standard input.

Each Item succeeds or fails alone: a `Found` holds one or the other. The line that a failed scene
leaves in `failed.ndjson` is written here too, because it is read here. Imports no raster library;
object stores are read through the functions that are handed in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pystac

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.hrefs import absolute, find_secret, is_local, to_local_path, unsigned
from geosam_stac.retry import Retries
from geosam_stac.sources.content import ReadBytes, head, opened
from geosam_stac.sources.geoparquet import PARQUET_MAGIC, parquet_documents
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.items import ReadText, parse_item, read_item
from geosam_stac.sources.json_documents import json_documents

FAILED_MEMBER = "geosam:failed"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One Item of a search or a file: either `item` or `error` is set.

    `item` is as its source gave it (its hrefs may be signed); `href` is unsigned: the Item's self
    link, or the best name that there is for a broken one; None when nothing names it. `line` is its
    line of a `failed.ndjson` that stands for it there until it can be read, unsigned.
    """

    item: pystac.Item | None
    error: GeosamStacError | None
    href: str | None
    line: str | None = None

    def __post_init__(self) -> None:
        assert (self.item is None) != (self.error is None)


def read_items(
    source: str,
    *,
    read_text: ReadText,
    read_bytes: ReadBytes,
    sink: Sink = ignore,
    retries: Retries | None = None,
    hosts: Hosts | None = None,
) -> Iterator[Found]:
    """Read Items lazily from a FeatureCollection, Items, ndjson or stac-geoparquet.

    Parameters
    ----------
    source
        `-` for standard input, a local path, http(s), or an object-store URL.
    read_text, read_bytes
        href -> content, for schemes other than http(s) and local files.
    sink
        Hears of a page that has a next one, which is not followed.
    retries
        How http(s) requests are tried again.
    hosts
        Which hosts a remote file, and a redirect, may lead to; those that the user's own file
        names become trusted. Default: public ones, and the source's own.

    Yields
    ------
    Found
        In the source's order. Lines of ndjson are Items, FeatureCollections, hrefs of Items (bare,
        or as `{"href": ...}`) or lines of `failed.ndjson`. Relative hrefs are resolved against the
        source's place; from standard input against the self link, else the working folder.

    Raises
    ------
    DataError
        The source is not there, or nothing of it can be read.
    TemporaryError
        The server did not answer.
    """
    hosts, retries = hosts or Hosts(source), retries or Retries()
    with opened(source, read_bytes, hosts, retries) as stream:
        base = _place(source)
        reader = _Reader(
            name=unsigned(source),
            base=base,
            read_text=read_text,
            sink=sink,
            retries=retries,
            hosts=hosts,
        )
        documents: Iterator[tuple[str, Any]]
        if head(stream, len(PARQUET_MAGIC)) == PARQUET_MAGIC:
            documents = parquet_documents(stream, reader.name)
        else:
            documents = json_documents(stream, reader.name)
        for where, document in documents:
            yield from reader.found(document, where)


def failed_line(
    source: pystac.Item | str,
    error: GeosamStacError,
    *,
    href: str | None = None,
    typed: Iterable[str] = (),
) -> str:
    """One line (without its end) for `failed.ndjson`, which `read_items` reads again.

    Parameters
    ----------
    source
        The source Item: the line is its own JSON, unsigned, its asset hrefs absolute, with the
        member `geosam:failed` {exit_code, error}. Or, of an Item that could not be read, its
        href: `{"href": ..., "geosam:failed": ...}`.
    error
        Why it failed.
    href
        Names the Item instead where its JSON still holds a secret; default: its self link.
    typed
        Hosts that the user had typed: what is read again may lead there again, and no further.
    """
    failure: dict[str, Any] = {"exit_code": error.exit_code, "error": str(error)}
    if hosts := list(typed):
        failure["hosts"] = hosts
    if isinstance(source, pystac.Item):
        text = json.dumps(_portable(source) | {FAILED_MEMBER: failure})
        if find_secret(text) is None:
            return text
        source = href or source.get_self_href() or source.id
    return json.dumps({"href": unsigned(source), FAILED_MEMBER: failure})


def item_line(item: pystac.Item) -> str:
    """One line (without its end) of ndjson that `read_items` reads again, from wherever it lies.

    Unsigned, with absolute asset hrefs. Keys are sorted: an Item makes the same line always.
    """
    return json.dumps(_portable(item), sort_keys=True)


def _portable(item: pystac.Item) -> dict[str, Any]:
    base = item.get_self_href() or _working_folder()
    document = item.to_dict(transform_hrefs=False)
    for asset in document["assets"].values():
        asset["href"] = absolute(asset["href"], base)
    unsigned_document: dict[str, Any] = _unsigned_values(document)
    return unsigned_document


def _unsigned_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unsigned_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unsigned_values(inner) for inner in value]
    return unsigned(value) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Makes Founds of the documents of one source. `base` is None for standard input."""

    name: str
    base: str | None
    read_text: ReadText
    sink: Sink
    retries: Retries
    hosts: Hosts

    @property
    def _is_remote(self) -> bool:
        return self.base is not None and not is_local(self.base)

    def found(self, document: Any, where: str) -> Iterator[Found]:
        """The Items of one document; `where` names its place in the source, for errors."""
        if isinstance(document, GeosamStacError):
            yield self._failed(document, where, None)
        elif self._is_remote and _failed_elsewhere(document):
            yield self._of_another_machine(document, where)
        elif isinstance(document, list):
            for index, entry in enumerate(document):
                yield from self.found(entry, _join(where, f"[{index}]"))
        elif isinstance(document, dict) and document.get("type") == "FeatureCollection":
            yield from self._features(document, where)
        elif isinstance(document, dict) and "type" not in document and "href" in document:
            yield self._linked(document, where)
        else:
            yield self._item(document, where)

    def _features(self, document: dict[str, Any], where: str) -> Iterator[Found]:
        features = document.get("features")
        if not isinstance(features, list):
            error = DataError("$.features is no list", href=self.name)
            yield self._failed(error, where, None)
            return
        for index, feature in enumerate(features):
            yield self._item(feature, _join(where, f"features[{index}]"))
        links = document.get("links")
        rels = [link.get("rel") for link in links or () if isinstance(link, dict)]
        if "next" in rels:
            self.sink(
                Notice(
                    message=f"{self.name} is one page of a search: its {len(features)} Items are "
                    "taken, the next page is not. Use --search for all of them",
                    level="warning",
                )
            )

    def _linked(self, document: dict[str, Any], where: str) -> Found:
        href = document["href"]
        if not isinstance(href, str) or not href:
            return self._failed(DataError("$.href is no text", href=self.name), where, None)
        source = absolute(href, self.base or _working_folder())
        try:
            if self._is_remote:
                self.hosts.check_form(href if ":" in href else source)
            elif not self._failed_before(document):
                self.hosts.trust(source)  # as good as typed
            if not is_local(source):
                self.hosts.check_form(source)
            item = read_item(
                source, read_text=self.read_text, retries=self.retries, hosts=self.hosts
            )
        except GeosamStacError as error:
            return self._failed(error, where, unsigned(source))
        return Found(item=item, error=None, href=unsigned(source))

    def _item(self, document: Any, where: str) -> Found:
        href = self.base
        is_own = not self._is_remote and not self._failed_before(document)
        if isinstance(document, dict):
            document = {key: value for key, value in document.items() if key != FAILED_MEMBER}
            if self_link := _self_link(document):
                resolved = absolute(self_link, self.base or _working_folder())
                # A file from elsewhere cannot know of places on this machine.
                href = href if self._is_remote and is_local(resolved) else resolved
            _make_assets_absolute(document, self.base or href or _working_folder())
        try:
            item = parse_item(document, href=href)
        except GeosamStacError as error:
            name = document.get("id") if isinstance(document, dict) else None
            return self._failed(
                error.at(item=name if isinstance(name, str) else None, href=self.name),
                where,
                unsigned(href) if href else None,
            )
        if is_own:
            self.hosts.own(item)
        return Found(item=item, error=None, href=unsigned(href) if href else None)

    def _of_another_machine(self, document: dict[str, Any], where: str) -> Found:
        name = document.get("id") or document.get("href")
        error = DataError(
            "a list that lies elsewhere cannot name files of this machine",
            item=name if isinstance(name, str) else None,
            href=self.name,
            hint="Copy the list to the machine that has the files, and give the copy to --items",
        )
        line = json.dumps(_unsigned_values(document))
        found = self._failed(error, where, None)
        return dataclasses.replace(found, line=line if find_secret(line) is None else None)

    def _failed_before(self, document: Any) -> bool:
        """Whether this is a line of `failed.ndjson`; the hosts typed in that run are trusted."""
        if not isinstance(document, dict) or FAILED_MEMBER not in document:
            return False
        failure = document[FAILED_MEMBER]
        hosts = failure.get("hosts") if isinstance(failure, dict) else None
        if not self._is_remote and isinstance(hosts, list):
            for host in hosts:
                self.hosts.trust_host(str(host))
        return True

    def _failed(self, error: GeosamStacError, where: str, href: str | None) -> Found:
        if where:
            error.message = f"{where}: {error.message}"
        return Found(item=None, error=error, href=href or self.name)


def _failed_elsewhere(document: Any) -> bool:
    """Whether this is a line of `failed.ndjson` that names files of the machine which wrote it.

    All hrefs in such lines are absolute: resolved against the list's place they would be others.
    """
    if not isinstance(document, dict) or FAILED_MEMBER not in document:
        return False
    assets = document.get("assets")
    named = list(assets.values()) if isinstance(assets, dict) else []
    hrefs = [asset.get("href") for asset in (document, *named) if isinstance(asset, dict)]
    return any(isinstance(href, str) and is_local(href) for href in hrefs)


def _working_folder() -> str:
    """A base in the working folder: of a base's path, `absolute` drops the last part."""
    return str(Path.cwd() / "-")


def _join(where: str, part: str) -> str:
    return f"{where}, {part}" if where else part


def _self_link(document: Mapping[str, Any]) -> str | None:
    links = document.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("rel") == "self":
            href = link.get("href")
            return href if isinstance(href, str) and href else None
    return None


def _make_assets_absolute(document: dict[str, Any], base: str) -> None:
    """Resolve the assets' hrefs; what is malformed stays for `parse_item` to name."""
    assets = document.get("assets")
    if not isinstance(assets, dict):
        return
    document["assets"] = {
        key: asset | {"href": absolute(asset["href"], base)}
        if isinstance(asset, dict) and isinstance(asset.get("href"), str)
        else asset
        for key, asset in assets.items()
    }


def _place(source: str) -> str | None:
    if source == "-":
        return None
    return str(to_local_path(source).resolve()) if is_local(source) else source
