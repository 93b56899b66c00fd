"""Make a damaged scene whole again: what is missing or wrong is encoded again, and nothing else.

The source is the one that the Item names, the options those of its `run.json`. The Item goes first
and comes back last.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pystac

from geosam_stac import pca, preview
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.events import Notice
from geosam_stac.pipeline import mend_scene
from geosam_stac.session import Session, Source
from geosam_stac.sources.groups import group_items
from geosam_stac.sources.hosts import is_remote
from geosam_stac.store import FeatureItem, open_item
from geosam_stac.verification import EXTRA, RUN, Finding, Verification, verify_item
from geosam_stac.versioned import VersionedStore

_PICTURES = (preview.OVERVIEW, preview.COLOURS)

SessionOf = Callable[[EncodeConfig, Mapping[str, str]], Session]
"""(config, where each option came from) -> a Session that is closed by whoever asked for it."""


def repair_item(found: Verification, session_of: SessionOf) -> Verification:
    """Make good what a verification found; returns what is there afterwards.

    Parameters
    ----------
    found
        Of `verify_item`.
    session_of
        Opens a Session for the scene's config; it is not asked where nothing is to be encoded.

    Raises
    ------
    DataError
        It cannot be made again: `run.json` is gone, the source or the weights have changed, or the
        Item is not in the folder that encode gave it. Nothing has been changed then.
    GeosamStacError
        As `encode_scene`. The Item is gone, and encode goes on where this has stopped.
    """
    if found.is_whole:
        return found
    store, key = _place(found)
    document = store.get(key)
    extra = [finding for finding in found.findings if finding.what == EXTRA]
    pictures = [finding for finding in found.findings if finding.name in _PICTURES]
    others = [f for f in found.findings if f not in extra and f not in pictures]
    redraw = bool(pictures)
    if others:
        with _open(found, store, session_of) as session:
            source = _source(found.item, session)
            same = _mend(found.item, session, source, store, others)
        if same and not redraw:
            store.put(key, document)  # all that it names is there again, as it was
        redraw = redraw or (not same and preview.OVERVIEW in found.item.assets)
    if redraw:
        _redraw(store.href(key), pictures)
    for finding in extra:
        store.delete_at(_key(store, finding), finding.version)
    return verify_item(FeatureItem(open_item(store.href(key))))


def _place(found: Verification) -> tuple[VersionedStore, str]:
    """The output's root, and the Item's key."""
    root, _, key = found.href.rpartition(f"/{found.item.id}/")
    if key != f"{found.item.id}.json" or root.lower().startswith(("http://", "https://")):
        raise DataError(
            "this Item cannot be repaired where it lies",
            item=found.item.id,
            href=found.href,
            expected=f".../{found.item.id}/{found.item.id}.json in a folder or an object store",
            hint="Repair it where it was encoded",
        )
    return VersionedStore(root or "/"), f"{found.item.id}/{key}"


def _key(store: VersionedStore, finding: Finding) -> str:
    return finding.href.removeprefix(store.href("x")[:-1])


def _open(found: Verification, store: VersionedStore, session_of: SessionOf) -> Session:
    """A Session with the options that the scene was encoded with."""
    try:
        if any(finding.name == RUN for finding in found.findings):
            raise ValueError("run.json is missing or damaged")
        run = json.loads(store.get(f"{found.item.id}/run.json"))
        here: dict[str, object] = {"out": store.url, "overwrite": False, "publish": None}
        # Not the document's to say: it may be a stranger's.
        here |= {"verify_source": False, "allow_private_hosts": False}
        config = EncodeConfig.of({**run["config"], "precision": run["run"]["precision"]} | here)
        sources = {str(name): str(place) for name, place in run["config_sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise DataError(
            "it is not known with which options the scene was encoded",
            item=found.item.id,
            href=store.href(f"{found.item.id}/run.json"),
            got=str(error),
            hint="Encode it again with --overwrite, and the options that you know of",
        ) from error
    session = session_of(config, sources)
    # By whom it was asked for does not change with who makes it whole.
    inputs = run.get("inputs")
    session.inputs = inputs if isinstance(inputs, dict) else {}
    return session


def _source(item: pystac.Item, session: Session) -> Source:
    """What the scene was encoded from, by the Item's links."""
    links = [
        link.get_target_str()
        for link in item.links
        if link.rel == "derived_from" and "mlm:name" not in link.extra_fields
    ]
    hrefs = [href for href in links if href]
    if not hrefs:
        raise DataError(
            "the Item does not say where its source is",
            item=item.id,
            expected="a link of rel derived_from",
            hint="Encode the source again with --overwrite",
        )
    for href in hrefs:
        if is_remote(item):  # a stranger's, perhaps: it names public hosts only
            session.hosts.check(href, item=item.id)
        else:
            session.hosts.trust(href)
    sources = [session.read_item(href) for href in hrefs]
    if len(sources) == 1:
        return sources[0]
    groups = group_items(sources, session.config.groupby)
    if len(groups) != 1:
        raise DataError(
            "the source Items make another mosaic than they did",
            item=item.id,
            expected="1 group",
            got=str(len(groups)),
        )
    return groups[0]


def _mend(
    item: pystac.Item,
    session: Session,
    source: Source,
    store: VersionedStore,
    wrong: Iterable[Finding],
) -> bool:
    """Encode again what is wrong; whether it came to the same bytes."""
    result = mend_scene(
        session,
        session.scene(source),
        session.config,
        item_id=item.id,
        wrong={_key(store, finding): finding.version for finding in wrong},
    )
    checksums = [
        {
            name: asset.extra_fields.get("file:checksum")
            for name, asset in either.assets.items()
            if name not in _PICTURES
        }
        for either in (item, result.item)
    ]
    if checksums[0] == checksums[1]:
        return True
    session.sink(
        Notice(
            message="what was encoded again has other bytes than it had (another device or "
            "software?): the Item is a new one",
            level="warning",
        )
    )
    return False


def _redraw(href: str, wrong: Iterable[Finding]) -> None:
    """Draw the overview again, in the colours that it had if those are still there."""
    features = FeatureItem(open_item(href))
    colours = None
    if preview.COLOURS not in {finding.name for finding in wrong}:
        try:
            colours = pca.Projection.from_json(features.read_key(preview.COLOURS_NAME))
        except GeosamStacError:
            colours = None
    colours = colours or preview.projection(features, refit=True)
    with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
        path = Path(folder) / preview.OVERVIEW_NAME
        preview.cog(features, colours, path)
        preview.attach(features, colours, path.read_bytes())
