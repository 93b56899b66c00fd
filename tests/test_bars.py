"""Bars in a notebook: what they count, and that every event goes on."""

from __future__ import annotations

import threading

import pytest

import geosam_stac as gs
from geosam_stac import events
from geosam_stac.bars import Bars
from tests.store.conftest import encoded, pixels

__all__ = ["encoded", "pixels"]


@pytest.fixture
def drawn(monkeypatch):
    """The bars that tqdm was asked for."""
    made = []

    class Bar:
        said: list[str] = []  # noqa: RUF012 - of all bars

        def __init__(self, *, total, desc, **style):
            self.total, self.desc, self.style = total, desc, style
            self.n, self.closed = 0, 0
            made.append(self)

        def update(self, by):
            self.n += by

        def close(self):
            self.closed += 1

        @classmethod
        def write(cls, text):
            made.append(text)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return made


def test_chips_are_counted_from_any_thread(drawn):
    heard = []
    bars = Bars(heard.append)
    bars(events.SceneStarted(scene_id="s", item_id="id\x1b[31m", chips=40))
    one = events.ChipDone(scene_id="s", chip_id="c", outcome="encoded")
    threads = [threading.Thread(target=lambda: [bars(one) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (bar,) = drawn
    assert (bar.n, bar.total, bar.closed) == (40, 40, 0)
    assert "\x1b" not in bar.desc
    bars(events.SceneFinished(scene_id="s", href="h"))
    bars.close()
    assert bar.closed == 1
    assert len(heard) == 42


def test_scans_and_downloads_have_bars_of_their_own(drawn):
    bars = Bars()
    bars(events.Download(name="weights", done_bytes=10, total_bytes=None))
    bars(events.Download(name="weights", done_bytes=30, total_bytes=None))
    bars(events.SceneStarted(scene_id="s", item_id="i", chips=2))
    for done in (1, 3, 2, 4):
        bars(events.ScanProgress(scene_id="s", done=done, total=4))
    bars(events.ChipDone(scene_id="s", chip_id="c", outcome="resumed"))
    weights, chips, scan = drawn
    assert (weights.n, weights.style["unit"]) == (30, "B")
    assert (scan.n, scan.closed, chips.n, chips.closed) == (4, 1, 1, 0)


def test_warnings_are_told_and_notices_are_not(drawn):
    bars = Bars()
    bars(events.Notice(message="nothing to do"))
    bars(events.Notice(message="a\x1b[31m\nb", level="warning"))
    bars(events.BatchHalved(batch_size=2))
    assert drawn[0] == "warning: a\\x1b[31m b"
    assert "batches of 2" in drawn[1]


def test_encode_and_pull_draw(drawn, encoded, pixels, tmp_path):
    href = encoded(pixels)
    options = {"model": "sam2.1-hiera-tiny", "checkpoint": "untrained", "device": "cpu"}
    gs.encode(tmp_path / "scene.json", **options, stride=32, out=tmp_path / "again", progress=True)
    gs.pull(str(href), tmp_path / "pulled", progress=True)
    warning, *bars = drawn
    assert "untrained" in warning
    assert [(bar.n, bar.total, bar.closed) for bar in bars] == [(12, 12, 1), (12, 12, 1)]
