"""encode_scene: what it writes, in what order it stops, and what it leaves behind."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine
from PIL import Image

from geosam_stac import band_groups, scene_run
from geosam_stac.budget import WRITERS
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    DeviceOutOfMemoryError,
    Interrupted,
    StorageError,
    TemporaryError,
    UsageError,
)
from geosam_stac.events import ChipDone, Notice, SceneFinished, SceneStarted
from geosam_stac.features import from_pt, read
from geosam_stac.kept_files import KeptFiles
from geosam_stac.local_backend import LocalBackend
from geosam_stac.pipeline import encode_scene
from geosam_stac.storage import Store
from tests import rasters
from tests.fakes import fake_session

pytestmark = pytest.mark.usefixtures("fake_model")

# A deadlock must fail, not hang: the slowest of these tests takes two seconds.
TIMEOUT_S = 20.0


def item_of(tmp_path, data, *, name="scene", nodata=None, transform=rasters.NORTH_UP, **top):
    """A raster of (B, H, W) and its Item; the Item's path."""
    tif = rasters.write_tif(tmp_path / f"{name}.tif", data, nodata=nodata, transform=transform)
    bands = rasters.named_bands(*("red", "green", "blue")[: len(data)])
    return rasters.write_item(
        tmp_path / f"{name}.json", {"image": rasters.asset(tif, **bands)}, item_id=name, **top
    )


@pytest.fixture
def item(tmp_path):
    """160 x 128 px of uint8: at stride 32 and 64 px chips 4 x 3 chips, flush with the edges."""
    return item_of(tmp_path, rasters.values((3, 128, 160), "uint8"))


@pytest.fixture
def run(tmp_path):
    """Encode an Item in a session of its own; `limit_s` guards against a deadlock."""

    def encode(path, events=None, **options):
        result: list = []

        def work():
            try:
                with fake_session(tmp_path, events, **options) as session:
                    config = session.config
                    result.append(encode_scene(session, session.scene(str(path)), config))
            except BaseException as error:  # noqa: BLE001 - raised again in the test
                result.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(TIMEOUT_S)
        assert result, "deadlock: the run has not ended"
        assert workers() == []
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    return encode


def workers():
    return [t.name for t in threading.enumerate() if t.name.startswith("geosam-")]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def folder_of(result):
    return Store(result.href.rpartition("/")[0])


def manifest_of(result):
    store = folder_of(result)
    return geopandas.read_parquet(io.BytesIO(store.get("manifest.parquet")))


def skipped_of(result):
    store = folder_of(result)
    return geopandas.read_parquet(io.BytesIO(store.get("skipped.parquet")))


def feature(result, chip_id):
    store = folder_of(result)
    row = manifest_of(result).set_index("chip_id").loc[chip_id]
    return from_pt(store.get(row.feature_href))[0]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["image_embed", "high_res_feats_0", "high_res_feats_1"]),
        ({"feature_dtype": "int8"}, ["image_embed", "high_res_feats_0", "high_res_feats_1"]),
        ({"levels": "embedding"}, ["image_embed"]),
    ],
)
def test_safetensors(tmp_path, run, item, options, names):
    expected = feature(run(item, feature_dtype="float32"), "chip_000003")
    result = run(item, format="safetensors", **options)
    assert result.chips_encoded == 12
    folder = tmp_path / "out" / result.item.id
    rows = manifest_of(result)
    assert [Path(href).name for href in rows.feature_href][:2] == [
        "chip_000000.safetensors",
        "chip_000001.safetensors",
    ]
    assert result.item.properties["geosam:format"] == "safetensors"
    assert [each["name"] for each in result.item.properties["geosam:features"]] == names
    assert result.item.assets["manifest"].extra_fields["geosam:feature_files"] == {
        "type": "application/octet-stream; application=safetensors",
        "roles": ["data", "features"],
    }
    row = rows.set_index("chip_id").loc["chip_000003"]
    data = (folder / row.feature_href).read_bytes()
    assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    tensors, metadata = read(data)
    assert list(tensors) == names
    for name, tensor in tensors.items():
        assert torch.allclose(tensor.float(), expected[name], rtol=1e-2, atol=1.5)
    assert (metadata.chip_id, metadata.crs) == ("chip_000003", row.crs)
    assert list(metadata.transform) == json.loads(row["transform"])
    assert metadata.weights_sha256 == result.item.properties["geosam:weights_sha256"]


def test_the_whole_of_it(tmp_path, run, item):
    events = []
    result = run(item, events)
    item_id = result.item.id
    assert item_id.startswith("scene_sam2.1-hiera-tiny_")
    assert files(tmp_path / "out") == sorted(
        [
            *(f"{item_id}/scene/features/chip_{i:06d}.pt" for i in range(12)),
            *(f"{item_id}/{name}" for name in ("manifest.parquet", "run.json", "thumbnail.png")),
            f"{item_id}/{item_id}.json",
        ]
    )
    assert (result.chips_encoded, result.chips_skipped, result.chips_resumed) == (12, 0, 0)
    assert result.bytes_read == 3 * 128 * 160
    on_disk = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert result.bytes_written == on_disk
    assert set(result.seconds) == {"read", "encode", "write", "total"}
    assert set(result.busy) == {"read", "encode", "write"}
    assert all(0 < busy <= 1 for busy in result.busy.values())
    assert result.slowest == max(result.busy, key=result.busy.get)

    frame = manifest_of(result)
    assert list(frame.chip_id) == [f"chip_{i:06d}" for i in range(12)]
    assert list(frame.row) == [0] * 4 + [1] * 4 + [2] * 4
    for row in frame.itertuples():
        data = (tmp_path / "out" / item_id / row.feature_href).read_bytes()
        assert row.feature_path == str(tmp_path / "out" / item_id / row.feature_href)
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert row.valid_fraction == 1.0
    warning, started, *done, finished = events
    assert isinstance(warning, Notice)
    assert isinstance(started, SceneStarted)
    assert started.chips == len(done) == 12
    assert all(isinstance(event, ChipDone) for event in done)
    assert isinstance(finished, SceneFinished)
    assert finished.href == result.href


def test_pixels_reach_the_encoder_as_they_are(tmp_path, run, item, fake_model):
    data = rasters.values((3, 128, 160), "uint8")
    result = run(item, feature_dtype="float32")
    pixels = torch.from_numpy(data[:, 32:96, 64:128].astype("float32"))  # row 1, col 2
    expected = torch.nn.functional.avg_pool2d(pixels, 4)
    assert torch.equal(feature(result, "chip_000006")["high_res_feats_0"], expected)
    # The calling thread owns the device, no other.
    assert len(fake_model.encoder.threads) == 1
    assert not any(name.startswith("geosam-") for name in fake_model.encoder.threads)


def test_features_do_not_depend_on_the_batch_size(tmp_path, run, item, fake_model):
    sums = []
    for size in (1, 3, 5):
        result = run(item, batch_size=size, out=str(tmp_path / f"out{size}"))
        sums.append(list(manifest_of(result).sha256))
    assert sums[0] == sums[1] == sums[2]
    assert len(set(sums[0])) == 12
    assert fake_model.encoder.batches == [5, 5, 2]


def test_run_json(tmp_path, run, item):
    result = run(item, batch_size=2, checkpoint="untrained:3")
    store = folder_of(result)
    document = json.loads(store.get("run.json"))
    assert document["config"]["stride"] == 32
    assert document["config"]["batch_size"] == 2
    assert set(document["config"]) == set(EncodeConfig().as_dict())
    assert document["run"]["batch_size"] == 2
    assert document["run"]["value_range"] is None
    assert document["run"]["source"] == str(item)
    assert document["run"]["model"]["weights"] == "untrained:3"
    assert document["run"]["chips_encoded"] == 12
    assert set(document["run"]["busy"]) == {"read", "encode", "write"}
    assert result.item.id.endswith(document["run"]["config_digest"][:8])
    assert document["environment"]["python"].startswith("3.")
    assert "torch" in document["environment"]["software"]


def test_the_thumbnail_is_the_scene(tmp_path, run):
    data = np.zeros((3, 64, 160), dtype="uint8")
    data[0, :, :80] = 200  # red left, blue right
    data[2, :, 80:] = 150
    result = run(item_of(tmp_path, data), stride=64)
    store = folder_of(result)
    picture = np.asarray(Image.open(io.BytesIO(store.get("thumbnail.png"))))
    assert picture.shape == (64, 160, 3)
    assert picture[30, 20].tolist() == [200, 0, 0]
    assert picture[30, 150].tolist() == [0, 0, 150]
    assert picture[0, 20].tolist() != [200, 0, 0]  # the chip grid is drawn


class TestSkipped:
    def test_a_nodata_corner(self, tmp_path, run):
        data = rasters.values((3, 128, 160), "uint8")
        data[:, :70, :70] = 0
        events = []
        result = run(item_of(tmp_path, data, nodata=0), events)
        assert (result.chips_encoded, result.chips_skipped) == (11, 1)
        frame, skipped = manifest_of(result), skipped_of(result)
        assert "chip_000000" not in set(frame.chip_id)
        assert list(skipped.chip_id) == ["chip_000000"]
        assert list(skipped.reason) == ["no valid pixel"]
        assert frame.set_index("chip_id").valid_fraction["chip_000005"] == pytest.approx(
            1 - 38 * 38 / 64**2
        )
        assert not (tmp_path / "out" / result.item.id / "scene/features/chip_000000.pt").exists()
        assert result.item.properties["geosam:chips_skipped"] == 1
        assert "skipped" in result.item.assets
        assert [e.outcome for e in events if isinstance(e, ChipDone)].count("skipped") == 1

    def test_all_nodata(self, tmp_path, run, fake_model):
        data = np.full((3, 128, 160), 7, dtype="uint16")
        result = run(item_of(tmp_path, data, nodata=7))
        assert (result.chips_encoded, result.chips_skipped) == (0, 12)
        assert fake_model.encoder.batches == []
        # Both: geosam would take a lone skipped.parquet for the manifest.
        assert files(tmp_path / "out" / result.item.id) == sorted(
            [
                "manifest.parquet",
                "run.json",
                f"{result.item.id}.json",
                "skipped.parquet",
                "thumbnail.png",
            ]
        )
        assert len(manifest_of(result)) == 0
        assert len(skipped_of(result)) == 12
        assert result.item.properties["table:row_count"] == 0

    def test_geometry_skips_what_it_does_not_touch_and_reads_it_not(
        self, tmp_path, run, monkeypatch
    ):
        path = item_of(tmp_path, rasters.values((3, 64, 4096), "uint8"))
        monkeypatch.setattr("geosam_stac.budget.LEAST_AREA_PX", 512 * 1024)
        # The two ends of a strip: what lies in the middle serves no chip.
        shapes = [box_lonlat(0, 0, 100, 64), box_lonlat(3996, 0, 4096, 64)]
        area = {"type": "MultiPolygon", "coordinates": [s["coordinates"] for s in shapes]}
        result = run(path, geometry=json.dumps(area), stride=64, max_memory=0.2)
        skipped = skipped_of(result)
        assert set(skipped.reason) == {"outside --geometry"}
        assert list(manifest_of(result).col) == [0, 1, 62, 63]
        assert result.chips_skipped == 60
        assert 3 * 64 * 256 <= result.bytes_read <= 3 * 64 * 4096 * 2 // 3

    def test_stale_skipped_chips_of_a_broken_run_go(self, tmp_path, run, item):
        first = run(item)
        folder = tmp_path / "out" / first.item.id
        (folder / f"{first.item.id}.json").unlink()
        (folder / "skipped.parquet").write_bytes(b"stale")
        run(item)
        assert not (folder / "skipped.parquet").exists()


def box_lonlat(left, top, right, bottom):
    """A window of the test raster, in px, as a GeoJSON polygon."""
    from odc.geo.geom import box

    a = rasters.NORTH_UP
    (x0, y0), (x1, y1) = a @ (left, bottom), a @ (right, top)
    return box(x0, y0, x1, y1, rasters.UTM14).to_crs("EPSG:4326").json


class TestValueRange:
    def two_chips(self, tmp_path):
        """Left chip 100..200, right chip 1000..5100; a nodata value far beyond."""
        data = np.full((1, 64, 128), 100, dtype="uint16")
        data[0, :, 32:64] = 200
        data[0, :, 64:] = 1000
        data[0, :, 96:] = 5100
        data[0, 0, 0] = 65535
        return item_of(tmp_path, data, nodata=65535)

    def values(self, result):
        return [
            feature(result, chip)["high_res_feats_1"][0, 4, [0, -1]].round().tolist()
            for chip in ("chip_000000", "chip_000001")
        ]

    def test_auto_is_one_for_the_whole_scene(self, tmp_path, run):
        result = run(self.two_chips(tmp_path), stride=64, feature_dtype="float32")
        # (v - 100) / 5000 * 255
        assert self.values(result) == [[0, 5], [46, 255]]
        assert result.item.properties["geosam:value_range"] == [100.0, 5100.0]
        assert result.bytes_read == 2 * 64 * 128  # measured and encoded of one read

    def test_neighbours_agree_where_they_overlap(self, tmp_path, run):
        result = run(self.two_chips(tmp_path), stride=32, feature_dtype="float32")
        left, middle = (feature(result, f"chip_{i:06d}")["high_res_feats_1"] for i in (0, 1))
        assert torch.equal(left[:, :, 4:], middle[:, :, :4])

    def test_fixed(self, tmp_path, run):
        result = run(
            self.two_chips(tmp_path), stride=64, value_range="0,1000", feature_dtype="float32"
        )
        assert self.values(result) == [[26, 51], [255, 255]]
        assert result.item.properties["geosam:value_range"] == [0.0, 1000.0]

    def test_percentiles(self, tmp_path, run):
        result = run(
            self.two_chips(tmp_path), stride=64, value_range="p0,p60", feature_dtype="float32"
        )
        assert result.item.properties["geosam:value_range"] == [100.0, 1000.0]

    def test_a_scene_that_does_not_fit_is_read_twice_and_says_so(self, tmp_path, run, monkeypatch):
        monkeypatch.setattr("geosam_stac.budget.SCAN", 1e-6)
        events = []
        result = run(self.two_chips(tmp_path), events, stride=64)
        assert result.bytes_read == 2 * 2 * 64 * 128
        assert any("reads the scene twice" in e.message for e in events if isinstance(e, Notice))


class TestFinished:
    def test_nothing_is_read_or_loaded_again(self, tmp_path, run, item, fake_model):
        weights = tmp_path / "weights.pt"
        weights.write_bytes(b"some weights")
        first = run(item, checkpoint=str(weights))
        (tmp_path / "scene.tif").rename(tmp_path / "gone.tif")
        rasters.write_tif(tmp_path / "scene.tif", np.zeros((3, 128, 160), "uint8"))
        events = []
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
        again = run(item, events, checkpoint=str(weights))
        assert len(fake_model.loaded) == 1
        assert again.href == first.href
        assert (again.chips_encoded, again.chips_resumed, again.bytes_read) == (0, 12, 0)
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
        assert any("is there already" in e.message for e in events if isinstance(e, Notice))

    def test_overwrite_encodes_again_and_removes_stale_files(self, tmp_path, run, item):
        first = run(item)
        stale = tmp_path / "out" / first.item.id / "scene/features/chip_000999.pt"
        stale.write_bytes(b"stale")
        again = run(item, overwrite=True)
        assert (again.href, again.chips_encoded) == (first.href, 12)
        assert not stale.exists()

    def test_overwrite_that_fails_early_has_cost_nothing(self, tmp_path, run, item, monkeypatch):
        first = run(item)
        before = files(tmp_path / "out")

        def fail(*args, **kwargs):
            raise ConfigurationError("the checkpoint is damaged")

        monkeypatch.setattr("geosam_stac.session.load_encoder", fail)
        with pytest.raises(ConfigurationError):
            run(item, overwrite=True)
        assert files(tmp_path / "out") == before
        assert first.item.id in before[-1]

    def test_another_config_lies_beside_it(self, tmp_path, run, item):
        assert run(item).item.id != run(item, stride=64).item.id

    def test_another_scene_of_the_same_name_is_refused(self, tmp_path, run):
        data = rasters.values((3, 64, 64), "uint8")
        one = item_of(tmp_path, data, name="scene")
        run(one)
        other = json.loads(one.read_text()) | {"collection": "elsewhere"}
        one.write_text(json.dumps(other))
        with pytest.raises(DataError, match="another scene") as raised:
            run(one)
        assert "Give another --out" in str(raised.value)

    def test_an_item_that_cannot_be_read(self, tmp_path, run, item):
        first = run(item)
        path = tmp_path / "out" / first.item.id / f"{first.item.id}.json"
        path.write_bytes(b'{"type": "Fea')
        with pytest.raises(DataError, match="--overwrite"):
            run(item)
        assert run(item, overwrite=True).chips_encoded == 12


class TestFailures:
    """Each stage's failure ends the run at once, threads and all, and no Item is there."""

    @pytest.fixture
    def big(self, tmp_path):
        """1024 chips: far more than the queues hold."""
        return item_of(tmp_path, rasters.values((1, 64, 64 * 256), "uint8"))

    def no_item(self, tmp_path):
        assert not list((tmp_path / "out").glob("*/*.json"))
        assert not list((tmp_path / "out").rglob("*.tmp"))

    def test_reader(self, tmp_path, run, big, monkeypatch):
        from geosam_stac.cube import CubeReader

        calls = []

        def read(self, window):
            calls.append(window)
            if len(calls) > 1:
                raise TemporaryError("the asset could not be read", item="scene", href="x.tif")
            return real(self, window)

        real = CubeReader.read
        monkeypatch.setattr(CubeReader, "read", read)
        with pytest.raises(TemporaryError, match=r"x\.tif"):
            run(big, stride=16)
        self.no_item(tmp_path)

    def test_device(self, tmp_path, run, big, fake_model):
        seen = []

        def before(count):
            seen.append(count)
            if len(seen) == 5:
                raise TemporaryError("cuda:0 failed or was lost")

        fake_model.before = before
        started = time.monotonic()
        with pytest.raises(TemporaryError, match="item scene") as raised:
            run(big, stride=16)
        assert raised.value.chip == "chip_000004"
        assert time.monotonic() - started < 5
        assert len(seen) == 5
        self.no_item(tmp_path)

    def test_device_out_of_memory_at_batch_1(self, tmp_path, run, big, fake_model):
        def before(count):
            raise DeviceOutOfMemoryError("out of memory")

        fake_model.before = before
        with pytest.raises(TemporaryError) as raised:
            run(big, stride=16, batch_size=4)
        assert (raised.value.item, raised.value.chip) == ("scene", "chip_000000")

    def test_writer(self, tmp_path, run, big, monkeypatch, fake_model):
        puts = []

        def put(self, key, data, **how):
            puts.append(key)
            if len(puts) == 10:
                raise StorageError("writing failed: the disk is full", href=self.href(key))
            return real(self, key, data, **how)

        real = LocalBackend._write
        monkeypatch.setattr(LocalBackend, "_write", put)
        with pytest.raises(StorageError, match="disk is full") as raised:
            run(big, stride=16)
        assert raised.value.exit_code == 74
        assert raised.value.item == "scene"
        assert raised.value.chip.startswith("chip_0000")
        assert len(fake_model.encoder.batches) < 100  # stopped, not drained
        self.no_item(tmp_path)

    @pytest.mark.parametrize("last", ["manifest.parquet", "thumbnail.png", "run.json", "_.json"])
    def test_the_last_files(self, tmp_path, run, item, monkeypatch, last):
        def put(self, key, data, **how):
            if key.endswith(last if last != "_.json" else f"/{key.partition('/')[0]}.json"):
                raise StorageError("writing failed: the disk is full", href=self.href(key))
            return real(self, key, data, **how)

        real = LocalBackend._write
        monkeypatch.setattr(LocalBackend, "_write", put)
        with pytest.raises(StorageError):
            run(item)
        assert not [p for p in files(tmp_path / "out") if p.endswith("tiny.json")]
        assert not list((tmp_path / "out").glob("*/scene_*.json"))
        monkeypatch.undo()

    def test_a_full_disk_leaves_no_partial_feature(self, tmp_path, run, item, monkeypatch):
        """Below the Store: the bytes themselves do not fit."""
        import errno
        import os

        real = os.fsync
        count = []

        def fsync(descriptor):
            count.append(descriptor)
            if len(count) > 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="disk is full"):
            run(item)
        self.no_item(tmp_path)
        for path in (tmp_path / "out").rglob("*.pt"):
            from_pt(path.read_bytes())

    def test_the_first_error_is_the_one_raised(self, tmp_path, run, big, monkeypatch, fake_model):
        """The writer's error makes the others stop; what they say then is no news."""
        failed = threading.Event()

        def put(self, key, data, **how):
            if key.endswith(".pt"):
                failed.set()
                raise StorageError("the first")
            return real(self, key, data, **how)

        def before(count):
            if failed.wait(0.01):
                time.sleep(0.05)
                raise TemporaryError("the second")

        real = LocalBackend._write
        monkeypatch.setattr(LocalBackend, "_write", put)
        fake_model.before = before
        with pytest.raises(StorageError, match="the first"):
            run(big, stride=16)

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), Interrupted("terminated", signum=15)], ids=["int", "term"]
    )
    def test_an_interruption_stops_all_quickly(self, tmp_path, run, big, fake_model, error):
        seen = []

        def before(count):
            seen.append(count)
            if len(seen) == 5:
                raise error

        fake_model.before = before
        started = time.monotonic()
        with pytest.raises(type(error)):
            run(big, stride=16)
        assert time.monotonic() - started < 5
        self.no_item(tmp_path)

    def test_a_thread_stuck_in_a_request_is_left_behind(
        self, tmp_path, item, fake_model, monkeypatch
    ):
        stuck = threading.Event()

        def put(self, key, data, **how):
            stuck.wait(30)

        monkeypatch.setattr("geosam_stac.crew.STOP_S", 0.3)
        session = fake_session(tmp_path)
        scene = session.scene(str(item))
        chips = []

        def slow(count):
            chips.append(count)
            if len(chips) == 3:
                raise KeyboardInterrupt

        fake_model.before = slow
        monkeypatch.setattr(LocalBackend, "_write", put)
        monkeypatch.setattr(Store, "check_writable", lambda self: None)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            encode_scene(session, scene, session.config)
        assert time.monotonic() - started < 3
        stuck.set()
        deadline = time.monotonic() + 5
        while workers() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert workers() == []


def test_queues_are_bounded(tmp_path, run, monkeypatch, fake_model):
    """With a store that stands still, neither the device nor the reader runs ahead."""
    path = item_of(tmp_path, rasters.values((1, 64, 64 * 64), "uint8"))
    gate = threading.Event()
    made = []
    real_chip = scene_run.make_chip

    def make_chip(*args, **kwargs):
        made.append(1)
        return real_chip(*args, **kwargs)

    def put(self, key, data, **how):
        if key.endswith(".pt"):
            gate.wait(10)
        return real(self, key, data, **how)

    real = LocalBackend._write
    monkeypatch.setattr(LocalBackend, "_write", put)
    monkeypatch.setattr(scene_run, "make_chip", make_chip)
    seen = []

    def watch():
        time.sleep(1.0)
        seen.append((len(made), sum(fake_model.encoder.batches)))
        gate.set()

    threading.Thread(target=watch).start()
    result = run(path, stride=32, batch_size=2)
    assert result.chips_encoded == 127
    read, encoded = seen[0]
    # In the writers' hands, in their queue (2 batches and 2), one batch at the door.
    assert encoded <= WRITERS[1] + 6 + 2
    # One batch being gathered, their queue (2 batches), one in the reader's hand.
    assert read <= encoded + 2 + 4 + 1


def test_out_is_needed(tmp_path, item):
    session = fake_session(tmp_path, out=None)
    with pytest.raises(UsageError, match="--out is missing"):
        encode_scene(session, session.scene(str(item)), session.config)


def test_one_model_for_two_scenes(tmp_path, fake_model):
    data = rasters.values((1, 64, 64), "uint8")
    with fake_session(tmp_path) as session:
        results = [
            encode_scene(
                session, session.scene(str(item_of(tmp_path, data, name=name))), session.config
            )
            for name in ("one", "two")
        ]
    assert len(fake_model.loaded) == 1
    assert len({result.href for result in results}) == 2


def test_a_small_scene_is_enlarged(tmp_path, run):
    path = item_of(tmp_path, np.full((1, 16, 32), 80, "uint8"), transform=Affine(5, 0, 0, 0, -5, 0))
    result = run(path)
    (row,) = manifest_of(result).itertuples()
    assert json.loads(row.shape) == [16, 32]
    assert json.loads(row.dst_shape) == [64, 64]
    embed = feature(result, "chip_000000")["image_embed"]
    assert embed[0, 0].tolist() == [80, 80, 80, 80]
    assert embed[0, 3].tolist() == [0, 0, 0, 0]  # padded below


class TestResume:
    """A run that broke off is continued: what is there and whole is not encoded again."""

    @pytest.fixture
    def broken(self, tmp_path, run, item, fake_model):
        """A run that fails at its eighth of twelve chips."""
        encoded = []

        def before(chips):
            encoded.append(chips)
            if len(encoded) > 7:
                raise TemporaryError("the device was lost")

        fake_model.before = before
        with pytest.raises(TemporaryError, match="lost"):
            run(item)
        fake_model.before = lambda chips: None
        return next((tmp_path / "out").iterdir())

    @pytest.fixture
    def clean(self, run, item, tmp_path):
        result = run(item, out=str(tmp_path / "clean"))
        return {path.name: path.read_bytes() for path in Path(result.href).parent.rglob("*.pt")}

    def test_only_what_is_missing_is_encoded_and_the_result_is_the_clean_runs(
        self, run, item, broken, clean, fake_model
    ):
        there = {path.name for path in broken.rglob("*.pt")}
        assert 1 <= len(there) < 12
        events = []
        result = run(item, events)
        assert (result.chips_encoded, result.chips_resumed) == (12 - len(there), len(there))
        assert sum(fake_model.encoder.batches) == 12 - len(there)
        found = {path.name: path.read_bytes() for path in Path(result.href).parent.rglob("*.pt")}
        assert found == clean
        assert manifest_of(result).chip_id.tolist() == [f"chip_{n:06d}" for n in range(12)]
        assert not (broken / "journal").exists()
        assert any("from an earlier run" in getattr(event, "message", "") for event in events)

    def test_the_folder_of_a_record_that_was_just_deleted_goes_too(self, run, item, broken):
        run(item)
        (broken / "journal").mkdir()  # killed between its files and itself
        assert run(item).chips_encoded == 0
        assert not (broken / "journal").exists()

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
    def test_an_object_that_is_not_as_recorded_is_encoded_again(
        self, run, item, broken, clean, damage
    ):
        victim = sorted(broken.rglob("*.pt"))[0]
        data = victim.read_bytes()
        if damage == "truncated":
            victim.write_bytes(data[:-1])
        elif damage == "flipped":
            victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            victim.unlink()
        result = run(item)
        found = {path.name: path.read_bytes() for path in Path(result.href).parent.rglob("*.pt")}
        assert found == clean

    def test_objects_that_no_journal_knows_are_encoded_again(self, run, item, broken):
        for part in (broken / "journal").iterdir():
            part.write_text("not json\n" + '{"chip_id": "chip_000000"}\n')
        assert run(item).chips_encoded == 12

    def test_overwrite_starts_anew(self, run, item, broken):
        assert run(item, overwrite=True).chips_encoded == 12

    def test_another_config_knows_nothing_of_it(self, run, item, broken):
        assert run(item, stride=64, value_range="0,100").chips_resumed == 0

    @pytest.mark.parametrize("victims", [1, 12])
    def test_features_that_were_deleted_are_noticed(self, run, item, clean, victims):
        result = run(item)
        for path in sorted(Path(result.href).parent.rglob("*.pt"))[:victims]:
            path.unlink()
        events = []
        again = run(item, events)
        assert (again.chips_encoded, again.chips_resumed) == (victims, 12 - victims)
        said = [event.message for event in events if getattr(event, "level", "") == "warning"]
        assert any(f"{victims} of its 12 features are gone" in message for message in said)
        found = {path.name: path.read_bytes() for path in Path(again.href).parent.rglob("*.pt")}
        assert found == clean
        assert run(item).chips_encoded == 0

    def test_a_manifest_that_was_deleted_is_noticed(self, run, item):
        result = run(item)
        (Path(result.href).parent / "manifest.parquet").unlink()
        assert run(item).chips_encoded == 12


def test_only_the_published_weights_are_derived_from(run, item):
    links = {link.rel: link for link in run(item).item.links if link.rel == "derived_from"}
    assert "fbaipublicfiles" not in links["derived_from"].target


def test_the_manifest_names_the_raster(run, item):
    manifest = manifest_of(run(item))
    assert set(manifest.source_path) == {str(item.with_suffix(".tif"))}


def test_a_scan_that_fails_stops_reads_that_are_tried_again(tmp_path, run, monkeypatch):
    """They went on for minutes, beside the next scene; and the files stayed open."""
    wide = item_of(tmp_path, rasters.values((3, 64, 4200)))  # three tiles
    trying, closed = threading.Event(), []

    def load(sources, window, *of_the_scene, fresh):
        if window.col_off == 0:
            assert trying.wait(TIMEOUT_S)
            raise DataError("the first tile is damaged")
        trying.set()
        error = TemporaryError("no answer")
        error.retry_after_s = 60.0
        raise error

    monkeypatch.setattr(band_groups, "load", load)

    def close(files):
        closed.append(files)

    monkeypatch.setattr(KeptFiles, "close", close)
    with pytest.raises(DataError, match="damaged"):  # `run` sees that no thread is left
        run(wide)
    assert closed
