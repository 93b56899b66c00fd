"""What notebooks show: escaped, in HTML and in plain text."""

from __future__ import annotations

import geosam_stac as gs
from geosam_stac import cards
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
