"""Members as stac-geoparquet, and back, exactly.

Our own writer, beside our own reader (`sources.geoparquet`, which says why): rustac 0.9.18 relabels
versions and cuts microseconds, stac_geoparquet 0.8.3 reads back invalid Items. What a column
cannot hold stands in the footer, so other readers find plain stac-geoparquet.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from geosam_stac.catalog.members import Document
from geosam_stac.errors import DataError
from geosam_stac.sources.geoparquet import FOOTER, parquet_documents

# The columns that the specification wants as times.
_TIMES = frozenset(
    {
        *("datetime", "start_datetime", "end_datetime", "created", "updated"),
        *("processing:datetime", "published", "expires", "unpublished"),
    }
)
_TOP = ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets")
_BBOX = ("xmin", "ymin", "xmax", "ymax")
_VERSION = "1.0.0"
_COMPRESSION = "zstd"
_MISSING = object()
INDEX_NAME = "items.parquet"


def write_index(members: Sequence[Document], *, facts: Mapping[str, Any] | None = None) -> bytes:
    """A stac-geoparquet file of Items; the same bytes for the same Items.

    `facts`: more for the footer, read back with `index_facts`.
    """
    draft = _file(members, {})
    exact: dict[str, list[Any]] = {}
    for row, (read, wanted) in enumerate(zip(read_index(draft), members, strict=True)):
        if patches := _differences(read, json.loads(json.dumps(wanted)), []):
            exact[str(row)] = patches
    footer = {**(facts or {}), **({"exact": exact} if exact else {})}
    return _file(members, footer) if footer else draft


def read_index(data: bytes, name: str = INDEX_NAME) -> list[Document]:
    """The Items of a stac-geoparquet file; DataError when it is none."""
    return [document for _, document in parquet_documents(io.BytesIO(data), name)]


def index_facts(data: bytes, name: str = INDEX_NAME) -> dict[str, Any]:
    """What a file of ours says in its footer; nothing of another's."""
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(io.BytesIO(data)).metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"the parquet file cannot be read: {error}", href=name) from error
    footer = json.loads(metadata.get(FOOTER, b"{}"))
    return footer if isinstance(footer, dict) else {}


def _file(members: Sequence[Document], footer: Mapping[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = [_row(member) for member in members]
    names = [name for name in _TOP if any(name in row for row in rows)]
    names += sorted({name for row in rows for name in row} - set(names))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    metadata = {
        b"geo": json.dumps(_geo(members)).encode(),
        b"stac-geoparquet": json.dumps({"version": _VERSION}).encode(),
    }
    if footer:
        metadata[FOOTER] = json.dumps(footer, sort_keys=True).encode()
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression=_COMPRESSION)
    return buffer.getvalue()


def _row(member: Document) -> dict[str, Any]:
    import shapely

    row: dict[str, Any] = {name: member[name] for name in _TOP if name in member}
    geometry, bbox = member.get("geometry"), member.get("bbox")
    row["geometry"] = None if geometry is None else shapely.geometry.shape(geometry).wkb
    if bbox is not None:
        half = len(bbox) // 2
        corners = (bbox[0], bbox[1], bbox[half], bbox[half + 1])
        row["bbox"] = dict(zip(_BBOX, map(float, corners), strict=True))
    if "collection" in member:
        row["collection"] = member["collection"]
    return {**member["properties"], **row}


def _column(name: str, values: list[Any]) -> Any:
    """An Arrow array; JSON text where the rows have no type in common, or one has no fields."""
    import pyarrow

    if name in _TIMES:
        moments = [_moment(value) for value in values]
        if None not in {moment for moment, value in zip(moments, values, strict=True) if value}:
            return pyarrow.array(moments, pyarrow.timestamp("us", tz="UTC"))
    try:
        array = pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        array = None
    if array is None or _has_no_fields(array.type):
        texts = [None if value is None else json.dumps(value) for value in values]
        array = pyarrow.array(texts, pyarrow.string())
    # A list that is always empty has no type of its own.
    if array.type == pyarrow.list_(pyarrow.null()):
        array = array.cast(pyarrow.list_(pyarrow.string()))
    if array.type == pyarrow.null():
        array = array.cast(pyarrow.string())
    return array


def _has_no_fields(kind: Any) -> bool:
    """Whether a type holds a struct of nothing, which Parquet has no way to write."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(
            _has_no_fields(kind.field(index).type) for index in range(kind.num_fields)
        )
    return bool(pyarrow.types.is_list(kind) and _has_no_fields(kind.value_type))


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _geo(members: Sequence[Document]) -> dict[str, Any]:
    """GeoParquet 1.1: longitude and latitude (the default), and the column of boxes."""
    kinds = {member["geometry"]["type"] for member in members if member.get("geometry")}
    covering = {"bbox": {corner: ["bbox", corner] for corner in _BBOX}}
    column = {"encoding": "WKB", "geometry_types": sorted(kinds), "covering": covering}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _differences(read: Any, wanted: Any, path: list[Any]) -> list[list[Any]]:
    """[path, value] of all that must be set in `read` to make it `wanted`."""
    if isinstance(read, dict) and isinstance(wanted, dict) and set(read) <= set(wanted):
        return [
            patch
            for key, value in wanted.items()
            for patch in _differences(read.get(key, _MISSING), value, [*path, key])
        ]
    if isinstance(read, list) and isinstance(wanted, list) and len(read) == len(wanted):
        return [
            patch
            for index, value in enumerate(wanted)
            for patch in _differences(read[index], value, [*path, index])
        ]
    same = (
        read is not _MISSING
        and read == wanted
        and isinstance(read, bool) == isinstance(wanted, bool)
    )
    return [] if same else [[path, wanted]]
