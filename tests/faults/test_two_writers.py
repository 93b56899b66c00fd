"""Two runs write one output at the same moment, with other bytes for the same chip in some races.

Each race is one of real threads over a real store: a local folder, or moto's S3 over its socket.
"""

from __future__ import annotations

import json
import random
import re
import threading
import zipfile
from pathlib import Path

import pytest

from geosam_stac import manifest
from geosam_stac.errors import DataError, GeosamStacError, TemporaryError
from geosam_stac.features import read
from geosam_stac.job import Job
from geosam_stac.journal import Done, Journal
from geosam_stac.pipeline import encode_part, encode_scene
from geosam_stac.scale.finalize import finalize_scene
from geosam_stac.storage import Store
from geosam_stac.types import Part
from tests import rasters
from tests.fakes import FakeEncoder, fake_session
from tests.faults.conftest import check_output, keys_of
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)

# A race over S3 takes 3 s of a busy machine, on disk half a second: 50 in all, of which one run
# overwrites in 13, and 2 are of the parts of a scene.
RACES = {"local": 30, "s3": 5}
OVERWRITES = {"local": 10, "s3": 3}
PARTS_RACES = 2
CHIPS = 5  # 3 x 2, less the one without a valid pixel


class _Other:
    """An encoder whose features differ a little, as another device's do."""

    def __init__(self, encoder: FakeEncoder, shift: float) -> None:
        self._encoder, self._shift = encoder, shift

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode(self, pixels, content_px):
        found = self._encoder.encode(pixels, content_px)
        return {name: values + self._shift for name, values in found.items()}


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch):
    """A URL below which each race has its folder."""
    if request.param == "local":
        return str(tmp_path / "out")
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    return "s3://bucket/" + re.sub(r"\W+", "-", request.node.name)


def kind(place: str) -> str:
    return "s3" if place.startswith("s3:") else "local"


@pytest.fixture
def item(tmp_path) -> Path:
    data = rasters.values((3, 128, 96), "uint8")
    data[:, :64, :64] = 0
    tif = rasters.write_tif(tmp_path / "scene.tif", data, nodata=0)
    return rasters.write_item(tmp_path / "scene.json", {"image": rasters.asset(tif)})


def run(session, item: Path, start: threading.Barrier, ends: list[object], part=None) -> None:
    try:
        scene = session.scene(str(item))
        start.wait(60)
        if part is None:
            ends.append(encode_scene(session, scene, session.config))
        else:
            ends.append(encode_part(session, scene, session.config, part))
    except Exception as error:  # noqa: BLE001 - each end is looked at
        ends.append(error)


def race(
    tmp_path: Path, item: Path, out: str, options: list[dict], rng: random.Random, part=None
) -> list:
    """One run a writer, each with features of its own, at paces that the seed decides."""
    start = threading.Barrier(len(options))
    ends: list[list[object]] = [[] for _ in options]
    threads = []
    for number, own in enumerate(options):
        shift = own.pop("shift")
        session = fake_session(tmp_path, out=out, **own)
        session._encoder = _Other(session.encoder, shift)  # type: ignore[assignment]
        paces = [rng.random() * 0.01 for _ in range(50)]
        pause = threading.Event()
        session._encoder._encoder.before = lambda chips, p=paces, e=pause: e.wait(p.pop())
        threads.append(
            threading.Thread(
                target=run, args=(session, item, start, ends[number], part), daemon=True
            )
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [end for (end,) in ends]


@pytest.mark.parametrize("differ", [True, False], ids=["other bytes", "same bytes"])
def test_two_runs_agree(differ, place, item, tmp_path, fake_model):
    races = RACES[kind(place)] if differ else 2
    mixed = 0
    for number in range(races):
        rng = random.Random(number)
        out = f"{place}/{number}"
        writers = [{"shift": 0.0}, {"shift": 1.0 if differ else 0.0}]
        ends = race(tmp_path, item, out, writers, rng)
        for end in ends:
            assert not isinstance(end, BaseException), end
        assert check_output(out) == CHIPS
        assert ends[0].item.id == ends[1].item.id
        store = Store(out)
        stored = json.loads(store.get(f"{ends[0].item.id}/{ends[0].item.id}.json"))
        for end in ends:  # both return the one Item that is there
            assert end.item.properties["created"] == stored["properties"]["created"]
        assert not [key for key in keys_of(out) if "/journal/" in key]
        mixed += _writers_seen(store, ends[0].item.id) == 2
    if differ:
        assert mixed  # else this was no race


def _writers_seen(store: Store, item_id: str) -> int:
    """Of how many writers features are there: theirs are whole pixels' averages, or 1 more."""
    frame = manifest.read(store.get(f"{item_id}/manifest.parquet"))
    lowest = {
        float(read(store.get(f"{item_id}/{href}"))[0]["image_embed"].min()) >= 1.0
        for href in frame["feature_href"]
    }
    return len(lowest)


def test_one_that_overwrites_and_another(place, item, tmp_path, fake_model):
    for number in range(OVERWRITES[kind(place)]):
        rng = random.Random(1000 + number)
        out = f"{place}/{number}"
        writers = [{"shift": 0.0}, {"shift": 1.0, "overwrite": True}]
        ends = race(tmp_path, item, out, writers, rng)
        errors = [end for end in ends if isinstance(end, GeosamStacError)]
        assert all(isinstance(end, GeosamStacError) or hasattr(end, "href") for end in ends), ends
        for error in errors:
            assert isinstance(error, TemporaryError)
            assert "--overwrite" in str(error)
        assert len(errors) < 2
        assert check_output(out) == CHIPS


def test_one_that_overwrites_tells_the_other(place, item, tmp_path, fake_model):
    begun, cleared, told = (threading.Event() for _ in range(3))
    ends: dict[str, list[object]] = {"first": [], "overwrites": []}
    start = threading.Barrier(1)
    first = fake_session(tmp_path, out=place)
    _ = first.encoder

    def wait(chips: int) -> None:
        begun.set()
        cleared.wait(60)

    fake_model.encoder.before = wait
    other = fake_session(tmp_path, out=place, overwrite=True)
    _ = other.encoder

    def hold(chips: int) -> None:
        cleared.set()
        told.wait(60)

    fake_model.encoder.before = hold
    threads = [
        threading.Thread(target=run, args=(session, item, start, ends[name]), daemon=True)
        for name, session in (("first", first), ("overwrites", other))
    ]
    threads[0].start()
    begun.wait(60)
    threads[1].start()
    threads[0].join(120)
    told.set()
    threads[1].join(120)
    (error,) = ends["first"]
    assert isinstance(error, TemporaryError)
    assert "--overwrite" in str(error)
    assert ends["overwrites"][0].chips_encoded == CHIPS
    assert check_output(place) == CHIPS


def test_the_mark_of_one_that_overwrites_outlives_the_runs_that_end(
    place, item, tmp_path, fake_model
):
    session = fake_session(tmp_path, out=place)
    scene = session.scene(str(item))
    encode_scene(session, scene, session.config)
    job = Job.of(session, scene, session.config)

    def journal() -> Journal:
        return Journal(job.store, job.layout)

    ends = journal()
    left = journal()
    left.add(Done(chip_id="chip_000000", bytes=1, sha256="0" * 64, valid_fraction=1.0))
    left.flush()
    mark = journal().mark_overwrite()  # of a run that has not yet deleted the Item
    assert encode_scene(session, scene, session.config).chips_encoded == 0
    assert job.store.keys(job.layout.journal) == [mark]
    ends.drop()
    assert job.store.keys(job.layout.journal) == [mark]
    journal().drop()  # of a run that began after it, and has made the Item
    assert job.store.keys(job.layout.journal) == []


def test_parts_agree_and_make_one_scene(item, tmp_path, fake_model):
    for number in range(PARTS_RACES):
        rng = random.Random(2000 + number)
        out = str(tmp_path / str(number))
        writers = [{"shift": 0.0}, {"shift": 1.0}]
        for index in range(2):
            part = Part(index=index, count=2)
            ends = race(tmp_path, item, out, [dict(own) for own in writers], rng, part=part)
            for end in ends:
                assert not isinstance(end, BaseException), end
        session = fake_session(tmp_path, out=out)
        source = session.scene(str(item)).items[0]
        _, href = finalize_scene(session, source, session.config, item_id=ends[0].item_id, parts=2)
        assert check_output(out) == CHIPS
        assert not list(Path(href).parent.glob("parts/*"))


def test_a_part_whose_features_are_gone_makes_no_item(item, tmp_path, fake_model):
    session = fake_session(tmp_path)
    scene = session.scene(str(item))
    for index in range(2):
        done = encode_part(session, scene, session.config, Part(index=index, count=2))
    folder = tmp_path / "out" / done.item_id
    min(folder.rglob("*.pt")).unlink()
    with pytest.raises(DataError, match=r"1 features of part 1 .* are gone"):
        finalize_scene(session, scene.items[0], session.config, item_id=done.item_id, parts=2)
    assert not (folder / f"{done.item_id}.json").exists()
    again = encode_part(session, scene, session.config, Part(index=1, count=2))
    assert again.chips_encoded == 1
    finalize_scene(session, scene.items[0], session.config, item_id=done.item_id, parts=2)
    assert check_output(str(tmp_path / "out")) == CHIPS


def test_a_broken_feature_is_replaced_and_a_whole_one_stays(item, tmp_path, fake_model):
    out = str(tmp_path / "out")
    session = fake_session(tmp_path, out=out)
    first = encode_scene(session, session.scene(str(item)), session.config)
    item_path = Path(first.href)
    features = sorted(item_path.parent.rglob("*.pt"))
    whole = {path: path.read_bytes() for path in features}
    item_path.unlink()
    (item_path.parent / "manifest.parquet").unlink()
    data = bytearray(whole[features[0]])
    with zipfile.ZipFile(features[0]) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    data[largest.header_offset + largest.file_size // 2 + 200] ^= 1
    features[0].write_bytes(data)
    features[1].write_bytes(b"")
    again = encode_scene(session, session.scene(str(item)), session.config)
    assert again.chips_encoded == len(features)
    assert {path: path.read_bytes() for path in features} == whole
    assert check_output(out) == len(features)
