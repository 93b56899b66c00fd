"""Our encoders against Meta's own predictors: whole models, from the checkpoint file on.

Reference: `segment_anything.SamPredictor.set_image` (1.0) and
`sam2.sam2_image_predictor.SAM2ImagePredictor.set_image` (1.1), fp32 on the CPU. The weights are
random, saved as upstream saves them; what initialisation leaves at zero is filled, so that a step
that is left out shows. Tolerance: L2 norm of the difference over L2 norm of the reference, 1e-5.

What does not depend on the number of blocks (batches, bf16, padding, masks) is tested on models cut
to a few of them, in `encoders/test_contract.py` and below; on whole ones by --run-slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geosam_stac.encoders import load_encoder
from geosam_stac.encoders.base import ImageEncoder
from geosam_stac.encoders.checkpoints import Weights, resolve
from geosam_stac.encoders.registry import ModelEntry, find_model
from tests.encoders.families import (
    FAMILIES,
    as_pixels,
    error,
    fill_zeros,
    sam2_upstream,
    scene,
)

FP32, BF16 = 1e-5, 2e-2
SIZE = 1024
SAM, SAM2 = FAMILIES[:2]
SAM2_NAMES = ["sam2.1-hiera-tiny", "sam2-hiera-tiny"]


def encoder_of(weights: Weights, precision: str = "fp32") -> ImageEncoder:
    return load_encoder(
        weights.entry, weights, device="cpu", precision=precision, feature_dtype="float32"
    )


# --- SAM --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    from segment_anything import sam_model_registry

    entry = find_model("sam-vit-base")
    torch.manual_seed(1)
    model = sam_model_registry["vit_b"]()
    fill_zeros(model)
    path = tmp_path_factory.mktemp("sam") / "weights.pth"
    torch.save(model.state_dict(), path)
    return resolve(entry, str(path), cache_dir=path.parent)


def sam_reference(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    from segment_anything import SamPredictor

    predictor = SamPredictor(model)
    predictor.set_image(image)
    return predictor.get_image_embedding()


@pytest.fixture(scope="module")
def sam_model(sam_weights: Weights) -> torch.nn.Module:
    """Built and filled by upstream's own code."""
    from segment_anything import sam_model_registry

    return sam_model_registry["vit_b"](str(sam_weights.path)).eval()


@pytest.fixture(scope="module")
def sam_features(sam_model: torch.nn.Module) -> torch.Tensor:
    return sam_reference(sam_model, scene(0))


def test_sam(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    alone = encoder_of(sam_weights).encode(as_pixels(scene(0)), (SIZE, SIZE))
    assert list(alone) == ["image_embed"]
    assert error(alone["image_embed"], sam_features) < FP32


def test_sam_with_padding() -> None:
    """On a cut model: a chip that does not fill the input."""
    model = SAM.make()
    image = scene(2, 700, SIZE)
    ours = SAM.encoder(model).encode(as_pixels(image), (700, SIZE))["image_embed"]
    assert error(ours, sam_reference(model, image)) < FP32


@pytest.mark.slow  # 60 s on 2 cores: upstream's global attention holds 0.8 GB a chip and layer
def test_sam_in_a_batch(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    encoder = encoder_of(sam_weights)
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))["image_embed"]
    assert error(batch[1:], sam_features) < FP32
    assert error(batch[:1], sam_features) > 0.01  # another image has other features


@pytest.mark.slow
def test_sam_bf16(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    encoder = encoder_of(sam_weights, "bf16")
    found = encoder.encode(as_pixels(scene(0)), (SIZE, SIZE))["image_embed"]
    assert 1e-4 < error(found, sam_features) < BF16  # bf16 was used, and is close


@pytest.mark.slow
def test_sam_whole_with_padding(sam_weights: Weights, sam_model: torch.nn.Module) -> None:
    image = scene(2, 700, SIZE)
    ours = encoder_of(sam_weights).encode(as_pixels(image), (700, SIZE))["image_embed"]
    assert error(ours, sam_reference(sam_model, image)) < FP32


# --- SAM 2 ------------------------------------------------------------------------------------


def build_reference(entry: ModelEntry, checkpoint: Path | None) -> torch.nn.Module:
    from sam2.build_sam import build_sam2

    path = None if checkpoint is None else str(checkpoint)
    return build_sam2(entry.build_key, path, device="cpu")


@pytest.fixture(scope="module", params=SAM2_NAMES)
def sam2_weights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Weights:
    entry = find_model(request.param)
    torch.manual_seed(1)
    model = build_reference(entry, None)
    fill_zeros(model)
    with torch.no_grad():
        model.no_mem_embed.normal_()  # 0.02 from initialisation would drown in the features
    path = tmp_path_factory.mktemp("sam2") / "weights.pt"
    torch.save({"model": model.state_dict()}, path)
    return resolve(entry, str(path), cache_dir=path.parent)


@pytest.fixture(scope="module")
def sam2_features(sam2_weights: Weights) -> dict[str, torch.Tensor]:
    model = build_reference(sam2_weights.entry, sam2_weights.path)
    return sam2_upstream(model, scene(0)).tensors


def test_sam2_in_a_batch(sam2_weights: Weights, sam2_features: dict[str, torch.Tensor]) -> None:
    encoder = encoder_of(sam2_weights)
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))
    assert list(batch) == [output.name for output in encoder.spec.outputs]
    for output in encoder.spec.outputs:
        assert batch[output.name].shape == (2, *output.shape)
        assert error(batch[output.name][1:], sam2_features[output.name]) < FP32


@pytest.mark.slow
def test_sam2_bf16(sam2_weights: Weights, sam2_features: dict[str, torch.Tensor]) -> None:
    encoder = encoder_of(sam2_weights, "bf16")
    found = encoder.encode(as_pixels(scene(0)), (SIZE, SIZE))
    for name, reference in sam2_features.items():
        assert found[name].dtype == torch.float32
        assert 1e-4 < error(found[name], reference) < BF16


def test_sam2_leaving_out_a_step_would_show() -> None:
    """The reference without no_mem_embed, or with another conv_s0, is far beyond the tolerance."""
    model = SAM2.make()
    assert model.directly_add_no_mem_embed
    right = sam2_upstream(model, scene(0)).tensors
    with torch.no_grad():
        model.no_mem_embed.zero_()
        model.sam_mask_decoder.conv_s0.bias.add_(1.0)
    wrong = sam2_upstream(model, scene(0)).tensors
    assert error(wrong["image_embed"], right["image_embed"]) > 100 * FP32
    assert error(wrong["high_res_feats_0"], right["high_res_feats_0"]) > 100 * FP32


@pytest.mark.parametrize("name", SAM2_NAMES)
def test_sam2_model_is_what_build_sam2_builds(name: str) -> None:
    """We read the config without hydra's state; the modules and their settings must be the same."""
    from geosam_stac.encoders.sam2 import _build

    entry = find_model(name)
    ours, reference = _build(entry.build_key), build_reference(entry, None)
    assert repr(ours) == repr(reference)
    for module, other in zip(ours.modules(), reference.modules(), strict=True):
        plain = (bool, int, float, str)
        settings = {k: v for k, v in vars(module).items() if isinstance(v, plain)}
        expected = {k: v for k, v in vars(other).items() if isinstance(v, plain)}
        settings.pop("training"), expected.pop("training")
        assert settings == expected
    assert ours.sam_mask_decoder.dynamic_multimask_via_stability is True
