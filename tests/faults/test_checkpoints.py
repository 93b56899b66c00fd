"""Checkpoints of strangers, by way of the command line: what they hold is not run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import cli, make_item  # noqa: F401
from tests.encoders.conftest import server  # noqa: F401

MODEL = "sam2.1-hiera-tiny"


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def encode(tmp_path, cli, monkeypatch):  # noqa: F811
    """`encode` with the real loader of checkpoints: gives the outcome."""
    monkeypatch.setenv("GEOSAM_STAC_CACHE", str(tmp_path / "cache"))
    item = make_item(tmp_path, "scene")

    def run(*argv: object):
        return cli(
            *("encode", "--item", item, "--model", MODEL, "--device", "cpu"),
            *("--out", tmp_path / "out", *argv),
        )

    return run


def state(canary: Path) -> dict[str, object]:  # first of all: it is run as soon as it is read
    return {"canary": Canary(canary), "model": {"a": torch.zeros(1000)}}


def zipped(path: Path, canary: Path) -> Path:
    torch.save(state(canary), path)
    return path


def assert_refused(outcome, canary: Path, *words: str) -> None:
    assert outcome.code == 78, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not canary.exists()
    assert not (canary.parent / "out").exists()


def test_the_canary_can_sing(tmp_path, canary):
    torch.load(zipped(tmp_path / "evil.pt", canary), weights_only=False)
    assert canary.is_dir()


def test_a_malicious_pickle_in_a_zip(encode, tmp_path, canary):
    path = zipped(tmp_path / "evil.pt", canary)
    assert_refused(encode("--checkpoint", path), canary, "holds code", "evil.pt")


@pytest.mark.parametrize("kept", [1.0, 0.5], ids=["whole", "cut short"])
def test_a_malicious_pickle_of_the_old_format(kept, encode, tmp_path, canary):
    path = tmp_path / "evil.pt"
    torch.save(state(canary), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert_refused(encode("--checkpoint", path), canary, "evil.pt")


def test_a_plain_pickle_that_says_it_is_safe(encode, tmp_path, canary):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(state(canary)))
    assert_refused(encode("--checkpoint", path), canary, "evil.safetensors")


def test_another_file_in_the_cache(encode, tmp_path, canary):
    """Where the model's own file should lie: it is not opened, whatever it holds."""
    from geosam_stac.encoders.checkpoints import cached_path
    from geosam_stac.encoders.registry import find_model

    path = cached_path(find_model(MODEL), tmp_path / "cache")
    path.parent.mkdir()
    zipped(path, canary)
    published = find_model(MODEL).sha256
    assert published is not None
    assert_refused(encode(), canary, "damaged", published)


def test_an_address_that_gives_another_file_than_the_first_time(
    encode,
    tmp_path,
    canary,
    server,  # noqa: F811
):
    server.body = zipped(tmp_path / "evil.pt", canary).read_bytes()
    url = server.url("/evil.pt")
    assert_refused(encode("--checkpoint", url), canary, "holds code")
    (pin,) = (tmp_path / "cache").glob("*.sha256")
    first = pin.read_text().split()[0]
    assert first == server.sha256
    pin.with_suffix("").unlink()
    server.body = zipped(tmp_path / "worse.pt", canary).read_bytes() + b" "
    assert_refused(encode("--checkpoint", url), canary, "wrong sha256", first)


def test_a_zip_that_is_cut_short(encode, tmp_path, canary):
    path = zipped(tmp_path / "evil.pt", canary)
    path.write_bytes(path.read_bytes()[:-40])
    assert_refused(encode("--checkpoint", path), canary, "cut short")


def test_an_item_that_names_a_checkpoint(encode, tmp_path, canary, fake_model):
    """Nobody follows it: the weights are those that the user asked for."""
    path = zipped(tmp_path / "evil.pt", canary)
    item = tmp_path / "scene.json"
    document = json.loads(item.read_text())
    document["assets"]["model"] = {
        "href": str(path),
        "roles": ["mlm:model", "mlm:weights"],
        "type": "application/octet-stream; application=pytorch",
    }
    document["properties"]["mlm:pretrained_source"] = str(path)
    item.write_text(json.dumps(document))
    outcome = encode("--checkpoint", "untrained", "--stride", 32)
    assert outcome.code == 0, outcome.err
    assert not canary.exists()
