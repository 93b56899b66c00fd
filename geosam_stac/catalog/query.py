"""What is asked for among feature Items, and the search of documents that are at hand.

One question, one meaning: the API gets `FeatureQuery.search_query`, and `select` evaluates the
very same parameters in process, so all kinds of catalog give the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from geosam_stac.catalog.collections import moments
from geosam_stac.catalog.members import Document
from geosam_stac.encoders.registry import find_model
from geosam_stac.errors import UsageError
from geosam_stac.sources.query import SearchQuery

# Never asked: `SearchQuery` wants the name of an API.
_NO_API = "https://localhost/"
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
# Pixel sizes come out of reprojections: 10.000000000000002 m is 10 m.
_RESOLUTION_TOLERANCE = 1e-6
# CQL2 1.0, beside the functions that begin with a_, s_ and t_. The package takes any other for a
# null, which would find nothing and not say why.
_OPERATORS = frozenset(
    {
        *("and", "or", "not", "=", "<>", "<", ">", "<=", ">=", "between", "in", "like", "isNull"),
        *("casei", "accenti", "+", "-", "*", "/", "^", "%", "div"),
    }
)


@dataclass(frozen=True, kw_only=True)
class FeatureQuery:
    """What is asked for. Values are checked on creation: UsageError names the option.

    `model`: a name or alias. `resolution`: of the encoded grid, in units of its CRS. `bbox`:
    W,S,E,N in degrees; W > E crosses the antimeridian. `datetime`: RFC 3339, a year, month or day,
    or an interval of them, open as `..`. `source_collection`: a Collection that was encoded.
    `filter`: CQL2 with bare property names, as `"mlm:name" = 'sam3'`. `limit`: Items at most.
    """

    model: str | None = None
    resolution: float | None = None
    bbox: tuple[float, ...] | None = None
    datetime: str | None = None
    source_collection: str | None = None
    filter: str | Mapping[str, Any] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None and not self.resolution > 0:
            raise UsageError("--resolution must be a positive number", got=str(self.resolution))
        self.search_query(_NO_API)

    def search_query(self, url: str) -> SearchQuery:
        """The search of the STAC API at `url`."""
        return SearchQuery(
            url=url,
            bbox=self.bbox,
            datetime=self.datetime,
            filter=self._filter(),
            limit=self.limit,
        )

    def _filter(self) -> dict[str, Any]:
        """All that SearchQuery has no parameter for, as one CQL2 expression."""
        # Models and whatever else an API holds have no config.
        tests: list[dict[str, Any]] = [
            _op("not", _op("isNull", {"property": "geosam:config_hash"}))
        ]
        if self.model is not None:
            tests.append(_op("=", {"property": "mlm:name"}, find_model(self.model).name))
        if self.resolution is not None:
            margin = self.resolution * _RESOLUTION_TOLERANCE
            tests.append(
                _op(
                    "between",
                    {"property": "geosam:resolution"},
                    self.resolution - margin,
                    self.resolution + margin,
                )
            )
        if self.source_collection is not None:
            names = {"property": "geosam:source_collections"}
            tests.append(_op("a_contains", names, [self.source_collection]))
        given = SearchQuery(url=_NO_API, filter=self.filter).parameters().get("filter")
        if given is not None:
            tests.append(given)
        return tests[0] if len(tests) == 1 else _op("and", *tests)


def select(documents: Iterable[Document], query: FeatureQuery) -> list[Document]:
    """The documents that a search of an API would find, in its order: newest first, then by id.

    Raises UsageError for a filter that cannot be evaluated.
    """
    parameters = query.search_query(_NO_API).parameters()
    tests = [
        _time_test(parameters.get("datetime")),
        _place_test(parameters),
        _cql2_test(parameters),
    ]
    found = [one for one in documents if all(test(one) for test in tests)]
    return in_order(found)[: query.limit]


def in_order(documents: Iterable[Document]) -> list[Document]:
    """Newest first, then by id, the last first: the order of pgstac, where none is asked for."""
    return sorted(documents, key=lambda one: (_moments(one)[0], str(one["id"])), reverse=True)


def _op(name: str, *args: Any) -> dict[str, Any]:
    return {"op": name, "args": list(args)}


def _moments(document: Document) -> tuple[datetime, datetime]:
    start, end = (_zoned(datetime.fromisoformat(text)) for text in moments(document))
    return start, end


def _zoned(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time_test(asked: str | None) -> Any:
    """Items whose time and the one asked for have a moment in common."""
    if asked is None:
        return lambda document: True
    first, slash, last = asked.partition("/")
    start, end = _span(first), _span(last if slash else first)
    after = None if start is None else start[0]
    before = None if end is None else end[1]

    def test(document: Document) -> bool:
        begins, ends = _moments(document)
        return (after is None or ends >= after) and (before is None or begins <= before)

    return test


def _span(text: str) -> tuple[datetime, datetime] | None:
    """First and last second of a year, month or day, as pystac-client sends them; None for `..`."""
    if text in ("", ".."):
        return None
    if len(text) > 10:
        moment = _zoned(datetime.fromisoformat(text.upper()))
        return moment, moment
    start = _zoned(datetime.fromisoformat(text + "-01-01"[len(text) - 4 :]))
    if len(text) == 4:
        after = start.replace(year=start.year + 1) if start.year < 9999 else datetime.max
    elif len(text) == 7:
        after = (start + 31 * _DAY).replace(day=1)
    else:
        after = start + _DAY
    return start, _zoned(after) - _SECOND


def _place_test(parameters: Mapping[str, Any]) -> Any:
    import shapely

    bbox, intersects = parameters.get("bbox"), parameters.get("intersects")
    if bbox is not None:
        half = len(bbox) // 2
        area = shapely.box(bbox[0], bbox[1], bbox[half], bbox[half + 1])
    elif intersects is not None:
        area = shapely.geometry.shape(intersects)
    else:
        return lambda document: True
    shapely.prepare(area)
    return lambda document: area.intersects(shapely.geometry.shape(document["geometry"]))


def _check_operators(expression: Any) -> None:
    if isinstance(expression, list):
        for part in expression:
            _check_operators(part)
    elif isinstance(expression, dict):
        name = expression.get("op")
        if name is not None and name not in _OPERATORS and name[:2] not in ("a_", "s_", "t_"):
            raise UsageError("--filter uses a function that is not CQL2's", got=str(name))
        _check_operators(expression.get("args", []))


def _cql2_test(parameters: Mapping[str, Any]) -> Any:
    import cql2

    _check_operators(parameters["filter"])
    expression = cql2.parse_json(json.dumps(parameters["filter"]))

    def test(document: Document) -> bool:
        try:
            return bool(expression.matches(document))
        except Exception as error:
            # The package has no class of its own for this: a null is neither true nor false.
            if "reduce" in str(error):
                return False
            raise UsageError(
                f"--filter cannot be evaluated: {error}", got=json.dumps(parameters["filter"])
            ) from error

    return test
