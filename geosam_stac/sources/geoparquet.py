"""stac-geoparquet read back as the JSON documents of Items, a batch of rows at a time.

Our own conversion: of the libraries, stac_geoparquet 0.8.3 reads back invalid Items, and rustac
0.9.18 calls STAC 1.0 Items 1.1.0 (with `eo:bands` still in them) and cuts microseconds. Must not
import its siblings.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from geosam_stac.errors import DataError

PARQUET_MAGIC = b"PAR1"
BATCH_ROWS = 64
FOOTER = b"geosam-stac"
"""Key of what our own files say in the footer: {"exact": {row: [[path, value], ...]}}, what the
columns cannot hold of an Item (a null that is written, a time's own spelling)."""

# stac-geoparquet 1.0: these columns stand beside `properties`, all others inside it.
_TOP_LEVEL = ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets")
# Writers that find no common schema for these keep them as JSON text.
_MAYBE_TEXT = ("assets", "links", "geometry", "proj:projjson")


def parquet_documents(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("row N", Item document) for each row; `name` is the file's, for errors.

    Raises
    ------
    DataError
        The file is damaged, or is another kind of parquet.
    """
    import pyarrow
    from pyarrow import parquet

    source = stream if stream.seekable() else io.BytesIO(stream.read())
    row = 0
    try:
        file = parquet.ParquetFile(source)
        names = file.schema_arrow.names
        if not {"id", "assets"} <= set(names):
            raise DataError(
                "this parquet file holds no STAC Items",
                href=name,
                expected="stac-geoparquet, with the columns id and assets",
                got=", ".join(names),
            )
        exact = _footer(file).get("exact", {})
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for record in batch.to_pylist():
                yield f"row {row}", _exact(_item_document(record), exact.get(str(row), ()))
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"the parquet file cannot be read: {error}", href=name) from error


def _footer(file: Any) -> dict[str, Any]:
    """What a file of ours says beside its columns; nothing of another's."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        footer = json.loads((file.metadata.metadata or {})[FOOTER])
        return footer if isinstance(footer, dict) else {}
    return {}


def _exact(document: dict[str, Any], patches: Any) -> dict[str, Any]:
    """The document with the values of the footer in their places."""
    for path, value in patches:
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value
    return document


def _item_document(row: dict[str, Any]) -> dict[str, Any]:
    """A row as an Item. What an Item lacks is null in its row, so nulls are dropped."""
    values = {name: _plain(name, value) for name, value in row.items() if value is not None}
    document: dict[str, Any] = {"type": "Feature", "stac_version": "1.0.0", "links": []}
    document |= {name: values.pop(name) for name in _TOP_LEVEL if name in values}
    document["geometry"] = values.pop("geometry", None)
    if (bbox := values.pop("bbox", None)) is not None:
        document["bbox"] = _bbox(bbox)
    # STAC wants a datetime, if only null beside a range.
    document["properties"] = {"datetime": None} | values
    return document


def _plain(name: str, value: Any) -> Any:
    result = value
    if isinstance(value, dict):
        result = {key: _plain(key, inner) for key, inner in value.items() if inner is not None}
    elif isinstance(value, list):
        # An Arrow map comes as a list of pairs.
        is_map = bool(value) and all(isinstance(entry, tuple) for entry in value)
        result = _plain(name, dict(value)) if is_map else [_plain("", entry) for entry in value]
    elif isinstance(value, bytes):
        result = _geometry(value)
    elif isinstance(value, datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        result = moment.isoformat().replace("+00:00", "Z")
    elif isinstance(value, str) and name in _MAYBE_TEXT:
        with contextlib.suppress(json.JSONDecodeError):
            result = json.loads(value)
    return result


def _geometry(wkb: bytes) -> Any:
    import shapely

    shape = shapely.from_wkb(wkb, on_invalid="ignore")
    return None if shape is None else json.loads(shapely.to_geojson(shape))


def _bbox(bbox: Any) -> Any:
    if not isinstance(bbox, dict):
        return bbox
    order = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
    return [bbox[name] for name in order if name in bbox]
