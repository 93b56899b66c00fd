"""The encoder families, for the tests that each must pass: a new one is listed here.

A model is cut to a few blocks, so that a chip takes a second or two; what is cut is the number of
blocks alone. The reference runs on the same cut model, through upstream's own code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geosam_stac.encoders import _family, load_model
from geosam_stac.encoders.base import TorchEncoder
from geosam_stac.encoders.checkpoints import Weights, resolve
from geosam_stac.encoders.prompts import Masks, Prompts
from geosam_stac.encoders.registry import ModelEntry, find_model

Tensors = dict[str, torch.Tensor]


def scene(seed: int, rows: int = 1024, columns: int = 1024) -> np.ndarray:
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


def as_pixels(*images: np.ndarray, size: int = 1024) -> np.ndarray:
    """(N, 3, size, size): images at the top left, what lies beyond is rubbish on purpose."""
    pixels = np.full((len(images), 3, size, size), 201, np.uint8)
    for chip, image in zip(pixels, images, strict=True):
        chip[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return pixels


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """L2 norm of the difference over L2 norm of the reference."""
    assert ours.shape == reference.shape
    return float((ours.double() - reference.double()).norm() / reference.double().norm())


def fill_zeros(model: nn.Module) -> None:
    """Random numbers for what initialisation leaves at zero: a step that is left out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


@dataclass(frozen=True)
class Upstream:
    """One image as upstream's own code has it: features by our names, and masks for prompts."""

    tensors: Tensors
    predict: Callable[[Prompts], Masks]


@dataclass(frozen=True)
class Family:
    """One model of a family.

    `cut(model)` leaves a few blocks; `upstream(model, image)` runs upstream's code, from its own
    preprocessing on, on an (S, S, 3) uint8 RGB image. `package` is what the model needs beyond
    the project's own packages. `filled` get values from a normal distribution of 1: smaller ones
    would drown in the features.
    """

    model: str
    cut: Callable[[Any], None]
    upstream: Callable[[Any, np.ndarray], Upstream]
    package: str | None = None
    filled: tuple[str, ...] = ()
    build: Callable[[], nn.Module] | None = field(default=None)
    """In place of load_model and `cut`, where building the whole takes too long."""

    @property
    def entry(self) -> ModelEntry:
        return find_model(self.model)

    @property
    def weights(self) -> Weights:
        return resolve(self.entry, "untrained:1", cache_dir=Path("unused"))

    def make(self, *, whole: bool = False) -> nn.Module:
        """The model with random weights, none of them zero."""
        torch.manual_seed(1)
        if self.build is not None and not whole:
            model = self.build()
        else:
            model = load_model(self.entry, self.weights, "cpu")
            if not whole:
                self.cut(model)
        fill_zeros(model)
        with torch.no_grad():
            for name in self.filled:
                model.get_parameter(name).normal_()
        return model.eval().requires_grad_(False)

    def encoder(self, model: nn.Module, **options: str) -> TorchEncoder:
        chosen = {"precision": "fp32", "feature_dtype": "float32", "device": "cpu"} | options
        return _family(self.entry).ENCODER(model, self.weights, **chosen)


# --- SAM ----------------------------------------------------------------------------------------


def _cut_sam(model: Any) -> None:
    # One block with windows, one global: of ViT-B's, 2, 5, 8 and 11 are global.
    model.image_encoder.blocks = model.image_encoder.blocks[1:3]


def _sam_upstream(model: Any, image: np.ndarray) -> Upstream:
    from segment_anything import SamPredictor

    predictor = SamPredictor(model)
    predictor.set_image(image)
    tensors = {"image_embed": predictor.get_image_embedding()}
    return Upstream(tensors, lambda prompts: _predict(predictor, prompts))


def _predict(predictor: Any, prompts: Prompts) -> Masks:
    _, scores, logits = predictor.predict(
        point_coords=np.array(prompts.points) if prompts.points else None,
        point_labels=np.array(prompts.labels) if prompts.points else None,
        box=None if prompts.box is None else np.array(prompts.box),
        mask_input=None if prompts.mask is None else prompts.mask[None].numpy(),
        multimask_output=prompts.multimask,
        return_logits=True,
    )
    return Masks(logits=torch.from_numpy(logits), scores=torch.from_numpy(scores))


# --- SAM 2 --------------------------------------------------------------------------------------


def _cut_sam2(model: Any) -> None:
    # The first block of each of the four stages, which narrows the grid, and a global one.
    blocks = model.image_encoder.trunk.blocks
    for index in set(range(len(blocks))) - {0, 1, 3, 5, 10}:
        blocks[index] = nn.Identity()


def sam2_upstream(model: Any, image: np.ndarray) -> Upstream:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    predictor.set_image(image)
    found = predictor._features
    fine, middle = found["high_res_feats"]
    tensors = {
        "image_embed": found["image_embed"],
        "high_res_feats_0": fine,
        "high_res_feats_1": middle,
    }
    return Upstream(tensors, lambda prompts: _predict(predictor, prompts))


# --- SAM 3 --------------------------------------------------------------------------------------


def small_sam3(scales: tuple[float, ...] = (4.0, 2.0, 1.0)) -> nn.Module:
    """Sam3TrackerModel with a vision encoder of two layers, one of windows and one global."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config: Any = Sam3TrackerConfig()
    config.vision_config.scale_factors = list(scales)
    config.vision_config.backbone_config.num_hidden_layers = 2
    config.vision_config.backbone_config.global_attn_indexes = [1]
    model = Sam3TrackerModel(config)
    model.shared_image_embedding.positional_embedding.data.copy_(
        model.prompt_encoder.shared_embedding.positional_embedding
    )
    return model


def _cut_sam3(model: Any) -> None:
    model.vision_encoder.backbone.layers = model.vision_encoder.backbone.layers[6:8]


def sam3_pixels(image: np.ndarray) -> torch.Tensor:
    """transformers' own preprocessing: (1, 3, 1008, 1008) float32."""
    from transformers import Sam3ImageProcessor

    return Sam3ImageProcessor()(images=[image], return_tensors="pt")["pixel_values"]


def sam3_upstream(model: Any, image: np.ndarray) -> Upstream:
    embeddings = model.get_image_embeddings(sam3_pixels(image))

    @torch.inference_mode()
    def predict(prompts: Prompts) -> Masks:
        points, labels, box = prompts.points, prompts.labels, prompts.box
        out = model(
            image_embeddings=embeddings,
            input_points=torch.tensor([[points]]) if points else None,
            input_labels=torch.tensor([[labels]]) if points else None,
            input_boxes=None if box is None else torch.tensor([[box]]),
            input_masks=None if prompts.mask is None else prompts.mask[None, None],
            multimask_output=prompts.multimask,
        )
        return Masks(logits=out.pred_masks[0, 0], scores=out.iou_scores[0, 0])

    fine, middle, coarse = embeddings
    tensors = {"image_embed": coarse, "high_res_feats_0": fine, "high_res_feats_1": middle}
    return Upstream(tensors, predict)


FAMILIES = (
    Family(model="sam-vit-base", cut=_cut_sam, upstream=_sam_upstream),
    Family(
        model="sam2.1-hiera-tiny",
        cut=_cut_sam2,
        upstream=sam2_upstream,
        filled=("no_mem_embed",),
    ),
    Family(
        model="sam3",
        cut=_cut_sam3,
        upstream=sam3_upstream,
        package="transformers",
        filled=("no_memory_embedding",),
        build=small_sam3,
    ),
)

# What needs a package of its own is skipped without it, and slow: SAM 3 takes 30 s.
LISTED = [
    pytest.param(
        family,
        id=family.model,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                importlib.util.find_spec(family.package) is None,
                reason=f"{family.package} is not installed: pip install '{family.entry.package}'",
            ),
        ]
        if family.package is not None
        else [],
    )
    for family in FAMILIES
]
