"""What a run was made of: versions of the software, the machine, the config in force."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from geosam_stac.errors import GeosamStacError
from geosam_stac.hrefs import find_secret, unsigned

PACKAGES = (
    "geosam-stac",
    "odc-stac",
    "odc-geo",
    "odc-loader",
    "rasterio",
    "numpy",
    "torch",
    "sam2",
    "segment-anything",
    "transformers",
)


def software(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Package name -> installed version; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def run_document(
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    sources: Mapping[str, str] | None,
    inputs: Mapping[str, Any] | None = None,
    created: datetime,
) -> bytes:
    """`run.json`: the config in force (and where each option came from), facts, environment.

    `inputs` says by what the scenes were asked for: the search, the file or the names of Items.

    Hrefs in the config are written unsigned: a checkpoint's URL may hold a key.

    Raises
    ------
    GeosamStacError
        The document still holds a signature; its name is told, never its value.
    """
    document = {
        "created": created.astimezone(UTC).isoformat(),
        "config": {
            name: unsigned(value) if isinstance(value, str) else value
            for name, value in config.items()
        },
        "config_sources": dict(sources or {}),
        "inputs": dict(inputs or {}),
        "run": dict(facts),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "software": software(),
        },
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    secret = find_secret(text)
    if secret is not None:
        raise GeosamStacError(
            f"refusing to write a run.json that holds a signature or key ({secret})",
            hint="Please report this as a defect",
        )
    return text.encode()
