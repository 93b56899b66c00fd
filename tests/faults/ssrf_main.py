"""Inside a network namespace of its own: one hostile Item, and who was asked for what.

`unshare -rnm python -m tests.faults.ssrf_main CASES.json`. The loopback interface has, beside its
own address, those of `PUBLIC` and `PRIVATE`; no packet can leave. Each case is an encode of an Item
that a server at a public address hands out; what reaches any address that is not public is the
canary. Prints a JSON list of [exit code, paths the canary saw, stderr].
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.ranges import asked_range, ranged

PUBLIC = "93.184.215.14"
PRIVATE = ("10.1.2.3", "169.254.169.254", "100.64.1.1", "192.168.1.1")
NAMES = {
    "catalog.example": [PUBLIC],
    "inside.example": ["127.0.0.1"],
    "both.example": [PUBLIC, "10.1.2.3"],
    "metadata.example": ["169.254.169.254"],
}
PORT = 8080


class _Handler(BaseHTTPRequestHandler):
    files: Path
    canary: Path

    def do_GET(self):
        address = self.connection.getsockname()[0].removeprefix("::ffff:")
        path = self.path.partition("?")[0]
        if address != PUBLIC:
            with self.canary.open("a") as canary:
                canary.write(f"{address}{path}\n")
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/").replace("|", "?"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = self.files / path.removeprefix("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        span = asked_range(self.headers.get("Range"))
        status, headers, part = ranged(file.read_bytes(), span)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(part)

    do_POST = do_GET

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *args):
        pass


def main(cases: list[dict]) -> list[list]:
    """Run the cases one after the other."""
    for command in (
        "ip link set lo up",
        *(f"ip addr add {address}/32 dev lo" for address in (PUBLIC, *PRIVATE)),
    ):
        subprocess.run(command.split(), check=True)
    folder = Path(tempfile.mkdtemp())
    hosts = folder / "hosts"
    lines = [f"{address} {name}" for name, found in NAMES.items() for address in found]
    hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    _Handler.files, _Handler.canary = folder / "served", folder / "canary.txt"
    _Handler.files.mkdir()
    server = ThreadingHTTPServer(("0.0.0.0", PORT), _Handler)
    # A process of its own: rasterio holds the GIL while GDAL opens what a VRT names.
    serving = os.fork()
    if serving == 0:
        server.serve_forever()
    atexit.register(os.kill, serving, signal.SIGKILL)

    import pytest

    from geosam_stac.cli import app, console
    from geosam_stac.cli.guard import run
    from tests import fakes, rasters

    fakes.install(pytest.MonkeyPatch())
    good = rasters.write_tif(folder / "good.tif", rasters.values((3, 96, 96), "uint8"))
    hooked = rasters.write_tif(folder / "hooked.tif", rasters.values((3, 96, 96), "uint8"))
    import rasterio

    with rasterio.open(hooked, "r+") as dataset:
        dataset.update_tags(
            ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/http://127.0.0.1:{PORT}/canary.tif"
        )
    vrt = (
        '<VRTDataset rasterXSize="96" rasterYSize="96"><SRS>EPSG:32614</SRS><GeoTransform>500000,'
        "10,0,5200000,0,-10</GeoTransform>"
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>'
            f"/vsicurl/http://127.0.0.1:{PORT}/inner.tif</SourceFilename><SourceBand>{band}"
            "</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    for name, body in {
        "good.tif": good.read_bytes(),
        "inner.tif": good.read_bytes(),
        "hooked.tif": hooked.read_bytes(),
        "hidden.tif": vrt.encode(),
    }.items():
        (_Handler.files / name).write_bytes(body)
    (folder / "good.vrt").write_text(vrt)
    # Else a case would be answered by what GDAL remembers of an earlier one.
    os.environ["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/"
    results = []
    for number, case in enumerate(cases):
        _Handler.canary.write_text("")
        fields = rasters.named_bands("red", "green", "blue")
        href = case["href"].replace("FOLDER", str(folder))
        item = rasters.document({"image": rasters.asset(href, **fields)}, item_id="hostile")
        (_Handler.files / "item.json").write_text(json.dumps(item | case.get("item", {})))
        (_Handler.files / "items.ndjson").write_text(json.dumps({"href": href}))
        local = folder / "local.json"
        local.write_text(json.dumps(item))
        source = case.get("source", f"http://{PUBLIC}:{PORT}/item.json").replace(
            "LOCAL", str(local)
        )
        console.set_verbosity(quiet=False, verbose=False)
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = run(
                app(),
                [
                    *("encode", case.get("option", "--item"), source, "--checkpoint", "untrained"),
                    *("--model", "sam2.1-hiera-tiny", "--device", "cpu", "--stride", "32"),
                    *("--out", str(folder / f"out{number}"), *case.get("flags", [])),
                ],
            )
        results.append([code, _Handler.canary.read_text().splitlines(), err.getvalue()])
    return results


if __name__ == "__main__":
    socket.setdefaulttimeout(10)
    found = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
