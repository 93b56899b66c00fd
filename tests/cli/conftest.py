"""Running the command line: in this process, and as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from geosam_stac.cli import app, console
from geosam_stac.cli.guard import run
from tests import rasters

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()


@pytest.fixture
def cli(capsys) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def call(*argv: object) -> Outcome:
        console.set_verbosity(quiet=False, verbose=False)
        capsys.readouterr()
        code = run(app(), [str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def python(*argv: object, **options: object) -> subprocess.Popen:
    """Start Python in the repository's root, output piped."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, "-W", "ignore", *map(str, argv)]
    return subprocess.Popen(command, **(given | options))


@pytest.fixture
def item(tmp_path) -> Path:
    """A 96 x 96 px scene of uint8: 2 x 2 chips of the fake model at stride 32."""
    return make_item(tmp_path, "scene")


def make_item(tmp_path: Path, name: str, size: tuple[int, int] = (96, 96)) -> Path:
    """An Item of three bands with common names."""
    tif = rasters.write_tif(tmp_path / f"{name}.tif", rasters.values((3, *size), "uint8"))
    bands = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(
        tmp_path / f"{name}.json", {"image": rasters.asset(tif, **bands)}, item_id=name
    )


@pytest.fixture
def fake(tmp_path, item) -> list[str]:
    """Options of an encode with the fake model into tmp_path / out."""
    return [
        *("encode", "--item", str(item), "--model", "sam2.1-hiera-tiny"),
        *("--checkpoint", "untrained", "--device", "cpu", "--stride", "32"),
        *("--out", str(tmp_path / "out")),
    ]
