"""The fast forms of the encoders against upstream's modules: every window size there is, small.

Parity of whole models, from pixels on, is in test_contract.py and in parity/; this is about what
sizes those do not have: windows of each published config, and grids that they do not divide.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geosam_stac.encoders.hiera import FastHiera
from geosam_stac.encoders.tokens import from_windows, in_precision, padded, to_windows
from geosam_stac.encoders.vit import FastViT

from .families import error, fill_zeros

PX = 256


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, PX, PX, generator=torch.Generator().manual_seed(seed))


def vit(**options: object) -> nn.Module:
    """ViT of upstream's, 16 x 16 tokens: one block of windows of 14, padded to 28, one global."""
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    torch.manual_seed(0)
    chosen = {
        "img_size": PX,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 4,
        "out_chans": 32,
        "use_rel_pos": True,
        "window_size": 14,
        "global_attn_indexes": (1,),
    } | options
    model = ImageEncoderViT(**chosen)
    fill_zeros(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("heads", [4, 2])  # heads of 16 and 32
@pytest.mark.parametrize("options", [{}, {"window_size": 8}, {"use_rel_pos": False}])
def test_vit(heads: int, options: dict[str, object]) -> None:
    model = vit(num_heads=heads, **options)
    x = images()
    assert error(FastViT(model, torch.float32)(x), model(x)) < 1e-6


def test_vit_in_bf16_leaves_the_weights_as_they_are() -> None:
    model = vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images()
    assert 1e-4 < error(FastViT(model, torch.bfloat16)(x), model(x)) < 2e-2
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(tensor.dtype == torch.float32 for tensor in after.values())


class Sam2(nn.Module):
    """What FastHiera reads of a SAM2Base, with upstream's own trunk and neck, narrow."""

    image_size = PX
    directly_add_no_mem_embed = True

    def __init__(self, stages: tuple[int, ...], spec: tuple[int, ...], blocks: tuple[int, ...]):
        super().__init__()
        from sam2.modeling.backbones.hieradet import Hiera
        from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
        from sam2.modeling.position_encoding import PositionEmbeddingSine

        trunk = Hiera(
            embed_dim=16,
            num_heads=1,
            stages=stages,
            window_spec=spec,
            global_att_blocks=blocks,
            window_pos_embed_bkg_spatial_size=(7, 7),
        )
        neck = FpnNeck(
            position_encoding=PositionEmbeddingSine(num_pos_feats=32),
            d_model=32,
            backbone_channel_list=trunk.channel_list,
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        self.image_encoder = ImageEncoder(trunk, neck, scalp=1)
        self.sam_mask_decoder = nn.Module()
        self.sam_mask_decoder.conv_s0 = nn.Conv2d(32, 4, 1)
        self.sam_mask_decoder.conv_s1 = nn.Conv2d(32, 8, 1)
        self.no_mem_embed = nn.Parameter(torch.randn(1, 1, 32))

    def reference(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine, middle, coarse = self.image_encoder(x)["backbone_fpn"]
        return {
            "image_embed": coarse + self.no_mem_embed.view(1, -1, 1, 1),
            "high_res_feats_0": self.sam_mask_decoder.conv_s0(fine),
            "high_res_feats_1": self.sam_mask_decoder.conv_s1(middle),
        }


# Windows as in tiny, small and base-plus, and as in large.
HIERAS = [
    ((1, 2, 4, 2), (8, 4, 14, 7), (4, 5)),
    ((2, 3, 3, 2), (8, 4, 14, 7), (7,)),
    ((2, 2, 4, 2), (8, 4, 16, 8), (5, 7)),
]


def sam2(config: tuple[tuple[int, ...], ...]) -> Sam2:
    torch.manual_seed(0)
    model = Sam2(*config)
    fill_zeros(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("config", HIERAS)
def test_hiera(config: tuple[tuple[int, ...], ...]) -> None:
    model, x = sam2(config), images()
    found, expected = FastHiera(model, torch.float32)(x), model.reference(x)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert error(tensor, expected[name]) < 1e-6, name


def test_hiera_in_bf16() -> None:
    model, x = sam2(HIERAS[0]), images()
    found, expected = FastHiera(model, torch.bfloat16)(x), model.reference(x)
    for name, tensor in found.items():
        assert 1e-4 < error(tensor, expected[name]) < 2e-2, name


def test_hiera_without_the_finer_levels() -> None:
    model, x = sam2(HIERAS[0]), images()
    found = FastHiera(model, torch.float32, fine=False)(x)
    assert list(found) == ["image_embed"]
    assert torch.equal(found["image_embed"], FastHiera(model, torch.float32)(x)["image_embed"])


def test_windows_there_and_back() -> None:
    x = torch.arange(2 * 5 * 7 * 3.0).view(2, 5, 7, 3)
    whole = padded(x, torch.tensor([-1.0, -2.0, -3.0]), 4)
    assert whole.shape == (2, 8, 8, 3)
    assert torch.equal(whole[1, 6, 2], torch.tensor([-1.0, -2.0, -3.0]))
    assert torch.equal(whole[1, 2, 7], torch.tensor([-1.0, -2.0, -3.0]))
    windows = to_windows(whole, 4)
    assert windows.shape == (8, 4, 4, 3)
    assert torch.equal(windows[5, 1, 2], x[1, 1, 6])
    assert torch.equal(from_windows(windows, 5, 7), x)


def test_fp32_needs_no_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert in_precision(model, torch.float32) is model
    twin = in_precision(model, torch.bfloat16)
    assert [p.dtype for p in twin.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
