"""Shards as a Job controller starts them, and a scene split over several: the same as one run."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from geosam_stac.errors import DataError, TemporaryError, UsageError
from geosam_stac.journal import Journal
from geosam_stac.layout import Layout, layer_name
from geosam_stac.pipeline import encode_part, encode_scene
from geosam_stac.scale import finalize as finalize_module
from geosam_stac.scale.finalize import finalize_scene
from geosam_stac.scale.kubernetes import JobSpec, documents
from geosam_stac.storage import Store
from geosam_stac.types import Part
from tests import rasters
from tests.cli.conftest import make_item
from tests.fakes import fake_session
from tests.forks import PATIENCE_S, ROOT, Ended, Forks
from tests.scale import main
from tests.scale.controller import SIGNALS, Controller, Doom, Pod
from tests.scale.outputs import assert_same, contents, environment

IMAGE = "example/geosam-stac@sha256:" + "0" * 64


def _run(runs: Forks, *argv: object, index: int | None = None, input_px: int = 64) -> Ended:
    """To its end, as a process of its own; `index`: of the pod."""
    more = {} if index is None else {"JOB_COMPLETION_INDEX": str(index)}
    return main.start(runs, *argv, FAKE_INPUT_PX=str(input_px), **more).wait()


def _plain(*argv: object) -> None:
    """As `_run`, but a process of its own from its start on, as a container's."""
    command = [sys.executable, "-W", "ignore", "-m", main.__name__, *map(str, argv)]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


def _options(out: Path) -> list[str]:
    return [
        *("--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained", "--device", "cpu"),
        *("--stride", "32", "--out", str(out)),
    ]


def _job(shards: int, *, parallelism: int = 4) -> dict:
    spec = JobSpec(
        name="x",
        image=IMAGE,
        shards=shards,
        parallelism=parallelism,
        encode_args=(),
        finalize_args=(),
    )
    return documents(spec)[0]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A file of 40 small scenes of several sizes, and one that is larger than a shard's share."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(1)
    lines = []
    for number in range(40):
        size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)))
        path = make_item(folder, f"scene-{number:02d}", size)
        lines.append(json.dumps(json.loads(path.read_text())))
    path = make_item(folder, "large", (700, 900))
    lines.append(json.dumps(json.loads(path.read_text())))
    items = folder / "items.ndjson"
    items.write_text("\n".join(lines))
    return items


def _starter(
    runs: Forks, tmp_path: Path, *argv: object, seed: int = 0
) -> Callable[[int, Doom | None], Pod]:
    """Starts pods; one that is doomed comes to its end in a batch of its first few."""
    rng = random.Random(seed)
    numbers = itertools.count()

    def start(index: int, doom: Doom | None) -> Pod:
        more = {"JOB_COMPLETION_INDEX": str(index)}
        mark = tmp_path / f"mark-{next(numbers)}"
        if doom is not None:
            more["FAKE_DOOM"] = f"{rng.randint(2, 4)}:{mark if doom in SIGNALS else ''}"
        process = main.start(runs, "encode", *argv, "-q", **more)
        return Pod(process=process, doom=doom, ready=mark.exists)

    return start


def test_eight_shards_with_random_kills(runs, tmp_path, many):
    out = tmp_path / "out"
    _plain("encode", "--items", many, *_options(out), "-q")
    expected = contents(out)
    assert len([name for name in expected if name.endswith("manifest.parquet")]) == 41
    out.rename(tmp_path / "single")
    dooms = {
        # Once more than backoffLimitPerIndex: what the cluster takes away does not count.
        2: [Doom.DISRUPTED] * 4,
        # These count, and are as many as may be.
        5: [Doom.OUT_OF_MEMORY, Doom.TERMINATED, Doom.TEMPORARY],
    }
    start = _starter(runs, tmp_path, "--items", many, *_options(out), "--shard", 8, seed=3)
    outcome = Controller(_job(8), start, dooms=dooms).run(limit_s=400)
    assert outcome.complete == set(range(8))
    assert not outcome.failed and not outcome.job_failed
    assert outcome.codes(2) == [137] * 4 + [0]
    assert outcome.codes(5) == [137, 143, 75, 0]
    # What an earlier run had told of these scenes, which are done now.
    stale = {"id": json.loads(many.read_text().splitlines()[0])["id"], "geosam:failed": {}}
    (out / "failed.ndjson").write_text(json.dumps(stale) + "\n")
    for _ in range(2):  # safe to run again
        done = _run(runs, "finalize", "--items", many, *_options(out), "--shards", 8)
        assert done.code == 0, done.err
        assert len(done.out.splitlines()) == 41
        assert not (out / "failed.ndjson").exists()
    assert_same(contents(out), expected)


def test_an_index_that_fails_too_often_is_told(runs, tmp_path, many):
    out = tmp_path / "out"
    items = tmp_path / "some.ndjson"
    items.write_text("\n".join(many.read_text().splitlines()[:6]))
    options = ("--items", items, *_options(out))
    start = _starter(runs, tmp_path, *options, "--shard", 3)
    dooms = {1: [Doom.OUT_OF_MEMORY, Doom.TEMPORARY, Doom.OUT_OF_MEMORY, Doom.OUT_OF_MEMORY]}
    outcome = Controller(_job(3), start, dooms=dooms).run(limit_s=240)
    assert outcome.codes(1) == [137, 75, 137, 137]
    assert (outcome.failed, outcome.complete) == ({1}, {0, 2})
    assert not outcome.job_failed
    done = _run(runs, "finalize", *options, "--shards", 3)
    assert done.code == 75
    # The third pod's report is not there any more: the fourth has begun.
    assert "of these have begun, and have not come to their end: 1" in done.err
    assert "run them again: `encode --shard I/3`" in done.err
    assert _run(runs, "encode", *options, "--shard", "1/3").code == 0
    done = _run(runs, "finalize", *options, "--shards", 3)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 6


def _copies(many: Path, items: Path, *, broken: Sequence[bool]) -> None:
    """Scenes of one size; of the broken ones the asset is not there."""
    document = json.loads(many.read_text().splitlines()[2])
    lines = []
    for number, is_broken in enumerate(broken):
        copy = json.loads(json.dumps(document)) | {"id": f"copy-{number}"}
        if is_broken:
            copy["assets"]["image"]["href"] = str(items.parent / "nowhere.tif")
        lines.append(json.dumps(copy))
    items.write_text("\n".join(lines))


def test_broken_scenes_do_not_end_a_job(runs, tmp_path, many):
    out, items = tmp_path / "out", tmp_path / "some.ndjson"
    # One in each shard: scenes of one size go to the shards in turns.
    _copies(many, items, broken=[False] * 3 + [True] * 3 + [False] * 3)
    options = ("--items", items, *_options(out))
    outcome = Controller(_job(3), _starter(runs, tmp_path, *options, "--shard", 3)).run(limit_s=120)
    assert sorted(outcome.ends) == [(0, 0, None), (1, 0, None), (2, 0, None)]
    done = _run(runs, "finalize", *options, "--shards", 3)
    assert done.code == 3
    assert "copy-3" in done.err
    assert len(done.out.splitlines()) == 6
    failed = (out / "failed.ndjson").read_text().splitlines()
    assert [json.loads(line)["id"] for line in failed] == ["copy-3", "copy-4", "copy-5"]
    again = _run(runs, "finalize", *options, "--shards", 3)
    assert (again.code, again.out) == (3, done.out)


def test_a_shard_of_which_nothing_is_left_fails_its_index(runs, tmp_path, many):
    out, items = tmp_path / "out", tmp_path / "some.ndjson"
    _copies(many, items, broken=[False, True])
    options = ("--items", items, *_options(out))
    outcome = Controller(_job(2), _starter(runs, tmp_path, *options, "--shard", 2)).run(limit_s=120)
    # At once, without another try, and the others go on.
    assert sorted(outcome.ends) == [(0, 0, None), (1, 65, None)]
    assert outcome.failed == {1} and not outcome.job_failed


def test_a_mistake_in_the_options_ends_the_job(runs, tmp_path, many):
    argv = ("--items", many, "--shard", 3, "--stride", 0, "--out", tmp_path)
    outcome = Controller(_job(3, parallelism=1), _starter(runs, tmp_path, *argv)).run(limit_s=60)
    assert outcome.job_failed
    assert outcome.ends == [(0, 2, None)]


def test_missing_shards_are_named(runs, tmp_path, many):
    out = tmp_path / "out"
    for index in (0, 2):
        done = _run(runs, "encode", "--items", many, *_options(out), "--shard", 4, index=index)
        assert done.code == 0, done.err
        assert f"shard {index} of 4" in done.err
    done = _run(runs, "finalize", "--items", many, *_options(out), "--shards", 4)
    assert done.code == 75
    assert "shards that have not reported: 1, 3" in done.err
    assert "parts of the scene are missing" in done.err
    # An Item that is gone is not believed to be there.
    (item, *_) = sorted(out.glob("*/scene-*.json"))
    item.unlink()
    done = _run(runs, "finalize", "--items", many, *_options(out), "--shards", 4)
    assert str(item) not in done.out
    assert "reported the scene as done, but its Item is not there" in done.err
    other = _run(runs, "finalize", "--items", many, *_options(out), "--shards", 5)
    assert other.code == 75
    assert "have not reported: 0, 1, 2, 3, 4" in other.err


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """One scene of 16 x 16 chips of 128 px: 16 read blocks."""
    folder = tmp_path_factory.mktemp("large")
    return make_item(folder, "large", (2048, 2048))


def test_one_large_scene_over_five_shards(runs, tmp_path, large):
    out = tmp_path / "out"
    options = [word if word != "32" else "128" for word in _options(out)]
    single = _run(runs, "encode", "--item", large, *options, "-q", input_px=128)
    assert single.code == 0, single.err
    expected = contents(out)
    assert sum(name.endswith(".pt") for name in expected) == 256
    out.rename(tmp_path / "single")
    for index in (3, 0, 4, 1, 2):
        done = _run(
            runs,
            *("encode", "--item", large, *options, "--shard", f"{index}/5", "--json"),
            input_px=128,
        )
        assert done.code == 0, done.err
        assert done.out == ""  # no Item yet
    assert not list(out.glob("*/large*.json"))
    done = _run(runs, "finalize", "--item", large, *options, "--shards", 5, input_px=128)
    assert done.code == 0, done.err
    assert_same(contents(out), expected)
    assert not list(out.glob("*/parts")) and not list(out.glob("*/journal"))


# In this process: what a part is


@pytest.fixture
def scene_item(tmp_path) -> Path:
    data = rasters.values((3, 300, 260), "uint16")
    data[:, :70, :] = 0
    tif = rasters.write_tif(tmp_path / "scene.tif", data, nodata=0)
    fields = rasters.named_bands("red", "green", "blue")
    return rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif, **fields)})


def _encode_parts(session, scene, count: int) -> str:
    results = [
        encode_part(session, scene, session.config, Part(index=index, count=count))
        for index in reversed(range(count))
    ]
    return results[0].item_id


@pytest.mark.parametrize("count", [2, 3, 30])
def test_parts_make_the_whole(tmp_path, scene_item, fake_model, count):
    with fake_session(tmp_path) as session:
        scene = session.scene(str(scene_item))
        whole = encode_scene(session, scene, session.config)
        expected = contents(tmp_path / "out")
        assert whole.chips_skipped > 0
        (tmp_path / "out").rename(tmp_path / "whole")
        item_id = _encode_parts(session, scene, count)
        batches = sum(fake_model.encoder.batches)
        _encode_parts(session, scene, count)  # what is there is not done again
        assert sum(fake_model.encoder.batches) == batches
        source = scene.items[0]
        item, href = finalize_scene(session, source, session.config, item_id=item_id, parts=count)
        assert item.id == item_id and Path(href).is_file()
        _, again = finalize_scene(session, source, session.config, item_id=item_id, parts=count)
        assert again == href
    assert_same(contents(tmp_path / "out"), expected)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_finalizer_leaves_the_mark_of_a_run_that_replaces_all(
    tmp_path, scene_item, fake_model, monkeypatch, was_there
):
    """One with --overwrite that begins while it ends: others hear of it by its mark."""
    with fake_session(tmp_path) as session:
        scene = session.scene(str(scene_item))
        item_id = _encode_parts(session, scene, 2)
        store = Store(str(tmp_path / "out"))
        layout = Layout(item_id=item_id, layer=layer_name(scene.id))

        def finalize():
            finalize_scene(session, scene.items[0], session.config, item_id=item_id, parts=2)

        def begin(*arguments):
            done = real(*arguments)
            marks.append(Journal(store, layout).mark_overwrite())
            return done

        marks: list[str] = []
        if was_there:
            finalize()
        name = "read_commit" if was_there else "commit"
        real = getattr(finalize_module, name)
        monkeypatch.setattr(finalize_module, name, begin)
        finalize()
        assert marks
        assert set(store.keys(layout.journal)) == set(marks)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_plain_run_tidies_what_parts_have_left(tmp_path, scene_item, fake_model, parts):
    """Of shards that did not end; of a finalizer that was killed right after its Item."""
    with fake_session(tmp_path) as session:
        scene = session.scene(str(scene_item))
        for index in range(parts):
            item_id = encode_part(
                session, scene, session.config, Part(index=index, count=2)
            ).item_id
        left = tmp_path / "out" / item_id / "parts"
        saved = {path.name: path.read_bytes() for path in left.iterdir()}
        encode_scene(session, scene, session.config)
        assert not left.exists()
        left.mkdir()
        for name, data in saved.items():
            (left / name).write_bytes(data)
        expected = contents(tmp_path / "out")
        assert encode_scene(session, scene, session.config).chips_encoded == 0
        assert not left.exists()
    assert_same(
        contents(tmp_path / "out"), {k: v for k, v in expected.items() if "/parts/" not in k}
    )


def test_what_is_missing_is_said(tmp_path, scene_item, fake_model):
    with fake_session(tmp_path) as session:
        scene = session.scene(str(scene_item))
        done = encode_part(session, scene, session.config, Part(index=1, count=3))
        with pytest.raises(TemporaryError, match="missing: 0, 2 of 3"):
            finalize_scene(session, scene.items[0], session.config, item_id=done.item_id, parts=3)


def test_parts_of_several_runs_are_not_mixed(tmp_path, scene_item, fake_model):
    with fake_session(tmp_path) as session:
        scene = session.scene(str(scene_item))
        item_id = _encode_parts(session, scene, 2)
        path = tmp_path / "out" / item_id / "parts" / "00001-of-00002.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | {"digest": "another"}))
        with pytest.raises(DataError, match="disagree on their digest"):
            finalize_scene(session, scene.items[0], session.config, item_id=item_id, parts=2)
        path.write_text("{")
        with pytest.raises(DataError, match="part 1 of 2 of a scene is damaged"):
            finalize_scene(session, scene.items[0], session.config, item_id=item_id, parts=2)


def test_a_part_is_not_overwritten(tmp_path, scene_item, fake_model):
    with fake_session(tmp_path, overwrite=True) as session:
        scene = session.scene(str(scene_item))
        with pytest.raises(UsageError, match="--overwrite"):
            encode_part(session, scene, session.config, Part(index=0, count=2))
