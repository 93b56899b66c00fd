"""SAM 2 and SAM 2.1 (Hiera), through Meta's own package `sam2`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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

# As sam2.build_sam.build_sam2 does by default, and ultralytics always. It touches the mask
# decoder only: a single mask that is not stable falls back to the best of the three.
_POSTPROCESSING = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


class Sam2Encoder(TorchEncoder):
    """SAM 2's image encoder: what `SAM2ImagePredictor.set_image` keeps as `_features`.

    Ready for prompts: `no_mem_embed` is added to the lowest resolution, and the decoder's conv_s0
    and conv_s1 (in `forward_image`) have projected the other two.
    """

    def _prepare(self) -> None:
        from geosam_stac.encoders.hiera import FastHiera

        fine = len(self.spec.outputs) > 1
        self._image_encoder = FastHiera(self.model, PRECISIONS[self.precision], fine=fine)

    def _forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        outputs: Mapping[str, torch.Tensor] = self._image_encoder(images)
        return outputs


ENCODER = Sam2Encoder


def load_model(entry: ModelEntry, weights: Weights, device: str) -> nn.Module:
    """The whole `sam2.modeling.sam2_base.SAM2Base`, in eval mode, on a resolved device.

    Raises
    ------
    ConfigurationError
        The checkpoint is damaged, holds code, or is of another model.
    DeviceOutOfMemoryError, TemporaryError
        The device is full or lost.
    """
    model = load_weights(
        weights,
        build=lambda: _build(entry.build_key),
        unwrap=lambda content: content.get("model") if isinstance(content, dict) else None,
    )
    return place(model, device)


@torch.inference_mode()
def decode(model: Any, tensors: Mapping[str, torch.Tensor], prompts: Prompts) -> Masks:
    """As `SAM2ImagePredictor._predict` does; see `prompts.decode`."""
    from geosam_stac.encoders.prompts import Masks

    points, labels, box = prompts.tensors(tensors["image_embed"])
    if box is not None:
        # SAM 2 takes a box as two points, labelled 2 and 3, before the others.
        corners = box.view(1, 2, 2)
        ends = torch.tensor([[2, 3]], dtype=torch.int32, device=box.device)
        points = corners if points is None else torch.cat([corners, points], dim=1)
        labels = ends if labels is None else torch.cat([ends, labels], dim=1)
    sparse, dense = model.sam_prompt_encoder(
        points=None if points is None else (points, labels),
        boxes=None,
        masks=prompts.mask_tensor(tensors["image_embed"]),
    )
    logits, scores, _, _ = model.sam_mask_decoder(
        image_embeddings=tensors["image_embed"],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=prompts.multimask,
        repeat_image=False,
        high_res_features=[tensors["high_res_feats_0"], tensors["high_res_feats_1"]],
    )
    return Masks(logits=logits[0], scores=scores[0])


def _build(config: str) -> nn.Module:
    """The model of a config file inside the sam2 package.

    Not through `build_sam2`: that asks hydra's process-wide state for the config, which is another
    one's once anybody else in the process has used hydra. Reading the file and instantiating it
    needs no such state.
    """
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    content = OmegaConf.load(Path(sam2.__path__[0]) / config)
    OmegaConf.update(content, "model.sam_mask_decoder_extra_args", _POSTPROCESSING, force_add=True)
    OmegaConf.resolve(content)
    model: nn.Module = instantiate(content.model, _recursive_=True)
    return model
