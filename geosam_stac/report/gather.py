"""Reading an output for its report: Items, tables, run.json, failed.ndjson. Opens no raster.

What of a scene cannot be read is a line of its report; what of the output cannot, an error.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pystac
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError

from geosam_stac import hrefs
from geosam_stac.catalog.members import RESERVED, is_feature_item
from geosam_stac.catalog.parallel import in_parallel
from geosam_stac.errors import DataError, GeosamStacError
from geosam_stac.report import pictures
from geosam_stac.report.facts import (
    Chips,
    Details,
    Failure,
    Limits,
    Picture,
    Report,
    Run,
    Scene,
    Skipped,
    count,
    listed,
    mapping,
    number,
    text,
)
from geosam_stac.store import FeatureItem, open_item
from geosam_stac.versioned import VersionedStore

FAILED = "failed.ndjson"
STAGES = ("read", "encode", "write")
OUTLINE_POINTS = 60
_MEMBER = "geosam:failed"


def gather(out: str, limits: Limits) -> Report:
    """Read an output.

    Parameters
    ----------
    out
        The `--out` of encode, local or on a bucket; or one Item, or its folder.
    limits
        How much of it.

    Raises
    ------
    DataError
        There is nothing of ours.
    TemporaryError, StorageError, ConfigurationError
        The place cannot be read.
    """
    if out.endswith(".json") or out.lower().startswith(("http://", "https://")):
        item = open_item(out)
        return _report(hrefs.unsigned(out), [item], [], 0, limits)
    store = VersionedStore(out)
    folders = [name for name in store.folders() if name not in RESERVED]
    kept, rest = folders[: limits.scenes], folders[limits.scenes :]
    found = in_parallel(lambda name: _item(store, f"{name}/{name}.json"), kept)
    failures = _failures(store)
    items = [one for one in found if isinstance(one, pystac.Item)]
    failures += [one for one in found if isinstance(one, Failure)]
    if not items and not failures:
        own = store.url.rpartition("/")[2]
        single = _item(store, f"{own}.json")
        if not isinstance(single, pystac.Item):
            raise DataError(
                "there are no feature Items here",
                href=hrefs.unsigned(store.url),
                expected="the --out of `geosam-stac encode`, or a feature Item",
                hint="Encode something first: geosam-stac encode --item ... --out ...",
            )
        items = [single]
    return _report(store.url, items, failures, len(rest), limits)


def _report(
    place: str,
    items: list[pystac.Item],
    failures: list[Failure],
    left_out: int,
    limits: Limits,
) -> Report:
    items = sorted(items, key=lambda item: item.id)
    # The tables of scenes that are only listed are dropped as soon as they are counted.
    shown = [(item, index < limits.details) for index, item in enumerate(items)]
    scenes = []
    left = limits
    for scene, features in in_parallel(lambda pair: _scene(*pair), shown):
        if features is None:
            scenes.append(scene)
            continue
        details, problems, read = _details(features, left, len(items))
        drawn = 0 if details.chips is None else len(details.chips.ids)
        left = dataclasses.replace(left, chips=left.chips - drawn, pca_chips=left.pca_chips - read)
        scenes.append(
            dataclasses.replace(scene, details=details, problems=(*scene.problems, *problems))
        )
    return Report(
        place=place,
        scenes=tuple(scenes),
        failures=tuple(failures),
        left_out=left_out,
        limits=limits,
    )


def _item(store: VersionedStore, key: str) -> pystac.Item | Failure | None:
    """The feature Item of a scene's folder; None where there is none, as of a run in progress."""
    data = store.read(key)
    if data is None:
        return None
    href = store.href(key)
    try:
        document = json.loads(data)
        if not is_feature_item(document):
            return None
        return pystac.Item.from_dict(document, href=href, preserve_dict=False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pystac.STACError):
        return Failure(name=key, code="65", error="The Item's document cannot be read.")


def _failures(store: VersionedStore) -> list[Failure]:
    """The lines of failed.ndjson."""
    data = store.read(FAILED)
    found = []
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        try:
            document = mapping(json.loads(line))
        except (ValueError, RecursionError):
            document = {}
        said = mapping(document.get(_MEMBER))
        name = document.get("id") or document.get("href") or "a line that cannot be read"
        found.append(
            Failure(
                name=hrefs.unsigned(text(name)),
                code=text(said.get("exit_code")),
                error=hrefs.without_signatures(text(said.get("error"))),
            )
        )
    return found


def _scene(item: pystac.Item, keep: bool) -> tuple[Scene, FeatureItem | None]:
    """A scene without its details, and its features: None if not to keep, or not to be had."""
    problems = []
    features: FeatureItem | None = None
    feature_bytes: int | None = None
    run: Run | None = None
    try:
        features = FeatureItem(item)
        run = _run(features)
    except GeosamStacError as error:
        problems.append(_said(error))
    if features is not None:
        try:
            feature_bytes = int(features.manifest["bytes"].sum())
        except GeosamStacError as error:
            problems.append(_said(error))
            features = None
    said = item.properties
    scene = Scene(
        id=text(item.id),
        href=hrefs.unsigned(text(item.get_self_href())),
        model=text(said.get("mlm:name")),
        weights=text(said.get("geosam:weights")),
        weights_sha256=text(said.get("geosam:weights_sha256")),
        crs=text(said.get("proj:code")) or "a CRS of its own",
        resolution=_resolution(said),
        moment=_moment(item),
        created=text(said.get("created")),
        lineage=text(said.get("processing:lineage")),
        sources=_sources(item),
        facts=_facts(said),
        chips=count(said.get("table:row_count")),
        skipped=count(said.get("geosam:chips_skipped")),
        failed=count(said.get("geosam:chips_failed")),
        feature_bytes=feature_bytes,
        files={
            text(asset.title or name): count(asset.extra_fields.get("file:size"))
            for name, asset in list(item.assets.items())[:20]
        },
        outline=_outline(item),
        run=run,
        problems=tuple(problems),
    )
    return scene, features if keep else None


def _said(error: GeosamStacError) -> str:
    return hrefs.without_signatures(text(str(error)))


def _resolution(said: Mapping[str, Any]) -> str:
    """Size of a pixel with the unit of the CRS."""
    size = number(said.get("geosam:resolution"))
    if size is None:
        return ""
    try:
        unit = CRS.from_user_input(text(said.get("proj:code"))).axis_info[0].unit_name
    except (CRSError, IndexError):
        return text(size)
    return f"{text(size)} {'m' if unit == 'metre' else unit + 's'}"


def _moment(item: pystac.Item) -> str:
    """The source's moment or interval, as dates and times of UTC."""
    if item.datetime is not None:
        return item.datetime.strftime("%Y-%m-%d %H:%M")
    ends = (item.properties.get("start_datetime"), item.properties.get("end_datetime"))
    return " to ".join(text(end)[:16].replace("T", " ") for end in ends if end)


def _sources(item: pystac.Item) -> tuple[tuple[str, str], ...]:
    """Ids of the source Items with their hrefs, as far as the Item links to them."""
    ids = [text(name) for name in listed(item.properties.get("geosam:source_items"))]
    links = [
        hrefs.unsigned(text(link.get_target_str()))
        for link in item.links
        if link.rel == "derived_from" and "mlm:name" not in link.extra_fields
    ]
    return tuple(itertools.islice(itertools.zip_longest(ids, links, fillvalue=""), 100))


def _facts(said: Mapping[str, Any]) -> dict[str, str]:
    """How the features were made, in the order in which it is shown."""
    limits = listed(said.get("geosam:value_range"))
    tensors = [
        f"{text(one.get('name'))} {' x '.join(map(text, listed(one.get('shape'))))}"
        for one in map(mapping, listed(said.get("geosam:features")))
    ]
    chip_px = text(said.get("geosam:chip_size"))
    found = {
        "Collections": text(said.get("geosam:source_collections")),
        "Bands": text(said.get("geosam:bands")),
        "Expression": text(said.get("geosam:expression")),
        "Index": text(said.get("geosam:index")),
        "Mask": text(said.get("geosam:mask")),
        "Grouped by": text(said.get("geosam:groupby")),
        "Values": f"{' to '.join(map(text, limits))} become 0 to 255"
        if limits
        else "8 bit, as they are",
        "Chips": f"{chip_px} px every {text(said.get('geosam:stride'))} px" if chip_px else "",
        "Features": "; ".join(tensors),
        "Stored as": ", ".join(
            filter(None, (text(said.get("geosam:dtype")), text(said.get("geosam:format"))))
        ),
        "Computed in": text(said.get("geosam:precision")),
        "Config": text(said.get("geosam:config_hash")),
    }
    return {name: value for name, value in found.items() if value}


def _outline(item: pystac.Item) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Rings of the footprint, coarse; west of the antimeridian they run on beyond 180."""
    try:
        shape = shapely.geometry.shape(item.geometry)
        parts = [part for part in shapely.get_parts(shape) if isinstance(part, shapely.Polygon)]
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, ShapelyError):
        return ()
    bounds = [part.bounds for part in parts if not part.is_empty]
    split = any(b[2] >= 180 - 1e-6 for b in bounds) and any(b[0] <= -180 + 1e-6 for b in bounds)
    rings = []
    for part in parts[:20]:
        ring = part.exterior
        size = max(ring.bounds[2] - ring.bounds[0], ring.bounds[3] - ring.bounds[1])
        ring = ring.simplify(size / 500)
        points = [(float(x), float(y)) for x, y, *_ in ring.coords[:-1]][:OUTLINE_POINTS]
        if not all(-540 <= x <= 540 and -90 <= y <= 90 for x, y in points):  # NaN, too
            continue
        if split and all(x <= 0 for x, _ in points):
            points = [(x + 360, y) for x, y in points]
        rings.append(tuple(points))
    return tuple(rings)


def _run(features: FeatureItem) -> Run | None:
    """What run.json says; None where there is none: it is no part of the features."""
    try:
        document = mapping(json.loads(features.read_key("run.json")))
    except (DataError, ValueError, RecursionError):
        return None
    run, environment = mapping(document.get("run")), mapping(document.get("environment"))
    config = mapping(document.get("config"))
    seconds, busy = _numbers(run.get("seconds")), _numbers(run.get("busy"))
    # run.json is sorted by name; the stages follow each other as a chip goes through them.
    order = sorted(seconds, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    return Run(
        device=text(run.get("device")),
        batch_size=text(run.get("batch_size")),
        bytes_read=number(run.get("bytes_read")),
        seconds={name: seconds[name] for name in order},
        busy=busy,
        retries=_numbers(run.get("retries")),
        config={text(k): hrefs.unsigned(_option(v)) for k, v in sorted(config.items())[:200]},
        given={text(k): text(v) for k, v in mapping(document.get("config_sources")).items()},
        python=text(environment.get("python")),
        platform=text(environment.get("platform")),
        software={text(k): text(v) for k, v in mapping(environment.get("software")).items()},
    )


def _option(value: object) -> str:
    if value is None:
        return ""
    return text(json.dumps(value)) if isinstance(value, bool | dict) else text(value)


def _numbers(value: object) -> dict[str, float]:
    found = ((text(name), number(one)) for name, one in list(mapping(value).items())[:20])
    return {name: one for name, one in found if one is not None}


# What only some scenes have


def _details(features: FeatureItem, limits: Limits, scenes: int) -> tuple[Details, list[str], int]:
    """Chips and pictures of a scene, what went wrong, and of how many chips features were read."""
    problems: list[str] = []
    chips: Chips | None = None
    reasons: dict[str, int] = {}
    skipped: tuple[Skipped, ...] = ()
    try:
        table = features.skipped
        counts = table["reason"].value_counts()
        reasons = {text(name): int(many) for name, many in sorted(counts.items())[:20]}
        skipped = tuple(itertools.islice(_skipped(table), limits.rows))
        if len(features.manifest) + len(table) <= limits.chips:
            chips = _chips(features)
        else:
            problems.append("Its chips are not drawn: the page would grow too large.")
    except GeosamStacError as error:
        problems.append(_said(error))
    side = pictures.side_px(min(scenes, limits.details))
    thumbnail: Picture | None = None
    pca: Picture | None = None
    no_pca, read = "", 0
    try:
        thumbnail = pictures.thumbnail(features, side)
    except GeosamStacError as error:
        problems.append(_said(error))
    try:
        pca, no_pca, read = pictures.embeddings(features, side, limits.pca_chips)
    except GeosamStacError as error:
        no_pca = "It could not be made."
        problems.append(_said(error))
    details = Details(
        chips=chips,
        thumbnail=thumbnail,
        pca=pca,
        no_pca=no_pca,
        skipped=skipped,
        reasons=reasons,
    )
    return details, problems, read


def _skipped(table: Any) -> Iterator[Skipped]:
    for row in table.itertuples():
        yield Skipped(
            id=text(row.chip_id),
            row=int(row.row),
            col=int(row.col),
            reason=text(row.reason),
            valid=float(row.valid_fraction),
        )


def _chips(features: FeatureItem) -> Chips:
    import numpy as np

    index, table, without = features.index, features.manifest, features.skipped
    windows = np.vstack([index.windows, index.skipped_windows])
    affine = index.geobox.affine
    cols = windows[:, 1] + windows[:, 3] / 2
    rows = windows[:, 0] + windows[:, 2] / 2
    to_lonlat = Transformer.from_crs(index.crs.proj, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(
        affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f
    )

    def both(name: str) -> Any:
        return np.concatenate([table[name].to_numpy(), without[name].to_numpy()])

    return Chips(
        shape=(int(index.geobox.shape[0]), int(index.geobox.shape[1])),
        affine=tuple(float(value) for value in affine[:6]),
        ids=tuple(text(name) for name in both("chip_id")),
        windows=windows,
        centres=np.column_stack([lon, lat]),
        places=np.column_stack([both("row"), both("col")]).astype(np.int64),
        valid=both("valid_fraction").astype(np.float64),
        sizes=np.concatenate(
            [table["bytes"].to_numpy(), np.zeros(len(without), dtype=np.int64)]
        ).astype(np.int64),
        reasons=tuple(text(reason) for reason in without["reason"]),
    )
