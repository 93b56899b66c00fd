"""The chips of a scene as GeoParquet: `manifest.parquet` and `skipped.parquet`.

SPEC-geosam section 3: geosam's own columns first, in its order, then ours. Must not import
storage, features or item.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa

from geosam_stac.errors import DataError
from geosam_stac.footprint import crs_code
from geosam_stac.types import ChipRef, EncoderSpec, ManifestRow, SkippedRow

if TYPE_CHECKING:
    from odc.geo.crs import CRS


class Column(NamedTuple):
    """One column, as STAC's `table:columns` describes it; `type` is Parquet's."""

    name: str
    type: str
    description: str


PRIMARY_GEOMETRY = "geometry"
COLUMNS = (
    Column("feature_path", "string", "Absolute local path or URL of the feature file"),
    Column("chip_id", "string", "Chip id, row-major"),
    Column("source_path", "string", "Raster of the first band, unsigned"),
    Column("checkpoint_path", "string", "Geo-SAM base name of the model's weights"),
    Column("model_type", "string", "sam, sam2 or sam3"),
    Column("transform", "string", "Affine a,b,c,d,e,f of the chip, JSON list"),
    Column("shape", "string", "Rows and columns of the chip in px, JSON list"),
    Column("crs", "string", "CRS of the scene: authority code, else WKT2"),
    Column("dst_shape", "string", "Rows and columns of the model's input in px, JSON list"),
    Column("chip_center_x", "double", "Centre of the chip in the scene's CRS"),
    Column("chip_center_y", "double", "Centre of the chip in the scene's CRS"),
    Column(PRIMARY_GEOMETRY, "binary", "Box of the chip in the scene's CRS, WKB"),
    Column("feature_href", "string", "Feature file, relative to this manifest"),
    Column("row", "int32", "Row of the chip in the chip grid"),
    Column("col", "int32", "Column of the chip in the chip grid"),
    Column("valid_fraction", "float", "Fraction of the chip's pixels that are valid, 0 to 1"),
    Column("bytes", "int64", "Size of the feature file"),
    Column("sha256", "string", "sha256 of the feature file, hex"),
)
SKIPPED_COLUMNS = (
    Column("chip_id", "string", "Chip id, row-major"),
    Column("row", "int32", "Row of the chip in the chip grid"),
    Column("col", "int32", "Column of the chip in the chip grid"),
    Column("reason", "string", "Why the chip has no feature"),
    Column("valid_fraction", "float", "Fraction of the chip's pixels that are valid, 0 to 1"),
    Column(PRIMARY_GEOMETRY, "binary", "Box of the chip in the scene's CRS, WKB"),
)
_PANDAS_TYPES: Mapping[str, str] = {
    "string": "str",
    "double": "float64",
    "float": "float32",
    "int32": "int32",
    "int64": "int64",
}


def to_parquet(
    rows: Iterable[ManifestRow],
    *,
    crs: CRS,
    spec: EncoderSpec,
    source_path: str,
    feature_path: Callable[[str], str],
) -> bytes:
    """Write the manifest; the same rows in any order give the same bytes.

    Parameters
    ----------
    rows
        The encoded chips; may be none, the schema is kept.
    crs
        The scene's CRS, in which the chips' boxes stand.
    spec
        The encoder: family, checkpoint's name, input size.
    source_path
        Unsigned href of the first band's raster, as geosam has it.
    feature_path
        Chip id -> absolute local path or URL of its feature file.

    Returns
    -------
    bytes
        GeoParquet with the columns of `COLUMNS`, sorted by chip id.
    """
    crs_text = _crs_text(crs)
    dst_shape = json.dumps([spec.input_px, spec.input_px])
    records = []
    for row in sorted(rows, key=lambda row: row.ref.chip_id):
        affine = row.ref.geobox.affine
        window = row.ref.window
        # Written out: affine 3 deprecates `*`, affine 2 has no `@`.
        half_x, half_y = window.width / 2, window.height / 2
        records.append(
            {
                **_place(row.ref),
                "feature_path": feature_path(row.ref.chip_id),
                "source_path": source_path,
                "checkpoint_path": spec.checkpoint_name,
                "model_type": spec.family,
                # geosam 0.1.3 reads it back as Affine(*values): a, b, c, d, e, f.
                "transform": json.dumps([float(value) for value in affine[:6]]),
                "shape": json.dumps([window.height, window.width]),
                "crs": crs_text,
                "dst_shape": dst_shape,
                "chip_center_x": affine.c + affine.a * half_x + affine.b * half_y,
                "chip_center_y": affine.f + affine.d * half_x + affine.e * half_y,
                "feature_href": row.feature_href,
                "valid_fraction": row.valid_fraction,
                "bytes": row.bytes,
                "sha256": row.sha256,
            }
        )
    return _write(records, COLUMNS, crs)


def skipped_parquet(rows: Iterable[SkippedRow], *, crs: CRS) -> bytes:
    """Write the chips without a feature, with their reasons: columns of `SKIPPED_COLUMNS`."""
    records = [
        {**_place(row.ref), "reason": row.reason, "valid_fraction": row.valid_fraction}
        for row in sorted(rows, key=lambda row: row.ref.chip_id)
    ]
    return _write(records, SKIPPED_COLUMNS, crs)


def read(data: bytes) -> gpd.GeoDataFrame:
    """Read a manifest.

    Raises
    ------
    DataError
        No GeoParquet file, or a column of `COLUMNS` is missing.
    """
    return _read(data, "a manifest", COLUMNS)


def read_skipped(data: bytes) -> gpd.GeoDataFrame:
    """Read the table of chips without a feature.

    Raises
    ------
    DataError
        No GeoParquet file, or a column of `SKIPPED_COLUMNS` is missing.
    """
    return _read(data, "a table of skipped chips", SKIPPED_COLUMNS)


def from_frame(frame: gpd.GeoDataFrame) -> bytes:
    """Write a manifest or a table of skipped chips that was read, and changed, again."""
    buffer = io.BytesIO()
    # No covering bbox: geosam and table:columns know no such column.
    frame.to_parquet(buffer, index=False, compression="zstd", geometry_encoding="WKB")
    return buffer.getvalue()


def _read(data: bytes, what: str, columns: tuple[Column, ...]) -> gpd.GeoDataFrame:
    try:
        frame = gpd.read_parquet(io.BytesIO(data))
    except (pa.ArrowException, ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(
            f"{what} cannot be read",
            expected="GeoParquet",
            got=type(error).__name__,
            hint="Encode the scene again with --overwrite",
        ) from error
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(f"{what} lacks columns", expected=", ".join(missing))
    return frame


def _place(ref: ChipRef) -> dict[str, Any]:
    return {
        "chip_id": ref.chip_id,
        "row": ref.row,
        "col": ref.col,
        PRIMARY_GEOMETRY: ref.geobox.extent.geom,
    }


def _write(records: list[dict[str, Any]], columns: tuple[Column, ...], crs: CRS) -> bytes:
    # Types are set column by column: what pandas would infer differs between no rows and some.
    data: dict[str, Any] = {}
    for column in columns:
        values = [record[column.name] for record in records]
        if column.name == PRIMARY_GEOMETRY:
            data[column.name] = gpd.GeoSeries(values, crs=crs.proj)
        elif column.type == "string":
            data[column.name] = pd.Series(values, dtype=_PANDAS_TYPES["string"])
        else:
            data[column.name] = np.asarray(values, dtype=_PANDAS_TYPES[column.type])
    return from_frame(gpd.GeoDataFrame(data, geometry=PRIMARY_GEOMETRY, crs=crs.proj))


def _crs_text(crs: CRS) -> str:
    return crs_code(crs) or str(crs.proj.to_wkt("WKT2_2019"))
