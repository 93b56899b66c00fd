"""`geosam-stac info`: what an Item has, and what a default encode would make of it.

Reads the Item and, where it does not tell a band's grid or data type, headers; never pixels.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from geosam_stac.cli import console
from geosam_stac.cli.folders import named_item
from geosam_stac.cli.info_text import feature_lines, source_lines
from geosam_stac.cli.inputs import Inputs
from geosam_stac.cli.options import NO_METAVAR, Json, Quiet, Verbose
from geosam_stac.config import EncodeConfig
from geosam_stac.errors import GeosamStacError
from geosam_stac.retry import ONCE, Retries

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from geosam_stac.planning import Plan
    from geosam_stac.sources.headers import Header
    from geosam_stac.sources.hosts import Hosts
    from geosam_stac.sources.profiles import CollectionProfile, Preset, Profile
    from geosam_stac.types import Access, Band

MAX_REASON = 100
# One look at a header must not take minutes where there is no network.
IMPATIENT = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "20",
    "GDAL_HTTP_MAX_RETRY": "0",
}
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def info(
    *,
    item: Annotated[
        str,
        typer.Argument(metavar="ITEM", help="A STAC Item: URL, file, - or a folder of features."),
    ],
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", metavar="NAME", help="The catalog that it is of."),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option("--signer", metavar="NAME", help="How headers are signed, if need be."),
    ] = None,
    anonymous_source: Annotated[
        bool,
        typer.Option(
            "--anonymous-source", metavar=NO_METAVAR, help="Read headers without credentials."
        ),
    ] = False,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            metavar=NO_METAVAR,
            help="Follow hrefs of a remote Item to this machine and private networks.",
        ),
    ] = False,
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """An Item's bands, grids and CRS, and what a default encode would do; a feature Item's facts.

    Reads no pixels, and headers only where the Item leaves a band's grid or data type unsaid.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    inputs = Inputs(item=(item,), catalog=catalog, signer=signer, anonymous_source=anonymous_source)
    from geosam_stac.sources import read_item
    from geosam_stac.sources.guard import guard
    from geosam_stac.storage import read_text

    profile = inputs.profile()
    hosts = inputs.hosts(profile, allow_private=allow_private_hosts)
    found = read_item(named_item(item), read_text=read_text, hosts=hosts)
    if _is_feature_item(found):
        document = _feature_facts(found)
        lines = feature_lines(document)
    else:
        access = _Impatient(inputs.access(profile, os.environ)(found))
        document = _source_facts(found, profile, guard(hosts, found, access), hosts)
        lines = source_lines(document)
    if json_lines:
        console.result_json(document)
        return
    for line in lines:
        console.result(line)


@dataclass(frozen=True)
class _Impatient:
    """An access whose GDAL gives up soon."""

    access: Access

    def sign(self, href: str) -> str:
        return self.access.sign(href)

    def options(self, href: str) -> Mapping[str, str]:
        return {**self.access.options(href), **IMPATIENT}

    def renew(self, href: str) -> bool:
        return self.access.renew(href)


# Source Items


def _source_facts(
    item: pystac.Item, profile: Profile | None, access: Access, hosts: Hosts
) -> dict[str, Any]:
    from geosam_stac.sources.items import self_href

    facts: dict[str, Any] = {"kind": "source", **_identity(item), "href": self_href(item)}
    bands, untold = _bands(item, access)
    if facts["bbox"] is None:
        facts["bbox"] = _bounds(bands)
    many = {band.asset for band in bands if band.index > 1}
    plan = problem = None
    try:
        plan = _default_plan(item, access, hosts, reachable=not untold)
    except GeosamStacError as error:
        problem = str(error)
    presets, default = _fitting(item, profile)
    return facts | {
        "bands": [_band_facts(band, band.asset in many) for band in bands],
        "not_told": untold,
        "catalog": presets[0].catalog if presets else profile.name if profile else None,
        "presets": [preset.name for preset in presets],
        "default_preset": default,
        "encode": _plan_facts(plan) if plan else None,
        "encode_problem": problem,
    }


def _identity(item: pystac.Item) -> dict[str, Any]:
    properties = item.properties
    return {
        "id": item.id,
        "collection": item.collection_id,
        "datetime": properties.get("datetime"),
        "start_datetime": properties.get("start_datetime"),
        "end_datetime": properties.get("end_datetime"),
        "bbox": list(item.bbox) if item.bbox else None,
    }


def _bands(item: pystac.Item, access: Access) -> tuple[list[Band], dict[str, str]]:
    """Every band, headers read where the Item is silent; and why some could not be, by asset."""
    from geosam_stac.sources.bands import list_bands, tells_bands

    bands = list_bands(item)
    silent = {
        band.asset: band.source_href
        for band in bands
        if band.geobox is None or band.dtype is None or not tells_bands(item.assets[band.asset])
    }
    headers, untold = _headers(item, silent, access)
    bands = list_bands(item, counts={key: header.data_bands for key, header in headers.items()})
    return [_completed(band, headers.get(band.asset)) for band in bands], untold


def _bounds(bands: Iterable[Band]) -> list[float] | None:
    """W,S,E,N of the first band whose grid is known."""
    from geosam_stac.footprint import footprint_wgs84

    grid = next((band.geobox for band in bands if band.geobox is not None), None)
    return None if grid is None else [float(value) for value in footprint_wgs84(grid).bounds]


def _headers(
    item: pystac.Item, hrefs: Mapping[str, str], access: Access
) -> tuple[dict[str, Header], dict[str, str]]:
    """Asset key -> header, and asset key -> why there is none; a host that fails is left alone."""
    from geosam_stac.sources.headers import read_header

    headers: dict[str, Header] = {}
    untold: dict[str, str] = {}
    failed: dict[str, str] = {}
    for key, href in hrefs.items():
        host = urlsplit(href).netloc
        if host in failed:
            untold[key] = failed[host]
            continue
        try:
            headers[key] = read_header(href, item=item.id, access=access, retries=Retries(ONCE))
        except GeosamStacError as error:
            untold[key] = error.message
            if error.got and len(error.got) <= MAX_REASON:
                untold[key] += f": {error.got}"
            if host:
                failed[host] = untold[key]
    return headers, untold


def _completed(band: Band, header: Header | None) -> Band:
    if header is None or band.index > len(header.dtypes):
        return band
    in_file = header.nodata[band.index - 1]
    return dataclasses.replace(
        band,
        dtype=band.dtype or header.dtypes[band.index - 1],
        nodata=band.nodata if in_file is None else in_file,
        geobox=band.geobox or header.geobox,
    )


def _band_facts(band: Band, many: bool) -> dict[str, Any]:
    grid = band.geobox
    nodata = band.nodata
    return {
        "key": f"{band.asset}.{band.index}" if many else band.asset,
        "name": band.name,
        "common_name": band.common_name,
        "dtype": band.dtype,
        # As STAC writes it: JSON has no NaN.
        "nodata": nodata if nodata is None or math.isfinite(nodata) else str(nodata),
        "shape": None if grid is None else [int(grid.shape[0]), int(grid.shape[1])],
        "resolution": None if grid is None else _resolution(grid),
        "unit": None if grid is None else _unit(grid),
        "crs": None if grid is None else str(grid.crs),
        "scale": band.scale,
        "offset": band.offset,
        "href": band.href,
    }


def _resolution(grid: GeoBox) -> float:
    # Not of the affine's determinant: 30 m must not become 29.999999999999996.
    return math.hypot(grid.affine.a, grid.affine.d)


def _unit(grid: GeoBox) -> str:
    unit = grid.crs.units[0] if grid.crs is not None else "units"
    return {"metre": "m", "degrees_north": "degrees", "degree": "degrees"}.get(unit, str(unit))


def _default_plan(item: pystac.Item, access: Access, hosts: Hosts, *, reachable: bool) -> Plan:
    """The plan of `encode` without options; opens no file where some could not be opened."""
    from geosam_stac.encoders.registry import find_model
    from geosam_stac.errors import DataError
    from geosam_stac.planning import make_plan
    from geosam_stac.sources import open_scene, select_bands

    if not reachable and any(band.geobox is None for band in select_bands(item, None)):
        raise DataError("the bands' grid is not told by the Item, nor could the header be read")
    config = EncodeConfig()
    scene = open_scene(item, config, read_headers=False, access=lambda _: access, hosts=hosts)
    return make_plan(
        scene,
        config,
        find_model(config.model),
        device="auto",
        precision="auto",
        device_tflops=None,
    )


def _plan_facts(plan: Plan) -> dict[str, Any]:
    names = (
        *("bands", "crs", "resolution", "unit", "width", "height", "rows", "cols", "chips"),
        *("chip_px", "stride_px", "model", "notices"),
    )
    document = plan.as_dict()
    return {name: document[name] for name in names}


def _fitting(item: pystac.Item, profile: Profile | None) -> tuple[list[Preset], str | None]:
    """The presets of the Item's collection whose bands it has, and the default one's name."""
    known: CollectionProfile | None
    if profile is not None:
        known = profile.collections.get(str(item.collection_id))
    else:
        from geosam_stac.sources.profiles import profile_of

        found = profile_of(item)
        known = found[1] if found else None
    if known is None:
        return [], None
    fitting = [preset for preset in known.presets.values() if _fits(item, preset)]
    names = [preset.name for preset in fitting]
    return fitting, known.default if known.default in names else None


def _fits(item: pystac.Item, preset: Preset) -> bool:
    from geosam_stac.derive import Expression, Mask
    from geosam_stac.sources.bands import named_bands, select_bands

    try:
        here = preset.for_item(item)
        if here.bands:
            select_bands(item, here.bands)
        elif here.expression:
            named_bands(item, dict.fromkeys(Expression.parse(here.expression).bands.values()))
        elif here.index:
            named_bands(item, dict.fromkeys(Expression.index(here.index).bands.values()))
        if here.mask:
            named_bands(item, [Mask.parse(here.mask).band])
    except GeosamStacError:
        return False
    return True


# Our own Items


def _is_feature_item(item: pystac.Item) -> bool:
    return "mlm:name" in item.properties and any(
        name.startswith("geosam:") for name in item.properties
    )


def _feature_facts(item: pystac.Item) -> dict[str, Any]:
    from geosam_stac.hrefs import absolute, unsigned
    from geosam_stac.sources.items import self_href

    said = item.properties
    manifest = item.assets.get("manifest")
    sources = [
        link.get_target_str()
        for link in item.links
        if link.rel == "derived_from" and "mlm:name" not in link.extra_fields
    ]
    names = (
        *("resolution", "chip_size", "stride", "bands", "expression", "index", "mask", "scaled"),
        *("groupby", "dtype", "precision", "value_range", "weights", "weights_sha256"),
        *("chips_skipped", "chips_failed", "source_collections", "source_items", "features"),
    )
    chips = said.get("table:row_count")
    href = self_href(item)
    return {
        "kind": "features",
        **_identity(item),
        "href": href,
        "model": said.get("mlm:name"),
        "crs": said.get("proj:code"),
        "chips": chips,
        **{name: said.get(f"geosam:{name}") for name in names},
        "feature_bytes": _feature_bytes(said, chips),
        "source_hrefs": [unsigned(source) for source in sources if source],
        "manifest": None if manifest is None else unsigned(absolute(manifest.href, href)),
        "manifest_bytes": None if manifest is None else manifest.extra_fields.get("file:size"),
        "lineage": said.get("processing:lineage"),
    }


def _feature_bytes(said: Mapping[str, Any], chips: object) -> int | None:
    """Bytes of all tensors, by their shapes; None where the Item does not tell them."""
    itemsize = DTYPE_BYTES.get(str(said.get("geosam:dtype")))
    try:
        values = sum(math.prod(tensor["shape"]) for tensor in said["geosam:features"])
    except (KeyError, TypeError):
        return None
    if itemsize is None or not isinstance(chips, int):
        return None
    return int(values * itemsize * chips)
