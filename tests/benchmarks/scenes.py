"""What the benchmarks share: synthetic scenes as COGs, nginx on the loopback, tables."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from geosam_stac.encoders.checkpoints import Weights
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.sources import parse_item
from geosam_stac.types import EncoderSpec, TensorSpec
from tests.rasters import asset, document, named_bands

RGB = ("red", "green", "blue")
UTM = "EPSG:32633"
NORTH_UP = Affine(10.0, 0.0, 499_980.0, 0.0, -10.0, 5_500_020.0)
PIECE_PX = 2048


def picture(size_px: int, dtype: str) -> NDArray[Any]:
    """(h, w) that deflate halves, as it does real imagery: low frequencies and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size_px, 0:size_px]
    base = 0.5 + 0.3 * np.sin(x / 97) * np.cos(y / 61) + 0.03 * rng.standard_normal(x.shape)
    top = 3000 if dtype == "uint16" else 250
    values: NDArray[Any] = np.clip(base * top, 1, top).astype(dtype)
    return values


def write_cog(path: Path, size_px: int, *, bands: int, dtype: str, blocksize: int) -> None:
    """A tiled, deflated file with overviews; bands are interleaved pixel by pixel."""
    piece = picture(min(size_px, PIECE_PX), dtype)
    profile = {
        "driver": "GTiff",
        "width": size_px,
        "height": size_px,
        "count": bands,
        "dtype": dtype,
        "crs": UTM,
        "transform": NORTH_UP,
        "nodata": 0,
        "tiled": True,
        "blockxsize": blocksize,
        "blockysize": blocksize,
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 2,
        "interleave": "pixel",
        "BIGTIFF": "IF_SAFER",
        "num_threads": "all_cpus",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, size_px, PIECE_PX):
            for col in range(0, size_px, PIECE_PX):
                height, width = min(PIECE_PX, size_px - row), min(PIECE_PX, size_px - col)
                for band in range(bands):
                    # Shifted: no two blocks are the same.
                    data = np.roll(piece, (row // 16 + 31 * band, col // 16), axis=(0, 1))
                    dataset.write(
                        data[:height, :width], band + 1, window=Window(col, row, width, height)
                    )
        if size_px <= 11_000:
            dataset.build_overviews([2, 4, 8], Resampling.nearest)


def one_file_a_band(base: str, query: str = "") -> dict[str, Any]:
    """Assets `red`, `green`, `blue` under a folder or URL."""
    return {name: asset(f"{base}/{name}.tif{query}", **named_bands(name)) for name in RGB}


def one_file(base: str, query: str = "") -> dict[str, Any]:
    """One asset of three bands."""
    return {"image": asset(f"{base}/image.tif{query}", **named_bands(*RGB))}


def item_of(assets: dict[str, Any]) -> Any:
    """A STAC Item."""
    return parse_item(document(assets, item_id="scene"), href="file:///scene.json")


@dataclasses.dataclass
class Nginx:
    """nginx on a port of the loopback, and what it sent."""

    url: str
    log: Path

    def ranges(self) -> list[tuple[str, int, int]]:
        """Path, first and last byte of each ranged request since the last call."""
        time.sleep(0.5)  # nginx logs when a request has ended
        lines = [line.split() for line in self.log.read_text().splitlines()]
        self.log.write_text("")
        spans = [(path, span) for path, span, _ in lines if span.startswith("bytes=")]
        return [(path, *map(int, span.removeprefix("bytes=").split("-"))) for path, span in spans]

    def sent(self) -> tuple[int, int]:
        """Requests and bytes of bodies since the last call."""
        time.sleep(0.5)  # nginx logs when a request has ended
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return len(lines), sum(int(line.split()[-1]) for line in lines)


@contextlib.contextmanager
def nginx(root: Path, work: Path, *, rate: str = "0") -> Iterator[Nginx]:
    """Serve a folder; configuration, logs and temporary files lie under `work`.

    `rate` is what one connection gets a second, as `2m`; 0 is no limit.
    """
    work.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = work / "access.log"
    log.write_text("")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {work}/{kind};" for kind in kinds)
    (work / "nginx.conf").write_text(
        # Its workers would be nobody, who may not read a temporary folder.
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; worker_processes 1;\n"
        f"pid {work}/pid; error_log {work}/error.log;\n"
        "events { worker_connections 256; }\n"
        f"http {{ {temporary}\nlog_format sent '$request_uri $http_range $body_bytes_sent';\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; access_log {log} sent; "
        f"limit_rate {rate}; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", work / "nginx.conf", "-p", work, "-e", work / "e"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield Nginx(url=f"http://127.0.0.1:{port}", log=log)
    finally:
        process.terminate()
        process.wait()


def copying_entry() -> ModelEntry:
    """A model whose encoder only copies: 1024 px in, 3 MiB out as well."""
    outputs = (TensorSpec(name="image_embed", shape=(3, 512, 1024), stride_px=2),)
    return dataclasses.replace(find_model("sam2.1-hiera-tiny"), outputs=outputs)


class CopyingEncoder:
    """The protocol of `encoders.base.ImageEncoder`; its features are the pixels."""

    def __init__(self, entry: ModelEntry, weights: Weights, **options: Any) -> None:
        self.device, self.precision = options["device"], options["precision"]
        self.feature_dtype = options["feature_dtype"]
        self.spec = EncoderSpec(
            name=entry.name,
            family=entry.family,
            weights_sha256="0" * 64,
            weights="none",
            checkpoint_name=entry.checkpoint_name,
            input_px=entry.input_px,
            mean=entry.mean,
            std=entry.std,
            outputs=entry.outputs,
        )

    def encode(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> dict[str, Any]:
        """(N, 3, 1024, 1024) uint8 -> every other row, which as float16 is as many bytes."""
        import torch

        return {"image_embed": torch.from_numpy(pixels[:, :, ::2]).to(torch.float16)}

    def submit(self, pixels: NDArray[np.uint8], content_px: tuple[int, int]) -> Any:
        """Done at once."""
        tensors = self.encode(pixels, content_px)
        return lambda: tensors

    def fitting_batch(self) -> int:
        """As on a small GPU."""
        return 4

    def free_cached_memory(self, *, if_short: bool = False) -> None:
        """There is none."""


def machine() -> str:
    """Processor and threads, date and commit, as the tables' first line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{name}, {os.cpu_count()} threads; {today}; commit {commit or 'unknown'}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
