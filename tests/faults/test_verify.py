"""`verify` and its repair: each kind of damage, on disk and over moto's S3 server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

import geosam_stac as gs
from geosam_stac import preview
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.pipeline import encode_scene
from geosam_stac.sources.groups import group_items
from geosam_stac.verification import Verification
from geosam_stac.versioned import VersionedStore
from tests import rasters
from tests.cli.conftest import cli
from tests.fakes import fake_session
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)

__all__ = ["cli"]

CHIPS = 5  # 3 x 2, less the one without a valid pixel
OBJECTS = CHIPS + 4  # manifest, skipped, thumbnail, run.json


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch):
    """Where the output goes."""
    if request.param == "local":
        return str(tmp_path / "out")
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    return "s3://bucket/" + re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def source(tmp_path) -> Path:
    data = rasters.values((3, 128, 96), "uint8")
    data[:, :64, :64] = 0
    tif = rasters.write_tif(tmp_path / "scene.tif", data, nodata=0)
    return rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif)})


class Scene:
    """An encoded scene, what it is made of, and ways to damage it."""

    def __init__(self, tmp_path: Path, source: Path, out: str, **options: object) -> None:
        with fake_session(tmp_path, out=out, **options) as session:
            result = encode_scene(session, session.scene(str(source)), session.config)
        self.href, self.id = result.href, result.item.id
        self.store = VersionedStore(out)
        self.before = self.contents()

    def contents(self) -> dict[str, bytes]:
        return {key: self.store.get(key) for key in self.store.keys(self.id)}

    def lasting(self) -> dict[str, bytes]:
        """All but run.json, which tells of the last run."""
        return {k: v for k, v in self.contents().items() if not k.endswith("run.json")}

    def features(self) -> list[str]:
        return [key for key in self.before if "/features/" in key]

    def damage(self, key: str, how: str) -> None:
        data = self.before[key]
        if how == "deleted":
            self.store.delete(key)
        elif how == "truncated":
            self.store.put(key, data[: len(data) // 2])
        elif how == "flipped":
            middle = len(data) // 2
            self.store.put(key, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        else:
            raise ValueError(how)


def said(found: Verification) -> list[tuple[str, str]]:
    return [(finding.what, finding.name) for finding in found.findings]


WHAT = {"deleted": "missing", "truncated": "size", "flipped": "sha256"}


def test_a_whole_scene(place, source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, place)
    found = gs.verify(scene.href, repair=True)
    assert found.is_whole
    assert (found.objects, found.href) == (OBJECTS, scene.href)
    item = f"{scene.id}/{scene.id}.json"
    assert found.bytes_read == sum(len(v) for k, v in scene.before.items() if k != item)
    assert scene.contents() == scene.before


@pytest.mark.parametrize("format", ["pt", "safetensors"])
def test_damaged_features_are_encoded_again(format, place, source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, place, format=format)
    keys = scene.features()
    for key, how in zip(keys, WHAT, strict=False):
        scene.damage(key, how)
    extra = keys[0].replace("chip_", "other_")
    scene.store.put(extra, b"1")
    found = gs.verify(scene.href)
    names = [Path(key).stem for key in keys]
    expected = [(what, name) for name, what in zip(names, WHAT.values(), strict=False)]
    assert said(found) == sorted([*expected, ("extra", extra.partition("/")[2])])
    encoded = fake_model.encoder.batches.copy()
    if place.startswith("s3:"):
        with pytest.raises(DataError, match="allow-private-hosts"):
            gs.verify(scene.href, repair=True)
    after = gs.verify(scene.href, repair=True, allow_private_hosts=True)
    assert after.is_whole
    assert sum(fake_model.encoder.batches) == len(WHAT)  # of the repair's own encoder
    assert sum(encoded) == CHIPS
    assert scene.lasting() == {k: v for k, v in scene.before.items() if not k.endswith("run.json")}


@pytest.mark.parametrize("how", WHAT)
@pytest.mark.parametrize("name", ["skipped.parquet", "thumbnail.png", "manifest.parquet"])
def test_damaged_tables_and_pictures(name, how, source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    scene.damage(f"{scene.id}/{name}", how)
    assert said(gs.verify(scene.href)) == [(WHAT[how], name.partition(".")[0])]
    loaded = len(fake_model.loaded)
    assert gs.verify(scene.href, repair=True).is_whole
    encoded = sum(sum(encoder.batches) for encoder in fake_model.loaded[loaded:])
    # Without a manifest nothing is known of the features.
    assert encoded == (CHIPS if name == "manifest.parquet" else 0)
    assert scene.lasting() == {k: v for k, v in scene.before.items() if not k.endswith("run.json")}


def test_a_damaged_manifest_over_s3(request, monkeypatch, source, tmp_path, fake_model):
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    scene = Scene(tmp_path, source, "s3://bucket/manifest")
    scene.damage(f"{scene.id}/manifest.parquet", "flipped")
    scene.damage(scene.features()[0], "flipped")
    assert said(gs.verify(scene.href)) == [("sha256", "manifest")]
    assert gs.verify(scene.href, repair=True, allow_private_hosts=True).is_whole
    assert scene.lasting() == {k: v for k, v in scene.before.items() if not k.endswith("run.json")}


@pytest.mark.parametrize("damaged", [["overview.tif"], ["pca.json"], ["overview.tif", "feature"]])
def test_the_overview_is_drawn_again(damaged, source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    features = gs.open_features(scene.href)
    colours = preview.projection(features)
    preview.cog(features, colours, tmp_path / "overview.tif")
    preview.attach(features, colours, (tmp_path / "overview.tif").read_bytes())
    scene.before = scene.contents()
    for name in damaged:
        key = scene.features()[0] if name == "feature" else f"{scene.id}/{name}"
        scene.damage(key, "truncated")
    assert len(gs.verify(scene.href).findings) == len(damaged)
    assert gs.verify(scene.href, repair=True).is_whole
    item = f"{scene.id}/{scene.id}.json"
    after = scene.contents()
    assert json.loads(after[item])["assets"] == json.loads(scene.before[item])["assets"]
    for key in after.keys() - {item, f"{scene.id}/run.json"}:
        assert after[key] == scene.before[key], key


def test_a_feature_beside_an_overview_leaves_the_item_as_it_was(source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    features = gs.open_features(scene.href)
    colours = preview.projection(features)
    preview.cog(features, colours, tmp_path / "overview.tif")
    preview.attach(features, colours, (tmp_path / "overview.tif").read_bytes())
    scene.before = scene.contents()
    scene.damage(scene.features()[1], "flipped")
    assert gs.verify(scene.href, repair=True).is_whole
    assert scene.lasting() == {k: v for k, v in scene.before.items() if not k.endswith("run.json")}


def test_without_run_json_nothing_is_changed(source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    scene.damage(f"{scene.id}/run.json", "truncated")
    scene.damage(scene.features()[0], "deleted")
    damaged = scene.contents()
    assert said(gs.verify(scene.href)) == [
        ("missing", Path(scene.features()[0]).stem),
        ("unreadable", "run"),
    ]
    with pytest.raises(DataError, match=r"with which options .* --overwrite"):
        gs.verify(scene.href, repair=True)
    assert scene.contents() == damaged


def test_another_model_changes_nothing(source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    run = f"{scene.id}/run.json"
    document = json.loads(scene.store.get(run))
    document["config"]["checkpoint"] = "untrained:7"
    scene.store.put(run, json.dumps(document).encode())
    scene.damage(scene.features()[0], "deleted")
    damaged = scene.contents()
    with pytest.raises(DataError, match="would make another Item"):
        gs.verify(scene.href, repair=True)
    assert scene.contents() == damaged


def test_other_pixels_make_a_new_item_and_say_so(source, tmp_path, fake_model):
    """Two chips with other features than they had: the Item's checksums are of what is there."""
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    scene.damage(scene.features()[0], "deleted")
    data = rasters.values((3, 128, 96), "uint8", seed=9)
    data[:, :64, :64] = 0
    rasters.write_tif(tmp_path / "scene.tif", data, nodata=0)
    events: list[object] = []
    assert gs.verify(scene.href, repair=True, sink=events.append).is_whole
    assert any("has other bytes than it had" in getattr(e, "message", "") for e in events)
    after = scene.contents()
    changed = [key for key in scene.features() if after[key] != scene.before[key]]
    assert changed == scene.features()[:1]


def test_a_repair_that_is_broken_off_leaves_no_item_and_encode_goes_on(
    source, tmp_path, fake_model
):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    for key in scene.features()[:2]:
        scene.damage(key, "flipped")

    def fail(chips: int) -> None:
        raise TemporaryError("the device is gone")

    fake_model.before = fail
    with pytest.raises(TemporaryError):
        gs.verify(scene.href, repair=True)
    assert not scene.store.exists(f"{scene.id}/{scene.id}.json")
    fake_model.before = lambda chips: None
    with fake_session(tmp_path) as session:
        result = encode_scene(session, session.scene(str(source)), session.config)
    assert (result.chips_encoded, result.chips_resumed) == (2, CHIPS - 2)
    assert gs.verify(scene.href).is_whole
    after = scene.contents()
    assert {key: after[key] for key in scene.features()} == {
        key: scene.before[key] for key in scene.features()
    }


def test_a_mosaic_is_made_again_of_its_items(tmp_path, fake_model):
    items = []
    for number in range(2):
        data = rasters.values((3, 96, 96), "uint8", seed=number)
        tif = rasters.write_tif(tmp_path / f"{number}.tif", data)
        item = rasters.write_item(
            tmp_path / f"{number}.json", {"image": rasters.asset(tif)}, item_id=f"part-{number}"
        )
        items.append(item)
    with fake_session(tmp_path, groupby="datetime") as session:
        (group,) = group_items([session.read_item(str(item)) for item in items], "datetime")
        result = encode_scene(session, session.scene(group), session.config)
    (first, *_) = sorted(Path(result.href).parent.rglob("*.pt"))
    whole = first.read_bytes()
    first.unlink()
    assert gs.verify(result.href, repair=True).is_whole
    assert first.read_bytes() == whole


def test_a_moved_folder_is_whole_and_is_repaired_where_it_is(source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / scene.id
    assert gs.verify(folder).is_whole
    feature = tmp_path / "moved" / scene.features()[0]
    feature.unlink()
    assert gs.verify(folder, repair=True).is_whole
    assert hashlib.sha256(feature.read_bytes()).digest() == (
        hashlib.sha256(scene.before[scene.features()[0]]).digest()
    )
    folder.rename(tmp_path / "moved" / "renamed")
    feature = next((tmp_path / "moved" / "renamed").rglob("*.pt"))
    feature.unlink()
    with pytest.raises(DataError, match="cannot be repaired where it lies"):
        gs.verify(tmp_path / "moved" / "renamed", repair=True)


def test_run_json_still_tells_what_the_scene_was_asked_for_by(source, tmp_path, fake_model):
    out = str(tmp_path / "out")
    with fake_session(tmp_path, out=out) as session:
        session.inputs = {"search": "https://api/v1", "collection": ["c"]}
        result = encode_scene(session, session.scene(str(source)), session.config)
    run = tmp_path / "out" / result.item.id / "run.json"
    before = json.loads(run.read_text())
    next(run.parent.rglob("*.pt")).unlink()
    assert gs.verify(result.href, repair=True).is_whole
    after = json.loads(run.read_text())
    assert after["created"] != before["created"]
    assert after["inputs"] == {"search": "https://api/v1", "collection": ["c"]}


def test_on_the_command_line(cli, source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    done = cli("verify", scene.href)
    assert (done.code, done.lines) == (0, [])
    assert f"{OBJECTS} objects are as they were written" in done.err
    first, second = scene.features()[:2]
    scene.damage(first, "deleted")
    scene.damage(second, "truncated")
    done = cli("verify", scene.href)
    assert done.code == 65
    assert done.lines[0] == f"missing {scene.store.href(first)}"
    assert done.lines[1].startswith(f"size {scene.store.href(second)}: expected ")
    assert "2 objects are missing or not as written" in done.err
    assert "Traceback" not in done.err
    as_json = cli("verify", Path(scene.href).parent, "--json", "-q")
    document = json.loads(as_json.out)
    assert as_json.code == 65
    assert [wrong["what"] for wrong in document["wrong"]] == ["missing", "size"]
    assert (document["id"], document["repaired"]) == (scene.id, False)
    done = cli("verify", scene.href, "--repair")
    assert done.code == 0, done.err
    assert len(done.lines) == 2
    assert "2 objects were made good" in done.err
    assert cli("verify", scene.href).code == 0
    assert cli("verify", scene.href, "--device", "cpu").code == 2
    assert cli("verify", tmp_path / "none.json").code == 65


def test_findings_are_plain_data(source, tmp_path, fake_model):
    scene = Scene(tmp_path, source, str(tmp_path / "out"))
    scene.damage(scene.features()[0], "deleted")
    (finding,) = gs.verify(scene.href).findings
    assert dataclasses.asdict(finding) == {
        "name": Path(scene.features()[0]).stem,
        "href": scene.store.href(scene.features()[0]),
        "what": "missing",
        "expected": None,
        "got": None,
        "version": None,
    }
