"""SAM 3 against transformers' `Sam3TrackerModel`, and against what Geo-SAM's engine keeps.

Most of SAM 3's tests are those of every family (`encoders/test_contract.py`, on a model of two
layers); the whole way through the pipeline is in `integration/test_sam3_use.py`. Here: the names of
tensors in every published layout, without their values; the whole architecture with random weights
(slow, 3 GB); and, by hand, Geo-SAM's own engine on the same weights (`sam3_geosam.py` says how).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac import features as files
from geosam_stac.encoders import load_encoder, load_model
from geosam_stac.encoders.checkpoints import Weights, resolve
from geosam_stac.encoders.registry import find_model
from geosam_stac.encoders.sam3 import tracker_state
from geosam_stac.encoders.weights import identify
from geosam_stac.errors import ConfigurationError
from geosam_stac.types import ChipRef, Features, Window
from tests.encoders.families import FAMILIES, as_pixels, error, sam3_upstream, scene, small_sam3

FP32 = 1e-5
ENTRY = find_model("sam3")
SAM3 = next(family for family in FAMILIES if family.model == "sam3")
SIZE = ENTRY.input_px
WEIGHTS = Weights(
    entry=ENTRY, path=Path("sam3.pt"), seed=None, sha256="0" * 64, label="sam3.pt", upstream=False
)

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install 'geosam-stac[sam3]'",
)


def meta(shape: tuple[int, ...] = (1,)) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def shapes(state: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def wanted() -> dict[str, tuple[int, ...]]:
    """What the model that we build has, by transformers itself."""
    pytest.importorskip("transformers")
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config: Any = Sam3TrackerConfig()
    config.vision_config.scale_factors = [4.0, 2.0, 1.0]
    with torch.device("meta"):
        return shapes(Sam3TrackerModel(config).state_dict())


def metas_names() -> dict[str, torch.Tensor]:
    state = {}
    for line in Path(__file__).with_name("sam3_names.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, sizes = line.split()
            shape = tuple(map(int, sizes.split(",")))
            for index in range(32) if ".#." in name else [0]:
                state[name.replace("#", str(index))] = meta(shape)
    # What else the file has, as the conversion script in transformers names it.
    state |= {
        "detector.transformer.decoder.query_embed.weight": meta(),
        "detector.backbone.language_backbone.encoder.text_projection": meta(),
        "detector.backbone.vision_backbone.trunk.blocks.3.attn.freqs_cis": meta(),
        "detector.geometry_encoder.norm.weight": meta(),
        "detector.segmentation_head.instance_seg_head.weight": meta(),
        "detector.dot_prod_scoring.hs_proj.weight": meta(),
    }
    return state


def test_names_of_metas_file(wanted: dict[str, tuple[int, ...]]) -> None:
    assert shapes(tracker_state(metas_names(), WEIGHTS)) == wanted


def test_names_of_hugging_faces_file(wanted: dict[str, tuple[int, ...]]) -> None:
    """What facebook/sam3 holds: a Sam3VideoModel, detector, tracker and all."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    with torch.device("meta"):
        state = Sam3VideoModel(Sam3VideoConfig()).state_dict()
    assert any(name.startswith("tracker_neck.fpn_layers.3.") for name in state)
    assert shapes(tracker_state(state, WEIGHTS)) == wanted


def test_names_of_the_tracker_alone(wanted: dict[str, tuple[int, ...]]) -> None:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    with torch.device("meta"):
        state = Sam3TrackerModel(Sam3TrackerConfig()).state_dict()
    assert shapes(tracker_state(state, WEIGHTS)) == wanted


def test_values_of_metas_file_land_where_they_belong() -> None:
    """What is cut and joined: query, key and value; the class token; the four point embeddings."""
    block = "detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv."
    state = {
        block + "weight": torch.arange(18.0).view(6, 3),
        block + "bias": torch.arange(6.0),
        "detector.backbone.vision_backbone.trunk.pos_embed": torch.arange(6.0).view(1, 3, 2),
        "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.ones(2, 4),
        **{
            f"tracker.sam_prompt_encoder.point_embeddings.{i}.weight": torch.full((1, 2), i)
            for i in (3, 1, 0, 2)
        },
    }
    found = tracker_state(state, WEIGHTS)
    layer = "vision_encoder.backbone.layers.0.attention."
    for index, letter in enumerate("qkv"):
        rows = slice(2 * index, 2 * index + 2)
        assert torch.equal(found[f"{layer}{letter}_proj.weight"], state[block + "weight"][rows])
        assert torch.equal(found[f"{layer}{letter}_proj.bias"], state[block + "bias"][rows])
    position = found["vision_encoder.backbone.embeddings.position_embeddings"]
    assert position.tolist() == [[[2.0, 3.0], [4.0, 5.0]]]
    assert found["prompt_encoder.point_embed.weight"][:, 0].tolist() == [0, 1, 2, 3]
    assert torch.equal(
        found["shared_image_embedding.positional_embedding"],
        found["prompt_encoder.shared_embedding.positional_embedding"],
    )


def test_an_unknown_tensor_keeps_its_name() -> None:
    state = metas_names() | {"tracker.sam_mask_decoder.new_head.weight": meta(), "extra": meta()}
    found = tracker_state(state, WEIGHTS)
    assert {"mask_decoder.new_head.weight", "extra"} <= set(found)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["detector.transformer.decoder.query_embed.weight"], "text-prompted detector alone"),
        (["detector_model.detr_decoder.query_embed.weight"], "text-prompted detector alone"),
        (["detr_encoder.layers.0.mlp.fc1.weight", "vision_encoder.x"], "detector alone"),
        (["tracker.model.interactive_sam_mask_decoder.iou_token.weight"], "SAM 3.1 Multiplex"),
    ],
)
def test_features_that_cannot_be_reused(names: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be reused for points and boxes") as caught:
        tracker_state({name: meta() for name in names}, WEIGHTS)
    assert words in str(caught.value)
    assert "Give Meta's sam3.pt" in str(caught.value)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'geosam-stac\[sam3\]'"):
        load_model(ENTRY, resolve(ENTRY, "untrained", cache_dir=Path("unused")), "cpu")


@pytest.mark.slow
@needs_transformers
def test_where_transformers_adds_the_no_memory_embedding() -> None:
    """To a level that nobody takes, with its default of four scales (5.23): ours has three.

    Meta adds it to the 72 x 72 level, and so does Geo-SAM's engine. Should transformers mend it,
    the other half of the `or` holds.
    """
    torch.manual_seed(0)
    model: Any = small_sam3((4.0, 2.0, 1.0, 0.5)).eval().requires_grad_(False)
    model.no_memory_embedding.normal_()
    image = scene(0, SIZE, SIZE)
    ours = SAM3.encoder(model).encode(as_pixels(image, size=SIZE), (SIZE, SIZE))
    theirs = sam3_upstream(model, image).tensors
    for name in ("high_res_feats_0", "high_res_feats_1"):
        assert error(ours[name], theirs[name]) < FP32
    without = ours["image_embed"] - model.no_memory_embedding.view(1, -1, 1, 1)
    assert (
        error(without, theirs["image_embed"]) < FP32
        or error(ours["image_embed"], theirs["image_embed"]) < FP32
    )


@needs_transformers
def test_the_model_is_what_the_registry_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config: Any = Sam3TrackerConfig()
    config.vision_config.scale_factors = [4.0, 2.0, 1.0]
    with torch.device("meta"):
        model = Sam3TrackerModel(config).eval()
    assert identify(model.state_dict()) is ENTRY
    assert identify(metas_names()) is ENTRY
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        fine, middle, coarse = model.get_image_embeddings(meta((1, 3, SIZE, SIZE)))
    found = [tuple(tensor.shape[1:]) for tensor in (coarse, fine, middle)]
    assert found == [output.shape for output in ENTRY.outputs]
    assert counter.get_total_flops() / 1e12 == pytest.approx(ENTRY.tflop_per_chip, rel=2e-3)


@needs_transformers
@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(1, marks=pytest.mark.slow, id="one run of the vision encoder"),
        pytest.param(2, marks=pytest.mark.long, id="each its own"),
    ],
)
def test_the_whole_model(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real architecture, 0.46 G random parameters: against `get_image_embeddings`.

    A run of its vision encoder takes a core a minute, and is transformers' code either way: unless
    `--run-long` asks for both, theirs gets what ours got, where the input is the same.
    """
    model: Any = SAM3.make(whole=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 457_407_889
    forward, seen = model.vision_encoder.forward, []

    def watched(images: torch.Tensor, **options: Any) -> Any:
        if seen and runs == 1:
            assert error(images, seen[0][0]) < 1e-6
        else:
            seen.append((images.clone(), forward(images, **options)))
        return seen[-1][1]

    monkeypatch.setattr(model.vision_encoder, "forward", watched)
    image = scene(0, SIZE, SIZE)
    ours = SAM3.encoder(model).encode(as_pixels(image, size=SIZE), (SIZE, SIZE))
    theirs = sam3_upstream(model, image).tensors
    assert len(seen) == runs
    for name, tensor in theirs.items():
        assert error(ours[name], tensor) < FP32, name


@pytest.mark.slow
@pytest.mark.skipif("SAM3_COMPAT" not in os.environ, reason="SAM3_COMPAT: see sam3_geosam.py")
def test_geosam_keeps_the_same() -> None:
    """geosam 0.1.3 over ultralytics on the same weights, read from a file with Meta's names."""
    folder = Path(os.environ["SAM3_COMPAT"])
    weights = resolve(ENTRY, str(folder / "sam3.pt"), cache_dir=folder)
    encoder = load_encoder(ENTRY, weights, device="cpu", precision="fp32", feature_dtype="float32")
    image = np.load(folder / "image.npy")
    ours = encoder.encode(as_pixels(image, size=SIZE), (SIZE, SIZE))
    theirs, metadata = files.read((folder / "geosam.pt").read_bytes())
    assert metadata.model_type == encoder.spec.family
    assert (metadata.feature_kind, metadata.dst_shape) == ("sam2", (SIZE, SIZE))
    errors = {name: error(ours[name][0], tensor) for name, tensor in theirs.items()}
    (folder / "errors.json").write_text(json.dumps(errors))
    assert max(errors.values()) < 1e-4
    ref = ChipRef(
        chip_id="chip_000000",
        row=0,
        col=0,
        window=Window(row_off=0, col_off=0, height=SIZE, width=SIZE),
        geobox=GeoBox((SIZE, SIZE), Affine(1, 0, 0, 0, -1, 0), "EPSG:32610"),
    )
    chip = Features(ref=ref, tensors={name: tensor[0] for name, tensor in ours.items()})
    data = files.write(chip, spec=encoder.spec, format="pt", dtype="float16")
    (folder / "ours.pt").write_bytes(data)
