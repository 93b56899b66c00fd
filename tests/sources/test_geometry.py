from __future__ import annotations

import json

import geopandas
import pytest
import shapely

from geosam_stac.errors import UsageError
from geosam_stac.sources import as_geojson

SQUARE = shapely.box(-99, 46, -98, 47)


def test_text_mapping_and_shape_are_one():
    document = shapely.geometry.mapping(SQUARE)
    text = as_geojson(SQUARE)
    assert shapely.geometry.shape(json.loads(text)).equals(SQUARE)
    assert as_geojson(document) == text
    assert as_geojson("  " + json.dumps(document, indent=3)) == text


@pytest.mark.parametrize("name", ["area.geojson", "area.gpkg", "area.shp"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32614"])
def test_a_files_crs_is_honoured(tmp_path, name, crs):
    path = tmp_path / name
    geopandas.GeoSeries([SQUARE], crs="EPSG:4326").to_crs(crs).to_file(path)
    got = shapely.geometry.shape(json.loads(as_geojson(path)))
    assert got.symmetric_difference(SQUARE).area < 1e-6
    assert as_geojson(str(path)) == as_geojson(path)


def test_features_of_a_file_are_joined_and_mended(tmp_path):
    bow_tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    path = tmp_path / "a.gpkg"
    geopandas.GeoSeries([SQUARE, bow_tie, None], crs="EPSG:4326").to_file(path)
    area = shapely.geometry.shape(json.loads(as_geojson(path)))
    assert area.area == pytest.approx(1.5)


def test_what_is_no_geometry(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        as_geojson(tmp_path / "none.geojson")
    with pytest.raises(UsageError, match="no such file"):
        as_geojson("x" * 5000)
    (tmp_path / "a.geojson").write_text("<html>")
    with pytest.raises(UsageError, match="cannot be read"):
        as_geojson(tmp_path / "a.geojson")
    with pytest.raises(UsageError, match="no GeoJSON"):
        as_geojson("{not json")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no geometry"):
        as_geojson(tmp_path / "t.csv")


def test_a_file_without_a_crs(tmp_path):
    path = tmp_path / "a.shp"
    with pytest.warns(UserWarning, match="crs"):
        geopandas.GeoSeries([SQUARE]).to_file(path)
    with pytest.raises(UsageError, match="has no CRS"):
        as_geojson(path)


def test_the_crs_of_old_geojson_is_not_ignored():
    document = shapely.geometry.mapping(SQUARE)
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32614"}}
    with pytest.raises(UsageError, match=r"not in longitude and latitude.*32614"):
        as_geojson(document | {"crs": named})
    named["properties"]["name"] = "urn:ogc:def:crs:OGC:1.3:CRS84"
    assert as_geojson(document | {"crs": named})
