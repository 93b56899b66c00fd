"""A feature Item that was written, opened again: its manifest and chips, read when asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pystac
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geosam_stac import features, hrefs, manifest
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.item import SHA256_MULTIHASH
from geosam_stac.sources.items import read_item
from geosam_stac.storage import Store, read_text
from geosam_stac.store.chip import Loaded, StoredChip
from geosam_stac.store.index import ChipIndex, chip_input_px, chip_shape, chip_transform
from geosam_stac.store.objects import ObjectFolder, check_sha256, confined
from geosam_stac.store.places import LONLAT, box_in, point_in

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE_CHIPS = 8
"""Chips whose tensors stay in memory; a SAM 2 chip of float16 has 8 MB."""


class FeatureItem:
    """A scene's features; made by `open_features`.

    Nothing but the Item is read before it is asked for. Safe to use from several threads.

    Parameters
    ----------
    item
        A feature Item with a self link.
    cache_chips
        How many chips' tensors are kept in memory.

    Raises
    ------
    DataError
        The Item is none of geosam-stac's features.
    """

    def __init__(self, item: pystac.Item, *, cache_chips: int = CACHE_CHIPS) -> None:
        self.item = item
        self.href = item.get_self_href() or ""
        asset = item.assets.get("manifest")
        if asset is None or "mlm:name" not in item.properties:
            raise DataError(
                "this Item describes no features",
                item=item.id,
                href=hrefs.unsigned(self.href),
                expected="an Item that geosam-stac wrote, with mlm:name and a manifest",
                hint="Encode it first: geosam-stac encode --item",
            )
        folder, self._manifest_key = _place_of(asset.href, self.href, item.id)
        self.folder = ObjectFolder(folder)
        self._cache: OrderedDict[str, Loaded] = OrderedDict()
        self._cache_chips = max(1, cache_chips)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        said = self.item.properties
        return (
            f"<FeatureItem {self.item.id}: {said.get('table:row_count')} chips of "
            f"{said.get('mlm:name')}, {said.get('proj:code')}>"
        )

    @property
    def model(self) -> ModelEntry:
        """The model that encoded it; ConfigurationError where this version knows it not."""
        return find_model(str(self.item.properties["mlm:name"]))

    @functools.cached_property
    def manifest(self) -> gpd.GeoDataFrame:
        """One row a chip with a feature, in the scene's CRS; columns as `manifest.COLUMNS`.

        Raises DataError where it is missing, unreadable, or not the one that the Item names.
        """
        return manifest.read(self._table("manifest", self._manifest_key))

    @functools.cached_property
    def skipped(self) -> gpd.GeoDataFrame:
        """One row a chip without a feature, with its reason; empty where there is none."""
        asset = self.item.assets.get("skipped")
        if asset is None:
            columns = [column.name for column in manifest.SKIPPED_COLUMNS]
            return gpd.GeoDataFrame(columns=columns, geometry="geometry", crs=self.manifest.crs)
        key = _place_of(asset.href, self.href, self.item.id)[1]
        return manifest.read_skipped(self._table("skipped", key))

    @functools.cached_property
    def index(self) -> ChipIndex:
        """Where the chips lie."""
        with self._at_item():
            return ChipIndex(self.manifest, self.skipped)

    @property
    def crs(self) -> CRS:
        """The scene's CRS."""
        return self.index.crs

    @property
    def geobox(self) -> GeoBox:
        """The scene's pixel grid, as far as its chips cover it."""
        return self.index.geobox

    def chip(self, chip_id: str) -> StoredChip:
        """The chip of an id; UsageError where there is none with a feature."""
        rows = (self.manifest["chip_id"] == chip_id).to_numpy().nonzero()[0]
        if not len(rows):
            raise UsageError(
                "there is no such chip with a feature",
                item=self.item.id,
                chip=chip_id,
                hint="Their ids stand in .manifest.chip_id",
            )
        return self.chip_of_row(int(rows[0]))

    def chips(
        self,
        bbox: tuple[float, float, float, float] | None = None,
        *,
        crs: str | None = None,
    ) -> Iterator[StoredChip]:
        """All chips with a feature, row-major; or those that a box touches.

        Parameters
        ----------
        bbox
            West, south, east, north. In degrees, west > east crosses the antimeridian.
        crs
            Of the box: longitude and latitude by default, "native" for the scene's own.

        Raises
        ------
        UsageError
            The box is malformed, or the CRS unknown.
        """
        rows: Sequence[int] = range(len(self.manifest))
        if bbox is not None:
            area = box_in(bbox, crs or LONLAT, self.geobox)
            rows = [int(row) for row in self.index.touching(area)]
        return (self.chip_of_row(row) for row in rows)

    def chip_at(self, x: float, y: float, *, crs: str | None = None) -> StoredChip:
        """The chip that covers a point and whose centre is nearest to it, as Geo-SAM picks it.

        Parameters
        ----------
        x, y
            Longitude and latitude, or coordinates in `crs`.
        crs
            Longitude and latitude by default, "native" for the scene's own.

        Raises
        ------
        UsageError
            The point lies outside the scene, or where chips were skipped.
        """
        point = point_in((x, y), crs or LONLAT, self.geobox)
        rows = self.index.covering(point)
        if not len(rows):
            raise self.not_covered(point, f"{x:.8g},{y:.8g}")
        return self.chip_of_row(self.index.nearest(rows, point.x, point.y))

    def chip_of_row(self, row: int) -> StoredChip:
        """The chip in a row of the manifest, by its number."""
        record = self.manifest.iloc[row]
        with self._at_item():
            affine, shape = chip_transform(record), chip_shape(record)
            chip_id = str(record["chip_id"])
            return StoredChip(
                id=chip_id,
                row=int(record["row"]),
                col=int(record["col"]),
                geobox=GeoBox(shape, affine, self.crs),
                window=self.index.window(row),
                input_px=chip_input_px(record),
                valid_fraction=float(record["valid_fraction"]),
                feature_href=confined(record["feature_href"], chip=chip_id),
                bytes=int(record["bytes"]),
                sha256=str(record["sha256"]),
                load=self._load,
            )

    def read_object(self, chip: StoredChip) -> bytes:
        """A chip's feature file, checked against its sha256.

        Raises
        ------
        DataError
            There is none, or it is another one.
        TemporaryError
            The store does not answer.
        """
        with self._at_item(chip=chip.id):
            data = self.folder.get(chip.feature_href)
            check_sha256(data, chip.sha256, href=self.folder.href(chip.feature_href), chip=chip.id)
        return data

    def read_key(self, key: str) -> bytes:
        """An object beside the manifest, by its relative href; DataError where there is none."""
        with self._at_item():
            return self.folder.get(confined(key))

    def not_covered(self, geometry: Any, said: str) -> UsageError:
        """The error of a prompt (in the scene's CRS) that no chip covers: outside, or skipped."""
        skipped = self.skipped
        hit = (
            shapely.intersects(skipped.geometry.to_numpy(), geometry).nonzero()[0]
            if len(skipped)
            else []
        )
        if len(hit):
            row = skipped.iloc[int(hit[0])]
            return UsageError(
                "this place has no features: its chip was skipped",
                item=self.item.id,
                chip=str(row["chip_id"]),
                got=f"{said} ({row['reason']})",
            )
        extent = self.geobox.geographic_extent.boundingbox.bbox
        return UsageError(
            "this place lies outside the scene",
            item=self.item.id,
            expected="within W,S,E,N "
            + ",".join(f"{value:.6g}" for value in extent)
            + " (longitude, latitude)",
            got=said,
            hint="Check the order, longitude before latitude, and --crs",
        )

    def _load(self, chip: StoredChip) -> Loaded:
        with self._lock:
            if chip.id in self._cache:
                self._cache.move_to_end(chip.id)
                return self._cache[chip.id]
        data = self.read_object(chip)
        with self._at_item(chip=chip.id, href=self.folder.href(chip.feature_href)):
            loaded: Loaded = features.read(data)
        with self._lock:
            self._cache[chip.id] = loaded
            while len(self._cache) > self._cache_chips:
                self._cache.popitem(last=False)
        return loaded

    def _table(self, name: str, key: str) -> bytes:
        with self._at_item():
            data = self.folder.get(key)
            checksum = self.item.assets[name].extra_fields.get("file:checksum")
            if isinstance(checksum, str) and checksum.startswith(SHA256_MULTIHASH):
                expected = checksum.removeprefix(SHA256_MULTIHASH)
                check_sha256(data, expected, href=self.folder.href(key))
            return data

    @contextlib.contextmanager
    def _at_item(self, *, chip: str | None = None, href: str | None = None) -> Iterator[None]:
        """Errors of the block say of which Item they are."""
        try:
            yield
        except GeosamStacError as error:
            error.at(item=self.item.id, chip=chip, href=href)
            raise


def open_item(
    source: str | os.PathLike[str] | pystac.Item | Mapping[str, Any],
    *,
    read_text: Callable[[str], str] = read_text,
) -> pystac.Item:
    """The Item of a feature Item's href, of the folder that it lies in, or as it is.

    Raises
    ------
    DataError
        There is none, or it is no STAC Item.
    """
    if isinstance(source, pystac.Item):
        return source
    if isinstance(source, Mapping):
        from geosam_stac.sources import parse_item

        return parse_item(dict(source), href=None)
    href = os.fspath(source)
    if _is_folder(href):
        href = _item_in(href)
    return read_item(href, read_text=read_text)


def _is_folder(href: str) -> bool:
    if href.lower().startswith(("http://", "https://")):
        return href.endswith("/")
    if hrefs.is_local(href):
        return hrefs.to_local_path(href).is_dir()
    return href != "-" and not href.endswith(".json")


def _item_in(folder: str) -> str:
    """The Item's JSON in a folder: of the folder's name; in one that was renamed, the only one."""
    objects = ObjectFolder(folder)
    key = f"{objects.url.rpartition('/')[2]}.json"
    if objects.exists(key):
        return objects.href(key)
    others: list[str] = []
    if not objects.is_http:
        keys = (
            sorted(path.name for path in Path(objects.url).glob("*.json"))
            if objects.is_local
            else Store(objects.url).keys("")
        )
        others = [name for name in keys if _may_be_item(name)]
    if len(others) != 1:
        raise DataError(
            "there is no feature Item in this folder",
            href=hrefs.unsigned(objects.url),
            expected=f"{key}, as encode writes it",
            got=f"{len(others)} documents that may be one" if others else None,
            hint="Name the Item's JSON file",
        )
    return objects.href(others[0])


def _may_be_item(name: str) -> bool:
    return (
        "/" not in name
        and name.endswith(".json")
        and name not in ("run.json", "catalog.json", "collection.json")
    )


def _place_of(asset_href: str, item_href: str, item_id: str) -> tuple[str, str]:
    """Folder and name of an Item's table. Relative hrefs stay in the Item's own folder."""
    try:
        if "://" in asset_href or asset_href.startswith("/"):
            where = asset_href
            if hrefs.is_local(where) and item_href and not hrefs.is_local(item_href):
                raise DataError(
                    "an Item from elsewhere names a file of this machine",
                    href=hrefs.unsigned(item_href),
                    got=asset_href,
                )
        else:
            if not item_href:
                raise DataError(
                    "the Item's own href is not known, and its tables are relative to it",
                    hint="Open it by its href",
                )
            where = hrefs.absolute(confined(asset_href), item_href)
    except DataError as error:
        raise error.at(item=item_id) from None
    folder, _, name = where.partition("?")[0].rpartition("/")
    return folder, name
