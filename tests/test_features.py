from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.features import (
    FORMATS,
    FeatureMetadata,
    as_pt,
    from_pt,
    read,
    to_pt,
    to_safetensors,
    write,
)
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


# --- safetensors --------------------------------------------------------------------------------

SAM3 = dataclasses.replace(
    SAM2,
    name="sam3",
    family="sam3",
    checkpoint_name="sam3.pt",
    input_px=1008,
    outputs=(
        TensorSpec(name="image_embed", shape=(256, 72, 72), stride_px=14),
        TensorSpec(name="high_res_feats_0", shape=(32, 288, 288), stride_px=3.5),
        TensorSpec(name="high_res_feats_1", shape=(64, 144, 144), stride_px=7),
    ),
)
EMBEDDING = dataclasses.replace(SAM2, outputs=SAM2.outputs[:1])
SMALL = dataclasses.replace(
    SAM, outputs=(TensorSpec(name="image_embed", shape=(3, 4, 4), stride_px=16),)
)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("spec", [SAM, SAM2, SAM3, EMBEDDING], ids=lambda spec: spec.name)
def test_safetensors_round_trip(spec, dtype):
    features = make_features(spec)
    data = to_safetensors(features, spec=spec, dtype=dtype)
    tensors, metadata = read(data)
    assert list(tensors) == [out.name for out in spec.outputs]
    for name, tensor in tensors.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, features.tensors[name].to(tensor.dtype))
    assert metadata == FeatureMetadata(
        model_type=spec.family,
        checkpoint_path=spec.checkpoint_name,
        src_shape=(700, 1024),
        dst_shape=(spec.input_px, spec.input_px),
        feature_kind="sam" if spec is SAM else "sam2",
        chip_id="chip_000001",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 4200000.0),
        crs="EPSG:32610",
        model=spec.name,
        weights="untrained:0",
        weights_sha256="0" * 64,
        dtype=dtype,
    )
    assert len(data) == sum(t.numel() * t.element_size() for t in tensors.values()) + len(data) % (
        1 << 12
    ), "a header of less than 4 KB, and the tensors"


def test_sam3_payload():
    payload = torch.load(io.BytesIO(to_pt(make_features(SAM3), spec=SAM3)), weights_only=True)
    assert (payload["model_type"], payload["feature_kind"]) == ("sam3", "sam2")
    assert payload["checkpoint_path"] == "sam3.pt"
    assert payload["dst_shape"] == (1008, 1008)
    assert tuple(payload["features"]["image_embed"].shape) == (1, 256, 72, 72)
    assert [tuple(t.shape) for t in payload["features"]["high_res_feats"]] == [
        (1, 32, 288, 288),
        (1, 64, 144, 144),
    ]


def test_int8_has_a_scale_per_channel():
    values = torch.zeros(3, 4, 4)
    values[0] = torch.linspace(-127, 127, 16).view(4, 4).round()
    values[1] = torch.linspace(-1, 0.5, 16).view(4, 4)  # the third stays zero
    data = to_safetensors(
        Features(ref=REF, tensors={"image_embed": values}), spec=SMALL, dtype="int8"
    )
    stored = safetensors.torch.load(data)
    assert stored["image_embed"].dtype == torch.int8
    assert stored["image_embed.scale"].tolist() == pytest.approx([1.0, 1 / 127, 1.0])
    tensors, metadata = read(data)
    assert (metadata.dtype, tensors["image_embed"].dtype) == ("int8", torch.float32)
    assert torch.equal(tensors["image_embed"][0], values[0])
    # Half a step at most.
    assert float((tensors["image_embed"][1] - values[1]).abs().max()) <= 0.5 / 127 + 1e-7
    assert not tensors["image_embed"][2].any()


def test_int8_error_is_small_and_outliers_stay_in_their_channel():
    features = make_features(SAM2)
    features.tensors["image_embed"][7, 0, 0] = 5000.0
    tensors, _ = read(to_safetensors(features, spec=SAM2, dtype="int8"))
    others = [c for c in range(256) if c != 7]
    expected = features.tensors["image_embed"]
    assert relative_error(tensors["image_embed"][others], expected[others]) < 0.01
    assert tensors["image_embed"][7, 0, 0] == pytest.approx(5000.0)


def test_tiny_numbers_survive_int8():
    values = torch.full((3, 4, 4), 1e-45)  # a 127th of the smallest float32 is zero
    data = to_safetensors(
        Features(ref=REF, tensors={"image_embed": values}), spec=SMALL, dtype="int8"
    )
    assert torch.isfinite(read(data)[0]["image_embed"]).all()


def test_safetensors_bytes_are_the_same_in_another_process():
    once = hashlib.sha256(to_safetensors(make_features(SAM2), spec=SAM2)).hexdigest()
    code = (
        "import hashlib; from tests.test_features import *; "
        "print(hashlib.sha256(to_safetensors(make_features(SAM2), spec=SAM2)).hexdigest())"
    )
    for seed in ("1", "2"):  # of Python's hashes; safetensors' own hash map has another seed anyway
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert result.stdout.strip() == once


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
def test_safetensors_are_laid_out_as_by_the_package(dtype):
    data = to_safetensors(make_features(SAM2), spec=SAM2, dtype=dtype)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    by_package = safetensors.torch.save(safetensors.torch.load(data))
    package_length = int.from_bytes(by_package[:8], "little")
    assert header == json.loads(by_package[8 : 8 + package_length])
    assert list(header) == list(json.loads(by_package[8 : 8 + package_length]))
    assert data[8 + length :] == by_package[8 + package_length :]
    assert length % 8 == 0


def readme_reader() -> str:
    """The lines of the README that open a file without geosam_stac."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    [block] = [part for part in text.split("```python\n") if "def read_features" in part]
    return block.partition("```")[0].partition("\n# use\n")[0]


def test_safetensors_by_the_package_alone_and_without_any(tmp_path):
    """The file is what the format says: read by the package, and by 20 lines of the README."""
    features = make_features(SAM2)
    path = tmp_path / "chip.safetensors"
    path.write_bytes(to_safetensors(features, spec=SAM2, dtype="float16"))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["weights_sha256"] == "0" * 64
        by_package = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    code = readme_reader()
    assert len(code.strip().splitlines()) <= 20
    assert "import geosam_stac" not in code
    namespace: dict = {}
    exec(code, namespace)
    found, metadata = namespace["read_features"](path)
    assert by_package.keys() == found.keys()
    assert all(np.array_equal(by_package[name], found[name]) for name in found)
    assert found["image_embed"].dtype == np.float16
    assert np.array_equal(found["image_embed"], features.tensors["image_embed"].half().numpy())
    assert metadata["crs"] == "EPSG:32610"
    for dtype in ("bfloat16", "int8", "float32"):
        path.write_bytes(to_safetensors(features, spec=SAM2, dtype=dtype))
        found, _ = namespace["read_features"](path)
        expected, _ = read(path.read_bytes())
        for name, tensor in expected.items():
            assert np.array_equal(found[name], tensor.float().numpy()), (dtype, name)


def _rebuilt(data: bytes, change) -> bytes:
    """The file with another header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _set(**changes: str | None):
    def change(header):
        header["__metadata__"] |= changes
        header["__metadata__"] = {k: v for k, v in header["__metadata__"].items() if v is not None}

    return change


def _tensor(name: str, **changes: object):
    return lambda header: header[name].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _set(geosam_stac_version="2"),
        _set(geosam_stac_version=None),
        _set(chip_id=None),
        _set(transform="[1, 2, 3]"),
        _set(transform='["a", 0, 0, 0, 0, 0]'),
        _set(transform="[" * 100_000),
        _set(src_shape="[0, 5]"),
        _set(dst_shape="[1.5, 5]"),
        _set(dst_shape="x"),
        _set(dtype="float32"),
        _set(dtype="int8"),
        _set(dtype="complex64"),
        lambda header: header.pop("__metadata__"),
        lambda header: header.pop("image_embed"),
        lambda header: header.update(__metadata__=[1]),
        lambda header: header.update(other=header["image_embed"]),
        lambda header: header.update(extra=header.pop("image_embed")),
        _tensor("image_embed", dtype="F64"),
        _tensor("image_embed", shape=[4, 4, 4]),
        _tensor("image_embed", shape=[48]),
        _tensor("image_embed", data_offsets=[0, 10**12]),
        _tensor("image_embed", data_offsets=[-8, 88]),
    ],
)
def test_other_headers_are_data_errors(change):
    data = to_safetensors(
        Features(ref=REF, tensors={"image_embed": torch.ones(3, 4, 4)}), spec=SMALL
    )
    assert read(_rebuilt(data, lambda header: None))[1].chip_id == "chip_000001"
    with pytest.raises(DataError, match="cannot be read"):
        read(_rebuilt(data, change))


@pytest.mark.parametrize("scale", [None, [0.0] * 3, [-1.0] * 3, [float("nan")] * 3, [1.0] * 2])
def test_int8_without_right_scales_is_a_data_error(scale):
    data = to_safetensors(
        Features(ref=REF, tensors={"image_embed": torch.ones(3, 4, 4)}), spec=SMALL, dtype="int8"
    )
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = {"image_embed": torch.ones(3, 4, 4, dtype=torch.int8)}
    if scale is not None:
        tensors["image_embed.scale"] = torch.tensor(scale)
    with pytest.raises(DataError, match="scale"):
        read(safetensors.torch.save(tensors, metadata=metadata))


def test_truncated_and_flipped_safetensors_are_data_errors():
    data = to_safetensors(
        Features(ref=REF, tensors={"image_embed": torch.ones(3, 4, 4)}), spec=SMALL
    )
    for size in range(len(data)):
        with pytest.raises(DataError, match="cannot be read"):
            read(data[:size])
    with pytest.raises(DataError, match="cannot be read"):
        read(data + b"\0")
    head = 8 + int.from_bytes(data[:8], "little")
    for offset in range(head):
        changed = bytearray(data)
        changed[offset] ^= 0xFF
        with pytest.raises(DataError, match="cannot be read"):
            read(bytes(changed))


def test_a_header_that_claims_gigabytes_is_refused():
    for length in (2**63, 2**40, 1 << 21):
        with pytest.raises(DataError, match="cannot be read"):
            read(length.to_bytes(8, "little") + b"{" + b" " * 2_000)


def test_formats_and_dtypes_that_do_not_go_together():
    with pytest.raises(UsageError, match="--format safetensors for int8"):
        write(make_features(SAM), spec=SAM, format="pt", dtype="int8")
    with pytest.raises(UsageError, match="cannot hold"):
        to_safetensors(make_features(SAM), spec=SAM, dtype="float64")
    # The embedding of a model whose decoder needs more: no file that Geo-SAM could not prompt.
    with pytest.raises(DataError, match="--levels all"):
        to_pt(make_features(EMBEDDING), spec=EMBEDDING)
    features = make_features(SAM)
    features.tensors["image_embed"][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        to_safetensors(features, spec=SAM, dtype="int8")


def test_as_pt():
    features = make_features(SAM2)
    pt = to_pt(features, spec=SAM2)
    assert as_pt(pt) is pt
    assert as_pt(to_safetensors(features, spec=SAM2)) == pt
    small = as_pt(to_safetensors(features, spec=SAM2, dtype="int8"))
    tensors, metadata = from_pt(small)
    assert metadata == from_pt(pt)[1]
    assert tensors["image_embed"].dtype == torch.float16
    assert relative_error(tensors["image_embed"], features.tensors["image_embed"]) < 0.01
    # What float16 cannot hold stays a float32.
    features.tensors["high_res_feats_0"][0, 0, 0] = 70_000
    large = from_pt(as_pt(to_safetensors(features, spec=SAM2, dtype="int8")))[0]
    assert {tensor.dtype for tensor in large.values()} == {torch.float32}
    assert float(large["high_res_feats_0"].max()) == pytest.approx(70_000)
    for dtype in ("float32", "bfloat16"):
        tensors, _ = from_pt(as_pt(to_safetensors(features, spec=SAM2, dtype=dtype)))
        assert tensors["image_embed"].dtype == getattr(torch, dtype)
    with pytest.raises(DataError, match="no use to Geo-SAM"):
        as_pt(to_safetensors(make_features(EMBEDDING), spec=EMBEDDING))
    assert read(as_pt(to_safetensors(make_features(SAM), spec=SAM)))[1].feature_kind == "sam"


def test_files_of_every_format_have_their_own_ending():
    assert {name: form.suffix for name, form in FORMATS.items()} == {
        "pt": ".pt",
        "safetensors": ".safetensors",
    }
    assert len({form.media_type for form in FORMATS.values()}) == 2
