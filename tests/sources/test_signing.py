"""Signers alone: to whom a credential goes, when a token is fetched, and what is never told."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from geosam_stac.errors import ConfigurationError, DataError, ForbiddenError, TemporaryError
from geosam_stac.sources import signing
from geosam_stac.sources.signing import Headers, PlanetaryComputer, QueryToken, is_of_hosts

SECRET = "TOPSECRET"
NOW_S = 1_700_000_000.0
BLOB = "https://acct.blob.core.windows.net/cont/a.tif"


class Service:
    """The token service's JSON over a real socket; requests reads it, so a thread will do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.life_s = 2700.0
        self.answers: list[tuple[int, bytes]] = []
        self.gate: threading.Event | None = None
        self.url = ""

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.gate is not None and path.endswith("/slow"):
            self.gate.wait(10)
        if self.answers:
            return self.answers.pop(0)
        expires = datetime.fromtimestamp(NOW_S + self.life_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = f"se={expires}&sig={SECRET}{len(self.asked)}"
        return 200, json.dumps({"msft:expiry": expires, "token": token}).encode()


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    found = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers.get("Ocp-Apim-Subscription-Key")))
            status, body = found.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/token"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("https://example.org/a.tif", True),
        ("https://data.example.org/a.tif", True),
        ("https://EXAMPLE.org:8443/a.tif", True),
        ("https://user:word@example.org/a.tif", True),
        ("http://example.org/a.tif", False),
        ("https://badexample.org/a.tif", False),
        ("https://example.org.evil.net/a.tif", False),
        ("https://example.org@evil.net/a.tif", False),
        ("https://evil.net\\@example.org/a.tif", False),
        ("https://evil.net/?https://example.org", False),
        ("https://[::1/a.tif", False),
        ("s3://example.org/a.tif", False),
        ("/vsicurl/https://example.org/a.tif", False),
        ("a.tif", False),
    ],
)
def test_to_whom_a_credential_may_go(href, expected):
    assert is_of_hosts(href, ("example.org",)) is expected
    assert is_of_hosts(href, ("",)) is False
    assert is_of_hosts(href, ()) is False


def test_http_stays_on_this_machine():
    assert is_of_hosts("http://localhost:80/a.tif", ("localhost",))
    assert is_of_hosts("http://a.localhost:80/a.tif", ("localhost:80",))
    assert not is_of_hosts("http://a.localhost:81/a.tif", ("localhost:80",))


def test_headers_are_a_line_each():
    signer = Headers(headers={"X-Key": SECRET, "X-Other": "b"}, hosts=("example.org",))
    assert signer.options("https://example.org/a.tif") == {
        "GDAL_HTTP_HEADERS": f"X-Key: {SECRET}\r\nX-Other: b"
    }
    assert signer.options("https://example.net/a.tif") == {}
    assert signer.sign(BLOB) == BLOB
    assert signer.renew(BLOB) is False
    assert SECRET not in repr(signer)


@pytest.mark.parametrize("pair", [("X Key", "a"), ("", "a"), ("X-Key", f"{SECRET}\r\nHost: b")])
def test_headers_that_are_none(pair):
    with pytest.raises(ConfigurationError) as caught:
        Headers(headers=dict([pair]), hosts=("example.org",))
    assert SECRET not in str(caught.value)


def test_a_query_token_is_added_for_its_hosts():
    signer = QueryToken(parameter="api_key", token=f"{SECRET}&/", hosts=("example.org",))
    assert signer.sign("https://example.org/a.tif") == (
        f"https://example.org/a.tif?api_key={SECRET}%26%2F"
    )
    assert signer.sign("https://example.org/a.tif?b=1#c").endswith(
        f"a.tif?b=1&api_key={SECRET}%26%2F#c"
    )
    assert signer.sign("https://example.net/a.tif") == "https://example.net/a.tif"
    assert SECRET not in repr(signer)
    assert not signer.options(BLOB)
    assert not signer.renew(BLOB)


# Planetary Computer


def test_one_token_a_container_until_it_is_nearly_over(service):
    now = [NOW_S]
    signer = PlanetaryComputer(token_url=service.url, clock=lambda: now[0])
    first = signer.sign(BLOB)
    assert first.startswith(BLOB + "?se=")
    assert first.endswith(f"sig={SECRET}1")
    assert signer.sign(BLOB.replace("a.tif", "b.tif")).endswith(f"sig={SECRET}1")
    assert signer.sign(BLOB.replace("/cont/", "/other/")).endswith(f"sig={SECRET}2")
    now[0] += service.life_s - signing.RENEW_BEFORE_S - 1
    assert signer.sign(BLOB).endswith(f"sig={SECRET}1")
    now[0] += 2
    assert signer.sign(BLOB).endswith(f"sig={SECRET}3")
    assert [path for path, _ in service.asked] == [
        "/token/acct/cont",
        "/token/acct/other",
        "/token/acct/cont",
    ]
    assert SECRET not in repr(signer)


def test_a_token_is_forgotten_when_the_store_refuses_it(service):
    signer = PlanetaryComputer(token_url=service.url, clock=lambda: NOW_S)
    assert signer.renew(BLOB)
    signer.sign(BLOB)
    assert signer.renew(BLOB)
    assert signer.renew(BLOB)  # so says another thread that was refused, too
    assert signer.sign(BLOB).endswith(f"sig={SECRET}2")
    assert not signer.renew("https://example.org/a.tif")


def test_an_old_signature_in_the_href_is_replaced(service):
    signer = PlanetaryComputer(token_url=service.url, clock=lambda: NOW_S)
    assert signer.sign(f"{BLOB}?sig=OLD") == signer.sign(BLOB)


@pytest.mark.parametrize("life_s", [100.0, -7200.0])
def test_a_short_life_or_a_wrong_clock_is_no_reason_to_ask_each_time(life_s, service):
    service.life_s = life_s
    signer = PlanetaryComputer(token_url=service.url, clock=lambda: NOW_S)
    for _ in range(3):
        signer.sign(BLOB)
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "href",
    [
        "https://example.org/cont/a.tif",
        "http://acct.blob.core.windows.net/cont/a.tif",
        "https://acct.blob.core.windows.net/",
        "https://evil.net/acct.blob.core.windows.net/cont/a.tif",
        "https://evil.net#.blob.core.windows.net/cont/a.tif",
        "https://evil.net?.blob.core.windows.net/cont/a.tif",
        "s3://acct.blob.core.windows.net/cont/a.tif",
        "/data/a.tif",
    ],
)
def test_other_hrefs_stay_unsigned(href, service):
    assert PlanetaryComputer(token_url=service.url).sign(href) == href
    assert service.asked == []


def test_the_subscription_key_goes_to_the_service(service):
    signer = PlanetaryComputer(token_url=service.url, subscription_key=SECRET, clock=lambda: NOW_S)
    signer.sign(BLOB)
    assert service.asked == [("/token/acct/cont", SECRET)]
    assert SECRET not in repr(signer) + repr(vars(type(signer)))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, b"no", ForbiddenError),
        (404, b"", DataError),
        (200, b"<html>", DataError),
        (200, b"[]", DataError),
        (200, b'{"token": "sig=TOPSECRET"}', DataError),
        (200, b'{"token": "", "msft:expiry": "2024-01-01T00:00:00Z"}', DataError),
        (200, b'{"token": 1, "msft:expiry": "2024-01-01T00:00:00Z"}', DataError),
        (200, b'{"token": "sig=TOPSECRET", "msft:expiry": "soon"}', DataError),
    ],
)
def test_a_service_that_gives_none(status, body, kind, service):
    service.answers = [(status, body)]
    with pytest.raises(kind, match="no signature") as caught:
        PlanetaryComputer(token_url=service.url).sign(BLOB)
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 65


def test_a_service_that_is_not_there():
    with pytest.raises(TemporaryError, match="did not answer"):
        PlanetaryComputer(token_url="http://127.0.0.1:9/token").sign(BLOB)


def test_a_service_that_is_busy(service):
    service.answers = [(429, b"")]
    with pytest.raises(TemporaryError, match="HTTP 429"):
        PlanetaryComputer(token_url=service.url).sign(BLOB)


def test_threads_wait_for_one_request_and_other_containers_go_on(service):
    service.gate = threading.Event()
    signer = PlanetaryComputer(token_url=service.url, clock=lambda: NOW_S)
    slow = BLOB.replace("/cont/", "/slow/")
    signed: list[str] = []
    threads = [
        threading.Thread(target=lambda: signed.append(signer.sign(slow)), daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    other = signer.sign(BLOB)  # while the other request hangs
    assert "sig=" in other
    assert signed == []
    service.gate.set()
    for thread in threads:
        thread.join(10)
    assert len(set(signed)) == 1
    assert len(signed) == 8
    assert sorted(path for path, _ in service.asked) == ["/token/acct/cont", "/token/acct/slow"]


def test_libraries_log_hrefs_without_their_query_strings(caplog):
    logger = logging.getLogger("rasterio._base")
    QueryToken(parameter="token", token=SECRET, hosts=("example.org",)).sign(
        "https://example.org/a.tif"
    )
    with caplog.at_level(logging.DEBUG):
        logger.debug("Dataset %r is started.", f"https://example.org/a.tif?token={SECRET}")
        try:
            raise ValueError(f"https://example.org/a.tif?token={SECRET}")
        except ValueError:
            logger.exception("failed")
    assert caplog.messages[0] == "Dataset 'https://example.org/a.tif is started."
    assert SECRET not in caplog.text
