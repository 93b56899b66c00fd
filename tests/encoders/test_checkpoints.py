from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from geosam_stac.encoders import checkpoints, download
from geosam_stac.encoders.checkpoints import (
    cached_path,
    default_cache_dir,
    fetch,
    file_sha256,
    hugging_face_token,
    resolve,
    verify,
)
from geosam_stac.encoders.registry import ModelEntry, find_model
from geosam_stac.errors import ConfigurationError, StorageError, TemporaryError, UsageError
from geosam_stac.events import Download, Event, Notice
from geosam_stac.retry import Retries, RetryPolicy
from tests.quick import quick

from .conftest import NO_WAIT, FileServer

TINY = find_model("sam2.1-hiera-tiny")
CHUNK = 1 << 16


def entry_of(server: FileServer, *, sha256: str | None = None) -> ModelEntry:
    return dataclasses.replace(
        TINY,
        url=server.url("/092824/sam2.1_hiera_tiny.pt"),
        size_bytes=len(server.body),
        sha256=sha256,
        sha256_source=None if sha256 is None else "a test",
    )


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_default_cache_dir(tmp_path: Path) -> None:
    assert default_cache_dir({"GEOSAM_STAC_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert default_cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/geosam-stac")
    assert default_cache_dir({"XDG_CACHE_HOME": "rel", "HOME": "/h"}) == Path(
        "/h/.cache/geosam-stac"
    )
    assert default_cache_dir({"HOME": "/h"}) == Path("/h/.cache/geosam-stac")


def test_cached_path() -> None:
    assert cached_path(TINY, Path("/c")) == Path("/c/sam2.1_hiera_tiny.pt")


def test_untrained(tmp_path: Path) -> None:
    weights = resolve(TINY, "untrained", cache_dir=tmp_path)
    assert (weights.seed, weights.path, weights.sha256) == (0, None, None)
    assert (weights.label, weights.upstream) == ("untrained:0", False)
    assert resolve(TINY, "untrained:7", cache_dir=tmp_path).seed == 7


@pytest.mark.parametrize("text", ["untrained:", "untrained:x", "untrained:-1", "untrained:1.5",
                                  "untrained:9999999999999999999"])  # fmt: skip
def test_bad_seed(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole number"):
        resolve(TINY, text, cache_dir=tmp_path)


def test_local_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(b"abc")
    weights = resolve(TINY, str(path), cache_dir=tmp_path / "cache")
    assert weights.path == path
    assert weights.sha256 == hashlib.sha256(b"abc").hexdigest() == file_sha256(path)
    assert (weights.label, weights.upstream) == ("mine.pt", False)
    entry = dataclasses.replace(TINY, sha256=weights.sha256)
    assert resolve(entry, str(path), cache_dir=tmp_path).upstream


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no such checkpoint file.*nowhere\.pt"):
        resolve(TINY, str(tmp_path / "nowhere.pt"), cache_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="a folder"):
        resolve(TINY, str(tmp_path), cache_dir=tmp_path)


def test_other_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="http and https only"):
        resolve(TINY, "s3://bucket/model.pt", cache_dir=tmp_path)


def test_fetch_with_published_sha256(server: FileServer, tmp_path: Path) -> None:
    events: list[Event] = []
    entry = entry_of(server, sha256=server.sha256)
    weights = resolve(entry, None, cache_dir=tmp_path, sink=events.append, retries=NO_WAIT)
    assert weights.path == tmp_path / "sam2.1_hiera_tiny.pt"
    assert weights.path.read_bytes() == server.body
    assert (weights.sha256, weights.label, weights.upstream) == (server.sha256, "upstream", True)
    downloads = [event for event in events if isinstance(event, Download)]
    assert downloads[0].done_bytes == 0
    assert downloads[-1] == Download(
        name="sam2.1_hiera_tiny.pt", done_bytes=len(server.body), total_bytes=len(server.body)
    )
    assert not [event for event in events if isinstance(event, Notice)]
    assert leftovers(tmp_path) == {"sam2.1_hiera_tiny.pt"}
    # The second time nothing is asked of the server.
    assert resolve(entry, None, cache_dir=tmp_path, retries=NO_WAIT) == weights
    assert len(server.requests) == 1


def test_first_fetch_pins(server: FileServer, tmp_path: Path) -> None:
    events: list[Event] = []
    entry = entry_of(server)
    path = fetch(entry, cache_dir=tmp_path, sink=events.append, retries=NO_WAIT)
    pin = tmp_path / "sam2.1_hiera_tiny.pt.sha256"
    assert pin.read_text() == f"{server.sha256}  sam2.1_hiera_tiny.pt\n"
    [notice] = [event for event in events if isinstance(event, Notice)]
    assert "pinned" in notice.message
    assert server.sha256 in notice.message
    assert verify(entry, tmp_path).ok is True
    # The file gone and another one served: the pin holds.
    path.unlink()
    server.body = server.body[:-1] + b"!"
    with pytest.raises(ConfigurationError, match="wrong sha256") as caught:
        fetch(entry, cache_dir=tmp_path, retries=NO_WAIT)
    assert caught.value.expected == pin.read_text()[:64]
    assert caught.value.got == server.sha256
    assert leftovers(tmp_path) == {pin.name}


def test_wrong_sha256(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="wrong sha256") as caught:
        fetch(entry_of(server, sha256="0" * 64), cache_dir=tmp_path, retries=NO_WAIT)
    assert (caught.value.expected, caught.value.got) == ("0" * 64, server.sha256)
    assert leftovers(tmp_path) == set()


def test_breaks_off_and_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.break_after = [30 * CHUNK, 8 * CHUNK]
    path = fetch(entry_of(server, sha256=server.sha256), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    asked = [(ranged, condition) for _, ranged, condition in server.requests]
    assert asked == [
        (None, None), (f"bytes={30 * CHUNK}-", '"v1"'), (f"bytes={38 * CHUNK}-", '"v1"')
    ]  # fmt: skip


def test_goes_on_in_a_new_process_after_giving_up(server: FileServer, tmp_path: Path) -> None:
    server.break_after = [15 * CHUNK] + [0] * 3
    entry = entry_of(server)
    with pytest.raises(TemporaryError):
        fetch(entry, cache_dir=tmp_path, retries=NO_WAIT)
    assert leftovers(tmp_path) == {
        "sam2.1_hiera_tiny.pt.part",
        "sam2.1_hiera_tiny.pt.part.json",
    }
    assert fetch(entry, cache_dir=tmp_path, retries=NO_WAIT).read_bytes() == server.body
    assert server.requests[-1][1:] == (f"bytes={15 * CHUNK}-", '"v1"')


def test_resumes_with_last_modified_when_the_etag_is_weak(
    server: FileServer, tmp_path: Path
) -> None:
    server.etag, server.last_modified = 'W/"v1"', "Sat, 01 Jun 2024 00:00:00 GMT"
    server.break_after = [30 * CHUNK]
    path = fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert server.requests[1][1:] == (f"bytes={30 * CHUNK}-", "Sat, 01 Jun 2024 00:00:00 GMT")


def test_without_validator_or_sha256_starts_again(server: FileServer, tmp_path: Path) -> None:
    server.etag = None
    server.break_after = [30 * CHUNK]
    path = fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert server.requests[1][1] is None


def test_server_ignores_range(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [30 * CHUNK]
    path = fetch(entry_of(server, sha256=server.sha256), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert server.requests[1][1] == f"bytes={30 * CHUNK}-"


def test_file_changes_between_tries(server: FileServer, tmp_path: Path) -> None:
    server.break_after = [15 * CHUNK] + [0] * 3
    with pytest.raises(TemporaryError):
        fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    server.body, server.etag = server.body[::-1], '"v2"'
    path = fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert server.requests[-1][1:] == (f"bytes={15 * CHUNK}-", '"v1"')


def test_part_that_is_already_whole(server: FileServer, tmp_path: Path) -> None:
    part = tmp_path / "sam2.1_hiera_tiny.pt.part"
    part.write_bytes(server.body)
    path = fetch(entry_of(server, sha256=server.sha256), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert leftovers(tmp_path) == {path.name}


def test_part_longer_than_the_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "sam2.1_hiera_tiny.pt.part").write_bytes(server.body + b"more")
    path = fetch(entry_of(server, sha256=server.sha256), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body


def test_part_of_another_address_is_not_continued(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "sam2.1_hiera_tiny.pt.part").write_bytes(b"x" * 1000)
    notes = {"url_sha256": "0" * 64, "validator": '"v1"'}
    (tmp_path / "sam2.1_hiera_tiny.pt.part.json").write_text(json.dumps(notes))
    path = fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    assert path.read_bytes() == server.body
    assert server.requests[0][1] is None


def test_503_then_works(server: FileServer, tmp_path: Path) -> None:
    events: list[Event] = []
    waits: list[float] = []
    server.statuses = [503, 429]
    server.headers = {"Retry-After": "7"}
    retries = Retries(RetryPolicy(base_s=0.0), wait=waits.append, sink=events.append)
    path = fetch(entry_of(server, sha256=server.sha256), cache_dir=tmp_path, retries=retries)
    assert path.read_bytes() == server.body
    assert waits == [7.0, 7.0]
    assert retries.counts() == {"checkpoint": 2}
    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.level for notice in notices] == ["warning", "warning"]
    assert "503" in notices[0].message


def test_always_503(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503] * 10
    with pytest.raises(TemporaryError) as caught:
        resolve(entry_of(server), None, cache_dir=tmp_path, retries=NO_WAIT)
    assert len(server.requests) == NO_WAIT.policy.tries
    assert caught.value.exit_code == 75
    text = str(caught.value)
    assert server.url("/092824/sam2.1_hiera_tiny.pt") in text
    assert "--checkpoint PATH" in text
    assert "--checkpoint untrained" in text


def test_unreachable(server: FileServer, tmp_path: Path) -> None:
    entry = entry_of(server)
    server.close()
    with pytest.raises(TemporaryError, match="cannot be reached") as caught:
        fetch(entry, cache_dir=tmp_path, retries=quick(2))
    assert "licence" not in str(caught.value)


@pytest.fixture
def gated(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """A model whose file asks for a token, at a host that may be sent one."""
    monkeypatch.setattr(download, "TOKEN_HOSTS", (server.url("").rstrip("/"),))
    return dataclasses.replace(
        entry_of(server, sha256=server.sha256),
        licence="SAM License",
        licence_page="https://huggingface.co/facebook/sam3",
    )


def test_gated_with_a_token(server: FileServer, gated: ModelEntry, tmp_path: Path) -> None:
    server.break_after = [30 * CHUNK]
    weights = resolve(gated, None, cache_dir=tmp_path, retries=NO_WAIT, token="hf_SECRET")
    assert weights.upstream
    assert server.authorizations == ["Bearer hf_SECRET"] * 2
    notes = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "SECRET" not in notes


@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        (401, None, ["no token (401)", "set HF_TOKEN to a read token"]),
        (403, None, ["no token (403)", "set HF_TOKEN to a read token"]),
        (401, "hf_SECRET", ["does not know (401)", "set HF_TOKEN to a valid read token"]),
        (403, "hf_SECRET", ["no access yet (403)", "wait until access is granted"]),
    ],
)
def test_gated_and_refused(
    server: FileServer,
    gated: ModelEntry,
    tmp_path: Path,
    status: int,
    token: str | None,
    words: list[str],
) -> None:
    server.statuses = [status]
    with pytest.raises(ConfigurationError, match=r"accept their licence \(SAM License\)") as caught:
        resolve(gated, None, cache_dir=tmp_path, retries=NO_WAIT, token=token)
    text = str(caught.value)
    assert len(server.requests) == 1, "refused is not retried"
    assert all(word in text for word in words)
    assert "https://huggingface.co/facebook/sam3" in text
    assert "--checkpoint PATH" in text
    assert "SECRET" not in text + repr(caught.value.__cause__)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("token", [None, "hf_SECRET"])
@pytest.mark.parametrize("close", [True, False])
def test_gated_and_unreachable(
    server: FileServer, gated: ModelEntry, tmp_path: Path, token: str | None, close: bool
) -> None:
    """Who fetches the file elsewhere, as the hint says, meets the licence there."""
    server.statuses = [503, 503]
    if close:
        server.close()
    with pytest.raises(TemporaryError) as caught:
        fetch(gated, cache_dir=tmp_path, retries=quick(2), token=token)
    text = str(caught.value)
    assert "accept its licence (SAM License)" in text
    assert "ask for access at https://huggingface.co/facebook/sam3" in text
    assert ("set HF_TOKEN" in text) == (token is None)
    assert "SECRET" not in text


def test_other_hosts_get_no_token(server: FileServer, tmp_path: Path) -> None:
    fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT, token="hf_SECRET")
    assert server.authorizations == [None]
    access = download.Access(token="hf_SECRET")
    assert access.headers("https://huggingface.co/facebook/sam3/resolve/main/sam3.pt")
    for url in (
        "http://huggingface.co/x",
        "https://huggingface.co.evil.org/x",
        "https://huggingface.co@evil.org/x",
        "https://evil.org/huggingface.co",
    ):
        assert access.headers(url) == {}
    assert "SECRET" not in repr(access)


def test_hugging_face_token(tmp_path: Path) -> None:
    kept = tmp_path / ".cache" / "huggingface" / "token"
    assert hugging_face_token({"HOME": str(tmp_path)}) is None
    kept.parent.mkdir(parents=True)
    kept.write_text("hf_kept\n")
    assert hugging_face_token({"HOME": str(tmp_path)}) == "hf_kept"
    assert hugging_face_token({"HOME": "/x", "HF_HOME": str(kept.parent)}) == "hf_kept"
    assert hugging_face_token({"HOME": str(tmp_path), "HF_TOKEN": " hf_own "}) == "hf_own"
    assert hugging_face_token({"HF_TOKEN_PATH": str(kept)}) == "hf_kept"
    kept.write_bytes(b"\xff")
    assert hugging_face_token({"HF_TOKEN_PATH": str(kept)}) is None


def test_404_is_not_retried(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(ConfigurationError, match="404"):
        fetch(entry_of(server), cache_dir=tmp_path, retries=NO_WAIT)
    assert len(server.requests) == 1


def test_another_size_is_told_before_it_is_fetched(server: FileServer, tmp_path: Path) -> None:
    entry = dataclasses.replace(entry_of(server), size_bytes=99)
    with pytest.raises(ConfigurationError, match="another file") as caught:
        fetch(entry, cache_dir=tmp_path, retries=NO_WAIT)
    assert (caught.value.expected, caught.value.got) == ("99 bytes", "3500000 bytes")
    assert leftovers(tmp_path) == set()


def test_url_is_cached_by_address_and_keeps_its_secret(server: FileServer, tmp_path: Path) -> None:
    events: list[Event] = []
    url = server.url("/mine/model.pt?token=SECRET")
    first = resolve(TINY, url, cache_dir=tmp_path, sink=events.append, retries=NO_WAIT)
    assert first.path is not None
    assert first.path.name.endswith("-model.pt")
    assert (first.label, first.sha256) == ("model.pt", server.sha256)
    assert not first.upstream
    other = resolve(TINY, server.url("/other/model.pt"), cache_dir=tmp_path, retries=NO_WAIT)
    assert other.path != first.path
    assert resolve(TINY, url, cache_dir=tmp_path, retries=NO_WAIT) == first
    assert len(server.requests) == 2
    server.statuses = [403]
    with pytest.raises(ConfigurationError) as caught:
        fetch(server.url("/x.pt?token=SECRET"), cache_dir=tmp_path, retries=NO_WAIT)
    seen = str(caught.value) + repr(events) + " ".join(leftovers(tmp_path))
    seen += "".join(p.read_text() for p in tmp_path.glob("*.json"))
    assert "SECRET" not in seen


@pytest.mark.parametrize("flock", [True, False])
def test_two_at_once(
    server: FileServer, tmp_path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:  # as on a file system that has none
        monkeypatch.setattr("geosam_stac.encoders.download._flock", lambda *args: False)
    entry = entry_of(server)
    server.delay.clear()  # the first to come is held up in mid-body until the second is there
    results: list[Path] = []
    notices: list[Event] = []

    def run() -> None:
        results.append(fetch(entry, cache_dir=tmp_path, sink=notices.append, retries=NO_WAIT))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready = threading.Event()
    for _ in range(200):
        waiting = any("another process" in getattr(event, "message", "") for event in notices)
        if waiting or (not flock and len(server.requests) == 2):
            break
        ready.wait(0.02)
    else:
        pytest.fail("the second never came")
    server.delay.set()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == server.body for path in results] == [True, True]
    assert len(server.requests) == (1 if flock else 2)
    assert leftovers(tmp_path) == {results[0].name, results[0].name + ".sha256"}


def test_damaged_cache_is_told(server: FileServer, tmp_path: Path) -> None:
    entry = entry_of(server, sha256=server.sha256)
    path = fetch(entry, cache_dir=tmp_path, retries=NO_WAIT)
    path.write_bytes(server.body[:-1] + b"!")
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        resolve(entry, None, cache_dir=tmp_path, retries=NO_WAIT)
    assert server.sha256 in str(caught.value)
    assert verify(entry, tmp_path).ok is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_cache_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="GEOSAM_STAC_CACHE"):
        fetch(entry_of(server), cache_dir=tmp_path / "cache", retries=NO_WAIT)


def test_cache_is_a_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match="GEOSAM_STAC_CACHE"):
        fetch(entry_of(server), cache_dir=tmp_path / "cache", retries=NO_WAIT)


def test_verify_model_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"models fetch sam2\.1-hiera-tiny"):
        verify(TINY, tmp_path)


def test_verify_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(b"abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    unknown = verify(path, tmp_path)
    assert (unknown.sha256, unknown.expected, unknown.ok) == (sha256, None, None)
    named = tmp_path / "sam2.1_hiera_tiny.pt"
    named.write_bytes(b"abc")
    wrong = verify(named, tmp_path)
    assert (wrong.expected, wrong.ok) == (TINY.sha256, False)
    monkeypatch.setattr(checkpoints, "MODELS", (dataclasses.replace(TINY, sha256=sha256),))
    right = verify(path, tmp_path)
    assert (right.expected, right.ok) == (sha256, True)
    assert right.source.startswith("sam2.1-hiera-tiny: ")
    (tmp_path / "some.pt.sha256").write_text("0" * 64 + "  some.pt\n")
    pinned = verify(path, tmp_path)
    assert (pinned.expected, pinned.ok) == ("0" * 64, False)
    (tmp_path / "some.pt.sha256").write_text("rubbish")
    with pytest.raises(ConfigurationError, match="pin file"):
        verify(path, tmp_path)
