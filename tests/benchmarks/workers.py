"""Two Dask workers against one, where reading sets the pace.

    python -m tests.benchmarks.workers

Scenes lie behind nginx on the loopback, which gives each connection a limited rate, as a far store
does; the encoder only averages pixels. Each row encodes all scenes anew. A worker reads with as
many threads as `--max-memory` and the processor give it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from geosam_stac.config import EncodeConfig
from geosam_stac.scale.dask import Recipe, connect, encode_all
from geosam_stac.session import Session
from geosam_stac.sources import parse_item
from tests.benchmarks.scenes import machine, nginx, one_file, table, write_cog
from tests.forks import Forks, forks
from tests.rasters import document
from tests.scale.cluster import Cluster


def encode(address: str, items: list[Path], out: Path) -> tuple[float, int]:
    """Seconds, and bytes of pixels decoded, of encoding every Item on the cluster."""
    config = EncodeConfig.of(
        {
            "model": "sam2.1-hiera-tiny",
            "checkpoint": "untrained",
            "device": "cpu",
            "stride": 1024,
            "out": str(out),
        }
    )
    with connect(address) as client, Session(config, cache_dir=out / "cache") as session:
        sources = [parse_item(json.loads(path.read_text()), href=str(path)) for path in items]
        started = time.perf_counter()
        results = list(encode_all(client, session, sources, Recipe(config=config)))
        seconds = time.perf_counter() - started
    size = 0
    for result in results:
        if result.error is not None:
            raise result.error
        assert result.whole is not None
        size += result.whole.bytes_read
    return seconds, size


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=12)
    arguments.add_argument("--size", type=int, default=2048)
    arguments.add_argument("--rate", default="500k", help="bytes a second of one connection")
    arguments.add_argument("--repeat", type=int, default=2)
    options = arguments.parse_args()
    print(
        f"{machine()}; {options.scenes} scenes of {options.size} px, {options.rate}B/s a connection"
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "scenes"
        root.mkdir()
        write_cog(root / "image.tif", options.size, bands=3, dtype="uint8", blocksize=512)
        taken: dict[int, list[float]] = {1: [], 2: []}
        with forks() as runs, nginx(root, Path(temporary) / "nginx", rate=options.rate) as server:
            for number in range(options.repeat):
                for workers, rates in taken.items():
                    folder = Path(temporary) / f"run-{number}-{workers}"
                    rates.append(run(runs, folder, workers, server.url, options.scenes))
        ratios = [two / one for one, two in zip(taken[1], taken[2], strict=True)]
        rows = [[count, f"{statistics.median(rates):.1f}"] for count, rates in taken.items()]
        table(["workers", "MB/s of pixels, median"], rows)
        print(f"\ntwo over one, in turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def run(runs: Forks, folder: Path, workers: int, url: str, scenes: int) -> float:
    """MB of pixels a second with so many workers; they are up before the clock starts."""
    folder.mkdir()
    items = []
    for number in range(scenes + workers):
        # Another URL each time: GDAL remembers what it has fetched.
        path = folder / f"{number}.json"
        assets = one_file(url, f"?{folder.name}-{number}")
        path.write_text(json.dumps(document(assets, item_id=f"scene-{number:02d}")))
        items.append(path)
    with contextlib.closing(Cluster(runs, folder)) as cluster:
        for _ in range(workers):
            cluster.add(input_px=1024)
        cluster.wait(workers)
        encode(cluster.address, items[:workers], folder / "warm")  # imports, the model
        seconds, size = encode(cluster.address, items[workers:], folder / "out")
    return size / seconds / 1e6


if __name__ == "__main__":
    main()
