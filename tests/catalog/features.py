"""Small feature Items, as `encode` writes them: built by `item.build_item`, no pixels."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pystac
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam_stac import item as items
from geosam_stac import manifest
from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.registry import find_model
from geosam_stac.grid import ChipGrid
from geosam_stac.layout import Layout, item_id
from geosam_stac.types import Band, EncoderSpec, Scene

NOW = datetime(2026, 11, 22, 14, tzinfo=UTC)
API = "https://stac.example.org/v1"


def feature_item(
    number: int = 0,
    *,
    model: str = "sam2.1-hiera-tiny",
    collection: str | None = "sentinel-2-l2a",
    resolution: float = 10.0,
    origin: tuple[float, float] | None = None,
    weights: str = "upstream",
    root: str = "/features",
    days: float | None = None,
) -> pystac.Item:
    """The Item of scene `number`: 20 km east and a day later than the one before it."""
    entry = find_model(model)
    upstream = weights == "upstream"
    moment = datetime(2024, 1, 1, 12, 0, 0, 24_000, tzinfo=UTC)
    moment += timedelta(days=number if days is None else days)
    if origin is None:
        affine = Affine(resolution, 0, 500_000.0 + number * 20_000, 0, -resolution, 5_200_000.0)
        geobox = GeoBox((100, 100), affine, "EPSG:32614")
    else:
        step = resolution / 1e5
        geobox = GeoBox((100, 100), Affine(step, 0, origin[0], 0, -step, origin[1]), "EPSG:4326")
    source = pystac.Item(
        id=f"scene-{number:02d}",
        geometry=None,
        bbox=None,
        datetime=moment,
        properties={"platform": "north" if number % 2 else "south", "eo:cloud_cover": number + 0.5},
        collection=collection,
    )
    if collection is not None:
        place = f"{API}/collections/{collection}/items/{source.id}"
        source.add_link(pystac.Link("self", place))
    scene = Scene(
        id=source.id,
        collection=collection,
        href=f"{API}/{source.id}",
        items=(source,),
        bands=tuple(
            Band(name=name, asset=name, index=1, href="/a.tif", source_href="/a.tif")
            for name in ("red", "green", "blue")
        ),
        geobox=geobox,
        nodata=0,
        datetime=moment,
    )
    sha256 = entry.sha256 if upstream else hashlib.sha256(weights.encode()).hexdigest()
    spec = EncoderSpec(
        name=entry.name,
        family=entry.family,
        weights_sha256=str(sha256),
        weights=weights,
        checkpoint_name=entry.checkpoint_name,
        input_px=entry.input_px,
        mean=entry.mean,
        std=entry.std,
        outputs=entry.outputs,
    )
    digest = hashlib.sha256(f"{model}{weights}{resolution}".encode()).hexdigest()
    layout = Layout(item_id=item_id(scene.id, entry.name, digest), layer=scene.id)
    facts = items.FileFacts(bytes=1000, sha256="0" * 64)
    return items.build_item(
        scene=scene,
        grid=ChipGrid(geobox=geobox, chip_px=1024, stride_px=512),
        spec=spec,
        config=EncodeConfig(),
        layout=layout,
        digest=digest,
        precision="fp32",
        value_range=(0.0, 3000.0) if number % 3 else None,
        href=lambda key: f"{root}/{key}",
        manifest=items.FileFacts(bytes=9, sha256="1" * 64, rows=9, columns=manifest.COLUMNS),
        skipped=None,
        thumbnail=facts,
        feature_type="application/octet-stream",
        chips_skipped=0,
        chips_failed=0,
        software={"geosam-stac": "0.1.0", "torch": "2.15.0"},
        created=NOW,
        model_href=entry.url if upstream else None,
    )


def write(root: Path, *made: pystac.Item) -> list[str]:
    """Write Items where `encode` puts them; their hrefs."""
    hrefs = []
    for item in made:
        path = root / item.id / f"{item.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(items.to_bytes(item))
        hrefs.append(str(path))
    return hrefs


def document(number: int = 0, **options: Any) -> dict[str, Any]:
    """`feature_item` as a JSON document."""
    return feature_item(number, **options).to_dict(transform_hrefs=False)
