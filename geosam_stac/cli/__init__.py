"""The command line: argv -> EncodeConfig -> one call. One module a command group."""

from __future__ import annotations

from typing import Annotated

import typer


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from geosam_stac.cli import console

        console.result(f"geosam-stac {version('geosam-stac')}")
        raise typer.Exit


def _app() -> typer.Typer:
    from geosam_stac.cli import encode, models

    app = typer.Typer(
        name="geosam-stac",
        help="STAC imagery in, reusable SAM features out, described by STAC again.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def root(
        _version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_show_version, is_eager=True, help="Show the version."
            ),
        ] = False,
    ) -> None: ...

    app.command("encode")(encode.encode)
    app.add_typer(models.app, name="models")
    return app


def main() -> None:
    """Entry point of the console script."""
    _app()()
