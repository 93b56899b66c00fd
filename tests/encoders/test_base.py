"""The shared part of the encoders, on a model of one pixel operation."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geosam_stac.encoders.base import TorchEncoder, place
from geosam_stac.encoders.checkpoints import resolve
from geosam_stac.encoders.registry import find_model
from geosam_stac.errors import ConfigurationError, DeviceOutOfMemoryError, TemporaryError

ENTRY = find_model("sam-vit-base")
SIZE = 1024


class Identity(TorchEncoder):
    """Gives back what the model would see."""

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_embed": images}


class Failing(TorchEncoder):
    error: Exception = RuntimeError("?")
    seen: weakref.ref[torch.Tensor] | None = None

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        activations = images + 1
        self.seen = weakref.ref(activations)
        raise self.error


class Scaled(TorchEncoder):
    """Features of a size of choice, per chip."""

    scales: tuple[float, ...] = (1.0,)

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = torch.tensor(self.scales).view(-1, 1, 1, 1)
        return {"image_embed": torch.ones(len(images), 2, 2, 2) * scale}


def make(kind: type[TorchEncoder], **options: str) -> TorchEncoder:
    torch.manual_seed(0)
    weights = resolve(ENTRY, "untrained", cache_dir=Path("unused"))
    chosen = {"device": "cpu", "precision": "fp32", "feature_dtype": "float32"} | options
    return kind(nn.Linear(2, 2), weights, **chosen)


def chips(n: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)


def test_normalised_then_padded_with_zeros() -> None:
    pixels = chips(2)
    pixels[:, :, 700:, :] = 255  # what lies beyond the content does not matter
    out = make(Identity).encode(pixels, (700, 900))["image_embed"].numpy()
    mean = np.array([123.675, 116.28, 103.53], np.float32).reshape(1, 3, 1, 1)
    std = np.array([58.395, 57.12, 57.375], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(
        out[:, :, :700, :900], ((pixels - mean) / std)[:, :, :700, :900], rtol=1e-6, atol=1e-6
    )
    assert not out[:, :, 700:, :].any()
    assert not out[:, :, :, 900:].any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_feature_dtype_and_layout(dtype: str) -> None:
    out = make(Identity, feature_dtype=dtype).encode(chips(), (SIZE, SIZE))["image_embed"]
    assert out.dtype == getattr(torch, dtype)
    assert out.device.type == "cpu"
    assert out.is_contiguous()
    assert not out.requires_grad


def test_read_only_and_strided_pixels() -> None:
    pixels = np.ascontiguousarray(chips().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    pixels.setflags(write=False)
    before = pixels.copy()
    out = make(Identity).encode(pixels, (SIZE, SIZE))["image_embed"]
    assert torch.equal(out, make(Identity).encode(before, (SIZE, SIZE))["image_embed"])
    assert np.array_equal(pixels, before)


def test_out_of_memory_frees_the_batch() -> None:
    encoder = make(Failing)
    assert isinstance(encoder, Failing)
    encoder.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        encoder.encode(chips(), (SIZE, SIZE))
    del encoder.error
    gc.collect()
    assert encoder.seen is not None
    assert encoder.seen() is None, "the error keeps the batch's memory alive"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.exit_code == 75


def test_lost_device_is_temporary() -> None:
    encoder = make(Failing)
    assert isinstance(encoder, Failing)
    encoder.error = RuntimeError("CUDA error: unspecified launch failure\nlong advice")
    with pytest.raises(TemporaryError) as caught:
        encoder.encode(chips(), (SIZE, SIZE))
    assert not isinstance(caught.value, DeviceOutOfMemoryError)
    assert "long advice" not in str(caught.value)


def test_a_defect_stays_a_defect() -> None:
    encoder = make(Failing)
    assert isinstance(encoder, Failing)
    encoder.error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        encoder.encode(chips(), (SIZE, SIZE))


@pytest.mark.parametrize(
    ("scale", "dtype", "words"),
    [
        (1e5, "float16", ["chips 1 of the batch", "--feature-dtype float32 or bfloat16"]),
        (float("nan"), "float32", ["chips 1 of the batch", "weights are at fault"]),
    ],
)
def test_features_that_are_not_finite(scale: float, dtype: str, words: list[str]) -> None:
    encoder = make(Scaled, feature_dtype=dtype)
    assert isinstance(encoder, Scaled)
    encoder.scales = (1.0, scale)
    with pytest.raises(ConfigurationError) as caught:
        encoder.encode(chips(2), (SIZE, SIZE))
    assert all(word in str(caught.value) for word in words)


def test_large_features_fit_bfloat16() -> None:
    encoder = make(Scaled, feature_dtype="bfloat16")
    assert isinstance(encoder, Scaled)
    encoder.scales = (1e5,)
    out = encoder.encode(chips(), (SIZE, SIZE))["image_embed"]
    assert out.max().item() == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize(
    ("pixels", "content_px"),
    [
        (np.zeros((1, 3, 512, 512), np.uint8), (512, 512)),
        (np.zeros((1, 3, SIZE, SIZE), np.float32), (SIZE, SIZE)),
        (np.zeros((3, SIZE, SIZE), np.uint8), (SIZE, SIZE)),
        (np.zeros((1, 3, SIZE, SIZE), np.uint8), (0, SIZE)),
        (np.zeros((1, 3, SIZE, SIZE), np.uint8), (SIZE, SIZE + 1)),
    ],
)
def test_wrong_input(pixels: np.ndarray, content_px: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"pixels must be|content_px must lie"):
        make(Identity).encode(pixels, content_px)


def test_a_started_batch_is_waited_for() -> None:
    encoder = make(Identity, feature_dtype="float32")
    first, second = chips(1), chips(2)[1:]
    one, other = encoder.submit(first, (SIZE, SIZE)), encoder.submit(second, (SIZE, SIZE))
    assert torch.equal(other()["image_embed"], encoder.encode(second, (SIZE, SIZE))["image_embed"])
    assert torch.equal(one()["image_embed"], encoder.encode(first, (SIZE, SIZE))["image_embed"])


def test_a_compiled_encoder_sees_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller batch is padded; its features are those of its own chips."""
    modes, sizes = [], []

    def compile(work, *, dynamic: bool, mode: str):
        assert not dynamic
        modes.append(mode)

        def run(images: torch.Tensor):
            sizes.append(len(images))
            return work(images)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    encoder = make(Identity, compile="graphs")
    pixels = chips(3)
    whole = encoder.encode(pixels, (SIZE, SIZE))["image_embed"]
    rest = encoder.encode(pixels[1:2], (SIZE, SIZE))["image_embed"]
    assert (modes, sizes) == (["reduce-overhead"], [3, 3])
    assert rest.shape == (1, 3, SIZE, SIZE)
    assert torch.equal(rest, whole[1:2])
    # A larger one is compiled for anew.
    assert encoder.encode(chips(4), (SIZE, SIZE))["image_embed"].shape[0] == 4
    assert sizes[-1] == 4


def test_what_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    tries = []

    def fail(images: torch.Tensor) -> None:
        tries.append(len(images))
        raise InternalTorchDynamoError("no C compiler\nlong advice")

    monkeypatch.setattr(torch, "compile", lambda work, **options: fail)
    encoder = make(Identity, compile="on")
    pixels = chips(1)
    found = [encoder.encode(pixels, (SIZE, SIZE))["image_embed"] for _ in range(2)]
    assert torch.equal(found[0], make(Identity).encode(pixels, (SIZE, SIZE))["image_embed"])
    assert torch.equal(found[0], found[1])
    assert tries == [1]
    assert caplog.messages == ["the encoder is not compiled: no C compiler"]


def test_out_of_memory_lets_a_compiled_encoder_take_smaller_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    class Small(Identity):
        def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._forward(images)

    monkeypatch.setattr(torch, "compile", lambda work, **options: work)
    encoder = make(Small, compile="on")
    with pytest.raises(DeviceOutOfMemoryError):
        encoder.encode(chips(4), (SIZE, SIZE))
    encoder.encode(chips(2), (SIZE, SIZE))
    encoder.encode(chips(1), (SIZE, SIZE))
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize(("free", "batch"), [(100, 32), (13, 9), (2.5, 1), (2, 1)])
def test_the_batch_that_fits_a_gpu(
    monkeypatch: pytest.MonkeyPatch, free: float, batch: int
) -> None:
    """One chip takes 1.5 GB, another 1 GB more; a fifth of the free memory stays free.

    The first batch takes 0.3 GB more, of libraries; two chips do not fit 2 GB.
    """
    encoder = make(Identity)
    encoder.device = "cuda:0"
    gigabyte = 10**9
    measured: list[int] = []

    def peak(chips: int) -> int:
        measured.append(chips)
        if 0.5 + chips > free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return int((0.5 + chips + (0.3 if len(measured) == 1 else 0)) * gigabyte)

    monkeypatch.setattr(encoder, "_peak_bytes", peak)
    monkeypatch.setattr(encoder, "free_cached_memory", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda on: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (int(free * gigabyte), 0))
    assert encoder.fitting_batch() == batch


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "ieee"), ("bf16", "tf32")])
def test_kernels_are_launched_on_the_device_and_in_fp32_without_tf32(
    monkeypatch: pytest.MonkeyPatch, precision: str, tf32: str
) -> None:
    """cuDNN's convolutions are TF32 by torch's default; the process's switch is as before after."""
    cudnn, entered, seen = torch.backends.cudnn, [], []
    encoder = make(Identity)
    encoder.device, encoder.precision = "cuda:1", precision
    monkeypatch.setattr(torch.cuda, "device", lambda on: contextlib.nullcontext(entered.append(on)))
    monkeypatch.setattr(
        encoder, "_start", lambda pixels, content: seen.append(cudnn.conv.fp32_precision) or dict
    )
    assert cudnn.allow_tf32
    encoder.submit(chips(1), (SIZE, SIZE))
    assert (entered, seen) == (["cuda:1"], [tf32])
    assert cudnn.allow_tf32
    assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == "tf32"


@pytest.mark.parametrize(("free", "given_back"), [(80, 0), (5, 1)])
def test_cached_memory_is_kept_where_there_is_enough(
    monkeypatch: pytest.MonkeyPatch, free: int, given_back: int
) -> None:
    encoder = make(Identity)
    encoder.device = "cuda:0"
    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (free, 100))
    monkeypatch.setattr(torch.cuda, "device", lambda on: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    encoder.free_cached_memory(if_short=True)
    assert len(calls) == given_back
    encoder.free_cached_memory()
    assert len(calls) == given_back + 1


def test_a_cpu_takes_a_chip_at_a_time() -> None:
    assert make(Identity).fitting_batch() == 1


def test_place_on_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: nn.Module, device: str) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(DeviceOutOfMemoryError):
        place(nn.Linear(1, 1), "cuda:0")
