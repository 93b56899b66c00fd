"""The dry run: what encoding a scene will take, from metadata and arithmetic alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from geosam_stac.config import EncodeConfig
from geosam_stac.encoders.registry import ModelEntry
from geosam_stac.errors import UsageError
from geosam_stac.grid import chip_shape, grid_shape, make_grid
from geosam_stac.types import ChipGrid, Scene

# Beside its tensors a .pt file holds a zip directory and the pickled names: 2 to 3 KB, measured.
PT_OVERHEAD_BYTES = 2_500
MANIFEST_ROW_BYTES = 400
# item, manifest, run.json, thumbnail
OTHER_OBJECTS = 4
ASSUMED_DTYPE = "uint16"
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a scene comes to.

    `width`, `height` in px; `resolution` in units of `crs`; `bytes_to_read` of decoded source
    pixels; `bytes_to_write` without compression (features are not compressed);
    `estimated_seconds` of the encoder alone, None where the device's rate is not known.
    """

    scene: str
    bands: tuple[str, ...]
    crs: str
    resolution: float
    width: int
    height: int
    rows: int
    cols: int
    chips: int
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
    grid = make_grid(scene.geobox, chip_px=chip_px, stride_px=config.stride)
    rows, cols = grid_shape(grid)
    if rows * cols > config.max_chips:
        height, width = scene.geobox.shape
        raise UsageError(
            f"the plan has {rows * cols:,} chips: {rows:,} x {cols:,} of {chip_px} px at stride "
            f"{config.stride}, on {width:,} x {height:,} px",
            item=scene.id,
            expected=f"at most {config.max_chips:,}",
            hint="Narrow --bbox, give a coarser --resolution or larger --stride, or raise "
            "--max-chips",
        )
    return grid


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

    `device_tflops` is the device's matrix rate in TFLOP/s at that precision.
    """
    grid = chip_grid(scene, config, entry)
    rows, cols = grid_shape(grid)
    chips = rows * cols
    height, width = scene.geobox.shape
    notices = list(scene.notices)
    if any(band.dtype is None for band in scene.bands):
        notices.append(f"the Item does not tell the data type: {ASSUMED_DTYPE} is assumed")
    values = sum(math.prod(spec.shape) for spec in entry.outputs)
    chip_bytes = values * DTYPE_BYTES[config.feature_dtype] + PT_OVERHEAD_BYTES
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
        resolution=abs(scene.geobox.affine.a),
        width=width,
        height=height,
        rows=rows,
        cols=cols,
        chips=chips,
        chip_px=grid.chip_px,
        stride_px=grid.stride_px,
        bytes_to_read=_source_bytes(scene),
        objects=chips + OTHER_OBJECTS,
        bytes_to_write=chips * (chip_bytes + MANIFEST_ROW_BYTES),
        model=entry.name,
        device=device,
        precision=precision,
        estimated_seconds=seconds,
        notices=tuple(notices),
    )


def _source_bytes(scene: Scene) -> int:
    """Decoded bytes of the source pixels under the scene's extent, at each band's own size."""
    total = 0.0
    for band in scene.bands:
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
