"""Masks as polygons, areas and files."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

import geosam_stac as gs
from geosam_stac.errors import UsageError
from geosam_stac.store.follow import ObjectMask
from geosam_stac.types import Window
from tests.rasters import NORTH_UP

UTM = GeoBox((128, 160), NORTH_UP, "EPSG:32614")


def one(mask: np.ndarray, row: int, col: int, name: object = 1, score: float = 0.5) -> ObjectMask:
    window = Window(row_off=row, col_off=col, height=mask.shape[0], width=mask.shape[1])
    return ObjectMask(
        id=name, mask=mask, window=window, seen=window, score=score, chips=("chip_000000",)
    )


def made(*objects: ObjectMask, geobox: GeoBox = UTM) -> gs.Segmentation:
    return gs.Segmentation(item_id="item", model="model", scene_geobox=geobox, objects=objects)


@pytest.fixture
def ring() -> np.ndarray:
    """12 x 12 px with a hole, and a pixel apart that touches a corner."""
    mask = np.zeros((14, 14), dtype=bool)
    mask[:12, :12] = True
    mask[4:8, 4:8] = False
    mask[12, 12] = True
    return mask


def test_polygons_follow_the_pixels(ring):
    (row,) = made(one(ring, 10, 20)).polygons.itertuples()
    assert (row.id, row.score, row.chips, row.complete) == (1, 0.5, "chip_000000", True)
    transform = NORTH_UP @ Affine.translation(20, 10)
    theirs = [
        shapely.geometry.shape(geometry)
        for geometry, _ in rasterio.features.shapes(
            ring.astype("uint8"), mask=ring, transform=transform
        )
    ]
    assert row.geometry.equals(shapely.MultiPolygon(theirs))
    assert row.geometry.is_valid
    assert row.geometry.geom_type == "MultiPolygon"
    assert [len(part.interiors) for part in row.geometry.geoms].count(1) == 1
    assert row.geometry.area == ring.sum() * 100
    back = rasterio.features.rasterize([row.geometry], ring.shape, transform=transform)
    np.testing.assert_array_equal(back == 1, ring)


def test_area_is_of_the_ground(ring):
    """UTM's square metres on the central meridian are 0.9996 ** 2 of those on the ellipsoid."""
    frame = made(one(ring, 10, 0)).polygons
    assert frame.area_m2[0] == pytest.approx(ring.sum() * 100 / 0.9996**2, rel=1e-5)


def test_area_in_web_mercator():
    """At 47 N a square of Web Mercator is less than half of its own square metres."""
    mercator = GeoBox((100, 100), Affine(10, 0, -11e6, 0, -10, 5.942e6), "EPSG:3857")
    frame = made(one(np.ones((100, 100), bool), 0, 0), geobox=mercator).polygons
    corners = frame.to_crs("EPSG:4326").geometry[0]
    west, south, east, north = corners.bounds
    # Along meridians and parallels: cut into many, so that geodesics follow the parallel.
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(
        shapely.box(west, south, east, north).segmentize(1e-4)
    )[0])  # fmt: skip
    assert frame.area_m2[0] == pytest.approx(expected, rel=1e-6)
    assert 0.46 < frame.area_m2[0] / 1e6 < 0.48


def test_another_crs_keeps_the_place(ring):
    found = made(one(ring, 10, 20))
    own = found.polygons.geometry[0]
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:5070"):
        frame = found.to_geodataframe(crs)
        assert frame.crs == crs
        back = frame.to_crs("EPSG:32614").geometry[0]
        assert shapely.hausdorff_distance(back, own) < 1e-3
        assert frame.area_m2[0] == found.polygons.area_m2[0]


def test_long_sides_stay_where_they_are():
    """100 km in one straight side: its middle is 130 m off a straight line in degrees."""
    wide = GeoBox((100, 10_000), NORTH_UP, "EPSG:32614")
    found = made(one(np.ones((100, 10_000), bool), 0, 0), geobox=wide)
    back = found.to_geodataframe("EPSG:4326").to_crs("EPSG:32614").segmentize(50).geometry[0]
    assert shapely.hausdorff_distance(back.boundary, found.polygons.geometry[0].boundary) < 5


def test_geojson(ring):
    document = json.loads(made(one(ring, 10, 20, name="field 7")).to_geojson())
    assert "crs" not in document
    (feature,) = document["features"]
    assert feature["properties"]["id"] == "field 7"
    for polygon in feature["geometry"]["coordinates"]:
        for number, line in enumerate(polygon):
            assert shapely.LinearRing(line).is_ccw == (number == 0)
            lons, lats = np.transpose(line)
            assert (np.abs(lons + 99) < 0.01).all() and (np.abs(lats - 46.95) < 0.01).all()
            assert all(value == round(value, 7) for value in (*lons, *lats))


def test_across_the_antimeridian():
    edge = GeoBox((10, 400), Affine(100, 0, 483_000, 0, -100, 0), "EPSG:32660")
    across = GeoBox((10, 4000), Affine(100, 0, 700_000, 0, -100, 1_000_000), "EPSG:32660")
    plain = json.loads(made(one(np.ones((10, 400), bool), 0, 0), geobox=edge).to_geojson())
    assert plain["features"][0]["geometry"]["type"] == "Polygon"
    cut = json.loads(made(one(np.ones((10, 4000), bool), 0, 0), geobox=across).to_geojson())
    parts = cut["features"][0]["geometry"]["coordinates"]
    assert len(parts) == 2
    lons = [np.array(part[0])[:, 0] for part in parts]
    west, east = sorted(lons, key=lambda values: float(values.min()))
    assert (west.min(), east.max()) == (-180, 180)
    assert west.max() < -177 and east.min() > 178


def holed(height: int, width: int, holes: int) -> np.ndarray:
    """A disc with as many square holes along its middle, and a square of its own."""
    rows, cols = np.indices((height, width))
    mask = (rows - height / 2) ** 2 + (cols - height / 2) ** 2 < (0.48 * height) ** 2
    side = height // 10
    for number in range(holes):
        col = round(height * (0.15 + 0.7 * number / max(1, holes - 1))) - side // 2
        mask[height // 2 - side // 2 :, col : col + side][:side] = False
    mask[:side, -side:] = True
    return mask


@pytest.mark.parametrize(
    ("crs", "lon", "lat"),
    [
        ("EPSG:32660", 180, 10),
        ("EPSG:32701", -180, -17),
        ("EPSG:32601", -180, 71),
        ("EPSG:3832", 180, 0),
        ("EPSG:3031", 180, -75),
        ("EPSG:3413", 180, 80),
    ],
)
@pytest.mark.parametrize("col", [40, 100, 146, 160])
def test_holes_and_parts_across_the_antimeridian(crs, lon, lat, col):
    x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(lon, lat)
    mask = holed(200, 260, holes=5)
    geobox = GeoBox(mask.shape, Affine(50, 0, x - 50 * col, 0, -50, y + 5000), crs)
    found = made(one(mask, 0, 0), geobox=geobox)
    apart = sum(
        made(one(pixels, 0, 0), geobox=geobox).polygons.area_m2[0]
        for pixels in (mask & (np.arange(260) < col), mask & (np.arange(260) >= col))
    )
    assert found.polygons.area_m2[0] == pytest.approx(apart, rel=1e-6)
    degrees = found.to_geodataframe("EPSG:4326").geometry[0]
    assert degrees.is_valid
    west, _, east, _ = degrees.bounds
    assert (west, east) == (-180, 180)
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(degrees))
    assert area == pytest.approx(apart, rel=1e-5)


# Both are Mercator's of one ellipsoid: on either the other's edges lie far within.
MERCATORS = {"EPSG:3395": 0.0, "EPSG:3832": 150.0}


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "edged", "whole"),
    [
        ("EPSG:32660", 180, 10, "EPSG:3395", "EPSG:3832"),
        ("EPSG:32701", -180, -17, "EPSG:3395", "EPSG:3832"),
        ("EPSG:3031", 180, -75, "EPSG:3395", "EPSG:3832"),
        ("EPSG:4326", 180, 50, "EPSG:3395", "EPSG:3832"),
        ("EPSG:32626", -30, 40, "EPSG:3832", "EPSG:3395"),
    ],
)
@pytest.mark.parametrize("col", [40, 146])
def test_a_map_is_cut_at_its_edges(crs, lon, lat, edged, whole, col):
    x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(lon, lat)
    mask = holed(200, 260, holes=5)
    side = 5e-4 if crs == "EPSG:4326" else 50
    geobox = GeoBox(mask.shape, Affine(side, 0, x - side * col, 0, -side, y + side * 100), crs)
    found = made(one(mask, 0, 0), geobox=geobox)
    cut, expected = (found.to_geodataframe(name).geometry[0] for name in (edged, whole))
    world = 2 * np.pi * 6378137
    assert cut.is_valid and expected.is_valid
    assert (cut.bounds[0], cut.bounds[2]) == pytest.approx((-world / 2, world / 2), abs=0.001)

    def moved(part, crs):
        """x from Greenwich on, eastwards."""
        x_0 = MERCATORS[crs] / 360 * world
        return shapely.transform(
            part, lambda xy: np.column_stack([(xy[:, 0] + x_0) % world, xy[:, 1]])
        )

    joined = shapely.union_all([moved(part, edged) for part in cut.geoms], grid_size=0.01)
    assert cut.area == pytest.approx(expected.area, rel=1e-6)
    apart = joined.symmetric_difference(moved(expected, whole)).area
    assert apart < 1e-5 * expected.area


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:6933", "ESRI:54009", "EPSG:8857", "EPSG:3574"])
def test_masks_across_180_keep_their_area_on_other_maps(crs):
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32660", always_xy=True).transform(180, 10)
    geobox = GeoBox((40, 40), Affine(50, 0, x - 1000, 0, -50, y), "EPSG:32660")
    found = made(one(np.ones((40, 40), bool), 0, 0), geobox=geobox)
    (shape,) = found.to_geodataframe(crs).geometry
    assert shape.is_valid
    # Web Mercator's square metres at 10 degrees are larger by 1 / cos^2; Mollweide's is a sphere.
    factor = 1 / np.cos(np.radians(10)) ** 2 if crs == "EPSG:3857" else 1
    assert shape.area == pytest.approx(found.polygons.area_m2[0] * factor, rel=0.01)


def test_a_map_without_edges_is_not_cut():
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32701", always_xy=True).transform(-180, -75)
    geobox = GeoBox((40, 40), Affine(50, 0, x - 1000, 0, -50, y), "EPSG:32701")
    found = made(one(np.ones((40, 40), bool), 0, 0), geobox=geobox)
    for crs in ("EPSG:3031", "EPSG:6932", "EPSG:32761", "EPSG:32760", "EPSG:2193"):
        (shape,) = found.to_geodataframe(crs).geometry
        assert shape.geom_type == "Polygon" and shape.is_valid
        assert shape.area == pytest.approx(4e6, rel=0.05)


def test_a_pole_on_a_map_of_edges():
    geobox = GeoBox((2000, 2000), Affine(200, 0, -200_000, 0, -200, 200_000), "EPSG:3031")
    found = made(one(np.ones((2000, 2000), bool), 0, 0), geobox=geobox)
    with pytest.raises(UsageError, match="holds a pole, which has no place in EPSG:3034"):
        found.to_geodataframe("EPSG:3034")  # Europe's cone goes on for ever there
    (shape,) = found.to_geodataframe("EPSG:6933").geometry
    assert shape.is_valid
    assert shape.area == pytest.approx(found.polygons.area_m2[0], rel=1e-3)


def test_around_a_pole():
    geobox = GeoBox((400, 400), Affine(1000, 0, -200_000, 0, -1000, 200_000), "EPSG:3031")
    mask = np.ones((400, 400), bool)
    mask[300:320, 100:120] = False
    whole = made(one(mask, 0, 0), geobox=geobox).to_geodataframe("EPSG:4326")
    assert whole.geometry[0].covers(shapely.Point(10, -89.99))
    mask[190:210, 190:210] = False
    ring = made(one(mask, 0, 0), geobox=geobox).to_geodataframe("EPSG:4326")
    assert not ring.geometry[0].covers(shapely.Point(10, -89.99))
    assert whole.area_m2[0] - ring.area_m2[0] == pytest.approx(400e6 * 1.057, rel=1e-3)
    for frame in (whole, ring):
        assert frame.geometry[0].is_valid
        assert frame.geometry[0].covers(shapely.Point(180, -88.5))
        assert frame.geometry[0].covers(shapely.Point(0, -88.5))
        shape = shapely.orient_polygons(frame.geometry[0])
        area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shape)
        assert area == pytest.approx(frame.area_m2[0], rel=1e-3)


@pytest.mark.parametrize("left", [175, -185])
def test_degrees_beyond_180_are_cut_where_degrees_are_asked_for(left):
    mask = np.ones((100, 1000), bool)
    mask[20:40, 20:40] = mask[20:40, 800:820] = False
    geobox = GeoBox((100, 1000), Affine(0.01, 0, left, 0, -0.01, -10), "EPSG:4326")
    found = made(one(mask, 0, 0), geobox=geobox)
    assert found.polygons.total_bounds == pytest.approx([left, -11, left + 10, -10])
    (feature,) = json.loads(found.to_geojson())["features"]
    west, east = sorted(
        shapely.geometry.shape(feature["geometry"]).geoms, key=lambda part: part.bounds[0]
    )
    assert west.bounds == pytest.approx((-180, -11, -175, -10))
    assert east.bounds == pytest.approx((175, -11, 180, -10))
    assert [len(part.interiors) for part in (west, east)] == [1, 1]


def test_a_mask_of_the_whole_world():
    for left in (-180, 0):
        geobox = GeoBox((180, 360), Affine(1, 0, left, 0, -1, 90), "EPSG:4326")
        (shape,) = (
            made(one(np.ones((180, 360), bool), 0, 0), geobox=geobox)
            .to_geodataframe("EPSG:4326")
            .geometry
        )
        assert shape.bounds == (-180, -90, 180, 90)
        assert shape.area == pytest.approx(360 * 180)


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
@pytest.mark.parametrize("crs", [None, "EPSG:3857"])
def test_tables(ring, tmp_path, suffix, crs):
    found = made(one(ring, 10, 20, name=3), one(ring, 60, 70, name=4, score=0.25))
    href = found.write(str(tmp_path / f"out.{suffix}"), crs=crs)
    read = geopandas.read_file if suffix == "gpkg" else geopandas.read_parquet
    frame = read(href)
    assert frame.crs == (crs or "EPSG:32614")
    assert list(frame["id"]) == [3, 4]
    assert list(frame.score) == [0.5, 0.25]
    expected = found.to_geodataframe(crs)
    for ours, theirs in zip(frame.geometry, expected.geometry, strict=True):
        assert ours.equals(theirs)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "parquet"])
def test_ids_of_two_kinds_are_text(ring, tmp_path, suffix):
    found = made(one(ring, 10, 20, name=7), one(ring, 30, 20, name="y"))
    href = found.write(str(tmp_path / f"out.{suffix}"))
    read = geopandas.read_parquet if suffix == "parquet" else geopandas.read_file
    assert list(read(href)["id"]) == ["7", "y"]
    assert json.loads(found.to_geojson())["features"][0]["properties"]["id"] == "7"


def test_a_raster_of_one_object(ring, tmp_path):
    first, second = one(ring, 10, 20, score=0.75), one(ring[:5], 30, 20, score=0.5)
    with rasterio.open(made(first, second).write(str(tmp_path / "out.tif"))) as raster:
        assert (raster.count, raster.dtypes[0]) == (2, "uint8")
        assert raster.transform == NORTH_UP
        assert raster.crs.to_epsg() == 32614
        bands = raster.read()
        assert bands.shape == (2, 128, 160)
        np.testing.assert_array_equal(bands[0, 10:24, 20:34] == 1, ring)
        assert bands[0].sum() == ring.sum()
        np.testing.assert_array_equal(bands[1, 30:35, 20:34] == 1, ring[:5])
        assert raster.tags(1)["score"] == "0.750000"
        assert raster.tags()["item"] == "item"


def test_a_raster_of_many(ring, tmp_path):
    objects = one(ring, 10, 20, name="a"), one(ring, 10, 28, name="b")
    with rasterio.open(made(*objects).write(str(tmp_path / "out.tiff"))) as raster:
        band = raster.read(1)
        assert raster.count == 1
    np.testing.assert_array_equal(band[10:24, 28:42] == 2, ring)
    assert (band == 1).sum() == ring.sum() - (ring[:, 8:] & ring[:, :6]).sum()
    with pytest.raises(UsageError, match="several masks of several objects"):
        made(*objects, objects[0]).write(str(tmp_path / "out.tif"))


def test_nothing_found(tmp_path):
    found = made(one(np.zeros((1, 1), bool), 0, 0))
    assert len(found.polygons) == 0
    assert json.loads(found.to_geojson())["features"] == []
    assert len(geopandas.read_parquet(found.write(str(tmp_path / "out.parquet")))) == 0


def test_what_cannot_be_written(ring, tmp_path):
    found = made(one(ring, 0, 0))
    with pytest.raises(UsageError, match="names no format"):
        found.write(str(tmp_path / "out.shp"))
    with pytest.raises(UsageError, match="always"):
        found.write(str(tmp_path / "out.geojson"), crs="EPSG:3857")
    with pytest.raises(UsageError, match="always"):
        found.write(str(tmp_path / "out.geojson"), crs="native")
    with pytest.raises(UsageError, match="--out-crs is no CRS that PROJ knows"):
        found.write(str(tmp_path / "out.gpkg"), crs="EPSG:99999")
    with pytest.raises(UsageError, match="--out-crs is no CRS that PROJ knows"):
        found.to_geodataframe("EPSG:99999")
    assert found.to_geodataframe("native").crs == found.polygons.crs
    with pytest.raises(UsageError, match="own grid"):
        found.write(str(tmp_path / "out.tif"), crs="EPSG:3857")


def test_what_a_notebook_shows(ring):
    found = made(one(ring, 0, 0), one(ring, 30, 30, name="<b>", score=0.25))
    assert repr(found).splitlines() == [
        *("item", "  model       model", "  CRS         EPSG:32614", "  objects     2"),
        *("  masks       2", "  scores      0.250 to 0.500"),
    ]
    assert "<td style='text-align:left'>0.250 to 0.500</td>" in found._repr_html_()
