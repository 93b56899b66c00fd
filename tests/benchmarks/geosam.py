"""geosam-stac against geosam 0.1.3: one scene, the same weights, the same cores, in turns.

    make compat                                     once: makes the environment of geosam
    python tests/benchmarks/geosam.py
    python tests/benchmarks/geosam.py --model sam-vit-base --rounds 1

The scene is the NAIP sample of `../shared/data` (or of `catalogs/sample`), tiled to 2048 px:
nine chips at stride 512. Both load their model first, and then encode the scene in turns: geosam
with its FeatureCacheBuilder, we with `encode` into a folder, with everything that either does
(reading, encoding, writing, the manifest, for us the Item as well). Weights are random, of the real
architecture (tests/compat/make_weights.py). geosam hands RGB to a predictor that expects BGR, so
its features are those of swapped channels: ours are made of blue, green, red to be compared, and of
red, green, blue once, as the control, which must differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
import torch
from common import ROOT, error, table, where

from geosam_stac.api import Session

sys.path.insert(0, str(ROOT / "tests" / "compat"))
from tensors import tensors_of

PYTHON = ROOT / ".venv-compat" / "bin" / "python"
# Our name -> (what geosam-stac's weights are called, geosam's model).
MODELS = {"sam2.1-hiera-tiny": "sam2.1_t", "sam-vit-base": "sam_b"}
STRIDE_PX = 512
# Largest error of equal features, and the least that swapped channels must make.
EQUAL, CONTROL = 1e-4, 1e-2


def make_scene(folder: Path, size: int) -> tuple[Path, Path]:
    """The sample, tiled to (size, size), as a GeoTIFF of three bands and an Item of it."""
    shared = ROOT.parent / "shared" / "data" / "naip" / "item.json"
    item = shared if shared.exists() else ROOT / "catalogs" / "sample" / "item.json"
    from scene import rgb_raster  # tests/compat

    source, bands = rgb_raster(item)
    with rasterio.open(source) as opened:
        pixels = opened.read(bands)
        profile = {"crs": opened.crs, "transform": opened.transform}
    times = [-(-size // length) for length in pixels.shape[1:]]
    pixels = np.tile(pixels, (1, *times))[:, :size, :size]
    raster = folder / "scene.tif"
    with rasterio.open(
        raster, "w", driver="GTiff", count=3, dtype="uint8", height=size, width=size,
        tiled=True, blockxsize=512, blockysize=512, compress="deflate", **profile,
    ) as written:  # fmt: skip
        written.write(pixels)
        bounds = rasterio.warp.transform_bounds(written.crs, "EPSG:4326", *written.bounds)
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    names = ("red", "green", "blue")
    document = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "scene",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(bounds),
        "properties": {"datetime": "2020-08-31T00:00:00Z"},
        "links": [],
        "assets": {
            "image": {
                "href": str(raster),
                "type": "image/tiff; application=geotiff",
                "roles": ["data"],
                "bands": [{"name": name, "eo:common_name": name} for name in names],
            }
        },
    }
    path = folder / "item.json"
    path.write_text(json.dumps(document))
    return path, raster


class Geosam:
    """geosam in its own process, with its model loaded: encodes when it is told where to."""

    def __init__(self, model: str, weights: Path, raster: Path, threads: int) -> None:
        environ = os.environ | {
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "YOLO_VERBOSE": "false",
            "YOLO_CONFIG_DIR": str(weights.parent),
            "MPLCONFIGDIR": str(weights.parent),
            "OMP_NUM_THREADS": str(threads),  # ultralytics sets 1 where nothing is said
        }
        environ.pop("PYTHONPATH", None)
        command = [str(PYTHON), "-P", str(Path(__file__).with_name("geosam_side.py"))]
        command += ["--model", model, "--weights", str(weights), "--raster", str(raster)]
        command += ["--stride", str(STRIDE_PX), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def encode(self, out: Path) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(out, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("geosam ended early: see above")
        return float(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def chips_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Chip id -> tensors, of a folder of .pt files, by either."""
    found = {}
    for path in sorted(folder.rglob("chip_*.pt")):
        payload = torch.load(path, map_location="cpu", weights_only=False)  # both written just now
        found[path.stem] = tensors_of(payload["features"])
    return found


def worst(ours: Path, theirs: Path) -> float:
    """The largest error of a tensor, over all chips."""
    mine, reference = chips_of(ours), chips_of(theirs)
    assert mine.keys() == reference.keys() and mine, "other chips"
    return max(
        error(mine[chip][name], tensor)
        for chip, tensors in reference.items()
        for name, tensor in tensors.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="sam2.1-hiera-tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=2048, help="of the scene, in px")
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit("geosam's environment is missing: run `make compat` first")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    plugin = MODELS[options.model]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(
            [sys.executable, str(ROOT / "tests/compat/make_weights.py"), str(work / "weights")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        weights = work / "weights" / f"{plugin}.pt"
        item, raster = make_scene(work, options.size)
        sessions = {}
        for precision, dtype in (("fp32", "float32"), ("bf16", "float16")):
            sessions[precision] = Session(
                model=options.model,
                checkpoint=str(weights),
                device="cpu",
                precision=precision,
                feature_dtype=dtype,
                stride=STRIDE_PX,
                bands="blue,green,red",
                out=str(work / "unused"),
            )
            _ = sessions[precision].encoder  # loaded, as geosam's is
        seconds: dict[str, list[float]] = {"geosam": [], "fp32": [], "bf16": []}
        theirs = Geosam(plugin, weights, raster, options.threads)
        chips = 0
        for turn in range(options.rounds):
            seconds["geosam"].append(theirs.encode(work / "geosam" / str(turn)))
            for precision, session in sessions.items():
                started = time.perf_counter()
                result = session.encode(str(item), out=work / precision / str(turn))
                seconds[precision].append(time.perf_counter() - started)
                chips = result.chips_encoded
        theirs.close()
        reference = work / "geosam" / "0"
        errors = {name: worst(work / name / "0", reference) for name in sessions}
        # The control: true colour, which geosam does not have.
        control = Session(
            model=options.model, checkpoint=str(weights), device="cpu", precision="bf16",
            stride=STRIDE_PX, out=str(work / "control"),
        )  # fmt: skip
        control.encode(str(item))
        swapped = worst(work / "control", reference)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        ratios = [slow / fast for slow, fast in zip(seconds["geosam"], values, strict=True)]
        rows.append(
            [
                "geosam 0.1.3, fp32" if name == "geosam" else f"geosam-stac, {name}",
                f"{median[name]:.1f} ({min(values):.1f} to {max(values):.1f})",
                f"{median[name] / chips:.2f}",
                "1" if name == "geosam" else f"{statistics.median(ratios):.2f}x",
                "-" if name == "geosam" else f"{errors[name]:.1e}",
            ]
        )
    print(
        f"{where()}; {options.model}, scene {options.size} px, stride {STRIDE_PX}, {chips} chips, "
        f"{options.rounds} rounds in turns; control (channels not swapped): error {swapped:.1e}\n"
    )
    print(table(["", "scene, s (median, range)", "a chip, s", "faster", "error"], rows))
    if errors["fp32"] > EQUAL or swapped < CONTROL:
        raise SystemExit("the features are not equal, or the comparison would not notice")


if __name__ == "__main__":
    main()
