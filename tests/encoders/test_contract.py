"""What every family of encoders keeps: listed in `families.py`, it is tested here.

Shapes, dtypes, batch invariance, determinism, parity with upstream's own code (features and
masks), and files that give back what went in. Tolerances are relative L2 errors.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from torch import nn

from geosam_stac import features as files
from geosam_stac.encoders import FAMILIES as REGISTERED
from geosam_stac.encoders.base import TorchEncoder
from geosam_stac.encoders.prompts import Prompts, decode
from geosam_stac.encoders.registry import MODELS
from geosam_stac.errors import DataError
from geosam_stac.types import ChipRef, Features, Window

from .families import FAMILIES, LISTED, Family, Tensors, Upstream, as_pixels, error, scene

FP32, BF16 = 1e-5, 2e-2
# What a dtype of files costs, features and mask logits alike: twice what was measured, which was
# 2.1e-4, 1.7e-3 and 7.7e-3 in features, 2.2e-4, 1.8e-3 and 6.5e-3 in masks, at worst.
STORED = {"float32": 0.0, "float16": 5e-4, "bfloat16": 4e-3, "int8": 0.015}
# Other batch sizes take other kernels, which add up in another order.
BATCH = 1e-5
PROMPTS = (
    Prompts(points=((300.0, 400.0),), labels=(1,), multimask=True),
    Prompts(points=((500.0, 200.0), (80.0, 90.0)), labels=(1, 0)),
    Prompts(box=(100.0, 150.0, 620.0, 580.0)),
    Prompts(points=((400.0, 300.0),), labels=(1,), box=(100.0, 150.0, 620.0, 580.0)),
)
MASK = "mask"


def prompts_of(case: Case, asked: Prompts | str) -> Prompts:
    """A mask has the size of the model's own: 10 on a rectangle, -10 off it, with a click."""
    if isinstance(asked, Prompts):
        return asked
    side = 4 * case.family.entry.outputs[0].shape[1]
    mask = torch.full((side, side), -10.0)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 10.0
    return Prompts(points=((400.0, 300.0),), labels=(1,), mask=mask)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and its features of two images: encoded once for all tests."""

    family: Family
    model: nn.Module
    encoder: TorchEncoder
    images: tuple[np.ndarray, np.ndarray]
    batch: Tensors

    @property
    def size(self) -> int:
        return self.family.entry.input_px


@pytest.fixture(scope="module", params=LISTED)
def case(request: pytest.FixtureRequest) -> Case:
    family: Family = request.param
    model = family.make()
    encoder = family.encoder(model)
    size = family.entry.input_px
    images = (scene(5, size, size), scene(0, size, size))
    batch = encoder.encode(as_pixels(*images, size=size), (size, size))
    return Case(family, model, encoder, images, batch)


@pytest.fixture(scope="module")
def alone(case: Case) -> Tensors:
    return case.encoder.encode(as_pixels(case.images[1], size=case.size), (case.size,) * 2)


@pytest.fixture(scope="module")
def upstream(case: Case) -> Upstream:
    return case.family.upstream(case.model, case.images[1])


def test_every_family_is_listed() -> None:
    """A new one that is registered and not in `families.py` is told here."""
    listed = {family.entry.family for family in FAMILIES}
    assert listed == set(REGISTERED) == {entry.family for entry in MODELS}


def test_shapes_dtypes_and_layout(case: Case) -> None:
    entry, spec = case.family.entry, case.encoder.spec
    assert (spec.name, spec.family, spec.input_px) == (entry.name, entry.family, entry.input_px)
    assert spec.outputs[0].name == "image_embed"
    assert list(case.batch) == [output.name for output in spec.outputs]
    for output in spec.outputs:
        tensor = case.batch[output.name]
        assert tensor.shape == (2, *output.shape)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert output.shape[1] * output.stride_px == entry.input_px
        assert float(tensor.std()) > 0.01


def test_batch_invariance(case: Case, alone: Tensors) -> None:
    for name, tensor in alone.items():
        assert error(case.batch[name][1:], tensor) < BATCH
        assert error(case.batch[name][:1], tensor) > 0.01  # another image has other features


def test_determinism_and_padding(case: Case) -> None:
    """Twice the same, to the bit, whatever lies beyond the content."""
    rows = case.size - 300
    one, other = (
        case.encoder.encode(pixels, (rows, case.size))
        for pixels in (
            as_pixels(case.images[1][:rows], size=case.size),
            as_pixels(case.images[1], size=case.size),
        )
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_parity_of_features(alone: Tensors, upstream: Upstream) -> None:
    assert alone.keys() == upstream.tensors.keys()
    for name, tensor in alone.items():
        assert error(tensor, upstream.tensors[name]) < FP32, name


def test_parity_in_bf16_and_float16(case: Case, upstream: Upstream) -> None:
    encoder = case.family.encoder(case.model, precision="bf16", feature_dtype="float16")
    found = encoder.encode(as_pixels(case.images[1], size=case.size), (case.size,) * 2)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float16
        # bf16 was used, and is close
        assert 1e-4 < error(tensor, upstream.tensors[name]) < BF16, name


@pytest.mark.parametrize(
    "asked", [*PROMPTS, MASK], ids=["three masks", "two points", "box", "both", "mask"]
)
def test_parity_of_masks(
    case: Case, alone: Tensors, upstream: Upstream, asked: Prompts | str
) -> None:
    prompts = prompts_of(case, asked)
    chip = {name: tensor[0] for name, tensor in alone.items()}
    ours = decode(case.family.entry, case.model, chip, prompts)
    theirs = upstream.predict(prompts)
    # A quarter of the input, but for SAM 3: four times its 72 patches.
    side = 4 * case.family.entry.outputs[0].shape[1]
    assert ours.logits.shape == (3 if prompts.multimask else 1, side, side)
    assert ours.scores.shape == ours.logits.shape[:1]
    assert error(ours.logits, theirs.logits) < 1e-4
    assert error(ours.scores, theirs.scores) < 1e-4
    if asked == MASK:  # it is not without effect
        without = decode(
            case.family.entry, case.model, chip, dataclasses.replace(prompts, mask=None)
        )
        assert error(ours.logits, without.logits) > 0.01


def test_embedding_alone(case: Case, alone: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = case.family.encoder(case.model, levels="embedding")
    monkeypatch.setattr(encoder, "_forward", lambda images: alone)
    assert [output.name for output in encoder.spec.outputs] == ["image_embed"]
    found = encoder.encode(as_pixels(case.images[1], size=case.size), (case.size,) * 2)
    assert list(found) == ["image_embed"]
    assert torch.equal(found["image_embed"], alone["image_embed"])
    if len(case.family.entry.outputs) > 1:
        with pytest.raises(DataError, match="--levels all"):
            chip = {"image_embed": found["image_embed"][0]}
            decode(case.family.entry, case.model, chip, PROMPTS[0])


@pytest.mark.parametrize("format", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", STORED)
def test_files_give_back_what_went_in(case: Case, alone: Tensors, format: str, dtype: str) -> None:
    if (format, dtype) == ("pt", "int8"):
        pytest.skip("Geo-SAM knows no scales")
    size = case.size
    ref = ChipRef(
        chip_id="chip_000007",
        row=0,
        col=7,
        window=Window(row_off=0, col_off=0, height=size, width=size),
        geobox=GeoBox((size, size), Affine(10, 0, 500000, 0, -10, 4200000), "EPSG:32610"),
    )
    chip = {name: tensor[0] for name, tensor in alone.items()}
    data = files.write(
        Features(ref=ref, tensors=chip), spec=case.encoder.spec, format=format, dtype=dtype
    )
    tensors, metadata = files.read(data)
    assert list(tensors) == list(chip)
    assert (metadata.model_type, metadata.checkpoint_path) == (
        case.family.entry.family,
        case.family.entry.checkpoint_name,
    )
    assert metadata.src_shape == metadata.dst_shape == (size, size)
    limit = STORED[dtype]
    for name, tensor in chip.items():
        # Not less than a tenth of the limit, or the file has another dtype than was asked for.
        assert limit / 10 <= error(tensors[name], tensor) <= limit, name
    masks = decode(case.family.entry, case.model, tensors, PROMPTS[2])
    expected = decode(case.family.entry, case.model, chip, PROMPTS[2])
    assert limit / 10 <= error(masks.logits, expected.logits) <= limit
