"""The page about an output: what stands on it, that it is safe, and how a browser takes it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import geosam_stac as gs
from geosam_stac import preview
from geosam_stac.errors import DataError
from geosam_stac.report import Limits, gather, render
from geosam_stac.report.drawing import footprints
from geosam_stac.report.markup import duration, esc, size
from tests import rasters
from tests.cli.conftest import cli, fake, item
from tests.servers import s3_endpoint, use_s3
from tests.store.conftest import encoded, pixels

__all__ = ["cli", "encoded", "fake", "item", "pixels", "s3_endpoint"]

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e"


class Page(HTMLParser):
    """Elements of a page with their attributes, its text, and what its script elements hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.facts = "", [], {}
        self._in: str | None = None
        self._fact: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._in = tag
        self.elements.append((tag, dict(attrs)))
        self._fact = dict(attrs).get("data-fact")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = self._fact = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data
        if self._fact:
            self.facts[self._fact] = data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def chips(self) -> dict:
        return json.loads(self.scripts[0])


def page_of(out, **limits) -> Page:
    return Page(render(gather(str(out), Limits(**limits))))


@pytest.fixture
def holed(encoded):
    """One scene of three chips, the one in the middle skipped; the output's folder."""
    data = rasters.values((3, 64, 192), "uint8")
    data[:, :, 64:128] = 0
    return encoded(data, nodata=0, stride=64).parent.parent


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


class TestContent:
    def test_the_numbers(self, holed):
        page = page_of(holed)
        features = gs.open_features(next(holed.iterdir()))
        expected = int(features.manifest["bytes"].sum())
        run = json.loads(features.read_key("run.json"))["run"]
        assert page.facts["scenes"] == "1"
        assert page.facts["chips"] == "2"
        assert page.facts["skipped"] == "1"
        assert page.facts["failed"] == "0"
        assert page.facts["bytes"] == size(expected)
        assert page.facts["read"] == size(run["bytes_read"])
        assert page.facts["time"] == duration(run["seconds"]["total"])
        for said in (
            features.item.id, features.item.properties["geosam:weights_sha256"], "EPSG:32614",
            "10 m a pixel", "no valid pixel", "Random weights.", "sets the pace", "torch",
            "untrained", "image_embed 3 x 4 x 4", "64 px every 64 px",
        ):  # fmt: skip
            assert said in page.text, said

    def test_the_chips_are_where_they_are(self, holed):
        found = page_of(holed).chips()
        assert found["crs"] == "EPSG:32614"
        assert found["affine"] == [10, 0, 500_000, 0, -10, 5_200_000]
        chips = {chip[0]: chip[1:] for chip in found["chips"]}
        assert [chips[name][:4] for name in sorted(chips)] == [
            [0, 0, 64, 64], [0, 64, 64, 64], [0, 128, 64, 64]
        ]  # fmt: skip
        assert chips["chip_000001"][-1] == "no valid pixel"
        features = gs.open_features(next(holed.iterdir()))
        last = chips["chip_000002"]
        assert (last[4], last[5], last[6]) == (0, 2, 100)
        assert last[7] == int(features.manifest["bytes"].iloc[-1])
        assert features.chip_at(last[8], last[9]).id == "chip_000002"

    def test_the_pictures(self, holed):
        page = page_of(holed)
        thumbnail, pca = (image_of(one["href"]) for one in page.named("image"))
        assert thumbnail.size == (192, 64)
        assert pca.size == (12, 4)
        alpha = np.asarray(pca.convert("RGBA"))[..., 3]
        assert (alpha[:, 4:8] == 0).all()
        assert (alpha[:, :4] == 255).all()
        labels = [one["aria-label"] for one in page.named("svg") if one.get("role") == "img"]
        assert "2 chips, 1 chip skipped" in labels[0]
        assert "principal components" in labels[1]

    def test_a_stored_overview_is_shown_and_no_feature_read(self, encoded, pixels, monkeypatch):
        href = encoded(pixels)
        features = gs.open_features(href)
        colours = preview.projection(features)
        path = href.parent / "own.tif"
        preview.cog(features, colours, path)
        preview.attach(features, colours, path.read_bytes())
        (href.parent / features.manifest["feature_href"].iloc[0]).unlink()
        page = page_of(href.parent.parent)
        assert "The overview stored beside the Item" in page.text
        assert [image_of(one["href"]).size for one in page.named("image")][1] == (10, 8)
        assert "Could not be read" not in page.text

    def test_a_damaged_picture_is_told_and_not_shown(self, holed):
        (next(holed.iterdir()) / "thumbnail.png").write_bytes(b"<svg onload=alert(1)>")
        page = page_of(holed)
        assert len(page.named("image")) == 1
        assert "is not the one that was written" in page.text
        assert page.facts["chips"] == "2"

    def test_a_scene_with_too_many_chips_has_no_pca(self, holed):
        page = page_of(holed, pca_chips=1)
        assert len(page.named("image")) == 1
        assert "too many chips to make it here" in page.text

    def test_failed_scenes_stand_with_their_reasons(self, holed):
        lines = [
            {"href": "https://h/i?X-Amz-Signature=secret", "geosam:failed": {"exit_code": 65,
             "error": "an asset is not there"}},
            {"type": "Feature", "id": HOSTILE, "geosam:failed": {"exit_code": 75}},
        ]  # fmt: skip
        text = "\n".join([*map(json.dumps, lines), "no json"])
        (holed / "failed.ndjson").write_text(text)
        page = page_of(holed)
        assert page.facts["failed"] == "3"
        assert "an asset is not there" in page.text
        assert "a line that cannot be read" in page.text
        assert "secret" not in page.text

    def test_several_scenes_are_listed_and_only_some_shown_closer(self, encoded, pixels):
        for index in range(5):
            out = encoded(pixels, name=f"scene-{index}").parent.parent
        page = page_of(out, details=2)
        assert page.facts["scenes"] == "5"
        assert page.facts["chips"] == "60"
        shown = [one for one in page.named("details") if one.get("class") == "scene"]
        assert [("open" in one) for one in shown] == [True, False]
        assert len([one for one in page.named("tr") if one.get("id", "").startswith("row-")]) == 5
        assert "3 scenes more" in page.text
        few = page_of(out, scenes=3)
        assert few.facts["scenes"] == "5"
        assert "2 scenes more than the 3 of this page" in few.text

    def test_one_item_or_its_folder_will_do(self, holed):
        folder = next(holed.iterdir())
        for place in (folder, folder / f"{folder.name}.json"):
            assert page_of(place).facts["chips"] == "2"

    def test_an_empty_folder_is_an_error(self, tmp_path):
        with pytest.raises(DataError, match="no feature Items"):
            gather(str(tmp_path), Limits())

    def test_a_bucket(self, cli, fake_model, fake, s3_endpoint, monkeypatch, tmp_path):
        use_s3(monkeypatch, s3_endpoint)
        fake[-1] = "s3://bucket/report"
        assert cli(*fake).code == 0
        done = cli("report", "s3://bucket/report", "--html", "s3://bucket/pages/page.html")
        assert (done.code, done.lines) == (0, ["s3://bucket/pages/page.html"])
        local = tmp_path / "page.html"
        assert cli("report", "s3://bucket/report", "--html", local).code == 0
        page = Page(local.read_text())
        assert page.facts["chips"] == "4"
        assert len(page.named("image")) == 2


class TestSafety:
    def test_hostile_documents_stay_text(self, holed):
        folder = next(holed.iterdir())
        path = folder / f"{folder.name}.json"
        document = json.loads(path.read_text())
        plain = Page(render(gather(str(holed), Limits())))
        document["id"] = HOSTILE
        document["assets"]["thumbnail"]["title"] = HOSTILE
        for name in ("mlm:name", "processing:lineage", "geosam:weights", "geosam:bands"):
            document["properties"][name] = HOSTILE
        document["properties"]["geosam:features"] = [{"name": HOSTILE, "shape": {HOSTILE: 1}}]
        document["properties"]["geosam:resolution"] = HOSTILE
        document["geometry"] = {"type": HOSTILE, "coordinates": [[HOSTILE]]}
        path.write_text(json.dumps(document))
        (folder / "run.json").write_text(
            json.dumps({"run": {"seconds": {HOSTILE: 1e999, "read": "x"}, "busy": {HOSTILE: 2}},
                        "config": {HOSTILE: HOSTILE}, "environment": [HOSTILE]})
        )  # fmt: skip
        page = page_of(holed)
        assert page.named("img") == []
        assert len(page.scripts) == len(plain.scripts) == 2
        assert page.scripts[1] == plain.scripts[1]
        assert all(not name.startswith("on") for _, found in page.elements for name in found)
        assert "</script><script>alert(1)" in page.text  # as text
        assert "\u202e" not in page.text
        assert "\\u202e" in page.text

    def test_a_hostile_chip_id_does_not_leave_its_script_element(self, holed):
        found = gather(str(holed), Limits())
        chips = found.scenes[0].details.chips
        object.__setattr__(chips, "ids", (HOSTILE, *chips.ids[1:]))
        page = Page(render(found))
        assert len(page.scripts) == 2
        assert page.chips()["chips"][0][0] == HOSTILE

    def test_the_policy_lets_only_this_style_and_script_in(self, holed):
        html = render(gather(str(holed), Limits()))
        policy = next(one["content"] for one in Page(html).named("meta") if "http-equiv" in one)
        style = re.search("<style>(.*?)</style>", html, re.DOTALL)[1]
        script = re.findall("<script>(.*?)</script>", html, re.DOTALL)
        assert len(script) == 1
        for kind, text in (("style", style), ("script", script[0])):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}';" in policy
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert "unsafe" not in policy

    def test_nothing_is_asked_of_a_network(self, holed):
        page = Page(render(gather(str(holed), Limits())))
        for tag, found in page.elements:
            for name in ("src", "href", "srcset", "action", "data", "poster"):
                value = found.get(name)
                assert value is None or value.startswith(("#", "data:")), (tag, value)
            assert "style" not in found
        assert "url(" not in render(gather(str(holed), Limits()))

    def test_the_same_output_makes_the_same_page(self, holed):
        assert render(gather(str(holed), Limits())) == render(gather(str(holed), Limits()))

    def test_text(self):
        assert esc("a\x1b[31m\n<b>\ud800") == "a\\x1b[31m &lt;b&gt;\\ud800"


class TestMap:
    def scene(self, holed, outline):
        import dataclasses

        found = gather(str(holed), Limits(details=0)).scenes[0]
        return dataclasses.replace(found, outline=outline)

    def test_a_footprint_lies_between_its_degrees(self, holed):
        ring = ((10.0, 50.0), (12.0, 50.0), (12.0, 51.0), (10.0, 51.0))
        svg = footprints([self.scene(holed, (ring,))], ["scene-1"])
        x = {text: float(at) for at, text in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]*E)<', svg)}
        path = re.search(r'<path d="(M[^"]*Z)"', svg)[1]
        west = float(path[1:].split()[0])
        assert x["10° E"] - 4 == pytest.approx(west, abs=0.2)
        assert 'href="#scene-1"' in svg

    def test_across_the_antimeridian_it_is_in_one_piece(self, holed):
        rings = (
            ((179.0, 0.0), (180.0, 0.0), (180.0, 1.0), (179.0, 1.0)),
            ((180.0, 0.0), (181.0, 0.0), (181.0, 1.0), (180.0, 1.0)),
        )
        svg = footprints([self.scene(holed, rings)], ["scene-1"])
        assert "179° E" in svg
        assert "179° W" in svg
        xs = [float(x) for x in re.findall(r"[ML]([\d.]+) ", re.search(r'd="(M[^"]*Z)"', svg)[1])]
        assert max(xs) - min(xs) < 720

    def test_no_footprint_no_map(self, holed):
        assert footprints([self.scene(holed, ())], ["scene-1"]) == ""


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(scheme):
    """WCAG 2 AA: 4.5 to 1."""
    from importlib import resources

    css = resources.files("geosam_stac.report").joinpath("page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for text, behind in (
        ("text", "page"), ("text", "card"), ("soft", "page"), ("soft", "card"), ("soft", "sea"),
        ("accent", "page"), ("accent", "card"), ("accent", "accent-soft"), ("bad", "card"),
        ("bad", "bad-soft"), ("warn", "warn-soft"),
    ):  # fmt: skip
        low, high = sorted((luminance(colours[text]), luminance(colours[behind])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
class TestBrowser:
    @pytest.fixture
    def chromium(self, tmp_path):
        def call(page, *options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [
                    CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                    "--disable-dev-shm-usage", "--disable-background-networking",
                    "--disable-component-update", "--disable-sync", "--no-first-run",
                    "--enable-logging=stderr", "--v=0",
                    f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000",
                    f"--log-net-log={tmp_path / 'net.json'}",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                    *options, f"file://{page}",
                ],
                capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip

        return call

    def test_it_loads_clean_and_shows_the_numbers(self, chromium, holed, tmp_path):
        path = tmp_path / "page.html"
        path.write_text(render(gather(str(holed), Limits())))
        shot = tmp_path / "page.png"
        done = chromium(path, "--dump-dom", f"--screenshot={shot}", "--window-size=1000,900")
        assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
        dom = Page(done.stdout)
        assert dom.facts["chips"] == "2"
        assert len(dom.named("image")) == 2
        assert urls_asked(tmp_path / "net.json") == []
        if shot.exists():  # some versions take one of the two
            assert np.asarray(Image.open(shot).convert("L")).std() > 10

    def test_chips_are_picked_and_links_unfold(self, chromium, holed, tmp_path):
        """The page's own script, driven by events that a test script sends."""
        html = render(gather(str(holed), Limits()))
        drive = """<script>
          const viewer = document.querySelector(".viewer");
          const press = (key) => viewer.dispatchEvent(new KeyboardEvent("keydown", {key}));
          press("ArrowRight"); press("ArrowRight");
          document.title = document.querySelector(".readout").textContent;
          const svg = document.querySelectorAll("svg.picture")[1].getBoundingClientRect();
          document.querySelectorAll("svg.picture")[1].dispatchEvent(new PointerEvent(
            "pointermove", {clientX: svg.right - 3, clientY: svg.top + svg.height / 2,
                            bubbles: true}));
        </script>"""
        # The policy would keep this script out, as it keeps out any other: it is left off here.
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
        path = tmp_path / "page.html"
        path.write_text(html.replace("</body>", drive + "</body>"))
        done = chromium(path, "--dump-dom")
        title = re.search("<title>(.*?)</title>", done.stdout)[1]
        assert title.startswith("chip_000001 · row 0, column 1 · 0 % valid")
        assert title.endswith("skipped: no valid pixel")
        readout = re.search(r'class="readout"[^>]*>(.*?)</output>', done.stdout)[1]
        assert readout.startswith("<b>chip_000002</b> · row 0, column 2 · 100 % valid")
        boxes = re.findall(r'class="picked" width="64" height="64" x="128" y="0"', done.stdout)
        assert len(boxes) == 2

    def test_the_policy_keeps_other_scripts_and_all_requests_out(self, chromium, holed, tmp_path):
        html = render(gather(str(holed), Limits()))
        path = tmp_path / "page.html"
        picture = '<img src="http://127.0.0.1:9/x.png">'
        more = f"{picture}<script>document.title = 'in'</script></body>"
        path.write_text(html.replace("</body>", more))
        done = chromium(path, "--dump-dom")
        assert "<title>in</title>" not in done.stdout
        assert urls_asked(tmp_path / "net.json") == []
        assert "Content Security Policy" in done.stderr
        # Without the policy the log would tell of it.
        path.write_text(picture)
        chromium(path, "--dump-dom")
        assert "http://127.0.0.1:9/x.png" in urls_asked(tmp_path / "net.json")

    def test_on_a_phone_nothing_of_the_list_is_cut(self, chromium, holed, tmp_path):
        """Measured in a frame: Chromium's own window has a least width."""
        found = gather(str(holed), Limits(details=1))
        two = type(found)(place=found.place, scenes=found.scenes * 2, failures=(), left_out=0)
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(two))
        drive = """<script>addEventListener("load", () => {
          const table = document.querySelector(".paged");
          const cut = [...table.querySelectorAll("tbody th, td")].filter(
            (cell) => cell.getBoundingClientRect().right > innerWidth - 14);
          const name = getComputedStyle(table.querySelectorAll("td")[4], "::before").content;
          parent.document.title = [innerWidth, cut.length, name].join(" ");
        });</script>"""
        html = html.replace("</body>", drive + "</body>")
        path = tmp_path / "frame.html"
        path.write_text(f'<iframe width="390" height="800" srcdoc="{escape(html)}"></iframe>')
        done = chromium(path, "--dump-dom")
        assert re.search("<title>(.*?)</title>", done.stdout)[1] == '390 0 "Skipped"'

    def test_a_long_list_is_turned_in_pages(self, chromium, holed, tmp_path):
        found = gather(str(holed), Limits(details=1))
        many = type(found)(place=found.place, scenes=found.scenes * 120, failures=(), left_out=0)
        path = tmp_path / "page.html"
        path.write_text(render(many))
        done = chromium(path, "--dump-dom")
        rows = [one for one in Page(done.stdout).named("tr") if one.get("id")]
        assert len(rows) == 120
        assert sum("hidden" not in one for one in rows) == 50
        assert "1 to 50 of 120" in done.stdout


def urls_asked(net_log) -> list[str]:
    """URLs of requests to a network, by Chromium's own log; `file:` and `data:` make none.

    Without those that a new profile makes for itself (its clock, its dictionaries).
    """
    own = r"https?://[a-z0-9.]*\.(google|googleapis|gvt1|gstatic)\.com/"
    urls = re.findall(r'"url":"((?:https?|wss?)://[^"]+)"', net_log.read_text(errors="replace"))
    return [url for url in urls if not re.match(own, url)]
