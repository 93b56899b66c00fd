from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.features import FeatureMetadata, from_pt, to_pt
from geosam_stac.types import ChipRef, EncoderSpec, Features, TensorSpec, Window

REF = ChipRef(
    chip_id="chip_000001",
    row=0,
    col=1,
    window=Window(row_off=0, col_off=512, height=700, width=1024),
    geobox=GeoBox((700, 1024), Affine(10, 0, 500000, 0, -10, 4200000), "EPSG:32610"),
)
SAM = EncoderSpec(
    name="sam-vit-base",
    family="sam",
    weights_sha256="0" * 64,
    weights="untrained:0",
    checkpoint_name="sam_b.pt",
    input_px=1024,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    outputs=(TensorSpec(name="image_embed", shape=(256, 64, 64), stride_px=16),),
)
SAM2 = dataclasses.replace(
    SAM,
    name="sam2.1-hiera-tiny",
    family="sam2",
    checkpoint_name="sam2.1_t.pt",
    outputs=(
        *SAM.outputs,
        TensorSpec(name="high_res_feats_0", shape=(32, 256, 256), stride_px=4),
        TensorSpec(name="high_res_feats_1", shape=(64, 128, 128), stride_px=8),
    ),
)


def make_features(spec: EncoderSpec, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        ref=REF,
        tensors={out.name: torch.randn(out.shape, generator=generator) for out in spec.outputs},
    )


def test_sam2_payload_is_geosams():
    features = make_features(SAM2)
    payload = torch.load(io.BytesIO(to_pt(features, spec=SAM2)), weights_only=True)
    assert list(payload) == [
        "model_type",
        "checkpoint_path",
        "src_shape",
        "dst_shape",
        "feature_kind",
        "features",
    ]
    assert payload["model_type"] == payload["feature_kind"] == "sam2"
    assert payload["checkpoint_path"] == "sam2.1_t.pt"
    assert payload["src_shape"] == (700, 1024)
    assert payload["dst_shape"] == (1024, 1024)
    embed, high_res = payload["features"]["image_embed"], payload["features"]["high_res_feats"]
    assert embed.dtype == torch.float16
    assert [tuple(t.shape) for t in (embed, *high_res)] == [
        (1, 256, 64, 64),
        (1, 32, 256, 256),
        (1, 64, 128, 128),
    ]
    assert torch.equal(embed[0], features.tensors["image_embed"].half())
    assert torch.equal(high_res[0][0], features.tensors["high_res_feats_0"].half())
    assert torch.equal(high_res[1][0], features.tensors["high_res_feats_1"].half())


def test_sam_payload_is_one_tensor():
    data = to_pt(make_features(SAM), spec=SAM)
    payload = torch.load(io.BytesIO(data), weights_only=True)
    assert tuple(payload["features"].shape) == (1, 256, 64, 64)
    assert payload["feature_kind"] == "sam"


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("spec", [SAM, SAM2], ids=["sam", "sam2"])
def test_round_trip(spec, dtype):
    features = make_features(spec)
    tensors, metadata = from_pt(to_pt(features, spec=spec, dtype=dtype))
    assert list(tensors) == [out.name for out in spec.outputs]
    for name, tensor in tensors.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, features.tensors[name].to(tensor.dtype))
    assert metadata == FeatureMetadata(
        model_type=spec.family,
        checkpoint_path=spec.checkpoint_name,
        src_shape=(700, 1024),
        dst_shape=(1024, 1024),
        feature_kind=spec.family,
    )


def test_bytes_are_the_same_each_time_and_in_another_process():
    once = hashlib.sha256(to_pt(make_features(SAM2), spec=SAM2)).hexdigest()
    assert hashlib.sha256(to_pt(make_features(SAM2), spec=SAM2)).hexdigest() == once
    assert hashlib.sha256(to_pt(make_features(SAM2, seed=1), spec=SAM2)).hexdigest() != once
    code = (
        "import hashlib; from tests.test_features import *; "
        "print(hashlib.sha256(to_pt(make_features(SAM2), spec=SAM2)).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == once


def test_a_view_into_a_batch_does_not_drag_the_batch_along():
    batch = torch.randn((16, 256, 64, 64), generator=torch.Generator().manual_seed(0)).half()
    alone = to_pt(Features(ref=REF, tensors={"image_embed": batch[3].clone()}), spec=SAM)
    viewed = to_pt(Features(ref=REF, tensors={"image_embed": batch[3]}), spec=SAM)
    assert viewed == alone
    assert len(viewed) < 256 * 64 * 64 * 2 + 4096
    strided = batch[3].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert to_pt(Features(ref=REF, tensors={"image_embed": strided}), spec=SAM) == alone


def test_values_that_do_not_fit_are_refused():
    features = make_features(SAM)
    features.tensors["image_embed"][0, 0, 0] = 1e6
    with pytest.raises(DataError, match="not finite as float16") as caught:
        to_pt(features, spec=SAM)
    assert caught.value.chip == "chip_000001"
    assert to_pt(features, spec=SAM, dtype="float32")
    features.tensors["image_embed"][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite as float32"):
        to_pt(features, spec=SAM, dtype="float32")


def test_tensors_of_another_encoder_are_a_defect():
    with pytest.raises(GeosamStacError, match="high_res_feats_0"):
        to_pt(make_features(SAM), spec=SAM2)
    odd = Features(ref=REF, tensors={"image_embed": torch.zeros(1, 256, 64, 64)})
    with pytest.raises(GeosamStacError, match="another shape"):
        to_pt(odd, spec=SAM)


def test_truncated_and_flipped_files_are_data_errors():
    data = to_pt(make_features(SAM), spec=SAM)
    for size in [0, 1, 4, 100, 1000, len(data) // 2, len(data) - 1]:
        with pytest.raises(DataError, match="cannot be read"):
            from_pt(data[:size])
    # The pickle of an archive lies in its first kilobyte.
    for offset in range(0, 1200, 7):
        changed = bytearray(data)
        changed[offset] ^= 0xFF
        try:
            tensors, _ = from_pt(bytes(changed))
        except DataError:
            continue
        assert tuple(tensors["image_embed"].shape) == (256, 64, 64)


class _Canary:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.canary = True",))


def test_a_malicious_pickle_does_not_run():
    import builtins

    buffer = io.BytesIO()
    torch.save({"features": _Canary()}, buffer)
    for data in (buffer.getvalue(), pickle.dumps(_Canary())):
        with pytest.raises(DataError):
            from_pt(data)
    assert not hasattr(builtins, "canary")


def _saved(**changes: object) -> bytes:
    payload = {
        "model_type": "sam",
        "checkpoint_path": "sam_b.pt",
        "src_shape": (8, 8),
        "dst_shape": (8, 8),
        "feature_kind": "sam",
        "features": torch.zeros(1, 2, 4, 4),
    } | changes
    buffer = io.BytesIO()
    torch.save({name: value for name, value in payload.items() if value is not None}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": None},
        {"model_type": 3},
        {"src_shape": (8,)},
        {"src_shape": (0, 8)},
        {"dst_shape": ("a", 8)},
        {"features": None},
        {"features": torch.zeros(2, 4, 4)},
        {"features": torch.zeros(1, 2, 4, 4, dtype=torch.int32)},
        {"features": {"image_embed": torch.zeros(1, 2, 4, 4)}},
        {"features": {"high_res_feats": []}},
        {"feature_kind": "sam2"},
    ],
)
def test_other_payloads_are_data_errors(changes):
    with pytest.raises(DataError, match="cannot be read"):
        from_pt(_saved(**changes))


def test_what_is_no_feature_file():
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x", "y")
    for data in (buffer.getvalue(), archive.getvalue(), b"<html>", b""):
        with pytest.raises(DataError):
            from_pt(data)
    assert from_pt(_saved(feature_kind=None))[1].feature_kind == "sam"
