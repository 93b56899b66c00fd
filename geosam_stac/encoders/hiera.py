"""SAM 2's Hiera image encoder and its neck, computed faster from upstream's own modules.

Equal to `SAM2Base.forward_image`, with these differences in the way:

- The first two stages never mix windows: a window of 8 x 8, pooled once, is one of 4 x 4. So the
  tokens are put into windows once, not twice a block; and a CPU takes a few windows through all
  of these blocks while they are in its caches, where upstream streams 100 MB a layer.
- The neck's 1 x 1 convolution of the two fine levels and the decoder's that follows (256 and then
  32 or 64 channels) are one matrix.
- Queries, keys and values are not computed for the padding of windows: it is zero, so they are
  the bias.
- The stream between blocks is fp32, where autocast leaves it in bf16 from the second stage on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from geosam_stac.encoders.tokens import (
    add_mlp,
    from_windows,
    in_precision,
    joined,
    padded,
    pieces,
    to_windows,
)

# A GPU takes windows in pieces, too: CUDA launches at most 65,535 in an axis of a grid.
_GPU_WINDOWS = 32_768


class FastHiera(nn.Module):
    """(N, 3, S, S) float32, normalised -> image_embed and the two finer levels, float32.

    Parameters
    ----------
    upstream
        A `SAM2Base`; its weights are used as they are.
    dtype
        What matrices are computed in.
    fine
        Whether the finer levels are wanted.
    """

    _position: torch.Tensor
    _no_memory: torch.Tensor

    def __init__(self, upstream: nn.Module, dtype: torch.dtype, *, fine: bool = True) -> None:
        super().__init__()
        model: Any = upstream
        self.dtype = dtype
        self.fine = fine
        self.trunk: Any = in_precision(model.image_encoder.trunk, dtype)
        neck = model.image_encoder.neck
        side = model.image_size // 4
        # Of the model's one input size: upstream interpolates it for every batch.
        self.register_buffer("_position", self.trunk._get_pos_embed((side, side)).contiguous())
        # Stage 4, 3, 2, 1 in the neck's list.
        coarse, middle = (conv.conv for conv in neck.convs[:2])
        self.coarse: Any = in_precision(coarse, dtype)
        self.middle: Any = in_precision(middle, dtype)
        decoder = model.sam_mask_decoder
        for level, first, then in (
            (0, neck.convs[3].conv, decoder.conv_s0),
            (1, neck.convs[2].conv, decoder.conv_s1),
        ):
            weight, bias = _joined(first, then)
            self.register_buffer(f"_weight{level}", weight.to(dtype))
            self.register_buffer(f"_bias{level}", bias.to(dtype))
        embed = torch.zeros(1) if not model.directly_add_no_mem_embed else model.no_mem_embed.data
        self.register_buffer("_no_memory", embed.flatten().to(coarse.weight.device))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        trunk = self.trunk
        images = images.to(self.dtype, memory_format=torch.channels_last)
        x = trunk.patch_embed(images) + self._position
        x, levels = self._window_stages(x.contiguous())
        last = trunk.stage_ends[1] + 1
        for index, block in enumerate(trunk.blocks[last + 1 :], start=last + 1):
            x = _grid_block(block, x, self.dtype)
            if index == trunk.stage_ends[2]:
                middle = x
        out = _as_linear(middle, self.middle).permute(0, 3, 1, 2).float()
        top = _as_linear(x, self.coarse).permute(0, 3, 1, 2).float()
        out = out + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return {"image_embed": out + self._no_memory.view(1, -1, 1, 1), **levels}

    def _window_stages(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(B, H, W, C) -> the input of the third stage after its first block, and the levels."""
        trunk = self.trunk
        height, width = x.shape[1:3]
        size = trunk.window_spec[0]
        windows = to_windows(x, size)
        blocks = list(enumerate(trunk.blocks[: trunk.stage_ends[1] + 2]))
        coarse: list[torch.Tensor] = []
        fine: tuple[list[torch.Tensor], ...] = ([], [])
        for piece in self._pieces(windows):
            y = windows[piece]
            for index, block in blocks:
                y = _window_block(block, y, self.dtype)
                if self.fine and index in trunk.stage_ends[:2]:
                    level = trunk.stage_ends.index(index)
                    fine[level].append(self._level(y, level))
            coarse.append(y)
        levels = {
            f"high_res_feats_{level}": from_windows(
                joined(parts), height >> level, width >> level
            ).permute(0, 3, 1, 2)
            for level, parts in enumerate(fine)
            if parts
        }
        return from_windows(joined(coarse), height >> 2, width >> 2), levels

    def _pieces(self, windows: torch.Tensor) -> list[slice]:
        if windows.device.type == "cpu":
            return list(pieces(len(windows), windows.shape[1] * windows.shape[2], windows.device))
        starts = range(0, len(windows), _GPU_WINDOWS)
        return [slice(start, start + _GPU_WINDOWS) for start in starts]

    def _level(self, y: torch.Tensor, level: int) -> torch.Tensor:
        weight, bias = getattr(self, f"_weight{level}"), getattr(self, f"_bias{level}")
        return F.linear(y.to(self.dtype), weight, bias).float()


def _joined(first: nn.Conv2d, then: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in) and bias of two 1 x 1 convolutions, one after the other."""
    inner, outer = first.weight.flatten(1).double(), then.weight.flatten(1).double()
    assert first.bias is not None and then.bias is not None
    bias = outer @ first.bias.double() + then.bias.double()
    return (outer @ inner).float(), bias.float()


def _as_linear(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """A 1 x 1 convolution of tokens in rows."""
    return F.linear(x.to(conv.weight.dtype), conv.weight.flatten(1), conv.bias)


def _pool(x: torch.Tensor) -> torch.Tensor:
    """Maximum of 2 x 2 of (B, H, W, C)."""
    x = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(x[:, :, 0::2], x[:, :, 1::2])


def _attend(block: Any, qkv: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3 C) -> (B, H', W', C), before the projection; H' is H, or half of it."""
    batch, height, width, _ = qkv.shape
    heads = block.attn.num_heads
    q, k, v = qkv.chunk(3, dim=-1)
    if block.q_stride:
        q = _pool(q)
        height, width = height // 2, width // 2
    q, k, v = (t.reshape(batch, -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, height, width, -1)


def _shortcut(block: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The residual: x, or where the stage changes the normed tokens, projected and pooled."""
    if block.dim == block.dim_out:
        return x
    projected = block.proj(y)
    return (_pool(projected) if block.q_stride else projected).float()


def _window_block(block: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A block of tokens that are in windows already: (windows, s, s, C)."""
    if isinstance(block, nn.Identity):
        return x
    y = block.norm1(x).to(dtype)
    x = _shortcut(block, x, y) + block.attn.proj(_attend(block, block.attn.qkv(y)))
    return add_mlp(x, block.norm2, block.mlp, dtype)


def _grid_block(block: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A block of the later stages: (B, H, W, C) -> (B, H', W', C')."""
    if isinstance(block, nn.Identity):
        return x
    y = block.norm1(x).to(dtype)
    shortcut = _shortcut(block, x, y)
    qkv = block.attn.qkv(y)
    window = block.window_size
    if window:
        qkv = to_windows(padded(qkv, block.attn.qkv.bias, window), window)
    out = _attend(block, qkv)
    if window:
        out = from_windows(out, *shortcut.shape[1:3])
    x = shortcut + block.attn.proj(out)
    return add_mlp(x, block.norm2, block.mlp, dtype)
