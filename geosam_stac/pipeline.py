"""`encode_scene`: every queue, thread and pool of the project lives here.

A reader thread loads blocks and cuts chips, the calling thread owns the device, writer threads
serialise and store features, over bounded queues, so memory does not grow with the scene. The
Item is written last: it is the commit marker.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import pystac

from geosam_stac.commit import Outcome, commit
from geosam_stac.config import EncodeConfig
from geosam_stac.cube import CubeReader
from geosam_stac.errors import UsageError
from geosam_stac.events import ChipDone, Notice, ScanProgress, SceneFinished, SceneStarted
from geosam_stac.features import to_pt
from geosam_stac.grid import blocks
from geosam_stac.layout import Layout, item_id, layer_name
from geosam_stac.plan import chip_grid
from geosam_stac.radiometry import RangeEstimator, make_chip, to_rgb8, widen
from geosam_stac.session import Session
from geosam_stac.storage import Store
from geosam_stac.thumbnail import Thumbnail
from geosam_stac.types import (
    Chip,
    ChipGrid,
    EncodeResult,
    Features,
    ManifestRow,
    Scene,
    SkippedRow,
)

WRITERS = 4
# A SAM2 chip is 8 MiB of float16 features and 3 MiB of pixels: these bound memory to about 0.3 GB.
FEATURES_QUEUE = 8
CHIPS_QUEUE_BATCHES = 2
# Pixels that a scan for the value range may keep, so that the encoder need not read them again.
SCAN_KEEP_BYTES = 1 << 30
POLL_S = 0.1

T = TypeVar("T")


def encode_scene(session: Session, scene: Scene, config: EncodeConfig) -> EncodeResult:
    """Encode a whole scene: features, manifest, skipped chips, run.json, thumbnail, Item last.

    An Item that is there already with the same config and weights is returned as it is, unless
    `overwrite` is set.

    Raises
    ------
    GeosamStacError
        Any of its children; names item, asset and chip. No Item is written then.
    """
    if config.out is None:
        raise UsageError("--out is missing", hint="Give a folder, or an s3:// or gs:// URL")
    grid = chip_grid(scene, config, session.entry)
    for notice in scene.notices:
        session.sink(Notice(message=notice))
    store = Store(config.out)
    sha256 = session.weights.sha256 or session.encoder.spec.weights_sha256
    digest = config.digest(
        model=session.entry.name,
        weights_sha256=sha256,
        precision=session.precision,
        chip_px=grid.chip_px,
    )
    layout = Layout(
        item_id=item_id(scene.id, session.entry.name, digest), layer=layer_name(scene.id)
    )
    if store.exists(layout.item) and not config.overwrite:
        return _finished(session, scene, store, layout)
    store.check_writable()
    if config.overwrite:
        store.delete(layout.item)  # first: it must not name objects that are going
        store.delete_tree(layout.folder)
    return _SceneRun(
        session=session,
        scene=scene,
        config=config,
        grid=grid,
        store=store,
        layout=layout,
        digest=digest,
    ).run()


def _finished(session: Session, scene: Scene, store: Store, layout: Layout) -> EncodeResult:
    item = pystac.Item.from_dict(
        json.loads(store.get(layout.item)), href=store.href(layout.item), preserve_dict=False
    )
    session.sink(
        Notice(message=f"{layout.item_id} is there already: nothing to do (see --overwrite)")
    )
    href = store.href(layout.item)
    session.sink(SceneFinished(scene_id=scene.id, href=href))
    return EncodeResult(
        item=item,
        href=href,
        chips_encoded=0,
        chips_resumed=int(item.properties.get("table:row_count", 0)),
        chips_skipped=int(item.properties.get("geosam:chips_skipped", 0)),
        chips_failed=int(item.properties.get("geosam:chips_failed", 0)),
        bytes_read=0,
        bytes_written=0,
        seconds={"total": 0.0},
    )


class _SceneRun:
    """One run over one scene: reader thread -> device (this thread) -> writer threads."""

    def __init__(
        self,
        *,
        session: Session,
        scene: Scene,
        config: EncodeConfig,
        grid: ChipGrid,
        store: Store,
        layout: Layout,
        digest: str,
    ) -> None:
        self.session = session
        self.scene = scene
        self.config = config
        self.grid = grid
        self.store = store
        self.layout = layout
        self.digest = digest
        self.spec = session.encoder.spec
        self.blocks = list(blocks(grid))
        self.reader = CubeReader(
            scene, self.blocks, resampling=config.resampling, keep_bytes=SCAN_KEEP_BYTES
        )
        self.thumbnail = Thumbnail((scene.geobox.height, scene.geobox.width))
        self.rows: list[ManifestRow] = []
        self.skipped: list[SkippedRow] = []
        self.bytes_written = 0
        self.seconds = dict.fromkeys(("read", "encode", "write"), 0.0)
        self.lock = threading.Lock()

    def run(self) -> EncodeResult:
        started = time.monotonic()
        chips = sum(len(block.chips) for block in self.blocks)
        self.session.sink(
            SceneStarted(scene_id=self.scene.id, item_id=self.layout.item_id, chips=chips)
        )
        limits = self._value_range()
        self._stream(limits)
        self.seconds["total"] = time.monotonic() - started
        item, size = commit(
            Outcome(
                scene=self.scene,
                grid=self.grid,
                layout=self.layout,
                spec=self.spec,
                config=self.config,
                digest=self.digest,
                session=self.session,
                limits=limits,
                rows=tuple(self.rows),
                skipped=tuple(self.skipped),
                thumbnail=self.thumbnail,
                bytes_read=self.reader.bytes_read,
                seconds=dict(self.seconds),
            ),
            self.store,
        )
        self.bytes_written += size
        self.seconds["total"] = time.monotonic() - started
        href = self.store.href(self.layout.item)
        self.session.sink(SceneFinished(scene_id=self.scene.id, href=href))
        return EncodeResult(
            item=item,
            href=href,
            chips_encoded=len(self.rows),
            chips_resumed=0,
            chips_skipped=len(self.skipped),
            chips_failed=0,
            bytes_read=self.reader.bytes_read,
            bytes_written=self.bytes_written,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
        )

    # The value range

    def _value_range(self) -> tuple[float, float] | None:
        """(lo, hi) for the whole scene; None where uint8 passes through untouched."""
        wanted = self.config.values
        if wanted.kind == "fixed":
            return wanted.lo, wanted.hi
        if wanted.kind == "auto" and all(band.dtype == "uint8" for band in self.scene.bands):
            return None
        if not self.reader.fits:
            self.session.sink(
                Notice(
                    message=f"--value-range {self.config.value_range} reads the scene twice: "
                    "give MIN,MAX to read it once"
                )
            )
        estimator = RangeEstimator(
            wanted, shape=self.thumbnail.scene_shape, bands=len(self.scene.bands)
        )
        total = self.reader.tile_count
        with _timed(self.seconds, "read"):
            for done, (window, data, valid) in enumerate(self.reader.scan(), start=1):
                estimator.update(data, valid, row_off=window.row_off, col_off=window.col_off)
                self.session.sink(ScanProgress(scene_id=self.scene.id, done=done, total=total))
        # A scene without a valid pixel has no range; its chips are all skipped.
        return estimator.result() or (0.0, 1.0)

    # Reader, device, writers

    def _stream(self, limits: tuple[float, float] | None) -> None:
        stop = threading.Event()
        failures: list[BaseException] = []
        chips: _Channel[Chip] = _Channel(
            max(2, CHIPS_QUEUE_BATCHES * self.session.batch_size), stop
        )
        features: _Channel[tuple[Features, float]] = _Channel(FEATURES_QUEUE, stop)

        def worker(target: Callable[[], None]) -> threading.Thread:
            def body() -> None:
                try:
                    target()
                except _Stopped:
                    pass
                except BaseException as error:  # noqa: BLE001 - handed to the calling thread
                    failures.append(error)
                    stop.set()

            return threading.Thread(target=body, name=f"geosam-{target.__name__}", daemon=True)

        def read() -> None:
            self._read(chips, limits)
            chips.close(1)

        def write() -> None:
            for entry in features:
                self._write(*entry)

        threads = [worker(read), *(worker(write) for _ in range(WRITERS))]
        try:
            for thread in threads:
                thread.start()
            with contextlib.suppress(_Stopped):
                self._encode(chips, features)
                features.close(WRITERS)
        except BaseException:
            stop.set()
            raise
        finally:
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]

    def _read(self, chips: _Channel[Chip], limits: tuple[float, float] | None) -> None:
        for ref in self.blocks:
            with _timed(self.seconds, "read"):
                block = self.reader.read(ref)
                valid = widen(self.reader.valid_bands(block.data[: len(self.scene.bands)]))
                rgb8 = to_rgb8(block.data, valid & block.valid, limits)
                self.thumbnail.add(rgb8, ref.window)
            for chip_ref in ref.chips:
                if reason := self._outside(chip_ref.geobox.extent):
                    self._skip(SkippedRow(ref=chip_ref, reason=reason, valid_fraction=0.0))
                    continue
                chip = make_chip(rgb8, block, chip_ref, input_px=self.spec.input_px)
                if chip.valid_fraction == 0:
                    self._skip(
                        SkippedRow(ref=chip_ref, reason="no valid pixel", valid_fraction=0.0)
                    )
                    continue
                chips.put(chip)

    def _outside(self, extent: Any) -> str | None:
        area = self.scene.area
        if area is None or extent.intersects(area):
            return None
        return "outside --geometry"

    def _skip(self, row: SkippedRow) -> None:
        self.skipped.append(row)
        self.session.sink(
            ChipDone(scene_id=self.scene.id, chip_id=row.ref.chip_id, outcome="skipped")
        )

    def _encode(self, chips: _Channel[Chip], features: _Channel[tuple[Features, float]]) -> None:
        batch: list[Chip] = []

        def flush() -> None:
            started = time.monotonic()
            fractions = {chip.ref.chip_id: chip.valid_fraction for chip in batch}
            for encoded in self.session.encode_batch(batch):
                self.seconds["encode"] += time.monotonic() - started
                features.put((encoded, fractions[encoded.ref.chip_id]))
                started = time.monotonic()
            batch.clear()

        for chip in chips:
            batch.append(chip)
            if len(batch) >= self.session.batch_size:
                flush()
        if batch:
            flush()

    def _write(self, features: Features, valid_fraction: float) -> None:
        started = time.monotonic()
        chip_id = features.ref.chip_id
        data = to_pt(features, spec=self.spec, dtype=self.config.feature_dtype)
        self.store.put(self.layout.feature(chip_id), data)
        row = ManifestRow(
            ref=features.ref,
            feature_href=self.layout.feature_href(chip_id),
            valid_fraction=valid_fraction,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        with self.lock:
            self.rows.append(row)
            self.bytes_written += len(data)
            self.seconds["write"] += time.monotonic() - started
        self.session.sink(
            ChipDone(
                scene_id=self.scene.id,
                chip_id=chip_id,
                outcome="encoded",
                bytes_written=len(data),
            )
        )


class _Stopped(Exception):
    """Another thread failed, or the run was asked to stop."""


class _Channel(Generic[T]):
    """A bounded queue that gives up when `stop` is set, and ends when it is closed."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(size)
        self._stop = stop

    def put(self, entry: T) -> None:
        self._put(entry)

    def close(self, readers: int) -> None:
        """No more entries: each of so many readers is told."""
        for _ in range(readers):
            self._put(None)

    def _put(self, entry: T | None) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=POLL_S)
                return

    def __iter__(self) -> Iterator[T]:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                entry = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if entry is None:
                return
            yield entry


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] += time.monotonic() - started
