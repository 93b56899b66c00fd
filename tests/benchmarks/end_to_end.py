"""Benchmark 3: a whole scene, end to end, and each limit measured alone beside it.

    python -m tests.benchmarks.end_to_end                      # 10980 px, 441 chips, from a COG
    python -m tests.benchmarks.end_to_end --chips-from-memory  # needs torch and the model alone
    python -m tests.benchmarks.end_to_end --device cpu --small # a check of this script

*Device busy* is the time that the encoder takes for as many chips alone, from memory and with
nothing written, the faster of two runs, over the time of the whole. `--chips-from-memory` leaves
reading out: it imports neither rasterio nor odc-stac, for GPU machines that lack them. Weights are
random unless `--checkpoint` is given: the time is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geosam_stac.crew import Channel, Crew
from geosam_stac.encoders import load_encoder
from geosam_stac.encoders.base import ImageEncoder
from geosam_stac.encoders.checkpoints import resolve
from geosam_stac.encoders.devices import resolve_device
from geosam_stac.encoders.registry import find_model
from geosam_stac.features import write
from geosam_stac.types import ChipRef, Features, Window

WRITERS = 8
ALONE = 2
DISTINCT = 16


def chip_batches(count: int, size: int, input_px: int) -> Iterator[np.ndarray]:
    """`count` chips in batches of (n, 3, S, S) uint8, of a few distinct ones."""
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (DISTINCT, 3, input_px, input_px), dtype=np.uint8)
    for start in range(0, count, size):
        yield np.stack([chips[i % DISTINCT] for i in range(start, min(start + size, count))])


def encode_all(
    encoder: ImageEncoder, count: int, size: int, take: Callable[[dict[str, Any], int], None]
) -> float:
    """Encode as `Session.encode_batches` does, one batch ahead on CUDA; seconds."""
    started = time.perf_counter()
    running: Any = None
    ahead = encoder.device.startswith("cuda")
    content = (encoder.spec.input_px, encoder.spec.input_px)

    def finish() -> None:
        pending, number = running
        take(pending(), number)

    for pixels in chip_batches(count, size, encoder.spec.input_px):
        pending = encoder.submit(pixels, content)
        if running is not None:
            finish()
        running = (pending, len(pixels))
        if not ahead:
            finish()
            running = None
    if running is not None:
        finish()
    return time.perf_counter() - started


def put(path: Path, data: bytes) -> None:
    """As `storage` writes a local file: a temporary one, synced, renamed."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def disk_rate(folder: Path, size: int, count: int) -> float:
    """MB/s of files of that size, as many threads as there are writers."""
    data = os.urandom(size)
    crew = Crew()
    numbers = iter(range(count))

    def work() -> None:
        for number in numbers:
            put(folder / f"disk_{number}", data)

    started = time.perf_counter()
    for _ in range(WRITERS):
        crew.start(work)
    crew.finish()
    return size * count / (time.perf_counter() - started) / 1e6


def copy_rate(device: str) -> str:
    """GB/s from the device into pinned memory; on a CPU nothing is copied."""
    if not device.startswith("cuda"):
        return "-"
    there = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    here = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    here.copy_(there)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(8):
        here.copy_(there, non_blocking=True)
    torch.cuda.synchronize()
    return f"{8 * there.numel() / (time.perf_counter() - started) / 1e9:.1f} GB/s"


def from_memory(encoder: ImageEncoder, count: int, size: int, folder: Path) -> tuple[float, int]:
    """Chips from memory, features to disk: encoder and writers at once; seconds, bytes."""
    crew = Crew()
    channel: Channel[Features] = Channel(2 * size + WRITERS, crew.stop)
    written: list[int] = []
    px = encoder.spec.input_px
    names = iter(range(count))

    def take(tensors: dict[str, Any], number: int) -> None:
        for index in range(number):
            place: Any = None  # a .pt file holds no geobox
            window = Window(row_off=0, col_off=0, height=px, width=px)
            ref = ChipRef(
                chip_id=f"chip_{next(names):06d}", row=0, col=0, window=window, geobox=place
            )
            chip = {name: values[index] for name, values in tensors.items()}
            channel.put(Features(ref=ref, tensors=chip))

    def work() -> None:
        for features in channel:
            data = write(features, spec=encoder.spec, format="pt", dtype=encoder.feature_dtype)
            put(folder / f"{features.ref.chip_id}.pt", data)
            written.append(len(data))

    started = time.perf_counter()
    for _ in range(WRITERS):
        crew.start(work)
    encode_all(encoder, count, size, take)
    channel.close(WRITERS)
    crew.finish()
    return time.perf_counter() - started, sum(written)


def from_cog(options: argparse.Namespace, folder: Path) -> tuple[Any, ImageEncoder, int, str]:
    """The whole pipeline on a scene on the local disk.

    The result, the encoder, the batch, and how fast the scene is read and cut with nothing behind.
    """
    from geosam_stac.config import EncodeConfig
    from geosam_stac.pipeline import encode_scene
    from geosam_stac.session import Session
    from tests.benchmarks.reading import read_all
    from tests.benchmarks.scenes import RGB, item_of, one_file_a_band, write_cog

    for name in RGB:
        path = folder / f"{name}.tif"
        write_cog(path, options.size, bands=1, dtype="uint16", blocksize=1024)
    config = EncodeConfig(
        model=options.model,
        checkpoint=options.checkpoint,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch if options.batch == "auto" else int(options.batch),
        value_range=options.value_range,
        max_memory=options.max_memory,
        out=str(folder / "out"),
    )
    with Session(config, cache_dir=folder / "cache") as session:
        encoder = session.encoder
        item = item_of(one_file_a_band(str(folder)))
        warm_up(encoder, session.batch_size)
        result = encode_scene(session, session.scene(item), config)
        seconds, size = read_all(item, config)
        rate = f"{result.chips_encoded / seconds:.1f} chips/s, {size / seconds / 1e6:,.0f} MB/s"
        return result, encoder, session.batch_size, rate


def device_busy(alone: Sequence[float], whole: float) -> str:
    """Of the whole run, the time that the encoder needs: what it took alone at its fastest.

    A CPU's times vary so much that alone may have taken longer than the whole: then it is 100 %.
    """
    busy = min(1.0, min(alone) / whole)
    return f"{busy:.0%} (the encoder alone: {min(alone):.1f} to {max(alone):.1f} s)"


def warm_up(encoder: ImageEncoder, size: int) -> None:
    """Kernels chosen, compiled, memory taken: a run of many scenes pays for it once."""
    encode_all(encoder, 2 * size, size, lambda tensors, number: None)


def machine(device: str) -> str:
    """Device, date and commit; no geospatial library is needed for it."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    commit = ""
    with contextlib.suppress(OSError):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    cores = os.cpu_count()
    return f"{name}, {cores} threads; torch {torch.__version__}; {today}; commit {commit or '?'}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="sam2.1-hiera-base-plus")
    arguments.add_argument("--checkpoint", default="untrained")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--batch", default="auto")
    arguments.add_argument("--size", type=int, default=10980, help="px a side of the scene")
    arguments.add_argument("--value-range", default="0,3000", help="`auto`: measured first")
    arguments.add_argument("--max-memory", type=float, default=4.0)
    arguments.add_argument("--chips-from-memory", action="store_true")
    arguments.add_argument("--small", action="store_true", help="SAM 2.1 tiny, 4 chips")
    arguments.add_argument("--folder", type=Path, help="the disk to write to")
    options = arguments.parse_args()
    if options.small:
        options.model, options.size = "sam2.1-hiera-tiny", 1536
    per_side = -(-(options.size - 1024) // 512) + 1
    count = per_side**2
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        stages = read = "-"
        if options.chips_from_memory:
            entry = find_model(options.model)
            weights = resolve(entry, options.checkpoint, cache_dir=folder / "cache")
            encoder = load_encoder(
                entry,
                weights,
                device=options.device,
                precision=options.precision,
                feature_dtype="float16",
                # As a Session's.
                compile="on" if resolve_device(options.device).startswith("cuda") else "off",
            )
            size = encoder.fitting_batch() if options.batch == "auto" else int(options.batch)
            warm_up(encoder, size)
            seconds, written = from_memory(encoder, count, size, folder)
        else:
            result, encoder, size, read = from_cog(options, folder)
            seconds, written = result.seconds["total"], result.bytes_written
            assert result.chips_encoded == count, (result.chips_encoded, count)
            stages = ", ".join(f"{name} {busy:.0%}" for name, busy in result.busy.items())
        alone = [
            encode_all(encoder, count, size, lambda tensors, number: None) for _ in range(ALONE)
        ]
        disk = disk_rate(folder, written // count, min(count, 200))
        print(machine(encoder.device))
        source = "chips from memory" if options.chips_from_memory else f"{options.size} px COG"
        rows = [
            ["model", f"{options.model}, {encoder.precision}, batches of {size}"],
            ["chips", f"{count}, {source}"],
            ["end to end", f"{seconds:.1f} s, {count / seconds:.1f} chips/s"],
            ["device busy", device_busy(alone, seconds)],
            ["stages busy", stages],
            ["written", f"{written / 1e6:,.0f} MB, {written / seconds / 1e6:,.0f} MB/s"],
            ["reading alone", read],
            ["disk alone", f"{disk:,.0f} MB/s, {WRITERS} threads"],
            ["copy from the device alone", copy_rate(encoder.device)],
        ]
        table(["what", "figure"], rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
