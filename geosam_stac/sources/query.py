"""What is asked of a STAC API's search: checked before anything is sent, and made its parameters.

Pure: no request is made here, and nothing of the network is imported.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from geosam_stac.errors import UsageError

MAX_PAGE_SIZE = 10_000  # STAC API 1.0, item search: `limit`

_DATETIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[-+]\d\d:\d\d)?)?)?)?", re.I)
_OPERATORS = {">=": "gte", "<=": "lte", "<>": "neq", "=": "eq", ">": "gt", "<": "lt"}
_COMPARISON = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|<>|=|>|<)\s*(.+?)\s*")
_GEOMETRIES = (
    *("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"),
    "GeometryCollection",
)
# CQL2 1.0: they stand for a number or a text, so that nothing is tested by them alone.
_VALUES = frozenset({"+", "-", "*", "/", "^", "%", "div", "casei", "accenti"})
_CQL2_EXAMPLE = "as eo:cloud_cover < 10 AND platform = 'sentinel-2a', or CQL2 JSON"


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """What is asked of a STAC API. Values are checked on creation: UsageError names the option.

    `url`: the API's landing page. `bbox`: W,S,E,N (or with heights, 6 numbers) in WGS84; W > E
    crosses the antimeridian. `intersects`: GeoJSON geometry, Feature or FeatureCollection.
    `datetime`: RFC 3339, or a year, month or day, or an interval of them, open as `..`.
    `filter`: CQL2, as text, or as JSON (text or mapping). `query`: the Query extension's object
    (text or mapping), or comparisons as `eo:cloud_cover<10`. `sortby`: fields, `-field` descends.
    `limit`: Items at most, None for all. `page_size`: Items a request.
    """

    url: str
    collections: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    bbox: tuple[float, ...] | None = None
    intersects: Mapping[str, Any] | None = None
    datetime: str | None = None
    filter: str | Mapping[str, Any] | None = None
    query: str | Mapping[str, Any] | tuple[str, ...] | None = None
    sortby: tuple[str, ...] = ()
    limit: int | None = None
    page_size: int = 100

    def __post_init__(self) -> None:
        if not self.url.lower().startswith(("http://", "https://")):
            raise UsageError(
                "--search takes the URL of a STAC API", expected="https://...", got=repr(self.url)
            )
        if self.limit is not None and self.limit < 1:
            raise UsageError("--limit must be at least 1", got=str(self.limit))
        if not 1 <= self.page_size <= MAX_PAGE_SIZE:
            raise UsageError(
                "the page size is out of range",
                expected=f"1 to {MAX_PAGE_SIZE}",
                got=str(self.page_size),
            )
        if self.bbox is not None and self.intersects is not None:
            raise UsageError(
                "bbox and intersects contradict each other in a search", hint="Give one of them"
            )
        if self.bbox is not None:
            _check_bbox(self.bbox)
        if self.datetime is not None:
            _check_datetime(self.datetime)
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """The body of a POST to /search, as pystac-client's `search` names its parts."""
        bbox, intersects = self.bbox, None
        if bbox is not None and bbox[0] > bbox[len(bbox) // 2]:
            # Sent as two boxes: pgstac 0.9 takes W > E for the long way round the Earth.
            intersects, bbox = _both_sides(bbox), None
        elif self.intersects is not None:
            intersects = _geometry(self.intersects)
        parameters = {
            "collections": list(self.collections),
            "ids": list(self.ids),
            "bbox": bbox,
            "intersects": intersects,
            "datetime": self.datetime,
            "filter": _cql2_json(self.filter),
            "query": _query(self.query),
            "sortby": list(self.sortby),
        }
        # A filter of no words was meant as none; pystac-client drops {} by itself.
        return {name: value for name, value in parameters.items() if value}


def _check_bbox(bbox: tuple[float, ...]) -> None:
    half = len(bbox) // 2
    if len(bbox) not in (4, 6) or not all(map(math.isfinite, bbox)):
        raise UsageError("bbox takes four numbers", expected="W,S,E,N", got=repr(bbox))
    west, south, east, north = bbox[0], bbox[1], bbox[half], bbox[half + 1]
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise UsageError(
            "bbox is no box in longitude and latitude",
            expected="W,S,E,N in degrees, S below N; W > E crosses the antimeridian",
            got=",".join(f"{number:g}" for number in bbox),
        )


def _both_sides(bbox: tuple[float, ...]) -> dict[str, Any]:
    half = len(bbox) // 2
    west, south, east, north = bbox[0], bbox[1], bbox[half], bbox[half + 1]
    sides = [(w, e) for w, e in ((west, 180.0), (-180.0, east)) if w < e]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in sides]
    return {"type": "MultiPolygon", "coordinates": rings}


def _geometry(value: Mapping[str, Any]) -> dict[str, Any]:
    """The GeoJSON geometry of a geometry, a Feature, or a FeatureCollection (their union)."""
    import shapely

    try:
        kind = value.get("type")
        if kind == "FeatureCollection":
            shapes = [shapely.geometry.shape(each["geometry"]) for each in value["features"]]
            geometry: Any = json.loads(shapely.to_geojson(shapely.union_all(shapes)))
        else:
            geometry = dict(value["geometry"] if kind == "Feature" else value)
        if geometry["type"] not in _GEOMETRIES or shapely.geometry.shape(geometry).is_empty:
            raise ValueError(geometry["type"])
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
        raise UsageError(
            "intersects is no GeoJSON geometry", got=f"{type(error).__name__}: {error}"
        ) from error
    return cast(dict[str, Any], geometry)


def _check_datetime(text: str) -> None:
    parts = text.split("/")
    moments = [_moment(part) for part in parts if part not in ("", "..")]
    if len(parts) > 2 or not moments or None in moments or text.strip() != text:
        raise UsageError(
            "--datetime is not understood",
            expected="as 2024, 2024-03, 2024-03-11, 2024-03-11T10:00:00Z, or an interval of two "
            "with / between, open as ..",
            got=repr(text),
        )
    if len(moments) == 2 and cast(datetime, moments[0]) > cast(datetime, moments[1]):
        raise UsageError("--datetime ends before it starts", got=repr(text))


def _moment(text: str) -> datetime | None:
    """The start of a year, month, day or second; None when it is none."""
    if not _DATETIME.fullmatch(text):
        return None
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat((text + "-01-01"[len(text) - 4 :]).upper())
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def cql2_text(expression: Mapping[str, Any]) -> str:
    """CQL2 JSON as CQL2 text: what the STAC API specification asks of a GET."""
    import cql2

    try:
        return str(cql2.parse_json(json.dumps(expression)).to_text())
    except (cql2.ParseError, ValueError) as error:
        raise UsageError(f"--filter is no CQL2: {error}", got=json.dumps(expression)) from error


def _cql2_json(value: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    import cql2

    # Every API with filters takes CQL2 JSON in a POST; the text form only some.
    try:
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            expression = cql2.parse_text(value).to_json()
        else:
            expression = (
                dict(value) if isinstance(value, Mapping) else _json_object("--filter", value)
            )
            cql2.parse_json(json.dumps(expression))
    except cql2.ParseError as error:
        place = re.search(r"--> \d+:(\d+)", str(error))
        raise UsageError(
            "--filter is no CQL2" + (f" from character {place[1]} on" if place else ""),
            expected=_CQL2_EXAMPLE,
            got=value if isinstance(value, str) else json.dumps(value),
        ) from error
    _check_test(expression)
    return expression


def _check_test(expression: Any) -> None:
    """Refuse a name or value by itself: it would find nothing, and nothing would say why."""
    name = expression.get("op") if isinstance(expression, dict) else None
    if name is None or name in _VALUES:
        raise UsageError(
            "a part of --filter tests nothing: a name, an operator and a value make a test",
            expected=_CQL2_EXAMPLE,
            got=_words(expression),
        )
    if name in ("and", "or", "not"):
        for part in expression["args"]:
            if not isinstance(part, bool):
                _check_test(part)


def _words(expression: Any) -> str:
    """A part of CQL2 JSON as CQL2 text: its names are then quoted as they have to be."""
    import cql2

    return str(cql2.parse_json(json.dumps(expression)).to_text())


def _query(value: str | Mapping[str, Any] | tuple[str, ...] | None) -> dict[str, Any] | None:
    """The Query extension's object: {property: {operator: value}}."""
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    result: dict[str, dict[str, Any]] = {}
    for part in (value,) if isinstance(value, str) else value:
        if part.lstrip().startswith("{"):
            parsed = _json_object("--query", part)
        elif match := _COMPARISON.fullmatch(part):
            parsed = {match[1]: {_OPERATORS[match[2]]: _scalar(match[3])}}
        else:
            raise UsageError(
                "--query is not understood",
                expected="as eo:cloud_cover<10, or JSON",
                got=repr(part),
            )
        for name, tests in parsed.items():
            result.setdefault(name, {}).update(tests)
    return result


def _scalar(text: str) -> Any:
    """A JSON number, truth value or quoted text; anything else is text as it stands."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, dict | list) or value is None else value


def _json_object(flag: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{flag} is no JSON: {error}", got=repr(text[:200])) from error
    if not isinstance(value, dict):
        raise UsageError(f"{flag} must be a JSON object", got=repr(text[:200]))
    return value
