"""One scene of the page: its pictures, its chips, how it was made and how long that took. Pure."""

from __future__ import annotations

from geosam_stac.report.drawing import chips_json, chips_over
from geosam_stac.report.facts import Details, Run, Scene
from geosam_stac.report.markup import counted, duration, esc, facts, notice, size, table

_HINT = "Point at a chip, or touch it. With the keyboard: focus the pictures, then the arrow keys."


def section(scene: Scene, anchor: str, *, is_open: bool) -> str:
    """A scene that has details, folded unless `is_open`."""
    details = scene.details
    assert details is not None
    counts = counted(scene.chips, "chip") + (f", {scene.skipped:,} skipped" * (scene.skipped > 0))
    parts = [
        *(notice("error", "Could not be read:", esc(problem)) for problem in scene.problems),
        _pictures(scene, details),
        f'<div class="columns"><div><h4>How it was made</h4>{_provenance(scene)}</div>'
        f"<div><h4>Time</h4>{_times(scene.run)}<h4>Size</h4>{_sizes(scene)}</div></div>",
        _skipped(scene, details),
        _config(scene.run),
    ]
    return (
        f'<details class="scene" id="{anchor}"{" open" * is_open}>'
        f'<summary><h3>{esc(scene.id)}</h3><span class="tag">{esc(scene.model)}</span>'
        f'<span class="tag">{counts}</span>{_random_tag(scene)}</summary>'
        f'<div class="inside">{"".join(parts)}</div></details>'
    )


def _random_tag(scene: Scene) -> str:
    return '<span class="tag bad">random weights</span>' if scene.is_random else ""


def _pictures(scene: Scene, details: Details) -> str:
    name = scene.id
    skipped = f", {counted(scene.skipped, 'chip')} skipped" if scene.skipped else ""
    figures = []
    for title, picture, alt, missing in (
        ("Thumbnail", details.thumbnail,
         f"Thumbnail of {name} with the outlines of its {counted(scene.chips, 'chip')}{skipped}",
         "There is no thumbnail."),
        ("Embeddings (PCA)", details.pca,
         f"Image embeddings of {name} as colours, their three principal components",
         f"No picture of the embeddings. {details.no_pca}"),
    ):  # fmt: skip
        if picture is None:
            shown = f'<p class="missing">{esc(missing)}</p>'
            note = ""
        else:
            shown = chips_over(
                picture, details.chips, alt, outlines=picture is not details.thumbnail
            )
            note = picture.note
        figures.append(
            f"<figure>{shown}<figcaption><b>{title}</b> {esc(note)}</figcaption></figure>"
        )
    if details.chips is None:
        return f'<div class="pictures">{"".join(figures)}</div>'
    key = '<span class="key chip-key">chip</span>'
    if details.chips.reasons:
        key += '<span class="key skipped-key">skipped chip</span>'
    return (
        f'<div class="viewer" role="group" tabindex="0" '
        f'aria-label="Chips of {esc(name)}: the arrow keys go from chip to chip">'
        f'<div class="pictures">{"".join(figures)}</div></div>'
        f'<div class="under"><output class="readout" aria-live="polite">{_HINT}</output>'
        f'<span class="keys">{key}</span></div>'
        f'<script type="application/json" class="chips">{chips_json(details.chips, scene.crs)}'
        "</script>"
    )


def _provenance(scene: Scene) -> str:
    sources = "<br>".join(
        f"{esc(name or href)}" + (f' <span class="href">{esc(href)}</span>' * bool(name and href))
        for name, href in scene.sources[:10]
    )
    if len(scene.sources) > 10:
        sources += f"<br>and {len(scene.sources) - 10:,} more"
    weights = "random, never trained" if scene.is_random else scene.weights
    run = scene.run
    return (f'<p class="lineage">{esc(scene.lineage)}</p>' * bool(scene.lineage)) + facts(
        {
            "Source": sources,
            "Taken": esc(scene.moment and f"{scene.moment} UTC"),
            "Model": esc(scene.model),
            "Weights": f"<strong>{esc(weights)}</strong>" if scene.is_random else esc(weights),
            "sha256 of the weights": f"<code>{esc(scene.weights_sha256)}</code>",
            "Grid": esc(f"{scene.crs}, {scene.resolution} a pixel"),
            **{name: esc(value) for name, value in scene.facts.items()},
            "Written": esc(scene.created),
            "Item": f'<span class="href">{esc(scene.href)}</span>',
            "Device": "" if run is None else esc(f"{run.device}, batches of {run.batch_size}"),
        }
    )


def _times(run: Run | None) -> str:
    if run is None:
        return '<p class="missing">There is no run.json, which would tell.</p>'
    rows = []
    for name, seconds in run.seconds.items():
        if name == "total":
            continue
        busy = run.busy.get(name)
        pace = ' <span class="tag">sets the pace</span>' if name == run.slowest else ""
        rows.append((esc(name) + pace, duration(seconds), _bar(busy)))
    out = table("Stages of the run", ("Stage", "At work", "Busy"), rows, numbers=(1,))
    total = run.seconds.get("total")
    retries = ", ".join(f"{int(many):,} {name}" for name, many in sorted(run.retries.items()))
    return out + facts(
        {
            "In all": duration(total) if total is not None else "",
            "Pixels read": size(run.bytes_read) if run.bytes_read is not None else "",
            "Tried again": esc(retries),
        }
    )


def _bar(fraction: float | None) -> str:
    if fraction is None:
        return ""
    percent = 100 * min(1.0, max(0.0, fraction))
    return (
        '<span class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="whole" width="100" height="8"/><rect width="{percent:.1f}" height="8"/>'
        f"</svg>{percent:.0f} %</span>"
    )


def _sizes(scene: Scene) -> str:
    each = None
    if scene.feature_bytes and scene.chips:
        each = f" ({size(scene.feature_bytes / scene.chips)} a chip)"
    return facts(
        {
            "Features": esc(size(scene.feature_bytes)) + (each or ""),
            **{name: size(value) for name, value in scene.files.items() if value},
        }
    )


def _skipped(scene: Scene, details: Details) -> str:
    if not details.skipped:
        return ""
    counts = "; ".join(f"{counted(many, 'chip')}: {why}" for why, many in details.reasons.items())
    rows = (
        (esc(one.id), f"{one.row}", f"{one.col}", esc(one.reason), f"{100 * one.valid:.0f} %")
        for one in details.skipped
    )
    shown = len(details.skipped)
    caption = "Skipped chips" + (
        f", the first {shown:,} of {scene.skipped:,}" if scene.skipped > shown else ""
    )
    return (
        f"<h4>Skipped chips</h4><p>{esc(counts)}</p><details><summary>Show them</summary>"
        + table(caption, ("Chip", "Row", "Column", "Reason", "Valid"), rows, numbers=(1, 2, 4))
        + "</details>"
    )


def _config(run: Run | None) -> str:
    if run is None:
        return ""
    rows = [
        (esc(name), f"<code>{esc(value)}</code>" if value else "", esc(run.given.get(name, "")))
        for name, value in sorted(run.config.items(), key=lambda one: one[0] not in run.given)
    ]
    versions = [
        ("Python", esc(run.python)),
        *((esc(name), esc(version)) for name, version in sorted(run.software.items())[:50]),
        ("Platform", esc(run.platform)),
    ]
    return (
        "<details><summary>Options and software</summary>"
        '<div class="columns"><div>'
        + table("Options in force", ("Option", "Value", "Given by"), rows)
        + "</div><div>"
        + table("Software", ("Package", "Version"), versions)
        + "</div></div></details>"
    )
