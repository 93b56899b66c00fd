from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.errors import DataError, UsageError
from geosam_stac.sources import list_bands, parse_item, select_bands
from geosam_stac.sources.bands import describe, tells_bands
from tests.rasters import NORTH_UP, asset, document, named_bands, projection

ITEMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "items"
needs_items = pytest.mark.skipif(not ITEMS.is_dir(), reason="../shared/data/items is not here")


def item_of(assets: dict, **top) -> pystac.Item:
    return parse_item(document(assets, **top), href="/data/item.json")


def shared(start: str) -> pystac.Item:
    (path,) = ITEMS.glob(f"{start}*.json")
    return parse_item(json.loads(path.read_text()), href=str(path))


def places(bands) -> list[str]:
    return [f"{band.asset}.{band.index}" for band in bands]


def eo(*names: tuple[str, str]) -> list[dict]:
    return [{"name": name, "common_name": common} for name, common in names]


# STAC 1.0, as Earth Search writes it: derived first on purpose.
SENTINEL = {
    "visual": asset(
        "v.tif",
        roles=["visual"],
        **{"eo:bands": eo(("B04", "red"), ("B03", "green"), ("B02", "blue"))},
    ),
    "blue": asset("b.tif", **{"eo:bands": eo(("B02", "blue"))}),
    "green": asset("g.tif", **{"eo:bands": eo(("B03", "green"))}),
    "red": asset(
        "r.tif",
        **{
            "eo:bands": eo(("B04", "red")),
            "raster:bands": [{"nodata": 0, "data_type": "uint16"}],
        },
    ),
    "B8A": asset("n.tif", **{"eo:bands": eo(("nir-narrow", "nir08"))}),
    "thumbnail": {"href": "t.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
    "meta": {"href": "m.xml", "type": "application/xml", "roles": ["metadata"]},
}
NAIP = {
    "image": asset(
        "i.tif",
        bands=[
            {"name": "Red", "eo:common_name": "red", "nodata": 0, "data_type": "uint8"},
            {"name": "Green", "eo:common_name": "green", "data_type": "uint8"},
            {"name": "Blue", "eo:common_name": "blue"},
            {"name": "NIR", "eo:common_name": "nir", "nodata": "nan", "data_type": "float32"},
        ],
    )
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["red.1", "green.1", "blue.1"]),
        (["red"], ["red.1"]),
        (["B04", "B03"], ["red.1", "green.1"]),
        (["b02"], ["blue.1"]),
        (["RED"], ["red.1"]),
        (["nir08"], ["B8A.1"]),
        (["NIR-Narrow"], ["B8A.1"]),
        (["b8a"], ["B8A.1"]),
        (["visual"], ["visual.1", "visual.2", "visual.3"]),
        (["VISUAL"], ["visual.1", "visual.2", "visual.3"]),
        (["visual.2", "red"], ["visual.2", "red.1"]),
        (["red", "red"], ["red.1", "red.1"]),
        (["red.1"], ["red.1"]),
    ],
)
def test_names_of_stac_1_0(names, expected):
    assert places(select_bands(item_of(SENTINEL, version="1.0.0"), names)) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["image.1", "image.2", "image.3"]),
        (["NIR", "Red", "Green"], ["image.4", "image.1", "image.2"]),
        (["nir"], ["image.4"]),
        (["Nir"], ["image.4"]),
        (["image.4"], ["image.4"]),
        (["image.3", "nir"], ["image.3", "image.4"]),
    ],
)
def test_names_of_stac_1_1(names, expected):
    assert places(select_bands(item_of(NAIP), names)) == expected


def test_facts_of_a_band():
    red, green, blue, nir = list_bands(item_of(NAIP))
    assert (red.name, red.common_name, red.dtype, red.nodata) == ("Red", "red", "uint8", 0.0)
    assert (green.dtype, green.nodata, blue.dtype) == ("uint8", None, None)
    assert math.isnan(nir.nodata)
    assert red.href == red.source_href == "/data/i.tif"
    assert red.geobox is None
    (only,) = select_bands(item_of(SENTINEL, version="1.0.0"), ["red"])
    assert (only.name, only.dtype, only.nodata) == ("B04", "uint16", 0.0)


def test_fields_of_the_asset_stand_for_all_its_bands():
    bands = [{"name": "a"}, {"name": "b", "nodata": 7}]
    item = item_of({"x": asset("x.tif", bands=bands, nodata=-1, data_type="int16")})
    assert [(b.nodata, b.dtype) for b in list_bands(item)] == [(-1.0, "int16"), (7.0, "int16")]


@pytest.mark.parametrize("kind", ["other", "cint16", "cfloat32", "float16", 5, None, "nonsense"])
def test_data_types_that_numpy_or_gdal_lack_are_left_to_the_header(kind):
    (band,) = list_bands(item_of({"x": asset("x.tif", data_type=kind)}))
    assert band.dtype is None


@pytest.mark.parametrize(
    ("text", "value"), [("-inf", -math.inf), ("inf", math.inf), ("-9999", -9999.0)]
)
def test_nodata_as_text(text, value):
    (band,) = list_bands(item_of({"x": asset("x.tif", nodata=text)}))
    assert band.nodata == value


@pytest.mark.parametrize("value", ["none", [0], {}])
def test_nodata_that_is_no_number(value):
    with pytest.raises(DataError, match=r"\$\.assets\.x\.nodata is wrong"):
        list_bands(item_of({"x": asset("x.tif", nodata=value)}))


def test_signatures_stay_out_of_the_href():
    (band,) = list_bands(item_of({"x": asset("https://h/x.tif?sig=secret&a=1")}))
    assert band.href == "https://h/x.tif?a=1"
    assert band.source_href == "https://h/x.tif?sig=secret&a=1"
    assert "secret" not in repr(band)


def test_an_unknown_band_lists_what_there_is_and_suggests():
    with pytest.raises(DataError) as caught:
        select_bands(item_of(SENTINEL, version="1.0.0"), ["gren"])
    text = str(caught.value)
    assert text.startswith("no band 'gren' (item scene-1).")
    assert "Did you mean 'green'?" in text
    assert (
        "There are: blue (B02), green (B03), red (B04), B8A (nir-narrow, nir08), visual.1" in text
    )
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("name", ["image.0", "image.5", "image.x", "other.1", ""])
def test_band_numbers_that_are_not_there(name):
    with pytest.raises(DataError, match="no band"):
        select_bands(item_of(NAIP), [name])


def test_an_asset_of_four_bands_is_too_much_and_lists_them():
    with pytest.raises(UsageError) as caught:
        select_bands(item_of(NAIP), ["image"])
    assert "got 4: Red, Green, Blue, NIR" in str(caught.value)
    assert "There are: image.1 (Red, red), image.2 (Green, green)" in str(caught.value)


def test_defaults_without_common_names():
    named = {k: asset(f"{k}.tif") for k in ("nir", "blue", "Green", "red", "swir")}
    assert places(select_bands(item_of(named), None)) == ["red.1", "Green.1", "blue.1"]
    unnamed = {"x": asset("x.tif", bands=[{"name": f"b{i}"} for i in range(5)])}
    assert places(select_bands(item_of(unnamed), None)) == ["x.1", "x.2", "x.3"]
    radar = {"vv": asset("vv.tif"), "vh": asset("vh.tif")}
    assert places(select_bands(item_of(radar), None)) == ["vv.1", "vh.1"]
    # Bands of one grid: 60 m and 10 m do not mix unasked.
    mixed = {
        "coastal": asset("c.tif", **projection(NORTH_UP * Affine.scale(6), (10, 10))),
        "nir": asset("n.tif", **projection(NORTH_UP, (60, 60))),
        "aerosol": asset("a.tif", **projection(NORTH_UP * Affine.scale(6), (10, 10))),
    }
    assert places(select_bands(item_of(mixed), None)) == ["coastal.1", "aerosol.1"]


def test_a_description_that_is_a_common_name_is_one():
    bands = [{"name": "b1", "description": "Blue"}, {"name": "b2", "description": "of the sea"}]
    one, two = list_bands(item_of({"x": asset("x.tif", bands=bands)}))
    assert (one.common_name, two.common_name) == ("blue", None)


def test_a_silent_asset_has_as_many_bands_as_it_is_told():
    item = item_of({"image": asset("x.tif")})
    assert not tells_bands(item.assets["image"])
    assert places(list_bands(item)) == ["image.1"]
    assert places(list_bands(item, counts={"image": 3})) == ["image.1", "image.2", "image.3"]
    assert places(select_bands(item, ["image"], counts={"image": 3})) == [
        "image.1",
        "image.2",
        "image.3",
    ]
    # The header decides later whether there is a seventh.
    assert places(select_bands(item, ["image.7"])) == ["image.7"]


@pytest.mark.parametrize(
    ("fields", "is_raster"),
    [
        (
            {"href": "a.tif", "type": "image/tiff; application=geotiff; profile=cloud-optimized"},
            True,
        ),
        ({"href": "a.jp2", "type": "image/jp2"}, True),
        ({"href": "a", "type": "image/vnd.stac.geotiff; cloud-optimized=true"}, True),
        ({"href": "a.TIF?x=1", "type": "application/octet-stream"}, True),
        ({"href": "a.tiff"}, True),
        ({"href": "a", "roles": ["data"]}, True),
        ({"href": "a", "type": None, "roles": None}, False),
        ({"href": "a.png", "type": "image/png", "roles": ["data"]}, False),
        ({"href": "a.jpg", "type": "image/jpeg"}, False),
        ({"href": "a.tif", "type": "image/tiff", "roles": ["thumbnail"]}, False),
        ({"href": "a.xml", "type": "application/xml"}, False),
        ({"href": "a.parquet", "type": "application/vnd.apache.parquet", "roles": ["data"]}, False),
    ],
)
def test_which_assets_are_rasters(fields, is_raster):
    item = item_of({"x": fields, "sure": asset("sure.tif")})
    assert ("x" in {band.asset for band in list_bands(item)}) == is_raster


def test_an_item_without_a_raster_is_refused():
    with pytest.raises(
        DataError, match=r"no raster asset.*expected a GeoTIFF.*got thumbnail, meta"
    ):
        list_bands(item_of({key: SENTINEL[key] for key in ("thumbnail", "meta")}))


# Projection metadata

GRID = GeoBox((20, 30), NORTH_UP, "EPSG:32614")
PLACE = {"proj:shape": [20, 30], "proj:transform": list(NORTH_UP)[:6]}


@pytest.mark.parametrize(
    "crs",
    [
        {"proj:code": "EPSG:32614"},
        {"proj:epsg": 32614},
        {"proj:wkt2": GRID.crs.to_wkt()},
        {"proj:projjson": GRID.crs.proj.to_json_dict()},
        {"proj:code": None, "proj:epsg": 32614},
    ],
)
@pytest.mark.parametrize("at", ["asset", "item"])
def test_every_way_to_say_the_crs(crs, at):
    item = item_of({"x": asset("x.tif", **PLACE, **(crs if at == "asset" else {}))})
    if at == "item":
        item.properties.update(crs)
    (band,) = list_bands(item)
    assert band.geobox == GRID


def test_nine_numbers_and_the_assets_own_fields_win():
    own = projection(NORTH_UP * Affine.scale(2), (10, 15))
    own["proj:transform"] = list(NORTH_UP * Affine.scale(2))
    assert len(own["proj:transform"]) == 9
    item = item_of({"x": asset("x.tif", **own), "y": asset("y.tif")})
    item.properties.update(PLACE | {"proj:code": "EPSG:32614"})
    x, y = list_bands(item)
    assert x.geobox == GeoBox((10, 15), NORTH_UP * Affine.scale(2), "EPSG:32614")
    assert y.geobox == GRID
    # An asset's old spelling is nearer than the Item's new one.
    item = item_of({"x": asset("x.tif", **PLACE, **{"proj:epsg": 32615})})
    item.properties["proj:code"] = "EPSG:32614"
    assert list_bands(item)[0].geobox.crs.epsg == 32615


@pytest.mark.parametrize("missing", ["proj:shape", "proj:transform", "proj:code"])
@pytest.mark.parametrize("how", ["left out", "null"])
def test_an_incomplete_projection_is_left_to_the_header(missing, how):
    fields = projection(NORTH_UP, (20, 30)) | {missing: None}
    if how == "left out":
        del fields[missing]
    (band,) = list_bands(item_of({"x": asset("x.tif", **fields)}))
    assert band.geobox is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"proj:shape": ["20", "30"]},
        {"proj:shape": "23"},
        {"proj:shape": [20]},
        {"proj:shape": [0, 30]},
        {"proj:shape": [20.5, 30]},
        {"proj:shape": {"a": 1, "b": 2}},
        {"proj:transform": [10, 0, 5]},
        {"proj:transform": "north up"},
        {"proj:transform": [10, 0, 5, 0, None, 5]},
        {"proj:transform": [0, 0, 5, 0, 0, 5]},
        {"proj:transform": [10, 0, math.nan, 0, -10, 5]},
        {"proj:transform": [10, 0, 5, 0, -10, 5, 1, 1, 1]},
        {"proj:code": "EPSG:99999999"},
        {"proj:code": "mars"},
        {"proj:code": "EPSG:4978"},
        {"proj:code": {"type": "nothing"}},
        {"proj:code": [32614]},
    ],
)
def test_a_wrong_projection_names_the_asset(wrong):
    fields = projection(NORTH_UP, (20, 30)) | wrong
    with pytest.raises(DataError, match=r"^\$\.assets\.x\.proj:\w+(\[\S+\])? is wrong") as caught:
        list_bands(item_of({"x": asset("x.tif", **fields)}))
    assert caught.value.item == "scene-1"


def test_describe_is_short_for_plain_names():
    item = item_of({"vv": asset("vv.tif"), "image": asset("i.tif", **named_bands("a", "b"))})
    assert describe(list_bands(item)) == "vv, image.1 (a), image.2 (b)"


# Items as they are in the wild


@needs_items
@pytest.mark.shared
def test_earth_searchs_sentinel_2():
    item = shared("sentinel-2")
    assert places(select_bands(item, None)) == ["red.1", "green.1", "blue.1"]
    assert places(select_bands(item, ["visual"])) == ["visual.1", "visual.2", "visual.3"]
    swir, nir = select_bands(item, ["swir16", "B08"])
    assert swir.geobox.shape == (5490, 5490)
    assert nir.geobox == GeoBox((10980, 10980), Affine(10, 0, 499980, 0, -10, 6400000), 32720)
    assert (nir.asset, nir.dtype, nir.nodata) == ("nir", "uint16", 0.0)
    assert not {"thumbnail", "granule_metadata"} & {band.asset for band in list_bands(item)}


@needs_items
@pytest.mark.shared
def test_usgs_landsat():
    item = shared("landsat")
    bands = select_bands(item, None)
    assert places(bands) == ["red.1", "green.1", "blue.1"]
    assert bands[0].href.startswith("s3://usgs-landsat/")
    assert bands[0].geobox.crs.epsg == 3031
    assert bands[0].geobox.shape == (8271, 8331)
    assert places(select_bands(item, ["B5"])) == ["nir08.1"]


@needs_items
@pytest.mark.shared
def test_rio_stacs_naip_without_media_type_and_roles():
    item = shared("naip")
    assert places(select_bands(item, None)) == ["asset.1", "asset.2", "asset.3"]
    assert places(select_bands(item, ["Blue", "red"])) == ["asset.3", "asset.1"]
    (nir,) = select_bands(item, ["b4"])
    assert nir.common_name is None  # its description is "undefined"
    assert nir.geobox.shape == (12666, 9704)
    assert nir.geobox.crs.epsg == 26919


def test_listing_does_not_change_the_item():
    item = item_of(copy.deepcopy(SENTINEL), version="1.0.0")
    before = item.to_dict(transform_hrefs=False)
    select_bands(item, None)
    assert item.to_dict(transform_hrefs=False) == before
