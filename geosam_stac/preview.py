"""A scene's embeddings as a picture: colours fitted once, a COG on the scene's grid, a PNG.

Features are read twice, a chip at a time: a sample for the colours, then all in their order. What
is held is one row of chips in three planes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import pystac
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from pystac.utils import datetime_to_str
from rasterio.windows import Window as RasterWindow

from geosam_stac import item as items
from geosam_stac import mosaic, pca
from geosam_stac.errors import DataError, UsageError
from geosam_stac.features import IMAGE_EMBED
from geosam_stac.hrefs import unsigned
from geosam_stac.storage import Store
from geosam_stac.store import FeatureItem, StoredChip
from geosam_stac.thumbnail import factor_of, valid_of
from geosam_stac.types import Window

OVERVIEW, COLOURS = "overview", "pca"
OVERVIEW_NAME, COLOURS_NAME = "overview.tif", "pca.json"
FIT_CHIPS = 64
"""Chips whose vectors the colours are fitted to: of a SAM 2 scene 0.5 GB are read."""
FIT_VECTORS = 512
NODATA = 0
PNG_LEAST_PX, PNG_MOST_PX = 1024, 4096
_COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"


def projection(features: FeatureItem, *, refit: bool = False, seed: int = 0) -> pca.Projection:
    """The colours of a scene: those that are stored beside its Item, else fitted.

    Parameters
    ----------
    features
        The scene.
    refit
        Fit them again, whatever is stored.
    seed
        Of the sample of chips and vectors.

    Raises
    ------
    DataError
        The scene has no chip with a feature, or a file is not the one that was written.
    """
    if COLOURS in features.item.assets and not refit:
        return pca.Projection.from_json(features.read_asset(COLOURS))
    rows = np.arange(len(features.manifest))
    if len(rows) > FIT_CHIPS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, FIT_CHIPS, replace=False))
    valid = _Validity.of(features)
    samples = []
    for row in rows:
        chip = features.chip_of_row(int(row))
        cells = _cells(features, chip)
        content = mosaic.content_of(_embedding(chip), cells)
        known = valid.under(cells, chip.window.row_off, chip.window.col_off, content.shape[1:])
        if known.any():  # what nodata looks like to the encoder is nobody's colour
            content = content[:, known]
        samples.append(pca.sample(content, name=chip.id, count=FIT_VECTORS, seed=seed))
    if not samples:
        raise DataError("the scene has no chip with a feature", item=features.item.id)
    return pca.fit(np.concatenate(samples))


def cog(features: FeatureItem, colours: pca.Projection, path: Path) -> None:
    """Write the picture as a COG: three bands of uint8, 0 is nodata, a pixel a cell.

    Its grid has the scene's CRS and origin, and ends within half a pixel of the scene's ends.
    Nodata are areas that no chip with a feature covers, and cells whose centre the scene's
    thumbnail shows without a valid pixel.
    """
    first = next(features.chips(), None)
    if first is None:
        raise DataError("the scene has no chip with a feature", item=features.item.id)
    cells = _cells(features, first)
    height, width = cells.shape
    valid = _Validity.of(features)
    with tempfile.TemporaryDirectory(prefix="geosam-stac-") as folder:
        # The COG driver writes a whole file at once; strips go to a plain one first.
        plain = Path(folder) / "strips.tif"
        with rasterio.open(
            plain,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=3,
            dtype="uint8",
            nodata=NODATA,
            crs=features.crs.to_wkt(),
            transform=cells.geobox.affine,
            photometric="RGB",
            BIGTIFF="IF_SAFER",
        ) as dataset:
            for row, values, covered in mosaic.blend(cells, _coloured(features, cells, colours)):
                known = covered & valid.under(cells, row * cells.cell_px[0], 0, covered.shape)
                pixels = np.where(known, pca.to_rgb8(values), np.uint8(NODATA))
                dataset.write(pixels, window=RasterWindow(0, row, width, pixels.shape[1]))
        rasterio.shutil.copy(
            plain, path, driver="COG", COMPRESS="DEFLATE", RESAMPLING="AVERAGE", NUM_THREADS="1"
        )


def png(path: Path) -> bytes:
    """The COG as a PNG, transparent where it has no data.

    Small ones are enlarged by a whole factor to about 1024 px, large ones reduced to 4096 px.
    """
    with rasterio.open(path) as dataset:
        image = image_of(dataset, PNG_MOST_PX)
    factor = max(1, round(PNG_LEAST_PX / max(image.size)))
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        # Pillow weighs colours by their opacity, so that nodata's black does not run into the edge
        # of the data; the edge itself stays sharp.
        colour = image.resize(size, Image.Resampling.BICUBIC)
        colour.putalpha(image.getchannel("A").resize(size, Image.Resampling.NEAREST))
        image = colour
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def image_of(dataset: rasterio.DatasetReader, most_px: int) -> Image.Image:
    """The COG as RGBA, transparent where it has no data, reduced to at most `most_px` a side."""
    shrink = max(1, -(-max(dataset.shape) // most_px))
    shape = tuple(-(-size // shrink) for size in dataset.shape)
    pixels = dataset.read(out_shape=(3, *shape))
    alpha = dataset.dataset_mask(out_shape=shape)
    return Image.fromarray(np.dstack([*pixels, alpha]))


def attach(features: FeatureItem, colours: pca.Projection, picture: bytes) -> pystac.Item:
    """Write the COG and its colours into the Item's folder, and the Item anew with both as assets.

    The Item is written last and whole; a reader sees it with both, or as it was.

    Returns
    -------
    pystac.Item
        As it is written.

    Raises
    ------
    UsageError
        It is a catalog's copy of the Item.
    StorageError, TemporaryError, ConfigurationError
        The folder cannot be written.
    """
    folder, _, name = features.href.rpartition("/")
    store = Store(folder)
    if store.href(name) != features.folder.href(name):
        original = features.item.get_single_link("canonical")
        raise UsageError(
            "pictures are kept beside the features, and this is a catalog's copy of their Item",
            item=features.item.id,
            href=unsigned(features.href),
            hint="Give the Item itself"
            + ("" if original is None else f": {unsigned(original.get_target_str() or '')}"),
        )
    # Without an href: pystac would write the self link anew, as plain JSON.
    item = pystac.Item.from_dict(json.loads(store.get(name)), preserve_dict=False)
    with rasterio.MemoryFile(picture) as memory, memory.open() as dataset:
        grid = {
            "proj:shape": list(dataset.shape),
            "proj:transform": list(dataset.transform)[:6],
            "data_type": "uint8",
            "nodata": NODATA,
        }
    document = colours.to_json()
    for key, file, data, title, media_type, roles, fields in (
        (COLOURS, COLOURS_NAME, document, "Colours of the overview", "application/json",
         ["metadata"], {}),
        (OVERVIEW, OVERVIEW_NAME, picture, "Embeddings as a picture (PCA)", _COG_TYPE,
         ["overview", "visual"], grid),
    ):  # fmt: skip
        store.put(file, data)
        facts = {
            "file:size": len(data),
            "file:checksum": items.SHA256_MULTIHASH + hashlib.sha256(data).hexdigest(),
        }
        asset = pystac.Asset(
            f"./{file}", title=title, media_type=media_type, roles=roles,
            extra_fields={**facts, **fields},
        )  # fmt: skip
        item.add_asset(key, asset)
    item.properties["updated"] = datetime_to_str(datetime.now(UTC))
    item.stac_extensions = sorted({*item.stac_extensions, *items.used_extensions(item)})
    store.put(name, items.to_bytes(item))
    return item


@dataclass(frozen=True, kw_only=True)
class _Validity:
    """Which places of a scene hold a valid pixel, as far as its thumbnail tells.

    `mask`: (H, W), True = valid, a px is `factor` px of the scene; None where nothing is known:
    of Items of an older version, and of a part of a scene that was pulled.
    """

    mask: NDArray[np.bool_] | None
    factor: int

    @classmethod
    def of(cls, features: FeatureItem) -> Self:
        shape = features.geobox.shape
        mask = None
        if "thumbnail" in features.item.assets:
            with contextlib.suppress(DataError):  # a lost thumbnail does not stop a picture
                mask = valid_of(features.read_asset("thumbnail"), (shape.y, shape.x))
        return cls(mask=mask, factor=factor_of((shape.y, shape.x)))

    def under(
        self, cells: mosaic.Cells, top_px: float, left_px: float, shape: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """Of (rows, columns) of cells from a place on, (y, x) in px: whose centre is valid."""
        if self.mask is None:
            return np.ones(shape, dtype=bool)
        rows, cols = (
            np.clip((start + (np.arange(count) + 0.5) * step) // self.factor, 0, length - 1)
            for start, count, step, length in zip(
                (top_px, left_px), shape, cells.cell_px, self.mask.shape, strict=True
            )
        )
        found: NDArray[np.bool_] = self.mask[np.ix_(rows.astype(int), cols.astype(int))]
        return found


def _embedding(chip: StoredChip) -> NDArray[np.generic]:
    tensors = chip.tensors
    if IMAGE_EMBED not in tensors:
        raise DataError(
            f"the chip has no tensor {IMAGE_EMBED}", chip=chip.id, got=", ".join(tensors)
        )
    return tensors[IMAGE_EMBED]


def _cells(features: FeatureItem, chip: StoredChip) -> mosaic.Cells:
    step = chip.input_px / _embedding(chip).shape[-1]
    height, width = chip.geobox.shape
    return mosaic.make_cells(
        features.geobox, (height, width), content_px=chip.content_px, stride_px=step
    )


def _coloured(
    features: FeatureItem, cells: mosaic.Cells, colours: pca.Projection
) -> Iterator[tuple[Window, mosaic.FloatArray]]:
    for chip in features.chips():
        yield chip.window, colours.colours(mosaic.content_of(_embedding(chip), cells))
