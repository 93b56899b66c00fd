"""The map: everything in its place in Web Mercator, nothing fetched."""

from __future__ import annotations

import base64
import io
import math
import sys

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.warp import transform

import geosam_stac as gs
from geosam_stac import preview, webmap
from geosam_stac.errors import ConfigurationError, DataError
from tests.store.conftest import encoded, pixels

__all__ = ["encoded", "pixels"]


def picture_of(layer):
    data = base64.b64decode(layer.url.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_overlay_shows_each_cell_where_it_is(encoded, pixels, tmp_path):
    features = gs.open_features(encoded(pixels))
    view = features.explore()
    layer = view.layers[0]
    (south, west), (north, east) = layer.bounds
    shown = picture_of(layer)
    preview.cog(features, preview.projection(features), tmp_path / "p.tif")
    with rasterio.open(tmp_path / "p.tif") as cog:
        cells = cog.read().astype(int)
        places = [cog.xy(row, col) for row in range(1, 7) for col in range(1, 9)]
        xs, ys = transform(cog.crs, "EPSG:3857", *zip(*places, strict=True))
    # As Leaflet stretches it: linear in Web Mercator between the corners.
    (left, right), (bottom, top) = transform("EPSG:4326", "EPSG:3857", [west, east], [south, north])
    height, width = shown.shape[:2]
    cols = ((np.array(xs) - left) / (right - left) * width).astype(int)
    rows = ((top - np.array(ys)) / (top - bottom) * height).astype(int)
    expected = cells[:, 1:7, 1:9].reshape(3, -1)
    assert np.abs(shown[rows, cols, :3].T.astype(int) - expected).max() <= 12
    assert (shown[rows, cols, 3] == 255).all()


def test_footprints_are_the_chips_and_nothing_is_fetched(encoded, pixels):
    features = gs.open_features(encoded(pixels))
    view = features.explore()
    assert [type(layer).__name__ for layer in view.layers] == ["ImageOverlay", "GeoJSON"]
    drawn = gpd.GeoDataFrame.from_features(view.layers[1].data["features"], crs="EPSG:4326")
    assert drawn["name"].tolist() == features.manifest["chip_id"].tolist()
    back = drawn.to_crs(features.crs.proj).geometry
    for got, chip in zip(back, features.manifest.geometry, strict=True):
        assert got.symmetric_difference(chip).area < 1e-6 * chip.area
    assert view.center == [pytest.approx(value, abs=1e-2) for value in (drawn.union_all().centroid.y, drawn.union_all().centroid.x)]  # fmt: skip  # noqa: E501


def test_a_chip_under_the_pointer_is_named(encoded, pixels):
    view = gs.open_features(encoded(pixels)).explore()
    label = next(c.widget for c in view.controls if type(getattr(c, "widget", None)).__name__ == "Label")  # fmt: skip  # noqa: E501
    assert label.value == "12 chips"
    feature = view.layers[1].data["features"][3]
    view.layers[1]._hover_callbacks(event="mouseover", feature=feature, id=None)
    assert label.value == "chip_000003"


def test_polygons_and_chips_are_optional(encoded, pixels):
    features = gs.open_features(encoded(pixels))
    square = gpd.GeoDataFrame(
        {"x": [1]}, geometry=[features.manifest.geometry[0]], crs="EPSG:32614"
    )
    view = features.explore(square, chips=False)
    assert [layer.name for layer in view.layers] == ["embeddings", "polygons"]
    assert list(view.layers[1].data["features"][0]["properties"]) in ([], ["style"])


def test_a_scene_across_the_antimeridian_is_not_cut(encoded, pixels):
    # 160 columns of 100 m about 180 degrees, in UTM zone 60.
    x, y = transform("EPSG:4326", "EPSG:32660", [180.0], [-17.0])
    href = encoded(pixels, crs="EPSG:32660", transform=Affine(100, 0, x[0] - 8000, 0, -100, y[0]))
    features = gs.open_features(href)
    view = features.explore()
    (_, west), (_, east) = view.layers[0].bounds
    assert 0.1 < east - west < 0.2
    longitudes = shapely.get_coordinates(
        gpd.GeoDataFrame.from_features(view.layers[1].data["features"]).geometry.to_numpy()
    )[:, 0]
    assert np.ptp(longitudes) < 0.2
    assert west - 1e-3 <= longitudes.min()
    assert longitudes.max() <= east + 1e-3


def test_at_a_pole_the_error_says_what_to_do(encoded, pixels):
    href = encoded(pixels, crs="EPSG:3031", transform=Affine(1000, 0, -80_000, 0, -1000, 64_000))
    with pytest.raises(DataError, match=r"\.plot\(\)"):
        gs.open_features(href).explore()


def test_very_many_chips_are_one_outline(encoded, pixels, monkeypatch):
    monkeypatch.setattr(webmap, "MOST_CHIPS", 5)
    (outline,) = webmap.footprints(gs.open_features(encoded(pixels)), -99.0)["features"]
    assert outline["properties"] == {"name": "12 chips"}


def test_without_ipyleaflet_the_error_names_the_extra(encoded, pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyleaflet", None)
    with pytest.raises(ConfigurationError, match=r"geosam-stac\[notebook\]") as raised:
        gs.open_features(encoded(pixels)).explore()
    assert raised.value.exit_code == 78


def test_the_zoom_fits_the_map():
    assert webmap._zoom((-85.0511, -180, 85.0511, 180)) == 0
    side = math.degrees(1000 / 6_378_137)
    # 1 km in 480 px: at zoom 16 a pixel has 2.4 m.
    assert webmap._zoom((0, 0, side, side)) == 16
