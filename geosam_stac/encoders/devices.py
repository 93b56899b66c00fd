"""Which device and precision an encoder uses, and what a device's failures mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from geosam_stac.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    GeosamStacError,
    TemporaryError,
)

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# What torch's allocators say on cuda, mps and cpu; the cu* libraries fail this way when the rest
# of the GPU is full and they cannot allocate their workspace.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory"
    r"|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|CUDNN_STATUS_NOT_INITIALIZED|CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
_NO_KERNEL = re.compile(r"no kernel image is available", re.IGNORECASE)
_LOST = re.compile(
    r"CUDA error|CUDA driver error|CU(BLAS|DNN)_STATUS_|device-side assert|ECC error"
)


def resolve_device(requested: str) -> str:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means on this machine.

    `auto` is cuda, else mps, else cpu; `cuda` is `cuda:0`.

    Raises
    ------
    ConfigurationError
        The device is not there, or is no device; never another device instead.
    """
    name = requested.strip().lower()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda:0" if gpus else "mps" if has_mps else "cpu"
    if name == "cpu" or (name == "mps" and has_mps):
        return name
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if match is not None and int(match[1] or 0) < gpus:
        return f"cuda:{int(match[1] or 0)}"
    there = [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(gpus)]
    there += ["mps"] * has_mps + ["cpu"]
    hint = "Give --device auto to take the best there is"
    if match is not None and torch.version.cuda is None and torch.version.hip is None:
        hint = "This torch is built without CUDA: install one that has it, or give --device cpu"
    known = match is not None or name == "mps"
    raise ConfigurationError(
        f"device {requested!r} is not there" if known else f"{requested!r} is no device",
        expected=f"one of {', '.join(there)}" if len(there) > 1 else f"{there[0]}, the only one",
        hint=hint,
    )


def there() -> list[tuple[str, str]]:
    """The devices of this machine, best first: name, and what it is."""
    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            memory = f"{facts.total_memory / 2**30:.0f} GiB"
            found.append((f"cuda:{number}", f"{facts.name}, {memory}, CUDA {torch.version.cuda}"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Metal"))
    threads, kind = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return [*found, ("cpu", f"{threads} threads, {kind}")]


def try_out(device: str) -> None:
    """Multiply two small matrices: a driver that does not work shows here.

    Raises ConfigurationError or TemporaryError, as `device_failure` tells them apart.
    """
    try:
        ones = torch.ones(16, 16, device=device)
        right = bool((ones @ ones == 16).all())
    except RuntimeError as error:
        failure = device_failure(error, device)
        if failure is None:
            raise
        raise failure from error
    if not right:
        raise ConfigurationError(f"{device} does not multiply matrices right")


def resolve_precision(requested: str, device: str) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` is bf16 where the device has it natively, else fp32.

    Parameters
    ----------
    requested
        `auto` or one of the three.
    device
        A resolved device.

    Raises
    ------
    ConfigurationError
        fp16 on the CPU, where half of the operators lack it; or no precision at all.
    """
    if requested == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    if requested not in PRECISIONS:
        raise ConfigurationError(
            f"{requested!r} is no precision", expected=f"auto, {', '.join(PRECISIONS)}"
        )
    if requested == "fp16" and device == "cpu":
        raise ConfigurationError(
            "fp16 is not for the CPU", hint="Give --precision fp32 or bf16, or another --device"
        )
    return requested


def _has_bf16(device: str) -> bool:
    """Whether matrices of bf16 have instructions of their own there."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):  # it speaks of the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Absent from torch before 2.11. On x86 only: elsewhere bf16 has not been measured.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    wanted = ("amx_bf16", "avx512_bf16")
    return device == "cpu" and any(capabilities.get(name, False) for name in wanted)


def autocast(device: str, precision: str) -> torch.autocast:
    """What runs upstream's code in a precision; nothing in fp32."""
    return torch.autocast(
        torch.device(device).type, dtype=PRECISIONS[precision], enabled=precision != "fp32"
    )


@contextlib.contextmanager
def computing(device: str, precision: str) -> Iterator[None]:
    """The device is the current one, and in fp32 its convolutions are fp32.

    Triton launches on the current GPU, whichever its tensors are on. cuDNN takes convolutions of
    fp32 in TF32 unless it is told, an error of 1e-3: it is told in here alone, since the switch is
    the whole process's. Matrix products are fp32 by torch's default, and stay as the user set them.
    """
    if not device.startswith("cuda"):
        yield
        return
    with torch.cuda.device(device):
        if precision != "fp32":
            yield
            return
        cudnn: Any = torch.backends.cudnn  # its newer switches are not typed
        try:
            before = cudnn.allow_tf32
        except RuntimeError:  # set by torch's newer switches, which the older one cannot tell
            before = None
        convolutions, recurrent = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
        try:
            # Both switches, as torch refuses to be read where they differ.
            cudnn.allow_tf32 = False
            cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
            yield
        finally:
            if before is not None:
                cudnn.allow_tf32 = before
            cudnn.conv.fp32_precision = convolutions
            cudnn.rnn.fp32_precision = recurrent


def device_failure(error: BaseException, device: str) -> GeosamStacError | None:
    """What a torch error says of the device; None where it says nothing of it.

    Out of memory may be cured by a smaller batch; after other CUDA errors the process's context
    is broken, so only a new process helps.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _OUT_OF_MEMORY.search(text):
        return DeviceOutOfMemoryError(
            f"{device} is out of memory",
            hint="Give a smaller --batch-size or --memory-strategy low, or free the device",
        )
    if _NO_KERNEL.search(text):
        return ConfigurationError(
            f"this torch build has no code for {device}",
            hint="Install a torch that supports this GPU, or give --device cpu",
        )
    if isinstance(error, torch.AcceleratorError) or _LOST.search(text):
        return TemporaryError(
            f"{device} failed or was lost",
            got=text.partition("\n")[0],
            hint="Start again: what is encoded already is kept. If it stays so, the GPU or its "
            "driver is at fault",
        )
    return None
