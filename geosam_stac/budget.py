"""`--max-memory` shared out: threads, tiles, queues. Pure arithmetic.

What is bounded is what is on its way: source pixels, chips, features. The program itself, the
model and what it computes with come on top. Imports `config` and `types` alone.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from geosam_stac.config import EncodeConfig
from geosam_stac.types import EncoderSpec

GB = 1e9
# Readers that outnumber the processors wait for the network; more than these do not help a device.
READERS = (4, 16)
WRITERS = (4, 8)
# Pixels that are read at once: less is all overhead (`odc.stac.load` takes 25 ms a call, and of one
# block alone GDAL asks for more than its bytes), more saves none: two blocks of 1024 px, as wide as
# tiles are (`windows.WIDE_PX`).
LEAST_AREA_PX, MOST_AREA_PX = 1 << 18, 1 << 21
# A tile is loaded into three times its bytes: those, the same again as odc-stac hands them over,
# and what GDAL takes; then its uint8 and its masks, but one copy less. Most are of three bands of
# uint16.
LOADING_COPIES = 3
READER_BYTES_PER_PX = LOADING_COPIES * 3 * 2
# Of --max-memory, in pixels for each byte.
READS_OF_TOTAL = 4_250_000 / 1e9
# Of --max-memory: tiles that are read ahead, as uint8; tiles while they are loaded; chips that wait
# for the device; features that wait for a writer. Before chips and features exist, a scan for the
# value range may keep more. The rest is for what the device and the writers hold.
TILES, LOADING, CHIPS, FEATURES, SCAN = 0.1, 0.4, 0.1, 0.1, 0.8
# Queued batches: one that the device takes next, and one that is being made.
QUEUED_BATCHES = 2
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 4}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Threads, sizes and queues of one run.

    `tile_area_px`: pixels that are read at once, where the file's blocks allow it. `loading_bytes`:
    what several tiles may take together while they are loaded. `tiles_bytes`: beyond these nothing
    is read ahead. `scan_bytes`: up to these a scan keeps the scene. `chips_queue`,
    `features_queue`: entries.
    """

    readers: int
    writers: int
    tile_area_px: int
    loading_bytes: float
    tiles_bytes: float
    scan_bytes: float
    chips_queue: int
    features_queue: int


def share_out(
    config: EncodeConfig, spec: EncoderSpec, *, batch_size: int, processors: int | None = None
) -> Budget:
    """The budget of a run.

    Parameters
    ----------
    config
        `max_memory` and `feature_dtype` count.
    spec
        The encoder: sizes of a chip and of its features.
    batch_size
        Chips that the device takes at once.
    processors
        Default: those that this process may use.
    """
    total = config.max_memory * GB
    processors = processors or _processors()
    area_px = round(min(max(total * READS_OF_TOTAL, LEAST_AREA_PX), MOST_AREA_PX))
    chip_bytes = 3 * spec.input_px**2
    feature_bytes = SIZES[config.feature_dtype] * sum(
        math.prod(output.shape) for output in spec.outputs
    )
    return Budget(
        readers=max(
            1,
            min(
                max(READERS[0], processors),
                READERS[1],
                int(LOADING * total / (READER_BYTES_PER_PX * area_px)),
            ),
        ),
        writers=min(max(WRITERS[0], processors), WRITERS[1]),
        tile_area_px=area_px,
        loading_bytes=LOADING * total,
        tiles_bytes=TILES * total,
        scan_bytes=SCAN * total,
        chips_queue=max(2, min(QUEUED_BATCHES * batch_size, int(CHIPS * total / chip_bytes))),
        features_queue=max(1, min(2 * batch_size + 2, int(FEATURES * total / feature_bytes))),
    )


def _processors() -> int:
    # What a container or a job scheduler leaves to us, where the system can tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
