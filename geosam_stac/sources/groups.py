"""Items that become one mosaic: grouped by id, solar day, or a property. Pure.

The time of an Item is that of its centre on the ground: a swath that crosses midnight UTC is one
solar day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pystac

from geosam_stac.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Group:
    """Items of one mosaic, oldest first (ties by id). `id` names the scene that they make."""

    id: str
    items: tuple[pystac.Item, ...]


def group_items(items: Iterable[pystac.Item], groupby: str) -> list[Group]:
    """Gather Items; the groups come in the order of their first Item.

    Parameters
    ----------
    items
        Source Items.
    groupby
        `id`: each Item alone. `solar_day`: one group a collection and day of local solar time.
        Else the name of a property: one group a collection and value.

    Raises
    ------
    DataError
        An Item lacks the property, or its datetime or place.
    """
    if groupby == "id":
        return [Group(id=item.id, items=(item,)) for item in items]
    groups: dict[tuple[str, str], list[pystac.Item]] = {}
    for item in items:
        key = solar_day(item) if groupby == "solar_day" else _property(item, groupby)
        groups.setdefault((item.collection_id or "", key), []).append(item)
    return [
        Group(id=_mosaic_id(collection, key, members), items=tuple(sorted(members, key=_order)))
        for (collection, key), members in groups.items()
    ]


def solar_day(item: pystac.Item) -> str:
    """The Item's day in local solar time, `YYYY-MM-DD`: UTC plus an hour for 15 degrees east.

    As `odc.stac.load(groupby="solar_day")` has it, with the Item's own centre.
    """
    moment = _moment(item)
    if moment is None or not item.bbox or len(item.bbox) not in (4, 6):
        raise DataError("--groupby solar_day needs a datetime and a bbox", item=item.id)
    west, east = item.bbox[0], item.bbox[len(item.bbox) // 2]
    if west > east:
        east += 360.0  # across the antimeridian
    centre = (west + east) / 2
    longitude = (centre + 180.0) % 360.0 - 180.0
    return (moment + timedelta(hours=longitude / 15.0)).date().isoformat()


def _property(item: pystac.Item, name: str) -> str:
    value = item.properties.get(name)
    if value is None or isinstance(value, dict | list):
        raise DataError(
            f"the Item has no property {name!r} to group by",
            item=item.id,
            hint=f"There are: {', '.join(sorted(item.properties))}",
        )
    return str(value)


def _moment(item: pystac.Item) -> datetime | None:
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _order(item: pystac.Item) -> tuple[datetime, str]:
    return (_moment(item) or datetime.max.replace(tzinfo=UTC), item.id)


def _mosaic_id(collection: str, key: str, members: list[pystac.Item]) -> str:
    """A group of one keeps its Item's id; a mosaic hashes its sorted source ids."""
    if len(members) == 1:
        return members[0].id
    ids = "\n".join(sorted(item.id for item in members))
    digest = hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "_".join(part for part in (collection, key, digest) if part)
