"""`geosam-stac config show`: which options are in force, and where each came from."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator
from typing import Any

import typer

from geosam_stac.cli import console
from geosam_stac.cli.encode import encode
from geosam_stac.cli.environment import (
    PLAIN_VARIABLES,
    SECRET_VARIABLES,
    origin,
    origins_named,
    source_of,
)
from geosam_stac.config import EncodeConfig
from geosam_stac.hrefs import find_secret, unsigned

HIDDEN = "(set, not shown)"
app = typer.Typer(help="The options in force.", no_args_is_help=True)


def show(**values: Any) -> None:
    """Show every option of `encode`: its value, and where that came from.

    Takes encode's own options, so that a command can be looked at before it runs: put `config
    show` in place of `encode`. Signatures, passwords and tokens are masked.
    """
    ctx: typer.Context = values["ctx"]
    console.set_verbosity(quiet=values["quiet"], verbose=values["verbose"])
    for name, value, source, place in _in_force(ctx, values):
        if values["json_lines"]:
            line = {"option": name, "value": value, "source": source, "place": place}
            console.result_json(line)
        else:
            console.result(f"{name:24} {_text(value):28} {place or source}".rstrip())


# All that encode takes, a file of --config among it: declared there, and nowhere else.
show.__signature__ = inspect.signature(encode)  # type: ignore[attr-defined]
show.__annotations__ = {
    parameter.name: parameter.annotation
    for parameter in inspect.signature(encode).parameters.values()
}
app.command("show")(show)


def _in_force(
    ctx: typer.Context, values: dict[str, Any]
) -> Iterator[tuple[str, Any, str, str | None]]:
    """Name, masked value, source, and the variable or the file's key, of each option."""
    fields = [field.name for field in dataclasses.fields(EncodeConfig)]
    given = {name: values[name] for name in fields if values[name] is not None}
    with origins_named(ctx):
        config = EncodeConfig.of(given)
    for param in ctx.command.params:
        name = str(param.name)
        if name == "help":
            continue
        value = getattr(config, name) if name in fields else values[name]
        flag = next((opt for opt in param.opts if opt.startswith("--")), name).removeprefix("--")
        yield flag, _masked(value), source_of(ctx, name), origin(ctx, param)
    for name in (*PLAIN_VARIABLES, *SECRET_VARIABLES):
        if name in os.environ:
            value = HIDDEN if name in SECRET_VARIABLES else _masked(os.environ[name])
            yield name, value, "environment", None


def _masked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_masked(part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = unsigned(str(value))
    return text if find_secret(text) is None else HIDDEN


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
