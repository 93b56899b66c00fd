"""The dry run against sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest

from geosam_stac.config import EncodeConfig
from geosam_stac.encoders import rate
from geosam_stac.errors import UsageError
from geosam_stac.planning import OVERHEAD_BYTES, chips_outside
from geosam_stac.session import Session
from geosam_stac.sources.groups import Group
from tests import rasters
from tests.fakes import fake_session

pytestmark = pytest.mark.usefixtures("fake_model")

SHARED_ITEMS = Path(__file__).resolve().parents[2] / "shared" / "data" / "items"


@pytest.fixture
def item(tmp_path):
    """A 300 x 200 px Item of three uint16 bands of which no file exists."""
    asset = rasters.asset(
        tmp_path / "none.tif",
        bands=[{"name": name, "data_type": "uint16"} for name in ("a", "b", "c")],
        **rasters.projection(rasters.NORTH_UP, (200, 300)),
    )
    return rasters.write_item(tmp_path / "item.json", {"image": asset})


def plan(tmp_path, item, rate=None, **options):
    with fake_session(tmp_path, **options) as session:
        return session.plan(item, device_tflops=rate)


def test_numbers(tmp_path, item, fake_model):
    found = plan(tmp_path, item, rate=2.0)
    # Starts 0, 32 ... 224, then 236, flush: 300 - 64 = 236. 0, 32 ... 128, then 136.
    assert (found.rows, found.cols) == (6, 9)
    assert (found.chips, found.chips_outside) == (54, 0)
    assert (found.width, found.height) == (300, 200)
    assert (found.chip_px, found.stride_px) == (64, 32)
    assert (found.resolution, found.unit, found.crs) == (10.0, "m", "EPSG:32614")
    assert found.bytes_to_read == 300 * 200 * 3 * 2
    tensors = 3 * (4 * 4 + 16 * 16 + 8 * 8) * 2
    assert found.bytes_to_write == 54 * (tensors + OVERHEAD_BYTES["pt"] + 400)
    assert found.objects == 54 + 4
    assert found.estimated_seconds == 54 * 0.5 / 2.0
    assert found.notices == ()
    assert json.loads(json.dumps(found.as_dict()))["chips"] == 54
    assert fake_model.loaded == []


@pytest.mark.parametrize(
    ("options", "tensor_bytes"),
    [
        ({"feature_dtype": "int8"}, 3 * (4 * 4 + 16 * 16 + 8 * 8)),
        ({"levels": "embedding"}, 3 * 4 * 4 * 2),
        ({"levels": "embedding", "feature_dtype": "float32"}, 3 * 4 * 4 * 4),
    ],
)
def test_safetensors_bytes(tmp_path, item, fake_model, options, tensor_bytes):
    found = plan(tmp_path, item, format="safetensors", **options)
    assert found.bytes_to_write == 54 * (tensor_bytes + OVERHEAD_BYTES["safetensors"] + 400)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("sam2.1-hiera-small", {}, (1024, 512)),
        ("sam3", {}, (1008, 504)),
        ("sam3", {"stride": 1008}, (1008, 1008)),
        ("sam3", {"chip_size": 600}, (600, 504)),
    ],
)
def test_stride_follows_the_model(tmp_path, item, model, options, expected):
    with Session(EncodeConfig(model=model, **options), cache_dir=tmp_path) as session:
        found = session.plan(item)
    assert (found.chip_px, found.stride_px) == expected


def test_without_a_rate_there_is_no_estimate(tmp_path, item):
    assert plan(tmp_path, item).estimated_seconds is None


def test_the_estimate_of_bytes_is_near_what_is_written(tmp_path):
    data = rasters.values((3, 200, 300), "uint8")
    tif = rasters.write_tif(tmp_path / "a.tif", data)
    item = rasters.write_item(
        tmp_path / "real.json",
        {"image": rasters.asset(tif, **rasters.named_bands("red", "green", "blue"))},
    )
    from geosam_stac.pipeline import encode_scene

    with fake_session(tmp_path) as session:
        found = session.plan(item)
        result = encode_scene(session, session.scene(item), session.config)
    assert found.chips == result.chips_encoded
    assert found.bytes_to_read == result.bytes_read
    assert found.bytes_to_write == pytest.approx(result.bytes_written, rel=0.5)


def test_dtype_doubles_the_tensors(tmp_path, item):
    small, large = (
        plan(tmp_path, item, feature_dtype=dtype).bytes_to_write for dtype in ("float16", "float32")
    )
    assert large - small == 54 * 3 * (16 + 256 + 64) * 2


def test_a_coarser_grid_reads_an_overview(tmp_path, item):
    # 50 m of 10 m: shrink 5, overview 4; 300 x 200 px / 16.
    found = plan(tmp_path, item, resolution=50.0)
    assert (found.width, found.height) == (60, 40)
    assert found.bytes_to_read == round(300 * 200 / 16 * 3 * 2)


def test_all_items_of_a_mosaic_and_their_masks_are_read(tmp_path, item):
    document = json.loads(item.read_text())
    mask = rasters.asset(
        tmp_path / "scl.tif",
        bands=[{"name": "scl", "data_type": "uint8"}],
        **rasters.projection(rasters.NORTH_UP, (200, 300)),
    )
    document["assets"]["scl"] = mask
    members = [pystac.Item.from_dict(document | {"id": name}) for name in ("one", "two")]
    bands, scl = 300 * 200 * 3 * 2, 300 * 200
    one = plan(tmp_path, members[0], bands="a,b,c", mask="scl:3")
    assert one.bytes_to_read == bands + scl
    group = Group(id="both", items=tuple(members))
    assert plan(tmp_path, group, bands="a,b,c").bytes_to_read == 2 * bands
    assert plan(tmp_path, group, bands="a,b,c", mask="scl:3").bytes_to_read == 2 * (bands + scl)


def test_bbox_in_the_native_crs(tmp_path, item):
    box = (500_000.0, 5_199_360.0, 500_640.0, 5_200_000.0)  # 64 x 64 px
    found = plan(tmp_path, item, bbox=box, bbox_crs="EPSG:32614")
    assert (found.width, found.height, found.chips) == (64, 64, 1)
    assert found.bytes_to_read == 64 * 64 * 3 * 2


def test_too_many_chips(tmp_path, item):
    with pytest.raises(UsageError) as raised:
        plan(tmp_path, item, max_chips=53)
    assert str(raised.value) == (
        "the plan has 54 chips: 6 x 9 of 64 px at stride 32, on 300 x 200 px (item scene-1); "
        "expected at most 53. Narrow --bbox, give a coarser --resolution or larger --stride, or "
        "raise --max-chips."
    )
    assert plan(tmp_path, item, max_chips=54).chips == 54


def test_chip_size(tmp_path, item):
    assert plan(tmp_path, item, chip_size=32).chips == 6 * 2 * 5 + 10
    with pytest.raises(UsageError, match="larger than the input"):
        plan(tmp_path, item, chip_size=65)
    found = plan(tmp_path, item, chip_size=40)
    assert any("40 x 40 px are enlarged to the model's 64 px" in text for text in found.notices)


def test_chips_outside_the_geometry_cost_nothing(tmp_path, item):
    from odc.geo.geom import box

    x, y = rasters.NORTH_UP.c, rasters.NORTH_UP.f
    corners = [(x, y - 600, x + 600, y), (x + 2400, y - 2000, x + 3000, y - 1400)]
    shapes = [box(*corner, rasters.UTM14).to_crs("EPSG:4326").json for corner in corners]
    area = {"type": "MultiPolygon", "coordinates": [shape["coordinates"] for shape in shapes]}
    found = plan(tmp_path, item, rate=1.0, geometry=json.dumps(area))
    assert (found.rows, found.cols) == (6, 9)
    assert found.chips + found.chips_outside == 54
    assert 4 <= found.chips <= 16
    assert found.estimated_seconds == found.chips * 0.5
    assert found.objects == found.chips + 5


def test_chips_outside_without_an_area(tmp_path, item):
    with fake_session(tmp_path) as session:
        assert chips_outside(session.scene(item, read_headers=False), iter(())) == set()


def test_an_unknown_dtype_is_said(tmp_path):
    grid = rasters.projection(rasters.NORTH_UP, (64, 64))
    asset = rasters.asset("x.tif", **rasters.named_bands("red"), **grid)
    item = rasters.write_item(tmp_path / "item.json", {"image": asset})
    found = plan(tmp_path, item)
    assert "does not tell the data type: uint16 is assumed" in found.notices[0]
    assert found.bytes_to_read == 64 * 64 * 2


@pytest.mark.shared
@pytest.mark.skipif(not SHARED_ITEMS.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize("path", sorted(SHARED_ITEMS.glob("*.json")), ids=lambda p: p.name[:12])
def test_real_items_need_no_network(tmp_path, path, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a dry run opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("rasterio.open", refuse)
    found = plan(tmp_path, path, model="sam2.1-hiera-small", stride=512)
    assert found.chips == found.rows * found.cols
    assert found.width > 1000
    assert found.bytes_to_read >= found.width * found.height * len(found.bands)


def test_the_rate_of_an_encoder():
    # In fp32 two thirds are products; in bf16 they alone get faster.
    assert rate.expected_rate(1.0, 1.0) == pytest.approx(2 / 3)
    assert rate.expected_rate(1.0, 4.0) == pytest.approx(4 / 3)
    assert rate.expected_rate(1.0, 1e9) < 2.0
    assert rate.expected_rate(1.0, 0.1) < 0.1  # a CPU without bf16 units


def test_the_rate_is_measured(monkeypatch):
    monkeypatch.setattr(rate, "MEASURE_S", 0.01)
    monkeypatch.setitem(rate.SIZES, "cpu", 128)
    found = rate.encoder_tflops("cpu", "fp32")
    assert np.isfinite(found)
    assert 1e-5 < found < 100
    assert rate.encoder_tflops("cpu", "bf16") > 0
