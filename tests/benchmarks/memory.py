"""Benchmark 5: peak resident memory for scenes of several sizes, with an encoder that only copies.

    python -m tests.benchmarks.memory [--sizes 4096 10980 32768] [--value-range 0,3000] [--repeat 3]

Each scene is encoded in a process of its own, at stride 512, by the whole pipeline; features are
the chip's own 3 MiB, thrown away once they are serialised (they would be 12 GB on disk for the
largest scene); an empty file stands for each. What a process takes before it reads a scene is
printed beside.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.scenes import (
    CopyingEncoder,
    copying_entry,
    item_of,
    machine,
    one_file,
    table,
    write_cog,
)


def peak_mb() -> float:
    """Of this process, in MB; `ru_maxrss` would begin with the parent's, which wrote the scene."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def encode(root: Path, value_range: str, max_memory: float) -> None:
    """Encode the scene under `root` and print what it took."""
    import geosam_stac.session as module
    from geosam_stac.config import EncodeConfig
    from geosam_stac.pipeline import encode_scene
    from geosam_stac.storage import Store

    entry = copying_entry()
    module.find_model = lambda name: entry
    module.load_encoder = CopyingEncoder
    create = Store.create
    # Each has to be there in the end; an empty object is enough.
    Store.create = lambda self, key, data: create(self, key, b"" if "/features/" in key else data)
    config = EncodeConfig(
        model=entry.name,
        checkpoint="untrained",
        device="cpu",
        format="safetensors",
        value_range=value_range,
        max_memory=max_memory,
        out=str(root / "out"),
    )
    with module.Session(config, cache_dir=root / "cache") as session:
        _ = session.encoder
        before = peak_mb()
        started = time.perf_counter()
        result = encode_scene(session, session.scene(item_of(one_file(str(root)))), config)
    print(
        result.chips_encoded,
        f"{before:.0f}",
        f"{peak_mb():.0f}",
        f"{time.perf_counter() - started:.1f}",
        result.slowest,
        sep=",",
    )


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[4096, 10980, 32768])
    arguments.add_argument("--value-range", default="0,3000")
    arguments.add_argument("--max-memory", type=float, default=1.0)
    arguments.add_argument("--repeat", type=int, default=1)
    arguments.add_argument("--keep", type=Path, help="where scenes are kept between runs")
    arguments.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one is not None:
        encode(options.one, options.value_range, options.max_memory)
        return
    print(f"{machine()}; --max-memory {options.max_memory:g}, --value-range {options.value_range}")
    rows, runs = [], []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)) / f"memory-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "image.tif").exists():
                write_cog(folder / "new.tif", size, bands=3, dtype="uint16", blocksize=512)
                (folder / "new.tif").rename(folder / "image.tif")
            peaks = []
            for _ in range(options.repeat):
                shutil.rmtree(folder / "out", ignore_errors=True)
                command = [sys.executable, "-m", "tests.benchmarks.memory", "--one", str(folder)]
                command += ["--value-range", options.value_range]
                command += ["--max-memory", str(options.max_memory)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                chips, before, peak, seconds, slowest = done.stdout.strip().split(",")
                peaks.append(float(peak))
            shutil.rmtree(folder / "out", ignore_errors=True)
        runs.append(peaks)
        said = " ".join(f"{peak:.0f}" for peak in sorted(peaks))
        rows.append([f"{size} x {size}", chips, before, said, seconds, slowest])
    table(["scene, px", "chips", "before, MB", "peak, MB, each run", "s", "slowest"], rows)
    medians = [statistics.median(peaks) for peaks in runs]
    print(f"largest median / smallest: {max(medians) / min(medians):.2f}", end="; ")
    print(f"largest peak / smallest: {max(map(max, runs)) / min(map(min, runs)):.2f}")


if __name__ == "__main__":
    main()
