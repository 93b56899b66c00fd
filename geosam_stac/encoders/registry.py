"""The models this package knows: names, files, sizes, checksums, inputs, outputs.

Plain data and a look-up. Imports no torch, so that `models list` and a dry run stay quick.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from geosam_stac.errors import ConfigurationError
from geosam_stac.types import TensorSpec

# segment_anything/build_sam.py (pixel_mean, pixel_std) and sam2/utils/transforms.py
# (0.485.. and 0.229.. of 0..1 values) are the same ImageNet numbers; here of 0..255 values.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# sam3 maps 0..1 to -1..1 (transformers Sam3ImageProcessor: mean and std 0.5).
_SAM3_MEAN = _SAM3_STD = (127.5, 127.5, 127.5)

LEVELS = ("all", "embedding")
"""Which outputs are kept: all, or the image embedding alone."""

_EMBED = TensorSpec(name="image_embed", shape=(256, 64, 64), stride_px=16)
_SAM_OUTPUTS = (_EMBED,)
_SAM2_OUTPUTS = (
    _EMBED,
    TensorSpec(name="high_res_feats_0", shape=(32, 256, 256), stride_px=4),
    TensorSpec(name="high_res_feats_1", shape=(64, 128, 128), stride_px=8),
)
# image_embed, then the decoder's two finer levels; patches of 14 px, 72 a side.
_SAM3_OUTPUTS = (
    TensorSpec(name="image_embed", shape=(256, 72, 72), stride_px=14),
    TensorSpec(name="high_res_feats_0", shape=(32, 288, 288), stride_px=3.5),
    TensorSpec(name="high_res_feats_1", shape=(64, 144, 144), stride_px=7),
)

_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2_URLS = {
    "2.0": "https://dl.fbaipublicfiles.com/segment_anything_2/072824/",
    "2.1": "https://dl.fbaipublicfiles.com/segment_anything_2/092824/",
}
# Meta publishes no sha256 beside its files; these are the git-lfs object ids of the same files
# on Hugging Face, in Meta's own repositories where their page could be read, else in a mirror.
_HF = "https://huggingface.co/"
_SAM_CITATION = f"{_HF}mashb1t/misc/commit/78e181357bf2e286bf2e76635c0b5cd89583c5d9 (mirror)"
_SAM21_CITATION = (
    f"{_HF}camenduru/sam2-1-hiera/commit/cdd35a45a78a3a93bc99988f4b56db40131a823a (mirror)"
)


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model that can encode images.

    `name` is the upstream one without the organisation; `family` the `model_type` of the .pt
    payload ("sam", "sam2", "sam3"); `version` "1", "2.0", "2.1" or "3". `package` builds it, with
    `build_key`: a key of `sam_model_registry`, the config file inside the sam2 package, or the
    class in transformers.
    `embed_dim` and `depth` (width of the first stage, number of blocks) tell checkpoints apart.
    `url` is the upstream file, `size_bytes` its size, `sha256` its checksum, with the page that
    says so in `sha256_source`; both None where nothing citable was found (then the first fetch
    pins it). `checkpoint_name` is the base name that Geo-SAM expects (SPEC-geosam section 3).
    `licence_page`: where an account must accept the licence before the file can be fetched; None
    where anybody can. `stride_px`: the step between chips where the user names none.
    `mean`, `std`: per RGB channel, of 0..255 values. `outputs`: what `encode` gives.
    `tflop_per_chip`: 1e12 floating point operations to encode one image (a multiply and an add
    are two), counted by torch.utils.flop_counter on the upstream model.
    """

    name: str
    family: str
    version: str
    package: str
    build_key: str
    embed_dim: int
    depth: int
    aliases: tuple[str, ...]
    url: str
    size_bytes: int
    sha256: str | None
    sha256_source: str | None
    licence: str
    checkpoint_name: str
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    outputs: tuple[TensorSpec, ...]
    tflop_per_chip: float
    stride_px: int = 512
    licence_page: str | None = None

    def outputs_at(self, levels: str) -> tuple[TensorSpec, ...]:
        """The outputs that `--levels` keeps: `all`, or `embedding`, which leaves one."""
        return self.outputs if levels == "all" else self.outputs[:1]


def _sam(
    *,
    size: str,
    file: str,
    depth: int,
    embed_dim: int,
    tflop: float,
    size_bytes: int,
    sha256: str,
) -> ModelEntry:
    letter = size[0]
    return ModelEntry(
        name=f"sam-vit-{size}",
        family="sam",
        version="1",
        package="segment-anything",
        build_key=f"vit_{letter}",
        embed_dim=embed_dim,
        depth=depth,
        aliases=(f"vit_{letter}", f"sam_{letter}", f"sam_vit_{letter}", f"sam-{size}", file),
        url=_SAM_URL + file,
        size_bytes=size_bytes,
        sha256=sha256,
        sha256_source=_SAM_CITATION,
        licence="Apache-2.0",
        # The plugin offers no ViT-H; sam_h.pt is what the name would be by its own pattern.
        checkpoint_name=f"sam_{letter}.pt",
        input_px=1024,
        mean=_MEAN,
        std=_STD,
        outputs=_SAM_OUTPUTS,
        tflop_per_chip=tflop,
    )


# size -> short forms (the first is Geo-SAM's letter), config suffix, first-stage width, blocks,
# TFLOP a chip:
# sam2/configs/sam2.1/sam2.1_hiera_*.yaml (`embed_dim`, sum of `stages`).
_HIERA = {
    "tiny": (("t",), "t", 96, 12, 0.292),
    "small": (("s",), "s", 96, 16, 0.360),
    "base-plus": (("b", "b+", "base_plus"), "b+", 112, 24, 0.647),
    "large": (("l",), "l", 144, 48, 1.823),
}


def _sam2(
    *, version: str, size: str, size_bytes: int, sha256: str, sha256_source: str
) -> ModelEntry:
    prefix = "sam2" if version == "2.0" else f"sam{version}"
    short, suffix, embed_dim, depth, tflop = _HIERA[size]
    file = f"{prefix}_hiera_{size.replace('-', '_')}.pt"
    return ModelEntry(
        name=f"{prefix}-hiera-{size}",
        family="sam2",
        version=version,
        package="sam2",
        build_key=f"configs/{prefix}/{prefix}_hiera_{suffix}.yaml",
        embed_dim=embed_dim,
        depth=depth,
        aliases=(
            *(f"{prefix}_{form}" for form in (*short, size)),
            *(f"{prefix}_hiera_{form}" for form in short),
            file,
        ),
        url=_SAM2_URLS[version] + file,
        size_bytes=size_bytes,
        sha256=sha256,
        sha256_source=sha256_source,
        licence="Apache-2.0",
        checkpoint_name=f"{prefix}_{short[0]}.pt",
        input_px=1024,
        mean=_MEAN,
        std=_STD,
        outputs=_SAM2_OUTPUTS,
        tflop_per_chip=tflop,
    )


_SAM3 = ModelEntry(
    name="sam3",
    family="sam3",
    version="3",
    package="geosam-stac[sam3]",
    build_key="Sam3TrackerModel",
    embed_dim=1024,
    depth=32,
    aliases=("sam3-image", "sam3-tracker"),
    url=f"{_HF}facebook/sam3/resolve/main/sam3.pt",
    size_bytes=3_450_062_241,
    sha256="9999e2341ceef5e136daa386eecb55cb414446a00ac2b55eb2dfd2f7c3cf8c9e",
    sha256_source=f"{_HF}Majidfida/Sam3/commit/633ce0d8eaa378390409f9d799ffeeb380a5535f (mirror)",
    licence="SAM License",
    checkpoint_name="sam3.pt",
    input_px=1008,
    mean=_SAM3_MEAN,
    std=_SAM3_STD,
    outputs=_SAM3_OUTPUTS,
    tflop_per_chip=5.613,
    stride_px=504,
    licence_page=f"{_HF}facebook/sam3",
)

# Asked for by name, and no use here: why, in words that end the sentence "MODEL ...".
NOT_REUSABLE = {
    "sam3.1": "cannot be encoded here: transformers has no class for its multiplex tracker, and "
    "features without that tracker's decoder cannot be prompted",
    "sam3-detector": "finds what a text names: its features cannot be reused for points and boxes",
    "fastsam": "segments everything at once: it has no decoder that prompts cached features",
}


MODELS: tuple[ModelEntry, ...] = (
    _sam(
        size="base",
        file="sam_vit_b_01ec64.pth",
        depth=12,
        embed_dim=768,
        tflop=0.972,
        size_bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam(
        size="large",
        file="sam_vit_l_0b3195.pth",
        depth=24,
        embed_dim=1024,
        tflop=2.986,
        size_bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam(
        size="huge",
        file="sam_vit_h_4b8939.pth",
        depth=32,
        embed_dim=1280,
        tflop=5.961,
        size_bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    _sam2(
        version="2.0",
        size="tiny",
        size_bytes=155_906_050,
        sha256="65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
        sha256_source=f"{_HF}facebook/sam2-hiera-tiny/commit/"
        "a8e4b467be69abf1c58fb327abc2935aaa890d1e",
    ),
    _sam2(
        version="2.0",
        size="small",
        size_bytes=184_309_650,
        sha256="95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
        sha256_source=f"{_HF}facebook/sam2-hiera-small/blob/refs%2Fpr%2F1/sam2_hiera_small.pt",
    ),
    _sam2(
        version="2.0",
        size="base-plus",
        size_bytes=323_493_298,
        sha256="d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
        sha256_source=f"{_HF}facebook/sam2-hiera-base-plus/blob/"
        "2869890888ba16bccc505194b4d5353caf4fd62b/sam2_hiera_base_plus.pt",
    ),
    _sam2(
        version="2.0",
        size="large",
        size_bytes=897_952_466,
        sha256="7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
        sha256_source=f"{_HF}merve/sam2-hiera-large/commit/"
        "9551b5ac8c2d2628fcf314b9a401a5ed9bc0c623 (mirror)",
    ),
    _sam2(
        version="2.1",
        size="tiny",
        size_bytes=156_008_466,
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        sha256_source=f"{_HF}facebook/sam2.1-hiera-tiny/blob/main/sam2.1_hiera_tiny.pt",
    ),
    _sam2(
        version="2.1",
        size="small",
        size_bytes=184_416_285,
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        sha256_source=f"{_HF}facebook/sam2.1-hiera-small/blob/main/sam2.1_hiera_small.pt",
    ),
    _sam2(
        version="2.1",
        size="base-plus",
        size_bytes=323_606_802,
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        sha256_source=_SAM21_CITATION,
    ),
    _sam2(
        version="2.1",
        size="large",
        size_bytes=898_083_611,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        sha256_source=_SAM21_CITATION,
    ),
    _SAM3,
)


def find_model(name: str) -> ModelEntry:
    """The entry of a model's name or alias, in any case, with `_` and `-` alike.

    A leading organisation (`facebook/`) and an ending `.pt` or `.pth` are ignored.

    Raises
    ------
    ConfigurationError
        No model has this name: the error lists the near ones, or all. Or its features cannot be
        reused.
    """
    wanted = _plain(name)
    known = {_plain(form): entry for entry in MODELS for form in (entry.name, *entry.aliases)}
    if wanted in known:
        return known[wanted]
    for prefix, reason in NOT_REUSABLE.items():
        if wanted.startswith(prefix):
            raise ConfigurationError(
                f"{name} {reason}", hint="Give --model sam3, or another of `models list`"
            )
    near = dict.fromkeys(
        known[match].name for match in difflib.get_close_matches(wanted, known, n=6, cutoff=0.6)
    )
    names = ", ".join(near or (entry.name for entry in MODELS))
    raise ConfigurationError(
        f"unknown model {name!r}",
        hint=f"Did you mean one of: {names}" if near else f"Models are: {names}",
    )


def _plain(name: str) -> str:
    text = name.strip().lower().rpartition("/")[2]
    return text.removesuffix(".pth").removesuffix(".pt").replace("_", "-")
