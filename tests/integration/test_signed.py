"""Signed assets end to end, against `tests.signed_store` over real sockets."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pystac
import pytest

from geosam_stac.cube import CubeReader
from geosam_stac.errors import ConfigurationError, ForbiddenError
from geosam_stac.pipeline import encode_scene
from geosam_stac.radiometry import widen
from geosam_stac.sources import open_scene, parse_item
from geosam_stac.sources.access import ItemAccess, accesses
from geosam_stac.sources.groups import Group
from geosam_stac.sources.signing import Headers, QueryToken
from geosam_stac.types import Window
from tests import rasters
from tests.fakes import fake_session
from tests.signed_store import Store, serving

SECRET = "TOPSECRET"
PX = 512


@pytest.fixture
def store(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    rasters.write_tif(root / "large.tif", rasters.values((1, 256, 2200), "uint16", hi=3000))
    for number, name in enumerate(("a.tif", "b.tif")):
        data = rasters.values((1, PX, PX), "uint16", seed=number, hi=3000)
        rasters.write_tif(root / name, data)
    with serving(root, SECRET) as port:
        yield Store(port)


def item_of(*hrefs: str) -> pystac.Item:
    assets = {f"b{number}": rasters.asset(href) for number, href in enumerate(hrefs)}
    return parse_item(rasters.document(assets), href=None)


def session_of(tmp_path: Path, access=None, **options):
    session = fake_session(tmp_path, **{"value_range": "0,3000"} | options)
    if access is not None:
        session.access = lambda item: access
    return session


def encode(tmp_path: Path, item: pystac.Item | Group, access=None, **options):
    session = session_of(tmp_path, access, **options)
    with session:
        return encode_scene(session, session.scene(item), session.config)


def pixels(item: pystac.Item | Group, session) -> np.ndarray:
    scene = open_scene(item, session.config, access=session.access)
    reader = CubeReader(scene, resampling="nearest", access=session.access)
    return widen(reader.read(Window(row_off=0, col_off=0, height=PX, width=PX))[0])


def features(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.pt"))}


def test_a_signed_asset_is_read_with_one_signature_a_container(store, tmp_path):
    item = item_of(store.href("signed"), store.href("signed", "b.tif"))
    data = pixels(item, session_of(tmp_path, store.signer()))
    np.testing.assert_array_equal(data[0], rasters.values((1, PX, PX), "uint16", hi=3000)[0])
    np.testing.assert_array_equal(
        data[1], rasters.values((1, PX, PX), "uint16", seed=1, hi=3000)[0]
    )
    assert store.stats()["tokens"] == ["/token/acct/signed"]


def test_a_container_each_has_its_own_signature(store, tmp_path):
    item = item_of(store.href("signed"), store.href("signed", "b.tif", account="other"))
    pixels(item, session_of(tmp_path, store.signer()))
    assert sorted(store.stats()["tokens"]) == ["/token/acct/signed", "/token/other/signed"]


def test_without_a_signature_the_store_refuses(store, tmp_path):
    with pytest.raises(ForbiddenError) as caught:
        pixels(item_of(store.href("signed")), session_of(tmp_path))
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("uses", [9, 11])
def test_a_signature_that_runs_out_in_mid_run_is_renewed(
    uses, store, tmp_path, fake_model, monkeypatch
):
    # Five tiles of 512 px, some requests each: the store refuses in the middle of a tile, of
    # which GDAL tells no more than that bytes are missing.
    # One reader: the store counts a signature's uses, and several readers share one.
    monkeypatch.setattr("geosam_stac.budget.READERS", (1, 1))
    monkeypatch.setattr("geosam_stac.budget.MOST_AREA_PX", 256 * 1024)
    options = {"stride": 64, "resampling": "nearest"}
    plain = encode(tmp_path / "plain", item_of(store.href("open", "large.tif")), **options)
    store.set(uses=uses)
    item = item_of(store.href("signed", "large.tif"))
    signed = encode(tmp_path / "signed", item, store.signer(), **options)
    log = [entry for entry in store.stats()["log"] if entry["path"].startswith("/signed/")]
    refused = [entry for entry in log if not entry["allowed"]]
    assert refused
    assert 2 <= store.tokens <= 6
    assert signed.chips_encoded == plain.chips_encoded > 80
    one, other = features(tmp_path / "plain"), features(tmp_path / "signed")
    assert list(one.values()) == list(other.values())
    assert len(one) == plain.chips_encoded


def test_a_signature_with_little_life_left_is_renewed_without_a_403(store, tmp_path):
    now = [0.0]
    signer = store.signer(clock=lambda: time.time() + now[0])
    session = session_of(tmp_path, signer)
    item = item_of(store.href("signed"))
    pixels(item, session)
    assert store.tokens == 1
    now[0] = 3600 - 360  # five minutes are little; a busy machine may take one for this test
    signer.sign(store.href("signed"))
    assert store.tokens == 1
    now[0] = 3600 - 299
    signer.sign(store.href("signed"))
    assert store.tokens == 2


def test_a_scene_that_waited_for_an_hour_is_signed_when_it_is_read(store, tmp_path, fake_model):
    late = [0.0]
    signer = store.signer(clock=lambda: time.time() + late[0])
    session = session_of(tmp_path, signer)
    with session:
        scene = session.scene(item_of(store.href("signed")))
        assert store.tokens == 1
        late[0] = 3700.0
        store.set(clock_s=3700)  # the store's clock goes on as well
        result = encode_scene(session, scene, session.config)
    assert store.tokens == 2
    assert result.chips_encoded > 9


def test_a_store_that_goes_on_refusing_is_an_error_for_good(store, tmp_path, fake_model):
    with pytest.raises(ForbiddenError) as caught:
        encode(tmp_path, item_of(store.href("refused")), store.signer())
    assert caught.value.exit_code == 65
    assert store.tokens == 2  # once more, and no more
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)


def test_headers_go_to_their_host_and_to_no_other(store, tmp_path):
    item = item_of(
        store.href("keyed", account="mine"), store.href("open", "b.tif", account="stranger")
    )
    access = Headers(headers={"X-Key": SECRET}, hosts=("mine.localhost",))
    pixels(item, session_of(tmp_path, access))
    sent = {(entry["host"].partition(":")[0], entry["key"]) for entry in store.stats()["log"]}
    assert sent == {("mine.localhost", SECRET), ("stranger.localhost", None)}


def test_a_bearer_token_does_not_follow_a_redirect(store, tmp_path):
    access = Headers(headers={"Authorization": f"Bearer {SECRET}"}, hosts=("mine.localhost",))
    data = pixels(item_of(store.href("moved", account="mine")), session_of(tmp_path, access))
    assert data.shape == (3, PX, PX)
    log = store.stats()["log"]
    assert {entry["authorization"] for entry in log if entry["host"].startswith("elsewhere")} == {
        None
    }
    assert {entry["host"].partition(".")[0] for entry in log} == {"mine", "elsewhere"}


def test_a_query_token_reads(store, tmp_path):
    access = QueryToken(parameter="token", token=SECRET, hosts=("mine.localhost",))
    data = pixels(item_of(store.href("static", account="mine")), session_of(tmp_path, access))
    np.testing.assert_array_equal(data[0], rasters.values((1, PX, PX), "uint16", hi=3000)[0])


# Buckets


def s3_item(store, **scheme) -> pystac.Item:
    asset = rasters.asset("s3://bucket/a.tif", **{"storage:refs": ["here"]})
    document = rasters.document({"b0": asset})
    document["properties"]["storage:schemes"] = {
        "here": {
            "type": "custom-s3",
            "platform": f"http://127.0.0.1:{store.port}",
            "bucket": "bucket",
            "region": "eu-test-1",
            **scheme,
        }
    }
    return parse_item(document, href=None)


@pytest.fixture
def _aws_keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MYKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)


@pytest.mark.usefixtures("_aws_keys")
def test_an_endpoint_that_an_item_names_gets_no_credentials(store, tmp_path):
    item = s3_item(store)
    access = accesses(profile=None, signer=None, environ={})(item)
    data = pixels(item, session_of(tmp_path, access))
    np.testing.assert_array_equal(data[0], rasters.values((1, PX, PX), "uint16", hi=3000)[0])
    log = store.stats()["log"]
    assert {entry["path"] for entry in log} == {"/bucket/a.tif"}
    assert {entry["authorization"] for entry in log} == {None}


@pytest.mark.usefixtures("_aws_keys")
def test_a_bucket_that_bills_the_reader_is_read_when_the_user_says_so(store, tmp_path):
    item = s3_item(store, requester_pays=True)
    refusing = accesses(profile=None, signer=None, environ={})(item)
    with pytest.raises(ConfigurationError, match="--signer requester-pays"):
        pixels(item, session_of(tmp_path, refusing))
    assert store.stats()["log"] == []
    agreed = accesses(profile=None, signer="requester-pays", environ={})(item)
    assert isinstance(agreed, ItemAccess)
    pixels(item, session_of(tmp_path, agreed))
    assert {entry["payer"] for entry in store.stats()["log"]} == {"requester"}


# Mosaics


def halves(tmp_path: Path, left_href: str, right_href: str) -> Group:
    """One mosaic of two Items: west.tif has its left half only, east.tif fills the rest."""
    data = rasters.values((1, PX, PX), "uint16", hi=3000)
    west = data.copy()
    west[:, :, PX // 2 :] = 0
    rasters.write_tif(tmp_path / "served" / "west.tif", west, nodata=0)
    rasters.write_tif(tmp_path / "served" / "east.tif", data, nodata=0)
    items = [
        parse_item(rasters.document({"b0": rasters.asset(href)}, item_id=name), href=None)
        for name, href in (("west", left_href), ("east", right_href))
    ]
    return Group(id="mosaic", items=tuple(items))


def the_whole() -> np.ndarray:
    return rasters.values((1, PX, PX), "uint16", hi=3000)[0]


def test_each_member_of_a_mosaic_is_opened_in_its_own_way(store, tmp_path, fake_model):
    group = halves(
        tmp_path,
        store.href("signed", "west.tif"),
        store.href("keyed", "east.tif", account="mine"),
    )
    by_item = {
        "west": store.signer(),
        "east": Headers(headers={"X-Key": SECRET}, hosts=("mine.localhost",)),
    }
    session = session_of(tmp_path)
    session.access = lambda item: by_item[item.id]
    np.testing.assert_array_equal(pixels(group, session)[0], the_whole())
    with session:
        signed = encode_scene(session, session.scene(group), session.config)
    plain = encode(
        tmp_path / "plain",
        halves(tmp_path, store.href("open", "west.tif"), store.href("open", "east.tif")),
    )
    assert signed.chips_encoded == plain.chips_encoded > 200
    assert features(tmp_path / "out") == features(tmp_path / "plain")
    sent = {
        (entry["host"].partition(".")[0], entry["key"], "sig=" in entry["query"])
        for entry in store.stats()["log"]
        if not entry["path"].startswith("/open/")
    }
    assert sent == {("acct", None, True), ("mine", SECRET, False)}


def test_a_member_without_its_own_credential_is_refused(store, tmp_path):
    group = halves(
        tmp_path, store.href("signed", "west.tif"), store.href("keyed", "east.tif", account="mine")
    )
    session = session_of(tmp_path, store.signer())  # good for one of them alone
    with pytest.raises(ForbiddenError) as caught:
        session.scene(group)
    assert (caught.value.item, caught.value.href) == (
        "east",
        store.href("keyed", "east.tif", account="mine"),
    )


def test_members_in_buckets_of_one_name_at_two_endpoints(store, tmp_path):
    group = halves(tmp_path, "s3://one/west.tif", "s3://one/east.tif")
    for item, host in zip(group.items, ("127.0.0.1", "localhost"), strict=True):
        item.assets["b0"].extra_fields["storage:refs"] = ["here"]
        item.properties["storage:schemes"] = {
            "here": {"type": "custom-s3", "platform": f"http://{host}:{store.port}"}
        }
    session = session_of(tmp_path)
    session.access = accesses(profile=None, signer=None, environ={})
    np.testing.assert_array_equal(pixels(group, session)[0], the_whole())
    seen = {(entry["host"].partition(":")[0], entry["path"]) for entry in store.stats()["log"]}
    assert seen == {("127.0.0.1", "/one/west.tif"), ("localhost", "/one/east.tif")}


def test_one_member_that_bills_the_reader_stops_the_mosaic(store, tmp_path):
    group = halves(tmp_path, store.href("open", "west.tif"), "s3://paying/east.tif")
    group.items[1].assets["b0"].extra_fields["storage:refs"] = ["aws"]
    group.items[1].properties["storage:schemes"] = {
        "aws": {"type": "aws-s3", "requester_pays": True}
    }
    session = session_of(tmp_path)
    session.access = accesses(profile=None, signer=None, environ={})
    with pytest.raises(ConfigurationError, match="--signer requester-pays") as caught:
        session.scene(group)
    assert caught.value.href == "s3://paying/east.tif"


# Nothing says the secret


@pytest.mark.parametrize("folder", ["signed", "refused", "keyed", "static", "missing"])
def test_the_secret_is_written_and_logged_nowhere(
    folder, store, tmp_path, fake_model, caplog, capfd
):
    access = {
        "keyed": Headers(headers={"X-Key": SECRET}, hosts=("localhost",)),
        "static": QueryToken(parameter="token", token=SECRET, hosts=("localhost",)),
    }.get(folder) or store.signer()
    store.set(uses=4)
    events: list[object] = []
    texts = [repr(access)]
    name = "gone.tif" if folder == "missing" else "a.tif"
    session = session_of(tmp_path, access)
    session.sink = events.append
    with caplog.at_level(logging.DEBUG), session:
        try:
            item = item_of(store.href("signed" if folder == "missing" else folder, name))
            scene = session.scene(item)
            texts += [repr(scene), json.dumps(item.to_dict())]
            encode_scene(session, scene, session.config)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not tell
            texts += _chain(error)
        else:
            assert folder in ("signed", "keyed", "static")
    out, err = capfd.readouterr()
    texts += [out, err, repr(events)]
    texts += [f"{record.name}: {record.getMessage()}" for record in caplog.records]
    texts += [str(record.exc_text) for record in caplog.records]
    assert any("rasterio" in record.name for record in caplog.records)
    for text in texts:
        assert SECRET not in text
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert bool(files) == (folder in ("signed", "keyed", "static"))
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def _chain(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__
    return texts
