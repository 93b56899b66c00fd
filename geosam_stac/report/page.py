"""The page: everything of a report in one HTML document that asks no network. Pure.

The same report makes the same bytes. A Content-Security-Policy lets nothing in but `data:`
pictures, the one style and the one script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from geosam_stac.report import drawing, scene
from geosam_stac.report.facts import Failure, Report, Scene
from geosam_stac.report.markup import counted, duration, esc, notice, size, table

PAGE_ROWS = 50


def render(report: Report) -> str:
    """The document."""
    style, script = (
        resources.files("geosam_stac.report").joinpath(name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    anchors = [f"scene-{index}" for index in range(1, len(report.scenes) + 1)]
    title = _title(report)
    body = "".join(
        (
            _head(report, title),
            _notices(report),
            _map(report, anchors),
            _list(report, anchors),
            _failed(report.failures, report.limits.rows),
            _details(report, anchors),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n'
        f'</head>\n<body>\n<a class="skip" href="#main">Skip to the content</a>\n{body}'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _title(report: Report) -> str:
    if len(report.scenes) == 1 and not report.left_out:
        return f"{esc(report.scenes[0].id)} - features"
    return f"{counted(len(report.scenes) + report.left_out, 'scene')} - features"


def _head(report: Report, title: str) -> str:
    scenes = report.scenes
    features = [one.feature_bytes for one in scenes if one.feature_bytes is not None]
    runs = [one.run for one in scenes if one.run is not None]
    models = sorted({one.model for one in scenes})
    newest = max((one.created for one in scenes), default="")
    tiles = [
        ("scenes", "Scenes", f"{len(scenes) + report.left_out:,}", ""),
        ("chips", "Chips encoded", f"{sum(one.chips for one in scenes):,}", ""),
        ("skipped", "Chips skipped", f"{sum(one.skipped for one in scenes):,}", ""),
        ("failed", "Scenes failed", f"{len(report.failures):,}",
         " bad" if report.failures else ""),
        ("bytes", "Features", size(sum(features)) if features else "unknown", ""),
        ("read", "Pixels read",
         size(sum(run.bytes_read or 0 for run in runs)) if runs else "unknown", ""),
        ("time", "Machine time",
         duration(sum(run.seconds.get("total", 0) for run in runs)) if runs else "unknown", ""),
    ]  # fmt: skip
    shown = "".join(
        f'<div class="tile{kind}"><dt>{name}</dt><dd data-fact="{key}">{esc(value)}</dd></div>'
        for key, name, value, kind in tiles
    )
    heading = title.removesuffix(" - features")
    said = f"SAM image features by {esc(', '.join(models))}" if models else "SAM image features"
    return (
        f'<header><p class="kicker">geosam-stac report</p><h1>{heading}</h1>'
        f'<p class="place">{said}, in <span class="href">{esc(report.place)}</span>'
        + (f", the newest of {esc(newest[:16].replace('T', ' '))} UTC" if newest else "")
        + f'</p><dl class="tiles">{shown}</dl></header>\n<main id="main">\n'
    )


def _notices(report: Report) -> str:
    out = []
    random = sum(one.is_random for one in report.scenes)
    if random:
        which = "This scene was" if len(report.scenes) == 1 else f"{counted(random, 'scene')} "
        which += "" if len(report.scenes) == 1 else "was" if random == 1 else "were"
        out.append(
            notice(
                "warning",
                "Random weights.",
                f"{which} encoded by a model that was never trained: these features are good for "
                "trying the pipeline, and for nothing else.",
            )
        )
    if report.left_out:
        out.append(
            notice(
                "warning",
                "Not all scenes.",
                f"The output has {report.left_out:,} scenes more than the "
                f"{report.limits.scenes:,} of this page; its sums are those of the page's.",
            )
        )
    for one in report.scenes:
        if one.details is None:
            for problem in one.problems:
                out.append(notice("error", f"{one.id}:", esc(problem)))
    return "".join(out[:20])


def _map(report: Report, anchors: list[str]) -> str:
    targets = [_target(one, anchor) for one, anchor in zip(report.scenes, anchors, strict=True)]
    drawn = drawing.footprints(report.scenes, targets)
    if not drawn:
        return ""
    some = any(one.skipped for one in report.scenes)
    key = '<span class="key all-key">every chip has features</span>'
    if some:
        key += '<span class="key some-key">some chips were skipped</span>'
    return (
        f'<section aria-labelledby="where"><h2 id="where">Where</h2>{drawn}'
        f'<p class="keys">{key}</p></section>\n'
    )


def _target(one: Scene, anchor: str) -> str:
    return anchor if one.details is not None else f"row-{anchor}"


def _list(report: Report, anchors: list[str]) -> str:
    if len(report.scenes) < 2:
        return ""
    body = ""
    # Each cell says its column too: on a phone a scene is a card, not a line.
    head = ("Scene", "Taken (UTC)", "Model", "Grid", "Chips", "Skipped", "Features", "Time")
    for one, anchor in zip(report.scenes, anchors, strict=True):
        name = esc(one.id)
        cell = name if one.details is None else f'<a href="#{anchor}">{name}</a>'
        total = None if one.run is None else one.run.seconds.get("total")
        cells = (
            (esc(one.moment), "text"), (esc(one.model), "text"),
            (esc(f"{one.crs}, {one.resolution}"), "text"),
            (f"{one.chips:,}", "number"), (f"{one.skipped:,}", "number"),
            (size(one.feature_bytes), "number"), (duration(total), "number"),
        )  # fmt: skip
        columns = "".join(
            f'<td class="{kind}" data-name="{column}">{value}</td>'
            for column, (value, kind) in zip(head[1:], cells, strict=True)
        )
        body += f'<tr id="row-{anchor}"><th scope="row">{cell}</th>{columns}</tr>'
    return (
        '<section aria-labelledby="scenes"><h2 id="scenes">Scenes</h2>'
        f'<div class="pager" data-rows="{PAGE_ROWS}" hidden>'
        '<label>Find <input type="search" autocomplete="off" spellcheck="false"></label>'
        '<button type="button" class="previous">Previous</button>'
        '<span class="at" role="status"></span>'
        '<button type="button" class="next">Next</button></div>'
        + table(
            "All scenes",
            head,
            (),
            numbers=(4, 5, 6, 7),
            attributes=' class="paged"',
            body=body,
        )
        + "</section>\n"
    )


def _failed(failures: tuple[Failure, ...], most: int) -> str:
    if not failures:
        return ""
    rows = (
        (esc(one.name), esc(one.code), esc(one.error) or "No reason is told.")
        for one in failures[:most]
    )
    left = len(failures) - most
    more = f"<p>{left:,} more stand in failed.ndjson.</p>" if left > 0 else ""
    return (
        '<section aria-labelledby="failed"><h2 id="failed">What failed</h2>'
        "<p>Try them again with <code>geosam-stac encode --items failed.ndjson</code>.</p>"
        + table("Scenes that failed", ("Scene", "Exit code", "Why"), rows)
        + f"{more}</section>\n"
    )


def _details(report: Report, anchors: list[str]) -> str:
    shown = [
        (one, anchor)
        for one, anchor in zip(report.scenes, anchors, strict=True)
        if one.details is not None
    ]
    sections = "".join(
        scene.section(one, anchor, is_open=index == 0) for index, (one, anchor) in enumerate(shown)
    )
    rest = len(report.scenes) - len(shown)
    more = ""
    if rest:
        more = (
            f"<p>{counted(rest, 'scene')} more: make a page of one with <code>geosam-stac report "
            "ITEM</code>, or of more of them with <code>--details N</code>.</p>"
        )
    return (
        f'<section aria-labelledby="closer"><h2 id="closer">Chips and pictures</h2>{sections}{more}'
        "</section>\n</main>\n"
    )
