"""SAM 3, through transformers' Sam3Tracker classes (the extra `geosam-stac[sam3]`).

Of SAM 3 this uses the part that points and boxes prompt, the "tracker", not the detector that a
text prompts: the detector's features cannot be reused for points and boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geosam_stac.encoders.base import TorchEncoder, place
from geosam_stac.encoders.checkpoints import Weights
from geosam_stac.encoders.devices import autocast
from geosam_stac.encoders.registry import ModelEntry
from geosam_stac.encoders.weights import StateDict, load_weights
from geosam_stac.errors import ConfigurationError

if TYPE_CHECKING:
    from geosam_stac.encoders.prompts import Masks, Prompts

# The vision encoder's scales of the patch grid. transformers' default has a fourth, 0.5, that no
# decoder takes; and Sam3TrackerModel (5.23) then adds the no-memory embedding to that one instead
# of to the third, where Meta adds it.
_SCALES = [4.0, 2.0, 1.0]


class Sam3Encoder(TorchEncoder):
    """SAM 3's image encoder: what its tracker's mask decoder takes.

    Prompt-ready as SAM 2's: `no_memory_embedding` is added to the lowest resolution (sam3's
    `Sam3Image.predict_inst` adds it there), and conv_s0 and conv_s1 have projected the other two.
    """

    def _forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        model = self.model
        with autocast(self.device, self.precision):
            return self._features(model, images)

    def _features(self, model: Any, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        fine, middle, coarse = model.vision_encoder(images).fpn_hidden_states[: len(_SCALES)]
        return {
            # (1, 1, C) in the model, for tokens in rows; here (1, C, 1, 1).
            "image_embed": coarse + model.no_memory_embedding.view(1, -1, 1, 1),
            "high_res_feats_0": model.mask_decoder.conv_s0(fine),
            "high_res_feats_1": model.mask_decoder.conv_s1(middle),
        }


ENCODER = Sam3Encoder


def load_model(entry: ModelEntry, weights: Weights, device: str) -> nn.Module:
    """The whole `transformers.Sam3TrackerModel`, in eval mode, on a resolved device.

    Reads Meta's `sam3.pt`, the `model.safetensors` beside it on Hugging Face, and what
    `Sam3TrackerModel` saves.

    Raises
    ------
    ConfigurationError
        The checkpoint is damaged, holds code, is of another model, or has the detector alone,
        whose features cannot be reused.
    DeviceOutOfMemoryError, TemporaryError
        The device is full or lost.
    """
    model = load_weights(
        weights,
        build=_build,
        unwrap=_unwrap,
        convert=lambda state: tracker_state(state, weights),
    )
    return place(model, device)


@torch.inference_mode()
def decode(model: Any, tensors: Mapping[str, torch.Tensor], prompts: Prompts) -> Masks:
    """Run the tracker's prompt encoder and mask decoder; see `prompts.decode`."""
    from geosam_stac.encoders.prompts import Masks

    points, labels, box = prompts.tensors(tensors["image_embed"])
    out = model(
        image_embeddings=[
            tensors["high_res_feats_0"],
            tensors["high_res_feats_1"],
            tensors["image_embed"],
        ],
        # (image, object, point, xy) and (image, object, point); boxes (image, object, xyxy).
        input_points=None if points is None else points[:, None],
        input_labels=None if labels is None else labels[:, None],
        input_boxes=None if box is None else box[:, None],
        input_masks=prompts.mask_tensor(tensors["image_embed"]),
        multimask_output=prompts.multimask,
    )
    return Masks(logits=out.pred_masks[0, 0], scores=out.iou_scores[0, 0])


def _build() -> nn.Module:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config: Any = Sam3TrackerConfig()
    config.vision_config.scale_factors = _SCALES
    model: Any = Sam3TrackerModel(config)
    # One matrix under two names: every published file has them equal, random ones need it said.
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.data.copy_(shared)
    built: nn.Module = model
    return built


def _unwrap(content: object) -> object:
    inner = content.get("model") if isinstance(content, dict) else None
    return inner if isinstance(inner, dict) else content


# --- Names of tensors ---------------------------------------------------------------------------
#
# Meta's file has `detector.*`, with the vision encoder that both parts share, and `tracker.*`.
# transformers' files have `detector_model.*`, `tracker_neck.*` and `tracker_model.*` (its
# conversion_mapping.py, "sam3_tracker", and convert_sam3_video_to_hf.py are where these rules
# come from). What either holds besides is named here too, so that anything else is an error.

_META = ("detector.", "tracker.")
_HUB = ("detector_model.", "tracker_neck.", "tracker_model.")
_DETECTOR_ALONE = re.compile(r"(detector(_model)?\.)?(detr_|geometry_encoder|transformer\.decoder)")
_MULTIPLEX = "tracker.model."  # SAM 3.1

Rules = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]


def _rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rules:
    return tuple((re.compile(pattern), name) for pattern, name in pairs)


def _mlp(match: re.Match[str]) -> str:
    """Three layers by number -> proj_in, layers.0, proj_out."""
    return match[1] + ("proj_in", "layers.0", "proj_out")[int(match[2])]


# The file's memory of earlier frames, the detector, and the scale that no decoder takes.
_UNUSED = re.compile(
    r"(tracker\.|tracker_model\.|^)("
    r"maskmem_|transformer\.|mask_downsample\.|obj_ptr_(tpos_)?proj\.|no_mem_pos_enc$|no_obj_ptr$"
    r"|no_obj_embed_spatial$|memory_|object_pointer_proj\.|no_object_pointer$"
    r"|temporal_positional_encoding_projection_layer\.|no_memory_positional_encoding$"
    r"|occlusion_spatial_embedding_parameter$)"
    r"|vision_encoder\.neck\.fpn_layers\.3\."
    r"|\.attn\.freqs_cis$|\.rotary_emb\."
)
_FROM_META = _rules(
    (r"^detector\.backbone\.vision_backbone\.trunk\.", "vision_encoder.backbone."),
    (r"^detector\.backbone\.vision_backbone\.sam2_convs\.", "vision_encoder.neck.fpn_layers."),
    (r"^tracker\.sam_prompt_encoder\.", "prompt_encoder."),
    (r"^tracker\.sam_mask_decoder\.", "mask_decoder."),
    (r"^tracker\.no_mem_embed$", "no_memory_embedding"),
    # The vision encoder
    (r"^(vision_encoder\.backbone\.)pos_embed$", r"\1embeddings.position_embeddings"),
    (
        r"^(vision_encoder\.backbone\.)patch_embed\.proj\.",
        r"\1embeddings.patch_embeddings.projection.",
    ),
    (r"^(vision_encoder\.backbone\.)ln_pre\.", r"\1layer_norm."),
    (r"^(vision_encoder\.backbone\.)blocks\.", r"\1layers."),
    (r"(backbone\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"(backbone\.layers\.\d+\.)attn\.proj\.", r"\1attention.o_proj."),
    (r"(backbone\.layers\.\d+\.)attn\.qkv\.", r"\1attention.qkv_proj."),
    (r"(fpn_layers\.\d\.)dconv_2x2(_0)?\.", r"\1scale_layers.0."),
    (r"(fpn_layers\.\d\.)dconv_2x2_1\.", r"\1scale_layers.2."),
    (r"(fpn_layers\.\d\.)conv_1x1\.", r"\1proj1."),
    (r"(fpn_layers\.\d\.)conv_3x3\.", r"\1proj2."),
    # The prompt encoder
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    # The mask decoder
    (r"^(mask_decoder\.transformer\..*)\bnorm", r"\1layer_norm"),
    (r"^(mask_decoder\.transformer\..*)out_proj\.", r"\1o_proj."),
    (r"^(mask_decoder\.transformer\..*\.mlp\.)(lin1|layers\.0)\.", r"\1proj_in."),
    (r"^(mask_decoder\.transformer\..*\.mlp\.)(lin2|layers\.1)\.", r"\1proj_out."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|\w+_head)\.)layers\.([012])(?=\.)", _mlp),
)
_FROM_HUB = _rules(
    (r"^detector_model\.vision_encoder\.backbone\.", "vision_encoder.backbone."),
    (r"^tracker_neck\.", "vision_encoder.neck."),
    (r"^tracker_model\.", ""),
)


def tracker_state(state: StateDict, weights: Weights) -> StateDict:
    """A checkpoint's tensors under the names of `Sam3TrackerModel`, less what that has no use for.

    A tensor of a name that is known nowhere keeps it, so that filling the model refuses it.

    Raises
    ------
    ConfigurationError
        The features of this model cannot be reused.
    """
    if any(name.startswith(_MULTIPLEX) for name in state):
        raise _not_reusable(weights, "a SAM 3.1 Multiplex checkpoint")
    layout = next((kind for kind in (_META, _HUB) if any(n.startswith(kind) for n in state)), ())
    tracker = [n for n in state if n.startswith(("tracker.", "tracker_model.", "mask_decoder.iou"))]
    if not tracker and any(_DETECTOR_ALONE.match(name) for name in state):
        raise _not_reusable(weights, "SAM 3's text-prompted detector alone")
    rules = {_META: _FROM_META, _HUB: _FROM_HUB}.get(layout, ())
    named: dict[str, torch.Tensor] = {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        # What belongs to the detector keeps its prefix.
        if not _UNUSED.search(name) and not name.startswith(("detector.", "detector_model.")):
            named[name] = tensor
    return named if layout != _META else _reshaped(named)


def _reshaped(named: Mapping[str, torch.Tensor]) -> StateDict:
    """Meta's tensors cut and joined as transformers has them."""
    state: dict[str, torch.Tensor] = {}
    points: dict[int, torch.Tensor] = {}
    for name, tensor in named.items():
        point = re.fullmatch(r"prompt_encoder\.point_embeddings\.(\d)\.weight", name)
        if point is not None:
            points[int(point[1])] = tensor
        elif ".attention.qkv_proj." in name and tensor.shape[0] % 3 == 0:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("qkv_proj", f"{letter}_proj")] = part
        elif name.endswith("embeddings.position_embeddings") and tensor.ndim == 3:
            # Of its pretraining: the class token comes first, and is not used.
            state[name] = tensor[:, 1:]
        else:
            state[name] = tensor
            if name == "prompt_encoder.shared_embedding.positional_embedding":
                state["shared_image_embedding.positional_embedding"] = tensor
    if points:
        rows = [points[index] for index in sorted(points)]
        state["prompt_encoder.point_embed.weight"] = torch.cat(rows)
    return state


def _not_reusable(weights: Weights, got: str) -> ConfigurationError:
    return ConfigurationError(
        "features of this checkpoint cannot be reused for points and boxes",
        href=str(weights.path),
        expected="a SAM 3 checkpoint with its tracker",
        got=got,
        hint="Give Meta's sam3.pt, or the model.safetensors beside it on Hugging Face",
    )
