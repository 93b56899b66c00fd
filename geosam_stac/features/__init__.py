"""Features of one chip <-> the bytes of a file: Geo-SAM's `.pt`, or safetensors.

`pt` and `safetensors` know one format each, `payload` what they share. Imports torch; must not
import storage, manifest, item or encoders.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geosam_stac.errors import DataError
from geosam_stac.features.payload import (
    DTYPES,
    HIGH_RES_PREFIX,
    IMAGE_EMBED,
    FeatureMetadata,
    broken,
)
from geosam_stac.features.pt import ZIP_MAGIC, from_pt, pack_pt, to_pt
from geosam_stac.features.safetensors import from_safetensors, is_safetensors, to_safetensors

if TYPE_CHECKING:
    import torch

    from geosam_stac.types import EncoderSpec, Features

__all__ = [
    "DTYPES",
    "FORMATS",
    "HIGH_RES_PREFIX",
    "IMAGE_EMBED",
    "FeatureMetadata",
    "FileFormat",
    "as_pt",
    "from_pt",
    "from_safetensors",
    "is_whole",
    "read",
    "to_pt",
    "to_safetensors",
    "write",
]


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A feature file's ending and media type (none is registered: the framework stands in it)."""

    suffix: str
    media_type: str


FORMATS: Mapping[str, FileFormat] = {
    "pt": FileFormat(suffix=".pt", media_type="application/octet-stream; application=pytorch"),
    "safetensors": FileFormat(
        suffix=".safetensors", media_type="application/octet-stream; application=safetensors"
    ),
}


def write(features: Features, *, spec: EncoderSpec, format: str, dtype: str) -> bytes:
    """One chip's features as a file of the format `pt` or `safetensors`.

    The same tensors always give the same bytes.

    Raises
    ------
    UsageError
        The format cannot hold the dtype, or lacks levels that it must hold.
    DataError
        A value is not finite, or not within the range of `dtype`.
    GeosamStacError
        The tensors are not those of `spec`: a defect of ours.
    """
    pack = {"pt": to_pt, "safetensors": to_safetensors}[format]
    return pack(features, spec=spec, dtype=dtype)


def read(data: bytes) -> tuple[dict[str, torch.Tensor], FeatureMetadata]:
    """Read a feature file of either format; nothing in it is run.

    Returns
    -------
    tensors
        Name -> (C, h, w), on the CPU, in the dtype of the file; int8 with its scales comes back as
        float32.
    metadata
        What else the file says.

    Raises
    ------
    DataError
        Truncated, corrupt, or no feature file.
    """
    if data.startswith(ZIP_MAGIC):
        return from_pt(data)
    if is_safetensors(data):
        return from_safetensors(data)
    raise broken("neither a torch archive nor a safetensors file")


def is_whole(data: bytes) -> bool:
    """Whether a feature file can be read, and is as it was written where its format can tell.

    The parts of a `.pt` have checksums, which torch does not look at; safetensors has none.
    """
    try:
        read(data)
        if data.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return archive.testzip() is None
    except (DataError, zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return True


def as_pt(data: bytes) -> bytes:
    """A feature file of either format as Geo-SAM's `.pt`; one that is a `.pt` already, untouched.

    The dtype stays what it was. Geo-SAM's engine knows no scales: int8 becomes float16, which
    encode writes by default, or float32 where a value is beyond float16's 65504.

    Raises
    ------
    DataError
        The file cannot be read, or holds the embedding of a model alone whose decoder needs more.
    """
    if data.startswith(ZIP_MAGIC):
        return data
    tensors, metadata = from_safetensors(data)
    return pack_pt(tensors, metadata)
