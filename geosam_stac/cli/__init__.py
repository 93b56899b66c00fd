"""The command line: argv -> EncodeConfig -> one call. One module a command group.

Imports no torch and no rasterio: a command's own work is imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

EPILOG = (
    "Exit codes: 0 done, 2 usage, 3 partly done, 65 data at fault, 74 output not writable, "
    "75 try again, 78 configuration, 130 and 143 interrupted."
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from geosam_stac.cli import console

        console.result(f"geosam-stac {version('geosam-stac')}")
        raise typer.Exit


def app() -> typer.Typer:
    """The whole command line."""
    from geosam_stac.cli import (
        catalog,
        catalogs,
        config,
        doctor,
        encode,
        info,
        jobs,
        models,
        plan,
        preview,
        publish,
        pull,
        report,
        search,
        segment,
        shards,
        verify,
    )
    from geosam_stac.cli.environment import warn_of_unknown

    root = typer.Typer(
        name="geosam-stac",
        help="STAC imagery in, reusable SAM features out, described by STAC again.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @root.callback()
    def options(
        ctx: typer.Context,
        _version: Annotated[
            bool,
            typer.Option(
                "--version",
                metavar=" ",
                callback=_show_version,
                is_eager=True,
                help="Show the version.",
            ),
        ] = False,
    ) -> None:
        warn_of_unknown(ctx.command, os.environ)

    root.command("encode", epilog=encode.EPILOG)(encode.encode)
    root.command("finalize")(shards.finalize)
    root.command("plan", epilog=plan.EPILOG)(plan.plan)
    root.command("info")(info.info)
    root.command("doctor")(doctor.doctor)
    root.command("pull")(pull.pull)
    root.command("verify")(verify.verify)
    root.command("segment", epilog=segment.EPILOG)(segment.segment)
    root.command("preview")(preview.preview)
    root.command("report")(report.report)
    root.command("search", epilog=search.EPILOG)(search.search)
    root.command("publish")(publish.publish)
    root.add_typer(catalog.app, name="catalog")
    root.add_typer(models.app, name="models")
    root.add_typer(config.app, name="config")
    root.add_typer(catalogs.app, name="catalogs")
    root.add_typer(jobs.app, name="jobs")
    return root


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; leaves with the exit codes of SPEC-cli."""
    from geosam_stac.cli.guard import run

    sys.exit(run(app(), sys.argv[1:] if argv is None else argv))
