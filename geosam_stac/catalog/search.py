"""Search for feature Items: a STAC API, a static catalog, or a stac-geoparquet index.

All three give the same Items in the same order, as documents with absolute hrefs and a
`canonical` link to the Item that `encode` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping

from geosam_stac import hrefs
from geosam_stac.catalog.index import read_index
from geosam_stac.catalog.members import (
    CATALOG,
    INDEX_FILE,
    Document,
    absolute,
    is_feature_item,
    link,
    with_hrefs,
)
from geosam_stac.catalog.parallel import in_parallel
from geosam_stac.catalog.query import FeatureQuery, in_order, select
from geosam_stac.catalog.reading import absolute_href, read_document, read_file
from geosam_stac.catalog.static import StaticCatalog, root_of
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.sources.search import search


def search_features(
    query: FeatureQuery,
    *,
    catalog: str | None = None,
    index: str | None = None,
    api: str | None = None,
    headers: Mapping[str, str] | None = None,
    sink: Sink = ignore,
) -> list[Document]:
    """Search one of the three: newest first, then by id.

    Parameters
    ----------
    query
        What is asked for.
    catalog, index, api
        Exactly one: a static catalog's catalog.json or folder, a stac-geoparquet file, or the URL
        of a STAC API.
    headers
        For the API's own host.
    sink
        Hears of retries, and of what could not be read.

    Raises
    ------
    UsageError
        Not exactly one place; or the search is not understood.
    DataError
        There is no such catalog, index or API.
    StorageError, ConfigurationError, TemporaryError
        It cannot be read, or not now.
    """
    given = [name for name in (catalog, index, api) if name]
    if len(given) != 1:
        raise UsageError(
            "a search needs one place to search" if given else "--catalog is missing",
            hint="Give one of --catalog, --index and --api",
        )
    if api:
        return search_api(api, query, headers=headers, sink=sink)
    return search_index(index, query) if index else search_catalog(given[0], query, sink=sink)


def search_api(
    url: str,
    query: FeatureQuery,
    *,
    headers: Mapping[str, str] | None = None,
    sink: Sink = ignore,
) -> list[Document]:
    """Search a STAC API; raises as `sources.search.search`. Broken Items are told to `sink`."""
    found: list[Document] = []
    for one in search(query.search_query(url), headers=headers, sink=sink):
        if one.item is None:
            sink(Notice(message=str(one.error), level="warning"))
        else:
            found.append(with_hrefs(one.item.to_dict(transform_hrefs=False), _as_path))
    return in_order(found)


def _as_path(href: str) -> str:
    """A local path as everywhere else; in an API it stands as a URL."""
    return str(hrefs.to_local_path(href)) if href.startswith("file:///") else href


def search_index(source: str, query: FeatureQuery) -> list[Document]:
    """Search a stac-geoparquet file: local, http(s), or on a bucket. DataError if it is none."""
    place = absolute_href(source)
    documents = read_index(read_file(place), hrefs.unsigned(place))
    return select(filter(is_feature_item, documents), query)


def search_catalog(source: str, query: FeatureQuery, *, sink: Sink = ignore) -> list[Document]:
    """Search a static catalog, named by its catalog.json or its folder.

    items.parquet answers where it is fresh: where it holds the very rows that are there. Newer
    ones are read beside it. Over http nothing can be listed: items.parquet is taken as it is.
    Where there is neither, as in a catalog of another's, the Items are read along the links.
    """
    root = root_of(absolute_href(source))
    if root.lower().startswith(("http://", "https://")):
        documents = _published(root)
    else:
        documents = _listed(root)
    if documents is None:
        documents = _linked(f"{root}/{CATALOG}", sink)
    return select(filter(is_feature_item, documents), query)


def _published(root: str) -> list[Document] | None:
    """What items.parquet of a web server holds; None where there is none."""
    href = f"{root}/{INDEX_FILE}"
    try:
        data = read_file(href)
    except DataError:
        return None
    return read_index(data, hrefs.unsigned(href))


def _listed(root: str) -> list[Document] | None:
    """The members of all rows; None where there are no rows."""
    catalog = StaticCatalog(root)
    rows = catalog.rows()
    if not rows:
        return None
    found = catalog.members(rows)
    moved = any(
        link(one, "self") != catalog.places.item(one["collection"], one["id"]) for one in found
    )
    # Of a catalog that was copied elsewhere, the links between its files still hold.
    return None if moved else found


def _linked(href: str, sink: Sink) -> list[Document]:
    """The Items of a catalog, along its links; a broken one is told to `sink`."""
    found: list[Document] = []
    seen: set[str] = set()
    todo = [href]
    while todo:
        seen.update(todo)
        documents = in_parallel(lambda one: _read(one, sink, needed=one == href), todo)
        found += [one for one in documents if one is not None and one.get("type") == "Feature"]
        links = [each for one in documents if one is not None for each in one.get("links") or []]
        places = [each["href"] for each in links if each.get("rel") in ("child", "item")]
        todo = [place for place in dict.fromkeys(places) if place not in seen]
    return found


def _read(href: str, sink: Sink, *, needed: bool) -> Document | None:
    try:
        return absolute(read_document(href), href)
    except GeosamStacError as error:
        if needed:
            if type(error) is DataError:
                error.hint = (
                    "Give the catalog.json of features (`geosam-stac catalog rebuild` makes one); "
                    "catalogs of imagery are searched by `encode --catalog`"
                )
            raise
        sink(Notice(message=str(error), level="warning"))
        return None
