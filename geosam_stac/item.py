"""The STAC Item of an encoded scene: built fresh, STAC 1.1.0 (SPEC-stac section 2).

Must not import storage, features or manifest: what it says of their files comes in as `FileFacts`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import antimeridian
import pystac
import shapely
from pystac.utils import datetime_to_str, str_to_datetime

from geosam_stac import hrefs
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.footprint import crs_code, footprint_wgs84, resolution
from geosam_stac.layout import Layout
from geosam_stac.types import ChipGrid, EncoderSpec, Scene

if TYPE_CHECKING:
    from odc.geo.crs import CRS

_EXTENSIONS = {
    "eo:": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "file:": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "grid:": "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
    "processing:": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "proj:": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "sar:": "https://stac-extensions.github.io/sar/v1.3.0/schema.json",
    "table:": "https://stac-extensions.github.io/table/v1.2.0/schema.json",
}
_TEXTS = ("constellation", "platform", "sar:instrument_mode", "sar:product_type")
_POLARIZATIONS = ("HH", "VV", "HV", "VH", "LH", "LV", "RH", "RV", "CH", "CV")
# The fields of sar v1.3.0 by name: it refuses others of its prefix.
_PASSED_THROUGH = (
    *("constellation", "platform", "instruments", "gsd", "eo:cloud_cover", "grid:code"),
    *("sar:instrument_mode", "sar:product_type", "sar:frequency_band", "sar:center_frequency"),
    *("sar:bandwidth", "sar:polarizations", "sar:beam_ids", "sar:observation_direction"),
    *("sar:resolution_range", "sar:resolution_azimuth", "sar:pixel_spacing_range"),
    *("sar:pixel_spacing_azimuth", "sar:looks_range", "sar:looks_azimuth"),
    "sar:looks_equivalent_number",
)
COORDINATE_DIGITS = 7
"""Decimal digits of degrees in geometry and bbox: 1 cm at the equator."""

_PARQUET = "application/vnd.apache.parquet"
SHA256_MULTIHASH = "1220"  # multiformats table: 0x12 sha2-256, 0x20 bytes long


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What an asset says of its file: size, sha256 (hex) and, of a table, rows and columns.

    `columns`: name, type, description each, as `manifest.COLUMNS` has them.
    """

    bytes: int
    sha256: str
    rows: int | None = None
    columns: Sequence[tuple[str, str, str]] = ()


def build_item(
    *,
    scene: Scene,
    grid: ChipGrid,
    spec: EncoderSpec,
    config: EncodeConfig,
    layout: Layout,
    digest: str,
    precision: str,
    value_range: tuple[float, float] | None,
    href: Callable[[str], str],
    manifest: FileFacts,
    skipped: FileFacts | None,
    thumbnail: FileFacts | None,
    feature_type: str,
    chips_skipped: int,
    chips_failed: int,
    software: Mapping[str, str],
    created: datetime,
    model_href: str | None = None,
) -> pystac.Item:
    """Describe an encoded scene.

    Parameters
    ----------
    scene, grid, spec, config
        What was encoded, how it was cut, by what, with which options.
    layout
        Names of the output; its `item_id` becomes the Item's id.
    digest
        sha256 (hex) of the config (`EncodeConfig.digest`).
    precision
        The resolved one: fp32, bf16 or fp16.
    value_range
        Source values that became 0 and 255; None when uint8 passed through untouched.
    href
        Layout key -> absolute path or URL (`Store.href`), for the self and canonical links. Assets
        and `run.json` stand relative to the Item, so that a moved folder still works.
    manifest, skipped, thumbnail
        The files beside the Item; `skipped` and `thumbnail` are None where there is none.
    feature_type
        Media type of the feature files.
    chips_skipped, chips_failed
        How many chips have no feature.
    software
        Package name -> version, "geosam-stac" among them.
    created
        When the Item is written; UTC when it has no zone.
    model_href
        Where the model comes from, for a `derived_from` link.

    Raises
    ------
    DataError
        The source has no datetime at all, or its extent has no place on the Earth.
    """
    geometry = footprint_wgs84(scene.geobox)
    now = datetime_to_str(created)
    properties: dict[str, Any] = {
        "created": now,
        "updated": now,
        **_interval(scene),
        **_passed_through(scene),
        **_proj_properties(scene.geobox.crs),
        "processing:level": "L4",
        "processing:datetime": now,
        "processing:version": software.get("geosam-stac", "unknown"),
        "processing:software": dict(sorted(software.items())),
        "processing:lineage": lineage(scene, grid, spec, value_range),
        "table:row_count": manifest.rows,
        "mlm:name": spec.name,
        "geosam:resolution": resolution(scene.geobox),
        "geosam:chip_size": grid.chip_px,
        "geosam:stride": grid.stride_px,
        "geosam:bands": [band.name for band in scene.bands],
        **_computed(scene, config),
        "geosam:dtype": config.feature_dtype,
        "geosam:format": config.format,
        "geosam:precision": precision,
        "geosam:value_range": None if value_range is None else [float(v) for v in value_range],
        "geosam:weights": "untrained" if _untrained(spec) else spec.weights,
        "geosam:weights_sha256": spec.weights_sha256,
        "geosam:config_hash": digest[:8],
        "geosam:features": [
            {"name": output.name, "shape": list(output.shape)} for output in spec.outputs
        ],
        "geosam:source_collections": _source_collections(scene),
        "geosam:source_items": [source.id for source in scene.items] or [scene.id],
        "geosam:chips_skipped": chips_skipped,
        "geosam:chips_failed": chips_failed,
    }
    item = pystac.Item(
        id=layout.item_id,
        geometry=rounded(shapely.geometry.mapping(geometry)),
        bbox=rounded(antimeridian.bbox(shapely.geometry.mapping(geometry))),
        datetime=scene.datetime,
        properties=properties,
    )
    _add_links(item, scene, spec, href(layout.item), model_href)
    _add_assets(item, layout, manifest, skipped, thumbnail)
    # The manifest names the files; what kind they are of stands beside it.
    item.assets["manifest"].extra_fields["geosam:feature_files"] = {
        "type": feature_type,
        "roles": ["data", "features"],
    }
    item.stac_extensions = used_extensions(item)
    return item


def to_bytes(item: pystac.Item) -> bytes:
    """The Item as stable, indented UTF-8 JSON.

    Raises
    ------
    GeosamStacError
        The document still holds a signature; its name is told, never its value.
    """
    document = item.to_dict(include_self_link=True, transform_hrefs=False)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    secret = hrefs.find_secret(text)
    if secret is not None:
        raise GeosamStacError(
            f"refusing to write an Item that holds a signature or key ({secret})",
            item=item.id,
            hint="Give the source Item by an unsigned href, and report this as a defect",
        )
    # A lone surrogate in a source id has no UTF-8; as an escape it is valid JSON.
    return text.encode("utf-8", "backslashreplace")


def lineage(
    scene: Scene, grid: ChipGrid, spec: EncoderSpec, value_range: tuple[float, float] | None
) -> str:
    """One plain sentence on how the features came about."""
    bands = ", ".join(band.name for band in scene.bands)
    if scene.expression is not None:
        bands = f"{scene.expression.text} over {bands}"
    if scene.scaled:
        bands += " (scale and offset applied)"
    sources = [source.id for source in scene.items] or [scene.id]
    what = sources[0] if len(sources) == 1 else f"{len(sources)} Items ({', '.join(sources)})"
    crs = scene.geobox.crs
    unit = crs.units[0] if crs is not None else "units"
    unit = {"metre": "m", "degrees_north": "degrees", "degree": "degrees"}.get(unit, unit)
    code = crs_code(crs) or "a CRS of its own"
    values = (
        "8-bit values as they are"
        if value_range is None
        else f"{value_range[0]:g}{'-' if value_range[0] >= 0 else ' to '}{value_range[1]:g} "
        "scaled to 0-255"
    )
    weights = " with untrained (random) weights" if _untrained(spec) else ""
    return (
        f"{bands} of {what} at {resolution(scene.geobox):g} {unit} in {code}, {values}, "
        f"{grid.chip_px} px chips, stride {grid.stride_px}, {spec.name} image encoder{weights}."
    )


def _computed(scene: Scene, config: EncodeConfig) -> dict[str, Any]:
    """What was computed of the bands, and which pixels were left out; only what was asked for."""
    said = {
        "geosam:expression": None if scene.expression is None else scene.expression.text,
        "geosam:index": config.index,
        "geosam:mask": config.mask,
        "geosam:scaled": scene.scaled or None,
        "geosam:groupby": None if config.groupby == "id" else config.groupby,
    }
    return {name: value for name, value in said.items() if value is not None}


def _untrained(spec: EncoderSpec) -> bool:
    return spec.weights.startswith("untrained")


def _proj_properties(crs: CRS | None) -> dict[str, Any]:
    code = crs_code(crs)
    if crs is None or code is not None:
        return {"proj:code": code}
    return {"proj:code": None, "proj:projjson": crs.proj.to_json_dict()}


def rounded(value: Any) -> Any:
    """Numbers of a JSON value cut to `COORDINATE_DIGITS`."""
    if isinstance(value, float):
        return round(value, COORDINATE_DIGITS)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def _interval(scene: Scene) -> dict[str, Any]:
    """Start and end where the source Items say more than one moment."""
    moments: list[datetime] = []
    for source in scene.items:
        texts = [source.properties.get(name) for name in ("start_datetime", "end_datetime")]
        moments += [str_to_datetime(text) for text in texts if text]
        if source.datetime is not None:
            moments.append(source.datetime)
    zoned = [m if m.tzinfo is not None else m.replace(tzinfo=UTC) for m in moments]
    if not zoned and scene.datetime is None:
        raise DataError(
            "the source Item has no datetime",
            item=scene.id,
            href=hrefs.unsigned(scene.href),
            expected="datetime, or start_datetime and end_datetime",
        )
    if not zoned or (scene.datetime is not None and min(zoned) == max(zoned)):
        return {}
    return {
        "start_datetime": datetime_to_str(min(zoned)),
        "end_datetime": datetime_to_str(max(zoned)),
    }


def _source_collections(scene: Scene) -> list[str]:
    names = {source.collection_id for source in scene.items} | {scene.collection}
    return sorted(name for name in names if name is not None)


def _is_valid(name: str, value: Any) -> bool:
    """Validity by the schemas that are declared here; an invalid value would spoil the Item."""
    valid = False
    match name, value:
        case _, bool():
            pass
        case "eo:cloud_cover", int() | float():  # Landsat writes -1 for "not known"
            valid = 0 <= value <= 100
        case "grid:code", str():
            valid = re.fullmatch(r"[A-Z0-9]+-[-_.A-Za-z0-9]+", value) is not None
        case "sar:frequency_band", str():
            valid = value in ("P", "L", "S", "C", "X", "Ku", "K", "Ka")
        case "sar:observation_direction", str():
            valid = value in ("left", "right")
        case "sar:polarizations", [_, *_]:
            valid = all(part in _POLARIZATIONS for part in value) and len({*value}) == len(value)
        case "instruments" | "sar:beam_ids", [_, *_]:
            valid = all(isinstance(part, str) for part in value)
        case "sar:looks_range" | "sar:looks_azimuth", _:
            valid = isinstance(value, int) and value >= 0
        case _, str():
            valid = value != "" and name in _TEXTS
        case _, int() | float():
            valid = 0 < value < math.inf and name not in _TEXTS
    return valid


def _passed_through(scene: Scene) -> dict[str, Any]:
    """Properties that all source Items share; what differs within a mosaic describes none of it."""
    passed: dict[str, Any] = {}
    for name in _PASSED_THROUGH:
        values = [source.properties.get(name) for source in scene.items]
        if name == "gsd" and not any(values):
            values = [
                source.assets[band.asset].extra_fields.get("gsd")
                for source in scene.items
                for band in scene.bands
                if band.asset in source.assets
            ]
        if values and _is_valid(name, values[0]) and all(value == values[0] for value in values):
            passed[name] = values[0]
    return passed


def _add_links(
    item: pystac.Item, scene: Scene, spec: EncoderSpec, self_href: str, model_href: str | None
) -> None:
    geojson = pystac.MediaType.GEOJSON
    # Not set_self_href: that calls an Item application/json.
    for rel in ("self", "canonical"):
        item.add_link(pystac.Link(rel, self_href, geojson))
    for source in scene.items:
        source_href = source.get_self_href()
        if source_href is not None:
            item.add_link(pystac.Link("derived_from", hrefs.unsigned(source_href), geojson))
    if model_href is not None:
        link = pystac.Link("derived_from", hrefs.unsigned(model_href))
        link.extra_fields["mlm:name"] = spec.name
        item.add_link(link)
    item.add_link(pystac.Link("processing-execution", "./run.json", pystac.MediaType.JSON))


def _add_assets(
    item: pystac.Item,
    layout: Layout,
    manifest: FileFacts,
    skipped: FileFacts | None,
    thumbnail: FileFacts | None,
) -> None:
    assets = (
        ("manifest", layout.manifest, manifest, "Chip manifest", _PARQUET, ["data", "manifest"]),
        ("skipped", layout.skipped, skipped, "Chips without a feature", _PARQUET, ["metadata"]),
        ("thumbnail", layout.thumbnail, thumbnail, "Thumbnail", "image/png", ["thumbnail"]),
    )
    for key, layout_key, facts, title, media_type, roles in assets:
        if facts is None:
            continue
        fields: dict[str, Any] = {
            "file:size": facts.bytes,
            "file:checksum": SHA256_MULTIHASH + facts.sha256,
        }
        if facts.columns:
            names = ("name", "type", "description")
            fields |= {
                "table:primary_geometry": "geometry",
                "table:row_count": facts.rows,
                "table:columns": [dict(zip(names, col, strict=True)) for col in facts.columns],
            }
        relative = "./" + layout_key.removeprefix(f"{layout.folder}/")
        item.add_asset(
            key,
            pystac.Asset(
                relative, title=title, media_type=media_type, roles=roles, extra_fields=fields
            ),
        )


def used_extensions(item: pystac.Item) -> list[str]:
    """Schemas of the extensions whose fields an Item of ours has, sorted."""
    names = set(item.properties)
    for asset in item.assets.values():
        names |= set(asset.extra_fields)
    return sorted(
        url for prefix, url in _EXTENSIONS.items() if any(name.startswith(prefix) for name in names)
    )
