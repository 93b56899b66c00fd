from datetime import UTC, datetime

import pystac
import pytest

from geosam_stac.errors import DataError
from geosam_stac.sources.groups import group_items, solar_day


def item(name, when, lon=0.0, collection="c", **properties):
    return pystac.Item(
        id=name,
        geometry=None,
        bbox=[lon - 1, 0, lon + 1, 1],
        datetime=when,
        properties=properties,
        collection=collection,
    )


NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)


def test_by_id_each_item_is_alone():
    groups = group_items([item("b", NOON), item("a", NOON)], "id")
    assert [(group.id, [i.id for i in group.items]) for group in groups] == [
        ("b", ["b"]),
        ("a", ["a"]),
    ]


@pytest.mark.parametrize(
    ("hour", "lon", "day"),
    [
        (23, 0, "2026-06-21"),
        (23, 150, "2026-06-22"),  # 23 h UTC is 9 h the next morning there
        (5, -120, "2026-06-20"),
        (0, 179.5, "2026-06-21"),
        (12, -179.5, "2026-06-21"),
    ],
)
def test_solar_day_is_of_the_place(hour, lon, day):
    assert solar_day(item("a", datetime(2026, 6, 21, hour, tzinfo=UTC), lon)) == day


def test_solar_day_across_the_antimeridian():
    crossing = item("a", datetime(2026, 6, 21, 23, tzinfo=UTC))
    crossing.bbox = [179, 0, -179, 1]
    # The centre is at 180 = -180 degrees: twelve hours behind UTC.
    assert solar_day(crossing) == "2026-06-21"


def test_a_swath_over_midnight_is_one_day_and_collections_stay_apart():
    late, early = datetime(2026, 6, 21, 23, 59, tzinfo=UTC), datetime(2026, 6, 22, 0, 1, tzinfo=UTC)
    groups = group_items(
        [item("b", early, 30), item("a", late, 30), item("x", late, 30, collection="d")],
        "solar_day",
    )
    assert [[i.id for i in group.items] for group in groups] == [["a", "b"], ["x"]]
    assert groups[0].id.startswith("c_2026-06-22_")
    assert groups[1].id == "x"


def test_a_mosaics_id_does_not_depend_on_the_order():
    items = [item(name, NOON) for name in "abc"]
    assert group_items(items, "solar_day")[0].id == group_items(items[::-1], "solar_day")[0].id
    assert group_items(items, "solar_day")[0].id != group_items(items[:2], "solar_day")[0].id


def test_by_property():
    groups = group_items(
        [item("a", NOON, orbit=1), item("b", NOON, orbit=2), item("c", NOON, orbit=1)], "orbit"
    )
    assert [[i.id for i in group.items] for group in groups] == [["a", "c"], ["b"]]
    with pytest.raises(DataError, match="no property 'track'"):
        group_items([item("a", NOON, orbit=1)], "track")
