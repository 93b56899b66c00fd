"""A model of crash and resume: any order of runs, crashes, damage and repairs ends in one result.

Hypothesis chooses the order, and at which call of the store or the encoder a run breaks off.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import geosam_stac as gs
from geosam_stac import manifest
from geosam_stac.local_backend import LocalBackend
from geosam_stac.pipeline import encode_scene
from tests import fakes, rasters
from tests.fakes import fake_session

CHIPS = 7  # 4 x 2, less the one without a valid pixel
CONFIGS = ({"stride": 32}, {"stride": 32, "value_range": "0,200"})
WRITES = ("put", "create", "delete", "delete_tree", "get")


class Killed(BaseException):
    """A process that is gone: no handler of errors takes part in it."""


class Fuse:
    """Lets so many calls of the store and the encoder pass; then every call is the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.left: int | None = None

    def burn(self) -> None:
        with self._lock:
            if self.left is None:
                return
            if self.left <= 0:
                raise Killed
            self.left -= 1


class CrashAndResume(RuleBasedStateMachine):
    """`config` is an index into CONFIGS: each is an output of its own in the same folder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.model = fakes.install(self.patch)
        self.fuse = Fuse()
        self.model.before = lambda chips: self.fuse.burn()
        for name in WRITES:
            self.patch.setattr(LocalBackend, name, self._burning(getattr(LocalBackend, name)))
        self.root = Path(tempfile.mkdtemp(prefix="resume-"))
        data = rasters.values((3, 160, 96), "uint8")
        data[:, :64, :64] = 0
        tif = rasters.write_tif(self.root / "scene.tif", data, nodata=0)
        self.item = rasters.write_item(self.root / "scene.json", {"image": rasters.asset(tif)})
        self.clean = [self._clean(number) for number in range(len(CONFIGS))]
        self.out = self.root / "out"
        self.damaged = False  # from outside, since the Item was written

    def _burning(self, call: Callable[..., object]) -> Callable[..., object]:
        def burning(*args: object) -> object:
            self.fuse.burn()
            return call(*args)

        return burning

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.root)

    # What a run does

    def _encode(self, config: int, out: Path, **more: object):
        with fake_session(self.root, out=str(out), **CONFIGS[config], **more) as session:
            return encode_scene(session, session.scene(str(self.item)), session.config)

    def _clean(self, config: int) -> dict[str, bytes]:
        out = self.root / f"clean-{config}"
        assert self._encode(config, out).chips_encoded == CHIPS
        return self._contents(out)

    def _contents(self, out: Path) -> dict[str, bytes]:
        """All that must be the same in each run: not what tells of the run, nor of the place."""
        found = {}
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            key = path.relative_to(out).as_posix()
            if path.name == "manifest.parquet":
                frame = manifest.read(path.read_bytes()).drop(columns=["feature_path"])
                found[key] = frame.to_json().encode()
            elif path.name not in ("run.json", f"{path.parent.name}.json"):
                found[key] = path.read_bytes()
            else:
                found[key] = b""
        return found

    def _folder(self, config: int) -> Path:
        return self.out / next(iter(self.clean[config])).partition("/")[0]

    def _features(self, config: int) -> list[Path]:
        return sorted(self._folder(config).rglob("*.pt"))

    def _recorded(self, config: int) -> dict[str, str]:
        """Chip -> sha256 as the journal or the manifest has it; the journal is younger."""
        folder, found = self._folder(config), {}
        table = folder / "manifest.parquet"
        if table.is_file():
            frame = manifest.read(table.read_bytes())
            found = dict(zip(frame["chip_id"], frame["sha256"], strict=True))
        for path in folder.glob("journal/*.ndjson"):
            for line in path.read_text().splitlines():
                found[json.loads(line)["chip_id"]] = json.loads(line)["sha256"]
        return found

    def _done(self, config: int) -> int:
        """How many chips are recorded, and there as recorded."""
        recorded = self._recorded(config)
        return sum(
            recorded.get(path.stem) == hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self._features(config)
        )

    def _is_clean(self, config: int) -> None:
        prefix = self._folder(config).name + "/"
        here = {k: v for k, v in self._contents(self.out).items() if k.startswith(prefix)}
        assert here == self.clean[config]

    # The rules

    @rule(config=st.sampled_from([0, 0, 0, 1]))
    def runs(self, config: int) -> None:
        finished = (self._folder(config) / f"{self._folder(config).name}.json").exists()
        done, whole = self._done(config), self._is_whole(config)
        result = self._encode(config, self.out)
        if not finished:
            assert result.chips_encoded == CHIPS - done  # nothing twice
        if not finished or whole or result.chips_encoded:
            self._is_clean(config)

    @rule(config=st.sampled_from([0, 0, 0, 1]), calls=st.integers(0, 45), more=st.booleans())
    def is_killed(self, config: int, calls: int, more: bool) -> None:
        self._until(calls, lambda: self._encode(config, self.out, overwrite=more))

    @rule(calls=st.integers(0, 60))
    def is_killed_in_a_repair(self, calls: int) -> None:
        if self._item_of(0).exists():
            self._until(calls, lambda: gs.verify(self._folder(0), repair=True))

    def _until(self, calls: int, do: Callable[[], object]) -> None:
        self.fuse.left = calls
        try:
            do()
        except Killed:
            pass
        finally:
            self.fuse.left = None
        self.damaged = self.damaged and self._item_of(0).exists()

    @rule(number=st.integers(0, CHIPS - 1))
    def a_feature_is_deleted(self, number: int) -> None:
        features = self._features(0)
        if number < len(features):
            features[number].unlink()
            self.damaged = self._item_of(0).exists()

    @rule(number=st.integers(0, CHIPS - 1), at=st.integers(0, 2000))
    def a_feature_is_damaged(self, number: int, at: int) -> None:
        features = self._features(0)
        # One that no record knows of is whole or not by the format's own checksums alone.
        if number < len(features) and features[number].stem in self._recorded(0):
            data = bytearray(features[number].read_bytes())
            data[at % len(data)] ^= 1
            features[number].write_bytes(data)
            self.damaged = self._item_of(0).exists()

    @rule()
    def begins_anew(self) -> None:
        assert self._encode(0, self.out, overwrite=True).chips_encoded == CHIPS
        self._is_clean(0)
        self.damaged = False

    @rule()
    def is_verified_and_repaired(self) -> None:
        if not self._item_of(0).exists():
            return
        found, whole = gs.verify(self._folder(0)), self._is_whole(0)
        assert found.is_whole == whole
        before = sum(sum(encoder.batches) for encoder in self.model.loaded)
        assert gs.verify(self._folder(0), repair=True).is_whole
        after = sum(sum(encoder.batches) for encoder in self.model.loaded)
        assert after - before == len(found.findings)
        self._is_clean(0)

    def _item_of(self, config: int) -> Path:
        return self._folder(config) / f"{self._folder(config).name}.json"

    def _is_whole(self, config: int) -> bool:
        """Whether the objects that an Item names are there, with the sha256 that it says."""
        item, folder = self._item_of(config), self._folder(config)
        if not item.exists():
            return False
        for asset in json.loads(item.read_text())["assets"].values():
            data = (folder / asset["href"]).read_bytes()
            assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
        frame = manifest.read((folder / "manifest.parquet").read_bytes())
        return len(frame) == CHIPS and all(
            (folder / href).is_file()
            and hashlib.sha256((folder / href).read_bytes()).hexdigest() == sha256
            for href, sha256 in zip(frame["feature_href"], frame["sha256"], strict=True)
        )

    # What always holds

    @invariant()
    def nothing_is_half_written(self) -> None:
        assert not list(self.out.rglob(".*.tmp"))

    @invariant()
    def an_item_names_what_is_there(self) -> None:
        for config in range(len(CONFIGS)):
            if self._item_of(config).exists() and not self._is_whole(config):
                assert config == 0
                assert self.damaged


CrashAndResume.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestCrashAndResume = CrashAndResume.TestCase
