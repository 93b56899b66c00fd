from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosam_stac.errors import GeosamStacError
from geosam_stac.layout import Layout, item_id, layer_name, sanitize


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("S2B_10SEG_20240815_0_L2A", "S2B_10SEG_20240815_0_L2A"),
        ("a/b:c?d#e", "a_b_c_d_e"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("..", "__"),
        (".", "_"),
        ("", "_"),
        ("nul\0byte", "nul_byte"),
        ("%2e%2e%2f", "_2e_2e_2f"),
        ("straße", "stra_e"),
        ("/absolute", "_absolute"),
        ("C:\\x", "C__x"),
    ],
)
def test_sanitize_values(text, name):
    assert sanitize(text) == name


def test_long_ids_are_cut_and_stay_apart():
    one, two = sanitize("x" * 300), sanitize("x" * 299 + "y")
    assert len(one) == len(two) == 128
    assert one.startswith("x" * 119 + "-")
    assert one != two
    assert sanitize("x" * 128) == "x" * 128


@given(st.text())
def test_sanitize_is_always_one_safe_segment(text):
    name = sanitize(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name)
    assert name.strip(".")
    assert len(PurePosixPath(name).parts) == 1
    assert sanitize(name) == name


def test_lone_surrogates_are_safe():
    assert len(sanitize("\ud800" * 300)) == 128


def test_item_id():
    digest = "3db3b1efffffffff"
    assert item_id("S2B/1", "sam2.1-hiera-base-plus", digest) == (
        "S2B_1_sam2.1-hiera-base-plus_3db3b1ef"
    )
    # The longest name and its ".json" fit in the 255 bytes of a file name.
    assert len(item_id("x" * 300, "sam2.1-hiera-base-plus", digest)) < 250


def test_layout_keys():
    layout = Layout(item_id="scene_sam_01234567", layer="scene")
    assert layout.folder == "scene_sam_01234567"
    assert layout.item == "scene_sam_01234567/scene_sam_01234567.json"
    assert layout.manifest == "scene_sam_01234567/manifest.parquet"
    assert layout.skipped == "scene_sam_01234567/skipped.parquet"
    assert layout.run == "scene_sam_01234567/run.json"
    assert layout.thumbnail == "scene_sam_01234567/thumbnail.png"
    assert layout.feature("chip_000042") == "scene_sam_01234567/scene/features/chip_000042.pt"
    assert layout.feature_href("chip_000042") == "scene/features/chip_000042.pt"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", "ä"])
def test_layout_refuses_names_that_were_not_sanitized(name):
    with pytest.raises(GeosamStacError, match="not safe"):
        Layout(item_id=name, layer="scene")
    with pytest.raises(GeosamStacError, match="not safe"):
        Layout(item_id="a", layer="b").feature(name)


def test_layer_never_takes_the_name_of_a_file():
    assert layer_name("Manifest.parquet") == "Manifest.parquet_"
    assert layer_name("run.json") == "run.json_"
    assert layer_name("scene") == "scene"
