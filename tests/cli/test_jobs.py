"""`jobs kubernetes`: what is frozen, what the pods are told, what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from geosam_stac.sources.itemfiles import read_items
from geosam_stac.storage import Store, read_bytes, read_text
from tests.servers import s3_endpoint, use_s3  # noqa: F401  (a fixture)

IMAGE = "ghcr.io/example/geosam-stac@sha256:" + "a" * 64


@pytest.fixture
def s3_bucket(s3_endpoint, monkeypatch) -> str:  # noqa: F811
    """A bucket that the tests of this file share."""
    use_s3(monkeypatch, s3_endpoint)
    return "s3://bucket/jobs"


@pytest.fixture
def items(tmp_path):
    """Two Items in a file, one with a signed href."""
    lines = []
    for name in ("b", "a"):
        lines.append(
            json.dumps(
                {
                    "type": "Feature",
                    "stac_version": "1.0.0",
                    "id": name,
                    "geometry": None,
                    "properties": {"datetime": "2024-01-01T00:00:00Z"},
                    "links": [],
                    "assets": {
                        "image": {"href": f"https://data.example/{name}.tif?sig=SECRET&sv=1"}
                    },
                }
            )
        )
    path = tmp_path / "items.ndjson"
    path.write_text("\n".join(lines))
    return path


def _args(document: dict) -> list[str]:
    return document["spec"]["template"]["spec"]["containers"][0]["args"]


def test_rendered(cli, items, s3_bucket):
    done = cli(
        *("jobs", "kubernetes", "--items", items, "--out", f"{s3_bucket}/features"),
        *("--image", IMAGE, "--shards", 4, "--bands", "red,green,blue", "--stride", 768),
        *("--bbox=-10.5,1,2,3.25", "--signer", "planetary-computer", "--deadline", 2),
    )
    assert done.code == 0, done.err
    encode, finalize = yaml.safe_load_all(done.out)
    assert encode["kind"] == finalize["kind"] == "Job"
    args = _args(encode)
    assert args[:2] == ["encode", "--items"]
    assert args[-2:] == ["--shard", "4"]
    for words in (["--bands=red,green,blue"], ["--stride", "768"], ["--bbox=-10.5,1,2,3.25"]):
        assert " ".join(words) in " ".join(args)
    assert " ".join(args).count("--device cuda") == 1
    assert _args(finalize)[-4:] == ["--shards", "4", "--wait", "7200"]
    assert _args(finalize)[1:-4] == args[1:-2]
    assert encode["spec"]["activeDeadlineSeconds"] == 7200
    # What is frozen is unsigned, sorted, and found again by its name.
    assert "SECRET" not in done.out + done.err
    href = args[2]
    found = [one.item for one in read_items(href, read_text=read_text, read_bytes=read_bytes)]
    assert [item.id for item in found] == ["a", "b"]
    assert found[0].assets["image"].href == "https://data.example/a.tif"


def test_sizes_of_folders(cli, items, s3_bucket):
    done = cli(
        *("jobs", "kubernetes", "--items", items, "--out", f"{s3_bucket}/sizes"),
        *("--image", IMAGE, "--shards", 2, "--secret", "api.tokens"),
        *("--tmp", "3Gi", "--model-cache", "2G", "--shared-memory", "512Mi"),
    )
    assert done.code == 0, done.err
    pod = next(yaml.safe_load_all(done.out))["spec"]["template"]["spec"]
    limits = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    assert limits == {"tmp": "3Gi", "cache": "2G", "shm": "512Mi"}
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "api.tokens"}}]


def test_the_same_work_has_the_same_name(cli, items, s3_bucket):
    def render(*more: object) -> str:
        done = cli(
            *("jobs", "kubernetes", "--items", items, "--out", f"{s3_bucket}/x"),
            *("--image", IMAGE, "--shards", 4, *more),
        )
        assert done.code == 0, done.err
        return done.out

    first = render()
    lines = items.read_text().splitlines()
    items.write_text("\n".join(reversed(lines)))
    assert render() == first
    names = {
        next(yaml.safe_load_all(text))["metadata"]["name"]
        for text in (first, render("--stride", 9))
    }
    assert len(names) == 2
    assert len(Store(f"{s3_bucket}/x").keys("runs")) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "local"], "--out must be a place that every pod can write to"),
        (["--out", "s3://b/x", "--overwrite"], "--overwrite is not for a fleet"),
        (["--out", "s3://b/x", "--identity", "role"], "--identity is no annotation"),
        (["--out", "s3://b/x", "--tmp", "big"], "--tmp is no quantity"),
        (["--out", "s3://b/x", "--name", "A"], "--name is no name in Kubernetes"),
    ],
)
def test_refused(cli, items, more, said):
    done = cli("jobs", "kubernetes", "--items", items, "--image", IMAGE, "--shards", 2, *more)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_local_files_cannot_be_read_by_pods(cli, items, s3_bucket):
    items.write_text(items.read_text().replace("https://data.example/", "/data/"))
    done = cli(
        *("jobs", "kubernetes", "--items", items, "--out", f"{s3_bucket}/x"),
        *("--image", IMAGE, "--shards", 2),
    )
    assert done.code == 65
    assert "local file, which no pod can read" in done.err
