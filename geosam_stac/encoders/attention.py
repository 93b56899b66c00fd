"""Attention with decomposed relative positions (SAM's ViT), without the matrix of their sums.

The bias of query q and key (y, x) is rel_h[q, y] + rel_w[q, x]. Upstream builds it, and the
scores, as (batch x heads, N, N): 0.8 GB a chip and global layer in fp32. Two ways without it:

- `augmented`: the sum is a dot product of the query's terms with a one-hot code of the key's row
  and column, so both are appended to queries and keys, and any fused attention does the rest.
  It runs on every device.
- `attention_triton.fused`: one kernel that holds a tile of scores and adds the terms to it. For
  GPUs from compute capability 8.0 on, whose torch comes with Triton.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F

from geosam_stac.encoders.devices import computing, device_failure

_log = logging.getLogger(__name__)
# Rows and columns of the tokens of a chip.
_SIDE = 64

Attention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor
]
"""(q, k, v, rel_h, rel_w, scale) -> (B, heads, N, d), as `augmented`."""


def best_attention(device: torch.device, dtype: torch.dtype, d: int) -> Attention:
    """The fastest way that the device can take, for heads of d channels."""
    if device.type == "cuda" and torch.version.hip is None and _has_triton(device):
        from geosam_stac.encoders.attention_triton import fused

        if _runs(fused, device, dtype, d):
            return fused
    return augmented


def _runs(attention: Attention, device: torch.device, dtype: torch.dtype, d: int) -> bool:
    """Whether a kernel runs there: Triton wants a C compiler, and shared memory enough."""
    q = torch.zeros(1, 1, _SIDE**2, d, device=device, dtype=dtype)
    terms = q.new_zeros(1, 1, _SIDE**2, _SIDE)
    try:
        with computing(str(device), "bf16"):
            attention(q, q, q, terms, terms, 1.0)
    except Exception as error:  # what Triton and compilers raise is of many kinds
        failure = device_failure(error, str(device))
        if failure is not None:
            raise failure from error
        said = str(error).strip().partition("\n")[0]
        _log.warning("attention is computed without Triton: %s: %s", type(error).__name__, said)
        return False
    return True


def _has_triton(device: torch.device) -> bool:
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return modern and importlib.util.find_spec("triton") is not None


def augmented(  # noqa: PLR0917 - as scaled_dot_product_attention
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rel_h: torch.Tensor,
    rel_w: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """softmax(scale q k' + rel_h[row of k] + rel_w[column of k]) v, by torch's fused attention.

    Parameters
    ----------
    q, k, v
        (B, heads, N, d), N = rows x columns of the grid, row-major.
    rel_h, rel_w
        (B, heads, N, rows) and (B, heads, N, columns): what a query adds for a key's row, and
        for its column.
    scale
        Of the scores, as d ** -0.5.

    Returns
    -------
    torch.Tensor
        (B, heads, N, d).
    """
    rows, columns, d = rel_h.shape[-1], rel_w.shape[-1], q.shape[-1]
    hot = _one_hot(rows, columns, q.device, q.dtype).expand(*k.shape[:2], -1, -1)
    # Flash kernels want one width for q, k and v; without it torch materialises the scores.
    # Multiples of 8 are what the 16-bit ones take.
    fill = -(d + rows + columns) % 8
    queries = F.pad(torch.cat([q * scale, rel_h, rel_w], dim=-1), (0, fill))
    keys = F.pad(torch.cat([k, hot], dim=-1), (0, fill))
    values = F.pad(v, (0, keys.shape[-1] - d))
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :d]


def _one_hot(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(rows x columns, rows + columns): a grid position's row and column, each one-hot.

    Made anew at each call, which costs nothing beside the attention: a tensor that was kept would
    carry the mode it was made in (inference, tracing, fake tensors) into every later one.
    """
    row = torch.eye(rows, device=device, dtype=dtype).repeat_interleave(columns, dim=0)
    column = torch.eye(columns, device=device, dtype=dtype).repeat(rows, 1)
    return torch.cat([row, column], dim=-1)
