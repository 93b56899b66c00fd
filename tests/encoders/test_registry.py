from __future__ import annotations

import re
import subprocess
import sys

import pytest

from geosam_stac.config import DEFAULT_MODEL
from geosam_stac.encoders.registry import MODELS, find_model
from geosam_stac.errors import ConfigurationError


def test_names_and_geosam_file_names() -> None:
    assert {entry.name: entry.checkpoint_name for entry in MODELS} == {
        "sam-vit-base": "sam_b.pt",
        "sam-vit-large": "sam_l.pt",
        "sam-vit-huge": "sam_h.pt",
        "sam2-hiera-tiny": "sam2_t.pt",
        "sam2-hiera-small": "sam2_s.pt",
        "sam2-hiera-base-plus": "sam2_b.pt",
        "sam2-hiera-large": "sam2_l.pt",
        "sam2.1-hiera-tiny": "sam2.1_t.pt",
        "sam2.1-hiera-small": "sam2.1_s.pt",
        "sam2.1-hiera-base-plus": "sam2.1_b.pt",
        "sam2.1-hiera-large": "sam2.1_l.pt",
        "sam3": "sam3.pt",
    }


def test_upstream_addresses() -> None:
    urls = {entry.name: entry.url for entry in MODELS}
    base = "https://dl.fbaipublicfiles.com/"
    assert urls["sam-vit-huge"] == base + "segment_anything/sam_vit_h_4b8939.pth"
    assert (
        urls["sam2-hiera-base-plus"] == base + "segment_anything_2/072824/sam2_hiera_base_plus.pt"
    )
    assert urls["sam2.1-hiera-tiny"] == base + "segment_anything_2/092824/sam2.1_hiera_tiny.pt"
    assert len(set(urls.values())) == len(MODELS)


def test_every_checksum_is_cited() -> None:
    for entry in MODELS:
        assert (entry.sha256 is None) == (entry.sha256_source is None)
        if entry.sha256 is not None:
            assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert len({entry.sha256 for entry in MODELS}) == len(MODELS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sam2.1-hiera-tiny", "sam2.1-hiera-tiny"),
        ("SAM2.1-Hiera-Tiny", "sam2.1-hiera-tiny"),
        ("sam2.1-tiny", "sam2.1-hiera-tiny"),
        ("sam2.1_t", "sam2.1-hiera-tiny"),
        ("sam2.1_t.pt", "sam2.1-hiera-tiny"),
        ("facebook/sam2-hiera-small", "sam2-hiera-small"),
        ("sam2_hiera_b+", "sam2-hiera-base-plus"),
        ("sam2-base-plus", "sam2-hiera-base-plus"),
        ("sam2.1_b", "sam2.1-hiera-base-plus"),
        ("vit_b", "sam-vit-base"),
        ("ViT-H", "sam-vit-huge"),
        ("sam_l", "sam-vit-large"),
        ("sam_vit_b_01ec64.pth", "sam-vit-base"),
        ("facebook/sam3", "sam3"),
        ("SAM3.pt", "sam3"),
        (DEFAULT_MODEL, "sam2.1-hiera-base-plus"),
    ],
)
def test_find_model(name: str, expected: str) -> None:
    assert find_model(name).name == expected


def test_no_alias_means_two_models() -> None:
    for entry in MODELS:
        for alias in (entry.name, *entry.aliases, entry.checkpoint_name):
            assert find_model(alias) is entry


def test_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_model("sam2.1-hiera-tinny")
    assert "sam2.1-hiera-tiny" in str(caught.value)
    assert "sam-vit-huge" not in str(caught.value)


def test_unknown_name_far_from_all_lists_all() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_model("resnet")
    assert all(entry.name in str(caught.value) for entry in MODELS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sam3.1_multiplex.pt", "multiplex tracker"),
        ("sam3-detector", "cannot be reused for points and boxes"),
        ("FastSAM-s.pt", "no decoder that prompts cached features"),
    ],
)
def test_models_whose_features_cannot_be_reused(name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match="Give --model sam3") as caught:
        find_model(name)
    assert str(caught.value).startswith(name)
    assert words in str(caught.value)


def test_levels_and_strides() -> None:
    names = ("image_embed", "high_res_feats_0", "high_res_feats_1")
    for entry in MODELS:
        outputs = [output.name for output in entry.outputs_at("all")]
        assert outputs == list(names[: 1 if entry.family == "sam" else 3])
        assert [output.name for output in entry.outputs_at("embedding")] == ["image_embed"]
        assert (entry.input_px, entry.stride_px) in [(1024, 512), (1008, 504)]
        assert entry.stride_px * 2 == entry.input_px


def test_registry_and_checkpoints_import_no_torch() -> None:
    code = (
        "import sys, geosam_stac.encoders, geosam_stac.encoders.registry, "
        "geosam_stac.encoders.checkpoints; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
