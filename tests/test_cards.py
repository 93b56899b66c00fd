"""What notebooks show: escaped, in HTML and in plain text."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pystac

import geosam_stac as gs
from geosam_stac import cards
from geosam_stac.pipeline import encode_scene
from tests import fakes
from tests.store.conftest import encoded, pixels

__all__ = ["encoded", "pixels"]

HOSTILE = "<img src=x onerror='alert(1)'>\"&\x1b[31m"


def test_everything_is_escaped():
    html = cards.card(HOSTILE, {HOSTILE: HOSTILE}, png=b"png")
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=&#x27;") == 4
    assert html.count("<img ") == 1
    assert "src='data:image/png;base64,cG5n'" in html
    assert "\x1b" not in cards.plain(HOSTILE, {HOSTILE: HOSTILE})


def test_a_scene_shows_its_facts_and_its_thumbnail(encoded, pixels):
    features = gs.open_features(encoded(pixels))
    html, text = features._repr_html_(), repr(features)
    for fact in ("sam2.1-hiera-tiny", "EPSG:32614", "12"):
        assert fact in html
        assert fact in text
    assert "src='data:image/png;base64," in html


def test_a_scene_without_its_thumbnail_is_shown_all_the_same(encoded, pixels):
    href = encoded(pixels)
    (href.parent / "thumbnail.png").unlink()
    html = gs.open_features(href)._repr_html_()
    assert "<img" not in html
    assert "EPSG:32614" in html


def test_a_hostile_id_stays_text(encoded, pixels):
    features = gs.open_features(encoded(pixels))
    features.item.id = HOSTILE
    assert "<img src=x" not in features._repr_html_()
    assert "\x1b" not in repr(features)


def test_a_chip_shows_its_place(encoded, pixels):
    chip = next(gs.open_features(encoded(pixels)).chips())
    html, text = chip._repr_html_(), repr(chip)
    for fact in ("chip_000000", "EPSG:32614", "64 x 64 px", "100 %"):
        assert fact in html
        assert fact in text


def result_of(**fields):
    counts = {"chips_encoded": 4, "chips_resumed": 2, "chips_skipped": 0, "chips_failed": 0}
    item = pystac.Item("scene_x", None, None, datetime(2026, 1, 1, tzinfo=UTC), {})
    item.properties |= {"mlm:name": "sam3", "proj:code": "EPSG:32614"}
    sizes = {"bytes_read": 2_000_000, "bytes_written": 31_500_000}
    given = {"item": item, "href": "/out/x.json", "seconds": {"total": 12.34}, "busy": {}}
    return gs.EncodeResult(**(counts | sizes | given | fields))


def test_a_result_shows_its_counts_and_sizes():
    result = result_of(retries={"read": 3})
    html, text = result._repr_html_(), repr(result)
    for fact in ("sam3", "EPSG:32614", "4 encoded, 2 there already", "2.0 MB", "31.5 MB", "12.3 s",
                 "3 read", "/out/x.json"):  # fmt: skip
        assert fact in html
        assert fact in text
    assert "skipped" not in text
    assert "<img" not in html


def test_a_result_has_the_thumbnail_that_was_written(encoded, pixels, tmp_path):
    href = encoded(pixels)
    with fakes.fake_session(tmp_path / "again") as session:
        result = encode_scene(session, session.scene(str(tmp_path / "scene.json")), session.config)
    written = (Path(result.href).parent / "thumbnail.png").read_bytes()
    assert result.thumbnail == written
    assert cards.data_uri(written) in result._repr_html_()
    assert href.name == Path(result.href).name


def test_a_hostile_result_stays_text():
    result = result_of(href=HOSTILE)
    result.item.id = HOSTILE
    assert "<img src=x" not in result._repr_html_()
    assert "\x1b" not in repr(result)


def test_a_manifest_is_shown_by_geopandas_escaped(encoded, pixels):
    table = gs.open_features(encoded(pixels)).manifest
    table.loc[0, "source_path"] = "<script>"
    html = table[["chip_id", "source_path"]]._repr_html_()
    assert "chip_000000" in html
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
