from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from geosam_stac.config import EncodeConfig, split_list
from geosam_stac.errors import UsageError
from geosam_stac.value_range import ValueRange

RESOLVED = {
    "model": "m",
    "weights_sha256": "ab",
    "precision": "fp32",
    "chip_px": 1024,
    "stride_px": 512,
}


def digest(options: dict) -> str:
    config = EncodeConfig.of(options)
    return config.digest(**RESOLVED | {"stride_px": config.stride or 512})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bands": ()}, "1 to 3 band names"),
        ({"bands": ("a", "")}, "1 to 3 band names"),
        ({"bands": 4}, "--bands takes band names"),
        ({"stride": 0}, "--stride must be at least 1 px"),
        ({"stride": 65, "chip_size": 64}, "expected 1 to 64; got 65"),
        ({"stride": 2.5}, "--stride is no number; expected a whole number"),
        ({"stride": True}, "--stride is no number"),
        ({"chip_size": 0, "stride": 1}, "--chip-size must be at least 1 px"),
        ({"resolution": 0}, "--resolution must be a positive number"),
        ({"resolution": "nan"}, "--resolution must be a positive number"),
        ({"resolution": float("inf")}, "--resolution must be a positive number"),
        ({"resolution": "ten"}, "--resolution is no number"),
        ({"batch_size": 0}, "--batch-size must be auto or at least 1"),
        ({"batch_size": "many"}, "a whole number or auto"),
        ({"max_chips": 0}, "--max-chips must be at least 1"),
        ({"memory_strategy": "low", "batch_size": 2}, "one chip at a time"),
        ({"value_range": "5,5"}, "MIN < MAX"),
        ({"value_range": "9,1"}, "MIN < MAX"),
        ({"value_range": "p98,p2"}, "MIN < MAX"),
        ({"value_range": "p-1,p50"}, "between 0 and 100"),
        ({"value_range": "p2,p101"}, "between 0 and 100"),
        ({"value_range": "p2,98"}, "expected auto, MIN,MAX"),
        ({"value_range": "1"}, "expected auto, MIN,MAX"),
        ({"value_range": "nan,3"}, "expected auto, MIN,MAX"),
        ({"value_range": "-1e308,1e309"}, "beyond all numbers"),
        ({"value_range": ""}, "expected auto, MIN,MAX"),
        ({"bbox": "1,2,3"}, "--bbox takes four numbers"),
        ({"bbox": (1, 2, 3)}, "--bbox takes four numbers"),
        ({"bbox": "1,2,3,x"}, "--bbox takes four numbers"),
        ({"bbox": "1,2,1,3"}, "--bbox is empty"),
        ({"bbox": "1,3,2,3"}, "--bbox is empty"),
        ({"bbox": "1,4,2,3"}, "--bbox is empty"),
        ({"bbox": "5,1,4,2", "bbox_crs": "EPSG:32614"}, "--bbox is empty"),
        ({"bbox": "nan,1,4,2"}, "--bbox is empty"),
        ({"bbox": "1,2,3,4", "geometry": "{}"}, "contradict"),
        ({"resampling": "bilinar"}, "Did you mean bilinear"),
        ({"memory_strategy": "high"}, "balanced, low"),
        ({"precision": "fp8"}, "auto, fp32, bf16, fp16"),
        ({"feature_dtype": "float61"}, "Did you mean float16"),
        ({"feature_dtype": "int8"}, "--feature-dtype int8 needs --format safetensors"),
        ({"levels": "embedding"}, "--levels embedding needs --format safetensors"),
        ({"levels": "embedding", "model": "sam-vit-base"}, "leave --levels out: the embedding is"),
        ({"levels": "embeddings", "format": "safetensors"}, "Did you mean embedding"),
        ({"format": "safetensor"}, "Did you mean safetensors"),
        ({"format": "npz"}, "expected pt"),
        ({"overwrite": "yes"}, "true or false"),
        ({"model": 3}, "--model is of another kind"),
        ({"strid": 8}, "Did you mean 'stride'?"),
        ({"zzzzzz": 8}, "Options are: bands, "),
    ],
)
def test_refuses(options, words):
    with pytest.raises(UsageError) as caught:
        EncodeConfig.of(options)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_text_forms_give_the_fields_types():
    config = EncodeConfig.of(
        {
            "bands": " red, green ,blue",
            "bbox": "-1,2.5,3,4",
            "stride": "256",
            "resolution": "10",
            "batch_size": "4",
            "crs": 32610,
            "value_range": (0, 3000),
            "out": Path("features"),
        }
    )
    assert config.bands == ("red", "green", "blue")
    assert config.bbox == (-1.0, 2.5, 3.0, 4.0)
    assert (config.stride, config.resolution, config.batch_size) == (256, 10.0, 4)
    assert (config.crs, config.value_range, config.out) == ("EPSG:32610", "0,3000", "features")
    assert EncodeConfig(batch_size="auto").batch_size == "auto"
    assert EncodeConfig(bands="red").bands == ("red",)
    assert EncodeConfig(bands=["nir"]).bands == ("nir",)
    assert EncodeConfig(stride=np.int64(7)).stride == 7
    assert hash(EncodeConfig(bands=["nir"], bbox=[1, 2, 3, 4]))
    assert split_list("a,,b ,") == ("a", "b")


def test_bbox_may_cross_the_antimeridian_in_degrees():
    assert EncodeConfig(bbox=(170, -10, -170, 10)).bbox == (170, -10, -170, 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,3000", ("fixed", 0.0, 3000.0)),
        (" -5.5 , 1e3 ", ("fixed", -5.5, 1000.0)),
        ("p2,p98", ("percentile", 2.0, 98.0)),
        ("p0,p100", ("percentile", 0.0, 100.0)),
        ("p.5,p99.5", ("percentile", 0.5, 99.5)),
    ],
)
def test_value_range(text, expected):
    assert dataclasses.astuple(ValueRange.parse(text)) == expected
    assert ValueRange.parse("AUTO").kind == "auto"


def test_replace_keeps_the_rest_and_checks_again():
    config = EncodeConfig(chip_size=64, stride=32)
    assert config.replace({"stride": 64}).chip_size == 64
    with pytest.raises(UsageError, match="chip size"):
        config.replace({"stride": 65})


def test_as_dict_is_json():
    config = EncodeConfig(bands=("a",), bbox=(1, 2, 3, 4))
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()
    assert EncodeConfig.of(config.as_dict()) == config


DIGEST_CHANGES = {
    "bands": ("nir",),
    "bbox": (1.0, 2.0, 3.0, 4.0),
    "geometry": '{"type": "Polygon"}',
    "crs": "utm",
    "resolution": 3.0,
    "resampling": "cubic",
    "stride": 100,
    "value_range": "0,1",
    "feature_dtype": "float32",
    "expression": "nir / red",
    "index": "NDVI",
    "scaled": True,
    "mask": "scl:3",
    "groupby": "solar_day",
    "format": "safetensors",
}


@pytest.mark.parametrize("name", DIGEST_CHANGES)
def test_digest_changes_with(name):
    assert digest({name: DIGEST_CHANGES[name]}) != digest({})


def test_every_digest_field_is_covered():
    fields = {f.name for f in dataclasses.fields(EncodeConfig) if f.metadata["digest"]}
    # model and chip_size enter resolved; bbox_crs and levels below.
    assert fields == set(DIGEST_CHANGES) | {"model", "chip_size", "bbox_crs", "levels"}


@pytest.mark.parametrize(
    "options",
    [
        {"out": "s3://a/b"},
        {"device": "cuda:1"},
        {"batch_size": 7},
        {"overwrite": True},
        {"memory_strategy": "low"},
        {"max_chips": 5},
        {"checkpoint": "untrained:3"},  # its sha256 counts, not its name
        {"precision": "fp32"},  # the resolved one counts
        {"model": "sam-vit-base"},
        {"chip_size": 600},
        {"bbox_crs": "EPSG:32614"},  # without a bbox
    ],
)
def test_digest_does_not_change_with(options):
    assert digest(options) == digest({})


@pytest.mark.parametrize("name", RESOLVED)
def test_digest_changes_with_resolved(name):
    other = RESOLVED | {name: 256 if name.endswith("_px") else "other"}
    assert EncodeConfig().digest(**RESOLVED) != EncodeConfig().digest(**other)


def test_one_meaning_has_one_digest():
    assert digest({"value_range": "0,3000"}) == digest({"value_range": " 0.0, 3e3"})
    assert digest({"crs": "epsg:32610"}) == digest({"crs": "EPSG:32610"})
    assert digest({"bbox": "1,2,3,4"}) == digest({"bbox": [1, 2.0, 3, 4]})
    assert digest({"stride": 512}) == digest({})
    safetensors = {"format": "safetensors"}
    assert digest(safetensors | {"levels": "embedding"}) != digest(safetensors)
    utm = digest({"bbox": "1,2,3,4", "bbox_crs": "EPSG:32614"})
    assert utm != digest({"bbox": "1,2,3,4"})


def test_digest_is_stable():
    """Changing this number orphans every feature ever written: bump it knowingly."""
    assert digest({"bands": "red,green,blue"}) == STABLE
    assert len(digest({})) == 64


STABLE = "2c69ba3f0076adac0893149de803f3a93d996410e3beb1140eefdf4f4e47b2b6"
