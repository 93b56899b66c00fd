"""The encoders' benchmark runs, and the encoders need no library of rasters or of the network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from geosam_stac.encoders import load_model
from geosam_stac.encoders.checkpoints import resolve
from geosam_stac.encoders.registry import find_model

from .families import scene

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


@pytest.mark.slow  # encodes a chip with SAM 2.1 tiny, and prompts it 56 times
def test_the_benchmark_of_files(tmp_path: Path, monkeypatch, capsys) -> None:
    """The command for whoever has real weights: a checkpoint's file, and a picture."""
    entry = find_model("sam2.1-hiera-tiny")
    model = load_model(entry, resolve(entry, "untrained:1", cache_dir=tmp_path), "cpu")
    checkpoint, picture = tmp_path / "mine.pt", tmp_path / "chip.png"
    torch.save({"model": model.state_dict()}, checkpoint)
    Image.fromarray(scene(3, 1100, 1050)).save(picture)
    place = importlib.util.spec_from_file_location(
        "features_benchmark", ROOT / "tests" / "benchmarks" / "features.py"
    )
    benchmark = importlib.util.module_from_spec(place)
    place.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "GRID", 2)
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    argv = ["features.py", "--model", entry.name, "--checkpoint", str(checkpoint)]
    monkeypatch.setattr(sys, "argv", [*argv, "--image", str(picture)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert f"--checkpoint {checkpoint}" in printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if "| sam2.1" in line]
    assert [tuple(row[1:4]) for row in rows] == list(benchmark.KINDS)
    size = {tuple(row[1:4]): int(row[4].replace(",", "")) for row in rows}
    assert size["safetensors", "int8", "all"] < 0.51 * size["safetensors", "float16", "all"]
    lost = {tuple(row[1:4]): float(row[7]) for row in rows}
    assert lost["pt", "float32", "all"] == 0
    assert 1e-4 < lost["pt", "float16", "all"] < 5e-4 < lost["safetensors", "int8", "all"] < 0.015
    iou = {tuple(row[1:4]): row[8] for row in rows}
    assert iou["pt", "float32", "all"] == "1.0000 (1.0000)"
    assert iou["safetensors", "int8", "embedding"] == "-"


@pytest.mark.slow  # starts torch four times
def test_a_part_that_fails_leaves_the_rest() -> None:
    """As an error of a GPU would, which ends all that its process could still do."""
    command = [sys.executable, "tests/benchmarks/encoder.py", "--device", "cpu", "--small"]
    done = subprocess.run(
        [*command, "--model", "no-such-model"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert "failed: no-such-model: " in done.stdout
    assert sum("| augmented |" in line for line in done.stdout.splitlines()) == 4
