"""Ids of strangers become keys: nothing outside the output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import cli  # noqa: F401
from tests.rasters import asset, document, named_bands, values, write_tif
from tests.servers import s3_endpoint, s3_keys, use_s3  # noqa: F401

IDS = {
    "up": "../../../../outside",
    "up, Windows": "..\\..\\outside",
    "up, encoded": "%2e%2e%2f%2e%2e%2foutside",
    "up, encoded twice": "%252e%252e%252foutside",
    "up, inside": "a/../../../outside",
    "absolute": "/tmp/geosam-outside",
    "absolute, Windows": "C:\\Windows\\outside",
    "a share": "\\\\server\\share\\outside",
    "a URL": "s3://other-bucket/outside",
    "dots": "..",
    "one dot": ".",
    "a zero byte": "scene\0.json",
    "a line break": "scene\r\nX-Header: 1",
    "300 characters": "x" * 300,
    "300 characters of four bytes": "\U0001f6f0" * 300,
    "a Windows device": "CON",
    "a trailing dot and blank": "scene. ",
    "right to left": "scene\u202egnp.exe",
    "a slash that looks like one": "..\u2215..\uff0foutside",
    "half a surrogate pair": "scene\ud800",
    "an option": "--out=/tmp",
    "a home": "~root/outside",
}


def write_hostile(tmp_path: Path, name: str) -> Path:
    tif = write_tif(tmp_path / "source.tif", values((3, 64, 64), "uint8"))
    item = document({"image": asset(tif, **named_bands("red", "green", "blue"))}, item_id=name)
    path = tmp_path / "source.json"
    path.write_text(json.dumps(item))
    return path


def options(source: Path, out: str) -> list[str]:
    return [
        *("encode", "--item", str(source), "--model", "sam2.1-hiera-tiny", "--device", "cpu"),
        *("--checkpoint", "untrained", "--stride", "32", "--out", out),
    ]


def files_below(folder: Path) -> set[str]:
    return {
        str(Path(top, name).relative_to(folder))
        for top, _, names in os.walk(folder)
        for name in names
    }


@pytest.mark.parametrize("name", IDS)
def test_an_id_stays_inside_the_output(name, tmp_path, cli, fake_model):  # noqa: F811
    source = write_hostile(tmp_path, IDS[name])
    out = tmp_path / "a" / "b" / "out"
    before = files_below(tmp_path)
    outcome = cli(*options(source, str(out)))
    assert outcome.code == 0, outcome.err
    new = files_below(tmp_path) - before
    assert new and all(path.startswith("a/b/out/") for path in new)
    (href,) = outcome.lines
    written = json.loads(Path(href).read_text())
    assert set(written["id"]) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
    )
    assert all(len(part.encode()) <= 255 for path in new for part in Path(path).parts)
    # Windows has no files of these names, whatever their ending; nor any that end with a dot.
    assert not any(part.endswith((".", " ")) for path in new for part in Path(path).parts)
    stems = {part.partition(".")[0].upper() for path in new for part in Path(path).parts}
    assert not stems & {"CON", "NUL", "AUX", "PRN", "COM1", "LPT1"}


@pytest.mark.parametrize("name", IDS)
def test_an_id_on_s3_stays_below_the_prefix(
    name,
    tmp_path,
    cli,  # noqa: F811
    fake_model,
    monkeypatch,
    s3_endpoint,  # noqa: F811
):
    use_s3(monkeypatch, s3_endpoint)
    before = s3_keys(s3_endpoint)
    prefix = f"keys/{list(IDS).index(name)}/out"
    outcome = cli(*options(write_hostile(tmp_path, IDS[name]), f"s3://bucket/{prefix}"))
    assert outcome.code == 0, outcome.err
    new = set(s3_keys(s3_endpoint)) - set(before)
    assert all(key.startswith(f"{prefix}/") for key in new)
    # Tools that copy a bucket to a disk make folders of these.
    assert not any(part in ("", ".", "..") for key in new for part in key.split("/"))
    (href,) = outcome.lines
    assert href.removeprefix("s3://bucket/") in new
