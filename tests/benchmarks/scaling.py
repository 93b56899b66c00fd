"""Benchmark 7: time against chips, a line through it, and the fixed cost.

    python -m tests.benchmarks.scaling [--chips 9 36 121] [--repeat 3]

The encoder only copies (3 MiB a chip in, 3 MiB out), so that the pipeline's own cost is seen:
reading at stride 512, cutting, serialising, storing on the local disk, the Item.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import geosam_stac.session as module
from geosam_stac.config import EncodeConfig
from geosam_stac.pipeline import encode_scene
from tests.benchmarks.scenes import (
    CopyingEncoder,
    copying_entry,
    item_of,
    machine,
    one_file,
    table,
    write_cog,
)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--chips", type=int, nargs="+", default=[9, 36, 121])
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    entry = copying_entry()
    module.find_model = lambda name: entry
    module.load_encoder = CopyingEncoder
    counts, medians, rows = [], [], []
    for chips in (options.chips[0], *options.chips):  # the first warms up
        size = 1024 + 512 * (math.isqrt(chips) - 1)
        with tempfile.TemporaryDirectory() as folder:
            write_cog(Path(folder) / "image.tif", size, bands=3, dtype="uint16", blocksize=512)
            taken = []
            for number in range(options.repeat):
                config = EncodeConfig(
                    model=entry.name,
                    checkpoint="untrained",
                    device="cpu",
                    format="safetensors",
                    value_range="0,3000",
                    out=f"{folder}/out{number}",
                )
                with module.Session(config, cache_dir=Path(folder)) as session:
                    _ = session.encoder
                    started = time.perf_counter()
                    scene = session.scene(item_of(one_file(folder)))
                    result = encode_scene(session, scene, config)
                    taken.append(time.perf_counter() - started)
                assert result.chips_encoded == chips
        counts.append(chips)
        medians.append(statistics.median(taken))
        rows.append([chips, f"{size} x {size}", f"{medians[-1]:.2f}"])
    x, y = np.array(counts[1:]), np.array(medians[1:])
    slope, fixed = np.polyfit(x, y, 1)
    rest = float(((y - slope * x - fixed) ** 2).sum())
    print(machine())
    table(["chips", "scene, px", "median, s"], rows[1:])
    print(
        f"a chip {slope * 1000:.1f} ms, fixed cost {fixed:.2f} s, "
        f"R^2 {1 - rest / float(((y - y.mean()) ** 2).sum()):.4f}"
    )


if __name__ == "__main__":
    main()
