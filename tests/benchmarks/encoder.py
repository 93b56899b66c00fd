"""The encoders alone: right first, then how fast, and how near the device's matrix rate.

    python tests/benchmarks/encoder.py                          every SAM and SAM 2.1 model
    python tests/benchmarks/encoder.py --model sam-vit-huge --compile on graphs tune
    python tests/benchmarks/encoder.py --device cpu --model sam2.1-hiera-tiny
    python tests/benchmarks/encoder.py --device cpu --small     seconds: does it run

Needs torch, numpy and the model's own package; of this project `geosam_stac.encoders` alone.
Weights are random, of the real architecture, nothing in them zero.

The reference is upstream's own module in fp32, a chip at a time, from bytes on the host to features
on the host. Ours must agree with it before anything is timed. *alone* is the encoder with its input
on the device; *with copies* goes from uint8 on the host to features on the host, batch after batch.
TFLOP are upstream's (`ModelEntry.tflop_per_chip`), whatever the faster way leaves out; the matrix
rate is that of a large bf16 product of random numbers, measured here. IoU: of the masks of 50
prompts in a grid, against those of the reference's features, cut at the median of its logits, since
a random decoder's zero means nothing.

Each model is measured in a process of its own: what fails there is a line of its own and leaves the
rest, and rows are printed as they are made. The table comes last.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from common import error, picture, table, where
from torch import nn

from geosam_stac.encoders import _family, load_model
from geosam_stac.encoders.attention import augmented
from geosam_stac.encoders.base import COMPILE_MODES, MOST_CHIPS, TorchEncoder
from geosam_stac.encoders.checkpoints import resolve
from geosam_stac.encoders.prompts import Prompts, decode
from geosam_stac.encoders.registry import ModelEntry, find_model

# The most wanted first: what the limit of time leaves out comes last.
MODELS = (
    "sam2.1-hiera-base-plus",
    "sam-vit-huge",
    "sam2.1-hiera-large",
    "sam2.1-hiera-tiny",
    "sam-vit-base",
    "sam-vit-large",
    "sam2.1-hiera-small",
)
BATCHES = (1, 8, 16, 32)
ATTENTION = "attention"
# Largest relative error of the features against upstream in fp32.
TOLERANCE = {"cpu": {"fp32": 1e-5, "bf16": 3e-2}, "cuda": {"fp32": 1e-4, "bf16": 3e-2}}
GRID = 5
HEAD = [
    "model",
    "path",
    "batch",
    "alone, chips/s",
    "with copies, chips/s",
    "TFLOP/s",
    "of the matrix rate",
    "against upstream",
    "error",
    "IoU (worst)",
]

Tensors = Mapping[str, torch.Tensor]


def seconds(work: Callable[[], object], device: str, *, repeats: int) -> float:
    """Median seconds of one call, after a first one that is not counted."""
    work()
    if not device.startswith("cuda"):
        found = []
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
        return statistics.median(found)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs)


def matrix_tflops(device: str, dtype: torch.dtype) -> float:
    """The rate of a large product of random numbers (zeros can be faster)."""
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device, repeats=10) / 1e12


# --- The candidates for SAM's attention -----------------------------------------------------------


def materialised(q, k, v, rel_h, rel_w, scale):
    """As upstream: the whole matrix of scores and bias."""
    scores = (q * scale) @ k.transpose(-2, -1)
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    return (scores + bias.flatten(-2)).softmax(dim=-1) @ v


def flex(compiled):
    """FlexAttention, which adds the two terms to each score."""

    def run(q, k, v, rel_h, rel_w, scale):
        columns = rel_w.shape[-1]

        def add(score, b, h, query, key):
            return score + rel_h[b, h, query, key // columns] + rel_w[b, h, query, key % columns]

        return compiled(q, k, v, score_mod=add, scale=scale)

    return run


def attention_rows(
    device: str, dtype: torch.dtype, *, small: bool, repeats: int
) -> list[list[str]]:
    """Each candidate on a global block and on the windows of a chip, of ViT-B and ViT-H."""
    from torch.nn.attention.flex_attention import flex_attention

    candidates: dict[str, Any] = {"materialised": materialised, "augmented": augmented}
    if not small:
        candidates["flex"] = flex(torch.compile(flex_attention, dynamic=False))
    if device.startswith("cuda") and importlib.util.find_spec("triton") is not None:
        from geosam_stac.encoders.attention_triton import fused

        candidates["triton"] = fused
    chips = 4 if device.startswith("cuda") else 1
    rows = []
    for heads, d in [(12, 64)] if small else [(12, 64), (16, 80)]:
        for what, windows, side in (("global", 1, 8 if small else 64), ("windows", 25, 14)):
            batch = windows * chips
            n = side * side
            qkv = torch.randn(batch, n, 3, heads, d, device=device).to(dtype)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            terms = [torch.randn(batch, heads, n, side, device=device).to(dtype) for _ in range(2)]
            given = (q, k, v, *terms, d**-0.5)
            exact = materialised(*(t.float() for t in given[:5]), d**-0.5)
            for name, attend in candidates.items():
                try:
                    wrong = error(attend(*given), exact)
                    took = seconds(lambda: attend(*given), device, repeats=repeats)  # noqa: B023
                    said = [f"{took * 1e3 / chips:.2f}", f"{wrong:.1e}"]
                except Exception as failure:  # noqa: BLE001 - a candidate that fails is a result
                    said = ["failed", str(failure).partition("\n")[0][:60]]
                rows.append([f"{heads} x {d}", f"{what}, {n} tokens", name, *said])
    return rows


# --- The models -----------------------------------------------------------------------------------


def upstream(entry: ModelEntry, model: Any, images: torch.Tensor) -> Tensors:
    """Upstream's own way to the features that are kept."""
    if entry.family == "sam":
        return {"image_embed": model.image_encoder(images)}
    fine, middle, coarse = model.forward_image(images)["backbone_fpn"][-3:]
    coarse = coarse + model.no_mem_embed.view(1, -1, 1, 1)
    return {"image_embed": coarse, "high_res_feats_0": fine, "high_res_feats_1": middle}


def cut(model: Any, family: str) -> None:
    """A few blocks of each kind, so that a chip takes a second on a CPU."""
    if family == "sam":
        model.image_encoder.blocks = model.image_encoder.blocks[1:3]
        return
    blocks = model.image_encoder.trunk.blocks
    for index in set(range(len(blocks))) - {0, 1, 3, 5, 10}:
        blocks[index] = nn.Identity()


class Bench:
    """One model on one device: the reference, the prompts, and the table's rows."""

    def __init__(self, name: str, device: str, *, small: bool, repeats: int) -> None:
        self.entry, self.device, self.small, self.repeats = find_model(name), device, small, repeats
        self.weights = resolve(self.entry, "untrained:0", cache_dir=Path("unused"))
        self.model: Any = load_model(self.entry, self.weights, device)
        if small:
            cut(self.model, self.entry.family)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
        size = self.entry.input_px
        self.pixels = torch.from_numpy(picture(size)[None])
        self.content = (size, size)
        self.reference = {name: t.cpu() for name, t in self._upstream().items()}
        step, half = size / GRID, size / GRID * 0.4
        at = [((c + 0.5) * step, (r + 0.5) * step) for r in range(GRID) for c in range(GRID)]
        at = at[:2] if small else at
        self.prompts = [Prompts(points=(centre,), labels=(1,)) for centre in at]
        self.prompts += [Prompts(box=(x - half, y - half, x + half, y + half)) for x, y in at]
        self.logits = self._decode(self.reference)

    @torch.inference_mode()
    def _upstream(self) -> Tensors:
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.entry.mean, self.entry.std)
        )
        images = (self.pixels.to(self.device).float() - mean) / std
        return {n: t.cpu() for n, t in upstream(self.entry, self.model, images).items()}

    def _decode(self, tensors: Tensors) -> torch.Tensor:
        """(prompt, pixels) logits of one chip's features."""
        chip = {name: tensor[0] for name, tensor in tensors.items()}
        return torch.stack(
            [
                decode(self.entry, self.model, chip, each).logits[0].flatten()
                for each in self.prompts
            ]
        ).cpu()

    def iou(self, tensors: Tensors) -> str:
        """Mean and worst IoU of the prompts' masks with those of the reference."""
        level = self.logits.median(dim=1, keepdim=True).values
        found, masks = self._decode(tensors) > level, self.logits > level
        each = (found & masks).sum(dim=1) / (found | masks).sum(dim=1).clamp(min=1)
        return f"{float(each.mean()):.4f} ({float(each.min()):.4f})"

    def encoder(self, precision: str, compile: str = "off") -> TorchEncoder:
        return _family(self.entry).ENCODER(
            self.model,
            self.weights,
            device=self.device,
            precision=precision,
            feature_dtype="float32" if precision == "fp32" else "float16",
            compile=compile,
        )

    def check(self, encoder: TorchEncoder) -> tuple[str, str]:
        """Error and IoU of an encoder; RuntimeError where it is wrong."""
        found = encoder.encode(self.pixels.numpy(), self.content)
        wrong = max(error(found[name], tensor) for name, tensor in self.reference.items())
        kind = self.device.partition(":")[0]
        # Written so that NaN fails, too.
        if not wrong < TOLERANCE[kind][encoder.precision]:
            raise RuntimeError(f"wrong by {wrong:.1e}")
        return f"{wrong:.1e}", self.iou(found)

    @torch.inference_mode()
    def alone(self, encoder: TorchEncoder, batch: int) -> float:
        """Chips a second, the input being on the device."""
        size = self.entry.input_px
        images = torch.randn(batch, 3, size, size, device=self.device)
        took = seconds(lambda: encoder._compute(images), self.device, repeats=self.repeats)
        return batch / took

    def with_copies(self, encoder: TorchEncoder, batch: int) -> float:
        """Chips a second from host to host, a batch being started before the last is taken."""
        pixels = self.pixels.expand(batch, -1, -1, -1).contiguous().numpy()
        encoder.encode(pixels, self.content)
        batches = max(2, self.repeats)
        started = time.perf_counter()
        running = encoder.submit(pixels, self.content)
        for _ in range(batches - 1):
            following = encoder.submit(pixels, self.content)
            running()
            running = following
        running()
        return batches * batch / (time.perf_counter() - started)

    def rows(self, compiles: list[str], matrix: float) -> Iterator[list[str]]:
        """Upstream's row, then ours: fp32, and bf16 as it is and compiled, at its best batch.

        A way that fails is a row that says so.
        """
        alone_s = seconds(self._upstream, self.device, repeats=max(2, self.repeats // 3))
        base = 1 / alone_s
        yield self._row("upstream, fp32, a chip at a time", 1, base, base, base, matrix, "-", "-")
        best = 1
        for precision, mode in [("fp32", "off"), ("bf16", "off"), *(("bf16", m) for m in compiles)]:
            path = precision if mode == "off" else f"{precision}, compiled ({mode})"
            encoder = self.encoder(precision, mode)
            try:
                if mode == "off":
                    said = self.check(encoder)  # right, before it is timed
                    best, rate = self.best(encoder)
                else:  # before the check, whose one chip would set the size of the batches
                    rate = self.alone(encoder, best)
                    said = self.check(encoder)
                    if encoder._mode is None:
                        raise RuntimeError("it could not be compiled")
                there = self.with_copies(encoder, best)
            except Exception as failure:  # noqa: BLE001 - the others are still measured
                yield self._failed(path, failure)
            else:
                yield self._row(path, best, rate, there, base, matrix, *said)
            del encoder
            gc.collect()

    def best(self, encoder: TorchEncoder) -> tuple[int, float]:
        """The batch with the highest rate, alone, and that rate."""
        sizes = [1]
        if self.device.startswith("cuda") and encoder.precision != "fp32":
            most = min(MOST_CHIPS, encoder.fitting_batch())
            sizes = [size for size in BATCHES if size <= most]
        rates = {}
        for size in sizes:
            try:
                rates[size] = self.alone(encoder, size)
            except torch.OutOfMemoryError:
                break
        best = max(rates, key=lambda size: rates[size])
        return best, rates[best]

    def _failed(self, path: str, failure: Exception) -> list[str]:
        said = str(failure).strip().partition("\n")[0][:100].replace("|", "/")
        why = f"failed: {type(failure).__name__}: {said}"
        return [self.entry.name, path, *["-"] * (len(HEAD) - 3), why]

    def _row(
        self,
        path: str,
        batch: int,
        rate: float,
        there: float,
        base: float,
        matrix: float,
        *said: str,
    ) -> list[str]:
        tflops = rate * self.entry.tflop_per_chip
        known = ["-", "-"] if self.small else [f"{tflops:.3g}", f"{tflops / matrix:.0%}"]
        times = f"{there / base:.2f}x"
        return [
            self.entry.name, path, str(batch), f"{rate:.3g}", f"{there:.3g}", *known, times, *said,
        ]  # fmt: skip


# --- The runs -------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """One part, in a process of its own; a line of JSON for whatever is known, at once."""
    cuda = options.device.startswith("cuda")
    if cuda:  # Triton and timing events take the current GPU
        torch.cuda.set_device(options.device)
    repeats = options.repeats or (1 if options.small else 20 if cuda else 3)
    compiles = options.compile if options.compile is not None else ["on"] if cuda else []
    # The reference is fp32, its convolutions too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if not cuda:
        torch.set_num_threads(min(2, torch.get_num_threads()))
    rates = {d: matrix_tflops(options.device, d) for d in (torch.float32, torch.bfloat16)}
    told = {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()}
    tell(matrix=told)
    if options.part == ATTENTION:
        for dtype in (torch.bfloat16,) if cuda else (torch.float32, torch.bfloat16):
            with torch.inference_mode():
                for row in attention_rows(
                    options.device, dtype, small=options.small, repeats=repeats
                ):
                    tell(attention=[str(dtype).removeprefix("torch."), *row])
        return
    bench = Bench(options.part, options.device, small=options.small, repeats=repeats)
    for row in bench.rows(compiles, rates[torch.bfloat16]):
        tell(row=row)


def tell(**known: object) -> None:
    """To the process that gathers."""
    print(json.dumps(known), flush=True)


def gather(part: str, limit_s: float, known: dict[str, list[Any]]) -> str | None:
    """Measure one part; what it told goes into `known`, and why it failed comes back.

    In a process of its own: an error of a GPU ends all that its process could still do.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        timer = threading.Timer(limit_s, child.kill)
        timer.start()
        assert child.stdout is not None
        for line in child.stdout:
            try:
                told = json.loads(line)
            except ValueError:  # a library's own words
                continue
            for name, value in told.items():
                known[name].append(value)
                if name == "row":
                    print(" | ".join(value), flush=True)
        status = child.wait()
        in_time = timer.is_alive()
        timer.cancel()
        if status == 0:
            return None
        errors.seek(0)
        said = errors.read().strip().rpartition("\n")[2]
    return f"{part}: {said[:300] or status}" if in_time else f"{part}: not done in time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", nargs="*", choices=sorted(COMPILE_MODES), default=None)
    parser.add_argument("--repeats", type=int, default=None, help="default: 20, on a CPU 3")
    parser.add_argument("--no-attention", action="store_true")
    parser.add_argument(
        "--limit", type=float, default=540, help="s; what is not done by then is left"
    )
    parser.add_argument("--small", action="store_true", help="cut models, tiny shapes, one repeat")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        measure(options)
        return
    started = time.monotonic()
    known: dict[str, list[Any]] = {"row": [], "attention": [], "matrix": []}
    failed = []
    for part in [*options.model, *([] if options.no_attention else [ATTENTION])]:
        left_s = options.limit - (time.monotonic() - started)
        why = gather(part, left_s, known) if left_s > 0 else f"{part}: no time was left"
        if why is not None:
            failed.append(why)
            print(why, flush=True)
    print(f"\n{where(options.device)}; {time.monotonic() - started:.0f} s")
    for dtype in known["matrix"][0] if known["matrix"] else ():
        each = [rates[dtype] for rates in known["matrix"]]
        print(f"matrix rate, {dtype}: {min(each):.3g} to {max(each):.3g} TFLOP/s")
    for why in failed:
        print(f"failed: {why}")
    if known["attention"]:
        head = ["dtype", "heads", "attention of", "way", "ms a chip", "error"]
        print("\n" + table(head, known["attention"]))
    print("\n" + table(HEAD, known["row"]))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
