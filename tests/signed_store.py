"""A store on loopback that wants signatures, headers or tokens, and the service that gives them.

A process of its own (`serving`): rasterio holds the GIL while it opens a file, and a thread of the
tests' process could not answer it.

Folders: open/ wants nothing, signed/ a signature, keyed/ the header X-Key, bearer/ a bearer token,
basic/ a password, static/ the query parameter `token`, moved/ a bearer token and leads elsewhere,
refused/ cannot be satisfied. Files of the root lie in all of them. api/ is a STAC API of the file
`items.json`, whose bearer token is that of bearer/.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import requests

from tests.ranges import asked_range, ranged


class Store:
    """The server, seen from the tests. `port` is new for each test, and so GDAL's cache is."""

    def __init__(self, port: int) -> None:
        self.port = port

    def href(self, folder: str, name: str = "a.tif", *, account: str = "acct") -> str:
        """URL of a file; `account` is a host name below localhost, and may hold a user."""
        return f"http://{account}.localhost:{self.port}/{folder}/{name}"

    def set(self, **state: float) -> None:
        """How often and how long signatures are good."""
        requests.post(f"http://127.0.0.1:{self.port}/", json=state, timeout=10)

    def stats(self) -> dict[str, Any]:
        """`log` of requests, `tokens` that were given."""
        return requests.get(f"http://127.0.0.1:{self.port}/stats", timeout=10).json()

    @property
    def tokens(self) -> int:
        """How many signatures were given."""
        return len(self.stats()["tokens"])

    def signer(self, **given: Any) -> Any:
        """A signer that this server serves."""
        from geosam_stac.sources.signing import PlanetaryComputer

        return PlanetaryComputer(
            token_url=f"http://127.0.0.1:{self.port}/token",
            blob_host=f".localhost:{self.port}",
            **given,
        )


@contextlib.contextmanager
def serving(root: Path, secret: str, **secrets: str) -> Iterator[int]:
    """Serve the files of a folder; gives the port. `secrets` by folder replace `secret`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.signed_store", str(root), secret, json.dumps(secrets)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Shared:
    """What the server's threads share."""

    def __init__(self) -> None:
        self.root = Path()
        self.secrets: dict[str, str] = {}
        self.lock = threading.Lock()
        self.state: dict[str, float] = {"uses": 10**9, "life_s": 3600, "clock_s": 0}
        self.issued: dict[str, list[float]] = {}
        self.log: list[dict[str, Any]] = []
        self.tokens: list[str] = []

    def secret(self, folder: str) -> str:
        return self.secrets.get(folder, self.secrets[""])


_shared = _Shared()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/"):
            self._api(urlsplit(self.path).path)
            return
        _shared.state.update(json.loads(body))
        self.answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/stats":
            with _shared.lock:
                text = json.dumps({"log": _shared.log, "tokens": _shared.tokens})
            self.answer(200, text.encode())
        elif url.path.startswith("/token/"):
            self._token(url.path)
        elif url.path.startswith("/api"):
            self._api(url.path)
        else:
            self._file(url.path, url.query)

    def _token(self, path: str) -> None:
        state = _shared.state
        with _shared.lock:
            _shared.tokens.append(path)
            expires_s = time.time() + state["clock_s"] + state["life_s"]
            signature = f"{_shared.secret('signed')}{len(_shared.tokens)}"
            _shared.issued[signature] = [state["uses"], expires_s]
        when = datetime.fromtimestamp(expires_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = {"msft:expiry": when, "token": f"sv=2024&se={when}&sig={quote(signature, safe='')}"}
        self.answer(200, json.dumps(token).encode())

    def _api(self, path: str) -> None:
        if self.headers.get("Authorization") != "Bearer " + _shared.secret("bearer"):
            self.answer(403, b'{"code": "Forbidden"}')
            return
        here = f"http://{self.headers['Host']}/api"
        if path.endswith("/search"):
            self.answer(200, (_shared.root / "items.json").read_bytes())
            return
        conforms = ["core", "item-search"]
        links = [
            {"rel": "root", "href": here},
            {"rel": "self", "href": here},
            {"rel": "search", "href": here + "/search", "method": "POST"},
        ]
        document = {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "One page of Items",
            "conformsTo": [f"https://api.stacspec.org/v1.0.0/{name}" for name in conforms],
            "links": links,
        }
        self.answer(200, json.dumps(document).encode(), Content_Type="application/json")

    def _file(self, path: str, query: str) -> None:
        headers = self.headers
        folder, _, name = path.strip("/").partition("/")
        allowed = self._allowed(folder, query)
        with _shared.lock:
            _shared.log.append(
                {
                    "host": headers["Host"],
                    "path": path,
                    "query": query,
                    "key": headers.get("X-Key"),
                    "payer": headers.get("x-amz-request-payer"),
                    "authorization": headers.get("Authorization"),
                    "allowed": allowed,
                }
            )
        if not allowed:
            self.answer(403, b"<Error><Code>AuthenticationFailed</Code></Error>")
            return
        if folder == "moved":
            port = headers["Host"].partition(":")[2]
            self.answer(302, Location=f"http://elsewhere.localhost:{port}/open/{name}")
            return
        file = _shared.root / path.rpartition("/")[2]
        if not file.is_file():
            self.answer(404)
            return
        status, more, body = ranged(file.read_bytes(), asked_range(headers.get("Range")))
        self.answer(status, body, **more)

    def _allowed(self, folder: str, query: str) -> bool:
        secret = _shared.secret(folder)
        authorization = self.headers.get("Authorization")
        if folder == "keyed":
            return self.headers.get("X-Key") == secret
        if folder in ("moved", "bearer"):
            return authorization == "Bearer " + secret
        if folder == "basic":
            return authorization == "Basic " + base64.b64encode(f"user:{secret}".encode()).decode()
        if folder == "refused":
            return False
        if folder == "static":
            return parse_qs(query).get("token") == [secret]
        if folder != "signed":
            return True
        grant = _shared.issued.get(parse_qs(query).get("sig", [""])[0])
        with _shared.lock:
            if grant is None or grant[0] <= 0 or grant[1] < time.time() + _shared.state["clock_s"]:
                return False
            grant[0] -= 1
            return True


def _serve(root: str, secret: str, secrets: str) -> None:
    _shared.root, _shared.secrets = Path(root), {"": secret} | json.loads(secrets)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
