"""How fast a device is, measured in a moment: the base of the dry run's estimate."""

from __future__ import annotations

import time

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEASURE_S = 0.3


def encoder_tflops(device: str, precision: str) -> float:
    """TFLOP/s that an image encoder may expect of a device: half of its matrix rate.

    The rate is that of square matrix products, timed here for a fraction of a second. The encoders
    reach about half of it or somewhat more (SAM 2.1 tiny: 0.094 of 0.15 TFLOP/s on 2 CPU cores).

    Parameters
    ----------
    device
        A resolved device, as `cpu` or `cuda:0`.
    precision
        fp32, bf16 or fp16.
    """
    size = 8192 if device.startswith("cuda") else 1024
    matrix = torch.ones((size, size), dtype=DTYPES[precision], device=device)
    products = 0
    matrix @ matrix  # the first one pays for libraries and clocks
    _wait(device)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURE_S:
        matrix @ matrix
        _wait(device)
        products += 1
    return 0.5 * products * 2 * size**3 / elapsed / 1e12


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
