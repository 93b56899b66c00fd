"""Small seeded GeoTIFFs and the STAC Items that describe them, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling

UTM14 = "EPSG:32614"
#: 10 m pixels near 47 N, 99 W.
NORTH_UP = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_200_000.0)


def values(
    shape: tuple[int, int, int], dtype: str = "uint16", *, seed: int = 0, lo: int = 1, hi: int = 250
) -> NDArray[Any]:
    """(B, H, W) noise on a gradient: every pixel differs from its neighbours."""
    rng = np.random.default_rng(seed)
    bands, height, width = shape
    ramp = np.linspace(0, 0.5, height)[:, None] + np.linspace(0, 0.5, width)[None, :]
    noise = rng.random((bands, height, width)) * 0.5
    return (lo + (ramp + noise) / 1.5 * (hi - lo)).astype(dtype)


def write_tif(
    path: Path,
    data: NDArray[Any],
    *,
    transform: Affine = NORTH_UP,
    crs: str | None = UTM14,
    nodata: float | None = None,
    overviews: Sequence[int] = (),
    blocksize: int = 64,
    **profile: Any,
) -> Path:
    """Write (B, H, W) as a tiled GeoTIFF."""
    bands, height, width = data.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=data.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
        tiled=True,
        blockxsize=blocksize,
        blockysize=blocksize,
        **profile,
    ) as dataset:
        dataset.write(data)
    if overviews:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(list(overviews), Resampling.average)
    return path


def asset(href: str | Path, **fields: Any) -> dict[str, Any]:
    """A GeoTIFF asset with role data; `fields` come on top."""
    fixed = {"href": str(href), "type": "image/tiff; application=geotiff", "roles": ["data"]}
    return fixed | fields


def document(
    assets: dict[str, dict[str, Any]],
    *,
    item_id: str = "scene-1",
    version: str = "1.1.0",
    **top: Any,
) -> dict[str, Any]:
    """A STAC Item with these assets; `top` replaces top-level fields."""
    return {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": [],
        "id": item_id,
        "geometry": None,
        "properties": {"datetime": "2024-08-15T12:00:00Z"},
        "links": [],
        "assets": assets,
    } | top


def write_item(path: Path, assets: dict[str, dict[str, Any]], **top: Any) -> Path:
    """Write `document(...)` as JSON."""
    path.write_text(json.dumps(document(assets, **top)))
    return path


def named_bands(*names: str) -> dict[str, Any]:
    """STAC 1.1 `bands` with names and the same common names."""
    return {"bands": [{"name": name, "eo:common_name": name} for name in names]}


def projection(transform: Affine, shape: tuple[int, int], crs: str = UTM14) -> dict[str, Any]:
    """The `proj:` fields of an asset."""
    return {
        "proj:code": crs,
        "proj:shape": list(shape),
        "proj:transform": list(transform)[:6],
    }
