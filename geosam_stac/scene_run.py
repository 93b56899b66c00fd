"""One run over a scene: every queue, thread and pool of it is made here, of `crew`'s kinds.

Reader threads load tiles and cut chips, the calling thread owns the device, writer threads
serialise and store features, over queues that the memory budget bounds, so memory does not grow
with the scene.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator

from geosam_stac.budget import share_out
from geosam_stac.commit import Machine, Outcome
from geosam_stac.crew import Channel, Crew
from geosam_stac.cube import CubeReader
from geosam_stac.errors import GeosamStacError
from geosam_stac.events import ChipDone, Notice, ScanProgress, SceneStarted
from geosam_stac.features import is_whole, write
from geosam_stac.grid import blocks, blocks_of
from geosam_stac.job import Job
from geosam_stac.journal import Done, Journal
from geosam_stac.planning import chips_outside
from geosam_stac.radiometry import RangeEstimator, make_chip
from geosam_stac.reading import Reading
from geosam_stac.stages import Stages
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import (
    Block,
    BlockRef,
    Chip,
    ChipRef,
    Features,
    ManifestRow,
    Part,
    SkippedRow,
)
from geosam_stac.versioned import put_agreed

STAGES = ("read", "encode", "write")
NO_VALID_PIXEL = "no valid pixel"
OUTSIDE = "outside --geometry"


class SceneRun:
    """Reader threads -> device (this thread) -> writer threads; `run` is called once."""

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
        try:
            limits = self._value_range()
            if self.config.overwrite:  # not sooner: what fails by now has cost nothing
                self._clear()
            self._find_done()
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
        self.session.retries.stop = crew.stop
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
