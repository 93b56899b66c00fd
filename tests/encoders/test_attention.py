"""Attention with relative positions, against upstream's own sum of scores and bias, in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from geosam_stac.encoders.attention import _runs, augmented, best_attention
from geosam_stac.errors import DeviceOutOfMemoryError

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(
    rows: int, columns: int, *, batch: int = 2, heads: int = 3, d: int = 16, seed: int = 0
) -> Inputs:
    """q, k, v as the encoder has them (heads beside each other in a token), and the two terms."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    n = rows * columns
    q, k, v = draw(batch, n, 3, heads, d).permute(2, 0, 3, 1, 4)
    return q, k, v, draw(batch, heads, n, rows), draw(batch, heads, n, columns)


def materialised(given: Inputs, scale: float) -> torch.Tensor:
    """As `add_decomposed_rel_pos` and the softmax after it, in float64."""
    q, k, v, rel_h, rel_w = (tensor.double() for tensor in given)
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    return ((q * scale) @ k.transpose(-2, -1) + bias.flatten(-2)).softmax(dim=-1) @ v


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours.double() - reference).norm() / reference.norm())


SHAPES = [(4, 4), (14, 14), (3, 5), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("d", [16, 20])
def test_augmented(shape: tuple[int, int], d: int) -> None:
    given = inputs(*shape, d=d)
    assert error(augmented(*given, 0.3), materialised(given, 0.3)) < 1e-6


def test_augmented_in_bf16() -> None:
    given = inputs(14, 14)
    half = tuple(tensor.bfloat16() for tensor in given)
    assert 1e-4 < error(augmented(*half, 0.3), materialised(half, 0.3)) < 1e-2  # type: ignore[arg-type]


def test_rows_and_columns_are_told_apart() -> None:
    q, k, v, rel_h, rel_w = inputs(4, 4)
    swapped = augmented(q, k, v, rel_w, rel_h, 0.3)
    assert error(swapped, materialised((q, k, v, rel_h, rel_w), 0.3)) > 0.1


def test_a_pass_with_fake_tensors_leaves_nothing_behind() -> None:
    """As tracing makes them: a tensor kept from one would spoil every later pass of its shape."""
    given = inputs(5, 7)
    with FakeTensorMode(allow_non_fake_inputs=True):
        augmented(*given, 0.3)
    assert error(augmented(*given, 0.3), materialised(given, 0.3)) < 1e-6


def test_a_cpu_takes_the_augmented_one() -> None:
    assert best_attention(torch.device("cpu"), torch.float32, 64) is augmented


@pytest.mark.parametrize(
    ("error", "runs"),
    [(None, True), (RuntimeError("Failed to find C compiler. Please specify via CC"), False)],
)
def test_a_kernel_that_cannot_be_built_is_not_taken(
    caplog: pytest.LogCaptureFixture, error: Exception | None, runs: bool
) -> None:
    shapes = []

    def kernel(*given: torch.Tensor | float) -> torch.Tensor:
        shapes.extend(tuple(t.shape) for t in given if isinstance(t, torch.Tensor))
        if error is not None:
            raise error
        return torch.empty(0)

    assert _runs(kernel, torch.device("cpu"), torch.bfloat16, 80) is runs
    assert shapes == [(1, 1, 4096, 80)] * 3 + [(1, 1, 4096, 64)] * 2
    assert ("C compiler" in caplog.text) is not runs


def test_a_full_device_is_no_reason_to_do_without_the_kernel() -> None:
    def kernel(*given: torch.Tensor | float) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceOutOfMemoryError):
        _runs(kernel, torch.device("cpu"), torch.bfloat16, 64)


# Triton's interpreter is chosen when the kernel is defined: a process of its own.
INTERPRETED = """
import torch
from tests.encoders.test_attention import SHAPES, error, inputs, materialised
from geosam_stac.encoders.attention_triton import fused

for rows, columns in [*SHAPES, (32, 32), (1, 64)]:
    for d in (16, 20):
        given = inputs(rows, columns, d=d, batch=2, heads=2)
        found = fused(*given, 0.3)
        assert found.is_contiguous() or found.transpose(1, 2).is_contiguous()
        assert error(found, materialised(given, 0.3)) < 1e-6, (rows, columns, d)
half = tuple(tensor.half() for tensor in inputs(14, 14))
assert 1e-5 < error(fused(*half, 0.3), materialised(half, 0.3)) < 5e-3
print("right")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernel_in_triton_s_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=False,
    )
    assert run.stdout.strip() == "right", run.stderr
