"""`geosam-stac doctor`: whether all is there that a run needs."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.guard import failed
from geosam_stac.cli.options import Json


def doctor(
    *,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="The device that must be there.")
    ] = "auto",
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="PATH|URL", help="Try to write there: one small object, deleted again."
        ),
    ] = None,
    json_lines: Json = False,
) -> None:
    """Show versions, devices, fetched weights and credentials found (never their values).

    Exits with the code of the first thing that is not as it must be: 78 for the machine, 74 or 75
    for the output.
    """
    from geosam_stac.doctor import examine
    from geosam_stac.encoders.checkpoints import default_cache_dir

    code = 0
    cache_dir = default_cache_dir(os.environ)
    for check in examine(os.environ, cache_dir=cache_dir, device=device, out=out):
        if json_lines:
            said = None if check.error is None else str(check.error)
            console.result_json({"check": check.name, "found": check.found, "error": said})
        else:
            console.result(f"{check.name:12} {check.found}")
        if check.error is not None:
            exit_code = failed(check.error)
            code = code or exit_code
    if code:
        raise SystemExit(code)
