"""What of a STAC Item's document is checked before anything is made of it. Pure.

Every error names the JSON path at fault. What nothing here reads is left alone: an Item that a
validator would refuse may still be encoded.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pystac

from geosam_stac.errors import DataError

Fail = Callable[[str, str, object], None]

#: PROJJSON in an asset's field, the deepest thing that Items hold, comes to some 15 levels. The
#: libraries that copy documents recurse, and give up at about 300.
MAX_DEPTH = 64

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_:.-]+")
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?([-+][\w.+-]*)?")
_TIME = "a time such as '2024-08-15T12:00:00Z'"
# How deep the lists of coordinates are.
_GEOMETRIES = {
    "Point": 1,
    "MultiPoint": 2,
    "LineString": 2,
    "MultiLineString": 3,
    "Polygon": 3,
    "MultiPolygon": 4,
}


def path_of(*keys: str | int) -> str:
    """A JSON path: `$.assets.red.proj:transform[2]`."""
    text = "$"
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{key}"
        else:
            text += f"[{json.dumps(key)}]"
    return text


def short(value: object) -> str:
    """A value as JSON, cut to 80 characters."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # it holds itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def wrong(item_id: str, keys: tuple[str | int, ...], expected: str, got: object) -> DataError:
    """The error of a value at a JSON path of an Item."""
    return DataError(f"{path_of(*keys)} is wrong", item=item_id, expected=expected, got=short(got))


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float holds; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def check_document(document: Any, where: str | None) -> None:
    """Raise DataError unless a document has the shape of an Item; `where` is its unsigned href.

    `links` and `geometry` are filled in where they are missing.
    """

    def fail(path: str, expected: str, got: object) -> None:
        raise DataError(
            f"not a STAC Item: {path} is wrong", href=where, expected=expected, got=short(got)
        )

    if not isinstance(document, dict):
        fail("$", "a JSON object", document)
    _check_kind(document, where, fail)
    _check_depth(document, fail)
    version = document.get("stac_version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        fail("$.stac_version", "a version such as '1.1.0'", version)
    if not isinstance(document.get("id"), str) or not document["id"]:
        fail("$.id", "a text", document.get("id"))
    if not isinstance(document.get("properties"), dict):
        fail("$.properties", "an object", document.get("properties"))
    _check_times(document["properties"], fail)
    assets = document.get("assets")
    if not isinstance(assets, dict) or not assets:
        fail("$.assets", "an object with at least one asset", assets)
    for key, asset in document["assets"].items():
        _check_asset(path_of("assets", key), asset, fail)
    _check_rest(document, fail)


def _check_kind(document: dict[str, Any], where: str | None, fail: Fail) -> None:
    kind = document.get("type")
    if kind == "FeatureCollection":
        raise DataError(
            "not a STAC Item: $.type is FeatureCollection",
            href=where,
            hint="Give one of its features to --item",
        )
    if kind in ("Collection", "Catalog"):
        raise DataError(
            f"not a STAC Item: $.type is {kind}",
            href=where,
            hint="Give the URL of one of its Items",
        )
    if kind != "Feature":
        fail("$.type", "'Feature'", kind)


def _check_depth(document: dict[str, Any], fail: Fail) -> None:
    """Not recursive: that is what it is about. An object that holds itself is too deep as well."""
    todo: list[tuple[Any, tuple[str | int, ...]]] = [(document, ())]
    while todo:
        value, keys = todo.pop()
        if len(keys) > MAX_DEPTH:
            fail(path_of(*keys[:4]), f"at most {MAX_DEPTH} levels of nesting", "more")
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            if isinstance(part, dict | list | tuple) and part:
                todo.append((part, (*keys, key if isinstance(key, int) else str(key))))


def _check_times(properties: dict[str, Any], fail: Fail) -> None:
    interval = ("start_datetime", "end_datetime")
    has_moment = properties.get("datetime") is not None
    for name in ("datetime", *interval) if has_moment else interval:
        value = properties.get(name)
        if has_moment and name != "datetime" and value is None:
            continue
        try:
            moment = pystac.utils.str_to_datetime(value)  # type: ignore[arg-type]
            if moment.tzinfo is not None:
                moment.astimezone(UTC)  # the year 1 with an offset lies before all years
        except (ValueError, TypeError, ArithmeticError):
            fail(f"$.properties.{name}", _TIME, value)


def _check_asset(path: str, asset: object, fail: Fail) -> None:
    if not isinstance(asset, dict):
        fail(path, "an object with an href", asset)
        return
    if not isinstance(asset.get("href"), str) or not asset["href"]:
        fail(f"{path}.href", "a text", asset.get("href"))
    if not isinstance(asset.get("type"), str | None):
        fail(f"{path}.type", "a media type", asset["type"])
    roles = asset.get("roles")
    if roles is not None and not _is_texts(roles):
        fail(f"{path}.roles", "a list of texts", roles)


def _check_rest(document: dict[str, Any], fail: Fail) -> None:
    links = document.setdefault("links", [])
    if not isinstance(links, list):
        fail("$.links", "a list", links)
    for index, link in enumerate(document["links"]):
        good = isinstance(link, dict) and all(isinstance(link.get(k), str) for k in ("rel", "href"))
        if not good:
            fail(f"$.links[{index}]", "an object with rel and href", link)
    if not isinstance(document.get("collection"), str | None):
        fail("$.collection", "a text", document["collection"])
    if document.setdefault("geometry", None) is not None:
        _check_geometry("$.geometry", document["geometry"], fail)
    bbox = document.get("bbox")
    if bbox is not None:
        if not isinstance(bbox, list | tuple) or len(bbox) not in (4, 6):
            fail("$.bbox", "4 or 6 numbers", bbox)
        _check_numbers("$.bbox", bbox, 1, fail)
    extensions = document.get("stac_extensions")
    if extensions is not None and not _is_texts(extensions):
        fail("$.stac_extensions", "a list of URLs", extensions)


def _check_geometry(path: str, geometry: Any, fail: Fail) -> None:
    if not isinstance(geometry, dict):
        fail(path, "a GeoJSON geometry", geometry)
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        parts = geometry.get("geometries")
        if not isinstance(parts, list | tuple):
            fail(f"{path}.geometries", "a list", parts)
        for index, part in enumerate(geometry["geometries"]):
            _check_geometry(f"{path}.geometries[{index}]", part, fail)
        return
    if not isinstance(kind, str) or kind not in _GEOMETRIES:
        fail(f"{path}.type", "a kind of GeoJSON geometry, as 'Polygon'", kind)
    _check_numbers(f"{path}.coordinates", geometry.get("coordinates"), _GEOMETRIES[kind], fail)


def _check_numbers(path: str, value: Any, depth: int, fail: Fail) -> None:
    """Lists of lists ... of numbers, so many deep. Recursive, but for four levels only."""
    if depth == 0:
        if not is_number(value):
            fail(path, "a number", value)
        return
    if not isinstance(value, list | tuple):
        fail(path, "a list of numbers" if depth == 1 else "a list of lists", value)
    for index, part in enumerate(value):
        _check_numbers(f"{path}[{index}]", part, depth - 1, fail)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
