"""Runs that are killed, at any moment of their work: SIGTERM, SIGINT and SIGKILL to real processes.

Each case is a run of the command line in a process of its own (`tests.forks`), ended by a signal
at a change of its output or after a random time, and a second run of the same command. What a
crash at a call of the store leaves is tested in `test_resume_model`, in one process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import rasters
from tests.faults.conftest import TILES, assert_same, check_output, contents, objects
from tests.faults.server import FaultServer, Rule, fault_server
from tests.faults.watch import Point, changes, encoded, start
from tests.forks import PATIENCE_S, ROOT, Ended, Forks, Running
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)

PX = 448
STRIDE = 64
EMPTY = 4
CHIPS = (PX // STRIDE) ** 2 - EMPTY
WITHIN_S = 10.0
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
#: What the commit writes, in this order; then comes the Item, and the journal goes.
COMMIT = ("manifest.parquet", "skipped.parquet", "thumbnail.png", "run.json")
#: A store on a socket takes longer than a disk.
PACE = {"local": 1.0, "s3": 6.0}


@pytest.fixture(scope="module")
def item(tmp_path_factory) -> Path:
    """49 chips, of which 4 have no valid pixel: three parts of the journal, and a bit."""
    folder = tmp_path_factory.mktemp("scene")
    data = rasters.values((3, PX, PX), "uint8")
    data[:, : 2 * STRIDE, : 2 * STRIDE] = 0
    tif = rasters.write_tif(folder / "scene.tif", data, nodata=0)
    bands = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(folder / "scene.json", {"image": rasters.asset(tif, **bands)})


def command(item: object, out: str, *more: object) -> list[object]:
    return [
        *("encode", "--item", item, "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained"),
        *("--device", "cpu", "--stride", STRIDE, "--batch-size", 4, "--json", "--out", out, *more),
    ]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """A run that nobody disturbs. `seconds`: from its first change to its last, the commit's.

    `before_commit`: how many changes come before the commit's.
    """

    found: dict[str, object]
    before_commit: int
    seconds: float

    @property
    def chips(self) -> int:
        """How many features there are."""
        return sum(key.endswith(".pt") for key in self.found)


@pytest.fixture(scope="module")
def clean(runs, item, tmp_path_factory) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    out = str(folder / "out")
    own = {k: v for k, v in os.environ.items() if not k.startswith("GEOSAM_STAC_")}
    own["GEOSAM_STAC_CACHE"] = str(folder / "cache")
    running = start(runs, command(item, out), environ=own)
    assert running.hear("create")
    started = time.monotonic()
    assert running.hear("delete_tree")
    seconds = time.monotonic() - started
    ended = running.wait()
    assert ended.code == 0, ended.err
    told = changes(ended)
    before = told[:-6]
    names = [change.rpartition("/")[2] for change in told[-6:]]
    assert tuple(names[:4]) == COMMIT
    assert names[4].endswith(".json")
    assert names[5] == "journal"
    found = Clean(found=contents(out, str(item.parent)), before_commit=len(before), seconds=seconds)
    assert found.chips == CHIPS
    return found


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a run that was killed has left."""

    features: int
    recorded: int
    has_item: bool


def look(out: str, clean: Clean) -> Left:
    """Each visible object is whole; of an Item everything that it names is there."""
    features, recorded, has_item = 0, set(), False
    for key, data in objects(out):
        if key.endswith(".pt"):
            assert data == clean.found[key], key
            features += 1
        elif key.endswith(".ndjson"):
            recorded |= {json.loads(line)["chip_id"] for line in data.decode().splitlines()}
        elif key.endswith(".json") and not key.endswith("run.json"):
            has_item = True
        else:
            assert data, key
    if has_item:
        assert check_output(out) == clean.chips
    return Left(features=features, recorded=len(recorded), has_item=has_item)


def finish(runs: Forks, argv: list[object], out: str, web: str, clean: Clean) -> dict:
    """Run it again, to the clean run's end; the result that it prints."""
    ended = start(runs, argv).wait()
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["chips_encoded"] == encoded(ended)
    is_clean(result, out, web, clean)
    return result


def is_clean(result: dict, out: str, web: str, clean: Clean) -> None:
    assert result["chips_encoded"] + result["chips_resumed"] == clean.chips
    assert_same(contents(out, web), clean.found)
    assert check_output(out) == clean.chips


def interrupted(ended: Ended, signum: int) -> None:
    assert ended.code == CODES[signum], ended.err
    if signum != signal.SIGKILL:
        assert "Traceback" not in ended.err
        assert ended.err.splitlines()[-1].startswith("error: interrupted: ")
        assert ended.out == "" or json.loads(ended.out)["id"]


def nothing_twice(left: Left, result: dict, signum: int) -> None:
    """A chip that is recorded is not encoded again; after a signal that can be caught, all are."""
    if left.has_item:
        assert result["chips_encoded"] == 0
    elif signum == signal.SIGKILL:
        total = result["chips_encoded"] + result["chips_resumed"]
        # Once it is there, the manifest records all of them.
        assert result["chips_resumed"] in (left.recorded, total)
    else:
        assert result["chips_resumed"] == left.features


def place_of(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An output of a test's own: a local folder, or one in moto's bucket."""
    if kind == "local":
        return str(tmp_path / "out")
    use_s3(request.getfixturevalue("monkeypatch"), request.getfixturevalue("s3_endpoint"))
    return f"s3://bucket/kill-{tmp_path.name}"


def killed_at(runs: Forks, item: Path, out: str, folder: Path, clean: Clean, point: Point) -> None:
    """A run that a signal ends at a change of its output, and the next one."""
    argv = command(item, out)
    running = start(runs, argv, point=point)
    assert running.hear("signal")
    ended = within_10_s(running)
    interrupted(ended, point.signum)
    survives(runs, argv, out, str(item.parent), folder, clean, point.signum)


def killed_after(
    runs: Forks, item: Path, out: str, folder: Path, clean: Clean, signum: int, part: float
) -> None:
    """A run that is ended after a part of a clean run's time, and the next one.

    Where it is quicker than the clean one and has ended by then, another takes half the time.
    """
    for number in range(6):
        here = f"{out}-{number}"
        argv = command(item, here)
        running = start(runs, argv)
        assert running.hear("create")
        time.sleep(part * clean.seconds / 2**number)
        running.send_signal(signum)
        ended = within_10_s(running)
        if not had_ended(ended, signum):
            interrupted(ended, signum)
            survives(runs, argv, here, str(item.parent), folder, clean, signum)
            return
    raise AssertionError("each run has ended before its signal")


def had_ended(ended: Ended, signum: int) -> bool:
    """Before its signal; or its work had, and the interpreter, on its way out, heard nothing."""
    is_leaving = signum != signal.SIGKILL and ended.code == -signum
    return ended.code == 0 or (is_leaving and bool(json.loads(ended.out)["id"]))


def within_10_s(running: Running) -> Ended:
    """The end of one that was sent a signal."""
    at = time.monotonic()
    ended = running.wait()
    assert time.monotonic() - at < WITHIN_S
    return ended


def survives(
    runs: Forks, argv: list[object], out: str, web: str, folder: Path, clean: Clean, signum: int
) -> None:
    """What is left is whole, and the next run makes the clean run's output of it."""
    left = look(out, clean)
    if signum != signal.SIGKILL:
        assert not list(folder.rglob("*.tmp"))
    nothing_twice(left, finish(runs, argv, out, web, clean), signum)


@dataclass(frozen=True, kw_only=True)
class Case:
    """When a run is killed. `seed`: of the change, or of the time."""

    seed: int
    signum: int
    when: str  # features, commit: at a change there; time: after a part of it
    place: str = "local"

    @property
    def name(self) -> str:
        return f"{self.seed}-{self.when}-{self.place}"

    def kill(self, runs, item, clean, tmp_path, request) -> None:
        rng = random.Random(f"{self.signum} {self.seed}")
        out = place_of(self.place, tmp_path, request)
        if self.when == "time":
            part = rng.random() * 0.95 * PACE[self.place]
            killed_after(runs, item, out, tmp_path, clean, self.signum, part)
            return
        last = clean.before_commit
        numbers = range(1, last + 1) if self.when == "features" else range(last + 1, last + 7)
        point = Point.at_random(rng, self.signum, numbers)
        killed_at(runs, item, out, tmp_path, clean, point)


def cases(signum: int, first: int, **counts: int) -> list:
    """So many of each kind, as WHEN_PLACE."""
    kinds = [kind.split("_") for kind, count in counts.items() for _ in range(count)]
    found = [
        Case(seed=first + number, signum=signum, when=when, place=place)
        for number, (when, place) in enumerate(kinds)
    ]
    return [pytest.param(case, id=case.name) for case in found]


GATE = {"features_local": 7, "commit_local": 5, "time_local": 4, "features_s3": 2, "commit_s3": 2}


@pytest.mark.parametrize("case", cases(signal.SIGTERM, 0, **GATE))
def test_sigterm(case, runs, item, clean, tmp_path, request):
    case.kill(runs, item, clean, tmp_path, request)


@pytest.mark.parametrize(
    "case", cases(signal.SIGINT, 0, features_local=1, commit_local=1, time_local=1)
)
def test_sigint(case, runs, item, clean, tmp_path, request):
    case.kill(runs, item, clean, tmp_path, request)


KILLS = {"features_local": 8, "commit_local": 6, "time_local": 7, "features_s3": 2, "time_s3": 2}


@pytest.mark.parametrize("case", cases(signal.SIGKILL, 0, **KILLS))
def test_sigkill(case, runs, item, clean, tmp_path, request):
    case.kill(runs, item, clean, tmp_path, request)


LONG = {"features_local": 60, "commit_local": 40, "time_local": 80, "commit_s3": 10, "time_s3": 10}


@pytest.mark.long
@pytest.mark.parametrize("case", cases(signal.SIGKILL, 1000, **LONG))
def test_sigkill_often(case, runs, item, clean, tmp_path, request):
    case.kill(runs, item, clean, tmp_path, request)


# While something is waited for


@pytest.fixture
def web(item, tmp_path) -> Iterator[FaultServer]:
    """A server of the scene, whose Item names the server."""
    folder = tmp_path / "web"
    folder.mkdir()
    shutil.copy(item.parent / "scene.tif", folder)
    with fault_server(folder, None) as server:
        document = json.loads(item.read_text())
        document["assets"]["image"]["href"] = f"{server.url}/scene.tif"
        (folder / "scene.json").write_text(json.dumps(document))
        yield server


WAITS = {
    "item": Rule(fault="503", path=r"scene\.json", times=None, retry_after=60),
    "tile": Rule(fault="503", path=r"scene\.tif", bytes=TILES, times=None, retry_after=60),
    "stalled": Rule(fault="stalled", path=r"scene\.tif", bytes=TILES, times=None),
    "header": Rule(fault="stalled", path=r"scene\.tif", times=None),
}


@pytest.mark.parametrize("waits_for", WAITS)
def test_sigterm_while_a_read_waits(waits_for, runs, web, clean, tmp_path):
    """For a Retry-After of a minute; for the next try of a tile; for bytes that do not come."""
    web.rules(WAITS[waits_for])
    out = str(tmp_path / "out")
    argv = command(f"{web.url}/scene.json", out)
    running = start(runs, argv)
    if waits_for in ("stalled", "header"):
        until(web.faults)
    else:
        running.says("trying again in 60" if waits_for == "item" else "trying again in")
    running.send_signal(signal.SIGTERM)
    interrupted(within_10_s(running), signal.SIGTERM)
    web.rules()
    survives(runs, argv, out, web.url, tmp_path, clean, signal.SIGTERM)


@pytest.mark.parametrize("fault", ["503", "stalled"])
def test_sigterm_while_a_write_waits(fault, runs, item, s3_upstream, clean, tmp_path, monkeypatch):
    """After a third of the features the store asks to come again in a minute, or says nothing."""
    with fault_server(tmp_path, s3_upstream) as server:
        use_s3(monkeypatch, server.url)
        again_s = 60 if fault == "503" else None
        put = {"path": r"\.pt", "method": "PUT", "skip": CHIPS // 3, "times": None}
        server.rules(Rule(fault=fault, retry_after=again_s, **put))
        out = f"s3://bucket/kill-{tmp_path.name}"
        argv = command(item, out)
        running = start(runs, argv)
        if fault == "503":
            running.says("trying again in 60")
        else:
            until(server.faults)
        running.send_signal(signal.SIGTERM)
        interrupted(within_10_s(running), signal.SIGTERM)
        server.rules()
        left = look(out, clean)
        result = finish(runs, argv, out, str(item.parent), clean)
    if fault == "503":
        assert left.features >= 1
        nothing_twice(left, result, signal.SIGTERM)
    # One that is left in the middle of a request is stored or not, and nobody has heard of it.
    assert result["chips_resumed"] >= left.recorded


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# The command as it is installed, with a real model


@pytest.mark.slow  # a dozen chips of SAM 2.1 tiny
def test_the_installed_command_is_killed_twice(tmp_path):
    """SIGTERM to a fresh process, SIGKILL to the next, and a third one ends it."""
    tif = rasters.write_tif(tmp_path / "scene.tif", rasters.values((3, 64, 256), "uint8"))
    bands = rasters.named_bands("red", "green", "blue")
    scene = rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif, **bands)})

    def installed(out: Path) -> subprocess.Popen:
        more = ("--chip-size", 64, "--batch-size", 1)
        argv = [Path(sys.executable).parent / "geosam-stac", *command(scene, str(out), *more)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen([*map(str, argv)], env=environ, **pipes)

    def killed(out: Path, features: int, signum: int) -> Ended:
        with installed(out) as process:
            until(lambda: process.poll() or len(list(out.rglob("*.pt"))) >= features)
            process.send_signal(signum)
            at = time.monotonic()
            said = process.communicate(timeout=PATIENCE_S)
            assert time.monotonic() - at < WITHIN_S
        return Ended(code=process.returncode, out=said[0], err=said[1], told=[])

    def ended(out: Path) -> dict:
        with installed(out) as process:
            said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said[1]
        return json.loads(said[0])

    assert ended(tmp_path / "clean")["chips_encoded"] == 4
    found = contents(str(tmp_path / "clean"), str(tmp_path))
    clean = Clean(found=found, before_commit=4, seconds=0.0)
    out = tmp_path / "twice"
    interrupted(killed(out, 1, signal.SIGTERM), signal.SIGTERM)
    first = look(str(out), clean)
    assert 1 <= first.features == first.recorded < 4
    interrupted(killed(out, first.features + 1, signal.SIGKILL), signal.SIGKILL)
    second = look(str(out), clean)
    assert first.features < second.features < 4
    assert first.recorded <= second.recorded
    result = ended(out)
    assert result["chips_resumed"] == second.recorded
    is_clean(result, str(out), str(tmp_path), clean)
