"""What feature files cost and what they lose: bytes, seconds, error, and masks, as a table.

    python tests/benchmarks/features.py                                   random weights
    python tests/benchmarks/features.py --model sam2.1-hiera-base-plus --checkpoint upstream \\
        --image chip.png                                                  whoever has real ones
    python tests/benchmarks/features.py --model sam3 --checkpoint sam3.pt --image chip.png

One chip is encoded in fp32 on the CPU. Its features are written and read in each format and dtype
(in memory: no disk, no network), then prompted with the model's own decoder, with a grid of points
and one of boxes. IoU is against the masks of the float32 features. A real decoder's mask is where
its logits are > 0; a random one's zero means nothing, so there it is where they exceed the median
of the float32 ones: half of the chip, with edges everywhere, which is harder than real masks.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from geosam_stac import features as files
from geosam_stac.encoders import load_encoder
from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token, resolve
from geosam_stac.encoders.prompts import Prompts, decode
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import DataError
from geosam_stac.types import ChipRef, Features, Window

MODELS = ("sam-vit-base", "sam2.1-hiera-tiny", "sam3")
KINDS = (
    ("pt", "float32", "all"),
    ("pt", "float16", "all"),
    ("pt", "bfloat16", "all"),
    ("safetensors", "float32", "all"),
    ("safetensors", "float16", "all"),
    ("safetensors", "bfloat16", "all"),
    ("safetensors", "int8", "all"),
    ("safetensors", "float16", "embedding"),
    ("safetensors", "int8", "embedding"),
)
GRID = 5
REPEATS = 5


def picture(path: Path | None, size: int) -> np.ndarray:
    """(3, size, size) uint8 RGB: a file's upper left corner, or fields, gradients and noise."""
    if path is not None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[:size, :size]
        if pixels.shape != (size, size, 3):
            raise SystemExit(f"{path} must be at least {size} x {size} px")
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    pixels = np.stack([x / 8, y / 8, 96 + 64 * np.sin((x + y) / 50)])
    for _ in range(40):
        top, left = rng.integers(0, size - 50, 2)
        height, width = rng.integers(20, 200, 2)
        pixels[:, top : top + height, left : left + width] = rng.integers(0, 256, (3, 1, 1))
    return (pixels + rng.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8)


def prompts(size: int) -> list[Prompts]:
    """A grid of points, and a box around each."""
    step, half = size / GRID, size / GRID * 0.4
    centres = [((c + 0.5) * step, (r + 0.5) * step) for r in range(GRID) for c in range(GRID)]
    points = [Prompts(points=(centre,), labels=(1,)) for centre in centres]
    return points + [Prompts(box=(x - half, y - half, x + half, y + half)) for x, y in centres]


def timed(work: Callable[[], object]) -> float:
    """Median seconds of a few runs."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def milliseconds(seconds: float) -> str:
    """In whole ones: less is within the noise."""
    return f"{1000 * seconds:.0f}" if seconds >= 0.0005 else "< 1"


def measure(entry: ModelEntry, checkpoint: str | None, image: Path | None) -> list[str]:
    """The table's rows for one model."""
    environ = os.environ
    weights = resolve(
        entry,
        checkpoint,
        cache_dir=default_cache_dir(environ),
        token=hugging_face_token(environ),
    )
    encoder = load_encoder(entry, weights, device="cpu", precision="fp32", feature_dtype="float32")
    size = entry.input_px
    batch = encoder.encode(picture(image, size)[None], (size, size))
    chip = {name: tensor[0] for name, tensor in batch.items()}
    ref = ChipRef(
        chip_id="chip_000000",
        row=0,
        col=0,
        window=Window(row_off=0, col_off=0, height=size, width=size),
        geobox=GeoBox((size, size), Affine(10, 0, 500000, 0, -10, 4200000), "EPSG:32610"),
    )
    asked = prompts(size)

    def logits(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        model = encoder.model  # type: ignore[attr-defined]
        return torch.stack([decode(entry, model, tensors, each).logits[0] for each in asked])

    exact = logits(chip)
    # (prompt, 1, 1)
    cut = torch.zeros(len(asked), 1, 1)
    if weights.seed is not None:
        cut = exact.flatten(1).median(dim=1).values.view(-1, 1, 1)
    masks = exact > cut
    rows = []
    for format, dtype, levels in KINDS:
        outputs = entry.outputs_at(levels)
        if levels == "embedding" and len(entry.outputs) == 1:
            continue
        spec = replace(encoder.spec, outputs=outputs)
        features = Features(ref=ref, tensors={out.name: chip[out.name] for out in outputs})

        def write(
            features: Features = features, spec=spec, format: str = format, dtype: str = dtype
        ) -> bytes:
            return files.write(features, spec=spec, format=format, dtype=dtype)

        try:
            data = write()
        except DataError as error:  # of float16, where a value is beyond 65504
            rows.append(f"| {entry.name} | {format} | {dtype} | {levels} | {error.message} |")
            continue
        tensors, _ = files.read(data)
        errors = [
            float(
                (tensors[name].double() - chip[name].double()).norm() / chip[name].double().norm()
            )
            for name in tensors
        ]
        iou = "-"
        if levels == "all":
            found = logits(tensors) > cut
            both, either = ((m.flatten(1).sum(dim=1)) for m in (found & masks, found | masks))
            each = (both / either.clamp(min=1)).where(either > 0, torch.ones(len(asked)))
            iou = f"{float(each.mean()):.4f} ({float(each.min()):.4f})"
        seconds = timed(write), timed(lambda data=data: files.read(data))
        rows.append(
            f"| {entry.name} | {format} | {dtype} | {levels} | {len(data):,} | "
            f"{milliseconds(seconds[0])} | {milliseconds(seconds[1])} | {max(errors):.1e} | {iou} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", help=f"default: {', '.join(MODELS)}")
    parser.add_argument(
        "--checkpoint",
        default="untrained:0",
        help="a file, a URL, untrained[:SEED], or upstream: the model's own",
    )
    parser.add_argument("--image", type=Path, help="an RGB picture of at least the model's input")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    checkpoint = None if options.checkpoint == "upstream" else options.checkpoint
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    command = "python tests/benchmarks/features.py"
    command += "".join(f" --model {name}" for name in options.model or ())
    command += f" --checkpoint {options.checkpoint}"
    print(
        f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; commit "
        f"{head.stdout.strip() or '-'}; `{command}`; weights {options.checkpoint}; image "
        f"{options.image or 'generated'}; {2 * GRID**2} prompts; median of {REPEATS}\n"
    )
    print("| model | format | dtype | levels | bytes a chip | write, ms | read, ms | error | IoU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.model or MODELS:
        entry = find_model(name)
        if entry.family == "sam3" and importlib.util.find_spec("transformers") is None:
            print(f"\n{name} is left out: pip install 'geosam-stac[sam3]'")
            continue
        for row in measure(entry, checkpoint, options.image):
            print(row, flush=True)


if __name__ == "__main__":
    main()
