"""`geosam-stac pull` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("fake_model")


def test_pull(cli, fake, tmp_path):
    (href,) = cli(*fake).lines
    done = cli("pull", href, "--dest", tmp_path / "here")
    assert done.code == 0, done.err
    (folder,) = done.lines
    assert folder == str(tmp_path / "here" / Path(href).stem)
    assert "4 chips pulled" in done.err
    again = cli("pull", Path(href).parent, "--dest", tmp_path / "here", "--json", "-q")
    document = json.loads(again.out)
    assert document["folder"] == folder
    assert document["item"] == f"{folder}/{Path(href).name}"
    assert (document["chips_pulled"], document["chips_there"]) == (0, 4)
    assert again.err == ""


def test_a_box(cli, fake, tmp_path):
    (href,) = cli(*fake).lines
    box = "500000,5199950,500050,5200000"
    done = cli("pull", href, "--dest", tmp_path, "--bbox", box, "--bbox-crs", "native", "--json")
    assert json.loads(done.out)["chips_pulled"] == 1
    wrong = cli("pull", href, "--dest", tmp_path, "--bbox", "1,2,3")
    assert wrong.code == 2
    assert "--bbox is malformed" in wrong.err
    outside = cli("pull", href, "--dest", tmp_path, "--bbox", "0,0,1,1")
    assert outside.code == 2
    assert "no chip with features touches --bbox" in outside.err


def test_only_a_local_folder(cli, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (href,) = cli(*fake).lines
    done = cli("pull", href, "--dest", "s3://bucket/here")
    assert done.code == 2
    assert "--dest must be a local folder" in done.err
    assert not (tmp_path / "s3:").exists()


def test_what_is_not_there(cli, tmp_path):
    done = cli("pull", tmp_path / "no.json", "--dest", tmp_path)
    assert done.code == 65
    assert "Traceback" not in done.err
