"""Whether an encoded scene is as it was written: each object against its size and sha256.

Reads every object that the Item names, in parallel (`crew`), and changes nothing; `repair` does.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pystac

from geosam_stac.crew import Channel, Crew
from geosam_stac.errors import DataError, ForbiddenError
from geosam_stac.events import ChipDone, SceneFinished, SceneStarted, Sink, ignore
from geosam_stac.item import SHA256_MULTIHASH
from geosam_stac.store import FeatureItem
from geosam_stac.store.locate import place_of
from geosam_stac.store.objects import ObjectFolder, confined

READERS = 8
"""Threads: a chip of 8 MB takes a store longer to begin than to send."""
MISSING, SIZE, SHA256, UNREADABLE, EXTRA = "missing", "size", "sha256", "unreadable", "extra"
RUN, RUN_NAME = "run", "run.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One object that is not as it was written.

    `name`: the asset's key, or the chip's id. `what`: `missing`; another `size` or `sha256`;
    `unreadable`; `extra`, a feature that the manifest does not know. `version`: of the object that
    was read, where the store tells (`VersionedStore.version`).
    """

    name: str
    href: str
    what: str
    expected: str | None = None
    got: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        text = f"{self.what} {self.href}"
        return text if self.got is None else f"{text}: expected {self.expected}, got {self.got}"

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for `--json`."""
        names = ("name", "href", "what", "expected", "got")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a scene's objects are like. `objects` were read, with `bytes_read` together."""

    item: pystac.Item
    href: str
    objects: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """Whether everything is as it was written."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for `--json`."""
        return {
            "item": self.href,
            "id": self.item.id,
            "objects": self.objects,
            "bytes_read": self.bytes_read,
            "wrong": [finding.as_dict() for finding in self.findings],
        }


def verify_item(features: FeatureItem, *, sink: Sink = ignore) -> Verification:
    """Compare every object of a scene with what was recorded of it.

    Parameters
    ----------
    features
        From `open_features`; on any store, http(s) too.
    sink
        Hears of each feature.

    Raises
    ------
    ForbiddenError
        The store refuses to say.
    TemporaryError
        The store does not answer.
    """
    check = _Check(features, sink)
    check.run([*_assets(features), _Object(name=RUN, folder=features.folder, key=RUN_NAME)])
    # What the manifest says counts for nothing when it is another one.
    if not any(finding.name == "manifest" for finding in check.findings):
        rows = list(_rows(features))
        sink(SceneStarted(scene_id=features.item.id, item_id=features.item.id, chips=len(rows)))
        check.run(rows, tell=True)
        check.find_extra(rows)
        sink(SceneFinished(scene_id=features.item.id, href=features.href))
    return Verification(
        item=features.item,
        href=features.href,
        objects=check.objects,
        bytes_read=check.bytes_read,
        findings=tuple(sorted(check.findings, key=lambda finding: (finding.what, finding.href))),
    )


@dataclass(frozen=True, kw_only=True)
class _Object:
    """An object that is to be there; `bytes` and `sha256` (hex) are None where nobody says."""

    name: str
    folder: ObjectFolder
    key: str
    bytes: int | None = None
    sha256: str | None = None


def _assets(features: FeatureItem) -> Iterable[_Object]:
    """The assets of an Item, by the file extension's fields."""
    folders: dict[str, ObjectFolder] = {features.folder.url: features.folder}
    for name, asset in features.item.assets.items():
        url, key = place_of(asset.href, features.href, features.item.id)
        folder = folders.setdefault(url, features.folder)
        if folder.url != url.rstrip("/"):
            folder = folders[url] = ObjectFolder(url)
        fields: Mapping[str, Any] = asset.extra_fields
        checksum = str(fields.get("file:checksum") or "")
        yield _Object(
            name=name,
            folder=folder,
            key=key,
            bytes=fields.get("file:size"),
            sha256=checksum.removeprefix(SHA256_MULTIHASH)
            if checksum.startswith(SHA256_MULTIHASH)
            else None,
        )


def _rows(features: FeatureItem) -> Iterable[_Object]:
    frame = features.manifest
    columns = ("chip_id", "feature_href", "bytes", "sha256")
    for chip_id, href, size, sha256 in zip(*(frame[name] for name in columns), strict=True):
        yield _Object(
            name=str(chip_id),
            folder=features.folder,
            key=confined(href, chip=str(chip_id)),
            bytes=int(size),
            sha256=str(sha256),
        )


class _Check:
    """Counts and findings of a verification; `run` may be called several times."""

    def __init__(self, features: FeatureItem, sink: Sink) -> None:
        self._item = features.item
        self._sink = sink
        self._lock = threading.Lock()
        self.findings: list[Finding] = []
        self.objects = 0
        self.bytes_read = 0

    def run(self, objects: list[_Object], *, tell: bool = False) -> None:
        """Check objects, each in one of `READERS` threads."""
        crew = Crew()
        todo: Channel[_Object] = Channel(len(objects) + READERS, crew.stop)

        def check() -> None:
            for wanted in todo:
                self._check(wanted)
                if tell:
                    event = ChipDone(
                        scene_id=self._item.id, chip_id=wanted.name, outcome="verified"
                    )
                    self._sink(event)

        for wanted in objects:
            todo.put(wanted)
        todo.close(READERS)
        for _ in range(READERS):
            crew.start(check)
        crew.finish()

    def find_extra(self, rows: list[_Object]) -> None:
        """Objects beside the features that the manifest does not know; none over http(s)."""
        known = {row.key for row in rows}
        store = rows[0].folder.store if rows else None
        if store is None:
            return
        for folder in sorted({row.key.rpartition("/")[0] for row in rows}):
            self.findings += [
                Finding(name=key, href=store.href(key), what=EXTRA, version=store.version(key))
                for key in store.keys(folder)
                if key not in known
            ]

    def _check(self, wanted: _Object) -> None:
        store = wanted.folder.store
        # Before the object is read: what is replaced meanwhile has another version.
        version = None if store is None else store.version(wanted.key)
        try:
            data = wanted.folder.get(wanted.key)
        except ForbiddenError:
            raise
        except DataError:
            data = None
        finding = _compare(wanted, data, version)
        with self._lock:
            self.objects += 1
            self.bytes_read += 0 if data is None else len(data)
            if finding is not None:
                self.findings.append(finding)


def _compare(wanted: _Object, data: bytes | None, version: str | None) -> Finding | None:
    place = {"name": wanted.name, "href": wanted.folder.href(wanted.key)}
    if data is None:
        return Finding(**place, what=MISSING)
    if wanted.bytes is not None and len(data) != wanted.bytes:
        return Finding(
            **place,
            what=SIZE,
            expected=f"{wanted.bytes:,} bytes",
            got=f"{len(data):,}",
            version=version,
        )
    got = hashlib.sha256(data).hexdigest()
    if wanted.sha256 is not None and got != wanted.sha256:
        return Finding(**place, what=SHA256, expected=wanted.sha256, got=got, version=version)
    if wanted.name == RUN and not _is_json(data):
        return Finding(**place, what=UNREADABLE, expected="JSON", got="none", version=version)
    return None


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
