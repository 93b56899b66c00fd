"""Remote Items that are in order: read behind the fence as local ones are, on real sockets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from geosam_stac.cube import CubeReader
from geosam_stac.errors import DataError
from geosam_stac.session import Session
from geosam_stac.sources.guard import Guarded
from geosam_stac.sources.hosts import Hosts
from geosam_stac.types import Window
from tests import rasters
from tests.fakes import fake_session
from tests.signed_store import Store, serving

PX = 1024
SECRET = "TOPSECRET"
# In a process of its own: rasterio holds the interpreter while it opens a file.
S3 = """
import sys, time
from tests.servers import _s3_client, s3_server
with s3_server() as endpoint:
    body = open(sys.argv[1], "rb").read()
    for key in ("a.tif", "dir/a b.tif"):
        _s3_client(endpoint).put_object(Bucket="bucket", Key=key, Body=body)
    print(endpoint, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    data = rasters.values((3, PX, PX), "uint8")
    rasters.write_tif(folder / "a.tif", data, overviews=(2, 4))
    return folder


@pytest.fixture
def store(root) -> Iterator[Store]:
    with serving(root, SECRET) as port:
        yield Store(port)


@pytest.fixture(scope="module")
def s3(root) -> Iterator[str]:
    """host:port of moto's S3 server with the raster in it."""
    command = [sys.executable, "-c", S3, str(root / "a.tif")]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def publish(root: Path, store: Store, href: str, name: str = "item.json") -> str:
    fields = rasters.named_bands("red", "green", "blue")
    document = rasters.document({"image": rasters.asset(href, **fields)})
    (root / name).write_text(json.dumps(document))
    return store.href("open", name)


def session_of(tmp_path: Path, *typed: str, access=None) -> Session:
    session = fake_session(tmp_path, retry_deadline=0.0)
    session.hosts = Hosts(*typed)
    if access is not None:
        session._access = lambda item: access
    return session


def pixels(session: Session, href: str) -> np.ndarray:
    """Two windows of a scene by one reader: the second by the file that the first left open."""
    scene = session.scene(href)
    (item,) = scene.items
    assert isinstance(session.access(item), Guarded)
    assert all(band.fenced for band in scene.bands)
    reader = CubeReader(scene, resampling="nearest", access=session.access)
    windows = [Window(row_off=row, col_off=0, height=PX // 2, width=PX) for row in (0, PX // 2)]
    read = [reader.read(window)[0] for window in windows]
    assert len(reader._files._idle) == 1
    reader.close()
    return np.concatenate(read, axis=1)


EXPECTED = rasters.values((3, PX, PX), "uint8")


@pytest.mark.parametrize("key", ["a.tif", "dir/a b.tif"])
def test_on_s3(key, root, store, s3, tmp_path, monkeypatch):
    for name, value in {
        "AWS_S3_ENDPOINT": s3,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    item = publish(root, store, f"s3://bucket/{key}")
    np.testing.assert_array_equal(pixels(session_of(tmp_path), item), EXPECTED)


def test_on_google_cloud_storage(root, store, tmp_path, monkeypatch):
    # GDAL asks for /bucket/key, which is what the store has.
    monkeypatch.setenv("CPL_GS_ENDPOINT", f"http://127.0.0.1:{store.port}/")
    monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
    item = publish(root, store, "gs://open/a.tif")
    np.testing.assert_array_equal(pixels(session_of(tmp_path), item), EXPECTED)
    assert any(entry["path"] == "/open/a.tif" for entry in store.stats()["log"])


def test_behind_a_signature(root, store, tmp_path):
    item = publish(root, store, store.href("signed"))
    np.testing.assert_array_equal(
        pixels(session_of(tmp_path, access=store.signer()), item), EXPECTED
    )


def test_a_query_in_the_items_own_href(root, store, tmp_path):
    item = publish(root, store, f"{store.href('static')}?token={SECRET}&x=%2F%20;y")
    np.testing.assert_array_equal(pixels(session_of(tmp_path), item), EXPECTED)


def test_a_redirect_to_a_host_that_is_trusted_and_to_one_that_is_not(root, store, tmp_path):
    elsewhere = f"http://elsewhere.localhost:{store.port}/"
    item = publish(root, store, store.href("moved"))
    bearer = _Bearer()
    session = session_of(tmp_path / "yes", elsewhere, access=bearer)
    np.testing.assert_array_equal(pixels(session, item), EXPECTED)
    before = len(store.stats()["log"])
    with pytest.raises(DataError, match="not a public address"):
        session_of(tmp_path / "no", access=bearer).scene(item)
    asked = [entry["host"] for entry in store.stats()["log"][before:]]
    assert not any(host.startswith("elsewhere") for host in asked)


class _Bearer:
    """What the folder that redirects wants."""

    def sign(self, href: str) -> str:
        return href

    def options(self, href: str) -> dict[str, str]:
        return {"GDAL_HTTP_HEADERS": f"Authorization: Bearer {SECRET}"}

    def renew(self, href: str) -> bool:
        return False


def test_an_overview_behind_the_fence(root, store, tmp_path):
    item = publish(root, store, store.href("open"))
    session = fake_session(tmp_path, resolution="40", retry_deadline=0.0)
    session.hosts = Hosts()
    scene = session.scene(item)
    reader = CubeReader(scene, resampling="average", access=session.access)
    height, width = scene.geobox.shape
    data, valid = reader.read(Window(row_off=0, col_off=0, height=height, width=width))
    reader.close()
    assert (height, width) == (PX // 4, PX // 4)
    assert valid.all()
    assert abs(float(data.mean()) - float(EXPECTED.mean())) < 2
