"""How soon a prompt on cached features is answered on a CPU, as a table.

    python -m tests.benchmarks.prompting                    SAM ViT-B and SAM 2.1 tiny
    python -m tests.benchmarks.prompting --model sam2.1-hiera-large

Encodes one chip of a generated picture with random weights to a folder, then opens it anew, as a
user would: Item and manifest, decoder, the first click, and more clicks in the same chip. Times do
not depend on what the weights are; masks do, and with them the polygons: random ones are noise
with thousands of corners, which real masks have not.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
import torch

import geosam_stac as gs
from geosam_stac.encoders.registry import find_model
from tests import rasters
from tests.encoders.families import scene

MODELS = ("sam-vit-base", "sam2.1-hiera-tiny")
CLICKS = 20


def measure(model: str, folder: Path) -> str:
    """The table's row for one model."""
    size = find_model(model).input_px
    tif = rasters.write_tif(folder / f"{model}.tif", scene(0, size, size).transpose(2, 0, 1))
    bands = rasters.named_bands("red", "green", "blue")
    item = rasters.write_item(folder / f"{model}.json", {"image": rasters.asset(tif, **bands)})
    result = gs.encode(
        item, model=model, checkpoint="untrained", device="cpu", out=folder, value_range="0,255"
    )
    with rasterio.open(tif) as source:
        places = [
            source.transform @ tuple(pixel)
            for pixel in np.random.default_rng(0).uniform(0, size, (CLICKS, 2))
        ]
    started = time.perf_counter()
    opened = gs.open_features(result.href)
    assert len(opened.manifest) == 1
    seconds = {"open": time.perf_counter() - started}
    started = time.perf_counter()
    decoder = opened.decoder()
    seconds["load"] = time.perf_counter() - started
    answers = []
    for place in places:
        started = time.perf_counter()
        found = opened.segment([place], crs="native", decoder=decoder)
        answers.append(time.perf_counter() - started)
    started = time.perf_counter()
    corners = sum(len(part.exterior.coords) for part in found.polygons.geometry.explode())
    seconds["polygons"] = time.perf_counter() - started
    return (
        f"| {model} | {seconds['open']:.3f} | {seconds['load']:.2f} | {answers[0]:.3f} | "
        f"{statistics.median(answers[1:]):.3f} | {seconds['polygons']:.3f} ({corners:,} corners) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", help=f"default: {', '.join(MODELS)}")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    print(
        f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; commit "
        f"{head.stdout.strip() or '-'}; one chip, local disk; {CLICKS} clicks\n"
    )
    print("| model | open, s | load decoder, s | first answer, s | next ones, s | polygons, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or MODELS:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
