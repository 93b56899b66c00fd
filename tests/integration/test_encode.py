"""The main job end to end: NAIP with real models, to a folder, to S3 and to Google's store."""

from __future__ import annotations

import hashlib
import io
import json
import math
from functools import lru_cache
from pathlib import Path

import fsspec
import geopandas
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

import geosam_stac as gs
from geosam_stac import encoders
from geosam_stac.cli import app
from geosam_stac.cli.guard import run
from geosam_stac.features import from_pt
from geosam_stac.storage import Store
from tests import stac_schemas
from tests.servers import (
    gcs_endpoint,  # noqa: F401  (a fixture)
    s3_endpoint,  # noqa: F401  (a fixture)
    s3_keys,
    s3_uploads,
    use_gcs,
    use_s3,
)

NAIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "naip"
ITEM = NAIP / "item.json"
TIF = NAIP / "m_4709963_se_14_1_20200831.tif"
TINY = ("--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "--device", "cpu")
SHAPES = {
    "image_embed": (256, 64, 64),
    "high_res_feats_0": (32, 256, 256),
    "high_res_feats_1": (64, 128, 128),
}

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not ITEM.is_file(), reason="../shared/data/naip is not here"),
]


@pytest.fixture(autouse=True)
def _one_load_a_model(monkeypatch):
    monkeypatch.setattr("geosam_stac.session.load_encoder", _load)


@lru_cache(maxsize=1)
def _load(entry, weights, **options):
    return encoders.load_encoder(entry, weights, **options)


@pytest.fixture
def encode(capsys):
    """Run `encode` on NAIP; the new Item's document and the store of its folder."""

    def call(out: object, *options: str) -> tuple[dict, Store]:
        capsys.readouterr()
        argv = ["encode", "--item", str(ITEM), "--out", str(out), *options]
        code = run(app(), argv)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        (href,) = captured.out.split()
        folder, _, name = href.rpartition("/")
        store = Store(folder)
        return json.loads(store.get(name)), store

    return call


def check(document: dict, store: Store, *, chips: int, features=SHAPES) -> geopandas.GeoDataFrame:
    """Item valid, every object there and as the manifest says; the manifest."""
    assert len(stac_schemas.validate(document)) > 3
    properties = document["properties"]
    assert properties["geosam:weights"] == "untrained"
    assert properties["geosam:source_items"] == ["nd_m_4709963_se_14_1_20200831_5m"]
    assert properties["table:row_count"] == chips
    for asset in document["assets"].values():
        data = store.get(asset["href"].removeprefix("./"))
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    frame = geopandas.read_parquet(io.BytesIO(store.get("manifest.parquet")))
    assert len(frame) == chips
    for row in frame.itertuples():
        data = store.get(row.feature_href)
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert row.feature_path == store.href(row.feature_href)
        tensors, metadata = from_pt(data)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == features
        assert str(next(iter(tensors.values())).dtype) == "torch.float16"
        assert metadata.checkpoint_path == row.checkpoint_path
        height, width = json.loads(row.shape)
        assert metadata.src_shape == (height, width)
        bounds = rasterio.transform.array_bounds(height, width, Affine(*json.loads(row.transform)))
        assert row.geometry.bounds == bounds
    return frame


def test_the_whole_item(tmp_path, encode):
    document, store = encode(tmp_path / "out", "--bands", "red,green,blue", *TINY)
    (row,) = check(document, store, chips=1).itertuples()
    with rasterio.open(TIF) as source:
        assert json.loads(row.transform) == list(source.transform)[:6]
        assert json.loads(row.shape) == list(source.shape)
        assert row.crs == source.crs.to_string() == "EPSG:26914"
    assert row.checkpoint_path == "sam2.1_t.pt"
    assert row.model_type == "sam2"
    assert document["properties"]["geosam:bands"] == ["Red", "Green", "Blue"]
    assert document["properties"]["geosam:value_range"] is None
    assert document["properties"]["geosam:resolution"] == 5.0
    links = {link["rel"]: link["href"] for link in document["links"]}
    assert links["self"] == store.href(f"{document['id']}.json")
    # And again: nothing is left to do.
    again, _ = encode(tmp_path / "out", "--bands", "red,green,blue", *TINY)
    assert again == document


@pytest.mark.slow
def test_sam_vit_b(tmp_path, encode):
    options = ("--model", "sam-vit-base", "--checkpoint", "untrained", "--device", "cpu")
    document, store = encode(tmp_path, "--bands", "red,green,blue", *options)
    frame = check(document, store, chips=1, features={"image_embed": (256, 64, 64)})
    assert frame.model_type[0] == "sam"
    assert frame.checkpoint_path[0] == "sam_b.pt"


def test_another_crs_and_resolution(tmp_path, encode):
    # 3 m in Web Mercator at 47 N are 2 m on the ground: 1.5 km make two chips.
    corners = (-99.160, 47.015, -99.1415, 47.0235)
    box = ",".join(map(str, corners))
    document, store = encode(
        tmp_path, "--crs", "EPSG:3857", "--resolution", "3", f"--bbox={box}",
        "--chip-size", "512", "--stride", "512", *TINY,
    )  # fmt: skip
    to_mercator = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    west, south, east, north = to_mercator.transform_bounds(*corners)
    cols = math.ceil((east - west) / 3 / 512)
    rows = math.ceil((north - south) / 3 / 512)
    assert (rows, cols) == (1, 2)
    frame = check(document, store, chips=2)
    assert frame.crs == "EPSG:3857"
    assert set(frame["shape"]) == {f"[{frame_rows(north - south)}, 512]"}
    left, bottom, right, top = frame.total_bounds
    for ours, asked in ((left, west), (bottom, south), (right, east), (top, north)):
        assert abs(ours - asked) <= 3
    assert all(value % 3 == 0 for value in (left, bottom, right, top))
    assert document["properties"]["proj:code"] == "EPSG:3857"
    assert document["properties"]["geosam:resolution"] == 3.0


def frame_rows(metres: float) -> int:
    """Rows of 3 m whose edges lie on multiples of 3 m, for an extent that does not."""
    return math.ceil(metres / 3) + 1


def test_near_infrared_alone_in_a_corner(tmp_path, encode):
    with rasterio.open(TIF) as source:
        window = rasterio.windows.Window(source.width - 300, 0, 300, 200)
        bounds = rasterio.windows.bounds(window, source.transform)
        transform = source.window_transform(window)
    box = ",".join(map(repr, map(float, bounds)))
    document, store = encode(
        tmp_path, "--bands", "nir", f"--bbox={box}", "--bbox-crs", "EPSG:26914", *TINY
    )
    (row,) = check(document, store, chips=1).itertuples()
    assert json.loads(row.shape) == [200, 300]
    assert json.loads(row.transform) == list(transform)[:6]
    assert document["properties"]["geosam:bands"] == ["NIR"]


def test_to_s3(encode, s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    document, store = encode("s3://bucket/naip/features", *TINY)
    check(document, store, chips=1)
    prefix = f"naip/features/{document['id']}/"
    keys = [key for key in s3_keys(s3_endpoint) if key.startswith("naip/")]
    assert sorted(key.removeprefix(prefix) for key in keys) == sorted(
        [
            f"{document['id']}.json",
            "manifest.parquet",
            "nd_m_4709963_se_14_1_20200831_5m/features/chip_000000.pt",
            "run.json",
            "thumbnail.png",
        ]
    )
    assert s3_uploads(s3_endpoint) == []
    links = {link["rel"]: link["href"] for link in document["links"]}
    assert links["self"] == f"s3://bucket/{prefix}{document['id']}.json"


def test_to_google_cloud_storage(encode, gcs_endpoint, monkeypatch):  # noqa: F811
    use_gcs(monkeypatch, gcs_endpoint)
    document, store = encode("gs://bucket/naip", *TINY)
    check(document, store, chips=1)
    found = fsspec.filesystem("gs", skip_instance_cache=True).find(f"bucket/naip/{document['id']}")
    assert len(found) == 5


def test_from_python(tmp_path):
    result = gs.encode(
        ITEM, model="sam2.1-hiera-tiny", checkpoint="untrained", out=tmp_path, device="cpu"
    )
    assert result.chips_encoded == 1
    assert result.bytes_read == 3 * 723 * 934
    assert result.seconds["encode"] > 0
    check(json.loads(Path(result.href).read_text()), Store(str(Path(result.href).parent)), chips=1)
