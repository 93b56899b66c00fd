"""The end of a scene: what the Item names is there, and it comes last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from geosam_stac.commit import read_commit
from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.layout import Layout
from geosam_stac.local_backend import LocalBackend
from geosam_stac.pipeline import encode_scene
from geosam_stac.storage import Store
from tests import fakes, rasters, stac_schemas
from tests.fakes import fake_session

pytestmark = pytest.mark.usefixtures("fake_model")


@pytest.fixture
def source(tmp_path):
    data = rasters.values((3, 128, 128), "uint8")
    data[:, :64, :64] = 0
    tif = rasters.write_tif(tmp_path / "scene.tif", data, nodata=0)
    fields = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif, **fields)})


def encode(tmp_path, source, **options):
    with fake_session(tmp_path, stride=64, **options) as session:
        return encode_scene(session, session.scene(source), session.config)


def test_features_that_were_deleted_meanwhile_have_no_item(tmp_path, source, monkeypatch):
    real = Store.put

    def put(self, key, data):  # of the last object before the Item
        real(self, key, data)
        if key.endswith("run.json"):
            next((tmp_path / "out").rglob("*.pt")).unlink()

    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(TemporaryError, match="1 of 3 features were deleted") as caught:
        encode(tmp_path, source)
    assert caught.value.item == "scene-1"
    assert not list((tmp_path / "out").glob("*/scene*.json"))
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch)
        assert encode(tmp_path, source).chips_encoded == 1


def test_order_and_checksums(tmp_path, source, monkeypatch):
    puts: dict[str, bytes] = {}
    real = LocalBackend._write

    def put(self, key, data, **how):
        puts[key] = data
        real(self, key, data, **how)

    monkeypatch.setattr(LocalBackend, "_write", put)
    result = encode(tmp_path, source)
    item_id = result.item.id
    keys = list(puts)
    assert all(key.endswith(".pt") for key in keys[:3])
    assert [key.removeprefix(f"{item_id}/") for key in keys[3:]] == [
        "manifest.parquet",
        "skipped.parquet",
        "thumbnail.png",
        "run.json",
        f"{item_id}.json",
    ]
    assert result.bytes_written == sum(map(len, puts.values()))
    item = json.loads(puts[keys[-1]])
    assert set(item["assets"]) == {"manifest", "skipped", "thumbnail"}
    for asset in item["assets"].values():
        data = puts[f"{item_id}/{asset['href'].removeprefix('./')}"]
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    assert item["assets"]["manifest"]["table:row_count"] == 3
    assert item["assets"]["skipped"]["table:row_count"] == 1


def test_the_item_is_valid_and_is_what_is_returned(tmp_path, source):
    result = encode(tmp_path, source)
    written = json.loads(Path(result.href).read_text(encoding="utf-8"))
    assert len(stac_schemas.validate(written)) > 3
    assert written["id"] == result.item.id
    assert written["properties"]["geosam:weights"] == "untrained"
    assert written["properties"]["geosam:chips_skipped"] == 1
    assert result.item.to_dict(transform_hrefs=False)["properties"] == written["properties"]


def test_a_signed_checkpoint_url_is_written_nowhere(tmp_path, source, monkeypatch):
    from geosam_stac import session
    from geosam_stac.encoders.checkpoints import Weights

    def resolve(entry, checkpoint, **_):
        return Weights(
            entry=entry, path=None, seed=None, sha256="ab" * 32, label="w.pt", upstream=False
        )

    monkeypatch.setattr(session, "resolve", resolve)
    result = encode(tmp_path, source, checkpoint="https://host/w.pt?sig=SECRET&se=2030")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path
    run = json.loads((tmp_path / "out" / result.item.id / "run.json").read_text())
    assert run["config"]["checkpoint"] == "https://host/w.pt"


def test_read_commit(tmp_path, source):
    result = encode(tmp_path, source)
    store = Store(str(tmp_path / "out"))
    layout = Layout(item_id=result.item.id, layer="scene-1")
    with fake_session(tmp_path) as session:
        scene = session.scene(source)
    found = read_commit(store, layout, scene)
    assert found is not None
    assert found.get_self_href() == result.href
    assert read_commit(store, Layout(item_id="other", layer="x"), scene) is None
    for broken in (b"", b"[]", b'{"type": "Feature"}', b"\xff\xfe"):
        store.put(layout.item, broken)
        with pytest.raises(DataError, match="--overwrite"):
            read_commit(store, layout, scene)
