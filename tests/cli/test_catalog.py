"""`publish`, `search` and `catalog rebuild` on the command line."""

from __future__ import annotations

import io
import json

import pytest
import requests

from tests.catalog import features


@pytest.fixture
def hrefs(tmp_path):
    """Three Items in a folder of features."""
    made = [features.feature_item(number, collection="s2") for number in range(3)]
    return features.write(tmp_path / "out", *made)


def test_publish_and_search(cli, hrefs, tmp_path):
    catalog = tmp_path / "out" / "catalog.json"
    done = cli("publish", *hrefs[:2], "--to", catalog)
    assert (done.code, done.out) == (0, "")
    assert f"2 Items published to {catalog}" in done.err
    found = cli("search", "--catalog", catalog, "--model", "sam2.1_t", "--resolution", "10")
    # A rebuild takes in what else lies in the folder.
    assert (found.code, found.lines, found.err) == (0, hrefs[::-1], "")
    limited = cli("search", "--index", tmp_path / "out" / "items.parquet", "--limit", "1", "--json")
    document = json.loads(limited.out)
    assert document["type"] == "FeatureCollection"
    assert [feature["id"] for feature in document["features"]] == ["scene-02_" + _tail(hrefs[2])]


def test_a_folder_is_published_as_its_item(cli, hrefs, tmp_path):
    folder = hrefs[0].rpartition("/")[0]
    done = cli("publish", folder, "--to", tmp_path / "mine.parquet")
    assert done.code == 0, done.err
    assert cli("search", "--index", tmp_path / "mine.parquet").lines == [hrefs[0]]
    done = cli("publish", tmp_path / "out", "--to", tmp_path / "mine.parquet")
    assert done.code == 65
    assert "there is no feature Item in this folder" in done.err


def _tail(href):
    return href.rpartition("scene-02_")[2].removesuffix(".json")


def test_hrefs_from_a_pipe(cli, hrefs, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(hrefs) + "\n"))
    done = cli("publish", "-", "--to", tmp_path / "mine.parquet", "-q")
    assert (done.code, done.err) == (0, "")
    assert cli("search", "--index", tmp_path / "mine.parquet").lines == hrefs[::-1]


def test_one_of_many_workers(cli, hrefs, tmp_path):
    catalog = tmp_path / "all" / "catalog.json"
    assert cli("publish", hrefs[1], "--to", catalog, "--no-rebuild").code == 0
    assert not catalog.exists()
    assert cli("search", "--catalog", catalog).lines == [hrefs[1]]
    done = cli("catalog", "rebuild", tmp_path / "all")
    assert (done.code, done.lines) == (0, [str(catalog)])
    assert "1 Item in 1 Collection" in done.err
    done = cli("catalog", "rebuild", catalog, "--json")
    assert json.loads(done.out) == {
        "catalog": str(catalog),
        "items": 1,
        "collections": 1,
        "dropped": 0,
    }


def test_a_search_with_everything(cli, hrefs, tmp_path):
    cli("catalog", "rebuild", tmp_path / "out")
    asked = (
        *("--bbox", "-99,46.9,-98.73,47", "--datetime", "2024-01", "--source-collection", "s2"),
        *("--filter", "platform = 'north'"),
    )
    assert cli("search", "--catalog", tmp_path / "out", *asked).lines == [hrefs[1]]


def test_nothing_found_is_said(cli, hrefs, tmp_path):
    cli("catalog", "rebuild", tmp_path / "out")
    for place in (("--catalog", tmp_path / "out"), ("--index", tmp_path / "out" / "items.parquet")):
        found = cli("search", *place, "--model", "sam3")
        assert (found.code, found.out) == (0, "")
        assert found.err == f"nothing found: {place[1]} has no features for what was asked\n"


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("search",), 2, "--catalog is missing. Give one of --catalog, --index and --api"),
        (("search", "--catalog", "a", "--api", "b"), 2, "one place to search"),
        (("search", "--index", "a", "--bbox", "1,2,x"), 2, "--bbox takes four numbers"),
        (("search", "--index", "none.parquet"), 65, "no such file"),
        (("search", "--api", "http://127.0.0.1:9", "--model", "sam9"), 78, "unknown model"),
        (("publish", "none.json", "--to", "elsewhere"), 2, "no place to publish to"),
        (("publish", "none.json", "--to", "https://h/catalog.json"), 2, "cannot be published into"),
        (("publish", "none.json", "--to", "catalog.json"), 65, "no such file"),
    ],
)
def test_what_is_wrong_is_said(cli, argv, code, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli(*argv)
    assert (done.code, done.out) == (code, ""), done.err
    assert text in done.err
    assert done.err.count("error: ") == 1


def test_help_keeps_catalog_and_catalogs_apart(cli):
    shown = cli("--help").out
    assert "The static catalog of your own features" in shown
    assert "Profiles of public STAC APIs" in shown


@pytest.mark.usefixtures("fake_model")
def test_encode_publishes_what_it_writes(cli, fake, tmp_path):
    catalog = tmp_path / "all" / "catalog.json"
    done = cli(*fake, "--publish", catalog)
    assert done.code == 0, done.err
    assert cli("search", "--catalog", catalog).lines == done.lines
    assert json.loads(catalog.read_text())["type"] == "Catalog"
    # Nothing to do, and published elsewhere as well: the same Item, so the same digest.
    again = cli(*fake, "--publish", tmp_path / "mine.parquet")
    assert (again.code, again.lines) == (0, done.lines)
    assert "nothing to do" in again.err
    assert cli("search", "--index", tmp_path / "mine.parquet").lines == done.lines
    run = json.loads(next((tmp_path / "out").glob("*/run.json")).read_text())
    assert run["config"]["publish"] == str(catalog)


@pytest.mark.usefixtures("fake_model")
def test_a_wrong_place_is_told_before_anything_is_encoded(cli, fake, tmp_path):
    done = cli(*fake, "--publish", tmp_path / "somewhere")
    assert (done.code, done.out) == (2, "")
    assert "no place to publish to" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fake_model")
def test_an_item_that_cannot_be_published_has_failed(cli, fake, monkeypatch):
    monkeypatch.setattr("geosam_stac.retry.Retries._delay_s", lambda *_: 0.0)
    done = cli(*fake, "--publish", "http://127.0.0.1:9/stac")
    assert (done.code, done.out) == (75, "")
    assert "the API did not answer" in done.err


@pytest.mark.usefixtures("fake_model")
def test_publishing_tries_again_as_the_run_does(cli, fake, monkeypatch):
    waits = []

    def refused(*_: object, timeout: object, **__: object) -> None:
        waits.append(timeout)
        raise requests.ConnectionError

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refused)
    limits = ("--retry-deadline", "0", "--timeout", "3")
    done = cli(*fake, "--publish", "http://127.0.0.1:9/stac", *limits)
    assert done.code == 75
    assert "trying again" not in done.err
    assert waits == [(3.0, 3.0)]
