"""A local copy of a feature Item, or of a part of it: a folder that Geo-SAM opens as it is.

Chips come in parallel (`crew`), each is checked against its sha256, and one that is there already
is not fetched again. The Item is written last, as encode does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pystac

from geosam_stac import hrefs
from geosam_stac import item as items
from geosam_stac import manifest as manifests
from geosam_stac.crew import Channel, Crew
from geosam_stac.errors import DataError, UsageError
from geosam_stac.events import ChipDone, SceneFinished, SceneStarted, Sink, ignore
from geosam_stac.features import DTYPES, FORMATS, IMAGE_EMBED, as_pt, read
from geosam_stac.layout import sanitize
from geosam_stac.storage import Store
from geosam_stac.store.chip import StoredChip
from geosam_stac.store.index import overlaps
from geosam_stac.store.local_item import PICTURES, WHOLE_ONLY, Part, local_item
from geosam_stac.store.opened import FeatureItem
from geosam_stac.store.places import LONLAT, box_in
from geosam_stac.thumbnail import cut
from geosam_stac.types import Window

FETCHERS = 8
"""Threads: a chip of 8 MB takes a store longer to begin than to send."""

# "<item id>.json" must stay below the 255 bytes that file systems allow for one name.
_MAX_ID_LENGTH = 240
_RECORD = ".pulled.ndjson"
_WIDEST_FIRST = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class PullResult:
    """What a pull came to.

    `folder`: what Geo-SAM opens; `item` and `href`: the local Item. `chips_there` were there
    already. `bytes_read` counts what came from the store.
    """

    item: pystac.Item
    href: str
    folder: Path
    chips_pulled: int
    chips_there: int
    bytes_read: int
    bytes_written: int


def pull_features(
    scene: FeatureItem,
    dest: str | os.PathLike[str],
    *,
    format: str = "pt",
    bbox: tuple[float, float, float, float] | None = None,
    crs: str | None = None,
    sink: Sink = ignore,
) -> PullResult:
    """Copy a scene's features into `dest/<item id>`.

    Parameters
    ----------
    scene
        From `open_features`.
    dest
        A local folder; need not exist.
    format
        "pt": as Geo-SAM reads them, whatever they are stored as. "safetensors": as they are.
    bbox, crs
        Only the chips that a box touches; see `FeatureItem.chips`.
    sink
        Called with events, from several threads.

    Raises
    ------
    UsageError
        `dest` is not local, no chip touches the box, or features of `.pt` are wanted otherwise.
    DataError
        An object is missing or another one than was written; or Geo-SAM's format needs levels
        that were left out.
    StorageError, TemporaryError
        The disk is full; the store does not answer.
    """
    if not hrefs.is_local(os.fspath(dest)):
        raise UsageError(
            "--dest must be a local folder: Geo-SAM opens no other", got=hrefs.unsigned(str(dest))
        )
    _check_format(scene, format)
    area = None if bbox is None else box_in(bbox, crs or LONLAT, scene.geobox)
    rows = list(range(len(scene.manifest)))
    if area is not None:
        rows = [int(row) for row in scene.index.touching(area)]
    if not rows:
        raise UsageError(
            "no chip with features touches --bbox",
            item=scene.item.id,
            hint="Check the order W,S,E,N, and --crs",
        )
    return _Pull(
        scene, Store(os.fspath(dest)), rows=rows, area=area, format=format, sink=sink
    ).run()


def _check_format(scene: FeatureItem, format: str) -> None:
    if format not in FORMATS:
        raise UsageError("--format is unknown", expected=" or ".join(FORMATS), got=format)
    properties = scene.item.properties
    stored = properties.get("geosam:format")
    if format == "safetensors" and stored == "pt":
        raise UsageError(
            "features that are stored as pt are pulled as pt alone",
            item=scene.item.id,
            hint="Encode with --format safetensors",
        )
    names = scene.feature_names
    needed = {output.name for output in scene.model.outputs}
    # An Item that does not say is taken as whole: the first chip would say otherwise.
    if format == "pt" and names and not needed <= set(names):
        raise DataError(
            "Geo-SAM cannot use these features: its decoder needs the high-resolution levels, and "
            "they were left out",
            item=scene.item.id,
            expected="--levels all",
            got=", ".join(names),
            hint="Encode again with --levels all, or pull with --format safetensors",
        )


@dataclass(frozen=True, kw_only=True)
class _Got:
    """A chip that is there: sha256 (hex) of what was fetched, and of the file that it became.

    `dtype` is of a file whose tensors became others: int8, which Geo-SAM cannot read.
    """

    chip_id: str
    source_sha256: str
    sha256: str
    bytes: int
    dtype: str = ""


class _Record:
    """Which chips are there, one JSON line each. A line that was cut short counts for nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.got: dict[str, _Got] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    got = _Got(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self.got[got.chip_id] = got

    def add(self, got: _Got) -> None:
        with self._lock:
            self.got[got.chip_id] = got
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(got)) + "\n")


class _Pull:
    def __init__(
        self,
        scene: FeatureItem,
        store: Store,
        *,
        rows: list[int],
        area: Any,
        format: str,
        sink: Sink,
    ) -> None:
        self.scene = scene
        self.store = store
        self.rows = rows
        self.area = area
        self.format = format
        self.sink = sink
        self.item_id = sanitize(scene.item.id, _MAX_ID_LENGTH)
        self.folder = Path(store.href(self.item_id))
        self.there = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.lock = threading.Lock()

    def run(self) -> PullResult:
        self.sink(
            SceneStarted(scene_id=self.scene.item.id, item_id=self.item_id, chips=len(self.rows))
        )
        self.store.check_writable()
        self.folder.mkdir(parents=True, exist_ok=True)
        record = _Record(self.folder / _RECORD)
        self._fetch_all(record)
        item = self._write_item(record)
        href = self.store.href(self._key(f"{self.item_id}.json"))
        self.sink(SceneFinished(scene_id=self.scene.item.id, href=href))
        return PullResult(
            item=item,
            href=href,
            folder=self.folder,
            chips_pulled=len(self.rows) - self.there,
            chips_there=self.there,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
        )

    def _key(self, name: str) -> str:
        return f"{self.item_id}/{name}"

    def _local(self, chip: StoredChip) -> str:
        """The chip's file, relative to the manifest."""
        return str(PurePosixPath(chip.feature_href).with_suffix(FORMATS[self.format].suffix))

    # Chips

    def _fetch_all(self, record: _Record) -> None:
        crew = Crew()
        todo: Channel[int] = Channel(2 * FETCHERS, crew.stop)

        def fetch() -> None:
            for row in todo:
                self._fetch(self.scene.chip_of_row(row), record)

        try:
            for _ in range(FETCHERS):
                crew.start(fetch)
            for row in self.rows:
                todo.put(row)
            todo.close(FETCHERS)
            crew.join()
        except BaseException as error:  # noqa: BLE001 - raised again below, or an earlier one is
            crew.fail(error)
            crew.join()
        crew.raise_first()

    def _fetch(self, chip: StoredChip, record: _Record) -> None:
        key = self._key(self._local(chip))
        if self._is_there(chip, key, record):
            with self.lock:
                self.there += 1
            self._tell(chip, "resumed")
            return
        data = self.scene.read_object(chip)
        made = self._converted(data, chip)
        self.store.put(key, made)
        record.add(
            _Got(
                chip_id=chip.id,
                source_sha256=chip.sha256,
                sha256=hashlib.sha256(made).hexdigest(),
                bytes=len(made),
                dtype=self._new_dtype(made),
            )
        )
        with self.lock:
            self.bytes_read += len(data)
            self.bytes_written += len(made)
        self._tell(chip, "pulled", len(made))

    def _is_there(self, chip: StoredChip, key: str, record: _Record) -> bool:
        got = record.got.get(chip.id)
        if got is None or got.source_sha256 != chip.sha256 or self.store.size(key) != got.bytes:
            return False
        return hashlib.sha256(self.store.get(key)).hexdigest() == got.sha256

    def _converted(self, data: bytes, chip: StoredChip) -> bytes:
        if self.format != "pt":
            return data
        try:
            return as_pt(data)
        except DataError as error:
            raise error.at(
                item=self.scene.item.id,
                chip=chip.id,
                href=self.scene.folder.href(chip.feature_href),
            ) from error.__cause__

    def _new_dtype(self, made: bytes) -> str:
        if self.format != "pt" or self.scene.item.properties.get("geosam:dtype") in DTYPES:
            return ""
        return str(read(made)[0][IMAGE_EMBED].dtype).removeprefix("torch.")

    def _tell(self, chip: StoredChip, outcome: str, size: int = 0) -> None:
        self.sink(
            ChipDone(
                scene_id=self.scene.item.id,
                chip_id=chip.id,
                outcome=outcome,
                bytes_written=size,
            )
        )

    # The tables and the Item

    def _write_item(self, record: _Record) -> pystac.Item:
        scene = self.scene
        chips = [scene.chip_of_row(row) for row in self.rows]
        frame = scene.manifest.iloc[self.rows].copy()
        got = [record.got[chip.id] for chip in chips]
        dtypes = {one.dtype for one in got}
        local = [self._local(chip) for chip in chips]
        frame["feature_href"] = local
        frame["feature_path"] = [self.store.href(self._key(name)) for name in local]
        frame["bytes"] = [one.bytes for one in got]
        frame["sha256"] = [one.sha256 for one in got]
        skipped = scene.skipped
        part = None
        if self.area is not None:
            near = overlaps(skipped.geometry.to_numpy(), self.area)
            part = scene.index.extent(self.rows, near)
            skipped = skipped[near]
        files = {"manifest.parquet": manifests.from_frame(frame)}
        if len(skipped):
            files["skipped.parquet"] = manifests.from_frame(skipped)
        files |= self._beside(part)
        item = local_item(
            scene,
            Part(
                windows=None if self.area is None else [chip.window for chip in chips],
                format=self.format,
                # The widest, where one chip needed more than float16 holds.
                dtype=next((name for name in _WIDEST_FIRST if name in dtypes), ""),
                chips=len(frame),
                skipped=len(skipped),
                files=files,
            ),
            href=self.store.href(self._key(f"{self.item_id}.json")),
        )
        # It must not name the tables of another pull while they are replaced.
        self.store.delete(self._key(f"{self.item_id}.json"))
        for name, data in files.items():
            self.store.put(self._key(name), data)
        if not len(skipped):
            self.store.delete(self._key("skipped.parquet"))
        document = items.to_bytes(item)
        self.store.put(self._key(f"{self.item_id}.json"), document)
        self.bytes_written += len(document) + sum(map(len, files.values()))
        return item

    def _beside(self, part: Window | None) -> dict[str, bytes]:
        """Small files beside the manifest, by name, as far as they are there and whole.

        `part`: what is pulled, in px of the scene's grid; None: all of it.
        """
        scene = self.scene
        files: dict[str, bytes] = {}
        for key, name in PICTURES.items():
            if key in scene.item.assets and (part is None or key not in WHOLE_ONLY):
                with contextlib.suppress(DataError):
                    files[name] = scene.read_asset(key)
        if part is not None and "thumbnail.png" in files:
            height, width = scene.geobox.shape
            small = cut(files.pop("thumbnail.png"), (height, width), part)
            if small is not None:
                files["thumbnail.png"] = small
        with contextlib.suppress(DataError):
            files["run.json"] = scene.read_key("run.json")
        return files
