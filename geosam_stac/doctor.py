"""What this machine has of what a run needs. Reads the environment it is given; shows no secret."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from geosam_stac import provenance
from geosam_stac.encoders import devices
from geosam_stac.encoders.checkpoints import cached_path, hugging_face_token
from geosam_stac.encoders.registry import MODELS
from geosam_stac.errors import ConfigurationError, GeosamStacError
from geosam_stac.hrefs import unsigned
from geosam_stac.storage import Store

# Beside the versions that a run records: what reads, projects and stores.
VERSIONS = (*provenance.PACKAGES, "pyproj", "pystac", "pystac-client", "fsspec", "s3fs", "gcsfs")
# What cloud-optimized imagery comes as, and what a preview is written as.
DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "VRT")
# Variables that hold, or name, credentials; only that they are there is told.
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_ENDPOINT_URL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GEOSAM_STAC_API_TOKEN",
    "GEOSAM_STAC_API_HEADERS",
    "PC_SDK_SUBSCRIPTION_KEY",
)
FILES = {
    "AWS": "~/.aws/credentials",
    "Google": "~/.config/gcloud/application_default_credentials.json",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at. `error` is why it is not as it must be, None where it is."""

    name: str
    found: str
    error: GeosamStacError | None = None


def examine(
    environ: Mapping[str, str], *, cache_dir: Path, device: str = "auto", out: str | None = None
) -> Iterator[Check]:
    """Look at versions, GDAL, devices, weights, credentials and the output store, one by one.

    Parameters
    ----------
    environ
        The environment whose credentials are looked for; their values are never part of a Check.
    cache_dir
        Where checkpoints are kept.
    device
        The device that must be there, as `EncodeConfig.device`.
    out
        An output location that must be writable: a small object is written and deleted.
    """
    versions = provenance.software(VERSIONS)
    yield Check(name="python", found=f"{platform.python_version()} on {platform.platform()}")
    yield Check(name="packages", found=", ".join(f"{name} {has}" for name, has in versions.items()))
    yield _gdal()
    yield from _devices(device)
    fetched = [entry.name for entry in MODELS if cached_path(entry, cache_dir).is_file()]
    yield Check(name="weights", found=f"{', '.join(fetched) or 'none fetched'} (in {cache_dir})")
    yield Check(name="credentials", found=", ".join(_credentials(environ)) or "none found")
    if out is not None:
        yield _out(out)


def _gdal() -> Check:
    import rasterio
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    with rasterio.Env() as env:
        drivers = env.drivers()
        missing = [name for name in DRIVERS if name not in drivers]
        try:
            CRS.from_epsg(32633).to_wkt()
            projections = True
        except CRSError:
            projections = False
    found = f"{rasterio.__gdal_version__}, PROJ {rasterio.__proj_version__}"
    error = None
    if missing or not projections:
        error = ConfigurationError(
            "GDAL is not whole",
            expected=f"the drivers {', '.join(DRIVERS)}, and PROJ's database",
            got=f"no {', '.join(missing)}" if missing else "a PROJ that does not know EPSG:32633",
            hint="Install rasterio from its wheel, and unset GDAL_DATA and PROJ_DATA",
        )
    return Check(name="gdal", found=found, error=error)


def _devices(wanted: str) -> Iterator[Check]:
    for name, facts in devices.there():
        yield Check(name="device", found=f"{name}: {facts}")
    try:
        chosen = devices.resolve_device(wanted)
        precision = devices.resolve_precision("auto", chosen)
        devices.try_out(chosen)
    except GeosamStacError as error:
        yield Check(name="chosen", found=wanted, error=error)
    else:
        yield Check(name="chosen", found=f"{chosen} in {precision}")


def _credentials(environ: Mapping[str, str]) -> list[str]:
    found = [name for name in VARIABLES if environ.get(name)]
    home = environ.get("HOME")
    for owner, name in FILES.items():
        path = Path(name.replace("~", home, 1)) if home else Path(name).expanduser()
        if os.access(path, os.R_OK):
            found.append(f"{owner} in {name}")
    if hugging_face_token(environ):
        found.append("a Hugging Face token")
    return found


def _out(out: str) -> Check:
    try:
        Store(out).check_writable()
    except GeosamStacError as error:
        return Check(name="out", found="not writable", error=error)
    return Check(name="out", found=f"{unsigned(out)} can be written")
