"""Publishing into a STAC API by the Transactions extension: Collection, then Items.

POST, and PUT where it exists already (409), so that it is safe to repeat. Every request is tried
again on 429, 5xx and broken connections: what has arrived all the same is met again as a 409.
Credentials are handed in, and go to the API's own host only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests

from geosam_stac import hrefs
from geosam_stac.catalog.collections import feature_collection, union_bbox
from geosam_stac.catalog.members import (
    ApiPlaces,
    Document,
    member,
    model_id,
    order,
    with_hrefs,
)
from geosam_stac.catalog.models import model_item, models_collection
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    GeosamStacError,
    TemporaryError,
)
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.retry import Retries
from geosam_stac.sources.search import api_adapter, server_message

# Links that a STAC API makes itself; `canonical` keeps the way to the Item's own place.
_API_LINKS = frozenset({"self", "root", "parent", "collection", "item", "items"})
# How often a Collection is widened again that another worker has replaced meanwhile.
_WIDENINGS = 5


def publish_to_api(
    items: Sequence[tuple[Document, str]],
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    sink: Sink = ignore,
    retries: Retries | None = None,
) -> int:
    """Publish feature Items, their Collections and models; returns how many Items.

    Parameters
    ----------
    items
        Documents, and the hrefs where they lie.
    url
        The API's landing page.
    headers
        Sent to the API's own host, as `{"Authorization": "Bearer ..."}`.
    sink
        Hears of retries, and of hrefs that nobody else can open.
    retries
        How requests are tried again.

    Raises
    ------
    DataError
        This is no STAC API with Transactions, or it refuses a document: its words are told.
    ConfigurationError
        The API asks for credentials, or refuses these.
    TemporaryError
        The API did not answer, or not now.
    """
    places = ApiPlaces(root=_without_query(url).rstrip("/"))
    members = sorted((member(one, href=href, places=places) for one, href in items), key=order)
    local = next((href for _, href in items if hrefs.is_local(href)), None)
    if local is not None:
        text = f"the Items lie on this machine ({local}): nobody else can open what the API tells"
        sink(Notice(message=text, level="warning"))
    models: dict[str, Document] = {}
    groups: dict[str, list[Document]] = {}
    for one in members:
        models.setdefault(model_id(one), model_item(one, places))
        groups.setdefault(one["collection"], []).append(one)
    with _Client(places, headers or {}, retries or Retries(sink=sink)) as client:
        if models:
            listed = [models[name] for name in sorted(models)]
            client.put_collection(models_collection(listed, places))
            for one in listed:
                client.put_item(one)
        for group in groups.values():
            client.put_collection(feature_collection(group, places))
            for one in group:
                client.put_item(one)
    return len(members)


def _without_query(url: str) -> str:
    return url.partition("?")[0].partition("#")[0]


class _Client:
    """Requests to one API. Not for several threads."""

    def __init__(self, places: ApiPlaces, headers: Mapping[str, str], retries: Retries) -> None:
        self._places = places
        self._timeout_s = retries.policy.http_timeout_s
        self._session = requests.Session()
        adapter = api_adapter(places.root, headers, retries=retries)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def put_item(self, document: Document) -> None:
        """Create an Item, or replace it."""
        place = self._places.item(document["collection"], document["id"])
        self._put(_for_api(document), place.rpartition("/")[0], place)

    def put_collection(self, document: Document) -> None:
        """Create a Collection, or widen the one that is there to hold these Items as well."""
        place = self._places.collection(document["id"])
        body = _for_api(document)
        response = self._request("POST", place.rpartition("/")[0], body)
        if response.status_code != 409:
            _check(response, place, document["id"])
            return
        for _ in range(_WIDENINGS):
            there = self._get(place)
            merged = _for_api(body if there is None else _widened(there, body))
            if there is not None and _same(_for_api(there), merged):
                return
            _check(self._request("PUT", place, merged), place, document["id"])

    def _put(self, body: Document, home: str, place: str) -> None:
        for _ in range(2):
            response = self._request("POST", home, body)
            if response.status_code == 409:
                response = self._request("PUT", place, body)
                if response.status_code == 404:  # deleted in between
                    continue
            _check(response, place, body["id"])
            return
        raise TemporaryError("the Item comes and goes in the API", item=body["id"], href=place)

    def _get(self, place: str) -> Document | None:
        response = self._request("GET", place, None)
        if response.status_code == 404:
            return None
        _check(response, place, None)
        try:
            document = response.json()
        except ValueError as error:
            raise DataError("the API's answer is not JSON", href=place) from error
        return document if isinstance(document, dict) else None

    def _request(self, method: str, url: str, body: Document | None) -> requests.Response:
        try:
            return self._session.request(method, url, json=body, timeout=self._timeout_s)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise DataError("not a valid URL", href=hrefs.unsigned(url)) from error
        except requests.RequestException as error:
            raise TemporaryError(
                f"the API did not answer ({type(error).__name__})",
                href=hrefs.unsigned(url),
                hint="Try again: what is published already is kept",
            ) from error


def _check(response: requests.Response, place: str, name: str | None) -> None:
    """Raise what an answer that is no success means."""
    status = response.status_code
    if response.ok:
        return
    got = f"HTTP {status}"
    if message := server_message(response.text):
        got += f": {message}"
    error: GeosamStacError
    if status in (401, 403):
        error = ConfigurationError(
            "the API asks for credentials to publish, or refuses the ones given",
            got=got,
            hint="Set GEOSAM_STAC_API_TOKEN, or GEOSAM_STAC_API_HEADERS",
        )
    elif status == 429 or status >= 500:
        hint = "Try again later: what is published already is kept"
        error = TemporaryError("the API cannot take this now", got=got, hint=hint)
    elif status in (404, 405, 501):
        error = DataError(
            "this API cannot be published into",
            expected="a STAC API with the Transactions extension",
            got=got,
            hint="Give the API's root URL",
        )
    else:
        error = DataError("the API refuses this document", got=got)
    raise error.at(item=name, href=hrefs.unsigned(place))


def _for_api(document: Document) -> Document:
    """The document without the links that the API makes."""
    links = [one for one in document.get("links") or [] if one.get("rel") not in _API_LINKS]
    result = document | {"links": links}
    return with_hrefs(result, _as_url)


def _as_url(href: str) -> str:
    # pgstac takes a bare path for one of its own.
    return Path(href).as_uri() if href.startswith("/") else href


def _widened(there: Document, ours: Document) -> Document:
    """The Collection that is there, with our extent, summaries, assets and links as well."""
    result = dict(there)
    with contextlib.suppress(KeyError, TypeError, IndexError, ValueError):
        extent = _union_extent(there["extent"], ours["extent"])
        result["extent"] = there["extent"] | extent
    summaries = dict(there.get("summaries") or {})
    for name, values in ours.get("summaries", {}).items():
        held = summaries.get(name)
        if held is None:
            summaries[name] = values
        elif isinstance(held, list):
            new = [value for value in values if value not in held]
            if new:
                summaries[name] = held + new if name == "geosam:bands" else sorted(held + new)
    if summaries:
        result["summaries"] = summaries
    if ours.get("item_assets"):
        result["item_assets"] = ours["item_assets"] | (there.get("item_assets") or {})
    links = list(there.get("links") or [])
    known = {(one.get("rel"), one.get("href")) for one in links}
    result["links"] = links + [
        one for one in ours["links"] if (one["rel"], one["href"]) not in known
    ]
    return result


def _union_extent(held: Document, ours: Document) -> Document:
    boxes = [held["spatial"]["bbox"][0], ours["spatial"]["bbox"][0]]
    spans = [held["temporal"]["interval"][0], ours["temporal"]["interval"][0]]
    return {
        "spatial": {"bbox": [union_bbox(boxes)]},
        "temporal": {"interval": [[_edge(spans, 0), _edge(spans, 1)]]},
    }


def _edge(spans: Sequence[Sequence[str | None]], side: int) -> str | None:
    """The earliest start or latest end of intervals; an open one stays open."""
    from datetime import datetime

    edges = [span[side] for span in spans]
    if None in edges:
        return None
    texts = [text for text in edges if text is not None]
    return (max if side else min)(texts, key=datetime.fromisoformat)


def _same(first: Document, second: Document) -> bool:
    return {**first, "links": _sorted(first)} == {**second, "links": _sorted(second)}


def _sorted(document: Document) -> list[tuple[str, str]]:
    return sorted((str(one.get("rel")), str(one.get("href"))) for one in document["links"])
