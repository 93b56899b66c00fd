"""A feature Item that was written, opened again: its manifest and chips, read when asked for."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import pystac
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geosam_stac import cards, features, hrefs, manifest
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.events import Sink, ignore
from geosam_stac.item import SHA256_MULTIHASH
from geosam_stac.store.chip import Loaded, StoredChip
from geosam_stac.store.decoder import Decoder, load_decoder
from geosam_stac.store.follow import Predictor, pick_chip
from geosam_stac.store.index import ChipIndex, chip_input_px, chip_shape, chip_transform
from geosam_stac.store.locate import place_of
from geosam_stac.store.objects import ObjectFolder, check_sha256, confined
from geosam_stac.store.places import LONLAT, box_in, point_in
from geosam_stac.store.prompting import from_arguments, from_layer
from geosam_stac.store.segmentation import Segmentation
from geosam_stac.store.segmenting import check_levels, segment

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
    cache_dir, token, sink
        For `decoder`: where checkpoints are kept, a Hugging Face token for gated ones, and who
        hears of the fetch.

    Raises
    ------
    DataError
        The Item is none of geosam-stac's features.
    """

    def __init__(
        self,
        item: pystac.Item,
        *,
        cache_chips: int = CACHE_CHIPS,
        cache_dir: Path | None = None,
        token: str | None = None,
        sink: Sink = ignore,
    ) -> None:
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
        folder, _ = place_of(asset.href, self.href, item.id)
        self.folder = ObjectFolder(folder)
        self._cache: OrderedDict[str, Loaded] = OrderedDict()
        self._cache_chips = max(1, cache_chips)
        self._lock = threading.RLock()
        self._decoders: dict[tuple[str | None, str], Decoder] = {}
        self._cache_dir, self._token, self._sink = cache_dir, token, sink

    def __repr__(self) -> str:
        return cards.plain(self.item.id, self._facts())

    def _repr_html_(self) -> str:
        """What a notebook shows: the facts and the thumbnail, if it can be had."""
        picture = None
        asset = self.item.assets.get("thumbnail")
        with contextlib.suppress(GeosamStacError):  # a missing picture must not hide the facts
            picture = None if asset is None else self.read_asset("thumbnail")
        return cards.card(self.item.id, self._facts(), png=picture)

    def _facts(self) -> dict[str, object]:
        """Of the Item alone, until the manifest was asked for: nothing is read to be shown."""
        said = self.item.properties
        facts: dict[str, object] = {
            "model": said.get("mlm:name"),
            "CRS": said.get("proj:code"),
            "resolution": said.get("geosam:resolution"),
            "chips": said.get("table:row_count"),
            "skipped": said.get("geosam:chips_skipped"),
        }
        if "manifest" in self.__dict__:
            facts["size"] = cards.megabytes(float(self.manifest["bytes"].sum()))
        return facts

    @property
    def model(self) -> ModelEntry:
        """The model that encoded it; ConfigurationError where this version knows it not."""
        return find_model(str(self.item.properties["mlm:name"]))

    @property
    def feature_names(self) -> list[str]:
        """The tensors that each chip has, as the Item says; empty where it does not say."""
        said = self.item.properties.get("geosam:features")
        entries = said if isinstance(said, list) else []
        return [
            str(entry["name"]) for entry in entries if isinstance(entry, dict) and "name" in entry
        ]

    @functools.cached_property
    def manifest(self) -> gpd.GeoDataFrame:
        """One row a chip with a feature, in the scene's CRS; columns as `manifest.COLUMNS`.

        Raises DataError where it is missing, unreadable, or not the one that the Item names.
        """
        return manifest.read(self.read_asset("manifest"))

    @functools.cached_property
    def skipped(self) -> gpd.GeoDataFrame:
        """One row a chip without a feature, with its reason; empty where there is none."""
        if "skipped" not in self.item.assets:
            columns = [column.name for column in manifest.SKIPPED_COLUMNS]
            return gpd.GeoDataFrame(columns=columns, geometry="geometry", crs=self.manifest.crs)
        return manifest.read_skipped(self.read_asset("skipped"))

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

    def decoder(self, checkpoint: str | None = None, *, device: str = "cpu") -> Decoder:
        """The model's mask decoder, with the weights that encoded this scene; loaded once.

        Parameters
        ----------
        checkpoint
            Path, URL or `untrained[:SEED]`. None: the model's own weights, from the cache or
            fetched; of random ones the same again.
        device
            cpu, cuda, cuda:N or mps.

        Raises
        ------
        ConfigurationError
            The scene was encoded with other weights, or the model is unknown here.
        """
        key = (checkpoint, device)
        with self._lock:
            if key not in self._decoders:
                self._decoders[key] = load_decoder(
                    self,
                    checkpoint,
                    cache_dir=self._cache_dir,
                    device=device,
                    sink=self._sink,
                    token=self._token,
                )
            return self._decoders[key]

    def segment(
        self,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        boxes: Sequence[tuple[float, float, float, float]] = (),
        mask: Any = None,
        *,
        prompts: gpd.GeoDataFrame | str | Path | None = None,
        crs: str | None = None,
        multimask: bool = False,
        follow: bool = True,
        checkpoint: str | None = None,
        device: str = "cpu",
        decoder: Predictor | None = None,
    ) -> Segmentation:
        """Masks of what is prompted, by the model's own decoder. The raster is not read.

        Parameters
        ----------
        points, labels
            Longitude and latitude of clicks on one object, and for each 1 (on the object, the
            default) or 0 (off it).
        boxes
            West, south, east, north. One joins the points; several are several objects.
        mask
            A rough shape of the object: a raster or vector file, a GeoDataFrame, or a geometry.
        prompts
            Many objects: a vector layer, or its file (see `store.prompting.from_layer`).
        crs
            Of points, boxes and a geometry; "native" for the scene's own.
        multimask
            Three masks of each object, for a prompt that may mean a part or the whole.
        follow
            Whether an object that crosses its chip's border is followed into the neighbours.
        checkpoint, device
            As for `decoder`.
        decoder
            One that is loaded already: of another scene of the same model and weights.

        Returns
        -------
        Segmentation
            `masks`, `scores`, `polygons`; `write(path)`.

        Raises
        ------
        UsageError
            A prompt is malformed, outside the scene or on a skipped chip.
        DataError
            Features are missing, damaged, or without the levels that the decoder needs.
        ConfigurationError
            The weights are not those of the scene.
        """
        if decoder is None:
            check_levels(self)
        failed: Mapping[Any, UsageError] = {}
        if prompts is not None:
            if len(points) or len(boxes) or mask is not None:
                raise UsageError("prompts of a file and others cannot be mixed")
            asked, failed = from_layer(self, prompts)
        else:
            asked = from_arguments(
                self, points=points, labels=labels, boxes=boxes, mask=mask, crs=crs
            )
        for prompt in asked[:1] if prompts is None else ():
            pick_chip(self, prompt)  # a place without features is told before a model is loaded
        return segment(
            self,
            decoder or self.decoder(checkpoint, device=device),
            asked,
            failed=failed,
            multimask=multimask,
            follow=follow,
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
            try:
                data = self.folder.get(chip.feature_href)
            except DataError as error:
                error.hint = error.hint or "`geosam-stac verify ITEM --repair` encodes it again"
                raise
            check_sha256(data, chip.sha256, href=self.folder.href(chip.feature_href), chip=chip.id)
        return data

    def read_key(self, key: str) -> bytes:
        """An object beside the manifest, by its relative href; DataError where there is none."""
        with self._at_item():
            return self.folder.get(confined(key))

    def read_asset(self, name: str) -> bytes:
        """A file that the Item names, of its folder, checked against the sha256 that it says.

        Raises
        ------
        DataError
            There is no such asset or file, or it is another one.
        TemporaryError
            The store does not answer.
        """
        asset = self.item.assets.get(name)
        if asset is None:
            raise DataError(f"the Item has no asset {name!r}", item=self.item.id)
        key = place_of(asset.href, self.href, self.item.id)[1]
        with self._at_item():
            data = self.folder.get(key)
            checksum = asset.extra_fields.get("file:checksum")
            if isinstance(checksum, str) and checksum.startswith(SHA256_MULTIHASH):
                expected = checksum.removeprefix(SHA256_MULTIHASH)
                check_sha256(data, expected, href=self.folder.href(key))
        return data

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

    @contextlib.contextmanager
    def _at_item(self, *, chip: str | None = None, href: str | None = None) -> Iterator[None]:
        """Errors of the block say of which Item they are."""
        try:
            yield
        except GeosamStacError as error:
            error.at(item=self.item.id, chip=chip, href=href)
            raise
