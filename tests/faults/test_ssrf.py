"""What a remote Item names: refused before a packet is sent. In a network namespace of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geosam_stac.errors import DataError
from geosam_stac.sources.hosts import Hosts
from tests.faults.ssrf_main import PORT, PUBLIC

ROOT = Path(__file__).resolve().parents[2]
HERE = f"http://{PUBLIC}:{PORT}"


def _possible() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run(
        ["unshare", "-rnm", "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    )
    return tried.returncode == 0


def at(host: str) -> str:
    return f"http://{host}:{PORT}/good.tif"


LOCAL = {
    "file": "file:///etc/passwd",
    "file, one slash": "file:/etc/passwd",
    "file, upper case": "FILE:///etc/passwd",
    "a file of this machine": "file://FOLDER/good.tif",
    "vsicurl": f"/vsicurl/http://127.0.0.1:{PORT}/good.tif",
    "vsicurl, options": f"/vsicurl?url=http%3A%2F%2F127.0.0.1%3A{PORT}%2Fgood.tif",
    "vsizip over vsicurl": f"/vsizip//vsicurl/http://127.0.0.1:{PORT}/a.zip/good.tif",
    "vsis3": "/vsis3/bucket/good.tif",
    "vsistdin": "/vsistdin/",
    "zip+http": f"zip+http://127.0.0.1:{PORT}/a.zip!good.tif",
    "vrt://": f"vrt://http://127.0.0.1:{PORT}/good.tif",
    "inline VRT": (
        f"<VRTDataset><SourceFilename>/vsicurl/{at('127.0.0.1')}</SourceFilename></VRTDataset>"
    ),
    "inline WMS": f"<GDAL_WMS><ServerUrl>http://127.0.0.1:{PORT}/</ServerUrl></GDAL_WMS>",
    "WMS:": f"WMS:http://127.0.0.1:{PORT}/?layers=x",
    "GTI:": "GTI:/etc/x.gti",
    "NETCDF:": "NETCDF:/etc/x.nc:var",
    "GTIFF_DIR:": f"GTIFF_DIR:1:/vsicurl/{at('127.0.0.1')}",
    "DERIVED_SUBDATASET:": f"DERIVED_SUBDATASET:AMPLITUDE:/vsicurl/{at('127.0.0.1')}",
    "a bucket that is a host": f"s3://127.0.0.1:{PORT}#/good.tif",
}
ADDRESSES = {
    "loopback": at("127.0.0.1"),
    "loopback, another": at("127.9.9.9"),
    "localhost": at("localhost"),
    "localhost, below": at("x.localhost"),
    "localhost, a dot": at("localhost."),
    "unspecified": at("0.0.0.0"),
    "IPv6 loopback": at("[::1]"),
    "IPv4-mapped IPv6": at("[::ffff:127.0.0.1]"),
    "decimal": at("2130706433"),
    "octal": at("0177.0.0.1"),
    "hex": at("0x7f000001"),
    "short": at("127.1"),
    "full-width digits": at("\uff11\uff12\uff17.\uff10.\uff10.\uff11"),
    "private": at("10.1.2.3"),
    "link-local": at("169.254.169.254"),
    "CGNAT": at("100.64.1.1"),
    "multicast": at("224.0.0.1"),
    "a user before the host": f"http://{PUBLIC}@127.0.0.1:{PORT}/good.tif",
    "a backslash": f"http://127.0.0.1:{PORT}\\@{PUBLIC}/good.tif",
    "a name of loopback": at("inside.example"),
    "a name with a private address, too": at("both.example"),
    "a name of the metadata service": at("metadata.example"),
}
REDIRECTS = {
    "a redirect to loopback": f"{HERE}/to/{at('127.0.0.1')}",
    "a redirect to link-local": f"{HERE}/to/{at('169.254.169.254')}",
    "a redirect to a redirect": f"{HERE}/to/{HERE}/to/{at('127.0.0.1')}",
    "a redirect to a name of loopback": f"{HERE}/to/{at('inside.example')}",
    "a redirect to a decimal address": f"{HERE}/to/{at('2130706433')}",
}
CONTENT = {
    "a TIFF whose overviews lie elsewhere": f"{HERE}/hooked.tif",
    "a VRT called .tif": f"{HERE}/hidden.tif",
}
HOSTILE = LOCAL | ADDRESSES | REDIRECTS | CONTENT
# Beside the hrefs of assets: Items themselves.
SOURCES = {
    "an Item that redirects": {"href": "x.tif", "source": f"{HERE}/to/{at('127.0.0.1')}"},
    "a list of Items that names loopback": {
        "href": f"http://127.0.0.1:{PORT}/item.json",
        "option": "--items",
        "source": f"{HERE}/items.ndjson",
    },
    "a list of Items that names a file": {
        "href": "file://FOLDER/local.json",
        "option": "--items",
        "source": f"{HERE}/items.ndjson",
    },
    "an Item that says it is a local one": {
        "href": "file://FOLDER/good.tif",
        "item": {"links": [{"rel": "self", "href": "/tmp/item.json"}]},
    },
}
ALLOWED = {
    "the typed host": {"href": f"{HERE}/good.tif"},
    "relative to the Item": {"href": "good.tif"},
    "a public name": {"href": at("catalog.example")},
    "a redirect to a public host": {"href": f"{HERE}/to/{at('catalog.example')}"},
    "a local Item, a local file": {"href": "file://FOLDER/good.tif", "source": "LOCAL"},
}
# The canary can sing: what was refused above gets through when the user says so.
SINGS = {
    "loopback": {"href": at("127.0.0.1"), "flags": ["--allow-private-hosts"]},
    "a redirect": {"href": REDIRECTS["a redirect to loopback"], "flags": ["--allow-private-hosts"]},
    "a VRT called .tif": {"href": f"{HERE}/hidden.tif", "flags": ["--allow-private-hosts"]},
    "the typed host, wherever it is": {
        "href": at("127.0.0.1"),
        "source": f"http://127.0.0.1:{PORT}/item.json",
    },
    "a local Item names loopback": {"href": at("127.0.0.1"), "source": "LOCAL"},
}
CASES = {
    **{f"hostile: {name}": {"href": href} for name, href in HOSTILE.items()},
    **{f"hostile: {name}": case for name, case in SOURCES.items()},
    **{f"allowed: {name}": case for name, case in ALLOWED.items()},
    **{f"sings: {name}": case for name, case in SINGS.items()},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All cases in one process: name -> (exit code, what the canary saw, stderr)."""
    if not _possible():
        pytest.skip("needs `unshare -rnm` and `ip`: a network namespace of its own")
    folder = tmp_path_factory.mktemp("ssrf")
    (folder / "cases.json").write_text(json.dumps(list(CASES.values())))
    done = subprocess.run(
        [
            *("unshare", "-rnm", sys.executable, "-W", "ignore", "-m", "tests.faults.ssrf_main"),
            *(str(folder / "cases.json"), str(folder / "found.json")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads((folder / "found.json").read_text()), strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hostile")])
def test_refused_before_a_packet_is_sent(name, outcomes):
    code, canary, err = outcomes[name]
    assert canary == []
    assert code == 65, err
    assert "Traceback" not in err
    # A VRT is not told apart from a file that is no raster at all: no driver of ours knows it.
    is_disguised = name == "hostile: a VRT called .tif"
    reason = "no raster that GDAL can read" if is_disguised else "--allow-private-hosts"
    assert reason in err, err


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("allowed")])
def test_what_is_public_is_read(name, outcomes):
    code, canary, err = outcomes[name]
    assert (code, canary) == (0, []), err


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sings")])
def test_the_canary_can_sing(name, outcomes):
    code, canary, err = outcomes[name]
    assert code == 0, err
    assert any(path.startswith("127.0.0.1/") for path in canary)


def test_there_are_at_least_forty():
    assert len(HOSTILE) + len(SOURCES) >= 40


@pytest.mark.parametrize(
    "address",
    ["64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1", "fc00::1", "ff02::1", "::", "::7f00:1"],
)
def test_addresses_of_ipv6_that_are_not_public(address):
    with pytest.raises(DataError, match="not a public address"):
        Hosts().check_form(f"https://[{address}]/x.tif", item="i")


@pytest.mark.parametrize(
    "href", ["s3://bucket/a.tif", "gs://b-1/a.tif", "az://c/a.tif", "https://8.8.8.8/a.tif"]
)
def test_stores_and_public_addresses_are_in_order(href):
    Hosts().check(href)
