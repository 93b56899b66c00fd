"""Where an option's value came from, and the environment's names: ours, and those that are typos.

Reads click's own account of it. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from geosam_stac.cli import console
from geosam_stac.errors import UsageError

ENV_PREFIX = "GEOSAM_STAC_"
# Read elsewhere, and no options: those whose values may be shown, and those that hold secrets.
PLAIN_VARIABLES = (
    "GEOSAM_STAC_CACHE",
    "GEOSAM_STAC_HEADER_HOSTS",
    "GEOSAM_STAC_TOKEN_PARAMETER",
)
SECRET_VARIABLES = (
    "GEOSAM_STAC_API_HEADERS",
    "GEOSAM_STAC_API_TOKEN",
    "GEOSAM_STAC_HEADERS",
    "GEOSAM_STAC_TOKEN",
)
# Kubernetes gives every container these, of each Service in its namespace: one called geosam-stac.
_OF_A_SERVICE = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$")
_FLAG = re.compile(r"--[a-z][a-z-]*")
_CONFIG = "geosam_stac.config_file"


def env_name(option: str) -> str:
    """The environment variable of an option."""
    return ENV_PREFIX + option.upper()


def variables(command: Any) -> set[str]:
    """Environment variables of a command's options, and of all commands below it."""
    found = {str(name) for param in command.params if (name := getattr(param, "envvar", None))}
    return found.union(*(variables(sub) for sub in getattr(command, "commands", {}).values()))


def warn_of_unknown(command: Any, environ: Mapping[str, str]) -> None:
    """Warn of each variable that looks like an option's and is none: it would have no effect."""
    known = {*variables(command), *PLAIN_VARIABLES, *SECRET_VARIABLES}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in known or _OF_A_SERVICE.search(name):
            continue
        # The prefix is alike in all: without it, what is near is near.
        words = {other.removeprefix(ENV_PREFIX): other for other in known}
        near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), sorted(words), n=1)
        meant = f": did you mean {words[near[0]]}?" if near else ""
        console.warn(f"{name} in the environment is no option and has no effect{meant}")


def remember_file(ctx: Any, path: Path, keys: Mapping[str, str]) -> None:
    """Keep, for `origin`, the file of `--config` and how it spells each parameter."""
    ctx.meta[_CONFIG] = (path, dict(keys))


def source_of(ctx: Any, name: str) -> str:
    """`command line`, `environment`, `config file` or `default`."""
    found = getattr(ctx.get_parameter_source(name), "name", "")
    return {
        "COMMANDLINE": "command line",
        "ENVIRONMENT": "environment",
        "DEFAULT_MAP": "config file",
    }.get(found, "default")


def origin(ctx: Any, param: Any) -> str | None:
    """The variable, or the key and the file, that a value came from; None for other sources."""
    source = source_of(ctx, param.name)
    if source == "environment":
        return f"{param.envvar} in the environment"
    if source == "config file" and _CONFIG in ctx.meta:
        path, keys = ctx.meta[_CONFIG]
        return f"the key {keys.get(param.name, param.name)!r} in {path}"
    return None


@contextlib.contextmanager
def origins_named(ctx: Any) -> Iterator[None]:
    """Add to a UsageError where the options it is about came from, unless they were typed."""
    try:
        yield
    except UsageError as error:
        named = list(_named(ctx, f"{error.message} {error.got or ''}"))
        if len(named) == 1:
            error.message += f" (from {named[0][1]})"
        elif named:
            where = ", ".join(f"{flag} from {place}" for flag, place in named)
            error.message += f" ({where})"
        raise


def _named(ctx: Any, text: str) -> Iterable[tuple[str, str]]:
    flags = dict.fromkeys(_FLAG.findall(text))
    for flag in flags:
        for param in ctx.command.params:
            if flag in param.opts and (place := origin(ctx, param)) is not None:
                yield flag, place
