"""Source files against their Items: every kind of checksum, size and place, over real sockets."""

from __future__ import annotations

import hashlib
import json
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from geosam_stac.checksums import Multihash, verify_sources
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import DataError, ForbiddenError
from geosam_stac.pipeline import encode_scene
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.sources.access import accesses
from geosam_stac.sources.signing import Headers
from tests import rasters
from tests.fakes import fake_session
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)
from tests.signed_store import Store, serving

SECRET = "TOPSECRET"
PREFIXES = {
    "sha1": "1114",
    "sha256": "1220",
    "sha512": "1340",
    "md5": "d50110",
    "sha384": "2030",
    "sha224": "93201c",
    "sha3_256": "1620",
}


def checksum(path: Path, algorithm: str = "sha256") -> str:
    return PREFIXES[algorithm] + hashlib.new(algorithm, path.read_bytes()).hexdigest()


@pytest.fixture
def tif(tmp_path) -> Path:
    (tmp_path / "served").mkdir()
    return rasters.write_tif(
        tmp_path / "served" / "a.tif", rasters.values((3, 96, 96), "uint8"), compress="deflate"
    )


def scene_of(href: str | Path, access=None, **fields):
    item = parse_item(rasters.document({"image": rasters.asset(href, **fields)}), href=None)
    return open_scene(item, EncodeConfig(), access=access)


@pytest.mark.parametrize("algorithm", PREFIXES)
def test_the_right_file_passes_and_one_flipped_bit_does_not(algorithm, tif):
    fields = {"file:checksum": checksum(tif, algorithm), "file:size": tif.stat().st_size}
    scene = scene_of(tif, **fields)
    assert verify_sources(scene) == 1
    data = bytearray(tif.read_bytes())
    data[len(data) // 2] ^= 1
    tif.write_bytes(data)
    with pytest.raises(DataError, match=f"asset image .* {algorithm} is another") as caught:
        verify_sources(scene)
    error = caught.value
    assert error.exit_code == 65
    assert (error.item, error.href) == ("scene-1", str(tif))
    assert error.expected == fields["file:checksum"].removeprefix(PREFIXES[algorithm])
    assert error.got == hashlib.new(algorithm, data).hexdigest()


def test_a_size_that_is_another(tif):
    size = tif.stat().st_size
    for told, got in ((size + 1, f"{size:,} bytes"), (size - 1, "more"), (0, "more")):
        scene = scene_of(tif, **{"file:checksum": checksum(tif), "file:size": told})
        with pytest.raises(DataError, match="size is another") as caught:
            verify_sources(scene)
        assert (caught.value.expected, caught.value.got) == (f"{told:,} bytes", got)


@pytest.mark.parametrize(
    "told",
    [
        None,
        "",
        "12",
        "zz",
        "1220abcd",  # cut off
        "1220" + "00" * 33,  # too long
        "1202abcd",  # a digest of two bytes only
        "00" * 34,
        "ff" * 40,
        "d41d8cd98f00b204e9800998ecf8427e",  # an md5 that is no multihash
        17,
    ],
)
def test_what_cannot_be_checked_is_said_and_passes(told, tif):
    events = []
    fields = {} if told is None else {"file:checksum": told}
    assert verify_sources(scene_of(tif, **fields), sink=events.append) == 0
    (notice,) = events
    assert "asset image of scene-1 has " in notice.message
    assert ("no file:checksum" in notice.message) == (told is None)
    assert notice.level == "warning"


def test_a_multihash():
    assert Multihash.parse("1220" + "ab" * 32) == Multihash(algorithm="sha256", digest="ab" * 32)
    assert Multihash.parse("D50110" + "AB" * 16) == Multihash(algorithm="md5", digest="ab" * 16)


def test_a_file_without_end_is_not_read_to_it(tmp_path, tif):
    """A piece at a time, and no more of it than there should be."""
    fields = {"file:checksum": checksum(tif), "file:size": tif.stat().st_size}
    scene = scene_of(tif, **fields)
    with tif.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="size is another"):
            verify_sources(scene)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture
def store(tif, monkeypatch):
    resolve = socket.getaddrinfo

    def localhost(host, *args, **given):
        # As curl does by itself: names below localhost are this machine.
        name = "127.0.0.1" if str(host).endswith(".localhost") else host
        return resolve(name, *args, **given)

    monkeypatch.setattr(socket, "getaddrinfo", localhost)
    with serving(tif.parent, SECRET) as port:
        yield Store(port)


def test_over_http_with_a_signature_and_again_when_it_is_refused(tif, store):
    fields = {"file:checksum": checksum(tif)}
    assert verify_sources(scene_of(store.href("open"), **fields)) == 1
    store.set(uses=1000)
    signer = store.signer()
    scene = scene_of(store.href("signed"), access=lambda item: signer, **fields)
    store.set(clock_s=3700)  # the store's clock goes on: what was signed so far has expired
    assert verify_sources(scene, access=lambda item: signer) == 1
    assert store.tokens == 2
    with pytest.raises(ForbiddenError) as caught:
        verify_sources(scene)
    assert (caught.value.item, caught.value.href) == ("scene-1", store.href("signed"))
    assert SECRET not in str(caught.value)


def test_a_token_does_not_follow_a_redirect(tif, store):
    href = store.href("moved", account="mine")
    access = Headers(headers={"Authorization": f"Bearer {SECRET}"}, hosts=("mine.localhost",))
    scene = scene_of(href, access=lambda item: access, **{"file:checksum": checksum(tif)})
    assert verify_sources(scene, access=lambda item: access) == 1
    log = store.stats()["log"]
    assert {e["authorization"] for e in log if e["path"].startswith("/open/")} == {None}


def test_in_a_bucket(tif, s3_endpoint, monkeypatch):  # noqa: F811
    from geosam_stac import storage

    use_s3(monkeypatch, s3_endpoint)
    storage.Store("s3://bucket").put("a.tif", tif.read_bytes())
    host = s3_endpoint.removeprefix("http://")
    for name, value in (
        ("AWS_S3_ENDPOINT", host),
        ("AWS_HTTPS", "NO"),
        ("AWS_VIRTUAL_HOSTING", "FALSE"),
    ):
        monkeypatch.setenv(name, value)
    scene = scene_of("s3://bucket/a.tif", **{"file:checksum": checksum(tif)})
    access = accesses(profile=None, signer=None, environ={})
    assert verify_sources(scene, access=access) == 1
    storage.Store("s3://bucket").put("a.tif", tif.read_bytes() + b"x")
    with pytest.raises(DataError, match="sha256 is another"):
        verify_sources(scene, access=access)


def test_an_encode_stops_before_it_reads_pixels(tmp_path, tif, fake_model):
    document = rasters.document(
        {"image": rasters.asset(tif, **{"file:checksum": "1220" + "00" * 32})}
    )
    with fake_session(tmp_path, verify_source=True) as session:
        scene = session.scene(document)
        with pytest.raises(DataError, match="sha256 is another"):
            encode_scene(session, scene, session.config)
    assert not list((tmp_path / "out").glob("*"))
    document["assets"]["image"]["file:checksum"] = checksum(tif)
    with fake_session(tmp_path, verify_source=True) as session:
        result = encode_scene(session, session.scene(document), session.config)
    with fake_session(tmp_path / "plain") as session:
        plain = encode_scene(session, session.scene(document), session.config)
    assert result.item.id == plain.item.id  # no option of the features
    run = json.loads((tmp_path / "out" / result.item.id / "run.json").read_text())
    assert run["config"]["verify_source"] is True


def test_each_member_of_a_mosaic_and_its_mask(tmp_path):
    from geosam_stac.sources.groups import Group

    data = rasters.values((1, 64, 64), "uint8")
    items = []
    for name in ("one", "two"):
        image = rasters.write_tif(tmp_path / f"{name}.tif", data)
        mask = rasters.write_tif(tmp_path / f"{name}-scl.tif", np.zeros_like(data))
        assets = {
            "red": rasters.asset(image, **{"file:checksum": checksum(image)}),
            "scl": rasters.asset(mask, **{"file:checksum": checksum(mask)}),
        }
        items.append(parse_item(rasters.document(assets, item_id=name), href=None))
    group = Group(id="mosaic", items=tuple(items))
    scene = open_scene(group, EncodeConfig(bands=("red",), mask="scl:3"))
    assert verify_sources(scene) == 4
    with (tmp_path / "two-scl.tif").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="asset scl ") as caught:
        verify_sources(scene)
    assert caught.value.item == "two"
