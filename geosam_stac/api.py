"""The Python API's functions: what a notebook or a script calls. An edge, like the CLI.

Here and in the CLI alone the environment is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pystac

from geosam_stac import catalog as features_catalog
from geosam_stac import session, store
from geosam_stac.bars import Bars
from geosam_stac.catalog import FeatureQuery, Publisher
from geosam_stac.config import EncodeConfig
from geosam_stac.credentials import api_headers
from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
from geosam_stac.errors import UsageError
from geosam_stac.events import Event, Notice, Sink, ignore
from geosam_stac.hrefs import recordable
from geosam_stac.pipeline import encode_scene
from geosam_stac.planning import Plan
from geosam_stac.repair import repair_item
from geosam_stac.sources import as_geojson
from geosam_stac.sources import search as sources_search
from geosam_stac.sources.groups import Group
from geosam_stac.sources.profiles import load_profile
from geosam_stac.sources.query import SearchQuery
from geosam_stac.store import PullResult, item_href, open_item, pull_features
from geosam_stac.types import EncodeResult, Scene
from geosam_stac.verification import Verification, verify_item
from geosam_stac.views import FeatureItem

if TYPE_CHECKING:
    from distributed import Client


class Session(session.Session):
    """One model, many scenes: loads it once, and encodes scene after scene.

    Parameters
    ----------
    config
        An EncodeConfig, or None for the defaults.
    sink
        Called with every `geosam_stac.events.Event`, from several threads.
    progress
        Draw bars with tqdm: widgets in a notebook, text on stderr elsewhere.
    encodes
        False where others encode, on devices of their own, and this machine only plans.
    options
        Fields of EncodeConfig by name, as `model="sam2.1-hiera-tiny"`; they win over `config`.

    Raises
    ------
    UsageError
        An unknown option (names the nearest one), or one out of range.
    ConfigurationError
        Unknown model, a device that is not there.
    """

    def __init__(
        self,
        config: EncodeConfig | None = None,
        *,
        sink: Sink = ignore,
        progress: bool = False,
        encodes: bool = True,
        **options: Any,
    ) -> None:
        self._bars = Bars(sink) if progress else None
        sink = self._bars or sink
        if options.get("geometry") is not None:
            options["geometry"] = as_geojson(options["geometry"])
        asked = (config or EncodeConfig()).replace(options)
        if asked.geometry is not None:
            asked = asked.replace({"geometry": as_geojson(asked.geometry)})
        super().__init__(
            asked,
            cache_dir=default_cache_dir(os.environ),
            sink=sink,
            token=hugging_face_token(os.environ),
            encodes=encodes,
        )
        self.config_sources = dict.fromkeys(options, "Python")
        self._publisher = Publisher(asked.publish, headers=api_headers(os.environ), sink=sink)

    def encode(
        self, source: session.Source, *, out: str | os.PathLike[str] | None = None
    ) -> EncodeResult:
        """Encode one scene into `out` (default: the config's); see `pipeline.encode_scene`.

        With `publish` in the config the new Item is published; the Collections of a static
        catalog are made anew when the session is closed.
        """
        config = self.config if out is None else self.config.replace({"out": out})
        scene = self.scene(source)
        self.inputs = _inputs(source, scene)
        result = encode_scene(self, scene, config)
        self.publish(result)
        return result

    def publish(self, result: EncodeResult) -> None:
        """Publish what was encoded, where `publish` in the config says; else do nothing."""
        self._publisher.add(result.href)

    def close(self) -> None:
        """Let go of the model and the device's memory; finish the catalog that was published to."""
        if self._bars is not None:
            self._bars.close()
        super().close()
        self._publisher.finish()


def encode(
    source: session.Source,
    config: EncodeConfig | None = None,
    *,
    sink: Sink = ignore,
    client: Client | None = None,
    progress: bool = False,
    **options: Any,
) -> EncodeResult:
    """Encode one STAC Item: features, manifest and a new Item in `out`.

    Parameters
    ----------
    source
        The Item's URL or path, its JSON document, a `pystac.Item`, or a Scene.
    config, options
        As for `Session`; `out` must be among them.
    sink, progress
        As for `Session`.
    client
        A `distributed.Client`: the scene is encoded by the workers of that Dask cluster, in parts.

    Returns
    -------
    EncodeResult
        The new Item, its href, counts of chips, bytes, seconds by stage.

    Raises
    ------
    GeosamStacError
        One of its children; `exit_code` and `retryable` tell them apart.
    """
    if client is not None:
        return _encode_on(client, source, config, sink=sink, progress=progress, options=options)
    with Session(config, sink=sink, progress=progress, **options) as opened:
        return opened.encode(source)


def _encode_on(
    client: Client,
    source: session.Source,
    config: EncodeConfig | None,
    *,
    sink: Sink,
    progress: bool,
    options: dict[str, Any],
) -> EncodeResult:
    from geosam_stac.scale.dask import Recipe, encode_all

    asked = (config or EncodeConfig()).replace(options)
    # The model is the workers': this machine plans, and puts together.
    with Session(asked, sink=sink, progress=progress, device="cpu", encodes=False) as opened:
        scene = opened.scene(source)
        recipe = Recipe(
            config=opened.config.replace({"device": asked.device}),
            sources=dict.fromkeys(options, "Python"),
            hosts=opened.hosts.typed,
            inputs=_inputs(source, scene),
        )
        whole = scene.items[0] if len(scene.items) == 1 else Group(id=scene.id, items=scene.items)
        (result,) = encode_all(client, opened, [whole], recipe)
        if result.error is not None:
            raise result.error
        assert result.whole is not None
        opened.publish(result.whole)
        return result.whole


def _inputs(source: session.Source, scene: Scene) -> dict[str, Any]:
    """What a scene was asked for by, for `run.json`: as --item tells it; a document has no name."""
    if isinstance(source, str | os.PathLike):
        return {"item": [recordable(os.fspath(source))]}
    hrefs = [href for item in scene.items if (href := item.get_self_href())]
    return {"item": [recordable(href) for href in hrefs]} if hrefs else {}


def plan(source: session.Source, config: EncodeConfig | None = None, **options: Any) -> Plan:
    """What `encode` would take: chips, grid, bytes, objects. Reads no pixels.

    `estimated_seconds` is None here: it needs a measurement of the device (the CLI makes one).
    """
    with Session(config, **options) as opened:
        return opened.plan(source)


def search(
    url: str | None = None,
    *,
    catalog: str | None = None,
    collections: Sequence[str] = (),
    ids: Sequence[str] = (),
    bbox: Sequence[float] | None = None,
    intersects: Mapping[str, Any] | None = None,
    datetime: str | None = None,
    filter: str | Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | Sequence[str] | None = None,
    sortby: Sequence[str] = (),
    limit: int | None = None,
    sink: Sink | None = None,
) -> Iterator[pystac.Item]:
    """Search a STAC API for imagery: Items for `Session.encode`, page by page.

    Parameters
    ----------
    url, catalog
        The API's landing page, or the name of a profile (`geosam-stac catalogs list`): one of
        both.
    collections, ids, bbox, intersects, datetime, filter, query, sortby, limit
        See `sources.query.SearchQuery`. A token for the API is read from the environment.
    sink
        Hears of retries, and of Items that are broken, which are left out. Default: they become
        warnings.

    Raises
    ------
    UsageError
        Not one place to search, or the search is not understood.
    ConfigurationError, DataError, TemporaryError
        See `sources.search.search`.
    """
    if (url is None) == (catalog is None):
        raise UsageError("a search needs one place", hint="Give url, or the name of a catalog")
    asked = SearchQuery(
        url=url or load_profile(str(catalog)).url,
        collections=tuple(collections),
        ids=tuple(ids),
        bbox=None if bbox is None else tuple(bbox),
        intersects=intersects,
        datetime=datetime,
        filter=filter,
        query=query if query is None or isinstance(query, str | Mapping) else tuple(query),
        sortby=tuple(sortby),
        limit=limit,
    )
    return _items(asked, sink or _warn)


def _items(query: SearchQuery, sink: Sink) -> Iterator[pystac.Item]:
    for found in sources_search.search(query, headers=api_headers(os.environ), sink=sink):
        if found.item is None:
            sink(Notice(message=str(found.error), level="warning"))
        else:
            yield found.item


def _warn(event: Event) -> None:
    if isinstance(event, Notice) and event.level == "warning":
        warnings.warn(event.message, stacklevel=3)


def search_features(
    *,
    catalog: str | None = None,
    index: str | None = None,
    api: str | None = None,
    model: str | None = None,
    resolution: float | None = None,
    bbox: Sequence[float] | None = None,
    datetime: str | None = None,
    source_collection: str | None = None,
    filter: str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    sink: Sink | None = None,
) -> list[pystac.Item]:
    """Find features that are encoded already: feature Items, newest first.

    Parameters
    ----------
    catalog, index, api
        One of the three: a static catalog's catalog.json or folder, a stac-geoparquet file, or the
        URL of a STAC API (a token for it is read from the environment). All give the same answer.
    model, resolution, bbox, datetime, source_collection, filter, limit
        See `catalog.FeatureQuery`.
    sink
        Hears of retries, and of what could not be read. Default: they become warnings.

    Returns
    -------
    list of pystac.Item
        For `open_features`, `pull` and the like; the self link leads to the Item that was encoded.

    Raises
    ------
    UsageError
        Not one place to search, or the search is not understood.
    ConfigurationError, DataError, StorageError, TemporaryError
        The place is not there, or cannot be read.
    """
    query = FeatureQuery(
        model=model,
        resolution=resolution,
        bbox=None if bbox is None else tuple(bbox),
        datetime=datetime,
        source_collection=source_collection,
        filter=filter,
        limit=limit,
    )
    found = features_catalog.search_features(
        query,
        catalog=catalog,
        index=index,
        api=api,
        headers=api_headers(os.environ) if api else None,
        sink=sink or _warn,
    )
    items = []
    for document in found:
        item = pystac.Item.from_dict(document, preserve_dict=False)
        item.set_self_href(features_catalog.canonical(document))
        items.append(item)
    return items


def publish(
    items: str | Iterable[str], to: str, *, rebuild: bool = True, sink: Sink | None = None
) -> int:
    """Publish feature Items by their hrefs or folders; see `catalog.publish`. Returns how many.

    `to`: a static catalog's catalog.json, a .parquet file, or the URL of a STAC API (a token for it
    is read from the environment).
    """
    return features_catalog.publish(
        map(item_href, [items] if isinstance(items, str) else items),
        to,
        headers=api_headers(os.environ),
        rebuild=rebuild,
        sink=sink or _warn,
    )


def open_features(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any],
    *,
    sink: Sink = ignore,
) -> FeatureItem:
    """Open what was encoded: a scene's manifest and its chips' features.

    Reads the Item alone; the manifest and each chip's file are read when they are asked for, and
    checked against their sha256.

    Parameters
    ----------
    source
        Href of a feature Item, or of the folder that it lies in: a local path, s3://, gs://,
        http(s):// or any URL that fsspec has a driver for. Or the Item itself, as a search gives
        it.
    sink
        Called with events, as of weights that `segment` fetches.

    Raises
    ------
    DataError
        There is no such Item, or it describes no features.
    TemporaryError
        The store does not answer.
    """
    return FeatureItem(
        open_item(source),
        cache_dir=default_cache_dir(os.environ),
        token=hugging_face_token(os.environ),
        sink=sink,
    )


def pull(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any] | store.FeatureItem,
    dest: str | os.PathLike[str],
    *,
    format: str = "pt",
    bbox: tuple[float, float, float, float] | None = None,
    crs: str | None = None,
    sink: Sink = ignore,
    progress: bool = False,
) -> PullResult:
    """Copy features into `dest/<item id>`, a folder that Geo-SAM opens as it is.

    Parameters
    ----------
    source
        As for `open_features`, or what that gave.
    dest, format, bbox, crs, sink
        See `store.pull.pull_features`.
    progress
        As for `Session`.

    Returns
    -------
    PullResult
        The local folder and Item, counts of chips and bytes.
    """
    scene = source if isinstance(source, store.FeatureItem) else open_features(source)
    if not progress:
        return pull_features(scene, dest, format=format, bbox=bbox, crs=crs, sink=sink)
    bars = Bars(sink)
    try:
        return pull_features(scene, dest, format=format, bbox=bbox, crs=crs, sink=bars)
    finally:
        bars.close()


def verify(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any] | store.FeatureItem,
    *,
    repair: bool = False,
    device: str | None = None,
    allow_private_hosts: bool = False,
    sink: Sink = ignore,
) -> Verification:
    """Check every object of an encoded scene against its recorded size and sha256.

    Parameters
    ----------
    source
        As for `open_features`, or what that gave.
    repair
        Encode again what is missing or wrong, from the source that the Item names and with the
        options of its `run.json`.
    device
        For `repair`; default: as it was encoded.
    allow_private_hosts
        For `repair`, as for `encode`: an Item on a store may name sources on this machine.
    sink
        Called with events, from several threads.

    Returns
    -------
    Verification
        `is_whole`, and `findings`: what is there, after the repair if one was asked for.

    Raises
    ------
    DataError
        There is no such Item, or it cannot be made whole again.
    StorageError, TemporaryError
        The store cannot be read or written.
    """
    scene = source if isinstance(source, store.FeatureItem) else open_features(source)
    found = verify_item(scene, sink=sink)
    if not repair:
        return found

    def session_of(config: EncodeConfig, sources: Mapping[str, str]) -> session.Session:
        said = {"device": device or config.device, "allow_private_hosts": allow_private_hosts}
        opened = Session(config.replace(said), sink=sink)
        opened.config_sources = dict(sources)
        return opened

    return repair_item(found, session_of)
