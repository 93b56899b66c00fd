"""Catalog profiles: what there is to know of a public STAC API, from `catalogs/*.toml`.

URL, signer, GDAL settings, and per collection the presets with bands, value range, cloud mask and
resolution, each figure with its source. The files' form is `catalogs/profile.schema.json`; they are
validated by the tests, not at run time. Names only: reads no environment, holds no credential.
Read on first use, from the installed package or from a checkout; nothing is read at import.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pystac

from geosam_stac.errors import ConfigurationError, DataError

Signer = Literal["none", "planetary-computer", "headers", "token", "requester-pays", "anonymous"]

# The folder `catalogs/` of the repository is this package when installed (pyproject.toml).
PACKAGE = "geosam_stac.catalogs"
DEFAULT = "default"
# The links of an Item that lead to its own catalog.
OWN_LINKS = ("self", "canonical", "collection", "parent", "root")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a preset says instead for Items whose `property` is a number below `below`."""

    property: str
    below: float
    expression: str | None = None
    value_range: tuple[float, float] | None = None
    source: str

    def fits(self, properties: Mapping[str, Any]) -> bool:
        """Whether an Item with these properties is meant; one without a number is not."""
        try:
            return float(properties[self.property]) < self.below
        except (KeyError, TypeError, ValueError):
            return False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A way to look at a collection: `bands` or `expression` or `index`, exactly one of them.

    `bands` has 1 to 3 names in RGB order, which may hold `*` and `?` where asset keys differ from
    Item to Item (`for_item` resolves them). `value_range` is what becomes 0 and 255: source values
    (DN as stored) for bands, values of the result otherwise; None when nobody vouches for one.
    `resolution_m` is the finest band's pixel size in metres. `mask` is as `--mask` takes it.
    `sources` says where each figure was found, by the field's name.
    """

    name: str
    catalog: str
    collection: str
    bands: tuple[str, ...] | None = None
    expression: str | None = None
    index: str | None = None
    value_range: tuple[float, float] | None = None
    resolution_m: float | None = None
    mask: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()

    def for_item(self, item: pystac.Item) -> Preset:
        """The preset as this Item needs it: variants chosen, patterns of asset keys resolved.

        Raises DataError when a pattern fits no asset, or more than one.
        """
        said: dict[str, Any] = {}
        sources = dict(self.sources)
        for variant in self.variants:
            if not variant.fits(item.properties):
                continue
            what = "expression" if variant.value_range is None else "value_range"
            if what not in said:
                said[what] = getattr(variant, what)
                sources[what] = variant.source
        if self.bands is not None:
            said["bands"] = tuple(_band(item, name) for name in self.bands)
        return dataclasses.replace(self, **said, sources=sources, variants=())

    def options(self) -> dict[str, Any]:
        """What the preset says, by the names of the options of `encode`; unsaid ones are absent.

        The resolution is not among them: options give it in units of the target CRS, the native
        grid has it anyway, and a preset must not change the grid that the user asked for.
        """
        said = {
            "bands": self.bands,
            "expression": self.expression,
            "index": self.index,
            "value_range": self.value_range_text,
            "mask": self.mask,
        }
        return {name: value for name, value in said.items() if value is not None}

    @property
    def value_range_text(self) -> str | None:
        """`value_range` as `--value-range` takes it: `MIN,MAX`."""
        if self.value_range is None:
            return None
        return ",".join(f"{number:.10g}" for number in self.value_range)


@dataclass(frozen=True, kw_only=True)
class CollectionProfile:
    """One collection of a catalog: its presets, and how its assets are opened.

    `signer`, `requester_pays`, `alternate`, `credentials` and `gdal` are the collection's own where
    it has some (`gdal` on top of the catalog's), else the catalog's. `nodata` (a source value, NaN
    for "not a number") and `dtype` (numpy name) stand only where the Items fail to say them.
    """

    id: str
    catalog: str
    title: str
    source: str
    signer: Signer
    requester_pays: bool
    alternate: str | None
    credentials: tuple[str, ...]
    gdal: Mapping[str, str]
    default: str
    presets: Mapping[str, Preset]
    resolution_m: float | None = None
    value_range: tuple[float, float] | None = None
    nodata: float | None = None
    dtype: str | None = None
    mask: str | None = None
    notes: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One public STAC API. `credentials` are names of environment variables, `hosts` patterns.

    `token_hosts` are the only hosts that the credential of the signers token and headers goes to.
    `alternate` is the key under an asset's `alternate` whose href is read instead of its own.
    """

    name: str
    title: str
    url: str
    hosts: tuple[str, ...]
    signer: Signer
    requester_pays: bool
    source: str
    collections: Mapping[str, CollectionProfile]
    alternate: str | None = None
    token_hosts: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()
    gdal: Mapping[str, str] = field(default_factory=dict)
    notes: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON: NaN as "nan", as STAC writes it."""
        document: dict[str, Any] = _plain(dataclasses.asdict(self))
        return document


@functools.cache
def list_profiles() -> tuple[str, ...]:
    """The names that `--catalog` takes, sorted."""
    return tuple(
        sorted(
            entry.name.removesuffix(".toml")
            for entry in _folder().iterdir()
            if entry.name.endswith(".toml")
        )
    )


def load_profile(name: str) -> Profile:
    """The profile of this name; ConfigurationError with the near names when there is none."""
    names = list_profiles()
    if name not in names:
        raise ConfigurationError(
            f"no catalog {name!r}",
            hint=_near(name, names, "Catalogs") + "; or give the API's URL with --search",
        )
    return _load(name)


def find_collection(profile: Profile, collection: str) -> CollectionProfile:
    """The catalog's collection of this id; ConfigurationError with the near ones when unknown."""
    found = profile.collections.get(collection)
    if found is None:
        raise ConfigurationError(
            f"the profile of {profile.name} does not know the collection {collection!r}",
            hint=_near(collection, profile.collections, "It knows"),
        )
    return found


def find_preset(name: str, *, profile: Profile, collection: str) -> Preset:
    """The preset of this name (`default`: the collection's default one) for a collection.

    Raises
    ------
    ConfigurationError
        The profile does not know the collection, or the collection no such preset.
    """
    known = find_collection(profile, collection)
    preset = known.presets.get(known.default if name == DEFAULT else name)
    if preset is None:
        raise ConfigurationError(
            f"no preset {name!r} for {collection} of {profile.name}",
            hint=_near(name, known.presets, "There are")
            + f"; see `geosam-stac catalogs show {profile.name}`",
        )
    return preset


def profile_of(item: pystac.Item) -> tuple[Profile, CollectionProfile] | None:
    """The catalog that an Item is of, told by its collection and the hosts of its hrefs.

    The same collection id stands in several catalogs (`sentinel-2-l2a` in three): the hosts of the
    Item's own links count more than those of its assets. None when no profile fits both.

    An Item comes from strangers: good for its presets, not for spending or sending anything (a
    credential, requester pays) that the user has not asked for.
    """
    # Not `get_href`: it fetches the Item's root to make the href relative to it.
    links = {_host(link.get_target_str() or "") for link in item.links if link.rel in OWN_LINKS}
    assets = {_host(asset.href) for asset in item.assets.values()}
    best: tuple[int, Profile] | None = None
    for name in list_profiles():
        profile = _load(name)
        if item.collection_id not in profile.collections:
            continue
        score = 2 * _meet(links, profile.hosts) + _meet(assets, profile.hosts)
        if score and (best is None or score > best[0]):
            best = (score, profile)
    if best is None:
        return None
    return best[1], best[1].collections[str(item.collection_id)]


def _meet(hosts: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(host, pattern) for host in hosts if host for pattern in patterns)


def _host(href: str) -> str:
    """Host of an http href, bucket of an s3 one, in lower case; empty when there is none."""
    try:
        parts = urlsplit(href)
        return (parts.hostname or "").lower() if parts.scheme in ("http", "https", "s3") else ""
    except ValueError:
        return ""


def _band(item: pystac.Item, name: str) -> str:
    """`name`, its pattern replaced by the Item's one asset that fits; `.N` stays behind it."""
    if not any(sign in name for sign in "*?"):
        return name
    asset, dot, number = name.rpartition(".")
    if not (dot and number.isdigit()):
        asset, dot, number = name, "", ""
    keys = [key for key in item.assets if fnmatchcase(key, asset)]
    if len(keys) != 1:
        raise DataError(
            f"the preset's band {name!r} fits {len(keys)} assets",
            item=item.id,
            expected="one",
            got=", ".join(keys or item.assets),
            hint="Name the bands with --bands",
        )
    return keys[0] + dot + number


def _near(name: str, known: Iterable[str], label: str) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"{label}: {', '.join(known)}"


def _folder() -> Traversable:
    try:
        return resources.files(PACKAGE)
    except ModuleNotFoundError:
        # A checkout that is not installed: the folder lies beside the package.
        folder = Path(__file__).parents[2] / "catalogs"
    if not folder.is_dir():
        raise ConfigurationError(
            "the catalog profiles are missing from this installation",
            expected=f"the package {PACKAGE}",
            hint="Install geosam-stac again",
        )
    return folder


@functools.cache
def _load(name: str) -> Profile:
    document = tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    collections: dict[str, CollectionProfile] = {}
    for key, entry in document["collections"].items():
        for collection in (key, *entry.get("aliases", ())):
            collections[collection] = _collection(document, collection, entry)
    said: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    said["collections"] = collections
    return Profile(**said)


def _collection(
    document: Mapping[str, Any], collection: str, entry: Mapping[str, Any]
) -> CollectionProfile:
    def own(name: str) -> Any:
        return entry.get(name, document.get(name))

    figures = ("resolution_m", "value_range", "nodata", "dtype", "mask")
    return CollectionProfile(
        id=collection,
        catalog=document["name"],
        title=entry["title"],
        source=entry["source"],
        signer=own("signer"),
        requester_pays=own("requester_pays"),
        alternate=own("alternate"),
        credentials=tuple(own("credentials")),
        gdal={**document.get("gdal", {}), **entry.get("gdal", {})},
        default=entry["default"],
        presets={
            name: _preset(document["name"], collection, entry, name) for name in entry["presets"]
        },
        resolution_m=_value(entry, "resolution_m"),
        value_range=_pair(entry.get("value_range")),
        nodata=_value(entry, "nodata"),
        dtype=_value(entry, "dtype"),
        mask=_value(entry, "mask"),
        notes=entry.get("notes"),
        sources={name: entry[name]["source"] for name in figures if name in entry},
    )


def _preset(catalog: str, collection: str, entry: Mapping[str, Any], name: str) -> Preset:
    own = entry["presets"][name]
    # A preset's own figures, else the collection's: but its value range is of bands alone.
    figures = {
        figure: own.get(figure, entry.get(figure)) for figure in ("resolution_m", "mask")
    } | {
        "value_range": own.get("value_range", entry.get("value_range") if "bands" in own else None)
    }
    what = next(kind for kind in ("bands", "expression", "index") if kind in own)
    variants = [Variant(**variant) for variant in own.get("when", ())]
    if "bands" in own and "value_range" not in own:
        variants += [
            Variant(**{**_without_value(variant), "value_range": _pair(variant)})
            for variant in entry.get("value_range_when", ())
        ]
    return Preset(
        name=name,
        catalog=catalog,
        collection=collection,
        bands=tuple(own["bands"]) if "bands" in own else None,
        expression=own.get("expression"),
        index=own.get("index"),
        value_range=_pair(figures["value_range"]),
        resolution_m=_value(figures, "resolution_m"),
        mask=_value(figures, "mask"),
        sources={what: own["source"]}
        | {figure: said["source"] for figure, said in figures.items() if said is not None},
        variants=tuple(variants),
    )


def _without_value(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "value"}


def _value(table: Mapping[str, Any], name: str) -> Any:
    return None if table.get(name) is None else table[name]["value"]


def _pair(table: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if table is None else (float(table["value"][0]), float(table["value"][1]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value
