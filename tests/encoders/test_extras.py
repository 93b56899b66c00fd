"""Without the packages of an extra everything else works, and what needs one names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import rasters

ROOT = Path(__file__).parents[2]

WITHOUT_TRANSFORMERS = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"transformers", "huggingface_hub", "tokenizers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from geosam_stac.cli import main
main()
"""


def cli(*argv: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that has no transformers."""
    words = [str(word) for word in argv]
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, *words],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def test_sam3_without_transformers(tmp_path: Path) -> None:
    tif = rasters.write_tif(tmp_path / "scene.tif", rasters.values((3, 64, 64), "uint8"))
    bands = rasters.named_bands("red", "green", "blue")
    item = rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif, **bands)})
    encode = ("encode", "--item", item, "--device", "cpu", "--out", tmp_path / "out")

    # What it would take is told without the model ...
    planned = cli(*encode, "--model", "sam3", "--checkpoint", "untrained", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    # ... and encoding names what to install.
    done = cli(*encode, "--model", "sam3", "--checkpoint", "untrained")
    assert done.returncode == 78, done.stderr
    assert "pip install 'geosam-stac[sam3]'" in done.stderr
    assert "Traceback" not in done.stderr
