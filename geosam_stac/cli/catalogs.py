"""`geosam-stac catalogs`: the profiles of public STAC APIs, their collections and presets."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import Json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from geosam_stac.sources.profiles import CollectionProfile, Preset, Profile

app = typer.Typer(
    help="Profiles of public STAC APIs: list them, show their presets.", no_args_is_help=True
)


# Columns where there is no terminal to ask: wide enough for most presets a line.
PIPE_WIDTH = 120


@app.command("list")
def list_catalogs(*, json_lines: Json = False) -> None:
    """Every profile: name, signer, collections."""
    from geosam_stac.sources.profiles import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if json_lines:
        for profile in profiles:
            console.result_json(
                {
                    "name": profile.name,
                    "title": profile.title,
                    "url": profile.url,
                    "signer": profile.signer,
                    "requester_pays": profile.requester_pays,
                    "credentials": list(profile.credentials),
                    "collections": list(profile.collections),
                }
            )
        return
    table = _grid("catalog", "signer", "collections")
    for profile in profiles:
        _row(table, profile.name, profile.signer, ", ".join(profile.collections))
    _print([table])


@app.command("show")
def show_catalog(
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Catalog, as `catalogs list` names it.")
    ],
    collection: Annotated[
        str | None, typer.Option("--collection", metavar="ID", help="This collection alone.")
    ] = None,
    json_lines: Json = False,
) -> None:
    """A profile: how its assets are read, its collections, their presets, and where it is from."""
    from geosam_stac.sources.profiles import find_collection, load_profile

    profile = load_profile(name)
    chosen = [find_collection(profile, collection)] if collection else _distinct(profile)
    if json_lines:
        document = profile.as_dict()
        if collection:
            document["collections"] = {collection: document["collections"][collection]}
        console.result_json(document)
        return
    parts: list[RenderableType] = [profile.title, _profile_facts(profile)]
    for entry in chosen:
        parts += ["", *_collection_parts(profile, entry)]
    _print(parts)


def _alike(profile: Profile, entry: CollectionProfile) -> list[CollectionProfile]:
    """The collections that one entry of the file describes."""
    return [
        other
        for other in profile.collections.values()
        if (other.title, other.source) == (entry.title, entry.source)
    ]


def _distinct(profile: Profile) -> list[CollectionProfile]:
    """The collections; of those that are alike the first."""
    return [entry for entry in profile.collections.values() if entry is _alike(profile, entry)[0]]


def _profile_facts(profile: Profile) -> Table:
    return _facts(
        [
            ("name", profile.name),
            ("url", profile.url),
            ("signer", profile.signer),
            ("requester pays", "yes" if profile.requester_pays else "no"),
            ("reads the hrefs", f"alternate.{profile.alternate}" if profile.alternate else None),
            ("credentials", ", ".join(profile.credentials) or "none needed"),
            ("sent only to", ", ".join(profile.token_hosts)),
            ("GDAL", _gdal(profile.gdal.items())),
            ("notes", profile.notes),
            ("source", profile.source),
        ]
    )


class _Footnotes:
    """Sources by number, in the order in which they are first cited."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cite(self, figure: str | None, source: str | None) -> str:
        if not figure or source is None:
            return figure or ""
        return f"{figure} [{self.numbers.setdefault(source, len(self.numbers) + 1)}]"


def _collection_parts(profile: Profile, entry: CollectionProfile) -> list[RenderableType]:
    notes = _Footnotes()
    differs = entry.signer != profile.signer
    figures = (
        ("resolution", _metres(entry.resolution_m), "resolution_m"),
        ("nodata", _number(entry.nodata), "nodata"),
        ("data type", entry.dtype, "dtype"),
        ("cloud mask", entry.mask, "mask"),
    )
    facts = _facts(
        [
            ("signer", entry.signer if differs else None),
            ("requester pays", "yes" if differs and entry.requester_pays else None),
            ("credentials", ", ".join(entry.credentials) if differs else None),
            ("GDAL", _gdal(set(entry.gdal.items()) - set(profile.gdal.items()))),
            *((label, notes.cite(said, entry.sources.get(name))) for label, said, name in figures),
            ("notes", entry.notes),
            ("source", entry.source),
        ]
    )
    table = _grid("preset (* default)", "value range", "bands or expression")
    for preset in entry.presets.values():
        for row in _preset_rows(preset, entry, notes):
            _row(table, *row)
    ids = ", ".join(other.id for other in _alike(profile, entry))
    sources = _facts(
        ((f"[{number}]", source) for source, number in notes.numbers.items()), label_width=4
    )
    return [f"{ids}: {entry.title}", facts, table, sources]


def _preset_rows(
    preset: Preset, entry: CollectionProfile, notes: _Footnotes
) -> list[tuple[str, str, str]]:
    """The preset, and a line for each kind of Item that needs another figure."""
    what = "bands" if preset.bands else "expression" if preset.expression else "index"
    figure = ", ".join(preset.bands) if preset.bands else preset.expression or preset.index
    value_range = notes.cite(preset.value_range_text, preset.sources.get("value_range")) or "auto"
    label = preset.name + (" *" if preset.name == entry.default else "")
    figure = notes.cite(figure, preset.sources[what])
    if preset.resolution_m != entry.resolution_m:
        at = notes.cite(_metres(preset.resolution_m), preset.sources["resolution_m"])
        figure += f" at {at}"
    rows = [(label, value_range, figure)]
    for variant in preset.variants:
        low_high = ",".join(f"{number:.10g}" for number in variant.value_range or ())
        expression = notes.cite(variant.expression, variant.source)
        where = f"where {variant.property} < {variant.below:g}"
        rows.append(("", notes.cite(low_high, variant.source), f"{expression} {where}".strip()))
    return rows


def _grid(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def _facts(facts: Iterable[tuple[str, str | None]], *, label_width: int = 15) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, min_width=label_width)
    grid.add_column(overflow="fold")
    for label, value in facts:
        if value:
            # Notes are wrapped in the file: here the terminal does it.
            _row(grid, label, " ".join(value.split()))
    return grid


def _row(table: Table, *cells: str) -> None:
    from rich.text import Text

    # As text: brackets are no markup here.
    table.add_row(*map(Text, cells))


def _print(parts: Iterable[RenderableType]) -> None:
    from rich.console import Console

    text = io.StringIO()
    # The terminal's width, or COLUMNS.
    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    Console(file=text, width=width).print(*parts, sep="\n", markup=False, highlight=False)
    for line in text.getvalue().splitlines():
        console.result(line.rstrip())


def _gdal(settings: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(settings))


def _metres(resolution_m: float | None) -> str | None:
    return None if resolution_m is None else f"{resolution_m:g} m"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"
