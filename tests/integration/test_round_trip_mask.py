"""The round trip to its end: encoded to a bucket, published, found, pulled, prompted.

With a real model of random weights; Geo-SAM's own engine prompts what was pulled where `make
compat` has made its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import geosam_stac as gs
from geosam_stac.storage import Store
from tests import rasters
from tests.cli.conftest import cli  # noqa: F401  (a fixture)
from tests.compat.make_weights import SEED, fill_constants
from tests.pgstac import pgstac  # noqa: F401  (a fixture)
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
NAIP = ROOT.parent / "shared" / "data" / "naip" / "item.json"
GEOSAM = ROOT / ".venv-compat" / "bin" / "python"
OUT = "s3://bucket/mask"
CATALOG = f"{OUT}/catalog.json"
TINY = "sam2.1-hiera-tiny"
# In the middle of the chip.
PLACE = (-99.155, 47.020)
NEAR = (-99.155, 47.020, -99.154, 47.021)
MINE = '"geosam:chip_size" = 700 AND "geosam:stride" = 700'

pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not NAIP.is_file(), reason="../shared/data/naip is not here"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint in the upstream format, under the plugin's name."""
    from sam2.build_sam import build_sam2

    torch.manual_seed(SEED)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    path = tmp_path_factory.mktemp("weights") / "sam2.1_t.pt"
    torch.save({"model": fill_constants(model.state_dict(), SEED)}, path)
    return path


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):  # noqa: F811
    """A bucket of S3 for the features."""
    use_s3(monkeypatch, s3_endpoint)
    yield s3_endpoint
    Store("s3://bucket").delete_tree("mask")


def synthetic(folder: Path, number: int) -> Path:
    """A scene of 700 px of 10 m, somewhere else than NAIP."""
    name = f"made-{number}"
    data = rasters.values((3, 700, 700), "uint8", seed=number)
    affine = rasters.NORTH_UP.translation(100_000.0 * number, 0) @ rasters.NORTH_UP
    tif = rasters.write_tif(folder / f"{name}.tif", data, transform=affine)
    assets = {"image": rasters.asset(tif, **rasters.named_bands("red", "green", "blue"))}
    return rasters.write_item(folder / f"{name}.json", assets, item_id=name, collection="made")


def test_from_a_bucket_to_a_mask(cli, bucket, pgstac, weights, tmp_path):  # noqa: F811
    options = ("--model", TINY, "--checkpoint", weights, "--device", "cpu", "--precision", "fp32")
    sources = [synthetic(tmp_path, 0), synthetic(tmp_path, 1), NAIP]
    hrefs = []
    for source in sources:
        done = cli(
            *("encode", "--item", source, *options, "--chip-size", 700, "--stride", 700),
            *("--out", OUT, "--publish", CATALOG),
        )
        assert done.code == 0, done.err
        hrefs.append(done.out.strip())
    done = cli("publish", *hrefs, "--to", pgstac.url)
    assert done.code == 0, done.err
    places = (("--api", pgstac.url), ("--catalog", CATALOG), ("--index", f"{OUT}/items.parquet"))
    for place in places:
        only = ("--filter", MINE)
        assert sorted(cli("search", *place, "--model", TINY, *only).lines) == sorted(hrefs)
        near = f"--bbox={','.join(map(str, NEAR))}"
        assert cli("search", *place, near, *only).lines == hrefs[2:]
    # On the bucket, and on what was pulled of it: one answer.
    (naip,) = gs.search_features(api=pgstac.url, model=TINY, filter=MINE, bbox=list(NEAR))
    found = gs.open_features(naip).segment(points=[PLACE], labels=[1], checkpoint=str(weights))
    done = cli("pull", hrefs[2], "--dest", tmp_path / "pulled")
    assert done.code == 0, done.err
    pulled = gs.open_features(tmp_path / "pulled" / naip.id)
    again = pulled.segment(points=[PLACE], labels=[1], checkpoint=str(weights))
    share = found.masks[0].mean()
    assert 0.005 < share < 0.995
    assert np.array_equal(found.masks, again.masks)
    row = pulled.manifest.iloc[0]
    assert row["checkpoint_path"] == "sam2.1_t.pt"
    assert Path(row["feature_path"]).is_file()
    folder = tmp_path / "pulled" / naip.id
    _by_geosam(folder, weights, pulled)


def _by_geosam(folder: Path, weights: Path, features: gs.FeatureItem) -> None:
    if not GEOSAM.is_file():
        pytest.skip("geosam is not installed (make compat makes .venv-compat): all else has passed")
    environment = {
        **os.environ,
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(folder.parent),
        "MPLCONFIGDIR": str(folder.parent),
    }
    environment.pop("PYTHONPATH", None)
    script = ROOT / "tests" / "compat" / "query_folder.py"
    done = subprocess.run(
        [GEOSAM, script, folder, weights, f"{PLACE[0]},{PLACE[1]}", "EPSG:4326"],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    theirs = np.array([[int(sign) for sign in row] for row in answer["mask"]], dtype=bool)
    chip = features.chip(answer["chip_id"])
    assert answer["chip_id"] == features.chip_at(*PLACE).id
    assert answer["transform"] == pytest.approx(list(chip.geobox.affine)[:6])
    # In one chip alone, as the plugin does; both are the model's own answer.
    ours = features.segment(points=[PLACE], labels=[1], checkpoint=str(weights), follow=False)
    mine = ours.masks[0]
    assert mine.shape == theirs.shape
    # Random weights make edges everywhere, and ultralytics scales a small chip in its own way.
    assert (mine & theirs).sum() / (mine | theirs).sum() >= 0.98
