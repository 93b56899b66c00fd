"""SAM 3 from end to end on the NAIP scene: encoded, opened, pulled, prompted.

With random weights of the whole model, built once: needs transformers (`geosam-stac[sam3]`), 3 GB
of memory and a minute of a CPU.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch

import geosam_stac as gs
from geosam_stac.cli import app
from geosam_stac.cli.guard import run
from geosam_stac.encoders import sam3

NAIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "naip"
ITEM = NAIP / "item.json"
TIF = NAIP / "m_4709963_se_14_1_20200831.tif"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(not ITEM.is_file(), reason="../shared/data/naip is not here"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="transformers is not installed: pip install 'geosam-stac[sam3]'",
    ),
]


def call(capsys: pytest.CaptureFixture, *argv: object) -> list[str]:
    """Run a command; its lines on stdout."""
    capsys.readouterr()
    code = run(app(), [str(word) for word in argv])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out.splitlines()


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """The model is built once, for whoever asks; who asked."""
    asked: list[str] = []
    models: dict[str, torch.nn.Module] = {}
    build = sam3.load_model

    def once(entry, weights, device):
        assert weights.seed == 0
        asked.append(device)
        if device not in models:
            models[device] = build(entry, weights, device)
        return models[device]

    monkeypatch.setattr(sam3, "load_model", once)
    return asked


def test_sam3(tmp_path, capsys, built):
    encode = (
        "encode", "--item", ITEM, "--model", "sam3", "--checkpoint", "untrained",
        "--device", "cpu", "--bands", "red,green,blue", "--format", "safetensors",
        "--out", tmp_path / "out",
    )  # fmt: skip
    (plan,) = map(json.loads, call(capsys, *encode, "--dry-run", "--json"))
    assert (plan["chips"], plan["chip_px"], plan["stride_px"]) == (1, 1008, 504)
    assert built == []
    (href,) = call(capsys, *encode)
    scene = gs.open_features(href)
    (chip,) = scene.chips()
    with rasterio.open(TIF) as source:
        shape, bounds, centre = source.shape, source.bounds, source.lnglat()
        transform, crs = source.transform, source.crs
    assert (scene.geobox.shape, scene.geobox.affine) == (shape, transform)
    assert {name: tensor.shape for name, tensor in chip.tensors.items()} == {
        "image_embed": (256, 72, 72),
        "high_res_feats_0": (32, 288, 288),
        "high_res_feats_1": (64, 144, 144),
    }
    assert chip.tensors["image_embed"].dtype == np.float16
    embedding = chip.to_xarray()
    assert max(embedding.shape[1:]) == 72  # the longer side fills the model's input
    assert bounds.left < float(embedding.x.min()) < float(embedding.x.max()) < bounds.right
    assert scene.chip_at(*centre).id == chip.id

    (folder,) = call(capsys, "pull", href, "--dest", tmp_path / "pulled")
    (row,) = geopandas.read_parquet(Path(folder) / "manifest.parquet").itertuples()
    payload = torch.load(row.feature_path, weights_only=True)
    assert (payload["model_type"], payload["checkpoint_path"]) == ("sam3", "sam3.pt")
    assert payload["dst_shape"] == (1008, 1008)
    assert [tuple(level.shape) for level in payload["features"]["high_res_feats"]] == [
        (1, 32, 288, 288),
        (1, 64, 144, 144),
    ]

    # Either format gives the same masks, by the same random weights built again.
    decoder = scene.decoder()
    lon, lat = centre
    box = (lon - 0.005, lat - 0.005, lon + 0.005, lat + 0.005)
    ours, theirs = (
        opened.segment([centre], boxes=[box], multimask=True, decoder=decoder)
        for opened in (scene, gs.open_features(folder))
    )
    assert ours.masks.shape == (3, *shape)
    assert ours.masks.any()
    np.testing.assert_array_equal(ours.masks, theirs.masks)
    del decoder

    out = tmp_path / "mask.tif"
    argv = ("--point", f"{lon},{lat}", "--box", ",".join(map(str, box)))
    assert call(capsys, "segment", folder, *argv, "--multimask", "--out", out) == [str(out)]
    with rasterio.open(out) as raster:
        assert (raster.shape, raster.transform, raster.crs) == (shape, transform, crs)
        np.testing.assert_array_equal(raster.read() == 1, ours.masks)
    assert len(built) == 3
