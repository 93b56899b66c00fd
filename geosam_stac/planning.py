"""The dry run: what encoding a scene will take, from metadata and arithmetic alone.

Not called `plan`: a module of that name would stand in the place of `geosam_stac.plan()`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.registry import ModelEntry
from geosam_stac.errors import UsageError
from geosam_stac.grid import chip_refs, chip_shape, grid_shape, make_grid
from geosam_stac.types import ChipGrid, ChipRef, Scene

# Beside its tensors a file holds its header: of .pt a zip directory and the pickled names, 2 to
# 3 KB, of safetensors 0.6 to 1.2 KB and with int8 4 bytes a channel, measured.
OVERHEAD_BYTES = {"pt": 2_500, "safetensors": 1_200}
MANIFEST_ROW_BYTES = 400
# item, manifest, run.json, thumbnail
OTHER_OBJECTS = 4
ASSUMED_DTYPE = "uint16"
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a scene comes to.

    `width`, `height` in px; `resolution` in `unit`, of the `crs`. `chips` = `rows` x `cols` less
    `chips_outside`, which do not touch --geometry; those without a valid pixel, which only reading
    can tell, are among `chips`. `bytes_to_read` of decoded source pixels; `bytes_to_write` without
    compression (features are not compressed); `estimated_seconds` of the encoder alone, None
    where the device's rate is not known.
    """

    scene: str
    bands: tuple[str, ...]
    crs: str
    resolution: float
    unit: str
    width: int
    height: int
    rows: int
    cols: int
    chips: int
    chips_outside: int
    chip_px: int
    stride_px: int
    bytes_to_read: int
    objects: int
    bytes_to_write: int
    model: str
    device: str
    precision: str
    estimated_seconds: float | None
    notices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def chip_grid(scene: Scene, config: EncodeConfig, entry: ModelEntry) -> ChipGrid:
    """The chip grid that config and model ask for; refuses more than `max_chips` chips.

    Raises
    ------
    UsageError
        The chip is larger than the model's input, the stride larger than the chip, or there are
        too many chips.
    """
    chip_px = config.chip_size or entry.input_px
    if chip_px > entry.input_px:
        raise UsageError(
            f"--chip-size is larger than the input of {entry.name}",
            expected=f"1 to {entry.input_px}",
            got=str(chip_px),
            hint="To see more ground in a chip, give a coarser --resolution",
        )
    # The default overlaps chips of the model's own size; smaller ones must still meet.
    stride_px = config.stride or min(entry.stride_px, chip_px)
    grid = make_grid(scene.geobox, chip_px=chip_px, stride_px=stride_px)
    rows, cols = grid_shape(grid)
    if rows * cols > config.max_chips:
        height, width = scene.geobox.shape
        raise UsageError(
            f"the plan has {rows * cols:,} chips: {rows:,} x {cols:,} of {chip_px} px at stride "
            f"{grid.stride_px}, on {width:,} x {height:,} px",
            item=scene.id,
            expected=f"at most {config.max_chips:,}",
            hint="Narrow --bbox, give a coarser --resolution or larger --stride, or raise "
            "--max-chips",
        )
    return grid


def chips_outside(scene: Scene, chips: Iterable[ChipRef]) -> set[str]:
    """Ids of the chips that do not touch the scene's area; none where it has no area."""
    if scene.area is None:
        return set()
    refs = list(chips)
    boxes = np.array([ref.geobox.extent.geom for ref in refs], dtype=object)
    area = scene.area.geom
    shapely.prepare(area)
    return {refs[index].chip_id for index in np.flatnonzero(~shapely.intersects(area, boxes))}


def make_plan(
    scene: Scene,
    config: EncodeConfig,
    entry: ModelEntry,
    *,
    device: str,
    precision: str,
    device_tflops: float | None,
) -> Plan:
    """Count chips, bytes and objects of one scene, and estimate the encoder's time.

    `device_tflops` is the rate that an encoder reaches on the device at that precision, in TFLOP/s
    (`encoders.rate.encoder_tflops` measures it).
    """
    grid = chip_grid(scene, config, entry)
    rows, cols = grid_shape(grid)
    outside = len(chips_outside(scene, chip_refs(grid)))
    chips = rows * cols - outside
    height, width = scene.geobox.shape
    notices = list(scene.notices)
    if any(band.dtype is None for band in scene.bands):
        notices.append(f"the Item does not tell the data type: {ASSUMED_DTYPE} is assumed")
    outputs = entry.outputs_at(config.levels)
    values = sum(math.prod(spec.shape) for spec in outputs)
    chip_bytes = values * DTYPE_BYTES[config.feature_dtype] + OVERHEAD_BYTES[config.format]
    seconds = None
    if device_tflops:
        seconds = chips * entry.tflop_per_chip / device_tflops
    chip_h, chip_w = chip_shape(grid)
    if max(chip_h, chip_w) < entry.input_px:
        notices.append(
            f"chips of {chip_w} x {chip_h} px are enlarged to the model's {entry.input_px} px"
        )
    return Plan(
        scene=scene.id,
        bands=tuple(band.name for band in scene.bands),
        crs=str(scene.geobox.crs),
        resolution=math.hypot(scene.geobox.affine.a, scene.geobox.affine.d),
        unit=_unit(scene),
        width=width,
        height=height,
        rows=rows,
        cols=cols,
        chips=chips,
        chips_outside=outside,
        chip_px=grid.chip_px,
        stride_px=grid.stride_px,
        bytes_to_read=_source_bytes(scene),
        objects=chips + OTHER_OBJECTS + (1 if outside else 0),  # skipped.parquet
        bytes_to_write=chips * (chip_bytes + MANIFEST_ROW_BYTES),
        model=entry.name,
        device=device,
        precision=precision,
        estimated_seconds=seconds,
        notices=tuple(notices),
    )


def _unit(scene: Scene) -> str:
    """The CRS's unit, short."""
    unit = scene.geobox.crs.units[0] if scene.geobox.crs is not None else "units"
    return {"metre": "m", "degrees_north": "degrees", "degree": "degrees"}.get(unit, unit)


def _source_bytes(scene: Scene) -> int:
    """Decoded bytes of the source pixels under the scene's extent, at each band's own size.

    Of all Items of a mosaic, with the bands that tell which pixels are masked.
    """
    total = 0.0
    bands = [band for member in scene.members for band in (*member.bands, *member.masks)]
    for band in bands or scene.bands:
        itemsize = np.dtype(band.dtype or ASSUMED_DTYPE).itemsize
        grid = band.geobox
        if grid is None or grid.crs is None or scene.geobox.crs is None:
            continue
        if grid.crs == scene.geobox.crs:
            extent = scene.geobox.extent
        else:
            step = max(scene.geobox.boundingbox.span_x, scene.geobox.boundingbox.span_y) / 32
            extent = scene.geobox.extent.to_crs(grid.crs, resolution=step)
        covered = (extent & grid.extent).area / abs(grid.affine.determinant)
        # Coarser output than source: an overview is read, of a power of two.
        shrink = math.sqrt(abs(covered) / (scene.geobox.width * scene.geobox.height))
        level = 2 ** int(math.log2(shrink)) if shrink >= 2 else 1
        total += covered / level**2 * itemsize
    return round(total)
