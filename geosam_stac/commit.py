"""The end of a scene: manifest, skipped chips, thumbnail, run.json, and the Item last.

The Item is the commit marker: when it is written, everything that it names is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pystac
from odc.geo.crs import CRS

from geosam_stac import item as items
from geosam_stac import manifest, provenance
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.features import FORMATS
from geosam_stac.grid import chip_refs
from geosam_stac.journal import Journal, missing_chips
from geosam_stac.layout import Layout
from geosam_stac.session import Session
from geosam_stac.storage import Store
from geosam_stac.thumbnail import Thumbnail, is_picture
from geosam_stac.types import ChipGrid, EncoderSpec, ManifestRow, Scene, SkippedRow
from geosam_stac.versioned import VersionedStore, put_agreed

_NO_ITEM = (pystac.STACError, pystac.STACTypeError)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a scene was encoded on, and with whose weights.

    `sources` says where each option that was given came from, `inputs` what the scenes were
    asked for by. `model_href` is where the published
    weights lie; None for random ones, and for a file of the user's own.
    """

    device: str
    precision: str
    batch_size: int
    sources: Mapping[str, str]
    model_href: str | None
    # A part that an earlier version wrote has none.
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, session: Session) -> Machine:
        """The machine that a session runs on."""
        return cls(
            device=session.device,
            precision=session.precision,
            batch_size=session.batch_size,
            sources=dict(session.config_sources),
            inputs=dict(session.inputs),
            model_href=session.entry.url if session.weights.upstream else None,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that a run over a scene came to. `limits`: (lo, hi) in source values, or untouched."""

    scene: Scene
    grid: ChipGrid
    layout: Layout
    spec: EncoderSpec
    config: EncodeConfig
    digest: str
    machine: Machine
    limits: tuple[float, float] | None
    rows: tuple[ManifestRow, ...]
    skipped: tuple[SkippedRow, ...]
    thumbnail: Thumbnail
    bytes_read: int
    seconds: Mapping[str, float]
    busy: Mapping[str, float]
    retries: Mapping[str, int]


def read_commit(store: Store, layout: Layout, scene: Scene) -> pystac.Item | None:
    """The Item of a scene that is finished; None where there is none.

    Raises
    ------
    DataError
        What lies there is no Item, or the Item of another scene whose id makes the same name.
    """
    if not store.exists(layout.item):
        return None
    href = store.href(layout.item)
    try:
        data = store.get(layout.item)
    except DataError:  # another run has deleted it in between
        if store.exists(layout.item):
            raise
        return None
    try:
        item = pystac.Item.from_dict(json.loads(data), href=href, preserve_dict=False)
    except (ValueError, KeyError, TypeError, AttributeError, *_NO_ITEM) as error:
        raise DataError(
            "the Item that is there already cannot be read",
            item=scene.id,
            href=href,
            got=type(error).__name__,
            hint="Encode it again with --overwrite",
        ) from error
    sources = item.properties.get("geosam:source_items")
    collections = item.properties.get("geosam:source_collections") or [None]
    same = sources == [source.id for source in scene.items]
    if not same or (scene.collection is not None and scene.collection not in collections):
        raise DataError(
            "the output of another scene stands where this one's would",
            item=scene.id,
            href=href,
            expected=f"an Item made of {scene.id} of {scene.collection}",
            got=f"one made of {sources} of {collections}",
            hint="Give another --out",
        )
    return item


@dataclass(frozen=True, kw_only=True)
class Committed:
    """The scene's Item, and the bytes written of it and of the files beside it.

    `thumbnail`: the PNG's bytes; None where another run has written all.
    """

    item: pystac.Item
    bytes_written: int
    thumbnail: bytes | None = None


def commit(outcome: Outcome, store: VersionedStore, journal: Journal) -> Committed:
    """Write the scene's tables and pictures, then its Item.

    Where another run of the same scene was first, its Item is the one, and is returned.

    Raises
    ------
    TemporaryError
        A run with --overwrite has begun meanwhile: nothing of this one stands for the scene. Or
        features have been deleted: an Item would name what is not there.
    """
    layout, crs = outcome.layout, _crs(outcome.scene)
    created = datetime.now(UTC)
    written: list[int] = []
    if (first := read_commit(store, layout, outcome.scene)) is not None:
        return Committed(item=first, bytes_written=0)
    journal.check_overwritten()

    def put(key: str, data: bytes, same: Callable[[bytes], bool], **table: Any) -> items.FileFacts:
        data = put_agreed(store, key, data, is_as_good=lambda there, _: same(there))
        written.append(len(data))
        return items.FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **table)

    table = put(
        layout.manifest,
        manifest.to_parquet(
            outcome.rows,
            crs=crs,
            spec=outcome.spec,
            source_path=outcome.scene.bands[0].href,
            feature_path=lambda chip_id: store.href(layout.feature(chip_id)),
        ),
        lambda there: _has_rows(there, outcome.rows),
        rows=len(outcome.rows),
        columns=manifest.COLUMNS,
    )
    skipped = None
    if outcome.skipped:
        skipped = put(
            layout.skipped,
            manifest.skipped_parquet(outcome.skipped, crs=crs),
            lambda there: _has_skipped(there, outcome.skipped),
            rows=len(outcome.skipped),
            columns=manifest.SKIPPED_COLUMNS,
        )
    elif store.exists(layout.skipped):  # of a run that did not come to its end
        store.delete(layout.skipped)
    picture = outcome.thumbnail.png(
        chip_refs(outcome.grid), skipped=[row.ref for row in outcome.skipped]
    )
    thumbnail = put(layout.thumbnail, picture, is_picture)
    run = _run_document(outcome, created)
    store.put(layout.run, run)  # the Item holds no checksum of it
    written.append(len(run))
    item = items.build_item(
        scene=outcome.scene,
        grid=outcome.grid,
        spec=outcome.spec,
        config=outcome.config,
        layout=layout,
        digest=outcome.digest,
        precision=outcome.machine.precision,
        value_range=outcome.limits,
        href=store.href,
        manifest=table,
        skipped=skipped,
        thumbnail=thumbnail,
        feature_type=FORMATS[outcome.config.format].media_type,
        chips_skipped=len(outcome.skipped),
        chips_failed=0,
        software=provenance.software(),
        created=created,
        model_href=outcome.machine.model_href,
    )
    if gone := missing_chips(store, layout, [row.ref.chip_id for row in outcome.rows]):
        raise TemporaryError(
            f"{len(gone):,} of {len(outcome.rows):,} features were deleted meanwhile",
            item=outcome.scene.id,
            href=store.href(layout.feature(gone[0])),
            hint="Run it again: what is still there is not encoded twice",
        )
    document = items.to_bytes(item)
    if not store.put_if(layout.item, document, None):
        first = read_commit(store, layout, outcome.scene)
        return Committed(item=first or item, bytes_written=sum(written), thumbnail=picture)
    try:
        journal.check_overwritten()
    except TemporaryError:
        if store.read(layout.item) == document:
            store.delete(layout.item)  # what it names is going
        raise
    size = sum(written) + len(document)
    return Committed(item=item, bytes_written=size, thumbnail=picture)


def _has_rows(data: bytes, rows: Iterable[ManifestRow]) -> bool:
    """Whether a manifest is of just these features: another run's, or one that was broken off."""
    try:
        frame = manifest.read(data)
    except DataError:
        return False
    there = zip(frame["chip_id"], frame["bytes"], frame["sha256"], strict=True)
    return sorted(there) == sorted((row.ref.chip_id, row.bytes, row.sha256) for row in rows)


def _has_skipped(data: bytes, rows: Iterable[SkippedRow]) -> bool:
    try:
        frame = manifest.read_skipped(data)
    except DataError:
        return False
    there = zip(frame["chip_id"], frame["reason"], strict=True)
    return sorted(there) == sorted((row.ref.chip_id, row.reason) for row in rows)


def _crs(scene: Scene) -> CRS:
    if scene.geobox.crs is None:
        raise DataError("the scene's grid has no CRS", item=scene.id)
    return scene.geobox.crs


def _run_document(outcome: Outcome, created: datetime) -> bytes:
    machine = outcome.machine
    return provenance.run_document(
        config=outcome.config.as_dict(),
        facts={
            "item": outcome.layout.item_id,
            "source": outcome.scene.href,
            "config_digest": outcome.digest,
            "model": dataclasses.asdict(outcome.spec),
            "device": machine.device,
            "precision": machine.precision,
            "batch_size": machine.batch_size,
            "value_range": outcome.limits,
            "chips_encoded": len(outcome.rows),
            "chips_skipped": len(outcome.skipped),
            "seconds": dict(outcome.seconds),
            "busy": {name: round(value, 3) for name, value in outcome.busy.items()},
            "bytes_read": outcome.bytes_read,
            "retries": dict(outcome.retries),
        },
        sources=machine.sources,
        inputs=machine.inputs,
        created=created,
    )
