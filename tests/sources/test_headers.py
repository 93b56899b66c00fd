from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.sources.headers import read_header
from tests.quick import quick
from tests.rasters import NORTH_UP, values, write_tif


def test_a_header(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((4, 20, 30)), nodata=0)
    header = read_header(str(path))
    assert header.geobox == GeoBox((20, 30), NORTH_UP, "EPSG:32614")
    assert str(header.geobox.crs) == "EPSG:32614"
    assert header.dtypes == ("uint16",) * 4
    assert header.nodata == (0.0,) * 4
    assert header.data_bands == 4


def test_nodata_nan_and_none(tmp_path):
    nan = write_tif(tmp_path / "n.tif", values((1, 9, 9), "float32"), nodata=math.nan)
    assert math.isnan(read_header(str(nan)).nodata[0])
    none = write_tif(tmp_path / "o.tif", values((1, 9, 9), "int16"))
    assert read_header(str(none)).nodata == (None,)


def test_alpha_is_no_data(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((4, 9, 9), "uint8"), photometric="RGB", alpha="yes")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    assert read_header(str(path)).data_bands == 3


def test_a_crs_without_a_code(tmp_path):
    crs = "+proj=laea +lat_0=47 +lon_0=-99 +datum=WGS84 +units=m"
    header = read_header(str(write_tif(tmp_path / "a.tif", values((1, 9, 9)), crs=crs)))
    assert header.geobox.crs.projected
    assert header.geobox.crs.epsg is None


@pytest.mark.parametrize(
    ("profile", "got"),
    [
        ({"crs": None}, "no CRS"),
        ({"transform": Affine.identity()}, "no geotransform"),
        ({"crs": 'LOCAL_CS["a drawing",UNIT["metre",1]]'}, "a CRS that is not of maps"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_that_is_nowhere(tmp_path, profile, got):
    path = write_tif(tmp_path / "a.tif", values((1, 9, 9)), **profile)
    with pytest.raises(DataError) as caught:
        read_header(str(path), item="i")
    text = str(caught.value)
    assert text.startswith(f"the raster is not georeferenced (item i, href {path})")
    assert f"got {got}" in text
    assert "gdalwarp" in text


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_are_named(tmp_path):
    path = tmp_path / "a.tif"
    points = [GroundControlPoint(row=r, col=c, x=c / 9, y=-r / 9) for r in (0, 9) for c in (0, 9)]
    with rasterio.open(
        path, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8", gcps=points,
        crs="EPSG:4326",
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 9, 9), "uint8"))
    with pytest.raises(DataError, match="ground control points"):
        read_header(str(path))


def test_complex_numbers_are_no_picture(tmp_path):
    path = write_tif(tmp_path / "a.tif", values((1, 9, 9)).astype("complex64"))
    with pytest.raises(DataError, match=r"complex numbers.*got complex64"):
        read_header(str(path))


def test_what_is_not_there_or_no_raster(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        read_header(str(tmp_path / "none.tif"), item="i")
    (tmp_path / "a.tif").write_text("<html></html>")
    with pytest.raises(DataError, match="no raster that GDAL can read"):
        read_header(str(tmp_path / "a.tif"))
    with pytest.raises(DataError, match=r"cannot be opened|not there"):
        read_header("\ud800.tif")
    with pytest.raises(TemporaryError) as caught:
        read_header("http://127.0.0.1:1/a.tif?sig=secret", retries=quick(2))
    assert caught.value.href == "http://127.0.0.1:1/a.tif"
    assert "secret" not in str(caught.value)
