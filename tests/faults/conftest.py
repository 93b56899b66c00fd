"""A small scene behind a server that fails on command, encoded with the fake model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from geosam_stac import manifest
from geosam_stac.events import Event
from geosam_stac.features import read
from geosam_stac.pipeline import encode_scene
from geosam_stac.storage import Store
from geosam_stac.types import EncodeResult
from tests import fakes, rasters
from tests.fakes import fake_session
from tests.faults.server import FaultServer, fault_server
from tests.scale.outputs import MOMENTS
from tests.servers import s3_server, use_s3

PX = 320
TILE_PX = 64
CHIPS = (PX // TILE_PX) ** 2
#: Bytes of the file in its second half: tiles, and no header.
TILES = (1 << 17, 1 << 40)


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Path:
    """A folder with one tiled GeoTIFF of three bands, 320 px each way: its head, then 25 tiles."""
    folder = tmp_path_factory.mktemp("served")
    pixels = rasters.values((3, PX, PX), "uint8")
    rasters.write_tif(folder / "a.tif", pixels, blocksize=TILE_PX, interleave="pixel")
    return folder


@pytest.fixture(scope="session")
def s3_upstream() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def web(served, s3_upstream) -> Iterator[FaultServer]:
    """New for each test: GDAL remembers files by their URL."""
    with serving(served, s3_upstream) as server:
        yield server


@contextlib.contextmanager
def serving(folder: Path, upstream: str | None = None) -> Iterator[FaultServer]:
    """A server of the folder, whose item.json names the server."""
    with fault_server(folder, upstream) as server:
        image = rasters.asset(f"{server.url}/a.tif", **rasters.named_bands("red", "green", "blue"))
        (folder / "item.json").write_text(json.dumps(rasters.document({"image": image})))
        yield server


@pytest.fixture
def bucket(web, monkeypatch, request) -> str:
    """A folder of its own in an S3 bucket behind the faults."""
    use_s3(monkeypatch, web.url)
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://bucket/{name}"


Encode = Callable[..., EncodeResult]


@pytest.fixture
def encode(web, served, tmp_path, fake_model) -> Encode:
    """Encode the scene: its Item, its pixels and perhaps its output over the server."""

    def run(
        events: list[Event] | None = None, *, access: object = None, **options: object
    ) -> EncodeResult:
        return encode_from(served, tmp_path, events, access=access, **options)

    return run


def encode_from(
    folder: Path,
    tmp_path: Path,
    events: list[Event] | None = None,
    *,
    access: object = None,
    **options: object,
) -> EncodeResult:
    with fake_session(tmp_path, events, **{"stride": TILE_PX} | options) as session:
        if access is not None:
            session.access = lambda item: access
        # A file of the user's own: of a remote Item each file is looked at once before it is read.
        return encode_scene(session, session.scene(str(folder / "item.json")), session.config)


@pytest.fixture(scope="session")
def clean(served, tmp_path_factory) -> dict[str, object]:
    """What a run without faults writes: see `contents`."""
    work = tmp_path_factory.mktemp("clean")
    with serving(served) as server, pytest.MonkeyPatch.context() as patch:
        fakes.install(patch)
        encode_from(served, work)
        found = contents(str(work / "out"), server.url)
    assert sum(name.endswith(".pt") for name in found) == CHIPS
    return found


def objects(out: str) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of all that lies below an output."""
    parent, _, name = out.rpartition("/")
    store = Store(parent)
    for key in store.keys(name):
        yield key.removeprefix(f"{name}/"), store.get(key)


def contents(out: str, url: str) -> dict[str, object]:
    """All objects of an output: key -> bytes; texts that hold places or moments without them.

    run.json tells how the run went, and is left out.
    """

    def placeless(text: str) -> str:
        return text.replace(out, "OUT").replace(url, "WEB")

    found: dict[str, object] = {}
    for key, data in objects(out):
        if key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            found[key] = placeless(repr((table.schema.names, table.to_pylist())))
        elif key.endswith("run.json"):
            continue
        elif key.endswith(".json"):
            document = json.loads(data)
            for moment in MOMENTS:
                document["properties"].pop(moment, None)
            for field in ("file:size", "file:checksum"):  # of a table that holds places
                document["assets"]["manifest"].pop(field)
            found[key] = placeless(json.dumps(document))
        else:
            found[key] = data
    return found


def assert_same(found: dict[str, object], clean: dict[str, object]) -> None:
    """Says which object differs, not all of its bytes."""
    assert sorted(found) == sorted(clean)
    assert [key for key in found if found[key] != clean[key]] == []


def assert_unfinished(out: str, clean: dict[str, object]) -> None:
    """No Item; each feature that is there is whole."""
    for key, data in objects(out):
        assert not key.endswith(".json"), key
        if key.endswith(".pt"):
            assert data == clean[key], key


def keys_of(out: str) -> list[str]:
    """All keys of an output."""
    base, _, name = out.rpartition("/")
    return [key.removeprefix(f"{name}/") for key in Store(base).keys(name)]


def check_output(out: str) -> int:
    """One Item, and everything that it names is there with the bytes that it tells; its chips."""
    store = Store(out)
    items = [key for key in keys_of(out) if key.count("/") == 1 and key.endswith(".json")]
    (key,) = [key for key in items if not key.endswith("run.json")]
    folder = key.partition("/")[0]
    document = json.loads(store.get(key))
    for name in {"manifest", "thumbnail"} | ({"skipped"} & document["assets"].keys()):
        asset = document["assets"][name]
        data = store.get(f"{folder}/{asset['href'].removeprefix('./')}")
        assert len(data) == asset["file:size"]
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    frame = manifest.read(store.get(f"{folder}/manifest.parquet"))
    assert len(frame) == document["properties"]["table:row_count"]
    for row in frame.itertuples():
        data = store.get(f"{folder}/{row.feature_href}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row.bytes, row.sha256)
        tensors, _ = read(data)
        assert all(np.isfinite(values.float().numpy()).all() for values in tensors.values())
    json.loads(store.get(f"{folder}/run.json"))
    features = [key for key in store.keys(folder) if "/features/" in key]
    assert len(features) == len(frame)
    return len(frame)
