"""The encoders' benchmark runs, and the encoders need no library of rasters or of the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A machine with a GPU may have none of these; the benchmark and the encoders need none.
ABSENT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    names = {"affine", "fsspec", "geopandas", "odc", "pandas", "pyarrow", "pystac", "rasterio"}
    names |= {"requests", "rich", "shapely", "typer", "xarray"}

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_encoders_need_no_raster_library() -> None:
    names = ("base", "checkpoints", "prompts", "sam", "sam2", "vit", "hiera", "rate", "weights")
    imports = "".join(f"import geosam_stac.encoders.{name}\n" for name in names)
    assert run(ABSENT + imports + "print('there')") == "there\n"


@pytest.mark.slow  # builds SAM ViT-B, and encodes ten chips with two of its blocks
def test_the_benchmark_of_encoders() -> None:
    printed = run(
        "import runpy, sys\n"
        "sys.argv = ['encoder.py', '--device', 'cpu', '--small', '--model', 'sam-vit-base']\n"
        "sys.path.insert(0, 'tests/benchmarks')\n"
        "runpy.run_path('tests/benchmarks/encoder.py', run_name='__main__')\n"
    )
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| sam-vit-base")]
    assert [row[1] for row in rows] == ["upstream, fp32, a chip at a time", "fp32", "bf16"]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
    assert float(rows[1][8]) < 1e-5 < float(rows[2][8]) < 3e-2
    assert sum("| augmented |" in line for line in printed.splitlines()) == 4
