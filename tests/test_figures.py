"""A scene as a picture: what is drawn lies where it is."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

import geosam_stac as gs
from geosam_stac import figures, preview
from geosam_stac.errors import DataError, UsageError
from tests import rasters
from tests.store.conftest import encoded, pixels

__all__ = ["encoded", "pixels"]


def shown(picture):
    return np.asarray(picture)


def test_the_picture_has_the_scenes_aspect_and_colours(encoded, pixels, tmp_path):
    features = gs.open_features(encoded(pixels))
    picture = features.plot(chips=False, size_px=320)
    assert (picture.mode, picture.size) == ("RGBA", (320, 256))
    assert (shown(picture)[..., 3] == 255).all()
    preview.cog(features, preview.projection(features), tmp_path / "p.tif")
    with rasterio.open(tmp_path / "p.tif") as cog:
        cells = cog.read().astype(int)
    # In the middle of each of the 8 x 10 cells is the cell's colour, as nearly as cubics keep it.
    middles = shown(picture)[16::32, 16::32, :3].transpose(2, 0, 1).astype(int)
    assert np.abs(middles - cells).mean() < 6


def test_features_are_read_once_for_it(encoded, pixels, monkeypatch):
    features = gs.open_features(encoded(pixels))
    drawn = []
    cog = preview.cog
    monkeypatch.setattr(preview, "cog", lambda *args: drawn.append(1) or cog(*args))
    features.plot()
    features.plot(size_px=100)
    assert len(drawn) == 1


def test_an_overview_that_is_stored_is_taken(encoded, pixels, monkeypatch, tmp_path):
    href = encoded(pixels)
    features = gs.open_features(href)
    colours = preview.projection(features)
    preview.cog(features, colours, tmp_path / "p.tif")
    preview.attach(features, colours, (tmp_path / "p.tif").read_bytes())
    monkeypatch.setattr(preview, "cog", None)
    assert shown(gs.open_features(href).plot()).shape == (614, 768, 4)


def test_chips_are_outlined_and_skipped_ones_red(encoded):
    data = rasters.values((3, 64, 192), "uint8")
    data[:, :, 64:128] = 0
    features = gs.open_features(encoded(data, nodata=0, stride=64))
    picture = shown(features.plot(size_px=384)).astype(int)
    assert picture[64, 191, 3] == 0  # in the skipped chip there is nothing
    red = picture[64, 120:140]
    assert (red[:, 0] - red[:, 2]).max() > 100
    plain = shown(features.plot(size_px=384, chips=False)).astype(int)
    assert np.abs(picture - plain)[:2, 20:100].max() > 50
    assert np.abs(picture - plain)[40:90, 20:100].max() == 0


def test_polygons_and_clicks_lie_where_they_are(encoded, pixels):
    """In another CRS than the scene's; the hole stays free."""
    features = gs.open_features(encoded(pixels))
    left, _, right, top = features.geobox.boundingbox.bbox
    px = (right - left) / 320
    outer = shapely.box(left + 80 * px, top - 160 * px, left + 160 * px, top - 80 * px)
    hole = shapely.box(left + 100 * px, top - 140 * px, left + 140 * px, top - 100 * px)
    ring = gpd.GeoDataFrame(geometry=[outer.difference(hole)], crs=features.crs.proj)
    ring = ring.to_crs("EPSG:4326")
    click = gpd.GeoSeries([shapely.Point(left + 240 * px, top - 200 * px)], crs=features.crs.proj)
    lonlat = click.to_crs("OGC:CRS84").iloc[0]
    plain = shown(features.plot(chips=False, size_px=320)).astype(int)
    picture = shown(
        features.plot(ring, points=[(lonlat.x, lonlat.y)], labels=[0], chips=False, size_px=320)
    ).astype(int)
    changed = np.abs(picture - plain).max(axis=2) > 8
    assert changed[84:96, 84:156].mean() > 0.95
    assert not changed[104:136, 104:136].any()
    assert not changed[:76].any()
    assert not changed[:, 164:230].any()
    assert tuple(picture[200, 240, :3]) == figures.OFF_COLOUR[:3]


def test_a_raster_as_background(encoded, pixels, tmp_path):
    features = gs.open_features(encoded(pixels))
    picture = features.plot(background=tmp_path / "scene.tif", chips=False, size_px=160)
    got = shown(picture)[..., :3].transpose(2, 0, 1).astype(int)
    np.testing.assert_array_equal(got, pixels)
    single = rasters.write_tif(tmp_path / "one.tif", rasters.values((1, 128, 160), "uint16"))
    grey = shown(features.plot(background=single, chips=False, size_px=160))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (grey[..., 0].min(), grey[..., 0].max()) == (0, 255)


def test_usage(encoded, pixels, tmp_path):
    features = gs.open_features(encoded(pixels))
    with pytest.raises(UsageError, match="64 to 4096"):
        features.plot(size_px=10)
    for labels in ([1, 1], [2]):
        with pytest.raises(UsageError, match="labels do not fit"):
            features.plot(points=[(0, 0)], labels=labels)
    with pytest.raises(UsageError, match="without a CRS"):
        features.plot(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))
    with pytest.raises(DataError, match="background cannot be read"):
        features.plot(background=tmp_path / "none.tif")
