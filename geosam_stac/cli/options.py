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
from rich.markup import escape

from geosam_stac.cli import console
from geosam_stac.cli.environment import env_name, origins_named, remember_file, source_of
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import UsageError

# A flag takes no value: its type would only fill the line.
NO_METAVAR = " "

# Of every command; those that take EncodeConfig have them in the environment, too: `takes_config`.
_QUIET, _VERBOSE = "Warnings and errors only.", "Tracebacks of errors, too."
Json = Annotated[
    bool, typer.Option("--json", metavar=NO_METAVAR, help="Results as JSON, one line each.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", metavar=NO_METAVAR, help=_QUIET)]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", metavar=NO_METAVAR, help=_VERBOSE)]

# What help shows in place of a type; options without an entry show their type.
METAVARS = {
    "bands": "NAME,...",
    "expression": "TEXT",
    "index": "NAME",
    "preset": "NAME",
    "mask": "MASK",
    "groupby": "KEY",
    "bbox": "W,S,E,N",
    "bbox_crs": "CRS",
    "geometry": "FILE",
    "crs": "CRS",
    "resolution": "SIZE",
    "resampling": "NAME",
    "chip_size": "PX",
    "stride": "PX",
    "value_range": "RANGE",
    "model": "NAME",
    "checkpoint": "PATH|URL",
    "device": "NAME",
    "precision": "NAME",
    "batch_size": "N",
    "memory_strategy": "NAME",
    "out": "PATH|URL",
    "publish": "PLACE",
    "format": "NAME",
    "feature_dtype": "NAME",
    "levels": "NAME",
    "max_chips": "N",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InForce:
    """The config in force, and where each option that was given came from."""

    config: EncodeConfig
    sources: dict[str, str]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    flag = "--" + field.name.replace("_", "-")
    # Texts that EncodeConfig takes apart, as it does for Python: one place says what is no number.
    kind = bool if bool in (hint, *typing.get_args(hint)) else str
    text = field.metadata["help"]
    if field.default not in (None, False) and "Default" not in text:
        default = f"{field.default:,}" if isinstance(field.default, int) else field.default
        text += f" Default: {default}."
    annotation = Annotated[
        kind | None,  # type: ignore[valid-type]
        typer.Option(
            *([f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]),
            help=escape(text),
            metavar=METAVARS.get(field.name, NO_METAVAR if kind is bool else None),
            envvar=env_name(field.name),
            show_envvar=False,
            show_default=False,
            rich_help_panel=field.metadata["panel"],
        ),
    ]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def load_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of `--config`: the TOML file's keys become defaults of the command's options."""
    if path is None:
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config cannot be read: {error.strerror}", href=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config is not TOML: {error}", href=str(path)) from error
    options = _options(ctx)
    defaults: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in document.items():
        name = key.replace("_", "-")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            raise UsageError(
                f"unknown key {key!r} in --config",
                href=str(path),
                hint=f"Did you mean {near[0]!r}?" if near else f"Keys are: {', '.join(options)}",
            )
        option = options[name]
        keys[str(option.name)] = key
        defaults[str(option.name)] = _value(
            key, value, path, many=getattr(option, "multiple", False)
        )
    remember_file(ctx, path, keys)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _options(ctx: typer.Context) -> dict[str, Any]:
    """Long option name without dashes -> the command's parameter; --config and --help are none."""
    return {
        option[2:]: parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help")
    }


def _value(key: str, value: Any, path: Path, *, many: bool) -> Any:
    """A TOML value as the command line would spell it; UsageError for one that it cannot."""
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return [str(part) for part in value] if many else ",".join(map(str, value))
    if isinstance(value, str | int | float):
        return [value] if many else value
    raise UsageError(
        f"the key {key!r} in --config has a value of the wrong kind",
        href=str(path),
        expected="a text, a number, true, false, or a list of them",
        got=type(value).__name__,
    )


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar=env_name("config"),
        show_envvar=False,
        help="TOML file of options, as in: stride = 512",
        callback=load_config_file,
        is_eager=True,
        show_default=False,
        rich_help_panel="Run",
    ),
]


def flag(*names: str, help: str) -> Any:
    """A flag of the run's own panel, with its environment variable."""
    return typer.Option(
        *names,
        help=help,
        metavar=NO_METAVAR,
        envvar=env_name(
            next(name for name in names if name.startswith("--"))[2:].replace("-", "_")
        ),
        show_envvar=False,
        rich_help_panel="Run",
    )


def _verbosity() -> list[inspect.Parameter]:
    flags = {
        "quiet": Annotated[bool, flag("-q", "--quiet", help=_QUIET)],
        "verbose": Annotated[bool, flag("-v", "--verbose", help=_VERBOSE)],
    }
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
        )
        for name, annotation in flags.items()
    ]


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of EncodeConfig, handed to it as `in_force: InForce`.

    The command's first parameters must be `ctx: typer.Context` and what it works on. `--config`,
    `--quiet` and `--verbose` are added and dealt with here.
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
        console.set_verbosity(
            quiet=values.pop("quiet", False), verbose=values.pop("verbose", False)
        )
        given = {parameter.name: values.pop(parameter.name) for parameter in generated}
        given = {name: value for name, value in given.items() if value is not None}
        sources = {name: source_of(ctx, name) for name in given}
        with origins_named(ctx):
            in_force = InForce(config=EncodeConfig.of(given), sources=sources)
            command(**values, in_force=in_force)

    # Help shows options and panels in this order: what is encoded first, the run's own last.
    parameters = [*own[:2], *generated, *own[2:], *_verbosity(), config_file]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # typer would read the command's own signature through it
    return wrapper
