"""geosam-stac: STAC imagery in, reusable SAM features out, described by STAC again.

Importing this package imports no torch and no rasterio: the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geosam_stac.api import (
        Session,
        encode,
        open_features,
        plan,
        publish,
        pull,
        search,
        search_features,
        verify,
    )
    from geosam_stac.config import EncodeConfig
    from geosam_stac.errors import GeosamStacError
    from geosam_stac.store import PullResult, Segmentation
    from geosam_stac.types import EncodeResult
    from geosam_stac.views import FeatureItem

_HOMES = {
    "EncodeConfig": "geosam_stac.config",
    "EncodeResult": "geosam_stac.types",
    "FeatureItem": "geosam_stac.views",
    "GeosamStacError": "geosam_stac.errors",
    "PullResult": "geosam_stac.store",
    "Segmentation": "geosam_stac.store",
    "Session": "geosam_stac.api",
    "encode": "geosam_stac.api",
    "open_features": "geosam_stac.api",
    "plan": "geosam_stac.api",
    "publish": "geosam_stac.api",
    "pull": "geosam_stac.api",
    "search": "geosam_stac.api",
    "search_features": "geosam_stac.api",
    "verify": "geosam_stac.api",
}

__all__ = [
    "EncodeConfig",
    "EncodeResult",
    "FeatureItem",
    "GeosamStacError",
    "PullResult",
    "Segmentation",
    "Session",
    "encode",
    "open_features",
    "plan",
    "publish",
    "pull",
    "search",
    "search_features",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("geosam-stac")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
