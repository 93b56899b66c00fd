"""What the encoders' benchmarks share: what was run where, pictures, and errors."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(
    0, str(ROOT)
)  # this checkout's package, as a script's own folder stands in its place


def where(device: str = "cpu") -> str:
    """Device (as torch calls it), versions, date, commit and command, in one line."""
    if device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        device = capabilities.get("cpu_name") or platform.processor() or platform.machine()
        device += f", {torch.get_num_threads()} threads"
        has = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        device += f" ({', '.join(has) or 'no bf16'})"
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    command = shlex.join([Path(sys.executable).name, str(Path(sys.argv[0])), *sys.argv[1:]])
    return (
        f"{device}; torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; "
        f"commit {head.stdout.strip() or '-'}; `{command}`"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(size: int, seed: int = 0) -> np.ndarray:
    """(3, size, size) uint8 RGB: gradients, fields with sharp edges, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    pixels = np.stack([x / 8, y / 8, 96 + 64 * np.sin((x + y) / 50)])
    for _ in range(40):
        top, left = rng.integers(0, max(1, size - 50), 2)
        height, width = rng.integers(20, 200, 2)
        pixels[:, top : top + height, left : left + width] = rng.integers(0, 256, (3, 1, 1))
    return (pixels + rng.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """L2 norm of the difference over that of the reference, in float64."""
    ours, reference = ours.double(), reference.double()
    return float((ours - reference).norm() / reference.norm())
