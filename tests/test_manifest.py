from __future__ import annotations

import io
import json
from pathlib import Path

import geopandas as gpd
import pyarrow.parquet as pq
import pytest
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geosam_stac import manifest
from geosam_stac.errors import DataError
from geosam_stac.manifest import COLUMNS, SKIPPED_COLUMNS, read, skipped_parquet, to_parquet
from geosam_stac.types import ChipRef, EncoderSpec, ManifestRow, SkippedRow, TensorSpec, Window

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Required by geosam 0.1.3 (engines.MANIFEST_REQUIRED_COLUMNS).
GEOSAM_COLUMNS = [
    "feature_path",
    "chip_id",
    "source_path",
    "checkpoint_path",
    "model_type",
    "transform",
    "shape",
    "crs",
    "dst_shape",
    "chip_center_x",
    "chip_center_y",
    "geometry",
]
SPEC = EncoderSpec(
    name="sam2.1-hiera-tiny",
    family="sam2",
    weights_sha256="0" * 64,
    weights="upstream",
    checkpoint_name="sam2.1_t.pt",
    input_px=1024,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    outputs=(TensorSpec(name="image_embed", shape=(256, 64, 64), stride_px=16),),
)
SCENE = GeoBox((1536, 1024), Affine(10, 0, 500000, 0, -10, 4200000), "EPSG:32610")


def make_ref(index: int, geobox: GeoBox = SCENE) -> ChipRef:
    window = Window(row_off=512 * index, col_off=0, height=1024, width=1024)
    return ChipRef(
        chip_id=f"chip_{index:06d}",
        row=index,
        col=0,
        window=window,
        geobox=geobox[512 * index : 512 * index + 1024, 0:1024],
    )


def make_row(index: int, geobox: GeoBox = SCENE) -> ManifestRow:
    ref = make_ref(index, geobox)
    return ManifestRow(
        ref=ref,
        feature_href=f"scene/features/{ref.chip_id}.pt",
        valid_fraction=0.75,
        bytes=5_000_000_000,
        sha256=f"{index:064x}",
    )


def write(rows, crs=SCENE.crs) -> bytes:
    return to_parquet(
        rows,
        crs=crs,
        spec=SPEC,
        source_path="https://h/items/scene",
        feature_path=lambda chip_id: f"/out/scene/features/{chip_id}.pt",
    )


def test_columns_are_geosams_then_ours():
    names = [column.name for column in COLUMNS]
    assert names[:12] == GEOSAM_COLUMNS
    assert names[12:] == ["feature_href", "row", "col", "valid_fraction", "bytes", "sha256"]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
def test_columns_are_those_of_the_example_item():
    example = json.loads((SHARED / "spec" / "item.example.json").read_text())
    columns = example["assets"]["manifest"]["table:columns"]
    assert [(c.name, c.type) for c in COLUMNS] == [(c["name"], c["type"]) for c in columns]


@pytest.mark.parametrize("rows", [[], [make_row(0)]], ids=["none", "one"])
def test_parquet_types_hold_with_and_without_rows(rows):
    schema = pq.read_schema(io.BytesIO(write(rows)))
    assert schema.names == [column.name for column in COLUMNS]
    arrow = {
        "string": ("string", "large_string"),
        "double": ("double",),
        "float": ("float",),
        "binary": ("binary",),
        "int32": ("int32",),
        "int64": ("int64",),
    }
    for column in COLUMNS:
        assert str(schema.field(column.name).type) in arrow[column.type], column.name
    physical = pq.ParquetFile(io.BytesIO(write(rows))).schema
    assert {
        physical.column(i).physical_type for i, c in enumerate(COLUMNS) if c.type == "string"
    } == {"BYTE_ARRAY"}


def test_values():
    frame = read(write([make_row(1), make_row(0)]))
    assert frame.crs.to_epsg() == 32610
    assert list(frame.chip_id) == ["chip_000000", "chip_000001"]
    row = frame.iloc[1].to_dict()
    assert row.pop("geometry").bounds == (500000, 4184640, 510240, 4194880)
    assert row == {
        "feature_path": "/out/scene/features/chip_000001.pt",
        "chip_id": "chip_000001",
        "source_path": "https://h/items/scene",
        "checkpoint_path": "sam2.1_t.pt",
        "model_type": "sam2",
        "transform": "[10.0, 0.0, 500000.0, 0.0, -10.0, 4194880.0]",
        "shape": "[1024, 1024]",
        "crs": "EPSG:32610",
        "dst_shape": "[1024, 1024]",
        "chip_center_x": 505120.0,
        "chip_center_y": 4189760.0,
        "feature_href": "scene/features/chip_000001.pt",
        "row": 1,
        "col": 0,
        "valid_fraction": 0.75,
        "bytes": 5_000_000_000,
        "sha256": f"{1:064x}",
    }
    # What geosam does with it (engines.FeatureQueryEngine).
    assert Affine(*json.loads(row["transform"])) == make_ref(1).geobox.affine


def test_bytes_do_not_depend_on_the_order_of_rows():
    rows = [make_row(0), make_row(1)]
    assert write(rows) == write(rows[::-1]) == write(rows)


def test_no_rows():
    frame = read(write([]))
    assert len(frame) == 0
    assert frame.crs.to_epsg() == 32610
    geo = json.loads(pq.read_schema(io.BytesIO(write([]))).metadata[b"geo"])
    assert "bbox" not in geo["columns"]["geometry"]  # NaN would be invalid JSON


@pytest.mark.parametrize(
    ("crs", "text"),
    [
        ("EPSG:3857", "EPSG:3857"),
        ("EPSG:4326", "EPSG:4326"),
        ("OGC:CRS84", "OGC:CRS84"),
        ("ESRI:102008", "ESRI:102008"),
    ],
)
def test_crs_codes(crs, text):
    box = GeoBox((1024, 1024), Affine(0.001, 0, 5, 0, -0.001, 50), crs)
    frame = read(write([make_row(0, box)], CRS(crs)))
    assert frame.crs == CRS(crs).proj
    assert list(frame["crs"]) == [text]


def test_a_crs_without_a_code_is_wkt2():
    crs = CRS("+proj=laea +lat_0=52 +lon_0=10 +x_0=1 +ellps=GRS80 +units=m")
    box = GeoBox((1024, 1024), Affine(10, 0, 5, 0, -10, 50), crs)
    frame = read(write([make_row(0, box)], crs))
    assert frame["crs"].iloc[0].startswith("PROJCRS[")
    assert CRS(frame["crs"].iloc[0]).proj == crs.proj


def test_skipped():
    rows = [
        SkippedRow(ref=make_ref(1), reason="no valid pixel", valid_fraction=0.0),
        SkippedRow(ref=make_ref(0), reason="outside the area", valid_fraction=1.0),
    ]
    frame = gpd.read_parquet(io.BytesIO(skipped_parquet(rows, crs=SCENE.crs)))
    assert list(frame.columns) == [column.name for column in SKIPPED_COLUMNS]
    assert list(frame.reason) == ["outside the area", "no valid pixel"]
    assert frame.geometry.iloc[0].bounds == (500000, 4189760, 510240, 4200000)
    assert str(frame.row.dtype) == "int32" and str(frame.valid_fraction.dtype) == "float32"
    empty = gpd.read_parquet(io.BytesIO(skipped_parquet([], crs=SCENE.crs)))
    assert len(empty) == 0 and list(empty.columns) == list(frame.columns)


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_broken_files_are_data_errors(size):
    with pytest.raises(DataError, match="cannot be read"):
        read(write([make_row(0)])[:size])


def test_other_parquet_files_are_data_errors():
    with pytest.raises(DataError, match="lacks columns") as caught:
        read(skipped_parquet([], crs=SCENE.crs))
    assert "feature_path" in str(caught.value)
    assert manifest.PRIMARY_GEOMETRY == "geometry"
