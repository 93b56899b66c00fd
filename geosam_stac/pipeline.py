"""`encode_scene`: every queue, thread and pool of the project is made here (of `crew`'s kinds).

Reader threads load tiles and cut chips, the calling thread owns the device, writer threads
serialise and store features, over queues that the memory budget bounds, so memory does not grow
with the scene. The Item is written last: it is the commit marker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping

import pystac

from geosam_stac.budget import share_out
from geosam_stac.commit import Machine, Outcome, commit
from geosam_stac.config import EncodeConfig
from geosam_stac.crew import Channel, Crew
from geosam_stac.cube import CubeReader
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.events import ChipDone, Notice, ScanProgress, SceneFinished, SceneStarted
from geosam_stac.features import is_whole, write
from geosam_stac.grid import blocks, blocks_of
from geosam_stac.job import Job
from geosam_stac.journal import Done, Journal, missing_chips, recorded_chips
from geosam_stac.parts import drop, save, saved_chips
from geosam_stac.planning import chips_outside
from geosam_stac.radiometry import RangeEstimator, make_chip
from geosam_stac.reading import Reading
from geosam_stac.session import Session
from geosam_stac.stages import Stages
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import (
    WHOLE,
    Block,
    BlockRef,
    Chip,
    ChipRef,
    EncodeResult,
    Features,
    ManifestRow,
    Part,
    PartResult,
    Scene,
    SkippedRow,
)
from geosam_stac.versioned import put_agreed

STAGES = ("read", "encode", "write")
NO_VALID_PIXEL = "no valid pixel"
OUTSIDE = "outside --geometry"


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
    run = _SceneRun(job, recorded=recorded, part=WHOLE)
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
    run = _SceneRun(job, recorded=saved or {}, part=part)
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


class _SceneRun:
    """One run over one scene: reader thread -> device (this thread) -> writer threads."""

    def __init__(self, job: Job, *, recorded: dict[str, Done], part: Part) -> None:
        session, scene, config = job.session, job.scene, job.config
        self.session, self.scene, self.config = session, scene, config
        self.grid, self.store, self.layout = job.grid, job.store, job.layout
        self.digest = job.digest
        self.spec = session.encoder.spec
        every = list(blocks(job.grid))
        mine = blocks_of(every, part)
        self.outside = chips_outside(scene, (ref for block in every for ref in block.chips))
        self.blocks = [block for block in mine if not self._is_outside(block)]
        before = every[: every.index(mine[0])] if mine else []
        earlier = [block for block in before if not self._is_outside(block)]
        self.chips = tuple(ref for block in mine for ref in block.chips)
        self.budget = share_out(config, self.spec, batch_size=session.batch_size)
        self.stages = Stages(read=self.budget.readers, encode=1, write=self.budget.writers)
        self.cube = CubeReader(
            scene,
            resampling=config.resampling,
            access=session.access,
            tile_area_px=self.budget.tile_area_px,
            retries=session.retries,
        )
        self.reading = Reading(
            self.cube, self.blocks, self.budget, self.stages["read"], earlier=earlier
        )
        self.thumbnail = Thumbnail((scene.geobox.height, scene.geobox.width))
        self.journal = Journal(job.store, job.layout)
        self.recorded = recorded
        self.done: dict[str, Done] = {}
        # Versions of objects that are not what was recorded: those alone are replaced.
        self.broken: dict[str, str] = {}
        self.told_of_another = False
        self.resumed = 0
        self.rows: list[ManifestRow] = []
        self.skipped: list[SkippedRow] = []
        self.bytes_written = 0
        self.lock = threading.Lock()
        self.started = time.monotonic()

    def run(self) -> Outcome:
        """Encode what is to be encoded; then all is stored, and no Item names it yet."""
        self.session.sink(
            SceneStarted(scene_id=self.scene.id, item_id=self.layout.item_id, chips=len(self.chips))
        )
        limits = self._value_range()
        if self.config.overwrite:  # not sooner: what fails by now has cost nothing
            self._clear()
        self._find_done()
        try:
            self._stream(limits)
        finally:
            self.cube.close()
            self.session.retries.stop = threading.Event()  # of this run no longer
        return Outcome(
            scene=self.scene,
            grid=self.grid,
            layout=self.layout,
            spec=self.spec,
            config=self.config,
            digest=self.digest,
            machine=Machine.of(self.session),
            limits=limits,
            rows=tuple(self.rows),
            skipped=tuple(self.skipped),
            thumbnail=self.thumbnail,
            bytes_read=self.cube.bytes_read,
            seconds=self.seconds(),
            busy=self.stages.busy(),
            retries=self.session.retries.counts(),
        )

    def seconds(self) -> dict[str, float]:
        """Busy seconds by stage, and `total`, of the clock, until now."""
        seconds = self.stages.seconds() | {"total": time.monotonic() - self.started}
        return {name: round(value, 3) for name, value in seconds.items()}

    # What an earlier run has done

    def _clear(self) -> None:
        """Delete what is there, after a mark by which other runs hear of it."""
        mark = self.journal.mark_overwrite()
        self.store.delete(self.layout.item)  # first: it must not name objects that are going
        self.store.delete_tree(self.layout.features)
        for key in self.store.keys(self.layout.folder):
            if key != mark:
                self.store.delete(key)

    def _find_done(self) -> None:
        """Chips that are there, with the size and sha256 that were recorded, are not done again."""
        mine = {ref.chip_id for ref in self.chips}
        every = self.recorded | self.journal.recorded()
        recorded = {name: done for name, done in every.items() if name in mine}
        if not recorded:
            return
        crew = Crew()
        todo: Channel[Done] = Channel(len(recorded) + self.budget.writers, crew.stop)

        def check() -> None:
            for done in todo:
                version = self.store.version(self.layout.feature(done.chip_id))
                if self.journal.is_there(done):
                    self.done[done.chip_id] = done
                elif version is not None:
                    self.broken[done.chip_id] = version

        for done in recorded.values():
            todo.put(done)
        todo.close(self.budget.writers)
        for _ in range(self.budget.writers):
            crew.start(check)
        crew.finish()
        self.session.sink(Notice(message=f"{len(self.done):,} chips are there from an earlier run"))

    # The value range

    def _value_range(self) -> tuple[float, float] | None:
        """(lo, hi) for the whole scene; None where uint8 passes through untouched."""
        wanted = self.config.values
        if wanted.kind == "fixed":
            return wanted.lo, wanted.hi
        if wanted.kind == "auto" and self.cube.dtype == "uint8":
            return None
        if not self.reading.fits:
            self.session.sink(
                Notice(
                    message=f"--value-range {self.config.value_range} reads the scene twice: it "
                    f"does not fit --max-memory {self.config.max_memory:g}. Give MIN,MAX to read "
                    "it once"
                )
            )
        estimator = RangeEstimator(
            wanted, shape=self.thumbnail.scene_shape, bands=self.cube.band_count
        )
        crew = Crew()
        counts = itertools.count(1)
        total = self.reading.begin_scan()

        def scan() -> None:
            self.reading.scan(
                estimator,
                crew.stop,
                lambda: self.session.sink(
                    ScanProgress(scene_id=self.scene.id, done=next(counts), total=total)
                ),
            )

        for _ in range(self.budget.readers):
            crew.start(scan)
        crew.finish()
        # A scene without a valid pixel has no range; its chips are all skipped.
        return estimator.result() or (0.0, 1.0)

    # Readers, device, writers

    def _stream(self, limits: tuple[float, float] | None) -> None:
        crew = Crew()
        self.session.retries.stop = crew.stop
        chips: Channel[Chip] = Channel(self.budget.chips_queue, crew.stop)
        features: Channel[tuple[Features, float]] = Channel(self.budget.features_queue, crew.stop)
        at_work = itertools.count(1)

        def read() -> None:
            self.reading.work(lambda block: self._cut(block, chips), crew.stop)
            if next(at_work) == self.budget.readers:  # the last one to end
                chips.close(1)

        def write() -> None:
            for encoded, valid_fraction in features:
                self._write(encoded, valid_fraction)

        for chip_ref in self.chips:
            if chip_ref.chip_id in self.outside:
                self._skip(chip_ref, OUTSIDE)
        with self.stages.running():
            try:
                self.reading.begin(limits, self.thumbnail)
                for _ in range(self.budget.readers):
                    crew.start(read)
                for _ in range(self.budget.writers):
                    crew.start(write)
                self._encode(chips, features)
                features.close(self.budget.writers)
            except BaseException as error:  # noqa: BLE001 - raised below, or an earlier one is
                crew.fail(error)
            crew.finish()

    def _cut(self, block: Block, chips: Channel[Chip]) -> None:
        for chip_ref in block.ref.chips:
            if chip_ref.chip_id in self.outside:
                continue
            if chip_ref.chip_id in self.done:
                self._resume(chip_ref)
                continue
            with self.stages["read"].busy():
                chip = make_chip(block, chip_ref, input_px=self.spec.input_px)
            if chip.valid_fraction == 0:
                self._skip(chip_ref, NO_VALID_PIXEL)
                continue
            chips.put(chip)

    def _resume(self, ref: ChipRef) -> None:
        done = self.done[ref.chip_id]
        with self.lock:
            self.rows.append(self._row(ref, done))
            self.resumed += 1
        self.session.sink(ChipDone(scene_id=self.scene.id, chip_id=ref.chip_id, outcome="resumed"))

    def _row(self, ref: ChipRef, done: Done) -> ManifestRow:
        return ManifestRow(
            ref=ref,
            feature_href=self.layout.feature_href(ref.chip_id),
            valid_fraction=done.valid_fraction,
            bytes=done.bytes,
            sha256=done.sha256,
        )

    def _is_outside(self, block: BlockRef) -> bool:
        return all(ref.chip_id in self.outside for ref in block.chips)

    def _skip(self, ref: ChipRef, reason: str) -> None:
        with self.lock:
            self.skipped.append(SkippedRow(ref=ref, reason=reason, valid_fraction=0.0))
        self.session.sink(ChipDone(scene_id=self.scene.id, chip_id=ref.chip_id, outcome="skipped"))

    def _encode(self, chips: Channel[Chip], features: Channel[tuple[Features, float]]) -> None:
        """Drive the device; what it waits for, chips or a full queue of features, is not work."""
        stage = self.stages["encode"]
        fractions: dict[str, float] = {}
        since = time.monotonic()

        def batches() -> Iterator[list[Chip]]:
            nonlocal since
            stage.add(time.monotonic() - since)
            batch: list[Chip] = []
            for chip in chips:
                batch.append(chip)
                fractions[chip.ref.chip_id] = chip.valid_fraction
                if len(batch) >= self.session.batch_size:
                    since = time.monotonic()
                    yield batch
                    stage.add(time.monotonic() - since)
                    batch = []
            since = time.monotonic()
            if batch:
                yield batch

        try:
            for encoded in self.session.encode_batches(batches()):
                stage.add(time.monotonic() - since)
                features.put((encoded, fractions.pop(encoded.ref.chip_id)))
                since = time.monotonic()
        except GeosamStacError as error:
            error.at(item=self.scene.id)
            raise

    def _write(self, features: Features, valid_fraction: float) -> None:
        with self.stages["write"].busy():
            done = self._store(features, valid_fraction)
            self.journal.add(done)
        with self.lock:
            self.rows.append(self._row(features.ref, done))
            self.bytes_written += done.bytes
        self.session.sink(
            ChipDone(
                scene_id=self.scene.id,
                chip_id=done.chip_id,
                outcome="encoded",
                bytes_written=done.bytes,
            )
        )

    def _store(self, features: Features, valid_fraction: float) -> Done:
        chip_id = features.ref.chip_id
        try:
            data = write(
                features,
                spec=self.spec,
                format=self.config.format,
                dtype=self.config.feature_dtype,
            )
            data = self._agree(chip_id, data)
        except GeosamStacError as error:
            error.at(item=self.scene.id, chip=chip_id)
            raise
        return Done(
            chip_id=chip_id,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            valid_fraction=valid_fraction,
        )

    def _agree(self, chip_id: str, data: bytes) -> bytes:
        """Store a feature; where another run's is there, which other bytes may have, it stays."""
        stored = put_agreed(
            self.store,
            self.layout.feature(chip_id),
            data,
            is_as_good=lambda there, version: (
                version != self.broken.get(chip_id) and is_whole(there)
            ),
        )
        if stored != data and not self.told_of_another:
            self.told_of_another = True
            self.session.sink(
                Notice(
                    message="another run has written features of this scene, with other bytes "
                    "(another device or software?): they stay",
                    level="warning",
                )
            )
        return stored
