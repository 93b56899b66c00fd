"""What the fast forms of the image encoders share: tokens in rows, norms, residuals, windows.

The residual stream stays in fp32; what goes through matrices is in the encoder's precision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# A CPU works through so many tokens at a time: what a block holds between two matrices then stays
# in its caches. Measured with SAM 2.1 tiny and ViT-B on 2 cores with 2 MB of L2 each.
CPU_TOKENS = 2048


def in_precision(module: nn.Module, dtype: torch.dtype) -> Any:
    """The module itself in fp32; else a copy whose matrices and convolutions are in `dtype`.

    Autocast would convert them again for every batch. Norms and position embeddings stay in fp32.
    """
    if dtype == torch.float32:
        return module
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
    return twin


def pieces(length: int, tokens_each: int, device: torch.device) -> Iterator[slice]:
    """What of `length` units to work through at a time: on a CPU a few, elsewhere all."""
    step = max(1, CPU_TOKENS // tokens_each) if device.type == "cpu" else length
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def add_mlp(x: torch.Tensor, norm: nn.Module, mlp: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """X + mlp(norm(x)) over the last axis; x, fp32 and contiguous, is overwritten."""
    flat = x.view(-1, x.shape[-1])  # a view, or an error: a copy would lose what is added
    for piece in pieces(len(flat), 1, x.device):
        flat[piece] += mlp(norm(flat[piece]).to(dtype))
    return x


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Pieces along the first axis as one tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def padded(x: torch.Tensor, fill: torch.Tensor, window: int) -> torch.Tensor:
    """(B, H, W, C) -> the same with H and W up to whole windows; `fill` (C,) is in the rest."""
    batch, height, width, channels = x.shape
    high, wide = -height % window, -width % window
    if not high and not wide:
        return x
    out = x.new_empty((batch, height + high, width + wide, channels))
    out[:, :height, :width] = x
    out[:, height:] = fill
    out[:, :height, width:] = fill
    return out


def to_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """(B, H, W, C), whole windows -> (B x windows, window, window, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window, window, channels)


def from_windows(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B x windows, window, window, C) -> (B, height, width, C), less what was padding."""
    window, channels = x.shape[1], x.shape[-1]
    down, across = -(-height // window), -(-width // window)
    x = x.view(-1, down, across, window, window, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, down * window, across * window, channels)[:, :height, :width]
    return x.contiguous()  # a matrix would take rows of another stride piece by piece
