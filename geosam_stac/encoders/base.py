"""What an image encoder is, and what all torch encoders share: pixels in, checked features out.

The order is upstream's (segment_anything Sam.preprocess, sam2 SAM2Transforms): normalise, then
pad with zeros, which is the model's mean colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from geosam_stac.encoders.devices import (
    device_failure,
    resolve_device,
    resolve_precision,
)
from geosam_stac.encoders.weights import weights_sha256
from geosam_stac.errors import ConfigurationError
from geosam_stac.types import EncoderSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geosam_stac.encoders.checkpoints import Weights

__all__ = ["ImageEncoder", "TorchEncoder", "place", "resolve_device", "resolve_precision"]


class ImageEncoder(Protocol):
    """An encoder that is loaded. One thread at a time may use it.

    `device` and `precision` are resolved ("cuda:0", "bf16"); `feature_dtype` is the files'
    ("float16", "float32", "bfloat16", "int8"), and the output's but for int8.
    """

    @property
    def spec(self) -> EncoderSpec:
        """Model, identity of the weights, input and outputs."""

    @property
    def device(self) -> str:
        """Where it runs."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def feature_dtype(self) -> str:
        """What its features are stored in."""

    def encode(
        self, pixels: NDArray[np.uint8], content_px: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Encode a batch; see `TorchEncoder.encode`."""

    def free_cached_memory(self) -> None:
        """Give back device memory that torch holds for later."""


class TorchEncoder:
    """The shared part of a torch encoder; a family adds `_forward`.

    Parameters
    ----------
    model
        The upstream model, on `device`, in eval mode.
    weights
        Where its weights came from.
    device, precision
        Resolved: `cuda:0`, `bf16`.
    feature_dtype
        `float16`, `float32` or `bfloat16`; with `int8` the output is float32, since scales are
        of a whole chip, and the file's matter.
    levels
        `all`, or `embedding`: the other outputs never leave the device.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        *,
        device: str,
        precision: str,
        feature_dtype: str,
        levels: str = "all",
    ) -> None:
        entry = weights.entry
        self.model: Any = model  # upstream's modules are not typed
        self.device = device
        self.precision = precision
        self.feature_dtype = feature_dtype
        self.spec = EncoderSpec(
            name=entry.name,
            family=entry.family,
            weights_sha256=weights_sha256(weights, model),
            weights=weights.label,
            checkpoint_name=entry.checkpoint_name,
            input_px=entry.input_px,
            mean=entry.mean,
            std=entry.std,
            outputs=entry.outputs_at(levels),
        )
        output_dtype = "float32" if feature_dtype == "int8" else feature_dtype
        self._dtype: torch.dtype = getattr(torch, output_dtype)
        shape = (1, 3, 1, 1)
        self._prepare()
        self._mean = torch.tensor(entry.mean, device=device).view(shape)
        self._std = torch.tensor(entry.std, device=device).view(shape)

    def encode(
        self, pixels: NDArray[np.uint8], content_px: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Encode a batch of chips.

        Parameters
        ----------
        pixels
            (N, 3, S, S) uint8, RGB, S = `spec.input_px`.
        content_px
            (rows, columns) of image content at the top left of each; what lies beyond is padding
            and is overwritten.

        Returns
        -------
        dict
            Name -> (N, C, h, w) contiguous tensor on the CPU, in the feature dtype; names and
            shapes as in `spec.outputs`.

        Raises
        ------
        DeviceOutOfMemoryError
            The batch is too large for the device. Its memory is free again, so that a smaller
            batch can follow.
        TemporaryError
            The device failed or was lost.
        ConfigurationError
            A feature is not finite in the precision or the feature dtype.
        """
        self._check_input(pixels, content_px)
        try:
            return self._encode(pixels, content_px)
        except (RuntimeError, MemoryError) as error:
            failure = device_failure(error, self.device)
            if failure is None:
                raise
        # Raised out here, where the error above, whose frames hold the batch's activations, is
        # gone: memory that it keeps alive would fail the smaller batch, too.
        self.free_cached_memory()
        raise failure

    def free_cached_memory(self) -> None:
        """Give back device memory that torch holds for later; nothing to do on the CPU."""
        try:
            if self.device.startswith("cuda"):
                with torch.cuda.device(self.device):
                    torch.cuda.empty_cache()
            elif self.device == "mps":
                torch.mps.empty_cache()
        except RuntimeError as error:  # a lost device fails here, too
            failure = device_failure(error, self.device)
            raise (failure or error) from error

    def _prepare(self) -> None:
        """What a family derives from its model once, before the first batch."""

    def _forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """(N, 3, S, S) float32, normalised and padded, on the device -> the outputs there."""
        raise NotImplementedError

    @torch.inference_mode()
    def _encode(
        self, pixels: NDArray[np.uint8], content_px: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        # Bytes cross to the device, a quarter of what floats would be.
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        images = images.to(torch.float32).sub_(self._mean).div_(self._std)
        rows, columns = content_px
        images[:, :, rows:, :] = 0
        images[:, :, :, columns:] = 0
        outputs = self._forward(images)
        raw = {output.name: outputs[output.name] for output in self.spec.outputs}
        cast = {name: tensor.to(self._dtype) for name, tensor in raw.items()}
        # One number a chip for all outputs: one wait for the device.
        finite = torch.stack([torch.isfinite(t).flatten(1).all(dim=1) for t in cast.values()])
        bad = (~finite.all(dim=0)).nonzero().flatten().tolist()
        if bad:
            raise self._not_finite(raw, bad)
        return {name: tensor.cpu().contiguous() for name, tensor in cast.items()}

    def _not_finite(self, raw: Mapping[str, torch.Tensor], bad: list[int]) -> ConfigurationError:
        overflow = all(bool(torch.isfinite(tensor).all()) for tensor in raw.values())
        if overflow:
            hint = "Give --feature-dtype float32 or bfloat16"
            cause = f"do not fit {self.feature_dtype}"
        elif self.precision == "fp16":
            hint = "Give --precision bf16 or fp32"
            cause = "overflow in fp16"
        else:
            hint = "Check the checkpoint with `geosam-stac models verify FILE`"
            cause = "are not finite: the weights are at fault"
        which = ", ".join(map(str, bad))
        return ConfigurationError(f"features {cause} (chips {which} of the batch)", hint=hint)

    def _check_input(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> None:
        # A defect of the caller, not of the user: a plain ValueError.
        size = self.spec.input_px
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixels must be (N, 3, {size}, {size}) uint8, got {pixels.shape} {pixels.dtype}"
            )
        if not all(1 <= length <= size for length in content_px):
            raise ValueError(f"content_px must lie in 1..{size}, got {content_px}")


def place(model: nn.Module, device: str) -> nn.Module:
    """Move a model to a device.

    Raises
    ------
    DeviceOutOfMemoryError, TemporaryError, ConfigurationError
        The device is full, lost, or of a kind that this torch has no code for.
    """
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        failure = device_failure(error, device)
        if failure is None:
            raise
        raise failure from error
