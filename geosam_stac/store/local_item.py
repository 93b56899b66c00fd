"""The Item of a local copy: the original's facts, the copy's own files, sizes and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import antimeridian
import pystac
import shapely.geometry

from geosam_stac import hrefs
from geosam_stac.features import FORMATS
from geosam_stac.footprint import footprint_wgs84
from geosam_stac.grid import crop
from geosam_stac.item import SHA256_MULTIHASH, rounded
from geosam_stac.store.opened import FeatureItem
from geosam_stac.types import Window
from geosam_stac.windows import union

_GEOJSON = pystac.MediaType.GEOJSON
# Asset key -> its file in the copy, and whether it is a table.
_COPIED = {
    "manifest": ("manifest.parquet", True),
    "skipped": ("skipped.parquet", True),
    "thumbnail": ("thumbnail.png", False),
    "pca": ("pca.json", False),
    "overview": ("overview.tif", False),
}
# What shows the whole scene, and a copy of all of it alone has.
WHOLE_ONLY = frozenset({"overview"})
PICTURES = {key: name for key, (name, is_table) in _COPIED.items() if not is_table}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was copied.

    `windows`: of the chips, in px of the scene's grid; None for all of them. `format`: of the
    feature files; `dtype`: of their tensors, "" where it stays. `chips`, `skipped`: how many rows
    the two tables have. `files`: name -> content of what lies beside the Item.
    """

    windows: Sequence[Window] | None
    format: str
    dtype: str
    chips: int
    skipped: int
    files: Mapping[str, bytes]


def local_item(scene: FeatureItem, part: Part, *, href: str) -> pystac.Item:
    """Describe a local copy.

    Parameters
    ----------
    scene
        The original. It stays the canonical one; relative links become absolute.
    part
        What was copied.
    href
        Absolute path of the new Item.
    """
    item = pystac.Item.from_dict(
        scene.item.to_dict(include_self_link=False, transform_hrefs=False), preserve_dict=False
    )
    item.properties |= {
        "table:row_count": part.chips,
        "geosam:chips_skipped": part.skipped,
        "geosam:format": part.format,
    }
    if part.dtype:
        item.properties["geosam:dtype"] = part.dtype
    if part.windows is not None:
        _narrow(item, scene, part.windows)
    item.links = _links(scene, href, "run.json" in part.files)
    _assets(item, scene, part)
    return item


def _narrow(item: pystac.Item, scene: FeatureItem, windows: Sequence[Window]) -> None:
    geometry = shapely.geometry.mapping(footprint_wgs84(crop(scene.geobox, union(list(windows)))))
    item.geometry = rounded(geometry)
    item.bbox = rounded(antimeridian.bbox(geometry))


def _links(scene: FeatureItem, href: str, has_run: bool) -> list[pystac.Link]:
    links = [pystac.Link("self", href, _GEOJSON)]
    canonical = hrefs.unsigned(scene.href)
    if canonical:
        links.append(pystac.Link("canonical", canonical, _GEOJSON))
    for link in scene.item.links:
        if link.rel in ("self", "canonical"):
            continue
        target = link.get_target_str() or ""
        if link.rel == "processing-execution" and has_run:
            target = "./run.json"
        elif canonical:
            target = hrefs.unsigned(hrefs.absolute(target, scene.href))
        links.append(
            pystac.Link(
                link.rel, target, link.media_type, link.title, extra_fields=link.extra_fields
            )
        )
    return links


def _assets(item: pystac.Item, scene: FeatureItem, part: Part) -> None:
    for key, asset in list(item.assets.items()):
        name, is_table = _COPIED.get(key, ("", False))
        if key in _COPIED and name not in part.files:
            del item.assets[key]
        elif name:
            asset.href = f"./{name}"
            asset.extra_fields |= _facts(part.files[name])
            if is_table:
                asset.extra_fields["table:row_count"] = (
                    part.chips if key == "manifest" else part.skipped
                )
        elif scene.href:  # what later steps added stays where it is
            asset.href = hrefs.unsigned(hrefs.absolute(asset.href, scene.href))
    item.assets["manifest"].extra_fields["geosam:feature_files"] = {
        "type": FORMATS[part.format].media_type,
        "roles": ["data", "features"],
    }


def _facts(data: bytes) -> dict[str, Any]:
    return {
        "file:size": len(data),
        "file:checksum": SHA256_MULTIHASH + hashlib.sha256(data).hexdigest(),
    }
