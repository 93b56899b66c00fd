"""A real Dask scheduler and real worker processes: the same as one process, whoever is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

import geosam_stac as gs
from geosam_stac.errors import TemporaryError
from geosam_stac.events import ChipDone, Event
from geosam_stac.scale.dask import connect
from tests.cli.conftest import make_item
from tests.faults.server import Rule, fault_server
from tests.scale.cluster import Cluster
from tests.scale.main import start
from tests.scale.outputs import assert_same, contents

OPTIONS = ("--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "--device", "cpu")


@pytest.fixture
def cluster(runs, tmp_path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(runs, folder)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def forty(tmp_path) -> Path:
    """A file of 40 small scenes, the last of them large enough to be split."""
    rng = np.random.default_rng(2)
    lines = []
    for number in range(40):
        size = (int(rng.integers(40, 160)), int(rng.integers(40, 160)))
        size = (600, 700) if number == 39 else size
        path = make_item(tmp_path, f"scene-{number:02d}", size)
        lines.append(json.dumps(json.loads(path.read_text())))
    items = tmp_path / "items.ndjson"
    items.write_text("\n".join(lines))
    return items


def test_one_worker_lost_and_one_added(runs, tmp_path, forty, cluster):
    out = tmp_path / "out"
    options = ("--items", forty, *OPTIONS, "--stride", 32, "--out", out)
    for _ in range(4):
        cluster.add(seconds=0.02)
    single = start(runs, "encode", *options, "-q").wait()
    assert single.code == 0, single.err
    expected = contents(out)
    assert len([name for name in expected if name.endswith("manifest.parquet")]) == 40
    out.rename(tmp_path / "single")
    cluster.wait(4)
    run = start(runs, "encode", *options, "--dask", cluster.address)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/*/features/*.pt"))) < 40:  # in the middle
        assert run.poll() is None, run.wait()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(cluster.workers[0].pid, signal.SIGKILL)
    cluster.add()
    ended = run.wait()
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 40
    assert "40 scenes in" in ended.err
    assert_same(contents(out), expected)


def test_failures_are_told_and_the_rest_goes_on(runs, tmp_path, forty, cluster):
    """For good: a file that is not there; for the time being, to the end: a server that is busy."""
    lines = forty.read_text().splitlines()[:5]

    def failing(name: str, href: str) -> str:
        document = json.loads(lines[1]) | {"id": name}
        document["assets"]["image"]["href"] = href
        return json.dumps(document)

    items, out = tmp_path / "some.ndjson", tmp_path / "out"
    options = ("--items", items, *OPTIONS, "--stride", 32, "--out", out, "--retry-deadline", 0.2)
    cluster.add(gpu=False)
    with fault_server(tmp_path) as server:
        server.rules(Rule(fault="503", times=None))
        failures = [
            failing("broken", str(tmp_path / "nowhere.tif")),
            failing("busy", f"{server.url}/a.tif"),
        ]
        items.write_text("\n".join([*lines, *failures]))
        ended = start(runs, "encode", *options, "--dask", cluster.address, "--json").wait()
    assert ended.code == 3, ended.err
    assert {json.loads(line)["id"].split("_")[0] for line in ended.out.splitlines()} == {
        json.loads(line)["id"] for line in lines
    }
    assert "no worker has the resource GPU" in ended.err
    failed = [json.loads(line) for line in (out / "failed.ndjson").read_text().splitlines()]
    codes = {each["id"]: each["geosam:failed"]["exit_code"] for each in failed}
    assert codes == {"broken": 65, "busy": 75}
    reports = [json.loads(path.read_text()) for path in out.glob("*/run.json")]
    assert [report["inputs"] for report in reports] == [{"items": str(items)}] * 5


def test_one_scene_from_python(tmp_path, cluster, fake_model):
    path = make_item(tmp_path, "scene", (600, 700))
    options = {
        "model": "sam2.1-hiera-tiny",
        "checkpoint": "untrained",
        "device": "cpu",
        "stride": 32,
        "out": str(tmp_path / "out"),
    }
    cluster.add()
    cluster.add()
    whole = gs.encode(path, **options)
    expected = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "single")
    cluster.wait(2)
    heard: list[Event] = []
    with connect(cluster.address) as client:
        result = gs.encode(path, client=client, sink=heard.append, **options)
    assert result.item.id == whole.item.id
    assert result.chips_encoded == whole.chips_encoded
    assert_same(contents(tmp_path / "out"), expected)
    run = json.loads((tmp_path / "out" / result.item.id / "run.json").read_text())
    assert run["inputs"] == {"item": [str(path)]}
    # They come by another way than the result: the last ones may come after it.
    assert 1 <= sum(isinstance(event, ChipDone) for event in heard) <= whole.chips_encoded


def test_nobody_answers():
    with pytest.raises(TemporaryError, match="does not answer"):
        connect("tcp://127.0.0.1:9", timeout_s=1)
