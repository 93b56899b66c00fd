"""Which bands an Item has, and which of them a user's names mean.

Names are matched against asset keys, `asset.N`, band names and common names, from `bands`
(STAC 1.1), `eo:bands` and `raster:bands` (STAC 1.0). Metadata only: no file is opened here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pystac
from odc.geo.geobox import GeoBox

from geosam_stac.errors import DataError, UsageError
from geosam_stac.hrefs import absolute, unsigned
from geosam_stac.sources.checks import is_number, wrong
from geosam_stac.sources.projection import asset_grid
from geosam_stac.types import Band

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".nc", ".hdf", ".h5")
WEB_IMAGES = ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp", "image/svg+xml")
NOT_DATA_ROLES = {"thumbnail", "metadata"}
# An asset with one of these roles repeats data of other assets: it is matched by its key, and by
# its bands' names only where no data asset has them.
DERIVED_ROLES = {"visual", "overview"}
# Fields that an asset may say once for all its bands (STAC 1.1).
SHARED_FIELDS = ("data_type", "nodata", "raster:scale", "raster:offset")
DEFAULT_NAMES = ("red", "green", "blue")
# rio-stac calls bands b1, b2 ... and puts the file's colours into their descriptions.
COMMON_NAMES = {
    *("coastal", "blue", "green", "green05", "yellow", "red", "pan", "cirrus"),
    *("rededge", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09"),
    *("swir16", "swir22", "lwir", "lwir11", "lwir12"),
}
BAND_FIELDS = ("bands", "eo:bands", "raster:bands")
# Where several say something of a band, the last one counts.
BAND_ORDER = ("raster:bands", "eo:bands", "bands")


def list_bands(item: pystac.Item, *, counts: Mapping[str, int] | None = None) -> list[Band]:
    """All bands of the Item's raster assets, data assets first, else in the Item's order.

    An asset that says nothing of its bands has as many as `counts` says by its key, else one.
    Raises DataError when the Item has no raster asset, or its projection metadata contradicts
    itself.
    """
    counts = counts or {}
    assets = [(key, asset) for key, asset in item.assets.items() if _is_raster(asset)]
    if not assets:
        raise DataError(
            "the Item has no raster asset",
            item=item.id,
            got=", ".join(item.assets) or "no assets",
            expected="a GeoTIFF or other raster",
            hint="Look at the types and roles in $.assets",
        )
    assets.sort(key=lambda pair: bool(set(pair[1].roles or ()) & DERIVED_ROLES))
    return [
        band for key, asset in assets for band in _asset_bands(item, key, asset, counts.get(key, 1))
    ]


def tells_bands(asset: pystac.Asset) -> bool:
    """Whether the metadata say how many bands an asset has."""
    return any(asset.extra_fields.get(name) for name in BAND_FIELDS)


def select_bands(
    item: pystac.Item, names: Sequence[str] | None, *, counts: Mapping[str, int] | None = None
) -> tuple[Band, ...]:
    """The 1 to 3 bands that `names` mean, in their order; None: red, green, blue or the first.

    `counts` as for `list_bands`.

    Raises
    ------
    DataError
        A name that is not there; lists the bands there are.
    UsageError
        The names come to more than three bands.
    """
    bands = list_bands(item, counts=counts)
    if names is None:
        return _default_bands(bands)
    chosen: list[Band] = []
    for name in names:
        chosen.extend(_find(item, bands, name))
    if len(chosen) > 3:
        raise UsageError(
            "--bands takes 1 to 3 bands in RGB order",
            item=item.id,
            got=f"{len(chosen)}: {', '.join(band.name for band in chosen)}",
            hint=f"There are: {describe(bands)}",
        )
    return tuple(chosen)


def named_bands(
    item: pystac.Item, names: Iterable[str], *, counts: Mapping[str, int] | None = None
) -> tuple[Band, ...]:
    """One band for each name, any number of them; a band's `name` becomes the one asked for.

    Raises
    ------
    DataError
        A name that is not there.
    UsageError
        A name that means several bands.
    """
    bands = list_bands(item, counts=counts)
    found = []
    for name in names:
        matches = _find(item, bands, name)
        if len(matches) > 1:
            raise UsageError(
                f"{name!r} means {len(matches)} bands where one is needed",
                item=item.id,
                hint=f"Write one of {', '.join(f'{b.asset}.{b.index}' for b in matches)}",
            )
        found.append(dataclasses.replace(matches[0], name=name))
    return tuple(found)


def describe(bands: Iterable[Band]) -> str:
    """The bands by all the names that they answer to, for messages."""
    lines: list[str] = []
    bands = list(bands)
    counts = {band.asset: sum(other.asset == band.asset for other in bands) for band in bands}
    for band in bands:
        key = band.asset if counts[band.asset] == 1 else f"{band.asset}.{band.index}"
        others = dict.fromkeys(
            name for name in (band.name, band.common_name) if name and name != key
        )
        lines.append(key + (f" ({', '.join(others)})" if others else ""))
    return ", ".join(lines)


def _default_bands(bands: list[Band]) -> tuple[Band, ...]:
    # Items without common names may call a band or an asset so.
    for called in (_common_name, _plain_names):
        matches = [
            next((band for band in bands if name in called(band)), None) for name in DEFAULT_NAMES
        ]
        found = tuple(band for band in matches if band is not None)
        if len(found) == len(DEFAULT_NAMES):
            return found
    # No true colour: the first data bands. Bands of one grid only, or resampling would decide.
    first = bands[0]
    same = [band for band in bands if _same_grid(band.geobox, first.geobox)]
    return tuple(same[:3])


def _common_name(band: Band) -> tuple[str, ...]:
    return (band.common_name or "",)


def _plain_names(band: Band) -> tuple[str, ...]:
    return band.name.lower(), band.asset.lower()


def _same_grid(one: GeoBox | None, other: GeoBox | None) -> bool:
    return one is None or other is None or one == other


def _find(item: pystac.Item, bands: list[Band], name: str) -> list[Band]:
    def matching(test: Callable[[Band], bool]) -> list[Band]:
        return [band for band in bands if test(band)]

    asset, dot, number = name.rpartition(".")
    if by_key := matching(lambda band: band.asset == name):
        return by_key
    if dot and number.isdigit() and (by_index := _by_index(bands, asset, int(number))):
        return [by_index]
    low = name.lower()
    tests: tuple[Callable[[Band], bool], ...] = (
        lambda band: band.name == name,
        lambda band: band.common_name == name,
        lambda band: low in (band.name.lower(), (band.common_name or "").lower()),
        lambda band: band.asset.lower() == low,
    )
    for test in tests:
        if found := matching(test):
            return found if test is tests[-1] else found[:1]
    known = {text for band in bands for text in (band.asset, band.name, band.common_name) if text}
    near = difflib.get_close_matches(name, sorted(known), n=1)
    raise DataError(
        f"no band {name!r}",
        item=item.id,
        hint=(f"Did you mean {near[0]!r}? " if near else "") + f"There are: {describe(bands)}",
    )


def _by_index(bands: list[Band], asset: str, index: int) -> Band | None:
    """`asset.N`, also beyond the bands that the metadata tells of: the header decides later."""
    of_asset = [band for band in bands if band.asset == asset]
    if not of_asset or index < 1:
        return None
    exact = next((band for band in of_asset if band.index == index), None)
    if exact is not None or len(of_asset) > 1:
        return exact
    only = of_asset[0]
    return Band(
        name=f"{asset}.{index}",
        asset=asset,
        index=index,
        href=only.href,
        source_href=only.source_href,
        geobox=only.geobox,
    )


def _is_raster(asset: pystac.Asset) -> bool:
    roles = set(asset.roles or ())
    if roles & NOT_DATA_ROLES:
        return False
    media = (asset.media_type or "").split(";")[0].strip().lower()
    path = asset.href.split("?")[0].lower()
    if media in WEB_IMAGES:
        return False
    # A raster's name counts too: a store's upload may have left application/octet-stream behind.
    return media.startswith("image/") or path.endswith(RASTER_SUFFIXES) or _bare_data(media, roles)


def _bare_data(media: str, roles: set[str]) -> bool:
    return not media and "data" in roles


def _asset_bands(item: pystac.Item, key: str, asset: pystac.Asset, silent_count: int) -> list[Band]:
    fields = asset.extra_fields
    # Later ones win: the asset's own fields stand for all its bands (STAC 1.1).
    lists = {name: _band_list(item, key, name, fields.get(name)) for name in BAND_ORDER}
    count = max(map(len, lists.values())) or silent_count
    # An Item from standard input without a self link: relative hrefs are of this folder.
    base = item.get_self_href() or str(Path.cwd() / "item.json")
    source_href = absolute(asset.href, base)
    href = unsigned(source_href)
    geobox = asset_grid(item, key, asset)
    bands = []
    for index in range(count):
        facts = _Facts(item.id)
        facts.add(("assets", key), {n: fields[n] for n in SHARED_FIELDS if n in fields})
        for name, entries in lists.items():
            if index < len(entries):
                facts.add(("assets", key, name, index), entries[index])
        common_name = facts.text("eo:common_name") or facts.text("common_name")
        described = str(facts.get("description")).lower()
        if not common_name and described in COMMON_NAMES:
            common_name = described
        name = facts.text("name") or (key if count == 1 else f"{key}.{index + 1}")
        bands.append(
            Band(
                name=name,
                asset=key,
                index=index + 1,
                href=href,
                source_href=source_href,
                dtype=_dtype(facts.get("data_type")),
                nodata=facts.nodata(),
                common_name=common_name,
                geobox=geobox,
                scale=facts.factor("scale", 1.0),
                offset=facts.factor("offset", 0.0),
            )
        )
    return bands


def _band_list(item: pystac.Item, key: str, name: str, value: object) -> list[dict[str, Any]]:
    """A list of band objects; refused where it is none, or where two have one name."""
    path = ("assets", key, name)
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise wrong(item.id, path, "a list of bands", value)
    names: set[str] = set()
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise wrong(item.id, (*path, index), "an object", entry)
        said = entry.get("name")
        if name == "bands" and isinstance(said, str):
            if said in names:
                raise wrong(item.id, (*path, index, "name"), "another one for each band", said)
            names.add(said)
    return list(value)


class _Facts:
    """What is said of one band, by field; the last word counts. Remembers where it was said."""

    def __init__(self, item_id: str) -> None:
        self._item_id = item_id
        self._said: dict[str, tuple[tuple[str | int, ...], Any]] = {}

    def add(self, path: tuple[str | int, ...], fields: Mapping[str, Any]) -> None:
        self._said |= {name: ((*path, name), value) for name, value in fields.items()}

    def get(self, name: str) -> Any:
        return self._said.get(name, ((), None))[1]

    def text(self, name: str) -> str | None:
        path, value = self._said.get(name, ((), None))
        if value is not None and not isinstance(value, str):
            raise wrong(self._item_id, path, "a text", value)
        return value or None

    def factor(self, name: str, default: float) -> float:
        """`raster:scale` or `raster:offset` (raster v2, STAC 1.1), else `scale`, `offset` (v1)."""
        for field in (f"raster:{name}", name):
            path, value = self._said.get(field, ((), None))
            if value is None:
                continue
            if not is_number(value):
                raise wrong(self._item_id, path, "a number", value)
            return float(value)
        return default

    def nodata(self) -> float | None:
        path, value = self._said.get("nodata", ((), None))
        if value is None:
            return None
        # STAC writes NaN and the infinities as text: "nan", "inf", "-inf".
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise wrong(self._item_id, path, "a number, 'nan', 'inf' or '-inf'", value) from error


def _dtype(value: object) -> str | None:
    # STAC's data types are numpy's names, but for "other" and the complex integers.
    known = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
    known |= {"float32", "float64"}
    return value if isinstance(value, str) and value in known else None
