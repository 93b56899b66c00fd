"""Publishing: feature Items into a static catalog, a stac-geoparquet file, or a STAC API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from geosam_stac.catalog.indexfile import add_to_index
from geosam_stac.catalog.members import CATALOG
from geosam_stac.catalog.parallel import in_parallel
from geosam_stac.catalog.reading import absolute_href, read_feature_item
from geosam_stac.catalog.static import StaticCatalog, root_of
from geosam_stac.catalog.transactions import publish_to_api
from geosam_stac.errors import ConfigurationError, UsageError
from geosam_stac.events import Sink, ignore
from geosam_stac.hrefs import find_secret
from geosam_stac.retry import Retries


def kind_of(target: str) -> str:
    """`api`, `index` or `catalog`: where a target publishes to.

    Raises UsageError for anything else, ConfigurationError when it holds a secret.
    """
    secret = find_secret(target)
    if secret is not None:
        raise ConfigurationError(
            f"the place to publish to holds a secret ({secret}), which run.json would keep",
            hint="Give it through the environment, as GEOSAM_STAC_API_TOKEN",
        )
    path = target.partition("?")[0].rstrip("/")
    if path.endswith(".parquet"):
        kind = "index"
    elif path.rpartition("/")[2] == CATALOG:
        kind = "catalog"
    elif target.lower().startswith(("http://", "https://")):
        return "api"
    else:
        raise UsageError(
            "this is no place to publish to",
            expected="a folder's catalog.json, a .parquet file, or the URL of a STAC API",
            got=repr(target),
        )
    if target.lower().startswith(("http://", "https://")):
        raise UsageError(
            "a file behind http cannot be published into",
            got=repr(target),
            hint="Name it by its path, or its s3:// or gs:// URL",
        )
    return kind


def publish(
    hrefs: Iterable[str],
    to: str,
    *,
    headers: Mapping[str, str] | None = None,
    rebuild: bool = True,
    sink: Sink = ignore,
    retries: Retries | None = None,
) -> int:
    """Publish feature Items; returns how many.

    Parameters
    ----------
    hrefs
        Where the Items lie: paths or URLs.
    to
        A static catalog's `catalog.json`, a `.parquet` file, or the URL of a STAC API with the
        Transactions extension.
    headers
        For the API's own host, as `{"Authorization": "Bearer ..."}`.
    rebuild
        Of a static catalog: make its Collections and items.parquet anew. False for one of many
        workers: a search finds the Items all the same.
    sink
        Hears of retries, and of what is dropped from the catalog.
    retries
        How reading the Items and writing to the target are tried again.

    Raises
    ------
    UsageError
        `to` is none of the three.
    DataError
        There is no Item, or it is not one of SAM features; or the API refuses it.
    StorageError, ConfigurationError, TemporaryError
        The target cannot be written, or not now.
    """
    kind = kind_of(to)
    retries = retries or Retries(sink=sink)
    items = in_parallel(lambda href: read_feature_item(href, retries=retries), hrefs)
    if kind == "api":
        return publish_to_api(items, to, headers=headers, sink=sink, retries=retries)
    if kind == "index":
        add_to_index(absolute_href(to), items, retries=retries)
        return len(items)
    catalog = StaticCatalog(root_of(absolute_href(to)), retries=retries)
    in_parallel(lambda item: catalog.add(*item), items)
    if rebuild:
        catalog.rebuild(sink=sink)
    return len(items)
