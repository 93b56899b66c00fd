"""Items from a STAC API's search: one query, lazily paged, retried, each Item on its own.

The only user of pystac-client. Credentials are handed in as headers (the environment is the
CLI's) and go to the API's own host only, never to a log. Must not import anything above `sources`.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

import pystac
import requests
from pystac_client import Client, ItemSearch
from pystac_client.conformance import ConformanceClasses
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    GeosamStacError,
    TemporaryError,
    UsageError,
)
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.hrefs import find_secret, unsigned
from geosam_stac.retry import Retries
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import RetryAdapter
from geosam_stac.sources.itemfiles import Found
from geosam_stac.sources.items import parse_item
from geosam_stac.sources.query import SearchQuery, cql2_text

MAX_SERVER_MESSAGE = 600
RESULTS = "its search results"
# APIs without POST answer it so; 404 comes from static hosts and gateways.
NO_POST = (404, 405, 501)


def search(
    query: SearchQuery,
    *,
    headers: Mapping[str, str] | None = None,
    sink: Sink = ignore,
    retries: Retries | None = None,
    hosts: Hosts | None = None,
) -> Iterator[Found]:
    """Search a STAC API: its Items in its order, page by page, each (collection, id) once.

    Parameters
    ----------
    query
        What is asked. `query.limit` counts broken Items too.
    headers
        Sent to the API's own host, as `{"Authorization": "Bearer ..."}`.
    sink
        Hears of pages that repeat themselves.
    retries
        How requests are tried again, POST as well: a search changes nothing.
    hosts
        Which hosts the API's links and redirects may lead to; default: public ones, and its own.

    Raises
    ------
    UsageError
        The API refuses the query (bad CQL2, unknown field): its own words are in the message.
    DataError
        This is no STAC API, or one that cannot be searched so.
    ConfigurationError
        The API asks for credentials, or refuses these.
    TemporaryError
        The API did not answer, or not now.
    """
    retries = retries or Retries(sink=sink)
    io = StacApiIO(timeout=retries.policy.http_timeout_s)
    adapter = api_adapter(query.url, headers or {}, retries=retries, hosts=hosts)
    with contextlib.closing(io.session) as session:
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        client = _open(query, io)
        seen: set[str] = set()
        found = 0
        for page in _pages(client, query):
            known = len(seen)
            for document in page:
                if (key := _key(document)) in seen:
                    continue
                seen.add(key)
                yield _found(document, query.url)
                found += 1
                if found == query.limit:
                    return
            if len(seen) == known:
                sink(
                    Notice(
                        message=f"{unsigned(query.url)} repeats a page of its results: the search "
                        f"ends there, with {found} Items",
                        level="warning",
                    )
                )
                return


def _key(document: Any) -> str:
    """What two Items share when they are the same one."""
    if isinstance(document, dict) and isinstance(document.get("id"), str):
        return json.dumps([document.get("collection"), document["id"]])
    return json.dumps(document, sort_keys=True)


def _found(document: Any, url: str) -> Found:
    named = _item_href(document, url)
    # Where it has no name, the API's: by its own word it might become an Item of this machine.
    href = named or url
    try:
        return Found(
            item=parse_item(document, href=href),
            error=None,
            href=unsigned(named) if named else None,
        )
    except GeosamStacError as error:
        name = document.get("id") if isinstance(document, dict) else None
        error.at(item=name if isinstance(name, str) else None, href=unsigned(href))
        return Found(item=None, error=error, href=unsigned(named) if named else None)


def _item_href(document: Any, url: str) -> str | None:
    """The Item's self link; where it has none, the place that the STAC API gives it."""
    if not isinstance(document, dict):
        return None
    links = document.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("rel") == "self" and link.get("href"):
            href = urljoin(url, str(link["href"]))
            if href.lower().startswith(("http://", "https://", "s3://", "gs://")):
                return href
    collection, item_id = document.get("collection"), document.get("id")
    if not isinstance(collection, str) or not isinstance(item_id, str):
        return None
    root = urlsplit(url)._replace(query="", fragment="").geturl().rstrip("/")
    return f"{root}/collections/{quote(collection, safe='')}/items/{quote(item_id, safe='')}"


# The API


def _open(query: SearchQuery, io: StacApiIO) -> Client:
    with warnings.catch_warnings():
        # What pystac-client warns of is checked below.
        warnings.simplefilter("ignore")
        try:
            client = Client.open(query.url, stac_io=io, timeout=io.timeout)
        except APIError as error:
            _fail(error, query, what="its landing page")
        except (pystac.STACError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "this is no STAC API",
                href=unsigned(query.url),
                expected="the landing page of a STAC API",
                got="HTML or other text" if isinstance(error, ValueError) else "another document",
                hint="Give the API's root URL, the one that /search and /collections are under",
            ) from error
        except ClientTypeError as error:
            raise DataError(
                "this is no STAC API's landing page",
                href=unsigned(query.url),
                expected="a Catalog",
                got=str(error).rpartition("found type=")[2],
                hint="Give the API's root URL to --search and the Collection's id to --collection",
            ) from error
    _check_conformance(client, query)
    return client


def _check_conformance(client: Client, query: SearchQuery) -> None:
    href = unsigned(query.url)
    says = client.get_conforms_to()
    searchable = _conforms(says, ConformanceClasses.ITEM_SEARCH)
    if not searchable and client.get_single_link("search") is None:
        raise DataError(
            "this catalog cannot be searched: it has no item search",
            href=href,
            expected="a STAC API with the conformance class item-search",
            got="a STAC API without item search" if says else "a static catalog",
            hint="Name its Items with --item, or a file of them with --items",
        )
    # pystac-client refuses APIs that call it by another version, or say nothing.
    client.add_conforms_to("ITEM_SEARCH")
    if not says:
        # Such an API may have every extension all the same: its answer will tell.
        return
    for flag, given, needed in (
        ("--filter", query.filter, ConformanceClasses.FILTER),
        ("--query", query.query, ConformanceClasses.QUERY),
        ("--sortby", query.sortby, ConformanceClasses.SORT),
    ):
        # Sent all the same, it would be ignored, and everything found.
        if given and not _conforms(says, needed):
            raise UsageError(
                f"this API lacks the {needed.name.lower()} extension of STAC's item search",
                href=href,
                hint=f"Leave {flag} out",
            )


def _conforms(uris: list[str], needed: ConformanceClasses) -> bool:
    # pystac-client's own test knows version 1.0 only; the sort extension is at 1.1.
    return any(str(uri).rstrip("/").endswith(needed.value) for uri in uris)


def _pages(client: Client, query: SearchQuery) -> Iterator[list[Any]]:
    methods = _methods(client)
    for method in methods:
        pages = _item_search(client, query, method).pages_as_dicts()
        first = True
        while True:
            try:
                page = next(pages, None)
            except APIError as error:
                status = getattr(error, "status_code", None)
                if first and status in NO_POST and method != methods[-1]:
                    break
                _fail(error, query, what=RESULTS if first else "its next page of results")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    "the API's answer is no page of Items",
                    href=unsigned(query.url),
                    expected="a GeoJSON FeatureCollection",
                    got=f"{type(error).__name__}: {error}",
                ) from error
            if page is None:
                return
            first = False
            yield page["features"]


def _methods(client: Client) -> tuple[str, ...]:
    links = [link for link in client.links if link.rel == "search"]
    said = {
        str(link.extra_fields["method"]).upper() for link in links if "method" in link.extra_fields
    }
    return ("GET",) if said == {"GET"} and len(links) == 1 else ("POST", "GET")


def _item_search(client: Client, query: SearchQuery, method: str) -> ItemSearch:
    parameters = query.parameters()
    if method == "GET" and "filter" in parameters:
        parameters["filter"] = cql2_text(parameters["filter"])
        parameters["filter_lang"] = "cql2-text"
    elif "filter" in parameters:
        parameters["filter_lang"] = "cql2-json"
    limit = query.page_size if query.limit is None else min(query.page_size, query.limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return client.search(method=method, limit=limit, **parameters)


# Errors


def _fail(error: APIError, query: SearchQuery, *, what: str) -> NoReturn:
    raise _translated(error, query, what) from error


def _translated(error: APIError, query: SearchQuery, what: str) -> GeosamStacError:
    href = unsigned(query.url)
    status = getattr(error, "status_code", None)
    if status is None:
        return _unreachable(error.__context__, href)
    got = f"HTTP {status}"
    if message := server_message(str(error)):
        got += f": {message}"
    if status == 429 or status >= 500:
        hint = "Try again later"
        if query.filter or query.query:
            # pgstac answers an operator that it does not know with 500.
            hint += "; if it stays so, check --filter and --query"
        return TemporaryError(f"the API cannot give {what} now", href=href, got=got, hint=hint)
    if status in (401, 403):
        return ConfigurationError(
            "the API asks for credentials, or refuses the ones given",
            href=href,
            got=got,
            hint="Give its token or headers through the environment",
        )
    if status in (400, 413, 414, 422) and what == RESULTS:
        return UsageError(
            "the API refuses this search", href=href, got=got, hint="Check the search's options"
        )
    return DataError(
        f"the API does not give {what}",
        href=href,
        got=got,
        hint="Give the API's root URL" if status == 404 else None,
    )


def _unreachable(cause: BaseException | None, href: str) -> GeosamStacError:
    kind = type(cause).__name__
    match cause:
        case GeosamStacError():
            # pystac-client wraps everything that comes up in a request, an Interrupted too.
            return cause
        case requests.exceptions.InvalidURL() | requests.exceptions.InvalidSchema():
            return UsageError("not a valid URL", href=href)
        case requests.exceptions.SSLError():
            return ConfigurationError(
                "the API's certificate is not trusted",
                href=href,
                hint="Set REQUESTS_CA_BUNDLE to the certificates that are",
            )
        case requests.exceptions.TooManyRedirects() | UnicodeDecodeError():
            return DataError("this is no STAC API", href=href, got=kind)
    return TemporaryError(
        f"the API did not answer ({kind})",
        href=href,
        hint="Try again; check the host name and the network",
    )


def server_message(text: str) -> str:
    """The server's own words, from JSON of the usual shapes or plain text, without secrets."""
    if text.lstrip().startswith("<"):
        return ""
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        document = json.loads(text)
        if isinstance(document, dict):
            words = [
                value if isinstance(value, str) else json.dumps(value)
                for name in ("title", "description", "detail", "message", "errors")
                if (value := document.get(name))
            ]
            text = ": ".join(words) or text
    text = " ".join(text.split())
    if len(text) > MAX_SERVER_MESSAGE:
        text = text[:MAX_SERVER_MESSAGE] + "..."
    return "" if find_secret(text) else text


# Transport


def api_adapter(
    url: str, headers: Mapping[str, str], *, retries: Retries, hosts: Hosts | None = None
) -> RetryAdapter:
    """For requests to the API at `url`: tries every method again, and adds its credentials.

    `headers` go to the API's own host only; requests to `hosts`, by default public ones and that.
    Raises UsageError for a `url` that names no host, or a port that is none.
    """
    try:
        host = _origin(url)[1]
    except ValueError:
        host = None
    if not host:
        raise UsageError("not a valid URL", href=unsigned(url), expected="https://host/...")
    return _Adapter(url, headers, retries, hosts or Hosts(url))


class _Adapter(RetryAdapter):
    """Adds the credentials as the last thing before a request leaves, to one host only.

    Set on the session they would stand in pystac-client's debug log, and go to every host that a
    `next` link or a redirect names.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], retries: Retries, hosts: Hosts
    ) -> None:
        self._origin = _origin(url)
        self._headers = dict(headers)
        super().__init__(hosts, retries, "search", is_document=True)

    def send_once(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Send a request with the credentials that are the host's."""
        outgoing = request.copy()
        if _origin(outgoing.url or "") == self._origin:
            outgoing.headers.update(self._headers)
        response = super().send_once(outgoing, *args, **kwargs)
        # What is kept, and named in errors, is the request without them.
        response.request = request
        if request.method == "POST" and response.status_code in (301, 302):
            # requests would go on with a GET that has lost the query: everything would be found.
            response.status_code = {301: 308, 302: 307}[response.status_code]
        return response


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)
