"""Rasters that are odd: encoded right, or refused in plain words with the right exit code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint

from geosam_stac.errors import GeosamStacError
from geosam_stac.features import from_pt
from geosam_stac.pipeline import encode_scene
from geosam_stac.sources import read_item
from geosam_stac.sources.groups import Group
from geosam_stac.types import EncodeResult
from tests import rasters
from tests.fakes import fake_session
from tests.rasters import NORTH_UP, UTM14, values, write_tif

pytestmark = [
    pytest.mark.usefixtures("fake_model"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

NAMES = ("red", "green", "blue")
NO_TRANSFORM = Affine.identity()
EAST_OF_14 = "EPSG:32615"


@dataclass(frozen=True)
class Encoded:
    """What an encode has left: result, manifest, skipped chips, and the features' folder."""

    result: EncodeResult
    folder: Path

    def table(self, name: str) -> Any:
        """`manifest` or `skipped`, by chip id."""
        return geopandas.read_parquet(self.folder / f"{name}.parquet").set_index("chip_id")

    def feature(self, chip: int) -> np.ndarray:
        """(3, 4, 4): averages over 16 px of the 64 px image that the model saw."""
        row = self.table("manifest").loc[f"chip_{chip:06d}"]
        data = (self.folder / row["feature_path"]).read_bytes()
        tensors, _ = from_pt(data)
        embed: np.ndarray = tensors["image_embed"].float().numpy().reshape(3, 4, 4)
        return embed

    @property
    def geometry(self) -> Any:
        """The Item's footprint."""
        return shapely.geometry.shape(self.result.item.geometry)


@pytest.fixture
def encode(tmp_path):
    """Encode an Item's file, or a mosaic of several, with the fake model."""

    def call(*items: Path, **options: object) -> Encoded:
        with fake_session(tmp_path, **({"value_range": "0,255"} | options)) as session:
            source: Any = str(items[0])
            if len(items) > 1:
                source = Group(id="mosaic", items=tuple(read_item(str(item)) for item in items))
            result = encode_scene(session, session.scene(source), session.config)
        return Encoded(result, Path(result.href).parent)

    return call


@pytest.fixture
def refused(encode, tmp_path):
    """Encode what must be refused; checks that nothing is left, and returns the message."""

    def call(*items: Path, code: int = 65, **options: object) -> str:
        with pytest.raises(GeosamStacError) as caught:
            encode(*items, **options)
        assert caught.value.exit_code == code
        assert caught.value.item is not None
        assert not list((tmp_path / "out").rglob("*.json"))
        return str(caught.value)

    return call


def item_of(tif: Path, *names: str, item_id: str | None = None, **fields: Any) -> Path:
    """The Item of one file, beside it."""
    asset = rasters.asset(tif, **rasters.named_bands(*(names or NAMES)), **fields)
    return rasters.write_item(
        tif.with_suffix(".json"), {"image": asset}, item_id=item_id or tif.stem
    )


def made(tmp_path: Path, data: np.ndarray, name: str = "scene", **profile: Any) -> Path:
    """A file and its Item; the Item's path."""
    names = NAMES[: len(data)]
    return item_of(write_tif(tmp_path / f"{name}.tif", data, **profile), *names)


def flat(value: float, size: tuple[int, int] = (96, 96), dtype: str = "uint8") -> np.ndarray:
    """(3, H, W) of one value."""
    return np.full((3, *size), value, dtype)


# No geotransform


def test_no_geotransform(tmp_path, refused):
    item = made(tmp_path, flat(9), transform=NO_TRANSFORM)
    text = refused(item)
    assert "the raster is not georeferenced (item scene" in text
    assert "got no geotransform" in text
    assert "gdalwarp" in text


def test_no_geotransform_but_the_item_tells_one(tmp_path, refused):
    tif = write_tif(tmp_path / "scene.tif", flat(9), transform=NO_TRANSFORM)
    item = item_of(tif, **rasters.projection(NORTH_UP, (96, 96)))
    assert "got no geotransform" in refused(item)  # the file has the last word


def test_ground_control_points_only(tmp_path, refused):
    tif = write_tif(tmp_path / "scene.tif", flat(9), transform=NO_TRANSFORM, crs=None)
    corners = [(0, 0), (0, 96), (96, 0), (96, 96)]
    points = [
        GroundControlPoint(row=row, col=col, x=-99 + col / 1000, y=47 - row / 1000)
        for row, col in corners
    ]
    with rasterio.open(tif, "r+") as dataset:
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    assert "got ground control points" in refused(item_of(tif))


def test_one_of_three_files_has_no_geotransform(tmp_path, refused):
    assets = {}
    for name in NAMES:
        transform = NO_TRANSFORM if name == "green" else NORTH_UP
        tif = write_tif(tmp_path / f"{name}.tif", flat(9)[:1], transform=transform)
        assets[name] = rasters.asset(tif, **rasters.named_bands(name))
    text = refused(rasters.write_item(tmp_path / "scene.json", assets))
    assert f"href {tmp_path / 'green.tif'}" in text
    assert "got no geotransform" in text


# No projection


def test_no_crs(tmp_path, refused):
    assert "got no CRS" in refused(made(tmp_path, flat(9), crs=None))


def test_no_crs_but_the_item_tells_one(tmp_path, refused):
    tif = write_tif(tmp_path / "scene.tif", flat(9), crs=None)
    item = item_of(tif, **rasters.projection(NORTH_UP, (96, 96)))
    assert "got no CRS" in refused(item)


def test_a_crs_of_a_building_site(tmp_path, refused):
    local = 'LOCAL_CS["a building site",UNIT["metre",1]]'
    text = refused(made(tmp_path, flat(9), crs=local))
    assert "the raster is not georeferenced" in text
    assert "got a CRS that is not of maps" in text


def test_the_moon(tmp_path, refused):
    place = Affine(0.001, 0, 10, 0, -0.001, 10)
    text = refused(
        made(tmp_path, flat(9), crs="+proj=longlat +R=1737400 +no_defs", transform=place)
    )
    assert "the Item is not of the Earth" in text


# Across the antimeridian


def across(encoded: Encoded) -> None:
    """The footprint is two parts that meet at 180 degrees, and the bbox says west > east."""
    west, _, east, _ = encoded.result.item.bbox
    assert west > 0 > east
    assert encoded.geometry.geom_type == "MultiPolygon"
    bounds = sorted(part.bounds[::2] for part in encoded.geometry.geoms)
    assert bounds[0][0] == -180.0
    assert bounds[1][1] == 180.0
    assert sum(high - low for low, high in bounds) < 1.0


def test_antimeridian_in_utm(tmp_path, encode):
    # Zone 1 begins at 180 degrees, here at x = 166 km: half of the scene lies west of it.
    place = Affine(10, 0, 166_021 - 480, 0, -10, 100_000)
    encoded = encode(made(tmp_path, flat(80), crs="EPSG:32601", transform=place))
    across(encoded)
    assert encoded.result.chips_encoded == 4
    assert (encoded.feature(0) == 80).all()
    assert (encoded.table("manifest")["valid_fraction"] == 1).all()


def test_antimeridian_in_degrees(tmp_path, encode):
    place = Affine(0.001, 0, 179.952, 0, -0.001, 10)
    data = flat(80)
    data[:, :, 48:] = 160  # east of it
    encoded = encode(made(tmp_path, data, crs="EPSG:4326", transform=place))
    across(encoded)
    assert (encoded.feature(0)[..., :3] == 80).all()
    assert (encoded.feature(0)[..., 3] == 160).all()
    assert encoded.result.item.bbox == pytest.approx([179.952, 9.904, -179.952, 10])


def test_antimeridian_in_longitudes_up_to_360(tmp_path, encode):
    place = Affine(0.001, 0, 181, 0, -0.001, 10)
    encoded = encode(made(tmp_path, flat(80), crs="EPSG:4326", transform=place))
    assert encoded.result.item.bbox == pytest.approx([-179, 9.904, -178.904, 10])
    assert (encoded.feature(3) == 80).all()


def test_antimeridian_in_a_bbox(tmp_path, encode):
    place = Affine(0.001, 0, 179.952, 0, -0.001, 10)
    data = flat(80)
    data[:, :, 48:] = 160
    item = made(tmp_path, data, crs="EPSG:4326", transform=place)
    encoded = encode(item, bbox=(179.968, 9.936, -179.968, 10))
    across(encoded)
    assert encoded.result.item.bbox == pytest.approx([179.968, 9.936, -179.968, 10])
    (row,) = encoded.table("manifest").itertuples()
    assert row.valid_fraction == 1
    assert (encoded.feature(0)[..., :2] == 80).all()
    assert (encoded.feature(0)[..., 2:] == 160).all()


# At the poles


@pytest.mark.parametrize(("crs", "latitude"), [("EPSG:3413", 90.0), ("EPSG:3031", -90.0)])
def test_around_a_pole(tmp_path, encode, crs, latitude):
    place = Affine(1000, 0, -48_000, 0, -1000, 48_000)
    encoded = encode(made(tmp_path, flat(70), crs=crs, transform=place))
    west, south, east, north = encoded.result.item.bbox
    assert (west, east) == (-180, 180)
    assert latitude in (south, north)
    assert encoded.geometry.is_valid
    assert encoded.geometry.intersects(shapely.Point(45, math.copysign(89.9, latitude)))
    assert not encoded.geometry.intersects(shapely.Point(45, math.copysign(89, latitude)))
    assert (encoded.feature(0) == 70).all()


def test_a_pole_has_no_place_in_mercator(tmp_path, refused):
    place = Affine(20_000, 0, -960_000, 0, -20_000, 960_000)
    item = made(tmp_path, flat(70), crs="EPSG:3413", transform=place)
    for crs in ("EPSG:3857", "EPSG:4326"):
        text = refused(item, crs=crs, resolution=1.0 if crs == "EPSG:4326" else 200_000.0)
        assert f"the extent cannot be projected to {crs} (item scene)" in text
        assert "Choose a --crs whose area of use covers it" in text


def test_the_centre_of_the_first_row_is_the_pole(tmp_path, encode):
    place = Affine(0.5, 0, 0, 0, -0.5, 90.25)
    encoded = encode(made(tmp_path, flat(70), crs="EPSG:4326", transform=place))
    _, south, _, north = encoded.result.item.bbox
    assert south == pytest.approx(42.25)
    assert north <= 90.25
    assert (encoded.feature(0) == 70).all()
    assert (encoded.table("manifest")["valid_fraction"] == 1).all()


# A band is missing


def test_a_band_that_the_item_has_not(tmp_path, refused):
    text = refused(made(tmp_path, flat(9)), bands=("nir", "red", "green"))
    assert "no band 'nir' (item scene)" in text
    assert "image.1 (red), image.2 (green), image.3 (blue)" in text


def test_a_band_that_the_file_has_not(tmp_path, refused):
    tif = write_tif(tmp_path / "scene.tif", flat(9))
    text = refused(item_of(tif, *NAMES, "nir"), bands=("nir",))
    assert "no band 'nir'" in text
    assert "expected a band number of 1 to 3; got 4" in text
    assert str(tif) in text


def test_a_file_that_is_not_there(tmp_path, refused):
    text = refused(item_of(tmp_path / "gone.tif"))
    assert "the asset is not there (item gone" in text
    assert str(tmp_path / "gone.tif") in text


def test_a_band_that_one_item_of_a_mosaic_has_not(tmp_path, refused):
    one = made(tmp_path, flat(9), name="one")
    two = item_of(write_tif(tmp_path / "two.tif", flat(9)), "red", "green", "nir")
    text = refused(one, two, bands=NAMES)
    assert "no band 'blue' (item two)" in text


# Several CRSs in one mosaic


@pytest.fixture
def zones(tmp_path):
    """Two Items side by side, where two UTM zones meet at 96 W: 60 in the west, 180 in the east."""
    size = 96 * 10
    west = Affine(10, 0, 728_000 - size, 0, -10, 5_000_000)
    east = Affine(10, 0, 272_000, 0, -10, 5_000_000)
    return (
        made(tmp_path, flat(60), name="west", crs=UTM14, transform=west),
        made(tmp_path, flat(180), name="east", crs=EAST_OF_14, transform=east),
    )


def test_mixed_crs_without_a_word(zones, refused):
    text = refused(*zones)
    assert "the Items of one mosaic have several CRSs (item mosaic)" in text
    assert "got EPSG:32614, EPSG:32615" in text
    assert "--crs" in text


@pytest.mark.parametrize("options", [{"crs": "utm"}, {"crs": "EPSG:4326", "resolution": 0.0001}])
def test_mixed_crs_into_one(zones, encode, options):
    encoded = encode(*zones, resampling="nearest", **options)
    manifest = encoded.table("manifest")
    pixels = 0.0
    seen = set()
    for chip_id in manifest.index:
        high = encoded.feature(int(chip_id[-6:])).max()
        assert high <= 180
        seen.add(round(float(high)))
        pixels += manifest.loc[chip_id, "valid_fraction"]
    assert {60, 180} <= seen
    if encoded.result.chips_skipped:  # between the two, or beside them
        assert len(encoded.table("skipped")) == encoded.result.chips_skipped
    # Both lie inside of the footprint.
    for lon in (-96.02, -95.98):
        assert encoded.geometry.intersects(shapely.Point(lon, 45.1).buffer(0.05))
    assert pixels > 1


def test_bands_of_one_item_in_several_crss(tmp_path, encode):
    """The finest band's grid is the scene's; the others are warped onto it."""
    fine = write_tif(tmp_path / "fine.tif", flat(60)[:1])
    coarse = Affine(0.0005, 0, -99.01, 0, -0.0005, 46.97)  # 55 m, and wider than the fine one
    wide = write_tif(tmp_path / "wide.tif", flat(180)[:1], crs="EPSG:4326", transform=coarse)
    assets = {
        "fine": rasters.asset(fine, **rasters.named_bands("red")),
        "wide": rasters.asset(wide, **rasters.named_bands("green")),
    }
    item = rasters.write_item(tmp_path / "scene.json", assets)
    encoded = encode(
        item, bands=("red", "green"), bbox=(500_000, 5_199_040, 500_960, 5_200_000), bbox_crs=UTM14
    )
    assert encoded.result.item.properties["proj:code"] == UTM14
    red, green, _ = encoded.feature(0)
    assert (red == 60).all()
    assert (green == 180).all()


# Not a number


def test_nan_without_a_declared_nodata(tmp_path, encode):
    data = flat(100, dtype="float32")
    data[:, :, 48:] = np.nan
    encoded = encode(made(tmp_path, data), stride=64)
    fractions = encoded.table("manifest")["valid_fraction"]
    assert list(fractions) == pytest.approx([0.75, 0.25, 0.75, 0.25])
    assert (encoded.feature(0)[..., :3] == 100).all()
    assert (encoded.feature(0)[..., 3] == 0).all()


def test_nan_in_one_band(tmp_path, encode):
    data = flat(100, dtype="float32")
    data[1] = np.nan
    encoded = encode(made(tmp_path, data, nodata=math.nan))
    assert (encoded.table("manifest")["valid_fraction"] == 1).all()
    red, green, blue = encoded.feature(0)
    assert (red == 100).all()
    assert (green == 0).all()
    assert (blue == 100).all()


def test_nan_beside_a_declared_nodata(tmp_path, encode):
    data = flat(100, dtype="float32")
    data[:, :48] = -9999
    data[:, 48:, :48] = np.nan
    encoded = encode(made(tmp_path, data, nodata=-9999), stride=64)
    assert list(encoded.table("manifest")["valid_fraction"]) == pytest.approx(
        [16 * 16 / 64**2, 16 * 48 / 64**2, 48 * 16 / 64**2, 48 * 48 / 64**2]
    )
    assert (encoded.feature(3)[:, 1:, 1:] == 100).all()


def test_infinity(tmp_path, encode):
    data = values((3, 96, 96), "float32")
    data[:, 0, 0] = np.inf
    data[:, 0, 1] = -np.inf
    encoded = encode(made(tmp_path, data), value_range="p0,p100")
    lo, hi = encoded.result.item.properties["geosam:value_range"]
    finite = data[np.isfinite(data)]
    assert (lo, hi) == pytest.approx((finite.min(), finite.max()))
    assert encoded.table("manifest").loc["chip_000000", "valid_fraction"] == 1 - 2 / 64**2


# All nodata


def test_all_nodata(tmp_path, encode):
    encoded = encode(made(tmp_path, flat(0), nodata=0))
    assert (encoded.result.chips_encoded, encoded.result.chips_skipped) == (0, 4)
    skipped = encoded.table("skipped")
    assert list(skipped.index) == [f"chip_{n:06d}" for n in range(4)]
    assert set(skipped["reason"]) == {"no valid pixel"}
    assert len(encoded.table("manifest")) == 0
    properties = encoded.result.item.properties
    assert (properties["table:row_count"], properties["geosam:chips_skipped"]) == (0, 4)


def test_all_nan_with_a_measured_range(tmp_path, encode):
    encoded = encode(made(tmp_path, flat(np.nan, dtype="float32")), value_range="p2,p98")
    assert (encoded.result.chips_encoded, encoded.result.chips_skipped) == (0, 4)
    assert len(encoded.table("skipped")) == 4


def test_nodata_in_a_chip(tmp_path, encode):
    data = flat(50, (64, 192))
    data[:, :, 64:128] = 0
    encoded = encode(made(tmp_path, data, nodata=0), stride=64)
    assert list(encoded.table("manifest").index) == ["chip_000000", "chip_000002"]
    (row,) = encoded.table("skipped").itertuples()
    assert (row.Index, row.reason) == ("chip_000001", "no valid pixel")
    assert (encoded.feature(2) == 50).all()


def test_all_nodata_in_one_item_of_a_mosaic(tmp_path, encode):
    empty = made(tmp_path, flat(0), name="empty", nodata=0)
    full = made(tmp_path, flat(120), name="full", nodata=0)
    encoded = encode(empty, full)
    assert (encoded.result.chips_encoded, encoded.result.chips_skipped) == (4, 0)
    assert (encoded.feature(0) == 120).all()


# One pixel


def test_one_pixel(tmp_path, encode):
    encoded = encode(made(tmp_path, flat(33, (1, 1))))
    assert encoded.result.chips_encoded == 1
    assert (encoded.feature(0) == 33).all()
    (row,) = encoded.table("manifest").itertuples()
    assert row.valid_fraction == 1
    assert encoded.geometry.is_valid
    assert encoded.geometry.area > 0


@pytest.mark.parametrize("how", ["p0,p100", "p2,p98"])
def test_one_pixel_with_a_measured_range(tmp_path, encode, how):
    encoded = encode(made(tmp_path, flat(0.5, (1, 1), "float32")), value_range=how)
    assert encoded.result.chips_encoded == 1
    assert np.isfinite(encoded.feature(0)).all()


def test_one_row_of_pixels(tmp_path, encode):
    encoded = encode(made(tmp_path, flat(33, (1, 200))), stride=64)
    manifest = encoded.table("manifest")
    assert len(manifest) == 4
    assert (manifest["valid_fraction"] == 1).all()
    assert encoded.geometry.is_valid


def test_one_pixel_of_many(tmp_path, encode):
    data = flat(33)
    data[:, 10, 20] = 200
    item = made(tmp_path, data)
    x, y = NORTH_UP * (20, 10)
    encoded = encode(item, bbox=(x + 1, y - 9, x + 9, y - 1), bbox_crs=UTM14)
    assert encoded.result.item.assets["manifest"] is not None
    assert encoded.result.chips_encoded == 1
    assert (encoded.feature(0) == 200).all()
