"""`encode_scene`, `mend_scene`, `encode_part`: what is there already, a run, and what ends it.

Of a whole scene the Item is written last: it is the commit marker. Threads and queues: `scene_run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import pystac

from geosam_stac.commit import commit
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.events import Notice, SceneFinished
from geosam_stac.job import Job
from geosam_stac.journal import Done, Journal, missing_chips, recorded_chips
from geosam_stac.parts import drop, save, saved_chips
from geosam_stac.scene_run import STAGES, SceneRun
from geosam_stac.session import Session
from geosam_stac.types import WHOLE, EncodeResult, Part, PartResult, Scene


def encode_scene(session: Session, scene: Scene, config: EncodeConfig) -> EncodeResult:
    """Encode a whole scene: features, manifest, skipped chips, run.json, thumbnail, Item last.

    An Item that is there already with the same config and weights is returned as it is, unless
    `overwrite` is set.

    Raises
    ------
    GeosamStacError
        Any of its children; names item, asset and chip. No Item is written then.
    KeyboardInterrupt
        As it came; the threads have ended, or end with the request that they are in. No Item.
    """
    job = Job.of(session, scene, config)
    finished = None if job.config.overwrite else job.commit()
    # Without an Item, too: a repair that was broken off has left the manifest.
    recorded = {} if job.config.overwrite else recorded_chips(job.store, job.layout)
    if finished is not None:
        total = int(finished.properties.get("table:row_count", 0))
        gone = total - len(recorded) + len(missing_chips(job.store, job.layout, recorded))
        if not gone:
            # Of a run, or a finalizer, that was ended right after its Item.
            Journal(job.store, job.layout).drop_records()
            drop(job.store, job.layout)
            return _finished(job, finished)
        session.sink(
            Notice(
                message=f"{job.layout.item_id} is there, but {gone:,} of its {total:,} features "
                "are gone: they are encoded again",
                level="warning",
            )
        )
    job.prepare()
    if finished is not None:
        job.store.delete(job.layout.item)  # it names what is not there
    return _encode(job, recorded)


def mend_scene(
    session: Session,
    scene: Scene,
    config: EncodeConfig,
    *,
    item_id: str,
    wrong: Mapping[str, str | None],
) -> EncodeResult:
    """Encode again what of a finished scene is missing or wrong.

    Parameters
    ----------
    session, scene, config
        As it was encoded.
    item_id
        The scene's Item. Where config, source and weights make another one, nothing is changed.
    wrong
        Key -> version (None: it is not there) of the objects that are to be made again. With the
        manifest among them nothing that is there can be trusted: all is encoded again.

    Raises
    ------
    DataError
        It would become another Item.
    GeosamStacError
        As `encode_scene`.
    """
    job = Job.of(session, scene, config)
    if job.layout.item_id != item_id:
        raise DataError(
            "encoding it again would make another Item",
            item=item_id,
            expected=item_id,
            got=job.layout.item_id,
            hint="The source, the weights or the device's precision are not what they were",
        )
    job.prepare()
    if job.layout.manifest in wrong:
        return _encode(dataclasses.replace(job, config=job.config.replace({"overwrite": True})), {})
    recorded = recorded_chips(job.store, job.layout)
    job.store.delete(job.layout.item)  # first: it names what is not there, or wrong
    for key, version in wrong.items():
        # A feature is replaced where its object is not the one that was recorded.
        if not key.startswith(f"{job.layout.features}/"):
            job.store.delete_at(key, version)
    return _encode(job, recorded)


def _encode(job: Job, recorded: dict[str, Done]) -> EncodeResult:
    """A scene to its end: what is recorded and there is not encoded again."""
    session, scene = job.session, job.scene
    run = SceneRun(job, recorded=recorded, part=WHOLE)
    with _recorded(run.journal):
        outcome = run.run()
        done = commit(outcome, job.store, run.journal)
    run.journal.drop()
    drop(job.store, job.layout)  # of shards that did not come to their end
    href = job.store.href(job.layout.item)
    session.sink(SceneFinished(scene_id=scene.id, href=href))
    return EncodeResult(
        item=done.item,
        href=href,
        chips_encoded=len(run.rows) - run.resumed,
        chips_resumed=run.resumed,
        chips_skipped=len(run.skipped),
        chips_failed=0,
        bytes_read=outcome.bytes_read,
        bytes_written=run.bytes_written + done.bytes_written,
        seconds=run.seconds(),
        busy=outcome.busy,
        retries=session.retries.take(),
        thumbnail=done.thumbnail,
    )


def encode_part(session: Session, scene: Scene, config: EncodeConfig, part: Part) -> PartResult:
    """Encode a part of a scene: its features, and what `finalize` needs of it. No Item.

    A part that is there already is not encoded again, nor one whose scene has its Item.

    Raises
    ------
    UsageError
        `overwrite` is set: it would undo what the others have done.
    GeosamStacError
        As `encode_scene`.
    """
    if config.overwrite:
        raise UsageError(
            "--overwrite is not for a part of a scene: it would undo what the others have done",
            hint="Give another --out, or delete the old output",
        )
    job = Job.of(session, scene, config)
    saved = saved_chips(job.store, job.layout, part)
    there = saved is not None and not missing_chips(job.store, job.layout, saved)
    if there or job.commit() is not None:
        session.sink(Notice(message=f"part {part.name} of {job.layout.item_id} is there already"))
        return PartResult(item_id=job.layout.item_id, part=part)
    job.prepare()
    run = SceneRun(job, recorded=saved or {}, part=part)
    with _recorded(run.journal):
        outcome = run.run()
        size = save(outcome, part, job.store, run.journal)
    session.sink(SceneFinished(scene_id=scene.id, href=job.store.href(job.layout.parts)))
    return PartResult(
        item_id=job.layout.item_id,
        part=part,
        chips_encoded=len(run.rows) - run.resumed,
        chips_resumed=run.resumed,
        chips_skipped=len(run.skipped),
        bytes_read=outcome.bytes_read,
        bytes_written=run.bytes_written + size,
        seconds=run.seconds(),
    )


@contextlib.contextmanager
def _recorded(journal: Journal) -> Iterator[None]:
    """What is broken off within, the commit too, leaves a record of all that is done."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(GeosamStacError):
            journal.flush()  # for the next run; the first error is the one to raise
        raise


def _finished(job: Job, item: pystac.Item) -> EncodeResult:
    sink = job.session.sink
    sink(Notice(message=f"{job.layout.item_id} is there already: nothing to do (see --overwrite)"))
    href = job.store.href(job.layout.item)
    sink(SceneFinished(scene_id=job.scene.id, href=href))
    return EncodeResult(
        item=item,
        href=href,
        chips_encoded=0,
        chips_resumed=int(item.properties.get("table:row_count", 0)),
        chips_skipped=int(item.properties.get("geosam:chips_skipped", 0)),
        chips_failed=int(item.properties.get("geosam:chips_failed", 0)),
        bytes_read=0,
        bytes_written=0,
        seconds=dict.fromkeys((*STAGES, "total"), 0.0),
        busy=dict.fromkeys(STAGES, 0.0),
        retries=job.session.retries.take(),
    )
