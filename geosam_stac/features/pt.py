"""Features of one chip <-> the bytes of a Geo-SAM `.pt` file (SPEC-geosam section 3)."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import torch

from geosam_stac.errors import DataError, UsageError
from geosam_stac.features.payload import (
    DTYPES,
    HIGH_RES_PREFIX,
    IMAGE_EMBED,
    FeatureMetadata,
    broken,
    checked,
    finite,
)
from geosam_stac.types import EncoderSpec, Features

ZIP_MAGIC = b"PK\x03\x04"


def to_pt(features: Features, *, spec: EncoderSpec, dtype: str = "float16") -> bytes:
    """Write one chip's features as Geo-SAM reads them.

    The same tensors always give the same bytes. Tensors are copied, so that a view into a batch
    does not drag the batch's storage along.

    Parameters
    ----------
    features
        `image_embed` (C, h, w) and, for SAM2 and SAM3, `high_res_feats_0`, `high_res_feats_1`.
    spec
        The encoder; its `outputs` are what the tensors are checked against.
    dtype
        "float16", "float32" or "bfloat16".

    Returns
    -------
    bytes
        A `torch.save` archive that loads with `weights_only=True`; tensors are (1, C, h, w).

    Raises
    ------
    UsageError
        `dtype` is int8, which Geo-SAM cannot read.
    DataError
        A value is not finite, or not within the range of `dtype`; or the high-resolution levels
        of a model that needs them were left out.
    GeosamStacError
        The tensors are not those of `spec`: a defect of ours.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"a .pt file cannot hold {dtype}: Geo-SAM's engine knows no scales",
            expected=f"one of {', '.join(DTYPES)}",
            hint="Give --format safetensors for int8",
        )
    window = features.ref.window
    return _save(
        checked(features, spec, dtype),
        FeatureMetadata(
            model_type=spec.family,
            checkpoint_path=spec.checkpoint_name,
            src_shape=(window.height, window.width),
            dst_shape=(spec.input_px, spec.input_px),
            feature_kind=_kind(spec.family),
        ),
    )


def pack_pt(tensors: Mapping[str, torch.Tensor], metadata: FeatureMetadata) -> bytes:
    """What another format held, as a `.pt` file in the same dtype, but for int8 (see `as_pt`).

    DataError where a level is lacking that Geo-SAM's decoder needs.
    """
    dtype = metadata.dtype or ""
    if dtype not in DTYPES:
        largest = max(float(tensor.abs().amax()) for tensor in tensors.values())
        dtype = "float16" if largest <= torch.finfo(torch.float16).max else "float32"
    cast = {
        name: finite(name, tensor, dtype, chip=metadata.chip_id) for name, tensor in tensors.items()
    }
    return _save(cast, metadata)


def _save(tensors: Mapping[str, torch.Tensor], metadata: FeatureMetadata) -> bytes:
    batch = {name: _alone(tensor).unsqueeze(0) for name, tensor in tensors.items()}
    high_res = [batch[name] for name in sorted(batch) if name.startswith(HIGH_RES_PREFIX)]
    if metadata.feature_kind == "sam2" and not high_res:
        raise DataError(
            f"{metadata.model_type} features without their high-resolution levels are no use to "
            "Geo-SAM: its decoder needs them",
            chip=metadata.chip_id,
            expected=f"{IMAGE_EMBED}, {HIGH_RES_PREFIX}0, {HIGH_RES_PREFIX}1",
            got=", ".join(tensors),
            hint="Encode again with --levels all, or keep the safetensors file",
        )
    payload = {
        # pickle writes an object once: equal texts must be one object, or the bytes would differ.
        "model_type": sys.intern(metadata.model_type),
        "checkpoint_path": sys.intern(metadata.checkpoint_path),
        "src_shape": metadata.src_shape,
        "dst_shape": metadata.dst_shape,
        "feature_kind": sys.intern(metadata.feature_kind),
        "features": (
            {IMAGE_EMBED: batch[IMAGE_EMBED], "high_res_feats": high_res}
            if high_res
            else batch[IMAGE_EMBED]
        ),
    }
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of what is part of something larger: torch.save writes a view's whole storage."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _kind(family: str) -> str:
    return "sam" if family == "sam" else "sam2"


def from_pt(data: bytes) -> tuple[dict[str, torch.Tensor], FeatureMetadata]:
    """Read a feature file; nothing in it is run (`weights_only=True`, zip archives only).

    Returns
    -------
    tensors
        Name -> (C, h, w), on the CPU, in the dtype of the file: `image_embed`, `high_res_feats_0`
        (the finest), `high_res_feats_1`.
    metadata
        What else the file says.

    Raises
    ------
    DataError
        Truncated, corrupt, or no feature file.
    """
    # Older pickle formats of torch.load are a larger surface, and nobody writes them any more.
    if not data.startswith(ZIP_MAGIC):
        raise broken("it is no torch archive")
    try:
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        OSError,
    ) as error:
        raise broken(f"{type(error).__name__} from torch.load") from error
    if not isinstance(payload, dict):
        raise broken(f"a {type(payload).__name__} instead of a dict")
    return _tensors(payload.get("features")), _metadata(payload)


def _metadata(payload: Mapping[str, Any]) -> FeatureMetadata:
    texts = {name: payload.get(name) for name in ("model_type", "checkpoint_path")}
    shapes = {name: payload.get(name) for name in ("src_shape", "dst_shape")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise broken(f"{name} is {text!r:.80}")
    for name, shape in shapes.items():
        if (
            not isinstance(shape, tuple | list)
            or len(shape) != 2
            or not all(isinstance(size, int) and size > 0 for size in shape)
        ):
            raise broken(f"{name} is {shape!r:.80}")
    # geosam itself derives the kind from the features and does not ask for this key.
    kind = "sam2" if isinstance(payload["features"], dict) else "sam"
    if payload.get("feature_kind", kind) != kind:
        raise broken(f"feature_kind is {payload['feature_kind']!r:.80} for {kind} features")
    return FeatureMetadata(
        model_type=str(texts["model_type"]),
        checkpoint_path=str(texts["checkpoint_path"]),
        src_shape=_pair(shapes["src_shape"]),
        dst_shape=_pair(shapes["dst_shape"]),
        feature_kind=kind,
    )


def _tensors(content: object) -> dict[str, torch.Tensor]:
    if isinstance(content, dict):
        high_res = content.get("high_res_feats")
        if not isinstance(high_res, tuple | list):
            raise broken("high_res_feats is missing")
        named = {IMAGE_EMBED: content.get(IMAGE_EMBED)}
        named |= {f"{HIGH_RES_PREFIX}{index}": tensor for index, tensor in enumerate(high_res)}
    else:
        named = {IMAGE_EMBED: content}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.ndim != 4
            or tensor.shape[0] != 1
            or not tensor.is_floating_point()
        ):
            shape = getattr(tensor, "shape", None)
            raise broken(f"{name} is {type(tensor).__name__} of shape {shape}")
        tensors[name] = tensor[0]
    return tensors


def _pair(shape: Any) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])
