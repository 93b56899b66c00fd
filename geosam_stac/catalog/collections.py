"""The Collections of features, and the catalog, made from their members alone. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from geosam_stac.catalog.members import (
    GEOJSON,
    JSON,
    MODELS_COLLECTION,
    Document,
    Places,
    canonical,
    is_upstream,
    link,
    model_id,
    order,
)

CATALOG_ID = "geosam-stac"
_EXTENSIONS = {
    "proj:": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "table:": "https://stac-extensions.github.io/table/v1.2.0/schema.json",
}
_SUMMARISED = (
    *("constellation", "platform", "instruments", "gsd", "mlm:name", "processing:level"),
    *("proj:code", "geosam:resolution", "geosam:chip_size", "geosam:stride", "geosam:bands"),
    *("geosam:dtype", "geosam:format", "geosam:weights", "geosam:weights_sha256"),
    "geosam:source_collections",
)
_ASSET_FIELDS = (
    *("type", "title", "description", "roles"),
    *("table:columns", "table:primary_geometry"),
)
# The address of an Item in a STAC API: what comes before it is its Collection's.
_API_ITEM = re.compile(r"^(https?://.+/collections/[^/?#]+)/items/[^/?#]+/?$")


def feature_collection(
    members: Sequence[Document], places: Places, *, index_href: str | None = None
) -> Document:
    """The Collection of members that share one id; they have absolute hrefs.

    `index_href`: the stac-geoparquet file that holds them.
    """
    members = sorted(members, key=order)
    first = members[0]
    collection = str(first["collection"])
    name = str(first["properties"]["mlm:name"])
    sources = sorted(
        {str(part) for one in members for part in _list(one, "geosam:source_collections")}
    )
    of = ", ".join(sources) if sources else "Items without a Collection"
    weights = "" if is_upstream(first) else " with weights that are not the published ones"
    summaries = _summaries(members)
    item_assets = _item_assets(members)
    used = [*summaries, *(field for asset in item_assets.values() for field in asset)]
    document: Document = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [
            url
            for prefix, url in _EXTENSIONS.items()
            if any(field.startswith(prefix) for field in used)
        ],
        "id": collection,
        "title": f"{name} features of {of}",
        "description": f"Image features of {name}{weights}, of {of}. "
        "One Item an encoded scene, one row of its manifest a chip.",
        "license": "other",
        "keywords": ["sam", "segment-anything", "features"],
        "extent": {
            "spatial": {"bbox": [union_bbox([one["bbox"] for one in members])]},
            "temporal": {"interval": [_interval(members)]},
        },
        "summaries": summaries,
        "item_assets": item_assets,
        "links": _links(members, collection, places),
    }
    if index_href is not None:
        document["assets"] = {
            "items": {
                "href": index_href,
                "title": "All Items of the catalog as stac-geoparquet",
                "type": "application/vnd.apache.parquet",
                "roles": ["stac-items"],
            }
        }
    return document


def catalog(collections: Iterable[Document], places: Places) -> Document:
    """The catalog of these Collections."""
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": CATALOG_ID,
        "title": "SAM features",
        "description": "Image features of Segment Anything models, encoded with geosam-stac.",
        "links": [
            {"rel": "self", "href": places.root, "type": JSON},
            {"rel": "root", "href": places.root, "type": JSON},
            *(
                {
                    "rel": "child",
                    "href": places.collection(one["id"]),
                    "type": JSON,
                    "title": one["title"],
                }
                for one in sorted(collections, key=lambda one: str(one["id"]))
            ),
        ],
    }


def union_bbox(boxes: Sequence[Sequence[float]]) -> list[float]:
    """The smallest W,S,E,N around all; W > E where it crosses the antimeridian."""
    flat = [(box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]) for box in boxes]
    south, north = min(box[1] for box in flat), max(box[3] for box in flat)
    parts: list[tuple[float, float]] = []
    for west, _, east, _ in flat:
        parts += [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    merged: list[tuple[float, float]] = []
    for west, east in sorted(parts):
        if merged and west <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], east))
        else:
            merged.append((west, east))
    # The widest gap is left out; the first one goes around the back, over the antimeridian.
    gaps = [merged[0][0] + 360.0 - merged[-1][1]]
    gaps += [after[0] - before[1] for before, after in itertools.pairwise(merged)]
    widest = gaps.index(max(gaps))
    return [merged[widest][0], south, merged[widest - 1][1], north]


def source_href(item_href: str) -> str | None:
    """The Collection of a source Item, where its href tells it."""
    match = _API_ITEM.match(item_href)
    return match[1] if match else None


def moments(document: Document) -> tuple[str, str]:
    """Start and end of an Item, as texts of RFC 3339."""
    properties = document["properties"]
    start, end = properties.get("start_datetime"), properties.get("end_datetime")
    if start and end:
        return str(start), str(end)
    return str(properties["datetime"]), str(properties["datetime"])


def _interval(members: Sequence[Document]) -> list[str]:
    from datetime import datetime

    starts, ends = zip(*map(moments, members), strict=True)
    return [min(starts, key=datetime.fromisoformat), max(ends, key=datetime.fromisoformat)]


def _list(document: Document, name: str) -> list[Any]:
    value = document["properties"].get(name)
    return value if isinstance(value, list) else []


def _summaries(members: Sequence[Document]) -> dict[str, list[Any]]:
    summaries: dict[str, list[Any]] = {}
    for name in _SUMMARISED:
        values: list[Any] = []
        for one in members:
            value = one["properties"].get(name)
            for part in value if isinstance(value, list) else [value]:
                if part is not None and part not in values:
                    values.append(part)
        if values:
            # Bands stay in the order of the first Item; all else in its own.
            summaries[name] = values if name == "geosam:bands" else sorted(values)
    return summaries


def _item_assets(members: Sequence[Document]) -> dict[str, Document]:
    """What the assets of a key have in common; `title` at least, which the schema wants of one."""
    found: dict[str, list[Document]] = {}
    for one in members:
        for key, asset in one["assets"].items():
            found.setdefault(key, []).append(asset)
    return {
        key: {
            field: assets[0][field]
            for field in _ASSET_FIELDS
            if field in assets[0] and all(asset.get(field) == assets[0][field] for asset in assets)
        }
        for key, assets in sorted(found.items())
    }


def _links(members: Sequence[Document], collection: str, places: Places) -> list[Document]:
    home = places.collection(collection)
    links: list[Document] = [
        {"rel": "self", "href": home, "type": JSON},
        {"rel": "root", "href": places.root, "type": JSON},
        {"rel": "parent", "href": places.root, "type": JSON},
    ]
    for model in sorted({model_id(one) for one in members}):
        for rel in ("emb:model", "derived_from"):
            links.append({"rel": rel, "href": places.model(model), "type": GEOJSON})
    sources = {
        source
        for one in members
        for each in one["links"]
        if each.get("rel") == "derived_from"
        and (source := source_href(each["href"]))
        and not source.endswith(f"/{MODELS_COLLECTION}")
    }
    for source in sorted(sources):
        for rel in ("emb:source-data", "derived_from"):
            links.append({"rel": rel, "href": source, "type": JSON})
    links += [
        {
            "rel": "item",
            "href": link(one, "self") or canonical(one),
            "type": GEOJSON,
            "title": one["id"],
        }
        for one in members
    ]
    return links
