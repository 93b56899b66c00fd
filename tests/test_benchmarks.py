"""The benchmark scripts run, at sizes that measure nothing: their figures are not looked at."""

from __future__ import annotations

import runpy
import shutil
import sys

import pytest

from tests.benchmarks.end_to_end import device_busy
from tests.benchmarks.fleet import simulate


def run(monkeypatch, capsys, name: str, *arguments: str) -> list[list[str]]:
    """The cells of the tables that a benchmark prints, heads and rules left out."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    below = False
    rows = []
    for line in lines:
        if line.startswith("|---"):
            below = True
        elif not line.startswith("|"):
            below = False
        elif below:
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_reading(monkeypatch, capsys, tmp_path):
    arguments = ("--size", "1536", "--blocksize", "256", "--repeat", "1", "--keep", str(tmp_path))
    rows = run(monkeypatch, capsys, "reading", *arguments)
    traffic, rates = [row for row in rows if len(row) == 8], [row for row in rows if len(row) == 4]
    assert len(traffic) == 7
    assert len(rates) == 2
    assert traffic[0][1] == "1536 x 1536"
    # Headers weigh more in a small scene; the bodies are those of the blocks.
    assert all(float(row[5]) >= 0.99 for row in traffic)


def test_memory(monkeypatch, capsys):
    (row,) = run(monkeypatch, capsys, "memory", "--sizes", "1536")
    assert row[:2] == ["1536 x 1536", "4"]
    assert 0 < float(row[2]) <= float(row[3])


def test_startup(monkeypatch, capsys):
    rows = run(monkeypatch, capsys, "startup", "--repeat", "1")
    assert [row[3] for row in rows] == ["neither"] * 3


def test_scaling(monkeypatch, capsys):
    import geosam_stac.session as module

    for name in ("find_model", "load_encoder"):  # the script replaces them
        monkeypatch.setattr(module, name, getattr(module, name))
    rows = run(monkeypatch, capsys, "scaling", "--chips", "1", "4", "--repeat", "1")
    assert [row[:2] for row in rows] == [["1", "1024 x 1024"], ["4", "1536 x 1536"]]


def test_a_device_is_never_busier_than_the_whole_run():
    assert device_busy([3.0, 2.0], 4.0) == "50% (the encoder alone: 2.0 to 3.0 s)"
    assert device_busy([5.0, 6.0], 4.0).startswith("100% ")


def test_a_simulated_fleet_pays_for_what_it_reads_back():
    options = {"chips": 20_000, "workers": 2, "shards_per_worker": 2, "rate": 10.0}
    options |= {"start_s": 60.0, "seed": 1, "resume": "chip", "scene_chips": 400}
    calm = simulate(**options, lost_per_hour=0.0, reread_rate=10.0)
    assert calm.reread_chips == 0
    assert calm.paid_h == pytest.approx((20_000 / 10 + 4 * 60) / 3600)
    lossy = simulate(**options, lost_per_hour=6.0, reread_rate=10.0)
    free = simulate(**options, lost_per_hour=6.0, reread_rate=1e12)
    assert lossy.reread_chips > 0
    assert lossy.wasted_fraction > free.wasted_fraction > calm.wasted_fraction
    # A scene under way is never more than the whole one.
    small = simulate(**(options | {"scene_chips": 1}), lost_per_hour=6.0, reread_rate=10.0)
    assert small.reread_chips == 0
