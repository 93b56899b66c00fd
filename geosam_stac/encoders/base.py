"""What an image encoder is, and what all torch encoders share: pixels in, checked features out.

The order is upstream's (segment_anything Sam.preprocess, sam2 SAM2Transforms): normalise, then
pad with zeros, which is the model's mean colour.

On CUDA a batch is only started by `submit`: bytes go up, and features in the files' dtype come
down, by streams of their own, in pinned memory, while the next batch is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from geosam_stac.encoders.devices import (
    computing,
    device_failure,
    resolve_device,
    resolve_precision,
)
from geosam_stac.encoders.weights import weights_sha256
from geosam_stac.errors import ConfigurationError, DeviceOutOfMemoryError
from geosam_stac.types import EncoderSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geosam_stac.encoders.checkpoints import Weights

__all__ = ["ImageEncoder", "TorchEncoder", "place", "resolve_device", "resolve_precision"]


Pending = Callable[[], dict[str, torch.Tensor]]
"""A batch that was started: waits for its features and gives them, or raises what went wrong."""

# How torch.compile treats the encoder: by its name here, to its own. `graphs` replays the kernels
# of a batch as one CUDA graph.
COMPILE_MODES = {
    "off": None,
    "on": "default",
    "graphs": "reduce-overhead",
    "tune": "max-autotune-no-cudagraphs",
}
# Of a GPU's free memory; the rest is for the compiler's workspaces and fragments.
MEMORY_SHARE = 0.8
# Below this share of free memory, what is cached is given back for others. A batch by MEMORY_SHARE,
# fragments and the model leave more: giving back makes the device wait.
SHORT_SHARE = 0.05
# Tokens enough to fill the largest GPUs: 32 chips of ViT are 131,072. Not yet measured on one.
MOST_CHIPS = 32


_log = logging.getLogger(__name__)
_FINITE = "finite"
_Result = TypeVar("_Result")


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

    def submit(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> Pending:
        """Start a batch; see `TorchEncoder.submit`."""

    def fitting_batch(self) -> int:
        """How many chips a batch may have, by the device's free memory."""

    def free_cached_memory(self, *, if_short: bool = False) -> None:
        """Give back device memory that torch holds for later; see `TorchEncoder`."""


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
        `all`, or `embedding`: the other outputs are not made, or never leave the device.
    compile
        A key of `COMPILE_MODES`. Batches of a compiled encoder have one size: a smaller one, as
        the last of a scene, is padded.
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
        compile: str = "off",
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
        self._mode = COMPILE_MODES[compile]
        self._compiled: Callable[[torch.Tensor], Mapping[str, torch.Tensor]] | None = None
        self._compiled_chips = 0
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
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
        return self.submit(pixels, content_px)()

    def submit(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> Pending:
        """Start a batch; what comes back waits for it and gives what `encode` gives.

        On CUDA this returns while the device works, so that the next batch can be prepared and
        started meanwhile; elsewhere it computes. Batches come back in the order they were
        started. Parameters and errors as `encode`; an error may come here or when it is waited
        for.
        """
        self._check_input(pixels, content_px)
        pending = self._guarded(partial(self._launch, partial(self._start, pixels, content_px)))
        return partial(self._guarded, pending)

    def _launch(self, work: Callable[[], _Result]) -> _Result:
        """Do what starts kernels."""
        with computing(self.device, self.precision):
            return work()

    def _guarded(self, work: Callable[[], _Result]) -> _Result:
        """Do it; what it says of the device becomes one of our errors."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            failure = device_failure(error, self.device)
            if failure is None:
                raise
        # Raised out here, where the error above, whose frames hold the batch's activations, is
        # gone: memory that it keeps alive would fail the smaller batch, too.
        self._compiled_chips = 0  # the next batch's size is the one to compile for
        self.free_cached_memory()
        raise failure

    def fitting_batch(self) -> int:
        """How many chips a batch may have, by what one more chip takes of the GPU's free memory.

        Measured with batches of one and two chips, not compiled, which takes more than compiled.
        The first batch is not counted: libraries take their workspaces with it.
        """
        if not self.device.startswith("cuda"):
            return 1
        try:
            _, one, two = (
                self._guarded(partial(self._launch, partial(self._peak_bytes, chips)))
                for chips in (1, 1, 2)
            )
        except DeviceOutOfMemoryError:
            return 1  # where not even one fits, encoding says so
        self.free_cached_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        each = max(1, two - one)
        room = int(MEMORY_SHARE * free - (one - each)) // each
        return max(1, min(MOST_CHIPS, room))

    @torch.inference_mode()
    def _peak_bytes(self, chips: int) -> int:
        """Device memory that a batch of so many chips takes at its worst moment."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        size = self.spec.input_px
        self._forward(torch.zeros((chips, 3, size, size), device=self.device))
        return torch.cuda.max_memory_allocated(self.device) - before

    def free_cached_memory(self, *, if_short: bool = False) -> None:
        """Give back device memory that torch holds for later; nothing to do on the CPU.

        With `if_short` only where little of a GPU is free: giving back waits for the device, and
        the next batch has to ask for it all again.
        """
        try:
            if self.device.startswith("cuda"):
                if if_short:
                    free, total = torch.cuda.mem_get_info(self.device)
                    if free > SHORT_SHARE * total:
                        return
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
    def _start(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> Pending:
        chips = len(pixels)
        # Bytes cross to the device, a quarter of what floats would be.
        images = self._upload(torch.from_numpy(np.ascontiguousarray(pixels)))
        images = images.to(torch.float32).sub_(self._mean).div_(self._std)
        rows, columns = content_px
        images[:, :, rows:, :] = 0
        images[:, :, :, columns:] = 0
        outputs = self._compute(images)
        raw = {output.name: outputs[output.name][:chips] for output in self.spec.outputs}
        if self._mode == "reduce-overhead":  # a graph's outputs are overwritten by the next batch
            raw = {name: tensor.clone() for name, tensor in raw.items()}
        cast = {name: tensor.to(self._dtype).contiguous() for name, tensor in raw.items()}
        # One number a chip for all outputs: one wait for the device.
        finite = torch.stack([torch.isfinite(t).flatten(1).all(dim=1) for t in cast.values()])
        found = self._download({**cast, _FINITE: finite.all(dim=0)})

        def wait() -> dict[str, torch.Tensor]:
            tensors = found()
            bad = (~tensors.pop(_FINITE)).nonzero().flatten().tolist()
            if bad:
                raise self._not_finite(raw, bad)
            return tensors

        return wait

    def _compute(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """`_forward`, compiled where that is asked for, for batches of one size."""
        if self._mode is None:
            return self._forward(images)
        self._compiled_chips = max(self._compiled_chips, len(images))
        missing = self._compiled_chips - len(images)
        if missing:
            images = torch.cat([images, images.new_zeros((missing, *images.shape[1:]))])
        from torch._dynamo.exc import TorchDynamoException

        if self._compiled is None:
            self._compiled = torch.compile(self._forward, dynamic=False, mode=self._mode)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return self._compiled(images)
        except TorchDynamoException as error:  # no C compiler, a Triton that does not fit, ...
            if device_failure(error, self.device) is not None:
                raise
            _log.warning("the encoder is not compiled: %s", str(error).partition("\n")[0])
            self._mode = None
        return self._forward(images)

    def _upload(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self.device.startswith("cuda"):
            return pixels.to(self.device)
        upward, _ = self._copy_streams()
        with torch.cuda.stream(upward):
            images = pixels.pin_memory().to(self.device, non_blocking=True)
        compute = torch.cuda.current_stream(self.device)
        compute.wait_stream(upward)
        images.record_stream(compute)  # or the allocator gives its memory to the next upload
        return images

    def _download(self, tensors: Mapping[str, torch.Tensor]) -> Pending:
        """Start copying to the CPU; what comes back waits for it."""
        if not self.device.startswith("cuda"):
            copied = {name: tensor.cpu() for name, tensor in tensors.items()}
            return lambda: copied
        _, downward = self._copy_streams()
        downward.wait_stream(torch.cuda.current_stream(self.device))
        there = {}
        with torch.cuda.stream(downward):
            for name, tensor in tensors.items():
                there[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                there[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(downward)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(downward)

        def wait() -> dict[str, torch.Tensor]:
            done.synchronize()
            return there

        return wait

    def _copy_streams(self) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        """One up, one down: a GPU copies both ways at once."""
        if self._streams is None:
            device = torch.device(self.device)
            upward, downward = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
            self._streams = upward, downward
        return self._streams

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
