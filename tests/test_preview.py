"""A scene's embeddings as a picture: place, colours, holes, the Item that names it."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

import geosam_stac as gs
from geosam_stac import pca, preview
from geosam_stac.errors import DataError, UsageError
from tests import rasters, stac_schemas
from tests.cli.conftest import cli
from tests.store.conftest import encoded, pixels

__all__ = ["cli", "encoded", "pixels"]


def drawn(href, tmp_path):
    features = gs.open_features(href)
    colours = preview.projection(features)
    preview.cog(features, colours, tmp_path / "pca.tif")
    return features, colours, tmp_path / "pca.tif"


def test_the_picture_lies_on_the_scenes_grid(encoded, pixels, tmp_path):
    features, _, path = drawn(encoded(pixels), tmp_path)
    with rasterio.open(path) as picture:
        assert picture.shape == (8, 10)  # 16 px a cell
        assert picture.crs.to_epsg() == 32614
        assert picture.transform.a == 160
        assert picture.bounds == tuple(features.geobox.boundingbox.bbox)
        assert picture.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert picture.nodata == 0
        assert picture.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert (picture.read() > 0).all()


def test_colours_follow_the_pixels_without_seams(encoded, pixels, tmp_path):
    """The fake's embedding is the mean of each cell: the whole scene's means, projected at once."""
    _, colours, path = drawn(encoded(pixels, feature_dtype="float32"), tmp_path)
    means = pixels.reshape(3, 8, 16, 10, 16).mean(axis=(2, 4))
    with rasterio.open(path) as picture:
        error = picture.read().astype(int) - pca.to_rgb8(colours.colours(means))
    assert np.abs(error).max() <= 1


def test_a_chip_smaller_than_the_input_leaves_its_padding_out(encoded, tmp_path):
    data = rasters.values((3, 20, 32), "uint8")
    features, _, path = drawn(encoded(data), tmp_path)
    with rasterio.open(path) as picture:
        assert picture.shape == (2, 4)  # 40 of 64 px high: two and a half cells of 8 px
        half = 0.5 * 80
        for got, expected in zip(picture.bounds, features.geobox.boundingbox.bbox, strict=True):
            assert abs(got - expected) <= half
        assert (picture.read() > 0).all()


def test_skipped_chips_are_holes(encoded, tmp_path):
    data = rasters.values((3, 64, 192), "uint8")
    data[:, :, 64:128] = 0
    features, _, path = drawn(encoded(data, nodata=0, stride=64), tmp_path)
    assert len(features.skipped) == 1
    with rasterio.open(path) as picture:
        covered = picture.dataset_mask() > 0
        assert covered.all(axis=0).tolist() == [True] * 4 + [False] * 4 + [True] * 4
        shown = Image.open(io.BytesIO(preview.png(path)))
    assert shown.mode == "RGBA"
    assert max(shown.size) >= 1000
    alpha = np.asarray(shown)[..., 3]
    assert np.ptp(alpha[:, : shown.width // 3 - 1]) == 0
    assert not alpha[:, shown.width // 2].any()


def turned(shape):
    """A scene like a swath on a north-up grid: (H, W) bool, True inside a turned square."""
    rows, cols = np.indices(shape) + 0.5
    rows, cols = rows - shape[0] / 2, cols - shape[1] / 2
    return np.maximum(np.abs(rows + 0.4 * cols), np.abs(cols - 0.4 * rows)) < 0.45 * shape[0]


def test_nodata_inside_a_chip_is_a_hole_and_no_colour(encoded, tmp_path):
    inside = turned((256, 256))
    data = rasters.values((3, 256, 256), "uint8", lo=100) * inside
    href = encoded(data.astype("uint8"), nodata=0, feature_dtype="float32")
    _, colours, path = drawn(href, tmp_path)
    with rasterio.open(path) as picture:
        shown = picture.dataset_mask() > 0
    at = np.arange(16) * 16 + 8
    assert shown.tolist() == inside[np.ix_(at, at)].tolist()
    assert 0.3 < shown.mean() < 0.8
    assert not shown[0, 0]
    alpha = np.asarray(Image.open(io.BytesIO(preview.png(path))))[..., 3]
    assert (alpha[32::64, 32::64] > 0).tolist() == shown.tolist()
    # Valid cells hold 100 or more; with the black ones the mean would be far below.
    assert colours.mean.min() > 100
    # Without the thumbnail nothing is known, and the picture is made all the same.
    (href.parent / "thumbnail.png").unlink()
    preview.cog(gs.open_features(href), colours, path)
    with rasterio.open(path) as picture:
        assert (picture.dataset_mask() > 0).sum() > shown.sum()


def test_colours_are_fitted_once_and_kept(encoded, pixels, tmp_path):
    href = encoded(pixels)
    features, colours, path = drawn(href, tmp_path)
    preview.attach(features, colours, path.read_bytes())
    # A stored projection is taken, not fitted again.
    again = gs.open_features(href)
    stored = preview.projection(again)
    assert stored.to_json() == colours.to_json()
    (href.parent / "pca.json").write_bytes(b"{}")
    with pytest.raises(DataError, match="not the one that was written"):
        preview.projection(gs.open_features(href))
    with pytest.raises(DataError, match="cannot be read"):
        pca.Projection.from_json(b"{}")
    assert preview.projection(gs.open_features(href), refit=True).to_json() == colours.to_json()


def test_a_catalogs_copy_is_left_as_it_is(encoded, pixels, tmp_path):
    href = encoded(pixels)
    gs.publish(str(href), str(tmp_path / "catalog" / "catalog.json"))
    (copy,) = (tmp_path / "catalog" / "collections").glob("*/scene*.json")
    before = copy.read_bytes()
    features, colours, path = drawn(copy, tmp_path)
    with pytest.raises(UsageError, match="catalog's copy") as raised:
        preview.attach(features, colours, path.read_bytes())
    assert str(href) in str(raised.value)
    assert copy.read_bytes() == before
    assert not (copy.parent / "overview.tif").exists()


def test_the_item_names_the_picture_and_stays_valid(encoded, pixels, tmp_path):
    href = encoded(pixels)
    before = json.loads(href.read_text())
    features, colours, path = drawn(href, tmp_path)
    preview.attach(features, colours, path.read_bytes())
    after = json.loads(href.read_text())
    assert after["links"] == before["links"]
    assert {name: after["assets"][name] for name in before["assets"]} == before["assets"]
    asset = after["assets"]["overview"]
    data = (href.parent / "overview.tif").read_bytes()
    assert asset["href"] == "./overview.tif"
    assert asset["roles"] == ["overview", "visual"]
    assert asset["file:size"] == len(data)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    assert asset["proj:shape"] == [8, 10]
    # Twice is as good as once.
    preview.attach(gs.open_features(href), colours, path.read_bytes())
    assert json.loads(href.read_text())["assets"] == after["assets"]
    assert stac_schemas.validate(after)


def test_colours_of_a_large_scene_are_fitted_to_some_of_its_chips(encoded, tmp_path, monkeypatch):
    """Of a large scene only some chips are read for its colours, and the same ones each time."""
    href = encoded(rasters.values((3, 320, 96), "uint8"))
    monkeypatch.setattr(preview, "FIT_CHIPS", 5)
    features = gs.open_features(href)
    read = []
    load = features._load
    monkeypatch.setattr(features, "_load", lambda chip: read.append(chip.id) or load(chip))
    first = preview.projection(features)
    assert len(set(read)) == 5
    assert first.to_json() == preview.projection(gs.open_features(href)).to_json()


class TestCommand:
    def test_pictures_and_their_colours(self, cli, encoded, pixels, tmp_path):
        href = encoded(pixels)
        tif, png = tmp_path / "a.tif", tmp_path / "b.png"
        done = cli("preview", href, "--pca", tif, "--pca", png)
        assert (done.code, done.lines) == (0, [str(tif), str(png)])
        assert rasterio.open(tif).shape == (8, 10)
        assert Image.open(png).format == "PNG"
        for path in (tif, png):
            colours = pca.Projection.from_json((tmp_path / f"{path.name}.pca.json").read_bytes())
            assert colours.components.shape == (3, 3)

    def test_asset(self, cli, encoded, pixels):
        href = encoded(pixels)
        done = cli("preview", href, "--asset")
        assert (done.code, done.lines) == (0, [str(href.parent / "overview.tif")])
        assert "overview" in json.loads(href.read_text())["assets"]

    def test_usage(self, cli, tmp_path):
        assert cli("preview", tmp_path).code == 2
        done = cli("preview", tmp_path, "--pca", "a.jpg")
        assert done.code == 2
        assert ".tif, .tiff, .png" in done.err
