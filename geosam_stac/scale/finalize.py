"""The end of a run of shards: split scenes become whole, and what is missing is said.

Safe to run again, and by two at once: what one has finished the other finds done.
"""

from __future__ import annotations

import pystac

from geosam_stac.commit import commit, read_commit
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, TemporaryError, UsageError
from geosam_stac.features import FORMATS
from geosam_stac.journal import Journal
from geosam_stac.layout import Layout, layer_name
from geosam_stac.parts import drop, gather, missing
from geosam_stac.planning import chip_grid
from geosam_stac.scale.work import Source
from geosam_stac.session import Session
from geosam_stac.types import Scene
from geosam_stac.versioned import VersionedStore


def finalize_scene(
    session: Session, source: Source, config: EncodeConfig, *, item_id: str, parts: int
) -> tuple[pystac.Item, str]:
    """Write the manifest and the Item of a scene whose parts are all there; the Item and its href.

    No model is loaded and no pixel is read: `session` may be on any device.

    Raises
    ------
    TemporaryError
        Parts are missing; says which.
    DataError
        The parts are of several runs, or damaged.
    """
    if config.out is None:
        raise UsageError("--out is missing", hint="Give the output of the shards")
    store = VersionedStore(config.out, retries=session.retries)
    scene = session.scene(source)
    layout = _layout(scene, config, item_id)
    if scene.items:
        config = session.in_force(scene.items[0], config)
    journal = Journal(store, layout)
    item = read_commit(store, layout, scene)
    if item is None:
        grid = chip_grid(scene, config, session.entry)
        try:
            if gone := missing(store, layout, parts):
                raise TemporaryError(
                    f"parts of the scene are missing: {', '.join(map(str, gone))} of {parts}",
                    item=scene.id,
                    href=store.href(layout.parts),
                    hint="Run their shards, then finalize again",
                )
            outcome = gather(store, layout, count=parts, scene=scene, grid=grid, config=config)
        except (DataError, TemporaryError):
            # Another finalizer may have finished in between, and tidied up.
            item = read_commit(store, layout, scene)
            if item is None:
                raise
        else:
            item = commit(outcome, store, journal).item
            journal.drop()
    journal.drop_records()
    drop(store, layout)
    return item, store.href(layout.item)


def committed_href(
    session: Session, source: Source, config: EncodeConfig, *, item_id: str
) -> str | None:
    """The href of a scene's Item, which a report names; None where no Item is there.

    Raises DataError where what is there is no Item, or another scene's.
    """
    if config.out is None:
        raise UsageError("--out is missing", hint="Give the output of the shards")
    store = VersionedStore(config.out, retries=session.retries)
    scene = session.scene(source)
    layout = _layout(scene, config, item_id)
    return None if read_commit(store, layout, scene) is None else store.href(layout.item)


def _layout(scene: Scene, config: EncodeConfig, item_id: str) -> Layout:
    suffix = FORMATS[config.format].suffix
    return Layout(item_id=item_id, layer=layer_name(scene.id), suffix=suffix)
