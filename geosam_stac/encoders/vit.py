"""SAM's ViT image encoder, computed faster from upstream's own modules.

Equal to `segment_anything.modeling.ImageEncoderViT.forward`, with three differences in the way:
attention without the matrix of relative positions (`attention`); queries, keys and values of the
64 x 64 tokens alone, where upstream computes them for the 70 x 70 that windows are padded to (a
padded token is zero, so its three are the bias); the stream between blocks in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from geosam_stac.encoders.attention import Attention, best_attention
from geosam_stac.encoders.tokens import (
    add_mlp,
    from_windows,
    in_precision,
    joined,
    padded,
    pieces,
    to_windows,
)


class FastViT(nn.Module):
    """(N, 3, S, S) float32, normalised -> (N, C, h, w) float32, as upstream's module.

    Parameters
    ----------
    upstream
        A `segment_anything` image encoder; its weights are used as they are.
    dtype
        What matrices are computed in.
    attention
        Default: the device's best.
    """

    def __init__(
        self, upstream: nn.Module, dtype: torch.dtype, attention: Attention | None = None
    ) -> None:
        super().__init__()
        from segment_anything.modeling.image_encoder import get_rel_pos

        self.dtype = dtype
        self.encoder: Any = in_precision(upstream, dtype)  # upstream's modules are not typed
        self.attention = attention or best_attention(
            next(upstream.parameters()).device, dtype, self._head_dim(self.encoder.blocks[0])
        )
        for index, block in enumerate(self.encoder.blocks):
            side = block.window_size or self.encoder.pos_embed.shape[1]
            for axis in "hw":
                if block.attn.use_rel_pos:
                    table = get_rel_pos(side, side, getattr(block.attn, f"rel_pos_{axis}").data)
                else:
                    table = block.attn.qkv.weight.new_zeros(side, side, self._head_dim(block))
                # (query's row, key's row, d): of each query's place, the embedding of each key's.
                self.register_buffer(f"_rel_{axis}{index}", table.to(dtype), persistent=False)

    @staticmethod
    def _head_dim(block: Any) -> int:
        return int(block.attn.qkv.in_features) // int(block.attn.num_heads)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        images = images.to(self.dtype, memory_format=torch.channels_last)
        x = self.encoder.patch_embed(images).float().contiguous()
        if self.encoder.pos_embed is not None:
            x = x + self.encoder.pos_embed
        for index, block in enumerate(self.encoder.blocks):
            x = x + self._attend(block, index, block.norm1(x).to(self.dtype))
            x = add_mlp(x, block.norm2, block.mlp, self.dtype)
        return self._neck(x)

    def _attend(self, block: Any, index: int, y: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the attention's projected output, same shape."""
        height, width = y.shape[1:3]
        window = block.window_size
        qkv = block.attn.qkv(y)
        if window > 0:
            qkv = to_windows(padded(qkv, block.attn.qkv.bias, window), window)
        each = pieces(len(qkv), qkv.shape[1] * qkv.shape[2], y.device)
        out = joined([self._windows(block, index, qkv[piece]) for piece in each])
        if window > 0:
            out = from_windows(out, height, width)
        projected: torch.Tensor = block.attn.proj(out)
        return projected

    def _windows(self, block: Any, index: int, qkv: torch.Tensor) -> torch.Tensor:
        """(B, s, s, 3 C) -> (B, s, s, C)."""
        batch, side = qkv.shape[:2]
        heads = block.attn.num_heads
        q, k, v = qkv.view(batch, side * side, 3, heads, -1).permute(2, 0, 3, 1, 4)
        at = q.reshape(batch, heads, side, side, -1)
        rel_h = torch.einsum("bnyxc,ykc->bnyxk", at, getattr(self, f"_rel_h{index}"))
        rel_w = torch.einsum("bnyxc,xkc->bnyxk", at, getattr(self, f"_rel_w{index}"))
        out = self.attention(q, k, v, rel_h.flatten(2, 3), rel_w.flatten(2, 3), block.attn.scale)
        return out.transpose(1, 2).reshape(batch, side, side, -1)

    def _neck(self, x: torch.Tensor) -> torch.Tensor:
        """Two convolutions, each with a norm over channels, which are the last axis here."""
        narrow, norm1, wide, norm2 = self.encoder.neck
        y = F.linear(x.to(self.dtype), narrow.weight.flatten(1))
        y = _norm(y, norm1).to(self.dtype)
        y = wide(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _norm(y, norm2).permute(0, 3, 1, 2)


def _norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Upstream's LayerNorm2d, of tokens in rows."""
    return F.layer_norm(x.float(), norm.weight.shape, norm.weight, norm.bias, norm.eps)
