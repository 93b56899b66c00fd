"""Freed memory goes back to the system, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from geosam_stac.heap import _malloc_trim, give_back_freed

ROOT = Path(__file__).resolve().parents[1]
# Blocks of 3 MB as chips and features are; between them what stays, as a run's records do.
CODE = """
from geosam_stac.heap import give_back_freed

def resident_mb():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

bytes(b"x" * (16 << 20))  # a block that large, freed, and glibc keeps what is as large
before = resident_mb()
kept = []
blocks = []
for _ in range(100):
    blocks.append(b"x" * (3 << 20))
    kept.append(b"y" * 100_000)
blocks.clear()
print(resident_mb() - before, give_back_freed(), resident_mb() - before)
"""


@pytest.mark.skipif(_malloc_trim() is None, reason="the C library is not glibc")
def test_what_is_freed_goes_back():
    clean = {"PYTHONPATH": str(ROOT), "PATH": ""}  # without settings of glibc's
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    before, said, after = done.stdout.split()
    assert float(before) > 200  # else this shows nothing
    assert (said, float(after) < 40) == ("True", True), after


def test_a_c_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr("geosam_stac.heap._malloc_trim", lambda: None)
    assert give_back_freed() is False
