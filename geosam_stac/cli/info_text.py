"""The facts of `geosam-stac info` as lines of text, at 80 columns and wider."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PIPE_WIDTH = 80
LABEL_WIDTH = 12
UNTOLD = "not told by the Item"


def feature_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lines on an Item of ours."""
    sha256 = facts["weights_sha256"]
    low_high = facts["value_range"]
    what = facts["expression"] or facts["index"]
    bands = ", ".join(map(str, facts["bands"] or ()))
    lost = [
        f"{facts[name]:,} {name[6:]}" for name in ("chips_skipped", "chips_failed") if facts[name]
    ]
    size = facts["feature_bytes"]
    tensors = ", ".join(
        f"{tensor['name']} {'x'.join(map(str, tensor['shape']))}"
        for tensor in facts["features"] or ()
    )
    return _fact_lines(
        [
            *_identity_pairs(facts),
            ("model", facts["model"]),
            ("weights", f"{facts['weights']}, sha256 {sha256[:12]}" if sha256 else None),
            ("bands", f"{what} over {bands}" if what else bands),
            ("mask", facts["mask"]),
            (
                "values",
                f"{low_high[0]:g} to {low_high[1]:g} became 0 to 255"
                if low_high
                else "8-bit values as they are",
            ),
            (
                "grid",
                f"{facts['resolution']:g} {_short_unit(facts['crs'])}in {facts['crs']}"
                if facts["resolution"]
                else facts["crs"],
            ),
            (
                "chips",
                ", ".join(
                    [
                        f"{facts['chips'] or 0:,} of {facts['chip_size']} px at stride "
                        f"{facts['stride']}",
                        *lost,
                    ]
                ),
            ),
            ("tensors", f"{tensors} in {facts['dtype']}, computed in {facts['precision']}"),
            ("size", f"{size / 1e6:,.1f} MB of features" if size is not None else None),
            ("source", ", ".join(facts["source_hrefs"] or facts["source_items"] or ())),
            ("manifest", facts["manifest"] or "none"),
        ]
    )


def _short_unit(code: str | None) -> str:
    """`m `, `degrees ` or, of a CRS that cannot be told, nothing."""
    from odc.geo.crs import CRS
    from pyproj.exceptions import CRSError

    try:
        unit = CRS(code).units[0] if code else ""
    except (CRSError, ValueError):
        return ""
    short = {"metre": "m", "degrees_north": "degrees", "degree": "degrees"}.get(unit, str(unit))
    return f"{short} " if short else ""


def _identity_pairs(facts: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    bbox = facts["bbox"]
    interval = " to ".join(
        str(facts[name]) for name in ("start_datetime", "end_datetime") if facts[name]
    )
    return [
        ("item", facts["id"]),
        ("collection", facts["collection"]),
        ("datetime", facts["datetime"] or interval or None),
        ("bounds", f"{','.join(f'{n:.6g}' for n in bbox)} (W,S,E,N)" if bbox else "none"),
    ]


def source_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lines on a source Item: its bands, and what a default encode would make of it."""
    presets = [
        name + (" (default)" if name == facts["default_preset"] else "")
        for name in facts["presets"]
    ]
    lines = _fact_lines(
        [
            *_identity_pairs(facts),
            ("catalog", facts["catalog"] or "none that is known"),
            ("presets", ", ".join(presets)),
        ]
    )
    lines += ["", *_band_lines(facts["bands"])]
    reasons: dict[str, list[str]] = {}
    for key, why in facts["not_told"].items():
        reasons.setdefault(why, []).append(key)
    notes = [f"headers not read of {', '.join(keys)}: {why}" for why, keys in reasons.items()]
    if any(band["offset"] for band in facts["bands"]):
        notes.append("expressions take stored values; --scaled applies scale and offset")
    lines += _fact_lines([("note", note) for note in notes])
    plan = facts["encode"]
    lines += ["", "A default encode"]
    if plan is None:
        return lines + _fact_lines([("fails", facts["encode_problem"])])
    return lines + _fact_lines(
        [
            ("bands", ", ".join(plan["bands"])),
            (
                "grid",
                f"{plan['width']:,} x {plan['height']:,} px of {plan['resolution']:g} "
                f"{plan['unit']} in {plan['crs']}",
            ),
            (
                "chips",
                f"{plan['chips']:,} ({plan['rows']:,} x {plan['cols']:,}) of {plan['chip_px']} px "
                f"at stride {plan['stride_px']}",
            ),
            ("model", plan["model"]),
            *(("note", notice) for notice in plan["notices"]),
        ]
    )


def _band_lines(bands: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table, its rows under the grid that they share."""
    header = ("band", "name", "common name", "dtype", "nodata", "scale", "offset")
    grids: dict[str, list[tuple[str, ...]]] = {}
    for band in bands:
        plain = (band["scale"], band["offset"]) == (1.0, 0.0)
        row = (
            band["key"],
            band["name"] if band["name"] != band["key"] else "",
            band["common_name"] or "",
            band["dtype"] or "not told",
            "" if band["nodata"] is None else _number(band["nodata"]),
            "" if plain else _number(band["scale"]),
            "" if plain else _number(band["offset"]),
        )
        grids.setdefault(_grid_text(band), []).append(row)
    rows = [header, *(row for group in grids.values() for row in group)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    # An empty column says nothing.
    shown = [c for c in range(len(header)) if any(row[c] for row in rows[1:])]

    def line(row: tuple[str, ...]) -> str:
        return "  " + "  ".join(row[column].ljust(widths[column]) for column in shown).rstrip()

    lines = [line(header)]
    for grid, group in grids.items():
        lines += [grid, *map(line, group)]
    return lines


def _grid_text(band: Mapping[str, Any]) -> str:
    if band["shape"] is None:
        return f"grid {UNTOLD}"
    height, width = band["shape"]
    return f"{width:,} x {height:,} px of {band['resolution']:g} {band['unit']} in {band['crs']}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _fact_lines(pairs: Iterable[tuple[str, str | None]]) -> list[str]:
    width = max(40, shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)
    lines: list[str] = []
    for label, value in pairs:
        if value:
            lines += textwrap.wrap(
                " ".join(str(value).split()),
                width,
                initial_indent=label.ljust(LABEL_WIDTH),
                subsequent_indent=" " * LABEL_WIDTH,
                # An href stays whole, to be copied.
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines
