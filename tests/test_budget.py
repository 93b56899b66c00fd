"""What --max-memory comes to."""

from __future__ import annotations

import dataclasses

import pytest

from geosam_stac.budget import share_out
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import UsageError
from geosam_stac.types import EncoderSpec, TensorSpec

SAM2 = EncoderSpec(
    name="sam2",
    family="sam2",
    weights_sha256="0",
    weights="none",
    checkpoint_name="sam2",
    input_px=1024,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    outputs=(
        TensorSpec(name="image_embed", shape=(256, 64, 64), stride_px=16),
        TensorSpec(name="high_res_feats_0", shape=(32, 256, 256), stride_px=4),
        TensorSpec(name="high_res_feats_1", shape=(64, 128, 128), stride_px=8),
    ),
)
CHIP, FEATURE = 3 << 20, 8 << 20


@pytest.mark.parametrize("max_memory", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("processors", [1, 16, 128])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_what_is_held_at_once_stays_within_it(max_memory, processors, batch_size):
    config = EncodeConfig(max_memory=max_memory)
    budget = share_out(config, SAM2, batch_size=batch_size, processors=processors)
    assert budget.readers * budget.tile_area_px * 18 <= budget.loading_bytes
    held = budget.tiles_bytes + budget.loading_bytes
    held += budget.chips_queue * CHIP + budget.features_queue * FEATURE
    assert held <= max_memory * 1e9
    assert budget.scan_bytes < max_memory * 1e9
    assert budget.readers >= 1


def test_a_sentinel_2_tile_fits_a_scan_by_default():
    budget = share_out(EncodeConfig(), SAM2, batch_size=8)
    assert budget.scan_bytes >= 10980**2 * (3 * 16 + 3) / 8


def test_queues_follow_the_batch_and_the_features():
    config = EncodeConfig(max_memory=4.0)
    small = share_out(config, SAM2, batch_size=2, processors=4)
    assert (small.chips_queue, small.features_queue) == (4, 6)
    embedding = dataclasses.replace(SAM2, outputs=SAM2.outputs[:1])
    narrow = EncodeConfig(max_memory=0.2)
    assert share_out(narrow, SAM2, batch_size=64).features_queue == 2
    assert share_out(narrow, embedding, batch_size=64).features_queue == 9


@pytest.mark.parametrize("value", [0.1, 0, -1, float("nan"), float("inf")])
def test_too_little_is_refused(value):
    with pytest.raises(UsageError, match="--max-memory"):
        EncodeConfig(max_memory=value)


def test_the_budget_leaves_the_features_identity_alone():
    facts = {"model": "m", "weights_sha256": "0", "precision": "fp32", "chip_px": 1, "stride_px": 1}
    assert EncodeConfig(max_memory=3).digest(**facts) == EncodeConfig().digest(**facts)
