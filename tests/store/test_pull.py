"""pull: a local folder that is whole, as Geo-SAM opens it, and made again only where need be."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import torch
from PIL import Image

import geosam_stac as gs
from geosam_stac import features as files
from geosam_stac import preview
from geosam_stac.errors import DataError, Interrupted, TemporaryError, UsageError
from geosam_stac.store.objects import ObjectFolder
from geosam_stac.store.opened import FeatureItem
from geosam_stac.thumbnail import valid_of
from tests import fakes, rasters, stac_schemas
from tests.servers import (
    s3_endpoint,  # noqa: F401  (a fixture)
    use_s3,
)

#: Two chips, the upper left ones.
BOX = (500_000.0, 5_199_900.0, 500_330.0, 5_200_000.0)
FORMATS = {"pt": {}, "safetensors": {"format": "safetensors"}}


def check(result: gs.PullResult, chips: int) -> geopandas.GeoDataFrame:
    """The Item's facts and the manifest's are those of the files."""
    assert result.folder.is_absolute()
    item = json.loads(Path(result.href).read_text())
    assert item["properties"]["table:row_count"] == chips
    for asset in item["assets"].values():
        data = (result.folder / asset["href"]).read_bytes()
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    frame = geopandas.read_parquet(result.folder / "manifest.parquet")
    assert len(frame) == chips
    for row in frame.itertuples():
        data = Path(row.feature_path).read_bytes()
        assert row.feature_path == str(result.folder / row.feature_href)
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return frame


@pytest.mark.parametrize("stored", FORMATS)
def test_the_whole_scene(encoded, pixels, tmp_path, stored):
    scene = gs.open_features(encoded(pixels, **FORMATS[stored]))
    result = gs.pull(scene, tmp_path / "here")
    assert result.folder == tmp_path / "here" / scene.item.id
    assert (result.chips_pulled, result.chips_there) == (12, 0)
    frame = check(result, 12)
    assert set(frame.checkpoint_path) == {"sam2.1_t.pt"}
    for chip, row in zip(scene.chips(), frame.itertuples(), strict=True):
        # As geosam itself loads it.
        payload = torch.load(row.feature_path, weights_only=True)
        assert payload["checkpoint_path"] == "sam2.1_t.pt"
        assert payload["features"]["image_embed"].dtype == torch.float16
        tensors, _ = files.read(Path(row.feature_path).read_bytes())
        assert all(torch.equal(tensors[name], t) for name, t in chip.to_torch().items())
    again = gs.open_features(result.folder)
    assert again.item.properties["geosam:format"] == "pt"
    assert again.item.geometry == scene.item.geometry
    assert again.geobox == scene.geobox


def test_the_item(encoded, pixels, tmp_path):
    scene = gs.open_features(encoded(pixels, format="safetensors", feature_dtype="int8"))
    result = gs.pull(scene, tmp_path / "here")
    document = json.loads(Path(result.href).read_text())
    links = {link["rel"]: link["href"] for link in document["links"]}
    assert links["self"] == result.href
    assert links["canonical"] == scene.href
    assert links["processing-execution"] == "./run.json"
    assert links["derived_from"].startswith("/")
    assert (result.folder / "run.json").is_file()
    said = document["properties"]
    assert (said["geosam:format"], said["geosam:dtype"]) == ("pt", "float16")
    kept = ("geosam:weights_sha256", "mlm:name", "geosam:config_hash", "datetime")
    assert {name: said[name] for name in kept} == {
        name: scene.item.to_dict()["properties"][name] for name in kept
    }
    assert "pytorch" in document["assets"]["manifest"]["geosam:feature_files"]["type"]


@pytest.mark.shared
def test_the_item_is_valid(encoded, pixels, tmp_path):
    scene = gs.open_features(encoded(pixels))
    result = gs.pull(scene, tmp_path / "here", bbox=BOX, crs="native")
    assert len(stac_schemas.validate(json.loads(Path(result.href).read_text()))) > 3


def test_as_they_are(encoded, pixels, tmp_path):
    path = encoded(pixels, format="safetensors", feature_dtype="int8")
    result = gs.pull(path, tmp_path / "here", format="safetensors")
    frame = check(result, 12)
    original = geopandas.read_parquet(path.parent / "manifest.parquet")
    assert list(frame.sha256) == list(original.sha256)
    assert frame.feature_href[0].endswith("chip_000000.safetensors")


def test_a_part(encoded, pixels, tmp_path):
    pixels = pixels.copy()
    pixels[:, 64:, 96:] = 0  # the lower right chip has no valid pixel
    path = encoded(pixels, nodata=0)
    result = gs.pull(path, tmp_path / "here", bbox=BOX, crs="native")
    frame = check(result, 2)
    assert list(frame.chip_id) == ["chip_000000", "chip_000001"]
    part = gs.open_features(result.href)
    assert "skipped" not in part.item.assets
    assert part.item.properties["geosam:chips_skipped"] == 0
    whole = gs.open_features(path)
    assert len(whole.skipped) == 1
    assert part.geobox.shape == (64, 96)
    west, south, east, north = part.item.bbox
    assert (west, north) == pytest.approx((whole.item.bbox[0], whole.item.bbox[3]), abs=1e-5)
    assert whole.item.bbox[2] - east == pytest.approx(640 / 76_000, rel=0.01)
    assert south - whole.item.bbox[1] == pytest.approx(640 / 111_180, rel=0.01)
    # The whole of it later takes what is there.
    more = gs.pull(path, tmp_path / "here")
    assert (more.chips_pulled, more.chips_there) == (9, 2)
    check(more, 11)
    assert gs.open_features(more.folder).item.properties["geosam:chips_skipped"] == 1


def test_pictures_come_with_it(encoded, pixels, tmp_path):
    path = encoded(pixels)
    scene = gs.open_features(path)
    colours = preview.projection(scene)
    preview.cog(scene, colours, tmp_path / "overview.tif")
    preview.attach(scene, colours, (tmp_path / "overview.tif").read_bytes())
    whole = gs.open_features(gs.pull(path, tmp_path / "whole").href)
    check(gs.pull(path, tmp_path / "whole"), 12)
    assert preview.projection(whole).to_json() == colours.to_json()
    assert whole.read_asset("overview") == (path.parent / "overview.tif").read_bytes()
    result = gs.pull(path, tmp_path / "part", bbox=BOX, crs="native")
    check(result, 2)
    part = gs.open_features(result.href)
    assert preview.projection(part).to_json() == colours.to_json()
    assert "overview" not in part.item.assets  # it shows all of the scene


def test_a_part_has_its_own_part_of_the_thumbnail(encoded, pixels, tmp_path):
    pixels = pixels.copy()
    pixels[:, 10:20, 80:120] = 0
    pixels[:, :, 32:] = np.where(pixels[:, :, 32:] == 0, 0, pixels[:, :, 32:] | 1)
    path = encoded(pixels, nodata=0)
    box = (500_650.0, 5_199_900.0, 501_000.0, 5_200_000.0)
    part = gs.open_features(gs.pull(path, tmp_path / "here", bbox=box, crs="native").href)
    whole = gs.open_features(path)
    left = (part.geobox.affine.c - whole.geobox.affine.c) / 10
    assert (left, part.geobox.shape) == (32, (64, 128))
    pictures = [
        np.asarray(Image.open(io.BytesIO(scene.read_asset("thumbnail"))).convert("RGBA"))
        for scene in (whole, part)
    ]
    np.testing.assert_array_equal(pictures[0][:64, 32:], pictures[1])
    assert not valid_of(part.read_asset("thumbnail"), (64, 128))[15, 50]


def test_a_damaged_thumbnail_is_not_passed_on(encoded, pixels, tmp_path):
    path = encoded(pixels)
    (path.parent / "thumbnail.png").write_bytes(b"no picture")
    result = gs.pull(path, tmp_path / "here")
    check(result, 12)
    assert "thumbnail" not in result.item.assets


def test_what_is_there_is_not_fetched_again(encoded, pixels, tmp_path, monkeypatch):
    path = encoded(pixels, format="safetensors")
    scene = gs.open_features(path)
    first = gs.pull(scene, tmp_path / "here")
    fetched: list[str] = []
    read = FeatureItem.read_object

    def counted(self, chip):
        fetched.append(chip.id)
        return read(self, chip)

    monkeypatch.setattr(FeatureItem, "read_object", counted)
    again = gs.pull(path, tmp_path / "here")
    assert (again.chips_pulled, again.chips_there, fetched) == (0, 12, [])
    assert Path(again.href).read_bytes() == Path(first.href).read_bytes()
    # One that was damaged, one that is gone, and a record that was cut short.
    features = first.folder / "scene" / "features"
    (features / "chip_000002.pt").write_bytes(b"PK\x03\x04")
    (features / "chip_000005.pt").unlink()
    with (first.folder / ".pulled.ndjson").open("a") as record:
        record.write('{"chip_id": "chip_000007", "sour')
    third = gs.pull(path, tmp_path / "here")
    assert sorted(fetched) == ["chip_000002", "chip_000005"]
    assert third.chips_there == 10
    check(third, 12)


def test_a_scene_that_was_encoded_again(encoded, pixels, tmp_path):
    """Of the same id, with other pixels: nothing old is taken for new."""
    gs.pull(encoded(pixels), tmp_path / "here")
    path = encoded(255 - pixels, overwrite=True)
    result = gs.pull(path, tmp_path / "here")
    assert result.chips_pulled == 12
    chip = gs.open_features(result.folder).chip("chip_000000")
    assert chip.tensors["image_embed"][0, 0, 0] == pytest.approx(
        (255 - pixels)[0, :16, :16].mean(), rel=1e-3
    )


def test_a_pull_that_broke_off(encoded, pixels, tmp_path, monkeypatch):
    path = encoded(pixels)
    read = ObjectFolder.get
    served: list[str] = []

    def failing(self, key):
        if key.endswith(".pt"):
            if len(served) >= 4:
                raise TemporaryError("the store does not answer", href=key)
            served.append(key)
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFolder, "get", failing)
        with pytest.raises(TemporaryError, match=r"does not answer.*chip_"):
            gs.pull(path, tmp_path / "here")
    folder = tmp_path / "here" / path.parent.name
    assert not list(folder.glob("*.json"))
    result = gs.pull(path, tmp_path / "here")
    assert result.chips_there == 4
    check(result, 12)


def test_an_interruption_ends_it(encoded, pixels, tmp_path):
    path = encoded(pixels)

    def stop(event):
        raise Interrupted

    with pytest.raises(Interrupted):
        gs.pull(path, tmp_path / "here", sink=stop)


def test_a_damaged_chip_ends_it(encoded, pixels, tmp_path):
    path = encoded(pixels)
    file = path.parent / "scene" / "features" / "chip_000004.pt"
    file.write_bytes(b"PK\x03\x04 not what was written")
    with pytest.raises(DataError, match=r"not the one that was written.*chip_000004"):
        gs.pull(path, tmp_path / "here")


def test_features_without_their_levels(encoded, pixels, tmp_path):
    path = encoded(pixels, format="safetensors", levels="embedding")
    with pytest.raises(DataError, match=r"cannot use these features.*--format safetensors"):
        gs.pull(path, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    check(gs.pull(path, tmp_path / "here", format="safetensors"), 12)


def test_what_cannot_be(encoded, pixels, tmp_path):
    path = encoded(pixels)
    with pytest.raises(UsageError, match="must be a local folder"):
        gs.pull(path, "s3://bucket/x")
    with pytest.raises(UsageError, match="no chip with features touches"):
        gs.pull(path, tmp_path, bbox=(0, 0, 1, 1))
    with pytest.raises(UsageError, match="stored as pt are pulled as pt"):
        gs.pull(path, tmp_path, format="safetensors")
    with pytest.raises(UsageError, match="--format is unknown"):
        gs.pull(path, tmp_path, format="npz")


def test_int8_beyond_float16(encoded, pixels, tmp_path, monkeypatch):
    """One chip holds more than float16 can: it becomes float32, and the Item says so."""
    encode = fakes.FakeEncoder.encode

    def larger(self, chips, content_px):
        return {name: 300 * tensor for name, tensor in encode(self, chips, content_px).items()}

    pixels = pixels // 2
    pixels[:, :48, :48] = 250  # 75,000 in the first chip, at most 38,100 far from it
    monkeypatch.setattr(fakes.FakeEncoder, "encode", larger)
    scene = gs.open_features(encoded(pixels, format="safetensors", feature_dtype="int8"))
    result = gs.pull(scene, tmp_path / "here")
    frame = check(result, 12)
    found = [files.read(Path(path).read_bytes())[0] for path in frame.feature_path]
    assert found[0]["image_embed"].dtype == torch.float32
    assert found[-1]["image_embed"].dtype == torch.float16
    assert float(found[0]["image_embed"].max()) == pytest.approx(75_000, rel=0.01)
    assert result.item.properties["geosam:dtype"] == "float32"
    # Pulled again, it is what it was.
    assert gs.pull(scene, tmp_path / "here").item.properties["geosam:dtype"] == "float32"


@pytest.mark.parametrize("said", [None, "image_embed", ["image_embed"], [{}], []])
def test_an_item_that_does_not_say_which_tensors(encoded, pixels, tmp_path, said):
    path = encoded(pixels)
    item = pystac.Item.from_file(path)
    del item.properties["geosam:features"]
    if said is not None:
        item.properties["geosam:features"] = said
    check(gs.pull(item, tmp_path / "here"), 12)


def test_an_item_that_does_not_say_that_levels_are_left_out(encoded, pixels, tmp_path):
    item = pystac.Item.from_file(encoded(pixels, format="safetensors", levels="embedding"))
    del item.properties["geosam:features"]
    with pytest.raises(DataError, match=r"without their high-resolution levels.*chip_0000"):
        gs.pull(item, tmp_path / "here")


def test_an_id_from_a_stranger(encoded, pixels, tmp_path):
    item = pystac.Item.from_file(encoded(pixels))
    item.id = "../../out"
    result = gs.pull(item, tmp_path / "here")
    assert result.folder == tmp_path / "here" / ".._.._out"
    assert Path(result.href).parent == result.folder


def test_from_an_object_store(encoded, pixels, tmp_path, s3_endpoint, monkeypatch):  # noqa: F811
    use_s3(monkeypatch, s3_endpoint)
    href = encoded(pixels, out="s3://bucket/pulled")
    source = f"s3://bucket/pulled/{href.parent.name}/{href.name}"
    result = gs.pull(source, tmp_path / "here")
    frame = check(result, 12)
    assert set(frame.crs.to_string().split()) == {rasters.UTM14}
    links = {link.rel: link.href for link in result.item.links}
    assert links["canonical"] == source
