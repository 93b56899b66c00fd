"""`geosam-stac models`: which encoders there are, their weights fetched and verified."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import Json, Quiet, Verbose
from geosam_stac.errors import ConfigurationError

app = typer.Typer(help="The encoders: list, fetch and verify their weights.", no_args_is_help=True)


@app.command("list")
def list_models(*, json_lines: Json = False) -> None:
    """Every model: size, licence, sha256, and where it lies if it is fetched."""
    from geosam_stac.encoders.checkpoints import cached_path, default_cache_dir
    from geosam_stac.encoders.registry import MODELS

    cache_dir = default_cache_dir(os.environ)
    rows: list[dict[str, Any]] = []
    for entry in MODELS:
        path = cached_path(entry, cache_dir)
        rows.append(
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "family": entry.family,
                "size_bytes": entry.size_bytes,
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
    for line in _table(rows):
        console.result(line)
    console.note(f"fetched models lie in {cache_dir}")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "alias", "MB", "licence", "sha256", "fetched"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            row["aliases"][0],
            f"{row['size_bytes'] / 1e6:,.0f}",
            row["licence"],
            row["sha256"][:12] if row["sha256"] else "on first fetch",
            "yes" if row["path"] else "-",
        )
    # Wide enough for any row: one line a model, on a terminal as in a pipe.
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


@app.command("fetch")
def fetch_model(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model name or alias.")],
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fetch a model's weights into the cache; goes on where it broke off."""
    from geosam_stac.encoders.checkpoints import (
        default_cache_dir,
        fetch,
        file_sha256,
        hugging_face_token,
    )
    from geosam_stac.encoders.registry import find_model

    console.set_verbosity(quiet=quiet, verbose=verbose)
    entry = find_model(name)
    with console.ProgressSink() as sink:
        path = fetch(
            entry,
            cache_dir=default_cache_dir(os.environ),
            sink=sink,
            token=hugging_face_token(os.environ),
        )
    if json_lines:
        console.result_json({"name": entry.name, "path": str(path), "sha256": file_sha256(path)})
    else:
        console.result(str(path))


@app.command("verify")
def verify_model(
    *,
    what: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="Model name, alias, or checkpoint file.")
    ],
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a model's weights, or a checkpoint file, with the published sha256."""
    from geosam_stac.encoders.checkpoints import default_cache_dir, verify
    from geosam_stac.encoders.registry import find_model

    console.set_verbosity(quiet=quiet, verbose=verbose)
    path = Path(what).expanduser()
    named_file = path.is_file() or path.name != what
    found = verify(path if named_file else find_model(what), default_cache_dir(os.environ))
    if json_lines:
        console.result_json(
            {
                "path": str(found.path),
                "sha256": found.sha256,
                "expected": found.expected,
                "source": found.source,
                "ok": found.ok,
            }
        )
    else:
        console.result(f"{found.sha256}  {found.path}")
    if found.ok is False:
        raise ConfigurationError(
            "the checkpoint is not the one that it should be",
            href=str(found.path),
            expected=f"sha256 {found.expected} ({found.source})",
            got=found.sha256,
            hint="Delete it and fetch it again",
        )
    if found.ok is None:
        raise ConfigurationError(
            "the checkpoint is none of the published ones",
            href=str(found.path),
            got=f"sha256 {found.sha256}",
            hint="Weights of your own have nothing to be compared with; others are damaged or "
            "incomplete: fetch them again",
        )
    console.note(f"as it should be: {found.source}")
