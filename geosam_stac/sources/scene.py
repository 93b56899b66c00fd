"""Items + config -> Scene: the bands that are read and the grid that they are read on.

Reads headers, never pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pystac
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.derive import Expression, Mask
from geosam_stac.errors import DataError
from geosam_stac.retry import Retries
from geosam_stac.sources.bands import named_bands, select_bands, tells_bands
from geosam_stac.sources.checks import path_of
from geosam_stac.sources.extent import EARTH_RADIUS_M, output_grid, project
from geosam_stac.sources.groups import Group
from geosam_stac.sources.guard import Guarded, guard
from geosam_stac.sources.headers import Header, read_header
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.items import self_href
from geosam_stac.sources.unscaled import unscaled_notice
from geosam_stac.types import Access, Band, Member, PlainAccess, Scene


def open_scene(
    source: pystac.Item | Group,
    config: EncodeConfig,
    *,
    read_headers: bool = True,
    access: Callable[[pystac.Item], Access] | None = None,
    retries: Retries | None = None,
    hosts: Hosts | None = None,
    of_stored: bool = False,
) -> Scene:
    """Choose bands and grid of one Item, or of the Items of one mosaic.

    Parameters
    ----------
    source
        The source Item or Items, hrefs unsigned or as given.
    config
        What is read (`bands`, `expression`, `index`, `mask`, `scaled`) and the grid (`bbox`,
        `geometry`, `crs`, `resolution`).
    read_headers
        False trusts the Items' metadata and opens a file only where they are not enough to know
        bands and grid, as a dry run does. True opens every asset and lets the files have the last
        word.
    access
        How the files of each Item are opened; default: as they are.
    retries
        How the reading of a header is tried again.
    hosts
        Which hosts remote Items may name; default: public ones.
    of_stored
        The expression was written for the values as they are stored, as those of the catalog
        profiles: no notice that they are not scaled.

    Raises
    ------
    DataError
        Band not there, file missing or not georeferenced, extent outside the Item, a mosaic of
        several CRSs without --crs.
    UsageError
        An unknown CRS, more than three bands, an expression or mask that is none.
    """
    group = source if isinstance(source, Group) else Group(id=source.id, items=(source,))
    recipe = _Recipe.of(config)
    hosts = hosts or Hosts(allow_private=config.allow_private_hosts)
    members = tuple(
        _member(
            item,
            config,
            recipe,
            read_headers,
            _Headers(
                item.id,
                guard(hosts, item, access(item) if access else PlainAccess()),
                retries,
            ),
        )
        for item in group.items
    )
    base = _common_grid([_finest(member.bands) for member in members], config, group.id)
    geobox, area, notices = output_grid(base, config, item_id=group.id)
    if recipe.expression is not None and not (config.scaled or of_stored):
        found = [
            unscaled_notice(recipe.expression, member.bands, is_index=config.expression is None)
            for member in members
        ]
        notices += tuple(dict.fromkeys(notice for notice in found if notice is not None))
    first = group.items[0]
    bands = members[0].bands
    return Scene(
        id=group.id,
        collection=first.collection_id,
        href=self_href(first),
        items=group.items,
        bands=bands,
        geobox=geobox,
        nodata=bands[0].nodata,
        datetime=_utc(first.datetime) if len(group.items) == 1 else None,
        area=area,
        notices=notices,
        members=members,
        expression=recipe.expression,
        masks=recipe.masks,
        scaled=config.scaled,
    )


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the config asks to be computed."""

    expression: Expression | None
    masks: tuple[Mask, ...]

    @classmethod
    def of(cls, config: EncodeConfig) -> _Recipe:
        expression = None
        if config.expression is not None:
            expression = Expression.parse(config.expression)
        elif config.index is not None:
            expression = Expression.index(config.index)
        masks = () if config.mask is None else (Mask.parse(config.mask),)
        return cls(expression=expression, masks=masks)


def _member(
    item: pystac.Item,
    config: EncodeConfig,
    recipe: _Recipe,
    read_headers: bool,
    headers: _Headers,
) -> Member:
    access = headers.access
    if recipe.expression is None:
        bands = _choose(item, config.bands, headers)
    else:
        bands = named_bands(item, dict.fromkeys(recipe.expression.bands.values()))
    masks = named_bands(item, [mask.band for mask in recipe.masks])
    if isinstance(access, Guarded):
        bands, masks = _fence(bands, access), _fence(masks, access)
    if read_headers or any(band.geobox is None for band in bands):
        bands = tuple(headers.complete(band) for band in bands)
        masks = tuple(headers.complete(band) for band in masks)
    return Member(item_id=item.id, bands=bands, masks=masks)


def _fence(bands: tuple[Band, ...], access: Guarded) -> tuple[Band, ...]:
    """The bands of a stranger's Item: their hrefs checked as far as no packet is needed for it."""
    for band in bands:
        access.hosts.check_form(band.source_href, item=access.item)
    return tuple(dataclasses.replace(band, fenced=True) for band in bands)


def _common_grid(grids: list[GeoBox], config: EncodeConfig, scene_id: str) -> GeoBox:
    """A grid that covers all members: the first one's, continued."""
    base = grids[0]
    if len(grids) == 1:
        return base
    codes = list(dict.fromkeys(str(grid.crs) for grid in grids))
    if len(codes) > 1:
        if config.crs.lower() == "native":
            raise DataError(
                "the Items of one mosaic have several CRSs",
                item=scene_id,
                got=", ".join(codes),
                hint="Give --crs EPSG:n or --crs utm, or --groupby id",
            )
        whole = config.replace({"bbox": None, "geometry": None})
        base = output_grid(base, whole, item_id=scene_id)[0]
    if base.crs is None:
        raise DataError("the Items' bands have no CRS", item=scene_id)
    extents = [project(grid.extent, base.crs) for grid in grids]
    return base.enclosing(functools.reduce(operator.or_, extents).boundingbox)


class _Headers:
    """The headers of an Item's files, each read once."""

    def __init__(self, item_id: str, access: Access, retries: Retries | None) -> None:
        self._item_id = item_id
        self.access = access
        self._retries = retries
        self._known: dict[str, Header] = {}

    def of(self, asset: str, source_href: str) -> Header:
        if source_href not in self._known:
            try:
                self._known[source_href] = read_header(
                    source_href, item=self._item_id, access=self.access, retries=self._retries
                )
            except DataError as error:
                error.hint = f"{error.hint or 'See the Item'} ({path_of('assets', asset, 'href')})"
                raise
        return self._known[source_href]

    def complete(self, band: Band) -> Band:
        """The band with the grid, dtype and nodata of its file."""
        header = self.of(band.asset, band.source_href)
        if band.index > len(header.dtypes):
            raise DataError(
                f"no band {band.name!r}",
                item=self._item_id,
                href=band.href,
                expected=f"a band number of 1 to {len(header.dtypes)}",
                got=str(band.index),
            )
        dtype = header.dtypes[band.index - 1]
        in_file = header.nodata[band.index - 1]
        return dataclasses.replace(
            band,
            dtype=dtype,
            # The file's own nodata is what GDAL and odc-loader go by; the Item fills the gap.
            nodata=_representable(in_file if in_file is not None else band.nodata, dtype),
            geobox=header.geobox,
        )


def _choose(
    item: pystac.Item, names: tuple[str, ...] | None, headers: _Headers
) -> tuple[Band, ...]:
    """The bands; of an asset that the Item says nothing about, as many as its header tells."""
    bands = select_bands(item, names)
    silent = {
        band.asset: band.source_href
        for band in bands
        if not tells_bands(item.assets[band.asset]) and (names is None or band.asset in names)
    }
    counts = {key: headers.of(key, href).data_bands for key, href in silent.items()}
    return select_bands(item, names, counts=counts) if counts else bands


def _representable(nodata: float | None, dtype: str) -> float | None:
    """The value as the dtype holds it; None where it cannot: then no pixel ever is nodata.

    Items say -9999 or NaN of uint8 files, and GDAL refuses to warp with such a value.
    """
    kind = np.dtype(dtype)
    if nodata is None:
        return None
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            held = float(kind.type(nodata))
        return held if math.isfinite(held) or not math.isfinite(nodata) else None
    if not math.isfinite(nodata) or nodata != int(nodata):
        return None
    limits = np.iinfo(kind)
    return nodata if limits.min <= nodata <= limits.max else None


def _finest(bands: tuple[Band, ...]) -> GeoBox:
    grids = [band.geobox for band in bands if band.geobox is not None]
    return min(grids, key=_pixel_area_m2)


def _pixel_area_m2(grid: GeoBox) -> float:
    """About: a degree is as long as at the equator. One Item's bands may have several CRSs."""
    area = abs(grid.affine.determinant)
    if grid.crs is None or not grid.crs.proj.axis_info:
        return area
    # To metres, or of an angle to radians.
    unit = grid.crs.proj.axis_info[0].unit_conversion_factor
    return float(area * (unit * (EARTH_RADIUS_M if grid.crs.geographic else 1.0)) ** 2)


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
