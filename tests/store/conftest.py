"""Scenes that the fake model has encoded, for the tests of what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geosam_stac.pipeline import encode_scene
from tests import fakes, rasters


@pytest.fixture
def encoded(fake_model, tmp_path) -> Callable[..., Path]:
    """Encode (3, H, W) uint8 with the fake model; the new Item's path."""

    def call(data: np.ndarray, *, name: str = "scene", **options: object) -> Path:
        raster = {key: options.pop(key) for key in ("nodata", "transform", "crs") if key in options}
        tif = rasters.write_tif(tmp_path / f"{name}.tif", data, **raster)
        bands = rasters.named_bands("red", "green", "blue")
        item = rasters.write_item(
            tmp_path / f"{name}.json", {"image": rasters.asset(tif, **bands)}, item_id=name
        )
        with fakes.fake_session(tmp_path, **options) as session:
            result = encode_scene(session, session.scene(str(item)), session.config)
        return Path(result.href)

    return call


@pytest.fixture
def pixels() -> np.ndarray:
    """160 columns, 128 rows: at stride 32 chips of 64 px in 3 rows and 4 columns."""
    return rasters.values((3, 128, 160), "uint8")
