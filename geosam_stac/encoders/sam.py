"""SAM (ViT-B, ViT-L, ViT-H), through Meta's own package `segment-anything`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geosam_stac.encoders.base import TorchEncoder, place
from geosam_stac.encoders.checkpoints import Weights
from geosam_stac.encoders.devices import PRECISIONS
from geosam_stac.encoders.registry import ModelEntry
from geosam_stac.encoders.weights import load_weights

if TYPE_CHECKING:
    from geosam_stac.encoders.prompts import Masks, Prompts


class SamEncoder(TorchEncoder):
    """SAM's image encoder: what `SamPredictor.set_image` keeps as `features`."""

    def _prepare(self) -> None:
        from geosam_stac.encoders.vit import FastViT

        self._image_encoder = FastViT(self.model.image_encoder, PRECISIONS[self.precision])

    def _forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"image_embed": self._image_encoder(images)}


ENCODER = SamEncoder


def load_model(entry: ModelEntry, weights: Weights, device: str) -> nn.Module:
    """The whole `segment_anything.modeling.Sam`, in eval mode, on a resolved device.

    Raises
    ------
    ConfigurationError
        The checkpoint is damaged, holds code, or is of another model.
    DeviceOutOfMemoryError, TemporaryError
        The device is full or lost.
    """
    from segment_anything import sam_model_registry

    model = load_weights(
        weights,
        build=sam_model_registry[entry.build_key],
        unwrap=lambda content: content,  # the files are plain state dicts
    )
    return place(model, device)


@torch.inference_mode()
def decode(model: Any, tensors: Mapping[str, torch.Tensor], prompts: Prompts) -> Masks:
    """As `SamPredictor.predict_torch` does; see `prompts.decode`."""
    from geosam_stac.encoders.prompts import Masks

    points, labels, box = prompts.tensors(tensors["image_embed"])
    sparse, dense = model.prompt_encoder(
        points=None if points is None else (points, labels),
        boxes=box,
        masks=prompts.mask_tensor(tensors["image_embed"]),
    )
    logits, scores = model.mask_decoder(
        image_embeddings=tensors["image_embed"],
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=prompts.multimask,
    )
    return Masks(logits=logits[0], scores=scores[0])
