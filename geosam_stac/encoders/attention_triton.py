# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call"
# mypy: disable-error-code="untyped-decorator,call-arg"
# ruff: noqa: ANN001, ANN202, PLR0917
"""`attention.augmented` as one Triton kernel: flash attention that adds the relative terms itself.

The idea is segment-anything-fast's. Here a block of keys is whole rows of the grid, so the terms
of the columns are one tile that every block uses again, and those of the rows a few numbers a
query. Imports triton: only `attention.best_attention` imports this.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Keys in a block: four rows of a 14 x 14 window (16 each, two of them masked), one of 64 x 64.
_BLOCK_KEYS = 64


@triton.jit
def _kernel(
    Q, K, V, RH, RW, OUT,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    heads, n, d, rows, columns, scale,
    ROWS: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    batch_head = tl.program_id(1).to(tl.int64)
    b, h = batch_head // heads, batch_head % heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, WIDE)
    slot = tl.arange(0, ROWS * SIDE)
    column = slot % SIDE
    is_query, is_channel, is_column = query < n, channel < d, column < columns
    q_mask = is_query[:, None] & is_channel[None, :]
    q_at = Q + b * q_b + h * q_h + query[:, None] * q_n + channel[None, :]
    q = tl.load(q_at, mask=q_mask, other=0.0)
    terms = batch_head * n + query
    log2e = 1.4426950408889634
    rw_mask = is_query[:, None] & is_column[None, :]
    rw_at = RW + terms[:, None] * columns + column[None, :]
    rw = tl.load(rw_at, mask=rw_mask, other=0.0).to(tl.float32) * log2e
    best = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDE], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + slot // SIDE
        is_key = is_column & (row < rows)
        key = row * columns + column
        kv_mask = is_key[:, None] & is_channel[None, :]
        k_at = K + b * k_b + h * k_h + key[:, None] * k_n + channel[None, :]
        k = tl.load(k_at, mask=kv_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * log2e) + rw
        if ROWS == 1:
            rh = tl.load(RH + terms * rows + first, mask=is_query, other=0.0)
            scores += (rh.to(tl.float32) * log2e)[:, None]
        else:
            rh_mask = is_query[:, None] & is_key[None, :]
            rh = tl.load(RH + terms[:, None] * rows + row[None, :], mask=rh_mask, other=0.0)
            scores += rh.to(tl.float32) * log2e
        scores = tl.where(is_key[None, :], scores, -1e30)
        higher = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp2(best - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v_at = V + b * v_b + h * v_h + key[:, None] * v_n + channel[None, :]
        v = tl.load(v_at, mask=kv_mask, other=0.0)
        step = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        out = out * shrink[:, None] + step
        best = higher
    out = out / total[:, None]
    o_at = OUT + b * o_b + h * o_h + query[:, None] * o_n + channel[None, :]
    tl.store(o_at, out.to(OUT.dtype.element_ty), mask=q_mask)


def _power_of_2(number: int) -> int:
    """The next power of two, at least the 16 that matrix units take."""
    return max(16, 1 << (number - 1).bit_length())


@torch.compiler.assume_constant_result
def _has_room(device: torch.device) -> bool:
    """Whether two blocks of keys and values fit shared memory: data centre GPUs have 160 KB."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    return (capability[0] >= 9 and capability[0] != 12) or capability == (8, 0)


def fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rel_h: torch.Tensor,
    rel_w: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `attention.augmented`; q, k and v may have any strides but in their last axis.

    fp32 is computed in fp32, not tf32.
    """
    batch, heads, n, d = q.shape
    rows, columns = rel_h.shape[-1], rel_w.shape[-1]
    rel_h, rel_w = rel_h.contiguous(), rel_w.contiguous()
    # Tokens before heads, as the projection that follows reads it.
    out = torch.empty((batch, n, heads, d), dtype=q.dtype, device=q.device).transpose(1, 2)
    side = _power_of_2(columns)
    half = q.element_size() == 2
    queries = 128 if half and n > 256 else 64  # a window's 196 queries fill four blocks of 64
    # The batch of windows is long: it stands in the grid's second axis, up to 65,535.
    grid = (-(-n // queries), batch * heads)
    if grid[1] > 65_535:
        each = max(1, 65_535 // heads)
        parts = (t.split(each) for t in (q, k, v, rel_h, rel_w))
        return torch.cat([fused(*part, scale) for part in zip(*parts, strict=True)])
    _kernel[grid](
        q, k, v, rel_h, rel_w, out,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        heads, n, d, rows, columns, scale,
        ROWS=max(1, _BLOCK_KEYS // side), SIDE=side, WIDE=_power_of_2(d),
        QUERIES=queries, PRECISION="ieee", num_warps=4 if queries == 64 else 8,
        num_stages=2 if half and _has_room(q.device) else 1,
    )  # fmt: skip
    return out
