"""A model as a STAC Item with the MLM extension, and the Collection of models.

https://stac-extensions.github.io/mlm/v1.5.2/schema.json. Facts come from the registry, so that
nothing is loaded. Must not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geosam_stac.catalog.members import (
    GEOJSON,
    JSON,
    MODELS_COLLECTION,
    Document,
    Places,
    is_upstream,
    model_id,
)
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import ConfigurationError

MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_SHA256_MULTIHASH = "1220"

# Day of release by version: github.com/facebookresearch/segment-anything, sam2 and sam3.
_RELEASED = {"1": "2023-04-05", "2.0": "2024-07-29", "2.1": "2024-09-29", "3": "2025-11-19"}
_UNKNOWN_RELEASE = "2023-04-05"
_ARCHITECTURES = {"1": "SAM", "2.0": "SAM 2 Hiera", "2.1": "SAM 2.1 Hiera", "3": "SAM 3"}
_WORLD = [-180.0, -90.0, 180.0, 90.0]


def model_item(feature_item: Document, places: Places) -> Document:
    """The Item of the model that made a feature Item.

    Published weights: with the MLM extension, their URL, sha256, size and licence. Random weights
    and a user's own file: said so in title and description, nothing linked to upstream; without a
    weights asset, which the extension demands, its fields stand undeclared.
    """
    model = model_id(feature_item)
    properties = feature_item["properties"]
    name = str(properties["mlm:name"])
    entry = _entry(name)
    upstream = is_upstream(feature_item) and entry is not None
    fields = {
        "title": name,
        "description": f"Image encoder {name}: prompts can be decoded on its features.",
        **_moment(entry),
        **(_mlm(entry) if entry is not None else {"mlm:name": name}),
        "mlm:pretrained": upstream,
    }
    if upstream and entry is not None:
        fields["mlm:pretrained_source"] = entry.url
        # An SPDX identifier, or "other" (STAC 1.1).
        fields["license"] = entry.licence if " " not in entry.licence else "other"
    else:
        kind = str(properties.get("geosam:weights") or "unknown")
        said = (
            "untrained (random) weights" if kind == "untrained" else f"weights of its own ({kind})"
        )
        fields["title"] = f"{name} with {said}"
        fields["description"] = f"Image encoder {name} with {said}: not the published model."
        fields["geosam:weights"] = kind
    fields["geosam:weights_sha256"] = properties.get("geosam:weights_sha256")
    home = places.collection(MODELS_COLLECTION)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [FILE, MLM] if upstream else [],
        "id": model,
        "collection": MODELS_COLLECTION,
        "geometry": {"type": "Polygon", "coordinates": [_ring()]},
        "bbox": list(_WORLD),
        "properties": fields,
        "links": [
            {"rel": "self", "href": places.model(model), "type": GEOJSON},
            {"rel": "root", "href": places.root, "type": JSON},
            {"rel": "parent", "href": home, "type": JSON},
            {"rel": "collection", "href": home, "type": JSON},
        ],
        "assets": {"weights": _weights(entry)} if upstream and entry is not None else {},
    }


def models_collection(items: Sequence[Document], places: Places) -> Document:
    """The Collection of the models, given their Items."""
    home = places.collection(MODELS_COLLECTION)
    moments = sorted(item["properties"]["datetime"] for item in items)
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": MODELS_COLLECTION,
        "title": "Models",
        "description": "The image encoders that the features of this catalog come from.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [list(_WORLD)]},
            "temporal": {"interval": [[moments[0], moments[-1]]] if moments else [[None, None]]},
        },
        "links": [
            {"rel": "self", "href": home, "type": JSON},
            {"rel": "root", "href": places.root, "type": JSON},
            {"rel": "parent", "href": places.root, "type": JSON},
            *({"rel": "item", "href": places.model(item["id"]), "type": GEOJSON} for item in items),
        ],
    }


def _entry(name: str) -> ModelEntry | None:
    try:
        return find_model(name)
    except ConfigurationError:  # of another version of this package
        return None


def _moment(entry: ModelEntry | None) -> dict[str, Any]:
    day = _UNKNOWN_RELEASE if entry is None else _RELEASED.get(entry.version, _UNKNOWN_RELEASE)
    return {"datetime": f"{day}T00:00:00Z"}


def _mlm(entry: ModelEntry) -> dict[str, Any]:
    size = entry.input_px
    return {
        "mlm:name": entry.name,
        "mlm:architecture": _ARCHITECTURES.get(entry.version, entry.family),
        "mlm:tasks": ["segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:accelerator": "cuda",
        "mlm:accelerator_constrained": False,
        "mlm:input": [
            {
                "name": "RGB chip, 0 to 255",
                # Whatever three bands the user names: no band is the model's own.
                "bands": [],
                "input": {
                    "shape": [-1, 3, size, size],
                    "dim_order": ["batch", "channel", "height", "width"],
                    "data_type": "uint8",
                },
                "value_scaling": [
                    {"type": "z-score", "mean": mean, "stddev": std}
                    for mean, std in zip(entry.mean, entry.std, strict=True)
                ],
                "pre_processing_function": None,
            }
        ],
        "mlm:output": [
            {
                "name": output.name,
                "tasks": ["segmentation"],
                "result": {
                    "shape": [-1, *output.shape],
                    "dim_order": ["batch", "channel", "height", "width"],
                    "data_type": "float32",
                },
                "post_processing_function": None,
            }
            for output in entry.outputs
        ],
    }


def _weights(entry: ModelEntry) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": entry.url,
        "title": f"Weights of {entry.name} ({entry.licence})",
        "type": "application/octet-stream; application=pytorch",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "torch.save",
        "file:size": entry.size_bytes,
    }
    if entry.sha256 is not None:
        asset["file:checksum"] = _SHA256_MULTIHASH + entry.sha256
    return asset


def _ring() -> list[list[float]]:
    west, south, east, north = _WORLD
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]
