"""Freed memory goes back to the system, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geosam_stac.heap import SETTINGS, _is_glibc

ROOT = Path(__file__).resolve().parents[1]
# Blocks of 3 MB as chips and features are; between them what stays, as a run's records do.
CODE = """
import sys
from geosam_stac.heap import give_back_freed

def resident_mb():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

done = give_back_freed() if sys.argv[1] == "yes" else None
bytes(b"x" * (16 << 20))  # a block that large, freed, and glibc keeps what is as large
before = resident_mb()
kept = []
blocks = []
for _ in range(100):
    blocks.append(b"x" * (3 << 20))
    kept.append(b"y" * 100_000)
blocks.clear()
print(done, resident_mb() - before)
"""


def _left_mb(asked: str, **environ: str) -> tuple[str, float]:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", CODE, asked],
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said, left = done.stdout.split()
    return said, float(left)


@pytest.mark.skipif(not _is_glibc(), reason="the C library is not glibc")
def test_what_is_freed_goes_back():
    said, left = _left_mb("yes")
    assert (said, left < 40) == ("True", True), left
    assert _left_mb("no")[1] > 200  # else this shows nothing


def test_the_environment_s_own_settings_stand():
    said, _ = _left_mb("yes", MALLOC_TRIM_THRESHOLD_="1000000")
    assert said == "False"
