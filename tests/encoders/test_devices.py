from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from geosam_stac.encoders.devices import device_failure, resolve_device, resolve_precision
from geosam_stac.errors import ConfigurationError, DeviceOutOfMemoryError, TemporaryError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs and no MPS, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: f"GPU {n}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("asked", "got"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("CUDA:1", "cuda:1"), ("cpu", "cpu")],
)
def test_resolve_device_with_gpus(gpus: None, asked: str, got: str) -> None:
    assert resolve_device(asked) == got


@pytest.mark.parametrize("asked", ["cuda:2", "mps", "cuda:", "cuda:-1", "gpu", "", "cpu:0"])
def test_device_that_is_not_there(gpus: None, asked: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_device(asked)
    assert caught.value.expected == "one of cuda:0 (GPU 0), cuda:1 (GPU 1), cpu"


def test_resolve_device_without_gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigurationError, match="cpu, the only one"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps") == "mps"


def test_resolve_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["cuda:0"]

    @contextlib.contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == "cuda:1"
    )
    assert resolve_precision("auto", "cuda:0") == "fp32"
    assert resolve_precision("auto", "cuda:1") == "bf16"  # the newer one of two
    assert resolve_precision("auto", "mps") == "fp32"
    assert resolve_precision("fp16", "cuda:0") == "fp16"
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(ConfigurationError, match="fp16 is not for the CPU"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ConfigurationError, match="no precision"):
        resolve_precision("int8", "cpu")


@pytest.mark.parametrize(
    ("capabilities", "got"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_a_cpu_with_bf16_instructions_uses_them(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], got: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", "cpu") == got
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert resolve_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), DeviceOutOfMemoryError),
        (MemoryError(), DeviceOutOfMemoryError),
        (RuntimeError("MPS backend out of memory (MPS allocated"), DeviceOutOfMemoryError),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            DeviceOutOfMemoryError,
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            DeviceOutOfMemoryError,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), TemporaryError),
        (torch.AcceleratorError("unspecified launch failure"), TemporaryError),
        (
            RuntimeError("CUDA error: no kernel image is available for execution"),
            ConfigurationError,
        ),
        (RuntimeError("shapes cannot be multiplied"), type(None)),
    ],
)
def test_device_failure(error: Exception, kind: type) -> None:
    assert type(device_failure(error, "cuda:0")) is kind
