"""Our encoders against Meta's own predictors, on the same weights and the same image.

Reference: `segment_anything.SamPredictor.set_image` (1.0) and
`sam2.sam2_image_predictor.SAM2ImagePredictor.set_image` (1.1), fp32 on the CPU. The weights are
random, saved as upstream saves them; what initialisation leaves at zero is filled, so that a step
that is left out shows. Tolerance: L2 norm of the difference over L2 norm of the reference,
1e-5 in fp32 and 2e-2 in bf16.
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

FP32, BF16 = 1e-5, 2e-2
SIZE = 1024
SAM2_NAMES = ["sam2.1-hiera-tiny", "sam2-hiera-tiny"]


def scene(seed: int, rows: int = SIZE, columns: int = SIZE) -> np.ndarray:
    """(rows, columns, 3) uint8: gradients, fields with sharp edges, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    image = np.stack([x / 8, y / 8, 96 + 64 * np.sin((x + y) / 50)], axis=-1)
    for _ in range(40):
        top, left = rng.integers(0, rows - 50), rng.integers(0, columns - 50)
        image[top : top + rng.integers(20, 200), left : left + rng.integers(20, 200)] = (
            rng.integers(0, 256, 3)
        )
    image += rng.normal(0, 10, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def as_pixels(*images: np.ndarray) -> np.ndarray:
    """(N, 3, 1024, 1024): images at the top left, what lies beyond is rubbish on purpose."""
    pixels = np.full((len(images), 3, SIZE, SIZE), 201, np.uint8)
    for chip, image in zip(pixels, images, strict=True):
        chip[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return pixels


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    difference = (ours.double() - reference.double()).norm() / reference.double().norm()
    return float(difference)


def fill_zeros(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


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


def sam_reference(weights: Weights, image: np.ndarray) -> torch.Tensor:
    from segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_b"](str(weights.path)))
    predictor.set_image(image)
    return predictor.get_image_embedding()


@pytest.fixture(scope="module")
def sam_features(sam_weights: Weights) -> torch.Tensor:
    return sam_reference(sam_weights, scene(0))


def test_sam_alone(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    alone = encoder_of(sam_weights).encode(as_pixels(scene(0)), (SIZE, SIZE))
    assert list(alone) == ["image_embed"]
    assert error(alone["image_embed"], sam_features) < FP32


@pytest.mark.slow  # 60 s on 2 cores: upstream's global attention holds 0.8 GB a chip and layer
def test_sam_in_a_batch(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    encoder = encoder_of(sam_weights)
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))["image_embed"]
    assert error(batch[1:], sam_features) < FP32
    assert error(batch[:1], sam_features) > 0.01  # another image has other features


def test_sam_bf16(sam_weights: Weights, sam_features: torch.Tensor) -> None:
    encoder = encoder_of(sam_weights, "bf16")
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))["image_embed"]
    assert batch.dtype == torch.float32
    assert 1e-4 < error(batch[1:], sam_features) < BF16  # bf16 was used, and is close


def test_sam_with_padding(sam_weights: Weights) -> None:
    image = scene(2, 700, SIZE)
    ours = encoder_of(sam_weights).encode(as_pixels(image), (700, SIZE))["image_embed"]
    assert error(ours, sam_reference(sam_weights, image)) < FP32


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
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(build_reference(sam2_weights.entry, sam2_weights.path))
    predictor.set_image(scene(0))
    features = predictor._features
    fine, middle = features["high_res_feats"]
    return {
        "image_embed": features["image_embed"],
        "high_res_feats_0": fine,
        "high_res_feats_1": middle,
    }


def test_sam2_alone_and_in_a_batch(
    sam2_weights: Weights, sam2_features: dict[str, torch.Tensor]
) -> None:
    encoder = encoder_of(sam2_weights)
    alone = encoder.encode(as_pixels(scene(0)), (SIZE, SIZE))
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))
    assert list(alone) == list(batch) == [output.name for output in encoder.spec.outputs]
    for output in encoder.spec.outputs:
        assert alone[output.name].shape == (1, *output.shape)
        assert error(alone[output.name], sam2_features[output.name]) < FP32
        assert error(batch[output.name][1:], sam2_features[output.name]) < FP32


def test_sam2_bf16(sam2_weights: Weights, sam2_features: dict[str, torch.Tensor]) -> None:
    encoder = encoder_of(sam2_weights, "bf16")
    batch = encoder.encode(as_pixels(scene(5), scene(0)), (SIZE, SIZE))
    for name, reference in sam2_features.items():
        assert batch[name].dtype == torch.float32
        assert 1e-4 < error(batch[name][1:], reference) < BF16


def test_sam2_leaving_out_a_step_would_show(
    sam2_weights: Weights, sam2_features: dict[str, torch.Tensor]
) -> None:
    """The reference without no_mem_embed, or without conv_s0, is far beyond the tolerance."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = build_reference(sam2_weights.entry, sam2_weights.path)
    assert model.directly_add_no_mem_embed
    with torch.no_grad():
        model.no_mem_embed.zero_()
        model.sam_mask_decoder.conv_s0.bias.add_(1.0)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(scene(0))
    wrong = predictor._features
    assert error(wrong["image_embed"], sam2_features["image_embed"]) > 100 * FP32
    assert error(wrong["high_res_feats"][0], sam2_features["high_res_feats_0"]) > 100 * FP32


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
