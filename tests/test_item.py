from __future__ import annotations

import copy
import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import antimeridian
import pystac
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod
from shapely.geometry import mapping, shape

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.footprint import footprint_wgs84, resolution
from geosam_stac.item import FileFacts, build_item, to_bytes
from geosam_stac.layout import Layout
from geosam_stac.types import Band, ChipGrid, EncoderSpec, Scene, TensorSpec
from tests.stac_schemas import validate

SHARED = Path(__file__).resolve().parents[2] / "shared"
NOON = datetime(2024, 8, 15, 12, tzinfo=UTC)
UTM = GeoBox((10980, 10980), Affine(10, 0, 499980, 0, -10, 4200000), "EPSG:32610")
SPEC = EncoderSpec(
    name="sam2.1-hiera-base-plus",
    family="sam2",
    weights_sha256="ab" * 32,
    weights="upstream",
    checkpoint_name="sam2.1_b.pt",
    input_px=1024,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    outputs=(
        TensorSpec(name="image_embed", shape=(256, 64, 64), stride_px=16),
        TensorSpec(name="high_res_feats_0", shape=(32, 256, 256), stride_px=4),
        TensorSpec(name="high_res_feats_1", shape=(64, 128, 128), stride_px=8),
    ),
)
MANIFEST = FileFacts(
    bytes=47919, sha256="cd" * 32, rows=196, columns=(("chip_id", "string", "Chip id"),)
)


def make_source(item_id: str = "S2B", when: datetime | None = NOON, **properties) -> pystac.Item:
    source = pystac.Item(
        id=item_id,
        geometry={"type": "Point", "coordinates": [0, 0]},
        bbox=[0, 0, 0, 0],
        datetime=when,
        properties=properties,
        collection="sentinel-2-l2a",
    )
    source.set_self_href(f"https://h/items/{item_id}?sig=S3CRET")
    return source


def make_scene(geobox: GeoBox = UTM, *sources: pystac.Item, **changes) -> Scene:
    sources = sources or (make_source(),)
    fields = {
        "id": sources[0].id,
        "collection": "sentinel-2-l2a",
        "href": f"https://h/items/{sources[0].id}",
        "items": sources,
        "bands": tuple(
            Band(
                name=n,
                asset=n,
                index=1,
                href=f"https://h/{n}.tif",
                source_href=f"https://h/{n}.tif?sig=S3CRET",
                dtype="uint16",
            )
            for n in ("red", "green", "blue")
        ),
        "geobox": geobox,
        "nodata": 0.0,
        "datetime": sources[0].datetime,
    }
    return Scene(**(fields | changes))


def build(scene: Scene | None = None, **changes) -> pystac.Item:
    scene = scene or make_scene()
    fields = {
        "scene": scene,
        "grid": ChipGrid(geobox=scene.geobox, chip_px=1024, stride_px=768),
        "spec": SPEC,
        "config": EncodeConfig(stride=768),
        "layout": Layout(item_id="S2B_sam2.1_3db3b1ef", layer="S2B"),
        "digest": "3db3b1ef" + "0" * 56,
        "precision": "bf16",
        "value_range": (0.0, 3000.0),
        "href": lambda key: f"s3://bucket/out/{key}",
        "manifest": MANIFEST,
        "skipped": None,
        "thumbnail": None,
        "feature_type": "application/octet-stream; application=pytorch",
        "chips_skipped": 0,
        "chips_failed": 0,
        "software": {"torch": "2.15.0", "geosam-stac": "0.1.0"},
        "created": datetime(2026, 11, 22, 14, tzinfo=UTC),
    }
    return build_item(**(fields | changes))


def document(item: pystac.Item) -> dict:
    return json.loads(to_bytes(item))


def test_document_in_full():
    source = make_source(
        constellation="sentinel-2",
        platform="sentinel-2b",
        instruments=["msi"],
        gsd=10,
        **{"eo:cloud_cover": 1.27, "grid:code": "MGRS-10SEG", "s2:secret_field": "no"},
    )
    found = document(build(make_scene(UTM, source)))
    assert found.pop("geometry")["type"] == "Polygon"
    # The same grid as in ../shared/spec/item.example.json, and its bbox.
    bbox = found.pop("bbox")
    assert bbox == pytest.approx([-123.000228, 36.951479, -121.750646, 37.94759], abs=1e-6)
    assert bbox == [round(value, 7) for value in bbox]
    assert found == {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
            "https://stac-extensions.github.io/file/v2.1.0/schema.json",
            "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
            "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/table/v1.2.0/schema.json",
        ],
        "id": "S2B_sam2.1_3db3b1ef",
        "properties": {
            "datetime": "2024-08-15T12:00:00Z",
            "created": "2026-11-22T14:00:00Z",
            "updated": "2026-11-22T14:00:00Z",
            "constellation": "sentinel-2",
            "platform": "sentinel-2b",
            "instruments": ["msi"],
            "gsd": 10,
            "eo:cloud_cover": 1.27,
            "grid:code": "MGRS-10SEG",
            "proj:code": "EPSG:32610",
            "processing:level": "L4",
            "processing:datetime": "2026-11-22T14:00:00Z",
            "processing:version": "0.1.0",
            "processing:software": {"geosam-stac": "0.1.0", "torch": "2.15.0"},
            "processing:lineage": (
                "red, green, blue of S2B at 10 m in EPSG:32610, 0-3000 scaled to 0-255, "
                "1024 px chips, stride 768, sam2.1-hiera-base-plus image encoder."
            ),
            "table:row_count": 196,
            "mlm:name": "sam2.1-hiera-base-plus",
            "geosam:resolution": 10.0,
            "geosam:chip_size": 1024,
            "geosam:stride": 768,
            "geosam:bands": ["red", "green", "blue"],
            "geosam:dtype": "float16",
            "geosam:format": "pt",
            "geosam:precision": "bf16",
            "geosam:value_range": [0.0, 3000.0],
            "geosam:weights": "upstream",
            "geosam:weights_sha256": "ab" * 32,
            "geosam:config_hash": "3db3b1ef",
            "geosam:features": [
                {"name": "image_embed", "shape": [256, 64, 64]},
                {"name": "high_res_feats_0", "shape": [32, 256, 256]},
                {"name": "high_res_feats_1", "shape": [64, 128, 128]},
            ],
            "geosam:source_collections": ["sentinel-2-l2a"],
            "geosam:source_items": ["S2B"],
            "geosam:chips_skipped": 0,
            "geosam:chips_failed": 0,
        },
        "links": [
            {
                "rel": "self",
                "href": "s3://bucket/out/S2B_sam2.1_3db3b1ef/S2B_sam2.1_3db3b1ef.json",
                "type": "application/geo+json",
            },
            {
                "rel": "canonical",
                "href": "s3://bucket/out/S2B_sam2.1_3db3b1ef/S2B_sam2.1_3db3b1ef.json",
                "type": "application/geo+json",
            },
            {
                "rel": "derived_from",
                "href": "https://h/items/S2B",
                "type": "application/geo+json",
            },
            {"rel": "processing-execution", "href": "./run.json", "type": "application/json"},
        ],
        "assets": {
            "manifest": {
                "href": "./manifest.parquet",
                "type": "application/vnd.apache.parquet",
                "title": "Chip manifest",
                "roles": ["data", "manifest"],
                "file:size": 47919,
                "file:checksum": "1220" + "cd" * 32,
                "table:primary_geometry": "geometry",
                "table:row_count": 196,
                "table:columns": [{"name": "chip_id", "type": "string", "description": "Chip id"}],
                "geosam:feature_files": {
                    "type": "application/octet-stream; application=pytorch",
                    "roles": ["data", "features"],
                },
            }
        },
    }


def test_the_rest_of_the_options():
    skipped = FileFacts(bytes=1, sha256="00" * 32, rows=2, columns=MANIFEST.columns)
    item = build(
        spec=dataclasses.replace(SPEC, weights="untrained:7"),
        value_range=None,
        skipped=skipped,
        thumbnail=FileFacts(bytes=3, sha256="11" * 32),
        chips_skipped=1,
        chips_failed=1,
        model_href="https://h/model?token=S3CRET",
    )
    found = document(item)
    assert found["properties"]["geosam:weights"] == "untrained"
    assert found["properties"]["geosam:value_range"] is None
    assert "8-bit values as they are" in found["properties"]["processing:lineage"]
    assert found["properties"]["processing:lineage"].endswith(
        "image encoder with untrained (random) weights."
    )
    assert found["assets"]["skipped"]["href"] == "./skipped.parquet"
    assert found["assets"]["skipped"]["table:row_count"] == 2
    assert found["assets"]["thumbnail"] == {
        "href": "./thumbnail.png",
        "type": "image/png",
        "title": "Thumbnail",
        "roles": ["thumbnail"],
        "file:size": 3,
        "file:checksum": "1220" + "11" * 32,
    }
    derived = [link for link in found["links"] if link["rel"] == "derived_from"]
    assert derived[1] == {
        "rel": "derived_from",
        "href": "https://h/model",
        "mlm:name": "sam2.1-hiera-base-plus",
    }
    assert (found["properties"]["geosam:chips_skipped"], item.id) == (1, "S2B_sam2.1_3db3b1ef")


def _from_mercator(x: float, y: float) -> tuple[float, float]:
    # EPSG method 1024, inverse, on the sphere of 6378137 m.
    return math.degrees(x / 6378137), math.degrees(math.atan(math.sinh(y / 6378137)))


SCENES = {
    "utm": UTM,
    "web mercator": GeoBox((2000, 2000), Affine(10, 0, 5e5, 0, -10, 6e6), "EPSG:3857"),
    "geographic": GeoBox((100, 100), Affine(0.1, 0, 10, 0, -0.1, 50), "EPSG:4326"),
    "utm 1 over the antimeridian": GeoBox(
        (1000, 1000), Affine(100, 0, 120000, 0, -100, 100000), "EPSG:32601"
    ),
    "utm 60 over the antimeridian": GeoBox(
        (1000, 1000), Affine(100, 0, 600000, 0, -100, 7000000), "EPSG:32660"
    ),
    "south pole": GeoBox((1000, 1000), Affine(1000, 0, -5e5, 0, -1000, 5e5), "EPSG:3031"),
    "near the south pole": GeoBox(
        (8271, 8331), Affine(30, 0, 1517085, 0, -30, -1811685), "EPSG:3031"
    ),
    "north pole": GeoBox((1000, 1000), Affine(1000, 0, -5e5, 0, -1000, 5e5), "EPSG:3413"),
    "no code": GeoBox(
        (100, 100),
        Affine(10, 0, 0, 0, -10, 0),
        "+proj=laea +lat_0=52 +lon_0=10 +x_0=1 +ellps=GRS80 +units=m",
    ),
}


@pytest.mark.shared
@pytest.mark.parametrize("geobox", SCENES.values(), ids=SCENES.keys())
def test_schemas(geobox):
    source = make_source(
        "S1",
        constellation="sentinel-1",
        gsd=10,
        **{
            "eo:cloud_cover": 3,
            "grid:code": "MGRS-10SEG",
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:polarizations": ["VV", "VH"],
            "sar:looks_range": 5,
            "sar:center_frequency": 5.405,
        },
    )
    item = build(
        make_scene(geobox, source),
        skipped=MANIFEST,
        thumbnail=FileFacts(bytes=3, sha256="11" * 32),
        value_range=None,
    )
    used = validate(document(item))
    assert set(item.stac_extensions) < set(used)
    assert "https://stac-extensions.github.io/sar/v1.3.0/schema.json" in used
    assert document(item)["properties"]["sar:looks_range"] == 5


@pytest.mark.shared
def test_the_validator_does_refuse():
    broken = document(build(make_scene(UTM, make_source(**{"eo:cloud_cover": 3}))))
    broken["properties"]["eo:cloud_cover"] = 101
    with pytest.raises(pystac.errors.STACValidationError):
        validate(broken)


@pytest.mark.parametrize(
    ("name", "kind", "bbox"),
    [
        ("geographic", "Polygon", [10, 40, 20, 50]),
        ("web mercator", "Polygon", [*_from_mercator(5e5, 5.98e6), *_from_mercator(5.2e5, 6e6)]),
        ("utm 1 over the antimeridian", "MultiPolygon", [179.5866, 0.0, -179.5155, 0.9039]),
        ("utm 60 over the antimeridian", "MultiPolygon", [178.9232, 62.1785, -179.0396, 63.1155]),
        ("south pole", "Polygon", [-180, -90, 180, -83.4987]),
        ("near the south pole", "Polygon", [135.7151, -68.4976, 143.6278, -65.3924]),
        ("north pole", "Polygon", [-180, 83.4793, 180, 90]),
    ],
)
def test_footprints(name, kind, bbox):
    item = build(make_scene(SCENES[name]))
    assert item.geometry["type"] == kind
    assert item.bbox == pytest.approx(bbox, abs=1e-4)
    geometry = shape(item.geometry)
    assert geometry.is_valid
    for part in shapely.get_parts(geometry):
        assert part.exterior.is_ccw
    west, _, east, _ = geometry.bounds
    assert west >= -180 and east <= 180


# Of these the CRS keeps areas within 0.6 %, so the grid itself is the reference.
@pytest.mark.parametrize("name", [name for name in SCENES if name.startswith(("utm", "no code"))])
def test_footprint_area_is_that_of_the_grid(name):
    geobox = SCENES[name]
    pixels_m2 = geobox.extent.geom.area
    area_m2 = abs(Geod(ellps="WGS84").geometry_area_perimeter(footprint_wgs84(geobox))[0])
    assert area_m2 == pytest.approx(pixels_m2, rel=0.006)


def test_footprint_follows_the_curved_edge():
    # The north edge of a wide grid in UTM bulges: its middle lies above the line of its corners.
    geobox = GeoBox((100, 6000), Affine(100, 0, 200000, 0, -100, 6000000), "EPSG:32632")
    footprint = footprint_wgs84(geobox)
    lat = {col: _to_wgs84(geobox, col, 0)[1] for col in (0, 3000, 6000)}
    assert lat[3000] - (lat[0] + lat[6000]) / 2 > 0.08
    assert footprint.bounds[3] == pytest.approx(lat[3000], abs=2e-5)


def _to_wgs84(geobox: GeoBox, col: float, row: float) -> tuple[float, float]:
    from pyproj import Transformer

    affine = geobox.affine
    return Transformer.from_crs(geobox.crs.proj, "OGC:CRS84", always_xy=True).transform(
        affine.c + affine.a * col + affine.b * row, affine.f + affine.d * col + affine.e * row
    )


def test_more_footprints():
    world = GeoBox((180, 360), Affine(1, 0, 0, 0, -1, 90), "EPSG:4326")
    assert footprint_wgs84(world).bounds == (-180, -90, 180, 90)
    beyond = footprint_wgs84(GeoBox((100, 100), Affine(0.1, 0, 175, 0, -0.1, 50), "EPSG:4326"))
    assert antimeridian.bbox(mapping(beyond)) == pytest.approx([175, 40, -175, 50])
    south_up = footprint_wgs84(GeoBox((9, 9), Affine(10, 0, 5e5, 0, 10, 42e5), "EPSG:32610"))
    assert south_up.exterior.is_ccw
    pixel = footprint_wgs84(GeoBox((1, 1), Affine(0.1, 0, 5e5, 0, -0.1, 4e6), "EPSG:32610"))
    assert pixel.is_valid and pixel.area > 0
    nowhere = GeoBox((9, 9), Affine(1e5, 0, 5e7, 0, -1e5, 5e7), "+proj=sinu +R=6371007.181")
    with pytest.raises(DataError, match="no place on the Earth"):
        footprint_wgs84(nowhere)
    with pytest.raises(DataError, match="no CRS"):
        footprint_wgs84(GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 0), None))


def test_resolution_of_a_rotated_grid():
    rotated = GeoBox((9, 9), Affine(8, 6, 5e5, 6, -8, 42e5), "EPSG:32610")
    assert resolution(rotated) == 10


def test_projjson_where_there_is_no_code():
    properties = build(make_scene(SCENES["no code"])).properties
    assert properties["proj:code"] is None
    assert properties["proj:projjson"]["type"] == "ProjectedCRS"
    assert "in a CRS of its own" in properties["processing:lineage"]


def test_a_mosaic_says_what_its_items_share():
    early = make_source("A", NOON, platform="a", gsd=10, **{"eo:cloud_cover": 1})
    late = make_source("B", NOON.replace(hour=13), platform="b", gsd=10, **{"eo:cloud_cover": 2})
    late.clear_links("self")
    found = document(build(make_scene(UTM, early, late, id="mosaic")))
    properties = found["properties"]
    assert properties["gsd"] == 10
    assert "platform" not in properties and "eo:cloud_cover" not in properties
    assert properties["geosam:source_items"] == ["A", "B"]
    assert properties["datetime"] == "2024-08-15T12:00:00Z"
    assert properties["start_datetime"] == "2024-08-15T12:00:00Z"
    assert properties["end_datetime"] == "2024-08-15T13:00:00Z"
    assert "of 2 Items (A, B)" in properties["processing:lineage"]
    assert [link["href"] for link in found["links"] if link["rel"] == "derived_from"] == [
        "https://h/items/A"
    ]


def test_an_interval_instead_of_a_datetime():
    source = make_source(
        "A",
        None,
        start_datetime="2024-01-01T00:00:00Z",
        end_datetime="2024-01-31T00:00:00Z",
    )
    properties = document(build(make_scene(UTM, source)))["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2024-01-01T00:00:00Z"
    assert properties["end_datetime"] == "2024-01-31T00:00:00Z"


def test_no_datetime_at_all_is_a_data_error():
    source = make_source("A")
    source.datetime = None
    with pytest.raises(DataError, match="no datetime") as caught:
        build(make_scene(UTM, source))
    assert caught.value.item == "A"


@pytest.mark.parametrize(
    "properties",
    [
        {"eo:cloud_cover": -1},
        {"eo:cloud_cover": "5"},
        {"eo:cloud_cover": True},
        {"grid:code": "mgrs"},
        {"gsd": 0},
        {"instruments": "msi"},
        {"instruments": []},
        {"platform": 3},
        {"sar:frequency_band": "Z"},
        {"sar:polarizations": [1]},
        {"sar:polarizations": ["XX"]},
        {"sar:looks_range": 1.5},
        {"sar:unknown": 1},
        {"sar:bandwidth": "a"},
        {"sar:observation_direction": "C"},
    ],
)
def test_invalid_properties_of_a_source_are_left_behind(properties):
    item = build(make_scene(UTM, make_source(**properties)))
    assert not set(properties) & set(item.properties)
    assert not any("/eo/" in url or "/sar/" in url for url in item.stac_extensions)


def test_gsd_of_the_assets():
    source = make_source()
    for name in ("red", "green", "blue"):
        source.add_asset(name, pystac.Asset(f"https://h/{name}", extra_fields={"gsd": 10}))
    assert build(make_scene(UTM, source)).properties["gsd"] == 10


def test_the_source_item_is_not_changed():
    source = make_source(platform="a")
    before = copy.deepcopy(source.to_dict())
    build(make_scene(UTM, source))
    assert source.to_dict() == before


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
@pytest.mark.parametrize("start", ["landsat", "naip", "sentinel-2"])
def test_real_sources(start):
    path = next((SHARED / "data" / "items").glob(f"{start}*.json"))
    source = pystac.Item.from_dict(json.loads(path.read_text()))
    item = build(make_scene(UTM, source))
    validate(document(item))
    for name in ("platform", "eo:cloud_cover", "grid:code"):
        assert item.properties.get(name) == source.properties.get(name)


def test_a_signature_is_never_written():
    assert b"S3CRET" not in to_bytes(build())
    item = build()
    item.assets["manifest"].href = "https://h/x?X-Amz-Signature=S3CRET"
    with pytest.raises(GeosamStacError, match="X-Amz-Signature") as caught:
        to_bytes(item)
    assert "S3CRET" not in str(caught.value)


def test_bytes_are_stable_utf8_json():
    once = to_bytes(build(make_scene(UTM, make_source("straße"))))
    assert once == to_bytes(build(make_scene(UTM, make_source("straße"))))
    assert "straße".encode() in once
    assert once.startswith(b'{\n  "type": "Feature",\n')
    odd = make_scene(UTM, make_source("lone \ud800"), href="https://h/x")
    odd.items[0].clear_links()
    assert json.loads(to_bytes(build(odd)))["properties"]["geosam:source_items"] == ["lone \ud800"]
