"""Image encoders: from a model's name to features of pixels.

`registry` (which models there are), `checkpoints` (which weights, from where) import no torch;
this module imports it when an encoder or model is loaded. A new family is one module with
`ENCODER`, `load_model` and `decode`, one line in `FAMILIES`, and its models in the registry.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from geosam_stac.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from geosam_stac.encoders.base import ImageEncoder, TorchEncoder
    from geosam_stac.encoders.checkpoints import Weights
    from geosam_stac.encoders.registry import ModelEntry

FAMILIES = {
    "sam": "geosam_stac.encoders.sam",
    "sam2": "geosam_stac.encoders.sam2",
    "sam3": "geosam_stac.encoders.sam3",
}


class _Family(Protocol):
    ENCODER: type[TorchEncoder]

    def load_model(self, entry: ModelEntry, weights: Weights, device: str) -> nn.Module: ...


def load_encoder(
    entry: ModelEntry,
    weights: Weights,
    *,
    device: str,
    precision: str,
    feature_dtype: str,
    levels: str = "all",
    compile: str = "off",
) -> ImageEncoder:
    """Build a model's image encoder, ready to use.

    Parameters
    ----------
    entry, weights
        From `registry.find_model` and `checkpoints.resolve`.
    device
        auto, cpu, cuda, cuda:N or mps.
    precision
        auto, fp32, bf16 or fp16.
    feature_dtype
        float16, float32, bfloat16, or int8 (then it gives float32: writing makes it int8).
    levels
        all, or embedding: then the image embedding is the only output.
    compile
        A key of `base.COMPILE_MODES`.

    Raises
    ------
    ConfigurationError
        The device is not there or cannot do the precision; the checkpoint is damaged, holds code,
        or is of another model; the model's package is not installed.
    DeviceOutOfMemoryError, TemporaryError
        The device is full or lost.
    """
    from geosam_stac.encoders.devices import resolve_device, resolve_precision

    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    family = _family(entry)
    return family.ENCODER(
        _load(family, entry, weights, device),
        weights,
        device=device,
        precision=precision,
        feature_dtype=feature_dtype,
        levels=levels,
        compile=compile,
    )


def load_model(entry: ModelEntry, weights: Weights, device: str) -> nn.Module:
    """The whole upstream model, with prompt encoder and mask decoder, in eval mode on `device`.

    Parameters
    ----------
    entry, weights
        From `registry.find_model` and `checkpoints.resolve`.
    device
        auto, cpu, cuda, cuda:N or mps.

    Raises
    ------
    ConfigurationError, DeviceOutOfMemoryError, TemporaryError
        As `load_encoder`.
    """
    from geosam_stac.encoders.devices import resolve_device

    return _load(_family(entry), entry, weights, resolve_device(device))


def _load(family: _Family, entry: ModelEntry, weights: Weights, device: str) -> nn.Module:
    try:
        return family.load_model(entry, weights, device)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the package that builds {entry.name} is not installed",
            got=f"no module {error.name}",
            hint=f"pip install '{entry.package}'",
        ) from error


def _family(entry: ModelEntry) -> _Family:
    return cast("_Family", importlib.import_module(FAMILIES[entry.family]))
