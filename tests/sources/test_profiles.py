"""Catalog profiles: schema, sources, presets against each API's Item shape, and the look-ups."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pystac
import pytest

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import ConfigurationError, DataError
from geosam_stac.sources import profiles
from geosam_stac.sources.bands import select_bands
from geosam_stac.sources.profiles import (
    find_collection,
    find_preset,
    list_profiles,
    load_profile,
    profile_of,
)

REPOSITORY = Path(__file__).parents[2]
CATALOGS = REPOSITORY / "catalogs"
SHAPES = REPOSITORY / "tests" / "data" / "api_shapes"
NAMES = tuple(sorted(path.stem for path in CATALOGS.glob("*.toml")))


def document(name):
    return tomllib.loads((CATALOGS / f"{name}.toml").read_text(encoding="utf-8"))


def entries():
    """(catalog, collection) as the files list them: aliases have the shape of their entry."""
    return [(name, collection) for name in NAMES for collection in document(name)["collections"]]


def shape(catalog, collection):
    """The API's Item, reduced: a new one each time."""
    text = (SHAPES / f"{catalog}.{collection}.item.json").read_text(encoding="utf-8")
    return pystac.Item.from_dict(json.loads(text), preserve_dict=False)


@pytest.fixture(scope="module")
def schema():
    loaded = json.loads((CATALOGS / "profile.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(loaded)
    return jsonschema.Draft202012Validator(loaded)


def test_every_catalog_of_the_task_has_a_profile():
    assert list_profiles() == NAMES
    assert set(NAMES) >= {
        "earth-search",
        "planetary-computer",
        "usgs-landsat",
        "copernicus-data-space",
        "digital-earth-africa",
        "digital-earth-australia",
        "nasa-cmr",
        "brazil-data-cube",
        "swisstopo",
    }


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_valid(name, schema):
    errors = [f"{error.json_path}: {error.message}" for error in schema.iter_errors(document(name))]
    assert not errors
    assert document(name)["name"] == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda profile: profile.update(colour="red"), "colour"),
        (lambda profile: profile.update(signer="magic"), "magic"),
        (lambda profile: profile.update(signer="token"), "token_hosts"),
        (lambda profile: profile.update(url="http://example.com"), "example.com"),
        (lambda profile: profile["collections"]["c"].pop("source"), "source"),
        (lambda profile: profile["collections"]["c"].update(resolution_m={"value": 10}), "source"),
        (lambda profile: profile["collections"]["c"]["presets"]["p"].pop("source"), "source"),
        (
            lambda profile: profile["collections"]["c"]["presets"]["p"].update(index="NDVI"),
            "not valid",
        ),
        (
            lambda profile: profile["collections"]["c"].update(
                mask={"value": "scl:bits=40", "source": "some"}
            ),
            "bits=40",
        ),
    ],
)
def test_schema_is_strict(schema, change, message):
    profile = {
        "name": "a",
        "title": "A",
        "url": "https://a.example/stac",
        "hosts": ["a.example"],
        "signer": "none",
        "requester_pays": False,
        "credentials": [],
        "source": "some",
        "collections": {
            "c": {
                "title": "C",
                "source": "some",
                "default": "p",
                "presets": {"p": {"bands": ["red"], "source": "some"}},
            }
        },
    }
    assert schema.is_valid(profile)
    change(profile)
    assert message in " ".join(error.message for error in schema.iter_errors(profile))


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_its_source(name):
    profile = load_profile(name)
    for collection in profile.collections.values():
        for figure in ("resolution_m", "value_range", "nodata", "dtype", "mask"):
            if getattr(collection, figure) is not None:
                assert collection.sources[figure].strip(), (collection.id, figure)
        for preset in collection.presets.values():
            said = [field for field in ("bands", "expression", "index") if getattr(preset, field)]
            assert len(said) == 1, (collection.id, preset.name)
            for figure in (*said, "value_range", "resolution_m", "mask"):
                if getattr(preset, figure) is not None:
                    assert preset.sources[figure].strip(), (collection.id, preset.name, figure)
            assert all(variant.source.strip() for variant in preset.variants)
        assert collection.default in collection.presets


def test_a_profile_holds_no_secret():
    for name in NAMES:
        text = (CATALOGS / f"{name}.toml").read_text(encoding="utf-8")
        for word in ("Bearer ", "AKIA", "eyJ", "sig="):
            assert word not in text, name


@pytest.mark.parametrize(("catalog", "collection"), entries())
def test_presets_resolve_against_the_api_shape(catalog, collection):
    from geosam_stac.derive import Expression, Mask

    item = shape(catalog, collection)
    entry = load_profile(catalog).collections[collection]
    for preset in entry.presets.values():
        mine = preset.for_item(item)
        if mine.bands is not None:
            bands = select_bands(item, mine.bands)
            assert len(bands) == len(mine.bands)
            assert len({(band.asset, band.index) for band in bands}) == len(bands)
            _check_metadata(entry, bands)
        else:
            expression = Expression.parse(mine.expression)
            for name in expression.bands.values():
                (band,) = select_bands(item, [name])
                _check_metadata(entry, [band])
            assert mine.value_range is not None
        if mine.mask is not None:
            (band,) = select_bands(item, [Mask.parse(mine.mask).band])
        assert mine.value_range is None or mine.value_range[0] < mine.value_range[1]


def _check_metadata(entry, bands):
    """`dtype` and `nodata` stand in a profile only where the Items fail to say them."""
    for band in bands:
        for figure in ("dtype", "nodata"):
            in_profile, in_item = getattr(entry, figure), getattr(band, figure)
            if in_profile is not None and in_item is not None:
                assert in_profile == in_item or math.isnan(in_profile), (entry.id, figure)


@pytest.mark.parametrize(("catalog", "collection"), entries())
def test_true_color_is_red_green_blue(catalog, collection):
    preset = load_profile(catalog).collections[collection].presets.get("true-color")
    if preset is None:
        assert collection in ("sentinel-1-rtc", "s1_rtc")
        return
    item = shape(catalog, collection)
    bands = select_bands(item, preset.for_item(item).bands)
    common = [band.common_name for band in bands]
    if all(common):
        assert common == ["red", "green", "blue"]


@pytest.mark.parametrize(("catalog", "collection"), entries())
def test_shapes_are_unsigned_and_say_where_they_were_seen(catalog, collection):
    from geosam_stac.hrefs import find_secret

    text = (SHAPES / f"{catalog}.{collection}.item.json").read_text(encoding="utf-8")
    assert find_secret(text) is None
    about = json.loads(text)["_shape"]
    assert about["seen"]
    assert about["verified"] is not ("unverified" in about)


def recorded(catalog, path):
    """Whether the file holds a real Item of this catalog's API."""
    about = json.loads(path.read_text("utf-8"))["_shape"]
    return path.name.startswith(f"{catalog}.") and about["verified"]


def test_profiles_stand_on_recorded_items():
    """Each API has a real Item among its shapes; of swissimage-dop10 itself none was found."""
    profiled = {
        catalog
        for catalog, collection in entries()
        if recorded(catalog, SHAPES / f"{catalog}.{collection}.item.json")
    }
    assert set(NAMES) - profiled == {"swisstopo"}
    for name in NAMES:
        assert any(recorded(name, path) for path in SHAPES.glob("*.item.json")), name


OTHERS = [
    ("brazil-data-cube", "prec_merge_daily-1", {}),
    # Version 1 of the API renamed the field; the record is of 0.9.
    ("swisstopo", "ch.swisstopo.pixelkarte-farbe-pk200.noscale", {"gsd": "eo:gsd"}),
]


@pytest.mark.parametrize(("catalog", "collection", "renamed"), OTHERS)
def test_a_record_of_another_collection_shows_the_api_s_own_fields(catalog, collection, renamed):
    """What the profiled collections' shapes say of links, hosts and files, the API does say."""
    profile, record = load_profile(catalog), shape(catalog, collection)
    assert collection not in profile.collections
    assert profile_of(record) is None
    hosts = {urlsplit(link.target).hostname for link in record.links}
    hosts |= {urlsplit(asset.href).hostname for asset in record.assets.values()}
    assert hosts <= set(profile.hosts)
    root = profile.url.rsplit("/", 1)[0] + "/"
    assert all(link.target.startswith(root) for link in record.links)
    fields = {"href", "type", "roles", "eo:bands"}  # eo:bands is written by band, not by API
    fields |= {key for asset in record.assets.values() for key in asset.extra_fields}
    for _, own in (entry for entry in entries() if entry[0] == catalog):
        item = shape(catalog, own)
        assert {link.rel for link in item.links} <= {link.rel for link in record.links}
        said = {key for asset in item.assets.values() for key in asset.extra_fields}
        assert {renamed.get(key, key) for key in said} <= fields
        # Neither gives a grid: it is read from the files.
        for key in ("proj:shape", "proj:transform"):
            assert key not in said | set(item.properties) | fields | set(record.properties)


def test_swisstopo_s_assets_are_named_by_their_files():
    """The presets' patterns rest on it: a key is the end of its href, and tells the pixel size."""
    for collection in (
        "ch.swisstopo.pixelkarte-farbe-pk200.noscale",
        "ch.swisstopo.swissimage-dop10",
    ):
        for key, asset in shape("swisstopo", collection).assets.items():
            assert asset.href == (
                f"https://data.geo.admin.ch/{collection}/{shape('swisstopo', collection).id}/{key}"
            )


def test_the_data_cube_s_items_say_nodata_band_by_band():
    item = shape("brazil-data-cube", "S2-16D-2")
    said = {
        name: (band.dtype, band.nodata, band.scale)
        for name in ("B04", "NDVI", "SCL")
        for band in select_bands(item, [name])
    }
    assert said == {
        "B04": ("int16", 0.0, 1e-4),
        "NDVI": ("int16", -9999.0, 1e-4),
        "SCL": ("uint8", 0.0, 1.0),
    }
    entry = load_profile("brazil-data-cube").collections["S2-16D-2"]
    assert (entry.dtype, entry.nodata) == (None, None)


def test_a_profile_s_range_is_that_of_the_recorded_scale_and_offset():
    """Where an Item states them, reflectance 0 to 0.3 is the profile's value range."""
    item = shape("digital-earth-africa", "s2_l2a_c1")
    entry = load_profile("digital-earth-africa").collections["s2_l2a_c1"]
    (red,) = select_bands(item, ["red"])
    assert (red.scale, red.offset) == (0.0001, -0.1)
    lo, hi = entry.value_range
    assert (lo * red.scale + red.offset, hi * red.scale + red.offset) == pytest.approx((0, 0.3))


@pytest.mark.parametrize(("catalog", "collection"), entries())
def test_an_item_finds_its_profile(catalog, collection):
    found = profile_of(shape(catalog, collection))
    assert found is not None
    assert (found[0].name, found[1].id) == (catalog, collection)


@pytest.mark.parametrize(("catalog", "collection"), entries())
def test_an_item_finds_its_profile_by_its_assets_alone(catalog, collection):
    item = shape(catalog, collection)
    item.links = []
    found = profile_of(item)
    assert found is not None
    assert found[0].name == catalog


def test_own_links_count_more_than_assets():
    item = shape("earth-search", "landsat-c2-l2")
    item.links = [pystac.Link("self", "https://planetarycomputer.microsoft.com/api/stac/v1/x")]
    assert profile_of(item)[0].name == "planetary-computer"


def test_no_link_is_followed():
    item = shape("earth-search", "naip")
    # Nothing listens there: whoever fetches the root fails.
    item.set_self_href("http://127.0.0.1:9/collections/naip/items/x")
    item.links.append(pystac.Link("root", "http://127.0.0.1:9/"))
    assert profile_of(item)[0].name == "earth-search"


@pytest.mark.parametrize(
    ("collection", "href"),
    [
        ("sentinel-2-l2a", "https://elsewhere.example/B04.tif"),
        ("sentinel-2-l2a", "/data/B04.tif"),
        ("something-else", "https://sentinel-cogs.s3.us-west-2.amazonaws.com/B04.tif"),
        (None, "https://sentinel-cogs.s3.us-west-2.amazonaws.com/B04.tif"),
        ("sentinel-2-l2a", "https://sentinel-cogs.s3.us-west-2.amazonaws.com.evil.example/B04.tif"),
        ("sentinel-2-l2a", "https://[broken"),
    ],
)
def test_strangers_have_no_profile(collection, href):
    item = shape("earth-search", "sentinel-2-l2a")
    item.links, item.collection_id = [], collection
    item.assets = {"red": pystac.Asset(href)}
    assert profile_of(item) is None


# Reflectance 0 to 0.3 as DN, worked out from each product's scale and offset.
REFLECTANCE = {
    ("earth-search", "sentinel-2-c1-l2a"): (1e-4, -0.1),
    ("earth-search", "sentinel-2-l2a"): (1e-4, 0),  # the offset is in the pixels
    ("earth-search", "landsat-c2-l2"): (2.75e-5, -0.2),
    ("planetary-computer", "sentinel-2-l2a"): (1e-4, -0.1),
    ("planetary-computer", "landsat-c2-l2"): (2.75e-5, -0.2),
    ("planetary-computer", "hls2-s30"): (1e-4, 0),
    ("planetary-computer", "hls2-l30"): (1e-4, 0),
    ("usgs-landsat", "landsat-c2l2-sr"): (2.75e-5, -0.2),
    ("copernicus-data-space", "sentinel-2-l2a"): (1e-4, -0.1),
    ("digital-earth-africa", "s2_l2a"): (1e-4, 0),
    ("digital-earth-africa", "s2_l2a_c1"): (1e-4, -0.1),
    ("digital-earth-africa", "ls9_sr"): (2.75e-5, -0.2),
    ("digital-earth-africa", "gm_s2_annual"): (1e-4, 0),
    ("digital-earth-australia", "ga_s2cm_ard_3"): (1e-4, 0),
    ("digital-earth-australia", "ga_ls9c_ard_3"): (1e-4, 0),
    ("nasa-cmr", "HLSS30_2.0"): (1e-4, 0),
    ("nasa-cmr", "HLSL30_2.0"): (1e-4, 0),
    ("brazil-data-cube", "S2-16D-2"): (1e-4, 0),
}


@pytest.mark.parametrize(("catalog", "collection"), REFLECTANCE)
def test_value_range_is_reflectance_0_to_0_3(catalog, collection):
    scale, offset = REFLECTANCE[catalog, collection]
    preset = find_preset("true-color", profile=load_profile(catalog), collection=collection)
    assert preset.value_range == tuple(round((value - offset) / scale) for value in (0, 0.3))


@pytest.mark.parametrize(("catalog", "collection"), REFLECTANCE)
def test_ndvi_is_of_reflectance(catalog, collection):
    """Whatever the DN's scale and offset, NDVI of reflectance 0.4 and 0.1 is 0.6."""
    import numpy as np

    from geosam_stac.derive import Expression

    scale, offset = REFLECTANCE[catalog, collection]
    preset = load_profile(catalog).collections[collection].presets["ndvi"]
    if preset.expression is None:
        assert preset.bands == ("NDVI",)
        return
    expression = Expression.parse(preset.expression)
    near = sorted(expression.bands.values(), key=lambda name: "red" in name or "4" in name)
    values = {
        name: np.array([(value - offset) / scale])
        for name, value in zip(_nir_red(near, collection), (0.4, 0.1), strict=True)
    }
    assert expression.evaluate(values)[0] == pytest.approx(0.6, abs=1e-3)


def _nir_red(names, collection):
    red = [name for name in names if "red" in name or name.startswith(("B04", "SR_B4"))]
    assert len(red) == 1, collection
    return [name for name in names if name not in red] + red


def _with(item, **properties):
    item.properties.update(properties)
    return item


@pytest.mark.parametrize(
    ("catalog", "field", "baseline", "value_range"),
    [
        ("planetary-computer", "s2:processing_baseline", "02.12", (0, 3000)),
        ("planetary-computer", "s2:processing_baseline", "03.01", (0, 3000)),
        ("planetary-computer", "s2:processing_baseline", "04.00", (1000, 4000)),
        ("planetary-computer", "s2:processing_baseline", "05.11", (1000, 4000)),
        ("planetary-computer", "s2:processing_baseline", None, (1000, 4000)),
        ("planetary-computer", "s2:processing_baseline", "unknown", (1000, 4000)),
        ("copernicus-data-space", "processing:version", "02.14", (0, 3000)),
        ("copernicus-data-space", "processing:version", "05.00", (1000, 4000)),
    ],
)
def test_sentinel_2_baseline_decides(catalog, field, baseline, value_range):
    preset = find_preset(
        "true-color", profile=load_profile(catalog), collection="sentinel-2-l2a"
    ).for_item(_with(shape(catalog, "sentinel-2-l2a"), **{field: baseline}))
    assert preset.value_range == value_range
    assert preset.variants == ()
    ndvi = find_preset("ndvi", profile=load_profile(catalog), collection="sentinel-2-l2a").for_item(
        _with(shape(catalog, "sentinel-2-l2a"), **{field: baseline})
    )
    assert ("2000" in ndvi.expression) is (value_range[0] == 1000)
    assert ndvi.value_range == (-1, 1)


def test_earth_search_flag_is_not_believed():
    preset = find_preset(
        "true-color", profile=load_profile("earth-search"), collection="sentinel-2-l2a"
    )
    for flag in (True, False):
        item = shape("earth-search", "sentinel-2-l2a")
        item.properties["earthsearch:boa_offset_applied"] = flag
        assert preset.for_item(item).value_range == (0, 3000)


def test_patterns_become_the_items_own_keys():
    profile = load_profile("swisstopo")
    item = shape("swisstopo", "ch.swisstopo.swissimage-dop10")
    fine = find_preset("true-color", profile=profile, collection=item.collection_id)
    coarse = find_preset("true-color-2m", profile=profile, collection=item.collection_id)
    stem = "swissimage-dop10_2018_2600-1200"
    assert fine.for_item(item).bands == tuple(f"{stem}_0.1_2056.tif.{n}" for n in (1, 2, 3))
    assert coarse.for_item(item).bands == tuple(f"{stem}_2_2056.tif.{n}" for n in (1, 2, 3))
    assert [b.index for b in select_bands(item, fine.for_item(item).bands)] == [1, 2, 3]
    assert (fine.resolution_m, coarse.resolution_m) == (0.1, 2)
    del item.assets[f"{stem}_2_2056.tif"]
    with pytest.raises(DataError, match="fits 0 assets"):
        coarse.for_item(item)


def test_options_are_what_encode_takes():
    item = shape("earth-search", "sentinel-2-c1-l2a")
    preset = find_preset(
        "default", profile=load_profile("earth-search"), collection="sentinel-2-c1-l2a"
    )
    options = preset.for_item(item).options()
    assert options == {
        "bands": ("red", "green", "blue"),
        "value_range": "1000,4000",
        "mask": "scl:3,8,9,10",
    }
    known = {field.name for field in dataclasses.fields(EncodeConfig)}
    config = EncodeConfig().replace({k: v for k, v in options.items() if k in known})
    assert config.bands == ("red", "green", "blue")
    assert (config.values.lo, config.values.hi) == (1000, 4000)


def test_sar_presets_are_decibels():
    profile = load_profile("planetary-computer")
    preset = find_preset("default", profile=profile, collection="sentinel-1-rtc")
    assert (preset.name, preset.expression) == ("vv-db", "10 * log10(vv)")
    assert preset.value_range == (-25, 0)
    # The collection's figures do not leak into a preset of another unit.
    assert find_preset("vh", profile=profile, collection="sentinel-1-rtc").value_range == (0, 0.2)


def test_a_collection_has_its_own_access():
    profile = load_profile("earth-search")
    free, paid = profile.collections["sentinel-2-c1-l2a"], profile.collections["landsat-c2-l2"]
    assert (free.signer, free.requester_pays, dict(free.gdal)) == ("none", False, {})
    assert (paid.signer, paid.requester_pays) == ("requester-pays", True)
    assert paid.gdal == {"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "us-west-2"}
    landsat = load_profile("usgs-landsat").collections["landsat-c2l2-sr"]
    assert landsat.alternate == "s3"
    assert landsat.gdal["AWS_REQUEST_PAYER"] == "requester"
    anonymous = load_profile("digital-earth-australia").collections["ga_s2bm_ard_3"]
    assert anonymous.gdal["AWS_NO_SIGN_REQUEST"] == "YES"
    assert load_profile("nasa-cmr").token_hosts == ("data.lpdaac.earthdatacloud.nasa.gov",)


@pytest.mark.parametrize(
    ("look_up", "near"),
    [
        (lambda: load_profile("earthsearch"), "earth-search"),
        (lambda: load_profile("../pyproject"), "planetary-computer"),
        (lambda: find_collection(load_profile("nasa-cmr"), "HLSS30"), "HLSS30_2.0"),
        (
            lambda: find_preset(
                "true-colour", profile=load_profile("earth-search"), collection="naip"
            ),
            "true-color",
        ),
    ],
)
def test_unknown_names_list_the_near_ones(look_up, near):
    with pytest.raises(ConfigurationError, match=near) as caught:
        look_up()
    assert caught.value.exit_code == 78


def test_plain_data_is_json():
    for name in NAMES:
        document = json.loads(json.dumps(load_profile(name).as_dict(), allow_nan=False))
        assert set(document["collections"]) == set(load_profile(name).collections)
    assert document["name"] == NAMES[-1]
    s1 = load_profile("digital-earth-africa").as_dict()["collections"]["s1_rtc"]
    assert s1["nodata"] == "nan"


def test_nothing_is_read_at_import(tmp_path):
    """Loaded from the checkout though it is not installed, and only when it is asked for."""
    code = (
        "import geosam_stac.sources.profiles as p; assert p._load.cache_info().currsize == 0; "
        "print(*p.list_profiles())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(done.stdout.split()) == NAMES


def test_every_package_is_shipped():
    """pyproject lists the packages by hand, since one of them lies in another folder."""
    setuptools = pytest.importorskip("setuptools")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    tool = project["tool"]["setuptools"]
    found = set(setuptools.find_packages(str(REPOSITORY), include=["geosam_stac*"]))
    assert set(tool["packages"]) == found | {profiles.PACKAGE}
    assert tool["package-dir"][profiles.PACKAGE] == "catalogs"
    assert set(tool["package-data"][profiles.PACKAGE]) == {"*.toml", "*.json"}
