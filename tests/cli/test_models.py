"""`models list|fetch|verify`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from geosam_stac.encoders import registry
from geosam_stac.encoders.registry import MODELS

BODY = b"weights" * 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOSAM_STAC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def served(monkeypatch, cache):
    """sam2.1-hiera-tiny is what a server on loopback offers; its body may be spoiled."""

    class Handler(BaseHTTPRequestHandler):
        body = BODY

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    entry = dataclasses.replace(
        registry.find_model("sam2.1-hiera-tiny"),
        url=f"http://127.0.0.1:{server.server_port}/sam2.1_hiera_tiny.pt",
        size_bytes=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
    )
    models = tuple(entry if other.name == entry.name else other for other in MODELS)
    monkeypatch.setattr(registry, "MODELS", models)
    monkeypatch.setattr("geosam_stac.encoders.checkpoints.MODELS", models)
    yield Handler
    server.shutdown()
    server.server_close()


def test_list(cli, cache):
    done = cli("models", "list")
    assert done.code == 0
    assert len(done.lines) == len(MODELS) + 1
    assert done.lines[0].split() == ["model", "alias", "MB", "licence", "sha256", "fetched"]
    row = next(line for line in done.lines if line.startswith("sam2.1-hiera-base-plus"))
    assert row.split() == [
        "sam2.1-hiera-base-plus", "sam2.1_b", "324", "Apache-2.0", "a2345aede871", "-",
    ]  # fmt: skip
    assert max(map(len, done.lines)) < 80
    assert str(cache) in done.err
    assert not cache.exists()


def test_list_as_json(cli, cache):
    rows = [json.loads(line) for line in cli("models", "list", "--json").lines]
    assert [row["name"] for row in rows] == [entry.name for entry in MODELS]
    assert rows[0]["size_bytes"] == 375_042_383
    assert rows[0]["path"] is None
    assert set(rows[0]) == {
        *("name", "aliases", "family", "size_bytes", "licence", "input_px", "sha256"),
        *("sha256_source", "url", "path"),
    }


def test_fetch_verify_and_list(cli, served, cache):
    path = cache / "sam2.1_hiera_tiny.pt"
    done = cli("models", "fetch", "sam2.1-tiny")
    assert (done.code, done.out) == (0, f"{path}\n")
    assert path.read_bytes() == BODY

    done = cli("models", "fetch", "sam2.1_t", "--json")
    assert json.loads(done.out) == {
        "name": "sam2.1-hiera-tiny",
        "path": str(path),
        "sha256": hashlib.sha256(BODY).hexdigest(),
    }
    done = cli("models", "verify", "sam2.1_t")
    assert (done.code, done.out) == (0, f"{hashlib.sha256(BODY).hexdigest()}  {path}\n")
    assert "as it should be: published at https://" in done.err

    listed = next(line for line in cli("models", "list").lines if "2.1-hiera-tiny" in line)
    assert listed.endswith(" yes")


def test_verify_finds_a_damaged_file(cli, served, cache):
    cli("models", "fetch", "sam2.1_t")
    path = cache / "sam2.1_hiera_tiny.pt"
    path.write_bytes(b"damaged")
    for what in ("sam2.1_t", str(path)):
        done = cli("models", "verify", what)
        assert done.code == 78
        assert "error: the checkpoint is not the one that it should be" in done.err
        assert hashlib.sha256(BODY).hexdigest() in done.err
    done = cli("models", "verify", "sam2.1_t", "--json")
    assert done.code == 78
    assert json.loads(done.out)["ok"] is False


def test_verify_a_file_of_one_s_own(cli, tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"mine")
    done = cli("models", "verify", path)
    assert (done.code, done.out) == (78, f"{hashlib.sha256(b'mine').hexdigest()}  {path}\n")
    assert "none of the published ones" in done.err
    found = json.loads(cli("models", "verify", path, "--json").out)
    assert (found["ok"], found["expected"]) == (None, None)


@pytest.mark.parametrize("command", ["fetch", "verify"])
def test_unknown_models(cli, cache, command):
    done = cli("models", command, "sam2.1-hiera-teeny")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith("error: unknown model 'sam2.1-hiera-teeny'. Did you mean one of: ")


def test_a_file_that_is_not_there(cli, cache, tmp_path):
    done = cli("models", "verify", tmp_path / "missing.pt")
    assert done.code == 78
    assert "no such checkpoint file" in done.err


def test_verify_what_was_not_fetched(cli, cache):
    done = cli("models", "verify", "sam-vit-base")
    assert done.code == 78
    assert "`geosam-stac models fetch sam-vit-base` fetches it" in done.err


def test_a_server_with_another_file(cli, served, cache):
    served.body = BODY[:-1] + b"x"
    done = cli("models", "fetch", "sam2.1_t")
    assert (done.code, done.out) == (78, "")
    assert "sha256" in done.err
    assert not list(cache.glob("*.pt"))


def test_a_command_group_alone_shows_its_help(cli):
    done = cli("models")
    assert done.code == 2
    assert "verify" in done.out + done.err
