"""An HTTP server that fails on command: real sockets, ranges, a proxy. A process of its own.

GDAL holds the GIL while it opens a file, so a thread of the tests could not answer it. Run as
`python -m tests.faults.server ROOT [UPSTREAM]`: it prints its port, then serves the files of ROOT;
whatever is no file there goes to UPSTREAM. Rules come by `POST /_rules`; `GET /_log` tells what
was asked.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.ranges import asked_range, ranged

HTML = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>" * 40
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
STATUSES = {
    "403": (403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
    "404": (404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"),
    "416": (416, b"<Error><Code>InvalidRange</Code><Message>no</Message></Error>"),
    "429": (429, b"<Error><Code>TooManyRequests</Code><Message>no</Message></Error>"),
    "500": (500, b"<Error><Code>InternalError</Code><Message>no</Message></Error>"),
    "503": (503, SLOW_DOWN),
    "slowdown-in-200": (200, SLOW_DOWN),
    "html": (200, HTML),
}
#: The eleven faults of the reliability table.
FAULTS = (
    *("403", "404", "416", "429", "500", "503"),
    *("html", "truncated", "stalled", "reset", "slow"),
)
# No client waits as long, and no test process is held up by a thread that does.
STALL_S = 20.0


# The server's side


class _Rules:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rules: list[dict] = []
        self.log: list[dict] = []

    def fault(
        self, method: str, path: str, span: tuple[int, int] | None, authorization: str
    ) -> dict | None:
        """The first rule that this request meets; counts it."""
        with self.lock:
            entry = {"method": method, "path": path, "range": span, "fault": None}
            self.log.append(entry)
            for rule in self.rules:
                if rule["method"] not in (None, method) or not re.search(rule["path"], path):
                    continue
                if rule["authorization"] not in authorization:
                    continue
                # GDAL first asks for the file without a range, and hangs up after its head.
                if (wanted := rule["bytes"]) is not None and (
                    span is None or span[1] < wanted[0] or span[0] >= wanted[1]
                ):
                    continue
                if rule["skip"] > 0:
                    rule["skip"] -= 1
                    continue
                if rule["times"] is not None:
                    if rule["times"] == 0:
                        continue
                    rule["times"] -= 1
                entry["fault"] = rule["fault"]
                return rule
        return None


RULES = _Rules()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A body goes out with its head: else it waits for the client to acknowledge that, 40 ms.
    disable_nagle_algorithm = True
    root: Path
    upstream: str | None

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if url.path.startswith("/_"):
            self.control(url.path, self.rfile.read(length))
            return
        body = b""
        span = asked_range(self.headers.get("Range"))
        authorization = self.headers.get("Authorization", "")
        rule = RULES.fault(self.command, self.path, span, authorization)
        fault = rule["fault"] if rule else None
        if length and fault == "truncated":
            self.rfile.read(length // 2)
            self.hang_up(reset=False)
            return
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(length) if length else b""
        if fault == "reset":
            self.hang_up(reset=True)
        elif fault in STATUSES:
            status, text = STATUSES[fault]
            again = {"Retry_After": str(rule["retry_after"])} if rule["retry_after"] else {}
            kind = "text/html" if fault == "html" else "application/xml"
            self.answer(status, text, Content_Type=kind, **again)
        else:
            if fault == "slow":
                self.wait(rule["delay_s"])
            answer = self.real(url.path, span, body)
            if fault in ("truncated", "stalled"):
                self.half(*answer, stall=fault == "stalled")
            else:
                self.whole(*answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def real(
        self, path: str, span: tuple[int, int] | None, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        file = self.root / path.lstrip("/")
        if file.is_file() and self.command in ("GET", "HEAD"):
            status, headers, data = ranged(file.read_bytes(), span)
            kind = "application/json" if file.suffix == ".json" else "image/tiff"
            return status, headers | {"Content-Type": kind}, data
        if self.upstream is None:
            return 404, {}, b""
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=20)
        # Host stays as the client sent it: it is part of what is signed.
        skip = ("connection", "expect", "content-length")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skip}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
            drop = ("connection", "transfer-encoding", "date", "server")
            kept = {k: v for k, v in response.getheaders() if k.lower() not in drop}
            return response.status, kept, data

    def whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in map(str.lower, headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def half(self, status: int, headers: dict[str, str], body: bytes, *, stall: bool) -> None:
        """Promise the whole body, and give half of it."""
        promised = max(len(body), 64)
        headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body[: promised // 2])
        self.wfile.flush()
        if stall:
            self.wait(STALL_S)
        self.hang_up(reset=False)

    def wait(self, seconds: float) -> None:
        """Say nothing for so long, or until the client has gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.connection], [], [], min(left, 0.2))[0]:
                with contextlib.suppress(OSError):
                    if self.connection.recv(1, socket.MSG_PEEK):
                        time.sleep(0.05)
                        continue
                return

    def hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)  # RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def control(self, path: str, body: bytes) -> None:
        with RULES.lock:
            if path == "/_rules":
                RULES.rules = json.loads(body)
                RULES.log.clear()
                self.answer(200)
                return
            text = json.dumps(RULES.log).encode()
        self.answer(200, text)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone


def main() -> None:
    _Handler.root = Path(sys.argv[1])
    _Handler.upstream = sys.argv[2] if len(sys.argv) > 2 else None
    server = _Server(("127.0.0.1", 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


# The tests' side


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When to fail, and how.

    `path`: a regular expression that the path and query are searched for. `bytes`: only requests
    for a range that touches [first, end). `authorization`: only those whose header of that name
    holds it. `skip`: so many that meet it pass first.
    `times`: so often; None: always.
    """

    fault: str
    path: str = ""
    method: str | None = None
    bytes: tuple[int, int] | None = None
    authorization: str = ""
    skip: int = 0
    times: int | None = 1
    retry_after: float | None = None
    delay_s: float = 4.0


@dataclass(frozen=True, kw_only=True)
class FaultServer:
    """The server, seen from the tests."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rules(self, *rules: Rule) -> None:
        """Replace all rules, and forget the log."""
        self._ask("POST", "/_rules", json.dumps([vars(rule) for rule in rules]))

    def log(self) -> list[dict]:
        """Requests since the rules were set: method, path, range, fault."""
        return json.loads(self._ask("GET", "/_log", None))

    def faults(self) -> int:
        """How often it has failed since the rules were set."""
        return sum(1 for entry in self.log() if entry["fault"])

    def _ask(self, method: str, path: str, body: str | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body=body)
            return connection.getresponse().read()


#: Of this process's servers. The kernel gives a port again, and GDAL, which remembers files by
#: their URL, would not ask the server that has it then.
_ports: set[int] = set()


@contextlib.contextmanager
def fault_server(root: Path, upstream: str | None = None) -> Iterator[FaultServer]:
    """Run a server over the files of a folder, on a port that no earlier one had."""
    command = [sys.executable, "-m", "tests.faults.server", str(root)]
    command += [upstream] if upstream else []
    while True:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2]
        )
        try:
            port = int(process.stdout.readline())
            if port in _ports:
                continue
            _ports.add(port)
            yield FaultServer(port=port)
            return
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    main()
