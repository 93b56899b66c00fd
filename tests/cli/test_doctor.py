"""`doctor`: what is there, what is not, and no secret."""

from __future__ import annotations

import json
import os

import pytest


def test_all_is_there(cli):
    done = cli("doctor", "--device", "cpu")
    assert done.code == 0, done.err
    checks = {line.split()[0] for line in done.lines}
    assert checks == {
        "python",
        "packages",
        "gdal",
        "device",
        "chosen",
        "weights",
        "credentials",
    }
    assert any(line.startswith("chosen") and "cpu in" in line for line in done.lines)
    assert any("odc-stac" in line and "torch" in line for line in done.lines)


def test_credentials_are_found_and_not_shown(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    monkeypatch.setenv("GEOSAM_STAC_API_TOKEN", "token-PLANTED")
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = PLANTED\n")
    done = cli("doctor", "--json")
    assert done.code == 0, done.err
    found = {check["check"]: check["found"] for check in map(json.loads, done.lines)}
    for said in (
        "AWS_ACCESS_KEY_ID",
        "GEOSAM_STAC_API_TOKEN",
        "Hugging Face",
        "~/.aws/credentials",
    ):
        assert said in found["credentials"]
    assert "PLANTED" not in done.out + done.err


def test_a_device_that_is_not_there(cli):
    done = cli("doctor", "--device", "cuda:7")
    assert done.code == 78
    assert "cuda:7" in done.err


def test_out_is_tried(cli, tmp_path):
    done = cli("doctor", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "can be written" in done.out
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_out_that_is_read_only(cli, tmp_path):
    tmp_path.chmod(0o500)
    done = cli("doctor", "--out", tmp_path / "out")
    assert done.code == 74


def test_out_that_is_a_file(cli, tmp_path):
    (tmp_path / "out").write_text("in the way")
    done = cli("doctor", "--out", tmp_path / "out", "--json")
    assert done.code == 74
    out = json.loads(done.lines[-1])
    assert out["check"] == "out"
    assert out["error"]
