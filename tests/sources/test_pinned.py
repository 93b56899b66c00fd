"""Connections to the address that was checked, and to no other; with TLS, under the URL's name."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
import requests
import urllib3.util.connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from geosam_stac.errors import DataError, TemporaryError
from geosam_stac.sources.hosts import Hosts
from geosam_stac.sources.http import http_session
from tests.quick import quick

NAME = "data.example"
PUBLIC = ("93.184.215.14", "93.184.215.15")


def certificate(folder: Path) -> Path:
    """A key and a certificate for `NAME` that signs itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        target = self.path.partition("?to=")[2]
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        pass


class World:
    """Names and addresses; what connects to a public address gets to the server on loopback."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.names: dict[str, list[list[str]]] = {NAME: [[PUBLIC[0]]]}
        self.lookups: list[str] = []
        self.connected: list[str] = []
        self.down: set[str] = set()
        self.sni: list[str | None] = []

    def getaddrinfo(self, host, port, *args, **kwargs):
        self.lookups.append(host)
        if host not in self.names:
            raise socket.gaierror("no such name")
        answers = self.names[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port or 0)) for each in found]

    def create_connection(self, address, *args, **kwargs):
        host, _ = address
        ipaddress.ip_address(host)  # nothing that would be looked up again
        self.connected.append(host)
        if host in self.down:
            raise OSError("unreachable")
        plain = socket.socket()
        plain.connect(("127.0.0.1", self.port))
        return plain


@pytest.fixture(params=["http", "https"])
def scheme(request) -> str:
    return request.param


@pytest.fixture
def world(scheme, tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    world = World(server.server_port)
    if scheme == "https":
        pem = certificate(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.sni_callback = lambda _, name, __: world.sni.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(socket, "getaddrinfo", world.getaddrinfo)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", world.create_connection)
    monkeypatch.setenv("NO_PROXY", "*")
    yield world
    server.shutdown()
    server.server_close()
    thread.join()


def get(hosts: Hosts, url: str) -> requests.Response:
    with http_session(hosts, quick(1)) as session:
        return session.get(url, timeout=5)


def test_the_checked_address_is_connected_to_under_the_urls_name(scheme, world):
    answer = get(Hosts(), f"{scheme}://{NAME}:9/x")
    assert (answer.status_code, answer.url) == (200, f"{scheme}://{NAME}:9/x")
    assert world.connected == [PUBLIC[0]]
    assert world.lookups == [NAME]
    # The certificate was checked as well: it is of this name alone.
    assert world.sni == ([NAME] if scheme == "https" else [])


def test_a_name_server_that_changes_its_mind_changes_nothing(scheme, world):
    world.names[NAME] = [[PUBLIC[0]], ["127.0.0.1"]]
    assert get(Hosts(), f"{scheme}://{NAME}:9/x").status_code == 200
    with pytest.raises(DataError, match=r"127\.0\.0\.1, not a public address"):
        get(Hosts(), f"{scheme}://{NAME}:9/x")
    assert world.connected == [PUBLIC[0]]


def test_one_private_address_of_several_is_enough(scheme, world):
    world.names[NAME] = [[PUBLIC[0], "10.1.2.3"]]
    with pytest.raises(DataError, match=r"10\.1\.2\.3, not a public address"):
        get(Hosts(), f"{scheme}://{NAME}:9/x")
    assert world.connected == []


def test_a_redirect_to_a_private_address(scheme, world):
    world.names["inside.example"] = [["169.254.169.254"]]
    for target in (f"{scheme}://inside.example:9/x", f"{scheme}://10.1.2.3:9/x"):
        with pytest.raises(DataError, match="not a public address"):
            get(Hosts(), f"{scheme}://{NAME}:9/x?to={target}")
    assert set(world.connected) == {PUBLIC[0]}


def test_the_next_address_where_one_does_not_answer(scheme, world):
    world.names[NAME] = [list(PUBLIC)]
    world.down = {PUBLIC[0]}
    assert get(Hosts(), f"{scheme}://{NAME}:9/x").status_code == 200
    assert world.connected == list(PUBLIC)
    world.down = set(PUBLIC)
    with pytest.raises(requests.ConnectionError):
        get(Hosts(), f"{scheme}://{NAME}:9/x")


def test_a_name_without_an_address_may_have_one_later(scheme, world):
    with pytest.raises(TemporaryError, match="has no address"):
        get(Hosts(), f"{scheme}://nowhere.example/x")
    assert world.lookups == ["nowhere.example"]
    assert world.connected == []


def test_the_typed_host_is_connected_to_as_ever(scheme, world, monkeypatch):
    world.names[NAME] = [["127.0.0.1"]]
    monkeypatch.setattr(
        urllib3.util.connection,
        "create_connection",
        lambda address, *_, **__: world.create_connection(("127.0.0.1", address[1])),
    )
    assert get(Hosts(f"https://{NAME}/"), f"{scheme}://{NAME}:9/x").status_code == 200
