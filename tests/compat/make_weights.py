"""Random, seeded weights of SAM ViT-B and SAM2.1 tiny, in the upstream checkpoint formats.

Runs in the project's environment. No trained weights are needed to compare two implementations
of one network, and none can be fetched everywhere; but a freshly built network is too regular to
compare anything: position embeddings, relative positions and normalisation offsets start at zero
or one, so a wrong key, a transposed axis or a forgotten term would not show. Every tensor that
starts constant gets noise here. The mask decoder's last layers get weights large enough that
masks are neither empty nor full, so that a prompt which lands elsewhere gives another mask.

Each checkpoint is written once and linked under two names: the plugin's base name, which
ultralytics needs to recognise the architecture, and an upstream-like name, to show that
geosam-stac writes the plugin's name whatever the file is called.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from sam2.build_sam import build_sam2
from segment_anything import sam_model_registry

SEED = 20240607


def fill_constants(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Replace what an untrained network leaves constant by seeded noise of a plausible size."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if "rel_pos" in name:
            filled[name] = 0.05 * noise
        elif name.endswith(("pos_embed", "pos_embed_window", "no_mem_embed")):
            filled[name] = 0.3 * noise
        elif value.numel() > 1 and bool((value == value.flatten()[0]).all()):
            filled[name] = value + 0.1 * noise
        # The latter as transformers names it, for SAM 3.
        elif ("output_upscaling" in name or "upscale_conv" in name) and value.ndim == 4:
            filled[name] = 4.0 * value
        else:
            filled[name] = value
        if not torch.isfinite(filled[name]).all():
            raise SystemExit(f"make_weights: {name} is not finite")
    return filled


def save_twice(payload: dict, folder: Path, plugin_name: str, upstream_name: str) -> None:
    """Write `payload` as folder/plugin_name, and link it as folder/upstream/upstream_name."""
    target = folder / plugin_name
    torch.save(payload, target)
    alias = folder / "upstream" / upstream_name
    alias.parent.mkdir(parents=True, exist_ok=True)
    alias.unlink(missing_ok=True)
    os.link(target, alias)
    print(f"{target} ({target.stat().st_size / 1e6:.0f} MB), also as upstream/{upstream_name}")


def main() -> None:
    """Write both checkpoints into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    sam = sam_model_registry["vit_b"](None)
    save_twice(
        fill_constants(sam.state_dict(), SEED), folder, "sam_b.pt", "sam_vit_b_untrained.pth"
    )

    torch.manual_seed(SEED)
    sam2 = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    save_twice(
        {"model": fill_constants(sam2.state_dict(), SEED)},
        folder,
        "sam2.1_t.pt",
        "sam2.1_hiera_tiny_untrained.pt",
    )


if __name__ == "__main__":
    main()
