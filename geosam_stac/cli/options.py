"""EncodeConfig as command-line options: each is declared in config.py, and nowhere else.

Precedence: command line, then environment (`GEOSAM_STAC_<OPTION>`), then `--config FILE` (TOML),
then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import UsageError

ENV_PREFIX = "GEOSAM_STAC_"
SOURCES = {
    "COMMANDLINE": "command line",
    "ENVIRONMENT": "environment",
    "DEFAULT_MAP": "config file",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InForce:
    """The config in force, and where each option that was given came from."""

    config: EncodeConfig
    sources: dict[str, str]


def _option_type(hint: Any) -> type:
    """What click parses: a flag, a number, or text that `EncodeConfig.replace` takes apart."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)] or [hint]
    return parts[0] if len(parts) == 1 and parts[0] in (bool, int, float) else str


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    flag = "--" + field.name.replace("_", "-")
    kind = _option_type(hint)
    text = field.metadata["help"]
    if field.default not in (None, False) and "Default" not in text:
        text += f" [default: {field.default}]"
    annotation = Annotated[
        kind | None,  # type: ignore[valid-type]
        typer.Option(
            *([f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]),
            help=text,
            envvar=ENV_PREFIX + field.name.upper(),
            show_envvar=False,
            show_default=False,
            rich_help_panel=field.metadata["panel"],
        ),
    ]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def load_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of `--config`: the TOML file's keys become defaults of the options."""
    if path is None:
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config cannot be read: {error.strerror}", href=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config is not TOML: {error}", href=str(path)) from error
    names = [field.name for field in dataclasses.fields(EncodeConfig)]
    defaults: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"unknown key {key!r} in --config",
                href=str(path),
                hint=f"Did you mean {near[0]!r}?" if near else f"Keys are: {', '.join(names)}",
            )
        joined = ",".join(map(str, value)) if isinstance(value, list) else value
        defaults[name] = joined
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=ENV_PREFIX + "CONFIG",
        help="TOML file of options, as `stride = 512`.",
        callback=load_config_file,
        is_eager=True,
        show_default=False,
        rich_help_panel="Run",
    ),
]


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of EncodeConfig, handed to it as `in_force: InForce`.

    The command's first parameter must be `ctx: typer.Context`.
    """
    hints = typing.get_type_hints(EncodeConfig)
    generated = [_parameter(field, hints[field.name]) for field in dataclasses.fields(EncodeConfig)]
    own_hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=own_hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "in_force"
    ]
    config_file = inspect.Parameter(
        "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
    )

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        ctx: typer.Context = values["ctx"]
        values.pop("config_file")
        given = {parameter.name: values.pop(parameter.name) for parameter in generated}
        given = {name: value for name, value in given.items() if value is not None}
        sources = {
            name: SOURCES.get(getattr(ctx.get_parameter_source(name), "name", ""), "default")
            for name in given
        }
        in_force = InForce(config=EncodeConfig.of(given), sources=sources)
        command(**values, in_force=in_force)

    parameters = [*own, config_file, *generated]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # typer would read the command's own signature through it
    return wrapper
