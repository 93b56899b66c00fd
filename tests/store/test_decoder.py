"""Which weights prompt a scene: the very ones that encoded it, or an error that says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pystac
import pytest
import torch

import geosam_stac as gs
from geosam_stac.encoders import load_model
from geosam_stac.encoders.checkpoints import resolve
from geosam_stac.encoders.registry import find_model
from geosam_stac.encoders.weights import weights_sha256
from geosam_stac.errors import ConfigurationError
from geosam_stac.store.decoder import to_input
from tests import rasters

TINY = find_model("sam2.1-hiera-tiny")


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """SAM 2.1 tiny with the random weights of seed 7: their sha256, and a file of them."""
    folder = tmp_path_factory.mktemp("weights")
    weights = resolve(TINY, "untrained:7", cache_dir=folder)
    model = load_model(TINY, weights, "cpu")
    torch.save({"model": model.state_dict()}, folder / "seven.pt")
    return weights_sha256(weights, model), folder / "seven.pt"


@pytest.fixture
def item(encoded, pixels, tmp_path):
    """The Item of a scene, whose facts a test may change."""
    return pystac.Item.from_file(encoded(pixels))


def test_untrained_weights_are_made_again(item, seven):
    item.properties["geosam:weights_sha256"] = seven[0]
    run = Path(item.get_self_href()).parent / "run.json"
    document = json.loads(run.read_text())
    assert document["run"]["model"]["weights"] == "untrained:0"
    document["run"]["model"]["weights"] = "untrained:7"
    run.write_text(json.dumps(document))
    scene = gs.open_features(item)
    decoder = scene.decoder()
    assert decoder.entry is TINY
    assert decoder.low_res_px == 256
    assert scene.decoder() is decoder  # loaded once


def test_another_seed(item):
    item.properties["geosam:weights_sha256"] = "0" * 64
    with pytest.raises(ConfigurationError, match=r"other weights.*untrained:SEED"):
        gs.open_features(item).decoder("untrained:3")


def test_a_file(item, seven):
    sha256, path = seven
    item.properties |= {"geosam:weights": "my.pt", "geosam:weights_sha256": "1" * 64}
    with pytest.raises(ConfigurationError, match=r"other weights.*\(my.pt\).*seven.pt.*checkpoint"):
        gs.open_features(item).decoder(str(path))
    item.properties["geosam:weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    decoder = gs.open_features(item).decoder(str(path))
    assert decoder.entry is TINY
    assert sha256 != item.properties["geosam:weights_sha256"]


def test_nothing_is_fetched_that_cannot_fit(item):
    """Encoded with a file of one's own: the published weights are not even asked for."""
    item.properties |= {"geosam:weights": "my.pt", "geosam:weights_sha256": "1" * 64}
    with pytest.raises(ConfigurationError, match=r"other weights.*published ones.*--checkpoint"):
        gs.open_features(item).decoder()


def test_an_unknown_model(item):
    item.properties["mlm:name"] = "sam9"
    with pytest.raises(ConfigurationError, match="sam9"):
        gs.open_features(item).decoder()


def test_places_in_the_models_input(encoded):
    """48 x 24 px fill 64 x 32 of the fake's 64 x 64."""
    (chip,) = gs.open_features(encoded(rasters.values((3, 24, 48), "uint8"))).chips()
    assert to_input(chip, 12, 12) == (16.0, 16.0)
    assert to_input(chip, 48, 24) == (64.0, 32.0)
