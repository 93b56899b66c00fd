"""How fast a device is, measured in a moment: the base of the dry run's estimate."""

from __future__ import annotations

import time

import torch

from geosam_stac.encoders.devices import PRECISIONS

MEASURE_S = 0.2
# Side of the square matrices: large enough to fill the device, small enough to take a moment.
SIZES = {"cuda": 8192, "mps": 4096, "cpu": 1024}


def encoder_tflops(device: str, precision: str) -> float:
    """TFLOP/s that an image encoder may expect of a device; right within a factor of two or so.

    Matrix products are timed here, in fp32 and in `precision`, for a fraction of a second each;
    `expected_rate` makes an encoder's rate of them. Other load on the device counts: the estimate
    is for the device as it is now.

    Parameters
    ----------
    device
        A resolved device, as `cpu` or `cuda:0`.
    precision
        fp32, bf16 or fp16.
    """
    fp32 = _matrix_tflops(device, "fp32")
    return expected_rate(fp32, fp32 if precision == "fp32" else _matrix_tflops(device, precision))


def expected_rate(fp32_tflops: float, precision_tflops: float) -> float:
    """An encoder's TFLOP/s from the rates of matrix products in fp32 and in its precision.

    The products take their own time; all else (normalisation, softmax, windows, copies) takes half
    as long again as the products would in fp32, and no less in a lower precision.

    Measured on 2 cores of a Xeon with AMX (torch 2.15), whose matrix rates were 0.33 (fp32) and
    1.3 TFLOP/s (bf16), which makes 0.22 and 0.44 here: SAM 2.1 tiny reached 0.22 and 0.49, SAM
    ViT-B 0.18 and 0.67. The constant has not been measured on a GPU.
    """
    return 1 / (1 / precision_tflops + 0.5 / fp32_tflops)


def _matrix_tflops(device: str, precision: str) -> float:
    size = SIZES[device.partition(":")[0]]
    matrix = torch.ones((size, size), dtype=PRECISIONS[precision], device=device)
    matrix @ matrix  # the first one pays for libraries and clocks
    _wait(device)
    products = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURE_S:
        matrix @ matrix
        _wait(device)
        products += 1
    return products * 2 * size**3 / elapsed / 1e12


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
