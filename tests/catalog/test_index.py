"""Items as stac-geoparquet: exactly back, whatever they hold."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosam_stac.catalog.collections import union_bbox
from geosam_stac.catalog.index import index_facts, read_index, write_index
from geosam_stac.errors import DataError
from tests.catalog import features

ITEM = features.document(0)


def changed(item_id="b", **properties):
    item = copy.deepcopy(ITEM)
    item["id"] = item_id
    item["properties"] |= properties
    return item


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"odd": None},
        {"odd": {}},
        {"odd": []},
        {"odd": {"a": None, "b": {"c": {}}}},
        {"odd": [1, None, "x", {"y": None}]},
        {"odd": [[1.5], [2]]},
        {"odd": "2024-01-01T00:00:00Z"},
        {"odd": True},
        {"odd": 2**60},
        {"odd": 2**70},
        {"datetime": "2024-08-15T19:09:30.024Z"},
        {"datetime": "2024-08-15T21:09:30.000001+02:00"},
        {
            "datetime": None,
            "start_datetime": "2024-01-01T00:00:00Z",
            "end_datetime": "2024-02-01T00:00:00Z",
        },
        {"created": "not a time"},
        {"gsd": 10},
        {"proj:code": None, "proj:projjson": {"type": "ProjectedCRS", "id": {"code": 1}}},
    ],
)
def test_an_item_comes_back_as_it_was(properties):
    items = [ITEM, changed(**properties)]
    data = write_index(items)
    assert read_index(data) == items
    assert read_index(write_index(items[::-1])) == items[::-1]
    assert read_index(write_index(items[1:])) == items[1:]
    assert write_index(items) == data


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=4)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab:", min_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.fixed_dictionaries({}, optional={"odd": JSON, "x:y": JSON}), min_size=1, max_size=3)
)
def test_any_properties_come_back(several):
    items = [changed(f"item-{number}", **one) for number, one in enumerate(several)]
    assert read_index(write_index(items)) == items


def test_assets_and_links_that_differ():
    other = changed()
    other["assets"] = {"more": {"href": "/x", "roles": [], "file:size": 2**40, "bands": [{}]}}
    other["links"] = []
    assert read_index(write_index([ITEM, other])) == [ITEM, other]
    bare = changed()
    bare["assets"] = {}
    assert read_index(write_index([bare])) == [bare]


def test_facts_stand_in_the_footer():
    data = write_index([ITEM], facts={"rows": {"index/a.parquet": "1"}})
    assert index_facts(data)["rows"] == {"index/a.parquet": "1"}
    assert read_index(data) == [ITEM]
    assert "rows" not in index_facts(write_index([ITEM]))


def test_other_files_are_refused():
    for data in (b"", b"PAR1 nonsense", b"{}"):
        with pytest.raises(DataError, match="cannot be read"):
            index_facts(data)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[1, 2, 3, 4]], [1, 2, 3, 4]),
        ([[1, 2, 3, 4], [-5, 0, -4, 1]], [-5, 0, 3, 4]),
        ([[170, 0, 175, 1], [-175, 2, -170, 3]], [170, 0, -170, 3]),
        ([[179, 0, -179, 1]], [179, 0, -179, 1]),
        ([[179, 0, -179, 1], [-100, 0, -90, 1]], [179, 0, -90, 1]),
        ([[179, 0, -179, 1], [0, 0, 10, 1]], [0, 0, -179, 1]),
        ([[-180, -90, 180, 90], [1, 2, 3, 4]], [-180, -90, 180, 90]),
        ([[1, 2, 0, 3, 4, 100]], [1, 2, 3, 4]),
    ],
)
def test_the_box_around_boxes(boxes, expected):
    assert union_bbox(boxes) == expected
    assert union_bbox(boxes[::-1]) == expected
