"""Features of one chip <-> the bytes of a Geo-SAM `.pt` file (SPEC-geosam section 3).

Imports torch; must not import storage, manifest, item or encoders.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, kw_only=True)
class FeatureMetadata:
    """What a feature file says beside its tensors.

    `checkpoint_path` is the Geo-SAM base name of the weights; `src_shape` the chip's own (rows,
    columns) in px, `dst_shape` the model's input; `feature_kind` "sam" or "sam2".
    """

    model_type: str
    checkpoint_path: str
    src_shape: tuple[int, int]
    dst_shape: tuple[int, int]
    feature_kind: str


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
    DataError
        A value is not finite, or not within the range of `dtype`.
    GeosamStacError
        The tensors are not those of `spec`: a defect of ours.
    """
    chip = features.ref.chip_id
    tensors: dict[str, torch.Tensor] = {}
    for output in spec.outputs:
        tensor = features.tensors.get(output.name)
        shape = None if tensor is None else tuple(tensor.shape)
        if tensor is None or shape != output.shape:
            raise GeosamStacError(
                f"the encoder's tensor {output.name} has another shape than declared",
                chip=chip,
                expected=str(output.shape),
                got=str(shape),
            )
        # copy=True: torch.save writes the whole storage that a view belongs to.
        cast = tensor.detach().to(
            device="cpu", dtype=DTYPES[dtype], copy=True, memory_format=torch.contiguous_format
        )
        if not bool(torch.isfinite(cast).all()):
            raise DataError(
                f"the feature {output.name} holds values that are not finite as {dtype}",
                chip=chip,
                hint="Try --feature-dtype float32 --precision fp32",
            )
        tensors[output.name] = cast.unsqueeze(0)
    high_res = [tensors[name] for name in sorted(tensors) if name.startswith(HIGH_RES_PREFIX)]
    window = features.ref.window
    payload = {
        "model_type": spec.family,
        "checkpoint_path": spec.checkpoint_name,
        "src_shape": (window.height, window.width),
        "dst_shape": (spec.input_px, spec.input_px),
        "feature_kind": "sam2" if high_res else "sam",
        "features": (
            {IMAGE_EMBED: tensors[IMAGE_EMBED], "high_res_feats": high_res}
            if high_res
            else tensors[IMAGE_EMBED]
        ),
    }
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


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
    if not data.startswith(_ZIP_MAGIC):
        raise _broken("it is no torch archive")
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
        raise _broken(f"{type(error).__name__} from torch.load") from error
    if not isinstance(payload, dict):
        raise _broken(f"a {type(payload).__name__} instead of a dict")
    return _tensors(payload.get("features")), _metadata(payload)


def _metadata(payload: Mapping[str, Any]) -> FeatureMetadata:
    texts = {name: payload.get(name) for name in ("model_type", "checkpoint_path")}
    shapes = {name: payload.get(name) for name in ("src_shape", "dst_shape")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise _broken(f"{name} is {text!r:.80}")
    for name, shape in shapes.items():
        if (
            not isinstance(shape, tuple | list)
            or len(shape) != 2
            or not all(isinstance(size, int) and size > 0 for size in shape)
        ):
            raise _broken(f"{name} is {shape!r:.80}")
    # geosam itself derives the kind from the features and does not ask for this key.
    kind = "sam2" if isinstance(payload["features"], dict) else "sam"
    if payload.get("feature_kind", kind) != kind:
        raise _broken(f"feature_kind is {payload['feature_kind']!r:.80} for {kind} features")
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
            raise _broken("high_res_feats is missing")
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
            raise _broken(f"{name} is {type(tensor).__name__} of shape {shape}")
        tensors[name] = tensor[0]
    return tensors


def _pair(shape: Any) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])


def _broken(got: str) -> DataError:
    return DataError(
        "a feature file cannot be read",
        expected="a .pt file as geosam writes it",
        got=got,
        hint="Encode this chip again",
    )
