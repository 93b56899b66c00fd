"""Features of one chip <-> a safetensors file: tensors by name, what they are in the header.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length,
little-endian; the header, a JSON object of tensors (dtype, shape, data_offsets) and
`__metadata__`, of text to text; the tensors' bytes. So a reader needs no pickle, and a few lines.

int8 is symmetric and by channel: value = tensor * scale, `<name>.scale` (C,) float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from geosam_stac.errors import UsageError
from geosam_stac.features.payload import (
    DTYPES,
    HIGH_RES_PREFIX,
    IMAGE_EMBED,
    FeatureMetadata,
    broken,
    checked,
)
from geosam_stac.types import EncoderSpec, Features

INT8 = "int8"
SCALE = ".scale"
VERSION = "1"
_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
}
# One megabyte of names and JSON: ours has 1 KB, safetensors itself allows 100 MB.
_MAX_HEADER_BYTES = 1 << 20
_TEXTS = (
    *("chip_id", "crs", "model", "model_type", "checkpoint_path"),
    *("weights", "weights_sha256", "dtype"),
)


def to_safetensors(features: Features, *, spec: EncoderSpec, dtype: str = "float16") -> bytes:
    """Write one chip's features, with all that names them in the header.

    The same tensors always give the same bytes.

    Parameters
    ----------
    features
        `image_embed` (C, h, w) and, for SAM2 and SAM3, unless left out, `high_res_feats_0` and
        `high_res_feats_1`.
    spec
        The encoder; its `outputs` are what the tensors are checked against.
    dtype
        "float16", "float32", "bfloat16" or "int8".

    Returns
    -------
    bytes
        Tensors (C, h, w). In `__metadata__`, all as text: `geosam_stac_version`, `chip_id`,
        `transform` (JSON list a, b, c, d, e, f), `crs` (code, else WKT), `model`, `model_type`,
        `checkpoint_path`, `weights`, `weights_sha256`, `src_shape`, `dst_shape` (JSON lists of
        rows, columns) and `dtype`.

    Raises
    ------
    UsageError
        No such dtype.
    DataError
        A value is not finite, or not within the range of `dtype`.
    GeosamStacError
        The tensors are not those of `spec`: a defect of ours.
    """
    if dtype != INT8 and dtype not in DTYPES:
        raise UsageError(
            "a safetensors file cannot hold this dtype",
            expected=f"one of {', '.join((*DTYPES, INT8))}",
            got=dtype,
        )
    tensors = checked(features, spec, "float32" if dtype == INT8 else dtype)
    if dtype == INT8:
        tensors = _quantized(tensors)
    ref = features.ref
    metadata = {
        "geosam_stac_version": VERSION,
        "chip_id": ref.chip_id,
        "transform": json.dumps([float(value) for value in ref.geobox.affine[:6]]),
        "crs": str(ref.geobox.crs),
        "model": spec.name,
        "model_type": spec.family,
        "checkpoint_path": spec.checkpoint_name,
        "weights": spec.weights,
        "weights_sha256": spec.weights_sha256,
        "src_shape": json.dumps([ref.window.height, ref.window.width]),
        "dst_shape": json.dumps([spec.input_px, spec.input_px]),
        "dtype": dtype,
    }
    return _file_of(tensors, metadata)


def from_safetensors(data: bytes) -> tuple[dict[str, torch.Tensor], FeatureMetadata]:
    """Read a feature file.

    Returns
    -------
    tensors
        Name -> (C, h, w), on the CPU, in the dtype of the file; int8 as float32, scaled back.
    metadata
        What else the file says.

    Raises
    ------
    DataError
        Truncated, corrupt, or no feature file of geosam-stac.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    texts = _metadata_texts(data)
    try:
        stored = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise broken(f"{type(error).__name__} from safetensors ({error})"[:120]) from error
    dtype = texts["dtype"]
    tensors = _dequantized(stored) if dtype == INT8 else stored
    for name, tensor in tensors.items():
        if name != IMAGE_EMBED and not name.startswith(HIGH_RES_PREFIX):
            raise broken(f"an unknown tensor {name!r:.80}")
        if tensor.ndim != 3 or tensor.dtype != DTYPES.get(dtype, torch.float32):
            raise broken(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
    if IMAGE_EMBED not in tensors:
        raise broken(f"no {IMAGE_EMBED}")
    # image_embed comes first, as in spec.outputs; the file sorts by name within a dtype.
    ordered = {name: tensors[name] for name in sorted(tensors, key=lambda n: (n != IMAGE_EMBED, n))}
    return ordered, _metadata(texts)


def is_safetensors(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does."""
    return len(data) > 8 and data[8:9] == b"{"


def _quantized(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float tensors -> int8 in -127..127 and the scale of each channel."""
    quantized: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        scale = tensor.abs().amax(dim=(1, 2)) / 127
        # A channel of zeros, or of numbers so small that a 127th of them is none.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        steps = (tensor / scale[:, None, None]).round_().clamp_(-127, 127)
        quantized[name] = steps.to(torch.int8)
        quantized[name + SCALE] = scale
    return quantized


def _dequantized(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        if tensor.dtype != torch.int8 or tensor.ndim != 3:
            raise broken(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if scale is None or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
            raise broken(f"{name} has no scale for each of its channels")
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise broken(f"a scale of {name} is no positive number")
        tensors[name] = tensor.to(torch.float32) * scale[:, None, None]
    return tensors


def _file_of(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file of contiguous tensors on the CPU, laid out as safetensors' own `save` does.

    Ours, for two reasons: safetensors (0.8) keeps the metadata in a hash map, so that its files
    differ from run to run; and it holds the tensors four times over meanwhile, this once.
    """
    # The widest first, so that each is aligned to its size; then by name.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned, as the format asks
    # As bytes: numpy knows no bfloat16. The format is little-endian, as every machine that torch
    # is built for.
    parts = [tensors[name].view(torch.uint8).numpy().data for name in names]
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def _metadata_texts(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise broken("it is cut short, or no safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise broken("a header that is no JSON") from error
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise broken("a header without metadata")
    if texts.get("geosam_stac_version") != VERSION:
        raise broken(f"metadata of version {texts.get('geosam_stac_version')!r:.20}")
    missing = [
        name for name in (*_TEXTS, "transform", "src_shape", "dst_shape") if name not in texts
    ]
    if missing:
        raise broken(f"metadata without {', '.join(missing)}")
    if texts["dtype"] != INT8 and texts["dtype"] not in DTYPES:
        raise broken(f"dtype is {texts['dtype']!r:.20}")
    return texts


def _metadata(texts: Mapping[str, str]) -> FeatureMetadata:
    src, dst = (_numbers(texts, name, int, 2) for name in ("src_shape", "dst_shape"))
    if min(*src, *dst) < 1:
        raise broken(f"src_shape {src}, dst_shape {dst}")
    return FeatureMetadata(
        feature_kind="sam" if texts["model_type"] == "sam" else "sam2",
        src_shape=(int(src[0]), int(src[1])),
        dst_shape=(int(dst[0]), int(dst[1])),
        transform=_numbers(texts, "transform", (int, float), 6),
        **{name: texts[name] for name in _TEXTS},
    )


def _numbers(texts: Mapping[str, str], name: str, kind: Any, count: int) -> tuple[float, ...]:
    try:
        values = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise broken(f"{name} is {texts[name]!r:.80}") from error
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(value, kind) and type(value) is not bool for value in values)
    ):
        raise broken(f"{name} is {texts[name]!r:.80}")
    return tuple(values)
