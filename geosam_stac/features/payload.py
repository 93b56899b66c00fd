"""What the feature formats share: names, dtypes, metadata, and the check before writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.types import EncoderSpec, Features

IMAGE_EMBED = "image_embed"
HIGH_RES_PREFIX = "high_res_feats_"
DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
"""Floating dtypes of feature files; safetensors also holds int8, with scales."""


@dataclass(frozen=True, kw_only=True)
class FeatureMetadata:
    """What a feature file says beside its tensors.

    `checkpoint_path` is the Geo-SAM base name of the weights; `src_shape` the chip's own (rows,
    columns) in px, `dst_shape` the model's input; `feature_kind` "sam" or "sam2" (SAM 3's are of
    the kind "sam2"). The others stand in safetensors files alone: `transform` is the chip's
    affine a, b, c, d, e, f in `crs` (an authority's code, else WKT); `dtype` what the file stores.
    """

    model_type: str
    checkpoint_path: str
    src_shape: tuple[int, int]
    dst_shape: tuple[int, int]
    feature_kind: str
    chip_id: str | None = None
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    model: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    dtype: str | None = None


def checked(features: Features, spec: EncoderSpec, dtype: str) -> dict[str, torch.Tensor]:
    """The outputs of `spec` as contiguous (C, h, w) tensors on the CPU, in a floating dtype.

    Raises
    ------
    DataError
        A value is not finite, or not within the range of `dtype`.
    GeosamStacError
        The tensors are not those of `spec`: a defect of ours.
    """
    tensors: dict[str, torch.Tensor] = {}
    for output in spec.outputs:
        tensor = features.tensors.get(output.name)
        shape = None if tensor is None else tuple(tensor.shape)
        if tensor is None or shape != output.shape:
            raise GeosamStacError(
                f"the encoder's tensor {output.name} has another shape than declared",
                chip=features.ref.chip_id,
                expected=str(output.shape),
                got=str(shape),
            )
        tensors[output.name] = finite(output.name, tensor, dtype, chip=features.ref.chip_id)
    return tensors


def finite(name: str, tensor: torch.Tensor, dtype: str, *, chip: str | None) -> torch.Tensor:
    """It in `dtype` on the CPU, contiguous; not a copy where it is that already.

    Raises
    ------
    DataError
        A value is not finite, or not within the range of `dtype`.
    """
    cast = tensor.detach().to(device="cpu", dtype=DTYPES[dtype]).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise DataError(
            f"the feature {name} holds values that are not finite as {dtype}",
            chip=chip,
            hint="Try --feature-dtype float32 --precision fp32",
        )
    return cast


def broken(got: str) -> DataError:
    """The error of a file that cannot be read."""
    return DataError(
        "a feature file cannot be read",
        expected="a .pt file as geosam writes it, or a .safetensors file of geosam-stac",
        got=got,
        hint="Encode this chip again",
    )
