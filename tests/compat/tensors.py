"""Feature payloads as named tensors, and how near two tensors or two masks are.

Imports numpy and torch only.
"""

from __future__ import annotations

import numpy as np
import torch


def iou(left: np.ndarray, right: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    return float((left & right).sum() / max((left | right).sum(), 1))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, L2 norms in float64."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm())


def tensors_of(features: object) -> dict[str, torch.Tensor]:
    """Name each tensor of a feature payload."""
    if isinstance(features, torch.Tensor):
        return {"image_embed": features}
    named = {"image_embed": features["image_embed"]}
    for index, tensor in enumerate(features["high_res_feats"]):
        named[f"high_res_feats[{index}]"] = tensor
    return named


def cast(features: object, dtype: torch.dtype) -> object:
    """Cast a feature payload."""
    if isinstance(features, torch.Tensor):
        return features.to(dtype)
    return {
        "image_embed": features["image_embed"].to(dtype),
        "high_res_feats": [tensor.to(dtype) for tensor in features["high_res_feats"]],
    }
