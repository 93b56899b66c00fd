"""`geosam-stac catalogs`: what it prints, at 80 and 120 columns and as JSON."""

from __future__ import annotations

import json

import pytest

from geosam_stac.cli.catalogs import app
from geosam_stac.cli.guard import run
from geosam_stac.sources.profiles import list_profiles, load_profile


def catalogs(capsys, *argv):
    code = run(app, argv)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", list_profiles())
def test_show_says_it_all_and_fits(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = catalogs(capsys, "show", name)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    text = "".join(out.split())
    profile = load_profile(name)
    assert profile.url in text
    for collection in profile.collections.values():
        assert collection.id in text
        assert any(line.startswith(collection.default + " *") for line in lines)
        for preset in collection.presets.values():
            said = ",".join(preset.bands) if preset.bands else preset.expression
            assert "".join(said.split()) in text
            assert preset.value_range_text in text
            assert "".join((preset.mask or "").split()) in text
            for source in preset.sources.values():
                assert "".join(source.split()) in text


def test_show_one_collection(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = catalogs(capsys, "show", "earth-search", "--collection", "landsat-c2-l2")
    assert code == 0
    assert "landsat-c2-l2: Landsat" in out
    assert "AWS_REQUEST_PAYER=requester" in out
    assert "sentinel-2-c1-l2a: Sentinel-2" not in out


def test_show_variants(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = catalogs(capsys, "show", "planetary-computer", "--collection", "sentinel-2-l2a")
    assert "where s2:processing_baseline < 4" in out
    assert "0,3000" in out
    assert "1000,4000" in out


def test_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = catalogs(capsys, "list")
    assert code == 0
    first = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert first == ["catalog", *list_profiles()]


def test_json(capsys):
    _, out, _ = catalogs(capsys, "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == list(list_profiles())
    _, out, _ = catalogs(capsys, "show", "nasa-cmr", "--json")
    document = json.loads(out)
    preset = document["collections"]["HLSL30_2.0"]["presets"]["true-color"]
    assert preset["bands"] == ["B04", "B03", "B02"]
    assert preset["value_range"] == [0, 3000]
    assert document["token_hosts"] == ["data.lpdaac.earthdatacloud.nasa.gov"]
    _, out, _ = catalogs(capsys, "show", "digital-earth-africa", "--collection", "s1_rtc", "--json")
    assert list(json.loads(out)["collections"]) == ["s1_rtc"]


def test_unknown_names(capsys):
    code, out, err = catalogs(capsys, "show", "earth-serch")
    assert (code, out) == (78, "")
    assert "Did you mean 'earth-search'" in err
    code, _, err = catalogs(capsys, "show", "earth-search", "--collection", "naips")
    assert code == 78
    assert "Did you mean 'naip'" in err
