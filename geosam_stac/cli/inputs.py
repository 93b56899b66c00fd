"""What a command works on: Items by name, a file of them, or a search; shared by `encode` and kin.

Each option is declared once, as a field of `Inputs`. Imports no raster library at import.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geosam_stac.cli.environment import env_name
from geosam_stac.cli.options import NO_METAVAR
from geosam_stac.config import EncodeConfig, split_list
from geosam_stac.credentials import TOKEN_VARIABLE, api_headers
from geosam_stac.errors import (
    ConfigurationError,
    GeosamStacError,
    Interrupted,
    StorageError,
    UsageError,
)
from geosam_stac.events import Sink, ignore
from geosam_stac.hrefs import is_local, recordable, to_local_path, unsigned

if TYPE_CHECKING:
    import pystac

    from geosam_stac.retry import Retries
    from geosam_stac.sources.groups import Group
    from geosam_stac.sources.hosts import Hosts
    from geosam_stac.sources.itemfiles import Found
    from geosam_stac.sources.profiles import Profile
    from geosam_stac.sources.query import SearchQuery
    from geosam_stac.types import Access

# What would fail every scene alike: they end the run.
FATAL = (Interrupted, StorageError, ConfigurationError)


def _option(help: str, *, metavar: str = NO_METAVAR, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is worked on: exactly one of `item`, `items`, `search`, or `catalog` alone.

    `catalog` beside one of the others names the profile of their Items. Values are checked on
    creation: UsageError names the options.
    """

    item: tuple[str, ...] = _option(
        "A STAC Item; - reads standard input. Repeatable.", metavar="URL|FILE|-", default=()
    )
    items: str | None = _option(
        "A file of Items: JSON, ndjson, stac-geoparquet, or failed.ndjson; - reads standard input.",
        metavar="FILE|URL|-",
    )
    search: str | None = _option(
        "Search this STAC API. --bbox or --geometry narrow the search, too. A token for it is read "
        f"from {TOKEN_VARIABLE}.",
        metavar="API_URL",
    )
    catalog: str | None = _option(
        "Search this catalog; see `catalogs list`. With --item, --items or --search: the catalog "
        "that the Items are of.",
        metavar="NAME",
    )
    collection: tuple[str, ...] = _option(
        "Collections of the search. Repeatable, or a list.", metavar="ID,...", default=()
    )
    ids: tuple[str, ...] = _option(
        "Ids of the search. Repeatable, or a list.", metavar="ID,...", default=()
    )
    datetime: str | None = _option(
        "Time of the search: 2024-03, 2024-03-11, or an interval as 2024-03-01/2024-04-01 or "
        "2024-03-01/..",
        metavar="TIME",
    )
    filter: str | None = _option("CQL2 of the search, as text or JSON.", metavar="CQL2")
    query: tuple[str, ...] = _option(
        "Comparison of the search, as 'eo:cloud_cover<10', or JSON. Repeatable.",
        metavar="TEST",
        default=(),
    )
    sortby: tuple[str, ...] = _option(
        "Order of the search; -FIELD descends.", metavar="FIELD,...", default=()
    )
    limit: int | None = _option("Items of the search, at most.", metavar="N")
    signer: str | None = _option(
        "How assets are signed: none, planetary-computer, headers, token, requester-pays or "
        "anonymous. Default: the catalog's.",
        metavar="NAME",
    )
    anonymous_source: bool = _option("Read assets without credentials.", default=False)

    def __post_init__(self) -> None:
        for name in ("collection", "ids", "sortby"):
            parts = [part for text in getattr(self, name) for part in split_list(text)]
            object.__setattr__(self, name, tuple(parts))
        kinds = [name for name in ("item", "items", "search") if getattr(self, name)]
        if len(kinds) > 1:
            raise UsageError(
                f"--{kinds[0]} and --{kinds[1]} contradict each other",
                hint="Give one of --item, --items, --search and --catalog",
            )
        if not kinds and not self.catalog:
            raise UsageError(
                "--item is missing",
                hint="Give the URL or the file of a STAC Item; or --items, --search or --catalog",
            )
        asked = [name for name in SEARCH_FIELDS if getattr(self, name)]
        if asked and not self.is_search:
            raise UsageError(
                f"--{asked[0]} belongs to a search",
                got=f"--{kinds[0]}",
                hint="Give --search API_URL or --catalog NAME, or leave it out",
            )
        if self.anonymous_source and self.signer not in (None, "anonymous"):
            raise UsageError(
                "--anonymous-source and --signer contradict each other", hint="Give one of them"
            )

    @property
    def is_search(self) -> bool:
        """Whether an API is asked."""
        return not self.item and not self.items

    @property
    def place(self) -> str:
        """Where the Items are looked for, unsigned, for messages."""
        if self.is_search:
            return unsigned(self.search) if self.search else str(self.catalog)
        return unsigned(self.items) if self.items and self.items != "-" else "standard input"

    def as_dict(self) -> dict[str, Any]:
        """What was given, for `run.json`: unsigned, by the options' names, JSON's types."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _recorded(value) for name, value in given.items() if value}

    def profile(self) -> Profile | None:
        """The profile of `--catalog`; ConfigurationError when there is none of that name."""
        if self.catalog is None:
            return None
        from geosam_stac.sources.profiles import load_profile

        return load_profile(self.catalog)

    def access(
        self, profile: Profile | None, environ: Mapping[str, str]
    ) -> Callable[[pystac.Item], Access]:
        """How the Items' assets are opened."""
        from geosam_stac.sources.access import accesses

        return accesses(
            profile=profile, signer=self.signer, environ=environ, anonymous=self.anonymous_source
        )

    def hosts(self, profile: Profile | None, *, allow_private: bool) -> Hosts:
        """Whom remote Items may send us to: public hosts, and those that were typed."""
        from geosam_stac.sources.hosts import Hosts

        typed = [*self.item, self.items or "", self.search or ""]
        if profile is not None:
            typed.append(profile.url)
        return Hosts(*typed, allow_private=allow_private)

    def search_query(self, config: EncodeConfig) -> SearchQuery:
        """What is asked of the API: the search's options, and the extent of `config` in WGS84.

        `config.geometry` is GeoJSON text. UsageError for a search that asks for everything.
        """
        from geosam_stac.sources.query import SearchQuery

        bbox = None if config.bbox is None else bbox_wgs84(config.bbox, config.bbox_crs)
        geometry = None if config.geometry is None else json.loads(config.geometry)
        narrowed = (self.collection, self.ids, self.filter, self.query, self.limit, bbox, geometry)
        if not any(narrowed):
            raise UsageError(
                "the search asks for every Item of the API",
                hint="Give --collection, --ids, --bbox, --filter or --limit",
            )
        profile = self.profile()
        url = self.search or (profile.url if profile else "")
        return SearchQuery(
            url=url,
            collections=self.collection,
            ids=self.ids,
            bbox=bbox,
            intersects=geometry,
            datetime=self.datetime,
            filter=self.filter,
            query=self.query or None,
            sortby=self.sortby,
            limit=self.limit,
        )


def _recorded(value: Any) -> Any:
    """An option's value without what grants access, wherever in a text it stands."""
    if isinstance(value, tuple):
        return [_recorded(part) for part in value]
    if not isinstance(value, str):
        return value
    return recordable(value)


SEARCH_FIELDS = ("collection", "ids", "datetime", "filter", "query", "sortby", "limit")


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    many = typing.get_origin(hint) is tuple
    annotation: Any = list[str] | None if many else hint
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if many else field.default,
        annotation=Annotated[
            annotation,
            typer.Option(
                "--" + field.name.replace("_", "-"),
                help=field.metadata["help"],
                metavar=field.metadata["metavar"],
                envvar=env_name(field.name),
                show_envvar=False,
                show_default=False,
                rich_help_panel="Input",
            ),
        ],
    )


def takes_inputs(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of Inputs, handed to it as `inputs`.

    The command's first parameter must be `ctx: typer.Context`; stands below `@takes_config`.
    """
    hints = typing.get_type_hints(Inputs)
    generated = [_parameter(field, hints[field.name]) for field in dataclasses.fields(Inputs)]
    own_hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=own_hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "inputs"
    ]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {parameter.name: values.pop(parameter.name) for parameter in generated}
        asked: dict[str, Any] = {
            name: tuple(value or ()) if typing.get_origin(hints[name]) is tuple else value
            for name, value in given.items()
        }
        command(**values, inputs=Inputs(**asked))

    parameters = [own[0], *generated, *own[1:]]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # the command's own signature would be read through it
    return wrapper


def bbox_wgs84(
    bbox: tuple[float, float, float, float], crs: str
) -> tuple[float, float, float, float]:
    """A bounding box as the search wants it: W,S,E,N in degrees, W > E across the antimeridian."""
    west, south, east, north = bbox
    if crs.upper() not in ("EPSG:4326", "OGC:CRS84"):
        import pyproj

        try:
            to_wgs84 = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
            # Edges become curves: some points on each.
            found = to_wgs84.transform_bounds(west, south, east, north, densify_pts=21)
            return (float(found[0]), float(found[1]), float(found[2]), float(found[3]))
        except pyproj.exceptions.ProjError as error:
            raise UsageError(
                "--bbox has no place on the Earth in --bbox-crs",
                expected="numbers in units of a CRS that PROJ knows",
                got=f"{','.join(f'{value:g}' for value in bbox)} in {crs}",
            ) from error
    if east - west >= 360:
        return (-180.0, south, 180.0, north)
    if -360 <= west < -180 or 180 < east <= 360:
        # Longitudes of 170 to 190: the search knows them as 170 to -170.
        west, east = ((value + 180.0) % 360.0 - 180.0 for value in (west, east))
    return (west, south, east, north)


def gather(
    inputs: Inputs,
    config: EncodeConfig,
    *,
    environ: Mapping[str, str],
    hosts: Hosts,
    sink: Sink = ignore,
    retries: Retries | None = None,
) -> Iterator[Found]:
    """The Items, lazily, each with its own error. A wrong search is told at once.

    Raises
    ------
    UsageError
        The search is not understood, here or by the API.
    GeosamStacError
        The file or the API as a whole cannot be read.
    """
    if inputs.item:
        return _named(inputs.item, retries, hosts)
    from geosam_stac.storage import read_bytes, read_text

    if inputs.items:
        from geosam_stac.sources.itemfiles import read_items

        return read_items(
            inputs.items,
            read_text=functools.partial(read_text, retries=retries),
            read_bytes=functools.partial(read_bytes, retries=retries),
            sink=sink,
            retries=retries,
            hosts=hosts,
        )
    from geosam_stac.sources.search import search

    headers = api_headers(environ)
    return search(
        inputs.search_query(config), headers=headers, sink=sink, retries=retries, hosts=hosts
    )


def _named(sources: Iterable[str], retries: Retries | None, hosts: Hosts) -> Iterator[Found]:
    from geosam_stac.sources.itemfiles import Found
    from geosam_stac.sources.items import read_item
    from geosam_stac.storage import read_text

    read = functools.partial(read_text, retries=retries)
    for source in sources:
        try:
            item = read_item(source, read_text=read, retries=retries, hosts=hosts)
        except FATAL:
            raise
        except GeosamStacError as error:
            yield Found(item=None, error=error, href=_absolute(source))
        else:
            yield Found(item=item, error=None, href=_absolute(source))


def _absolute(source: str) -> str:
    if source == "-" or not is_local(source):
        return unsigned(source)
    return str(to_local_path(source).absolute())


@dataclass(frozen=True, kw_only=True)
class Work:
    """One scene that is asked for: its Item or Items, or why there is none."""

    source: pystac.Item | Group | None = None
    error: GeosamStacError | None = None
    href: str | None = None
    # Its line of `failed.ndjson`, where that is kept as it stands.
    line: str | None = None

    def failed_lines(self, error: GeosamStacError, hosts: Hosts) -> list[str]:
        """Lines for `failed.ndjson`, one an Item."""
        typed = hosts.typed
        from geosam_stac.sources.groups import Group
        from geosam_stac.sources.itemfiles import failed_line

        if self.line is not None:
            return [self.line]
        if self.source is None:
            return [failed_line(self.href or error.item or "-", error, typed=typed)]
        if isinstance(self.source, Group):
            return [failed_line(item, error, typed=typed) for item in self.source.items]
        return [failed_line(self.source, error, href=self.href, typed=typed)]


def scenes(found: Iterable[Found], groupby: str) -> Iterator[Work]:
    """Items as scenes: lazily when each is one, else when all are gathered and grouped."""
    if groupby == "id":
        for one in found:
            yield Work(source=one.item, error=one.error, href=one.href, line=one.line)
        return
    from geosam_stac.sources.groups import group_items

    items: list[pystac.Item] = []
    for one in found:
        error = one.error
        if one.item is not None:
            try:
                group_items([one.item], groupby)
            except GeosamStacError as failure:
                error = failure
        if error is not None:
            yield Work(source=one.item, error=error, href=one.href, line=one.line)
        elif one.item is not None:
            items.append(one.item)
    for group in group_items(items, groupby):
        yield Work(source=group)


def is_file(source: str | None, href: str) -> bool:
    """Whether `--items` names the file that lies at `href`."""
    if source is None or source == "-":
        return False
    if is_local(source) and is_local(href):
        return Path(to_local_path(source)).resolve() == Path(to_local_path(href)).resolve()
    return source == href
