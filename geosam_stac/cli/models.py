"""`geosam-stac models`: which encoders there are, their weights fetched and verified."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from geosam_stac.cli import console
from geosam_stac.cli.guard import guarded
from geosam_stac.encoders.checkpoints import cached_path, default_cache_dir, fetch, verify
from geosam_stac.encoders.registry import MODELS, find_model
from geosam_stac.errors import ConfigurationError

app = typer.Typer(help="The encoders: list, fetch and verify their weights.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Results as JSON lines.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")]


@app.command("list")
@guarded
def list_models(*, json_lines: Json = False) -> None:
    """Every model: size, licence, checksum, and where it lies if it is fetched."""
    cache_dir = default_cache_dir(os.environ)
    rows = []
    for entry in MODELS:
        path = cached_path(entry, cache_dir)
        rows.append(
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "family": entry.family,
                "megabytes": round(entry.size_bytes / 1e6),
                "licence": entry.licence,
                "input_px": entry.input_px,
                "sha256": entry.sha256,
                "sha256_source": entry.sha256_source,
                "url": entry.url,
                "path": str(path) if path.is_file() else None,
            }
        )
    if json_lines:
        for row in rows:
            console.result_json(row)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "alias", "MB", "licence", "sha256", "fetched to"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=True)
    for row, entry in zip(rows, MODELS, strict=True):
        sha256 = entry.sha256[:12] if entry.sha256 else "pinned on fetch"
        table.add_row(
            entry.name,
            entry.aliases[0],
            str(row["megabytes"]),
            entry.licence,
            sha256,
            str(row["path"] or "-"),
        )
    # A pipe has no width: a wide table keeps one line a model.
    out = Console()
    Console(width=None if out.is_terminal else 200).print(table)


@app.command("fetch")
@guarded
def fetch_model(
    *, name: Annotated[str, typer.Argument(help="Model name or alias.")], quiet: Quiet = False
) -> None:
    """Fetch a model's weights into the cache; goes on where it broke off."""
    console.set_verbosity(quiet=quiet, verbose=False)
    with console.ProgressSink() as sink:
        path = fetch(find_model(name), cache_dir=default_cache_dir(os.environ), sink=sink)
    console.result(str(path))


@app.command("verify")
@guarded
def verify_model(
    *, what: Annotated[str, typer.Argument(help="Model name, alias, or checkpoint file.")]
) -> None:
    """Compare weights with their sha256."""
    path = Path(what)
    found = verify(path if path.is_file() else find_model(what), default_cache_dir(os.environ))
    console.result(f"{found.sha256}  {found.path}")
    if found.ok is False:
        raise ConfigurationError(
            "the checkpoint is not the one that it should be",
            href=str(found.path),
            expected=f"{found.expected} ({found.source})",
            got=found.sha256,
            hint="Delete it and fetch it again",
        )
    console.note(
        "as published" if found.ok else "nothing to compare with",
    )
    console.note(found.source)
