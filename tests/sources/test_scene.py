from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, UsageError
from geosam_stac.sources import as_geojson, open_scene, parse_item
from geosam_stac.sources import scene as scene_module
from geosam_stac.types import Scene
from tests.rasters import (
    NORTH_UP,
    asset,
    document,
    named_bands,
    projection,
    values,
    write_tif,
)

ITEMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "items"
NAIP = ITEMS.parent / "naip"
needs_shared = pytest.mark.skipif(not ITEMS.is_dir(), reason="../shared/data is not here")
#: 100 x 80 px of 10 m, never opened.
PLACE = projection(NORTH_UP, (80, 100))
W, S, E, N = 500_000, 5_199_200, 501_000, 5_200_000
DEGREES = Affine(0.0001, 0, -99.0, 0, -0.0001, 47.0)


def planned(options: dict | None = None, **fields) -> Scene:
    """A scene from metadata alone."""
    item = parse_item(
        document({"x": asset("/none/x.tif", bands=[{"name": "x"}], **(fields or PLACE))}), href=None
    )
    return open_scene(item, EncodeConfig.of(options or {}), read_headers=False)


def bbox(w, s, e, n, crs="EPSG:32614"):
    return {"bbox": (w, s, e, n), "bbox_crs": crs}


# What the scene says


def test_a_scene_of_metadata_opens_no_file():
    scene = planned()
    assert scene.geobox == GeoBox((80, 100), NORTH_UP, "EPSG:32614")
    assert (scene.id, scene.href, scene.collection) == ("scene-1", "scene-1", None)
    assert [band.name for band in scene.bands] == ["x"]
    assert scene.datetime == datetime(2024, 8, 15, 12, tzinfo=UTC)
    assert scene.area is None
    assert scene.notices == ()


@pytest.mark.parametrize(
    ("text", "hour"),
    [("2024-08-15T12:00:00Z", 12), ("2024-08-15T14:00:00+02:00", 12), ("2024-08-15", 0)],
)
def test_datetimes_are_in_utc(text, hour):
    item = parse_item(document({"x": asset("x.tif", bands=[{}], **PLACE)}), href=None)
    item = parse_item(item.to_dict() | {"properties": {"datetime": text}}, href=None)
    moment = open_scene(item, EncodeConfig(), read_headers=False).datetime
    assert moment == datetime(2024, 8, 15, hour, tzinfo=UTC)
    assert moment.utcoffset().total_seconds() == 0


def test_files_have_the_last_word(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((1, 40, 50), "int16"), nodata=-999)
    wrong = projection(NORTH_UP, (9, 9)) | {"nodata": 5, "data_type": "uint8"}
    item = parse_item(document({"x": asset(path, bands=[{"name": "x"}], **wrong)}), href=None)
    (band,) = open_scene(item, EncodeConfig()).bands
    assert (band.dtype, band.nodata, band.geobox.shape) == ("int16", -999.0, (40, 50))
    (band,) = open_scene(item, EncodeConfig(), read_headers=False).bands
    assert (band.dtype, band.nodata, band.geobox.shape) == ("uint8", 5.0, (9, 9))


def test_without_projection_metadata_the_header_is_read_once(tmp_path, monkeypatch):
    path = write_tif(tmp_path / "a.tif", values((3, 40, 50)))
    item = parse_item(document({"x": asset(path, **named_bands("a", "b", "c"))}), href=None)
    opened = []
    original = scene_module.read_header
    monkeypatch.setattr(
        scene_module,
        "read_header",
        lambda href, **named: opened.append(href) or original(href, **named),
    )
    scene = open_scene(item, EncodeConfig(), read_headers=False)
    assert scene.geobox == GeoBox((40, 50), NORTH_UP, "EPSG:32614")
    assert opened == [str(path)]


@pytest.mark.parametrize(("count", "used"), [(1, 1), (2, 2), (3, 3), (5, 3)])
@pytest.mark.parametrize("read_headers", [True, False])
def test_an_item_that_is_silent_about_bands_uses_the_files(tmp_path, count, used, read_headers):
    path = write_tif(tmp_path / "a.tif", values((count, 9, 9)))
    item = parse_item(document({"image": asset(path, **projection(NORTH_UP, (9, 9)))}), href=None)
    scene = open_scene(item, EncodeConfig(), read_headers=read_headers)
    assert [band.index for band in scene.bands] == [1, 2, 3][:used]
    if count > 3:
        with pytest.raises(UsageError, match=r"1 to 3 bands.*image\.5"):
            open_scene(item, EncodeConfig(bands=("image",)), read_headers=read_headers)


def test_a_band_number_beyond_the_file(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((2, 9, 9)))
    item = parse_item(document({"image": asset(path)}), href=None)
    assert open_scene(item, EncodeConfig(bands=("image.2",))).bands[0].index == 2
    with pytest.raises(DataError, match=r"no band 'image\.3'.*1 to 2; got 3"):
        open_scene(item, EncodeConfig(bands=("image.3",)))


@pytest.mark.parametrize(
    ("dtype", "nodata", "held"),
    [
        ("uint8", -9999, None),
        ("uint8", "nan", None),
        ("uint8", 255, 255.0),
        ("uint16", 0.5, None),
        ("uint16", 65536, None),
        ("int16", -32768, -32768.0),
        ("float32", -3.4e38, float(np.float32(-3.4e38))),
        ("float32", 1e300, None),
        ("float32", 0.1, float(np.float32(0.1))),
    ],
)
def test_nodata_that_the_dtype_cannot_hold_is_none(tmp_path, dtype, nodata, held):
    path = write_tif(tmp_path / "a.tif", values((1, 9, 9), dtype))
    item = parse_item(document({"x": asset(path, nodata=nodata)}), href=None)
    assert open_scene(item, EncodeConfig()).nodata == held


def test_the_finest_band_gives_the_grid():
    assets = {
        name: asset(
            "x.tif", bands=[{"name": name}], **projection(NORTH_UP * Affine.scale(f), (n, n))
        )
        for name, f, n in (("coarse", 2, 40), ("fine", 1, 80), ("other", 6, 13))
    }
    item = parse_item(document(assets), href=None)
    config = EncodeConfig.of({"bands": "coarse,fine,other"})
    scene = open_scene(item, config, read_headers=False)
    assert scene.geobox == GeoBox((80, 80), NORTH_UP, "EPSG:32614")
    assert [band.name for band in scene.bands] == ["coarse", "fine", "other"]


# Processing extent


@pytest.mark.parametrize(
    ("box", "offset", "shape"),
    [
        ((W, S, E, N), (0, 0), (80, 100)),
        ((W - 500, S - 500, E + 500, N + 500), (0, 0), (80, 100)),
        ((W + 100, S + 200, E - 300, N - 50), (5, 10), (55, 60)),
        ((W + 101, N - 60, W + 119, N - 51), (5, 10), (1, 2)),
        ((W + 10, N - 20, W + 20, N - 10), (1, 1), (1, 1)),
        ((W + 14.9, N - 14.2, W + 15, N - 14.1), (1, 1), (1, 1)),
        ((E - 1, S, E, S + 1), (79, 99), (1, 1)),
        ((W - 50, N - 1, W + 1, N + 50), (0, 0), (1, 1)),
    ],
)
def test_a_bbox_gives_the_pixels_that_it_touches(box, offset, shape):
    scene = planned(bbox(*box))
    row, col = offset
    assert scene.geobox == GeoBox(shape, NORTH_UP * Affine.translation(col, row), "EPSG:32614")


@pytest.mark.parametrize(
    "box",
    [
        (E, S, E + 100, N),  # shares an edge
        (W, N, E, N + 1),
        (E, N, E + 1, N + 1),  # shares a corner
        (W + 9000, S, E + 9000, N),
    ],
)
def test_a_bbox_outside_names_both_extents(box):
    with pytest.raises(DataError) as caught:
        planned(bbox(*box))
    text = str(caught.value)
    assert text.startswith("the processing extent lies outside the Item (item scene-1)")
    assert "expected within W,S,E,N -99,46.94" in text
    assert "; got -98." in text or "; got -99,4" in text
    assert "--bbox-crs" in text


def test_a_bbox_in_degrees_on_a_projected_item():
    extent = GeoBox((80, 100), NORTH_UP, "EPSG:32614").extent.to_crs("EPSG:4326").boundingbox
    west = (extent.left, extent.bottom, (extent.left + extent.right) / 2, extent.top)
    scene = planned({"bbox": west})
    assert scene.geobox.shape == (80, pytest.approx(50, abs=1))
    with pytest.raises(DataError, match="outside"):
        planned({"bbox": (10, 46, 11, 47)})


def test_a_bbox_that_is_not_in_degrees():
    with pytest.raises(UsageError, match=r"not in degrees.*--bbox-crs"):
        planned({"bbox": (W, S, E, N)})
    with pytest.raises(UsageError, match="not in degrees"):
        planned({"bbox": (46, -99, 47, -98)})  # latitude first


@pytest.mark.parametrize(
    "box",
    [(-180, -90, 180, 90), (-130, 20, -60, 55), (-100, 46, -97, 48), (90, 46.9, -98.99, 47.1)],
)
def test_a_bbox_far_wider_than_the_item(box):
    height, width = planned({"bbox": box}).geobox.shape
    assert height == 80
    assert width == (100 if box[0] < box[2] else pytest.approx(77, abs=1))


def test_a_bbox_across_the_antimeridian():
    fields = projection(Affine(10, 0, 500_000, 0, -10, 5_000_000), (100, 100), "EPSG:32601")
    whole = GeoBox((100, 100), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32601")
    scene = planned({"bbox": (170, 40, -170, 50)}, **fields)
    assert scene.geobox == whole
    fiji = projection(Affine(0.01, 0, 177, 0, -0.01, -16), (300, 600), "EPSG:4326")
    scene = planned({"bbox": (179, -17, -179, -16.5)}, **fiji)
    assert scene.geobox.boundingbox.bbox == pytest.approx((179, -17, 181, -16.5))
    east = projection(Affine(0.01, 0, -180, 0, -0.01, -16), (300, 300), "EPSG:4326")
    scene = planned({"bbox": (179, -17, -179, -16.5)}, **east)
    assert scene.geobox.boundingbox.bbox == pytest.approx((-180, -17, -179, -16.5))


def geometry(*boxes) -> shapely.Geometry:
    shapes = [shapely.box(*box) for box in boxes]
    series = geopandas.GeoSeries(shapes, crs="EPSG:32614").to_crs("EPSG:4326")
    return shapely.union_all(series.to_numpy())


SOUTH_WEST = (W + 100, S + 100, W + 300, S + 200)
NORTH_EAST = (E - 300, N - 300, E - 100, N - 200)


@pytest.mark.parametrize("form", ["geometry", "Feature", "FeatureCollection", "file", "collection"])
def test_a_geometry_in_all_its_forms(tmp_path, form):
    area = geometry(SOUTH_WEST, NORTH_EAST)
    mapping = shapely.geometry.mapping(area)
    parts = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(part)}
        for part in area.geoms
    ]
    value = {
        "geometry": mapping,
        "Feature": {"type": "Feature", "properties": {}, "geometry": mapping},
        "FeatureCollection": {"type": "FeatureCollection", "features": parts},
        "collection": {"type": "FeatureCollection", "features": parts * 2},
    }.get(form)
    if form == "file":
        value = tmp_path / "area.gpkg"
        geopandas.GeoSeries([area], crs="EPSG:4326").to_crs("EPSG:3857").to_file(value)
    scene = planned({"geometry": as_geojson(value)})
    # The bounds of both, give or take the pixel that a curved edge touches.
    assert scene.geobox.boundingbox.bbox == pytest.approx(
        (W + 100, S + 100, E - 100, N - 200), abs=10
    )
    assert scene.area.crs.epsg == 32614
    assert scene.area.area == pytest.approx(2 * 200 * 100, rel=1e-3)


def test_a_bow_tie_is_mended():
    ring = [[-99, 46.945], [-98.99, 46.953], [-98.99, 46.945], [-99, 46.953], [-99, 46.945]]
    text = json.dumps({"type": "Polygon", "coordinates": [ring]})
    assert planned({"geometry": text}).area.geom.is_valid


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no GeoJSON"),
        ("[]", "no GeoJSON"),
        ("{}", "no GeoJSON"),
        ('{"type": "Feature", "geometry": null}', "no GeoJSON"),
        ('{"type": "Point", "coordinates": [1, 2]}', "must hold polygons; got Point"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": []}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "no GeoJSON|not valid"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}', "no polygon"),
        ('{"type": "Polygon", "coordinates": "abc"}', "no GeoJSON|not valid"),
        (
            json.dumps(shapely.geometry.mapping(shapely.box(W, S, E, N))),
            "not in degrees",
        ),
    ],
)
def test_what_is_no_area(text, words):
    with pytest.raises(UsageError, match=words):
        planned({"geometry": text})


def test_a_geometry_outside():
    with pytest.raises(DataError, match=r"outside the Item.*Check --geometry"):
        planned({"geometry": as_geojson(shapely.box(10, 10, 11, 11))})


# Target CRS and resolution


@pytest.mark.parametrize(
    ("crs", "words"),
    [
        ("EPSG:999999", "--crs is no CRS that PROJ knows"),
        ("metres", "--crs is no CRS that PROJ knows"),
        ("", "--crs is no CRS that PROJ knows"),
        ("EPSG:4978", "--crs is no CRS of maps"),
        ("EPSG:5773", "--crs is no CRS of maps"),
    ],
)
def test_a_crs_that_is_none(crs, words):
    with pytest.raises(UsageError, match=words):
        planned({"crs": crs})
    with pytest.raises(UsageError, match=words.replace("--crs", "--bbox-crs")):
        planned({"bbox": (1, 2, 3, 4), "bbox_crs": crs})


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"),
    [
        (-99, 47, 32614),
        (-99, -10, 32714),
        (179.95, 1, 32660),
        (-179.95, -1, 32701),
        (0.05, 51, 32631),
    ],
)
def test_utm_takes_the_zone_of_the_centre(lon, lat, epsg):
    fields = projection(Affine(0.0001, 0, lon, 0, -0.0001, lat), (100, 100), "EPSG:4326")
    scene = planned({"crs": "utm"}, **fields)
    assert scene.geobox.crs.epsg == epsg
    assert 6 < scene.geobox.affine.a < 12


def test_utm_takes_the_centre_of_the_extent_that_is_asked_for():
    wide = projection(Affine(0.01, 0, -100, 0, -0.01, 48), (200, 1000), "EPSG:4326")
    scene = planned({"crs": "utm", "bbox": (-91, 47, -90.9, 47.1)}, **wide)
    assert scene.geobox.crs.epsg == 32615


def test_another_resolution_starts_at_the_same_corner():
    scene = planned({"resolution": 30})
    assert scene.geobox == GeoBox((27, 34), Affine(30, 0, W, 0, -30, N), "EPSG:32614")
    assert planned({"resolution": 20}).geobox.shape == (40, 50)
    assert planned({"resolution": 10}).geobox.affine == NORTH_UP
    assert planned({"resolution": 5000}).geobox.shape == (1, 1)


def test_a_rounded_resolution_is_the_native_one():
    size = 0.6000000000000001
    fields = projection(Affine(size, 0, W, 0, -size, N), (2000, 2000))
    assert planned({"resolution": 0.6}, **fields).geobox.affine.a == size
    assert planned({"resolution": 0.601}, **fields).geobox.affine.a == 0.601


def test_another_crs_has_edges_on_multiples_of_the_resolution():
    scene = planned({"crs": "EPSG:3857", "resolution": 25})
    affine = scene.geobox.affine
    assert (affine.a, affine.e) == (25, -25)
    assert affine.c % 25 == affine.f % 25 == 0
    extent = GeoBox((80, 100), NORTH_UP, "EPSG:32614").extent.to_crs("EPSG:3857", resolution=50)
    box, wanted = scene.geobox.boundingbox, extent.boundingbox
    assert box.left <= wanted.left < box.left + 25
    assert box.top - 25 < wanted.top <= box.top
    part = planned(
        {"crs": "EPSG:3857", "resolution": 25} | bbox(W + 200, S + 200, E - 200, N - 200)
    )
    shift = ~affine * (part.geobox.affine.c, part.geobox.affine.f)
    assert shift == pytest.approx(tuple(map(round, shift)), abs=1e-6)


def test_the_native_resolution_in_another_crs():
    assert planned({"crs": "EPSG:3857"}).geobox.affine.a == 10, "metres stay metres"
    a_metre = 180 / math.pi / 6_378_137
    degrees = planned({"crs": "EPSG:4326"}).geobox.affine.a
    assert degrees == pytest.approx(
        10 * a_metre / math.sqrt(math.cos(math.radians(46.95))), rel=0.01
    )


@pytest.mark.parametrize(
    ("native", "crs", "resolution", "epsg"),
    [
        ("EPSG:4326", "native", 10, 32614),
        ("EPSG:4326", "native", 0.5, 32614),
        ("EPSG:4326", "EPSG:4269", 30, 32614),
        ("EPSG:4326", "native", 0.0002, 4326),
        ("EPSG:4326", "native", 0.01, 4326),
        ("EPSG:32614", "EPSG:4326", 10, 32614),
        ("EPSG:32614", "EPSG:4326", 0.0002, 4326),
    ],
)
def test_metres_on_a_geographic_grid(native, crs, resolution, epsg):
    transform = DEGREES if native == "EPSG:4326" else NORTH_UP
    fields = projection(transform, (100, 100), native)
    scene = planned({"crs": crs, "resolution": resolution}, **fields)
    assert scene.geobox.crs.epsg == epsg
    assert scene.geobox.affine.a == resolution
    if epsg == 4326:
        assert scene.notices == ()
    else:
        (notice,) = scene.notices
        assert f"{resolution:g} is meant in metres: EPSG:32614 is used" in notice


def test_a_coarse_global_grid_in_degrees_stays():
    era5 = projection(Affine(0.25, 0, -180, 0, -0.25, 90), (720, 1440), "EPSG:4326")
    assert planned({"resolution": 1}, **era5).geobox.shape == (180, 360)
    metres = planned({"resolution": 1000, "bbox": (-99, 46, -98, 47)}, **era5)
    assert metres.geobox.crs.epsg == 32614
    assert metres.geobox.shape == (pytest.approx(112, abs=2), pytest.approx(77, abs=2))


def test_a_global_grid_into_mercator_ends_where_mercator_does():
    world = projection(Affine(1, 0, -180, 0, -1, 90), (180, 360), "EPSG:4326")
    box = planned({"crs": "EPSG:3857"}, **world).geobox.boundingbox
    assert box.right == pytest.approx(20_037_508, rel=0.01)
    assert box.top == pytest.approx(20_048_966, rel=0.01)


def test_a_grid_that_cannot_be_projected():
    world = projection(Affine(1, 0, -180, 0, -1, 90), (180, 360), "EPSG:4326")
    pole = projection(Affine(100, 0, -500_000, 0, -100, 500_000), (9000, 9000), "EPSG:3031")
    for options, fields in (
        ({"crs": "utm"}, world),
        ({"crs": "EPSG:32601"}, world),
        ({"crs": "EPSG:3857"}, pole),
    ):
        try:
            scene = planned(options, **fields)
        except DataError as error:
            assert "cannot be projected" in str(error)
        else:
            assert all(map(math.isfinite, scene.geobox.boundingbox.bbox))


# Items as they are in the wild


def shared(start: str, options: dict) -> Scene:
    (path,) = ITEMS.glob(f"{start}*.json")
    item = parse_item(json.loads(path.read_text()), href=str(path))
    return open_scene(item, EncodeConfig.of(options), read_headers=False)


@needs_shared
@pytest.mark.shared
def test_earth_searchs_sentinel_2_is_planned_without_network():
    scene = shared("sentinel-2", {})
    grid = GeoBox((10980, 10980), Affine(10, 0, 499980, 0, -10, 6400000), "EPSG:32720")
    assert scene.geobox == grid
    assert scene.collection == "sentinel-2-c1-l2a"
    assert shared("sentinel-2", {"bands": "swir16,swir22,coastal"}).geobox.shape == (5490, 5490)
    assert shared("sentinel-2", {"bands": "visual"}).geobox == grid
    corner = shared("sentinel-2", bbox(499980, 6390000, 510000, 6400000, "EPSG:32720"))
    assert corner.geobox == grid[:1000, :1002]


@needs_shared
@pytest.mark.shared
def test_usgs_landsat_is_planned_without_network():
    scene = shared("landsat", {})
    assert scene.geobox == GeoBox(
        (8271, 8331), Affine(30, 0, 1517085, 0, -30, -1811685), "EPSG:3031"
    )
    utm = shared("landsat", {"crs": "utm"})
    assert utm.geobox.crs.epsg // 100 == 327
    assert utm.geobox.affine.a == pytest.approx(30, rel=0.05)


@needs_shared
@pytest.mark.shared
def test_rio_stacs_naip_is_planned_without_network():
    scene = shared("naip", {"bands": "red,green,blue"})
    grid = GeoBox((12666, 9704), Affine(0.6, 0, 341338.2, 0, -0.6, 4749053.4), "EPSG:26919")
    assert scene.geobox == grid


@needs_shared
@pytest.mark.shared
def test_naip_on_disk():
    path = NAIP / "item.json"
    item = parse_item(json.loads(path.read_text()), href=str(path))
    scene = open_scene(item, EncodeConfig.of({"bands": "red,green,blue"}))
    assert scene.geobox == GeoBox((723, 934), Affine(5, 0, 485899, 0, -5, 5209246), "EPSG:26914")
    assert [band.dtype for band in scene.bands] == ["uint8"] * 3
    assert scene.nodata == 0


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        ("IAU_2015:30110", Affine(100, 0, 0, 0, -100, 0)),  # the Moon, projected
        ("IAU_2015:29900", Affine(0.01, 0, 10, 0, -0.01, 10)),  # Venus, 5 % smaller than the Earth
        ("IAU_2015:49900", Affine(0.01, 0, 10, 0, -0.01, 10)),  # Mars
    ],
)
def test_other_worlds_are_refused_in_words(tmp_path, code, transform):
    wkt = pyproj.CRS.from_user_input(code).to_wkt()
    path = write_tif(tmp_path / "a.tif", values((1, 9, 9)), crs=wkt, transform=transform)
    item = parse_item(document({"a": asset(path)}), href=None)
    with pytest.raises(DataError, match=r"not of the Earth.*2015"):
        open_scene(item, EncodeConfig())


def test_a_target_crs_of_another_world_is_refused(tmp_path):
    item = parse_item(
        document({"a": asset(write_tif(tmp_path / "a.tif", values((1, 9, 9))))}), href=None
    )
    with pytest.raises(UsageError, match="--crs is not of the Earth"):
        open_scene(item, EncodeConfig(crs="IAU_2015:30100"))
