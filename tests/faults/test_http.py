"""Every fault of HTTP on a header, a tile and a write, once and for ever; signatures; SlowDown.

Over real sockets: GDAL reads, s3fs writes to moto's S3 behind a proxy that fails on command.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

import pytest

from geosam_stac.errors import (
    DeviceOutOfMemoryError,
    ForbiddenError,
    GeosamStacError,
    TemporaryError,
)
from geosam_stac.events import BatchHalved
from geosam_stac.retry import Retries, RetryPolicy
from geosam_stac.sources.items import read_item
from geosam_stac.sources.query import SearchQuery
from geosam_stac.sources.search import search
from geosam_stac.storage import Store
from tests.faults.conftest import CHIPS, TILES, assert_same, assert_unfinished, contents, serving
from tests.faults.server import FAULTS, Rule
from tests.quick import quick
from tests.servers import s3_uploads
from tests.signed_store import Store as SignedStore
from tests.signed_store import serving as signing

TARGETS = ("header", "tile", "write")
#: Declared options, as a user would set them: so that a server that says nothing costs a second.
ONCE = {"timeout": 1.0, "retry_deadline": 60.0}
ALWAYS = {"timeout": 1.0, "retry_deadline": 0.5}
# An operation ends one try after its deadline, which is at most thrice twice the timeout (GDAL
# asks three times by itself); a run has three of them, and the machine may be busy.
BOUND_S = 30.0

#: Exit codes, for a header, a tile and a write.
#: What is refused is not tried again: of a write it is the output's fault (StorageError, 74).
REFUSED = (65, 65, 74)
CODES_ONCE = dict.fromkeys(FAULTS, (0, 0, 0)) | dict.fromkeys(("403", "404", "416"), REFUSED)
CODES_ALWAYS = dict.fromkeys(FAULTS, (75, 75, 75)) | {
    **dict.fromkeys(("403", "404", "416"), REFUSED),
    # Three pages of HTML are the file. Of a tile GDAL says only that bytes are missing.
    "html": (65, 75, 75),
}
#: What is tried again, once. Of a cut-off or stalled body GDAL's opening of a file takes no
#: notice, and html passes for one that has no tiles: it is found where the file is read.
KINDS = {
    target: dict.fromkeys(FAULTS, kind)
    for target, kind in zip(TARGETS, ("header", "read", "write"), strict=True)
}
KINDS["header"] |= dict.fromkeys(("html", "truncated", "stalled"), "read")
# aiohttp sends a request again by itself that broke off on a connection from before.
DRIVERS_OWN = {("write", "truncated"), ("write", "reset")}


def rule(target: str, fault: str, *, always: bool = False) -> Rule:
    broken_body = fault in ("truncated", "stalled")
    times, skip, where = 1, 0, {}
    if target == "header":
        where = {"path": r"^/a\.tif"}
        # GDAL asks first how long the file is, and hangs up: the head's body is the next answer.
        skip = 1 if broken_body else 0
    elif target == "tile":
        where = {"path": r"^/a\.tif", "bytes": TILES}
        # So often GDAL itself asks for tiles when a request fails (but for half a body).
        times = 1 if broken_body else 3
    else:
        where = {"path": r"\.pt", "method": "PUT"}
    again_s = 0.2 if fault == "429" else None
    if always:
        return Rule(fault=fault, times=None, retry_after=again_s, **where)
    return Rule(fault=fault, times=times, skip=skip, retry_after=again_s, **where)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_once(target, fault, web, encode, clean, bucket, tmp_path):
    fails = rule(target, fault)
    web.rules(fails)
    out = bucket if target == "write" else str(tmp_path / "out")
    code = CODES_ONCE[fault][TARGETS.index(target)]
    if code:
        with pytest.raises(GeosamStacError) as caught:
            encode(out=out, **ONCE)
        assert web.faults() == fails.times
        assert_told(caught.value, code, target, web.url)
        web.rules()
        assert_unfinished(out, clean)
        return
    result = encode(out=out, **ONCE)
    assert web.faults() == fails.times
    assert result.chips_encoded == CHIPS
    if (target, fault) not in DRIVERS_OWN:
        # Not "== 1": a busy machine may take more than the second that is allowed for an answer.
        assert result.retries.get(KINDS[target][fault], 0) >= 1
    assert_same(contents(out, web.url), clean)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_always(target, fault, web, encode, clean, bucket, tmp_path):
    web.rules(rule(target, fault, always=True))
    out = bucket if target == "write" else str(tmp_path / "out")
    started = time.monotonic()
    with pytest.raises(GeosamStacError) as caught:
        encode(out=out, **ALWAYS)
    assert time.monotonic() - started < BOUND_S
    assert web.faults() >= 1
    assert_told(caught.value, CODES_ALWAYS[fault][TARGETS.index(target)], target, web.url)
    web.rules()
    assert_unfinished(out, clean)


def assert_told(error: GeosamStacError, code: int, target: str, url: str) -> None:
    """Exit code, Item and file; what was tried again says so."""
    assert error.exit_code == code, error
    assert error.item == "scene-1"
    if target == "write":
        assert error.href.endswith(f"/{error.chip}.pt")
    else:
        assert error.href == f"{url}/a.tif"


def test_a_refused_file_is_asked_for_once(web, encode):
    web.rules(Rule(fault="404", path=r"^/a\.tif", times=None))
    with pytest.raises(GeosamStacError, match="404"):
        encode(**ONCE)
    assert web.faults() == 1


# Documents


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "html", "truncated", "stalled", "reset", "slow"]
)
def test_an_item_that_comes_at_the_second_try(fault, web):
    web.rules(Rule(fault=fault, path="item.json"))
    retries = quick(3, timeout_s=1.0)
    assert read_item(f"{web.url}/item.json", retries=retries).id == "scene-1"
    assert retries.counts() == {"item": 1}


def test_retry_after_is_waited_for(web):
    web.rules(Rule(fault="429", path="item.json", retry_after=7))
    waits: list[float] = []
    retries = Retries(RetryPolicy(base_s=0.0), wait=waits.append)
    assert read_item(f"{web.url}/item.json", retries=retries).id == "scene-1"
    assert waits == [7.0]


def test_retry_after_of_a_store_is_waited_for(web, bucket):
    web.rules(Rule(fault="503", path="/object", method="PUT", retry_after=7))
    waits: list[float] = []
    store = Store(bucket, retries=Retries(RetryPolicy(base_s=0.0), wait=waits.append))
    store.put("object", b"stored")
    assert waits == [7.0]
    assert store.get("object") == b"stored"


@pytest.mark.parametrize("fault", ["500", "truncated", "reset"])
def test_a_search_that_stays_down(fault, web):
    web.rules(Rule(fault=fault, path="/api", times=None))
    with pytest.raises(TemporaryError):
        list(search(SearchQuery(url=f"{web.url}/api"), retries=quick(2, timeout_s=1.0)))
    assert web.faults() == 2


# A signature expires in mid-run

SECRET = "Expires+1n/mid-run="


class _Renewed:
    """Signs with a number that grows; the server takes the first for headers alone."""

    def __init__(self, *, in_header: bool) -> None:
        self.in_header = in_header
        self.number = 1
        self.asked = 0

    def sign(self, href: str) -> str:
        return (
            href if self.in_header else f"{href}?X-Signature={quote(SECRET, safe='')}{self.number}"
        )

    def options(self, href: str) -> dict[str, str]:
        if not self.in_header:
            return {}
        return {"GDAL_HTTP_HEADERS": f"Authorization: Bearer {SECRET}{self.number}"}

    def renew(self, href: str) -> bool:
        self.asked += 1
        self.number += 1
        return True


@pytest.fixture
def silent(caplog, capfd, tmp_path):
    """Afterwards: the secret stands in no log (of any level), output, event, error or file."""
    told: list[object] = []
    with caplog.at_level(logging.DEBUG):
        yield told
    out, err = capfd.readouterr()
    texts = [out, err, *map(repr, told), *map(str, told)]
    records = caplog.get_records("call")
    texts += [f"{record.getMessage()} {record.exc_text}" for record in records]
    assert any("response_code" in text for text in texts)  # GDAL has talked of its requests
    for text in texts:
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("kind", ["header", "presigned"])
def test_a_signature_expires(kind, web, encode, clean, silent, tmp_path):
    access = _Renewed(in_header=kind == "header")
    old = {"authorization": f"{SECRET}1"} if kind == "header" else {}
    path = r"^/a\.tif" if kind == "header" else rf"^/a\.tif.*{quote(SECRET, safe='')}1"
    web.rules(Rule(fault="403", path=path, bytes=TILES, times=None, **old))
    result = encode(silent, access=access, **ONCE)
    assert web.faults() == 3  # as often as GDAL asks by itself
    assert access.asked == 1
    assert result.retries == {"read": 1}
    found = contents(str(tmp_path / "out"), web.url)
    assert_same(found, clean)


def test_a_shared_access_signature_expires(served, encode, clean, silent, tmp_path, web):
    with signing(served, SECRET) as port:
        store = SignedStore(port)
        # The first signature is good for the header, and no longer; the next one for all.
        signer = store.signer()
        store.set(uses=3)
        signer.sign(store.href("signed"))
        store.set(uses=10**9)
        with serving(served) as server:
            item = (served / "item.json").read_text()
            (served / "item.json").write_text(
                item.replace(f"{server.url}/a.tif", store.href("signed"))
            )
            result = encode(silent, access=signer, **ONCE)
        refused = [entry for entry in store.stats()["log"] if not entry["allowed"]]
        assert refused
        assert store.tokens == 2
    assert result.retries == {"read": 1}
    assert [result.chips_encoded, len(contents(str(tmp_path / "out"), web.url))] == [
        CHIPS,
        len(clean),
    ]


@pytest.mark.parametrize("kind", ["header", "presigned"])
def test_a_signature_that_is_refused_again(kind, web, encode, clean, silent, tmp_path):
    access = _Renewed(in_header=kind == "header")
    web.rules(Rule(fault="403", path=r"^/a\.tif", bytes=TILES, times=None))
    with pytest.raises(ForbiddenError) as caught:
        encode(silent, access=access, **ONCE)
    silent.append(caught.value)
    assert access.asked == 1
    assert caught.value.exit_code == 65
    assert caught.value.href == f"{web.url}/a.tif"
    assert_unfinished(str(tmp_path / "out"), clean)


# S3 asks to slow down


@pytest.mark.parametrize("fault", ["503", "slowdown-in-200"])
def test_slow_down(fault, web, encode, clean, bucket):
    web.rules(Rule(fault=fault, path=r"\.pt", method="PUT", skip=3, times=3))
    result = encode(out=bucket, **ONCE)
    assert web.faults() == 3
    assert result.retries == {"write": 3}
    assert_same(contents(bucket, web.url), clean)


def test_slow_down_when_a_multipart_upload_is_completed(web, bucket, s3_upstream):
    web.rules(Rule(fault="slowdown-in-200", path=r"uploadId=", method="POST"))
    data = bytes(range(256)) * (101 << 12)  # s3fs sends parts from 100 MiB on
    retries = quick(3)
    store = Store(bucket, retries=retries)
    store.put("large", data)
    assert web.faults() == 1
    assert store.size("large") == len(data)
    assert retries.counts() == {"write": 1}
    assert s3_uploads(s3_upstream) == []


# The device's memory


@pytest.mark.parametrize(
    ("fits", "halved"), [(4, [4]), (2, [4, 2]), (1, [4, 2, 1]), (0, [4, 2, 1])]
)
def test_a_device_out_of_memory(fits, halved, web, encode, clean, fake_model, tmp_path):
    events: list[object] = []

    def before(chips: int) -> None:
        if chips > fits:
            raise DeviceOutOfMemoryError("out of memory", got=f"{chips} chips")

    fake_model.before = before
    out = str(tmp_path / "out")
    if fits:
        assert encode(events, batch_size=8).chips_encoded == CHIPS
        assert_same(contents(out, web.url), clean)
    else:
        with pytest.raises(TemporaryError, match="batch of one chip") as caught:
            encode(events, batch_size=8)
        assert caught.value.exit_code == 75
        assert (caught.value.item, caught.value.chip) == ("scene-1", "chip_000000")
        assert_unfinished(out, clean)
    assert [event.batch_size for event in events if isinstance(event, BatchHalved)] == halved
