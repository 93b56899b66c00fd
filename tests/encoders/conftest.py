"""A loopback HTTP server that misbehaves on request."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from geosam_stac.retry import Retries, RetryPolicy

NO_WAIT = Retries(RetryPolicy(tries=4, base_s=0.0, timeout_s=2.0), wait=lambda s: None)


class FileServer:
    """Serves `body` at every path; what it does wrong is set by attributes.

    `break_after`: bytes after which the connection is cut, one entry a request (None: not cut).
    `statuses`: answered before the body, one a request. `requests`: (path, Range, If-Range) seen;
    `authorizations`: that header of each request.
    """

    def __init__(self) -> None:
        self.body = np.random.default_rng(0).bytes(3_500_000)
        self.etag: str | None = '"v1"'
        self.last_modified: str | None = None
        self.ranges = True
        self.break_after: list[int | None] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.authorizations: list[str | None] = []
        self.delay = threading.Event()
        self.delay.set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def url(self, path: str = "/weights/model.pt") -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def close(self) -> None:
        self.delay.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
                with server._lock:
                    server.requests.append((self.path, asked, condition))
                    server.authorizations.append(self.headers.get("Authorization"))
                    status = server.statuses.pop(0) if server.statuses else 200
                    cut = server.break_after.pop(0) if server.break_after else None
                if status != 200:
                    self.send_response(status)
                    for name, value in server.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, total = 0, len(server.body)
                fresh = condition in (None, server.etag, server.last_modified)
                if asked and server.ranges and fresh:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if start >= total:
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{total}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                if server.etag:
                    self.send_header("ETag", server.etag)
                if server.last_modified:
                    self.send_header("Last-Modified", server.last_modified)
                self.send_header("Content-Length", str(total - start))
                self.end_headers()
                body = server.body[start:] if cut is None else server.body[start : start + cut]
                with contextlib.suppress(ConnectionError):  # the client may have seen enough
                    self.wfile.write(body[:1000])
                    server.delay.wait(10)
                    self.wfile.write(body[1000:])
                    self.wfile.flush()
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()
